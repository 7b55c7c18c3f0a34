//! The model as components see it: what stands behind their [`maskdiff_plugin_api::Denoiser`].

use maskdiff_native::{InterpolatingRows, RatedRows};
use maskdiff_plugin_api::{
    Head, Interpolation, Kind as ErrorKind, Mix, Pass, Passed, PluginError, Rated,
    Result as PluginResult, Sees, Window, capability, ensure, ops,
};
use tch::{Device, Kind, Tensor};

use super::Model;
use super::blame::Level;

/// Cross-entropy through all logits, for a backbone whose head is not linear.
fn plain_nll(
    logits_nv: Tensor,
    target_n: &Tensor,
    weight_n: &Tensor,
    banned: Option<i64>,
) -> Tensor {
    let kind = if logits_nv.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let logits = match banned {
        Some(token) => {
            let column = Tensor::from_slice(&[token]).to_device(logits_nv.device());
            logits_nv.index_fill(1, &column, f64::NEG_INFINITY)
        }
        None => logits_nv,
    };
    let log_p = logits.log_softmax(-1, kind);
    -log_p.gather(1, &target_n.unsqueeze(1), false).squeeze_dim(1) * weight_n.to_kind(kind)
}

impl Model {
    /// Which tokens the network sees in a call that does not say so.
    pub(super) fn own_way(&self) -> Sees {
        match self.offered.contains(capability::CAUSAL) {
            true => Sees::Causal,
            false => Sees::All,
        }
    }

    /// A draw of the process, of texts or of all their blocks.
    pub(crate) fn corrupt_shown(&self, x0_bl: &Tensor, alpha_b: &Tensor) -> PluginResult<Tensor> {
        self.process.corrupt(x0_bl, alpha_b, &self.noise_uniforms(x0_bl)?)
    }

    /// The uniform numbers of the next corruption.
    fn noise_uniforms(&self, x0_bl: &Tensor) -> PluginResult<Tensor> {
        use maskdiff_plugin_api::Model as _;
        let injected = self.uniforms.borrow_mut().take();
        Ok(match injected {
            Some(u_bl) => {
                let (given, asked) = (u_bl.size(), x0_bl.size());
                ensure!(
                    u_bl.numel() == x0_bl.numel(),
                    Shape,
                    "`corrupt` over {asked:?} tokens of a batch of {given:?}: the first one of a loss takes the whole batch"
                );
                u_bl.reshape(asked)
            }
            // A second corruption in one loss is as reproducible as the first one.
            None if self.moment.borrow().draws_noise => self.uniforms(&x0_bl.size())?,
            None => Tensor::rand(x0_bl.size(), (Kind::Double, x0_bl.device())),
        })
    }
}

impl maskdiff_plugin_api::Model for Model {
    fn vocab_size(&self) -> i64 {
        self.facts.vocab_size
    }

    fn mask_id(&self) -> Option<i64> {
        self.facts.mask_id
    }

    fn time_conditioning(&self) -> bool {
        self.facts.time_conditioning
    }

    fn device(&self) -> Device {
        self.facts.device()
    }

    fn sigma(&self, t: &Tensor) -> PluginResult<Tensor> {
        self.note_level(Level::Sigma, t, None);
        self.noise.sigma(t)
    }

    fn dsigma(&self, t: &Tensor) -> PluginResult<Tensor> {
        self.note_level(Level::Dsigma, t, None);
        self.noise.dsigma(t)
    }

    fn time_of_alpha(&self, alpha: &Tensor) -> PluginResult<Tensor> {
        self.note_level(Level::TimeOfAlpha, alpha, None);
        self.noise.time_of_alpha(alpha)
    }

    fn sigma_range(&self) -> PluginResult<(f64, f64)> {
        self.noise.sigma_range()
    }

    fn importance(&self, t: &Tensor) -> PluginResult<Tensor> {
        self.note_level(Level::Importance, t, None);
        self.noise.importance(t)
    }

    fn corrupt(&self, x0_bl: &Tensor, alpha_b: &Tensor) -> PluginResult<Tensor> {
        self.corrupt_shown(x0_bl, alpha_b)
    }

    fn other(&self, name: &str) -> PluginResult<Option<&dyn maskdiff_plugin_api::Model>> {
        Ok(Some(self.find_other(name)?))
    }

    fn token_sigma(&self, tokens_bl: &Tensor, t_b: &Tensor) -> PluginResult<Tensor> {
        self.note_level(Level::TokenSigma, t_b, Some(tokens_bl));
        self.noise.token_sigma(tokens_bl, t_b)
    }

    fn token_dsigma(&self, tokens_bl: &Tensor, t_b: &Tensor) -> PluginResult<Tensor> {
        self.note_level(Level::TokenDsigma, t_b, Some(tokens_bl));
        self.noise.token_dsigma(tokens_bl, t_b)
    }

    fn corrupt_tokens(&self, x0_bl: &Tensor, alpha_bl: &Tensor) -> PluginResult<Tensor> {
        self.process.corrupt_tokens(x0_bl, alpha_bl, &self.noise_uniforms(x0_bl)?)
    }

    fn rated_nll(&self, rows: &Rated) -> PluginResult<Tensor> {
        let Some(Head { weight, bias }) = &self.head else {
            let logits_nv = self.logits(&rows.hidden_nd)?;
            return Ok(ops::rated_nll(&logits_nv, rows));
        };
        let fused = RatedRows {
            target_n: &rows.target_n,
            sequence_n: &rows.sequence_n,
            rate_bv: &rows.rate_bv,
            banned: rows.banned,
        };
        let (hidden_nd, reduced) = (&rows.hidden_nd, self.reduced.get());
        self.clocks.head(self.facts.device(), || {
            maskdiff_native::rated_nll(hidden_nd, weight, bias.as_ref(), &fused, reduced)
                .map_err(|e| PluginError::new(ErrorKind::Shape, e.to_string()))
        })
    }

    fn offers(&self, capability: &String) -> PluginResult<Option<bool>> {
        Ok(Some(self.offered.contains(capability)))
    }

    fn posterior(
        &self,
        xt_n: &Tensor,
        alpha_t: f64,
        alpha_s: f64,
        p_nv: &Tensor,
    ) -> PluginResult<Tensor> {
        self.process.posterior(xt_n, alpha_t, alpha_s, p_nv)
    }

    fn hidden(&self, xt_bl: &Tensor, sigma_b: &Tensor) -> PluginResult<Tensor> {
        if let Some(hidden) = self.cached_state(xt_bl, sigma_b)? {
            return Ok(hidden);
        }
        self.check_wanted()?;
        self.count(xt_bl);
        self.enter(xt_bl.numel(), false);
        let train = self.train.get();
        let none = || sigma_b.zeros_like();
        let sigma_b = &if self.facts.time_conditioning { sigma_b.shallow_clone() } else { none() };
        self.note_hidden(xt_bl, sigma_b);
        let label_b = self.labels_of(xt_bl.size()[0])?;
        let pass = Pass::new(xt_bl, sigma_b).sees(self.own_way()).label(label_b.as_ref());
        let packed = self.over_documents(&pass)?;
        if label_b.is_some() || packed.is_some() {
            let pass = packed.unwrap_or(pass);
            let passed = || self.reduced(|| self.network.pass(&pass, train));
            return Ok(self.clocks.network(self.facts.device(), passed)?.hidden);
        }
        let pass = |xt_bl: &Tensor, sigma_b: &Tensor| {
            self.reduced(|| self.network.hidden(xt_bl, sigma_b, train))
        };
        let mut graphs = self.graphs.borrow_mut();
        self.clocks.network(self.facts.device(), || {
            match graphs.as_mut().filter(|_| self.drawing.get()) {
                Some(graphs) => graphs.hidden(xt_bl, sigma_b, self.reduced.get(), pass),
                None => pass(xt_bl, sigma_b),
            }
        })
    }

    fn extend(&self, x_bl: &Tensor, cache: Vec<Tensor>) -> PluginResult<(Tensor, Vec<Tensor>)> {
        self.check_wanted()?;
        self.count(x_bl);
        self.enter(x_bl.numel(), false);
        let extend = || self.reduced(|| self.network.extend(x_bl, cache));
        self.clocks.network(self.facts.device(), extend)
    }

    fn logits(&self, hidden_nd: &Tensor) -> PluginResult<Tensor> {
        let rows = hidden_nd.size().first().copied().unwrap_or(0);
        self.enter(rows.unsigned_abs() as usize, true);
        let logits = || self.reduced(|| self.network.logits(hidden_nd));
        let logits_nv = self.clocks.head(self.facts.device(), logits)?;
        Ok(match self.unused.borrow().as_ref().filter(|_| self.drawing.get()) {
            Some(unused) => logits_nv.index_fill(-1, unused, f64::NEG_INFINITY),
            None => logits_nv,
        })
    }

    fn weighted_nll(
        &self,
        hidden_nd: &Tensor,
        target_n: &Tensor,
        weight_n: &Tensor,
        banned: Option<i64>,
    ) -> PluginResult<Tensor> {
        self.clocks.head(self.facts.device(), || {
            let Some(Head { weight, bias }) = &self.head else {
                let logits_nv = self.reduced(|| self.network.logits(hidden_nd))?;
                return Ok(plain_nll(logits_nv, target_n, weight_n, banned));
            };
            let (bias, reduced) = (bias.as_ref(), self.reduced.get());
            maskdiff_native::linear_nll(
                hidden_nd, weight, bias, target_n, weight_n, banned, reduced,
            )
            .map_err(|e| PluginError::new(ErrorKind::Shape, e.to_string()))
        })
    }

    fn log_x0(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> PluginResult<Tensor> {
        self.note_law(false, xt_bl, t_b, rows_n);
        let log_p_nv = self.method.log_x0(self, xt_bl, t_b, rows_n)?;
        self.note_answer(xt_bl, rows_n, &log_p_nv);
        Ok(log_p_nv)
    }

    fn score(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> PluginResult<Tensor> {
        self.note_law(true, xt_bl, t_b, rows_n);
        self.method.score(self, xt_bl, t_b, rows_n)
    }

    fn progress(&self, done: i64, total: i64, xt_bl: &Tensor) -> PluginResult<()> {
        match self.progress.borrow_mut().as_mut() {
            Some(tell) => tell(done, total, xt_bl),
            None => Ok(()),
        }
    }

    fn mixing(&self, alpha_b: &Tensor) -> PluginResult<Mix> {
        self.process.mixing(alpha_b)
    }

    fn arrival(&self, alpha_b: &Tensor) -> PluginResult<Mix> {
        self.process.arrival(alpha_b)
    }

    fn pass(&self, pass: &Pass) -> PluginResult<Passed> {
        self.check_wanted()?;
        self.count(pass.tokens.ids());
        self.enter(pass.tokens.ids().numel(), false);
        let train = self.train.get();
        let packed = self.over_documents(pass)?;
        let pass = packed.as_ref().unwrap_or(pass);
        let label_b = match &pass.label {
            Some(_) => None,
            None => self.labels_of(pass.tokens.ids().size()[0])?,
        };
        self.clocks.network(self.facts.device(), || {
            if self.facts.time_conditioning && label_b.is_none() {
                return self.reduced(|| self.network.pass(pass, train));
            }
            let sigma = match self.facts.time_conditioning {
                true => pass.sigma.shallow_clone(),
                false => pass.sigma.zeros_like(),
            };
            let mut own = pass.at_sigma(&sigma);
            own.label = own.label.or(label_b);
            self.reduced(|| self.network.pass(&own, train))
        })
    }

    fn interpolating_nll(&self, rows: &Interpolation) -> PluginResult<Tensor> {
        let Some(Head { weight, bias }) = &self.head else {
            let logits_nv = self.logits(&rows.hidden_nd)?;
            return Ok(ops::interpolating_nll(&logits_nv, rows));
        };
        // What the mask has beyond `every` is not asked: its column drops out of the bound.
        let fused = InterpolatingRows {
            x_n: &rows.x_n,
            z_n: &rows.z_n,
            alpha_n: &rows.alpha_n,
            every_n: &rows.every_n,
            weight_n: &rows.weight_n,
            banned: rows.banned,
        };
        let (hidden_nd, reduced) = (&rows.hidden_nd, self.reduced.get());
        self.clocks.head(self.facts.device(), || {
            maskdiff_native::interpolating_nll(hidden_nd, weight, bias.as_ref(), &fused, reduced)
                .map_err(|e| PluginError::new(ErrorKind::Shape, e.to_string()))
        })
    }

    fn given(&self) -> PluginResult<Option<Tensor>> {
        Ok(self.moment.borrow().given_bl.as_ref().map(Tensor::shallow_clone))
    }

    fn label(&self) -> PluginResult<Option<Tensor>> {
        Ok(self.moment.borrow().label_b.as_ref().map(Tensor::shallow_clone))
    }

    fn step(&self) -> PluginResult<Option<i64>> {
        Ok(self.moment.borrow().step)
    }

    fn uniforms(&self, shape: &Vec<i64>) -> PluginResult<Tensor> {
        self.moment.borrow_mut().uniforms(shape, self.facts.device())
    }

    /// All sequences are alike to the model itself; who watches its laws tells them apart.
    fn turn_to(&self, texts_b: &Tensor) -> PluginResult<()> {
        self.laws.turn_to(texts_b);
        Ok(())
    }

    fn window(&self, window: &Window) -> PluginResult<()> {
        self.work_on(window)
    }

    fn normals(&self, shape: &Vec<i64>) -> PluginResult<Tensor> {
        Ok(self.uniforms(shape)?.special_ndtri())
    }
}
