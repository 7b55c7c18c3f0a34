//! `maskdiff config`

use super::Common;
use crate::error::Result;
use crate::report::Format;
use crate::track::wandb;
use crate::{assemble, data, output, run_dir};

/// Prints the resolved configuration: TOML with the source of every value, or JSON.
pub fn run(common: &Common) -> Result<()> {
    let mut config = common.config()?;
    data::check_words(&config)?;
    wandb::check(&config)?;
    let registry = assemble::registry(&common.plugins, &config)?;
    assemble::choices(&mut config, &registry, false)?;
    config.sampler(&registry)?;
    if common.format == Format::Json {
        output::result(&format!("{:#}", config.layers.to_json()));
    } else {
        output::result(&run_dir::shown(&config, &registry));
    }
    Ok(())
}
