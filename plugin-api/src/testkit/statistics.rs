//! The one statistical test that samplers need.

use tch::Tensor;

/// P-value of Pearson's test that `counts` were drawn from `law` (same order, `law` sums to 1).
///
/// Cells with fewer than five expected counts are pooled. A count where the law is zero gives 0.
/// A false alarm happens with the probability one compares with: 1e-4 means once in ten thousand tests.
pub fn chi_square(counts: &[f64], law: &[f64]) -> f64 {
    assert_eq!(counts.len(), law.len(), "counts and law differ in length");
    let total: f64 = counts.iter().sum();
    let (mut statistic, mut cells, mut pooled) = (0.0, 0, (0.0, 0.0));
    for (count, p) in counts.iter().zip(law) {
        let expected = p * total;
        if *p <= 1e-12 && *count > 0.0 {
            return 0.0;
        } else if expected < 5.0 {
            pooled = (pooled.0 + count, pooled.1 + expected);
        } else {
            statistic += (count - expected).powi(2) / expected;
            cells += 1;
        }
    }
    if pooled.1 > 0.5 {
        statistic += (pooled.0 - pooled.1).powi(2) / pooled.1;
        cells += 1;
    }
    assert!(cells > 1, "{total} counts are too few to test anything");
    let half = |x: f64| Tensor::from(x / 2.0);
    half(f64::from(cells - 1)).special_gammaincc(&half(statistic)).double_value(&[])
}

#[cfg(test)]
mod tests {
    use super::chi_square;

    #[test]
    fn known_values() {
        // 10 degrees of freedom would give 0.05 at 18.307; two cells: P(X > 3.841) = 0.05 at one degree.
        let deviation = (3.841f64 * 250.0).sqrt();
        let p = chi_square(&[500.0 + deviation, 500.0 - deviation], &[0.5, 0.5]);
        assert!((p - 0.05).abs() < 1e-3, "{p}");
        assert_eq!(chi_square(&[5.0, 1.0], &[1.0, 0.0]), 0.0);
    }
}
