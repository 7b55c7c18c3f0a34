//! `ar`: one token after another, with an exact KV cache.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask.

use maskdiff_plugin_api::ops::Restriction;
use maskdiff_plugin_api::prelude::*;
use tch::Kind;

register!(sampler LeftToRight);

/// Options under `sampling` for `ar`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Token id that starts every text that is not given a start. By default the host sets it to the BOS that the training
    /// blocks began with. Without one, or with `none`, the first token is drawn uniformly: the network scores only later ones.
    #[schemars(range(min = 0, max = 2_147_483_647))]
    bos_id: Option<i64>,
    /// Token id that ends a text: when every text of a batch has drawn it, the rest is filled with it and nothing more is
    /// computed. The host says it where texts end there (`sampling.stop_at_eos`).
    #[schemars(range(min = 0, max = 2_147_483_647))]
    eos_id: Option<i64>,
    /// Logits are divided by this before the draw, > 0.
    #[schemars(range(max = 1e6), extend("exclusiveMinimum" = 0.0))]
    temperature: f64,
    /// Draw among the k likeliest tokens; 0 is all.
    #[schemars(range(min = 0, max = 2_147_483_647))]
    top_k: i64,
    /// Draw among the likeliest tokens whose mass first reaches p, in (0, 1].
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    top_p: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { bos_id: None, eos_id: None, temperature: 1.0, top_k: 0, top_p: 1.0 }
    }
}

/// # Source
/// MDLM code, `_ar_sampler`. Differences: earlier positions are kept in a cache; draws are exact in f64; given tokens
/// stay wherever they stand, each seen by those to its right; temperature, top-k and top-p.
struct LeftToRight {
    bos_id: Option<i64>,
    eos_id: Option<i64>,
    restriction: Restriction,
}

impl Component for LeftToRight {
    const NAME: &'static str = "ar";
    const ABOUT: &'static str = "left to right with a KV cache; temperature, top-k, top-p";
    const NEEDS: &'static [&'static str] = &[capability::NEXT_TOKEN, capability::KV_CACHE];
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let Config { bos_id, eos_id, temperature, top_k, top_p } = config;
        let v = context.vocab_size;
        for (option, token) in [("bos_id", bos_id), ("eos_id", eos_id)] {
            let Some(token) = token else { continue };
            ensure!(
                (0..v).contains(&token) && Some(token) != context.mask_id,
                Config,
                "`sampling.{option}` must be a token below {v} other than the mask, got {token}"
            );
        }
        Ok(Self { bos_id, eos_id, restriction: Restriction::new(temperature, top_k, top_p)? })
    }
}

impl LeftToRight {
    /// Log-law of the next token from raw logits `[N, V]`, not normalised.
    fn next(&self, logits_nv: &Tensor, mask: i64) -> Tensor {
        let logits = logits_nv.copy();
        let _ = logits.select(1, mask).fill_(f64::NEG_INFINITY);
        self.restriction.apply(&logits)
    }

    /// Log-law of the first token, `[1, V]`.
    fn start(&self, model: &Denoiser, mask: i64) -> Tensor {
        let v = model.vocab_size();
        let options = (Kind::Double, model.device());
        if let Some(bos) = self.bos_id {
            let law = Tensor::full([1, v], f64::NEG_INFINITY, options);
            let _ = law.select(1, bos).fill_(0.0);
            return law;
        }
        let law = Tensor::zeros([1, v], options);
        let _ = law.select(1, mask).fill_(f64::NEG_INFINITY);
        law
    }
}

impl Sampler for LeftToRight {
    fn sample(&mut self, model: &Denoiser, xt_bl: &Tensor) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let mask = model.mask_id()?;
        let x_bl = xt_bl.copy();
        let mut cache = Vec::new();
        let mut log_law = self.start(model, mask).expand([b, -1], false);
        // A text may end behind the last token that is given of it, and behind its first, which may be a BOS.
        let place_l = Tensor::arange(l, (Kind::Int64, model.device()));
        let last_b = (xt_bl.ne(mask) * place_l).amax([1i64].as_slice(), false);
        let mut ended_b = Tensor::zeros([b], (Kind::Bool, model.device()));
        for i in 0..l {
            let given = x_bl.select(1, i);
            let drawn_b = ops::categorical_at(&log_law, &model.uniforms(&[b])?);
            let token_b = drawn_b.where_self(&given.eq(mask), &given);
            x_bl.select(1, i).copy_(&token_b);
            if let Some(eos) = self.eos_id {
                ended_b = ended_b.logical_or(&token_b.eq(eos).logical_and(&last_b.lt(i)));
                // sync: a flag of the whole batch for each token.
                if i + 1 < l && ended_b.all().int64_value(&[]) != 0 {
                    let _ = x_bl.narrow(1, i + 1, l - i - 1).fill_(eos);
                    model.progress(l, l, &x_bl)?;
                    break;
                }
            }
            model.progress(i + 1, l, &x_bl)?;
            if i + 1 < l {
                let (hidden, longer) = model.extend(&token_b.unsqueeze(1), cache)?;
                log_law = self.next(&model.logits(&hidden.select(1, 0))?, mask);
                cache = longer;
            }
        }
        Ok(x_bl)
    }

    /// The law of each token given those before it in `xt_bl`; times have no meaning here.
    fn law(&self, model: &Denoiser, xt_bl: &Tensor, _t: f64, _s: f64) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let (mask, v) = (model.mask_id()?, model.vocab_size());
        let hidden = model.hidden(xt_bl, &model.times(b, 0.0))?.narrow(1, 0, l - 1);
        let later = self.next(&model.logits(&hidden.flatten(0, 1))?, mask);
        let first = self.start(model, mask).expand([b, -1], false).unsqueeze(1);
        let all = Tensor::cat(&[first, later.view([b, l - 1, v])], 1);
        Ok(all.softmax(-1, Kind::Double))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::{Toy, chi_square, sampler_contract};

    #[test]
    fn contract() {
        sampler_contract::<LeftToRight>();
    }

    /// When all texts have ended nothing more is computed; each is cut at its own end by who asked.
    #[test]
    fn it_stops_when_every_text_has_ended() {
        let toy = Toy::new(6, 2);
        let restriction = Restriction::new(1.0, 0, 1.0).unwrap();
        let mut sampler = LeftToRight { bos_id: None, eos_id: Some(1), restriction };
        tch::manual_seed(1);
        let (mut calls, mut saved) = (0, 0);
        for _ in 0..20 {
            let x0 = sampler.sample(&Denoiser::new(&toy), &toy.masked(1)).unwrap();
            let tokens = Vec::<i64>::try_from(x0.view([-1])).unwrap();
            let end = tokens.iter().skip(1).position(|token| *token == 1).map_or(6, |at| at + 2);
            assert!(tokens[end..].iter().all(|token| *token == 1), "{tokens:?}");
            let used = toy.calls() - calls;
            assert_eq!(used, (end as i64 - 1).min(5), "{tokens:?}");
            (calls, saved) = (toy.calls(), saved + 5 - used);
        }
        assert!(saved > 0);
    }

    /// The first token is uniform, the others follow the joint given it.
    #[test]
    fn samples_have_the_law_of_the_model() {
        let toy = Toy::new(3, 3);
        let of_first = |first: usize| toy.joint()[first * 9..][..9].iter().sum::<f64>();
        let law: Vec<f64> =
            toy.joint().iter().enumerate().map(|(i, p)| p / of_first(i / 9) / 3.0).collect();
        let restriction = Restriction::new(1.0, 0, 1.0).unwrap();
        let mut sampler = LeftToRight { bos_id: None, eos_id: None, restriction };
        for batch in [1, 8] {
            tch::manual_seed(batch);
            let mut counts = vec![0.0; law.len()];
            for _ in 0..8000 / batch {
                let x0 = sampler.sample(&Denoiser::new(&toy), &toy.masked(batch)).unwrap();
                counts.iter_mut().zip(toy.counts(&x0)).for_each(|(sum, count)| *sum += count);
            }
            let p = chi_square(&counts, &law);
            assert!(p > 1e-4, "batch {batch}: p = {p:e}");
        }
    }
}
