//! Serves chunks, and takes images, over QUIC: a thin driver around [`crate::session`].
//!
//! ```text
//! serve ─ accept ─┬─ connection ─┬─ control stream      ServerControl: who may do what
//!                 │              ├─ read stream …       ChunkSource → FRAME …
//!                 │              └─ push stream …       FRAME … → ImageSink
//!                 └─ connection …
//! ```
//! One endpoint, one thread: everything runs on the caller's current-thread runtime, so the source
//! and the sink need not be `Send`. A server has one per core.
//!
//! Memory: what is sent and not taken, the frames in work, and the receive window are lent to a connection out
//! of [`ServerLimits::memory`], which all cores of a process share; a little at first, more to who reads. A slow
//! reader holds what it was lent and slows nobody. No more is read of a stream than the message that is expected
//! on it, and of one that may be long (OFFER, FRAME, COMMIT) no more than its header before there is room for it.

mod account;
mod budget;
mod connection;
mod intake;
mod memory;
mod pull;
mod push;
mod revoked;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use api::grid::Revocations;
use image::seam::{ImagePlan, ImageSession};
use image::signing::VerifyingKey;
use image::{
    ChunkSet, ChunkSource, Digest, Error, Frame, ImageSink, Kind, Manifest, ReadContext, Result,
    SectionSink, SectionTable,
};
use quinn::{Endpoint, Incoming};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;

use crate::messages::Limits;
use crate::transport::close_code;
pub use memory::{Lent, Memory};

/// How the server knows who may do what.
#[derive(Clone)]
pub struct Auth {
    /// Verifies tickets.
    pub key: VerifyingKey,
    /// The time in seconds since 1970.
    pub clock: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// The certificates that are refused, as far as is known now; `None` where none can be. A connection of one that
    /// comes to be among them is ended.
    pub revoked: Option<watch::Receiver<Arc<Revocations>>>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("key", &self.key).finish_non_exhaustive()
    }
}

/// How much of the server one peer, and all of them, may use.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Connections of the endpoint.
    pub connections: usize,
    /// Connections of one certificate.
    pub per_peer: usize,
    /// Requests in flight on a connection.
    pub requests: u32,
    /// Push sessions on a connection.
    pub pushes: u32,
    /// Bytes of frames in work on a connection at most; a quarter of it is for guests alone.
    pub held: usize,
    /// Bytes that a node has on its way at most, sent and not acknowledged, over all its connections: on a
    /// link that is shared, a node with many gets no more than one with one.
    pub window: usize,
    /// Bytes that are taken of an image on its way in before they are looked at, on a connection.
    pub push_window: u32,
    /// What all connections may hold together. Every core of a process has a clone of the same.
    pub memory: Memory,
    /// From the first packet to HELLO, and from a stream's start to its whole request.
    pub handshake: Duration,
    /// A stream on which the peer neither gives nor takes a byte for so long is ended.
    pub stall: Duration,
    /// How long a shutdown waits for what runs.
    pub drain: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections: 1024,
            per_peer: 16,
            requests: 64,
            pushes: 4,
            held: 32 << 20,
            window: 8 << 20,
            push_window: 8 << 20,
            memory: Memory::new(256 << 20),
            handshake: Duration::from_secs(10),
            stall: Duration::from_secs(60),
            drain: Duration::from_secs(20),
        }
    }
}

impl ServerLimits {
    fn announced(&self) -> Limits {
        Limits { requests: self.requests, pushes: self.pushes, ..Limits::default() }
    }
}

/// What every connection shares.
struct Shared<S, F> {
    source: S,
    sinks: Option<F>,
    auth: Auth,
    limits: ServerLimits,
    /// Connections per holder.
    peers: RefCell<HashMap<Digest, usize>>,
    /// Connections that have not said HELLO.
    opening: Cell<usize>,
    /// True once the server is shutting down.
    stop: watch::Receiver<bool>,
}

/// Serves `source`, and takes images into `sinks(holder)` if given, until `shutdown` is done and what
/// ran then is finished (or [`ServerLimits::drain`] has passed).
///
/// Runs on the current thread; call it inside a current-thread runtime that owns the endpoint. For a
/// server that takes no images pass `None::<fn(Digest) -> NoSink>`.
pub async fn serve<S, F, K>(
    endpoint: Endpoint,
    source: S,
    sinks: Option<F>,
    auth: Auth,
    limits: ServerLimits,
    shutdown: impl Future<Output = ()>,
) where
    S: ChunkSource + Clone + 'static,
    F: Fn(Digest) -> K + Clone + 'static,
    K: ImageSink + 'static,
{
    let (stopper, stop) = watch::channel(false);
    let peers = RefCell::new(HashMap::new());
    let opening = Cell::new(0);
    let shared = Rc::new(Shared { source, sinks, auth, limits, peers, opening, stop });
    let tasks = LocalSet::new();
    tasks
        .run_until(async {
            let mut connections = JoinSet::new();
            accept(&endpoint, &shared, &mut connections, shutdown).await;
            stopper.send_replace(true);
            endpoint.set_server_config(None);
            let all_done = async { while connections.join_next().await.is_some() {} };
            if timeout(shared.limits.drain, all_done).await.is_err() {
                tracing::warn!("shutdown: some requests were not finished in time");
            }
            endpoint.close(close_code::SHUTDOWN, b"shutdown");
            let _ = timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
        })
        .await;
}

/// Takes connections until the shutdown begins.
async fn accept<S, F, K>(
    endpoint: &Endpoint,
    shared: &Rc<Shared<S, F>>,
    connections: &mut JoinSet<()>,
    shutdown: impl Future<Output = ()>,
) where
    S: ChunkSource + Clone + 'static,
    F: Fn(Digest) -> K + Clone + 'static,
    K: ImageSink + 'static,
{
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => return,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => admit(incoming, shared, connections),
                None => return,
            },
        }
    }
}

/// Decides on a connection before anything is computed for it.
fn admit<S, F, K>(incoming: Incoming, shared: &Rc<Shared<S, F>>, connections: &mut JoinSet<()>)
where
    S: ChunkSource + Clone + 'static,
    F: Fn(Digest) -> K + Clone + 'static,
    K: ImageSink + 'static,
{
    let (open, max) = (connections.len(), shared.limits.connections);
    // Who has not said HELLO takes no more than half the places: those who come properly find one.
    if open >= max || shared.opening.get() >= max.div_ceil(2) {
        tracing::warn!(peer = %incoming.remote_address(), open, "connection refused: too many");
        incoming.refuse();
    } else if open >= max / 2 && incoming.may_retry() && !incoming.remote_address_validated() {
        // Under load an address is made to prove itself: a flood from forged ones costs nothing.
        let _ = incoming.retry();
    } else {
        connections.spawn_local(connection::run(incoming, shared.clone()));
    }
}

/// The sink of a server that takes no images.
#[derive(Clone, Copy, Debug)]
pub enum NoSink {}

impl ImageSink for NoSink {
    type Session = NoSink;

    async fn open(&self, _: &ReadContext, _: &ImagePlan) -> Result<NoSink> {
        match *self {}
    }
}

impl ImageSession for NoSink {
    type Section = NoSink;

    async fn offer(&self, _: u32, _: &SectionTable) -> Result<(ChunkSet, NoSink)> {
        match *self {}
    }

    async fn commit(&self, _: &Manifest) -> Result<Digest> {
        match *self {}
    }
}

impl SectionSink for NoSink {
    async fn chunk(&mut self, _: u32, _: Frame) -> Result<()> {
        match *self {}
    }

    async fn seal(self) -> Result<()> {
        match self {}
    }
}

fn no_pushes() -> Error {
    Error::new(Kind::Unsupported, "this server takes no images; ask placement for a receiver")
}
