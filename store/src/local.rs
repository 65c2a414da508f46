//! What a store in a local directory needs besides the object store's own care.
//!
//! `object_store`'s local file system with fsync makes a created file and the directory that holds
//! it durable before it answers, and the directories that it had to make, too. Three things it does
//! not do: it does not sync a directory after a deletion, so a deleted object may be back after a
//! power cut; of two writers who need the same new directory, the one who finds it made does not
//! sync its parent; and a crash leaves the files behind into which it was writing (`name#1`). So
//! the folders are made and synced when the store is opened, gc syncs a folder where the order of
//! deletions matters, and gc sweeps old leftovers away.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use image::{Error, Result};

use crate::keys;

/// A local directory that is a store.
#[derive(Debug)]
pub(crate) struct LocalDir {
    root: PathBuf,
}

impl LocalDir {
    /// Makes the directory if it is not there, durably.
    pub(crate) fn create(root: &Path) -> Result<Self> {
        let what = |e| Error::io(format!("store directory {}", root.display()), e);
        let missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
        let made = root.ancestors().take_while(missing).count();
        fs::create_dir_all(root).map_err(what)?;
        let root = root.canonicalize().map_err(what)?;
        // The entry of each lies in its parent. One that was there already may have been made by a
        // run that was cut short.
        root.ancestors().take(made.max(1) + 1).try_for_each(sync_dir).map_err(what)?;
        Ok(Self { root })
    }

    /// The directory, if it is there: nothing is made or synced.
    pub(crate) fn existing(root: &Path) -> Result<Option<Self>> {
        match root.canonicalize() {
            Ok(root) => Ok(Some(Self { root })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(format!("store directory {}", root.display()), e)),
        }
    }

    /// Where the directory is.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes and syncs the folders of a store.
    pub(crate) fn make_folders(&self) -> Result<()> {
        for folder in keys::FOLDERS {
            let path = self.root.join(folder);
            let what = |e| Error::io(format!("store folder {}", path.display()), e);
            fs::create_dir_all(&path).map_err(what)?;
            sync_dir(&path).map_err(what)?;
        }
        let what = |e| Error::io(format!("store directory {}", self.root.display()), e);
        sync_dir(&self.root).map_err(what)?;
        sync_dir(&self.root.join("gc")).map_err(what)
    }

    /// Makes deletions in a folder durable.
    pub(crate) fn sync_folder(&self, folder: &str) -> Result<()> {
        let path = self.root.join(folder);
        sync_dir(&path).map_err(|e| Error::io(format!("syncing {}", path.display()), e))
    }

    /// Makes the system drop its cached pages of a file: the next read comes from the medium. A
    /// hint: if it fails, the read-back is weaker, not wrong.
    pub(crate) fn drop_cached(&self, key: &str) {
        let dropped = File::open(self.root.join(key)).and_then(|file| {
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
                .map_err(io::Error::from)
        });
        if let Err(error) = dropped {
            tracing::debug!(key, %error, "could not drop cached pages before reading back");
        }
    }

    /// Removes what was left behind before `before` (seconds since 1970): files of interrupted
    /// writes, and empty directories of images and sessions that are gone. Returns how many.
    pub(crate) fn sweep(&self, before: u64) -> Result<u64> {
        let mut swept = 0;
        for folder in keys::FOLDERS {
            let path = self.root.join(folder);
            let what = |e| Error::io(format!("sweeping {}", path.display()), e);
            swept += sweep_dir(&path, before).map_err(what)?;
        }
        Ok(swept)
    }
}

fn sweep_dir(path: &Path, before: u64) -> io::Result<u64> {
    let mut swept = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let old = modified(&entry)? < before;
        if kind.is_dir() && !keys::FOLDERS.iter().any(|f| f.ends_with(&format!("/{name}"))) {
            swept += sweep_dir(&path, before)?;
            // Fails if there is something in it. A writer who was about to use it makes it again.
            swept += u64::from(old && fs::remove_dir(&path).is_ok());
        } else if old && kind.is_file() && is_leftover(&name) {
            fs::remove_file(&path)?;
            swept += 1;
        }
    }
    Ok(swept)
}

fn modified(entry: &fs::DirEntry) -> io::Result<u64> {
    let modified = entry.metadata()?.modified()?;
    Ok(modified.duration_since(UNIX_EPOCH).unwrap_or(Duration::MAX).as_secs())
}

/// Whether it is a file into which an object was being written: `name#` and digits.
fn is_leftover(name: &str) -> bool {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    name.rsplit_once('#').is_some_and(|(_, suffix)| digits(suffix))
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_leftovers_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let local = LocalDir::create(&dir.path().join("a/b")).unwrap();
        local.make_folders().unwrap();
        let pack = local.root().join("packs").join("00");
        let left = local.root().join("packs").join("00#1");
        fs::write(&pack, b"x").unwrap();
        fs::write(&left, b"x").unwrap();
        let locator = local.root().join("locators/image/0");
        let (empty, inner) =
            (local.root().join("sessions/x"), local.root().join("locators/image/1#7"));
        fs::create_dir_all(&empty).unwrap();
        fs::create_dir_all(locator.parent().unwrap()).unwrap();
        fs::write(&locator, b"x").unwrap();
        fs::write(&inner, b"x").unwrap();
        assert_eq!(local.sweep(1_000_000_000).unwrap(), 0);
        assert_eq!(local.sweep(u64::MAX).unwrap(), 3);
        assert!(pack.exists() && locator.exists());
        assert!(!left.exists() && !inner.exists() && !empty.exists());
        assert!(keys::FOLDERS.iter().all(|f| local.root().join(f).is_dir()));
        local.drop_cached("packs/00");
        local.sync_folder("packs").unwrap();
    }
}
