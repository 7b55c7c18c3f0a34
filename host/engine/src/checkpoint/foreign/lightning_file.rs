//! A `.ckpt` as the original's own trainer writes it: `load_from_checkpoint(path)` opens it there, and its trainer resumes from it.
//!
//! Beside the weights it holds the configuration and the tokenizer as objects of their own classes, the average, AdamW's
//! moments, the schedule of the learning rate, and how far the loops are.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files;
use serde_json::{Value, json};
use tch::Tensor;
use zip::CompressionMethod;
use zip::write::{FileOptions, ZipWriter};

use super::super::tensors;
use super::pickle::writer::Writer;
use super::write::{Export, parent};
use super::{exported, original, python_tokenizer};
use crate::optim::Schedule;

/// The version whose layout this is.
const VERSION: &str = "2.2.1";

impl Export<'_> {
    /// A `.ckpt` that the original's `load_from_checkpoint` takes.
    pub fn lightning(&self, path: &Path) -> Result<()> {
        let folder = parent(path)?;
        let draft = tempfile::Builder::new().prefix(".export-").tempfile_in(folder);
        let draft = draft.map_err(|e| Error::io("write into", folder, &e))?;
        let said = |e: std::io::Error| Error::io("write", path, &e);
        let bounds = self.bounds();
        let (pickle, storages) = self.pickle(&bounds);
        let file = draft.reopen().map_err(said)?;
        let mut archive = ZipWriter::new(BufWriter::with_capacity(1 << 20, file));
        let stored =
            FileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
        let mut put = |name: &str, content: &[u8]| {
            archive.start_file(format!("archive/{name}"), stored)?;
            archive.write_all(content)
        };
        put("data.pkl", &pickle).map_err(said)?;
        put("byteorder", b"little").map_err(said)?;
        for (number, tensor) in storages.iter().enumerate() {
            put(&format!("data/{number}"), tensors::bytes(tensor)).map_err(said)?;
        }
        put("version", b"3\n").map_err(said)?;
        let mut file = archive.finish().map_err(|e| said(e.into()))?;
        file.flush().map_err(said)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(files::SHARED);
        file.get_ref().set_permissions(mode).map_err(said)?;
        file.get_ref().sync_all().map_err(said)?;
        draft.persist_noclobber(path).map_err(|e| said(e.error))?;
        files::sync_folder(folder)
    }

    /// The pickle of a `.ckpt`, and the numbers that it names.
    fn pickle(&self, bounds: &[(&str, Tensor)]) -> (Vec<u8>, Vec<Tensor>) {
        let mut out = Writer::default();
        out.dict(|out| {
            out.entry("epoch", |out| out.int(0));
            out.entry("global_step", |out| out.int(self.step));
            out.entry("pytorch-lightning_version", |out| out.text(VERSION));
            out.entry("state_dict", |out| self.state_dict(bounds, out));
            bounds.iter().for_each(|(name, bound)| out.entry(name, |out| out.tensor(bound)));
            out.entry("loops", |out| out.json(&loops(self.step)));
            out.entry("callbacks", |out| out.json(&json!({})));
            let moments = self.moments();
            let schedules = if moments.is_empty() { Vec::new() } else { vec![self.schedule()] };
            out.entry("optimizer_states", |out| self.optimizer_states(&moments, out));
            out.entry("lr_schedulers", |out| out.json(&Value::Array(schedules)));
            out.entry("hparams_name", |out| out.text("kwargs"));
            out.entry("hyper_parameters", |out| {
                out.dict(|out| {
                    out.entry("config", |out| {
                        out.call("omegaconf.dictconfig", "DictConfig", |out| {
                            let mut config = original::written(self.config);
                            if self.is_causal {
                                config["model"]["causal"] = json!(true);
                            }
                            out.json(&config);
                        });
                    });
                    out.entry("tokenizer", |out| python_tokenizer::write(self, out));
                });
            });
            // Our order of samples cannot be stored there: its sampler resumes at the count, with an order of its own.
            out.entry("sampler", |out| out.json(&json!({"random_state": null})));
            self.averages(out);
            // What the original has no place for.
            out.entry("maskdiff", |out| {
                out.dict(|out| {
                    out.entry("config", |out| out.text(&exported::words(self.config)));
                    out.entry("tokenizer", |out| out.text(&self.tokenizer));
                    out.entry("samples", |out| out.int(self.samples.cast_signed()));
                });
            });
        });
        out.done()
    }

    /// All tensors by name; a shared one under each of its names.
    fn state_dict(&self, bounds: &[(&str, Tensor)], out: &mut Writer) {
        out.ordered(|out| {
            for (name, tensor) in &self.weights {
                out.entry(&format!("backbone.{name}"), |out| out.tensor(tensor));
                for (second, _) in self.shared.iter().filter(|(_, first)| first == name) {
                    out.entry(&format!("backbone.{second}"), |out| out.tensor(tensor));
                }
            }
            bounds.iter().for_each(|(name, bound)| out.entry(name, |out| out.tensor(bound)));
        });
    }

    /// From where a model in blocks draws its times, as that program keeps it among the tensors.
    fn bounds(&self) -> Vec<(&'static str, Tensor)> {
        let training = &self.config.training;
        let all = [
            ("sampling_eps_min", training.sampling_eps_min),
            ("sampling_eps_max", training.sampling_eps_max),
        ];
        let bound = |(name, bound): (&'static str, f64)| {
            (name, Tensor::from(bound).to_kind(tch::Kind::Float))
        };
        let some = self.config.top.block_size.map(|_| Vec::from(all.map(bound)));
        some.unwrap_or_default()
    }

    /// The averages in the order of the parameters, each shared one once.
    fn averages(&self, out: &mut Writer) {
        let used = self.used();
        out.entry("ema", |out| {
            out.dict(|out| {
                out.entry("decay", |out| out.float(self.config.training.ema));
                out.entry("num_updates", |out| out.int(self.ema_updates));
                out.entry("shadow_params", |out| {
                    let trained = used.iter().zip(&self.trained).filter(|(_, trained)| **trained);
                    out.list(trained.map(|((_, tensor), _)| tensor));
                });
            });
        });
    }

    /// `step`, `exp_avg` and `exp_avg_sq` of each parameter in order; empty unless all are there.
    fn moments(&self) -> Vec<[&Tensor; 3]> {
        let known: BTreeMap<&str, &Tensor> =
            self.optimizer.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let of = |name: &str| -> Option<[&Tensor; 3]> {
            let part = |part: &str| known.get(format!("{part}/{name}").as_str()).copied();
            Some([part("step")?, part("exp_avg")?, part("exp_avg_sq")?])
        };
        let trained = self.weights.iter().zip(&self.trained).filter(|(_, trained)| **trained);
        trained.map(|((name, _), _)| of(name)).collect::<Option<_>>().unwrap_or_default()
    }

    fn optimizer_states(&self, moments: &[[&Tensor; 3]], out: &mut Writer) {
        if moments.is_empty() {
            return out.json(&json!([]));
        }
        let optim = &self.config.optim;
        let group = [
            ("lr", json!(self.rate())),
            ("eps", json!(optim.eps)),
            ("weight_decay", json!(optim.weight_decay)),
            ("amsgrad", json!(false)),
            ("maximize", json!(false)),
            ("foreach", Value::Null),
            ("capturable", json!(false)),
            ("differentiable", json!(false)),
            ("fused", Value::Null),
            ("initial_lr", json!(optim.lr)),
            ("params", json!((0..moments.len()).collect::<Vec<usize>>())),
        ];
        let state = |out: &mut Writer| {
            out.dict(|out| {
                for (number, [step, mean, square]) in moments.iter().enumerate() {
                    out.int(number as i64);
                    out.dict(|out| {
                        out.entry("step", |out| out.tensor(step));
                        out.entry("exp_avg", |out| out.tensor(mean));
                        out.entry("exp_avg_sq", |out| out.tensor(square));
                    });
                }
            });
        };
        let groups = |out: &mut Writer| {
            out.all(|out| {
                out.dict(|out| {
                    out.entry("betas", |out| {
                        out.tuple_of(|out| {
                            out.float(optim.beta1);
                            out.float(optim.beta2);
                        });
                    });
                    group.iter().for_each(|(key, value)| out.entry(key, |out| out.json(value)));
                });
            });
        };
        out.all(|out| {
            out.dict(|out| {
                out.entry("state", state);
                out.entry("param_groups", groups);
            });
        });
    }

    /// The rate of the next step.
    fn rate(&self) -> f64 {
        Schedule::new(&self.config.lr_scheduler, self.config.optim.lr).rate(self.step)
    }

    /// The state of the schedule: of a constant one as torch keeps it, of a cosine as the original's own class does.
    fn schedule(&self) -> Value {
        let (step, peak) = (self.step, self.config.optim.lr);
        if original::is_cosine(self.config) {
            return json!({"_last_epoch": step});
        }
        json!({
            "base_lrs": [peak], "last_epoch": step, "verbose": false, "_step_count": step + 1,
            "_get_lr_called_within_step": false, "_last_lr": [self.rate()], "lr_lambdas": [{}],
        })
    }
}

/// How far the loops are, all of it in the first epoch.
fn loops(step: i64) -> Value {
    let two = |n: i64| json!({"total": {"ready": n, "completed": n}, "current": {"ready": n, "completed": n}});
    let four = |n: i64| {
        let each = json!({"ready": n, "completed": n, "started": n, "processed": n});
        json!({"total": each.clone(), "current": each})
    };
    let batches = |n: i64| {
        let mut all = four(n);
        all["is_last_batch"] = json!(false);
        all
    };
    let three = |n: i64| {
        let each = json!({"ready": n, "completed": n, "started": n});
        json!({"total": each.clone(), "current": each})
    };
    let epoch = json!({"ready": 1, "completed": 0, "started": 1, "processed": 0});
    json!({
        "fit_loop": {
            "state_dict": {},
            "epoch_loop.state_dict": {"_batches_that_stepped": step},
            "epoch_loop.batch_progress": batches(step),
            "epoch_loop.scheduler_progress": two(step),
            "epoch_loop.automatic_optimization.state_dict": {},
            "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": two(step), "zero_grad": three(step)}},
            "epoch_loop.manual_optimization.state_dict": {},
            "epoch_loop.manual_optimization.optim_step_progress": two(0),
            "epoch_loop.val_loop.state_dict": {},
            "epoch_loop.val_loop.batch_progress": batches(0),
            "epoch_progress": {"total": epoch.clone(), "current": epoch},
        },
        "validate_loop": {"state_dict": {}, "batch_progress": batches(0)},
        "test_loop": {"state_dict": {}, "batch_progress": batches(0)},
        "predict_loop": {"state_dict": {}, "batch_progress": four(0)},
    })
}
