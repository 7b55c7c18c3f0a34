//! What the project promises of itself: the host names no method, every shipped configuration resolves, the README works.

use std::fs;
use std::path::{Path, PathBuf};

use maskdiff_tests::run::{SMALL, command, finish, maskdiff, shell};
use maskdiff_tests::{registry, root};

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn the_host_names_no_method() {
    for word in
        ["mdlm", "sedd", "d3pm", "ddpm", "\"subs\"", "dimamba", "analytic", "remdm", "loglinear"]
    {
        for path in files(&root().join("host/src")) {
            let text = fs::read_to_string(&path).expect("source").to_lowercase();
            assert!(!text.contains(word), "{} names {word}", path.display());
        }
    }
    // Names that are words of no other use must not stand in the host either.
    let registry = registry();
    for (_, component) in registry.components() {
        if component.name.contains('_') {
            for path in files(&root().join("host/src")) {
                let text = fs::read_to_string(&path).expect("source");
                assert!(!text.contains(&*component.name), "{}: {}", path.display(), component.name);
            }
        }
    }
}

/// What lies at a path is asked by `files::look`, where only "not found" means that nothing does. These take any error for absence.
#[test]
fn no_error_of_a_disk_is_taken_for_absence() {
    let mut found = Vec::new();
    let folders = ["host/src", "plugin-api/src", "plugins"];
    for path in folders.iter().flat_map(|folder| files(&root().join(folder))) {
        let is_code = path.extension().is_some_and(|ending| ending == "rs");
        // It asks, and a walk through the user's own files, which tells what it leaves out.
        let asks = ["files/look.rs", "data/listing.rs"].iter().any(|name| path.ends_with(name));
        if !is_code || asks {
            continue;
        }
        let text = fs::read_to_string(&path).expect("source");
        let code = text.split("#[cfg(test)]").next().expect("code");
        for (number, line) in code.lines().enumerate() {
            let asks = [".exists()", ".try_exists()", "read_dir("];
            let asks_kind = [".is_file()", ".is_dir()", ".is_symlink()"].iter().any(|call| {
                // Of what was found, the kind may be asked.
                line.match_indices(call).any(|(at, _)| {
                    let before = &line[..at];
                    !["it", "found", "file_type()", "kind"]
                        .iter()
                        .any(|word| before.ends_with(word))
                })
            });
            let reads = ["fs::read", "File::open", "fs::metadata", "read_link"];
            let reads = reads.iter().any(|call| line.contains(call));
            let forgets = [".ok()", "unwrap_or_default()", ".is_ok()", "Err(_)", "let Ok("];
            let forgets = reads && forgets.iter().any(|call| line.contains(call));
            // What the system says of itself and of the machine.
            let of_system =
                ["/proc/", "/sys/", "/etc/hostname"].iter().any(|place| line.contains(place));
            if (asks.iter().any(|call| line.contains(call)) || asks_kind || forgets) && !of_system {
                found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "ask by `files::look`:\n{}", found.join("\n"));
}

#[test]
fn all_components_are_listed_with_their_help() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = maskdiff(folder.path(), &["plugins", "list", "--format", "text"]);
    let registry = registry();
    let components = registry.components();
    assert!(components.len() >= 20, "only {} components", components.len());
    for (plugin, component) in components {
        let (name, about) = (&component.name, &component.about);
        let words = [&**name, &**about, &*plugin.info.name];
        let fits = |line: &str| {
            line.trim_start().starts_with(words[0]) && words.iter().all(|w| line.contains(w))
        };
        assert!(out.expect(0).stdout.lines().any(fits), "{name}: {}", out.stdout);
        let shown = maskdiff(folder.path(), &["plugins", "show", name, "--format", "text"]);
        assert!(shown.expect(0).stdout.contains(&**about), "{name}: {}", shown.stdout);
    }
}

/// `docs/components` is written by `maskdiff plugins docs docs/components`, and kept.
#[test]
fn the_pages_of_the_components_are_as_the_components_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let words = ["plugins", "docs", "pages"];
    finish(command(folder.path(), &words).env("XDG_DATA_HOME", folder.path())).expect(0);
    let kept = root().join("docs/components");
    let names = |at: &Path| -> Vec<_> {
        let mut names: Vec<_> =
            files(at).iter().filter_map(|f| f.file_name().map(ToOwned::to_owned)).collect();
        names.sort();
        names
    };
    assert_eq!(names(&folder.path().join("pages")), names(&kept), "write the pages again");
    for page in files(&folder.path().join("pages")) {
        let same = kept.join(page.file_name().expect("a name"));
        let text = |path: &Path| fs::read_to_string(path).expect("a page");
        assert_eq!(text(&page), text(&same), "{}: write the pages again", same.display());
    }
}

#[test]
fn every_shipped_configuration_resolves() {
    let folder = tempfile::tempdir().expect("a folder");
    let configs = root().join("configs");
    let mut resolved = 0;
    for path in files(&configs) {
        let inside = path.strip_prefix(&configs).expect("below configs").with_extension("");
        let Some((group, name)) = inside.to_str().expect("UTF-8").split_once('/') else { continue };
        // What a corpus or a folder is made of is no choice of its own: `maskdiff data list` reads all corpora.
        if ["compat", "corpus", "launcher", "layout", "protocol", "published"].contains(&group) {
            continue;
        }
        let choice = format!("{group}={name}");
        // A size for another network than the default one names it: `tiny-ar`.
        let network = name.split_once('-').filter(|_| group == "model");
        let network = network.map(|(_, network)| format!("backbone={network}"));
        let words = [&["config", &choice], network.as_deref().as_slice()].concat();
        maskdiff(folder.path(), &words).expect(0);
        resolved += 1;
    }
    assert!(resolved > 10, "only {resolved} files in {}", configs.display());
    let listed = maskdiff(folder.path(), &["data", "list"]).expect(0).lines();
    assert_eq!(listed.len(), files(&configs.join("corpus")).len());
}

/// The scripts for Slurm say what they would say by hand: their commands are checked as those of a launch are.
#[test]
fn the_scripts_for_slurm_have_settings_that_resolve() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut checked = 0;
    for path in files(&root().join("scripts")) {
        let text = fs::read_to_string(&path).expect("a script").replace("\\\n", " ");
        let Some(line) = text.lines().find_map(|line| line.strip_prefix("srun maskdiff ")) else {
            continue;
        };
        let read = shell(folder.path(), &format!("bash -n '{}'", path.display()));
        read.expect(0);
        let launched = shell(folder.path(), &format!("maskdiff launch local --dry-run -- {line}"));
        launched.expect(0);
        // What an evaluation is told beside its checkpoint is looked at alone.
        let words =
            line.split_whitespace().filter(|word| word.contains('=') && !word.contains('$'));
        let words: Vec<&str> = words.collect();
        maskdiff(folder.path(), &[&["config"], &words[..]].concat()).expect(0);
        checked += 1;
    }
    assert_eq!(checked, 8);
}

#[test]
fn the_commands_of_the_readme_and_the_docs_work() {
    for (file, least) in [
        ("README.md", 6),
        ("docs/tutorial.md", 10),
        ("docs/overrides.md", 5),
        ("docs/sampling.md", 8),
        ("docs/training.md", 3),
        ("docs/data.md", 5),
        ("docs/checkpoints.md", 4),
        ("docs/evaluation.md", 5),
        ("docs/tracking.md", 6),
        ("docs/cluster.md", 5),
        ("docs/original.md", 4),
    ] {
        let text = fs::read_to_string(root().join(file)).expect(file);
        let folder = tempfile::tempdir().expect("a folder");
        let mut ran = 0;
        for block in text.split("```sh\n").skip(1) {
            let block = block.split("```").next().expect("a block");
            for line in block.replace("\\\n", " ").lines() {
                let small = if line.starts_with("maskdiff train") { SMALL } else { &[] };
                shell(folder.path(), &format!("{line} {}", small.join(" "))).expect(0);
                ran += 1;
            }
        }
        assert!(ran >= least, "{file} has only {ran} commands");
    }
}
