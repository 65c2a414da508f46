//! Which files differ between two images: on ext file systems, one by one, on others not at all.
//!
//! File systems are paired by the number of their partition. One in whose bytes no chunk differs is not looked at. Of a
//! pair of files of the same size and time of change the bytes are taken to be the same; where only the times
//! differ they are read and compared.
//!
//! What is on the disks is not trusted. All that is held is bounded, a reader that panics or goes round in circles is given up,
//! and so are directories that lead to more files than a disk can have.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ext4_view::Metadata;
use image::{Digest, Error, Kind, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use volume_pool::inside::{Content as Inside, EDGE, Edges, FsKind, Table, content};

use super::chunks::Difference;
use super::ext::{Entry, ExtFs, Extent, kind};
use super::view::{Desk, KEPT, Pace, ReadAt, View};
use crate::patience::Patience;
use crate::pull::Connect;

/// The name of the thread that reads file systems. What panics there is the reader of something damaged.
pub const THREAD: &str = "files of images";
/// Files of which something is known at the same time: those of a directory, and of all above it.
const MAX_HELD: usize = 400_000;
/// Files that are looked at on a file system at most.
const MAX_FILES: u64 = 20_000_000;
/// Directories that cannot be read before the whole is given up.
const MAX_UNREAD: u64 = 100;
/// Directories in each other at most.
const MAX_DEPTH: usize = 200;
/// Bytes of paths that are told at most.
const MAX_TOLD: usize = 64 << 20;
/// Bytes of a file that are compared at a time.
const PIECE: usize = 64 << 10;
/// How often it is looked whether the reader goes on, and how often it may not have.
const LOOK: Duration = Duration::from_secs(1);
const LOOKS: u32 = 20;

/// A file that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// Its path; what is no UTF-8 in it is replaced.
    pub path: String,
    /// What differs: `type`, `size`, `content`, `time`, `mode`, `owner`, `target` (of a symbolic link), `unread` (its bytes
    /// could not be compared).
    pub what: Vec<String>,
    /// Its size in bytes before, and now.
    pub size: [u64; 2],
}

/// A file system, or whatever else is in a partition, on both disks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystemDiff {
    /// The partition's number; none if it has all of the disk.
    pub partition: Option<u32>,
    /// What it was; nothing if it was not there.
    pub old: Option<String>,
    /// What it is; nothing if it is not there any more.
    pub new: Option<String>,
    /// No chunk of it differs.
    pub same: bool,
    /// Why its files are not told, or not all of them.
    pub unread: Option<String>,
    /// Paths of the files that it has now, and had not.
    pub added: Vec<String>,
    /// Paths of the files that it had, and has no more.
    pub removed: Vec<String>,
    /// The files that are not as they were.
    pub changed: Vec<FileChange>,
    /// Files that differ, of which there are too many to be told.
    pub untold: u64,
}

/// What is in a partition, or has all of the disk.
struct Found {
    extent: Extent,
    content: Inside,
}

impl Found {
    fn name(&self) -> String {
        match self.content {
            Inside::FileSystem(fs) => fs.kind.name(),
            Inside::Other(name) => name,
            Inside::Zeros => "zeros",
            Inside::Unknown => "nothing that is known",
        }
        .to_owned()
    }

    fn is_ext(&self) -> bool {
        matches!(self.content, Inside::FileSystem(fs) if fs.kind == FsKind::Ext)
    }
}

/// Compares the files of two images, on a thread of its own. `difference`, if it is known, tells what need not be looked
/// at. `progress` is told of bytes that came; the answer ends with all of them.
///
/// # Errors
///
/// What the sources and the partition tables say. What is wrong with a file system is in its report.
pub async fn file_differences<C: Connect>(
    old: (C, Digest),
    new: (C, Digest),
    difference: Option<Arc<Difference>>,
    mut progress: impl FnMut(u64),
) -> Result<(Vec<FileSystemDiff>, u64)> {
    let pace = Arc::new(Pace::default());
    let (done, ended) = oneshot::channel();
    let reader = Arc::clone(&pace);
    let body = move || {
        // Nobody to tell if the comparison was dropped.
        let _ = done.send(compare(&old, &new, difference.as_deref(), reader));
    };
    std::thread::Builder::new()
        .name(THREAD.into())
        .spawn(body)
        .map_err(|e| Error::io("starting a thread for the comparison of files", e))?;
    let end = EndOnDrop(Arc::clone(&pace));
    let result = watched(ended, &pace, &mut progress).await;
    drop(end);
    result.map(|found| (found, pace.received()))
}

/// Waits for the reader as long as it goes on, or waits itself.
async fn watched<T>(
    mut ended: oneshot::Receiver<Result<T>>,
    pace: &Pace,
    progress: &mut impl FnMut(u64),
) -> Result<T> {
    let (mut last, mut looks) = (None, 0);
    while looks < LOOKS {
        match tokio::time::timeout(LOOK, &mut ended).await {
            Ok(result) => {
                let died = |_| Error::new(Kind::Corrupt, "the reader of file systems died");
                return result.map_err(died).flatten();
            }
            Err(_) => {
                progress(pace.received());
                let steps = pace.steps();
                looks = if steps.is_some() && steps == last { looks + 1 } else { 0 };
                last = steps;
            }
        }
    }
    let what = "a file system that leads its reader round in circles: it is damaged";
    Err(Error::new(Kind::Corrupt, what))
}

/// Ends the reader with whoever waits for it.
struct EndOnDrop(Arc<Pace>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn compare<C: Connect>(
    old: &(C, Digest),
    new: &(C, Digest),
    difference: Option<&Difference>,
    pace: Arc<Pace>,
) -> Result<Vec<FileSystemDiff>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("starting a runtime", e))?;
    let desk = Rc::new(Desk::new(pace, runtime)?);
    let open = |(connect, image): &(C, Digest)| {
        let opening = Patience::with_busy().ask(async || connect.connect(0).await);
        let source = desk.wait(opening)?;
        View::open(Rc::clone(&desk), source, *image, connect.trace()).map(Rc::new)
    };
    let (was, is) = (open(old)?, open(new)?);
    desk.make_room(was.chunk().max(is.chunk()), KEPT)?;
    let disks: [Rc<dyn ReadAt>; 2] = [was.clone(), is.clone()];
    let result = compare_disks(&disks, difference, &desk.pace);
    drop(disks);
    for (view, (connect, _)) in [(was, old), (is, new)] {
        // A reader that panicked may still have it.
        if let Some(view) = Rc::into_inner(view) {
            desk.wait(connect.close(view.into_source()));
        }
    }
    result
}

/// Whether it is what is on a disk that cannot be read, and not the disk.
fn is_of_the_disk(error: &Error) -> bool {
    matches!(error.kind(), Kind::Corrupt | Kind::Unsupported)
}

fn compare_disks(
    disks: &[Rc<dyn ReadAt>; 2],
    difference: Option<&Difference>,
    pace: &Arc<Pace>,
) -> Result<Vec<FileSystemDiff>> {
    let (mut was, mut is) = match (contents(&disks[0]), contents(&disks[1])) {
        (Ok(was), Ok(is)) => (was, is),
        (Err(e), _) | (_, Err(e)) if is_of_the_disk(&e) => {
            let unread = Some(format!("the partition table: {e}"));
            return Ok(vec![FileSystemDiff { unread, ..FileSystemDiff::default() }]);
        }
        (was, is) => (was?, is?),
    };
    let mut numbers: Vec<Option<u32>> = was.keys().chain(is.keys()).copied().collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut told = MAX_TOLD;
    let mut all = Vec::new();
    for number in numbers {
        let pair = (was.remove(&number), is.remove(&number));
        let mut report = FileSystemDiff {
            partition: number,
            old: pair.0.as_ref().map(Found::name),
            new: pair.1.as_ref().map(Found::name),
            ..FileSystemDiff::default()
        };
        compare_pair(pair, difference, pace, &mut told, &mut report)?;
        all.push(report);
    }
    Ok(all)
}

/// What is on a disk, by the numbers of its partitions.
fn contents(disk: &Rc<dyn ReadAt>) -> Result<BTreeMap<Option<u32>, Found>> {
    let size = disk.size();
    let edge = |bytes: Range<u64>| {
        let mut read = vec![0; (bytes.end - bytes.start) as usize];
        disk.read_at(bytes.start, &mut read).map(|()| read)
    };
    let (head, tail) =
        (edge(0..size.min(EDGE as u64))?, edge(size.saturating_sub(EDGE as u64)..size)?);
    let table = Table::read(&Edges { size, sector: disk.sector(), head: &head, tail: &tail })?;
    let found = |bytes: Range<u64>| {
        // A partition that ends behind the disk is damaged, but what is there of it can be looked at.
        let bytes = bytes.start.min(size)..bytes.end.min(size);
        let head = edge(bytes.start..bytes.end.min(bytes.start.saturating_add(EDGE as u64)))?;
        let extent = Extent { disk: Rc::clone(disk), bytes };
        Ok::<_, Error>(Found { extent, content: content(&head) })
    };
    match table {
        Table::None => Ok([(None, found(0..size)?)].into()),
        table => {
            let named = table.partitions().iter().map(|partition| {
                let mut found = found(partition.bytes.clone())?;
                if partition.extended {
                    found.content = Inside::Other("an extended partition");
                }
                Ok((Some(partition.number), found))
            });
            named.collect()
        }
    }
}

fn compare_pair(
    pair: (Option<Found>, Option<Found>),
    difference: Option<&Difference>,
    pace: &Arc<Pace>,
    told: &mut usize,
    report: &mut FileSystemDiff,
) -> Result<()> {
    let (was, is) = match pair {
        (Some(was), Some(is)) => (was, is),
        _ => return Ok(()),
    };
    let at = was.extent.bytes.clone();
    report.same = at == is.extent.bytes && difference.is_some_and(|d| !d.touches(&at));
    if report.same {
        return Ok(());
    }
    if !(was.is_ext() && is.is_ext()) {
        let what = "only files on ext2, ext3 and ext4 are compared";
        report.unread = Some(what.into());
        return Ok(());
    }
    let budget = was.extent.disk.size().max(is.extent.disk.size());
    let open = |found: Found| ExtFs::open(found.extent, Arc::clone(pace));
    let ended = open(was).and_then(|was| {
        let is = open(is)?;
        Walk { was: &was, is: &is, report, told, held: 0, files: 0, unread: 0, budget }.run()
    });
    match ended {
        Err(e) if is_of_the_disk(&e) => {
            report.unread = Some(e.to_string());
            Ok(())
        }
        ended => ended,
    }
}

/// A directory that is on one disk or both, and what of it is left to look at.
struct Dir {
    path: Vec<u8>,
    was: std::iter::Peekable<std::vec::IntoIter<Entry>>,
    is: std::iter::Peekable<std::vec::IntoIter<Entry>>,
    held: usize,
}

/// The walk over two file systems, side by side.
struct Walk<'a> {
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

impl Walk<'_> {
    fn run(mut self) -> Result<()> {
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

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
