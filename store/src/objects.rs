//! The object store as the rest of the crate sees it: create, range read, list, delete, with errors
//! that name the object and say what can be done.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use image::{Error, Kind, Result};
use object_store::path::Path;
use object_store::{
    GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::errors::from_store;
use crate::local::LocalDir;

/// Requests in flight where many small objects are looked at.
const MANY: usize = 16;
/// From this many objects of one folder on, a listing is cheaper than asking for each.
const LIST_FROM: usize = 64;

/// What a listing says of an object.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) key: Path,
    pub(crate) len: u64,
    /// Seconds since 1970, by the store's clock.
    pub(crate) modified: u64,
}

impl From<ObjectMeta> for Listed {
    fn from(meta: ObjectMeta) -> Self {
        let modified = u64::try_from(meta.last_modified.timestamp()).unwrap_or(0);
        Self { key: meta.location, len: meta.size, modified }
    }
}

/// What creating an object that may be there already came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Created {
    /// It was not there, or what was there was damaged and was replaced.
    New,
    /// The same bytes were there.
    Same,
}

/// The objects of a store.
#[derive(Clone)]
pub(crate) struct Objects {
    inner: Arc<dyn ObjectStore>,
    local: Option<Arc<LocalDir>>,
    /// Reads in flight. No read waits for another while it holds a place.
    reads: Arc<Semaphore>,
    reads_only: bool,
}

impl Objects {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, local: Option<Arc<LocalDir>>) -> Self {
        let reads = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        Self { inner, local, reads, reads_only: false }
    }

    /// With at most so many reads in flight; without the right to change anything, if `reads_only`.
    pub(crate) fn limited(self, reads: usize, reads_only: bool) -> Self {
        Self { reads: Arc::new(Semaphore::new(reads)), reads_only, ..self }
    }

    async fn read_place(&self) -> Result<SemaphorePermit<'_>> {
        let place = self.reads.acquire().await;
        place.map_err(|_| Error::new(Kind::Cancelled, "the store is closing"))
    }

    fn may_change(&self) -> Result<()> {
        if self.reads_only { Err(reads_only()) } else { Ok(()) }
    }

    pub(crate) fn local(&self) -> Option<&Arc<LocalDir>> {
        self.local.as_ref()
    }

    /// Where they lie, for people.
    pub(crate) fn place(&self) -> String {
        match &self.local {
            Some(local) => format!("store directory {}", local.root().display()),
            None => format!("store {}", self.inner),
        }
    }

    /// Creates an object; a conflict if there is one of this name.
    pub(crate) async fn create(&self, key: &Path, payload: impl Into<PutPayload>) -> Result<()> {
        self.may_change()?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = self.inner.put_opts(key, payload.into(), options).await;
        put.map(drop).map_err(|e| from_store(format_args!("creating {key}"), e))
    }

    /// Creates an object whose name says what its bytes are, and reads it back. If other bytes are
    /// there they are damaged, and are replaced: remove, then create, since nothing else is asked
    /// of a store.
    pub(crate) async fn create_same(&self, key: &Path, bytes: &Bytes) -> Result<Created> {
        // A second round only after damage was removed, a third if another writer did the same.
        for _ in 0..3 {
            let created = match self.create(key, bytes.clone()).await {
                Ok(()) => Created::New,
                Err(e) if e.kind() == Kind::Conflict => Created::Same,
                Err(e) => return Err(e),
            };
            match self.get(key, bytes.len()).await {
                Ok(there) if there == *bytes => return Ok(created),
                Ok(_) => {}
                Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::Gone) => {}
                Err(e) => return Err(e),
            }
            tracing::warn!(%key, "replacing a damaged object");
            self.delete(key).await?;
        }
        let why = "is being changed by somebody else all the time; try again";
        Err(Error::new(Kind::Retry, format!("{key}: {why}")))
    }

    /// Reads a whole object of at most `max` bytes.
    pub(crate) async fn get(&self, key: &Path, max: usize) -> Result<Bytes> {
        let _place = self.read_place().await?;
        let what = |e| from_store(format_args!("reading {key}"), e);
        let got = self.inner.get_opts(key, GetOptions::default()).await.map_err(what)?;
        let len = got.meta.size;
        if len > max as u64 {
            let message = format!("{key}: {len} bytes, where at most {max} are expected");
            return Err(Error::new(Kind::Corrupt, message));
        }
        let bytes = got.bytes().await.map_err(what)?;
        if bytes.len() as u64 != len {
            return Err(cut_short(key, len, bytes.len()));
        }
        Ok(bytes)
    }

    /// Reads exactly this range of an object.
    pub(crate) async fn range(&self, key: &Path, range: Range<u64>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let want = range.end - range.start;
        let place = self.read_place().await?;
        let got = self.inner.get_ranges(key, std::slice::from_ref(&range)).await;
        drop(place);
        let bytes = match got {
            Ok(mut parts) => parts.pop().unwrap_or_default(),
            Err(e) => {
                let error = from_store(format_args!("reading {key} at {}", range.start), e);
                return Err(self.explain(key, &range, error).await);
            }
        };
        if bytes.len() as u64 != want {
            return Err(cut_short(key, range.end, range.start as usize + bytes.len()));
        }
        Ok(bytes)
    }

    /// A read past the end fails differently in every store: an object that is too short is
    /// damaged, whatever the store calls it.
    async fn explain(&self, key: &Path, range: &Range<u64>, error: Error) -> Error {
        if matches!(error.kind(), Kind::Io | Kind::Retry | Kind::Invalid) {
            match self.head(key).await {
                Ok(meta) if meta.len < range.end => {
                    return cut_short(key, range.end, meta.len as usize);
                }
                Err(e) if e.kind() == Kind::Gone => return e,
                _ => {}
            }
        }
        error
    }

    /// Length and time of an object.
    pub(crate) async fn head(&self, key: &Path) -> Result<Listed> {
        let _place = self.read_place().await?;
        let meta = self.inner.head(key).await;
        meta.map(Listed::from).map_err(|e| from_store(format_args!("looking at {key}"), e))
    }

    /// Lists a folder, in no order.
    pub(crate) fn list(&self, folder: &Path) -> BoxStream<'static, Result<Listed>> {
        let name = folder.clone();
        let listed = self.inner.list(Some(folder));
        listed
            .map(move |meta| {
                meta.map(Listed::from).map_err(|e| from_store(format_args!("listing {name}"), e))
            })
            .boxed()
    }

    /// Lists a small folder, in the order of the names.
    pub(crate) async fn list_sorted(&self, folder: &Path) -> Result<Vec<Listed>> {
        let mut all: Vec<Listed> = self.list(folder).try_collect().await?;
        all.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(all)
    }

    /// Whether anything at all lies in the store; names one such thing.
    pub(crate) async fn anything(&self) -> Result<Option<Path>> {
        let first = self.inner.list(None).try_next().await;
        first.map(|m| m.map(|m| m.location)).map_err(|e| from_store("listing the store", e))
    }

    /// Removes an object. That it is not there is fine.
    pub(crate) async fn delete(&self, key: &Path) -> Result<()> {
        self.may_change()?;
        match self.inner.delete(key).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(from_store(format_args!("removing {key}"), e)),
        }
    }

    /// Removes several objects. That some are not there is fine; another failure ends it.
    pub(crate) async fn delete_all(&self, keys: Vec<Path>) -> Result<()> {
        self.may_change()?;
        let locations = stream::iter(keys.into_iter().map(Ok)).boxed();
        let mut deleted = self.inner.delete_stream(locations);
        while let Some(result) = deleted.next().await {
            match result {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(from_store("removing objects", e)),
            }
        }
        Ok(())
    }

    /// Makes deletions in a folder durable, where the store does not do so by itself.
    pub(crate) async fn sync_folder(&self, folder: &'static str) -> Result<()> {
        match self.local.clone() {
            Some(local) => blocking(move || local.sync_folder(folder)).await,
            None => Ok(()),
        }
    }

    /// Which of these objects of one folder do not exist.
    pub(crate) async fn missing(
        &self,
        folder: &Path,
        mut keys: HashSet<Path>,
    ) -> Result<HashSet<Path>> {
        if keys.len() >= LIST_FROM {
            let mut listed = self.list(folder);
            while let Some(there) = listed.try_next().await? {
                keys.remove(&there.key);
            }
            return Ok(keys);
        }
        let looked = stream::iter(keys).map(|key| async move {
            match self.head(&key).await {
                Ok(_) => Ok(None),
                Err(e) if e.kind() == Kind::Gone => Ok(Some(key)),
                Err(e) => Err(e),
            }
        });
        let looked = looked.buffer_unordered(MANY);
        looked.try_filter_map(|missing| async { Ok(missing) }).try_collect().await
    }
}

/// The error of whoever wants more than to read.
pub(crate) fn reads_only() -> Error {
    let message = "the store was opened for reading only; this is done where it is written: at \
                   `forebay up`";
    Error::new(Kind::Denied, message)
}

fn cut_short(key: &Path, need: u64, have: usize) -> Error {
    let message = format!("{key}: truncated: {need} bytes expected, {have} there");
    Error::new(Kind::Corrupt, message)
}

/// Runs file work on a thread where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(f).await {
        Ok(result) => result,
        Err(e) => Err(joined(&e)),
    }
}

/// What became of a task that gave no answer.
pub(crate) fn joined(e: &tokio::task::JoinError) -> Error {
    if e.is_panic() {
        return Error::new(Kind::Io, format!("store: a task failed: {e}"));
    }
    Error::new(Kind::Cancelled, "store: the runtime is shutting down")
}
