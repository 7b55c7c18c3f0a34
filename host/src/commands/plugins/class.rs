//! A class in a file, as `FILE:CLASS` or `NAME:FILE:CLASS`, in the place of a plugin file; and the file that begins one.

use std::path::{Path, PathBuf};

use include_dir::{Dir, include_dir};
use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::{look, write_whole};
use maskdiff_base::output;
use maskdiff_base::text::quoted_path;
use maskdiff_config::kind::ComponentKind;
use maskdiff_engine::assemble;

use super::Common;
use super::new::{camel_case, check_name, try_it};

/// The component that opens a class, and how it is told of it.
#[derive(Debug)]
pub struct Class {
    /// The plugin file.
    pub plugin: PathBuf,
    /// The component's name.
    pub component: String,
    /// `FILE:CLASS`.
    pub argument: String,
}

/// The class that a word names, where it names one.
pub fn in_file(common: &Common, word: &Path, kind: Option<&str>) -> Result<Option<Class>> {
    const END: &str = ".py:";
    let Some(word) = word.to_str().filter(|word| word.contains(END)) else { return Ok(None) };
    let Some(kind) = kind else {
        return Err(Error::config(
            format!("`{word}` does not say what kind of component it is"),
            "add `--kind KIND`: backbone, noise, parameterization, process or sampler",
        ));
    };
    let kind = ComponentKind::read(kind)?;
    let plain = common.clone().overriding(Vec::new());
    let registry = assemble::registry(&common.plugins, &plain.config()?)?;
    let taking = registry.having(kind, "argument");
    let named = word.split_once(':').filter(|(name, _)| taking.iter().any(|c| c.name == *name));
    let (name, argument) = match named {
        Some((name, argument)) => (name, argument),
        None => (taking.first().map_or("", |c| c.name.as_str()), word),
    };
    let (plugin, component) = registry.find(kind, name)?;
    let (plugin, component) = (plugin.path.clone(), component.name.clone());
    Ok(Some(Class { plugin, component, argument: argument.to_string() }))
}

static EXAMPLES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../plugins/python/examples");

/// Where a class of a kind begins: the text of an example, its file and its class. The example is the one that says how it is checked.
fn template(kind: ComponentKind) -> Option<(&'static str, &'static str, &'static str)> {
    let begin = "maskdiff plugins check ";
    let end = format!(" --kind {kind}\n");
    EXAMPLES.files().find_map(|file| {
        let text = file.contents_utf8()?;
        let (before, _) = text.split_once(&end)?;
        let (file, class) = before.rsplit_once(begin)?.1.split_once(':')?;
        Some((text, file, class))
    })
}

/// Writes `folder/NAME.py` with a class that keeps its contract, and a test of it.
pub fn new(kind: &str, name: &str, folder: &Path) -> Result<()> {
    let kind = ComponentKind::read(kind)?;
    check_name(name)?;
    let stem = name.replace('-', "_");
    let file = format!("{stem}.py");
    let class = match camel_case(&stem) {
        // Words of the language.
        word if ["None", "True", "False"].contains(&word.as_str()) => {
            word + &camel_case(kind.name())
        }
        word => word,
    };
    let target = folder.join(&file);
    if look::is_taken(&target)? {
        return Err(Error::config(
            format!("`{}` is there already", target.display()),
            "choose another name, or another folder with `--path`",
        ));
    }
    let Some((text, old_file, old_class)) = template(kind) else {
        return Err(Error::config(
            format!("there is no example of a {kind} in Python"),
            "leave `--python` out: `maskdiff plugins new KIND NAME` makes a crate",
        ));
    };
    let text = text.replace(old_file, &file).replace(old_class, &class);
    let test = format!(
        "\n\ndef test_contract():\n    \"\"\"What other components rely on, tried on tiny models: pytest {file}, or python {file}.\"\"\"\n    \
         import subprocess\n    \
         subprocess.run(['maskdiff', 'plugins', 'check', f'{{__file__}}:{class}', '--kind', '{kind}'], check=True)\n\n\n\
         if __name__ == '__main__':\n    test_contract()\n"
    );
    std::fs::create_dir_all(folder).map_err(|e| Error::io("write", folder, &e))?;
    write_whole(&target, (text + &test).as_bytes())?;
    let named =
        |before: &str| quoted_path(Path::new(&format!("{before}{}:{class}", target.display())));
    output::result(&format!(
        "{}: a {kind} in Python, the class `{class}`\n\
         next: maskdiff plugins check {} --kind {kind}\n\
         then: maskdiff {}",
        target.display(),
        named(""),
        try_it(kind, &named("python:")),
    ));
    Ok(())
}
