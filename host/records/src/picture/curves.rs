//! Learning curves: lines with their bands, a legend, linear or logarithmic axes.

use super::axes::{self, Axis};
use super::writer::{Spot, Svg};

/// The command that writes them.
pub const MAKER: &str = "runs plot";

/// The size of the picture, and of the margins around the curves.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 46.0;

/// A row of the legend, and the width of a letter.
const ROW: f64 = 20.0;
const LETTER: f64 = 7.2;

/// Points of a line that are drawn at most.
const POINTS: usize = 500;

/// Lines: colour in the light theme and in the dark one.
const LINES: [(&str, &str); 7] = [
    ("#0b6fb3", "#5aaef0"),
    ("#d0570a", "#f58a4b"),
    ("#0a8a66", "#35c39a"),
    ("#a8508b", "#dd8fc2"),
    ("#a57700", "#e3b341"),
    ("#3f9fd6", "#a5d8ff"),
    ("#5b6068", "#aab2bd"),
];

/// Classes of their strokes and fills, one each.
const STROKES: [&str; 7] = ["s0", "s1", "s2", "s3", "s4", "s5", "s6"];
const FILLS: [&str; 7] = ["f0", "f1", "f2", "f3", "f4", "f5", "f6"];

/// A line of the picture.
#[derive(Debug, Clone, Default)]
pub struct Curve {
    /// What the legend calls it.
    pub label: String,
    /// Steps and values.
    pub points: Vec<(f64, f64)>,
    /// The same before smoothing, shown faintly; empty where nothing was smoothed.
    pub raw: Vec<(f64, f64)>,
    /// Steps, with the least and the largest value of the band around it.
    pub band: Vec<(f64, f64, f64)>,
}

/// What is drawn.
#[derive(Debug, Clone, Default)]
pub struct Plot {
    /// Its title.
    pub title: String,
    /// The name of the values.
    pub metric: String,
    /// What the horizontal axis counts; steps, where it says nothing.
    pub axis: &'static str,
    /// Whether the axis of steps is logarithmic.
    pub log_x: bool,
    /// Whether the axis of values is.
    pub log_y: bool,
    /// The lines.
    pub curves: Vec<Curve>,
}

impl Plot {
    /// The picture. What a logarithmic axis cannot show is left out.
    pub fn svg(&self) -> String {
        let curves: Vec<Curve> = self.curves.iter().map(|curve| self.shown(curve)).collect();
        let places = legend(&curves);
        let rows = places.last().map_or(0.0, |(_, row)| *row as f64 + 1.0);
        let (top, bottom) = (TOP + rows * ROW, HEIGHT + rows * ROW - BOTTOM);
        let steps = curves.iter().flat_map(|c| c.points.iter().chain(&c.raw).map(|p| p.0));
        let x = Axis::over(steps, self.log_x, (LEFT, WIDTH - RIGHT));
        let values = curves.iter().flat_map(|c| {
            let band = c.band.iter().flat_map(|b| [b.1, b.2]);
            c.points.iter().chain(&c.raw).map(|p| p.1).chain(band)
        });
        let y = Axis::over(values, self.log_y, (bottom, top)).with_room();
        let mut svg = Svg::new(WIDTH, HEIGHT + rows * ROW);
        style(&mut svg);
        svg.text(Spot { x: LEFT, y: 26.0, anchor: "start" }, "ink title", "", &self.title);
        let counted = if self.axis.is_empty() { "step" } else { self.axis };
        axes::draw(&mut svg, &x, &y, (counted, &self.metric));
        let pixels = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
            points.iter().map(|(step, value)| (x.at(*step), y.at(*value))).collect()
        };
        for (i, curve) in curves.iter().enumerate() {
            if curve.band.len() > 1 {
                let upper = curve.band.iter().map(|b| (b.0, b.2));
                let around: Vec<_> =
                    upper.chain(curve.band.iter().rev().map(|b| (b.0, b.1))).collect();
                svg.path(&format!("band {}", FILLS[i % FILLS.len()]), &pixels(&around), true);
            }
            if curve.raw.len() > 1 {
                svg.path(&format!("raw {}", class(i)), &pixels(&curve.raw), false);
            }
        }
        for (i, curve) in curves.iter().enumerate() {
            let way = pixels(&curve.points);
            match way[..] {
                [] => {}
                // One point is no line: a dot of the line's round ends.
                [(x, y)] => svg.path(&format!("dot {}", class(i)), &[(x, y), (x, y)], false),
                _ => svg.path(&format!("curve {}", class(i)), &way, false),
            }
        }
        for (i, (curve, (at, row))) in curves.iter().zip(&places).enumerate() {
            let (left, middle) = (LEFT + at, TOP + *row as f64 * ROW + 2.0);
            svg.line(&format!("curve {}", class(i)), (left, middle), (left + 22.0, middle));
            let spot = Spot { x: left + 28.0, y: middle + 4.0, anchor: "start" };
            svg.text(spot, "ink", "", &curve.label);
        }
        let labels: Vec<&str> = curves.iter().map(|curve| curve.label.as_str()).collect();
        svg.finish(MAKER, &self.title, &format!("{} of {}", self.metric, labels.join(", ")))
    }

    /// What the axes can show of a line, in few points.
    fn shown(&self, curve: &Curve) -> Curve {
        let fits = |x: f64, y: f64| {
            x.is_finite() && y.is_finite() && !(self.log_x && x <= 0.0 || self.log_y && y <= 0.0)
        };
        let points =
            |all: &[(f64, f64)]| few(all.iter().copied().filter(|(x, y)| fits(*x, *y)).collect());
        let band = curve.band.iter().copied().filter(|b| fits(b.0, b.1) && fits(b.0, b.2));
        Curve {
            label: short_label(&curve.label),
            points: points(&curve.points),
            raw: points(&curve.raw),
            band: few(band.collect()),
        }
    }
}

/// The classes of a line: its colour, and dashes where all colours are used.
fn class(i: usize) -> String {
    let colour = STROKES[i % STROKES.len()];
    match (i / STROKES.len()) % 3 {
        0 => colour.to_string(),
        1 => format!("{colour} dash"),
        _ => format!("{colour} dots"),
    }
}

fn style(svg: &mut Svg) {
    svg.style(
        "text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif}\
         .title{font-size:15px;font-weight:600}\
         path,line{fill:none;stroke-linejoin:round;stroke-linecap:round}\
         .curve{stroke-width:2}.dot{stroke-width:6}.raw{stroke-width:1;opacity:.3}\
         .band{opacity:.18;stroke:none}.dash{stroke-dasharray:7 5}.dots{stroke-dasharray:2 5}",
    );
    for (i, (light, dark)) in LINES.into_iter().enumerate() {
        svg.colours(&[(STROKES[i], "stroke", light, dark), (FILLS[i], "fill", light, dark)]);
    }
}

/// Where each entry of the legend stands: pixels from the left, and the row.
fn legend(curves: &[Curve]) -> Vec<(f64, usize)> {
    let (mut at, mut row) = (0.0, 0);
    let mut places = Vec::new();
    for curve in curves {
        let width = 46.0 + LETTER * curve.label.chars().count() as f64;
        if at > 0.0 && LEFT + at + width > WIDTH - RIGHT {
            (at, row) = (0.0, row + 1);
        }
        places.push((at, row));
        at += width;
    }
    places
}

/// A label that fits into the picture.
fn short_label(label: &str) -> String {
    const LONGEST: usize = 80;
    if label.chars().count() <= LONGEST {
        return label.to_string();
    }
    let end: Vec<char> = label.chars().rev().take(LONGEST - 1).collect();
    std::iter::once('…').chain(end.into_iter().rev()).collect()
}

/// Points at even distances, with the first and the last.
fn few<T: Copy>(all: Vec<T>) -> Vec<T> {
    if all.len() <= POINTS {
        return all;
    }
    (0..POINTS).map(|i| all[i * (all.len() - 1) / (POINTS - 1)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(curves: Vec<Curve>) -> Plot {
        Plot { title: "a title".into(), metric: "val/nelbo".into(), curves, ..Plot::default() }
    }

    fn line(points: &[(f64, f64)]) -> Curve {
        Curve { label: "one".into(), points: points.to_vec(), ..Curve::default() }
    }

    #[test]
    fn a_known_curve_has_its_points() {
        let picture = plot(vec![line(&[(0.0, 3.0), (50.0, 2.0), (100.0, 1.0)])]).svg();
        // From the left margin to the right one, and 4 % of room above and below.
        let (top, bottom) = (TOP + ROW, HEIGHT + ROW - BOTTOM);
        let room = (bottom - top) * 0.04 / 1.08;
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        let wanted = format!(
            "<path class=\"curve s0\" d=\"M66 {}L{} {}L742 {}\"/>",
            crate::picture::writer::short(top + room),
            middle,
            f64::midpoint(top, bottom),
            crate::picture::writer::short(bottom - room)
        );
        assert!(picture.contains(&wanted), "{wanted}\n{picture}");
        for text in [">a title<", ">val/nelbo<", ">one<", ">step<", ">100<"] {
            assert!(picture.contains(text), "{text}: {picture}");
        }
    }

    #[test]
    fn a_logarithmic_axis_leaves_out_what_it_cannot_show() {
        let mut picture =
            plot(vec![line(&[(0.0, 1.0), (1.0, 10.0), (10.0, -1.0), (100.0, 1000.0)])]);
        (picture.log_x, picture.log_y) = (true, true);
        let picture = picture.svg();
        let way = picture.split("class=\"curve s0\" d=\"").nth(1).unwrap().split('"').next();
        assert_eq!(way.unwrap().matches('L').count(), 1, "{way:?}");
        assert!(!picture.contains("NaN") && !picture.contains("inf"));
    }

    #[test]
    fn a_picture_is_bounded() {
        let long: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i), f64::from(i))).collect();
        let curve = Curve {
            raw: long.clone(),
            band: long.iter().map(|(x, y)| (*x, *y, y + 1.0)).collect(),
            ..line(&long)
        };
        let picture = plot(vec![curve; 4]).svg();
        assert!(picture.len() < 200_000, "{}", picture.len());
        assert_eq!(few((0..2000).collect::<Vec<_>>())[POINTS - 1], 1999);
        // Nothing to show is no fault.
        assert!(plot(vec![line(&[]), line(&[(1.0, 2.0)])]).svg().contains("class=\"dot s1\""));
    }
}
