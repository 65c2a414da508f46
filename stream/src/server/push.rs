//! Images on their way in.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use image::error::At;
use image::frame::HEADER_LEN;
use image::seam::{ImagePlan, ImageSession};
use image::{
    ChunkSource, Digest, Error, ImageSink, Kind, Priority, ReadContext, Result, SectionSink,
};
use quinn::{RecvStream, SendStream};
use tokio::sync::OwnedSemaphorePermit;

use super::account::{BUSY, Room};
use super::connection::Conn;
use super::{intake, no_pushes};
use crate::io;
use crate::messages::Message;
use crate::session::inbox::unexpected;
use crate::session::push::{OfferedSection, Replies, Upload, check_commit};
use crate::wire::Type;

/// A push session: what was announced, and the receiver's end of it.
pub(super) struct PushState<P> {
    plan: ImagePlan,
    session: P,
}

/// A section that a client offers.
pub(super) struct Offer {
    pub(super) session: u64,
    pub(super) section: u32,
    pub(super) table: Bytes,
    pub(super) room: OwnedSemaphorePermit,
}

/// Counts a connection's push sessions.
struct Slot<'a>(&'a Cell<u32>);

impl<'a> Slot<'a> {
    fn take(count: &'a Cell<u32>, max: u32) -> Result<Self> {
        if count.get() >= max {
            let why = format!("{max} push sessions are open on this connection");
            return Err(Error::new(Kind::Busy(BUSY), why));
        }
        count.set(count.get() + 1);
        Ok(Self(count))
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Takes a session out of the connection's when its stream is over, however that came.
struct Registered<'a, S: ChunkSource, F, P> {
    conn: &'a Conn<S, F, P>,
    id: u64,
}

impl<S: ChunkSource, F, P> Drop for Registered<'_, S, F, P> {
    fn drop(&mut self) {
        self.conn.pushes.borrow_mut().remove(&self.id);
    }
}

/// A session stream: OPEN_PUSH → PUSH, then COMMIT → COMMITTED, until the client ends the stream.
pub(super) async fn session<S, F, K>(
    conn: &Conn<S, F, K::Session>,
    send: &mut SendStream,
    recv: &mut RecvStream,
    mut replies: Replies,
    ctx: &ReadContext,
    plan: ImagePlan,
) -> Result<()>
where
    S: ChunkSource + Clone + 'static,
    F: Fn(Digest) -> K + Clone + 'static,
    K: ImageSink + 'static,
{
    let limits = &conn.shared.limits;
    conn.may_push(&plan, false)?;
    let sinks = conn.shared.sinks.as_ref().ok_or_else(no_pushes)?;
    let _slot = Slot::take(&conn.push_count, limits.pushes)?;
    conn.account.receive(limits.push_window);
    let session = sinks(conn.holder).open(ctx, &plan).await?;
    let id = conn.next_push.replace(conn.next_push.get() + 1);
    let state = Rc::new(PushState { plan, session });
    conn.pushes.borrow_mut().insert(id, state.clone());
    let _registered = Registered { conn, id };
    io::write(send, limits.stall, &mut [Message::Push(id).encode()]).await?;
    while let Some((bytes, _room)) = next_commit(conn, recv, &mut replies).await? {
        let answer = match commit(conn, &state, bytes).await {
            Ok(image) => Message::Committed(image),
            Err(e) => {
                conn.log_refusal(&e);
                Message::Error(e)
            }
        };
        io::write(send, limits.stall, &mut [answer.encode()]).await?;
    }
    Ok(())
}

/// Waits for a COMMIT for as long as the connection lives, and for the rest of one that has begun for as long
/// as for anything; `None` at the end of the stream.
async fn next_commit<S: ChunkSource, F, P>(
    conn: &Conn<S, F, P>,
    recv: &mut RecvStream,
    replies: &mut Replies,
) -> Result<Option<(Bytes, Room)>> {
    const COMMIT: [Type; 1] = [Type::Commit];
    let stall = conn.shared.limits.stall;
    let header = intake::header(recv, replies, &COMMIT, Duration::MAX, stall).await?;
    let Some(header) = header else { return Ok(None) };
    let room = conn.account.take_long(header.len as usize).await?;
    match intake::message(recv, replies, &COMMIT, stall).await? {
        Message::Commit(bytes) => Ok(Some((bytes, room))),
        other => Err(unexpected(other.ty(), &COMMIT)),
    }
}

async fn commit<S: ChunkSource, F, P: ImageSession>(
    conn: &Conn<S, F, P>,
    state: &PushState<P>,
    bytes: Bytes,
) -> Result<Digest> {
    conn.may_push(&state.plan, true)?;
    let manifest = check_commit(&state.plan, &bytes)?;
    drop(bytes);
    state.session.commit(&manifest).await
}

/// Waits for the memory that a section takes: its table, one frame that is being assembled, and one that the
/// receiver works on. A section alone waits; what is not read of the others meanwhile could keep out the
/// frames of those that have begun, so they are to come back.
pub(super) async fn room<S: ChunkSource, F, P>(
    conn: &Conn<S, F, P>,
    offer: usize,
) -> Result<OwnedSemaphorePermit> {
    let chunks = |push: &Rc<PushState<P>>| push.plan.geometry.chunk_len();
    let largest = conn.pushes.borrow().values().map(chunks).max();
    let largest = largest
        .ok_or_else(|| Error::new(Kind::Gone, "no push session is open on this connection"))?;
    let Ok(_turn) = conn.next_section.try_lock() else {
        let why = "another section waits for memory";
        return Err(Error::new(Kind::Busy(BUSY), why));
    };
    conn.account.take(offer + 2 * (HEADER_LEN + largest), Priority::Background).await
}

/// A section stream: OFFER → WANT, FRAME … END → SEALED.
pub(super) async fn section<S: ChunkSource, F, P: ImageSession>(
    conn: &Conn<S, F, P>,
    send: &mut SendStream,
    recv: &mut RecvStream,
    replies: Replies,
    offer: Offer,
) -> Result<()> {
    let patience = conn.shared.limits.stall;
    let Offer { session, section, table, room } = offer;
    let state = conn.pushes.borrow().get(&session).cloned();
    let state = state.ok_or_else(|| {
        let why = format!("push session {session} is not open on this connection");
        Error::new(Kind::Gone, why)
    })?;
    conn.may_push(&state.plan, false)?;
    let offered = OfferedSection::check(&state.plan, section, &table)?;
    drop(table);
    let place = || format!("section {section}");
    let (want, mut sink) = state.session.offer(section, &offered.table).await?;
    OfferedSection::check_want(&offered.table, &want).at(place)?;
    io::write(send, patience, &mut [Message::Want(want.clone()).encode()]).await?;
    let mut upload = replies.into_upload(offered, want);
    loop {
        match upload.poll().at(place)? {
            Some(Upload::Frame { chunk, frame }) => sink.chunk(chunk, frame).await?,
            Some(Upload::End) => break,
            None => match io::read_some(recv, patience, upload.missing()).await? {
                Some(piece) => upload.feed(piece),
                None => {
                    return Err(Error::new(Kind::Retry, "the stream ended before END")).at(place);
                }
            },
        }
    }
    // Sealing takes as long as the store does; it is the next section's turn to be sent.
    drop((upload, room));
    sink.seal().await?;
    io::write(send, patience, &mut [Message::Sealed.encode()]).await
}
