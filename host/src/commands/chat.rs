//! `maskdiff chat`: a conversation in the terminal, or with a program that writes a question a line.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::sync::Arc;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::report::Report;
use maskdiff_base::stop::Stop;
use maskdiff_config::Config;
use maskdiff_data::chat::{ANSWER, ASSISTANT, Message, Template, ends};
use maskdiff_data::{Tokenizer, sft};
use maskdiff_engine::distributed::World;
use maskdiff_engine::model::{Model, Progress};
use maskdiff_engine::prompt::{Ask, Given};
use maskdiff_engine::sample::{self, Drawn, NamedSampler, Texts};
use maskdiff_engine::{accelerator, assemble};
use maskdiff_plugin_api::{Kind, PluginError};
use serde_json::json;
use tch::Tensor;

use super::{Common, unused};

/// Begins a new conversation.
const ANEW: &str = "/new";

/// Talks until the lines end.
pub fn run(common: &Common) -> Result<()> {
    let (checkpoint, mut config, tokenizer) = common.trained()?;
    unused::refuse(common, &config, "chat")?;
    // An answer ends, whatever texts do that the model was trained on.
    config.sampling.stop_at_eos = Some(true);
    let beside = look::is_folder(&checkpoint.path)?;
    let own = if beside && config.data.chat_template.is_none() {
        Template::find(&checkpoint.path)?
    } else {
        None
    };
    let Some(template) = own.map_or_else(|| sft::template(&config), |own| Ok(Some(own)))? else {
        return Err(Error::config(
            format!("`{}` has no chat template", checkpoint.path.display()),
            "`data.chat_template=FILE` names one, a file of Jinja or a folder that has one",
        ));
    };
    let registry = assemble::registry(&common.plugins, &config)?;
    let choices = assemble::choices(&mut config, &registry, true)?;
    assemble::labels::check_one(&config)?;
    let device = accelerator::device(&config, &World::alone())?;
    let facts = assemble::facts(&config, &registry, tokenizer.as_ref(), device)?;
    let facts = facts.fresh(false);
    let choice = assemble::sampler_choice(&config, &registry, tokenizer.as_ref())?;
    let sampler = assemble::sampler(&config, &registry, &choice, &facts)?;
    let model = assemble::model(&config, &registry, choices, facts)?;
    assemble::begin_texts(&model, &config, tokenizer.as_ref());
    assemble::load_weights(&model, &checkpoint, &config)?;
    tch::manual_seed(config.texts_seed().cast_signed());
    let stop = Stop::listen("the step that is under way is ended")?;
    let mut talk =
        Talk { model, sampler, template, tokenizer, config, stop, turns: Vec::new(), said: 0 };
    let report = Report::new(common.format, common.quiet);
    let lives = std::io::stderr().is_terminal() && !common.quiet;
    if std::io::stdin().is_terminal() {
        report.note(&format!(
            "each line is a question; `{ANEW}` starts a new conversation, Ctrl-D ends"
        ));
    }
    let mut told = false;
    for line in std::io::stdin().lock().lines() {
        let line =
            line.map_err(|e| Error::io("read", std::path::Path::new("standard input"), &e))?;
        match line.trim() {
            "" => {}
            ANEW => talk.turns.clear(),
            question => {
                let Some((answer, drawn)) = talk.answer(question, lives)? else {
                    report.note(&format!(
                        "the conversation is longer than the model's {} tokens: `{ANEW}` starts a new one",
                        sample::length(&talk.config)
                    ));
                    continue;
                };
                let mut line = json!({"role": ASSISTANT, "content": answer, "nfe": drawn.nfe});
                if drawn.approximate {
                    line["approximate"] = json!(true);
                    if !std::mem::replace(&mut told, true) {
                        report.note(
                            "approximate: keys and values of earlier calls stand for those of tokens outside the block",
                        );
                    }
                }
                report.result(&line, &answer);
            }
        }
    }
    Ok(())
}

/// A conversation with a model.
struct Talk {
    model: Model,
    sampler: NamedSampler,
    template: Template,
    tokenizer: Arc<dyn Tokenizer>,
    config: Config,
    stop: Stop,
    turns: Vec<Message>,
    /// Answers so far, each with random numbers of its own.
    said: u64,
}

impl Talk {
    /// The model's answer, and what it took; nothing, and the question is dropped, where there is no room for it.
    fn answer(&mut self, question: &str, lives: bool) -> Result<Option<(String, Drawn)>> {
        self.turns.push(Message::new("user", question));
        let text = self.template.render(&self.turns, true)?;
        let lead = self.model.blocks().map_or(0, |blocks| i64::from(blocks.begins().is_some()));
        let most = sample::length(&self.config) - lead;
        let count = self.tokenizer.encode(&text)?.len() as i64;
        if count >= most {
            self.turns.pop();
            return Ok(None);
        }
        let given = Given::new(&Ask::Prompt(text), self.tokenizer.as_ref(), most)?;
        let reach = given.reach();
        let wanted = self.config.sampling.new_tokens.unwrap_or(ANSWER.min(most - reach as i64));
        let own = Texts::new(&self.config, self.tokenizer.as_ref());
        let first = own.first + self.said;
        let texts = Texts { new_tokens: Some(wanted), stop_at_eos: true, first, ..own };
        let reach = reach + lead as usize;
        let shown = shown(Arc::clone(&self.tokenizer), reach, lives, self.stop.clone());
        let drawn =
            sample::draw(&self.model, &mut self.sampler, &[given], texts, Some(shown), None);
        if lives {
            wipe();
        }
        let drawn = drawn.map_err(|e| maskdiff_engine::choose::Choose::locate(&self.config, e))?;
        let ids = drawn.samples.first().map_or(&[][..], |sample| &sample.ids[..]);
        let answer = self.cut(&ids[reach.min(ids.len())..]);
        self.turns.push(Message::new(ASSISTANT, &answer));
        self.said += 1;
        Ok(Some((answer, drawn)))
    }

    /// The text up to the end of the turn.
    fn cut(&self, ids: &[i64]) -> String {
        let ends = ends(self.tokenizer.as_ref());
        let end = ids.iter().position(|id| ends.contains(id)).unwrap_or(ids.len());
        self.tokenizer.decode(&ids[..end]).trim().to_string()
    }
}

/// Shows the answer in one line while it is denoised, and ends the walk when asked to.
fn shown(
    tokenizer: Arc<dyn Tokenizer>,
    reach: usize,
    lives: bool,
    stop: Stop,
) -> Progress<'static> {
    const WIDTH: usize = 100;
    Box::new(move |done, total, x_bl: &Tensor| {
        if lives {
            let row = x_bl.get(0).to_device(tch::Device::Cpu);
            let ids = Vec::<i64>::try_from(row).unwrap_or_default();
            let text = tokenizer.decode(&ids[reach.min(ids.len())..]).replace("[MASK]", "░");
            let line: String = text.split_whitespace().collect::<Vec<&str>>().join(" ");
            let line: String = line.chars().filter(|c| !c.is_control()).take(WIDTH).collect();
            let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
        }
        if stop.asked() {
            let said = format!("stopped at step {done} of {total}");
            return Err(PluginError::new(Kind::Interrupted, said));
        }
        Ok(())
    })
}

/// Takes the line away.
fn wipe() {
    let _ = write!(std::io::stderr(), "\r\x1b[K");
}
