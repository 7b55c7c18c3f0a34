//! A text being denoised, as an animated SVG: each position has its place from the start, and steps write into it.
//!
//! CSS animates it, in frames at even distances. A reader who wants no motion, or a program that knows none, sees the final text.

use std::fmt::Write as _;

use super::writer::{Spot, Svg, short};
use crate::trace::{Sample, Trace, Written};

/// The command that writes them.
pub const MAKER: &str = "sample";

/// Columns of text, and the size of one; rows of text at most.
const COLUMNS: usize = 72;
const COLUMN: f64 = 9.0;
const ROW: f64 = 24.0;
const ROWS: usize = 24;
const MARGIN: f64 = 20.0;
const TOP: f64 = 58.0;

/// Frames at most, positions at most, and texts and boxes that the frames are made of at most: they bound the size of the file.
const FRAMES: i64 = 32;
const POSITIONS: usize = 480;
const PARTS: usize = 1200;

/// Seconds that a frame stands, and the last one.
const SECONDS: f64 = 0.28;
const REST: f64 = 3.5;

/// What a position shows from a frame on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shown {
    /// No token yet.
    Nothing,
    Mask,
    Text(String),
}

/// A position of the text: what it shows, from which frame on.
#[derive(Debug)]
struct Cell {
    shown: Vec<(usize, Shown)>,
    /// Columns that it takes.
    width: usize,
    /// A new word begins here; a new line begins behind it.
    begins: bool,
    ends_line: bool,
}

/// The picture of the first text of a trace; of a long text its beginning.
pub fn svg(trace: &Trace) -> String {
    let empty = Sample {
        given: String::new(),
        nfe: 0.0,
        seconds: 0.0,
        entropy: 0.0,
        start: Vec::new(),
        events: Vec::new(),
    };
    let sample = trace.samples.first().unwrap_or(&empty);
    let (frames, cells) = bounded(trace, sample);
    let (places, rows) = laid_out(&cells);
    let (width, height) = (COLUMNS as f64 * COLUMN + 2.0 * MARGIN, TOP + rows as f64 * ROW + 14.0);
    let mut svg = Svg::new(width, height);
    let last = frames.len() - 1;
    style(&mut svg, last);
    let hidden = sample.start.len() - places.len();
    head(&mut svg, trace, &frames, hidden);
    let mut text = String::new();
    for (cell, place) in cells.iter().zip(&places) {
        draw(&mut svg, cell, *place, last);
        if let Some((_, Shown::Text(piece))) = cell.shown.last() {
            text.push_str(piece);
        }
    }
    let title = format!("A text as {} writes it", trace.sampler);
    svg.finish(MAKER, &title, text.trim())
}

/// The steps of the frames and the positions, as many as fit.
fn bounded(trace: &Trace, sample: &Sample) -> (Vec<i64>, Vec<Cell>) {
    let steps = sample.events.iter().map(|(step, _)| *step).max().unwrap_or(0).max(trace.steps);
    let (mut number, mut positions) = (steps.clamp(1, FRAMES), POSITIONS);
    loop {
        let frames: Vec<i64> = (0..=number).map(|i| i * steps / number).collect();
        let cells = cells(trace, sample, &frames, positions);
        let parts: usize = cells.iter().map(|cell| cell.shown.len()).sum();
        if parts <= PARTS || number == 1 && positions == 1 {
            return (frames, cells);
        }
        // A text that is written again and again: fewer frames, then fewer positions.
        if number > 8 {
            number /= 2
        } else {
            positions = (positions / 2).max(1)
        }
        number = number.max(1);
    }
}

fn cells(trace: &Trace, sample: &Sample, frames: &[i64], positions: usize) -> Vec<Cell> {
    let shown = |id: i64| match id {
        -1 => Shown::Nothing,
        id if Some(id) == trace.mask_id => Shown::Mask,
        id => Shown::Text(trace.vocabulary.get(&id).cloned().unwrap_or("\u{fffd}".into())),
    };
    let start = &sample.start[..sample.start.len().min(positions)];
    let mut ways: Vec<Vec<(usize, Shown)>> = start.iter().map(|id| vec![(0, shown(*id))]).collect();
    for (step, written) in &sample.events {
        // The first frame at or behind the step.
        let frame = frames.partition_point(|at| at < step).min(frames.len() - 1);
        for Written(place, id, _) in written {
            let Some(way) = ways.get_mut(*place as usize) else { continue };
            let new = shown(*id);
            way.retain(|(at, _)| *at != frame);
            if way.last().is_none_or(|(_, before)| *before != new) {
                way.push((frame, new));
            }
        }
    }
    let mut cells: Vec<Cell> = ways.into_iter().map(Cell::of).collect();
    let mut after_space = true;
    for cell in &mut cells {
        let piece = cell.last_text().unwrap_or_default().to_string();
        cell.begins = after_space || piece.starts_with(char::is_whitespace);
        cell.ends_line = piece.contains('\n');
        after_space = piece.ends_with(char::is_whitespace);
    }
    cells
}

impl Cell {
    fn of(shown: Vec<(usize, Shown)>) -> Self {
        let text = |shown: &Shown| match shown {
            Shown::Text(piece) => columns(&visible(piece)),
            _ => 1,
        };
        let widths = shown.iter().map(|(_, shown)| text(shown));
        let last = shown.last().map_or(1, |(_, shown)| text(shown));
        // What stands there for a while may be set narrower, but not to nothing.
        let width = widths.max().unwrap_or(1).min(last.max(4)).clamp(1, COLUMNS);
        Self { shown, width, begins: false, ends_line: false }
    }

    fn begins_with_space(&self) -> bool {
        self.last_text().is_some_and(|piece| piece.starts_with(' '))
    }

    fn last_text(&self) -> Option<&str> {
        match self.shown.last() {
            Some((_, Shown::Text(piece))) => Some(piece),
            _ => None,
        }
    }
}

/// A token as a line can show it.
fn visible(piece: &str) -> String {
    piece.replace(['\n', '\r'], "⏎").replace('\t', " ")
}

/// The columns of a text: signs of East Asia and pictures take two.
fn columns(text: &str) -> usize {
    let wide = |letter: char| {
        matches!(u32::from(letter), 0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff
            | 0xfe30..=0xfe6f | 0xff00..=0xff60 | 0x1f300..=0x1faff | 0x20000..=0x3ffff)
    };
    text.chars().map(|letter| if wide(letter) { 2 } else { 1 }).sum()
}

/// Column and row of each position that fits, and the number of rows. Lines break between words; the space in front of a line's
/// first word stands in the margin.
fn laid_out(cells: &[Cell]) -> (Vec<(isize, usize)>, usize) {
    let mut places = Vec::new();
    let (mut column, mut row) = (0, 0);
    for (i, cell) in cells.iter().enumerate() {
        let rest = cells[i + 1..].iter().take_while(|next| !next.begins);
        let word = cell.width + rest.map(|next| next.width).sum::<usize>();
        let breaks = if cell.begins && word <= COLUMNS { word } else { cell.width };
        if column > 0 && column + breaks > COLUMNS {
            (column, row) = (0, row + 1);
        }
        if row == ROWS {
            break;
        }
        let margin = usize::from(column == 0 && cell.width > 1 && cell.begins_with_space());
        places.push((column as isize - margin as isize, row));
        column += cell.width - margin;
        if cell.ends_line {
            (column, row) = (0, row + 1);
            if row == ROWS {
                break;
            }
        }
    }
    let rows = places.last().map_or(1, |(_, row)| row + 1);
    (places, rows)
}

/// The share of the whole time at which a frame begins, in percent.
fn percent(frame: usize, last: usize) -> String {
    let whole = last as f64 * SECONDS + REST;
    short(100.0 * frame as f64 * SECONDS / whole)
}

/// The rules by which each part is seen from one frame to another.
fn style(svg: &mut Svg, last: usize) {
    svg.colours(&[
        ("mask", "fill", "#d3d8de", "#434a54"),
        ("done", "fill", "#0b62a8", "#74b6f0"),
        ("rail", "fill", "#e2e4e8", "#30363e"),
    ]);
    let seconds = short(last as f64 * SECONDS + REST);
    let mut rules = format!(
        "svg{{--ink:#1d2024;--new:#b35900}}@media(prefers-color-scheme:dark){{svg{{--ink:#e3e6ea;--new:#ffb84d}}}}\
         text{{font:15px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}}\
         .head{{font:13px system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif}}\
         .until{{visibility:hidden}}.done{{transform-origin:{}px 0}}[class*=' v']{{animation:{seconds}s step-end infinite}}",
        short(MARGIN)
    );
    let at = |frame: usize| percent(frame, last);
    let mut named = String::new();
    for from in 0..=last {
        // From a frame to the end: what was written just now is of another colour.
        if from > 0 {
            let after = if from < last {
                at(from + 1)
            } else {
                short(50.0 + percent(last, last).parse::<f64>().unwrap_or(0.0) / 2.0)
            };
            let _ = write!(
                rules,
                "@keyframes v{from}{{0%{{visibility:hidden}}{}%{{visibility:visible;fill:var(--new)}}{after}%{{visibility:visible;fill:var(--ink)}}}}",
                at(from)
            );
            let _ = write!(named, ".v{from}{{animation-name:v{from}}}");
        }
    }
    let _ = write!(
        rules,
        "{named}@keyframes grow{{{}%,100%{{transform:scaleX(1)}}0%{{transform:scaleX(0)}}}}.grow{{animation:grow {seconds}s linear infinite}}\
         @media(prefers-reduced-motion:reduce){{*{{animation:none!important}}}}",
        at(last)
    );
    svg.style(&rules);
}

/// The rule of what is seen from one frame up to another, which it makes when it is first asked for.
fn between(svg: &mut Svg, from: usize, to: usize, last: usize) -> String {
    let name = format!("v{from}-{to}");
    let begin = match from {
        0 => "0%{visibility:visible}".to_string(),
        from => format!("0%{{visibility:hidden}}{}%{{visibility:visible}}", percent(from, last)),
    };
    svg.rule(&format!(
        "@keyframes {name}{{{begin}{}%{{visibility:hidden}}}}.{name}{{animation-name:{name}}}",
        percent(to, last)
    ));
    name
}

/// The sampler, the step, and how far it is.
fn head(svg: &mut Svg, trace: &Trace, frames: &[i64], hidden: usize) {
    let last = frames.len() - 1;
    let title = match hidden {
        0 => trace.sampler.clone(),
        hidden => format!("{}, without the last {hidden} tokens", trace.sampler),
    };
    svg.text(Spot { x: MARGIN, y: 28.0, anchor: "start" }, "soft head", "", &title);
    let whole = COLUMNS as f64 * COLUMN;
    let spot = Spot { x: MARGIN + whole, y: 28.0, anchor: "end" };
    for (frame, step) in frames.iter().enumerate() {
        let text = format!("step {step} of {}", frames[last]);
        let class = match frame {
            frame if frame == last && last == 0 => "soft head".into(),
            frame if frame == last => {
                svg.rule(&format!(
                    "@keyframes last{{0%{{visibility:hidden}}{}%{{visibility:visible}}}}.vlast{{animation-name:last}}",
                    percent(last, last)
                ));
                "soft head vlast".to_string()
            }
            frame => format!("soft head until {}", between(svg, frame, frame + 1, last)),
        };
        svg.text(spot, &class, "", &text);
    }
    svg.rect("rail", (MARGIN, 38.0), (whole, 3.0));
    svg.rect("done grow", (MARGIN, 38.0), (whole, 3.0));
}

/// What a position shows, one part for each time that it changes.
fn draw(svg: &mut Svg, cell: &Cell, (column, row): (isize, usize), last: usize) {
    let (x, y) = (MARGIN + column as f64 * COLUMN, TOP + row as f64 * ROW);
    for (i, (from, shown)) in cell.shown.iter().enumerate() {
        let to = cell.shown.get(i + 1).map(|(to, _)| *to);
        let class = match (from, to) {
            (0, None) => String::new(),
            (from, None) => format!(" v{from}"),
            (from, Some(to)) => format!(" until {}", between(svg, *from, to, last)),
        };
        match shown {
            Shown::Nothing => {}
            Shown::Mask => {
                // The space in front of a word is no part of its box.
                let space = cell.width > 1 && cell.begins_with_space();
                let before = if space { COLUMN } else { 0.0 };
                let size = (cell.width as f64 * COLUMN - before - 1.5, 17.0);
                svg.rect(&format!("mask{class}"), (x + before, y + 1.0), size);
            }
            Shown::Text(piece) => {
                let text = visible(piece);
                if text.trim().is_empty() {
                    continue;
                }
                let (inner, spaces) = (text.trim_start(), text.len() - text.trim_start().len());
                let inner = inner.trim_end();
                let wide = columns(inner).min(cell.width.saturating_sub(spaces).max(1));
                let more = format!(
                    " textLength=\"{}\" lengthAdjust=\"spacingAndGlyphs\"",
                    short(wide as f64 * COLUMN)
                );
                let left = x + spaces.min(cell.width - 1) as f64 * COLUMN;
                let spot = Spot { x: left, y: y + 15.0, anchor: "start" };
                svg.text(spot, &format!("ink{class}"), &more, inner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn trace(words: &[&str], sample: Sample) -> Trace {
        let vocabulary: BTreeMap<i64, String> =
            (0..).zip(words.iter().map(ToString::to_string)).collect();
        let mut trace = Trace::new("sampler", Some(99));
        trace.steps = sample.events.last().map_or(0, |(step, _)| *step);
        trace.vocabulary = vocabulary;
        trace.samples.push(sample);
        trace
    }

    fn sample(start: Vec<i64>, events: Vec<(i64, Vec<(i64, i64)>)>) -> Sample {
        let written =
            |all: Vec<(i64, i64)>| all.into_iter().map(|(at, id)| Written(at, id, None)).collect();
        let events = events.into_iter().map(|(step, all)| (step, written(all))).collect();
        Sample { given: String::new(), nfe: 1.0, seconds: 1.0, entropy: 1.0, start, events }
    }

    /// The elements that are seen in a frame, as their classes say.
    fn seen(picture: &str, frame: usize) -> Vec<String> {
        let body = picture.split("</style>").nth(1).unwrap();
        let mut found = Vec::new();
        for element in
            body.split('<').filter(|e| e.starts_with("text") || e.starts_with("rect class=\"mask"))
        {
            let class = element.split("class=\"").nth(1).unwrap().split('"').next().unwrap();
            if class.contains("head") {
                continue;
            }
            let span = class.split(' ').find_map(|word| word.strip_prefix('v'));
            let (from, to) = match span.map(|span| span.split_once('-').unwrap_or((span, "999"))) {
                Some((from, to)) => (from.parse().unwrap(), to.parse().unwrap()),
                None => (0, 999),
            };
            if (from..to).contains(&frame) {
                found.push(element.split('>').nth(1).unwrap().to_string());
            }
        }
        found
    }

    #[test]
    fn each_frame_shows_its_text() {
        let events = vec![(1, vec![(1, 1)]), (2, vec![(0, 0), (1, 2)])];
        let picture = svg(&trace(&["the", " <cat>", " dog"], sample(vec![99, 99, 2], events)));
        // A mask is a box without text.
        assert_eq!(seen(&picture, 0), ["", "", "dog"]);
        assert_eq!(seen(&picture, 1), ["", "&lt;cat&gt;", "dog"]);
        assert_eq!(seen(&picture, 2), ["the", "dog", "dog"]);
        for step in ["step 0 of 2", "step 1 of 2", "step 2 of 2", "<desc>the dog dog</desc>"] {
            assert!(picture.contains(step), "{step}");
        }
        assert!(!picture.contains("<script") && !picture.contains("href"));
    }

    #[test]
    fn frames_are_at_even_distances_and_the_file_is_bounded() {
        // A thousand steps that write each of two thousand positions again and again.
        let events = (1..=1000)
            .map(|step| (step, (0..2000).map(|place| (place, (step + place) % 3)).collect()));
        let all = sample(vec![99; 2000], events.collect());
        let picture = svg(&trace(&["a ", "bcd ", " longer words"], all));
        assert!(picture.len() < 200_000, "{}", picture.len());
        for step in ["step 0 of 1000", "step 500 of 1000", "step 1000 of 1000"] {
            assert!(picture.contains(step), "{step}");
        }
        assert!(picture.contains("without the last"), "{}", &picture[..3000]);
        // A text of many masks, each written once.
        let events = (1..=400).map(|step| (step, vec![(step - 1, step % 3)])).collect();
        let picture = svg(&trace(&["a ", "bcd ", " longer words"], sample(vec![99; 400], events)));
        assert!(picture.len() < 200_000, "{}", picture.len());
        // Nothing at all is no fault.
        assert!(svg(&Trace::new("x", None)).contains("step 0 of 0"));
    }

    #[test]
    fn lines_break_between_words() {
        let words: Vec<i64> = (0..40).map(|i| i % 2).collect();
        let cells = cells(
            &trace(&["word", " and"], sample(words.clone(), vec![])),
            &sample(words, vec![]),
            &[0, 1],
            100,
        );
        let (places, rows) = laid_out(&cells);
        assert!(rows > 1 && places.iter().all(|(column, _)| column + 4 <= COLUMNS as isize));
        // `word` belongs to the word before it: of all lines only the first begins with it.
        let begins: Vec<usize> =
            (1..places.len()).filter(|i| places[*i].1 > places[*i - 1].1).collect();
        assert!(begins.iter().all(|i| i % 2 == 1), "{begins:?}");
        assert_eq!(columns("日本a"), 5);
    }
}
