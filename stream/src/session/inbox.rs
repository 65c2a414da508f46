//! Bytes of a stream → messages, whatever the pieces in which they arrive.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use image::error::FormatError;
use image::frame::{self, Frame, FrameHeader};
use image::{Error, Kind, Result};

use crate::messages::Message;
use crate::wire::{CHUNK_PREFIX, HEADER_LEN, Header, Type};

/// Most memory that is taken for a body before any of it is there. Longer bodies grow as they arrive,
/// so that a length alone costs nothing.
const FIRST_CAPACITY: usize = 16 << 10;
/// What is read of a FRAME before memory is taken for the rest of it.
const FRAME_HEAD: usize = CHUNK_PREFIX + frame::HEADER_LEN;

/// Decides, before anything is kept for it, whether a message may come now.
pub trait Gate {
    /// A header has arrived. `header.len` is within the type's own limit.
    fn admit(&mut self, header: &Header) -> Result<()>;

    /// The head of a FRAME has arrived and its CRC32C is good; the payload has not.
    fn admit_frame(&mut self, chunk: u32, header: &FrameHeader) -> Result<()>;
}

/// A gate that lets some types through, and no FRAME.
#[derive(Debug)]
pub struct Only<'a>(pub &'a [Type]);

impl Gate for Only<'_> {
    fn admit(&mut self, header: &Header) -> Result<()> {
        if header.ty != Type::Frame && self.0.contains(&header.ty) {
            Ok(())
        } else {
            Err(unexpected(header.ty, self.0))
        }
    }

    fn admit_frame(&mut self, chunk: u32, _: &FrameHeader) -> Result<()> {
        Err(Error::new(Kind::Corrupt, format!("FRAME of chunk {chunk} that nobody asked for")))
    }
}

/// The error for a message that does not belong here. A broken stream is corrupt bytes to whoever
/// reads it; a server reports it to its client as an invalid request.
pub(crate) fn unexpected(ty: Type, expected: &[Type]) -> Error {
    let names: Vec<_> = expected.iter().map(|t| t.name()).collect();
    let text = format!("{} where {} belongs", ty.name(), names.join(" or "));
    Error::new(Kind::Corrupt, text)
}

/// Assembles messages.
///
/// ```text
/// feed(bytes) → poll(gate) until Ok(None) → feed(bytes) → … → end()
/// ```
/// A chunk frame is copied once, into a buffer of exactly its length, after its header has been
/// parsed, checked against its CRC32C and admitted. After an error every further `poll` gives the
/// same error: there is no way to find the next message in a broken stream.
#[derive(Debug, Default)]
pub struct Inbox {
    pieces: VecDeque<Bytes>,
    state: State,
    failed: Option<Error>,
}

#[derive(Debug)]
enum State {
    /// Waiting for a message header.
    Header(Fixed<HEADER_LEN>),
    /// Collecting a body.
    Body { header: Header, body: BytesMut },
    /// Waiting for a chunk number and the header of a chunk frame.
    FrameHead { header: Header, head: Fixed<FRAME_HEAD> },
    /// Collecting a payload behind its header.
    Payload { chunk: u32, len: usize, bytes: BytesMut },
}

impl Default for State {
    fn default() -> Self {
        State::Header(Fixed::new())
    }
}

/// The first `have` bytes of `N`.
#[derive(Debug)]
struct Fixed<const N: usize> {
    buf: [u8; N],
    have: usize,
}

impl<const N: usize> Fixed<N> {
    fn new() -> Self {
        Self { buf: [0; N], have: 0 }
    }

    /// Takes what is missing from the front of `pieces`; the whole when nothing is missing.
    fn fill(&mut self, pieces: &mut VecDeque<Bytes>) -> Option<&[u8; N]> {
        while self.have < N {
            let piece = front(pieces)?;
            let n = piece.len().min(N - self.have);
            self.buf[self.have..self.have + n].copy_from_slice(&piece[..n]);
            piece.advance(n);
            self.have += n;
        }
        Some(&self.buf)
    }
}

/// The first piece that is not empty.
fn front(pieces: &mut VecDeque<Bytes>) -> Option<&mut Bytes> {
    while pieces.front().is_some_and(Bytes::is_empty) {
        pieces.pop_front();
    }
    pieces.front_mut()
}

/// Appends to `body` until it has `len` bytes; whether it has.
fn fill(body: &mut BytesMut, len: usize, pieces: &mut VecDeque<Bytes>) -> bool {
    while body.len() < len {
        let Some(piece) = front(pieces) else { return false };
        let n = piece.len().min(len - body.len());
        body.extend_from_slice(&piece[..n]);
        piece.advance(n);
    }
    true
}

impl Inbox {
    /// An empty inbox.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream.
    pub fn feed(&mut self, bytes: Bytes) {
        if self.failed.is_none() {
            self.pieces.push_back(bytes);
        }
    }

    /// The next whole message, or `None` until more bytes are fed.
    pub fn poll(&mut self, gate: &mut impl Gate) -> Result<Option<Message>> {
        self.until_failed(|inbox| inbox.advance(gate))
    }

    /// The header of the next message, or `None` until enough bytes are fed. Its body is kept from then on.
    pub fn begin(&mut self, gate: &mut impl Gate) -> Result<Option<Header>> {
        self.until_failed(|inbox| {
            if let State::Header(head) = &mut inbox.state
                && let Some(bytes) = head.fill(&mut inbox.pieces)
            {
                inbox.state = admitted(bytes, gate)?;
            }
            match &inbox.state {
                State::Body { header, .. } | State::FrameHead { header, .. } => Ok(Some(*header)),
                State::Header(_) | State::Payload { .. } => Ok(None),
            }
        })
    }

    /// How many bytes are to be fed until there is something new to say: until the header is whole, or the
    /// body. Who reads no more than that has nothing lying here beside the message itself.
    pub fn missing(&self) -> usize {
        let (len, have) = match &self.state {
            State::Header(head) => (HEADER_LEN, head.have),
            State::Body { header, body } => (header.len as usize, body.len()),
            State::FrameHead { head, .. } => (FRAME_HEAD, head.have),
            State::Payload { len, bytes, .. } => (*len, bytes.len()),
        };
        let waiting: usize = self.pieces.iter().map(Bytes::len).sum();
        (len - have).saturating_sub(waiting)
    }

    fn until_failed<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if let Some(e) = &self.failed {
            return Err(e.clone());
        }
        let result = step(self);
        if let Err(e) = &result {
            self.failed = Some(e.clone());
            self.pieces.clear();
            self.state = State::default();
        }
        result
    }

    /// The stream has ended: an error if that was inside a message.
    pub fn end(&self) -> Result<()> {
        if let Some(e) = &self.failed {
            return Err(e.clone());
        }
        let between = matches!(&self.state, State::Header(h) if h.have == 0);
        if between && self.pieces.iter().all(Bytes::is_empty) {
            return Ok(());
        }
        Err(Error::new(Kind::Retry, "the stream ended inside a message"))
    }

    fn advance(&mut self, gate: &mut impl Gate) -> Result<Option<Message>> {
        loop {
            let next = match &mut self.state {
                State::Header(head) => {
                    let Some(bytes) = head.fill(&mut self.pieces) else { return Ok(None) };
                    admitted(bytes, gate)?
                }
                State::Body { header, body } => {
                    if !fill(body, header.len as usize, &mut self.pieces) {
                        return Ok(None);
                    }
                    let (ty, body) = (header.ty, body.split().freeze());
                    self.state = State::default();
                    return Ok(Some(Message::decode_body(ty, body)?));
                }
                State::FrameHead { header, head } => {
                    let Some(bytes) = head.fill(&mut self.pieces) else { return Ok(None) };
                    begin_payload(header, bytes, gate)?
                }
                State::Payload { chunk, len, bytes } => {
                    if !fill(bytes, *len, &mut self.pieces) {
                        return Ok(None);
                    }
                    let (chunk, bytes) = (*chunk, bytes.split().freeze());
                    self.state = State::default();
                    return Ok(Some(Message::Frame { chunk, frame: Frame::parse(bytes)? }));
                }
            };
            self.state = next;
        }
    }
}

fn admitted(bytes: &[u8; HEADER_LEN], gate: &mut impl Gate) -> Result<State> {
    let header = Header::parse(bytes)?;
    gate.admit(&header)?;
    begin_body(header)
}

fn begin_body(header: Header) -> Result<State> {
    let len = header.len as usize;
    if header.ty != Type::Frame {
        return Ok(State::Body { header, body: BytesMut::with_capacity(len.min(FIRST_CAPACITY)) });
    }
    if len < FRAME_HEAD {
        let what = Type::Frame.name();
        return Err(FormatError::Truncated { what, need: FRAME_HEAD, have: len }.into());
    }
    Ok(State::FrameHead { header, head: Fixed::new() })
}

fn begin_payload(header: &Header, bytes: &[u8; FRAME_HEAD], gate: &mut impl Gate) -> Result<State> {
    let (number, rest) = bytes.split_at(CHUNK_PREFIX);
    let chunk = u32::from_le_bytes(number.try_into().expect("four bytes"));
    let frame = FrameHeader::parse(rest).map_err(|e| Error::from(e).at(chunk_name(chunk)))?;
    let len = frame.frame_len();
    if len + CHUNK_PREFIX != header.len as usize {
        let (field, value) = ("length against the frame's", u64::from(header.len));
        let e = FormatError::Field { what: Type::Frame.name(), field, value };
        return Err(Error::from(e).at(chunk_name(chunk)));
    }
    gate.admit_frame(chunk, &frame)?;
    let mut body = BytesMut::with_capacity(len);
    body.extend_from_slice(rest);
    Ok(State::Payload { chunk, len, bytes: body })
}

pub(crate) fn chunk_name(chunk: u32) -> String {
    format!("chunk {chunk}")
}

#[cfg(test)]
#[path = "inbox_tests.rs"]
mod tests;
