//! Writes the elements of an SVG: numbers in few digits, texts escaped, colours for both themes.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// The colours of a picture: class, property, light, dark.
type Colour = (&'static str, &'static str, &'static str, &'static str);

/// Colours that every picture has.
const COLOURS: [Colour; 5] = [
    ("back", "fill", "#ffffff", "#1b1e23"),
    ("ink", "fill", "#1d2024", "#e3e6ea"),
    ("soft", "fill", "#5c646e", "#9ba4af"),
    ("grid", "stroke", "#e2e4e8", "#30363e"),
    ("axis", "stroke", "#5c646e", "#9ba4af"),
];

/// A picture that grows.
#[derive(Debug)]
pub(super) struct Svg {
    width: f64,
    height: f64,
    style: String,
    rules: BTreeSet<String>,
    body: String,
}

/// Where a text stands, and which end of it stands there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) anchor: &'static str,
}

impl Svg {
    /// An empty one, in pixels.
    pub(super) fn new(width: f64, height: f64) -> Self {
        let mut this = Self {
            width,
            height,
            style: String::new(),
            rules: BTreeSet::new(),
            body: String::new(),
        };
        this.colours(&COLOURS);
        let (w, h) = (short(width), short(height));
        let _ = write!(this.body, "<rect class=\"back\" width=\"{w}\" height=\"{h}\" rx=\"8\"/>");
        this
    }

    /// Adds colours of both themes.
    pub(super) fn colours(&mut self, colours: &[Colour]) {
        let rules = |dark: bool| -> String {
            let rule = |(class, property, light, night): &Colour| {
                format!(".{class}{{{property}:{}}}", if dark { night } else { light })
            };
            colours.iter().map(rule).collect()
        };
        let (light, dark) = (rules(false), rules(true));
        let _ = write!(self.style, "{light}@media(prefers-color-scheme:dark){{{dark}}}");
    }

    /// Adds rules of CSS.
    pub(super) fn style(&mut self, rules: &str) {
        self.style.push_str(rules);
    }

    /// Adds a rule of CSS, once.
    pub(super) fn rule(&mut self, rule: &str) {
        if self.rules.insert(rule.to_string()) {
            self.style.push_str(rule);
        }
    }

    /// Adds a text; `more` is further attributes.
    pub(super) fn text(&mut self, spot: Spot, class: &str, more: &str, text: &str) {
        let (x, y) = (short(spot.x), short(spot.y));
        let anchor = match spot.anchor {
            "start" => String::new(),
            anchor => format!(" text-anchor=\"{anchor}\""),
        };
        let text = escaped(text);
        let _ = write!(
            self.body,
            "<text x=\"{x}\" y=\"{y}\"{anchor} class=\"{class}\"{more}>{text}</text>"
        );
    }

    /// Adds a straight line.
    pub(super) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(short);
        let _ = write!(
            self.body,
            "<line class=\"{class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>"
        );
    }

    /// Adds a box: its corner, its width and its height.
    pub(super) fn rect(&mut self, class: &str, corner: (f64, f64), size: (f64, f64)) {
        let [x, y, w, h] = [corner.0, corner.1, size.0, size.1].map(short);
        let _ = write!(
            self.body,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" rx=\"2\"/>"
        );
    }

    /// Adds a line through points, or the area inside them.
    pub(super) fn path(&mut self, class: &str, points: &[(f64, f64)], is_closed: bool) {
        let mut way = String::new();
        for (i, (x, y)) in points.iter().enumerate() {
            let _ = write!(way, "{}{} {}", if i == 0 { "M" } else { "L" }, short(*x), short(*y));
        }
        let end = if is_closed { "Z" } else { "" };
        let _ = write!(self.body, "<path class=\"{class}\" d=\"{way}{end}\"/>");
    }

    /// The whole file. `maker` is the command that writes it, by which it is known again.
    pub(super) fn finish(self, maker: &str, title: &str, description: &str) -> String {
        let Self { width, height, style, body, .. } = self;
        let (w, h) = (short(width), short(height));
        let (title, description) = (escaped(title), escaped(description));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" data-maker=\"maskdiff {maker}\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" \
             role=\"img\">\n<title>{title}</title>\n<desc>{description}</desc>\n<style>{style}</style>\n{body}\n</svg>\n"
        )
    }
}

/// A number with two decimals at most.
pub(super) fn short(number: f64) -> String {
    let text = format!("{number:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

/// Text as XML holds it; what XML cannot hold becomes the sign for it.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            letter if letter.is_control() && !matches!(letter, '\n' | '\t') => out.push('\u{fffd}'),
            letter => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_leaves_its_element() {
        let mut svg = Svg::new(10.0, 10.0);
        let spot = Spot { x: 1.0, y: 2.005, anchor: "end" };
        svg.text(spot, "ink", "", "</text><script>&\u{1}");
        let file = svg.finish("x", "a<b", "");
        assert!(file.contains("&lt;/text&gt;&lt;script&gt;&amp;\u{fffd}</text>"), "{file}");
        assert!(file.contains("<title>a&lt;b</title>") && !file.contains("<script"));
        assert!(file.starts_with("<svg ") && file.contains("data-maker=\"maskdiff x\""));
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in [(1.0, "1"), (-0.001, "0"), (2.345, "2.35"), (10.5, "10.5")] {
            assert_eq!(short(number), text);
        }
    }
}
