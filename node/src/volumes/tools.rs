//! The standard tools that extend file systems: started in a mount namespace of their own, on a loop device of their
//! own. What they leave when they are killed is given back.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use image::{Error, Kind, Result};
use tokio::process::Command;
use volume_pool::inside::FsKind;

use crate::export::fuse;
use crate::tools;

const SCRIPT: &str = include_str!("extend.sh");

/// A part of a file in which a file system lies.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) file: PathBuf,
    /// In bytes.
    pub(super) start: u64,
    /// In bytes.
    pub(super) length: u64,
    /// In bytes.
    pub(super) sector: u32,
}

/// The programs that it takes, and the Debian packages that they are in.
fn needed(kind: FsKind) -> Vec<(&'static str, &'static str)> {
    let mut all = vec![("unshare", "util-linux"), ("losetup", "mount")];
    let mounting = [("mount", "mount"), ("umount", "mount")];
    match kind {
        FsKind::Ext => all.extend([("e2fsck", "e2fsprogs"), ("resize2fs", "e2fsprogs")]),
        FsKind::Xfs => all.extend(mounting.into_iter().chain([("xfs_growfs", "xfsprogs")])),
        FsKind::Btrfs { .. } => all.extend(mounting.into_iter().chain([("btrfs", "btrfs-progs")])),
        FsKind::Ntfs => all.push(("ntfsresize", "ntfs-3g")),
    }
    all
}

/// Sees that the tools for a file system are there.
///
/// # Errors
///
/// [`Kind::Unsupported`], naming the tool and its package.
pub(super) fn check(kind: FsKind) -> Result<()> {
    check_in(kind, &tools::path())
}

fn check_in(kind: FsKind, dirs: &[PathBuf]) -> Result<()> {
    tools::check(&format!("{} is extended by", kind.name()), &needed(kind), dirs)
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Check an ext, and mend what can be mended without asking anybody.
    CheckExt,
    /// The same, and mend also the rest: nothing but `resize2fs` can have damaged it.
    MendExt,
    /// Extend the file system to the end of the part in which it lies. An ext must have been checked.
    Extend(FsKind),
}

/// Has the tools do something with the file system in a part of a file. `mount` is a directory in which it may be
/// mounted meanwhile.
///
/// # Errors
///
/// [`Kind::Io`] with what the tool said, or that it has not come to an end and was killed.
pub(super) async fn run(task: Task, part: &Part, mount: &Path) -> Result<()> {
    let numbers = [part.start, part.length, part.sector.into()].map(|n| n.to_string());
    let mut command = Command::new("unshare");
    // What is unmounted outside is unmounted here too, and not kept by our copy of it.
    command.args(["--mount", "--propagation", "slave", "--", "sh", "-c", SCRIPT, "extend"]);
    command.arg(&part.file).args(numbers).arg(mount);
    match task {
        Task::CheckExt => command.arg("ext-check"),
        Task::MendExt => command.arg("ext-mend"),
        Task::Extend(FsKind::Ext) => command.arg("ext"),
        Task::Extend(FsKind::Xfs) => command.arg("xfs"),
        Task::Extend(FsKind::Btrfs { device }) => command.args(["btrfs", &device.to_string()]),
        Task::Extend(FsKind::Ntfs) => command.arg("ntfs"),
    };
    tools::run(command).await
}

/// What the disk is called in a volume's place for tools.
pub(super) const DISK: &str = "disk";
/// And the directory in which its file system may be mounted.
pub(super) const MOUNT: &str = "mount";

/// Gives back what earlier daemons have left in the places below `dir`.
pub(super) async fn tidy(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        give_back(&entry.map_err(|e| Error::io(dir.display(), e))?.path()).await?;
    }
    Ok(())
}

/// Gives back a volume's place for tools and what of them is left there: loop devices, the mount, files.
pub(super) async fn give_back(place: &Path) -> Result<()> {
    let Ok(place) = place.canonicalize() else { return Ok(()) };
    for device in loops_below(&place) {
        let detached = Command::new("losetup").arg("--detach").arg(&device).output().await;
        let status = detached.map_err(|e| Error::io("losetup", e))?.status;
        tracing::warn!(device = %device.display(), %status, "a loop device was left");
    }
    let disk = place.join(DISK);
    match fuse::unmount(&disk) {
        Err(error) if error.kind() != Kind::Gone => return Err(error),
        _ => {}
    }
    // Never what is in a directory: if something is mounted there after all, it is not ours to remove.
    let gone = |removed: std::io::Result<()>, path: &Path| match removed {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(path.display(), e)),
        _ => Ok(()),
    };
    gone(std::fs::remove_file(&disk), &disk)?;
    gone(std::fs::remove_dir(place.join(MOUNT)), &place)?;
    gone(std::fs::remove_dir(&place), &place)
}

/// The loop devices over files below a directory.
pub(crate) fn loops_below(dir: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let below = all.filter(|entry| {
        let file = std::fs::read_to_string(entry.path().join("loop/backing_file"));
        file.is_ok_and(|file| Path::new(file.trim_end_matches('\n')).starts_with(dir))
    });
    below.map(|entry| Path::new("/dev").join(entry.file_name())).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_tool_that_is_not_there_is_named_with_its_package() {
        let dir = tempfile::tempdir().unwrap();
        let has = |tool: &str, mode| {
            let path = dir.path().join(tool);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for tool in ["unshare", "losetup", "e2fsck", "mount", "umount"] {
            has(tool, 0o755);
        }
        has("resize2fs", 0o644);
        let dirs = [dir.path().join("none"), dir.path().to_owned()];
        let wanted = [
            (FsKind::Ext, "resize2fs", "e2fsprogs"),
            (FsKind::Xfs, "xfs_growfs", "xfsprogs"),
            (FsKind::Btrfs { device: 1 }, "btrfs", "btrfs-progs"),
            (FsKind::Ntfs, "ntfsresize", "ntfs-3g"),
        ];
        for (kind, tool, package) in wanted {
            let error = check_in(kind, &dirs).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported);
            let says = error.message();
            assert!(says.contains(&format!("`{tool}`")) && says.contains(package), "{says}");
        }
        has("resize2fs", 0o755);
        check_in(FsKind::Ext, &dirs).unwrap();
    }
}
