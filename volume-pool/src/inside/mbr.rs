//! The partition table of a PC's boot sector. Logical partitions are their extended one's affair: it is one
//! partition here.
//!
//! ```text
//!  0           446        462        478        494        510
//!  | boot code | entry 1  | entry 2  | entry 3  | entry 4  | 55 AA |
//!  entry: active u8 | first C/H/S, 3 | type u8 | last C/H/S, 3 | first sector u32 | sectors u32
//! ```

use image::{Error, Kind, Result};

use super::table::{Partition, in_order};
use super::{Edges, Edit, le32};

const ENTRIES: usize = 446;
const ENTRY: usize = 16;
/// C/H/S of what lies beyond what they can say.
const BEYOND: [u8; 3] = [0xfe, 0xff, 0xff];
const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// A boot sector that has partitions.
#[derive(Clone, Debug)]
pub struct Mbr {
    sector: u64,
    boot: Vec<u8>,
    pub(super) partitions: Vec<Partition>,
}

/// What the first sector says of partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Boot {
    /// Nothing.
    None,
    /// There are some.
    Partitions,
    /// That a GPT does.
    Protective,
    /// Both.
    Hybrid,
}

fn entries(boot: &[u8]) -> impl Iterator<Item = &[u8]> {
    boot.get(ENTRIES..ENTRIES + 4 * ENTRY).unwrap_or_default().chunks_exact(ENTRY)
}

pub(super) fn boot(sector: &[u8]) -> Boot {
    let signed = sector.get(510..512) == Some(&[0x55, 0xaa]);
    // Boot code of a file system where entries should be says so here.
    if !signed || entries(sector).any(|entry| entry[0] & 0x7f != 0) {
        return Boot::None;
    }
    let used = entries(sector).filter(|entry| entry[4] != 0 && le32(entry, 12) != 0);
    let (protective, others): (Vec<_>, Vec<_>) = used.partition(|entry| entry[4] == PROTECTIVE);
    match (protective.is_empty(), others.is_empty()) {
        (true, true) => Boot::None,
        (true, false) => Boot::Partitions,
        (false, true) => Boot::Protective,
        (false, false) => Boot::Hybrid,
    }
}

/// The same boot sector, of a disk of so many sectors that has a GPT.
pub(super) fn protecting(mut boot: Vec<u8>, sectors: u64) -> Vec<u8> {
    let size = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    let all = boot.get_mut(ENTRIES..ENTRIES + 4 * ENTRY).unwrap_or_default();
    for entry in all.chunks_exact_mut(ENTRY) {
        // Some say this whatever the disk's size.
        if entry[4] == PROTECTIVE && le32(entry, 12) != u32::MAX {
            entry[12..].copy_from_slice(&size.to_le_bytes());
        }
    }
    boot
}

impl Mbr {
    pub(super) fn read(edges: &Edges<'_>) -> Result<Self> {
        let sector = u64::from(edges.sector);
        let boot = edges.bytes(0, edges.sector as usize).unwrap_or_default();
        let used = entries(boot).enumerate().filter(|(_, entry)| entry[4] != 0);
        let partitions = used.filter(|(_, entry)| le32(entry, 12) != 0).map(|(index, entry)| {
            let start = u64::from(le32(entry, 8));
            let end = start + u64::from(le32(entry, 12));
            Partition {
                number: index as u32 + 1,
                bytes: start * sector..end * sector,
                extended: EXTENDED.contains(&entry[4]),
            }
        });
        let partitions = in_order(partitions.collect(), sector)?;
        Ok(Self { sector, boot: boot.to_vec(), partitions })
    }

    /// The end that its last partition has on a disk of `size` bytes when it is extended, and what is to be written.
    pub(super) fn extended_to(&self, last: &Partition, size: u64) -> Result<(u64, Vec<Edit>)> {
        let (start, end) = (last.bytes.start / self.sector, size / self.sector);
        let Some(sectors) = u32::try_from(end).ok().and_then(|end| end.checked_sub(start as u32))
        else {
            let most = (u64::from(u32::MAX) * self.sector) >> 30;
            let what =
                format!("an MBR reaches no further than {most} GiB: it takes a GPT for more");
            return Err(Error::new(Kind::Unsupported, what));
        };
        let mut boot = self.boot.clone();
        let at = ENTRIES + (last.number as usize - 1) * ENTRY;
        boot[at + 5..at + 8].copy_from_slice(&BEYOND);
        boot[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
        let edits = if boot == self.boot { vec![] } else { vec![Edit { at: 0, bytes: boot }] };
        Ok((end * self.sector, edits))
    }
}
