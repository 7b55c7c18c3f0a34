//! `data.streaming=true`: a corpus that is read as it comes, file by file, again and again, and never stored whole.
//!
//! The blocks of the endless stream are numbered; the order inside each window of [`Plan::window`] blocks is random. Where
//! files began (the first block, and what was left of the files before) is kept beside the caches, so a run goes on from the
//! start of a file and not from that of the corpus. Every rank reads the whole stream and uses its own blocks.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::memory;
use maskdiff_base::stream::{Purpose, generator};
use maskdiff_base::text::counted;
use maskdiff_config::listed::OnInvalid;
use serde::{Deserialize, Serialize};

use super::build::{self, Recipe};
use super::corpora::{LazyHub, Part};
use super::pack::{Packer, Packing};
use super::permutation::Permutation;
use super::read::{Losses, Reader};
use super::rows::{Rows, Samples};
use super::tokenizer::Tokenizer;

/// How a stream is read.
#[derive(Clone)]
pub struct Plan {
    /// What is read.
    pub part: Part,
    /// How documents become blocks.
    pub packing: Packing,
    /// Text to ids.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// What happens to invalid text.
    pub on_invalid: OnInvalid,
    /// Threads that tokenize.
    pub workers: usize,
    /// Blocks among which the order is random.
    pub window: u64,
    /// Where files lie while they are read.
    pub folder: PathBuf,
    /// Where the beginnings of files are kept.
    pub journal: PathBuf,
}

/// Where a file began. A line of the journal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Start {
    /// Number of the file in the stream.
    file: usize,
    /// Number of its first block in the stream.
    block: u64,
    /// Tokens that were left of the files before.
    rest: Vec<u32>,
    /// Documents since the last batch of the reference packing.
    in_batch: usize,
    /// CRC-32 of the rest; lines of 0.1.0 have none.
    #[serde(default)]
    sum: Option<u32>,
}

impl Start {
    fn new(file: usize, block: u64, (rest, in_batch): (&[u32], usize)) -> Self {
        let mut this = Self { file, block, rest: rest.to_vec(), in_batch, sum: None };
        this.sum = Some(this.checksum());
        this
    }

    fn checksum(&self) -> u32 {
        let Self { file, block, rest, in_batch, sum: _ } = self;
        crc32fast::hash(format!("{file} {block} {rest:?} {in_batch}").as_bytes())
    }

    /// Whether it is as it was written, or can be: a spoilt one would change the blocks.
    fn is_whole(&self, plan: &Plan) -> bool {
        let size = plan.tokenizer.vocab_size();
        self.sum.is_none_or(|sum| sum == self.checksum())
            && self.rest.len() < plan.packing.length
            && self.rest.iter().all(|id| i64::from(*id) < size)
    }
}

/// A block and its tokens that are no filling.
type Block = (Vec<u32>, usize);

/// Reads a stream.
pub struct Streamer {
    plan: Arc<Plan>,
    starts: Arc<Mutex<Vec<Start>>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The number of the next block of the reader.
    next: u64,
    reader: Option<Reading>,
    /// The window that was read last.
    window: Option<(u64, Vec<Block>)>,
}

/// A thread that reads the stream, until this is dropped.
struct Reading {
    blocks: Option<Receiver<Result<Block>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Reading {
    /// Waits for the thread, so that the files that it has open apart are gone with it.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.blocks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Streamer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Streamer({})", self.plan.part.corpus)
    }
}

impl Streamer {
    /// Opens a stream; nothing is read yet.
    pub fn new(plan: Plan) -> Self {
        // Several processes may add the same lines, and a line may be cut off.
        let known = maskdiff_base::files::look::optional(&plan.journal).unwrap_or_default();
        let known = known.lines().filter_map(|line| serde_json::from_str::<Start>(line).ok());
        let known = known.filter(|start| start.is_whole(&plan));
        let mut starts: Vec<Start> = known.chain([Start::default()]).collect();
        starts.sort_by_key(|start| (start.block, start.file));
        starts.dedup();
        let starts = Arc::new(Mutex::new(starts));
        Self { plan: Arc::new(plan), starts, state: Mutex::default() }
    }

    /// See [`super::Source::rows`].
    pub fn rows(&self, samples: Samples) -> Result<Rows> {
        let mut state = self
            .state
            .lock()
            .map_err(|_| Error::data("an earlier read of the stream failed", ""))?;
        let (length, window) = (self.plan.packing.length, self.plan.window);
        let (mut ids, mut used) = (Vec::new(), Vec::new());
        for i in samples.first..samples.first + samples.n as u64 {
            let number = i / window;
            let known = state.window.as_ref().is_some_and(|(known, _)| *known == number);
            if !known {
                let blocks = self.read_window(&mut state, number)?;
                state.window = Some((number, blocks));
            }
            let rng = &mut generator(samples.seed, Purpose::Order, number);
            let place = Permutation::new(window, rng).at(i % window);
            if let Some((_, blocks)) = &state.window {
                let (row, counted) = &blocks[place as usize];
                ids.extend(row.iter().map(|id| i64::from(*id)));
                used.push(*counted);
            }
        }
        Ok(Rows { ids, length, used: (!self.plan.packing.wrap).then_some(used), ..Rows::default() })
    }

    fn read_window(&self, state: &mut State, number: u64) -> Result<Vec<Block>> {
        let (first, window) = (number * self.plan.window, self.plan.window);
        if state.reader.is_none() || state.next != first {
            state.reader = None;
            let (reader, next) = self.start(first)?;
            (state.reader, state.next) = (Some(reader), next);
        }
        let mut blocks = memory::room(window as usize, "for a window of the stream")?;
        while (blocks.len() as u64) < window {
            let reader = state.reader.as_ref().and_then(|reader| reader.blocks.as_ref());
            let Some(Ok(block)) = reader.map(Receiver::recv) else {
                return Err(Error::data("the thread that reads the stream failed", ""));
            };
            match block {
                Ok(block) if state.next >= first => blocks.push(block),
                Ok(_) => {}
                Err(error) => {
                    state.reader = None;
                    return Err(error);
                }
            }
            state.next += 1;
        }
        Ok(blocks)
    }

    /// Starts to read at the last file that began at or before a block; gives the number of the first block that comes.
    fn start(&self, block: u64) -> Result<(Reading, u64)> {
        let (plan, starts) = (Arc::clone(&self.plan), Arc::clone(&self.starts));
        let (out, blocks) = sync_channel(plan.window as usize);
        let first = {
            let known = starts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            known[known.partition_point(|start| start.block <= block) - 1].clone()
        };
        let number = first.block;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = memory::thread("stream", move || {
            if let Err(error) = read(&plan, &starts, first, &out, &stopped) {
                // Nobody is there when another reader was started.
                let _ = out.send(Err(error));
            }
        })?;
        Ok((Reading { blocks: Some(blocks), stop, thread: Some(thread) }, number))
    }
}

/// Reads file after file from a start on (they begin again after the last), until nobody takes the blocks.
fn read(
    plan: &Plan,
    starts: &Mutex<Vec<Start>>,
    start: Start,
    out: &SyncSender<Result<Block>>,
    stop: &AtomicBool,
) -> Result<()> {
    let cut = |text: &str| plan.tokenizer.cut(text);
    let reader = Reader {
        format: &plan.part.format,
        slice: plan.part.slice,
        on_invalid: plan.on_invalid,
        cut: &cut,
        whole: plan.part.detokenizer.is_some(),
        label: None,
    };
    let recipe = Recipe {
        detokenizer: plan.part.detokenizer,
        tokenizer: plan.tokenizer.as_ref(),
        on_invalid: plan.on_invalid,
        workers: plan.workers,
    };
    let hub = LazyHub::default();
    let alive = |_: &str, _: u64, _: u64| {
        let over = || Error::data("nobody reads the stream", "");
        if stop.load(Ordering::Relaxed) { Err(over()) } else { Ok(()) }
    };
    let (mut file, mut number) = (start.file, start.block);
    let mut packer = Packer::new(plan.packing, None);
    packer.go_on(&start.rest, start.in_batch);
    let files = plan.part.files();
    let mut without = 0;
    let mut noted = start.block;
    loop {
        let local = plan.part.fetch_some(&hub, file % files, &plan.folder, &alive)?;
        let before = number;
        let mut block = |row: &[u32], used: usize, _: Option<&str>| {
            number += 1;
            let block = Ok((row.to_vec(), used));
            out.send(block).map_err(|_| Error::data("nobody reads the stream", ""))
        };
        let mut tick = |_, _| alive("", 0, 0);
        let losses = build::run(&reader, &local.paths, recipe, &mut packer, &mut block, &mut tick)?;
        if losses.skipped + losses.replaced > 0 {
            let Losses { skipped, replaced } = losses;
            let name = local.paths[0].display();
            tracing::warn!(
                "{} left out and {replaced} mended as no valid text from `{name}` on",
                counted(skipped, "document")
            );
        }
        file += local.paths.len();
        without = if number > before { 0 } else { without + local.paths.len() };
        if without >= files {
            return Err(Error::data(
                format!(
                    "`{}` has less text than one block of {}",
                    plan.part.corpus, plan.packing.length
                ),
                "give more text, or set a smaller `model.length`",
            ));
        }
        // Not for every small file: a start that is a window away is as good.
        if number >= noted + plan.window {
            noted = number;
            note(plan, starts, Start::new(file, number, packer.state()));
        }
    }
}

/// Keeps where a file began; without it a run that goes on only reads more.
fn note(plan: &Plan, starts: &Mutex<Vec<Start>>, start: Start) {
    let mut known = starts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let at = known.partition_point(|other| other.block < start.block);
    if known.get(at).is_some_and(|other| other.block == start.block) {
        return;
    }
    let written = serde_json::to_string(&start).map_err(std::io::Error::from).and_then(|line| {
        plan.journal.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        let open = std::fs::File::options().create(true).append(true).open(&plan.journal);
        // A line of its own whatever stands before it.
        open?.write_all(format!("\n{line}\n").as_bytes())
    });
    if let Err(error) = written {
        tracing::warn!("cannot write `{}`: {error}", plan.journal.display());
    }
    known.insert(at, start);
}

#[cfg(test)]
mod tests {
    use super::super::corpora::Role;
    use super::super::{prepare, tokenizer};
    use super::*;
    use maskdiff_config::{Request, load};

    fn streamer(folder: &std::path::Path, wrap: bool, window: u64) -> Streamer {
        let words = [
            "data=text",
            &format!("data.path={}", folder.display()),
            "model.length=16",
            "data.documents=line",
            &format!("data.wrap={wrap}"),
        ];
        let overrides = words.iter().map(ToString::to_string).collect();
        let config = load(&Request { overrides, ..Request::default() }).unwrap();
        let part = Part::find(&config, Role::Train, &LazyHub::default()).unwrap().unwrap();
        let tokenizer: Arc<dyn Tokenizer> = tokenizer::text8().into();
        let packing = prepare::packing(&config, &part, Role::Train, tokenizer.as_ref()).unwrap();
        Streamer::new(Plan {
            journal: folder.join(format!("journal-{wrap}.jsonl")),
            part,
            packing,
            tokenizer,
            on_invalid: OnInvalid::Error,
            workers: 2,
            window,
            folder: folder.to_path_buf(),
        })
    }

    fn texts(folder: &std::path::Path) {
        for file in 0..3 {
            let lines =
                (0..40).map(|line| format!("line {} of file {file}\n", "x".repeat(line % 7)));
            std::fs::write(folder.join(format!("{file}.txt")), lines.collect::<String>()).unwrap();
        }
    }

    #[test]
    fn a_stream_is_the_same_from_wherever_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        texts(folder.path());
        for wrap in [true, false] {
            let ids = |streamer: &Streamer, first, n| {
                streamer.rows(Samples { seed: 1, first, n, per_epoch: None, batch: 0 }).unwrap()
            };
            let whole = ids(&streamer(folder.path(), wrap, 8), 0, 1000);
            assert_eq!(whole.used.is_some(), !wrap);
            assert!(folder.path().join(format!("journal-{wrap}.jsonl")).exists());
            // By another process later on, back and forth, over the ends of files and of the corpus.
            let again = streamer(folder.path(), wrap, 8);
            for first in [900, 3, 500, 504, 508, 0, 120] {
                assert_eq!(ids(&again, first, 4), whole.part(first as usize, 4), "at {first}");
            }
            // The order inside a window is drawn; which blocks it holds is not.
            let sorted = |rows: &Rows| {
                let mut rows: Vec<Vec<i64>> = rows.ids.chunks(rows.length).map(Vec::from).collect();
                rows.sort();
                rows
            };
            let plain = ids(&streamer(folder.path(), wrap, 1), 0, 1000);
            assert_ne!(plain, whole);
            assert_eq!(sorted(&plain.part(8, 8)), sorted(&whole.part(8, 8)));
            let other = streamer(folder.path(), wrap, 8);
            let other =
                other.rows(Samples { seed: 2, first: 8, n: 8, per_epoch: None, batch: 0 }).unwrap();
            assert_ne!(other, whole.part(8, 8));
            assert_eq!(sorted(&other), sorted(&whole.part(8, 8)));
        }
    }

    #[test]
    fn a_stream_that_fails_says_why_and_one_without_text_ends() {
        let folder = tempfile::tempdir().unwrap();
        texts(folder.path());
        std::fs::write(folder.path().join("1.txt"), b"\xff\n").unwrap();
        let broken = streamer(folder.path(), true, 8);
        let error = broken
            .rows(Samples { seed: 1, first: 0, n: 500, per_epoch: None, batch: 0 })
            .unwrap_err();
        assert!(error.to_string().contains("1.txt"), "{error}");
        let empty = tempfile::tempdir().unwrap();
        std::fs::write(empty.path().join("0.txt"), "short\n").unwrap();
        let error = streamer(empty.path(), true, 1)
            .rows(Samples { seed: 1, first: 0, n: 1, per_epoch: None, batch: 0 })
            .unwrap_err();
        assert!(error.to_string().contains("less text than one block"), "{error}");
    }
}
