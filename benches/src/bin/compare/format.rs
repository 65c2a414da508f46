//! A blank disk that is partitioned and formatted, beside what the tools alone take on loop devices that are there
//! already.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use api::layout::{FsType, Layout, Length, Partition, Role, TableKind};
use blockio::LoopDevice;

use crate::Setup;
use crate::bars::{Bars, Bound, median};
use crate::process::{now, settle, timed};

const MIB: u64 = 1 << 20;
/// Bytes of the disk, and of the one partition that it has.
const DISK: u64 = 1026 * MIB;
const PART: u64 = 1024 * MIB;

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let ntfs = ["mkntfs", "-q", "-Q", "-F", "-s", "512", "-p", "2048", "-H", "255", "-S", "63"];
    for (fs, tool) in [
        (FsType::Ext4, &["mkfs.ext4", "-q", "-F", "-E", "nodiscard"][..]),
        (FsType::Xfs, &["mkfs.xfs", "-q", "-f", "-K"]),
        (FsType::Btrfs, &["mkfs.btrfs", "-q", "-f", "--nodiscard"]),
        (FsType::Fat32, &["mkfs.fat", "-I", "-F", "32", "-S", "512", "-h", "2048", "-s", "8"]),
        (FsType::Ntfs, &ntfs),
        (FsType::Swap, &["mkswap", "-f"]),
    ] {
        let (mut ours, mut theirs) = (vec![], vec![]);
        settle();
        for _ in 0..setup.runs * 2 {
            ours.push(format(&blank(setup, DISK), fs));
            let disk = blank(setup, DISK);
            let whole = LoopDevice::over(&disk, 0..DISK, 512).unwrap();
            let took = table(whole.path());
            drop(whole);
            let part = LoopDevice::over(&disk, MIB..MIB + PART, 512).unwrap();
            theirs.push(took + timed(Command::new(tool[0]).args(&tool[1..]).arg(part.path())));
        }
        let added = median(ours.iter().zip(&theirs).map(|(a, b)| (a - b) * 1000.0).collect());
        let what = format!(
            "what formatting adds to sfdisk and {} on devices that are there, in ms",
            tool[0]
        );
        bars.add(&what, ms(&ours), ms(&theirs), added, Bound::AtMost(10.0));
    }
}

fn blank(setup: &Setup, size: u64) -> PathBuf {
    let disk = setup.dir.join("blank");
    let _ = std::fs::remove_file(&disk);
    File::create(&disk).unwrap().set_len(size).unwrap();
    disk
}

/// Seconds.
fn format(disk: &Path, fs: FsType) -> f64 {
    let role = if fs == FsType::Swap { Role::Swap } else { Role::Data };
    let one = Partition { role, fs, size: Length::Bytes(PART), block: None, label: None };
    let layout = Layout { table: TableKind::Gpt, firmware: None, partitions: vec![one] };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let start = now();
    runtime.block_on(node::format::format(&layout, disk, DISK, 512)).unwrap();
    (now() - start).as_secs_f64()
}

/// Seconds for a partition table.
fn table(disk: &Path) -> f64 {
    let start = now();
    let mut sfdisk = Command::new("sfdisk");
    sfdisk.args(["--quiet", "--no-reread", "--no-tell-kernel"]).arg(disk);
    let mut sfdisk = sfdisk.stdin(Stdio::piped()).spawn().unwrap();
    let script = format!("label: gpt\nunit: sectors\nstart=2048, size={}\n", PART / 512);
    sfdisk.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    (now() - start).as_secs_f64()
}

fn ms(seconds: &[f64]) -> String {
    format!("{:.1} ms", median(seconds.to_vec()) * 1000.0)
}
