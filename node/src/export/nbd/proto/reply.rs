//! Replies: their headers, in the framing that was negotiated.

use super::Framing;
use super::wire::{
    EXTENDED_REPLY_MAGIC, Errno, REPLY_FLAG_DONE, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk,
};

/// Longest message with an error, in bytes.
const MAX_MESSAGE: usize = 512;

/// A header with the fields that are always there after it; what varies follows as a body.
#[derive(Clone, Copy)]
pub struct Head {
    bytes: [u8; 44],
    len: u8,
}

impl Head {
    /// No header: the body goes on with what came before.
    pub fn none() -> Head {
        Head { bytes: [0; 44], len: 0 }
    }

    fn put(mut self, bytes: &[u8]) -> Head {
        let from = usize::from(self.len);
        self.bytes[from..from + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u8;
        self
    }

    /// The bytes to send.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Which request a reply is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct To {
    /// Its cookie.
    pub cookie: u64,
    /// Its offset, in bytes.
    pub offset: u64,
}

impl Framing {
    fn simple(self, to: To, errno: u32) -> Head {
        Head::none()
            .put(&SIMPLE_REPLY_MAGIC.to_be_bytes())
            .put(&errno.to_be_bytes())
            .put(&to.cookie.to_be_bytes())
    }

    /// The header of a chunk with `len` bytes of payload.
    fn chunk(self, to: To, done: bool, kind: u16, len: u32) -> Head {
        let extended = self == Framing::Extended;
        let magic = if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
        let flags = if done { REPLY_FLAG_DONE } else { 0 };
        let head = Head::none()
            .put(&magic.to_be_bytes())
            .put(&flags.to_be_bytes())
            .put(&kind.to_be_bytes())
            .put(&to.cookie.to_be_bytes());
        match extended {
            true => head.put(&to.offset.to_be_bytes()).put(&u64::from(len).to_be_bytes()),
            false => head.put(&len.to_be_bytes()),
        }
    }

    /// It went well, and that is all there is to say.
    pub fn ok(self, to: To) -> Head {
        match self {
            Framing::Simple | Framing::Structured => self.simple(to, 0),
            Framing::Extended => self.chunk(to, true, chunk::NONE, 0),
        }
    }

    /// `len` bytes of data from `at` follow. A simple reply has one such header, whose data are all that
    /// was asked for.
    pub fn data(self, to: To, at: u64, len: u32, done: bool) -> Head {
        match self {
            Framing::Simple => self.simple(to, 0),
            _ => self.chunk(to, done, chunk::OFFSET_DATA, 8 + len).put(&at.to_be_bytes()),
        }
    }

    /// `len` bytes from `at` are zeros. Not in simple replies.
    pub fn hole(self, to: To, at: u64, len: u32, done: bool) -> Head {
        debug_assert!(self != Framing::Simple);
        let head = self.chunk(to, done, chunk::OFFSET_HOLE, 12);
        head.put(&at.to_be_bytes()).put(&len.to_be_bytes())
    }

    /// A status of `len` bytes follows. Not in simple replies.
    pub fn status(self, to: To, len: u32, done: bool) -> Head {
        debug_assert!(self != Framing::Simple);
        let extended = self == Framing::Extended;
        let kind = if extended { chunk::BLOCK_STATUS_EXT } else { chunk::BLOCK_STATUS };
        self.chunk(to, done, kind, len)
    }

    /// It failed; for a read, at `at`. The bytes are the rest of the reply.
    pub fn error(self, to: To, errno: Errno, why: &str, at: Option<u64>) -> (Head, Vec<u8>) {
        if self == Framing::Simple {
            return (self.simple(to, errno as u32), Vec::new());
        }
        let why = &why.as_bytes()[..why.floor_char_boundary(MAX_MESSAGE)];
        let mut body = Vec::with_capacity(14 + why.len());
        body.extend((errno as u32).to_be_bytes());
        body.extend((why.len() as u16).to_be_bytes());
        body.extend(why);
        let kind = match at {
            Some(at) => {
                body.extend(at.to_be_bytes());
                chunk::ERROR_OFFSET
            }
            None => chunk::ERROR,
        };
        (self.chunk(to, true, kind, body.len() as u32), body)
    }
}
