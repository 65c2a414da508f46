//! How a blank volume is partitioned and formatted.
//!
//! A [`Layout`] is what somebody wants; [`Layout::on`] says where all of it lies on a disk of some size, or why it cannot:
//! a pure function. The tools are `node`'s.

mod fs;
#[cfg(test)]
mod tests;

use image::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

/// Partitions begin and end at multiples of this, in bytes.
pub const GRAIN: u64 = 1 << 20;
/// A partition for UEFI that nobody has asked for, in bytes: a FAT32 takes so much on a disk of 4096-byte sectors.
const ESP: u64 = 260 << 20;
/// What a GPT takes at the end of a disk, in sectors.
const GPT_TAIL: u64 = 33;
/// Where an MBR ends: it counts sectors in 32 bits.
const MBR_SECTORS: u64 = 1 << 32;
/// How many partitions an MBR has, without extended ones.
const MBR_MOST: usize = 4;
/// How many a GPT has that `sfdisk` makes.
const GPT_MOST: usize = 128;

/// What is on a volume from the beginning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// The kind of its partition table.
    #[serde(default)]
    pub table: TableKind,
    /// What it is to be started by: that adds the partition which this needs, in front, if it is not among the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// In the order of the disk. One, of all of the disk, if there is no table.
    pub partitions: Vec<Partition>,
}

/// A kind of partition table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableKind {
    /// GUID partition table.
    #[default]
    Gpt,
    /// Master boot record: four partitions, 2 TiB of 512-byte sectors.
    Mbr,
    /// The file system is all of the disk.
    None,
}

/// What starts a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// A boot sector; on a GPT a partition for the boot loader.
    Bios,
    /// A program in an EFI system partition.
    Uefi,
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// What it is for.
    #[serde(default)]
    pub role: Role,
    /// What is in it.
    pub fs: FsType,
    /// How large it is; the rest of the disk by default.
    #[serde(default)]
    pub size: Length,
    /// Bytes of a block (a cluster of FAT and NTFS); what the tool thinks right by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<u32>,
    /// Its file system's, and on a GPT its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// What a partition is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The boot loader's files.
    Boot,
    /// Anything.
    #[default]
    Data,
    /// Memory that is put aside.
    Swap,
    /// The EFI system partition.
    Esp,
    /// The boot loader itself, on a GPT.
    BiosBoot,
}

/// What is in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FsType {
    /// ext3.
    Ext3,
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// FAT with 16-bit entries.
    Fat16,
    /// FAT with 32-bit entries.
    Fat32,
    /// NTFS.
    Ntfs,
    /// Swap space.
    Swap,
    /// Nothing.
    None,
}

/// How large a partition is. As text a number of bytes, or `rest`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub enum Length {
    /// So many bytes, a multiple of 1 MiB.
    Bytes(u64),
    /// What the others leave.
    #[default]
    Rest,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Raw {
    Bytes(u64),
    Word(String),
}

impl TryFrom<Raw> for Length {
    type Error = String;

    fn try_from(raw: Raw) -> Result<Self, String> {
        match raw {
            Raw::Bytes(bytes) => Ok(Self::Bytes(bytes)),
            Raw::Word(word) if word == "rest" => Ok(Self::Rest),
            Raw::Word(word) => Err(format!("{word:?}: a size is a number of bytes, or `rest`")),
        }
    }
}

impl From<Length> for Raw {
    fn from(length: Length) -> Self {
        match length {
            Length::Bytes(bytes) => Self::Bytes(bytes),
            Length::Rest => Self::Word("rest".to_owned()),
        }
    }
}

/// Where a partition lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// In bytes.
    pub start: u64,
    /// In bytes.
    pub length: u64,
    /// What it is for.
    pub role: Role,
    /// What is in it.
    pub fs: FsType,
    /// Bytes of a block or cluster, where the tool is to be told.
    pub block: Option<u32>,
    /// What it is called.
    pub label: Option<String>,
    /// Whether the firmware is to start from it.
    pub active: bool,
}

impl Role {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Data => "data",
            Self::Swap => "swap",
            Self::Esp => "esp",
            Self::BiosBoot => "bios-boot",
        }
    }
}

fn refuse<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::new(Kind::Invalid, what))
}

impl Layout {
    /// Where its partitions lie on a disk of so many bytes, with sectors of so many.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`], naming the partition, and what would do.
    pub fn on(&self, disk: u64, sector: u32) -> Result<Vec<Placed>> {
        let partitions = self.with_firmware(disk, sector)?;
        self.check_number(partitions.len())?;
        let named = |number: usize, partition: &Partition| {
            format!(
                "partition {}, {} with {}",
                number + 1,
                partition.role.name(),
                partition.fs.name()
            )
        };
        for (number, partition) in partitions.iter().enumerate() {
            self.check_role(partition).map_err(|e| e.at(named(number, partition)))?;
        }
        let lengths = self.lengths(&partitions, disk, sector)?;
        let mut start = if self.table == TableKind::None { 0 } else { GRAIN };
        let active = self.active(&partitions);
        let mut all = Vec::new();
        for (number, (partition, length)) in partitions.into_iter().zip(lengths).enumerate() {
            let name = named(number, &partition);
            let block = fs::check(&partition, length, sector).map_err(|e| e.at(name))?;
            let Partition { role, fs, label, .. } = partition;
            let active = active == Some(number);
            all.push(Placed { start, length, role, fs, block, label, active });
            start += length;
        }
        Ok(all)
    }

    /// Its partitions, with the one that the firmware needs.
    fn with_firmware(&self, disk: u64, sector: u32) -> Result<Vec<Partition>> {
        let mut all = self.partitions.clone();
        let has = |role| self.partitions.iter().any(|partition| partition.role == role);
        let added = |role, fs, size| {
            let size = Length::Bytes(size);
            Partition { role, fs, size, block: None, label: None }
        };
        if sector != 512 && sector != 4096 {
            return refuse(format!("sectors of {sector} bytes: a disk has sectors of 512 or 4096"));
        }
        match (self.table, self.firmware) {
            (TableKind::None, Some(_)) => {
                return refuse(
                    "no firmware starts from a disk without partitions: choose the table gpt or mbr, or leave \
                     the firmware out",
                );
            }
            (_, Some(Firmware::Uefi)) if !has(Role::Esp) => {
                all.insert(0, added(Role::Esp, FsType::Fat32, ESP.min(disk)));
            }
            (TableKind::Gpt, Some(Firmware::Bios)) if !has(Role::BiosBoot) => {
                all.insert(0, added(Role::BiosBoot, FsType::None, GRAIN));
            }
            _ => {}
        }
        Ok(all)
    }

    fn check_number(&self, number: usize) -> Result<()> {
        let added = match number - self.partitions.len() {
            0 => "",
            _ => ", with the one that its firmware needs",
        };
        match self.table {
            _ if number == 0 => refuse("a layout has at least one partition"),
            TableKind::None if number > 1 => refuse(format!(
                "{number} partitions and no table: choose gpt, or mbr for up to {MBR_MOST}"
            )),
            TableKind::Mbr if number > MBR_MOST => {
                refuse(format!("{number} partitions{added}: an MBR has {MBR_MOST}: choose gpt"))
            }
            TableKind::Gpt if number > GPT_MOST => {
                refuse(format!("{number} partitions{added}: a GPT has {GPT_MOST}"))
            }
            _ => Ok(()),
        }
    }

    /// Whether what is in a partition fits what it is for.
    fn check_role(&self, partition: &Partition) -> Result<()> {
        let Partition { role, fs, .. } = partition;
        match (role, fs) {
            (Role::Swap, FsType::Swap) | (Role::Esp, FsType::Fat16 | FsType::Fat32) => Ok(()),
            (Role::Swap, _) => refuse("what is for swap holds swap"),
            (_, FsType::Swap) => refuse("swap is for swap: give it the role swap"),
            (Role::Esp, _) => refuse("firmware reads FAT: choose fat32 or fat16"),
            (Role::BiosBoot, FsType::None) if self.table == TableKind::Gpt => Ok(()),
            (Role::BiosBoot, FsType::None) => refuse("only a GPT has such a partition"),
            (Role::BiosBoot, _) => refuse("the boot loader writes to it: choose none"),
            _ => Ok(()),
        }
    }

    /// How large each is, in bytes.
    fn lengths(&self, all: &[Partition], disk: u64, sector: u32) -> Result<Vec<u64>> {
        let room = self.room(disk, sector)?;
        let mut taken: u64 = 0;
        let mut rest = None;
        for (number, partition) in all.iter().enumerate() {
            let number = number + 1;
            match partition.size {
                Length::Rest if rest.replace(number).is_some() => {
                    return refuse(format!(
                        "partition {number}: only one can have the rest of the disk"
                    ));
                }
                Length::Rest => {}
                Length::Bytes(bytes) if self.table == TableKind::None && bytes != room => {
                    return refuse(format!(
                        "without a table the partition has all of the disk: {room} bytes, or `rest`"
                    ));
                }
                Length::Bytes(0) => return refuse(format!("partition {number}: a size of 0")),
                Length::Bytes(bytes)
                    if self.table != TableKind::None && !bytes.is_multiple_of(GRAIN) =>
                {
                    let near = (bytes / GRAIN).max(1) * GRAIN;
                    return refuse(format!(
                        "partition {number}: {bytes} bytes: must be a multiple of 1 MiB, as {near}"
                    ));
                }
                Length::Bytes(bytes) => taken = taken.saturating_add(bytes),
            }
        }
        let left = room.checked_sub(taken).filter(|left| *left > 0 || rest.is_none());
        let Some(left) = left else {
            let least = taken.saturating_add(u64::from(rest.is_some()) * GRAIN);
            return refuse(format!(
                "its partitions need {} MiB, and a disk of {disk} bytes has room for {} MiB: make it {} MiB larger",
                least / GRAIN,
                room / GRAIN,
                (least - room).div_ceil(GRAIN)
            ));
        };
        let of = |size| match size {
            Length::Bytes(bytes) => bytes,
            Length::Rest => left,
        };
        Ok(all.iter().map(|partition| of(partition.size)).collect())
    }

    /// Bytes that there are for partitions.
    fn room(&self, disk: u64, sector: u32) -> Result<u64> {
        let sector = u64::from(sector);
        let end = match self.table {
            TableKind::None => return Ok(disk),
            TableKind::Gpt => disk.saturating_sub(GPT_TAIL * sector),
            TableKind::Mbr if disk > MBR_SECTORS * sector => {
                let most = (MBR_SECTORS * sector) >> 40;
                return refuse(format!(
                    "an MBR ends at {most} TiB, and the disk has {disk} bytes: choose gpt"
                ));
            }
            TableKind::Mbr => disk,
        };
        let end = end - end % GRAIN;
        match end.checked_sub(GRAIN) {
            Some(room) if room > 0 => Ok(room),
            _ => refuse(format!(
                "a disk of {disk} bytes has no room for partitions: make it 3 MiB or more"
            )),
        }
    }

    /// Which partition is marked for a BIOS to start from.
    fn active(&self, all: &[Partition]) -> Option<usize> {
        let first = |role| all.iter().position(|partition| partition.role == role);
        match self.firmware? {
            Firmware::Uefi => None,
            Firmware::Bios => first(Role::Boot).or_else(|| first(Role::Data)),
        }
    }
}
