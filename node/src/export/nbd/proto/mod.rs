//! The protocol, sans-IO: bytes in, decisions and bytes out. Parsers take what has arrived and say how
//! much of it they used; nothing here allocates by a length that a peer announced.

pub mod context;
pub mod handshake;
pub mod reply;
pub mod request;
#[cfg(test)]
mod tests;
pub mod wire;

/// An export as a client is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its name.
    pub name: String,
    /// For people to read; may be empty.
    pub description: String,
    /// Size in bytes.
    pub size: u64,
    /// Smallest unit of a request, in bytes.
    pub sector: u32,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// How replies look, as negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// A header of 16 bytes, and data after it if it was a read that went well.
    #[default]
    Simple,
    /// Chunks with headers of 20 bytes.
    Structured,
    /// Requests and chunks with headers of 32 bytes.
    Extended,
}

/// What a handshake has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Which of the exports.
    pub export: usize,
    /// How replies look.
    pub framing: Framing,
    /// What `BLOCK_STATUS` tells.
    pub contexts: context::Selected,
}

/// Takes big-endian numbers and slices off the front of a message.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string with its length in front.
    fn string(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()? as usize;
        if len > wire::MAX_STRING {
            return None;
        }
        self.bytes(len)
    }
}
