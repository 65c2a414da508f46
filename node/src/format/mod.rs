//! Blank volumes are partitioned and formatted, by the standard tools.
//!
//! ```text
//! Layout ─▶ Layout::on: where all lies ─▶ sfdisk ─▶ mkfs.*, mkswap ─▶ sync
//!            or why it cannot be            a loop device each, of the volume's sectors and of that part alone
//! ```
//! The tools draw the UUIDs, so each volume has its own. Nothing is mounted, and this machine's kernel is told of no partition.

mod table;

use std::ops::Range;
use std::path::{Path, PathBuf};

use api::layout::{Firmware, FsType, Layout, Placed, TableKind};
use blockio::{BlockFile, LoopDevice, OpenMode};
use image::error::At;
use image::{Error, Kind, Result};
use tokio::process::Command;

use crate::tools;

/// The program that makes one, and the Debian package that it is in.
fn tool(fs: FsType) -> Option<(&'static str, &'static str)> {
    Some(match fs {
        FsType::Ext3 => ("mkfs.ext3", "e2fsprogs"),
        FsType::Ext4 => ("mkfs.ext4", "e2fsprogs"),
        FsType::Xfs => ("mkfs.xfs", "xfsprogs"),
        FsType::Btrfs => ("mkfs.btrfs", "btrfs-progs"),
        FsType::Fat16 | FsType::Fat32 => ("mkfs.fat", "dosfstools"),
        FsType::Ntfs => ("mkntfs", "ntfs-3g"),
        FsType::Swap => ("mkswap", "util-linux"),
        FsType::None => return None,
    })
}

/// Sees that the tools for a layout are there.
///
/// # Errors
///
/// [`Kind::Unsupported`], naming the tool and its package.
pub fn check(layout: &Layout) -> Result<()> {
    check_in(layout, &tools::path())
}

fn check_in(layout: &Layout, dirs: &[PathBuf]) -> Result<()> {
    let table = (layout.table != TableKind::None).then_some(("sfdisk", "fdisk"));
    let added = (layout.firmware == Some(Firmware::Uefi)).then_some(FsType::Fat32);
    let all = layout.partitions.iter().map(|partition| partition.fs).chain(added);
    let needed: Vec<_> = table.into_iter().chain(all.filter_map(tool)).collect();
    tools::check("volumes are formatted by", &needed, dirs)
}

/// Lays out a blank disk: a file or a device that begins with `size` bytes of zeros, and nobody else uses. Durable when this
/// returns. To be waited for: if it is dropped the tool at work goes on. Done again after a failure, a kill or a power cut
/// it begins from the start.
///
/// # Errors
///
/// [`Kind::Invalid`] for a layout that cannot be there, [`Kind::Unsupported`] if a tool is missing: nothing was changed then.
/// [`Kind::Io`] with what a tool said.
pub async fn format(layout: &Layout, disk: &Path, size: u64, sector: u32) -> Result<Vec<Placed>> {
    let placed = layout.on(size, sector)?;
    check(layout)?;
    if let Some(script) = table::script(layout.table, &placed, sector) {
        let whole = Part { disk, bytes: 0..size, sector };
        whole.run("sfdisk", &table::OPTIONS, &script).await?;
    }
    for one in &placed {
        let bytes = one.start..one.start + one.length;
        if let Some((tool, _)) = tool(one.fs) {
            let part = Part { disk, bytes, sector };
            part.run(tool, &options(one, sector), "").await?;
        }
    }
    let disk = disk.to_owned();
    blocking(move || BlockFile::open(&disk, OpenMode::write())?.sync_data()).await?;
    Ok(placed)
}

/// A part of a disk that a tool works on.
struct Part<'a> {
    disk: &'a Path,
    bytes: Range<u64>,
    sector: u32,
}

impl Part<'_> {
    /// Has a tool work on it, with this for its input.
    async fn run(&self, tool: &str, options: &[impl AsRef<str>], input: &str) -> Result<()> {
        let (disk, bytes, sector) = (self.disk.to_owned(), self.bytes.clone(), self.sector);
        let device = blocking(move || LoopDevice::over(disk, bytes, sector)).await?;
        let mut command = Command::new(tool);
        command.args(options.iter().map(AsRef::as_ref)).arg(device.path());
        let done = tools::run_on(command, input).await;
        // To close a device takes its time, too: what was written to it is on its disk then.
        blocking(move || {
            drop(device);
            Ok(())
        })
        .await?;
        done.at(|| format!("{}: {tool}", self.disk.display()))
    }
}

/// How a tool is told what to make. The disk is blank: there is nothing to be discarded.
fn options(placed: &Placed, sector: u32) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| all.extend(words.iter().map(|word| (*word).to_owned()));
    let block = placed.block.map(|block| block.to_string());
    let start = (placed.start / u64::from(sector)).to_string();
    let sectors = sector.to_string();
    let mut label = "-L";
    match placed.fs {
        FsType::Ext3 | FsType::Ext4 => {
            add(&["-q", "-F", "-E", "nodiscard"]);
            block.iter().for_each(|block| add(&["-b", block]));
        }
        FsType::Xfs => {
            add(&["-q", "-f", "-K"]);
            block.iter().for_each(|block| add(&["-b", &format!("size={block}")]));
        }
        FsType::Btrfs => add(&["-q", "-f", "--nodiscard"]),
        FsType::Fat16 | FsType::Fat32 => {
            let kind = if placed.fs == FsType::Fat16 { "16" } else { "32" };
            // Programs that start from it are told where it lies.
            add(&["-I", "-F", kind, "-S", &sectors, "-h", &start]);
            placed.block.iter().for_each(|block| add(&["-s", &(block / sector).to_string()]));
            label = "-n";
        }
        FsType::Ntfs => {
            add(&["-q", "-Q", "-F", "-s", &sectors, "-p", &start, "-H", "255", "-S", "63"]);
            block.iter().for_each(|block| add(&["-c", block]));
        }
        FsType::Swap => add(&["-f"]),
        FsType::None => {}
    }
    placed.label.iter().for_each(|name| add(&[label, name]));
    all
}

/// Does work on a thread that may wait for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|e| Error::caused(Kind::Io, "formatting: a thread died", e))?;
    done.map_err(|e| Error::io("formatting", e))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn layout(text: &str) -> Layout {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_tool_that_is_not_there_is_named_with_its_package() {
        let dir = tempfile::tempdir().unwrap();
        let has = |tool: &str| {
            let path = dir.path().join(tool);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        let layout = layout(r#"{"firmware": "uefi", "partitions": [{"fs": "ntfs"}]}"#);
        for (tool, package) in [
            ("sfdisk", "fdisk"),
            ("mkntfs", "ntfs-3g"),
            // Of the partition that is added.
            ("mkfs.fat", "dosfstools"),
        ] {
            let error = check_in(&layout, &[dir.path().to_owned()]).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported);
            let says = error.message();
            assert!(says.contains(&format!("`{tool}`")) && says.contains(package), "{says}");
            has(tool);
        }
        check_in(&layout, &[dir.path().to_owned()]).unwrap();
    }

    #[tokio::test]
    async fn what_cannot_be_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        std::fs::write(&disk, vec![0; 4 << 20]).unwrap();
        let layout = layout(r#"{"partitions": [{"fs": "xfs"}]}"#);
        let error = format(&layout, &disk, 4 << 20, 512).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(std::fs::read(&disk).unwrap().iter().all(|b| *b == 0));
    }

    #[test]
    fn tools_are_told_what_was_asked_for() {
        let of = |text: &str, sector| {
            let placed = layout(text).on(1 << 30, sector).unwrap();
            options(&placed[0], sector).join(" ")
        };
        let fat = r#"{"partitions": [{"fs": "fat32", "block": 8192, "label": "A"}]}"#;
        assert_eq!(of(fat, 512), "-I -F 32 -S 512 -h 2048 -s 16 -n A");
        let ntfs = r#"{"partitions": [{"fs": "ntfs", "label": "b"}]}"#;
        assert_eq!(of(ntfs, 4096), "-q -Q -F -s 4096 -p 256 -H 255 -S 63 -L b");
        let xfs = r#"{"partitions": [{"fs": "xfs", "block": 1024}]}"#;
        assert_eq!(of(xfs, 512), "-q -f -K -b size=1024");
    }
}
