//! What the stable ABI promises: old plugins in new hosts, new plugins in old hosts, plugins of another compiler; and that
//! a changed layout is refused before it can do harm.
//!
//! `tests/compat/plugin-api-VERSION.so.gz` are plugins as they were built against a version, for Linux on x86_64.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use maskdiff_tests::run::{Output, SMALL, command, finish, maskdiff};
use maskdiff_tests::{root, target};

/// A folder of this test that stays between runs, so that what is built in it does too.
fn workshop(name: &str) -> PathBuf {
    let folder = target().join("compatibility").join(name);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// A `maskdiff` command of a user whose home is `folder`.
fn author(folder: &Path, words: &[&str]) -> Command {
    let mut command = command(folder, words);
    command.env("XDG_DATA_HOME", folder.join("data"));
    command.env("XDG_CACHE_HOME", target().join("authors"));
    command
}

fn run(folder: &Path, words: &[&str]) -> Output {
    finish(&mut author(folder, words))
}

/// The plugin of a version; none on a machine that it was not built for.
fn kept_plugin(folder: &Path, version: &str) -> Option<String> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        maskdiff_tests::skipped("the kept plugins are for Linux on x86_64");
        return None;
    }
    let packed = root().join(format!("tests/compat/plugin-api-{version}.so.gz"));
    let unpacked = Command::new("gunzip").arg("-c").arg(packed).output().expect("gunzip");
    let file = folder.join("libmaskdiff_first.so");
    fs::write(&file, unpacked.stdout).expect("a file");
    Some(file.display().to_string())
}

/// Its contract holds, it trains, and what it trained is sampled.
fn keeps_its_contract_and_runs(version: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(file) = kept_plugin(folder.path(), version) else { return };
    let out = maskdiff(folder.path(), &["plugins", "check", &file, "--format", "json"]);
    let said = out.expect(0).lines().remove(0);
    assert_eq!(said["components"].as_array().map(Vec::len), Some(5), "{said}");
    let listed =
        maskdiff(folder.path(), &["plugins", "list", "--plugin", &file, "--format", "json"]);
    assert!(listed.expect(0).stdout.contains(version), "{}", listed.stdout);
    let components = [
        "backbone=first_backbone",
        "noise.type=first_noise",
        "diffusion=first_process",
        "parameterization=first_parameterization",
        "sampling.predictor=first_sampler",
        "run.dir=run",
        "--plugin",
        &file,
    ];
    let small: Vec<&str> = SMALL.iter().copied().filter(|w| !w.contains("cond_dim")).collect();
    maskdiff(folder.path(), &[&["train"], &small[..], &components].concat()).expect(0);
    let words = ["sample", "--checkpoint", "run", "--plugin", &file];
    let out = maskdiff(folder.path(), &words);
    assert!(!out.expect(0).lines()[0]["text"].as_str().expect("text").is_empty());
}

#[test]
fn a_plugin_of_the_first_version_keeps_its_contract_and_runs() {
    keeps_its_contract_and_runs("1.0.0");
}

#[test]
fn a_plugin_of_contract_1_1_keeps_its_contract_and_runs() {
    keeps_its_contract_and_runs("1.1.0");
}

/// A copy of plugin-api in a workspace of its own, with texts replaced in its files; each must be there.
fn changed_api(name: &str, changes: &[(&str, &str, &str)]) -> PathBuf {
    let folder = workshop(name);
    let copied = Command::new("cp")
        .args(["-rT"])
        .arg(root().join("plugin-api"))
        .arg(folder.join("plugin-api"))
        .status();
    assert!(copied.is_ok_and(|s| s.success()), "cp");
    for file in ["Cargo.toml", "Cargo.lock"] {
        fs::copy(root().join(file), folder.join(file)).expect("a copy");
    }
    let native = format!("path = \"{}\"", root().join("plugin-api/native").display());
    let workspace = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    let all = workspace.lines().find(|line| line.starts_with("members = ")).expect("the members");
    let members = ("Cargo.toml", all, r#"members = ["plugin-api"]"#);
    let native = ("Cargo.toml", r#"path = "plugin-api/native""#, native.as_str());
    for (file, from, to) in [members, native].iter().chain(changes) {
        let path = folder.join(file);
        let text = fs::read_to_string(&path).expect("the copy");
        assert!(text.contains(from), "`{from}` is not in {file}");
        fs::write(&path, text.replacen(from, to, 1)).expect("a file");
    }
    folder
}

/// The next minor version: a field at the end of the module, and a method with a default at the end of an object.
fn newer_api() -> PathBuf {
    changed_api(
        "newer",
        &[
            ("plugin-api/Cargo.toml", "version = \"1.1.0\"", "version = \"1.2.0\""),
            (
                "plugin-api/src/abi/module.rs",
                "context: RStr<'_>) -> RAnswer<SamplerBox>,\n}",
                "context: RStr<'_>) -> RAnswer<SamplerBox>,\n    pub more: extern \"C\" fn() -> RString,\n}",
            ),
            (
                "plugin-api/src/register.rs",
                "make_sampler: module::sampler,",
                "make_sampler: module::sampler, more: info,",
            ),
            (
                "plugin-api/src/abi/objects.rs",
                "    fn call(&mut self, _method: RStr<'_>, _model: DenoiserRef<'_>, _sent: RMessage) -> RReply {\n        RResult::ROk(ROption::RNone)\n    }\n",
                "    fn call(&mut self, _method: RStr<'_>, _model: DenoiserRef<'_>, _sent: RMessage) -> RReply {\n        RResult::ROk(ROption::RNone)\n    }\n    fn calls(&self) -> i64 {\n        0\n    }\n",
            ),
        ],
    )
}

/// Builds a new plugin over a plugin-api and gives its file.
fn plugin_over(api: &Path, kind: &str, name: &str) -> PathBuf {
    let crate_folder = api.join(name);
    let _ = fs::remove_dir_all(&crate_folder);
    let source = api.join("plugin-api").display().to_string();
    run(api, &["plugins", "new", kind, name, "--api", &source]).expect(0);
    cargo(&["build", "--lib"], &crate_folder).expect(0);
    let file = format!("libmaskdiff_{}.so", name.replace('-', "_"));
    shared_target().join("debug").join(file)
}

/// Where what plugins share is built.
fn shared_target() -> PathBuf {
    target().join("authors/maskdiff/plugins-target")
}

/// Plain cargo in a crate.
fn cargo(words: &[&str], folder: &Path) -> Output {
    let mut cargo = Command::new("cargo");
    finish(cargo.args(words).current_dir(folder).env("CARGO_TARGET_DIR", shared_target()))
}

#[test]
fn a_newer_plugin_loads_in_this_host_and_an_older_one_in_a_newer_host() {
    let api = newer_api();
    let newer = plugin_over(&api, "sampler", "newer").display().to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let shown = maskdiff(folder.path(), &["plugins", "show", "newer", "--plugin", &newer]);
    assert!(shown.expect(0).stdout.contains("1.2.0"), "{shown:?}");
    maskdiff(folder.path(), &["plugins", "check", &newer]).expect(0);
    // A host of the next version: what it needs of one is plugin-api's own loader.
    let host = api.join("host");
    fs::create_dir_all(host.join("src")).expect("a folder");
    let write = |file: &str, text: &str| fs::write(host.join(file), text).expect("a file");
    write(
        "Cargo.toml",
        "[package]\nname = \"newer-host\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[dependencies]\n\
         maskdiff-plugin-api = { path = \"../plugin-api\" }\n\n[profile.dev]\nopt-level = 1\n\
         debug = \"line-tables-only\"\n\n[profile.dev.package.\"*\"]\nopt-level = 0\ndebug = false\n\n[workspace]\n",
    );
    for file in ["build.rs", "Cargo.lock"] {
        fs::copy(api.join("newer").join(file), host.join(file)).expect("a copy");
    }
    write(
        "src/main.rs",
        r#"use maskdiff_plugin_api::abi::{API_VERSION, load::Plugin};
use maskdiff_plugin_api::testkit::contracts;

fn main() {
    for file in std::env::args().skip(1) {
        let plugin = Plugin::open(file.as_ref()).unwrap_or_else(|e| panic!("{e}"));
        for c in plugin.info.components.iter().filter(|c| c.kind == "sampler") {
            let options = c.defaults.to_string();
            contracts::sampler(&|facts| plugin.sampler(&c.name, &options, facts), &[]).unwrap();
            println!("host {API_VERSION}: {} of {} works", c.name, plugin.info.api_version);
        }
    }
}
"#,
    );
    let Some(first) = kept_plugin(folder.path(), "1.0.0") else { return };
    // Old and new ones in one process, in either order.
    for files in [[&first, &newer], [&newer, &first]] {
        let out = cargo(&["run", "--", files[0], files[1]], &host);
        for words in
            ["host 1.2.0: first_sampler of 1.0.0 works", "host 1.2.0: newer of 1.2.0 works"]
        {
            assert!(out.expect(0).stdout.contains(words), "{out:?}");
        }
    }
}

#[test]
fn a_changed_layout_is_refused_in_one_sentence() {
    let api = changed_api(
        "changed",
        &[
            (
                "plugin-api/src/abi/objects.rs",
                "pub trait SamplerObject {",
                "pub trait SamplerObject {\n    fn inserted(&self) -> i64;",
            ),
            (
                "plugin-api/src/abi/adapters.rs",
                "impl<T: Sampler> SamplerObject for SamplerAdapter<T> {",
                "impl<T: Sampler> SamplerObject for SamplerAdapter<T> {\n    fn inserted(&self) -> i64 { 0 }",
            ),
        ],
    );
    let file = plugin_over(&api, "sampler", "changed").display().to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let out = maskdiff(folder.path(), &["plugins", "list", "--plugin", &file]);
    out.expect(3)
        .says(&["was built against a changed plugin-api (1.1.0", "build the plugin again"]);
    assert!(out.stderr.lines().count() < 12, "{}", out.stderr);
}

#[test]
fn a_plugin_of_another_compiler_loads() {
    let version = |rustc: &Path| {
        let said = Command::new(rustc).arg("--version").output().ok()?;
        Some(String::from_utf8_lossy(&said.stdout).trim().to_string()).filter(|v| !v.is_empty())
    };
    let ours = maskdiff_plugin_api::abi::RUSTC;
    let home = std::env::var("RUSTUP_HOME").map(PathBuf::from).ok();
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".rustup")));
    let toolchains = home.and_then(|home| fs::read_dir(home.join("toolchains")).ok());
    let others = toolchains.into_iter().flatten().flatten().map(|t| t.path().join("bin/rustc"));
    let Some(rustc) =
        others.into_iter().find(|rustc| version(rustc).is_some_and(|v| v.as_str() > ours))
    else {
        maskdiff_tests::skipped(&format!("no toolchain of rustup is newer than {ours}"));
        return;
    };
    let folder = workshop("compiler");
    let _ = fs::remove_dir_all(folder.join("other"));
    run(&folder, &["plugins", "new", "sampler", "other"]).expect(0);
    let mut build = author(&folder, &["plugins", "build", "other"]);
    // A toolchain that cargo would put in front must not win over the one that is meant.
    finish(build.env("RUSTC", &rustc).env("CARGO_TARGET_DIR", folder.join("target"))).expect(0);
    let shown = run(&folder, &["plugins", "show", "other", "--format", "json"]);
    let said: serde_json::Value = serde_json::from_str(&shown.expect(0).stdout).expect("JSON");
    let built = said[0]["rustc"].as_str().expect("rustc").to_string();
    assert_eq!(Some(built), version(&rustc));
}
