//! `maskdiff plugins new KIND NAME`: a crate that builds, passes its contract and runs.

use std::path::{Path, PathBuf};

use include_dir::{Dir, include_dir};
use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::output;
use maskdiff_base::text::quoted_path;
use maskdiff_config::kind::ComponentKind;
use maskdiff_engine::cargo;

use super::Common;
use super::build::refuse_shadowed;

static TEMPLATES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/templates/plugin");
/// The versions this host was built with: a plugin starts from the same ones.
const LOCK: &str = include_str!("../../../../Cargo.lock");

/// Writes the crate `folder/NAME` and says what comes next. `api` is where plugin-api comes from: a folder, a git address
/// or a version; by default the one this host was built from.
pub fn new(
    common: &Common,
    kind: &str,
    name: &str,
    folder: &Path,
    api: Option<&str>,
) -> Result<()> {
    let kind = ComponentKind::read(kind)?;
    check_name(name)?;
    let target = folder.join(name);
    if look::is_taken(&target)? {
        return Err(Error::config(
            format!("`{}` is there already", target.display()),
            "choose another name, or another folder with `--path`",
        ));
    }
    let dependency = source(api)?;
    let component = name.replace('-', "_");
    let crate_name = format!("maskdiff-{}", name.replace('_', "-"));
    refuse_shadowed(common, &crate_name)?;
    let words = Words {
        component: &component,
        crate_name: &crate_name,
        type_name: &type_name(kind, &component),
        kind,
        api: &dependency,
    };
    // Written beside and renamed: a crate is there whole or not at all.
    let draft = std::fs::create_dir_all(folder)
        .and_then(|()| tempfile::Builder::new().prefix(&format!(".{name}-")).tempdir_in(folder));
    let draft = draft.map_err(|e| {
        let message = format!("no crate can be written into `{}`: {e}", folder.display());
        Error::config(message, "name a folder that you may write into by `--path`")
    })?;
    write(draft.path(), &words)?;
    let shared = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(draft.path(), shared)
        .and_then(|()| std::fs::rename(draft.path(), &target))
        .map_err(|e| Error::io("write", &target, &e))?;
    output::result(&format!(
        "{}: a {kind} plugin; the component is `{component}` in src/lib.rs\n\
         next: maskdiff plugins build {}\n\
         then: maskdiff {}",
        target.display(),
        quoted_path(&target),
        try_it(kind, &component)
    ));
    Ok(())
}

/// Checks that a name can be that of a plugin.
pub(super) fn check_name(name: &str) -> Result<()> {
    let named =
        name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-')
            && name.starts_with(|c: char| c.is_ascii_lowercase());
    if !named {
        return Err(Error::config(
            format!("`{name}` cannot be a plugin's name"),
            "a name is lower-case letters, digits, `_` and `-`, and starts with a letter",
        ));
    }
    Ok(())
}

struct Words<'a> {
    component: &'a str,
    crate_name: &'a str,
    type_name: &'a str,
    kind: ComponentKind,
    api: &'a str,
}

fn write(folder: &Path, words: &Words<'_>) -> Result<()> {
    let filled = |template: &str| {
        let text = TEMPLATES.get_file(template).and_then(|file| file.contents_utf8());
        let watch = match words.kind {
            ComponentKind::Sampler => {
                "; `maskdiff sample --watch . --checkpoint RUN` draws again at each save"
            }
            _ => "",
        };
        text.unwrap_or_default()
            .replace("{{component}}", words.component)
            .replace("{{crate}}", words.crate_name)
            .replace("{{Type}}", words.type_name)
            .replace("{{kind}}", words.kind.name())
            .replace("{{api}}", words.api)
            .replace("{{watch}}", watch)
            .replace("{{try}}", &try_it(words.kind, words.component))
    };
    let files = [
        ("Cargo.toml", filled("Cargo.toml.in")),
        ("Cargo.lock", LOCK.to_string()),
        ("build.rs", filled("build.rs")),
        ("rustfmt.toml", filled("rustfmt.toml")),
        (".gitignore", filled("gitignore")),
        ("README.md", filled("README.md")),
        ("src/lib.rs", filled(&format!("{}.rs", words.kind))),
    ];
    let source = folder.join("src");
    std::fs::create_dir_all(&source).map_err(|e| Error::io("write", &source, &e))?;
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|e| Error::io("write", &path, &e))?;
    }
    cargo::point_at_libtorch(folder)
}

/// The dependency on plugin-api as Cargo.toml writes it: a folder, a git address, or a version. By default the one this
/// host was built from, when it is still there, else the released one.
fn source(api: Option<&str>) -> Result<String> {
    let version = maskdiff_plugin_api::abi::API_VERSION;
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("plugin-api");
    let folder = |path: &Path| -> Result<String> {
        let path = path.canonicalize().map_err(|e| Error::io("find", path, &e))?;
        Ok(format!("{{ path = \"{}\" }}", path.display()))
    };
    let has_crate = |folder: &Path| look::is_file(&folder.join("Cargo.toml"));
    match api {
        None if has_crate(&own)? => folder(&own),
        None => Ok(format!("\"{version}\"")),
        Some(git) if git.contains("://") => Ok(format!("{{ git = \"{git}\" }}")),
        // Cargo reads the short form of git only when it is written out.
        Some(git) if git.starts_with("git@") => {
            Ok(format!("{{ git = \"ssh://{}\" }}", git.replacen(':', "/", 1)))
        }
        Some(number) if number.starts_with(|c: char| c.is_ascii_digit()) => {
            Ok(format!("\"{number}\""))
        }
        Some(path) if has_crate(Path::new(path))? => folder(&PathBuf::from(path)),
        Some(other) => Err(Error::config(
            format!("`--api {other}` is no folder with a Cargo.toml"),
            "give the folder of plugin-api, a git address, or a version",
        )),
    }
}

/// A command that uses a new component at once.
pub(super) fn try_it(kind: ComponentKind, component: &str) -> String {
    let choice = format!("{}={component}", kind.key());
    match kind {
        ComponentKind::Sampler => format!("sample --checkpoint RUN {choice}"),
        _ => format!("train experiment=demo {choice}"),
    }
}

/// A name for the type; one that the template uses already gets the kind behind it.
fn type_name(kind: ComponentKind, component: &str) -> String {
    const TAKEN: [&str; 25] = [
        "Backbone",
        "Block",
        "Component",
        "Config",
        "Context",
        "Denoiser",
        "Deserialize",
        "ForwardProcess",
        "Head",
        "JsonSchema",
        "Kind",
        "Mlp",
        "NoiseSchedule",
        "Option",
        "Parameterization",
        "Parameters",
        "Result",
        "Rotary",
        "Sampler",
        "Self",
        "SelfAttention",
        "Serialize",
        "StepSampler",
        "Tensor",
        "Walk",
    ];
    let name = camel_case(component);
    if TAKEN.contains(&name.as_str()) { format!("{name}{}", camel_case(kind.name())) } else { name }
}

/// `my_sampler` as `MySampler`.
pub(super) fn camel_case(name: &str) -> String {
    let capital = |word: &str| {
        let mut letters = word.chars();
        letters
            .next()
            .map(|c| c.to_ascii_uppercase())
            .into_iter()
            .chain(letters)
            .collect::<String>()
    };
    name.split('_').map(capital).collect()
}
