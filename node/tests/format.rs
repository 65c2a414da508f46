//! Volumes that are partitioned and formatted by the standard tools, looked at by other ones.
//!
//! `FOREBAY_E2E=1 cargo test -p forebay-node --test format`; needs root, the tools of `.ci/install`.

use std::path::{Path, PathBuf};
use std::process::Command;

use api::layout::{Firmware, FsType, Layout, Length, Partition, Placed, Role, TableKind};
use forebay_node::format::format;

const MIB: u64 = 1 << 20;
const LABEL: &str = "WEB-1";

fn left_out() -> bool {
    let left_out = std::env::var_os("FOREBAY_E2E").is_none();
    if left_out {
        println!("left out: needs FOREBAY_E2E=1, root and the tools of file systems");
    }
    left_out
}

/// What a command said, if it ended well.
fn try_run(words: &[&str]) -> Result<String, String> {
    let done = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    if done.status.success() { Ok(said) } else { Err(format!("{words:?}: {said}")) }
}

fn run(words: &[&str]) -> String {
    try_run(words).unwrap_or_else(|e| panic!("{e}"))
}

fn blank(dir: &Path, size: u64) -> PathBuf {
    let disk = dir.join("disk");
    std::fs::File::create(&disk).unwrap().set_len(size).unwrap();
    disk
}

/// A part of a disk as a device, until it is dropped.
struct Device(String);

impl Device {
    fn over(disk: &Path, start: u64, length: u64, sector: u32) -> Self {
        let [start, length, sector] = [start, length, sector.into()].map(|n| n.to_string());
        let disk = disk.to_str().unwrap();
        let (offset, limit) = (["--offset", &start], ["--sizelimit", &length]);
        let sector = ["--sector-size", &sector];
        let words = [&["losetup", "--find", "--show"], &offset[..], &limit, &sector, &[disk]];
        Self(run(&words.concat()).trim().to_owned())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// What `blkid` reads of it.
fn told(device: &Device, key: &str) -> String {
    let words = ["blkid", "--probe", "--output", "value", "--match-tag", key, &device.0];
    try_run(&words).unwrap_or_default().trim().to_owned()
}

/// Its own check of it, which changes nothing.
fn fsck(fs: FsType, device: &Device) {
    let at = device.0.as_str();
    match fs {
        FsType::Ext3 | FsType::Ext4 => drop(run(&["e2fsck", "-fn", at])),
        FsType::Xfs => drop(run(&["xfs_repair", "-n", at])),
        FsType::Btrfs => drop(run(&["btrfs", "check", at])),
        FsType::Fat16 | FsType::Fat32 => drop(run(&["fsck.fat", "-n", at])),
        FsType::Ntfs => drop(run(&["ntfsfix", "-n", at])),
        FsType::Swap => assert!(run(&["swaplabel", at]).contains(LABEL)),
        FsType::None => {}
    }
}

/// Has a file written to it and read.
fn mount(fs: FsType, device: &Device, dir: &Path) {
    let kind = match fs {
        FsType::Ext3 => "ext3",
        FsType::Ext4 => "ext4",
        FsType::Xfs => "xfs",
        FsType::Btrfs => "btrfs",
        FsType::Fat16 | FsType::Fat32 => "vfat",
        FsType::Ntfs => "ntfs-3g",
        FsType::Swap | FsType::None => return,
    };
    let at = dir.join("at");
    std::fs::create_dir_all(&at).unwrap();
    let mounted = try_run(&["mount", "-t", kind, &device.0, at.to_str().unwrap()]);
    if let Err(why) = mounted {
        // Not every kernel knows every kind.
        let known = std::fs::read_to_string("/proc/filesystems").unwrap();
        assert!(
            !known.lines().any(|line| line.trim_start_matches("nodev").trim() == kind),
            "{why}"
        );
        return println!("not mounted: {why}");
    }
    for _ in 0..2 {
        std::fs::write(at.join("file"), "what was written").unwrap();
        run(&["umount", at.to_str().unwrap()]);
        run(&["mount", "-t", kind, &device.0, at.to_str().unwrap()]);
        assert_eq!(std::fs::read_to_string(at.join("file")).unwrap(), "what was written");
    }
    run(&["umount", at.to_str().unwrap()]);
}

fn type_of(fs: FsType) -> (&'static str, &'static str) {
    match fs {
        FsType::Ext3 => ("ext3", ""),
        FsType::Ext4 => ("ext4", ""),
        FsType::Xfs => ("xfs", ""),
        FsType::Btrfs => ("btrfs", ""),
        FsType::Fat16 => ("vfat", "FAT16"),
        FsType::Fat32 => ("vfat", "FAT32"),
        FsType::Ntfs => ("ntfs", ""),
        FsType::Swap => ("swap", "1"),
        FsType::None => ("", ""),
    }
}

/// Whether what was made of a disk is what was placed there.
fn look(disk: &Path, table: TableKind, placed: &[Placed], sector: u32, dir: &Path) {
    let size = std::fs::metadata(disk).unwrap().len();
    if table != TableKind::None {
        let whole = Device::over(disk, 0, size, sector);
        let said: serde_json::Value =
            serde_json::from_str(&run(&["sfdisk", "--json", &whole.0])).unwrap();
        let said = &said["partitiontable"];
        let label = if table == TableKind::Gpt { "gpt" } else { "dos" };
        assert_eq!(said["label"], label);
        run(&["sfdisk", "--verify", &whole.0]);
        let found: Vec<(u64, u64)> = said["partitions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (one["start"].as_u64().unwrap(), one["size"].as_u64().unwrap()))
            .collect();
        let sector = u64::from(sector);
        let wanted: Vec<_> = placed.iter().map(|p| (p.start / sector, p.length / sector)).collect();
        assert_eq!(found, wanted);
    }
    for one in placed {
        let device = Device::over(disk, one.start, one.length, sector);
        let (kind, version) = type_of(one.fs);
        assert_eq!(told(&device, "TYPE"), kind);
        if !version.is_empty() {
            assert_eq!(told(&device, "VERSION"), version);
        }
        assert_eq!(told(&device, "LABEL"), one.label.clone().unwrap_or_default(), "{kind}");
        assert!(one.fs == FsType::None || !told(&device, "UUID").is_empty(), "{kind}");
        fsck(one.fs, &device);
        mount(one.fs, &device, dir);
        fsck(one.fs, &device);
    }
}

fn part(fs: FsType, size: Length) -> Partition {
    let role = if fs == FsType::Swap { Role::Swap } else { Role::Data };
    let label = (fs != FsType::None).then(|| LABEL.to_owned());
    Partition { role, fs, size, block: None, label }
}

const ALL: [FsType; 8] = [
    FsType::Ext3,
    FsType::Ext4,
    FsType::Xfs,
    FsType::Btrfs,
    FsType::Fat16,
    FsType::Fat32,
    FsType::Ntfs,
    FsType::Swap,
];

async fn made(layout: Layout, size: u64, sector: u32) {
    let dir = tempfile::tempdir().unwrap();
    let disk = blank(dir.path(), size);
    let placed =
        format(&layout, &disk, size, sector).await.unwrap_or_else(|e| panic!("{layout:?}: {e}"));
    assert_eq!(std::fs::metadata(&disk).unwrap().len(), size);
    look(&disk, layout.table, &placed, sector, dir.path());
}

#[tokio::test]
async fn real_every_file_system_in_every_table() {
    if left_out() {
        return;
    }
    for table in [TableKind::Gpt, TableKind::Mbr, TableKind::None] {
        for (fs, sector) in ALL.into_iter().flat_map(|fs| [(fs, 512), (fs, 4096)]) {
            let partitions = match table {
                TableKind::None => vec![part(fs, Length::Rest)],
                _ => vec![part(fs, Length::Bytes(320 * MIB)), part(FsType::Ext4, Length::Rest)],
            };
            made(Layout { table, firmware: None, partitions }, 400 * MIB, sector).await;
        }
    }
}

#[tokio::test]
async fn real_a_disk_to_be_started_from_has_what_its_firmware_needs() {
    if left_out() {
        return;
    }
    for (table, firmware, code) in [
        (TableKind::Gpt, Firmware::Uefi, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"),
        (TableKind::Gpt, Firmware::Bios, "21686148-6449-6E6F-744E-656564454649"),
        (TableKind::Mbr, Firmware::Uefi, "ef"),
        (TableKind::Mbr, Firmware::Bios, "83"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let disk = blank(dir.path(), 600 * MIB);
        let boot = Partition { role: Role::Boot, ..part(FsType::Ext4, Length::Bytes(64 * MIB)) };
        let partitions = vec![boot, part(FsType::Ext4, Length::Rest)];
        let layout = Layout { table, firmware: Some(firmware), partitions };
        let placed = format(&layout, &disk, 600 * MIB, 512).await.unwrap();
        look(&disk, table, &placed, 512, dir.path());
        let said = run(&["sfdisk", "--json", disk.to_str().unwrap()]);
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        let all = &said["partitiontable"]["partitions"];
        assert_eq!(all[0]["type"], code);
        let active = placed.iter().position(|one| one.active);
        for (number, one) in all.as_array().unwrap().iter().enumerate() {
            let marked = one["bootable"] == true || one["attrs"] == "LegacyBIOSBootable";
            assert_eq!(marked, active == Some(number), "{one}");
        }
    }
}

#[tokio::test]
async fn real_blocks_are_as_long_as_they_were_asked_to_be() {
    if left_out() {
        return;
    }
    for (fs, block) in [
        (FsType::Ext4, 1024),
        (FsType::Ext3, 4096),
        (FsType::Xfs, 1024),
        (FsType::Btrfs, 4096),
        (FsType::Fat16, 16384),
        (FsType::Fat32, 512),
        (FsType::Ntfs, 65536),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let disk = blank(dir.path(), 330 * MIB);
        let one = Partition { block: Some(block), ..part(fs, Length::Bytes(320 * MIB)) };
        let layout = Layout { table: TableKind::Gpt, firmware: None, partitions: vec![one] };
        let placed = format(&layout, &disk, 330 * MIB, 512).await.unwrap();
        look(&disk, TableKind::Gpt, &placed, 512, dir.path());
        let bytes = std::fs::read(&disk).unwrap();
        let at = |offset: usize| MIB as usize + offset;
        let le16 = |offset| u16::from_le_bytes([bytes[at(offset)], bytes[at(offset) + 1]]);
        let found = match fs {
            FsType::Ext3 | FsType::Ext4 => 1024 << bytes[at(1024 + 24)],
            FsType::Xfs => u32::from_be_bytes(bytes[at(4)..at(8)].try_into().unwrap()),
            FsType::Btrfs => {
                u32::from_le_bytes(bytes[at(65536 + 144)..at(65536 + 148)].try_into().unwrap())
            }
            // Above 128 sectors NTFS has a power of two, negative.
            FsType::Ntfs if bytes[at(13)] > 128 => {
                u32::from(le16(11)) << (256 - u32::from(bytes[at(13)]))
            }
            _ => u32::from(le16(11)) * u32::from(bytes[at(13)]),
        };
        assert_eq!(found, block, "{}", fs.name());
    }
}

#[tokio::test]
async fn real_what_is_said_to_be_the_least_and_the_most_can_be() {
    if left_out() {
        return;
    }
    for (fs, mib, sector) in [
        (FsType::Ext3, 10, 512),
        (FsType::Ext4, 10, 4096),
        (FsType::Xfs, 300, 512),
        (FsType::Xfs, 300, 4096),
        (FsType::Btrfs, 128, 512),
        (FsType::Fat16, 3, 512),
        (FsType::Fat16, 17, 4096),
        (FsType::Fat16, 2046, 512),
        (FsType::Fat32, 33, 512),
        (FsType::Fat32, 260, 4096),
        (FsType::Fat32, 40_000, 512),
        (FsType::Ntfs, 8, 512),
        (FsType::Ntfs, 8, 4096),
        (FsType::Swap, 1, 4096),
    ] {
        let partitions = vec![part(fs, Length::Rest)];
        made(Layout { table: TableKind::None, firmware: None, partitions }, mib * MIB, sector)
            .await;
    }
}

#[tokio::test]
async fn real_two_disks_have_nothing_in_common_and_one_is_made_anew() {
    if left_out() {
        return;
    }
    let layout = Layout {
        table: TableKind::Gpt,
        firmware: None,
        partitions: vec![part(FsType::Ext4, Length::Rest)],
    };
    let uuid = async |disk: &Path| {
        let placed = format(&layout, disk, 64 * MIB, 512).await.unwrap();
        look(disk, TableKind::Gpt, &placed, 512, disk.parent().unwrap());
        let device = Device::over(disk, placed[0].start, placed[0].length, 512);
        (run(&["sfdisk", "--disk-id", disk.to_str().unwrap()]), told(&device, "UUID"))
    };
    let [one, two] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let first = uuid(&blank(one.path(), 64 * MIB)).await;
    let second = uuid(&blank(two.path(), 64 * MIB)).await;
    assert!(first.0 != second.0 && first.1 != second.1);
    // As after a kill midway.
    let again = uuid(&one.path().join("disk")).await;
    assert!(again.0 != first.0 && again.1 != first.1);
    // Behind a volume its file may have more, such as what a device says of itself.
    let disk = blank(two.path(), 65 * MIB);
    format(&layout, &disk, 64 * MIB, 512).await.unwrap();
    let bytes = std::fs::read(&disk).unwrap();
    assert!(bytes[64 << 20..].iter().all(|b| *b == 0));
    assert_eq!(&bytes[(64 << 20) - 512..][..8], b"EFI PART");
}

#[tokio::test]
async fn real_a_tool_that_fails_is_heard_and_leaves_no_device() {
    if left_out() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Shorter than it is said to be.
    let disk = blank(dir.path(), 4 * MIB);
    let partitions = vec![part(FsType::Ext4, Length::Rest)];
    let layout = Layout { table: TableKind::Gpt, firmware: None, partitions };
    let error = format(&layout, &disk, 64 * MIB, 512).await.unwrap_err();
    assert_eq!(error.kind(), image::Kind::Io, "{error}");
    assert!(error.message().contains("sfdisk: "), "{error}");
    // It goes when nobody has it open any more, such as somebody who looks for one that is free.
    while run(&["losetup", "--list"]).contains(disk.to_str().unwrap()) {
        tokio::task::yield_now().await;
    }
}
