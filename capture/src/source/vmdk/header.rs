//! The header of a sparse vmdk.
//!
//! ```text
//!  0      4      8      12        20         28          36         44      48          56
//!  | KDMV | ver. | flags| capacity| grain len| descriptor| desc. len| GTEs  | redundant | grain dir. …
//!  | u32  | u32  | u32  | u64 (all in sectors of 512 bytes) …       | u32   | dir. u64  | u64
//!  64        72   73          77                77
//!  | overhead| …  | newline test "\n \r\n" | compression u16
//! ```
//! All numbers are little-endian.

use blockio::BlockFile;
use image::{Error, Kind, Result};

use super::{corrupt, descriptor, read_exact, unsupported};
use crate::source::read_error;

/// What every length and offset in the file counts.
pub(super) const SECTOR: u64 = 512;

const MAGIC: &[u8; 4] = b"KDMV";
/// Grain directory offset that says: see the footer.
const AT_END: u64 = u64::MAX;
const FLAG_ZERO_GRAINS: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;
const DEFLATE: u16 = 1;

/// What a header says, checked.
pub(super) struct Header {
    /// Size of the disk in bytes.
    pub(super) size: u64,
    /// Length of a grain in bytes.
    pub(super) grain: u64,
    /// Entries of a grain table.
    pub(super) entries: u32,
    /// Where the grain directory lies, in sectors.
    pub(super) directory: u64,
    /// Whether grains are deflated.
    pub(super) compressed: bool,
    /// Whether a grain table entry of 1 means zeros.
    pub(super) zero_grains: bool,
}

impl Header {
    pub(super) fn open(file: &BlockFile) -> Result<Self> {
        let mut bytes = [0; SECTOR as usize];
        let read = file.read_at(&mut bytes, 0).map_err(read_error)?;
        if &bytes[..4] != MAGIC {
            return Err(no_header(file)?);
        }
        if read < bytes.len() {
            return Err(corrupt(format!(
                "the file ends after {read} bytes: is the copy complete?"
            )));
        }
        let raw = Raw(&bytes);
        check_descriptor(file, &raw)?;
        if raw.u64(56) == AT_END {
            return Self::parse(&Raw(&footer(file)?));
        }
        Self::parse(&raw)
    }

    fn parse(raw: &Raw<'_>) -> Result<Self> {
        let version = raw.u32(4);
        if !(1..=3).contains(&version) {
            return Err(unsupported(format!("version {version} is not known")));
        }
        // Any transfer that mistook the file for text has broken these.
        if raw.0[73..77] != *b"\n \r\n" {
            return Err(corrupt("its line ends were converted: copy it again as binary".into()));
        }
        let flags = raw.u32(8);
        let compressed = flags & FLAG_COMPRESSED != 0;
        let algorithm = raw.u16(77);
        if compressed && (algorithm != DEFLATE || flags & FLAG_MARKERS == 0) {
            return Err(unsupported(format!("compression {algorithm} is not known")));
        }
        let size = raw.sectors(12, "capacity")?;
        if size > image::geometry::MAX_DISK {
            return Err(corrupt(format!("a disk of {size} bytes is too large")));
        }
        let grain = raw.sectors(20, "grain size")?;
        if !grain.is_power_of_two() || grain > (2 << 20) {
            return Err(corrupt(format!("a grain of {grain} bytes is out of bounds")));
        }
        let entries = raw.u32(44);
        if !(1..=512).contains(&entries) {
            return Err(corrupt(format!("{entries} entries in a grain table are out of bounds")));
        }
        let zero_grains = flags & FLAG_ZERO_GRAINS != 0;
        Ok(Self { size, grain, entries, directory: raw.u64(56), compressed, zero_grains })
    }
}

struct Raw<'a>(&'a [u8; SECTOR as usize]);

impl Raw<'_> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.0[at..at + 2].try_into().expect("two bytes"))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }

    /// A number of sectors, in bytes.
    fn sectors(&self, at: usize, what: &str) -> Result<u64> {
        let sectors = self.u64(at);
        let bytes = sectors.checked_mul(SECTOR);
        bytes.ok_or_else(|| corrupt(format!("{what} of {sectors} sectors is out of bounds")))
    }
}

/// A file without a header is a descriptor alone, another of VMware's formats, or no vmdk.
fn no_header(file: &BlockFile) -> Result<Error> {
    let mut bytes = vec![0; file.size().map_err(read_error)?.min(descriptor::MAX) as usize];
    let read = file.read_at(&mut bytes, 0).map_err(read_error)?;
    let text = String::from_utf8_lossy(&bytes[..read]);
    if descriptor::is_one(&text) {
        return Ok(descriptor::refuse_alone(&text));
    }
    if text.starts_with("COWD") {
        return Ok(unsupported("ESX sparse extents cannot be read".into()));
    }
    let what = "this is not a vmdk file; if it is a raw disk, say --format raw";
    Ok(Error::new(Kind::Invalid, what))
}

fn check_descriptor(file: &BlockFile, raw: &Raw<'_>) -> Result<()> {
    let at = raw.sectors(28, "descriptor offset")?;
    let len = raw.sectors(36, "descriptor length")?;
    if at == 0 || len == 0 {
        let what = "no descriptor in the file: it is one extent of a disk in several files";
        return Err(unsupported(what.into()));
    }
    let mut bytes = vec![0; len.min(descriptor::MAX) as usize];
    read_exact(file, &mut bytes, at)?;
    let text = bytes.split(|b| *b == 0).next().unwrap_or_default();
    descriptor::check_embedded(&String::from_utf8_lossy(text))
}

/// The header's second writing, before the last sector of a file that was written as a stream.
fn footer(file: &BlockFile) -> Result<[u8; SECTOR as usize]> {
    let size = file.size().map_err(read_error)?;
    let mut bytes = [0; SECTOR as usize];
    if size < 3 * SECTOR {
        return Err(corrupt(format!("no footer in a file of {size} bytes")));
    }
    read_exact(file, &mut bytes, size - 2 * SECTOR)?;
    if &bytes[..4] != MAGIC || Raw(&bytes).u64(56) == AT_END {
        return Err(corrupt("no footer at the end of the file: is the copy complete?".into()));
    }
    Ok(bytes)
}
