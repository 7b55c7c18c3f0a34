//! What the project promises of itself: the host names no method, every shipped configuration resolves, the README works.

use std::collections::{BTreeMap, BTreeSet};
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

/// The layers of the host, each a crate in `host/`, and those that it may know.
const LAYERS: [(&str, &[&str]); 9] = [
    ("base", &[]),
    ("config", &["base"]),
    ("hub", &["base"]),
    ("data", &["base", "config", "hub"]),
    ("records", &["base", "config"]),
    ("track", &["base", "config", "records"]),
    ("cluster", &["base", "config", "records"]),
    ("engine", &["base", "config", "hub", "data", "records", "track"]),
    ("serve", &["base", "config", "data", "records", "engine"]),
];

/// Those that know libtorch.
const OVER_LIBTORCH: [&str; 2] = ["engine", "serve"];

/// The source folders of the host's crates.
fn host_crates() -> Vec<PathBuf> {
    let layers = LAYERS.iter().map(|(name, _)| root().join("host").join(name).join("src"));
    layers.chain([root().join("host/src")]).collect()
}

fn host_sources() -> Vec<PathBuf> {
    host_crates().iter().flat_map(|folder| files(folder)).collect()
}

/// The compiler keeps the order of the layers; this keeps their manifests, and libtorch out of all but the engine and what is above it.
#[test]
fn a_layer_of_the_host_knows_only_those_below_it() {
    for (name, below) in LAYERS {
        let manifest = fs::read_to_string(root().join("host").join(name).join("Cargo.toml"));
        for line in manifest.expect("a manifest").lines() {
            let Some(known) = line.strip_prefix("maskdiff-") else { continue };
            let known = known.split(['.', ' ']).next().expect("a name");
            let of_engine =
                OVER_LIBTORCH.contains(&name) && ["native", "plugin-api"].contains(&known);
            assert!(below.contains(&known) || of_engine, "{name} must not know {known}");
        }
        if OVER_LIBTORCH.contains(&name) {
            continue;
        }
        let words = ["tree", "--offline", "--locked", "--prefix", "none", "-p"];
        let tree = std::process::Command::new(env!("CARGO"))
            .args(words)
            .arg(format!("maskdiff-{name}"))
            .current_dir(root())
            .output()
            .expect("cargo");
        assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
        let tree = String::from_utf8_lossy(&tree.stdout);
        assert!(tree.contains(&format!("maskdiff-{name} ")), "{tree}");
        for torch in ["tch ", "torch-sys ", "maskdiff-plugin-api "] {
            assert!(!tree.lines().any(|line| line.starts_with(torch)), "{name} needs {torch}");
        }
    }
}

/// Which of the modules in a crate's root each of them uses.
fn uses(folder: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let name = |path: &Path| {
        let inside = path.strip_prefix(folder).expect("below").with_extension("");
        inside.iter().next().expect("a name").to_string_lossy().into_owned()
    };
    let all = files(folder);
    let names: BTreeSet<String> = all.iter().map(|path| name(path)).collect();
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in &all {
        let text = fs::read_to_string(path).expect("source");
        let code = text.split("#[cfg(test)]").next().expect("code");
        let code: String =
            code.lines().map(|line| line.split("//").next().unwrap_or(line)).collect();
        let own = name(path);
        let mut starts = vec!["crate::"];
        if path.parent() == Some(folder) {
            starts.push("super::");
        }
        let words = starts.iter().flat_map(|start| code.split(start).skip(1)).flat_map(|rest| {
            // Of `{a, b::c}` the first word of each part.
            let group = rest.strip_prefix('{').and_then(|rest| rest.split_once(';')).map(|g| g.0);
            let parts: Vec<&str> = match group {
                Some(group) => group.split(['{', ',', ' ']).collect(),
                None => vec![rest],
            };
            let word = |part: &str| {
                let end = part.find(|c: char| !c.is_alphanumeric() && c != '_');
                part[..end.unwrap_or(part.len())].to_string()
            };
            parts.into_iter().map(word).collect::<Vec<String>>()
        });
        let words = words.filter(|word| names.contains(word) && *word != own);
        uses.entry(own.clone()).or_default().extend(words.collect::<Vec<String>>());
    }
    uses
}

#[test]
fn the_modules_of_a_crate_use_each_other_in_no_ring() {
    for folder in host_crates() {
        let mut left = uses(&folder);
        left.retain(|name, _| !["lib", "main"].contains(&name.as_str()));
        // Whoever uses none of those that are left can be taken away.
        while !left.is_empty() {
            let free =
                left.iter().find(|(_, used)| used.iter().all(|used| !left.contains_key(used)));
            let Some(free) = free.map(|(name, _)| name.clone()) else {
                panic!("{}: a ring among {left:?}", folder.display());
            };
            left.remove(&free);
        }
    }
}

/// Where `unsafe` may stand in the host. Each of these files says at each place why it is sound.
const UNSAFE: [&str; 13] = [
    "base/src/memory/refused.rs",
    "base/src/signals.rs",
    "base/src/stdout.rs",
    "cluster/src/launch/ranks.rs",
    "data/src/cache.rs",
    "engine/src/accelerator.rs",
    "engine/src/checkpoint/room.rs",
    "engine/src/checkpoint/tensors.rs",
    "engine/src/checkpoint/write.rs",
    "engine/src/last_words.rs",
    "engine/src/plugins/writable.rs",
    "serve/src/patience.rs",
    "src/cli.rs",
];

#[test]
fn unsafe_code_stands_where_it_is_listed() {
    let found: BTreeSet<String> = host_sources()
        .iter()
        .filter(|path| fs::read_to_string(path).expect("source").contains("unsafe "))
        .map(|path| {
            path.strip_prefix(root().join("host")).expect("of the host").display().to_string()
        })
        .collect();
    assert_eq!(found, UNSAFE.map(String::from).into());
}

/// The functions of a source file: line, name and length. rustfmt ends each at its own indentation.
fn functions(text: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let indent = &line[..line.len() - line.trim_start().len()];
        let Some((before, rest)) = line.trim_start().split_once("fn ") else { continue };
        let words = ["pub", "const", "async", "unsafe", "extern"];
        let is_word = |word: &str| {
            let known = words.iter().any(|known| word.starts_with(known));
            known || ["\"C\"", "in"].contains(&word) || word.ends_with(')')
        };
        if !before.split_whitespace().all(is_word) {
            continue;
        }
        let name =
            rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        // A declaration ends with a semicolon, at its own indentation too.
        let last = lines[i..].iter().position(|line| {
            let own = line.strip_prefix(indent).is_some_and(|rest| !rest.starts_with(' '));
            own && (line.ends_with('}') || line.ends_with(';'))
        });
        found.push((i + 1, name.to_string(), last.map_or(lines.len() - i, |last| last + 1)));
    }
    found
}

/// A longer function says why: a line `// Long: REASON` stands in front of it or at its top.
#[test]
fn no_function_is_long_without_a_reason() {
    const MOST: usize = 80;
    let folders = ["host", "plugin-api", "plugins", "tests"].map(|name| root().join(name));
    let (mut long, mut seen) = (Vec::new(), 0);
    for path in folders.iter().flat_map(|folder| files(folder)) {
        if path.extension().is_none_or(|ending| ending != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("source");
        let lines: Vec<&str> = text.lines().collect();
        for (line, name, length) in functions(&text) {
            seen += 1;
            let near = &lines[line.saturating_sub(4)..lines.len().min(line + 3)];
            if length > MOST && !near.iter().any(|line| line.trim().starts_with("// Long: ")) {
                long.push(format!("{}:{line}: {name} has {length} lines", path.display()));
            }
        }
    }
    assert!(seen > 3000, "only {seen} functions were found");
    assert!(long.is_empty(), "give its phases names of their own:\n{}", long.join("\n"));
}

#[test]
fn the_host_names_no_method() {
    for word in
        ["mdlm", "sedd", "d3pm", "ddpm", "\"subs\"", "dimamba", "analytic", "remdm", "loglinear"]
    {
        for path in host_sources() {
            let text = fs::read_to_string(&path).expect("source").to_lowercase();
            assert!(!text.contains(word), "{} names {word}", path.display());
        }
    }
    // Names that are words of no other use must not stand in the host either.
    let registry = registry();
    for (_, component) in registry.components() {
        if component.name.contains('_') {
            for path in host_sources() {
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
    let others = ["plugin-api/src", "plugins"].map(|folder| files(&root().join(folder)));
    for path in host_sources().into_iter().chain(others.into_iter().flatten()) {
        let is_code = path.extension().is_some_and(|ending| ending == "rs");
        // It asks, and a walk through the user's own files, which tells what it leaves out.
        let asks = ["files/look.rs", "data/src/listing.rs"].iter().any(|name| path.ends_with(name));
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
        // A file whose first lines ask for a checkpoint is resolved with the name of one.
        let text = fs::read_to_string(&path).expect("a file");
        let teacher = text.contains("`training.teacher=CHECKPOINT`");
        let teacher = teacher.then_some("training.teacher=CHECKPOINT");
        let labels = text.contains("`data.label_column=NAME`");
        let labels = labels.then_some("data.label_column=animal");
        let named = [network.as_deref(), teacher, labels];
        let words =
            [&["config", choice.as_str()][..], &named.into_iter().flatten().collect::<Vec<&str>>()]
                .concat();
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
        ("docs/serve.md", 2),
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
