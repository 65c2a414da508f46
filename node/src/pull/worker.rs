//! One core's part of a pull: takes sections, asks for what is missing, verifies and writes.

use std::cell::RefCell;
use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use blockio::{Engine, EngineOptions};
use futures::{StreamExt, TryStreamExt};
use image::{ChunkSource, Decoder, Digest, Error, Priority, ReadContext, Result};
use volume_pool::Verified;

use super::batch::{Batch, Deliver, Fetch, batches_of};
use super::job::Job;
use super::lanes::{Lane, Lanes};
use super::{Connect, PullOptions, Watch, cancelled};
use crate::patience::Patience;

/// Batches that a core keeps in flight. 8 to 16 suffice on a local network; each is
/// [`super::batch::BATCH_BYTES`] of plain chunks at most.
pub(super) const IN_FLIGHT: usize = 8;
/// The same of each lane at least.
const IN_LANE: usize = 4;

/// What the cores of one pull share.
pub struct Shared<C> {
    connect: C,
    image: Digest,
    path: PathBuf,
    options: PullOptions,
    watch: Arc<Watch>,
    /// Made by the first core that has the manifest.
    job: tokio::sync::OnceCell<Arc<Job>>,
    /// Made by the first core that has a source and the job.
    lanes: OnceLock<Lanes>,
    stopped: AtomicBool,
    stop: tokio::sync::Notify,
}

impl<C: Connect> Shared<C> {
    pub(super) fn new(
        connect: C,
        image: Digest,
        path: PathBuf,
        options: PullOptions,
        watch: Arc<Watch>,
    ) -> Self {
        Self {
            connect,
            image,
            path,
            options,
            watch,
            job: tokio::sync::OnceCell::new(),
            lanes: OnceLock::new(),
            stopped: AtomicBool::new(false),
            stop: tokio::sync::Notify::new(),
        }
    }

    pub(super) fn cores(&self) -> usize {
        self.options.cores.max(1)
    }

    /// Ends the other cores: one has failed.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.stop.notify_waiters();
    }

    pub(super) fn into_job(self) -> Option<Arc<Job>> {
        self.job.into_inner()
    }

    async fn stopped(&self) {
        let woken = self.stop.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        if !self.stopped.load(Ordering::Relaxed) {
            woken.await;
        }
    }

    /// The pull's manifest, target and memory, made once by whichever core comes first.
    async fn job(&self, source: &C::Source, ctx: &ReadContext) -> Result<Arc<Job>> {
        let make = async || {
            let ask = async || source.manifest(ctx, &self.image).await;
            let manifest = Patience::with_busy().ask(ask).await?;
            let (path, options) = (self.path.clone(), self.options.clone());
            let watch = Arc::clone(&self.watch);
            let fs = options.fs();
            let opened = fs.unblock(move || Job::open(&path, manifest, &options, &watch));
            let job = opened.await.map_err(|e| {
                Error::caused(image::Kind::Io, format!("opening the target: {e}"), e)
            })??;
            Ok(Arc::new(job))
        };
        self.job.get_or_try_init(make).await.cloned()
    }
}

/// A core's run, from its connection to the last section that it takes.
pub(super) async fn run<C: Connect>(core: usize, shared: &Shared<C>) -> Result<()> {
    let source = unless_stopped(shared, async {
        Patience::with_busy().ask(async || shared.connect.connect(core).await).await
    });
    let source = source.await?;
    let result = unless_stopped(shared, transfer(&source, shared)).await;
    shared.connect.close(source).await;
    result
}

async fn unless_stopped<C: Connect, T>(
    shared: &Shared<C>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased;
        () = shared.watch.cancelled() => Err(cancelled()),
        () = shared.stopped() => Err(cancelled()),
        result = work => result,
    }
}

async fn transfer<C: Connect>(source: &C::Source, shared: &Shared<C>) -> Result<()> {
    let trace = shared.connect.trace();
    let ctx = ReadContext { trace, ..ReadContext::default() };
    let job = shared.job(source, &ctx).await?;
    let options = EngineOptions {
        choice: shared.options.engine,
        register: vec![job.arena.clone()],
        ..EngineOptions::default()
    };
    let engine = Engine::start(options).map_err(|e| Error::io("starting file I/O", e))?;
    let fetch = Fetch {
        source,
        image: shared.image,
        geometry: *job.manifest.geometry(),
        arena: &job.arena,
        decoder: Rc::new(RefCell::new(Decoder::new()?)),
        rate: shared.options.rate.as_deref(),
        watch: &shared.watch,
        trace,
        patience: Patience::new,
    };
    let write = Write { job: &job, engine: &engine, watch: &shared.watch };
    let all = 0..job.manifest.geometry().sections();
    let way = |section| shared.connect.way(source, section);
    let lanes = shared.lanes.get_or_init(|| Lanes::new(all, way)).all();
    let each = IN_LANE.max(IN_FLIGHT / lanes.len().max(1));
    let pulled = lanes.iter().map(|lane| pull_lane(lane, each, &fetch, &write));
    futures::future::try_join_all(pulled).await.map(drop)
}

/// Takes sections of a lane while there are any, with so many batches in flight.
async fn pull_lane<S: ChunkSource>(
    lane: &Lane,
    in_flight: usize,
    fetch: &Fetch<'_, S>,
    write: &Write<'_>,
) -> Result<()> {
    futures::stream::iter(std::iter::from_fn(|| lane.next()))
        // One section is looked at ahead of those whose batches are in flight.
        .map(|section| missing_batches(fetch, write.job, write.engine, section))
        .buffered(2)
        .map_ok(|batches| futures::stream::iter(batches.into_iter().map(Ok)))
        .try_flatten()
        .try_for_each_concurrent(in_flight, |batch| fetch.batch(batch, write))
        .await
}

/// Looks at what the target and the seeds have of a section, and cuts the rest into batches.
async fn missing_batches<S: ChunkSource>(
    fetch: &Fetch<'_, S>,
    job: &Arc<Job>,
    engine: &Engine,
    section: u32,
) -> Result<Vec<Batch>> {
    if job.nothing_to_do(section) {
        return Ok(Vec::new());
    }
    let table = fetch.table(section, Priority::Background).await?;
    let missing = job.missing(engine, section, &table).await?;
    Ok(batches_of(&fetch.geometry, section, &table, missing))
}

/// Writes verified chunks into the target.
struct Write<'a> {
    job: &'a Arc<Job>,
    engine: &'a Engine,
    watch: &'a Watch,
}

impl Deliver for Write<'_> {
    async fn deliver(&self, section: u32, chunk: u32, plain: Verified) -> Result<()> {
        let len = plain.len() as u64;
        self.job.target.write(self.engine, section, chunk, plain).await?;
        self.watch.add(|w| &w.written, len);
        Ok(())
    }
}
