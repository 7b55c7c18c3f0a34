//! `data=text`: a file, or a folder of `.txt` files, as one stream of tokens.

use std::path::{Path, PathBuf};

use tch::Tensor;

use super::{Corpus, Source, Tokenizer, check_ids, tokenizer};
use crate::config::Config;
use crate::error::{Error, Result};

pub(super) fn open(config: &Config, given: Option<Box<dyn Tokenizer>>) -> Result<Corpus> {
    let data = &config.data;
    let Some(path) = data.path.as_deref().map(Path::new) else {
        return Err(config.layers.error(
            "data.train",
            "`data.train=text` needs `data.path`",
            "set `data.path=FILE` or `data.path=FOLDER`",
        ));
    };
    let documents = read(path)?;
    let held_out = data.valid_path.as_deref().map(|p| read(Path::new(p))).transpose()?;
    let all = || documents.iter().chain(held_out.iter().flatten()).map(String::as_str);
    let tokenizer = match given {
        Some(tokenizer) => tokenizer,
        None if data.tokenizer_name_or_path == "char" => {
            tokenizer::characters(&all().collect::<String>())
        }
        None => tokenizer::load(Path::new(&data.tokenizer_name_or_path))?,
    };
    let length = config.model.length as usize;
    let mut train = encode(tokenizer.as_ref(), &documents, path)?;
    let valid = match (&held_out, &data.valid_path) {
        (Some(documents), Some(path)) => encode(tokenizer.as_ref(), documents, Path::new(path))?,
        _ => {
            let kept = (train.len() as f64 * (1.0 - data.valid_fraction)) as usize;
            train.split_off(kept)
        }
    };
    for (part, tokens) in [("training", &train), ("validation", &valid)] {
        if tokens.len() < length {
            return Err(Error::data(
                format!(
                    "the {part} text of `{}` has {} tokens, less than one block of {length}",
                    path.display(),
                    tokens.len()
                ),
                "give more text, or set a smaller `model.length`",
            ));
        }
    }
    let ids: Vec<i64> = valid.chunks_exact(length).flatten().map(|id| i64::from(*id)).collect();
    let valid = Tensor::from_slice(&ids).view([-1, length as i64]);
    let random_offsets = data.random_offsets;
    let order = std::cell::RefCell::default();
    let train = Source::Stream { tokens: train, length, random_offsets, order };
    Ok(Corpus { tokenizer, train, valid })
}

fn encode(tokenizer: &dyn Tokenizer, documents: &[String], path: &Path) -> Result<Vec<u32>> {
    let mut tokens = Vec::new();
    for (i, document) in documents.iter().enumerate() {
        if i > 0 {
            tokens.extend(tokenizer.separator());
        }
        tokens.extend(tokenizer.encode(document)?);
    }
    let what = format!("`{}`", path.display());
    check_ids(&tokens, tokenizer.vocab_size(), tokenizer.mask_id(), &what)?;
    Ok(tokens)
}

/// The documents of a path: one for a file, one for each `.txt` file of a folder in the order of their names.
fn read(path: &Path) -> Result<Vec<String>> {
    let files = if path.is_dir() { text_files(path)? } else { vec![path.to_path_buf()] };
    let mut documents = Vec::new();
    for file in &files {
        let bytes = std::fs::read(file).map_err(|e| Error::io("read", file, &e))?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            Error::data(
                format!("`{}` is not UTF-8 text: byte {at} is not", file.display()),
                "convert the file, for example with `iconv -t UTF-8`",
            )
        })?;
        documents.push(text);
    }
    if documents.iter().all(String::is_empty) {
        return Err(Error::data(
            format!("`{}` holds no text", path.display()),
            "give a text file, or a folder with `.txt` files",
        ));
    }
    Ok(documents)
}

fn text_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io("read", folder, &e))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .collect();
    files.sort();
    Ok(files)
}
