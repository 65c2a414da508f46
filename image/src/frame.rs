//! The chunk frame: the very same bytes in the store, in the cache and on the wire.
//!
//! ```text
//!  0        4        6        8        12         16         20         24            56       60      64
//!  | "FBCF" | ver 1  | codec  | domain | plain len| stored len| payload | BLAKE3 of   | zeros  | header | payload …
//!  |        | u16    | u16    | u32    | u32      | u32       | CRC32C  | plain chunk |        | CRC32C |
//! ```
//! All numbers are little-endian. The header's CRC32C covers bytes 0..60. A payload that the codec
//! cannot shrink is stored raw, so `stored len ≤ plain len ≤ 4 MiB` always holds, and a reader
//! never allocates more than that.

use bytes::{BufMut, Bytes, BytesMut};

use crate::digest::{Digest, Domain};
use crate::error::FormatError;
use crate::geometry::CHUNK_LOG2;
use crate::reader::Reader;

/// Length of the fixed header in bytes.
pub const HEADER_LEN: usize = 64;
/// Longest plain chunk, and so the longest payload, in bytes.
pub const MAX_PLAIN: u32 = 1 << *CHUNK_LOG2.end();
/// Longest frame in bytes.
pub const MAX_FRAME: usize = HEADER_LEN + MAX_PLAIN as usize;

const WHAT: &str = "chunk frame";
const MAGIC: [u8; 4] = *b"FBCF";
const VERSION: u16 = 1;

/// How a payload is stored. Ids from 256 on are kept for compress-then-encrypt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// The plain bytes.
    Raw,
    /// One zstd frame (RFC 8878).
    Zstd,
}

impl Codec {
    /// The id in the frame.
    pub fn id(self) -> u16 {
        match self {
            Codec::Raw => 0,
            Codec::Zstd => 1,
        }
    }

    /// The codec of an id; what is not implemented is refused by name.
    pub fn from_id(id: u16) -> Result<Self, FormatError> {
        match id {
            0 => Ok(Codec::Raw),
            1 => Ok(Codec::Zstd),
            256.. => Err(unimplemented(format!("encrypted codec {id}"))),
            _ => Err(unimplemented(format!("codec {id}"))),
        }
    }
}

fn unimplemented(feature: String) -> FormatError {
    FormatError::Unimplemented { what: WHAT, feature }
}

/// The fixed header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// How the payload is stored.
    pub codec: Codec,
    /// The trust domain that the chunk belongs to.
    pub domain: Domain,
    /// Length of the plain chunk in bytes, 1..=4 MiB.
    pub plain_len: u32,
    /// Length of the payload in bytes, 1..=`plain_len`.
    pub stored_len: u32,
    /// CRC32C of the payload.
    pub payload_crc: u32,
    /// Digest of the plain chunk.
    pub digest: Digest,
}

impl FrameHeader {
    /// Parses and checks a header (its CRC32C included) from the first [`HEADER_LEN`] bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(WHAT, bytes);
        let header = r.take(HEADER_LEN)?;
        let mut r = Reader::new(WHAT, header);
        r.magic(MAGIC, VERSION)?;
        let crc = u32::from_le_bytes([header[60], header[61], header[62], header[63]]);
        if crc32c::crc32c(&header[..60]) != crc {
            return Err(FormatError::Mismatch { what: WHAT, which: "header CRC32C" });
        }
        let codec = Codec::from_id(r.u16()?)?;
        let domain = Domain(r.u32()?).check(WHAT)?;
        let (plain_len, stored_len, payload_crc) = (r.u32()?, r.u32()?, r.u32()?);
        let digest = r.digest()?;
        r.reserved(4)?;
        if plain_len == 0 || plain_len > MAX_PLAIN {
            return Err(r.field("plain length", u64::from(plain_len)));
        }
        let fits = match codec {
            Codec::Raw => stored_len == plain_len,
            Codec::Zstd => stored_len > 0 && stored_len < plain_len,
        };
        if !fits {
            return Err(r.field("stored length", u64::from(stored_len)));
        }
        if digest.is_zero() {
            return Err(r.field("digest reserved for zeros", 0));
        }
        Ok(Self { codec, domain, plain_len, stored_len, payload_crc, digest })
    }

    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let mut w = &mut out[..];
        w.put_slice(&MAGIC);
        w.put_u16_le(VERSION);
        w.put_u16_le(self.codec.id());
        w.put_u32_le(self.domain.0);
        w.put_u32_le(self.plain_len);
        w.put_u32_le(self.stored_len);
        w.put_u32_le(self.payload_crc);
        w.put_slice(&self.digest.0);
        w.put_u32_le(0);
        let crc = crc32c::crc32c(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Length of header and payload together.
    pub fn frame_len(&self) -> usize {
        HEADER_LEN + self.stored_len as usize
    }
}

/// A frame: its parsed header, and header and payload as one run of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    header: FrameHeader,
    bytes: Bytes,
}

impl Frame {
    /// Takes exactly one frame. The header is checked; the payload is not: see
    /// [`Frame::check_payload`].
    pub fn parse(bytes: Bytes) -> Result<Self, FormatError> {
        let header = FrameHeader::parse(&bytes)?;
        let (need, have) = (header.frame_len(), bytes.len());
        if have < need {
            return Err(FormatError::Truncated { what: WHAT, need, have });
        }
        if have > need {
            return Err(FormatError::Trailing { what: WHAT, extra: have - need });
        }
        Ok(Self { header, bytes })
    }

    /// Splits one frame off the front of `bytes`, which may hold several.
    pub fn split_from(bytes: &mut Bytes) -> Result<Self, FormatError> {
        let header = FrameHeader::parse(bytes)?;
        let (need, have) = (header.frame_len(), bytes.len());
        if have < need {
            return Err(FormatError::Truncated { what: WHAT, need, have });
        }
        Ok(Self { header, bytes: bytes.split_to(need) })
    }

    /// Builds a frame around a payload.
    pub fn new(
        codec: Codec,
        domain: Domain,
        digest: Digest,
        plain_len: u32,
        payload: &[u8],
    ) -> Self {
        let header = FrameHeader {
            codec,
            domain,
            plain_len,
            stored_len: payload.len() as u32,
            payload_crc: crc32c::crc32c(payload),
            digest,
        };
        let mut bytes = BytesMut::with_capacity(header.frame_len());
        bytes.put_slice(&header.to_bytes());
        bytes.put_slice(payload);
        Self { header, bytes: bytes.freeze() }
    }

    /// The header.
    pub fn header(&self) -> &FrameHeader {
        &self.header
    }

    /// Header and payload.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// A copy in an allocation of its own: these bytes may be a slice of much more.
    pub fn detached(&self) -> Self {
        Self { header: self.header, bytes: Bytes::copy_from_slice(&self.bytes) }
    }

    /// The stored payload.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[HEADER_LEN..]
    }

    /// Checks the payload against its CRC32C: what every hop does.
    pub fn check_payload(&self) -> Result<(), FormatError> {
        if crc32c::crc32c(self.payload()) == self.header.payload_crc {
            Ok(())
        } else {
            Err(FormatError::Mismatch { what: WHAT, which: "payload CRC32C" })
        }
    }
}
