//! Opening a store, and what all its parts share.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::path::Path as FsPath;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use image::error::At;
use image::record::Verified;
use image::{Digest, Error, Kind, Manifest, PackId, Result, SectionTable, Spot};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::cache::Cache;
use crate::errors::from_store;
use crate::facts::ImageFacts;
use crate::footers::read_footer;
use crate::index::Index;
use crate::keys::{self, Key};
use crate::local::LocalDir;
use crate::locate::{Head, is_bad_place};
use crate::marker::{self, hex};
use crate::objects::{Objects, blocking, joined, reads_only};
use crate::options::{IndexPlace, StoreOptions};
use crate::packer::Packers;
use crate::remote::Remote;
use crate::rewrites::Rewrites;

/// Footers that are read at a time when the index is brought up to date.
const FOOTERS: usize = 16;
/// The index is compared with the packs at most once in so many seconds while chunks are missed.
const REFRESH_SECS: u64 = 10;

/// The permanent storage network: see the crate's documentation.
///
/// Cheap to clone. Its work runs on the runtime that it was opened with, so it can be used from any
/// other runtime, and a future that is dropped ends what it alone was waiting for.
#[derive(Clone)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
    pub(crate) packers: Arc<Packers>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.shared.id)
    }
}

impl Store {
    /// What its receivers verified of an image that was committed lately, while this process runs.
    pub fn verified(&self, image: &Digest) -> Option<Verified> {
        self.shared.verified.get(image)
    }
}

/// What the parts of a store share.
pub(crate) struct Shared {
    pub(crate) objects: Objects,
    /// None if the store is only read.
    index: Option<Arc<Index>>,
    pub(crate) options: StoreOptions,
    pub(crate) handle: Handle,
    pub(crate) id: String,
    pub(crate) manifests: Cache<Digest, Arc<Manifest>>,
    /// By the section's digest, so that images share them.
    pub(crate) tables: Cache<Digest, Arc<SectionTable>>,
    pub(crate) heads: Cache<Digest, Arc<Head>>,
    /// By image, number of the locator, and section.
    pub(crate) blocks: Cache<(Digest, u64, u32), Arc<Vec<Spot>>>,
    pub(crate) facts: Cache<Digest, ImageFacts>,
    /// Images whose locator could not be made anew, and when (seconds).
    pub(crate) lost: Cache<Digest, u64>,
    /// What was verified of images that were committed lately.
    pub(crate) verified: Cache<Digest, Verified>,
    /// Bytes of packs on their way to readers.
    pub(crate) reading: Arc<Semaphore>,
    /// One rebuild of a locator at a time.
    pub(crate) rebuilding: tokio::sync::Mutex<()>,
    /// One collection of garbage at a time.
    pub(crate) collecting: tokio::sync::Mutex<()>,
    /// Packs that gc has rewritten.
    pub(crate) rewrites: Rewrites,
    /// When the marker was last looked at for something that was missing, in seconds, and the error if
    /// the store was away.
    pub(crate) looked: tokio::sync::Mutex<Option<(u64, Option<Error>)>>,
    /// When the index was last compared with the packs, in seconds.
    refreshed: tokio::sync::Mutex<u64>,
}

impl Store {
    /// Opens a store, or makes one where there is nothing at all, unless the options say otherwise
    /// ([`StoreOptions::expect`]). Its work runs on `handle`, an ordinary tokio runtime with timers.
    pub async fn open(
        objects: Arc<dyn ObjectStore>,
        handle: Handle,
        options: StoreOptions,
    ) -> Result<Self> {
        let opening = Self::open_on(Objects::new(objects, None), handle.clone(), options);
        run_on(&handle, opening).await
    }

    /// Opens a store at a URL: `s3://bucket/prefix`, `gs://…`, `az://…`, `file:///…`. `remote` says
    /// how it is spoken to: endpoint, region, credentials, retries, timeouts.
    pub async fn open_url(
        url: &str,
        remote: &Remote,
        handle: Handle,
        options: StoreOptions,
    ) -> Result<Self> {
        let bad = |e: &dyn fmt::Display| Error::new(Kind::Invalid, format!("store {url}: {e}"));
        let parsed = url::Url::parse(url).map_err(|e| bad(&e))?;
        if parsed.scheme() == "file" {
            let path = parsed.to_file_path().map_err(|()| bad(&"not a path of this machine"))?;
            return Self::open_dir(path, handle, options).await;
        }
        let place = || format!("store {url}");
        let objects = remote.objects(&parsed).at(place)?;
        Self::open(objects, handle, options).await.at(place)
    }

    /// Opens a store in a local directory, which is made if it is not there and a store may be made.
    /// Files and directories are synced, and a pack is read back from the medium,
    /// not from the page cache.
    pub async fn open_dir(
        path: impl AsRef<FsPath>,
        handle: Handle,
        mut options: StoreOptions,
    ) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let place = format!("store directory {}", path.display());
        let (runtime, may_make) = (handle.clone(), options.may_make());
        let opening = async move {
            let local = blocking(move || match may_make {
                true => LocalDir::create(&path).map(Some),
                false => LocalDir::existing(&path),
            });
            let local = local.await?.ok_or_else(|| marker::nothing_here(&options).at(&place))?;
            let local = Arc::new(local);
            let files = LocalFileSystem::new_with_prefix(local.root()).map_err(|e| {
                from_store(format_args!("store directory {}", local.root().display()), e)
            })?;
            let dir = local.clone();
            options.drop_cache.get_or_insert_with(|| {
                Arc::new(move |id: &PackId| dir.drop_cached(keys::pack(id).as_ref()))
            });
            let objects = Objects::new(Arc::new(files.with_fsync(true)), Some(local));
            Self::open_on(objects, handle, options).await.at(|| place)
        };
        run_on(&runtime, opening).await
    }

    async fn open_on(objects: Objects, handle: Handle, options: StoreOptions) -> Result<Self> {
        check_options(&options)?;
        let reads_only = options.index == IndexPlace::Nowhere;
        let objects = objects.limited(options.limits.requests, reads_only);
        let id = marker::adopt(&objects, &options).await?;
        if let Some(local) = objects.local().cloned().filter(|_| !reads_only) {
            blocking(move || local.make_folders()).await?;
        }
        let (place, cache, store) = (options.index.clone(), options.limits.index, id.clone());
        let index = blocking(move || Index::open(&place, cache, &store)).await?;
        let each = options.limits.cached / 4;
        let shared = Arc::new(Shared {
            objects,
            index: index.map(Arc::new),
            handle,
            id,
            manifests: Cache::new(each),
            tables: Cache::new(each),
            heads: Cache::new(each),
            blocks: Cache::new(each),
            facts: Cache::new(1 << 20),
            lost: Cache::new(64 << 10),
            verified: Cache::new(64 << 10),
            reading: Arc::new(Semaphore::new(options.limits.reading)),
            rebuilding: tokio::sync::Mutex::new(()),
            collecting: tokio::sync::Mutex::new(()),
            rewrites: Rewrites::default(),
            looked: tokio::sync::Mutex::default(),
            refreshed: tokio::sync::Mutex::new(0),
            options,
        });
        if shared.has_index() {
            shared.refresh_index().await?;
        }
        let packers = Arc::new(Packers::new(shared.clone()));
        Ok(Self { shared, packers })
    }

    /// The store's id, made when it was made.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// Every image whose manifest is in the store, in order.
    pub async fn images(&self) -> Result<Vec<Digest>> {
        let shared = self.shared.clone();
        self.run(async move {
            let mut images = Vec::new();
            let mut listed = shared.objects.list(&keys::folder("manifests"));
            while let Some(object) = listed.try_next().await? {
                if let Some(Key::Manifest(image)) = Key::parse(&object.key) {
                    images.push(image);
                }
            }
            images.sort_unstable();
            Ok(images)
        })
        .await
    }

    /// Runs a part of the store's work on the store's runtime.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        run_on(&self.shared.handle, work).await
    }

    /// The same for reading: while the store is away nothing is said to be lost.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let shared = self.shared.clone();
        self.run(async move {
            match work.await {
                Err(e) => Err(shared.unless_away(e).await),
                done => done,
            }
        })
        .await
    }
}

/// Runs `work` on a runtime; dropping the returned future aborts it.
pub(crate) async fn run_on<T: Send + 'static>(
    handle: &Handle,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let mut task = AbortOnDrop(handle.spawn(work));
    match (&mut task.0).await {
        Ok(result) => result,
        Err(e) => Err(joined(&e)),
    }
}

/// A task that ends with whoever waits for it.
pub(crate) struct AbortOnDrop<T>(pub(crate) JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn check_options(options: &StoreOptions) -> Result<()> {
    let limits = &options.limits;
    let invalid = |why: &str| Err(Error::new(Kind::Invalid, format!("store options: {why}")));
    if limits.pack > image::pack::MAX_PACK || limits.pack < 2 * image::frame::MAX_FRAME {
        return invalid("a pack is between 8 MiB and 64 MiB long");
    }
    if limits.writing < 2 * limits.pack {
        return invalid("the packer needs room for two packs");
    }
    if limits.reading < 2 * image::frame::MAX_FRAME || limits.reads == 0 || limits.requests == 0 {
        return invalid("readers need room for two frames and one read");
    }
    if limits.writing.max(limits.reading) > u32::MAX as usize {
        return invalid("the limits of reading and writing are below 4 GiB");
    }
    if options.session_life.as_secs() < 3 {
        return invalid("a session lives at least 3 seconds");
    }
    Ok(())
}

impl Shared {
    /// Seconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        (self.options.clock)()
    }

    /// A name that was never used: 32 hex digits.
    pub(crate) fn new_id(&self) -> String {
        hex(&(self.options.ids)())
    }

    /// A session's life in seconds.
    pub(crate) fn life(&self) -> u64 {
        self.options.session_life.as_secs()
    }

    /// Whether there is a chunk index: not if the store is only read.
    pub(crate) fn has_index(&self) -> bool {
        self.index.is_some()
    }

    /// The chunk index.
    pub(crate) fn index(&self) -> Result<&Arc<Index>> {
        self.index.as_ref().ok_or_else(reads_only)
    }

    /// Works with the index on a thread where it may block.
    pub(crate) async fn indexed<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Index) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let index = self.index()?.clone();
        blocking(move || f(&index)).await
    }

    /// Makes the index agree with the packs that exist: reads the footers of those that are
    /// missing, and drops those that are gone.
    pub(crate) async fn refresh_index(&self) -> Result<()> {
        let mut refreshed = self.refreshed.lock().await;
        self.rewrites.refresh(&self.objects).await?;
        // Known before the listing: a pack that is added meanwhile is not taken for gone.
        let known = self.indexed(Index::packs).await?;
        let mut there = HashMap::new();
        let mut listed = self.objects.list(&keys::folder("packs"));
        while let Some(object) = listed.try_next().await? {
            if let Some(Key::Pack(id)) = Key::parse(&object.key) {
                there.insert(id, object.len);
            }
        }
        let gone: Vec<PackId> = known
            .iter()
            .filter(|(id, len)| there.get(id) != Some(len))
            .map(|(id, _)| *id)
            .collect();
        if !gone.is_empty() {
            // Else the index would forget every pack of a store that was away for a moment.
            self.is_here().await?;
        }
        self.indexed(move |index| index.drop_packs(&gone)).await?;
        there.retain(|id, len| known.get(id) != Some(len));
        let adding = stream::iter(there).map(|(id, len)| self.index_pack(id, len));
        adding.buffer_unordered(FOOTERS).try_collect::<()>().await?;
        *refreshed = self.now();
        Ok(())
    }

    /// The same, unless it was done a moment ago, or there is no index. Whether it was done.
    pub(crate) async fn refresh_index_if_old(&self) -> Result<bool> {
        if !self.has_index() {
            return Ok(false);
        }
        let last = *self.refreshed.lock().await;
        if self.now() < last.saturating_add(REFRESH_SECS) {
            return Ok(false);
        }
        self.refresh_index().await.map(|()| true)
    }

    async fn index_pack(&self, id: PackId, len: u64) -> Result<()> {
        let footer = match read_footer(&self.objects, &id, len).await {
            Ok(footer) => footer,
            Err(e) if e.kind() == Kind::Gone => return Ok(()),
            Err(error) if is_bad_place(&error) => {
                // Its frames may still be read through locators; gc removes it when nothing does.
                tracing::warn!(%error, "a pack cannot be indexed");
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let now = self.now();
        self.indexed(move |index| index.add_pack(&id, len, &footer, &[], now)).await
    }

    /// Forgets everything that was kept about an image.
    pub(crate) fn forget_image(&self, image: &Digest) {
        self.manifests.forget(|k| k == image);
        self.forget_locator(image);
    }

    /// Forgets where an image's chunks lay.
    pub(crate) fn forget_locator(&self, image: &Digest) {
        self.heads.forget(|k| k == image);
        self.blocks.forget(|(k, _, _)| k == image);
    }
}
