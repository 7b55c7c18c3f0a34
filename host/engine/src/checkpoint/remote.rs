//! A copy of the checkpoints in an object store: `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX`.
//!
//! An object store has no rename. A checkpoint's `state.json` is put there last, and a checkpoint without one does not
//! count; the objects `last` and `best` hold the name of a checkpoint. Addresses and keys come from the variables that the
//! stores' own tools read (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, …).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use maskdiff_base::error::{Error, Kind, Result};
use maskdiff_base::stop::Stop;
use maskdiff_base::{files, net, plain, scrub};
use object_store::aws::AmazonS3Builder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload, RetryConfig, WriteMultipart};
use tokio::runtime::Runtime;

use super::bounded::Bounded;
use super::keep::set_aside;
use super::{Checkpoint, remove, step_of};

/// Where checkpoints are copied to.
#[derive(Clone, Debug)]
pub struct Mirror {
    store: Arc<dyn ObjectStore>,
    prefix: Key,
    runtime: Arc<Runtime>,
    url: String,
}

/// Bytes that are read and sent at once, and parts that are under way at once.
const PART: usize = 8 << 20;
const PARTS: usize = 4;

/// How long one request is tried again.
const PATIENCE: Duration = Duration::from_secs(60);

/// The most objects that a list may have, and the time that it may take.
const OBJECTS: usize = 100_000;
const LISTED: Duration = Duration::from_secs(300);

/// Characters of a store's own words that are printed.
const SAID: usize = 600;

const STATE: &str = "state.json";

impl Mirror {
    /// Opens a store and tries it: a place that cannot be written is found now.
    pub fn open(url: &str) -> Result<Self> {
        // Only one provider is built in; a second call finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let wrong = |why: String| {
            Error::config(
                format!("`checkpointing.mirror={url}`: {why}"),
                "give s3://BUCKET/PREFIX or gs://BUCKET/PREFIX, and the store's own variables, as in AWS_ACCESS_KEY_ID, \
                 AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL (with AWS_ALLOW_HTTP=true for http)",
            )
        };
        let address = url::Url::parse(url).map_err(|e| wrong(e.to_string()))?;
        let retry =
            RetryConfig { max_retries: 5, retry_timeout: PATIENCE, ..RetryConfig::default() };
        let store: Arc<dyn ObjectStore> = match address.scheme() {
            "s3" | "s3a" => {
                let store = AmazonS3Builder::from_env().with_url(url).with_retry(retry);
                let store = store.with_http_connector(Bounded).build();
                Arc::new(store.map_err(|e| wrong(e.to_string()))?)
            }
            "gs" => {
                let builder = GoogleCloudStorageBuilder::from_env();
                let store = builder.with_url(url).with_retry(retry);
                let store = store.with_http_connector(Bounded).build();
                Arc::new(store.map_err(|e| wrong(e.to_string()))?)
            }
            other => return Err(wrong(format!("there is no store for `{other}://`"))),
        };
        let prefix = Key::from(address.path());
        let runtime = net::runtime();
        let runtime = Arc::new(runtime.map_err(|e| wrong(e.to_string()))?);
        let this = Self { store, prefix, runtime, url: scrub::scrubbed(url) };
        let probe = this.key("probe");
        let tried = this.unless_asked(async {
            this.store.put(&probe, PutPayload::from_static(b"")).await?;
            this.store.delete(&probe).await
        })?;
        // What was asked for is right, and the store is not there or not ours.
        tried.map_err(|e| {
            let error = wrong(plain::excerpt(&e.to_string(), SAID));
            Error::checkpoint(error.message, error.hint.unwrap_or_default())
        })?;
        Ok(this)
    }

    fn key(&self, name: &str) -> Key {
        name.split('/').fold(self.prefix.clone(), |key, part| key.join(part))
    }

    /// Runs a request that somebody waits for, until a signal.
    fn unless_asked<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        let stop = Stop::current();
        net::unless_asked(&self.runtime, &stop, work)
            .ok_or_else(|| stop.error(format!("stopped while `{}` was asked", self.url)))
    }

    fn fault(&self, act: &str, error: impl std::fmt::Display) -> Error {
        let error = plain::excerpt(&error.to_string(), SAID);
        Error::checkpoint(
            format!("cannot {act} `{}`: {error}", self.url),
            "the checkpoints in the run folder are whole; the next one is copied again",
        )
    }

    /// Copies a checkpoint, points `last` (and `best`) to it, and removes all but the newest `keep` and the best.
    pub fn upload(&self, checkpoint: &Path, best: bool, keep: usize) -> Result<()> {
        let name = checkpoint.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let entries = files::look::entries(checkpoint)?;
        let name_of = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        let mut files: Vec<String> = entries.into_iter().map(name_of).collect();
        // What makes it whole comes last.
        files.sort_by_key(|file| file == STATE);
        self.runtime.block_on(async {
            // One of that name does not count while it is written over.
            match self.store.delete(&self.key(&format!("{name}/{STATE}"))).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(self.fault("write into", error)),
            }
            for file in &files {
                self.put(&checkpoint.join(file), &self.key(&format!("{name}/{file}"))).await?;
            }
            self.check(checkpoint, &name, &files).await?;
            for link in ["last", "best"].into_iter().take(if best { 2 } else { 1 }) {
                let text = PutPayload::from(name.clone().into_bytes());
                let pointed = self.store.put(&self.key(link), text).await;
                pointed.map_err(|e| self.fault("write into", e))?;
            }
            self.prune(&name, keep).await
        })
    }

    /// That the store lists what it took, whole: a word of thanks alone keeps nothing.
    async fn check(&self, checkpoint: &Path, name: &str, files: &[String]) -> Result<()> {
        let listed = self.objects(&self.key(name)).await?;
        for file in files {
            let (path, key) = (checkpoint.join(file), self.key(&format!("{name}/{file}")));
            let size = fs::metadata(&path).map_err(|e| Error::io("read", &path, &e))?.len();
            match listed.iter().find(|(found, _)| *found == key) {
                Some((_, kept)) if *kept == size => {}
                Some((_, kept)) => {
                    let said = format!("`{key}` has {kept} bytes there, and {size} were sent");
                    return Err(self.fault("write into", said));
                }
                None => {
                    let said = format!("`{key}` was taken, and is not there");
                    return Err(self.fault("write into", said));
                }
            }
        }
        Ok(())
    }

    /// The objects below a key, with their sizes.
    async fn objects(&self, below: &Key) -> Result<Vec<(Key, u64)>> {
        let found = self.store.list(Some(below)).map_ok(|meta| (meta.location, meta.size));
        let listed = found.take(OBJECTS + 1).try_collect::<Vec<_>>();
        let listed = tokio::time::timeout(LISTED, listed).await;
        let listed = listed.map_err(|_| self.fault("list", "the list has no end"))?;
        let listed = listed.map_err(|e| self.fault("list", e))?;
        match listed.len() {
            0..=OBJECTS => Ok(listed),
            _ => Err(self.fault("list", format_args!("there are more than {OBJECTS} objects"))),
        }
    }

    async fn put(&self, file: &Path, key: &Key) -> Result<()> {
        let mut source = File::open(file).map_err(|e| Error::io("read", file, &e))?;
        let said = |e| self.fault("write into", e);
        let length = source.metadata().map_err(|e| Error::io("read", file, &e))?.len();
        let mut buffer = vec![0; PART.min(length as usize)];
        if length <= PART as u64 {
            source.read_exact(&mut buffer).map_err(|e| Error::io("read", file, &e))?;
            self.store.put(key, PutPayload::from(buffer)).await.map_err(said)?;
            return Ok(());
        }
        let upload = self.store.put_multipart(key).await.map_err(said)?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART);
        let sent = async {
            loop {
                let read = source.read(&mut buffer).map_err(|e| Error::io("read", file, &e))?;
                if read == 0 {
                    return Ok(());
                }
                upload.wait_for_capacity(PARTS).await.map_err(said)?;
                upload.write(&buffer[..read]);
            }
        };
        if let Err(error) = sent.await {
            // Parts that nobody will put together are kept, and paid for, until somebody removes them.
            if let Err(e) = upload.abort().await {
                tracing::warn!("parts of `{key}` are left in `{}`: {e}", self.url);
            }
            return Err(error);
        }
        // Aborts by itself.
        upload.finish().await.map_err(said)?;
        Ok(())
    }

    /// Its address, without secrets.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether it holds no checkpoint.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.unless_asked(self.list(true))??.is_empty())
    }

    /// Names of checkpoints with the keys of their objects, newest first; those that are whole alone, or all.
    async fn list(&self, whole: bool) -> Result<Vec<(String, Vec<Key>)>> {
        let keys = self.objects(&self.prefix).await?;
        let keys: Vec<Key> = keys.into_iter().map(|(key, _)| key).collect();
        let depth = self.prefix.parts().count();
        let name = |key: &Key| key.parts().nth(depth).map(|part| part.as_ref().to_string());
        let steps: BTreeSet<i64> = keys.iter().filter_map(|key| step_of(&name(key)?)).collect();
        let of = |step: i64| {
            let checkpoint = super::name(step);
            let own = keys.iter().filter(|k| name(k).as_deref() == Some(&checkpoint)).cloned();
            (checkpoint.clone(), own.collect::<Vec<Key>>())
        };
        let all = steps.into_iter().rev().map(of);
        let has_state = |keys: &Vec<Key>| keys.iter().any(|k| k.filename() == Some(STATE));
        Ok(all.filter(|(_, keys)| !whole || has_state(keys)).collect())
    }

    /// What a link holds; none when there is no link.
    async fn link(&self, name: &str) -> Result<Option<String>> {
        let found = match self.store.get(&self.key(name)).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            found => found.map_err(|e| self.fault("read", e))?,
        };
        let bytes = found.bytes().await.map_err(|e| self.fault("read", e))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if step_of(&text).is_none() {
            let said = format!("`{name}` names no checkpoint: `{}`", net::shown(&text));
            return Err(self.fault("read", said));
        }
        Ok(Some(text))
    }

    /// Removes what is older than the newest whole checkpoints and is neither the best nor `latest`; half ones too.
    async fn prune(&self, latest: &str, keep: usize) -> Result<()> {
        let best = self.link("best").await?;
        let newest = self.list(true).await?.into_iter().take(keep.max(1)).map(|(name, _)| name);
        let mut kept: BTreeSet<String> = newest.collect();
        kept.extend(best);
        kept.insert(latest.to_string());
        for (name, mut keys) in self.list(false).await? {
            if kept.contains(&name) {
                continue;
            }
            // What makes it whole goes first.
            keys.sort_by_key(|key| key.filename() != Some(STATE));
            for key in keys {
                self.store.delete(&key).await.map_err(|e| self.fault("remove from", e))?;
            }
        }
        Ok(())
    }

    /// Brings the newest whole checkpoint into `folder` when it is newer than `have`, the newest one there; one that
    /// arrives damaged is passed over, and `tell` hears of it.
    pub fn fetch(
        &self,
        folder: &Path,
        have: Option<i64>,
        mut tell: impl FnMut(&str),
    ) -> Result<Option<PathBuf>> {
        let newer = |name: &str| step_of(name) > have;
        self.unless_asked(async {
            for (name, keys) in self.list(true).await?.into_iter().filter(|(name, _)| newer(name)) {
                let temporary = folder.join(format!(".{name}.tmp"));
                remove(&temporary)?;
                fs::create_dir_all(&temporary).map_err(|e| Error::io("create", &temporary, &e))?;
                for key in keys {
                    self.get(&key, &temporary.join(key.filename().unwrap_or_default())).await?;
                }
                if let Err(error) = Checkpoint::checked(&temporary) {
                    if !matches!(error.kind, Kind::Checkpoint) {
                        return Err(error);
                    }
                    tell(&format!("warning: `{}/{name}`: {error}", self.url));
                    remove(&temporary)?;
                    continue;
                }
                let target = folder.join(&name);
                if files::look::is_taken(&target)? {
                    // It is damaged, or it would have been the newest here.
                    let aside = set_aside(folder, &target)?;
                    tell(&format!(
                        "warning: `{}` is damaged; it is set aside as `{aside}`",
                        target.display()
                    ));
                }
                files::sync_folder(&temporary)?;
                files::rename_whole(&temporary, &target)?;
                tell(&format!("fetched `{}/{name}`", self.url));
                return Ok(Some(target));
            }
            Ok(None)
        })?
    }

    async fn get(&self, key: &Key, file: &Path) -> Result<()> {
        let said = |e| self.fault("read", e);
        let size = self.store.head(key).await.map_err(said)?.size;
        // In parts, as it was put there: each has the time and the attempts of one request.
        let parts = (0..size).step_by(PART).map(|at| at..size.min(at + PART as u64));
        let parts = parts.map(|range| self.store.get_range(key, range));
        let mut parts = futures_util::stream::iter(parts).buffered(PARTS);
        let (mut sink, mut have) =
            (File::create(file).map_err(|e| Error::io("write", file, &e))?, 0);
        while let Some(bytes) = parts.next().await {
            let bytes = bytes.map_err(said)?;
            have += bytes.len() as u64;
            sink.write_all(&bytes).map_err(|e| Error::io("write", file, &e))?;
        }
        if have != size {
            let said = format!("`{key}` came with {have} bytes of {size}");
            return Err(self.fault("read", said));
        }
        sink.sync_all().map_err(|e| Error::io("flush", file, &e))
    }
}
