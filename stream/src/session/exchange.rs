//! The client's side of a read: what an answer stream may hold.
//!
//! ```text
//! GET_MANIFEST → MANIFEST | ERROR
//! GET_TABLE    → TABLE | ERROR
//! GET_CHUNKS   → FRAME (each asked chunk once, any order) … END
//!              | FRAME (some of them) … ERROR
//! ```

use bytes::Bytes;
use image::frame::{Frame, FrameHeader};
use image::{ChunkSet, Error, Kind, Result};

use super::inbox::{Gate, Inbox, chunk_name, unexpected};
use crate::messages::Message;
use crate::wire::{Header, Type};

/// What was asked.
#[derive(Clone, Debug)]
pub enum Asked {
    /// A manifest.
    Manifest,
    /// A section table.
    Table,
    /// These chunks.
    Chunks(ChunkSet),
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The manifest's bytes, not yet checked. The answer is complete.
    Manifest(Bytes),
    /// The table's bytes, not yet checked. The answer is complete.
    Table(Bytes),
    /// One chunk that was asked for and had not come yet; its CRC32C is good.
    Frame {
        /// Its number in the section.
        chunk: u32,
        /// The chunk.
        frame: Frame,
    },
    /// Every chunk has come. The answer is complete.
    End,
}

/// Reads one answer.
///
/// ```text
/// feed(bytes) → poll() until Ok(None) → feed(bytes) → … → Manifest | Table | End | Err
///                                     └ end() if the stream ends before that
/// ```
/// An `Err` ends the answer, whether the server reported it or its bytes were wrong; chunks that
/// were given before it are good. A chunk whose payload does not match its CRC32C is held back: the
/// others are given all the same, and the error comes where `End` would have.
#[derive(Debug)]
pub struct PullAnswer {
    inbox: Inbox,
    expects: Expects,
    bad: Option<Error>,
    over: Option<Result<()>>,
}

#[derive(Debug)]
struct Expects {
    asked: Asked,
    max_frame: usize,
}

impl Expects {
    fn types(&self) -> &'static [Type] {
        match self.asked {
            Asked::Manifest => &[Type::Manifest, Type::Error],
            Asked::Table => &[Type::Table, Type::Error],
            Asked::Chunks(_) => &[Type::Frame, Type::End, Type::Error],
        }
    }
}

impl Gate for Expects {
    fn admit(&mut self, header: &Header) -> Result<()> {
        match self.types() {
            types if types.contains(&header.ty) => Ok(()),
            types => Err(unexpected(header.ty, types)),
        }
    }

    fn admit_frame(&mut self, chunk: u32, header: &FrameHeader) -> Result<()> {
        let corrupt = |why: String| Err(Error::new(Kind::Corrupt, why).at(chunk_name(chunk)));
        let Asked::Chunks(left) = &mut self.asked else {
            return corrupt("it was not asked for".into());
        };
        if header.frame_len() > self.max_frame {
            let (len, max) = (header.frame_len(), self.max_frame);
            return corrupt(format!("its frame has {len} bytes, the limit is {max}"));
        }
        if !left.remove(chunk) {
            return corrupt("it was not asked for, or came twice".into());
        }
        Ok(())
    }
}

impl PullAnswer {
    /// Waits for the answer to `asked`, whose frames have at most `max_frame` bytes.
    pub fn new(asked: Asked, max_frame: usize) -> Self {
        Self { inbox: Inbox::new(), expects: Expects { asked, max_frame }, bad: None, over: None }
    }

    /// Takes the next bytes of the stream.
    pub fn feed(&mut self, bytes: Bytes) {
        if self.over.is_none() {
            self.inbox.feed(bytes);
        }
    }

    /// The next part of the answer, or `None` until more bytes are fed (and for ever once it is
    /// complete).
    pub fn poll(&mut self) -> Result<Option<Answer>> {
        if let Some(over) = &self.over {
            return over.clone().map(|()| None);
        }
        let result = self.step();
        match &result {
            Ok(None | Some(Answer::Frame { .. })) => {}
            Ok(Some(_)) => self.over = Some(Ok(())),
            Err(e) => self.over = Some(Err(e.clone())),
        }
        result
    }

    /// The stream has ended: an error unless the answer is complete.
    pub fn end(&self) -> Result<()> {
        match &self.over {
            Some(over) => over.clone(),
            None => Err(Error::new(Kind::Retry, "the stream ended inside an answer")),
        }
    }

    fn step(&mut self) -> Result<Option<Answer>> {
        loop {
            let Some(message) = self.inbox.poll(&mut self.expects)? else { return Ok(None) };
            return match message {
                Message::Manifest(bytes) => Ok(Some(Answer::Manifest(bytes))),
                Message::Table(bytes) => Ok(Some(Answer::Table(bytes))),
                Message::Frame { chunk, frame } => match frame.check_payload() {
                    Ok(()) => Ok(Some(Answer::Frame { chunk, frame })),
                    Err(e) => {
                        self.bad.get_or_insert(Error::from(e).at(chunk_name(chunk)));
                        continue;
                    }
                },
                Message::End => self.complete(),
                Message::Error(e) => Err(e),
                other => Err(unexpected(other.ty(), self.expects.types())),
            };
        }
    }

    fn complete(&mut self) -> Result<Option<Answer>> {
        if let Some(e) = self.bad.take() {
            return Err(e);
        }
        match &self.expects.asked {
            Asked::Chunks(left) => match left.iter().next() {
                None => Ok(Some(Answer::End)),
                Some(chunk) => {
                    let why = "END, but it was not sent";
                    Err(Error::new(Kind::Corrupt, why).at(chunk_name(chunk)))
                }
            },
            _ => Err(unexpected(Type::End, self.expects.types())),
        }
    }
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;
