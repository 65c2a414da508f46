//! The watchdog: a process of its own that stops the writers of volumes whose leases are over, whatever has become of
//! the daemon.
//!
//! It reads what the daemon writes down and waits. When the time is over, and is not longer by then, it kills every
//! process that has one of the volumes' files open for writing: the daemon, if it hangs, and a QEMU that was moved to
//! the plain file.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use blockio::{BlockFile, OpenMode};
use image::{Error, Result};
use rustix::process::{Pid, Signal, getppid, kill_process};

use super::{Held, boot_id, boottime};

/// Starts a watchdog, once for this process.
#[derive(Debug)]
pub struct Watchdog {
    /// Calls [`watch`] in a process of its own.
    command: Vec<OsString>,
    started: OnceLock<Result<()>>,
}

impl Watchdog {
    /// To be started by this command.
    pub fn new(command: Vec<OsString>) -> Self {
        Self { command, started: OnceLock::new() }
    }

    /// Sees that it runs.
    ///
    /// # Errors
    ///
    /// If it could not be started.
    pub fn ensure(&self) -> Result<()> {
        let start = || {
            let Some((program, words)) = self.command.split_first() else { return Ok(()) };
            let mut command = Command::new(program);
            // In a group of its own: what ends the daemon's does not end it.
            command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
            command.spawn().map(drop).map_err(|e| Error::io("starting the watchdog", e))
        };
        self.started.get_or_init(start).clone()
    }
}

/// How often it looks; a lease is over at most so much earlier for it than it is.
const TICK: Duration = Duration::from_millis(250);

/// Watches over the leases in a daemon's directory. Of several one watches, the others wait for its end. Returns when
/// there is nothing to watch: the directory is gone, or the daemon that started it has ended and nobody else writes what it
/// had leases of. The next daemon has a watchdog of its own.
///
/// # Errors
///
/// Of the files in the directory.
pub fn watch(dir: &Path) -> Result<()> {
    let daemon = getppid();
    let lock = BlockFile::open(dir.join("watch.lock"), OpenMode::create());
    let lock = lock.map_err(|e| Error::io("the watchdog's lock", e))?;
    let boot = boot_id()?;
    let (mut watches, mut held) = (false, Held::default());
    let mut reads = true;
    while dir.exists() {
        watches = watches || lock.try_lock_exclusive().map_err(|e| Error::io("watchdog", e))?;
        held = read(dir, held, &mut reads);
        if getppid() != daemon && held.leases.values().all(|lease| nobody_writes(&lease.disk)) {
            break;
        }
        if watches && held.boot == boot && is_over(&held) {
            for lease in held.leases.values() {
                stop_writers(&lease.disk);
            }
        }
        std::thread::park_timeout(TICK);
    }
    Ok(())
}

/// The leases as they are now; while they cannot be read, as they were when they last could: they are not longer than
/// that for all that is known, and who writes then is stopped.
fn read(dir: &Path, last: Held, reads: &mut bool) -> Held {
    let loaded = Held::load(dir);
    let did = std::mem::replace(reads, loaded.is_ok());
    match loaded {
        // The daemon replaces the file, and never removes it.
        Ok(now) if now.boot.is_empty() && !last.leases.is_empty() => last,
        Ok(now) => now,
        Err(error) => {
            // Once.
            if did {
                tracing::error!(%error, "the leases cannot be read; what was read last is watched");
            }
            last
        }
    }
}

fn is_over(held: &Held) -> bool {
    !held.leases.is_empty() && boottime() + TICK.as_millis() as u64 >= held.until
}

/// Whether a file is open for writing nowhere; so is one of a file system that is dead.
fn nobody_writes(file: &Path) -> bool {
    fs::metadata(file).map_or(true, |of| writers(&of).is_empty())
}

/// Kills whoever has a file open for writing, but for this process.
pub fn stop_writers(file: &Path) {
    let Ok(of) = fs::metadata(file) else { return };
    for (pid, name) in writers(&of) {
        tracing::error!(pid = pid.as_raw_nonzero().get(), name, file = %file.display(), "it writes without a lease: killed");
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// The processes that have a file open for writing.
fn writers(of: &fs::Metadata) -> Vec<(Pid, String)> {
    let own = std::process::id();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        let Some(number) = number.filter(|number| *number != own) else { continue };
        let open = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let writes = open.into_iter().any(|fd| {
            let same = fs::metadata(fd.path()).is_ok_and(|m| is_same(&m, of));
            same && is_writable(&entry.path().join("fdinfo").join(fd.file_name()))
        });
        if writes && let Some(pid) = Pid::from_raw(number as i32) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.push((pid, name.trim().to_owned()));
        }
    }
    found
}

fn is_same(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    match b.rdev() {
        0 => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        // A device may have several names.
        device => a.rdev() == device,
    }
}

/// By the flags that the kernel tells of a descriptor, octal.
fn is_writable(info: &Path) -> bool {
    let text = fs::read_to_string(info).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & 0o3 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_that_cannot_be_read_any_more_are_watched_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases.json");
        let text = r#"{"boot":"b","until":5,"term":9,"leases":{"v":{"epoch":1,"disk":"/d"}}}"#;
        fs::write(&path, text).unwrap();
        let held = read(dir.path(), Held::default(), &mut true);
        assert!(is_over(&held));
        fs::write(&path, "rubbish").unwrap();
        assert_eq!(read(dir.path(), held.clone(), &mut true), held);
        fs::remove_file(&path).unwrap();
        assert_eq!(read(dir.path(), held.clone(), &mut true), held);
        fs::create_dir(&path).unwrap();
        assert_eq!(read(dir.path(), held.clone(), &mut true), held, "nor does it end by an error");
        fs::remove_dir(&path).unwrap();
        fs::write(&path, r#"{"boot":"b","until":5,"term":9,"leases":{}}"#).unwrap();
        assert!(read(dir.path(), held, &mut true).leases.is_empty());
    }

    #[test]
    fn who_writes_is_killed_and_who_reads_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        fs::write(&file, "x").unwrap();
        let start = |redirection: &str| {
            let script = format!("exec 3{redirection}{}; echo; exec sleep 1000", file.display());
            let mut shell = Command::new("sh");
            shell.args(["-c", &script]).stdout(Stdio::piped());
            let mut child = shell.spawn().unwrap();
            let mut line = [0];
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
            child
        };
        let (mut writer, mut reader) = (start("<>"), start("<"));
        stop_writers(&file);
        assert!(!writer.wait().unwrap().success());
        assert_eq!(reader.try_wait().unwrap(), None);
        reader.kill().unwrap();
        reader.wait().unwrap();
    }
}
