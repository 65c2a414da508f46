//! Volumes that become larger or smaller with what is on them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use volume_pool::inside::{Content, EDGE, Edges, Table, content};

use crate::harness::{path, until};
use crate::real::{must, script, wanted};
use crate::volumes::Rig;

const MIB: u64 = 1 << 20;

/// A disk with a file system and some files.
fn made(dir: &Path, mib: u64, fs: &str, table: &str) -> PathBuf {
    let raw = dir.join(format!("{fs}-{table}.raw"));
    must(script("filesystem").args(["make", path(&raw), &mib.to_string(), fs, table]));
    raw
}

/// Number, start and length of the last partition, or of the whole disk; and how large the file system in it is.
fn inside(disk: &Path) -> (u32, u64, u64, u64) {
    let bytes = std::fs::read(disk).unwrap();
    let edge = bytes.len().min(EDGE);
    let (head, tail) = (&bytes[..edge], &bytes[bytes.len() - edge..]);
    let table = Table::read(&Edges { size: bytes.len() as u64, sector: 512, head, tail }).unwrap();
    let whole = (0, 0..bytes.len() as u64);
    let (number, range) = table.last().map_or(whole, |last| (last.number, last.bytes.clone()));
    let Content::FileSystem(fs) = content(&bytes[range.start as usize..]) else {
        panic!("{}: no file system", disk.display())
    };
    (number, range.start, range.end - range.start, fs.bytes)
}

/// Checks the file system and the files on it, and that it has all that the disk can give it.
fn fills(disk: &Path, fs: &str) {
    let (number, start, length, has) = inside(disk);
    let size = std::fs::metadata(disk).unwrap().len();
    // A GPT, and what is left of a block.
    let lost = if number == 0 { 0 } else { 40 << 10 };
    assert!(start + length + lost >= size, "{}: {number}: {start} {length}", disk.display());
    assert!(has <= length && has + MIB > length, "{}: {has} of {length}", disk.display());
    check(disk, start, length, fs);
    if number != 0 {
        must(Command::new("sfdisk").args(["--verify", "--quiet"]).arg(disk));
    }
}

fn check(disk: &Path, start: u64, length: u64, fs: &str) {
    let (start, length) = (start.to_string(), length.to_string());
    must(script("filesystem").args(["check", path(disk), &start, &length, fs]));
}

impl Rig {
    /// Brings all of a volume; where its plain disk is.
    fn ripened(&self, name: &str) -> PathBuf {
        let info = self.volume(&["show", name]);
        let disk = PathBuf::from(info["disk"].as_str().unwrap());
        if info["plain"] == false {
            self.attach(name, &["--copy"]);
            until("all of it is here", || self.is_plain(name));
            self.volume(&["detach", name]);
        }
        disk
    }
}

/// Nothing is left of what was made for the tools.
fn nothing_is_left(rig: &Rig) {
    let tools = rig.grid.data.join("node/tools");
    assert_eq!(std::fs::read_dir(&tools).into_iter().flatten().count(), 0);
    // By what the kernel says: `losetup` asks the files themselves, some of which are others'.
    for device in std::fs::read_dir("/sys/block").unwrap() {
        let file = device.unwrap().path().join("loop/backing_file");
        let file = std::fs::read_to_string(file).unwrap_or_default();
        assert!(!file.contains(path(&rig.grid.data)), "{file}");
    }
}

#[test]
fn real_file_systems_fill_volumes_that_are_larger_than_their_images() {
    if !wanted() {
        return;
    }
    let rig = Rig::start("a");
    for fs in ["ext4", "xfs", "btrfs", "ntfs"] {
        for table in ["gpt", "mbr", "bare"] {
            let (image, name) = (format!("{fs}-{table}:1"), format!("{fs}-{table}"));
            rig.grid.import(&made(&rig.grid.dir, 320, fs, table), &image);
            let made = ["create", &image, "--name", &name, "--size", "448MiB", "--extend"];
            assert_eq!(rig.volume(&made)["size"], 448 * MIB);
            // It has not arrived: what the tools need has.
            assert_eq!(rig.volume(&["show", &name])["plain"], false);
            nothing_is_left(&rig);
            // Once more, from what was there already; and the same again changes nothing.
            for size in ["640MiB", "640MiB"] {
                rig.volume(&["resize", &name, size, "--extend"]);
            }
            fills(&rig.ripened(&name), fs);
            rig.volume(&["resize", &name, "768MiB", "--extend"]);
            fills(&rig.ripened(&name), fs);
            nothing_is_left(&rig);
            rig.volume(&["rm", &name]);
            println!("{name} fills its disk");
        }
    }
}

#[test]
fn real_volumes_become_smaller_when_what_is_on_them_has() {
    if !wanted() {
        return;
    }
    let rig = Rig::start("a");
    for table in ["gpt", "mbr", "bare"] {
        let (image, name) = (format!("ext4-{table}:1"), format!("ext4-{table}"));
        rig.grid.import(&made(&rig.grid.dir, 128, "ext4", table), &image);
        rig.volume(&["create", &image, "--name", &name]);
        let small = ["resize", &name, "80MiB"];
        rig.refused(&small, 73, &["not arrived yet"]);
        let disk = rig.ripened(&name);
        let says = if table == "bare" { "the ext on the disk" } else { "partition 2 ends" };
        rig.refused(&small, 73, &[&name, says, "resize2fs"]);
        // As a guest would do it, on the volume's own disk.
        let file = rig.attach(&name, &["--export", "fuse"]);
        rig.refused(&small, 73, &["detach it"]);
        rig.refused(&["resize", &name, "160MiB", "--extend"], 73, &["growpart", "detach it"]);
        let (number, start, length, _) = inside(&disk);
        let [start_at, of, number] = [start, length, number.into()].map(|n: u64| n.to_string());
        let mut shrink = script("filesystem");
        must(shrink.args(["shrink", path(&file), &start_at, &of, &number, "64"]));
        rig.volume(&["detach", &name]);
        let info = rig.volume(&small);
        assert_eq!((&info["size"], &info["image"]), (&(80 * MIB).into(), &serde_json::Value::Null));
        assert_eq!(std::fs::metadata(&disk).unwrap().len(), 80 * MIB);
        check(&disk, start, 64 * MIB, "ext4");
        if table != "bare" {
            must(Command::new("sfdisk").args(["--verify", "--quiet"]).arg(&disk));
        }
        if table == "gpt" {
            let says = must(Command::new("sgdisk").arg("--verify").arg(&disk));
            assert!(says.contains("No problems found"), "{says}");
        }
        // What is left is too large for less, and grows again.
        rig.refused(&["resize", &name, "60MiB"], 73, &[]);
        rig.volume(&["resize", &name, "128MiB", "--extend"]);
        fills(&disk, "ext4");
        nothing_is_left(&rig);
        println!("{name} was made smaller");
    }
}

#[test]
fn real_extensions_that_are_killed_are_gone_on_with() {
    if !wanted() {
        return;
    }
    let mut rig = Rig::start("a");
    for fs in ["ext4", "xfs", "btrfs"] {
        rig.grid.import(&made(&rig.grid.dir, 320, fs, "gpt"), &format!("{fs}:1"));
        for after in [30, 80, 130, 180, 230, 280, 330] {
            let name = format!("{fs}-{after}");
            rig.volume(&["create", &format!("{fs}:1"), "--name", &name]);
            let resize = ["volume", "resize", &name, "2GiB", "--extend"];
            let mut midway = rig.grid.command(&resize);
            midway.stdout(Stdio::null()).stderr(Stdio::null());
            let mut midway = midway.spawn().unwrap();
            std::thread::park_timeout(Duration::from_millis(after));
            match after % 100 {
                30 => rig.kill_node(),
                _ => rig.end_node(),
            }
            let ended = midway.wait().unwrap();
            rig.start_node();
            nothing_is_left(&rig);
            let before = rig.volume(&["show", &name])["size"].clone();
            rig.volume(&resize[1..]);
            fills(&rig.ripened(&name), fs);
            nothing_is_left(&rig);
            println!("{name}: killed with {before} bytes, {ended}");
            rig.volume(&["rm", &name]);
        }
    }
}

#[test]
fn real_what_cannot_be_extended_is_refused_and_left_as_it_is() {
    if !wanted() {
        return;
    }
    let rig = Rig::start("a");
    let disk = made(&rig.grid.dir, 64, "ext4", "bare");
    rig.refused(&["create", "--blank", "1MiB", "--extend"], 64, &[]);
    let refused = |image: &str, says: &str| {
        rig.refused(&["create", image, "--name", "v", "--size", "80MiB", "--extend"], 69, &[says]);
        rig.refused(&["show", "v"], 66, &["no such volume"]);
        rig.volume(&["create", image, "--name", "v"]);
        rig.refused(&["resize", "v", "80MiB", "--extend"], 69, &[says]);
        assert_eq!(
            rig.volume(&["show", "v"])["size"].as_u64(),
            rig.volume(&["ls"])[0]["size"].as_u64()
        );
        assert_ne!(rig.volume(&["show", "v"])["size"], 80 * MIB);
        rig.volume(&["rm", "v"]);
        nothing_is_left(&rig);
    };
    refused("d:1", "no ext, XFS, btrfs or NTFS");
    let bytes = std::fs::read(&disk).unwrap();
    let mut swap = vec![0; 1 << 20];
    swap[4086..4096].copy_from_slice(b"SWAPSPACE2");
    rig.grid.import(&rig.grid.file("swap.raw", &swap), "swap:1");
    refused("swap:1", "holds swap");

    // A file system that e2fsck does not mend by itself: the volume has its size, and the same again goes on.
    let mut broken = bytes.clone();
    // The inode of the root directory, in the table that the first group's descriptor names.
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let block = 1024 << word(1024 + 24);
    let table = word(block.max(2048) + 8) * block;
    broken[table + 256..table + 512].fill(0xff);
    rig.grid.import(&rig.grid.file("broken.raw", &broken), "broken:1");
    rig.volume(&["create", "broken:1", "--name", "v"]);
    let resize = ["resize", "v", "80MiB", "--extend"];
    rig.refused(&resize, 74, &["e2fsck -p cannot mend it", "goes on"]);
    assert_eq!(rig.volume(&["show", "v"])["size"], 80 * MIB);
    rig.refused(&resize, 74, &["e2fsck -p cannot mend it", "goes on"]);
    let mut guest = crate::volumes::connect(&rig.attach("v", &[]));
    guest.write(table as u64, &bytes[table..table + 512]).unwrap();
    guest.flush().unwrap();
    drop(guest);
    rig.volume(&["detach", "v"]);
    rig.volume(&resize);
    fills(&rig.ripened("v"), "ext4");
}

#[test]
fn real_loop_devices_on_a_volume_keep_nobody_from_attaching_others() {
    if !wanted() {
        return;
    }
    let rig = Rig::start("a");
    rig.volume(&["create", "--blank", "16MiB", "--name", "a"]);
    let file = rig.attach("a", &["--export", "fuse"]);
    let device = must(Command::new("losetup").args(["--find", "--show"]).arg(&file));
    // What the kernel knows of the file is not fresh any more: who asks it waits for the volume's core.
    std::thread::park_timeout(Duration::from_millis(1100));
    for n in 0..4 {
        let name = format!("b{n}");
        rig.volume(&["create", "--blank", "1MiB", "--name", &name]);
        rig.attach(&name, &[]);
    }
    must(Command::new("losetup").args(["--detach", device.trim()]));
    rig.volume(&["detach", "a"]);
}

#[test]
fn real_file_systems_fill_volumes_on_devices() {
    if !wanted() {
        return;
    }
    let rig = Rig::start("a");
    let under = rig.grid.file("under", b"");
    std::fs::File::options().write(true).open(&under).unwrap().set_len(512 * MIB).unwrap();
    let device = must(Command::new("losetup").args(["--find", "--show"]).arg(&under));
    let device = device.trim();
    for fs in ["ext4", "xfs"] {
        rig.grid.import(&made(&rig.grid.dir, 320, fs, "gpt"), &format!("{fs}:1"));
        let image = format!("{fs}:1");
        let made =
            ["create", &image, "--name", "v", "--size", "448MiB", "--extend", "--device", device];
        assert_eq!(rig.volume(&made)["disk"], device);
        let file = rig.attach("v", &["--export", "fuse"]);
        fills(&file, fs);
        rig.volume(&["detach", "v"]);
        rig.refused(&["resize", "v", "64MiB"], 69, &["a device has the size that it has"]);
        rig.refused(&["resize", "v", "480MiB", "--extend"], 69, &["a device has the size"]);
        rig.volume(&["rm", "v"]);
    }
    must(Command::new("losetup").args(["--detach", device]));
    nothing_is_left(&rig);
}
