//! Hints for unknown keys and values: the nearest known one.

use maskdiff_base::error::Error;
use maskdiff_base::text::nearest;

use super::groups::{self, GROUPS};
use super::place::Layers;
use super::shape::{Field, Of};

/// Words of other programs for keys of this one.
const ELSEWHERE: &[(&str, &str)] = &[
    ("batch", "loader.global_batch_size"),
    ("block_size", "model.length"),
    ("checkpoint", "eval.checkpoint_path"),
    ("ckpt", "eval.checkpoint_path"),
    ("ckpt_path", "eval.checkpoint_path"),
    ("context_length", "model.length"),
    ("dataset", "data"),
    ("device", "trainer.accelerator"),
    ("epochs", "trainer.max_steps"),
    ("learning_rate", "optim.lr"),
    ("max_epochs", "trainer.max_steps"),
    ("max_iters", "trainer.max_steps"),
    ("n_samples", "sampling.num_samples"),
    ("num_samples", "sampling.num_samples"),
    ("num_steps", "sampling.steps"),
    ("out_dir", "run.dir"),
    ("output_dir", "run.dir"),
    ("process", "diffusion"),
    ("resume", "checkpointing.resume_from_ckpt"),
    ("sampler", "sampling.predictor"),
    ("sampling", "sampling.predictor"),
    ("seq_len", "model.length"),
    ("seq_length", "model.length"),
    ("temperature", "sampling.temperature"),
    ("tokenizer", "data.tokenizer_name_or_path"),
    ("warmup", "lr_scheduler.num_warmup_steps"),
    ("warmup_steps", "lr_scheduler.num_warmup_steps"),
];

/// Every key of the host, dotted: also a table of keys, before those in it.
pub fn host_keys() -> Vec<String> {
    fn gather(group: &str, fields: &[Field], keys: &mut Vec<String>) {
        for field in fields {
            let key = super::dotted(group, field.name);
            keys.push(key.clone());
            if let Of::Group(inner) = field.shape.of {
                gather(&key, inner, keys);
            }
        }
    }
    let mut keys = Vec::new();
    for group in std::iter::once(&"").chain(GROUPS) {
        gather(group, groups::fields(group), &mut keys);
    }
    keys
}

/// The right keys for one that nobody has, at most three, the likeliest first. `known` are all keys, dotted.
pub fn right_keys(key: &str, known: &[String]) -> Vec<String> {
    let (group, last) = key.rsplit_once('.').unwrap_or(("", key));
    let first = key.split('.').next().unwrap_or_default();
    let lasts = |known: &String| known.rsplit('.').next().unwrap_or_default().to_string();
    let of_group = |group: &str| -> Vec<&String> {
        known.iter().filter(|k| k.rsplit_once('.').map_or("", |(g, _)| g) == group).collect()
    };
    let near_in = |group: &str| {
        let keys = of_group(group);
        let names: Vec<String> = keys.iter().map(|key| lasts(key)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        nearest(last, &names).map(|near| super::dotted(group, near))
    };
    // Underscores for dots, as in a variable of the environment that has one where two belong.
    let joined = known.iter().find(|known| known.contains('.') && known.replace('.', "_") == key);
    if let Some(known) = joined {
        return vec![known.clone()];
    }
    // A group that is misspelt, with the key as it stands there.
    if key.contains('.')
        && !GROUPS.contains(&first)
        && let Some(near) = nearest(first, GROUPS)
    {
        let whole = format!("{near}{}", &key[first.len()..]);
        let right = known.contains(&whole).then_some(whole);
        return right.or_else(|| near_in(near)).into_iter().collect();
    }
    // A key in a table of keys, either of them misspelt.
    if let Some(near) = nearest_in_tables(key, known) {
        return vec![near.to_string()];
    }
    // The key of another group.
    let same: Vec<String> = known.iter().filter(|known| lasts(known) == last).cloned().collect();
    if (1..=3).contains(&same.len()) {
        return same;
    }
    if let Some((_, right)) = ELSEWHERE.iter().find(|(word, _)| *word == last) {
        return vec![(*right).to_string()];
    }
    if let Some(near) = near_in(group) {
        return vec![near];
    }
    let all: Vec<String> = known.iter().map(lasts).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let near = nearest(last, &all).and_then(|near| known.iter().find(|known| lasts(known) == near));
    near.cloned().into_iter().collect()
}

/// Of keys in tables of a group, as in `training.lora.rank`, the nearest each of whose names is near.
fn nearest_in_tables<'a>(key: &str, known: &'a [String]) -> Option<&'a str> {
    let parts: Vec<&str> = key.split('.').collect();
    let is_near = |other: &&String| {
        let others: Vec<&str> = other.split('.').collect();
        let near = |(part, other): (&&str, &&str)| nearest(part, &[*other]).is_some();
        others.len() == parts.len() && parts.iter().zip(&others).all(near)
    };
    if parts.len() < 3 {
        return None;
    }
    let close: Vec<&str> = known.iter().filter(is_near).map(String::as_str).collect();
    nearest(key, &close)
}

/// `did you mean ...?`, where there is something.
pub fn did_you_mean(words: &[String]) -> Option<String> {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    (!quoted.is_empty()).then(|| format!("did you mean {}?", quoted.join(" or ")))
}

/// A group's name where a key should stand.
pub(super) fn group_as_value(group: &str, value: &str, said: &str) -> Error {
    let chooses = ELSEWHERE.iter().find(|(word, _)| *word == group);
    let hint = match chooses {
        Some((_, key)) => format!("a component is chosen by `{key}={value}`"),
        None => format!("set one of its keys: {}", groups::keys(group).join(", ")),
    };
    let of = if said == group { String::new() } else { format!("`{said}`: ") };
    Error::config(format!("{of}`{group}` is a group, not a value"), hint)
}

/// A word without a value, where one is needed.
pub(super) fn empty(key: &str, hint: &str) -> Error {
    let hint = if hint.is_empty() { "give it a value, or leave it out" } else { hint };
    Error::config(format!("`{key}=` is empty"), hint)
}

/// A word that is not in the list of its key.
pub fn not_listed(layers: &Layers, key: &str, word: &str, known: &[&str]) -> Error {
    let (last, others) = known.split_last().unwrap_or((&"", &[]));
    let listed = match others {
        [] => format!("`{last}`"),
        others => format!("`{}` or `{last}`", others.join("`, `")),
    };
    let hint = nearest(word, known).map(|near| {
        let key = layers.spelled_as(key, key);
        format!("did you mean `{key}={near}`?")
    });
    let message = format!("`{key}` is {listed}, got `{word}`");
    layers.error(key, &message, &hint.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_answered_with_the_right_one() {
        let mut known = host_keys();
        let options = ["sampling.steps", "model.hidden_size", "T", "training.curriculum.tau"];
        known.extend(options.map(String::from));
        for (key, right) in [
            ("optim.lrr", "optim.lr"),
            ("lr", "optim.lr"),
            ("lrr", "optim.lr"),
            ("learning_rate", "optim.lr"),
            ("num_samples", "sampling.num_samples"),
            ("steps", "sampling.steps"),
            ("max_steps", "trainer.max_steps"),
            ("batch_size", "loader.batch_size"),
            ("optim.batch_size", "loader.batch_size"),
            ("samplng.steps", "sampling.steps"),
            ("samplng.stepz", "sampling.steps"),
            ("optm.lr", "optim.lr"),
            ("modle.hidden_size", "model.hidden_size"),
            ("sed", "seed"),
            ("backbon", "backbone"),
            ("eval.gen_pl", "eval.gen_ppl"),
            ("optim_lr", "optim.lr"),
            ("trainer_max_steps", "trainer.max_steps"),
            ("temperature", "sampling.temperature"),
            ("training.lora.rnk", "training.lora.rank"),
            ("training.lroa.rank", "training.lora.rank"),
            ("trainng.lora.alpha", "training.lora.alpha"),
            ("eval.gen_ppl.max_lenght", "eval.gen_ppl.max_length"),
            ("eval.genppl.protocol", "eval.gen_ppl.protocol"),
            ("training.curriculum.tua", "training.curriculum.tau"),
        ] {
            assert_eq!(right_keys(key, &known).first().map(String::as_str), Some(right), "{key}");
        }
        assert!(right_keys("qwertyuiop", &known).is_empty());
    }
}
