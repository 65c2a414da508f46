//! The server: exports by name, connections side by side, and an end that loses nothing.

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use image::{Error, Kind, Result};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::connection;
use super::fault::Fault;
use super::leaving::Leaving;
use super::memory::Memory;
use super::proto::Card;
use super::proto::wire::MAX_STRING;
use super::socket::Socket;
use crate::export::Disk;

/// How long a server that cannot accept waits until it tries again.
const BREATHER: Duration = Duration::from_millis(100);

/// A disk with a name.
#[derive(Debug)]
pub struct Export<D> {
    /// What clients ask for; at most 4096 bytes. The first export is also the default one, which has the
    /// empty name.
    pub name: String,
    /// For people to read; at most 4096 bytes.
    pub description: String,
    /// The disk; connections share it.
    pub disk: Rc<D>,
}

impl<D: Disk> Export<D> {
    /// What clients are told of it. A disk that grows is seen by connections that come later: the
    /// protocol has no words for it.
    pub(super) fn card(&self) -> Card {
        Card {
            name: self.name.clone(),
            description: self.description.clone(),
            size: self.disk.size(),
            sector: self.disk.sector(),
            read_only: self.disk.read_only(),
        }
    }
}

/// What a server allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; the next one waits to be accepted. Each has an equal share of the memory.
    pub connections: usize,
    /// Pieces of requests that the disk has at a time, of each connection.
    pub requests: usize,
    /// How long a handshake may take.
    pub handshake: Duration,
    /// How long clients have to take their last replies when the server ends.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        let (handshake, grace) = (Duration::from_secs(10), Duration::from_secs(10));
        Limits { connections: 16, requests: 128, handshake, grace }
    }
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct Site<D> {
    pub exports: Vec<Export<D>>,
    pub memory: Memory,
    pub limits: Limits,
    pub leaving: Leaving,
}

/// Serves disks over NBD. Clones share it.
#[derive(Debug)]
pub struct Server<D>(Rc<Site<D>>);

impl<D> Clone for Server<D> {
    fn clone(&self) -> Self {
        Server(Rc::clone(&self.0))
    }
}

impl<D: Disk> Server<D> {
    /// Serves these exports.
    ///
    /// # Errors
    ///
    /// `Invalid` if there is none, if two have the same name, if a text is too long, if a limit is zero, or
    /// if there is less memory than a buffer of each size for every connection.
    pub fn new(exports: Vec<Export<D>>, memory: Memory, limits: Limits) -> Result<Server<D>> {
        let invalid = |why: String| Err(Error::new(Kind::Invalid, why));
        if exports.is_empty() || limits.connections == 0 || limits.requests == 0 {
            return invalid("a server needs an export, and limits above zero".into());
        }
        let enough = memory.connections();
        if limits.connections > enough {
            let wanted = limits.connections;
            return invalid(format!("memory for {enough} connections, not for {wanted}"));
        }
        for (i, Export { name, description, .. }) in exports.iter().enumerate() {
            if name.len().max(description.len()) > MAX_STRING {
                return invalid(format!("names have at most {MAX_STRING} bytes"));
            }
            if exports[..i].iter().any(|other| other.name == *name) {
                return invalid(format!("two exports with the name {name:?}"));
            }
        }
        Ok(Server(Rc::new(Site { exports, memory, limits, leaving: Leaving::default() })))
    }

    /// Its buffers.
    pub fn memory(&self) -> &Memory {
        &self.0.memory
    }

    /// Serves who connects to `socket` until `ending` is done. Then nobody else is let in, what was begun
    /// is finished and answered, and the connections are closed; requests that were not begun are left
    /// unanswered, so that a client that connects again can repeat them.
    ///
    /// # Panics
    ///
    /// Outside a [`tokio::task::LocalSet`].
    pub async fn serve(&self, socket: Socket, ending: impl Future<Output = ()>) {
        let (end, ended) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let mut ending = pin!(ending);
        loop {
            tokio::select! {
                () = &mut ending => break,
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
                accepted = socket.accept(), if tasks.len() < self.0.limits.connections => {
                    match accepted {
                        Ok(stream) => {
                            let (server, mut ended) = (self.clone(), ended.clone());
                            tasks.spawn_local(async move {
                                let ending = async move { drop(ended.wait_for(|end| *end).await) };
                                if let Err(fault) = server.connection(stream, ending).await {
                                    tracing::warn!(%fault, "an NBD connection ended");
                                }
                            });
                        }
                        Err(error) => {
                            tracing::warn!(%error, "cannot accept an NBD connection");
                            tokio::time::sleep(BREATHER).await;
                        }
                    }
                }
            }
        }
        drop(socket);
        let _ = end.send(true);
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(self.0.limits.grace, all).await.is_err() {
            tracing::warn!(clients = tasks.len(), "NBD clients that do not take their replies");
        }
        tasks.shutdown().await;
    }

    /// Serves one client over any stream, a TLS one for example, until one of both ends it, or until
    /// `ending` is done and what was begun is answered.
    ///
    /// # Errors
    ///
    /// Why it ended, if that was not in order.
    pub async fn connection<S>(
        &self,
        stream: S,
        ending: impl Future<Output = ()>,
    ) -> Result<(), Fault>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        connection::serve(&self.0, stream, ending).await
    }
}
