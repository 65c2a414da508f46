//! Reads chunks from a server over QUIC: a thin driver around [`crate::session::exchange`].
//!
//! ```text
//! Client ─┬─ Link ── Session ─┬─ control stream (a task)
//!         │                   └─ a stream per request
//!         └─ Link …            one per endpoint of the server; most of them are never connected
//! ```

mod first;
mod link;
mod session;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use image::error::At;
use image::{
    ChunkSink, ChunkSource, Digest, Error, Kind, Manifest, Place, ReadContext, Result, SectionTable,
};
use tokio::time::timeout;

use crate::io;
use crate::messages::{Granted, Limits, Message};
use crate::session::exchange::{Answer, Asked, PullAnswer};
use link::{Dial, Link, Opening, WeakOpening};
pub(crate) use session::{Request, Session};

/// Manifests that a client remembers, to check section tables against.
const MANIFESTS: usize = 8;
/// Tickets that a client remembers, to show them again on the next connection.
const TICKETS: usize = 64;

/// How much a client takes, and how long it waits.
#[derive(Clone, Debug)]
pub struct ClientLimits {
    /// From the first packet to the answer to the tickets.
    pub connect: Duration,
    /// For the next byte of an answer, and for room for the next byte of a request.
    pub answer: Duration,
    /// Longest chunk frame in bytes.
    pub frame: u32,
    /// Requests in flight on a connection, guests' aside. Each may fill a stream window while its
    /// reader is slow; so many of them must leave room in the connection's window
    /// ([`crate::transport::Tuning`]), or a guest's answer could not get through.
    pub bulk: u32,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(60),
            frame: image::frame::MAX_FRAME as u32,
            bulk: 12,
        }
    }
}

impl ClientLimits {
    fn announced(&self) -> Limits {
        Limits { frame: self.frame, ..Limits::default() }
    }
}

/// What a client needs to know.
#[derive(Debug)]
pub struct ClientOptions {
    /// Where packets leave from; see [`crate::transport::Tuning::client_endpoint`].
    pub endpoint: quinn::Endpoint,
    /// See [`crate::transport::Tuning::client`].
    pub config: quinn::ClientConfig,
    /// The server's endpoints: one per core of it. A connection is made to the first, to the next ones if
    /// it does not answer, and to one more when there is more to ask than those that are there take.
    pub servers: Vec<SocketAddr>,
    /// The name in the server's certificate.
    pub server_name: String,
    /// The tickets to show.
    pub tickets: Vec<String>,
    /// Patience and sizes.
    pub limits: ClientLimits,
}

/// The tickets of a client.
#[derive(Debug, Default)]
pub(crate) struct Tickets(Mutex<VecDeque<(String, Option<Granted>)>>);

impl Tickets {
    fn locked<R>(&self, f: impl FnOnce(&mut VecDeque<(String, Option<Granted>)>) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, token: &str) {
        self.locked(|all| {
            all.retain(|(t, _)| t != token);
            if all.len() >= TICKETS {
                all.pop_front();
            }
            all.push_back((token.to_owned(), None));
        });
    }

    fn remove(&self, token: &str) {
        self.locked(|all| all.retain(|(t, _)| t != token));
    }

    fn all(&self) -> Vec<String> {
        self.locked(|all| all.iter().map(|(token, _)| token.clone()).collect())
    }

    /// A ticket was accepted: an older one for the same right is not needed any more.
    fn granted(&self, token: &str, right: Granted) {
        self.locked(|all| {
            let renewed = |(t, old): &(String, Option<Granted>)| {
                t != token
                    && old
                        .as_ref()
                        .is_some_and(|old| old.grant == right.grant && old.expires <= right.expires)
            };
            all.retain(|entry| !renewed(entry));
            if let Some(entry) = all.iter_mut().find(|(t, _)| t == token) {
                entry.1 = Some(right);
            }
        });
    }
}

#[derive(Debug)]
struct Inner {
    dial: Arc<Dial>,
    links: Vec<Arc<Link>>,
    /// The attempt to get a first session, which all who have none wait for.
    connecting: Mutex<Option<WeakOpening>>,
    manifests: Mutex<VecDeque<(Digest, Arc<Manifest>)>>,
}

/// A server of chunks across the network. A clone shares its connections.
///
/// A request takes the connection with the least to do. When a connection is lost, its requests fail
/// with [`Kind::Retry`]; the next request connects again, or goes to another endpoint of the server.
/// Dropping the last clone closes the connections.
///
/// [`ChunkSource::chunks`] gives only chunks that were asked for, each once, with a good CRC32C. That
/// a frame has the digest which the section table names is for the caller to check, who has the table
/// ([`image::Decoder::decode`] does). Manifests and section tables are checked here.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

/// A [`Client`] that others may drop: its connections are closed with the last of these.
#[derive(Clone, Debug)]
pub struct WeakClient(Weak<Inner>);

impl WeakClient {
    /// The client, if it is still there.
    pub fn upgrade(&self) -> Option<Client> {
        self.0.upgrade().map(Client)
    }
}

impl Client {
    /// Connects to the first of the server's endpoints that answers. Call it inside the runtime that drives
    /// the endpoint.
    pub async fn connect(options: ClientOptions) -> Result<Self> {
        let ClientOptions { endpoint, config, servers, server_name, tickets, limits } = options;
        let dial = Dial { endpoint, config, server_name, limits, tickets: Tickets::default() };
        tickets.iter().for_each(|token| dial.tickets.add(token));
        let dial = Arc::new(dial);
        let links = servers.iter().map(|addr| Link::new(*addr, dial.clone())).collect();
        let (connecting, manifests) = (Mutex::default(), Mutex::default());
        let client = Self(Arc::new(Inner { dial, links, connecting, manifests }));
        client.session().await?;
        Ok(client)
    }

    /// The same client, as it is known to who does not keep its connections open.
    pub fn downgrade(&self) -> WeakClient {
        WeakClient(Arc::downgrade(&self.0))
    }

    /// Shows one more ticket: a renewal, or for another image. It is shown again whenever a connection is
    /// made; `None` if there is none now to show it on. One that is refused is forgotten.
    pub async fn add_ticket(&self, token: &str) -> Result<Option<Granted>> {
        let Inner { dial, links, .. } = &*self.0;
        dial.tickets.add(token);
        links.iter().for_each(|link| link.hurry());
        let mut granted = None;
        for session in links.iter().filter_map(|link| link.current()).collect::<Vec<_>>() {
            match session.show(token).await {
                Ok(right) => {
                    dial.tickets.granted(token, right.clone());
                    granted = Some(right);
                }
                Err(e) if e.kind() == Kind::Retry => {}
                Err(e) => {
                    dial.tickets.remove(token);
                    return Err(e);
                }
            }
        }
        Ok(granted)
    }

    /// Closes the connections, for all clones of this, and returns when that has been sent. A server
    /// that is not told keeps what it holds for a client until it has been silent for long.
    pub async fn close(&self) {
        let sessions = self.0.links.iter().filter_map(|link| link.current());
        join_all(sessions.map(async |session| session.close().await)).await;
    }

    pub(crate) fn patience(&self) -> Duration {
        self.0.dial.limits.answer
    }

    /// The session with the least to do. If all have as much to do as they take, one more is opened, which
    /// nobody waits for while there is another: an endpoint that does not answer costs the others nothing.
    pub(crate) async fn session(&self) -> Result<Arc<Session>> {
        let links = &self.0.links;
        let up = links.iter().filter_map(|link| link.current());
        if let Some(best) = up.min_by_key(|session| session.load()) {
            if best.full() {
                links.iter().find(|link| link.wake());
            }
            return Ok(best);
        }
        self.connecting().await
    }

    /// The attempt to get a session where there is none. It goes on when who waited for it has gone.
    fn connecting(&self) -> Opening {
        let mut connecting = self.0.connecting.lock().unwrap_or_else(PoisonError::into_inner);
        let running = connecting.as_ref().and_then(WeakOpening::upgrade);
        if let Some(running) = running.filter(|running| running.peek().is_none()) {
            return running;
        }
        let opening = first::connect(self.0.links.clone()).boxed().shared();
        *connecting = opening.downgrade();
        tokio::spawn(opening.clone().map(drop));
        opening
    }

    /// Asks, and gives each part of the answer to `take`.
    async fn ask(
        &self,
        ctx: &ReadContext,
        message: Message,
        asked: Asked,
        take: impl AsyncFnMut(Answer) -> Result<()>,
    ) -> Result<()> {
        let work = async {
            let session = self.session().await?;
            let result = self.exchange(&session, ctx, message, asked, take).await;
            result.at(|| session.name())
        };
        let Some(deadline) = ctx.deadline else { return work.await };
        timeout(deadline, work).await.unwrap_or_else(|_| {
            let why = format!("the deadline of {} ms has passed", deadline.as_millis());
            Err(Error::new(Kind::Retry, why))
        })
    }

    async fn exchange(
        &self,
        session: &Session,
        ctx: &ReadContext,
        message: Message,
        asked: Asked,
        mut take: impl AsyncFnMut(Answer) -> Result<()>,
    ) -> Result<()> {
        let patience = self.patience();
        // Dropping the request tells the server to stop.
        let mut request = session.request(&message, ctx.priority, patience).await?;
        let _ = request.send.finish();
        let mut answer = PullAnswer::new(asked, self.0.dial.limits.frame as usize);
        loop {
            while let Some(part) = answer.poll()? {
                let complete = !matches!(part, Answer::Frame { .. });
                if part != Answer::End {
                    take(part).await?;
                }
                if complete {
                    return Ok(());
                }
            }
            if !io::read(&mut request.recv, patience, |piece| answer.feed(piece)).await? {
                return answer.end();
            }
        }
    }

    fn known_manifest(&self, image: &Digest) -> Option<Arc<Manifest>> {
        let known = self.0.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(i, _)| i == image).map(|(_, m)| m.clone())
    }

    fn remember(&self, image: Digest, manifest: Arc<Manifest>) {
        let mut known = self.0.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        if known.iter().all(|(i, _)| *i != image) {
            if known.len() >= MANIFESTS {
                known.pop_front();
            }
            known.push_back((image, manifest));
        }
    }
}

impl ChunkSource for Client {
    async fn manifest(&self, ctx: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        if let Some(known) = self.known_manifest(image) {
            return Ok(known);
        }
        let mut bytes = None;
        let message = Message::GetManifest { ctx: *ctx, image: *image };
        self.ask(ctx, message, Asked::Manifest, async |answer| {
            if let Answer::Manifest(b) = answer {
                bytes = Some(b);
            }
            Ok(())
        })
        .await?;
        let manifest = Manifest::parse(&bytes.unwrap_or_default(), image);
        let manifest = Arc::new(manifest.at(|| format!("image {image}"))?);
        self.remember(*image, manifest.clone());
        Ok(manifest)
    }

    async fn section_table(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        let place = || format!("image {image}: section {section}");
        let manifest = self.manifest(ctx, image).await?;
        let digest = manifest.section(section).ok_or_else(|| {
            let why = format!("the image has {} sections", manifest.sections().len());
            Error::new(Kind::Invalid, why).at(place())
        })?;
        if digest.is_zero() {
            let chunks = manifest.geometry().chunks_in(section);
            return Ok(Arc::new(SectionTable::zeros(manifest.domain(), chunks)));
        }
        let mut bytes = None;
        let message = Message::GetTable { ctx: *ctx, image: *image, section };
        self.ask(ctx, message, Asked::Table, async |answer| {
            if let Answer::Table(b) = answer {
                bytes = Some(b);
            }
            Ok(())
        })
        .await?;
        Ok(Arc::new(SectionTable::parse(&bytes.unwrap_or_default(), &digest).at(place)?))
    }

    async fn chunks<S: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> Result<()> {
        if place.chunks.is_empty() {
            return Ok(());
        }
        let message = Message::GetChunks { ctx: *ctx, place: place.clone() };
        self.ask(ctx, message, Asked::Chunks(place.chunks.clone()), async |answer| match answer {
            Answer::Frame { chunk, frame } => sink.chunk(chunk, frame).await,
            _ => Ok(()),
        })
        .await
        .at(|| format!("section {}", place.section))
    }
}
