//! `maskdiff data list|build|info|verify|show`

use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::report::Report;
use maskdiff_base::stop::Stop;
use maskdiff_base::text::counted;
use maskdiff_config::{Config, shelf_names};
use maskdiff_data::corpora::{LazyHub, Part, Role, Spec};
use maskdiff_data::{Cache, Header, Observer, prepare};
use serde_json::json;

use super::{Common, unused};

/// Prints the corpora that have a name.
pub fn list(common: &Common) -> Result<()> {
    let report = common.report();
    for name in shelf_names("corpus") {
        let spec = Spec::named(&name)?;
        let place = spec.repo.as_ref().or(spec.url.as_ref());
        let place = place.map_or_else(String::new, |place| match &spec.revision {
            Some(revision) if revision != "main" => format!("{place} ({revision})"),
            _ => place.clone(),
        });
        let parts: Vec<String> = spec
            .split
            .iter()
            .map(|(part, spec)| match spec.rows {
                Some(rows) => format!("{part} {rows}"),
                None => part.clone(),
            })
            .collect();
        let line = json!({
            "name": name, "about": spec.about, "licence": spec.licence, "from": place,
            "documents": spec.split.iter().map(|(part, spec)| (part.clone(), json!(spec.rows)))
                .collect::<serde_json::Map<String, serde_json::Value>>(),
        });
        let text = format!(
            "{name}\n    {}\n    from {place}; {}\n    licence: {}",
            spec.about,
            parts.join(", "),
            spec.licence
        );
        report.result(&line, &text);
    }
    Ok(())
}

/// Prepares what a configuration trains and validates on.
pub fn build(common: &Common) -> Result<()> {
    let config = common.config()?;
    unused::refuse(common, &config, unused::DATA)?;
    if config.data.sets.is_empty() {
        return build_one(common, &config);
    }
    config.data.sets.iter().try_for_each(|name| {
        let config = common.with(&[format!("data={name}")])?;
        build_one(common, &config)
    })
}

fn build_one(common: &Common, config: &Config) -> Result<()> {
    check_made(config)?;
    let stop = Stop::listen("what is under way is ended")?;
    let mut report = common.report();
    maskdiff_data::open(config, None, &Observer::new(&mut report, &stop))?;
    let made = files_of(config, &mut report, &stop)?;
    made.iter().try_for_each(|path| Cache::open(path).map(|cache| tell(&report, &cache)))
}

/// Prints what blocks are.
pub fn info(common: Common, words: Vec<String>) -> Result<()> {
    let (report, caches) = named(common, words)?;
    caches.iter().for_each(|cache| tell(&report, cache));
    Ok(())
}

/// Reads every byte of blocks.
pub fn verify(common: Common, words: Vec<String>) -> Result<()> {
    let (report, caches) = named(common, words)?;
    for cache in &caches {
        cache.verify()?;
        let Header { packed, sha256, .. } = &cache.header;
        let path = cache.path().display().to_string();
        let line = json!({"file": path, "blocks": packed.rows, "sha256": sha256, "whole": true});
        let blocks = counted(packed.rows, "block");
        report.result(&line, &format!("{path}: {blocks}, SHA-256 {sha256}: whole"));
    }
    Ok(())
}

/// Prints blocks as text.
pub fn show(common: Common, words: Vec<String>, first: u64, blocks: u64) -> Result<()> {
    let (report, caches) = named(common, words)?;
    for cache in &caches {
        let folder = tempfile::tempdir().map_err(|e| Error::io("create", Path::new("/tmp"), &e))?;
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, &cache.header.tokenizer)
            .map_err(|e| Error::io("write", &path, &e))?;
        let tokenizer = maskdiff_data::load_tokenizer(&path)?;
        let rows = cache.rows();
        if first >= rows {
            return Err(Error::config(
                format!(
                    "`{}` has {}, and there is no block {first}",
                    cache.path().display(),
                    counted(rows, "block")
                ),
                "blocks are counted from 0",
            ));
        }
        let Header { corpus, split, .. } = &cache.header;
        let length = cache.header.packing.length;
        let mut ids = vec![0; length];
        for number in first..rows.min(first.saturating_add(blocks)) {
            cache.read(number * length as u64, &mut ids)?;
            let used = cache.used(number)?;
            let text = tokenizer.decode(&ids[..used]);
            let line = json!({"corpus": corpus, "split": split, "block": number, "text": text, "tokens": used, "ids": ids});
            let filled =
                if used < length { format!(", {} filled", length - used) } else { String::new() };
            report.result(
                &line,
                &format!(
                    "--- {corpus} ({split}), block {number} of {rows}, {}{filled}\n{text}",
                    counted(used, "token")
                ),
            );
        }
    }
    Ok(())
}

/// Refuses data that has no blocks.
fn check_made(config: &Config) -> Result<()> {
    if config.data.train != "stories" {
        return Ok(());
    }
    Err(config.layers.error(
        "data.train",
        "`stories` are made as they are read: there are no blocks of them",
        "choose other data, as in `data=wikitext2`, or name a file of blocks",
    ))
}

fn tell(report: &Report, cache: &Cache) {
    let path = cache.path().display().to_string();
    let mut line = json!(cache.header);
    let header = line.as_object_mut();
    if let Some(header) = header {
        header.remove("tokenizer");
        header.insert("file".into(), json!(path));
    }
    let Header { origin, tokenizer_sha256, vocab_size, width, sha256, .. } = &cache.header;
    let origin = match &origin[..] {
        [first, .., last] if origin.len() > 4 => {
            format!("{first} … {last} ({} lines)", origin.len())
        }
        all => all.join(", "),
    };
    let text = format!(
        "{path}\n    {}\n    from {origin}\n    {vocab_size} tokens in the vocabulary, {width} bytes each, tokenizer {}\n    \
         SHA-256 {sha256}",
        prepare::in_words(&cache.header),
        &tokenizer_sha256[..tokenizer_sha256.len().min(16)]
    );
    report.result(&line, &text);
}

/// The blocks that words name: files, or those of a configuration, which must be there.
fn named(mut common: Common, words: Vec<String>) -> Result<(Report, Vec<Cache>)> {
    let (overrides, mut files) = look::settings_and_files(words)?;
    let mut report = common.report();
    if files.is_empty() {
        common.overrides = overrides;
        let made = files_of(&common.config()?, &mut report, &Stop::default())?;
        files.extend(made.iter().map(|path| path.display().to_string()));
    } else if let Some(word) = overrides.first() {
        return Err(Error::config(
            format!("`{word}` beside the file `{}`", files[0]),
            "give files of blocks, or the KEY=VALUE of a configuration",
        ));
    }
    let caches = files.iter().map(|file| Cache::open(Path::new(file)));
    Ok((report, caches.collect::<Result<Vec<Cache>>>()?))
}

/// Where the blocks of a configuration are; an error when they are not made yet.
fn files_of(config: &Config, report: &mut Report, stop: &Stop) -> Result<Vec<PathBuf>> {
    check_made(config)?;
    maskdiff_data::check_words(config)?;
    let hub = LazyHub::default();
    let train = Part::find(config, Role::Train, &hub)?.filter(|_| !config.data.streaming);
    let valid = Part::find(config, Role::Valid, &hub)?;
    let parts: Vec<&Part> = train.iter().chain(&valid).collect();
    let observer = Observer::new(report, stop);
    let tokenizer = prepare::tokenizer(config, &parts, &hub, &observer)?;
    let roles = train.iter().map(|part| (part, Role::Train));
    let roles = roles.chain(valid.iter().map(|part| (part, Role::Valid)));
    let path = |(part, role)| {
        let path = prepare::path(part, config, role, tokenizer.as_ref())?;
        if look::present(&path)? {
            return Ok(path);
        }
        let Part { corpus, split, .. } = part;
        Err(Error::data(
            format!("the blocks of `{corpus}` ({split}) are not made for this configuration"),
            "make them by `maskdiff data build` with the same KEY=VALUE, or train",
        ))
    };
    roles.map(path).collect()
}
