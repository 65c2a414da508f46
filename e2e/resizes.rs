//! Volumes that become larger or smaller with what is on them.

use std::path::{Path, PathBuf};

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
        must(std::process::Command::new("sfdisk").args(["--verify", "--quiet"]).arg(disk));
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
    let loops = must(std::process::Command::new("losetup").arg("--all"));
    assert!(!loops.contains(path(&rig.grid.data)), "{loops}");
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
