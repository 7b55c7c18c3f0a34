//! What trains: the components, the learner, and what writes checkpoints.

use std::collections::BTreeMap;
use std::rc::Rc;

use maskdiff_base::error::Result;
use maskdiff_base::report::Report;
use maskdiff_config::Config;
use maskdiff_config::kind::ComponentKind;
use maskdiff_data::Corpus;
use maskdiff_engine::checkpoint::Saver;
use maskdiff_engine::evaluate::Measure;
use maskdiff_engine::learner::Learner;
use maskdiff_engine::model::Model;
use maskdiff_engine::needs::Needs;
use maskdiff_engine::plugins::{Choice, Choices, Registry};
use maskdiff_engine::sample::NamedSampler;
use maskdiff_engine::train::{self, Edited, Judged, Progress, Trainer};
use maskdiff_engine::{accelerator, assemble, plugins};
use maskdiff_plugin_api::Context;
use maskdiff_records::run_dir::RunDir;
use maskdiff_records::used::UsedPlugin;
use tch::Device;

use super::Job;
use super::held::Held;
use super::judged::{is_judged, judge};
use super::teacher::{self, Student};

/// What the configuration chooses, found to fit before anything is made.
pub(super) struct Chosen {
    choices: Choices,
    /// Whether texts are sampled during the run.
    samples: bool,
    judge: Option<Judged>,
    measure: Measure,
    pub(super) device: Device,
    /// Whether parameters get their first numbers.
    pub(super) fresh: bool,
}

/// The components of a run.
pub(super) struct Made {
    pub(super) model: Model,
    sampler: Option<NamedSampler>,
    trial: Option<NamedSampler>,
    judge: Option<Judged>,
    measure: Measure,
    pub(super) used: Vec<UsedPlugin>,
    /// Frozen model to the hash of its checkpoint.
    others: BTreeMap<String, String>,
}

impl Job<'_> {
    /// Chooses the components and the device, and checks that they fit.
    pub(super) fn choose(&self, config: &mut Config, registry: &Registry) -> Result<Chosen> {
        let scores = is_judged(config, registry)?;
        let samples = config.sampling.num_sample_log > 0 || scores;
        let choices = assemble::choices(config, registry, samples)?;
        // A missing evaluator LM should be noticed before hours of training.
        let asks = scores && self.world.is_main();
        let judge = asks.then(|| judge(self.common, config)).transpose()?;
        let measure = Measure::bound(config);
        assemble::check_measure(measure, config, registry)?;
        let device = accelerator::device(config, &self.world)?;
        config.shares(self.world.size())?;
        Ok(Chosen { choices, samples, judge, measure, device, fresh: true })
    }

    /// Makes the model and the samplers, the same on all ranks.
    pub(super) fn components(
        &self,
        config: &Config,
        registry: &Registry,
        chosen: Chosen,
        corpus: &Corpus,
        report: &Report,
    ) -> Result<Made> {
        let Chosen { choices, samples, judge, measure, device, fresh } = chosen;
        let facts = assemble::facts(config, registry, corpus.tokenizer.as_ref(), device)?;
        let facts = facts.fresh(fresh);
        let tokenizer = corpus.tokenizer.as_ref();
        let chosen = samples.then(|| assemble::sampler_choice(config, registry, tokenizer));
        let chosen = chosen.transpose()?;
        let used = plugins::used(registry, &choices, chosen.as_ref())?;
        let drawn =
            chosen.map(|choice| samplers((config, registry), choice, corpus, &facts, report));
        let (sampler, trial) = drawn.transpose()?.unzip();
        let hashes = corpus.reads.iter().map(|part| format!("{} {}", part.corpus, part.sha256));
        self.world.agree("data", &hashes.collect::<Vec<String>>())?;
        self.world.agree("plugin", &used.iter().map(hash_line).collect::<Vec<String>>())?;
        self.look_ahead(config, registry, &choices, facts)?;
        let taught = choices.clone();
        let mut model = assemble::model(config, registry, choices, facts)?;
        let common = self.common;
        let student = Student { common, config, registry, choices: &taught, tokenizer };
        let others = student.taught(&mut model)?;
        self.world.agree(teacher::NAME, &others.values().cloned().collect::<Vec<String>>())?;
        assemble::begin_texts(&model, config, tokenizer);
        let _ = train::monitored(config, measure.is_bound(&model))?;
        measure.check_noise(&model)?;
        assemble::check_fits(&model)?;
        model.check_interval(!config.training.clip_search_widths.is_empty())?;
        Ok(Made { model, sampler, trial, judge, measure, used, others })
    }

    /// Says so where the weights that would be drawn now, and what training holds beside them, cannot fit.
    fn look_ahead(
        &self,
        config: &Config,
        registry: &Registry,
        choices: &Choices,
        facts: Context,
    ) -> Result<()> {
        let (_, backbone) = registry.find(ComponentKind::Backbone, &choices.backbone.name)?;
        if !facts.fresh || facts.cuda.is_some() || backbone.takes_any_option() {
            return Ok(());
        }
        // Without numbers the matrices take no memory.
        let facts = facts.fresh(false);
        let model = assemble::model(config, registry, choices.clone(), facts)?;
        Needs::of(&model, config, self.world.size())?.check()
    }

    /// Puts together what trains.
    pub(super) fn trainer<'c>(
        &self,
        config: &'c Config,
        held: &mut Held,
        made: Made,
        (corpus, report): (Corpus, Report),
    ) -> Result<Trainer<'c>> {
        let Made { model, sampler, trial, judge, measure, used, others } = made;
        if !model.facts().device().is_cuda() {
            Needs::of(&model, config, self.world.size())?.check()?;
        }
        let learner = Learner::new(&model, config, Rc::clone(&self.world))?;
        let (keep, mirror) = (config.checkpointing.keep_last as usize, held.mirror.take());
        let saver = self
            .world
            .is_main()
            .then(|| Saver::new(&held.checkpoints, mirror, keep))
            .transpose()?;
        Ok(Trainer {
            config,
            corpus,
            model,
            learner,
            measure,
            sampler,
            trial,
            judge,
            report,
            stop: self.asked.stop.clone(),
            saver,
            checkpoints: held.checkpoints.clone(),
            edited: Edited::of(&used),
            plugins: used.into_iter().map(|p| (p.name, p.sha256)).collect(),
            others,
            upon: None,
            progress: Progress::default(),
            profile: (self.asked.profile && self.world.is_main())
                .then(|| held.run.join("trace.json")),
            world: Rc::clone(&self.world),
            run: RunDir::follow(&held.run),
            trackers: Rc::default(),
        })
    }
}

/// The sampler that shows what the model has learnt, and the same with few steps to try it out first.
fn samplers(
    (config, registry): (&Config, &Registry),
    choice: Choice,
    corpus: &Corpus,
    facts: &Context,
    report: &Report,
) -> Result<(NamedSampler, NamedSampler)> {
    let first = assemble::first_token(config, registry, corpus.tokenizer.as_ref())?;
    first.in_words().iter().for_each(|said| report.note(said));
    let sampler = assemble::sampler(config, registry, &choice, facts)?;
    Ok((sampler, assemble::trial_sampler(config, registry, choice, facts)?))
}

fn hash_line(plugin: &UsedPlugin) -> String {
    format!("{} {}", plugin.name, plugin.sha256)
}
