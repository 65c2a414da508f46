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

use image::{Digest, Error, Kind, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use volume_pool::inside::{Content as Inside, EDGE, Edges, FsKind, Table, content};

use super::chunks::Difference;
use super::ext::{ExtFs, Extent};
use super::view::{Desk, KEPT, Pace, ReadAt, View};
use super::walk::Walk;
use crate::patience::Patience;
use crate::pull::Connect;

/// The name of the thread that reads file systems. What panics there is the reader of something damaged.
pub const THREAD: &str = "files of images";
/// Bytes of paths that are told at most.
const MAX_TOLD: usize = 64 << 20;
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
pub(super) fn is_of_the_disk(error: &Error) -> bool {
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
        Walk::new(&was, &is, report, told, budget).run()
    });
    match ended {
        Err(e) if is_of_the_disk(&e) => {
            report.unread = Some(e.to_string());
            Ok(())
        }
        ended => ended,
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
