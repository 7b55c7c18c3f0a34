//! MAUVE: how near the law of generated texts is to that of texts by people, seen through a judge's states.
//!
//! Shape letters: `N` texts of both kinds, `D` size of a state, `K` clusters, `C` kept components.

use maskdiff_base::error::Result;
use rand::SeedableRng as _;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

/// How far two laws are apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mauve {
    /// Area under the divergence curve, in (0, 1]; higher is nearer.
    pub mauve: f64,
    /// Frontier integral, in [0, 1]; lower is nearer.
    pub frontier_integral: f64,
    /// K.
    pub clusters: i64,
}

const EXPLAINED: f64 = 0.9;
const RESTARTS: u64 = 5;
const MOST_ROUNDS: usize = 500;
const POINTS: usize = 25;
const SCALING: f64 = 5.0;

/// Of the states of generated texts and of texts by people, `[N, D] f32` each.
///
/// # Equation
/// Rows of length 1, principal components that explain 0.9 of the variance, k-means into `K = max(2, min(N, N') / 10)`
/// clusters (best of 5 starts, ≤ 500 rounds each), the shares `p`, `q` of both kinds in each; the area under the curve
/// `(exp(-5 KL(q|r)), exp(-5 KL(p|r)))` over mixtures `r = w p + (1 - w) q`, mean of both orders of the axes.
///
/// # Source
/// Pillutla et al. 2021, arXiv:2102.01454, with the constants of the package `mauve-text` 0.4. Differences: k-means starts
/// from other random points than faiss does, so that the score differs by what it differs between seeds.
///
/// `tick` is called between the starts of k-means; its error ends it.
pub fn mauve(
    generated_nd: &Tensor,
    people_nd: &Tensor,
    seed: u64,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<Mauve> {
    let (generated, people) = (generated_nd.size()[0], people_nd.size()[0]);
    let clusters = ((generated.min(people) as f64 / 10.0).round_ties_even() as i64).max(2);
    let all_nc = components(&Tensor::cat(&[people_nd, generated_nd], 0));
    let labels = cluster(&all_nc, clusters.min(generated + people), seed, tick)?;
    let (people, generated) = labels.split_at(people as usize);
    let (p, q) = (shares(generated, clusters), shares(people, clusters));
    Ok(Mauve { mauve: area(&p, &q), frontier_integral: frontier_integral(&p, &q), clusters })
}

/// Rows of length 1 along the principal components that explain enough, `[N, C] f32`.
fn components(all_nd: &Tensor) -> Tensor {
    let all = all_nd.to_kind(Kind::Double);
    let length = all.norm_scalaropt_dim(2.0, [1i64].as_slice(), true).clamp_min(f64::MIN_POSITIVE);
    let all = all / length;
    let centered = &all - all.mean_dim([0i64].as_slice(), true, Kind::Double);
    let (_, singular, right_dc) = centered.svd(true, true);
    let variance = singular.square();
    let share =
        variance.cumsum(0, Kind::Double) / variance.sum(Kind::Double).clamp_min(f64::MIN_POSITIVE);
    let kept = share.lt(EXPLAINED).sum(Kind::Int64).int64_value(&[]) + 1;
    let kept = kept.min(right_dc.size()[1]);
    centered.matmul(&right_dc.narrow(1, 0, kept)).to_kind(Kind::Float)
}

/// The cluster of each row: k-means, the best of some starts.
fn cluster(
    all_nc: &Tensor,
    clusters: i64,
    seed: u64,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<i64>> {
    let starts = (0..RESTARTS).map(|start| {
        tick()?;
        Ok(k_means(all_nc, clusters, seed.wrapping_add(start)))
    });
    let all = starts.collect::<Result<Vec<_>>>()?;
    let best = all.into_iter().min_by(|(a, _), (b, _)| a.total_cmp(b));
    Ok(best.map(|(_, labels)| labels).unwrap_or_default())
}

/// Sum of squared distances and labels of one start.
fn k_means(all_nc: &Tensor, clusters: i64, seed: u64) -> (f64, Vec<i64>) {
    let n = all_nc.size()[0];
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut chosen = |count: i64| -> Vec<i64> {
        sample(&mut rng, n as usize, count as usize).into_iter().map(|i| i as i64).collect()
    };
    let mut centers_kc = all_nc.index_select(0, &Tensor::from_slice(&chosen(clusters)));
    let mut labels_n = Tensor::full([n], -1i64, (Kind::Int64, tch::Device::Cpu));
    let mut objective = f64::INFINITY;
    for _ in 0..MOST_ROUNDS {
        let (distance_n, nearest_n) = squared(all_nc, &centers_kc).min_dim(1, false);
        objective = distance_n.sum(Kind::Double).double_value(&[]);
        if nearest_n == labels_n {
            break;
        }
        labels_n = nearest_n;
        let sums = centers_kc.zeros_like().index_add(0, &labels_n, all_nc);
        let counts = labels_n.bincount(None::<&Tensor>, clusters);
        centers_kc = sums / counts.clamp_min(1).unsqueeze(1);
        // A cluster that lost all its rows starts anew at one of them.
        let empty = counts.eq(0).nonzero().flatten(0, 1);
        if empty.numel() > 0 {
            let rows = Tensor::from_slice(&chosen(empty.numel() as i64));
            centers_kc = centers_kc.index_copy(0, &empty, &all_nc.index_select(0, &rows));
        }
    }
    (objective, Vec::try_from(labels_n).unwrap_or_default())
}

/// Squared distances of rows and centers, `[N, K]`.
fn squared(all_nc: &Tensor, centers_kc: &Tensor) -> Tensor {
    let length = |x: &Tensor| x.square().sum_dim_intlist([1i64].as_slice(), false, x.kind());
    let cross = all_nc.matmul(&centers_kc.tr());
    (length(all_nc).unsqueeze(1) - cross * 2.0 + length(centers_kc)).clamp_min(0.0)
}

fn shares(labels: &[i64], clusters: i64) -> Vec<f64> {
    let mut counts = vec![0.0; clusters as usize];
    labels.iter().for_each(|label| counts[*label as usize] += 1.0);
    counts.iter().map(|count| count / labels.len() as f64).collect()
}

fn divergence(p: &[f64], q: &[f64]) -> f64 {
    let pairs = p.iter().zip(q).filter(|(p, _)| **p > 0.0);
    pairs.map(|(p, q)| p * (p / q).ln()).sum()
}

/// Area under the divergence curve.
fn area(p: &[f64], q: &[f64]) -> f64 {
    let margin = 1e-6;
    let weights =
        (0..POINTS).map(|i| margin + (1.0 - 2.0 * margin) * i as f64 / (POINTS - 1) as f64);
    let point = |w: f64| {
        let mixed: Vec<f64> = p.iter().zip(q).map(|(p, q)| w * p + (1.0 - w) * q).collect();
        ((-SCALING * divergence(q, &mixed)).exp(), (-SCALING * divergence(p, &mixed)).exp())
    };
    let curve: Vec<(f64, f64)> =
        std::iter::once((1.0, 0.0)).chain(weights.map(point)).chain([(0.0, 1.0)]).collect();
    let under = |mut curve: Vec<(f64, f64)>| -> f64 {
        // Of points above each other the upper one first: equal laws score 1.
        curve.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
        curve.windows(2).map(|w| (w[1].0 - w[0].0) * (w[0].1 + w[1].1) / 2.0).sum()
    };
    let turned = curve.iter().map(|(x, y)| (*y, *x)).collect();
    f64::midpoint(under(curve), under(turned))
}

/// Liu et al. 2021, arXiv:2106.07898, scaled to [0, 1].
fn frontier_integral(p: &[f64], q: &[f64]) -> f64 {
    let part = |(p, q): (&f64, &f64)| {
        if *p == 0.0 || *q == 0.0 {
            return (p + q) / 4.0;
        }
        if (p - q).abs() <= 1e-8 {
            return 0.0;
        }
        (p + q) / 4.0 - p * q * (p.ln() - q.ln()) / (p - q) / 2.0
    };
    2.0 * p.iter().zip(q).map(part).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn mauve(generated: &Tensor, people: &Tensor, seed: u64) -> Mauve {
        super::mauve(generated, people, seed, &mut || Ok(())).unwrap()
    }

    /// Rows at far-apart centers, those of `groups` in turn.
    fn at(groups: &[i64], rows: i64) -> Tensor {
        let centers = Tensor::eye(8, (Kind::Float, Device::Cpu)) * 10.0;
        let which: Vec<i64> = (0..rows).map(|i| groups[i as usize % groups.len()]).collect();
        centers.index_select(0, &Tensor::from_slice(&which))
    }

    #[test]
    fn like_texts_score_one_and_unlike_ones_nothing() {
        let (a, b) = (at(&[0, 1, 2], 60), at(&[0, 1, 2], 60));
        let same = mauve(&a, &b, 1);
        assert!(same.mauve > 0.99 && same.frontier_integral < 1e-6, "{same:?}");
        let other = mauve(&a, &at(&[3, 4, 5], 60), 1);
        assert!(other.mauve < 0.01 && other.frontier_integral > 0.9, "{other:?}");
        let half = mauve(&a, &at(&[2, 3, 4], 60), 1);
        assert!(other.mauve < half.mauve && half.mauve < same.mauve, "{half:?}");
        assert_eq!(same, mauve(&a, &b, 1), "the same numbers again");
    }

    /// Numbers of the package `mauve-text` 0.4.
    #[test]
    fn shares_give_the_scores_of_the_package() {
        let cases = [
            (
                vec![0.5, 0.3, 0.2],
                vec![0.2, 0.3, 0.5],
                0.821_409_983_611_646_1,
                0.089_139_512_083_896_59,
            ),
            (
                vec![0.9, 0.1, 0.0],
                vec![0.1, 0.2, 0.7],
                0.044_048_117_795_436_714,
                0.614_182_798_937_686_2,
            ),
            (vec![1.0, 0.0], vec![0.0, 1.0], 0.004_072_096_261_961_255_5, 1.0),
        ];
        for (p, q, score, frontier) in cases {
            assert!((area(&p, &q) - score).abs() < 1e-12, "{p:?}: {}", area(&p, &q));
            assert!((frontier_integral(&p, &q) - frontier).abs() < 1e-12, "{p:?}");
        }
        let even = [0.25; 4];
        assert!((area(&even, &even) - 1.0).abs() < 1e-12);
    }

    /// Far-apart texts in unequal shares: whatever k-means starts from, the shares come out, and the package's score of them.
    #[test]
    fn states_give_the_shares() {
        let squares: Vec<i64> = (0..60).map(|i| i * i % 6).collect();
        let score = mauve(&at(&squares, 60), &at(&[0, 1, 2, 3, 4, 5], 60), 25);
        // Squares leave 0, 1, 3 and 4 when divided by 6, in shares 1/6, 1/3, 1/6, 1/3.
        let p = [1.0 / 6.0, 1.0 / 3.0, 0.0, 1.0 / 6.0, 1.0 / 3.0, 0.0];
        let q = [1.0 / 6.0; 6];
        assert!((score.mauve - area(&p, &q)).abs() < 1e-9, "{score:?}, not {}", area(&p, &q));
        assert_eq!(score.clusters, 6);
    }

    #[test]
    fn few_and_equal_rows_are_no_fault() {
        let one = Tensor::ones([1, 4], (Kind::Float, Device::Cpu));
        let score = mauve(&one, &one, 1);
        assert!(score.mauve.is_finite() && score.clusters == 2, "{score:?}");
    }
}
