//! What lies on a disk, and what is to be done to check it: pure decisions over its first bytes and those of its
//! partitions, which nobody vouches for.

use std::ops::Range;

use image::{Kind, Result};
use volume_pool::inside::{Content, EDGE, Edges, FsKind, Table, content};

use super::report::Verdict;
use super::verdict::Task;

/// Partitions that are looked at; a GPT has room for 128 usually.
const MOST: usize = 128;

/// What is to be done with a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// It is checked.
    Check(Task),
    /// Its journal has to be replayed first: it is an ext.
    Replay,
    /// It is checked; if that finds something, once more with this byte of the disk without its lowest bit, by which the
    /// file system says that it is in use.
    Unmark {
        /// Where, in bytes of the disk.
        at: u64,
    },
    /// It is known already.
    Known(Verdict),
}

/// A part of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    /// Of the partition.
    pub(super) number: Option<u32>,
    /// Where it lies on the disk.
    pub(super) bytes: Range<u64>,
    /// What it holds, for people.
    pub(super) holds: String,
    pub(super) plan: Plan,
}

/// Looks at a disk of `size` bytes. `read` reads what lies on it.
///
/// # Errors
///
/// Those of `read`. What is wrong with the disk is a verdict.
pub(super) fn survey(
    size: u64,
    sector: u32,
    mut read: impl FnMut(Range<u64>) -> Result<Vec<u8>>,
) -> Result<Vec<Spot>> {
    let edge = size.min(EDGE as u64);
    let (head, tail) = (read(0..edge)?, read(size - edge..size)?);
    let edges = Edges { size, sector, head: &head, tail: &tail };
    let table = match Table::read(&edges) {
        Ok(table) => table,
        Err(error) => {
            let said = error.message();
            let verdict = match error.kind() {
                Kind::Corrupt => Verdict::damaged(said),
                _ => Verdict::not_checked(said),
            };
            return Ok(vec![about_table("partition table", edge, verdict)]);
        }
    };
    let name = match &table {
        Table::None => return Ok(vec![look(None, 0..size, 0..size, &head)]),
        Table::Mbr(_) => "MBR",
        Table::Gpt(_) => "GPT",
    };
    let verdict = match table.is_damaged() {
        true => {
            Verdict::damaged("its first copy is damaged; the one at the end of the disk is whole")
        }
        false => Verdict::Clean,
    };
    let mut spots = vec![about_table(name, edge, verdict)];
    for partition in table.partitions().iter().take(MOST) {
        let (number, bytes) = (Some(partition.number), partition.bytes.clone());
        if partition.extended {
            let why = "what lies in an extended partition is not looked at";
            let plan = Plan::Known(Verdict::not_checked(why));
            spots.push(Spot { number, bytes, holds: "other partitions".into(), plan });
            continue;
        }
        let seen = bytes.start.min(size)..bytes.end.min(size);
        let head = read(seen.start..seen.end.min(seen.start.saturating_add(EDGE as u64)))?;
        spots.push(look(number, bytes, 0..size, &head));
    }
    let more = table.partitions().len().saturating_sub(MOST);
    if more > 0 {
        let why = format!("{more} more partitions are not looked at");
        spots.push(about_table(name, edge, Verdict::not_checked(why)));
    }
    Ok(spots)
}

fn about_table(name: &str, bytes: u64, verdict: Verdict) -> Spot {
    Spot { number: None, bytes: 0..bytes, holds: name.to_owned(), plan: Plan::Known(verdict) }
}

/// What a part holds, by its first bytes, and what that takes.
fn look(number: Option<u32>, bytes: Range<u64>, disk: Range<u64>, head: &[u8]) -> Spot {
    let found = content(head);
    let holds = match found {
        Content::FileSystem(fs) => fs.kind.name(),
        Content::Zeros => "zeros",
        Content::Other(name) => name,
        Content::Unknown => "something unknown",
    };
    let plan = plan(found, &bytes, disk.end, head);
    Spot { number, bytes, holds: holds.to_owned(), plan }
}

fn plan(found: Content, bytes: &Range<u64>, size: u64, head: &[u8]) -> Plan {
    let room = bytes.end - bytes.start;
    if bytes.end > size {
        let beyond = bytes.end - size;
        let said = format!("it ends {beyond} bytes behind the disk, which is cut off");
        return Plan::Known(Verdict::damaged(said));
    }
    let known = |verdict| Plan::Known(verdict);
    match found {
        Content::FileSystem(fs) if fs.bytes > room => {
            let said = format!("it says that it has {} bytes, but {room} are there", fs.bytes);
            known(Verdict::damaged(said))
        }
        Content::FileSystem(fs) => match fs.kind {
            FsKind::Ext => ext(head),
            FsKind::Xfs => xfs(head),
            FsKind::Btrfs { .. } => Plan::Check(Task::Btrfs),
            FsKind::Ntfs => Plan::Check(Task::Ntfs),
        },
        Content::Other("FAT") => fat(bytes.start, head),
        Content::Other("a damaged file system") => {
            known(Verdict::damaged("its superblock makes no sense"))
        }
        Content::Other("swap") => known(Verdict::Nothing { what: "swap".to_owned() }),
        Content::Zeros => {
            let what = "it begins with zeros".to_owned();
            known(Verdict::Nothing { what })
        }
        Content::Other(name) => {
            known(Verdict::not_checked(format!("{name} is nothing that is checked")))
        }
        Content::Unknown => known(Verdict::not_checked("no file system that is known here")),
    }
}

/// By the superblock of an ext (Documentation/filesystems/ext4/super.rst).
fn ext(head: &[u8]) -> Plan {
    const HAS_JOURNAL: u32 = 0x4;
    const RECOVER: u32 = 0x4;
    let field = |at: usize| {
        let bytes = head.get(1024 + at..1024 + at + 4);
        bytes.map_or(0, |b| u32::from_le_bytes(b.try_into().expect("four bytes")))
    };
    let (compatible, incompatible, journal_inode) = (field(92), field(96), field(224));
    // e2fsck would look for it among the disks of this machine, and write to what it finds.
    if compatible & HAS_JOURNAL != 0 && journal_inode == 0 {
        return Plan::Known(Verdict::not_checked("its journal lies on another disk"));
    }
    match incompatible & RECOVER {
        0 => Plan::Check(Task::Ext),
        _ => Plan::Replay,
    }
}

/// By the superblock of an XFS (XFS Algorithms & Data Structures, 3rd edition, 13.1).
fn xfs(head: &[u8]) -> Plan {
    let is_zero = |at: usize| head.get(at..at + 8).is_none_or(|bytes| bytes == [0; 8]);
    let (has_realtime, has_log) = (!is_zero(16), !is_zero(48));
    let why = match (has_log, has_realtime) {
        (false, _) => "its log lies on another disk",
        (_, true) => "a part of it lies on another disk",
        (true, false) => return Plan::Check(Task::Xfs),
    };
    Plan::Known(Verdict::not_checked(why))
}

/// By the boot sector of a FAT: the state of the file system stands behind the drive's number.
fn fat(start: u64, head: &[u8]) -> Plan {
    let at = match head.get(82..87) {
        Some(b"FAT32") => 65,
        _ => 37,
    };
    match head.get(at) {
        Some(state) if state & 1 != 0 => Plan::Unmark { at: start + at as u64 },
        _ => Plan::Check(Task::Fat),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn see(disk: &[u8]) -> Vec<Spot> {
        let read = |range: Range<u64>| Ok(disk[range.start as usize..range.end as usize].to_vec());
        survey(disk.len() as u64, 512, read).unwrap()
    }

    /// The superblock of an ext of `blocks` KiB.
    fn ext_of(blocks: u32) -> Vec<u8> {
        let mut disk = vec![0; 4096];
        let mut put = |at: usize, bytes: &[u8]| {
            disk[1024 + at..1024 + at + bytes.len()].copy_from_slice(bytes);
        };
        put(4, &blocks.to_le_bytes());
        put(32, &8192_u32.to_le_bytes());
        put(56, &[0x53, 0xef]);
        put(76, &1_u32.to_le_bytes());
        put(92, &4_u32.to_le_bytes());
        put(224, &8_u32.to_le_bytes());
        disk
    }

    /// A boot sector with a partition.
    fn mbr(kind: u8, first: u32, sectors: u32) -> Vec<u8> {
        let mut boot = vec![0; 512];
        boot[450] = kind;
        boot[454..458].copy_from_slice(&first.to_le_bytes());
        boot[458..462].copy_from_slice(&sectors.to_le_bytes());
        boot[510..].copy_from_slice(&[0x55, 0xaa]);
        boot
    }

    fn verdict(spot: &Spot) -> String {
        match &spot.plan {
            Plan::Known(verdict) => verdict.to_string(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn disks_without_partitions() {
        for (disk, says) in [
            (vec![], "nothing to check"),
            (vec![0; 9000], "nothing to check"),
            (vec![7; 9000], "NOT CHECKED"),
            (ext_of(4), "Check(Ext)"),
            (ext_of(5), "DAMAGED"),
        ] {
            let spots = see(&disk);
            assert_eq!(spots.len(), 1, "{spots:?}");
            assert!(verdict(&spots[0]).contains(says), "{says}: {spots:?}");
        }
        let mut dirty = ext_of(4);
        dirty[1024 + 96] = 4;
        assert_eq!(see(&dirty)[0].plan, Plan::Replay);
        dirty[1024 + 224] = 0;
        assert!(verdict(&see(&dirty)[0]).contains("another disk"));
        let mut xfs = vec![0; 4096];
        xfs[..8].copy_from_slice(b"XFSB\0\0\x10\0");
        xfs[15] = 1;
        assert!(verdict(&see(&xfs)[0]).contains("log lies on another"));
        xfs[55] = 1;
        assert_eq!(see(&xfs)[0].plan, Plan::Check(Task::Xfs));
        xfs[23] = 1;
        assert!(verdict(&see(&xfs)[0]).contains("a part of it"));
        let mut fat = vec![0; 4096];
        fat[82..90].copy_from_slice(b"FAT32   ");
        assert_eq!(see(&fat)[0].plan, Plan::Check(Task::Fat));
        fat[65] = 1;
        assert_eq!(see(&fat)[0].plan, Plan::Unmark { at: 65 });
    }

    #[test]
    fn partitions_are_looked_at_where_they_lie() {
        let disk = [mbr(0x83, 1, 8), ext_of(4)].concat();
        let spots = see(&disk);
        assert_eq!((spots[0].holds.as_str(), verdict(&spots[0]).as_str()), ("MBR", "clean"));
        assert_eq!((spots[1].number, spots[1].bytes.clone()), (Some(1), 512..4608));
        assert_eq!(spots[1].plan, Plan::Check(Task::Ext));
        assert!(verdict(&see(&[mbr(0x83, 1, 9), ext_of(4)].concat())[1]).contains("cut off"));
        assert!(verdict(&see(&[mbr(5, 1, 8), ext_of(4)].concat())[1]).contains("extended"));
        let far = see(&mbr(0x83, u32::MAX, u32::MAX));
        assert!(verdict(&far[1]).contains("cut off"), "{far:?}");
        let gpt = see(&mbr(0xee, 1, 1));
        assert!(verdict(&gpt[0]).contains("DAMAGED") && gpt.len() == 1, "{gpt:?}");
    }

    proptest! {
        #[test]
        fn whatever_lies_there_is_something(
            boot in prop::collection::vec(any::<u8>(), 0..600),
            kind in any::<u8>(), first in 0u32..40, sectors in any::<u32>(), len in 0usize..40,
        ) {
            for start in [boot, mbr(kind, first, sectors)] {
                let mut disk = start;
                disk.resize(len * 512, 0xa5);
                prop_assert!(!see(&disk).is_empty());
            }
        }
    }
}
