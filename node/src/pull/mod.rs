//! Pulling an image: the node's side of the life of a chunk.
//!
//! ```text
//! pull ─ a thread per core ─ sections ─ batches ─ ChunkSource::chunks ─ verify ─ target
//!                                          ▲                              │
//!                                          └─ again, where it came wrong ─┘
//! ```
//! Sections are handed to whichever core is free next, those of each way apart (`lanes.rs`). On its
//! core a chunk is received, checked, decompressed and written ([`worker`]); what is there already and
//! what other files on this machine hold is hashed first and not fetched ([`job`]); a batch whose chunks
//! came wrong, or not at all, is asked for again (`batch.rs`). To a stream, or a file of another
//! program, chunks go in the order of the disk ([`ordered`], [`foreign`]).

pub(crate) mod batch;
pub mod foreign;
pub mod job;
mod lanes;
pub mod ordered;
pub mod worker;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use api::node::Progress;
use blockio::{EngineChoice, Fs};
use image::{ChunkSource, Digest, Error, Kind, Result};

use crate::rate::Rate;

/// Makes a core's own source of chunks, on that core.
pub trait Connect: Send + Sync + 'static {
    /// What is made.
    type Source: ChunkSource + 'static;

    /// Connects core number `core`.
    fn connect(&self, core: usize) -> impl Future<Output = Result<Self::Source>>;

    /// Takes leave of a source, on its core, before that ends.
    fn close(&self, source: Self::Source) -> impl Future<Output = ()> {
        drop(source);
        std::future::ready(())
    }

    /// The number of the way by which a section comes: those that come by different ways are pulled side by
    /// side. The same for every core.
    fn way(&self, _source: &Self::Source, _section: u32) -> usize {
        0
    }

    /// By what id the pull's requests are known from node to store; 0 for none.
    fn trace(&self) -> u128 {
        0
    }
}

/// How a pull is done.
#[derive(Clone)]
pub struct PullOptions {
    /// Threads, one per core.
    pub cores: usize,
    /// Bytes for plain chunks on their way to the disk, over all cores.
    pub memory: usize,
    /// Limit on what comes over the network.
    pub rate: Option<Arc<Rate>>,
    /// How files are written.
    pub engine: EngineChoice,
    /// Make it durable before it counts as done.
    pub sync: bool,
    /// Complete images on this machine that may hold chunks of this one at the same place; every
    /// chunk from them is hashed before it counts.
    pub seeds: Vec<PathBuf>,
    /// Where the target lies, if not on this machine's file system.
    pub fs: Option<Fs>,
}

impl PullOptions {
    fn fs(&self) -> Fs {
        self.fs.clone().unwrap_or_else(Fs::os)
    }
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: 32 << 20,
            rate: None,
            engine: EngineChoice::Auto,
            sync: true,
            seeds: Vec::new(),
            fs: None,
        }
    }
}

impl std::fmt::Debug for PullOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullOptions").field("cores", &self.cores).finish_non_exhaustive()
    }
}

/// How far a pull is, and the way to end it. Shared with whoever watches.
#[derive(Debug, Default)]
pub struct Watch {
    size: AtomicU64,
    data: AtomicU64,
    total: AtomicU64,
    reused: AtomicU64,
    written: AtomicU64,
    received: AtomicU64,
    chunks: AtomicU64,
    repaired: AtomicU64,
    cancelled: AtomicBool,
    wake: tokio::sync::Notify,
}

impl Watch {
    /// How far it is.
    pub fn progress(&self) -> Progress {
        let get = |a: &AtomicU64| a.load(Ordering::Relaxed);
        Progress {
            size: get(&self.size),
            data: get(&self.data),
            total: get(&self.total),
            reused: get(&self.reused),
            written: get(&self.written),
            received: get(&self.received),
            chunks: get(&self.chunks),
            repaired: get(&self.repaired),
        }
    }

    /// Says how many bytes of data the disk will hold, where that is known before all of it has been
    /// looked at. Said before the pull, a file system without room for them is refused at once.
    pub fn expect(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// Ends the pull soon, with [`Kind::Cancelled`]. What has arrived is kept for the next run.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.wake.notify_waiters();
    }

    fn add(&self, counter: impl Fn(&Self) -> &AtomicU64, n: u64) {
        counter(self).fetch_add(n, Ordering::Relaxed);
    }

    /// Returns once [`Watch::cancel`] was called.
    pub(crate) async fn cancelled(&self) {
        let woken = self.wake.notified();
        tokio::pin!(woken);
        // Registered before the flag is read, so a cancel between the two is not missed.
        woken.as_mut().enable();
        if !self.cancelled.load(Ordering::Relaxed) {
            woken.await;
        }
    }
}

pub(crate) fn cancelled() -> Error {
    Error::new(Kind::Cancelled, "the pull was cancelled; run it again to go on from here")
}

/// Pulls `image` into the file or device at `path`. On an error, or when the future is dropped, what
/// has arrived is kept, and the same call goes on from there.
pub async fn pull<C: Connect>(
    connect: C,
    image: Digest,
    path: PathBuf,
    options: PullOptions,
    watch: Arc<Watch>,
) -> Result<()> {
    let (sync, fs) = (options.sync, options.fs());
    let shared = Arc::new(worker::Shared::new(connect, image, path, options, watch));
    run_cores(&shared).await?;
    let shared = Arc::into_inner(shared)
        .ok_or_else(|| Error::new(Kind::Io, "a core of the pull is still running"))?;
    finish(shared, &fs, sync).await
}

/// The same without threads: every core is a part of this future, on the caller's runtime. That is
/// what a simulation needs, whose time and order are its own.
pub async fn pull_here<C: Connect>(
    connect: C,
    image: Digest,
    path: PathBuf,
    options: PullOptions,
    watch: Arc<Watch>,
) -> Result<()> {
    let (sync, fs) = (options.sync, options.fs());
    let shared = worker::Shared::new(connect, image, path, options, watch);
    let cores = (0..shared.cores()).map(|core| worker::run(core, &shared));
    futures::future::try_join_all(cores).await?;
    finish(shared, &fs, sync).await
}

async fn finish<C: Connect>(shared: worker::Shared<C>, fs: &Fs, sync: bool) -> Result<()> {
    let Some(job) = shared.into_job() else { return Err(cancelled()) };
    let finished = fs.unblock(move || job.finish(sync)).await;
    finished.map_err(|e| Error::caused(Kind::Io, format!("finishing the pull: {e}"), e))?
}

/// Runs one worker per core, each on a thread and a single-threaded runtime of its own. The first
/// error ends them all.
async fn run_cores<C: Connect>(shared: &Arc<worker::Shared<C>>) -> Result<()> {
    let mut cores = Vec::new();
    let _stop = StopOnDrop(shared);
    for core in 0..shared.cores() {
        cores.push(spawn_core(core, Arc::clone(shared))?);
    }
    let mut first: Result<()> = Ok(());
    for core in cores {
        let ended = core.await.unwrap_or_else(|_| Err(Error::new(Kind::Io, "a core panicked")));
        // A core that ends because another failed says "cancelled": the cause is worth more.
        let better = match (&first, &ended) {
            (Ok(()), Err(_)) => true,
            (Err(a), Err(b)) => a.kind() == Kind::Cancelled && b.kind() != Kind::Cancelled,
            _ => false,
        };
        if better {
            first = ended;
        }
    }
    first
}

/// Ends the cores with whoever waits for them.
struct StopOnDrop<'a, C: Connect>(&'a worker::Shared<C>);

impl<C: Connect> Drop for StopOnDrop<'_, C> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn spawn_core<C: Connect>(
    core: usize,
    shared: Arc<worker::Shared<C>>,
) -> Result<tokio::sync::oneshot::Receiver<Result<()>>> {
    let (done, ended) = tokio::sync::oneshot::channel();
    let body = move || {
        let result = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::io("starting a runtime", e))
            .and_then(|runtime| {
                let local = tokio::task::LocalSet::new();
                let result = local.block_on(&runtime, worker::run(core, &shared));
                // The source and its sockets live on this runtime: gone before the answer is.
                drop(local);
                drop(runtime);
                result
            });
        if result.is_err() {
            shared.stop();
        }
        drop(shared);
        // Nobody to tell if the pull's future was dropped.
        let _ = done.send(result);
    };
    std::thread::Builder::new()
        .name(format!("pull-{core}"))
        .spawn(body)
        .map_err(|e| Error::io("starting a thread for the pull", e))?;
    Ok(ended)
}
