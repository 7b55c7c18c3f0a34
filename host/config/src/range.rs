//! Which numbers a key may hold: of the host's keys by their declaration, of a component's options by its schema.

use serde_json::Value;

/// An interval. Its ends are numbers that `f64` has exactly, or far from any use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    least: f64,
    most: f64,
    /// The ends are no part of it.
    above: bool,
    below: bool,
}

impl Range {
    /// All numbers that are finite.
    pub const ALL: Self = Self::of(f64::MIN, f64::MAX);

    /// From `least` to `most`, both included.
    pub const fn of(least: f64, most: f64) -> Self {
        Self { least, most, above: false, below: false }
    }

    /// Without its lower end.
    pub const fn above(self) -> Self {
        Self { above: true, ..self }
    }

    /// Without its upper end.
    pub const fn below(self) -> Self {
        Self { below: true, ..self }
    }

    /// That of a schema: `minimum`, `exclusiveMinimum`, `maximum`, `exclusiveMaximum`, of itself, of what it refers to or of one of its
    /// parts; `root` has what it refers to.
    pub fn of_schema(root: &Value, schema: &Value) -> Self {
        if let Some(inner) = referred(root, schema) {
            return Self::of_schema(root, inner);
        }
        let bound = |key: &str| schema[key].as_f64();
        let mut range = Self::ALL;
        if let Some(least) = bound("minimum") {
            range.least = least;
        }
        if let Some(least) = bound("exclusiveMinimum").filter(|least| *least >= range.least) {
            (range.least, range.above) = (least, true);
        }
        if let Some(most) = bound("maximum") {
            range.most = most;
        }
        if let Some(most) = bound("exclusiveMaximum").filter(|most| *most <= range.most) {
            (range.most, range.below) = (most, true);
        }
        if range != Self::ALL {
            return range;
        }
        // Of a list, that of what it holds.
        if schema["items"].is_object() {
            return Self::of_schema(root, &schema["items"]);
        }
        // Of what may be unset, the part that is a number.
        let parts =
            ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|key| schema[key].as_array());
        let inner = parts.flatten().map(|part| Self::of_schema(root, part));
        inner.into_iter().find(|inner| *inner != Self::ALL).unwrap_or(range)
    }

    /// Whether a number is in it; what is no number never is.
    pub fn holds(self, number: f64) -> bool {
        let from = if self.above { number > self.least } else { number >= self.least };
        let to = if self.below { number < self.most } else { number <= self.most };
        number.is_finite() && from && to
    }

    /// What a number should be, as in `must be at least 1`, and what to do instead. None for one that is in it.
    pub fn fault(self, number: f64) -> Option<(String, String)> {
        if self.holds(number) {
            return None;
        }
        let nearest = |end: f64, open: bool, side: &str| {
            if open {
                format!("a number {side} {}", plain(end))
            } else {
                format!("the nearest is {}", plain(end))
            }
        };
        let hint = if !number.is_finite() {
            format!("{} is not a number to compute with", plain(number))
        } else if number <= self.least {
            nearest(self.least, self.above, "above")
        } else if self.below {
            nearest(self.most, self.below, "below")
        } else {
            format!("numbers up to {} are taken", plain(self.most))
        };
        if self.least == self.most {
            let only = plain(self.most);
            return Some((format!("must be {only}"), format!("leave it out, or set it to {only}")));
        }
        // Of an interval with a wide end, the end that was passed.
        let must = if self.is_narrow() {
            format!("lie in {}", self.interval())
        } else if !number.is_finite() {
            match self.in_words() {
                Some(words) => format!("be {words}"),
                None => "be a finite number".into(),
            }
        } else if number <= self.least {
            let side = if self.above { "above" } else { "at least" };
            format!("be {side} {}", plain(self.least))
        } else {
            let side = if self.below { "below" } else { "at most" };
            format!("be {side} {}", plain(self.most))
        };
        Some((format!("must {must}"), hint))
    }

    /// As a key's description has it; none where every number will do.
    pub fn in_words(self) -> Option<String> {
        if self.is_narrow() {
            return Some(format!("in {}", self.interval()));
        }
        let least = (self.least > f64::MIN).then(|| {
            format!("{} {}", if self.above { "above" } else { "at least" }, plain(self.least))
        });
        let most = (self.most < f64::MAX).then(|| {
            format!("{} {}", if self.below { "below" } else { "at most" }, plain(self.most))
        });
        let ends: Vec<String> = least.into_iter().chain(most).collect();
        (!ends.is_empty()).then(|| ends.join(", "))
    }

    /// Shares and the like.
    fn is_narrow(self) -> bool {
        self.least > f64::MIN && self.most <= 1.0
    }

    fn interval(self) -> String {
        let (open, close) =
            (if self.above { '(' } else { '[' }, if self.below { ')' } else { ']' });
        format!("{open}{}, {}{close}", plain(self.least), plain(self.most))
    }
}

/// A number in the shorter of its two spellings.
pub fn plain(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number == 2f64.powi(63) {
        return "2^63".into();
    }
    let (digits, power) = (format!("{number}"), format!("{number:e}"));
    let short = digits.len() <= power.len() && number.abs() < 1e15;
    let is_plain = (1e-3..1e6).contains(&number.abs()) || short;
    if is_plain { digits } else { power }
}

/// What a schema stands for that is only a reference.
pub(super) fn referred<'a>(root: &'a Value, schema: &Value) -> Option<&'a Value> {
    root.pointer(schema["$ref"].as_str()?.strip_prefix('#')?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_range_says_what_is_wrong_with_a_number() {
        for (range, number, expected) in [
            (Range::of(0.0, 0.0), 5.0, "must be 0 | leave it out, or set it to 0"),
            (Range::of(0.0, 1.0).below(), 1.5, "must lie in [0, 1) | a number below 1"),
            (Range::of(0.0, 1.0).below(), -1.0, "must lie in [0, 1) | the nearest is 0"),
            (Range::of(1.0, 1e7), 0.0, "must be at least 1 | the nearest is 1"),
            (Range::of(1.0, 1e7), 1e300, "must be at most 1e7 | numbers up to 1e7 are taken"),
            (Range::of(0.0, 1e7).above(), 0.0, "must be above 0 | a number above 0"),
            (
                Range::of(0.0, 1e7),
                f64::NAN,
                "must be at least 0, at most 1e7 | nan is not a number to compute with",
            ),
            (
                Range::ALL,
                f64::INFINITY,
                "must be a finite number | inf is not a number to compute with",
            ),
        ] {
            let (must, hint) = range.fault(number).unwrap();
            assert_eq!(format!("{must} | {hint}"), expected);
        }
        assert_eq!(Range::of(0.0, 1.0).fault(1.0), None);
        let shown =
            [0.01, 1e-8, 65_536.0, 1e7, 1_048_576.0, 9_223_372_036_854_775_807.0, -0.1].map(plain);
        assert_eq!(shown, ["0.01", "1e-8", "65536", "1e7", "1048576", "2^63", "-0.1"]);
        assert_eq!(Range::of(0.0, 1.0).above().in_words().unwrap(), "in (0, 1]");
        assert_eq!(Range::ALL.in_words(), None);
    }

    #[test]
    fn a_schema_has_a_range() {
        let root =
            json!({"$defs": {"Share": {"type": "number", "minimum": 0, "exclusiveMaximum": 1}}});
        for (schema, expected) in [
            (json!({"$ref": "#/$defs/Share"}), Range::of(0.0, 1.0).below()),
            (
                json!({"anyOf": [{"$ref": "#/$defs/Share"}, {"type": "null"}]}),
                Range::of(0.0, 1.0).below(),
            ),
            (json!({"type": ["integer", "null"], "minimum": 1, "maximum": 9}), Range::of(1.0, 9.0)),
            (
                json!({"minimum": 0, "exclusiveMinimum": 0, "maximum": 1}),
                Range::of(0.0, 1.0).above(),
            ),
            (json!({"type": "number"}), Range::ALL),
        ] {
            assert_eq!(Range::of_schema(&root, &schema), expected, "{schema}");
        }
    }
}
