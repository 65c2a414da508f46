//! What file systems can be: sizes, blocks, labels.

use image::Result;

use super::{FsType, GRAIN, Partition, refuse};

const MIB: u64 = 1 << 20;
const KIB: u32 = 1 << 10;

impl FsType {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Xfs => "XFS",
            Self::Btrfs => "btrfs",
            Self::Fat16 => "FAT16",
            Self::Fat32 => "FAT32",
            Self::Ntfs => "NTFS",
            Self::Swap => "swap",
            Self::None => "nothing",
        }
    }

    /// The blocks that it may have, in bytes, by powers of two; those of ext, XFS and btrfs are at most a page of most
    /// machines, which could not be mounted otherwise.
    fn blocks(self) -> Option<(u32, u32)> {
        match self {
            Self::Ext3 | Self::Ext4 | Self::Xfs => Some((KIB, 4 * KIB)),
            Self::Btrfs => Some((4 * KIB, 4 * KIB)),
            Self::Fat16 | Self::Fat32 => Some((512, 32 * KIB)),
            Self::Ntfs => Some((512, 64 * KIB)),
            Self::Swap | Self::None => None,
        }
    }

    /// The smallest, in bytes, as its own tool makes it (e2fsprogs, with a journal; xfsprogs 5.19; btrfs-progs 6).
    fn least(self) -> u64 {
        match self {
            Self::Ext3 | Self::Ext4 => 10 * MIB,
            Self::Xfs => 300 * MIB,
            Self::Btrfs => 128 * MIB,
            Self::Ntfs => 8 * MIB,
            Self::Fat16 | Self::Fat32 | Self::Swap | Self::None => MIB,
        }
    }

    /// The largest, in bytes.
    fn most(self) -> u64 {
        match self {
            Self::Ext3 => 16 << 40,
            // mkfs.fat counts sectors in 32 bits.
            Self::Fat32 => 2 << 40,
            _ => u64::MAX,
        }
    }
}

/// Whether a partition of so many bytes can hold what it is to; the block or cluster that its tool is to be told.
pub(super) fn check(partition: &Partition, length: u64, sector: u32) -> Result<Option<u32>> {
    let fs = partition.fs;
    check_label(partition)?;
    if let Some(block) = partition.block {
        check_block(fs, block, sector)?;
    }
    if length < fs.least() {
        return refuse(format!(
            "{} MiB are too few: it has at least {}",
            length / MIB,
            fs.least() / MIB
        ));
    }
    if length > fs.most() {
        return refuse(format!(
            "{} MiB are too many: it has at most {}",
            length / MIB,
            fs.most() / MIB
        ));
    }
    match fs {
        FsType::Fat16 | FsType::Fat32 => {
            Fat::of(fs).cluster(length, partition.block, sector).map(Some)
        }
        _ => Ok(partition.block),
    }
}

fn check_block(fs: FsType, block: u32, sector: u32) -> Result<()> {
    let Some((least, most)) = fs.blocks() else {
        return refuse("it has no blocks: leave their size out");
    };
    let least = least.max(sector);
    if (least..=most).contains(&block) && block.is_power_of_two() {
        return Ok(());
    }
    let near = block.clamp(least, most);
    let near = if near.is_power_of_two() { near } else { near.next_power_of_two().min(most) };
    refuse(format!(
        "blocks of {block} bytes: powers of two from {least} to {most} can be, as {near}"
    ))
}

fn check_label(partition: &Partition) -> Result<()> {
    let Some(label) = &partition.label else { return Ok(()) };
    let (most, what) = match partition.fs {
        FsType::Ext3 | FsType::Ext4 => (16, "bytes"),
        FsType::Xfs => (12, "bytes"),
        FsType::Fat16 | FsType::Fat32 => (11, "characters"),
        FsType::Swap => (15, "bytes"),
        FsType::Ntfs => (32, "characters"),
        // On a GPT the partition has it, too.
        FsType::Btrfs | FsType::None => (36, "characters"),
    };
    let is_odd = |c: char| !(c.is_ascii_alphanumeric() || "_.-".contains(c));
    if label.is_empty() || label.len() > most || label.contains(is_odd) || label.starts_with('-') {
        return refuse(format!(
            "label {label:?}: at most {most} {what}, of letters, digits, `.`, `_` and `-`, and not `-` first"
        ));
    }
    let is_fat = matches!(partition.fs, FsType::Fat16 | FsType::Fat32);
    if is_fat && (label.contains(|c: char| c.is_ascii_lowercase()) || label.contains('.')) {
        let near = label.to_uppercase().replace('.', "_");
        return refuse(format!("label {label:?}: a FAT has capitals, and no dots, as {near:?}"));
    }
    Ok(())
}

/// What makes a FAT one of its kind: how many clusters it has.
struct Fat {
    least: u64,
    most: u64,
    /// Bytes of the two tables for a cluster.
    entry: u64,
}

impl Fat {
    /// Clusters of the kind, and some at the edges that programs disagree about.
    fn of(fs: FsType) -> Self {
        match fs {
            FsType::Fat16 => Self { least: 4_100, most: 65_500, entry: 4 },
            _ => Self { least: 65_550, most: 268_000_000, entry: 8 },
        }
    }

    /// How many clusters there are at least, and at most: what tables, root and alignment take is the tool's to say.
    fn clusters(&self, length: u64, cluster: u32) -> (u64, u64) {
        let head = 128 * u64::from(KIB) + 2 * u64::from(cluster);
        let cluster = u64::from(cluster);
        (length.saturating_sub(head) / (cluster + self.entry), length / cluster)
    }

    fn fits(&self, length: u64, cluster: u32) -> bool {
        let (fewest, most) = self.clusters(length, cluster);
        fewest >= self.least && most <= self.most
    }

    /// The one that was asked for, or the best: as large as is usual, or the next smaller that there can be; of what is small
    /// the smallest.
    fn cluster(&self, length: u64, asked: Option<u32>, sector: u32) -> Result<u32> {
        let all = || (9..=15).map(|log2| 1u32 << log2).filter(|cluster| *cluster >= sector);
        let fits = || all().filter(|cluster| self.fits(length, *cluster));
        let usual = match length / MIB {
            0..=260 => 512,
            261..=8_192 => 4 * KIB,
            8_193..=16_384 => 8 * KIB,
            16_385..=32_768 => 16 * KIB,
            _ => 32 * KIB,
        };
        let best = fits().filter(|cluster| *cluster <= usual).max().or_else(|| fits().min());
        let mib = length / MIB;
        let Some(best) = best else {
            let (smallest, largest) = (sector.max(512), 32 * KIB);
            let least = (1..).find(|mib| self.fits(mib * GRAIN, smallest)).unwrap_or(u64::MAX);
            let most = self.most * u64::from(largest) / MIB;
            return refuse(format!("{mib} MiB: it has {least} to {most}"));
        };
        match asked {
            None => Ok(best),
            Some(asked) if self.fits(length, asked) => Ok(asked),
            Some(asked) => {
                let near = fits().min_by_key(|c| c.ilog2().abs_diff(asked.ilog2())).unwrap_or(best);
                refuse(format!(
                    "{mib} MiB in clusters of {asked} bytes would be another kind of FAT: take {near}"
                ))
            }
        }
    }
}
