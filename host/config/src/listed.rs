//! Values that are one of a fixed list of words, each list a type.

use serde::{Deserialize, Serialize};

use super::shape::{Held, Of, Shape, Words};

/// A word, also one that looks like a number to TOML, as in `precision = 32`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Word {
    Number(i64),
    Text(String),
}

macro_rules! listed {
    ($(
        $(#[$doc:meta])*
        $name:ident { $($(#[$word_doc:meta])* $variant:ident = $word:literal $(| $alias:literal)*,)+ }
    )+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$word_doc])* $variant,)+ }

        impl $name {
            /// The list.
            pub const WORDS: &'static Words =
                &Words { names: &[$($word,)+], aliases: &[$($($alias,)*)+] };

            /// All values with their words.
            pub const ALL: &'static [(&'static str, Self)] = &[$(($word, Self::$variant),)+];

            /// The value of a word, or of another spelling of it.
            pub fn named(word: &str) -> Option<Self> {
                match word {
                    $($word $(| $alias)* => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// The word.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let word = match Word::deserialize(deserializer)? {
                    Word::Number(number) => number.to_string(),
                    Word::Text(text) => text,
                };
                Self::named(&word).ok_or_else(|| {
                    let names = Self::WORDS.names.join(", ");
                    serde::de::Error::custom(format!("`{word}` is none of: {names}"))
                })
            }
        }

        impl Held for $name {
            const SHAPE: Shape = Shape::one(Of::Listed(Self::WORDS));
        }
    )+};
}

listed! {
    /// Which parts of a corpus something is done to.
    Parts {
        /// The training part and the validation part.
        Both = "both",
        /// The training part.
        Train = "train",
        /// The validation part.
        Valid = "valid",
        /// Neither.
        Neither = "none",
    }
    /// How documents fill sequences.
    Packing {
        /// Only the last remainder is lost, whatever the number of threads.
        Canonical = "canonical",
        /// As the original's worker processes fill them.
        Reference = "reference",
    }
    /// What happens to a document that is not valid text.
    OnInvalid {
        /// It is an error.
        Error = "error",
        /// Invalid bytes become U+FFFD; a document that cannot be mended is left out.
        Replace = "replace",
        /// The document is left out.
        Skip = "skip",
    }
    /// What a document of a text file is.
    Documents {
        /// The whole file.
        File = "file",
        /// Each line.
        Line = "line",
    }
    /// What is done to the text of a corpus before it is tokenized.
    Detokenizer {
        /// `wikitext2` and `wikitext103`.
        Wikitext = "wikitext",
        /// Penn Treebank.
        Ptb = "ptb",
        /// One Billion Words.
        Lm1b = "lm1b",
        /// LAMBADA: plain quotes, and a newline in front.
        Lambada = "lambada",
        /// `scientific_papers`: Wikitext's rules, then those of One Billion Words.
        ScientificPapers = "scientific_papers",
    }
    /// What a block sees of a text that is longer than the window.
    Context {
        /// The last tokens, whose keys and values stay as they are.
        Slide = "slide",
        /// The last tokens, read anew without those that left.
        Reread = "reread",
        /// All tokens.
        All = "all",
    }
    /// The optimizer.
    Optimizer {
        /// AdamW.
        AdamW = "adamw",
        /// Muon for the matrices inside the network, AdamW for the rest.
        Muon = "muon",
    }
    /// Which parameters weight decay applies to.
    DecayOn {
        /// All, as in the original.
        All = "all",
        /// The matrices inside the network: no bias, norm or embedding.
        Matrices = "matrices",
    }
    /// The learning rate over time.
    Schedule {
        /// Rises linearly, then stays.
        ConstantWarmup = "constant_warmup",
        /// Rises linearly, then falls as a cosine.
        CosineDecayWarmup = "cosine_decay_warmup",
    }
    /// Where the network is computed.
    Accelerator {
        /// A GPU where there is one.
        Auto = "auto",
        /// The CPU.
        Cpu = "cpu",
        /// A GPU.
        Cuda = "cuda" | "gpu",
    }
    /// In which numbers a network is held and computed.
    Precision {
        /// Float32.
        Fp32 = "fp32" | "32" | "32-true",
        /// Float64.
        Fp64 = "64" | "fp64" | "64-true",
        /// Float32 weights, bfloat16 products.
        Bf16 = "bf16" | "bf16-mixed",
        /// A bfloat16 network beside float32 weights.
        PureBf16 = "bf16-pure" | "bf16-true",
        /// Float32 weights, float16 products.
        Fp16 = "fp16" | "16" | "16-mixed",
    }
    /// What each rank holds.
    Strategy {
        /// Everything.
        Ddp = "ddp",
        /// Its share of the optimizer state and of the averaged weights.
        Zero1 = "zero1",
        /// Its part of everything; blocks of the network are gathered where they compute.
        Shard = "shard",
    }
    /// By what a GPU computes the parts of a network that libtorch walks through memory several times for.
    Kernels {
        /// Kernels of maskdiff, compiled for the GPU when they are first used.
        Fused = "fused",
        /// libtorch's operations alone.
        Plain = "plain",
    }
    /// How low-rank adapters are trained.
    LoraBy {
        /// The network adds them itself.
        Network = "network",
        /// The weights are the sum, and gradients are projected.
        Projection = "projection",
    }
    /// What to do about a loss that is not a number, or a spike.
    OnNan {
        /// End the run; the weights are as before the step.
        Stop = "stop",
        /// Leave the batch out and continue.
        Skip = "skip",
        /// Return to the last checkpoint and leave the batch out.
        Rollback = "rollback",
    }
    /// A metric of an evaluation that chooses the best checkpoint.
    Monitor {
        /// The bound, in nats per token.
        Nelbo = "val/nelbo",
        /// The same in bits.
        BitsPerToken = "val/bits_per_token",
        /// Its exponential.
        Ppl = "val/ppl",
        /// The loss of a parameterization that is no bound.
        Loss = "val/loss",
    }
    /// Which value of a metric is best.
    Best {
        /// The smallest.
        Min = "min",
        /// The largest.
        Max = "max",
    }
    /// Which bound of the likelihood is measured.
    Bound {
        /// As the original program measures it; it leaves out both ends of time.
        Reference = "reference",
        /// A true upper bound.
        Strict = "strict",
    }
    /// How likelihood is measured.
    Likelihood {
        /// By a bound.
        Bound = "bound",
        /// Exactly, for a deterministic order of unmasking (DUEL).
        Duel = "duel",
    }
    /// Which token a deterministic order of unmasking reveals next.
    DuelOrder {
        /// The largest difference of the two likeliest tokens' probabilities.
        Margin = "margin",
        /// The largest probability.
        Confidence = "confidence",
        /// The smallest entropy.
        Entropy = "entropy",
        /// The leftmost.
        LeftToRight = "left_to_right",
    }
    /// How a sampler learns what a classifier would say of other tokens.
    ClassifierOrder {
        /// By asking it about every token at every position.
        Exact = "exact",
        /// By its gradient.
        First = "first",
    }
    /// What happens to a W&B run whose id exists.
    Resume {
        /// It resumes.
        Allow = "allow",
        /// It must exist.
        Must = "must",
        /// It must not exist.
        Never = "never",
    }
}
