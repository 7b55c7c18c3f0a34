//! `training.lora`: adapters that are trained in the place of a checkpoint's weights.

use std::path::{Path, PathBuf};

use maskdiff_base::error::Result;
use maskdiff_config::{Config, groups};
use maskdiff_engine::checkpoint::{Checkpoint, Upon, keep};
use maskdiff_engine::model::Model;
use maskdiff_engine::train::Trainer;

use super::resume::Beginning;

const RANK: &str = "training.lora.rank";

/// Adapters of a run, and the weights that they are added to.
pub(super) struct Adapters {
    rank: i64,
    /// A run that resumes has these weights; a new run begins with them.
    base: Option<Checkpoint>,
    upon: Option<Upon>,
}

impl Adapters {
    /// What the configuration and the beginning of a run say of adapters; none where whole weights are trained.
    pub(super) fn find(config: &Config, beginning: &Beginning) -> Result<Option<Self>> {
        let resumed = beginning.resumed.as_ref();
        let upon = resumed.and_then(|resumed| resumed.state.upon.clone());
        let Some(rank) = config.training.lora.rank else { return without(config, beginning, upon) };
        match (resumed, upon) {
            (Some(resumed), Some(upon)) => {
                let base = upon.open(&resumed.path)?;
                check_same(config, resumed, &upon)?;
                Ok(Some(Self { rank, base: Some(base), upon: Some(upon) }))
            }
            (Some(resumed), None) => Err(config.layers.error(
                RANK,
                &format!(
                    "`{}` holds whole weights, and a run of adapters cannot resume from it",
                    resumed.path.display()
                ),
                "`training.from=CHECKPOINT` begins a run of adapters with its weights",
            )),
            (None, _) if beginning.start.is_none() => Err(config.layers.error(
                RANK,
                &format!("`{RANK}={rank}` trains adapters, and there are no weights to adapt"),
                "`training.from=CHECKPOINT` names them: a run, a folder or a name of the hub",
            )),
            (None, _) => Ok(Some(Self { rank, base: None, upon: None })),
        }
    }

    /// Adds fresh adapters to a model.
    pub(super) fn add_to(
        &self,
        model: &mut Model,
        config: &Config,
        beginning: &Beginning,
    ) -> Result<()> {
        let start = beginning.start.as_ref().map(|start| &start.checkpoint);
        let foreign = self.base.as_ref().or(start).and_then(|base| base.foreign.as_ref());
        let theirs = |name: &str| foreign.map_or(name.to_string(), |foreign| foreign.theirs(name));
        model.adapt(config, self.rank, &theirs)
    }

    /// Loads the base weights of a run that resumes, and records for its checkpoints which they are.
    pub(super) fn begin(
        self,
        trainer: &mut Trainer<'_>,
        beginning: &Beginning,
        config: &Config,
    ) -> Result<()> {
        if let Some(lora) = trainer.model.lora() {
            trainer.report.note(&lora.in_words());
        }
        if let (Some(base), Some(upon)) = (&self.base, self.upon) {
            trainer.begin_under(base, upon.averaged)?;
            keep_base(trainer, Path::new(&upon.path));
            trainer.upon = Some(upon);
            return Ok(());
        }
        let Some(start) = &beginning.start else { return Ok(()) };
        let from = &start.checkpoint;
        let path = from.path.canonicalize().unwrap_or_else(|_| PathBuf::from(&from.path));
        let averaged = from.has_average() && !config.eval.disable_ema;
        keep_base(trainer, &path);
        let hash = from.hash()?;
        trainer.upon =
            trainer.model.lora().map(|lora| lora.upon(path.display().to_string(), hash, averaged));
        Ok(())
    }
}

/// Asks the run that the base weights are of to keep them, where they are a run's.
fn keep_base(trainer: &mut Trainer<'_>, base: &Path) {
    if !trainer.world.is_main() {
        return;
    }
    let own = trainer.checkpoints.canonicalize().unwrap_or_else(|_| trainer.checkpoints.clone());
    if let Err(error) = keep::note_needed(base, &own) {
        trainer.report.note(&format!(
            "warning: if the run of `{}` trains further, it may remove these weights, which the adapters need: {error}",
            base.display()
        ));
    }
}

/// A run that trains whole weights.
fn without(config: &Config, beginning: &Beginning, upon: Option<Upon>) -> Result<Option<Adapters>> {
    let (Some(upon), Some(resumed)) = (upon, &beginning.resumed) else { return Ok(None) };
    Err(config.layers.error(
        RANK,
        &format!(
            "`{}` holds adapters of `{}`, and `{RANK}` is not set",
            resumed.path.display(),
            upon.path
        ),
        "give the settings of `training.lora` that the run was begun with; `training.from` begins a run of whole weights with what they make",
    ))
}

/// Checks that a run resumes with the base weights and the formula that it began with.
fn check_same(config: &Config, resumed: &Checkpoint, upon: &Upon) -> Result<()> {
    let path = resumed.path.display();
    if let Some(from) = &config.training.from {
        let named = super::super::fetched(from, false)?;
        // A run that was named may have newer checkpoints than the one that the adapters are for.
        let holds =
            named.canonicalize().is_ok_and(|named| Path::new(&upon.path).starts_with(named));
        if !holds && Checkpoint::open(&named)?.hash()? != upon.sha256 {
            return Err(config.layers.error(
                "training.from",
                &format!(
                    "`{path}` holds adapters of `{}`, and `{from}` holds other weights",
                    upon.path
                ),
                "leave it out to go on; adapters fit the weights alone on which they were trained",
            ));
        }
    }
    let rank = config.training.lora.rank.unwrap_or(1);
    let scale = maskdiff_engine::lora::scale(config, rank);
    if (scale - upon.scale).abs() > 1e-12 * upon.scale.abs() {
        return Err(config.layers.error(
            "training.lora.alpha",
            &format!(
                "`training.lora.alpha`: the adapters of `{path}` are multiplied by {}, and by these settings it would be {scale}",
                upon.scale
            ),
            "give the `rank`, `alpha` and `rslora` that the run was begun with",
        ));
    }
    Ok(())
}

/// Refuses settings of adapters where none are trained.
pub(super) fn check_words(config: &Config) -> Result<()> {
    if config.training.lora.rank.is_some() {
        return Ok(());
    }
    let keys = groups::Lora::FIELDS.iter().map(|field| format!("training.lora.{}", field.name));
    for key in keys.filter(|key| key != RANK) {
        if config.layers.is_by_hand(&key) {
            return Err(config.layers.error(
                &key,
                &format!("`{key}` is of adapters, and `{RANK}` is not set"),
                "`training.lora.rank=16` trains adapters; or leave it out",
            ));
        }
    }
    Ok(())
}
