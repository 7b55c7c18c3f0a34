//! A validation epoch: the losses of all candidates, the bound that is reported, the interval that is chosen.

use std::cell::RefCell;

use maskdiff_engine::clock;
use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::{Blocks, Interval};
use maskdiff_plugin_api::Batch;
use maskdiff_tests::{Setup, Tensors, assert_close, golden_case, registry};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::{WEIGHTS, file, whole};

/// The end of the range as the original's search has it, in float32: there it binds, and blocks without a mask are drawn again.
fn is_rounded(interval: Interval) -> bool {
    interval.low != 1e-3 && (interval.low - 1e-3).abs() < 1e-9
}

/// Which tokens of a batch are masked, `[B, L] bool`, by the draws of a file; nothing where ours draws other numbers than the original.
fn masked(
    run: &Value,
    draws: &[Tensor],
    x: &Tensor,
    t: &Tensor,
    interval: Interval,
) -> Option<Tensor> {
    let (size, mask) = (whole(run, "block_size"), whole(run, "mask_index"));
    let shown = |x: &Tensor| x.reshape([-1, size]);
    let (x, t_nb) = (shown(x), t.reshape([-1]).unsqueeze(1));
    let resamples = run["overrides"].to_string().contains("resample=True");
    if resamples && is_rounded(interval) {
        return None;
    }
    let used = RefCell::new(0);
    let draw = || {
        let mut used = used.borrow_mut();
        // Ours may draw more often than there are numbers: then it is not the same law.
        let u = shown(&draws[(*used).min(draws.len() - 1)]).to_kind(Kind::Double);
        let masked = if *used == 0 { u.le_tensor(&t_nb) } else { u.lt_tensor(&t_nb) };
        *used += 1;
        Ok(x.masked_fill(&masked, mask))
    };
    let z = if resamples { interval.redrawn(mask, None, draw) } else { draw() };
    let z = z.expect("blocks");
    (*used.borrow() == draws.len()).then(|| z.eq(mask))
}

/// The losses of a batch, `[B, L]`, as the original weighs them.
fn losses(model: &Model, x: &Tensor, t: &Tensor, masked: &Tensor, interval: Interval) -> Tensor {
    // A number below every chance masks, one above keeps.
    let u = masked.logical_not().to_kind(Kind::Double).view_as(x);
    model.inject_uniforms(Some(u));
    let loss = model.objective_in(&Batch::new(x, t), None).expect("an objective").loss_bl;
    // Above a half the original drops the weight 1/t.
    if interval.low > 0.5 && interval.low < 1.0 {
        let size = model.blocks().expect("blocks").size;
        return &loss * t.repeat_interleave_self_int(size, -1, None).to_kind(loss.kind());
    }
    loss
}

struct Epoch<'a> {
    model: &'a Model,
    run: &'a Value,
    golden: &'a Tensors,
    extra: std::cell::Cell<i64>,
}

impl Epoch<'_> {
    /// The losses of a candidate on a batch; nothing where its masks are not ours.
    fn candidate(&self, batch: i64, j: i64, interval: Interval) -> Option<Tensor> {
        let golden = self.golden;
        let counts = golden.get("counts").int64_value(&[batch, j]);
        let first = self.extra.replace(self.extra.get() + counts);
        let mut draws = vec![golden.get("u_mask").get(batch).get(j)];
        draws.extend((first..first + counts).map(|i| golden.get("extra").get(i)));
        let x = golden.get("x").get(batch);
        let u = golden.get("u_t").get(batch).get(j).to_kind(Kind::Double);
        let u = clock::stratify(&u.reshape([-1])).view_as(&u);
        let t = self.model.draw_t_in(interval, &u).expect("times");
        let masked = match interval.low >= 1.0 {
            true => x.ones_like().to_kind(Kind::Bool),
            false => masked(self.run, &draws, &x, &t, interval)?,
        };
        let loss = tch::no_grad(|| losses(self.model, &x, &t, &masked, interval)).copy();
        let _ = loss.narrow(1, 0, 1).fill_(0.0);
        Some(loss)
    }
}

#[test]
fn golden_validation() {
    let Some(case) = golden_case("n_block_val") else { return };
    let registry = registry();
    for (name, run) in case["runs"].as_object().expect("runs") {
        let Some(golden) = file(&case, &format!("{name}.safetensors")) else { continue };
        let (size, batches) = (whole(run, "block_size"), whole(run, "batches"));
        let mut setup =
            Setup::new(&case["model"], &json!([]), whole(run, "mask_index"), Kind::Float);
        setup.choices.noise.options = json!({ "eps": 1e-12 });
        let model = setup.build_in(&registry, WEIGHTS, Some(Blocks::of(size)));
        model.blocks().expect("blocks").set_begins(Some(0));
        let bounds: Vec<f64> = Vec::try_from(golden.get("bounds").flatten(0, 1)).expect("bounds");
        let candidates: Vec<Interval> =
            bounds.chunks(2).map(|pair| Interval { low: pair[0], high: pair[1] }).collect();
        let epoch = Epoch { model: &model, run, golden: &golden, extra: 0.into() };
        let mut sums = vec![Some(0.0); candidates.len()];
        let mut reported = 0.0;
        let shown = usize::from(size == 1 && candidates.len() == 2);
        for batch in 0..batches {
            for (j, interval) in candidates.iter().enumerate() {
                let Some(loss) = epoch.candidate(batch, j as i64, *interval) else {
                    assert!(is_rounded(*interval), "{name}: {interval:?} draws other masks");
                    sums[j] = None;
                    continue;
                };
                let want = golden.get("nlls").get(batch).get(j as i64);
                assert_close(&format!("{name}: {batch}, {interval:?}"), &loss, &want, 3e-4, true);
                if j == shown {
                    reported += loss.sum(Kind::Double).double_value(&[]);
                }
                let means = loss.to_kind(Kind::Double).view([-1, size]);
                let means = means.mean_dim([1i64].as_slice(), false, Kind::Double);
                sums[j] = sums[j].map(|sum| sum + means.var(true).double_value(&[]));
            }
        }
        let scored = (golden.get("x").numel() as i64 - batches * whole(run, "batch")) as f64;
        let nats = reported / scored;
        for (what, got) in
            [("val_nll", nats), ("val_bpd", nats / std::f64::consts::LN_2), ("val_ppl", nats.exp())]
        {
            let want = golden.get(what).double_value(&[]);
            assert!((got / want - 1.0).abs() < 3e-5, "{name}: {what} is {got}, want {want}");
        }
        let Some(want) = golden.find("sums") else { continue };
        for (j, sum) in sums.iter().enumerate() {
            let Some(sum) = sum else { continue };
            let want = want.double_value(&[j as i64]);
            assert!((sum / want - 1.0).abs() < 1e-4, "{name}: {sum} of candidate {j}, want {want}");
        }
        let all: Vec<f64> = Vec::try_from(want.to_kind(Kind::Double)).expect("sums");
        let (best, chosen) = (Interval::best(&candidates, &all), golden.get("chosen"));
        let near = |a: f64, i: i64| (a - chosen.double_value(&[i])).abs() < 2e-7;
        assert!(near(best.low, 0) && near(best.high, 1), "{name}: {best:?}, want {chosen:?}");
    }
}
