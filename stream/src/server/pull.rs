//! Read requests: what the source gives goes out as it comes.

use std::time::Duration;

use bytes::Bytes;
use image::error::At;
use image::frame::HEADER_LEN;
use image::{
    ChunkSink, ChunkSource, Digest, Error, Frame, Geometry, Kind, Place, Priority, ReadContext,
    Result,
};
use quinn::SendStream;
use tokio::time::timeout;

use super::account::Account;
use super::connection::Conn;
use crate::io;
use crate::messages::{Message, frame_head};
use crate::session::inbox::unexpected;
use crate::wire::Type;

/// Answers one request. An error that comes back has not been sent yet.
pub(super) async fn answer<S: ChunkSource, F, P>(
    conn: &Conn<S, F, P>,
    send: &mut SendStream,
    request: Message,
) -> Result<()> {
    let (ctx, image) = match &request {
        Message::GetManifest { ctx, image } | Message::GetTable { ctx, image, .. } => {
            (*ctx, *image)
        }
        Message::GetChunks { ctx, place } => (*ctx, place.image),
        other => return Err(unexpected(other.ty(), &[Type::GetManifest, Type::GetChunks])),
    };
    conn.may_pull(&image)?;
    let _ = send.set_priority(io::urgency(ctx.priority));
    let work = async {
        match request {
            Message::GetTable { section, .. } => table(conn, send, &ctx, &image, section).await,
            Message::GetChunks { place, .. } => chunks(conn, send, &ctx, &place).await,
            _ => manifest(conn, send, &ctx, &image).await,
        }
    };
    match ctx.deadline {
        None => work.await,
        Some(deadline) => timeout(deadline, work).await.unwrap_or_else(|_| Err(late(deadline))),
    }
}

fn late(deadline: Duration) -> Error {
    Error::new(Kind::Retry, format!("the deadline of {} ms has passed", deadline.as_millis()))
}

async fn manifest<S: ChunkSource, F, P>(
    conn: &Conn<S, F, P>,
    send: &mut SendStream,
    ctx: &ReadContext,
    image: &Digest,
) -> Result<()> {
    let manifest = conn.shared.source.manifest(ctx, image).await?;
    let len = 32 * manifest.sections().len();
    let _held = conn.account.take(len, ctx.priority).await?;
    let answer = Message::Manifest(manifest.to_bytes()).encode();
    conn.account.write(send, ctx.priority, &mut [answer]).await
}

async fn table<S: ChunkSource, F, P>(
    conn: &Conn<S, F, P>,
    send: &mut SendStream,
    ctx: &ReadContext,
    image: &Digest,
    section: u32,
) -> Result<()> {
    let geometry = conn.geometry(ctx, image).await?;
    check_section(&geometry, section)?;
    let len = 32 * geometry.chunks_in(section) as usize;
    let _held = conn.account.take(len, ctx.priority).await?;
    let table = conn.shared.source.section_table(ctx, image, section).await?;
    let answer = Message::Table(table.to_bytes()).encode();
    conn.account.write(send, ctx.priority, &mut [answer]).await
}

async fn chunks<S: ChunkSource, F, P>(
    conn: &Conn<S, F, P>,
    send: &mut SendStream,
    ctx: &ReadContext,
    place: &Place,
) -> Result<()> {
    let geometry = conn.geometry(ctx, &place.image).await?;
    check_place(&geometry, place)?;
    // The source gives a chunk at a time and waits until it has been taken, so this is what the
    // request holds at most; the rest of what was written is the send window's.
    let frame = HEADER_LEN + geometry.chunk_len();
    let _held = conn.account.take(frame, ctx.priority).await?;
    let (account, priority) = (&conn.account, ctx.priority);
    let mut sink = FrameSink { send, account, priority, max_frame: conn.max_frame() };
    conn.shared.source.chunks(ctx, place, &mut sink).await?;
    account.write(send, priority, &mut [Message::End.encode()]).await
}

fn check_section(geometry: &Geometry, section: u32) -> Result<()> {
    if section < geometry.sections() {
        return Ok(());
    }
    let why = format!("section {section} of {}", geometry.sections());
    Err(Error::new(Kind::Invalid, why))
}

fn check_place(geometry: &Geometry, place: &Place) -> Result<()> {
    check_section(geometry, place.section)?;
    let (chunks, found) = (geometry.chunks_in(place.section), place.chunks.universe());
    if found != chunks || place.chunks.is_empty() {
        let why = format!("a set of {} out of {found} chunks", place.chunks.count());
        let section = format!("section {} of {chunks} chunks", place.section);
        return Err(Error::new(Kind::Invalid, why)).at(|| section);
    }
    Ok(())
}

/// Writes each frame as it comes. The frame's bytes are handed to QUIC as they are, without a copy.
struct FrameSink<'a> {
    send: &'a mut SendStream,
    account: &'a Account,
    priority: Priority,
    max_frame: usize,
}

impl ChunkSink for FrameSink<'_> {
    async fn chunk(&mut self, chunk: u32, frame: Frame) -> Result<()> {
        let len = frame.bytes().len();
        if len > self.max_frame {
            let why = format!("a frame of {len} bytes; the client takes {}", self.max_frame);
            return Err(Error::new(Kind::Unsupported, why)).at(|| format!("chunk {chunk}"));
        }
        let mut parts: [Bytes; 2] = [frame_head(chunk, &frame), frame.bytes().clone()];
        drop(frame);
        self.account.write(self.send, self.priority, &mut parts).await
    }
}
