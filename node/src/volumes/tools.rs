//! The standard tools that extend file systems: started in a mount namespace of their own, on a loop device of their
//! own. What they leave when they are killed is given back.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use image::{Error, Kind, Result};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use volume_pool::inside::FsKind;

use crate::export::fuse;

const SCRIPT: &str = include_str!("extend.sh");
/// Where administrators' tools are, whatever the daemon was started with.
const SYSTEM: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Characters of what a tool says that are told.
const SAID: usize = 2000;
/// Last bytes of what it says that are kept, of its output and of its errors.
const KEPT: usize = 64 << 10;
/// How long a tool may take. The check of a large disk takes hours, and may say nothing all the while; one that hangs
/// shall not have its volume for ever.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

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

/// The directories of programs: the environment's, and those of administrators.
pub(crate) fn path() -> Vec<PathBuf> {
    let own = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&own).chain(SYSTEM.map(PathBuf::from)).collect()
}

/// Sees that the tools for a file system are there.
///
/// # Errors
///
/// [`Kind::Unsupported`], naming the tool and its package.
pub(super) fn check(kind: FsKind) -> Result<()> {
    check_in(kind, &path())
}

/// A program, if it is in one of these directories.
pub(crate) fn find(program: &str, dirs: &[PathBuf]) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        path.metadata().is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 > 0)
    };
    dirs.iter().map(|dir| dir.join(program)).find(is_program)
}

fn check_in(kind: FsKind, dirs: &[PathBuf]) -> Result<()> {
    for (tool, package) in needed(kind) {
        if find(tool, dirs).is_none() {
            let what = format!(
                "{} is extended by `{tool}`, which is not here: install the package {package}",
                kind.name()
            );
            return Err(Error::new(Kind::Unsupported, what));
        }
    }
    Ok(())
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
    let path: OsString = std::env::join_paths(path())
        .map_err(|e| Error::caused(Kind::Invalid, format!("the environment's PATH: {e}"), e))?;
    command.env("PATH", path).env("LC_ALL", "C").stdin(Stdio::null());
    let (status, said) = ended(command, LONGEST).await?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::new(Kind::Io, told(&said))),
    }
}

/// Runs a program to its end, or kills it and all that it has started; the last of what it said.
async fn ended(mut command: Command, longest: Duration) -> Result<(ExitStatus, Vec<u8>)> {
    let failed = |e| Error::io("running the tools of file systems", e);
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = piped.spawn().map_err(failed)?;
    let group = child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let all = async { tokio::try_join!(last_of(out), last_of(err), child.wait()) };
    match tokio::time::timeout(longest, all).await {
        Ok(all) => {
            let (out, err, status) = all.map_err(failed)?;
            Ok((status, [out, err].concat()))
        }
        Err(_) => {
            if let Some(group) = group {
                // If it has just ended there is nobody to be killed.
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            child.wait().await.map_err(failed)?;
            let what =
                format!("it did not come to an end within {} s, and was killed", longest.as_secs());
            Err(Error::new(Kind::Io, what))
        }
    }
}

/// The last bytes of what comes out of a pipe.
async fn last_of(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let (mut kept, mut buf) = (Vec::new(), [0; 4096]);
    let Some(mut pipe) = pipe else { return Ok(kept) };
    loop {
        let read = pipe.read(&mut buf).await?;
        if read == 0 {
            kept.drain(..kept.len().saturating_sub(KEPT));
            return Ok(kept);
        }
        kept.extend_from_slice(&buf[..read]);
        if kept.len() >= 2 * KEPT {
            kept.drain(..kept.len() - KEPT);
        }
    }
}

/// What a tool said, for people.
fn told(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let said = lines.join("; ");
    let from = said.char_indices().rev().nth(SAID).map_or(0, |(at, _)| at);
    said[from..].to_owned()
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
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command
    }

    #[tokio::test]
    async fn of_what_a_tool_says_the_end_is_kept() {
        let script = "yes | head -c 3000000; yes no | head -c 3000000 >&2; echo last >&2; exit 3";
        let (status, said) = ended(shell(script), LONGEST).await.unwrap();
        assert_eq!((status.code(), said.len()), (Some(3), 2 * KEPT));
        assert!(told(&said).ends_with("no; no; last"));
    }

    #[tokio::test]
    async fn a_tool_that_hangs_is_killed_with_all_that_it_has_started() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        // What it has started has its output, too.
        let script = format!("sleep 1000 & echo $! > {}; sleep 1000; wait", pid.display());
        let error = ended(shell(&script), Duration::from_secs(1)).await.unwrap_err();
        assert!(error.kind() == Kind::Io && error.message().contains("was killed"), "{error}");
        let pid = std::fs::read_to_string(pid).unwrap();
        let is_dead = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        while !is_dead() {
            tokio::task::yield_now().await;
        }
    }

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
