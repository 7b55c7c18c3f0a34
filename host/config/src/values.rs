//! Values of keys that are more than a number or a text.

use serde::{Deserialize, Serialize};

/// Files and folders: one as a text, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Paths(pub Vec<String>);

impl<'de> Deserialize<'de> for Paths {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Paths;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a path, or a list of paths as in `[a.txt, b.txt]`")
            }

            fn visit_str<E>(self, path: &str) -> Result<Paths, E> {
                Ok(Paths(vec![path.into()]))
            }

            /// A file whose name is a number.
            fn visit_i64<E>(self, name: i64) -> Result<Paths, E> {
                Ok(Paths(vec![name.to_string()]))
            }

            fn visit_u64<E>(self, name: u64) -> Result<Paths, E> {
                Ok(Paths(vec![name.to_string()]))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> Result<Paths, A::Error> {
                let mut paths = Vec::new();
                while let Some(path) = list.next_element()? {
                    paths.push(path);
                }
                Ok(Paths(paths))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// A part of what there is: a whole number of batches, or a share of all.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Limit {
    /// So many.
    Count(i64),
    /// A share in [0, 1].
    Share(f64),
}

impl Limit {
    /// Of `total` batches, those that are used: of a share that is not 0, at least one.
    pub fn of(self, total: i64) -> i64 {
        match self {
            Self::Count(count) => count.min(total),
            Self::Share(share) if share > 0.0 => ((share * total as f64) as i64).max(1).min(total),
            Self::Share(_) => 0,
        }
    }

    /// Whether it says something of a source without epochs, which has no share but all.
    pub fn is_usable_of_endless(self) -> bool {
        matches!(self, Self::Count(_)) || self == Self::Share(1.0)
    }

    /// Whether it is a number of batches, or a share of them.
    pub fn is_valid(self) -> bool {
        match self {
            Self::Count(count) => count >= 0,
            Self::Share(share) => (0.0..=1.0).contains(&share),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_one_or_a_list() {
        let read = |json| serde_json::from_value::<Paths>(json).map(|paths| paths.0);
        assert_eq!(read("a b.txt".into()).unwrap(), ["a b.txt"]);
        assert_eq!(read(serde_json::json!(["a", "b"])).unwrap(), ["a", "b"]);
        assert_eq!(read(2024.into()).unwrap(), ["2024"]);
        let said = read(serde_json::json!({"a": 1})).unwrap_err().to_string();
        assert!(said.contains("expected a path, or a list of paths"), "{said}");
    }

    #[test]
    fn a_share_is_at_least_one_batch_where_there_are_any() {
        assert_eq!([0, 1, 50, 200].map(|total| Limit::Share(0.01).of(total)), [0, 1, 1, 2]);
        assert_eq!([0, 3].map(|total| Limit::Share(0.0).of(total)), [0, 0]);
        assert_eq!([0, 3].map(|total| Limit::Count(2).of(total)), [0, 2]);
        assert_eq!(Limit::Share(1.0).of(7), 7);
    }
}
