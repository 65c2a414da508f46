//! The threads that volumes live on: each volume on one of them, with a runtime and a file engine of its own.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use blockio::{Arena, Engine, EngineOptions};
use futures::future::LocalBoxFuture;
use image::{Decoder, Error, Kind, Result};
use tokio::sync::{mpsc, oneshot};

use super::bases::Bases;
use super::live::Live;
use super::taken::OnCore;
use crate::export::nbd;
use crate::rate::RealTime;

/// Bytes of a buffer of vhost-user: see [`vhost::Export::new`](crate::export::vhost::Export::new).
const VHOST_BUFFER: usize = 256 << 10;

/// How volumes are served.
#[derive(Clone, Copy, Debug)]
pub struct CoreOptions {
    /// Threads.
    pub cores: usize,
    /// Bytes for what is between guests and disks, and as much for what is between the network and disks, of
    /// each thread. Memory that nobody uses is not taken.
    pub memory: usize,
    /// How files are read and written.
    pub engine: blockio::EngineChoice,
}

/// What a volume finds on its thread.
pub(super) struct Core {
    pub(super) number: usize,
    pub(super) engine: Engine,
    pub(super) nbd: nbd::Memory,
    pub(super) vhost: Arena,
    pub(super) decoder: Rc<RefCell<Decoder>>,
    pub(super) time: RealTime,
    pub(super) live: RefCell<BTreeMap<String, Rc<Live>>>,
    pub(super) bases: Bases,
    /// Volumes that are being captured.
    pub(super) taken: RefCell<BTreeMap<String, OnCore>>,
    memory: usize,
    /// By log2 of their slots: images have chunks of several sizes.
    arenas: RefCell<BTreeMap<u8, Arena>>,
}

impl Core {
    fn start(number: usize, options: CoreOptions) -> Result<Self> {
        let engine = EngineOptions { choice: options.engine, ..EngineOptions::default() };
        let memory = |e| Error::io("memory for volumes", e);
        Ok(Self {
            number,
            engine: Engine::start(engine).map_err(|e| Error::io("starting file I/O", e))?,
            nbd: nbd::Memory::with_budget(options.memory).map_err(memory)?,
            vhost: Arena::new("vhost-user", VHOST_BUFFER, options.memory.max(VHOST_BUFFER))
                .map_err(memory)?,
            decoder: Rc::new(RefCell::new(Decoder::new()?)),
            time: RealTime::start(),
            live: RefCell::default(),
            bases: Bases::default(),
            taken: RefCell::default(),
            memory: options.memory,
            arenas: RefCell::default(),
        })
    }

    /// Memory for chunks of this size on their way to the disk.
    pub(super) fn arena(&self, chunk_log2: u8) -> Result<Arena> {
        let mut arenas = self.arenas.borrow_mut();
        if let Some(arena) = arenas.get(&chunk_log2) {
            return Ok(arena.clone());
        }
        let slot = 1 << chunk_log2;
        let arena = Arena::new("volumes", slot, self.memory.max(4 * slot));
        let arena = arena.map_err(|e| Error::io("memory for volumes", e))?;
        arenas.insert(chunk_log2, arena.clone());
        Ok(arena)
    }
}

type Job = Box<dyn FnOnce(Rc<Core>) -> LocalBoxFuture<'static, ()> + Send>;

/// The threads. When it is dropped they end, and what they do ends with them.
pub(super) struct Cores(Vec<mpsc::UnboundedSender<Job>>);

impl Cores {
    pub(super) fn start(options: CoreOptions) -> Result<Self> {
        let cores = (0..options.cores.max(1)).map(|number| spawn(number, options));
        Ok(Self(cores.collect::<Result<_>>()?))
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Does something on a core. It goes on also if the returned future is dropped.
    pub(super) async fn on<T: Send + 'static>(
        &self,
        core: usize,
        work: impl FnOnce(Rc<Core>) -> LocalBoxFuture<'static, Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (done, answer) = oneshot::channel();
        let job: Job = Box::new(move |core| {
            Box::pin(async move {
                let _ = done.send(work(core).await);
            })
        });
        let ended = || Error::new(Kind::Io, "a thread of volumes has ended");
        self.0[core].send(job).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

fn spawn(number: usize, options: CoreOptions) -> Result<mpsc::UnboundedSender<Job>> {
    let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("starting a runtime", e))?;
    let body = move || {
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async move {
            let core = match Core::start(number, options) {
                Ok(core) => Rc::new(core),
                Err(error) => return tracing::error!(%error, "a thread of volumes cannot start"),
            };
            while let Some(job) = queue.recv().await {
                tokio::task::spawn_local(job(Rc::clone(&core)));
            }
        });
    };
    let thread = std::thread::Builder::new().name(format!("volumes-{number}"));
    thread.spawn(body).map_err(|e| Error::io("starting a thread for volumes", e))?;
    Ok(jobs)
}
