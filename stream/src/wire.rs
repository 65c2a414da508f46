//! Framing: how messages stand on a stream.
//!
//! ```text
//!  0       2       4       8
//!  | type  | flags | len   | body: len bytes …
//!  | u16   | u16   | u32   |
//! ```
//! All numbers are little-endian. No flag is known in version 1, so flags are zero. Each type has its
//! own longest body; a longer one is refused when the eight bytes of the header are there, before
//! anything is kept for it.

use image::chunk_set::MAX_CHUNKS;
use image::error::FormatError;
use image::frame::MAX_FRAME;
use image::manifest::MAX_MANIFEST;
use image::section::MAX_TABLE;

/// Length of a message header in bytes.
pub const HEADER_LEN: usize = 8;
/// Bytes of a FRAME's body before the chunk frame: the chunk's number.
pub const CHUNK_PREFIX: usize = 4;
/// Longest ticket in bytes. Ours are shorter than 1 KiB.
pub const MAX_TICKET: usize = 16 << 10;
/// Longest text of an ERROR in bytes.
pub const MAX_TEXT: usize = 1 << 10;
/// Most limits that a HELLO or WELCOME can list.
pub const MAX_LIMITS: usize = 64;

/// Bytes of the context that stands in front of every request.
pub(crate) const CONTEXT_LEN: usize = 24;
const MAX_SET: usize = 4 + MAX_CHUNKS as usize / 8;

const WHAT: &str = "message";

/// The type of a message. What a type's body holds is said at [`crate::messages::Message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Type {
    /// Client → server, first on the control stream.
    Hello = 1,
    /// The answer to HELLO.
    Welcome = 2,
    /// Client → server on the control stream: a signed right.
    Ticket = 3,
    /// The answer to TICKET.
    Granted = 4,
    /// Server → client on the control stream: ask elsewhere, what runs is finished.
    GoAway = 5,
    /// The answer to anything that failed.
    Error = 6,
    /// Asks for a manifest.
    GetManifest = 16,
    /// Asks for a section table.
    GetTable = 17,
    /// Asks for chunks of one section.
    GetChunks = 18,
    /// The answer to GET_MANIFEST.
    Manifest = 32,
    /// The answer to GET_TABLE.
    Table = 33,
    /// One chunk.
    Frame = 34,
    /// No more chunks.
    End = 35,
    /// Starts an image.
    OpenPush = 48,
    /// The answer to OPEN_PUSH.
    Push = 49,
    /// Offers a section.
    Offer = 50,
    /// The answer to OFFER: the chunks to send.
    Want = 51,
    /// The section is durable.
    Sealed = 52,
    /// Makes the image.
    Commit = 53,
    /// The image is durable.
    Committed = 54,
}

/// Every type with its name and the longest body it may have.
const TYPES: [(Type, &str, usize); 20] = [
    (Type::Hello, "HELLO", 18 + 10 * MAX_LIMITS),
    (Type::Welcome, "WELCOME", 14 + 10 * MAX_LIMITS),
    (Type::Ticket, "TICKET", MAX_TICKET),
    (Type::Granted, "GRANTED", 52),
    (Type::GoAway, "GOAWAY", 0),
    (Type::Error, "ERROR", 8 + MAX_TEXT),
    (Type::GetManifest, "GET_MANIFEST", CONTEXT_LEN + 32),
    (Type::GetTable, "GET_TABLE", CONTEXT_LEN + 36),
    (Type::GetChunks, "GET_CHUNKS", CONTEXT_LEN + 36 + MAX_SET),
    (Type::Manifest, "MANIFEST", MAX_MANIFEST),
    (Type::Table, "TABLE", MAX_TABLE),
    (Type::Frame, "FRAME", CHUNK_PREFIX + MAX_FRAME),
    (Type::End, "END", 0),
    (Type::OpenPush, "OPEN_PUSH", CONTEXT_LEN + 52),
    (Type::Push, "PUSH", 8),
    (Type::Offer, "OFFER", 12 + MAX_TABLE),
    (Type::Want, "WANT", MAX_SET),
    (Type::Sealed, "SEALED", 0),
    (Type::Commit, "COMMIT", MAX_MANIFEST),
    (Type::Committed, "COMMITTED", 32),
];

impl Type {
    fn row(self) -> &'static (Type, &'static str, usize) {
        TYPES.iter().find(|row| row.0 == self).expect("every type has a row")
    }

    /// The number on the wire.
    pub fn id(self) -> u16 {
        self as u16
    }

    /// The type of a number; others are refused by number.
    pub fn from_id(id: u16) -> Result<Self, FormatError> {
        let row = TYPES.iter().find(|row| row.0.id() == id);
        let feature = || format!("message type {id}");
        row.map(|row| row.0)
            .ok_or_else(|| FormatError::Unimplemented { what: WHAT, feature: feature() })
    }

    /// The name in this documentation and in errors.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Longest body in bytes.
    pub fn max_body(self) -> usize {
        self.row().2
    }
}

/// A message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the message is.
    pub ty: Type,
    /// Length of its body in bytes, at most the type's [`Type::max_body`].
    pub len: u32,
}

impl Header {
    /// The header of a message whose body has `len` bytes.
    pub fn new(ty: Type, len: usize) -> Self {
        debug_assert!(len <= ty.max_body(), "{} of {len} bytes", ty.name());
        Self { ty, len: len as u32 }
    }

    /// Checks type, flags and length.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, FormatError> {
        let [t0, t1, f0, f1, l0, l1, l2, l3] = *bytes;
        let ty = Type::from_id(u16::from_le_bytes([t0, t1]))?;
        let (flags, len) = (u16::from_le_bytes([f0, f1]), u32::from_le_bytes([l0, l1, l2, l3]));
        if flags != 0 {
            let feature = format!("message flags {flags:#06x}");
            return Err(FormatError::Unimplemented { what: ty.name(), feature });
        }
        if len as usize > ty.max_body() {
            let value = u64::from(len);
            return Err(FormatError::Field { what: ty.name(), field: "length of the body", value });
        }
        Ok(Self { ty, len })
    }

    /// The header's bytes.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..2].copy_from_slice(&self.ty.id().to_le_bytes());
        out[4..].copy_from_slice(&self.len.to_le_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_own_number_and_header() {
        for (ty, name, max) in TYPES {
            assert_eq!(Type::from_id(ty.id()).unwrap(), ty, "{name}");
            let header = Header::new(ty, max);
            assert_eq!(Header::parse(&header.to_bytes()).unwrap(), header);
        }
    }

    #[test]
    fn hostile_headers_are_refused() {
        for (ty, _, max) in TYPES {
            let mut bytes = Header { ty, len: max as u32 + 1 }.to_bytes();
            assert!(matches!(Header::parse(&bytes), Err(FormatError::Field { .. })));
            bytes[4..].copy_from_slice(&u32::MAX.to_le_bytes());
            assert!(matches!(Header::parse(&bytes), Err(FormatError::Field { .. })));
            for flag in [2, 3] {
                let mut bytes = Header { ty, len: 0 }.to_bytes();
                bytes[flag] = 1;
                assert!(matches!(Header::parse(&bytes), Err(FormatError::Unimplemented { .. })));
            }
        }
        let unknown = [0xff, 0x7f, 0, 0, 0, 0, 0, 0];
        let e = Header::parse(&unknown).unwrap_err();
        assert!(e.to_string().contains("message type 32767"), "{e}");
    }
}
