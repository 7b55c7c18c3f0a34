//! The axes of a picture: where a value stands, and which values are written beside it.

use super::writer::{Spot, Svg, short};

/// An axis from `low` to `high`, drawn from pixel `from` to pixel `to`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    is_log: bool,
    from: f64,
    to: f64,
}

impl Axis {
    /// An axis that holds all values; of a logarithmic one they are positive.
    pub(super) fn over(
        values: impl Iterator<Item = f64>,
        is_log: bool,
        (from, to): (f64, f64),
    ) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = (1.0, 1.0);
        }
        if low == high {
            // One value stands in the middle.
            let around = if low == 0.0 { 1.0 } else { low.abs() / 2.0 };
            (low, high) =
                if is_log { (low / 2.0, low * 2.0) } else { (low - around, low + around) };
        }
        Self { low, high, is_log, from, to }
    }

    /// With some room below and above.
    pub(super) fn with_room(mut self) -> Self {
        if self.is_log {
            let room = (self.high / self.low).powf(0.04);
            (self.low, self.high) = (self.low / room, self.high * room);
        } else {
            let room = (self.high - self.low) * 0.04;
            (self.low, self.high) = (self.low - room, self.high + room);
        }
        self
    }

    /// The pixel of a value.
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = if self.is_log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + share * (self.to - self.from)
    }

    /// Values to write beside it: round ones.
    pub(super) fn ticks(&self) -> Vec<f64> {
        let inside = |value: &f64| *value >= self.low && *value <= self.high;
        if self.is_log {
            let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
            let of = |factors: &[f64]| -> Vec<f64> {
                let each = |power: i32| factors.iter().map(move |f| f * 10f64.powi(power));
                decades.clone().flat_map(each).filter(inside).collect()
            };
            let (tens, fine) = (of(&[1.0]), of(&[1.0, 2.0, 5.0]));
            match (tens.len(), fine.len()) {
                (3.., _) => thinned(tens),
                (_, 3..) => fine,
                // Less than a decade: round steps serve.
                _ => self.even(),
            }
        } else {
            self.even()
        }
    }

    fn even(&self) -> Vec<f64> {
        let rough = (self.high - self.low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= rough);
        let step = factor.unwrap_or(10.0) * power;
        let first = (self.low / step).ceil() as i64;
        let all = (first..first + 12).map(|number| number as f64 * step);
        all.take_while(|value| *value <= self.high).collect()
    }
}

/// Seven of many at most.
fn thinned(values: Vec<f64>) -> Vec<f64> {
    let step = values.len().div_ceil(7);
    values.into_iter().step_by(step).collect()
}

/// A number beside an axis: `12k`, `0.05`, `1e-6`.
pub(super) fn label(value: f64) -> String {
    let size = value.abs();
    let digits = |value: f64, digits: usize| {
        let text = format!("{value:.digits$}");
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_string()
        } else {
            text
        }
    };
    match size {
        0.0 => "0".into(),
        1e15.. => format!("{value:.0e}"),
        1e9.. => digits(value / 1e9, 3) + "G",
        1e6.. => digits(value / 1e6, 3) + "M",
        1e4.. => digits(value / 1e3, 3) + "k",
        1e-3.. => digits(value, 4),
        _ => format!("{value:.1e}").replace(".0e", "e"),
    }
}

/// Draws both axes with their values and names.
pub(super) fn draw(svg: &mut Svg, x: &Axis, y: &Axis, names: (&str, &str)) {
    let (left, right, bottom, top) = (x.from, x.to, y.from, y.to);
    for value in y.ticks() {
        let at = y.at(value);
        svg.line("grid", (left, at), (right, at));
        let spot = Spot { x: left - 6.0, y: at + 4.0, anchor: "end" };
        svg.text(spot, "soft", "", &label(value));
    }
    for value in x.ticks() {
        let at = x.at(value);
        svg.line("axis", (at, bottom), (at, bottom + 4.0));
        let spot = Spot { x: at, y: bottom + 17.0, anchor: "middle" };
        svg.text(spot, "soft", "", &label(value));
    }
    svg.line("axis", (left, bottom), (right, bottom));
    let below = Spot { x: f64::midpoint(left, right), y: bottom + 34.0, anchor: "middle" };
    svg.text(below, "soft", "", names.0);
    let (across, down) = (left - 46.0, f64::midpoint(top, bottom));
    let turned = format!(" transform=\"rotate(-90 {} {})\"", short(across), short(down));
    svg.text(Spot { x: across, y: down, anchor: "middle" }, "soft", &turned, names.1);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(low: f64, high: f64, is_log: bool) -> Axis {
        Axis::over([low, high].into_iter(), is_log, (0.0, 100.0))
    }

    #[test]
    fn values_stand_where_they_belong() {
        assert_eq!(axis(0.0, 50.0, false).at(25.0), 50.0);
        assert!((axis(1.0, 100.0, true).at(10.0) - 50.0).abs() < 1e-9);
        assert_eq!(axis(3.0, 3.0, false).at(3.0), 50.0);
        assert!((axis(3.0, 3.0, true).at(3.0) - 50.0).abs() < 1e-9);
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(axis(0.0, 1000.0, false).ticks(), [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]);
        assert_eq!(axis(1.0, 1000.0, true).ticks(), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(axis(3.0, 30.0, true).ticks(), [5.0, 10.0, 20.0]);
        for (low, high, is_log) in [(2.1, 2.4, true), (1e-12, 1e9, true), (-5.0, 1e6, false)] {
            let (axis, ticks) = (axis(low, high, is_log), axis(low, high, is_log).ticks());
            assert!((2..=8).contains(&ticks.len()), "{low} {high}: {ticks:?}");
            assert!(ticks.iter().all(|t| (0.0..=100.0).contains(&axis.at(*t))), "{ticks:?}");
        }
    }

    #[test]
    fn labels_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (1500.0, "1500"),
            (20_000.0, "20k"),
            (2.5e6, "2.5M"),
            (0.05, "0.05"),
            (1e-6, "1e-6"),
            (-3.25, "-3.25"),
        ] {
            assert_eq!(label(value), text);
        }
    }
}
