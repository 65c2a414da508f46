//! Small directories of files that must be there whole or not at all: keys and certificates.
//!
//! A set of files is written into a hidden directory beside its place, each file and the directory
//! are synced, then the directory is renamed into place and its parent synced. So the place holds
//! the whole set or nothing, whenever the program or the machine stops; a leftover hidden directory
//! is removed by the next attempt. Two programs that try at once are kept apart by a lock on the
//! parent directory, which the system drops when its holder dies.
//!
//! What is assumed of the disk: a rename is atomic, and is durable once the parent is synced; a file
//! is durable once it is synced.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use image::{Error, Kind, Result};
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Longest file that is read, in bytes; ours have a few thousand.
const MAX_FILE: u64 = 1 << 20;

/// An operation on the disk, as told to a probe before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    MakeDir,
    Write,
    SyncFile,
    SyncDir,
    Rename,
    Remove,
}

/// Called before each operation; an error stops there, as a crash would.
pub(crate) type Probe<'a> = &'a dyn Fn(Step, &Path) -> Result<()>;

/// The probe of real life.
pub(crate) fn no_probe(_: Step, _: &Path) -> Result<()> {
    Ok(())
}

/// Makes `dir` (mode 0700) hold exactly these files (mode 0600), unless it holds something already:
/// then nothing is changed and the answer is `false`.
pub(crate) fn create_set(dir: &Path, files: &[(&str, &[u8])], probe: Probe) -> Result<bool> {
    let place = Place::of(dir)?;
    make_dirs(place.parent)?;
    let _lock = place.lock()?;
    if occupied(dir)? {
        return Ok(false);
    }
    place.write(files, probe)?;
    Ok(true)
}

/// Removes what an interrupted [`replace_set`] left beside `dir`.
pub(crate) fn tidy(dir: &Path, probe: Probe) -> Result<()> {
    let place = Place::of(dir)?;
    let (new, old) = (place.beside("new"), place.beside("old"));
    if !exists(&new)? && !exists(&old)? {
        return Ok(());
    }
    let _lock = place.lock()?;
    remove(&new, probe)?;
    remove(&old, probe)
}

/// As [`create_set`], in place of whatever `dir` holds: at every instant it holds all of the one or all of the other.
pub(crate) fn replace_set(dir: &Path, files: &[(&str, &[u8])], probe: Probe) -> Result<()> {
    let place = Place::of(dir)?;
    make_dirs(place.parent)?;
    let _lock = place.lock()?;
    if !exists(dir)? {
        return place.write(files, probe);
    }
    let new = place.lay_out(files, probe)?;
    probe(Step::Rename, &new)?;
    let exchanged = renameat_with(CWD, &new, CWD, dir, RenameFlags::EXCHANGE);
    exchanged.map_err(|e| Error::io(dir.display(), e.into()))?;
    sync_dir(place.parent, probe)?;
    remove(&new, probe)
}

/// Where a set goes.
struct Place<'a> {
    dir: &'a Path,
    parent: &'a Path,
    name: String,
}

impl<'a> Place<'a> {
    fn of(dir: &'a Path) -> Result<Self> {
        let parts = dir.parent().zip(dir.file_name());
        let (parent, name) = parts.ok_or_else(|| {
            Error::new(Kind::Invalid, format!("{}: not a path of a directory", dir.display()))
        })?;
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        Ok(Self { dir, parent, name: name.to_string_lossy().into_owned() })
    }

    fn beside(&self, what: &str) -> PathBuf {
        self.parent.join(format!(".{}.{what}", self.name))
    }

    /// Held until the file is dropped.
    fn lock(&self) -> Result<File> {
        let at = |e| Error::io(format!("locking {}", self.parent.display()), e);
        let parent = File::open(self.parent).map_err(at)?;
        parent.lock().map_err(at)?;
        Ok(parent)
    }

    fn write(&self, files: &[(&str, &[u8])], probe: Probe) -> Result<()> {
        let new = self.lay_out(files, probe)?;
        probe(Step::Rename, &new)?;
        std::fs::rename(&new, self.dir).map_err(|e| Error::io(self.dir.display(), e))?;
        sync_dir(self.parent, probe)
    }

    /// A synced directory with these files, beside the place.
    fn lay_out(&self, files: &[(&str, &[u8])], probe: Probe) -> Result<PathBuf> {
        let new = self.beside("new");
        remove(&new, probe)?;
        probe(Step::MakeDir, &new)?;
        DirBuilder::new().mode(0o700).create(&new).map_err(|e| Error::io(new.display(), e))?;
        for (name, bytes) in files {
            write_file(&new.join(name), bytes, probe)?;
        }
        sync_dir(&new, probe)?;
        Ok(new)
    }
}

fn write_file(path: &Path, bytes: &[u8], probe: Probe) -> Result<()> {
    let at = |e| Error::io(path.display(), e);
    probe(Step::Write, path)?;
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(at)?;
    file.write_all(bytes).map_err(at)?;
    probe(Step::SyncFile, path)?;
    file.sync_all().map_err(at)
}

fn sync_dir(dir: &Path, probe: Probe) -> Result<()> {
    probe(Step::SyncDir, dir)?;
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io(dir.display(), e))
}

fn remove(dir: &Path, probe: Probe) -> Result<()> {
    if !exists(dir)? {
        return Ok(());
    }
    probe(Step::Remove, dir)?;
    std::fs::remove_dir_all(dir).map_err(|e| Error::io(dir.display(), e))
}

/// Whether something is there; an error if that cannot be said.
pub(crate) fn exists(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io(path.display(), e)),
    }
}

/// Whether something is there that a set may not take the place of. An empty directory, made
/// beforehand for us, is not in the way.
pub(crate) fn occupied(dir: &Path) -> Result<bool> {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(e) if e.kind() == ErrorKind::NotFound => exists(dir),
        Err(e) => Err(Error::io(dir.display(), e)),
    }
}

/// Makes a directory and its parents, readable by their owner alone.
pub(crate) fn make_dirs(dir: &Path) -> Result<()> {
    let made = DirBuilder::new().mode(0o700).recursive(true).create(dir);
    made.map_err(|e| Error::io(dir.display(), e))
}

/// Reads a file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| Error::io(path.display(), e))?;
    read_all(path, file)
}

/// Reads a text.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    text(path, read(path)?)
}

/// Reads a file that nobody but its owner may read, and refuses it if others may.
pub(crate) fn read_private(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| Error::io(path.display(), e))?;
    // Asked of the open file: what is checked is what is read.
    check_private(path, &file, "600")?;
    read_all(path, file)
}

/// Reads a text that nobody but its owner may read.
pub(crate) fn read_private_text(path: &Path) -> Result<String> {
    text(path, read_private(path)?)
}

/// Refuses a directory that others may look into.
pub(crate) fn check_private_dir(dir: &Path) -> Result<()> {
    let open = File::open(dir).map_err(|e| Error::io(dir.display(), e))?;
    check_private(dir, &open, "700")
}

fn check_private(path: &Path, file: &File, mode: &str) -> Result<()> {
    let found = file.metadata().map_err(|e| Error::io(path.display(), e))?.permissions().mode();
    if found & 0o077 == 0 {
        return Ok(());
    }
    let path = path.display();
    let found = found & 0o7777;
    Err(Error::new(
        Kind::Denied,
        format!(
            "{path}: others than its owner can read or change it (mode {found:04o}); if nobody has \
             read it, run: chmod {mode} {path}"
        ),
    ))
}

fn read_all(path: &Path, file: File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = file.take(MAX_FILE + 1).read_to_end(&mut bytes);
    read.map_err(|e| Error::io(path.display(), e))?;
    if bytes.len() as u64 > MAX_FILE {
        let what = format!("{}: longer than {MAX_FILE} bytes", path.display());
        return Err(Error::new(Kind::Corrupt, what));
    }
    Ok(bytes)
}

fn text(path: &Path, bytes: Vec<u8>) -> Result<String> {
    let bad = |_| Error::new(Kind::Corrupt, format!("{}: not a text", path.display()));
    String::from_utf8(bytes).map_err(bad)
}

/// Opens a file for reading and writing; made, if need be, readable by its owner alone.
pub(crate) fn open_private(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        make_dirs(parent)?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(|e| Error::io(path.display(), e))?;
    check_private(path, &file, "600")?;
    Ok(file)
}

/// Renames a synced file, durably.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|e| Error::io(to.display(), e))?;
    sync_parent(to)
}

/// Makes a new name durable.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    sync_dir(Place::of(path)?.parent, &no_probe)
}
