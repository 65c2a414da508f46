//! The numbers of the protocol, as `doc/proto.md` of NetworkBlockDevice/nbd and its branch
//! `extension-ext-header` name them. All are big-endian on the wire.

use image::Kind;

/// The first eight bytes a server says (`NBDMAGIC`).
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// In front of every option, and after [`MAGIC`] (`IHAVEOPT`).
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// In front of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// In front of a request of 28 bytes.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// In front of a request of 32 bytes.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// In front of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// In front of a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// In front of a chunk of an extended reply.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Longest string (name, query, message), in bytes.
pub const MAX_STRING: usize = 4096;
/// Most bytes that one read or write moves: what clients count on that were told nothing.
pub const MAX_PAYLOAD: u32 = 32 << 20;

/// Handshake flags, of the server and, in the same places, of the client.
pub mod handshake_flag {
    /// Both know the fixed newstyle.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// No 124 zeros after the answer to `EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Options a client may haggle with.
pub mod option {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Replies to options.
pub mod option_reply {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = 1 << 31 | 1;
    pub const ERR_INVALID: u32 = 1 << 31 | 3;
    pub const ERR_UNKNOWN: u32 = 1 << 31 | 6;
    pub const ERR_TOO_BIG: u32 = 1 << 31 | 9;
    pub const ERR_EXT_HEADER_REQD: u32 = 1 << 31 | 10;
}

/// What `INFO` and `GO` tell.
pub mod info {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export takes.
pub mod export_flag {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Requests.
pub mod command {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests.
pub mod command_flag {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Flag of the last chunk of a reply.
pub const REPLY_FLAG_DONE: u16 = 1 << 0;

/// Types of reply chunks.
pub mod chunk {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const BLOCK_STATUS_EXT: u16 = 6;
    pub const ERROR: u16 = 1 << 15 | 1;
    pub const ERROR_OFFSET: u16 = 1 << 15 | 2;
}

/// The errors that there are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the specification's")]
#[repr(u32)]
pub enum Errno {
    Eperm = 1,
    Eio = 5,
    Einval = 22,
    Enospc = 28,
    Eoverflow = 75,
    Enotsup = 95,
    Eshutdown = 108,
}

impl From<Kind> for Errno {
    /// What a disk's error is to a guest.
    fn from(kind: Kind) -> Errno {
        match kind {
            Kind::Full => Errno::Enospc,
            Kind::Invalid => Errno::Einval,
            Kind::Unsupported => Errno::Enotsup,
            Kind::Denied => Errno::Eperm,
            Kind::Cancelled => Errno::Eshutdown,
            Kind::Retry
            | Kind::Busy(_)
            | Kind::Conflict
            | Kind::Corrupt
            | Kind::Gone
            | Kind::Io => Errno::Eio,
        }
    }
}

/// A client that breaks the protocol so that nothing it says after can be understood. The connection
/// ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// What came is no message of the protocol.
    #[error("{0:#x} stands where the magic number of {1} belongs")]
    Magic(u64, &'static str),
    /// Client flags that the server has not offered.
    #[error("unknown client flags {0:#x}")]
    ClientFlags(u32),
    /// `EXPORT_NAME`, which knows no errors, could not be served.
    #[error("EXPORT_NAME for {0}")]
    ExportName(&'static str),
    /// More bytes than any request may carry.
    #[error("a payload of {0} bytes, {MAX_PAYLOAD} are the most")]
    Payload(u64),
}
