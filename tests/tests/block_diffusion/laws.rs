//! Likelihoods and bounds against all sequences of a tiny vocabulary.

use maskdiff_engine::evaluate::Draws;
use maskdiff_engine::evaluate::answers::{self, Asked, Plan, Way};
use maskdiff_engine::evaluate::blocks as likelihood;
use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::Text;
use maskdiff_plugin_api::ops::Order;
use maskdiff_plugin_api::{Batch, Denoiser};
use maskdiff_tests::{Tensors, assert_close, device, golden_case, registry};
use tch::{Kind, Tensor};

use super::{growth, tiny, tiny_over};

/// All orders of so many things.
fn orders(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let longer = |order: Vec<usize>| {
        (0..=order.len()).map(move |at| {
            let mut order = order.clone();
            order.insert(at, n - 1);
            order
        })
    };
    orders(n - 1).into_iter().flat_map(longer).collect()
}

/// `log p` of the true tokens of a block at `open`, when the positions of `masked` are masked, for all sequences.
fn log_p(view: &Denoiser<'_>, block: &Tensor, masked: &[usize], open: usize) -> Tensor {
    let x = block.copy();
    for at in masked {
        let _ = x.select(1, *at as i64).fill_(3);
    }
    let n = block.size()[0];
    let size = block.size()[1];
    let rows = Tensor::arange(n, (Kind::Int64, device())) * size + open as i64;
    let t = Tensor::full([n], 0.5, (Kind::Double, device()));
    let law = view.log_x0(&x, &t, &rows).expect("a law");
    law.gather(1, &block.select(1, open as i64).unsqueeze(1), false).squeeze_dim(1)
}

/// The law of first hitting, from the view that a sampler walks: `log p` of all sequences.
fn law_of_first_hitting(model: &Model, all: &Tensor, size: i64) -> Tensor {
    let mut text = Text::new(model, all.size()[0], growth(size, true));
    let mut total = Tensor::zeros([all.size()[0]], (Kind::Double, device()));
    for at in (0..4).step_by(size as usize) {
        let block = all.narrow(1, at, size);
        let view = text.next(None).expect("a view");
        let free: Vec<usize> = (0..size as usize).filter(|i| at as usize + i > 0).collect();
        let lent = Denoiser::new(&view);
        let of_order = |order: Vec<usize>| {
            let steps = (0..order.len()).map(|j| {
                let masked: Vec<usize> = order[j..].iter().map(|i| free[*i]).collect();
                log_p(&lent, &block, &masked, masked[0])
            });
            steps.fold(total.zeros_like(), |sum, step| sum + step)
        };
        let all_orders: Vec<Tensor> = orders(free.len()).into_iter().map(of_order).collect();
        let count = (all_orders.len() as f64).ln();
        total += Tensor::stack(&all_orders, 0).logsumexp([0i64].as_slice(), false) - count;
        text.push(&block);
    }
    total
}

/// The loss of training, integrated over times and summed over all sets of masks: nats of each sequence.
fn integrated(model: &Model, all: &Tensor, size: i64) -> Tensor {
    // Gauss and Legendre's five points, exact here: the integrand is a polynomial in t.
    const POINTS: [(f64, f64); 5] = [
        (0.046_910_077_030_668, 0.118_463_442_528_094_5),
        (0.230_765_344_947_158_5, 0.239_314_335_249_683_2),
        (0.5, 0.284_444_444_444_444_4),
        (0.769_234_655_052_841_5, 0.239_314_335_249_683_2),
        (0.953_089_922_969_332, 0.118_463_442_528_094_5),
    ];
    let (n, double) = (all.size()[0], (Kind::Double, device()));
    let mut total = Tensor::zeros([n], double);
    for (t, weight) in POINTS {
        let lost = 1.0 - Denoiser::new(model).alpha(t).expect("alpha");
        for set in 0..1u32 << size {
            let masked = |i: u32| set >> i & 1 == 1;
            let row: Vec<f64> =
                (0..4).map(|i| if masked(i % size as u32) { 0.0 } else { 1.0 - 1e-9 }).collect();
            model
                .inject_uniforms(Some(Tensor::from_slice(&row).to_device(device()).repeat([n, 1])));
            let t_bk = Tensor::full([n, 4 / size], t, double);
            let nats = model.objective(&Batch::new(all, &t_bk)).expect("an objective").nats_bl;
            let masks = f64::from(set.count_ones());
            let chance = lost.powf(masks) * (1.0 - lost).powf(size as f64 - masks);
            let nats = nats.expect("a bound").sum_dim_intlist(1, false, Kind::Double);
            total += nats * (weight * chance);
        }
    }
    total
}

#[test]
fn golden_exact() {
    let Some(case) = golden_case("n_block_exact") else { return };
    let registry = registry();
    let golden = Tensors::golden("n_block_exact/exact.safetensors");
    let all = golden.get("sequences");
    let n = all.size()[0];
    for size in [1_i64, 2, 4] {
        let model = tiny(&registry, &case, size);
        let blocks = model.blocks().expect("blocks");
        tch::no_grad(|| {
            // Every number of masks and every set of them once: the mean of the draws is the bound.
            let free = size.max(2) - i64::from(size == 4);
            let perms = orders(free as usize);
            let mut sum = Tensor::zeros([n], (Kind::Double, device()));
            for k in 0..free {
                for order in &perms {
                    let u_b = Tensor::full(
                        [n, 4 / size],
                        (k as f64 + 0.5) / free as f64,
                        (Kind::Double, device()),
                    );
                    let places: Vec<f64> = order.iter().map(|i| *i as f64 / 8.0).collect();
                    // Of four tokens the first is BOS.
                    let block = if size == 4 { [vec![0.9], places].concat() } else { places };
                    let row: Vec<f64> = block.iter().copied().cycle().take(4).collect();
                    let u_bl =
                        Tensor::from_slice(&row).to_device(device()).unsqueeze(0).repeat([n, 1]);
                    let draws = Draws::new(u_b, u_bl);
                    sum += likelihood::strict_nats(&model, blocks, &all, &draws).expect("nats");
                }
            }
            let bound = sum / (free as f64 * perms.len() as f64);
            let name = if size == 1 { "nll.b1".into() } else { format!("nelbo.b{size}") };
            assert_close(&name, &bound, &golden.get(&name), 1e-9, true);
            // The bound does not depend on the schedule.
            for schedule in ["loglinear", "square"] {
                let model = tiny_over(&registry, &case, size, schedule);
                let whole = integrated(&model, &all, size);
                assert_close(&format!("{schedule}, b = {size}"), &whole, &bound, 1e-8, true);
            }
            let law = law_of_first_hitting(&model, &all, size);
            let want =
                golden.find(&format!("log_law.b{size}")).unwrap_or_else(|| -golden.get("nll.b1"));
            assert_close(&format!("law, b = {size}"), &law, &want, 1e-9, true);
            let total = law.exp().sum(Kind::Double).double_value(&[]);
            assert!((total - 1.0).abs() < 1e-12, "{total}");
            let short = (&bound + &law).min().double_value(&[]);
            assert!(short > -1e-12, "the bound is below the law by {short}");
            // A deterministic order has a likelihood, too.
            for order in [Order::LeftToRight, Order::Confidence] {
                let nats = likelihood::duel_nats(&model, blocks, &all, order, 1).expect("nats");
                let total = nats.neg().exp().sum(Kind::Double).double_value(&[]);
                assert!((total - 1.0).abs() < 1e-12, "{order:?}, b = {size}: {total}");
                if size == 1 {
                    assert_close("one order", &nats, &golden.get("nll.b1"), 1e-9, true);
                }
            }
        });
    }
}

/// An answer in blocks: with all of a text as the answer it is the text's own likelihood, and the answers behind a prompt that ends inside a
/// block, in a text that ends inside one, are all that there can be.
#[test]
fn golden_answers_are_measured_in_blocks() {
    let Some(case) = golden_case("n_block_exact") else { return };
    let registry = registry();
    let golden = Tensors::golden("n_block_exact/exact.safetensors");
    let all = golden.get("sequences");
    let nats = |model: &Model, way: Way, ids: &[i64], cut: usize| {
        let asked = Asked { prompt: ids[..cut].to_vec(), answer: ids[cut..].to_vec() };
        let size = model.blocks().expect("blocks").size;
        let plan = Plan { way, batch: 3, seed: 1, guidance: 0.0, growth: Some(growth(size, true)) };
        answers::check(model, &asked, plan).expect("an answer");
        -answers::measure(model, &asked, plan, 0).expect("a likelihood").loglikelihood
    };
    for size in [1_i64, 2, 4] {
        let model = tiny(&registry, &case, size);
        let name = if size == 1 { "nll.b1".into() } else { format!("nelbo.b{size}") };
        let want = golden.get(&name);
        let blocks = model.blocks().expect("blocks");
        let order = |order| tch::no_grad(|| likelihood::duel_nats(&model, blocks, &all, order, 1));
        let orders =
            [Order::LeftToRight, Order::Confidence].map(|name| (name, order(name).expect("nats")));
        for number in [0, 1, all.size()[0] - 1] {
            // The first token is the model's BOS, which answers have by themselves.
            let ids = Vec::<i64>::try_from(all.get(number).narrow(0, 1, 3)).expect("ids");
            let bound = nats(&model, Way::Bound(100), &ids, 0);
            assert!((bound - want.double_value(&[number])).abs() < 1e-9, "b = {size}: {bound}");
            for (order, nats_n) in &orders {
                let found = nats(&model, Way::Duel(*order, 1), &ids, 0);
                let want = nats_n.double_value(&[number]);
                assert!((found - want).abs() < 1e-9, "b = {size}, {order:?}: {found}, {want}");
            }
        }
        for way in [Way::Duel(Order::LeftToRight, 1), Way::Duel(Order::Confidence, 1)] {
            let share = |token: i64| (-nats(&model, way, &[1, token], 1)).exp();
            let total: f64 = (0..3).map(share).sum();
            assert!((total - 1.0).abs() < 1e-9, "b = {size}, {way:?}: {total}");
        }
        let masks = Asked { prompt: vec![], answer: vec![3] };
        let plan = Plan { way: Way::Bound(1), batch: 1, seed: 0, guidance: 0.0, growth: None };
        assert!(answers::check(&model, &masks, plan).is_err());
        let guided = Plan { guidance: 1.0, ..plan };
        let said = answers::check(&model, &Asked { answer: vec![1], ..masks }, guided);
        assert!(said.expect_err("guidance").to_string().contains("reads blocks"));
    }
}
