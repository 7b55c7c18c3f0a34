//! The host's keys with their defaults, group by group. Names are the original program's where it has them.
//!
//! Which components are chosen by default is no business of the code: `configs/config.toml` says it.

use serde::{Deserialize, Serialize};

use super::listed;
use super::range::Range;
use super::shape::{Field, Held, Of, Shape};
use super::values::{Limit, Paths};

/// A group of keys. What its documentation says is also what `maskdiff config explain` says. A key that holds a path says so:
/// `dir: Option<String> as path = None`; one that holds a number says which: `lr: f64 where (RATE) = 3e-4`; one that came after the
/// first version says when: `tf32: bool [since "0.2.0"] = false`.
macro_rules! group {
    ($(#[doc = $doc:literal])+ $name:ident $([$attribute:meta])? {
        $($(#[doc = $about:literal])+ $field:ident: $type:ty $(as $path:ident)? $(where ($range:expr))?
            $([since $since:literal])? = $default:expr,)+
    }) => {
        #[derive(Debug, Clone, Serialize, Deserialize)]
        $(#[$attribute])?
        $(#[doc = $doc])+
        pub struct $name { $($(#[doc = $about])+ pub $field: $type,)+ }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $name {
            /// What this group is about.
            pub const ABOUT: &'static str = concat!($($doc,)+);

            /// The keys of this group, and what each of them holds.
            pub const FIELDS: &'static [Field] = &[$(Field {
                name: stringify!($field),
                about: concat!($($about,)+),
                since: [$($since,)? FIRST][0],
                shape: <$type as Held>::SHAPE,
                path: [$(stringify!($path),)? ""].len() > 1,
                range: first(&[$($range,)? Range::ALL]),
            },)+];
        }

        impl Held for $name {
            const SHAPE: Shape = Shape::one(Of::Group(Self::FIELDS));
        }
    };
}

/// The version whose keys these are where nothing else is said.
const FIRST: &str = "0.1.0";

/// The range that a key says, or the one behind it.
const fn first(ranges: &[Range]) -> Range {
    ranges[0]
}

// Ends that no run reaches stand where more would only be a mistake: a time that does not fit, a size that no memory holds.
/// Steps, batches: a count that may be 0.
const COUNT: Range = Range::of(0.0, 1e15);
/// The same, at least one.
const SOME: Range = Range::of(1.0, 1e15);
/// Sequences that are in memory at once.
const BATCH: Range = Range::of(1.0, 1_048_576.0);
/// Tokens of a sequence.
const TOKENS: Range = Range::of(1.0, 16_777_216.0);
/// A share that is less than all.
const DECAY: Range = Range::of(0.0, 1.0).below();
/// A learning rate.
const RATE: Range = Range::of(0.0, 1e38);
/// A share of all.
const SHARE: Range = Range::of(0.0, 1.0);
/// Seconds.
const SECONDS: Range = Range::of(0.0, 1e7);

group! {
    /// Keys at the top. What else stands there is an option of the parameterization.
    Top {
        /// The forward process.
        diffusion: String = String::new(),
        /// The network.
        backbone: String = String::new(),
        /// What the network's output means.
        parameterization: String = String::new(),
        /// The component that `parameterization` means, where a file of `configs/parameterization` is of another name; it comes
        /// with that file.
        component: Option<String> = None,
        /// b: sequences are blocks of b tokens, each of which the network reads over the clean blocks before it (block diffusion,
        /// BD3-LM). It divides `model.length`; without it a sequence is read as a whole.
        block_size: Option<i64> where (TOKENS) = None,
        /// Whether the network sees the noise level.
        time_conditioning: bool = false,
        /// Every random number of the run comes from it.
        seed: u64 where (Range::of(0.0, 9_223_372_036_854_775_808.0).below()) = 1,
    }
}

group! {
    /// Where tokens come from.
    Data {
        /// Name of the corpus, for the run folder.
        name: String = "stories".into(),
        /// What is trained on: `stories` (embedded grammar), `text`, `jsonl`, `parquet` (your files), `hf` (any corpus of the
        /// hub), or the name of a file of `configs/corpus/`.
        train: String = "stories".into(),
        /// What is validated on, the same names; by default the corpus that is trained on.
        valid: Option<String> = None,
        /// The part of it that is validated on; by default the corpus' own choice.
        valid_split: Option<String> = None,
        /// `char`, `text8`, a tokenizer's file or folder, or a model of the hub, as in `gpt2`.
        tokenizer_name_or_path: String as path = "char".into(),
        /// Documents one after the other, cut where a block is full; or else a block for each, cut off or filled.
        wrap: bool = true,
        /// `wrap`: where an EOS ends each document: `both`, `train`, `valid` or `none`.
        insert_eos: listed::Parts = listed::Parts::Both,
        /// `wrap`: where each block stands between BOS and EOS: `both`, `train`, `valid` or `none`.
        insert_special: listed::Parts = listed::Parts::Both,
        /// `canonical`: nothing but the last rest is lost, whatever made the blocks; `reference`: as the original's workers.
        packing: listed::Packing = listed::Packing::Canonical,
        /// `reference`: how many workers the original had.
        reference_num_proc: i64 where (Range::of(1.0, 65_536.0)) = 1,
        /// Read the training corpus as it comes and keep only what is under way.
        streaming: bool = false,
        /// `streaming`: blocks among which the order is random; 1 keeps the corpus' order.
        stream_window: i64 where (Range::of(1.0, 1_048_576.0)) = 1024,
        /// Where blocks are kept; by default `maskdiff/data` in the user's cache folder.
        cache_dir: Option<String> as path = None,
        /// Text that is not valid: `error`, `replace` it, or `skip` the document.
        on_invalid: listed::OnInvalid = listed::OnInvalid::Error,
        /// Your files: one, a folder with all below it, a pattern as in `texts/*.txt`, or a list of these. For `text8`, your
        /// copy of it.
        path: Option<Paths> as path = None,
        /// Your files for validation, the same; without it the last blocks of the training text are held out.
        valid_path: Option<Paths> as path = None,
        /// Share of the blocks that is held out where there is no part for validation, in (0, 1).
        valid_fraction: f64 where (Range::of(0.0, 1.0).above().below()) = 0.1,
        /// `text`: a document is a `file` or a `line`.
        documents: listed::Documents = listed::Documents::File,
        /// `jsonl`, `parquet`, `hf`: where the text is.
        column: String = "text".into(),
        /// The column or key of a document's label: a text, a whole number, true or false. The network is conditioned on it as a class
        /// (`model.labels`). It needs `data.wrap=false`. Of `stories`: `animal`, `colour`, `place`, `toy` or `weather`.
        label_column: Option<String> = None,
        /// Your files and `hf`: what is done to the text first: `wikitext`, `ptb`, `lm1b`, `lambada`, `scientific_papers`.
        detokenizer: Option<listed::Detokenizer> = None,
        /// `hf`: `owner/name`.
        repo: Option<String> = None,
        /// `hf`: branch, tag or commit; by default `main`, and the hub's own parquet where that has none.
        revision: Option<String> = None,
        /// `hf`: which of the repository's configurations.
        config: Option<String> = None,
        /// `hf`: which part is trained on.
        split: String = "train".into(),
        /// `sft`: the template of a conversation, a file of Jinja or a folder that has one; by default that of the tokenizer's folder, or of
        /// the weights'.
        chat_template: Option<String> as path = None,
        /// `sft`: the EOS that fill a row behind its answer count as part of the answer, so that the model learns to end.
        answer_filling: bool = true,
        /// `sft`: batches are of rows of similar length, cut to the longest row of the batch, in a random order. Validation rows stay as they are.
        group_by_length: bool = false,
        /// `sft`: training sequences hold several rows, one behind the other. No token attends to another row, and each row has positions from 0.
        /// Rows of a sequence share its time. Filling behind the last row is never part of an answer. Validation rows stay apart.
        pack: bool = false,
        /// `maskdiff eval` measures on each of these, files of `configs/data/`, instead of on `valid`.
        sets: Vec<String> = Vec::new(),
        /// Training blocks start anywhere instead of at multiples of the length.
        random_offsets: bool = false,
        /// `stories`: blocks held out for validation.
        valid_blocks: i64 where (Range::of(1.0, 1_048_576.0)) = 512,
    }
}

group! {
    /// What the host knows of the network; the backbone has the other keys of the group.
    Model {
        /// Name of the size, for people.
        name: String = "custom".into(),
        /// A folder of PEFT whose LoRA matrices are added to the weights of the checkpoint that `eval`, `sample` and `export` read.
        adapter: Option<String> as path = None,
        /// L, tokens in a block.
        length: i64 where (TOKENS) = 64,
        /// The names of the classes that the network is conditioned on, in order; by default the labels of `data.label_column`.
        labels: Vec<String> = Vec::new(),
        /// The number of classes where they have no names, as in another program's checkpoint; they are then called `0`, `1` and so on.
        classes: i64 where (Range::of(0.0, 1e6)) = 0,
        /// Id of the mask among the tokens of another program's checkpoint. By default what its `config.json` says, else its tokenizer.
        mask_id: Option<i64> where (Range::of(0.0, 2_147_483_647.0)) = None,
    }
}

/// The noise schedule; the schedule has the other keys of the group.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Noise {
    /// Name of the schedule.
    #[serde(rename = "type")]
    pub kind: String,
}

group! {
    /// Low-rank adapters (LoRA) that are trained in the place of the weights of `training.from`.
    Lora [serde(default, deny_unknown_fields)] {
        /// r, the rank of each adapter; it turns LoRA on.
        rank: Option<i64> where (Range::of(1.0, 65_536.0)) = None,
        /// The product of an adapter's matrices is multiplied by `alpha / rank`; by default `alpha` is twice the rank.
        alpha: Option<f64> where (Range::of(0.0, 1e6).above()) = None,
        /// Multiply by `alpha / sqrt(rank)` instead (rsLoRA).
        rslora: bool = false,
        /// Dropout of what enters an adapter, in [0, 1).
        dropout: f64 where (DECAY) = 0.0,
        /// Linear maps with adapters, by their names or the ends of these, ours or those of the folder that the weights come from, as in
        /// `[q_proj, v_proj]`; by default all but the head.
        targets: Vec<String> = Vec::new(),
        /// Modules that are trained whole, named in the same way.
        modules_to_save: Vec<String> = Vec::new(),
        /// `network`: the network adds the adapters itself; `projection`: the weights are the sum, of whose gradients those of the adapters are
        /// projections. By default the first where the network can.
        by: Option<listed::LoraBy> = None,
    }
}

group! {
    /// How it learns; the parameterization has the other keys of the group.
    Training {
        /// Decay of the averaged weights, in [0, 1); 0 turns the average off.
        ema: f64 where (DECAY) = 0.9999,
        /// Spread the times of a batch evenly over [0, 1].
        antithetic_sampling: bool = true,
        /// `block_size`: the least masked share from which training draws times; 1e-3 is the whole range.
        sampling_eps_min: f64 where (SHARE) = 1e-3,
        /// `block_size`: the largest masked share from which training draws times. Evaluation always takes the whole range.
        sampling_eps_max: f64 where (SHARE) = 1.0,
        /// `block_size`: in training, mask a block anew until its share of masks lies between both.
        resample: bool = false,
        /// `block_size`: at each evaluation, choose the interval of these widths whose losses vary least, as in
        /// `[0.5, 0.6, 0.7, 0.8, 0.9]`; without any, the interval stays.
        clip_search_widths: Vec<f64> where (SHARE) = Vec::new(),
        /// `clip_search_widths`: how far apart the intervals of a width begin.
        clip_search_delta: f64 where (Range::of(0.0, 1.0).above()) = 0.05,
        /// `data.label_column`: share of the sequences that are trained without their label, so that the network knows the law without one,
        /// which guidance needs.
        label_dropout: f64 where (SHARE) = 0.1,
        /// The checkpoint whose weights a run begins with at step 0, and nothing else of it: whatever `maskdiff eval` reads.
        from: Option<String> as path = None,
        /// The checkpoint of a frozen model that a method of distillation learns from. Without `training.from` the run begins with its
        /// weights too.
        teacher: Option<String> as path = None,
        /// Low-rank adapters.
        lora: Lora = Lora::default(),
    }
}

group! {
    /// What is drawn; the sampler has the other keys of the group.
    Sampling {
        /// The sampler.
        predictor: String = String::new(),
        /// Batches of `loader.eval_batch_size` sequences that `maskdiff sample` draws; sequences for each prompt.
        num_sample_batches: i64 where (Range::of(1.0, 1e6)) = 1,
        /// N: `maskdiff sample` draws N sequences, or N for each prompt. It wins over `num_sample_batches`.
        num_samples: Option<i64> where (Range::of(1.0, 1e7)) = None,
        /// The seed of texts that `sample`, `steps`, `chat` and `serve` draw, in the place of `seed`. A `seed` on the command line overrides a stored `sampling.seed`.
        seed: Option<u64> where (Range::of(0.0, 9_223_372_036_854_775_808.0).below()) = None,
        /// The number of the first text that `maskdiff sample` draws. A text is drawn from the seed and its number, so text 5 comes out the same
        /// alone (`first_number=5`, one sequence) and as the sixth of six.
        first_number: u64 where (Range::of(0.0, 1e12)) = 0,
        /// Number of tokens that `maskdiff sample` draws after a prompt, or in total without one; by default up to `model.length`, or in
        /// blocks up to `sampling.length`.
        new_tokens: Option<i64> where (TOKENS) = None,
        /// Sequences drawn at every evaluation while training.
        num_sample_log: i64 where (Range::of(0.0, 1e6)) = 2,
        /// `maskdiff sample` draws longer sequences window by window: each sees the end of the one before.
        semi_ar: bool = false,
        /// Cut a text at its first EOS or padding after the given tokens. By default on if each block held one document
        /// (`data.wrap=false`), since the model was not trained on what follows.
        stop_at_eos: Option<bool> = None,
        /// Classes that are drawn, names of `model.labels`: N sequences for each, or for each with each prompt. `--label NAME`.
        labels: Vec<String> = Vec::new(),
        /// g: laws are guided by the label, `g log p(x | label) + (1 - g) log p(x)` (D-CFG): 1 is the law under the label, 0 that without one,
        /// more than 1 is away from it at twice the cost of a call. Where noise is other tokens than the mask, it is the law of a step.
        guidance_scale: f64 where (Range::of(0.0, 1e6)) = 1.0,
        /// The checkpoint of a classifier of noisy texts, by which `maskdiff sample`, `steps` and `serve` guide towards the label
        /// that is drawn (D-CBG); its classes are the labels then.
        classifier: Option<String> as path = None,
        /// g: laws are guided by the classifier, `log q(xs | xt) + g log c(label | xt with this token)`: 1 is Bayes' rule, 0 leaves them as they are.
        classifier_scale: f64 where (Range::of(0.0, 1e6)) = 1.0,
        /// `first` asks the classifier once for each text of a call, and goes by its gradient; `exact` asks it about every token at every position,
        /// V L texts for each.
        classifier_order: listed::ClassifierOrder = listed::ClassifierOrder::First,
        /// The checkpoint of a model that scores whole texts, an autoregressive one or one that learned an energy over the sampled model, for
        /// samplers that choose among several, in `maskdiff sample`, `steps` and `serve`.
        energy: Option<String> as path = None,
        /// w: laws are guided by what is given, `(1 + w) log p(x | given) - w log p(x | given tokens masked)`, at twice the cost of a call; 0 leaves
        /// them as they are. LLaDA's `cfg_scale`; Dream's is 1 more.
        cfg_scale: f64 where (Range::of(0.0, 1e6)) = 0.0,
        /// `block_size`: largest number of tokens of a text; by default `model.length`. It may be larger, see `context`.
        length: Option<i64> where (TOKENS) = None,
        /// `block_size`: what a block sees of a text longer than `model.length`: `slide` drops the keys and values of tokens that
        /// leave the window, `reread` computes those of the window again, `all` keeps everything.
        context: listed::Context = listed::Context::Slide,
        /// `block_size`: a text whose last 256 tokens have a lower entropy, in nats, is rejected and drawn again. After ten draws it is
        /// kept as it is, with a warning. With `stop_at_eos` the text ends before these tokens instead. The original always uses 4. By
        /// default nothing is rejected, because rejection makes generated text look better than the model is.
        min_entropy: Option<f64> where (Range::of(0.0, 100.0)) = None,
        /// `block_size`: keep keys and values of finished blocks. Off: what is before a block is read in every call.
        kv_cache: bool = true,
        /// On a GPU: each shape of the network's passes is recorded once and started as one.
        cuda_graph: bool = false,
        /// `semi_ar`: tokens by which the window moves, 1 to `model.length`.
        stride_length: i64 where (TOKENS) = 1,
        /// `semi_ar`: windows after the first, ≥ 0; the sequence has `model.length + num_strides * stride_length` tokens.
        num_strides: i64 where (Range::of(0.0, 1e6)) = 1,
    }
}

group! {
    /// Batches.
    Loader {
        /// Sequences between two optimizer steps, those of all ranks together.
        global_batch_size: i64 where (BATCH) = 32,
        /// Sequences in memory at once on each rank; by default a rank's share of the global batch.
        batch_size: Option<i64> where (BATCH) = None,
        /// Sequences in memory at once while evaluating and sampling.
        eval_batch_size: i64 where (BATCH) = 32,
        /// Threads that tokenize; by default one for each core. The blocks do not depend on it.
        num_workers: Option<i64> where (Range::of(1.0, 4096.0)) = None,
    }
}

group! {
    /// The optimizer.
    Optim {
        /// `adamw`, or `muon` for the matrices inside the network and AdamW for the rest.
        name: listed::Optimizer = listed::Optimizer::AdamW,
        /// Peak learning rate.
        lr: f64 where (RATE) = 3e-4,
        /// Decay of the first moment.
        beta1: f64 where (DECAY) = 0.9,
        /// Decay of the second moment.
        beta2: f64 where (DECAY) = 0.999,
        /// Numerical floor of the denominator.
        eps: f64 where (Range::of(0.0, 1e6)) = 1e-8,
        /// Decoupled weight decay.
        weight_decay: f64 where (Range::of(0.0, 1e6)) = 0.0,
        /// What decays: `all` parameters as in the original, or the `matrices` inside the network.
        weight_decay_on: listed::DecayOn = listed::DecayOn::All,
        /// Muon: decay of the momentum, in [0, 1).
        muon_momentum: f64 where (DECAY) = 0.95,
    }
}

group! {
    /// The learning rate over time.
    LrScheduler {
        /// `constant_warmup` or `cosine_decay_warmup`.
        name: listed::Schedule = listed::Schedule::ConstantWarmup,
        /// Steps over which the rate rises from 0 (constant) or `warmup_lr_init` (cosine). By default a tenth of
        /// `trainer.max_steps`; of `constant_warmup` at most 2500.
        num_warmup_steps: Option<f64> where (COUNT) = None,
        /// Cosine: steps from the peak down to `lr_min`; by default what the warm-up leaves of `trainer.max_steps`.
        t_initial: Option<f64> where (COUNT.above()) = None,
        /// Cosine: first rate.
        warmup_lr_init: f64 where (RATE) = 1e-6,
        /// Cosine: last rate.
        lr_min: f64 where (RATE) = 1e-6,
    }
}

group! {
    /// The loop.
    Trainer {
        /// Optimizer steps.
        max_steps: i64 where (COUNT) = 1_000_000,
        /// Largest 2-norm of the gradient; 0 turns clipping off.
        gradient_clip_val: f64 where (Range::of(0.0, 1e30)) = 1.0,
        /// Micro-batches of each rank in a step; follows from the sizes in `loader`, which it must fit.
        accumulate_grad_batches: Option<i64> where (BATCH) = None,
        /// Steps between two lines of metrics.
        log_every_n_steps: i64 where (SOME) = 10,
        /// Steps between two evaluations; 0 evaluates at the end only.
        val_check_interval: i64 where (COUNT) = 1000,
        /// Training batches of an epoch, of `loader.global_batch_size`: a whole number N, or a share as in 0.5. A source
        /// without epochs takes a whole number: the first N batches are repeated.
        limit_train_batches: Limit where (COUNT) = Limit::Share(1.0),
        /// Validation batches of an evaluation, of `loader.eval_batch_size` and of all ranks together: a whole number, or a
        /// share as in 0.5. 0 leaves evaluation out.
        limit_val_batches: Limit where (COUNT) = Limit::Share(1.0),
        /// Validation batches tried before the first step, so that a fault there is found at once.
        num_sanity_val_steps: i64 where (COUNT) = 2,
        /// N: train on the first N batches only, repeatedly. 0 trains on all batches.
        overfit_batches: i64 where (COUNT) = 0,
        /// `auto` (a GPU when there is one), `cpu` or `cuda`.
        accelerator: listed::Accelerator = listed::Accelerator::Auto,
        /// `fp32`, `bf16` or `fp16` (float32 weights, 16-bit products), `bf16-pure` (a 16-bit network beside float32
        /// weights), `64`.
        precision: listed::Precision = listed::Precision::Fp32,
        /// Let a GPU round the inputs of float32 products to TF32.
        tf32: bool = false,
        /// Refuse operations whose result may differ from run to run.
        deterministic: bool = false,
        /// On a GPU, in float32 and bfloat16: `fused` (rotary positions, residuals with their dropout and gate, norms with their modulation,
        /// and the head's gradient in one pass over memory each, by kernels that NVRTC compiles once and keeps in the user's cache) or
        /// `plain` (libtorch's operations). Where they cannot be compiled a warning says so, and it is `plain`.
        kernels: listed::Kernels = listed::Kernels::Fused,
        /// `ddp`: every rank holds everything; `zero1`: each holds its share of the optimizer and of the average; `shard`: of the weights and
        /// gradients too, and each block of the network is gathered before it computes, as with `activation_checkpointing=true`.
        strategy: listed::Strategy = listed::Strategy::Ddp,
        /// Keep the input of each block of the network alone for the backward pass, in which the block is computed again: less memory for a
        /// third more arithmetic. Losses and gradients stay the same bit for bit.
        activation_checkpointing: bool = false,
        /// Seconds that a rank waits for the others before it gives up.
        timeout_s: f64 where (Range::of(1.0, 1e7)) = 1800.0,
        /// Seconds from a signal to the end, whatever is left to do.
        grace_s: f64 where (SECONDS) = 120.0,
        /// A loss that is no number, or a spike: `stop`, `skip` the batch, or `rollback` to the last checkpoint and skip it.
        on_nan: listed::OnNan = listed::OnNan::Stop,
        /// N: a loss above N times the running mean is a spike. 0 turns the check off.
        loss_spike: f64 where (Range::of(0.0, 1e30)) = 0.0,
        /// The device's peak in TFLOPS, for `perf/mfu`; known for common GPUs.
        peak_tflops: Option<f64> where (Range::of(0.0, 1e9).above()) = None,
    }
}

group! {
    /// Checkpoints.
    Checkpointing {
        /// The folder; by default `checkpoints` in the run folder.
        save_dir: Option<String> as path = None,
        /// Copy them to `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX` as well.
        mirror: Option<String> = None,
        /// Steps between two checkpoints; 0 writes at evaluations and at the end only.
        every_n_steps: i64 where (COUNT) = 0,
        /// How many of the newest are kept, beside the best one.
        keep_last: i64 where (Range::of(1.0, 1e9)) = 2,
        /// The metric of an evaluation by which `best` is chosen; by default `val/nelbo`, or `val/loss` where the
        /// parameterization's loss is no bound.
        monitor: Option<listed::Monitor> = None,
        /// `min` or `max`: which value of it is best.
        mode: listed::Best = listed::Best::Min,
        /// Go on from the newest checkpoint of the run, if there is one.
        resume_from_ckpt: bool = false,
        /// `resume_from_ckpt`: where a run begins that has no checkpoint yet: another run's, or a `.ckpt` of the original.
        resume_ckpt_path: Option<String> as path = None,
    }
}

group! {
    /// Scores of generated text by an evaluator LM.
    GenPpl [serde(default, deny_unknown_fields)] {
        /// What counts: the name of a file of `configs/protocol/`.
        protocol: String = String::new(),
        /// Let the judge's tokenizer read the text; or else take the tokens that were drawn, where they are the judge's too.
        retokenize: bool = true,
        /// Tokens at which a protocol cuts a text; by default as many as were drawn.
        max_length: Option<i64> where (TOKENS) = None,
        /// Compare with texts by people as well (MAUVE); `references` alone does too.
        mauve: bool = false,
        /// Those texts, a file as `maskdiff score` takes; by default the validation text of the checkpoint.
        references: Option<String> as path = None,
    }
}

group! {
    /// Evaluation.
    Eval {
        /// The checkpoint folder to evaluate or sample; a run folder means its last one.
        checkpoint_path: Option<String> as path = None,
        /// Use the raw weights instead of their average.
        disable_ema: bool = false,
        /// Passes over the validation set, each with its own times and masks.
        passes: i64 where (Range::of(1.0, 1e6)) = 1,
        /// `reference` measures as the original program does, `strict` is a true upper bound.
        bound: listed::Bound = listed::Bound::Reference,
        /// `bound`, or `duel`: the exact likelihood of a deterministic order of unmasking (`maskdiff eval` only).
        likelihood: listed::Likelihood = listed::Likelihood::Bound,
        /// `duel`: which token is revealed next: `margin`, `confidence`, `entropy`, `left_to_right`.
        duel_order: listed::DuelOrder = listed::DuelOrder::Margin,
        /// `duel`: tokens revealed at once, ≥ 1.
        duel_tokens: i64 where (TOKENS) = 1,
        /// `maskdiff eval --answers`, `likelihood=bound`: draws of each answer's bound. An answer with fewer sets of masks is measured exactly, by all
        /// of them.
        answer_samples: i64 where (Range::of(1.0, 1e6)) = 128,
        /// `maskdiff sample` scores what it drew.
        compute_generative_perplexity: bool = false,
        /// The judge: a folder, a name of the hub, or a run of a causal network.
        gen_ppl_eval_model_name_or_path: String as path = "gpt2-large".into(),
        /// Windows of text that it scores at once.
        perplexity_batch_size: i64 where (BATCH) = 8,
        /// How it scores.
        gen_ppl: GenPpl = GenPpl::default(),
        /// The ledger to which each evaluation adds a line; by default `results.jsonl` in the run folder of the checkpoint, or
        /// else here. `none` writes nothing.
        results: Option<String> as path = None,
    }
}

group! {
    /// Views of the metrics beside `metrics.jsonl`.
    Track {
        /// `metrics.csv` in the run folder.
        csv: bool = false,
        /// Log the metrics under the original's names too: `val/nll`, `val/bpd`, `val/ppl`, `trainer/loss`, `train/nll`.
        original_names: bool = false,
        /// TensorBoard's event files in the run folder.
        tensorboard: bool = false,
        /// `tensorboard`: steps between two histograms of every parameter's gradient; 0 makes none.
        histograms_every_n_steps: i64 where (COUNT) = 0,
    }
}

group! {
    /// Weights & Biases. A run is logged there when a project is named, here or by WANDB_PROJECT.
    Wandb {
        /// Whether a run is logged there at all. `~wandb` sets it to false, whatever WANDB_PROJECT says.
        enabled: bool = true,
        /// The project.
        project: Option<String> = None,
        /// Who owns it; by default you.
        entity: Option<String> = None,
        /// The run's name; by default the server makes one up.
        name: Option<String> = None,
        /// Its id, by which it can be resumed; by default the run folder's own.
        id: Option<String> = None,
        /// What to do with the id: `allow` resumes the run if it exists, `must` requires that it exists, `never` requires that it does not.
        resume: Option<listed::Resume> = None,
        /// The group that it is shown in.
        group: Option<String> = None,
        /// What kind of job it is.
        job_type: Option<String> = None,
        /// Words of yours.
        notes: Option<String> = None,
        /// Tags.
        tags: Vec<String> = Vec::new(),
        /// Log into the run folder alone; `maskdiff sync` or `wandb sync` sends it later.
        offline: bool = false,
        /// Do not begin without the server.
        required: bool = false,
        /// Seconds between two pieces that are sent.
        interval_s: f64 where (SECONDS) = 10.0,
        /// Seconds before the first retry of a request; each pause is twice the one before.
        retry_s: f64 where (Range::of(0.01, 1e7)) = 2.0,
        /// Seconds at the end of a run in which what is left is sent; then it is kept for `maskdiff sync`.
        finish_timeout_s: f64 where (SECONDS) = 60.0,
    }
}

group! {
    /// Notifications at the end of a run: each is a shell command, or a web address that receives JSON.
    Alert {
        /// When it is done.
        on_finish: Option<String> = None,
        /// When it failed.
        on_crash: Option<String> = None,
        /// Seconds that telling may take.
        timeout_s: f64 where (Range::of(0.1, 1e7)) = 30.0,
    }
}

group! {
    /// The run folder.
    Run {
        /// Its path; by default `outputs/<data>/<date>/<time>`.
        dir: Option<String> as path = None,
    }
}

group! {
    /// Plugins.
    Plugins {
        /// Files or folders to load before the shipped ones.
        paths: Vec<String> as path = Vec::new(),
    }
}

impl Noise {
    /// What this group is about.
    pub const ABOUT: &'static str =
        " The noise schedule; the schedule has the other keys of the group.";

    /// The keys of this group, and what each of them holds.
    pub const FIELDS: &'static [Field] = &[Field {
        name: "type",
        about: " Name of the schedule.",
        since: FIRST,
        shape: Shape::one(Of::Text),
        path: false,
        range: Range::ALL,
    }];
}

macro_rules! groups {
    ($($name:literal: $type:ty),+ $(,)?) => {
        /// The groups of the configuration, each a table at the top.
        pub const GROUPS: &[&str] = &[$($name,)+ "process"];

        /// The host's keys of a group; of the top for an empty name.
        pub fn fields(group: &str) -> &'static [Field] {
            match group {
                "" => Top::FIELDS,
                $($name => <$type>::FIELDS,)+
                _ => &[],
            }
        }

        /// What a group is about, in a sentence; of the top for an empty name.
        pub fn about(group: &str) -> &'static str {
            match group {
                "" => Top::ABOUT,
                $($name => <$type>::ABOUT,)+
                _ => " The forward process; all keys of the group are its own.",
            }
        }

        /// All defaults as one value.
        pub fn defaults() -> serde_json::Value {
            let mut all = serde_json::to_value(Top::default()).unwrap_or_default();
            $(all[$name] = serde_json::to_value(<$type>::default()).unwrap_or_default();)+
            all["process"] = serde_json::json!({});
            all
        }
    };
}

groups!(
    "data": Data, "model": Model, "noise": Noise, "training": Training, "sampling": Sampling,
    "loader": Loader, "optim": Optim, "lr_scheduler": LrScheduler, "trainer": Trainer,
    "checkpointing": Checkpointing, "eval": Eval, "track": Track, "wandb": Wandb,
    "alert": Alert, "run": Run, "plugins": Plugins,
);

/// The names of the host's keys of a group; of the top for an empty name.
pub fn keys(group: &str) -> Vec<&'static str> {
    fields(group).iter().map(|field| field.name).collect()
}

/// What a dotted key of the host holds; none for an option of a component.
pub fn field(key: &str) -> Option<&'static Field> {
    let (group, rest) = match key.split_once('.') {
        Some((group, rest)) => (group, rest),
        None => ("", key),
    };
    let mut fields = fields(group);
    let mut parts = rest.split('.').peekable();
    while let Some(part) = parts.next() {
        let found = fields.iter().find(|field| field.name == part)?;
        match found.shape.of {
            Of::Group(inner) if parts.peek().is_some() => fields = inner,
            _ if parts.peek().is_some() => return None,
            _ => return Some(found),
        }
    }
    None
}

/// Groups whose other keys belong to a component.
pub const OPEN: &[&str] = &["model", "noise", "process", "training", "sampling"];
