//! One connection: its peer, its control stream, and a task for each of its requests.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use api::ticket::holder_of;
use bytes::Bytes;
use image::seam::ImagePlan;
use image::{ChunkSource, Digest, Error, Geometry, ImageSink, Kind, ReadContext, Result};
use quinn::{Connection, Incoming, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::account::Account;
use super::push::PushState;
use super::{ServerLimits, Shared, intake, pull, push, revoked};
use crate::io;
use crate::messages::{Limits, Message};
use crate::session::control::{Peer, ServerControl, ServerEvent};
use crate::session::push::Replies;
use crate::transport::{close_code, stream_code};
use crate::wire::Type;

/// Geometries that a connection remembers.
const MAX_GEOMETRIES: usize = 64;

/// Who is at the other end, for people.
#[derive(Clone, Debug)]
pub(super) struct PeerName {
    name: String,
    addr: SocketAddr,
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.addr)
    }
}

/// One connection, as its requests see it.
pub(super) struct Conn<S, F, P> {
    pub(super) shared: Rc<Shared<S, F>>,
    pub(super) peer: PeerName,
    pub(super) holder: Digest,
    pub(super) account: Account,
    pub(super) pushes: RefCell<HashMap<u64, Rc<PushState<P>>>>,
    /// Push sessions that are being opened or are open.
    pub(super) push_count: Cell<u32>,
    pub(super) next_push: Cell<u64>,
    /// Held by the section that waits for memory.
    pub(super) next_section: tokio::sync::Mutex<()>,
    control: RefCell<ServerControl>,
    theirs: Cell<Limits>,
    geometries: RefCell<HashMap<Digest, Geometry>>,
}

impl<S: ChunkSource, F, P> Conn<S, F, P> {
    fn now(&self) -> u64 {
        (self.shared.auth.clock)()
    }

    /// Whether the peer may read an image.
    pub(super) fn may_pull(&self, image: &Digest) -> Result<()> {
        self.control.borrow().may_pull(image, self.now())
    }

    /// Whether the peer may push such an image; `started` if it has begun before a shutdown.
    pub(super) fn may_push(&self, plan: &ImagePlan, started: bool) -> Result<()> {
        let (control, now) = (self.control.borrow(), self.now());
        if started { control.may_finish_push(plan, now) } else { control.may_push(plan, now) }
    }

    /// Longest frame that the peer takes.
    pub(super) fn max_frame(&self) -> usize {
        self.theirs.get().frame as usize
    }

    /// The geometry of an image, from its manifest at first, then remembered.
    pub(super) async fn geometry(&self, ctx: &ReadContext, image: &Digest) -> Result<Geometry> {
        if let Some(known) = self.geometries.borrow().get(image) {
            return Ok(*known);
        }
        let geometry = *self.shared.source.manifest(ctx, image).await?.geometry();
        let mut all = self.geometries.borrow_mut();
        if all.len() >= MAX_GEOMETRIES {
            all.clear();
        }
        all.insert(*image, geometry);
        Ok(geometry)
    }

    /// Logs what a request was refused for.
    pub(super) fn log_refusal(&self, e: &Error) {
        match e.kind() {
            Kind::Denied => tracing::warn!(peer = %self.peer, reason = %e, "denied"),
            kind => tracing::debug!(peer = %self.peer, kind = kind.name(), reason = %e, "failed"),
        }
    }
}

/// Counts a connection as one that has not said HELLO.
struct Opening<'a>(&'a Cell<usize>);

impl<'a> Opening<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Counts a peer's connections.
struct PeerSlot<'a> {
    peers: &'a RefCell<HashMap<Digest, usize>>,
    holder: Digest,
}

impl<'a> PeerSlot<'a> {
    fn take(
        peers: &'a RefCell<HashMap<Digest, usize>>,
        holder: Digest,
        max: usize,
    ) -> Option<Self> {
        let mut all = peers.borrow_mut();
        let count = all.entry(holder).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Self { peers, holder })
    }
}

impl Drop for PeerSlot<'_> {
    fn drop(&mut self) {
        let mut all = self.peers.borrow_mut();
        if let Some(count) = all.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.holder);
            }
        }
    }
}

/// Serves one connection to its end.
pub(super) async fn run<S, F, K>(incoming: Incoming, shared: Rc<Shared<S, F>>)
where
    S: ChunkSource + Clone + 'static,
    F: Fn(Digest) -> K + Clone + 'static,
    K: ImageSink + 'static,
{
    let addr = incoming.remote_address();
    let opening = Opening::new(&shared.opening);
    let opened = timeout(shared.limits.handshake, open(incoming)).await;
    let (quic, certificate, send, recv) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(e)) => return tracing::warn!(peer = %addr, reason = %e, "connection refused"),
        Err(_) => return tracing::warn!(peer = %addr, "connection refused: handshake too slow"),
    };
    let holder = holder_of(&certificate);
    let peer = PeerName { name: subject(&certificate), addr };
    let Some(_slot) = PeerSlot::take(&shared.peers, holder, shared.limits.per_peer) else {
        tracing::warn!(%peer, "connection refused: too many of this peer");
        return quic.close(close_code::BUSY, b"too many connections of this certificate");
    };
    let Some(loan) = shared.limits.memory.open(holder) else {
        tracing::warn!(%peer, "connection refused: no memory for it");
        return quic.close(close_code::BUSY, b"no memory for one more connection");
    };
    let key = shared.auth.key.clone();
    let control = ServerControl::new(Peer { key, holder }, shared.limits.announced());
    let conn: Conn<S, F, K::Session> = Conn {
        peer,
        holder,
        account: Account::new(quic.clone(), loan, &shared.limits),
        pushes: RefCell::new(HashMap::new()),
        push_count: Cell::new(0),
        next_push: Cell::new(1),
        next_section: tokio::sync::Mutex::default(),
        control: RefCell::new(control),
        theirs: Cell::new(Limits::default()),
        geometries: RefCell::new(HashMap::new()),
        shared: shared.clone(),
    };
    let name = revoked::member_name(&certificate);
    let revoked = revoked::until(shared.auth.revoked.clone(), name, holder);
    let conn = Rc::new(conn);
    let peer = conn.peer.clone();
    let driven = drive(conn, opening, quic.clone(), send, recv);
    tokio::select! {
        biased;
        () = revoked => {
            tracing::warn!(%peer, "connection ended: its certificate was revoked");
            quic.close(close_code::REVOKED, b"the certificate was revoked");
        }
        () = driven => {}
    }
}

/// The TLS handshake, and the control stream, which the client opens first.
async fn open(incoming: Incoming) -> Result<(Connection, Vec<u8>, SendStream, RecvStream)> {
    let lost = |e| io::connection_error(&e);
    let quic = incoming.await.map_err(lost)?;
    let identity = quic.peer_identity().and_then(|i| i.downcast::<Vec<CertificateDer<'_>>>().ok());
    let leaf = identity.and_then(|chain| chain.first().map(|c| c.to_vec()));
    let leaf = leaf.ok_or_else(|| Error::new(Kind::Denied, "no certificate was shown"))?;
    let (send, recv) = quic.accept_bi().await.map_err(lost)?;
    Ok((quic, leaf, send, recv))
}

/// The name in a certificate that TLS has already verified.
fn subject(certificate: &[u8]) -> String {
    let parsed = x509_parser::parse_x509_certificate(certificate);
    let name = parsed.ok().and_then(|(_, c)| {
        let common = c.subject().iter_common_name().next();
        common.and_then(|n| n.as_str().ok()).map(|n| n.escape_default().to_string())
    });
    name.unwrap_or_else(|| "a peer without a name".into())
}

/// Moves bytes of the control stream and starts a task per request, until the connection ends.
async fn drive<S, F, K>(
    conn: Rc<Conn<S, F, K::Session>>,
    opening: Opening<'_>,
    quic: Connection,
    mut send: SendStream,
    mut recv: RecvStream,
) where
    S: ChunkSource + Clone + 'static,
    F: Fn(Digest) -> K + Clone + 'static,
    K: ImageSink + 'static,
{
    let limits = &conn.shared.limits;
    let _ = send.set_priority(io::urgency(image::Priority::Guest));
    match timeout(limits.handshake, hello(&conn, &mut send, &mut recv)).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => return refuse(&conn, &quic, send, &e).await,
        Err(_) => return quic.close(close_code::TIMEOUT, b"no HELLO in time"),
    }
    drop(opening);
    // Control stream and session streams come on top of the requests.
    quic.set_max_concurrent_bi_streams((limits.requests + limits.pushes + 1).into());
    let mut stop = conn.shared.stop.clone();
    let mut stopping = false;
    let mut requests = JoinSet::new();
    loop {
        if stopping && requests.is_empty() {
            return quic.close(close_code::SHUTDOWN, b"shutdown");
        }
        let outcome = tokio::select! {
            biased;
            Some(_) = requests.join_next(), if !requests.is_empty() => {
                if requests.is_empty() {
                    conn.account.rest();
                }
                Ok(())
            }
            _ = stop.wait_for(|stop| *stop), if !stopping => {
                stopping = true;
                conn.control.borrow_mut().go_away();
                flush(&conn, &mut send).await
            }
            more = recv.read_chunk(64 << 10, true) => match more {
                Ok(Some(piece)) => control_bytes(&conn, &mut send, piece.bytes).await,
                Ok(None) | Err(_) => return quic.close(close_code::DONE, b""),
            },
            stream = quic.accept_bi() => match stream {
                Ok((send, recv)) => {
                    requests.spawn_local(request(conn.clone(), send, recv));
                    Ok(())
                }
                // The connection is gone; dropping `requests` ends what still runs for it.
                Err(_) => return,
            },
        };
        if let Err(e) = outcome {
            return refuse(&conn, &quic, send, &e).await;
        }
    }
}

/// Reads the control stream until the client has said HELLO. The caller limits the time.
async fn hello<S: ChunkSource, F, P>(
    conn: &Conn<S, F, P>,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<()> {
    while !conn.control.borrow().said_hello() {
        let mut pieces = Vec::new();
        if !io::read(recv, Duration::MAX, |p| pieces.push(p)).await? {
            return Err(Error::new(Kind::Invalid, "the control stream ended before HELLO"));
        }
        for piece in pieces {
            control_bytes(conn, send, piece).await?;
        }
    }
    Ok(())
}

/// Takes bytes of the control stream, and answers before more are read: a client that does not read
/// its answers is not read either.
async fn control_bytes<S: ChunkSource, F, P>(
    conn: &Conn<S, F, P>,
    send: &mut SendStream,
    bytes: Bytes,
) -> Result<()> {
    let now = conn.now();
    let result = conn.control.borrow_mut().receive(bytes, now);
    loop {
        let event = conn.control.borrow_mut().poll_event();
        match event {
            Some(ServerEvent::Hello { version, limits }) => {
                tracing::debug!(peer = %conn.peer, version, "connected");
                conn.theirs.set(limits);
            }
            Some(ServerEvent::Granted(granted)) => {
                tracing::debug!(peer = %conn.peer, right = ?granted.grant, "granted");
            }
            Some(ServerEvent::Refused(e)) => conn.log_refusal(&e.at("ticket refused")),
            None => break,
        }
    }
    flush(conn, send).await?;
    result
}

async fn flush<S: ChunkSource, F, P>(conn: &Conn<S, F, P>, send: &mut SendStream) -> Result<()> {
    loop {
        let bytes = conn.control.borrow_mut().poll_transmit();
        let Some(bytes) = bytes else { return Ok(()) };
        io::write(send, conn.shared.limits.stall, &mut [bytes]).await?;
    }
}

/// Ends a connection whose peer broke the protocol. Its ERROR has been written.
async fn refuse<S: ChunkSource, F, P>(
    conn: &Conn<S, F, P>,
    quic: &Connection,
    mut send: SendStream,
    e: &Error,
) {
    tracing::warn!(peer = %conn.peer, reason = %e, "connection closed: protocol");
    io::finish(&mut send, conn.shared.limits.handshake).await;
    quic.close(close_code::PROTOCOL, b"see the ERROR on the control stream");
}

/// One request stream.
async fn request<S, F, K>(
    conn: Rc<Conn<S, F, K::Session>>,
    mut send: SendStream,
    mut recv: RecvStream,
) where
    S: ChunkSource + Clone + 'static,
    F: Fn(Digest) -> K + Clone + 'static,
    K: ImageSink + 'static,
{
    let limits = &conn.shared.limits;
    // Resolves when the client does not want the answer any more, or is gone: then the work is
    // dropped, and with it whatever it was waiting for.
    let given_up = send.stopped();
    let work = async {
        let mut replies = Replies::new();
        let result = match first_message(&conn, &mut recv, &mut replies).await {
            Err(e) => Err(e),
            Ok(First::Push { ctx, plan }) => {
                push::session::<S, F, K>(&conn, &mut send, &mut recv, replies, &ctx, plan).await
            }
            Ok(First::Section(offer)) => {
                push::section::<S, F, K::Session>(&conn, &mut send, &mut recv, replies, offer).await
            }
            Ok(First::Read(request)) => pull::answer(&conn, &mut send, request).await,
        };
        if let Err(e) = result {
            conn.log_refusal(&e);
            let error = Message::Error(e).encode();
            if io::write(&mut send, limits.stall, &mut [error]).await.is_err() {
                return;
            }
            let _ = recv.stop(stream_code::REFUSED);
        }
        io::finish(&mut send, limits.stall).await;
    };
    tokio::select! {
        biased;
        () = work => {}
        _ = given_up => tracing::debug!(peer = %conn.peer, "request cancelled"),
    }
}

/// What a stream is for.
enum First {
    Push { ctx: ReadContext, plan: ImagePlan },
    Section(push::Offer),
    Read(Message),
}

/// The request itself. All but an OFFER are short; of that nothing is taken before there is room for it.
async fn first_message<S: ChunkSource, F, P>(
    conn: &Conn<S, F, P>,
    recv: &mut RecvStream,
    replies: &mut Replies,
) -> Result<First> {
    const REQUESTS: [Type; 5] =
        [Type::GetManifest, Type::GetTable, Type::GetChunks, Type::OpenPush, Type::Offer];
    let ServerLimits { handshake, stall, .. } = conn.shared.limits;
    let slow = |_| Error::new(Kind::Invalid, "the request did not come in time");
    let header = intake::header(recv, replies, &REQUESTS, stall, stall);
    let header = timeout(handshake, header).await.map_err(slow)??.ok_or_else(intake::cut_off)?;
    let room = match header.ty {
        Type::Offer => Some(push::room(conn, header.len as usize).await?),
        _ => None,
    };
    let message = intake::message(recv, replies, &REQUESTS, stall);
    Ok(match (timeout(handshake, message).await.map_err(slow)??, room) {
        (Message::OpenPush { ctx, plan }, _) => First::Push { ctx, plan },
        (Message::Offer { session, section, table }, Some(room)) => {
            First::Section(push::Offer { session, section, table, room })
        }
        (other, _) => First::Read(other),
    })
}
