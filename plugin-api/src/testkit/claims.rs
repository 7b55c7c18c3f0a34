//! What a component claims beyond contract 1.0, each claim checked; and what it does not claim, refused by name.

use tch::{Device, Kind, Tensor};

use super::contracts::{close, law, no_nan, shaped};
use crate::abi::handles::{Network, Process};
use crate::{Mix, Pass, Passed, Result, Sees, Wants, capability, ensure};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);
const I64: (Kind, Device) = (Kind::Int64, Device::Cpu);

/// The vector over the vocabulary that a mixture describes, of the first sequence.
fn over(mix: &Mix, v: i64, mask: Option<i64>) -> Tensor {
    let all = Tensor::arange(v, I64).unsqueeze(0);
    let first = Mix {
        every_b: mix.every_b.narrow(0, 0, 1),
        mask_b: mix.mask_b.narrow(0, 0, 1),
        mask_apart: mix.mask_apart,
    };
    first.at(&all, mask).squeeze_dim(0)
}

/// The noise sums to `1 - alpha`, its arrivals to 1, and they are its derivative; draws and posterior are those of `alpha x + b`.
pub(super) fn mixing(process: &Process, v: i64) -> Result<()> {
    let mask = process.mask_id()?;
    let noise = |alpha: f64| -> Result<Tensor> {
        Ok(over(&process.mixing(&Tensor::full([1], alpha, F64))?, v, mask))
    };
    for alpha in [0.05, 0.4, 0.95] {
        let b = noise(alpha)?;
        let left = b.min().double_value(&[]);
        ensure!(left >= 0.0, Numeric, "`mixing` holds a negative number, {left:e}");
        close(
            "the sum of `mixing` against 1 - alpha",
            &b.sum(Kind::Double),
            &Tensor::from(1.0 - alpha),
            1e-9,
        )?;
        let rho = over(&process.arrival(&Tensor::full([1], alpha, F64))?, v, mask);
        close("the sum of `arrival` against 1", &rho.sum(Kind::Double), &Tensor::from(1.0), 1e-9)?;
        // With sigma = -ln alpha: db/dsigma = -alpha db/dalpha.
        let h = 1e-6;
        let slope = (noise(alpha + h)? - noise(alpha - h)?) / (2.0 * h);
        close("`arrival` against db/dsigma + b", &rho, &(&b - slope * alpha), 1e-6)?;
    }
    draws(process, v, &noise(0.4)?, 0.4)?;
    steps(process, v, &noise)
}

/// `corrupt` over evenly spread uniform numbers: the shares are those of the law.
fn draws(process: &Process, v: i64, b: &Tensor, alpha: f64) -> Result<()> {
    const EACH: i64 = 20_000;
    let u = (Tensor::arange(EACH, F64) + 0.5) / EACH as f64;
    let x0 = Tensor::zeros([1, EACH], I64);
    let xt = process.corrupt(&x0, &Tensor::full([1], alpha, F64), &u.unsqueeze(0))?;
    let shares = xt.view([-1]).bincount(None::<Tensor>, v).to_kind(Kind::Double) / EACH as f64;
    let expected = b.index_add(0, &Tensor::from_slice(&[0i64]), &Tensor::from_slice(&[alpha]));
    close("the shares of `corrupt` against alpha x + b", &shares, &expected, 4.0 / EACH as f64)
}

/// The posterior against Bayes' rule, with `alpha_s = alpha_t` and `alpha_s = 1` too.
fn steps(process: &Process, v: i64, noise: &dyn Fn(f64) -> Result<Tensor>) -> Result<()> {
    let mask = process.mask_id()?;
    let p = Tensor::rand([v, v], F64) + 0.1;
    if let Some(mask) = mask {
        let _ = p.select(1, mask).fill_(0.0);
    }
    let p = &p / p.sum_dim_intlist([-1i64].as_slice(), true, Kind::Double);
    let z = Tensor::arange(v, I64);
    for (t, s) in [(0.3, 0.6), (0.3, 0.3), (0.3, 1.0)] {
        let (b_t, b_s, kept) = (noise(t)?, noise(s)?, t / s);
        let moved = (&b_t - &b_s * kept).unsqueeze(1) + z.one_hot(v).to_kind(Kind::Double) * kept;
        let joint = moved * (&p * s + &b_s);
        let total = joint.sum_dim_intlist([-1i64].as_slice(), true, Kind::Double);
        // A token that its process never shows at t has no posterior.
        let seen = total.gt(1e-12);
        let expected = (&joint / total.clamp_min(1e-300)).where_self(&seen, &p.zeros_like());
        let q = process.posterior(&z, t, s, &p)?;
        let q = q.where_self(&seen, &p.zeros_like());
        close(
            &format!("the posterior from alpha {t} to {s}, against Bayes' rule"),
            &q,
            &expected,
            1e-9,
        )?;
    }
    law("the posterior", &process.posterior(&z, 0.3, 0.6, &p)?, &[v, v], 1e-9)
}

/// A network of six positions that was told time conditioning.
struct Subject<'a> {
    network: &'a Network,
    provides: &'a [&'a str],
    ids: Tensor,
    sigma: Tensor,
}

impl Subject<'_> {
    fn pass(&self, pass: &Pass) -> Result<Passed> {
        self.network.pass(pass, false)
    }

    /// As the network attends on its own.
    fn own(&self, ids: &Tensor) -> Pass {
        let sees = match self.provides.contains(&capability::CAUSAL) {
            true => Sees::Causal,
            false => Sees::All,
        };
        Pass::new(ids, &self.sigma).sees(sees)
    }

    fn same(&self, what: &str, pass: &Pass, expected: &Tensor) -> Result<()> {
        let hidden = self.pass(pass)?.hidden;
        no_nan(what, &hidden)?;
        close(what, &hidden, expected, 1e-9)
    }

    /// Part of a check where `word` is claimed; otherwise the pass is refused.
    fn claims(&self, word: &str, pass: &Pass, check: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.provides.contains(&word) {
            return check();
        }
        let refused = self.pass(pass).is_err_and(|error| error.kind == crate::Kind::Unsupported);
        ensure!(refused, Other, "`pass` does not refuse what needs `{word}`, which is not claimed");
        Ok(())
    }
}

/// A plain pass is `hidden`; what is claimed is read, and what is not claimed is refused.
pub(super) fn passes(network: &Network, provides: &[&str]) -> Result<()> {
    let ids = Tensor::randint(10, [3, 6], I64);
    let sigma = Tensor::rand([3], F64);
    let subject = Subject { network, provides, ids, sigma };
    let Subject { ids, sigma, .. } = &subject;
    let hidden = network.hidden(ids, sigma, false)?;
    subject.same("a plain pass against `hidden`", &subject.own(ids), &hidden)?;
    let one = Tensor::ones([3, 6, 1], F64);
    let mixture = subject.own(ids).mixture(&ids.unsqueeze(-1), &one);
    subject.claims(capability::MIXTURE, &mixture, || {
        subject.same("a mixture of one token against the token", &mixture, &hidden)
    })?;
    let each = Pass { sigma: sigma.unsqueeze(1).expand([3, 6], false), ..subject.own(ids) };
    subject.claims(capability::TOKEN_SIGMA, &each, || {
        subject.same("one noise level at every token against one for each sequence", &each, &hidden)
    })?;
    let positions = subject.own(ids).positions(&Tensor::arange(6, I64).unsqueeze(0));
    subject.claims(capability::POSITIONS, &positions, || {
        subject.same("positions 0, 1, .. against none", &positions, &hidden)
    })?;
    labels(&subject, &hidden)?;
    let both = subject.own(ids).sees(Sees::Causal).wants(Wants::Both);
    subject.claims(capability::PAST, &both, || past(&subject, &both))
}

/// A class for each sequence changes the state of that sequence alone, and "none" is what a call without labels means.
fn labels(subject: &Subject<'_>, hidden: &Tensor) -> Result<()> {
    let of = |labels: [i64; 3]| subject.own(&subject.ids).label(Some(&Tensor::from_slice(&labels)));
    subject.claims(capability::LABEL, &of([CLASSES; 3]), || {
        subject.same("labels of no class against no labels", &of([CLASSES; 3]), hidden)?;
        let first = subject.pass(&of([0, CLASSES, CLASSES]))?.hidden;
        shaped("a pass with labels", &first, &hidden.size(), Kind::Double)?;
        no_nan("a pass with labels", &first)?;
        close(
            "sequences without a class beside one that has one",
            &first.narrow(0, 1, 2),
            &hidden.narrow(0, 1, 2),
            1e-9,
        )?;
        let other = subject.pass(&of([1, CLASSES, CLASSES]))?.hidden;
        let apart = (first - other).get(0).abs().max().double_value(&[]);
        ensure!(apart > 1e-9, Other, "two classes give the same state");
        Ok(())
    })
}

/// Classes that a network which reads labels is told of.
pub(super) const CLASSES: i64 = 3;

/// A text in two parts is the whole text; keys alone are those of both; positions go with their tokens.
fn past(subject: &Subject<'_>, both: &Pass) -> Result<()> {
    let Subject { ids, sigma, provides, .. } = subject;
    let whole = subject.pass(both)?;
    let part = |first: i64, n: i64| Pass::new(&ids.narrow(1, first, n), sigma).sees(Sees::Causal);
    let head = subject.pass(&part(0, 4).wants(Wants::Keys))?.keys;
    for (keys, all) in head.iter().zip(&whole.keys) {
        close("keys alone against those of a whole text", keys, &all.narrow(2, 0, 4), 1e-9)?;
    }
    let tail = part(4, 2).past(&head);
    subject.same("the end of a text over its past", &tail, &whole.hidden.narrow(1, 4, 2))?;
    let pairs = Tensor::ones([6, 6], (Kind::Bool, Device::Cpu)).tril(0);
    let paired = Pass::new(ids, sigma).sees(Sees::Pairs(pairs));
    subject.same("the pairs of a causal network", &paired, &whole.hidden)?;
    let one = Pass::new(ids, sigma).sees(Sees::Blocks(1));
    subject.same("blocks of one token against a causal network", &one, &whole.hidden)?;
    if provides.contains(&capability::POSITIONS) {
        let order = Tensor::from_slice(&[3i64, 0, 5, 1, 4, 2]);
        let all = subject.pass(&Pass::new(ids, sigma))?.hidden;
        let moved = Pass::new(&ids.index_select(1, &order), sigma).positions(&order.unsqueeze(0));
        subject.same(
            "tokens in another order at their positions",
            &moved,
            &all.index_select(1, &order),
        )?;
    }
    Ok(())
}
