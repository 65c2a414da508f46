//! What the drivers share: bytes between QUIC streams and the sans-IO sessions, and what QUIC's errors
//! mean to callers.

use std::time::Duration;

use bytes::Bytes;
use image::{Error, Kind, Priority, Result};
use quinn::{ConnectionError, ReadError, RecvStream, SendStream, WriteError};
use tokio::time::timeout;

use crate::transport::{close_code, stream_code};

/// Pieces taken from a stream at once: with packets of 1.2 to 64 KiB, most of a chunk.
const PIECES: usize = 32;

/// What a lost connection means to who used it.
pub(crate) fn connection_error(e: &ConnectionError) -> Error {
    /// First of the QUIC error codes that carry a TLS alert.
    const CRYPTO: u64 = 0x100;
    let kind = match e {
        ConnectionError::ConnectionClosed(c) if is_crypto(c.error_code) => Kind::Denied,
        ConnectionError::TransportError(t) if is_crypto(t.code) => Kind::Denied,
        ConnectionError::ApplicationClosed(a) if a.error_code == close_code::PROTOCOL => {
            Kind::Invalid
        }
        ConnectionError::ApplicationClosed(a) if a.error_code == close_code::REVOKED => {
            Kind::Denied
        }
        ConnectionError::ApplicationClosed(a) if a.error_code == close_code::BUSY => {
            Kind::Busy(Duration::from_secs(1))
        }
        ConnectionError::LocallyClosed => Kind::Cancelled,
        ConnectionError::VersionMismatch => Kind::Unsupported,
        _ => Kind::Retry,
    };
    return Error::caused(kind, format!("connection: {e}"), e.clone());

    fn is_crypto(code: quinn::TransportErrorCode) -> bool {
        (CRYPTO..CRYPTO + 0x100).contains(&u64::from(code))
    }
}

fn read_error(e: ReadError) -> Error {
    match e {
        ReadError::ConnectionLost(e) => connection_error(&e),
        ReadError::Reset(stream_code::STALLED) => {
            Error::new(Kind::Retry, "the other side gave up: bytes were not taken for too long")
        }
        ReadError::Reset(code) => {
            Error::new(Kind::Retry, format!("the other side ended the stream (code {code})"))
        }
        other => Error::caused(Kind::Retry, format!("stream: {other}"), other),
    }
}

fn write_error(e: WriteError) -> Error {
    match e {
        WriteError::ConnectionLost(e) => connection_error(&e),
        WriteError::Stopped(stream_code::CANCELLED) => {
            Error::new(Kind::Cancelled, "the other side has lost interest")
        }
        other => Error::caused(Kind::Retry, format!("stream: {other}"), other),
    }
}

/// Waits for bytes and gives each piece to `take`; false at the end of the stream. It is an error if
/// nothing comes for `patience`.
pub(crate) async fn read(
    recv: &mut RecvStream,
    patience: Duration,
    mut take: impl FnMut(Bytes),
) -> Result<bool> {
    let mut pieces: [Bytes; PIECES] = std::array::from_fn(|_| Bytes::new());
    let read =
        timeout(patience, recv.read_chunks(&mut pieces)).await.map_err(|_| late(patience))?;
    let Some(n) = read.map_err(read_error)? else { return Ok(false) };
    pieces.into_iter().take(n).for_each(&mut take);
    Ok(true)
}

/// The same for no more than `most` bytes: what is beyond stays with QUIC, and its sender without room for
/// more.
pub(crate) async fn read_some(
    recv: &mut RecvStream,
    patience: Duration,
    most: usize,
) -> Result<Option<Bytes>> {
    let read = timeout(patience, recv.read_chunk(most, true)).await.map_err(|_| late(patience))?;
    Ok(read.map_err(read_error)?.map(|chunk| chunk.bytes))
}

fn late(patience: Duration) -> Error {
    Error::new(Kind::Retry, format!("nothing came for {} s", patience.as_secs_f32()))
}

/// Writes buffers without copying them. Does not return while the other side and the send window have
/// no room; it is an error if it takes nothing for `patience`.
pub(crate) async fn write(
    send: &mut SendStream,
    patience: Duration,
    mut buffers: &mut [Bytes],
) -> Result<()> {
    while !buffers.is_empty() {
        let written = write_some(send, patience, buffers).await?;
        buffers = &mut buffers[written.chunks..];
    }
    Ok(())
}

/// Writes as much as there is room for, at least a byte. If it is dropped before it returns, nothing was
/// written.
pub(crate) async fn write_some(
    send: &mut SendStream,
    patience: Duration,
    buffers: &mut [Bytes],
) -> Result<quinn::Written> {
    let Ok(written) = timeout(patience, send.write_chunks(buffers)).await else {
        let _ = send.reset(stream_code::STALLED);
        let secs = patience.as_secs_f32();
        return Err(Error::new(Kind::Retry, format!("nothing was taken for {secs} s")));
    };
    written.map_err(write_error)
}

/// Ends a stream and waits until the other side has everything, or for `patience`: then what it has not is
/// dropped. (Closing a connection drops what was written and not delivered.)
pub(crate) async fn finish(send: &mut SendStream, patience: Duration) {
    if send.finish().is_ok() && timeout(patience, send.stopped()).await.is_err() {
        let _ = send.reset(stream_code::STALLED);
    }
}

/// QUIC's priority of a class: higher goes first.
pub(crate) fn urgency(priority: Priority) -> i32 {
    match priority {
        Priority::Guest => 2,
        Priority::Trace => 1,
        Priority::Background => 0,
    }
}
