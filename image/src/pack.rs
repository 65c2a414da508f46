//! A pack: one stored object of chunk frames, and the footer that lists them.
//!
//! ```text
//!  0        4       6       8        12      16
//!  | "FBPK" | ver 1 | zeros | domain | zeros | frame | frame | … | entries | trailer (64 bytes) |
//!
//!  entry (80 bytes):   | BLAKE3 of the plain chunk | BLAKE3 of the stored payload | offset u32 | frame len u32 | plain len u32 | codec u16 | zeros u16 |
//!  trailer (64 bytes): | "FBPE" | ver 1 | zeros u16 | domain u32 | count u32 | entries' offset u32 | zeros 8 | BLAKE3 of the entries and the trailer so far | CRC32C of the trailer u32 |
//! ```
//! A pack belongs to one domain and is at most 64 MiB. Its id is chosen by its writer and never
//! used again, so a pack that gc removes cannot be mistaken for a later one.

use std::fmt;
use std::str::FromStr;

use bytes::{BufMut, Bytes, BytesMut};

use crate::digest::{Digest, Domain, parse_hex, write_hex};
use crate::error::FormatError;
use crate::frame::{Codec, Frame, HEADER_LEN, MAX_PLAIN};
use crate::reader::Reader;

/// Longest pack in bytes, footer included.
pub const MAX_PACK: usize = 64 << 20;
/// Length of the trailer that ends every pack.
pub const TRAILER_LEN: usize = 64;
/// Length of the header that starts every pack, and so the offset of its first frame.
pub const PACK_HEADER_LEN: usize = 16;
const ENTRY_LEN: usize = 80;
const WHAT: &str = "pack footer";
const HEADER_MAGIC: [u8; 4] = *b"FBPK";
const TRAILER_MAGIC: [u8; 4] = *b"FBPE";
const VERSION: u16 = 1;

/// The name of a pack: 16 bytes, 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackId(pub [u8; 16]);

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackId({self})")
    }
}

impl FromStr for PackId {
    type Err = FormatError;

    fn from_str(s: &str) -> Result<Self, FormatError> {
        parse_hex(s, "pack id").map(PackId)
    }
}

/// One frame of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Digest of the plain chunk.
    pub digest: Digest,
    /// Digest of the stored payload.
    pub stored: Digest,
    /// Where the frame starts in the pack, in bytes.
    pub offset: u32,
    /// Length of the frame, header included.
    pub frame_len: u32,
    /// Length of the plain chunk in bytes.
    pub plain_len: u32,
    /// How the payload is stored.
    pub codec: Codec,
}

/// The parsed footer of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// The domain that the pack belongs to.
    pub domain: Domain,
    /// Its frames, in the order in which they lie.
    pub entries: Vec<Entry>,
}

/// The end of a pack's last 64 bytes: where its footer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Offset of the entries in the pack.
    pub entries_at: u32,
    /// Number of entries.
    pub count: u32,
}

/// The bytes that start every pack of a domain.
pub fn pack_header(domain: Domain) -> [u8; PACK_HEADER_LEN] {
    let mut out = [0; PACK_HEADER_LEN];
    let mut w = &mut out[..];
    w.put_slice(&HEADER_MAGIC);
    w.put_u16_le(VERSION);
    w.put_u16_le(0);
    w.put_u32_le(domain.0);
    out
}

/// Checks the bytes that start a pack.
pub fn check_pack_header(bytes: &[u8]) -> Result<Domain, FormatError> {
    let mut r = Reader::new("pack header", bytes);
    r.magic(HEADER_MAGIC, VERSION)?;
    r.reserved(2)?;
    let domain = Domain(r.u32()?).check("pack header")?;
    r.reserved(4)?;
    Ok(domain)
}

impl Trailer {
    /// Parses the last [`TRAILER_LEN`] bytes of a pack of `pack_len` bytes.
    pub fn parse(bytes: &[u8], pack_len: u64) -> Result<Self, FormatError> {
        let mut r = Reader::new(WHAT, bytes);
        let all = r.take(TRAILER_LEN)?;
        r.end()?;
        let mut r = Reader::new(WHAT, all);
        r.magic(TRAILER_MAGIC, VERSION)?;
        let crc = u32::from_le_bytes([all[60], all[61], all[62], all[63]]);
        if crc32c::crc32c(&all[..60]) != crc {
            return Err(FormatError::Mismatch { what: WHAT, which: "trailer CRC32C" });
        }
        r.reserved(2)?;
        Domain(r.u32()?).check(WHAT)?;
        let (count, entries_at) = (r.u32()?, r.u32()?);
        r.reserved(8)?;
        let end = u64::from(entries_at) + ENTRY_LEN as u64 * u64::from(count) + TRAILER_LEN as u64;
        if pack_len > MAX_PACK as u64 || end != pack_len || (entries_at as usize) < PACK_HEADER_LEN
        {
            return Err(r.field("length of the pack", pack_len));
        }
        Ok(Self { entries_at, count })
    }
}

impl Footer {
    /// Parses a footer: the entries and the trailer, which end a pack of `pack_len` bytes.
    pub fn parse(bytes: &[u8], pack_len: u64) -> Result<Self, FormatError> {
        let split = bytes.len().checked_sub(TRAILER_LEN).ok_or(FormatError::Truncated {
            what: WHAT,
            need: TRAILER_LEN,
            have: bytes.len(),
        })?;
        let (entries, trailer_bytes) = bytes.split_at(split);
        let trailer = Trailer::parse(trailer_bytes, pack_len)?;
        if entries.len() != ENTRY_LEN * trailer.count as usize {
            let value = entries.len() as u64;
            return Err(FormatError::Field { what: WHAT, field: "length of the entries", value });
        }
        if Digest::of_index(&[entries, &trailer_bytes[..28]]).0 != trailer_bytes[28..60] {
            return Err(FormatError::Mismatch { what: WHAT, which: "BLAKE3" });
        }
        let domain = u32::from_le_bytes([
            trailer_bytes[8],
            trailer_bytes[9],
            trailer_bytes[10],
            trailer_bytes[11],
        ]);
        let mut at = PACK_HEADER_LEN as u64;
        let entries = entries.chunks_exact(ENTRY_LEN).map(|e| {
            let entry = Entry::parse(e)?;
            if u64::from(entry.offset) != at {
                let value = u64::from(entry.offset);
                return Err(FormatError::Field { what: WHAT, field: "offset of a frame", value });
            }
            at += u64::from(entry.frame_len);
            Ok(entry)
        });
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        if at != u64::from(trailer.entries_at) {
            return Err(FormatError::Field { what: WHAT, field: "end of the frames", value: at });
        }
        Ok(Self { domain: Domain(domain), entries })
    }
}

impl Entry {
    fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(WHAT, bytes);
        let (digest, stored) = (r.digest()?, r.digest()?);
        let (offset, frame_len, plain_len) = (r.u32()?, r.u32()?, r.u32()?);
        let codec = Codec::from_id(r.u16()?)?;
        r.reserved(2)?;
        if plain_len == 0 || plain_len > MAX_PLAIN {
            return Err(r.field("plain length", u64::from(plain_len)));
        }
        if frame_len as usize <= HEADER_LEN || frame_len - HEADER_LEN as u32 > plain_len {
            return Err(r.field("frame length", u64::from(frame_len)));
        }
        r.end()?;
        Ok(Self { digest, stored, offset, frame_len, plain_len, codec })
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_slice(&self.digest.0);
        out.put_slice(&self.stored.0);
        out.put_u32_le(self.offset);
        out.put_u32_le(self.frame_len);
        out.put_u32_le(self.plain_len);
        out.put_u16_le(self.codec.id());
        out.put_u16_le(0);
    }
}

/// Lays out a pack: frames are appended, then it is finished with its footer.
///
/// ```text
/// PackBuilder::new → push, push, … (while `fits`) → finish
/// ```
pub struct PackBuilder {
    domain: Domain,
    parts: Vec<Bytes>,
    len: usize,
    entries: Vec<Entry>,
}

impl PackBuilder {
    /// An empty pack of a domain.
    pub fn new(domain: Domain) -> Self {
        let header = Bytes::copy_from_slice(&pack_header(domain));
        Self { domain, parts: vec![header], len: PACK_HEADER_LEN, entries: Vec::new() }
    }

    /// Bytes that the pack would have if it were finished now.
    pub fn finished_len(&self) -> usize {
        self.len + ENTRY_LEN * self.entries.len() + TRAILER_LEN
    }

    /// Whether a frame still fits under [`MAX_PACK`].
    pub fn fits(&self, frame: &Frame) -> bool {
        self.finished_len() + frame.bytes().len() + ENTRY_LEN <= MAX_PACK
    }

    /// Whether nothing has been appended.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Appends a frame, which must fit, and returns its entry. The payload was verified by the
    /// caller.
    pub fn push(&mut self, frame: &Frame) -> Entry {
        assert!(self.fits(frame), "pack over {MAX_PACK} bytes");
        let entry = Entry {
            digest: frame.header().digest,
            stored: Digest::of_stored(frame.payload()),
            offset: self.len as u32,
            frame_len: frame.bytes().len() as u32,
            plain_len: frame.header().plain_len,
            codec: frame.header().codec,
        };
        self.len += frame.bytes().len();
        self.parts.push(frame.bytes().clone());
        self.entries.push(entry);
        entry
    }

    /// The pack's bytes, in parts (frames are not copied), and its footer.
    pub fn finish(mut self) -> (Vec<Bytes>, Footer) {
        let mut tail = BytesMut::with_capacity(ENTRY_LEN * self.entries.len() + TRAILER_LEN);
        self.entries.iter().for_each(|e| e.write(&mut tail));
        let entries_len = tail.len();
        tail.put_slice(&TRAILER_MAGIC);
        tail.put_u16_le(VERSION);
        tail.put_u16_le(0);
        tail.put_u32_le(self.domain.0);
        tail.put_u32_le(self.entries.len() as u32);
        tail.put_u32_le(self.len as u32);
        tail.put_u64_le(0);
        let digest = Digest::of_index(&[&tail]);
        tail.put_slice(&digest.0);
        let crc = crc32c::crc32c(&tail[entries_len..]);
        tail.put_u32_le(crc);
        self.parts.push(tail.freeze());
        (self.parts, Footer { domain: self.domain, entries: self.entries })
    }
}
