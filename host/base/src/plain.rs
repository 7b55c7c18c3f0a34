//! Text from elsewhere as it may be printed: names of files, what files and servers say. A terminal acts on control characters in it, a
//! script begins another line at them, and in a log they forge lines.

/// Whether a terminal, a script or a log acts upon a character instead of showing it: control characters, other ends of lines, and
/// marks that turn the direction of writing around.
pub fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text of several lines; of its control characters only line breaks and tabs are left, the others are spelled.
pub fn text(text: &str) -> String {
    escaped(text, |c| c == '\n' || c == '\t')
}

/// A text as one line: line breaks are spelled too.
pub fn line(text: &str) -> String {
    escaped(text, |_| false)
}

/// The same, of at most `most` characters.
pub fn excerpt(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", line(&text[..end])),
        None => line(text),
    }
}

fn escaped(text: &str, keep: impl Fn(char) -> bool) -> String {
    if !text.contains(is_control) {
        return text.to_string();
    }
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if is_control(c) && !keep(c) {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_spelled() {
        let said = "a\u{1b}[31mb\r\nc\td\u{9b}1m\u{202e}e\u{7f}é";
        assert_eq!(text(said), "a\\u{1b}[31mb\\r\nc\td\\u{9b}1m\\u{202e}e\\u{7f}é");
        assert_eq!(line("a\nb\tc"), "a\\nb\\tc");
        assert_eq!(excerpt("abécd", 3), "abé…");
        assert_eq!(excerpt("ab\n", 3), "ab\\n");
        assert_eq!(line("plain — text"), "plain — text");
    }
}
