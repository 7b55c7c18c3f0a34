//! `data=stories`: the embedded default corpus, an endless source of small English stories.
//!
//! The stories come from a grammar, so their distribution is known in full: a block can be drawn
//! ([`story`]), its exact probability computed ([`log2_probability`]), and the entropy of a block
//! ([`ENTROPY_BITS`]) is the mean number of bits that no model can beat. Getting near it takes more
//! than neighbouring words: pronouns follow the hero's gender, the colour and the toy of the
//! first sentence come back in the last one, each animal has its own sound and food, each place its
//! own weather, landmarks and animals, and the company on the way out is there on the way home.
//!
//! A rule of the grammar says which texts a slot may stand for. A text is a list of words, and a
//! word `$slot` asks for that slot. The first mention of a slot in a story draws one of its texts
//! and binds it; every later mention repeats what was drawn. A rule `slot of given` has one list of
//! texts for each text that the slot `given` may be bound to, which carries agreement over any
//! distance.
//!
//! Sampling, probability and entropy all follow the same derivation (`State::step`), so they cannot
//! disagree. The first word that a drawn text yields always tells it from its alternatives (a test
//! checks every rule), so a block has one derivation only, and the entropy of the derivation is the
//! entropy of the block.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;

use rand::Rng;

use super::rows::Rows;

/// Tokens in a block: a story of three to six sentences, then the fill token up to this length.
pub const LENGTH: usize = 64;

/// The token after the end of a story, entry 0 of the vocabulary.
const FILL: &str = "<end>";

/// The rules, each `slot = texts` or `slot of given = value: texts / value: texts`, with semicolons
/// between rules and bars between texts. A text may start with its weight, which is otherwise 1.
/// The first rules are the plot: each tells a part of the story and leads on to the next.
const RULES: &str = "
    story = 5 $hero has a $colour $toy . $outing
        | 3 This is $hero with $her $colour $toy . $outing
        | 2 Little $hero loves $her $colour $toy . $outing;
    outing = 5 One day $she goes to the $weather $place $company . $meeting
        | 3 Today $she walks $company to the $weather $place and meets a $size $animal . $event;
    meeting = 3 There $she sees a $size $animal . $event
        | 2 A $size $animal waits $spot . $event
        | 1 $She finds a $size $animal $spot . $event;
    event = 4 The $animal $deed
        | 3 Suddenly the $toy $moves away . $search
        | 3 $She gives it some $food . $thanks
        | 1 $ending;
    deed = 4 says $sound . $reply
        | 3 takes the $toy away . $rescue
        | 3 looks $mood . So $she $comfort . $ending;
    reply = 3 $hero laughs and says $sound too . $ending
        | 2 $She plays with it all day . $ending
        | 1 $ending;
    rescue = 3 But $helper runs and gets the $toy back . $ending
        | 2 Then it drops the $toy $spot . $ending;
    helper of company = alone: $hero / $together: $guest;
    search = 3 $She looks $spot and finds it there . $ending
        | 3 The $animal finds it $spot . $ending
        | 2 But the $animal brings it back . $ending;
    thanks = 3 It eats and says $sound . $ending
        | 2 Then it follows $hero all day . $ending
        | 1 $ending;
    ending of company
        = alone: 3 At last $hero takes the $colour $toy home $finish
        | 3 In the evening $she goes home with the $colour $toy $finish
        | 2 That night $she dreams of the $size $animal $finish
        / $together: 3 At last $hero and $guest take the $colour $toy home $finish
        | 3 In the evening they go home with the $colour $toy $finish
        | 2 That night they dream of the $size $animal $finish;
    finish = 5 . | 1 ! | 3 and $coda;
    coda of company = alone: 3 $she is $feeling . | 2 the $animal says $sound .
        / $together: 3 they are $feeling . | 2 the $animal says $sound .;

    hero = $girl | $boy;
    girl = 4 Anna | 3 Mia | 3 Lily | 2 Rosa | 2 Emma | 1 Nina | 1 Ella | 1 Zoe;
    boy = 4 Tom | 3 Ben | 3 Max | 2 Leo | 2 Sam | 1 Jack | 1 Paul | 1 Finn;
    she of hero = $girl: she / $boy: he;
    She of hero = $girl: She / $boy: He;
    her of hero = $girl: her / $boy: his;
    company = alone | $together;
    together = with $guest;
    guest = 3 $friend | 2 $her $parent;
    friend of hero = $girl: $boy / $boy: $girl;
    parent = mother | father;
    feeling = 4 happy | 2 tired | 1 glad;

    colour = 4 red | 3 blue | 3 green | 2 yellow | 1 white | 1 pink | 1 purple | 1 brown;
    toy = 4 ball | 3 kite | 2 boat | 2 hat | 2 car | 1 balloon;
    moves of toy = ball: 3 rolls | 1 bounces / kite: 3 flies | 1 drifts / boat: 2 floats | 1 drifts
        / hat: 2 blows | 1 flies / car: rolls / balloon: 2 floats | 1 drifts | 1 flies;

    weather = 4 sunny | 3 windy | 2 quiet | 2 busy | 1 dark | 1 cold;
    place of weather = sunny: 3 park | 2 beach | 1 garden | 1 farm
        / windy: 2 hill | 2 beach | 1 lake | 1 park / quiet: 2 garden | 2 lake | 1 forest
        / busy: 3 market | 2 farm / dark: forest / cold: 2 lake | 1 hill | 1 forest;
    spot = $near the $landmark;
    near = 3 near | 2 behind | 1 beside;
    landmark of place = park: 2 bench | 1 tree | 1 fountain / farm: 2 barn | 1 fence | 1 gate
        / beach: 2 rock | 1 tent / forest: 2 tree | 1 bush / garden: 2 bush | 1 gate | 1 wall
        / lake: bridge | rock / hill: rock | tree | wall / market: 2 cart | 1 fountain | 1 wall;

    animal of place = park: 4 dog | 2 cat | 1 duck | 1 bird
        / farm: 3 cow | 2 pig | 2 hen | 1 horse | 1 sheep / beach: 2 gull | 1 dog
        / forest: 3 owl | 2 bear | 1 mouse / garden: 2 bird | 2 cat | 1 mouse | 1 frog
        / lake: 2 duck | 2 frog | 1 goose / hill: 2 sheep | 2 goat | 1 horse
        / market: 2 goat | 1 hen | 1 goose | 1 dog;
    size = 4 little | 3 big | 2 friendly | 2 funny | 1 shy | 1 brave;
    sound of animal = dog: woof / cat: meow / duck: quack / bird: tweet / cow: moo / pig: oink
        / hen: cluck / horse: neigh / sheep: baa / gull: squawk / owl: hoot / bear: growl
        / mouse: squeak / frog: ribbit / goose: honk / goat: maa;
    food of animal = dog: 3 meat | 1 bread / cat: 3 milk | 1 fish / duck: 3 bread | 1 corn
        / bird: 2 worms | 1 seeds / cow: 3 grass | 1 hay / pig: 2 apples | 1 corn
        / hen: 2 corn | 1 worms / horse: 2 hay | 1 apples / sheep: 3 grass | 1 hay
        / gull: 3 fish | 1 bread / owl: meat / bear: 3 honey | 1 fish / mouse: 2 seeds | 1 bread
        / frog: worms / goose: 2 grass | 1 corn / goat: 2 hay | 1 apples;
    mood = 3 sad | 3 hungry | 2 lonely;
    comfort of mood = sad: 2 sings a song for it | 1 tells it a story / hungry: gives it some $food
        / lonely: plays with it";

/// One text that a slot may stand for, and the probability that it is the one drawn.
struct Text {
    words: &'static str,
    probability: f64,
}

/// The texts of a slot for each binding of the slot `given`. Where there is no such slot, `given`
/// is empty and the one list is filed under the empty text.
struct Rule {
    given: &'static str,
    cases: HashMap<&'static str, Vec<Text>>,
}

/// [`RULES`] in the form that the engine uses, and the vocabulary that follows from them.
struct Grammar {
    rules: HashMap<&'static str, Rule>,
    /// The slots whose binding decides between the texts of another.
    givens: BTreeSet<&'static str>,
    vocabulary: Vec<&'static str>,
    ids: HashMap<&'static str, i64>,
}

static GRAMMAR: LazyLock<Grammar> = LazyLock::new(|| {
    let rules: HashMap<_, _> = RULES.split(';').filter_map(parse_rule).collect();
    let givens = rules.values().map(|rule| rule.given).collect();
    let items: BTreeSet<_> = rules.values().flat_map(Rule::items).collect();
    let words = items.into_iter().filter(|item| !item.starts_with('$'));
    let vocabulary: Vec<_> = std::iter::once(FILL).chain(words).collect();
    let ids = vocabulary.iter().copied().zip(0..).collect();
    Grammar { rules, givens, vocabulary, ids }
});

impl Rule {
    /// The words and `$slot`s of all texts.
    fn items(&self) -> impl Iterator<Item = &'static str> {
        self.cases.values().flatten().flat_map(|text| text.words.split_whitespace())
    }
}

/// Reads one rule with its slot.
fn parse_rule(rule: &'static str) -> Option<(&'static str, Rule)> {
    let (head, body) = rule.split_once('=')?;
    let (slot, given) = head.split_once(" of ").unwrap_or((head, ""));
    let cases = body.split('/').map(|case| {
        let (value, texts) = case.split_once(':').unwrap_or(("", case));
        (value.trim(), parse_texts(texts))
    });
    Some((slot.trim(), Rule { given: given.trim(), cases: cases.collect() }))
}

/// Reads texts between bars, each with an optional weight in front.
fn parse_texts(list: &'static str) -> Vec<Text> {
    let weighted = list.split('|').map(|entry| {
        let parts = entry.trim().split_once(' ');
        let weighted = parts.and_then(|(weight, words)| Some((weight.parse::<u32>().ok()?, words)));
        weighted.unwrap_or((1, entry.trim()))
    });
    let total: u32 = weighted.clone().map(|(weight, _)| weight).sum();
    let probability = |weight| f64::from(weight) / f64::from(total);
    weighted.map(|(weight, words)| Text { words, probability: probability(weight) }).collect()
}

/// A story half told: the words and slots to come, next one last, and the texts that the slots met
/// so far are bound to.
#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    pending: Vec<&'static str>,
    bound: Vec<(&'static str, &'static str)>,
}

/// What comes next in a story.
enum Step {
    Word(&'static str),
    /// The first mention of a slot: one of these texts has to be drawn and bound to it.
    Draw(&'static str, &'static [Text]),
    End,
}

impl State {
    fn start() -> Self {
        State { pending: vec!["$story"], bound: Vec::new() }
    }

    fn binding(&self, slot: &str) -> Option<&'static str> {
        self.bound.iter().find(|(name, _)| *name == slot).map(|&(_, words)| words)
    }

    /// Advances to the next word or draw. It would panic at a slot that has no rule, or none for
    /// the binding at hand; computing the entropy visits every kind of state, so a test would show.
    fn step(&mut self) -> Step {
        while let Some(item) = self.pending.pop() {
            let Some(slot) = item.strip_prefix('$') else { return Step::Word(item) };
            let rule = &GRAMMAR.rules[slot];
            let words = match self.binding(slot) {
                Some(words) => words,
                None => match &rule.cases[self.binding(rule.given).unwrap_or("")][..] {
                    // Without a choice there is nothing to remember, unless another rule asks.
                    [only] if !GRAMMAR.givens.contains(slot) => only.words,
                    texts => return Step::Draw(slot, texts),
                },
            };
            self.tell(words);
        }
        Step::End
    }

    /// Puts a text before all that is to come.
    fn tell(&mut self, words: &'static str) {
        self.pending.extend(words.split_whitespace().rev());
    }

    /// The state after a draw: `slot` is bound to `text`, which is told next.
    fn bind(mut self, slot: &'static str, text: &Text) -> Self {
        self.bound.push((slot, text.words));
        self.tell(text.words);
        self
    }

    /// The probability that the rest of the story is exactly `words`.
    fn probability(mut self, mut words: &[&str]) -> f64 {
        loop {
            match self.step() {
                Step::End => return if words.is_empty() { 1.0 } else { 0.0 },
                Step::Word(word) => match words.split_first() {
                    Some((first, rest)) if *first == word => words = rest,
                    _ => return 0.0,
                },
                Step::Draw(slot, texts) => {
                    let after = |text| self.clone().bind(slot, text).probability(words);
                    return texts.iter().map(|text| text.probability * after(text)).sum();
                }
            }
        }
    }
}

/// All words that a block can hold: the fill token `<end>`, then the words and punctuation marks
/// of the stories in byte order. A token id is an index into this list, which is the same in every
/// run. There is no mask token.
pub fn vocabulary() -> Vec<&'static str> {
    GRAMMAR.vocabulary.clone()
}

/// Draws one block: the token ids of a story, then id 0 (the fill), [`LENGTH`] ids in all. Blocks
/// are independent of each other, and depend on nothing but `rng`.
pub fn story(rng: &mut impl Rng) -> Vec<i64> {
    told(rng).0
}

/// The same, with what its slots stand for.
pub(super) fn told(rng: &mut impl Rng) -> (Vec<i64>, Bound) {
    let mut block = Vec::with_capacity(LENGTH);
    let mut state = State::start();
    loop {
        match state.step() {
            Step::End => break,
            Step::Word(word) => block.push(GRAMMAR.ids[word]),
            Step::Draw(slot, texts) => {
                let mut left: f64 = rng.random();
                let drawn = texts.iter().position(|text| {
                    left -= text.probability;
                    left < 0.0
                });
                // Rounding may leave a trace of probability beyond the last text, which takes it.
                state = state.bind(slot, &texts[drawn.unwrap_or(texts.len() - 1)]);
            }
        }
    }
    block.resize(LENGTH, 0);
    (block, state.bound)
}

/// Slots with what they stand for in a story.
type Bound = Vec<(&'static str, &'static str)>;

/// Slots that can label a story: each story has them, as one word.
pub const LABELS: [&str; 5] = ["animal", "colour", "place", "toy", "weather"];

/// What labels stories.
#[derive(Debug, Clone)]
pub struct Labels {
    slot: String,
    /// The class of each word.
    classes: BTreeMap<&'static str, i64>,
}

/// The words that a slot of [`LABELS`] can stand for, in order.
pub fn labels(slot: &str) -> Vec<String> {
    let Some(rule) = GRAMMAR.rules.get(slot) else { return Vec::new() };
    let words: BTreeSet<&str> = rule.cases.values().flatten().map(|text| text.words).collect();
    words.into_iter().map(String::from).collect()
}

impl Labels {
    /// Of a slot, whose words are of these classes.
    pub(super) fn new(slot: &str, class: impl Fn(&str) -> i64) -> Self {
        let words = GRAMMAR.rules[slot].cases.values().flatten().map(|text| text.words);
        Self { slot: slot.to_string(), classes: words.map(|word| (word, class(word))).collect() }
    }

    fn of(&self, bound: &Bound) -> i64 {
        let word = bound.iter().find(|(slot, _)| *slot == self.slot).map_or("", |bound| bound.1);
        self.classes.get(word).copied().unwrap_or_default()
    }
}

/// Blocks of stories.
pub(super) fn rows(
    stories: impl Iterator<Item = (Vec<i64>, Bound)>,
    labels: Option<&Labels>,
) -> Rows {
    let (mut ids, mut classes) = (Vec::new(), Vec::new());
    for (story, bound) in stories {
        ids.extend(story);
        classes.extend(labels.map(|labels| labels.of(&bound)));
    }
    Rows { ids, length: LENGTH, labels: labels.map(|_| classes), ..Rows::default() }
}

/// The exact entropy of a block in bits. Divided by [`LENGTH`], it is the least mean number of bits per token that a model can reach.
///
/// A test derives it from the grammar: the sum over all derivations would slow the start of every run.
pub const ENTROPY_BITS: f64 = 31.95030988262471;

/// The base-2 logarithm, at most 0, of the exact probability that [`story`] draws `block`; over
/// drawn blocks its mean is minus [`ENTROPY_BITS`]. `None` where the block is never drawn: it is
/// not [`LENGTH`] long, has an id outside the vocabulary, or is not a grammatical story and then
/// fill. So it also tells whether a model's sample is a story.
pub fn log2_probability(block: &[i64]) -> Option<f64> {
    let word = |&id: &i64| GRAMMAR.vocabulary.get(usize::try_from(id).ok()?).copied();
    let words = block.iter().map(word).collect::<Option<Vec<_>>>()?;
    let end = words.iter().rposition(|&word| word != FILL).map_or(0, |last| last + 1);
    let probability = State::start().probability(&words[..end]);
    (words.len() == LENGTH && probability > 0.0).then(|| probability.log2())
}

/// The tokens `ids`, indices into `vocabulary`, as readable text: single spaces between words, none
/// before punctuation. Fill is left out wherever it stands, and an id outside `vocabulary` (such as
/// a mask token that is not listed) prints as `[MASK]`.
pub fn detokenize(ids: &[i64], vocabulary: &[String]) -> String {
    let mut text = String::new();
    for &id in ids {
        let entry = usize::try_from(id).ok().and_then(|index| vocabulary.get(index));
        let word = entry.map_or("[MASK]", String::as_str);
        if word == FILL {
            continue;
        }
        if !text.is_empty() && !matches!(word, "." | "!") {
            text.push(' ');
        }
        text.push_str(word);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn block(text: &str) -> Vec<i64> {
        let mut ids: Vec<i64> = text.split_whitespace().map(|word| GRAMMAR.ids[word]).collect();
        ids.resize(LENGTH, 0);
        ids
    }

    /// Every text of a slot, under any bindings.
    fn texts(slot: &str) -> impl Iterator<Item = &'static Text> {
        GRAMMAR.rules[slot].cases.values().flatten()
    }

    /// Every word that a text can begin with.
    fn first_words(text: &'static str) -> BTreeSet<&'static str> {
        let item = text.split_whitespace().next().expect("a text has a word");
        match item.strip_prefix('$') {
            None => BTreeSet::from([item]),
            Some(slot) => texts(slot).flat_map(|text| first_words(text.words)).collect(),
        }
    }

    /// At least the number of words that a text can grow to.
    fn longest(text: &str) -> usize {
        let length = |item: &str| match item.strip_prefix('$') {
            None => 1,
            Some(slot) => texts(slot).map(|text| longest(text.words)).max().unwrap_or(0),
        };
        text.split_whitespace().map(length).sum()
    }

    #[test]
    fn first_word_of_a_text_tells_it_from_its_alternatives() {
        for (slot, rule) in &GRAMMAR.rules {
            for (value, texts) in &rule.cases {
                let mut seen = BTreeSet::new();
                for word in texts.iter().flat_map(|text| first_words(text.words)) {
                    assert!(seen.insert(word), "{slot} ({value}) has two texts from {word:?}");
                }
            }
        }
    }

    #[test]
    fn blocks_have_the_promised_shape() {
        assert!(longest("$story") < LENGTH, "{} words", longest("$story"));
        let vocabulary = vocabulary();
        assert_eq!(vocabulary[0], FILL);
        assert!(vocabulary[1..].is_sorted_by(|a, b| a < b));
        let mut sentences = BTreeSet::new();
        for seed in 0..500 {
            let draw = || story(&mut ChaCha8Rng::seed_from_u64(seed));
            let block = draw();
            assert_eq!((block.len(), &block), (LENGTH, &draw()));
            let stop = |id: &&i64| matches!(vocabulary[**id as usize], "." | "!");
            sentences.insert(block.iter().filter(stop).count());
        }
        assert_eq!(sentences, BTreeSet::from([3, 4, 5, 6]));
    }

    /// The slot itself, the slot given in its rule, and the slots that its texts involve.
    fn involved(rules: &HashMap<&'static str, Rule>, slot: &'static str) -> BTreeSet<&'static str> {
        let mentioned = rules[slot].items().filter_map(|item| item.strip_prefix('$'));
        let below = mentioned.flat_map(|slot| involved(rules, slot));
        below.chain([slot, rules[slot].given]).collect()
    }

    /// The entropy of the rest of the story in bits, by the chain rule over its draws. `known`
    /// keeps what was found, by the slot to be drawn and the state around it; `below` has what each slot may involve.
    fn entropy(
        mut state: State,
        below: &HashMap<&'static str, BTreeSet<&'static str>>,
        known: &mut HashMap<(&'static str, State), f64>,
    ) -> f64 {
        let (slot, texts) = loop {
            match state.step() {
                Step::End => return 0.0,
                Step::Word(_) => {}
                Step::Draw(slot, texts) => break (slot, texts),
            }
        };
        // Forgetting what has no bearing on the rest lets many states share an entry: bindings that
        // nothing to come involves, and the texts of those that can only be repeated (a name, say),
        // which adds no bits.
        let coming = state.pending.iter().filter_map(|item| item.strip_prefix('$')).chain([slot]);
        let coming: Vec<_> = coming.map(|slot| &below[slot]).collect();
        state.bound.retain(|(name, _)| coming.iter().any(|involved| involved.contains(name)));
        for (name, words) in &mut state.bound {
            if !GRAMMAR.givens.contains(name) {
                *words = "";
            }
        }
        state.bound.sort_unstable();
        let key = (slot, state);
        if let Some(&bits) = known.get(&key) {
            return bits;
        }
        let mut bits = 0.0;
        for text in texts {
            let after = entropy(key.1.clone().bind(slot, text), below, known);
            bits += text.probability * (after - text.probability.log2());
        }
        known.insert(key, bits);
        bits
    }

    #[test]
    fn mean_surprise_of_drawn_stories_is_the_entropy() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let surprise = |_| -log2_probability(&story(&mut rng)).expect("a drawn story is a story");
        let bits: Vec<f64> = (0..4000).map(surprise).collect();
        let mean_of = |sum: f64| sum / bits.len() as f64;
        let mean = mean_of(bits.iter().sum());
        let variance = mean_of(bits.iter().map(|bits| (bits - mean).powi(2)).sum());
        let error = mean_of(variance).sqrt();
        let entropy = ENTROPY_BITS;
        assert!((mean - entropy).abs() < 5.0 * error, "{mean} +- {error} against {entropy}");
    }

    #[test]
    fn the_entropy_is_that_of_the_grammar() {
        let rules = &GRAMMAR.rules;
        let below = rules.keys().map(|slot| (*slot, involved(rules, slot))).collect();
        let bits = entropy(State::start(), &below, &mut HashMap::new());
        assert!(
            (bits - ENTROPY_BITS).abs() < 1e-12,
            "{bits} bits, and ENTROPY_BITS is {ENTROPY_BITS}"
        );
    }

    #[test]
    fn only_consistent_stories_have_a_probability() {
        let told = "Anna has a red ball . Today she walks alone to the dark forest and meets a big \
            owl . The owl says hoot . At last Anna takes the red ball home and the owl says hoot .";
        // Total weight over own weight of each text drawn, to the first "owl" and from there on.
        let start = [10. / 5., 2., 17. / 4., 4., 14. / 4., 8. / 3., 2., 13., 13. / 3., 2.];
        let rest = [11. / 4., 10. / 4., 6., 8. / 3., 9. / 3., 5. / 2.];
        let expected: f64 = start.iter().chain(&rest).map(|odds: &f64| -odds.log2()).sum();
        let found = log2_probability(&block(told)).expect("a story");
        assert!((found - expected).abs() < 1e-9, "{found} against {expected}");
        let slips = ["she>he", "hoot>moo", "the red>the blue", "last Anna>last Mia", "dark>sunny"];
        for (right, wrong) in slips.map(|slip| slip.split_once('>').expect("two sides")) {
            assert_eq!(log2_probability(&block(&told.replace(right, wrong))), None, "{wrong}");
        }
        assert_eq!(log2_probability(&[0; LENGTH]), None);
        assert_eq!(log2_probability(&block(told)[..LENGTH - 1]), None);
        for id in [-1, 1, GRAMMAR.vocabulary.len() as i64] {
            let mut broken = block(told);
            broken[LENGTH - 1] = id;
            assert_eq!(log2_probability(&broken), None);
        }
    }

    #[test]
    fn every_story_has_its_labels_as_words() {
        let vocabulary = vocabulary();
        for seed in 0..300 {
            let (block, bound) = told(&mut ChaCha8Rng::seed_from_u64(seed));
            for slot in LABELS {
                let names = labels(slot);
                let own = Labels::new(slot, |word| {
                    names.iter().position(|name| name == word).unwrap() as i64
                });
                let word = &names[own.of(&bound) as usize];
                let told = block.iter().any(|id| vocabulary[*id as usize] == word);
                assert!(told, "{slot}: {word} is not in {block:?}");
            }
        }
        assert_eq!(labels("toy"), ["ball", "balloon", "boat", "car", "hat", "kite"]);
    }

    #[test]
    fn text_is_readable() {
        let vocabulary: Vec<String> = vocabulary().into_iter().map(String::from).collect();
        let mut ids = block("Anna has a red ball . The owl");
        ids.extend([-1, vocabulary.len() as i64, GRAMMAR.ids["!"]]);
        assert_eq!(detokenize(&ids, &vocabulary), "Anna has a red ball. The owl [MASK] [MASK]!");
    }
}
