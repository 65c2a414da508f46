//! The partition table of a disk, whichever it has.

use std::ops::Range;

use image::{Error, Kind, Result};

use super::content::{Content, content};
use super::gpt::{Gpt, is_signed};
use super::mbr::{Boot, Mbr, boot};
use super::{Edges, Edit};

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// From 1, as tools count them.
    pub number: u32,
    /// Where it lies on the disk.
    pub bytes: Range<u64>,
    /// It is there to hold others.
    pub extended: bool,
}

/// The partitions of a disk.
#[derive(Clone, Debug)]
pub enum Table {
    /// It has none: a file system, or something else, has all of the disk.
    None,
    /// In its boot sector.
    Mbr(Mbr),
    /// By GUIDs.
    Gpt(Gpt),
}

fn unclear(what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("{what}: which of them counts is not clear"))
}

/// Partitions in their order on the disk.
pub(super) fn in_order(mut all: Vec<Partition>, sector: u64) -> Result<Vec<Partition>> {
    all.sort_by_key(|p| p.bytes.start);
    if let Some(pair) = all.windows(2).find(|pair| pair[0].bytes.end > pair[1].bytes.start) {
        let what = format!("partitions {} and {} overlap", pair[0].number, pair[1].number);
        return Err(Error::new(Kind::Corrupt, what));
    }
    match all.first().filter(|first| first.bytes.start < sector) {
        Some(first) => {
            let what = format!("partition {} lies where the table does", first.number);
            Err(Error::new(Kind::Corrupt, what))
        }
        None => Ok(all),
    }
}

impl Table {
    /// Reads the table of a disk.
    ///
    /// # Errors
    ///
    /// [`Kind::Corrupt`] for one that is damaged or contradicts itself; [`Kind::Unsupported`] where two say
    /// different things.
    pub fn read(edges: &Edges<'_>) -> Result<Self> {
        if ![512, 4096].contains(&edges.sector) {
            let what = format!("sectors of {} bytes", edges.sector);
            return Err(Error::new(Kind::Invalid, what));
        }
        let found = boot(edges.head);
        let inside = content(edges.head);
        match (found, &inside) {
            (Boot::Protective, _) => Ok(Self::Gpt(Gpt::read(edges)?)),
            (Boot::Hybrid, _) => Err(unclear("a GPT and an MBR")),
            // What calls itself a file system in the boot sector has no partitions there.
            (Boot::Partitions, Content::FileSystem(fs)) if !fs.is_in_boot_sector() => {
                Err(unclear("partitions and a file system on the whole disk"))
            }
            (Boot::Partitions, Content::Zeros | Content::Unknown) => {
                Ok(Self::Mbr(Mbr::read(edges)?))
            }
            (Boot::None, Content::Unknown) if is_signed(edges) => {
                Err(unclear("a GPT and a boot sector that knows nothing of it"))
            }
            (Boot::Partitions, Content::Other(_)) | (Boot::None | Boot::Partitions, _) => {
                Ok(Self::None)
            }
        }
    }

    /// All, in their order on the disk.
    pub fn partitions(&self) -> &[Partition] {
        match self {
            Self::None => &[],
            Self::Mbr(mbr) => &mbr.partitions,
            Self::Gpt(gpt) => &gpt.partitions,
        }
    }

    /// The last one on the disk.
    pub fn last(&self) -> Option<&Partition> {
        self.partitions().last()
    }

    /// Bytes that a disk must have for the partitions, and what of the table follows them.
    pub fn least(&self) -> u64 {
        let end = self.last().map_or(0, |last| last.bytes.end);
        match self {
            Self::Gpt(gpt) => end.max(gpt.tail()).saturating_add(gpt.tail()),
            _ => end,
        }
    }

    /// Whether a part of it is damaged that [`ending_at`](Self::ending_at) makes good.
    pub fn is_damaged(&self) -> bool {
        matches!(self, Self::Gpt(gpt) if !gpt.whole)
    }

    /// What is to be written so that the table fits a disk of `size` bytes.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] if there is no room for it.
    pub fn ending_at(&self, size: u64) -> Result<Vec<Edit>> {
        match self {
            Self::Gpt(gpt) => gpt.ending_at(size),
            Self::None | Self::Mbr(_) => Ok(Vec::new()),
        }
    }

    /// Where the last partition, or else the whole disk, lies when it has been extended to the end of a disk of
    /// `size` bytes; and what is to be written.
    ///
    /// # Errors
    ///
    /// [`Kind::Unsupported`] if the table can have no such partition, or none that can be extended;
    /// [`Kind::Corrupt`] if one ends behind the disk.
    pub fn extended_to(&self, size: u64) -> Result<(Range<u64>, Vec<Edit>)> {
        let Some(last) = self.last() else {
            return match self {
                Self::None => Ok((0..size, Vec::new())),
                _ => Err(Error::new(Kind::Unsupported, "a partition table without partitions")),
            };
        };
        if last.extended {
            let what = "the last partition is an extended one, with others in it";
            return Err(Error::new(Kind::Unsupported, what));
        }
        if last.bytes.end > size {
            let what = format!("partition {} ends behind the disk", last.number);
            return Err(Error::new(Kind::Corrupt, what));
        }
        let (end, edits) = match self {
            Self::Gpt(gpt) => gpt.extended_to(last, size)?,
            Self::Mbr(mbr) => mbr.extended_to(last, size)?,
            Self::None => unreachable!("it has no partitions"),
        };
        Ok((last.bytes.start..end, edits))
    }
}
