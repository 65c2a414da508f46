//! The GUID partition table (UEFI 2.10, 5.3): a header and entries at the beginning of the disk, and again at its
//! end.
//!
//! ```text
//!  sector 0          1        2 …                         … last−1    last
//!  | protective MBR | header | entries | partitions … | entries | header |
//!
//!  header: 0 "EFI PART" | 8 version | 12 length | 16 CRC-32 | 24 own place | 32 the other's place
//!          40 first usable | 48 last usable | 56 GUID | 72 place of the entries | 80 number | 84 length | 88 CRC-32
//!  entry:  0 type GUID | 16 GUID | 32 first sector | 40 last sector | 48 attributes | 56 name
//! ```
//! Written in this order, each durable before the next: the copy at the end, entries, header. Until the header is
//! there, either the copy at the beginning is as it was, or it is damaged and the one at the end is whole.

use std::ops::Range;

use image::{Error, Kind, Result};

use super::mbr::protecting;
use super::table::{Partition, in_order};
use super::{Edges, Edit, le32, le64};

const SIGNATURE: &[u8; 8] = b"EFI PART";
const VERSION: u32 = 0x0001_0000;
/// Bytes of a header that mean something.
const LEN: usize = 92;
/// More bytes of entries are not looked at: the usual are 16 KiB.
const MOST: usize = 64 << 10;
/// To what the end of an extended partition is rounded.
const ALIGN: u64 = 4096;

/// A table of which one copy at least is whole.
#[derive(Clone, Debug)]
pub struct Gpt {
    sector: u64,
    boot: Vec<u8>,
    header: Vec<u8>,
    entries: Vec<u8>,
    /// Sector of the entries at the beginning of the disk.
    entries_at: u64,
    /// Whether the copy at the beginning is whole.
    pub(super) whole: bool,
    pub(super) partitions: Vec<Partition>,
}

struct Copy<'a> {
    header: &'a [u8],
    entries: &'a [u8],
}

impl<'a> Copy<'a> {
    /// The copy whose header is in this sector, if it is whole.
    fn read(edges: &Edges<'a>, place: u64) -> Option<Self> {
        let sector = u64::from(edges.sector);
        let block = edges.bytes(place.checked_mul(sector)?, edges.sector as usize)?;
        let len = le32(block, 12) as usize;
        let known = block.get(..8)? == SIGNATURE && le32(block, 8) == VERSION && len >= LEN;
        let header = block.get(..len).filter(|_| known)?;
        let fits = checksum(header) == le32(header, 16) && le64(header, 24) == place;
        let (count, each) = (le32(header, 80) as usize, le32(header, 84) as usize);
        let total = count.checked_mul(each).filter(|total| *total <= MOST)?;
        if !fits || count == 0 || each < 128 || !each.is_power_of_two() {
            return None;
        }
        let entries = edges.bytes(le64(header, 72).checked_mul(sector)?, total)?;
        (crc32fast::hash(entries) == le32(header, 88)).then_some(Self { header, entries })
    }
}

/// Of a header, with zeros where it goes.
fn checksum(header: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&header[..16]);
    sum.update(&[0; 4]);
    sum.update(&header[20..]);
    sum.finalize()
}

/// Whether there is something that calls itself a header.
pub(super) fn is_signed(edges: &Edges<'_>) -> bool {
    edges.bytes(u64::from(edges.sector), 8).is_some_and(|found| found == SIGNATURE)
}

impl Gpt {
    /// Reads the copy at the beginning, or the other if that is damaged.
    pub(super) fn read(edges: &Edges<'_>) -> Result<Self> {
        let sector = u64::from(edges.sector);
        let first = Copy::read(edges, 1);
        let whole = first.is_some();
        let end = || Copy::read(edges, (edges.size / sector).checked_sub(1)?);
        let damaged = || Error::new(Kind::Corrupt, "a GPT of which both copies are damaged");
        let copy = first.or_else(end).ok_or_else(damaged)?;
        let entries_at = if whole { le64(copy.header, 72) } else { 2 };
        let partitions = partitions(copy.entries, le32(copy.header, 84) as usize, sector)?;
        let partitions = in_order(partitions, sector)?;
        let gpt = Self {
            sector,
            boot: edges.bytes(0, edges.sector as usize).unwrap_or_default().to_vec(),
            header: copy.header.to_vec(),
            entries: copy.entries.to_vec(),
            entries_at,
            whole,
            partitions,
        };
        let begin = gpt.entries_at.saturating_add(gpt.entries_sectors()).saturating_mul(sector);
        if gpt.entries_at < 2 || gpt.partitions.iter().any(|p| p.bytes.start < begin) {
            return Err(Error::new(Kind::Corrupt, "a GPT with partitions where it lies itself"));
        }
        Ok(gpt)
    }

    fn entries_sectors(&self) -> u64 {
        (self.entries.len() as u64).div_ceil(self.sector)
    }

    /// Bytes that its copy at the end of the disk takes.
    pub(super) fn tail(&self) -> u64 {
        (self.entries_sectors() + 1) * self.sector
    }

    /// What is to be written so that it ends where a disk of `size` bytes does.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] if there is no room for it.
    pub(super) fn ending_at(&self, size: u64) -> Result<Vec<Edit>> {
        self.written(self.entries.clone(), size)
    }

    /// The end that its last partition has on a disk of `size` bytes when it is extended, and what is to be written.
    pub(super) fn extended_to(&self, last: &Partition, size: u64) -> Result<(u64, Vec<Edit>)> {
        let usable = (size / self.sector * self.sector).saturating_sub(self.tail());
        let end = (usable - usable % ALIGN).max(last.bytes.end.min(usable));
        let mut entries = self.entries.clone();
        let at = (last.number as usize - 1) * le32(&self.header, 84) as usize;
        let last_sector = (end / self.sector).saturating_sub(1);
        entries[at + 40..at + 48].copy_from_slice(&last_sector.to_le_bytes());
        Ok((end, self.written(entries, size)?))
    }

    fn written(&self, entries: Vec<u8>, size: u64) -> Result<Vec<Edit>> {
        let last = (size / self.sector).saturating_sub(1);
        let usable = last.saturating_sub(self.entries_sectors() + 1);
        let behind = |p: &Partition| p.bytes.end > (usable + 1) * self.sector;
        let entries_end = self.entries_at + self.entries_sectors();
        if usable < le64(&self.header, 40).max(entries_end) || self.partitions.iter().any(behind) {
            let what = format!("a GPT and its partitions do not fit into {size} bytes");
            return Err(Error::new(Kind::Invalid, what));
        }
        let mut bytes = self.sectors(&entries);
        let entries_last = last - self.entries_sectors();
        let header = |own, other, at| self.sectors(&self.header(own, other, usable, at, &entries));
        bytes.extend(header(last, 1, entries_last));
        let mut edits = vec![Edit { at: entries_last * self.sector, bytes }];
        let at = self.entries_at * self.sector;
        if !self.whole || entries != self.entries {
            edits.push(Edit { at, bytes: self.sectors(&entries) });
        }
        edits.push(Edit { at: self.sector, bytes: header(1, last, self.entries_at) });
        let boot = protecting(self.boot.clone(), last + 1);
        if boot != self.boot {
            edits.push(Edit { at: 0, bytes: boot });
        }
        Ok(edits)
    }

    fn header(&self, own: u64, other: u64, usable: u64, at: u64, entries: &[u8]) -> Vec<u8> {
        let mut header = self.header.clone();
        for (place, value) in [(24, own), (32, other), (48, usable), (72, at)] {
            header[place..place + 8].copy_from_slice(&value.to_le_bytes());
        }
        header[88..92].copy_from_slice(&crc32fast::hash(entries).to_le_bytes());
        let sum = checksum(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        header
    }

    /// Bytes, and zeros up to the end of a sector.
    fn sectors(&self, bytes: &[u8]) -> Vec<u8> {
        let mut sectors = bytes.to_vec();
        sectors.resize(bytes.len().next_multiple_of(self.sector as usize), 0);
        sectors
    }
}

fn partitions(entries: &[u8], each: usize, sector: u64) -> Result<Vec<Partition>> {
    let used = entries.chunks_exact(each).enumerate();
    let used = used.filter(|(_, entry)| entry[..16].iter().any(|byte| *byte != 0));
    let partition = |(index, entry): (usize, &[u8])| {
        let bytes = range(le64(entry, 32), le64(entry, 40), sector);
        let what = || format!("a GPT whose partition {} ends before it begins", index + 1);
        let bytes = bytes.ok_or_else(|| Error::new(Kind::Corrupt, what()))?;
        Ok(Partition { number: index as u32 + 1, bytes, extended: false })
    };
    used.map(partition).collect()
}

fn range(first: u64, last: u64, sector: u64) -> Option<Range<u64>> {
    let end = last.checked_add(1)?.checked_mul(sector)?;
    (first <= last).then(|| first * sector..end)
}
