//! The stand-in network of the cases of MD4: `table[z] + pos + mean of mix[z] + t tvec`.

use std::cell::{Cell, RefCell};

use maskdiff_plugin_api::abi::handles::{Method, Noise};
use maskdiff_plugin_api::{Model, Rated, Result, ops};
use maskdiff_tests::{Tensors, device};
use tch::{Device, Kind, Tensor};

/// Tokens without the mask, which is the last one.
pub(crate) const V: i64 = 9;

pub(crate) struct StandIn {
    parts: Vec<(&'static str, Tensor)>,
    noise: Noise,
    law: Option<Method>,
    /// The uniform numbers of each corruption: a token is kept where its number is below alpha.
    uniforms: Vec<Tensor>,
    next: Cell<usize>,
    drawn: RefCell<Vec<Tensor>>,
}

impl StandIn {
    pub(crate) fn new(golden: &Tensors, kind: Kind, noise: Noise, uniforms: Vec<Tensor>) -> Self {
        let part = |name: &'static str| {
            let value = golden.get(&format!("net.{name}")).to_kind(kind).copy();
            (name, value.set_requires_grad(true))
        };
        let parts = ["table", "pos", "tvec", "mix"].map(part).into();
        Self { parts, noise, law: None, uniforms, next: Cell::new(0), drawn: RefCell::default() }
    }

    /// The same with the law of a parameterization, for a sampler.
    pub(crate) fn with_law(self, method: Method) -> Self {
        Self { law: Some(method), ..self }
    }

    fn part(&self, name: &str) -> &Tensor {
        &self.parts.iter().find(|(known, _)| *known == name).expect("a part").1
    }

    pub(crate) fn gradient(&self, name: &str) -> Tensor {
        self.part(name).grad()
    }

    /// What the corruption of that number drew.
    pub(crate) fn drawn(&self, number: usize) -> Tensor {
        self.drawn.borrow()[number].shallow_clone()
    }

    fn corrupted(&self, x0_bl: &Tensor, alpha_bl: &Tensor) -> Tensor {
        let number = self.next.replace(self.next.get() + 1);
        let u_bl = self.uniforms[number].to_kind(Kind::Double);
        let z_bl = x0_bl.masked_fill(&u_bl.ge_tensor(alpha_bl), V);
        self.drawn.borrow_mut().push(z_bl.shallow_clone());
        z_bl
    }
}

fn unused<T>() -> Result<T> {
    panic!("nothing asks for this")
}

impl Model for StandIn {
    fn vocab_size(&self) -> i64 {
        V + 1
    }
    fn mask_id(&self) -> Option<i64> {
        Some(V)
    }
    fn time_conditioning(&self) -> bool {
        true
    }
    fn device(&self) -> Device {
        device()
    }
    fn sigma(&self, t: &Tensor) -> Result<Tensor> {
        self.noise.sigma(t)
    }
    fn dsigma(&self, t: &Tensor) -> Result<Tensor> {
        self.noise.dsigma(t)
    }
    fn time_of_alpha(&self, alpha: &Tensor) -> Result<Tensor> {
        self.noise.time_of_alpha(alpha)
    }
    fn sigma_range(&self) -> Result<(f64, f64)> {
        self.noise.sigma_range()
    }
    fn importance(&self, _: &Tensor) -> Result<Tensor> {
        unused()
    }
    fn corrupt(&self, x0_bl: &Tensor, alpha_b: &Tensor) -> Result<Tensor> {
        Ok(self.corrupted(x0_bl, &alpha_b.unsqueeze(1)))
    }
    fn corrupt_tokens(&self, x0_bl: &Tensor, alpha_bl: &Tensor) -> Result<Tensor> {
        Ok(self.corrupted(x0_bl, alpha_bl))
    }
    fn token_sigma(&self, tokens_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        self.noise.token_sigma(tokens_bl, t_b)
    }
    fn token_dsigma(&self, tokens_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        self.noise.token_dsigma(tokens_bl, t_b)
    }
    fn posterior(&self, _: &Tensor, _: f64, _: f64, _: &Tensor) -> Result<Tensor> {
        unused()
    }
    /// The network sees the time. The mask has a logit too, which nobody may use.
    fn hidden(&self, z_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        let rows = |name: &str| {
            self.part(name).index_select(0, &z_bl.flatten(0, 1)).view([z_bl.size()[0], -1, V])
        };
        let kind = self.part("pos").kind();
        let time = t_b.to_kind(kind).view([-1, 1, 1]) * self.part("tvec");
        let mix = rows("mix").mean_dim(1, true, kind);
        let logits_blv = rows("table") + self.part("pos") + mix + time;
        let mask = Tensor::full([z_bl.size()[0], z_bl.size()[1], 1], 7.0, (kind, device()));
        Ok(Tensor::cat(&[logits_blv, mask], -1))
    }
    fn extend(&self, _: &Tensor, _: Vec<Tensor>) -> Result<(Tensor, Vec<Tensor>)> {
        unused()
    }
    fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        Ok(hidden_nd.shallow_clone())
    }
    fn weighted_nll(
        &self,
        hidden_nd: &Tensor,
        target_n: &Tensor,
        weight_n: &Tensor,
        banned: Option<i64>,
    ) -> Result<Tensor> {
        let column = Tensor::from_slice(&[banned.expect("the mask")]).to_device(device());
        let logits = hidden_nd.index_fill(1, &column, f64::NEG_INFINITY);
        let log_p = logits.log_softmax(-1, hidden_nd.kind());
        Ok(-log_p.gather(1, &target_n.unsqueeze(1), false).squeeze_dim(1) * weight_n)
    }
    fn rated_nll(&self, rows: &Rated) -> Result<Tensor> {
        Ok(ops::rated_nll(&rows.hidden_nd, rows))
    }
    fn log_x0(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor> {
        self.law.as_ref().expect("a law").log_x0(self, xt_bl, t_b, rows_n)
    }
    fn score(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Tensor> {
        unused()
    }
    fn progress(&self, _: i64, _: i64, _: &Tensor) -> Result<()> {
        Ok(())
    }
}
