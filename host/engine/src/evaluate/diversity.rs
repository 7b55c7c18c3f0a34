//! How varied texts are: a low perplexity of texts that say one thing again and again means nothing.

use std::collections::{BTreeMap, HashSet};

/// Entropy of the tokens of one text, nats: `-sum over its tokens of c/L log(c/L)`; 0 of an empty one.
pub fn entropy(tokens: &[i64]) -> f64 {
    // Ordered, so that the sum has the same bits each time.
    let mut counts: BTreeMap<i64, f64> = BTreeMap::new();
    for token in tokens {
        *counts.entry(*token).or_default() += 1.0;
    }
    let length = tokens.len() as f64;
    counts.values().map(|count| -(count / length) * (count / length).ln()).sum()
}

/// Of all runs of `n` tokens in all texts, the share that are unlike; none where no text is that long.
pub fn distinct(texts: &[Vec<i64>], n: usize) -> Option<f64> {
    let runs = || texts.iter().flat_map(|text| text.windows(n));
    let total = runs().count();
    (total > 0).then(|| runs().collect::<HashSet<&[i64]>>().len() as f64 / total as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_of_equal_and_of_unlike_tokens() {
        assert_eq!(entropy(&[5, 5, 5]), 0.0);
        assert_eq!(entropy(&[]), 0.0);
        assert!((entropy(&[1, 2, 3, 4]) - 4f64.ln()).abs() < 1e-12);
        let (a, b) = (0.75f64, 0.25f64);
        assert!((entropy(&[1, 1, 2, 1]) + a * a.ln() + b * b.ln()).abs() < 1e-12);
    }

    #[test]
    fn repetition_within_and_between_texts_shows() {
        let texts = [vec![1, 2, 1, 2], vec![1, 2]];
        assert_eq!(distinct(&texts, 1), Some(2.0 / 6.0));
        assert_eq!(distinct(&texts, 2), Some(2.0 / 4.0));
        assert_eq!(distinct(&texts, 5), None);
    }
}
