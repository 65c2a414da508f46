//! The walk over two ext file systems, side by side, directory by directory.

use ext4_view::Metadata;
use image::{Error, Kind, Result};

use super::ext::{Entry, ExtFs, kind};
use super::files::{FileChange, FileSystemDiff, is_of_the_disk};

/// Files of which something is known at the same time: those of a directory, and of all above it.
const MAX_HELD: usize = 400_000;
/// Files that are looked at on a file system at most.
const MAX_FILES: u64 = 20_000_000;
/// Directories that cannot be read before the whole is given up.
const MAX_UNREAD: u64 = 100;
/// Directories in each other at most.
const MAX_DEPTH: usize = 200;
/// Bytes of a file that are compared at a time.
const PIECE: usize = 64 << 10;

/// A directory that is on one disk or both, and what of it is left to look at.
struct Dir {
    path: Vec<u8>,
    was: std::iter::Peekable<std::vec::IntoIter<Entry>>,
    is: std::iter::Peekable<std::vec::IntoIter<Entry>>,
    held: usize,
}

/// The walk over two file systems, side by side.
pub(super) struct Walk<'a> {
    was: &'a ExtFs,
    is: &'a ExtFs,
    report: &'a mut FileSystemDiff,
    /// Bytes of paths that may still be told.
    told: &'a mut usize,
    /// Files of the directories that are under way.
    held: usize,
    files: u64,
    /// Directories that could not be read.
    unread: u64,
    /// Bytes of files that may still be compared.
    budget: u64,
}

impl<'a> Walk<'a> {
    /// What differs goes into `report`, until `told` bytes of paths are in it; `budget` bytes of files are compared.
    pub(super) fn new(
        was: &'a ExtFs,
        is: &'a ExtFs,
        report: &'a mut FileSystemDiff,
        told: &'a mut usize,
        budget: u64,
    ) -> Self {
        Self { was, is, report, told, held: 0, files: 0, unread: 0, budget }
    }

    pub(super) fn run(mut self) -> Result<()> {
        let (was, is) = (self.was.root()?, self.is.root()?);
        self.attributes(b"/", &was, &is, Vec::new());
        let mut dirs = vec![self.enter(b"/".to_vec(), Some(&was), Some(&is))?];
        while let Some(dir) = dirs.last_mut() {
            let Some((was, is)) = next(dir) else {
                self.held -= dir.held;
                dirs.pop();
                continue;
            };
            let name = was.as_ref().or(is.as_ref()).map(|entry| &entry.name[..]);
            let path = join(&dir.path, name.unwrap_or_default());
            self.files += 1;
            if self.files > MAX_FILES {
                let what = format!("more than {MAX_FILES} files: its directories lead in a circle");
                return Err(Error::new(Kind::Corrupt, what));
            }
            self.file(&path, was.as_ref(), is.as_ref())?;
            let dir =
                |entry: Option<Entry>| entry.and_then(|e| e.metadata).filter(Metadata::is_dir);
            let (was, is) = (dir(was), dir(is));
            if was.is_none() && is.is_none() {
                continue;
            }
            if dirs.len() >= MAX_DEPTH {
                let what = format!("more than {MAX_DEPTH} directories in each other");
                return Err(Error::new(Kind::Unsupported, what));
            }
            dirs.extend(self.try_enter(path, was.as_ref(), is.as_ref())?);
        }
        Ok(())
    }

    /// One directory that cannot be read is told of, and the others are looked at all the same.
    fn try_enter(
        &mut self,
        path: Vec<u8>,
        was: Option<&Metadata>,
        is: Option<&Metadata>,
    ) -> Result<Option<Dir>> {
        let held = self.held;
        match self.enter(path, was, is) {
            Err(e) if is_of_the_disk(&e) && self.unread < MAX_UNREAD => {
                self.held = held;
                self.unread += 1;
                self.report.unread.get_or_insert_with(|| e.to_string());
                Ok(None)
            }
            entered => entered.map(Some),
        }
    }

    fn enter(
        &mut self,
        path: Vec<u8>,
        was: Option<&Metadata>,
        is: Option<&Metadata>,
    ) -> Result<Dir> {
        let before = self.held;
        let mut list = |fs: &ExtFs, of: Option<&Metadata>| {
            let Some(of) = of else { return Ok(Vec::new().into_iter().peekable()) };
            let entries =
                fs.list(&path, of, MAX_HELD - self.held).map_err(|e| e.at(lossy(&path)))?;
            self.held += entries.len();
            Ok::<_, Error>(entries.into_iter().peekable())
        };
        let (was, is) = (list(self.was, was)?, list(self.is, is)?);
        let held = self.held - before;
        Ok(Dir { path, was, is, held })
    }

    /// Compares what is at a path on one side or both.
    fn file(&mut self, path: &[u8], was: Option<&Entry>, is: Option<&Entry>) -> Result<()> {
        match (was, is) {
            (Some(was), Some(is)) => match (&was.metadata, &is.metadata) {
                (Some(was), Some(is)) => {
                    let what = self.content(path, was, is)?;
                    self.attributes(path, was, is, what);
                }
                (was, is) => {
                    let why =
                        || format!("{}: its inode is damaged, or not known here", lossy(path));
                    self.report.unread.get_or_insert_with(why);
                    let size = [was, is].map(|of| of.as_ref().map_or(0, Metadata::len));
                    self.changed(path, vec!["unread"], size);
                }
            },
            (None, Some(_)) if self.may_tell(path) => self.report.added.push(lossy(path)),
            (Some(_), None) if self.may_tell(path) => self.report.removed.push(lossy(path)),
            _ => {}
        }
        Ok(())
    }

    /// What differs of what is in a file.
    fn content(&mut self, path: &[u8], was: &Metadata, is: &Metadata) -> Result<Vec<&'static str>> {
        if was.file_type() != is.file_type() {
            return Ok(vec!["type"]);
        }
        let what = match kind(is) {
            "symlink" => self.same_target(path, was, is),
            "file" if was.len() != is.len() => Ok(vec!["size", "content"]),
            "file" if was.modified() != is.modified() => self.same_bytes(path, was, is),
            _ => Ok(vec![]),
        };
        match what.map_err(|e| e.at(lossy(path))) {
            // One file that is damaged is told of, and the others are looked at all the same.
            Err(e) if is_of_the_disk(&e) => {
                self.report.unread.get_or_insert_with(|| e.to_string());
                Ok(vec!["unread"])
            }
            what => what,
        }
    }

    fn same_target(&self, path: &[u8], was: &Metadata, is: &Metadata) -> Result<Vec<&'static str>> {
        let same = self.was.target(path, was)? == self.is.target(path, is)?;
        Ok(if same { vec![] } else { vec!["target"] })
    }

    /// Reads both files until they differ.
    fn same_bytes(
        &mut self,
        path: &[u8],
        was: &Metadata,
        is: &Metadata,
    ) -> Result<Vec<&'static str>> {
        let (mut old, mut new) = (self.was.open_file(path, was)?, self.is.open_file(path, is)?);
        let (mut before, mut now) = (vec![0; PIECE], vec![0; PIECE]);
        loop {
            // Files with holes can be longer than any disk.
            if self.budget == 0 {
                return Ok(vec!["unread"]);
            }
            self.budget = self.budget.saturating_sub(PIECE as u64);
            let (a, b) = (old.read(&mut before)?, new.read(&mut now)?);
            if before[..a] != now[..b] {
                return Ok(vec!["content"]);
            }
            if a == 0 {
                return Ok(vec![]);
            }
        }
    }

    /// Tells of a file that differs, in these ways or others that its directory knows.
    fn attributes(
        &mut self,
        path: &[u8],
        was: &Metadata,
        is: &Metadata,
        mut what: Vec<&'static str>,
    ) {
        let file = kind(is) == "file" && was.file_type() == is.file_type();
        let differs = [
            (file && was.modified() != is.modified(), "time"),
            (was.mode() != is.mode(), "mode"),
            ((was.uid(), was.gid()) != (is.uid(), is.gid()), "owner"),
        ];
        what.extend(differs.into_iter().filter(|(so, _)| *so).map(|(_, what)| what));
        self.changed(path, what, [was.len(), is.len()]);
    }

    fn changed(&mut self, path: &[u8], what: Vec<&'static str>, size: [u64; 2]) {
        if !what.is_empty() && self.may_tell(path) {
            let what = what.into_iter().map(str::to_owned).collect();
            self.report.changed.push(FileChange { path: lossy(path), what, size });
        }
    }

    fn may_tell(&mut self, path: &[u8]) -> bool {
        // What a path takes beside its bytes.
        let takes = path.len() + 64;
        let may = *self.told >= takes;
        match may {
            true => *self.told -= takes,
            false => self.report.untold += 1,
        }
        may
    }
}

/// What comes next by its name, with its counterpart.
fn next(dir: &mut Dir) -> Option<(Option<Entry>, Option<Entry>)> {
    use std::cmp::Ordering;
    let order = match (dir.was.peek(), dir.is.peek()) {
        (None, None) => return None,
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (Some(was), Some(is)) => was.name.cmp(&is.name),
    };
    let was = if order.is_le() { dir.was.next() } else { None };
    let is = if order.is_ge() { dir.is.next() } else { None };
    Some((was, is))
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = dir.to_vec();
    if path != b"/" {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
