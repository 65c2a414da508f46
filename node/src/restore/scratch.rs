//! Where copies are made that nobody keeps.
//!
//! ```text
//!  BASE/lock          held while a directory is made, or removed that was left
//!  BASE/NUMBER/lock   held as long as somebody uses the directory
//!  BASE/NUMBER/disk   the copy
//! ```

use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use blockio::{BlockFile, OpenMode};
use image::{Error, Kind, Result};

use crate::volumes::tools;

/// What the copy is called.
pub(super) const DISK: &str = "disk";
const LOCK: &str = "lock";
/// Directories in a base, at most.
const MOST: u32 = 1000;
/// How often the base's lock is tried, and the pause between.
const TRIES: u32 = 500;
const PAUSE: Duration = Duration::from_millis(20);

/// A directory for a copy, removed with it when it is dropped; or by the next that is made, if its user was killed.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    _lock: BlockFile,
}

impl Scratch {
    /// Removes what was left in `base`, which is made if it is not there, and makes a directory in it.
    ///
    /// # Errors
    ///
    /// [`Kind::Denied`] if `base` is somebody else's; what the system says.
    pub fn make(base: &Path) -> Result<Self> {
        let failed = |e| Error::io(format!("scratch space in {}", base.display()), e);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(base).map_err(failed)?;
        is_ours(base)?;
        let lock = BlockFile::open(base.join(LOCK), OpenMode::create()).map_err(failed)?;
        let mut tries = 0;
        while !lock.try_lock_exclusive().map_err(failed)? {
            tries += 1;
            if tries == TRIES {
                let what = format!("{}: another process makes room there", base.display());
                return Err(Error::new(Kind::Retry, what));
            }
            std::thread::park_timeout(PAUSE);
        }
        let base = &base.canonicalize().map_err(failed)?;
        tidy(base).map_err(failed)?;
        let free = (0..MOST).map(|n| base.join(n.to_string())).find(|dir| !dir.exists());
        let dir = free.ok_or_else(|| {
            Error::new(Kind::Full, format!("{}: {MOST} copies are there", base.display()))
        })?;
        std::fs::create_dir(&dir).map_err(failed)?;
        let own = BlockFile::open(dir.join(LOCK), OpenMode::create()).map_err(failed)?;
        own.try_lock_exclusive().map_err(failed)?;
        Ok(Self { dir, _lock: own })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the copy is to be.
    pub fn disk(&self) -> PathBuf {
        self.dir.join(DISK)
    }

    /// A directory in it, for mounts.
    pub(super) fn mount(&self) -> Result<PathBuf> {
        let dir = self.dir.join("mount");
        std::fs::create_dir_all(&dir).map_err(|e| Error::io(dir.display(), e))?;
        Ok(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            let dir = self.dir.display();
            tracing::warn!(%dir, %error, "a scratch directory is left to the next run");
        }
    }
}

/// In a directory of everybody's another user may have been there first.
fn is_ours(base: &Path) -> Result<()> {
    let about = std::fs::symlink_metadata(base).map_err(|e| Error::io(base.display(), e))?;
    let (uid, mode) = (rustix::process::geteuid().as_raw(), about.permissions().mode());
    if about.is_dir() && about.uid() == uid && mode & 0o022 == 0 {
        return Ok(());
    }
    let what = "not a directory of this user's alone: name another with --scratch";
    Err(Error::new(Kind::Denied, format!("{}: {what}", base.display())))
}

/// Removes directories whose users are gone, and nothing but what is called like one.
fn tidy(base: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(base)? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if number.is_none() || !entry.file_type()?.is_dir() {
            continue;
        }
        let dir = entry.path();
        let lock = BlockFile::open(dir.join(LOCK), OpenMode::create())?;
        if lock.try_lock_exclusive()? {
            tracing::info!(dir = %dir.display(), "a copy was left there, and is removed");
            for device in tools::loops_below(&dir) {
                let status = Command::new("losetup").arg("--detach").arg(&device).status()?;
                tracing::warn!(device = %device.display(), %status, "a loop device was left");
            }
            std::fs::remove_dir_all(dir)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_goes_with_its_user_and_with_the_next_if_that_was_killed() {
        let temp = tempfile::tempdir().unwrap();
        let base = temp.path().join("restore");
        let first = Scratch::make(&base).unwrap();
        std::fs::write(first.disk(), "x").unwrap();
        // As one leaves it that was killed.
        let left = base.join("7");
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("disk"), "y").unwrap();
        let foreign = base.join("notes");
        std::fs::create_dir(&foreign).unwrap();
        let second = Scratch::make(&base).unwrap();
        assert_ne!(first.dir(), second.dir());
        assert!(first.disk().exists() && !left.exists() && foreign.exists());
        let dir = first.dir().to_owned();
        drop(first);
        assert!(!dir.exists() && second.dir().exists());
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let base = temp.path().join("restore");
        std::fs::create_dir(&base).unwrap();
        std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(Scratch::make(&base).unwrap_err().kind(), Kind::Denied);
        let link = temp.path().join("link");
        std::os::unix::fs::symlink(temp.path(), &link).unwrap();
        assert_eq!(Scratch::make(&link).unwrap_err().kind(), Kind::Denied);
    }
}
