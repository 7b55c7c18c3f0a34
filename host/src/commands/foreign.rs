//! What a command needs of another program's checkpoint beside its weights: how it was made, and its tokenizer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::stop::Stop;
use maskdiff_config::Config;
use maskdiff_data::corpora::LazyHub;
use maskdiff_data::{
    Observer, Tokenizer, bare_tokenizer, load_tokenizer, parse_tokenizer, prepare, refuse_stories,
    widened_tokenizer,
};
use maskdiff_engine::checkpoint::foreign::{Foreign, Kept, MaskRow};

use super::{Common, TOKENIZER};

/// What must be said of a checkpoint that tells nothing of itself: the keys, and the words that set them.
const NEEDED: [(&str, &str); 3] = [
    ("noise", "noise=NAME"),
    ("model", "model=NAME"),
    ("data.tokenizer_name_or_path", "data.tokenizer_name_or_path=NAME"),
];

/// Checks that the user has said what a checkpoint does not tell: a guess would measure another model.
pub(super) fn check_said(path: &Path, config: &Config, overrides: &[String]) -> Result<()> {
    let below = |text: &str, key: &str| {
        text.strip_prefix(key).is_some_and(|rest| rest.starts_with(['.', '=']) || rest.is_empty())
    };
    let leaves = config.layers.leaves();
    let said = |key: &str| {
        let by_hand = |source: &str| {
            source != "default"
                && (!source.starts_with("configs/") || source.starts_with("configs/experiment/"))
        };
        overrides.iter().any(|word| below(word.trim_start_matches('+'), key))
            || leaves.iter().any(|(name, _, source)| below(name, key) && by_hand(source))
    };
    let lacking = NEEDED.iter().filter(|(key, _)| !said(key)).map(|(_, word)| format!("`{word}`"));
    let lacking: Vec<String> = lacking.collect();
    if lacking.is_empty() {
        return Ok(());
    }
    Err(Error::config(
        format!(
            "`{}` does not tell how it was made (it has no `hyper_parameters`): say it by {}",
            path.display(),
            lacking.join(", ")
        ),
        "name those that it was trained with, as in `model=small data.tokenizer_name_or_path=gpt2`; `backbone=` and \
         `parameterization=` choose another network and method than the usual ones",
    ))
}

/// The tokenizer of another program's checkpoint: the one that the user names, its own, or the one that its configuration
/// names.
pub(super) fn tokenizer(
    foreign: &Foreign,
    config: &Config,
    common: &Common,
) -> Result<Arc<dyn Tokenizer>> {
    let own = foreign.tokenizer.as_ref().filter(|_| !is_asked(foreign, config, common));
    let tokenizer: Arc<dyn Tokenizer> = match own {
        Some(Kept::Folder(folder)) => load_tokenizer(folder)?.into(),
        Some(Kept::Text(text)) => parse_tokenizer(text, &foreign.path)?.into(),
        None => named(foreign, config, common)?,
    };
    let wants = foreign.vocab_size;
    let has = match foreign.mask {
        MaskRow::None => tokenizer.tokens(),
        _ => tokenizer.vocab_size(),
    };
    let said = match foreign.mask {
        MaskRow::OfTokenizer | MaskRow::Told | MaskRow::Last => config.model.mask_id,
        MaskRow::Added | MaskRow::None => None,
    };
    match said {
        Some(mask) => check_mask(foreign, config, mask)?,
        None if foreign.mask == MaskRow::Told && tokenizer.mask_id() >= tokenizer.tokens() => {
            return Err(Error::config(
                format!(
                    "`{}` does not say which of its tokens is a mask: as it is, it predicts next tokens",
                    foreign.path.display()
                ),
                "`model.mask_id=ID` says which token is one: to begin a training with it, `training.from=FOLDER model.mask_id=ID`",
            ));
        }
        None => {}
    }
    fitting(tokenizer, foreign, said, own.is_some()).ok_or_else(|| {
        Error::config(
            format!(
                "`{}` has {wants} tokens{}, and the tokenizer makes {has}",
                foreign.path.display(),
                if foreign.mask == MaskRow::None { "" } else { " with the mask" }
            ),
            "name its own tokenizer: `data.tokenizer_name_or_path=gpt2`, a file or a folder",
        )
    })
}

/// The folder of a checkpoint that has the tokenizer's own files, where they are used.
pub(super) fn tokenizer_folder(
    foreign: &Foreign,
    config: &Config,
    common: &Common,
) -> Option<PathBuf> {
    match foreign.tokenizer.as_ref().filter(|_| !is_asked(foreign, config, common)) {
        Some(Kept::Folder(folder)) => Some(folder.clone()),
        _ => None,
    }
}

/// Whether the user names a tokenizer. A group of `data` names that of its own text, not that of the model.
fn is_asked(foreign: &Foreign, config: &Config, common: &Common) -> bool {
    let source = config.layers.source(TOKENIZER);
    let file = common.file.as_ref().map(|file| file.display().to_string());
    file.as_ref() == Some(&source)
        || source != foreign.path.display().to_string()
            && source != "default"
            && !source.starts_with("configs/")
}

/// The tokenizer that the user names, or else the checkpoint's own configuration.
fn named(foreign: &Foreign, config: &Config, common: &Common) -> Result<Arc<dyn Tokenizer>> {
    let path = foreign.path.display();
    let mut report = common.report();
    let (hub, stop) = (LazyHub::default(), Stop::default());
    let observer = Observer::new(&mut report, &stop);
    let hint = format!("name its tokenizer: `{TOKENIZER}=gpt2`, a file or a folder");
    if is_asked(foreign, config, common) {
        let name = &config.data.tokenizer_name_or_path;
        if name == prepare::CHARACTERS {
            let message = format!("which characters `{path}` was trained on is not known");
            return Err(config.layers.error(TOKENIZER, &message, &hint));
        }
        return prepare::named_tokenizer(name, &hub, &observer);
    }
    refuse_stories(config, &foreign.path)?;
    let own: toml::Table = foreign.config.parse().unwrap_or_default();
    let own = own.get("data").and_then(|data| data.get("tokenizer_name_or_path")?.as_str());
    let Some(own) = own.filter(|name| *name != prepare::CHARACTERS) else {
        return without(foreign, config, &hint);
    };
    prepare::named_tokenizer(own, &hub, &observer).map_err(|error| {
        Error::config(format!("`{own}`, the tokenizer that `{path}` names: {error}"), hint)
    })
}

/// The tokens of a network that has no tokenizer: what needs no text does without one.
fn without(foreign: &Foreign, config: &Config, hint: &str) -> Result<Arc<dyn Tokenizer>> {
    let rows = foreign.vocab_size;
    let mask = match foreign.mask {
        MaskRow::Added | MaskRow::Last => Some(rows - 1),
        MaskRow::OfTokenizer | MaskRow::Told => config.model.mask_id,
        // Every row is a token, and the tokenizer's mask is behind them.
        MaskRow::None => return Ok(bare_tokenizer(rows + 1, rows)),
    };
    let Some(mask) = mask else {
        let path = foreign.path.display();
        let message =
            format!("`{path}` has no tokenizer, and nothing says which token is its mask");
        return Err(Error::config(message, format!("`model.mask_id=ID` says it; or {hint}")));
    };
    check_mask(foreign, config, mask)?;
    Ok(bare_tokenizer(rows, mask))
}

/// Checks that the mask is one of the network's tokens.
fn check_mask(foreign: &Foreign, config: &Config, mask: i64) -> Result<()> {
    let rows = foreign.vocab_size;
    if (0..rows).contains(&mask) {
        return Ok(());
    }
    let path = foreign.path.display();
    Err(config.layers.error(
        "model.mask_id",
        &format!("`model.mask_id` is {mask}, and `{path}` has {rows} tokens"),
        &format!("an id from 0 to {}", rows - 1),
    ))
}

/// A tokenizer for the rows that a network has, where it can be its tokenizer. Rows beyond the last token stay rows of the
/// network, as in the program that it comes from, and so does that of a mask which the network took for a token.
fn fitting(
    tokenizer: Arc<dyn Tokenizer>,
    foreign: &Foreign,
    said: Option<i64>,
    own: bool,
) -> Option<Arc<dyn Tokenizer>> {
    let (has, rows, mask) = (tokenizer.vocab_size(), foreign.vocab_size, tokenizer.mask_id());
    if let Some(said) = said {
        if (has, mask) == (rows, said) {
            return Some(tokenizer);
        }
        return (tokenizer.tokens() <= rows).then(|| widened_tokenizer(tokenizer, rows, said));
    }
    match foreign.mask {
        MaskRow::OfTokenizer | MaskRow::Told if has == rows => return Some(tokenizer),
        MaskRow::OfTokenizer | MaskRow::Told => {
            // The folder's own may have any number of rows behind its tokens.
            let fits = is_padded(has, rows) || own && has < rows;
            return fits.then(|| widened_tokenizer(tokenizer, rows, mask));
        }
        MaskRow::Last if has == rows && mask == rows - 1 => return Some(tokenizer),
        MaskRow::Last => {
            let fits = own || is_near(tokenizer.tokens(), rows - 1);
            return fits.then(|| widened_tokenizer(tokenizer, rows, rows - 1));
        }
        MaskRow::None if tokenizer.tokens() == rows => return Some(tokenizer),
        MaskRow::None => {
            let fits = own && tokenizer.tokens() <= rows || is_near(tokenizer.tokens(), rows);
            return fits.then(|| widened_tokenizer(tokenizer, rows + 1, rows));
        }
        MaskRow::Added => {}
    }
    if has == rows && mask == rows - 1 {
        return Some(tokenizer);
    }
    // A mask behind the tokens needs no row of the network: it has one of its own.
    let (free, tokens) = (rows - 1, has - i64::from(mask == has - 1));
    let fits = free == has || (tokens <= free && (own || is_padded(tokens, free)));
    fits.then(|| widened_tokenizer(tokenizer, rows, rows - 1))
}

/// Whether rows are those of tokens and one or two more, for padding or a mask, or a round number of them.
fn is_near(tokens: i64, rows: i64) -> bool {
    (0..=2).contains(&(rows - tokens)) || is_padded(tokens, rows)
}

/// Whether an embedding of `rows` rows is that of `tokens` tokens, made larger to a round number.
fn is_padded(tokens: i64, rows: i64) -> bool {
    (3..=10).any(|power| tokens.unsigned_abs().next_multiple_of(1 << power) == rows.unsigned_abs())
}
