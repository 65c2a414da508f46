//! The bytes of a segment that are not frames: its header, and the footer that lists its frames.
//!
//! ```text
//!  0      64                                                            end − 64     end
//!  | header | frame | frame | … | frame | entry | entry | … | entry |  trailer  |
//!
//!  header (64 bytes):  | "FBSG" | ver 1 u16 | zeros u16 | id u64 | zeros 44 | CRC32C of bytes 0..60 |
//!  entry (48 bytes):   | digest of the plain chunk 32 | domain u32 | offset u32 | frame len u32 | zeros u32 |
//!  trailer (64 bytes): | "FBSE" | ver 1 u16 | zeros u16 | id u64 | count u32 | entries' offset u32 | zeros 32 |
//!                      | CRC32C of the entries | CRC32C of the trailer's bytes 0..60 |
//! ```
//! Numbers are little-endian. Frames follow one another without gaps. A segment that is still being
//! written, or whose writer died, ends after its last frame, or in a piece of one.

use bytes::{BufMut, Bytes, BytesMut};
use image::frame::{HEADER_LEN as FRAME_HEADER, MAX_FRAME};
use image::reader::Reader;
use image::{Digest, Domain, FormatError, Frame};

use crate::key::{Key, check_frame};

/// Length of a segment's header, and so the offset of its first frame.
pub(crate) const HEADER_LEN: usize = 64;
/// Length of an entry of the footer.
pub(crate) const ENTRY_LEN: usize = 48;
/// Length of the trailer, which ends a sealed segment.
pub(crate) const TRAILER_LEN: usize = 64;
/// Most frames in one segment, so that a footer stays within 12 MiB.
pub(crate) const MAX_ENTRIES: usize = 1 << 18;

const VERSION: u16 = 1;
const HEADER_MAGIC: [u8; 4] = *b"FBSG";
const TRAILER_MAGIC: [u8; 4] = *b"FBSE";
const HEADER: &str = "segment header";
const FOOTER: &str = "segment footer";

/// One frame of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: Key,
    /// Where the frame starts in the segment, in bytes.
    pub(crate) offset: u32,
    /// Length of the frame, header included.
    pub(crate) len: u32,
}

impl Entry {
    /// Checks that a frame is whole and the one that is meant.
    pub(crate) fn check(&self, frame: Frame) -> Result<Frame, image::Error> {
        let header = frame.header();
        check_frame(&frame, &self.key, header.plain_len)?;
        Ok(frame)
    }
}

/// What the first bytes of a file with a segment's name say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// A segment of ours.
    Good,
    /// A segment of ours whose header was never written or is damaged: nothing in it can be used.
    Damaged,
    /// Not ours, or of a version that this program does not know: not ours to touch.
    Foreign(FormatError),
}

/// The name of a segment's file.
pub(crate) fn file_name(id: u32) -> String {
    format!("seg-{id:016x}")
}

/// The id of a segment, from the name of its file; `None` for other files.
pub(crate) fn parse_name(name: &str) -> Option<u32> {
    let id = u32::try_from(u64::from_str_radix(name.strip_prefix("seg-")?, 16).ok()?).ok()?;
    (file_name(id) == name).then_some(id)
}

/// The bytes that start a segment.
pub(crate) fn header(id: u32) -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    let mut w = &mut out[..];
    w.put_slice(&HEADER_MAGIC);
    w.put_u16_le(VERSION);
    w.put_u16_le(0);
    w.put_u64_le(u64::from(id));
    let crc = crc32c::crc32c(&out[..60]);
    out[60..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Judges the first bytes of a file, at most [`HEADER_LEN`]; fewer if the file is shorter.
pub(crate) fn check_header(bytes: &[u8], id: u32) -> Header {
    if bytes.iter().all(|b| *b == 0) {
        return Header::Damaged;
    }
    let magic = &HEADER_MAGIC[..bytes.len().min(4)];
    if !bytes.starts_with(magic) {
        let mut found = [0; 4];
        found[..magic.len()].copy_from_slice(&bytes[..magic.len()]);
        return Header::Foreign(FormatError::Magic { what: HEADER, found });
    }
    if let Some(version) = bytes.get(4..6).map(|v| u16::from_le_bytes([v[0], v[1]]))
        && version != VERSION
    {
        let (found, known) = (version, VERSION);
        return Header::Foreign(FormatError::Version { what: HEADER, found, known });
    }
    match bytes.len() == HEADER_LEN && bytes == header(id) {
        true => Header::Good,
        false => Header::Damaged,
    }
}

/// The end of a sealed segment whose frames end at `entries_at`.
pub(crate) fn footer(id: u32, entries: &[Entry], entries_at: u32) -> Bytes {
    let mut out = BytesMut::with_capacity(footer_len(entries.len()));
    for entry in entries {
        out.put_slice(&entry.key.digest.0);
        out.put_u32_le(entry.key.domain.0);
        out.put_u32_le(entry.offset);
        out.put_u32_le(entry.len);
        out.put_u32_le(0);
    }
    let entries_crc = crc32c::crc32c(&out);
    let trailer_at = out.len();
    out.put_slice(&TRAILER_MAGIC);
    out.put_u16_le(VERSION);
    out.put_u16_le(0);
    out.put_u64_le(u64::from(id));
    out.put_u32_le(u32::try_from(entries.len()).expect("at most MAX_ENTRIES entries"));
    out.put_u32_le(entries_at);
    out.put_bytes(0, 32);
    out.put_u32_le(entries_crc);
    let crc = crc32c::crc32c(&out[trailer_at..]);
    out.put_u32_le(crc);
    out.freeze()
}

/// Length of a footer with so many entries.
pub(crate) fn footer_len(entries: usize) -> usize {
    entries * ENTRY_LEN + TRAILER_LEN
}

/// Where a sealed segment's entries lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    /// Offset of the entries, and so the end of the frames.
    pub(crate) entries_at: u32,
    /// Number of entries.
    pub(crate) count: u32,
    entries_crc: u32,
}

impl Trailer {
    /// Parses the last [`TRAILER_LEN`] bytes of a segment of `file_len` bytes.
    pub(crate) fn parse(bytes: &[u8], id: u32, file_len: u64) -> Result<Self, FormatError> {
        let mut r = Reader::new(FOOTER, bytes);
        let all = r.take(TRAILER_LEN)?;
        r.end()?;
        let mut r = Reader::new(FOOTER, all);
        r.magic(TRAILER_MAGIC, VERSION)?;
        let crc = u32::from_le_bytes([all[60], all[61], all[62], all[63]]);
        if crc32c::crc32c(&all[..60]) != crc {
            return Err(FormatError::Mismatch { what: FOOTER, which: "trailer CRC32C" });
        }
        r.reserved(2)?;
        let found = r.u64()?;
        if found != u64::from(id) {
            return Err(r.field("segment id", found));
        }
        let (count, entries_at) = (r.u32()?, r.u32()?);
        r.reserved(32)?;
        let entries_crc = r.u32()?;
        let end = u64::from(entries_at) + footer_len(count as usize) as u64;
        if count as usize > MAX_ENTRIES || (entries_at as usize) < HEADER_LEN || end != file_len {
            return Err(r.field("length of the segment", file_len));
        }
        Ok(Self { entries_at, count, entries_crc })
    }

    /// Parses the entries, which lie before the trailer.
    pub(crate) fn entries(&self, bytes: &[u8]) -> Result<Vec<Entry>, FormatError> {
        if bytes.len() != self.count as usize * ENTRY_LEN {
            let value = bytes.len() as u64;
            return Err(FormatError::Field { what: FOOTER, field: "length of entries", value });
        }
        if crc32c::crc32c(bytes) != self.entries_crc {
            return Err(FormatError::Mismatch { what: FOOTER, which: "CRC32C of the entries" });
        }
        let mut at = HEADER_LEN as u64;
        let entries = bytes.chunks_exact(ENTRY_LEN).map(|bytes| {
            let entry = parse_entry(bytes)?;
            if u64::from(entry.offset) != at {
                let value = u64::from(entry.offset);
                return Err(FormatError::Field { what: FOOTER, field: "offset of a frame", value });
            }
            at += u64::from(entry.len);
            Ok(entry)
        });
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        if at != u64::from(self.entries_at) {
            return Err(FormatError::Field { what: FOOTER, field: "end of the frames", value: at });
        }
        Ok(entries)
    }
}

fn parse_entry(bytes: &[u8]) -> Result<Entry, FormatError> {
    let mut r = Reader::new(FOOTER, bytes);
    let (digest, domain): (Digest, _) = (r.digest()?, Domain(r.u32()?));
    let (offset, len) = (r.u32()?, r.u32()?);
    r.reserved(4)?;
    if len as usize <= FRAME_HEADER || len as usize > MAX_FRAME {
        return Err(r.field("frame length", u64::from(len)));
    }
    Ok(Entry { key: Key { domain, digest }, offset, len })
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
