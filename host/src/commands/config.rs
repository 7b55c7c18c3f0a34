//! `maskdiff config`

use maskdiff_base::error::Result;
use maskdiff_base::output;
use maskdiff_base::stdout::Format;
use maskdiff_config::original::{self, Differs};
use maskdiff_config::{Config, Form};
use maskdiff_engine::assemble;
use maskdiff_engine::choose::{self, Choose as _};
use maskdiff_track::wandb;

use super::{Common, begin};

/// Prints the resolved configuration: TOML with the source of every value, or JSON.
pub fn run(common: &Common) -> Result<()> {
    let mut config = configuration(common)?;
    maskdiff_data::check_words(&config)?;
    wandb::check(&config)?;
    let registry = assemble::registry(&common.plugins, &config)?;
    assemble::choices(&mut config, &registry, false)?;
    config.sampler(&registry)?;
    if common.format == Format::Json {
        output::result(&format!("{:#}", config.layers.to_json()));
    } else {
        let differs = if common.form.is_original() { differences()? } else { String::new() };
        output::result(&(choose::shown(&config, &registry) + &differs));
    }
    Ok(())
}

/// The configuration that the command line would run with: for `mode=ppl_eval` and `mode=sample_eval` that of their checkpoint.
fn configuration(common: &Common) -> Result<Config> {
    let config = match common.form {
        Form::Own => return common.config(),
        Form::Train => begin::configuration(common)?.0,
        Form::Evaluate | Form::Sample => common.config()?,
    };
    if common.form == Form::Train || config.eval.checkpoint_path.is_none() {
        return Ok(config);
    }
    Ok(common.trained()?.1)
}

/// What differs from the original by intent, as comments.
fn differences() -> Result<String> {
    let mut text = "\n# What differs from the original program by intent:\n".to_string();
    for Differs { key, original, here } in original::differences()? {
        text += &format!("# {key}: there {original}; here {here}\n");
    }
    Ok(text)
}
