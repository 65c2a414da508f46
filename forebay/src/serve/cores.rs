//! The cores that serve chunks: each a thread with its own runtime, UDP port, cache handle and file
//! engine. A chunk is received, checked and sent on one core.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;

use api::grid::Revocations;
use blockio::{Engine, EngineChoice, EngineOptions};
use cache::Cache;
use image::signing::VerifyingKey;
use image::{Digest, Error, Kind, Result};
use placement::{Clock, Shown};
use store::{Receiver, Store};
use stream::transport::Tuning;
use stream::{Auth, Memory, ServerLimits};
use tokio::sync::{oneshot, watch};

use super::errands::CoreCache;
use super::timed::Timed;
use crate::config::Config;
use crate::grid::{TlsServer, quic_server};

/// Connections of one certificate on a core. All commands of a machine share its certificate, and
/// those of processes that were killed linger until they time out.
const PER_PEER: usize = 512;
/// Reads of the cache's disk that a core has under way at most: more than there are buffers for, so that only
/// these are waited for (docs/decisions/0012).
const DISK_READS: u32 = 64;

/// Running cores.
pub struct Cores {
    addresses: Vec<SocketAddr>,
    threads: Vec<JoinHandle<()>>,
    memory: Memory,
    stop: watch::Sender<bool>,
}

/// What a core's thread is given.
struct Core {
    address: SocketAddr,
    tls: Arc<TlsServer>,
    engine: EngineChoice,
    store: Store,
    cache: Arc<cache::Shared>,
    receives: bool,
    memory: Memory,
    key: VerifyingKey,
    revoked: watch::Receiver<Arc<Revocations>>,
    clock: Clock,
    stop: watch::Receiver<bool>,
}

/// What the cores serve, and to whom.
pub struct Chunks<'a> {
    /// Behind the cache; what is pushed goes there.
    pub store: &'a Store,
    /// In front of it.
    pub cache: &'a Arc<cache::Shared>,
    /// Whether pushes are taken.
    pub receives: bool,
    /// What the server shows of itself.
    pub shown: &'a Arc<Shown>,
    /// Whose certificates are refused.
    pub revoked: watch::Receiver<Arc<Revocations>>,
    /// Verifies tickets.
    pub key: VerifyingKey,
    /// Tells the time.
    pub clock: &'a Clock,
}

impl Cores {
    /// Starts them; returns when all of them listen.
    pub async fn start(config: &Config, chunks: Chunks<'_>) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let engine = super::engine(config)?;
        let first_port = config.number("serve.port");
        let memory = Memory::new(config.size("serve.memory") as usize);
        let (addresses, threads) = (Vec::new(), Vec::new());
        let mut cores = Self { addresses, threads, memory, stop };
        for number in 0..config.threads("serve.cores") {
            let port = match first_port {
                0 => 0,
                first => port(first as usize + number)?,
            };
            let core = Core {
                address: SocketAddr::new(super::ip(config, "serve.ip")?, port),
                tls: quic_server(chunks.shown)?,
                engine,
                store: chunks.store.clone(),
                cache: Arc::clone(chunks.cache),
                receives: chunks.receives,
                memory: cores.memory.clone(),
                key: chunks.key.clone(),
                revoked: chunks.revoked.clone(),
                clock: chunks.clock.clone(),
                stop: stopped.clone(),
            };
            cores.add(number, core).await?;
        }
        Ok(cores)
    }

    async fn add(&mut self, number: usize, core: Core) -> Result<()> {
        let (listening, listens) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(format!("chunks-{number}"))
            .spawn(move || run(core, listening))
            .map_err(|e| Error::io("starting a core's thread", e))?;
        self.threads.push(thread);
        let ended = |_| Err(Error::new(Kind::Io, format!("core {number} ended at once")));
        self.addresses.push(listens.await.unwrap_or_else(ended)?);
        Ok(())
    }

    /// What their connections share.
    pub fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// The addresses that nodes are told.
    pub fn announced(&self, ip: IpAddr) -> Vec<SocketAddr> {
        self.addresses.iter().map(|a| SocketAddr::new(ip, a.port())).collect()
    }

    /// Finishes what runs, within the limits of [`stream::serve`], and ends the threads.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let join = || self.threads.into_iter().for_each(|t| drop(t.join()));
        let _ = tokio::task::spawn_blocking(join).await;
    }
}

fn port(port: usize) -> Result<u16> {
    let what = || Error::new(Kind::Invalid, format!("serve.port: there is no port {port}"));
    u16::try_from(port).map_err(|_| what())
}

fn run(core: Core, listening: oneshot::Sender<Result<SocketAddr>>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            let _ = listening.send(Err(Error::io("starting a core's runtime", e)));
            return;
        }
    };
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let (endpoint, cache) = match open(&core) {
            Ok(opened) => opened,
            Err(e) => {
                let _ = listening.send(Err(e));
                return;
            }
        };
        let address = endpoint.local_addr().map_err(|e| Error::io(core.address, e));
        if listening.send(address).is_err() {
            return;
        }
        let clock = core.clock.clone();
        let (key, revoked) = (core.key.clone(), Some(core.revoked.clone()));
        let auth = Auth { key, clock: Arc::new(move || clock.now()), revoked };
        let sinks = core.receives.then(|| {
            let receiver = Receiver::new(&core.store);
            move |owner: Digest| receiver.for_owner(owner)
        });
        let mut stop = core.stop.clone();
        let shutdown = async move {
            // The sender outlives the cores; if it should not, that is a stop too.
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let memory = core.memory.clone();
        let limits = ServerLimits { per_peer: PER_PEER, memory, ..ServerLimits::default() };
        stream::serve(endpoint, cache, sinks, auth, limits, shutdown).await;
    });
}

fn open(core: &Core) -> Result<(quinn::Endpoint, Timed<CoreCache>)> {
    let endpoint = Tuning::default().server_endpoint(core.address, Arc::clone(&core.tls))?;
    let register = core.cache.read_buffers().into_iter().collect();
    let options = EngineOptions {
        choice: core.engine,
        depth: DISK_READS,
        register,
        ..EngineOptions::default()
    };
    let engine = Engine::start(options).map_err(|e| Error::io("starting file I/O", e))?;
    let cache = Cache::new(Timed::store(core.store.clone()), Arc::clone(&core.cache), engine);
    Ok((endpoint, Timed::requests(cache)))
}
