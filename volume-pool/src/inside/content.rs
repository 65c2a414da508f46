//! What a partition holds, or a disk without partitions, by its first bytes.

use super::{le16, le32, le64};

/// A file system that we know how to extend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsKind {
    /// ext2, ext3, ext4.
    Ext,
    /// XFS.
    Xfs,
    /// btrfs, on this device alone.
    Btrfs {
        /// The number that it has given the device.
        device: u64,
    },
    /// NTFS.
    Ntfs,
}

impl FsKind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext => "ext",
            Self::Xfs => "XFS",
            Self::Btrfs { .. } => "btrfs",
            Self::Ntfs => "NTFS",
        }
    }
}

/// What a file system says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Which it is.
    pub kind: FsKind,
    /// Bytes that it takes of its device, with what it keeps behind its end.
    pub bytes: u64,
}

impl FileSystem {
    /// Whether it begins with the first sector, where a boot sector would have its partitions.
    pub(super) fn is_in_boot_sector(&self) -> bool {
        matches!(self.kind, FsKind::Xfs | FsKind::Ntfs)
    }
}

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeros, as far as can be seen.
    Zeros,
    /// A file system.
    FileSystem(FileSystem),
    /// Something else, of this name, that is not extended.
    Other(&'static str),
    /// Nobody knows.
    Unknown,
}

/// What lies on a device, by its first [`EDGE`](super::EDGE) bytes. What older contents left behind may be there
/// too: where two are seen neither is believed.
pub fn content(head: &[u8]) -> Content {
    let mut found =
        [ext(head), xfs(head), btrfs(head), ntfs(head), other(head)].into_iter().flatten();
    match (found.next(), found.next()) {
        (Some(content), None) => content,
        (Some(_), Some(_)) => Content::Other("the marks of several file systems"),
        (None, _) if head.iter().all(|byte| *byte == 0) => Content::Zeros,
        (None, _) => Content::Unknown,
    }
}

fn is_at(head: &[u8], at: usize, mark: &[u8]) -> bool {
    head.get(at..at + mark.len()) == Some(mark)
}

fn file_system(kind: FsKind, bytes: Option<u64>) -> Option<Content> {
    let damaged = Content::Other("a damaged file system");
    Some(
        bytes
            .filter(|b| *b > 0)
            .map_or(damaged, |b| Content::FileSystem(FileSystem { kind, bytes: b })),
    )
}

fn ext(head: &[u8]) -> Option<Content> {
    const HAS_64: u32 = 0x80;
    const IS_JOURNAL: u32 = 0x8;
    const HAS_JOURNAL: u32 = 0x4;
    let sb = head.get(1024..2048)?;
    let log = le32(sb, 24);
    // Two bytes alone would be found by chance.
    if le16(sb, 56) != 0xef53 || log > 6 || le32(sb, 76) > 1 || le32(sb, 32) == 0 {
        return None;
    }
    let incompatible = le32(sb, 96);
    if incompatible & IS_JOURNAL != 0 {
        return Some(Content::Other("the journal of an ext file system"));
    }
    // By its UUID the tools would look for it among the disks of this machine, and write to what they find.
    if le32(sb, 92) & HAS_JOURNAL != 0 && le32(sb, 224) == 0 {
        return Some(Content::Other("an ext file system whose journal lies on another disk"));
    }
    let high = if incompatible & HAS_64 != 0 { le32(sb, 0x150) } else { 0 };
    let blocks = u64::from(high) << 32 | u64::from(le32(sb, 4));
    file_system(FsKind::Ext, blocks.checked_mul(1024 << log))
}

fn xfs(head: &[u8]) -> Option<Content> {
    if !is_at(head, 0, b"XFSB") {
        return None;
    }
    let block = u32::from_be_bytes(head.get(4..8)?.try_into().expect("four bytes"));
    let blocks = u64::from_be_bytes(head.get(8..16)?.try_into().expect("eight bytes"));
    let sane = block.is_power_of_two() && (512..=65536).contains(&block);
    file_system(FsKind::Xfs, blocks.checked_mul(block.into()).filter(|_| sane))
}

fn btrfs(head: &[u8]) -> Option<Content> {
    /// Of the description of this device in the superblock.
    const DEVICE: usize = 0xc9;
    let sb = head.get(64 << 10..68 << 10)?;
    if !is_at(sb, 0x40, b"_BHRfS_M") {
        return None;
    }
    if le64(sb, 0x88) != 1 {
        return Some(Content::Other("a btrfs of several devices"));
    }
    let kind = FsKind::Btrfs { device: le64(sb, DEVICE) };
    file_system(kind, Some(le64(sb, DEVICE + 8)))
}

fn ntfs(head: &[u8]) -> Option<Content> {
    if !is_at(head, 3, b"NTFS    ") {
        return None;
    }
    let sector = u64::from(le16(head, 11));
    // A copy of the boot sector follows what it counts.
    let sectors = le64(head, 40).checked_add(1);
    let sane = sector.is_power_of_two() && (256..=4096).contains(&sector);
    file_system(FsKind::Ntfs, sectors.and_then(|n| n.checked_mul(sector)).filter(|_| sane))
}

fn other(head: &[u8]) -> Option<Content> {
    let marks: [(usize, &[u8], &str); 22] = [
        (0, b"LUKS\xba\xbe", "LUKS"),
        (3, b"-FVE-FS-", "BitLocker"),
        (3, b"EXFAT   ", "exFAT"),
        (3, b"ReFS\0\0\0\0", "ReFS"),
        (54, b"FAT12   ", "FAT"),
        (54, b"FAT16   ", "FAT"),
        (82, b"FAT32   ", "FAT"),
        (4086, b"SWAPSPACE2", "swap"),
        (4086, b"SWAP-SPACE", "swap"),
        (65526, b"SWAPSPACE2", "swap"),
        (0, b"LABELONE", "LVM"),
        (512, b"LABELONE", "LVM"),
        (1024, b"LABELONE", "LVM"),
        (1536, b"LABELONE", "LVM"),
        (0, b"\xfc\x4e\x2b\xa9", "a part of a RAID"),
        (4096, b"\xfc\x4e\x2b\xa9", "a part of a RAID"),
        (0, b"hsqs", "squashfs"),
        (1024, b"\xe2\xe1\xf5\xe0", "EROFS"),
        (1024, b"\x10\x20\xf5\xf2", "F2FS"),
        (4096, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "bcache or bcachefs"),
        (32769, b"CD001", "ISO 9660"),
        (65588, b"ReIsEr", "ReiserFS"),
    ];
    let found = marks.into_iter().find(|(at, mark, _)| is_at(head, *at, mark));
    found.map(|(_, _, name)| Content::Other(name))
}
