//! `classifier`: learns the classes of noisy texts, to guide samplers towards a class.
//!
//! Shape letters: `B` batch, `L` length, `D` hidden size, `V` vocabulary, `C` classes.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

export_plugin!();
register!(parameterization Classifier);

/// Options of `classifier`, in `training`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Smallest time in training and evaluation, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    sampling_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { sampling_eps: 1e-3 }
    }
}

/// A classifier of texts at every noise level, over any process and any network.
///
/// # Equation
/// `log c(y | xt)` is the log-softmax over the first C rows of the network's head, at the mean of its states over all positions. The loss of
/// a text is `-log c(y | xt)`, at a time that is drawn for it.
///
/// # Source
/// Schiff et al. 2024, arXiv:2412.10193, section 3.2 (D-CBG). Differences: the classes are read from the head that the network has, where the
/// authors' program has a matrix of its own; so any network serves, and nothing is learned beside it. A text weighs as many tokens as count.
struct Classifier {
    config: Config,
    classes: i64,
}

impl Component for Classifier {
    const NAME: &'static str = "classifier";
    const ABOUT: &'static str = "classes of noisy texts, which guide samplers (D-CBG)";
    const PROVIDES: &'static [&'static str] = &[capability::CLASSIFIES];
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let eps = config.sampling_eps;
        ensure!(
            0.0 < eps && eps < 1.0,
            Config,
            "`training.sampling_eps` must lie in (0, 1), got {eps}"
        );
        Ok(Self { config, classes: context.classes })
    }
}

impl Classifier {
    /// Where the states of a text are averaged, the row of a class in the head is its score.
    fn scores(&self, model: &Denoiser, noisy: &Noisy) -> Result<Tensor> {
        let sigma_b = model.sigma(&noisy.t_b)?.detach();
        let hidden_bld = match &noisy.tokens {
            Tokens::Ids(ids) => model.hidden(ids, &sigma_b)?,
            Tokens::Mixture { ids, weight } => {
                let causal = model.offers(capability::CAUSAL)? == Some(true);
                let sees = if causal { Sees::Causal } else { Sees::All };
                let pass = Pass::new(ids, &sigma_b).mixture(ids, weight).sees(sees);
                model.pass(&pass)?.hidden
            }
        };
        let pooled_bd = hidden_bld.mean_dim([1i64].as_slice(), false, hidden_bld.kind());
        model.logits(&pooled_bd)
    }
}

impl Parameterization for Classifier {
    fn draw_t(&self, _: &Denoiser, u_b: &Tensor) -> Result<Tensor> {
        Ok(u_b * (1.0 - self.config.sampling_eps) + self.config.sampling_eps)
    }

    fn loss(&self, _: &Denoiser, _: &Tensor, _: &Tensor) -> Result<Tensor> {
        bail!(Unsupported, "`classifier` learns from labels, and this batch has none")
    }

    fn objective(&self, model: &Denoiser, batch: &Batch) -> Result<Objective> {
        let x0_bl = &batch.x0_bl;
        let (b, l) = check_shape!(x0_bl, [B, L], Int64);
        let Some(label_b) = &batch.label_b else {
            bail!(Unsupported, "`classifier` learns from labels, and this batch has none");
        };
        let alpha_b = model.sigma(&batch.t_b)?.detach().neg().exp();
        let noisy_bl = model.corrupt(x0_bl, &alpha_b)?;
        let xt_bl = match &batch.given_bl {
            Some(given_bl) => x0_bl.where_self(given_bl, &noisy_bl),
            None => noisy_bl,
        };
        let log_c_bc = self.log_label(model, &Noisy::new(&xt_bl, &batch.t_b))?;
        let kind = log_c_bc.kind();
        // A text whose class nobody knows teaches nothing.
        let known_b = label_b.lt(self.classes);
        let own_b1 = label_b.clamp_max(self.classes - 1).unsqueeze(1);
        let nats_b = -log_c_bc.gather(1, &own_b1, false).squeeze_dim(1) * known_b.to_kind(kind);
        let right_b = log_c_bc.argmax(1, false).eq_tensor(label_b).logical_and(&known_b);
        let share = right_b.sum(Kind::Double) / known_b.sum(Kind::Double).clamp_min(1.0);
        let loss_bl = nats_b.unsqueeze(1).expand([b, l], false);
        Ok(Objective::new(loss_bl).metric("accuracy", &share))
    }

    fn log_label(&self, model: &Denoiser, noisy: &Noisy) -> Result<Tensor> {
        let (classes, tokens) = (self.classes, model.vocab_size());
        ensure!(
            classes > 1,
            Unsupported,
            "`classifier` needs two classes or more, and the texts have {classes}"
        );
        ensure!(
            classes <= tokens,
            Unsupported,
            "`classifier` reads {classes} classes from a head of {tokens} tokens: it has too few rows"
        );
        let scores_bc = self.scores(model, noisy)?.narrow(1, 0, classes);
        let kind = if scores_bc.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        Ok(scores_bc.log_softmax(-1, kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::{Toy, parameterization_contract};

    #[test]
    fn contract() {
        parameterization_contract::<Classifier>();
    }

    #[test]
    fn the_loss_is_the_cross_entropy_of_the_class_and_unknown_classes_teach_nothing() {
        let toy = Toy::uniform(4, 3);
        let (model, context) = (Denoiser::new(&toy), toy.context().classes(2));
        let method = Classifier::new(Config::default(), &context).unwrap();
        let x0_bl = Tensor::from_slice(&[0i64, 1, 2, 0, 2, 2, 1, 0, 1, 1, 1, 2]).view([3, 4]);
        // Hardly any noise: what is read is x0.
        let t_b = model.times(3, 1e-12);
        let label_b = Tensor::from_slice(&[1i64, 0, 2]);
        let batch = Batch::new(&x0_bl, &t_b).label(Some(&label_b));
        let Objective { loss_bl, nats_bl, metrics, .. } = method.objective(&model, &batch).unwrap();
        let log_c_bc = method.log_label(&model, &Noisy::new(&x0_bl, &t_b)).unwrap();
        let at = |t: &Tensor, at: &[i64]| t.double_value(at);
        for (row, class) in [(0, 1), (1, 0)] {
            assert!((at(&loss_bl, &[row, 3]) + at(&log_c_bc, &[row, class])).abs() < 1e-6);
        }
        assert_eq!((at(&loss_bl, &[2, 0]), nats_bl.is_none()), (0.0, true));
        let likely = Vec::<i64>::try_from(log_c_bc.argmax(1, false)).unwrap();
        let right = f64::from(u8::from(likely[0] == 1)) + f64::from(u8::from(likely[1] == 0));
        assert_eq!((metrics[0].0.as_str(), at(&metrics[0].1, &[])), ("accuracy", right / 2.0));
    }

    #[test]
    fn what_it_cannot_learn_is_refused() {
        let toy = Toy::uniform(2, 3);
        let model = Denoiser::new(&toy);
        let said = |classes: i64, labelled: bool| {
            let context = toy.context().classes(classes);
            let method = Classifier::new(Config::default(), &context).unwrap();
            let label_b = Tensor::from_slice(&[0i64]);
            let x0_bl = Tensor::from_slice(&[0i64, 1]).view([1, 2]);
            let batch = Batch::new(&x0_bl, &model.times(1, 0.5));
            let batch = batch.label(labelled.then_some(&label_b));
            method.objective(&model, &batch).unwrap_err().to_string()
        };
        assert!(said(2, false).contains("this batch has none"));
        assert!(said(1, true).contains("two classes or more"));
        assert!(said(4, true).contains("too few rows"));
    }
}
