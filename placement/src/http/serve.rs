//! Connections: TLS, limits, and an orderly end.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::patient::Patient;
use super::peer::Peer;
use super::places::{Place, Places};

/// What one peer, or all together, may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at the same time; further ones wait in the listener's queue.
    pub connections: usize,
    /// Of these, the ones that one machine may have; further ones are closed at once.
    pub per_machine: usize,
    /// Longest body of a request, in bytes.
    pub body: usize,
    /// Longest head of a request, in bytes; at least 8192.
    pub head: usize,
    /// Time for a TLS handshake, for the head of a request (an idle connection is closed after it),
    /// and for a body: each.
    pub read: Duration,
    /// Time in which a peer must take some more of an answer.
    pub write: Duration,
    /// Time that running requests have to end on shutdown.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            per_machine: 128,
            body: 64 << 10,
            head: 16 << 10,
            read: Duration::from_secs(15),
            write: Duration::from_secs(15),
            drain: Duration::from_secs(10),
        }
    }
}

/// Pause after the system refused to accept a connection (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` is done; then running requests have [`Limits::drain`] to end.
pub(crate) async fn serve(
    listener: TcpListener,
    server: Server,
    shutdown: impl Future<Output = ()>,
) {
    let limits = server.limits.clone();
    let server = Arc::new(server);
    let room = Arc::new(Semaphore::new(limits.connections));
    let places = Places::new(limits.per_machine);
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener, &room, &places) => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, address, place) = accepted;
        let (server, watcher) = (server.clone(), graceful.watcher());
        connections.spawn(async move {
            let _place = place;
            server.connection(stream, address, watcher).await;
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests that were still running have been cut off");
    }
    connections.shutdown().await;
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    places: &Arc<Places>,
) -> (TcpStream, SocketAddr, (OwnedSemaphorePermit, Place)) {
    let room = room.clone().acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, address)) => match places.take(address.ip()) {
                Some(place) => return (stream, address, (room, place)),
                None => tracing::warn!(peer = %address, "denied: too many connections from there"),
            },
            Err(e) => {
                tracing::warn!(error = %e, "accepting a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What is served, and to whom.
pub(crate) struct Server {
    /// The grid whose members may ask.
    pub grid: String,
    pub router: Router,
    pub tls: TlsAcceptor,
    pub limits: Limits,
}

impl Server {
    async fn connection(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        watcher: hyper_util::server::graceful::Watcher,
    ) {
        // Answers are small; waiting to fill a segment only delays them.
        let _ = stream.set_nodelay(true);
        let stream = Patient::new(stream, self.limits.write);
        let handshake = tokio::time::timeout(self.limits.read, self.tls.accept(stream));
        let stream = match handshake.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => return tracing::warn!(peer = %address, reason = %e, "denied: TLS"),
            Err(_) => return tracing::debug!(peer = %address, "no TLS handshake in time"),
        };
        let peer = Peer::new(address, stream.get_ref().1.peer_certificates(), &self.grid);
        let router = TowerToHyperService::new(self.router.clone());
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(peer.clone());
            router.call(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.read)
            .max_buf_size(self.limits.head)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(e) = watcher.watch(connection).await {
            tracing::debug!(peer = %address, error = %e, "connection ended");
        }
    }
}
