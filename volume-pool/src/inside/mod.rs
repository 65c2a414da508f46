//! What lies on a disk: its partition table, and the file system in a partition or on all of the disk.
//!
//! Pure functions over a few bytes of disks that nobody vouches for: whatever is in them, the answer is an error
//! or what can be trusted. What is to be written is returned as [`Edit`]s, for whoever can write.

mod content;
mod gpt;
mod mbr;
mod shrink;
mod table;
#[cfg(test)]
pub(crate) mod tests;

pub use content::{Content, FileSystem, FsKind, content};
pub use shrink::{Proof, proof};
pub use table::{Partition, Table};

/// Bytes at either end of a disk, and at the beginning of a partition, that are looked at. Whatever says what
/// lies there lies in them.
pub const EDGE: usize = 128 << 10;

/// The ends of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Edges<'a> {
    /// Bytes of the disk.
    pub size: u64,
    /// Its logical sector in bytes.
    pub sector: u32,
    /// Its first [`EDGE`] bytes; all of a smaller disk.
    pub head: &'a [u8],
    /// Its last [`EDGE`] bytes; all of a smaller disk.
    pub tail: &'a [u8],
}

impl<'a> Edges<'a> {
    /// Bytes of the disk, if they are among those that are known.
    fn bytes(&self, at: u64, len: usize) -> Option<&'a [u8]> {
        let part = |of: &'a [u8], at: u64| {
            let at = usize::try_from(at).ok()?;
            of.get(at..at.checked_add(len)?)
        };
        let tail_at = self.size.checked_sub(self.tail.len() as u64)?;
        part(self.head, at).or_else(|| part(self.tail, at.checked_sub(tail_at)?))
    }
}

/// Bytes to be written, in whole sectors. Edits are made in order, and each is durable before the next: the disk
/// is then whole, for whoever reads it, at each instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Where.
    pub at: u64,
    /// What.
    pub bytes: Vec<u8>,
}

fn le16(b: &[u8], at: usize) -> u16 {
    b.get(at..at + 2).map_or(0, |b| u16::from_le_bytes(b.try_into().expect("two bytes")))
}

fn le32(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4).map_or(0, |b| u32::from_le_bytes(b.try_into().expect("four bytes")))
}

fn le64(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("eight bytes")))
}
