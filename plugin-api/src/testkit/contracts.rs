//! The contract of each kind, of a component behind the boundary: what every user of it relies on.
//!
//! Each takes a maker, because some rules are about components that are told other facts, and gives the first rule that
//! is broken as an error. A panic of the component is an error too. What is optional and not there is left out: the answer
//! names the rules that were not checked, and why.

use tch::{Device, Kind, Tensor};

use super::toy::Toy;
use super::{adapting, claims, classes, learned, stages};
use crate::abi::guard::guarded;
use crate::abi::handles::{Method, Network, Noise, Process, Walker};
use crate::{Batch, Context, Model, Result, bail, capability, ensure};

/// The rules that were left out, in words; mostly none.
pub type LeftOut = Vec<String>;

/// Makes a component that is told some facts.
pub type Make<'a, T> = &'a dyn Fn(&Context) -> Result<T>;

pub(super) fn values(t: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::try_from(t.to_kind(Kind::Double).contiguous().view([-1]))?)
}

/// Numbers, none of them NaN.
pub(super) fn no_nan(what: &str, t: &Tensor) -> Result<()> {
    let count = t.isnan().sum(Kind::Int64).int64_value(&[]);
    ensure!(count == 0, Numeric, "{what} holds NaN, {count} times");
    Ok(())
}

/// What was lent came back as it was.
pub(super) fn unwritten(what: &str, lent: &Tensor, kept: &Tensor) -> Result<()> {
    ensure!(
        lent == kept,
        Other,
        "{what} is written over: what is lent stays as it is, so copy it first (`copy()`)"
    );
    Ok(())
}

/// A method that a component need not have: checked where it is there, and named in `left_out` where it is not.
fn optional(
    left_out: &mut LeftOut,
    what: &str,
    claimed: bool,
    check: impl FnOnce() -> Result<()>,
) -> Result<()> {
    match check() {
        Err(error) if error.kind == crate::Kind::Unsupported && !claimed => {
            left_out.push(format!("{what} ({})", error.chain.last().map_or("", String::as_str)));
            Ok(())
        }
        other => other,
    }
}

/// Shape and kind of a tensor that came back.
pub(super) fn shaped(what: &str, t: &Tensor, size: &[i64], kind: Kind) -> Result<()> {
    let (got, got_kind) = (t.size(), t.kind());
    ensure!(
        got == size && got_kind == kind,
        Shape,
        "{what} is {got:?} {got_kind:?}, expected {size:?} {kind:?}"
    );
    Ok(())
}

pub(super) fn close(what: &str, a: &Tensor, b: &Tensor, tolerance: f64) -> Result<()> {
    ensure!(a.size() == b.size(), Shape, "{what}: {:?}, expected {:?}", a.size(), b.size());
    let error = (a - b).abs().max().double_value(&[]);
    ensure!(error <= tolerance, Numeric, "{what}: off by {error:e}, allowed {tolerance:e}");
    Ok(())
}

/// Rows of probabilities: `[.., V]`, not negative, sums of one.
pub(super) fn law(what: &str, p: &Tensor, size: &[i64], tolerance: f64) -> Result<()> {
    ensure!(p.size() == size, Shape, "{what} is {:?}, expected {size:?}", p.size());
    no_nan(what, p)?;
    let least = p.min().double_value(&[]);
    ensure!(least >= 0.0, Numeric, "{what} holds a negative probability, {least:e}");
    let sums = p.sum_dim_intlist([-1i64].as_slice(), false, Kind::Double);
    close(&format!("sums of {what}"), &sums, &sums.ones_like(), tolerance)
}

/// Calls `body` again and again: the heap must not grow by `bytes` at every call.
fn keeps_no_memory(what: &str, bytes: u64, mut body: impl FnMut() -> Result<()>) -> Result<()> {
    const CALLS: u64 = 12;
    // Caches fill in the first rounds; a leak goes on.
    let mut grown = 0;
    for _ in 0..4 {
        let before = maskdiff_native::allocated_bytes();
        for _ in 0..CALLS {
            body()?;
        }
        // Less than before is no growth.
        grown = maskdiff_native::allocated_bytes().saturating_sub(before);
        if grown < CALLS * bytes / 2 {
            return Ok(());
        }
    }
    bail!(Other, "{what} keeps memory: {CALLS} calls left {} KiB behind", grown / 1024)
}

/// Sigma is finite and rises, `dsigma` is its derivative, `time_of_alpha` its inverse; shapes and kind stay. So it is with the levels
/// of tokens, where they differ: `needs` says so. What is learned gets a gradient.
pub fn noise(make: Make<'_, Noise>, needs: &[&str]) -> Result<LeftOut> {
    guarded(|| {
        let noise = make(&Toy::new(2, 2).context())?;
        let t = Tensor::linspace(0.01, 0.99, 99, (Kind::Double, Device::Cpu));
        let sigma = noise.sigma(&t)?;
        shaped("sigma", &sigma, &t.size(), Kind::Double)?;
        let all = Tensor::linspace(0.0, 1.0, 101, (Kind::Double, Device::Cpu));
        let list = values(&noise.sigma(&all)?)?;
        let finite = list.iter().all(|s| s.is_finite() && *s >= 0.0);
        ensure!(finite, Numeric, "sigma is not finite, or negative, in [0, 1]");
        let rises = list.windows(2).all(|w| w[0] < w[1]);
        ensure!(rises, Numeric, "sigma does not rise with t");
        let h = 1e-6;
        let slope = (noise.sigma(&(&t + h))? - noise.sigma(&(&t - h))?) / (2.0 * h);
        let dsigma = noise.dsigma(&t)?;
        shaped("dsigma", &dsigma, &t.size(), Kind::Double)?;
        close("dsigma against the slope of sigma", &(dsigma / &slope), &slope.ones_like(), 1e-5)?;
        let back = noise.time_of_alpha(&sigma.neg().exp())?;
        close("time_of_alpha(alpha(t)) against t", &back, &t, 1e-6)?;
        let (low, high) = noise.sigma_range()?;
        ensure!(low < high, Numeric, "sigma_range ({low}, {high}) does not rise");
        let mut left_out = LeftOut::new();
        optional(&mut left_out, "importance sampling", false, || {
            let times = noise.importance(&t)?;
            let inside = values(&times)?.iter().all(|t| (-1e-6..=1.0 + 1e-6).contains(t));
            ensure!(inside, Numeric, "importance gives times outside [0, 1]");
            Ok(())
        })?;
        learned::levels(&noise, needs)?;
        Ok(left_out)
    })
}

/// Nothing is lost at alpha = 1, everything at alpha = 0; the posterior is a law; equal uniforms give equal draws. `provides` are
/// its capabilities, each of which is checked.
pub fn process(make: Make<'_, Process>, provides: &[&str]) -> Result<LeftOut> {
    guarded(|| {
        // A vocabulary has a mask where the process has one.
        let masks = provides.contains(&capability::MASK);
        let toy = if masks { Toy::new(4, 5) } else { Toy::uniform(4, 5) };
        let process = make(&toy.context())?;
        let x0 = Tensor::randint(5, [64, 4], (Kind::Int64, Device::Cpu));
        let u = Tensor::rand([64, 4], (Kind::Double, Device::Cpu));
        let alpha = |a: f64| Tensor::full([64], a, (Kind::Double, Device::Cpu));
        let corrupt = |a: f64| -> Result<Tensor> {
            let xt = process.corrupt(&x0, &alpha(a), &u)?;
            shaped("a corrupted block", &xt, &[64, 4], Kind::Int64)?;
            Ok(xt)
        };
        ensure!(corrupt(1.0)? == x0, Other, "alpha = 1 does not keep every token");
        let xt = corrupt(0.5)?;
        ensure!(corrupt(0.5)? == xt, Other, "equal uniform numbers give different draws");
        let prior = process.prior(64, 4)?;
        shaped("a draw of the prior", &prior, &[64, 4], Kind::Int64)?;
        let mask = process.mask_id()?;
        let said = if masks { "" } else { "no " };
        ensure!(
            mask.is_some() == masks,
            Other,
            "it offers {said}`{}`, but its mask is {mask:?}",
            capability::MASK
        );
        // Where all noise is the mask, so is all that is left at the end.
        if mask.is_some_and(|mask| prior == prior.full_like(mask)) {
            ensure!(corrupt(0.0)? == prior, Other, "alpha = 0 does not lose every token");
        }
        let v = toy.context().vocab_size;
        let p = Tensor::rand([256, v], (Kind::Double, Device::Cpu));
        if let Some(mask) = mask {
            let _ = p.select(1, mask).fill_(0.0);
        }
        let p = &p / p.sum_dim_intlist([-1i64].as_slice(), true, Kind::Double);
        law("the posterior", &process.posterior(&xt.view([-1]), 0.5, 0.7, &p)?, &[256, v], 1e-9)?;
        let refused = process.corrupt(&x0.to_kind(Kind::Float), &alpha(0.5), &u).is_err();
        ensure!(refused, Shape, "tokens that are no integers are not refused");
        learned::tokens(&process)?;
        let mut left_out = LeftOut::new();
        optional(
            &mut left_out,
            "the noise as a mixture",
            provides.contains(&capability::MIXING),
            || claims::mixing(&process, v),
        )?;
        Ok(left_out)
    })
}

/// Shapes, unique names, a linear head that equals `logits`, gradients for every parameter, length 1, repeatability. `provides` are
/// its capabilities: each is checked, and a pass that needs another one is refused.
pub fn backbone(make: Make<'_, Network>, provides: &[&str]) -> Result<LeftOut> {
    guarded(|| {
        let facts = Context::new(11, 6).mask(Some(10)).time_conditioning(true).kind(Kind::Double);
        let labelled = provides.contains(&capability::LABEL);
        let facts = facts.classes(if labelled { claims::CLASSES } else { 0 });
        let network = make(&facts)?;
        let entries = network.parameters()?;
        for length in [6, 1] {
            let xt = Tensor::randint(11, [3, length], (Kind::Int64, Device::Cpu));
            let sigma = Tensor::rand([3], (Kind::Double, Device::Cpu));
            let hidden = network.hidden(&xt, &sigma, false)?;
            no_nan("hidden", &hidden)?;
            let again = network.hidden(&xt, &sigma, false)?;
            ensure!(hidden == again, Other, "two calls without dropout differ");
            let rows = hidden.flatten(0, 1);
            let logits = network.logits(&rows)?;
            shaped("logits", &logits, &[3 * length, 11], Kind::Double)?;
            no_nan("logits", &logits)?;
            if let Some(head) = network.head()? {
                let product = rows.linear(&head.weight, head.bias);
                close("the head's matrix against logits", &product, &logits, 1e-9)?;
            }
            let loss =
                (logits.log_softmax(-1, Kind::Double) * logits.randn_like()).sum(Kind::Double);
            loss.backward();
        }
        let idle = entries.iter().find(|p| p.trainable && !p.tensor.grad().defined());
        if let Some(parameter) = idle {
            bail!(Other, "`{}` is trained, but gets no gradient", parameter.name);
        }
        let sigma = Tensor::zeros([1], (Kind::Double, Device::Cpu));
        let float = Tensor::zeros([1, 6], (Kind::Float, Device::Cpu));
        let refused = network.hidden(&float, &sigma, false).is_err();
        ensure!(refused, Shape, "tokens that are no integers are not refused");
        let xt = Tensor::zeros([64, 6], (Kind::Int64, Device::Cpu));
        let sigma = Tensor::zeros([64], (Kind::Double, Device::Cpu));
        let bytes = 64 * 6 * 8;
        keeps_no_memory("hidden", bytes, || {
            tch::no_grad(|| network.hidden(&xt, &sigma, false)).map(drop)
        })?;
        // Heads and gates may start at zero, and then nothing depends on anything.
        tch::no_grad(|| {
            for parameter in entries.iter().filter(|p| p.trainable) {
                let mut tensor = parameter.tensor.shallow_clone();
                let _ = tensor.normal_(0.0, 0.3);
            }
            claims::passes(&network, provides)?;
            adapting::adapting(&network)
        })?;
        if provides.contains(&capability::STAGES) {
            stages::stages(make, &facts, provides)?;
        }
        Ok(LeftOut::new())
    })
}

/// Times stay in [0, 1], the loss is finite, one value for each scored token; laws of x0 sum to 1. `provides` and
/// `needs` are its capabilities; a law that it does not claim is checked where it is there.
pub fn parameterization(
    make: Make<'_, Method>,
    provides: &[&str],
    needs: &[&str],
) -> Result<LeftOut> {
    guarded(|| {
        if provides.contains(&capability::CLASSIFIES) {
            return classes::classifies(make, needs);
        }
        let plain = || match needs.contains(&capability::CAUSAL) {
            true => Toy::new(4, 3).causal(),
            // One that takes any process is tried over noise that leaves no trace, and below over the others.
            false if needs.contains(&capability::UNIFORM) => Toy::uniform(4, 3),
            false if needs.contains(&capability::MIXING) => Toy::hybrid(4, 3),
            false => Toy::new(4, 3),
        };
        // A frozen model to learn from is another one of the same process.
        let plain = || match needs.contains(&capability::TEACHER) {
            true => plain().beside("teacher", plain().time_conditioned()),
            false => plain(),
        };
        // Not every method can be told the noise level.
        let (toy, method) = match make(&plain().time_conditioned().context()) {
            Ok(method) => (plain().time_conditioned(), method),
            Err(_) => (plain(), make(&plain().context())?),
        };
        let u = Tensor::linspace(0.0, 0.999, 32, (Kind::Double, Device::Cpu));
        let t = method.draw_t(&toy, &u)?;
        shaped("draw_t", &t, &[32], Kind::Double)?;
        let inside = values(&t)?.iter().all(|t| (0.0..=1.0).contains(t));
        ensure!(inside, Numeric, "draw_t gives times outside [0, 1]");
        let x0 = Tensor::randint(3, [32, 4], (Kind::Int64, Device::Cpu));
        let (kept_x0, kept_t) = (x0.copy(), t.copy());
        let loss = method.loss(&toy, &x0, &t)?;
        unwritten("the batch `x0_bl` of the loss", &x0, &kept_x0)?;
        unwritten("the times `t_b` of the loss", &t, &kept_t)?;
        let finite = values(&loss)?.iter().all(|l| l.is_finite());
        ensure!(finite, Numeric, "the loss is not finite");
        let batch = Batch::new(&x0, &t).at(1, 2);
        let objective = method.objective(&toy, &batch)?;
        unwritten("the batch `x0_bl` of the objective", &x0, &kept_x0)?;
        let finite = values(&objective.loss_bl)?.iter().all(|l| l.is_finite());
        ensure!(finite, Numeric, "the objective is not finite");
        let rows = Tensor::arange(128, (Kind::Int64, Device::Cpu));
        let mut left_out = LeftOut::new();
        optional(&mut left_out, "the law of x0", provides.contains(&capability::LOG_X0), || {
            let p = method.log_x0(&toy, &x0, &t, &rows)?.exp();
            law("log_x0", &p, &[128, toy.context().vocab_size], 1e-6)
        })?;
        optional(&mut left_out, "the score", provides.contains(&capability::SCORE), || {
            let score = method.score(&toy, &x0, &t, &rows)?;
            no_nan("the score", &score)?;
            ensure!(score.min().double_value(&[]) >= 0.0, Numeric, "a score is negative");
            Ok(())
        })?;
        if provides.contains(&capability::BOUND) {
            bounds(&toy, &method)?;
        }
        if provides.contains(&capability::BOUND) && needs.contains(&capability::MIXING) {
            for toy in [Toy::uniform(3, 3), Toy::new(3, 3).time_conditioned()] {
                bounds(&toy, &make(&toy.context())?)?;
            }
        }
        if provides.contains(&capability::BOUND) && provides.contains(&capability::TOKEN_NOISE) {
            let toy = Toy::rated(3, 3);
            bounds(&toy, &make(&toy.context())?)?;
        }
        learned::objective(&method, &toy, &batch)?;
        let x0 = Tensor::zeros([1024, 4], (Kind::Int64, Device::Cpu));
        let t = Tensor::full([1024], 0.5, (Kind::Double, Device::Cpu));
        keeps_no_memory("the loss", 1024 * 4 * 8, || method.loss(&toy, &x0, &t).map(drop))?;
        Ok(left_out)
    })
}

/// Whether the mean of the loss bounds the toy's likelihood: at every sequence, of what it scores given what stands before.
///
/// A method leaves out both ends of time, so a hundredth may be missing.
fn bounds(toy: &Toy, method: &Method) -> Result<()> {
    const DRAWS: i64 = 400;
    let (states, length) = (toy.joint().len(), toy.length());
    let every: Vec<i64> = (0..states).flat_map(|state| toy.tokens_of(state)).collect();
    let x0 = Tensor::from_slice(&every).view([states as i64, 1, length]);
    let x0 = x0.expand([states as i64, DRAWS, length], false).reshape([-1, length]);
    tch::manual_seed(1);
    // For each sequence, one draw in each of so many equal parts of time.
    let u = Tensor::rand([states as i64, DRAWS], (Kind::Double, Device::Cpu));
    let u = (u + Tensor::arange(DRAWS, (Kind::Double, Device::Cpu))) / DRAWS as f64;
    let t = method.draw_t(toy, &u.view([-1]))?;
    let objective = method.objective(toy, &Batch::new(&x0, &t).at(1, 1))?;
    // A plugin of contract 1.0 reports its loss.
    let loss = objective.nats_bl.unwrap_or(objective.loss_bl).to_kind(Kind::Double);
    let scored = loss.size()[1] as usize;
    let nats = loss.sum_dim_intlist(1, false, Kind::Double).view([states as i64, DRAWS]);
    let mean = values(&nats.mean_dim(1, false, Kind::Double))?;
    let error = values(&(nats.std_dim(1, true, false) / (DRAWS as f64).sqrt()))?;
    for state in 0..states {
        let tokens = toy.tokens_of(state);
        let before = &tokens[..length as usize - scored];
        let same = |other: &usize| toy.tokens_of(*other).starts_with(before);
        let given: f64 = (0..states).filter(same).map(|other| toy.joint()[other]).sum();
        let truth = -(toy.joint()[state] / given).ln();
        ensure!(
            mean[state] + 5.0 * error[state] >= 0.99 * truth,
            Numeric,
            "the loss is no bound of the likelihood: {:.4} ± {:.4} nats for {tokens:?}, whose negative log-likelihood is \
             {truth:.4}; leave `capability::BOUND` out of `PROVIDES`, or mend its weights",
            mean[state],
            error[state]
        );
    }
    Ok(())
}

/// Shape, no mask left, given tokens kept, equal seeds equal tokens, laws that sum to 1, length 1, stops when asked,
/// keeps no memory, does not write into its start. A sampler may have no law of a step. `needs` are its capabilities: one that
/// needs no mask is tried without one as well.
pub fn sampler(make: Make<'_, Walker>, needs: &[&str]) -> Result<LeftOut> {
    guarded(|| {
        let mut left_out = LeftOut::new();
        // A model that scores texts is another one of the same tokens.
        let made = |length: usize, tokens: usize| match needs.contains(&capability::ENERGY) {
            true => Toy::new(length, tokens).beside("energy", Toy::new(length, tokens).causal()),
            false => Toy::new(length, tokens),
        };
        if needs.contains(&capability::MIXING) {
            for toy in [Toy::uniform(4, 3), Toy::hybrid(4, 3)] {
                without_trace(make, &toy)?;
            }
        }
        for length in [5, 1] {
            let toy = made(length, 3);
            let mut walker = make(&toy.context())?;
            let size = toy.masked(4).size();
            let start = toy.masked(4);
            let _ = start.select(1, 0).fill_(2);
            let given = start.copy();
            let mut draw = |seed: i64| -> Result<Tensor> {
                tch::manual_seed(seed);
                walker.sample(&toy, &given)
            };
            let tokens = draw(1)?;
            shaped("the sample", &tokens, &size, Kind::Int64)?;
            unwritten("the start of the walk", &given, &start)?;
            ensure!(draw(1)? == tokens, Other, "equal seeds give different tokens");
            let list = values(&tokens)?;
            let outside = list.iter().find(|v| !(0.0..4.0).contains(*v));
            ensure!(outside.is_none(), Other, "token {outside:?} is outside the vocabulary of 4");
            let masks = list.iter().filter(|v| **v == 3.0).count();
            ensure!(masks == 0, Other, "{masks} masks are left");
            let kept = tokens.select(1, 0) == start.select(1, 0);
            ensure!(kept, Other, "tokens that were given are changed");
            let all = Tensor::full([2, length as i64], 1, (Kind::Int64, Device::Cpu));
            let kept = walker.sample(&toy, &all.copy())? == all;
            ensure!(kept, Other, "a block that is given whole is changed");
            left_out.clear();
            optional(&mut left_out, "the law of a step", false, || {
                for (t, s) in [(1.0, 0.9), (0.5, 0.25), (0.01, 0.0)] {
                    let p = walker.law(&toy, &start, t, s)?;
                    law("the law of a step", &p, &[4, length as i64, 4], 1e-6)?;
                }
                Ok(())
            })?;
        }
        let toy = made(5, 3);
        toy.stop_after(0);
        let stopped = make(&toy.context())?.sample(&toy, &toy.masked(1));
        ensure!(
            stopped.is_err_and(|e| e.kind == crate::Kind::Interrupted),
            Other,
            "the walk goes on when `progress` asks to stop"
        );
        let toy = made(3, 2);
        let (mut walker, start) = (make(&toy.context())?, toy.masked(1024));
        keeps_no_memory("the walk", 1024 * 3 * 8, || walker.sample(&toy, &start).map(drop))?;
        Ok(left_out)
    })
}

/// A walk over noise that leaves no trace where it was: the host says what is given, and that is kept.
fn without_trace(make: Make<'_, Walker>, toy: &Toy) -> Result<()> {
    let mut walker = make(&toy.context())?;
    let start = toy.start(4);
    let given = Tensor::from_slice(&[true, false, false, true]).expand([4, 4], false).copy();
    let _ = start.select(1, 0).fill_(2);
    let _ = start.select(1, 3).fill_(1);
    toy.give(Some(given.copy()));
    tch::manual_seed(1);
    let tokens = walker.sample(toy, &start.copy())?;
    shaped("the sample", &tokens, &start.size(), Kind::Int64)?;
    let kept = tokens.where_self(&given, &start) == start;
    ensure!(
        kept,
        Other,
        "tokens that were given are changed: see `Denoiser::given` and `keep_given`"
    );
    let masks = toy.mask_id().map_or(0, |mask| tokens.eq(mask).sum(Kind::Int64).int64_value(&[]));
    ensure!(masks == 0, Other, "{masks} masks are left");
    toy.give(None);
    Ok(())
}
