//! From documents to a file of blocks, on all cores and in bounded memory.
//!
//! ```text
//! reader ──jobs──> workers (detokenize, tokenize) ──ids──> packer (in the order of the jobs) ──> file
//! ```
//!
//! A job takes its bytes from a budget, and the packer gives them back: so much text is on its way at most, or one document. The blocks depend on the documents
//! alone, not on the number of workers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};

use maskdiff_base::error::{Error, Kind, Result};
use maskdiff_base::memory;
use maskdiff_config::listed::OnInvalid;

use super::detokenize::{Detokenizer, detokenized};
use super::pack::Packer;
use super::read::{Label, Losses, Piece, Place, Reader};
use super::tokenizer::{Encoder, Tokenizer};

/// Text of a job, in bytes; one document may have more.
const JOB: usize = 1 << 18;
/// Documents of a job.
const DOCUMENTS: usize = 512;
/// What a document takes beside its text, in bytes: empty ones need memory too.
const PIECE: usize = 128;
/// Text under way for each worker, in bytes.
const BUDGET: usize = 3 * JOB;

/// How documents become ids.
#[derive(Clone, Copy)]
pub struct Recipe<'a> {
    /// What is done to the text first.
    pub detokenizer: Option<Detokenizer>,
    /// Text to ids.
    pub tokenizer: &'a dyn Tokenizer,
    /// What happens to a document that holds the mask or cannot be tokenized.
    pub on_invalid: OnInvalid,
    /// Threads that tokenize, ≥ 1.
    pub workers: usize,
}

impl std::fmt::Debug for Recipe<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recipe({:?}, {} workers)", self.detokenizer, self.workers)
    }
}

/// Pieces of documents, with their number in the order of reading.
struct Job {
    number: u64,
    pieces: Vec<Piece>,
}

/// The ids of a job.
struct Done {
    ids: Vec<u32>,
    /// For each piece where its ids end, and whether a document ends there; a document that is left out is not here.
    ends: Vec<(usize, bool)>,
    /// The label of each.
    labels: Vec<Label>,
    losses: Losses,
    text: u64,
    /// What the job took from the budget.
    cost: usize,
}

/// Takes a full block, its number of tokens that are no filling, and the label of the document that it ends with.
pub(super) type Sink<'a> = &'a mut dyn FnMut(&[u32], usize, Option<&str>) -> Result<()>;

/// Reads documents, tokenizes them and packs them; `block` takes each full block, `tick` the documents and the bytes of text so far. Gives what was left out or mended.
pub fn run(
    reader: &Reader<'_>,
    files: &[PathBuf],
    recipe: Recipe<'_>,
    packer: &mut Packer,
    block: Sink<'_>,
    tick: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Losses> {
    let workers = recipe.workers.max(1);
    let (job_in, job_out) = sync_channel::<Job>(workers);
    let (done_in, done_out) = channel::<(u64, Result<Done>)>();
    let budget = Budget::new(workers * BUDGET);
    let job_out = Mutex::new(job_out);
    std::thread::scope(|scope| {
        let budget = &budget;
        let started = |name: &str| std::thread::Builder::new().name(name.into());
        let reading = started("reader").spawn_scoped(scope, move || {
            // Whatever ends the reader, the workers see the end of the jobs.
            unwound(|| read_jobs(reader, files, &job_in, budget))
        });
        let reading = reading.map_err(|e| memory::no_thread("reader", &e))?;
        let mut refused = None;
        for _ in 0..workers {
            let (jobs, done) = (&job_out, done_in.clone());
            let work = move || {
                let mut encoder = recipe.tokenizer.encoder();
                while let Some(job) = next(jobs) {
                    let ids = unwound(|| encode(&job, recipe, encoder.as_mut()));
                    if done.send((job.number, ids)).is_err() {
                        break;
                    }
                }
            };
            if let Err(e) = started("tokenizer").spawn_scoped(scope, work) {
                refused = Some(memory::no_thread("tokenizer", &e));
                break;
            }
        }
        drop(done_in);
        let packed = match refused {
            Some(error) => Err(error),
            None => unwound(|| pack_in_order(done_out, budget, packer, block, tick)),
        };
        // Nobody waits for a packer that is gone: neither for its budget nor with a job that no worker takes.
        budget.close();
        let left = std::iter::from_fn(|| next(&job_out)).count();
        let read = reading.join().unwrap_or_else(|_| Err(Error::data("the reader failed", "")));
        let mut losses = packed?;
        let lost = read?;
        if left > 0 {
            return Err(Error::data("the threads that tokenize ended early", ""));
        }
        losses.skipped += lost.skipped;
        losses.replaced += lost.replaced;
        Ok(losses)
    })
}

/// A panic as an error, so that the other threads are not left waiting.
fn unwound<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    let run = || memory::guarded(run);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    caught.unwrap_or_else(|_| {
        Err(Error::data(
            "a thread that prepares the corpus panicked",
            "please report what it said above",
        ))
    })
}

/// Text that may be under way.
struct Budget {
    all: usize,
    /// What is free, and whether nobody gives back any more.
    free: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Budget {
    fn new(all: usize) -> Self {
        Self { all, free: Mutex::new((all, false)), changed: Condvar::new() }
    }

    /// Takes so many bytes when they are free, all of them for a larger document; false once closed.
    fn take(&self, bytes: usize) -> bool {
        let bytes = bytes.min(self.all);
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_while(free, |(free, closed)| *free < bytes && !*closed);
        let mut free = waited.unwrap_or_else(PoisonError::into_inner);
        free.0 = free.0.saturating_sub(bytes);
        !free.1
    }

    fn give_back(&self, bytes: usize) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).0 += bytes.min(self.all);
        self.changed.notify_all();
    }

    fn close(&self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.changed.notify_all();
    }
}

fn next(jobs: &Mutex<Receiver<Job>>) -> Option<Job> {
    jobs.lock().ok()?.recv().ok()
}

/// The other end is gone; its own error is the one to tell.
fn gone() -> Error {
    Error::data("the corpus was not read to its end", "")
}

fn read_jobs(
    reader: &Reader<'_>,
    files: &[PathBuf],
    jobs: &SyncSender<Job>,
    budget: &Budget,
) -> Result<Losses> {
    let (mut number, mut pieces, mut bytes) = (0, Vec::new(), 0);
    let mut send = |pieces: &mut Vec<Piece>, bytes: &mut usize| {
        let (pieces, bytes) = (std::mem::take(pieces), std::mem::take(bytes));
        if !budget.take(bytes + pieces.len() * PIECE) || jobs.send(Job { number, pieces }).is_err()
        {
            return Err(gone());
        }
        number += 1;
        Ok(())
    };
    let losses = reader.read(files, &mut |piece| {
        bytes += piece.text.len();
        pieces.push(piece);
        if bytes >= JOB || pieces.len() >= DOCUMENTS {
            send(&mut pieces, &mut bytes)?;
        }
        Ok(())
    })?;
    if !pieces.is_empty() {
        send(&mut pieces, &mut bytes)?;
    }
    Ok(losses)
}

fn encode(job: &Job, recipe: Recipe<'_>, encoder: &mut dyn Encoder) -> Result<Done> {
    let text = job.pieces.iter().map(|piece| piece.text.len() as u64).sum();
    let cost = text as usize + job.pieces.len() * PIECE;
    let (ids, ends, labels) = (Vec::new(), Vec::new(), Vec::new());
    let mut done = Done { ids, ends, labels, losses: Losses::default(), text, cost };
    let (mask, size) = (recipe.tokenizer.mask_id(), recipe.tokenizer.vocab_size());
    for piece in &job.pieces {
        let start = done.ids.len();
        let encoded = match recipe.detokenizer {
            Some(detokenizer) => {
                encoder.encode(&detokenized(detokenizer, &piece.text), &mut done.ids)
            }
            None => encoder.encode(&piece.text, &mut done.ids),
        };
        let ids = &done.ids[start..];
        let fault = match encoded {
            Ok(()) => check(ids, mask, size).err().map(|error| (error, true)),
            Err(error) => Some((error, false)),
        };
        match (fault, recipe.on_invalid) {
            (None, _) => {}
            (Some((error, _)), OnInvalid::Error) => return Err(in_document(error, &piece.place)),
            (Some((_, true)), OnInvalid::Replace) => {
                done.losses.replaced += 1;
                let usable = |id: u32| i64::from(id) != mask && i64::from(id) < size;
                let unknown = recipe.tokenizer.unknown().filter(|id| usable(*id));
                let mend = |id: &u32| if usable(*id) { Some(*id) } else { unknown };
                let mended: Vec<u32> = ids.iter().filter_map(mend).collect();
                done.ids.truncate(start);
                done.ids.extend(mended);
            }
            _ => {
                done.losses.skipped += 1;
                done.ids.truncate(start);
                // Of a long document, other pieces have gone on: it ends all the same.
                if piece.starts && piece.ends {
                    continue;
                }
            }
        }
        done.ends.push((done.ids.len(), piece.ends));
        done.labels.push(piece.label.clone());
    }
    Ok(done)
}

/// A token outside the vocabulary would read foreign memory, the mask would train nonsense.
fn check(ids: &[u32], mask: i64, size: i64) -> Result<()> {
    match ids.iter().find(|id| i64::from(**id) == mask || i64::from(**id) >= size) {
        None => Ok(()),
        Some(id) if i64::from(*id) == mask => Err(Error::data(
            format!("it holds the mask token (id {id}), which only noise may make"),
            "remove it from the text, or set `data.on_invalid=replace` or `skip`",
        )),
        Some(id) => Err(Error::data(
            format!("it holds token id {id}, outside the vocabulary 0..{size}"),
            "use the tokenizer that belongs to the model",
        )),
    }
}

fn in_document(error: Error, place: &Place) -> Error {
    if error.kind == Kind::Data { error.of(&place.to_string()) } else { error }
}

fn pack_in_order(
    done: Receiver<(u64, Result<Done>)>,
    budget: &Budget,
    packer: &mut Packer,
    block: Sink<'_>,
    tick: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Losses> {
    let mut waiting = BTreeMap::new();
    let (mut next, mut documents, mut bytes) = (0, 0, 0);
    let mut losses = Losses::default();
    for (number, result) in done {
        waiting.insert(number, result);
        while let Some(result) = waiting.remove(&next) {
            let job = result?;
            let mut start = 0;
            for ((end, ends), label) in job.ends.into_iter().zip(&job.labels) {
                let label = label.as_deref();
                packer.add(&job.ids[start..end], ends, |row, used| block(row, used, label))?;
                start = end;
                documents += u64::from(ends);
            }
            losses.skipped += job.losses.skipped;
            losses.replaced += job.losses.replaced;
            bytes += job.text;
            next += 1;
            budget.give_back(job.cost);
            tick(documents, bytes)?;
        }
    }
    Ok(losses)
}

#[cfg(test)]
mod tests {
    use super::super::pack::Packing;
    use super::super::read::{Format, Slice};
    use super::super::tokenizer::text8;
    use super::*;

    /// text8's tokenizer with a flaw.
    struct Flawed(Box<dyn Tokenizer>);

    impl Tokenizer for Flawed {
        fn vocab_size(&self) -> i64 {
            self.0.vocab_size()
        }

        fn mask_id(&self) -> i64 {
            self.0.mask_id()
        }

        fn eos(&self) -> Option<u32> {
            None
        }

        fn unknown(&self) -> Option<u32> {
            self.0.unknown()
        }

        fn encode(&self, text: &str) -> Result<Vec<u32>> {
            assert!(!text.contains("boom"), "a flaw of this test's tokenizer");
            self.0.encode(text)
        }

        fn decode(&self, ids: &[i64]) -> String {
            self.0.decode(ids)
        }

        fn encoder(&self) -> Box<dyn Encoder + '_> {
            struct Each<'a>(&'a Flawed);
            impl Encoder for Each<'_> {
                fn encode(&mut self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
                    ids.extend(self.0.encode(text)?);
                    Ok(())
                }
            }
            Box::new(Each(self))
        }

        fn cut(&self, _: &str) -> Option<usize> {
            None
        }

        fn to_json(&self) -> String {
            String::new()
        }
    }

    fn build(
        lines: &str,
        workers: usize,
        on_invalid: OnInvalid,
        mut block: impl FnMut() -> Result<()>,
    ) -> Result<(super::super::Packed, Losses)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines.txt");
        std::fs::write(&path, lines).unwrap();
        let tokenizer = Flawed(text8());
        let reader = Reader {
            format: &Format::Lines,
            slice: Slice::default(),
            on_invalid,
            cut: &|_| None,
            whole: false,
            label: None,
        };
        let packing = Packing {
            length: 8,
            wrap: true,
            eos: None,
            ends: None,
            pad: None,
            reference_shards: None,
        };
        let mut packer = Packer::new(packing, None);
        let recipe = Recipe { detokenizer: None, tokenizer: &tokenizer, on_invalid, workers };
        let mut block = |_: &[u32], _, _: Option<&str>| block();
        let losses = run(&reader, &[path], recipe, &mut packer, &mut block, &mut |_, _| Ok(()))?;
        Ok((packer.finish(), losses))
    }

    /// Many jobs, so that all threads are busy when it happens.
    fn long(middle: &str) -> String {
        format!("{0}{middle}\n{0}", "a line of letters\n".repeat(50_000))
    }

    #[test]
    fn a_thread_that_fails_ends_the_others() {
        for workers in [1, 3] {
            let error = build(&long("boom"), workers, OnInvalid::Error, || Ok(())).unwrap_err();
            assert!(error.to_string().contains("panicked"), "{error}");
            let error = build(&long("[MASK]"), workers, OnInvalid::Error, || Ok(())).unwrap_err();
            assert!(error.to_string().contains("line 50001: it holds the mask"), "{error}");
            let full = || Err(Error::data("the disk is full", ""));
            let error = build(&long(""), workers, OnInvalid::Error, full).unwrap_err();
            assert_eq!(error.to_string(), "the disk is full");
            let broken = || -> Result<()> { panic!("a flaw of this test's writer") };
            assert!(build(&long(""), workers, OnInvalid::Error, broken).is_err());
        }
    }

    #[test]
    fn losses_are_counted() {
        let (packed, losses) = build("ab[MASK]c\nd\n", 2, OnInvalid::Replace, || Ok(())).unwrap();
        // The unknown token stands where the mask's name was.
        assert_eq!((packed.documents, packed.tokens, losses.replaced), (2, 5, 1));
        let (packed, losses) = build("ab[MASK]c\nd\n", 2, OnInvalid::Skip, || Ok(())).unwrap();
        assert_eq!((packed.documents, packed.tokens, losses.skipped), (1, 1, 1));
    }
}
