//! Tokens as text: what they add to a text, and where stop texts cut it.

use std::ops::Range;

use maskdiff_data::Tokenizer;

/// Tokens as they are shown: what is no token yet is the mask.
pub(crate) fn visible(now: &[i64], mask: Option<i64>) -> Vec<i64> {
    now.iter().filter_map(|id| if *id < 0 { mask } else { Some(*id) }).collect()
}

/// The last place at or before `at` where a text may be cut.
pub(crate) fn floor(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// What tokens behind the first `from` add to the text.
pub(crate) fn continuation(tokenizer: &dyn Tokenizer, ids: &[i64], from: usize) -> String {
    let (all, head) = (tokenizer.decode(ids), tokenizer.decode(&ids[..from]));
    match all.strip_prefix(&head) {
        Some(rest) => rest.to_string(),
        None => tokenizer.decode(&ids[from..]),
    }
}

/// Where the tokens of a text end in it, in bytes: each is looked for when it is asked for, and kept while the tokens up to it stay.
#[derive(Debug, Default)]
pub(crate) struct Places {
    ids: Vec<i64>,
    /// For each token, the length of the text up to its end.
    ends: Vec<Option<usize>>,
}

impl Places {
    /// Goes over to other tokens.
    pub(crate) fn follow(&mut self, ids: &[i64]) {
        let same = self.ids.iter().zip(ids).take_while(|(own, new)| own == new).count();
        self.ids.truncate(same);
        self.ids.extend(&ids[same..]);
        self.ends.truncate(same);
        self.ends.resize(ids.len(), None);
    }

    /// The token that writes a byte of the text: the first behind which the text is longer than that.
    pub(crate) fn writes(&mut self, tokenizer: &dyn Tokenizer, byte: usize) -> usize {
        let (mut low, mut high) = (0, self.ids.len());
        while low < high {
            let middle = low.midpoint(high);
            let ids = &self.ids;
            let read = || continuation(tokenizer, &ids[..=middle], 0).len();
            match *self.ends[middle].get_or_insert_with(read) <= byte {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        low
    }
}

/// The text in front of the first of some texts that is not given as a whole, and whether there is one.
pub(crate) fn cut<'a>(
    text: &'a str,
    stops: &[String],
    is_given: impl Fn(&Range<usize>) -> bool,
) -> (&'a str, bool) {
    let first = |stop: &String| {
        let mut from = 0;
        loop {
            let at = from + text[from..].find(stop.as_str())?;
            if !is_given(&(at..at + stop.len())) {
                return Some(at);
            }
            from = at + text[at..].chars().next()?.len_utf8();
        }
    };
    match stops.iter().filter_map(first).min() {
        Some(at) => (&text[..at], true),
        None => (text, false),
    }
}

/// How many tokens it takes to write the first `bytes` of what stands behind the first `reach` of them.
pub(crate) fn before_stop(
    tokenizer: &dyn Tokenizer,
    ids: &[i64],
    reach: usize,
    bytes: usize,
) -> usize {
    let writes = |kept: &usize| continuation(tokenizer, &ids[..*kept], reach).len() >= bytes;
    (reach..ids.len()).find(writes).unwrap_or(ids.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_text_that_is_not_given_cuts() {
        let none = |_: &Range<usize>| false;
        assert_eq!(cut("a.b.c", &[".c".into(), ".".into()], none), ("a", true));
        assert_eq!(cut("abc", &["x".into()], none), ("abc", false));
        assert_eq!(cut("aaab", &["aa".into()], |bytes| bytes.start == 0), ("a", true));
    }
}
