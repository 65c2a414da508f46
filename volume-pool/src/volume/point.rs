//! A point in time: a volume as it was at one instant, for a capture to read while the guest goes on writing.
//!
//! ```text
//! guest's write ─▶ is a block of it still to be captured? ── yes ─▶ what it held is put aside ─▶ data file
//!                                                            no ────────────────────────────────▶
//! capture       ─▶ reads the data file, then looks which blocks were put aside meanwhile, and reads those there
//! ```
//! What has changed since the last capture is of the point in time, and counted anew from there on. If the capture
//! fails it is counted together again. Nothing of it survives this process: what the maps on disk say is only
//! taken back once the capture [has what they say](Volume::captured).

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use blockio::BlockFile;
use image::{Digest, Error, Kind, Result};
use tokio::sync::Notify;

use super::aside::Aside;
use super::{Volume, io};
use crate::layout::{BLOCK, Layout};
use crate::maps::Bits;
use crate::since::Since;
use crate::unshared::Unshared;

/// How often what is to be captured is waited for before the instant is fixed. A guest that all the while writes parts
/// of chunks that are not here waits for the last of them itself.
const ROUNDS: usize = 4;

/// What a capture reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Captured {
    /// What has changed since the last one, see [`Volume::since`], and the chunk in which this byte lies: where an image
    /// of another size ends within a chunk, that chunk is another one, whether it was written to or not.
    Changed {
        /// The last byte of the shorter of the two.
        edge: Option<u64>,
    },
    /// All.
    All,
}

/// A volume as it was at one instant.
#[derive(Debug)]
pub struct PointInTime {
    layout: Layout,
    /// Chunks that the capture reads.
    chunks: Bits,
    /// Those of which nothing need be kept any more.
    done: RefCell<Bits>,
    aside: Arc<Aside>,
    /// Blocks on their way there.
    moving: RefCell<Vec<Range<u64>>>,
    moved: Notify,
}

/// Blocks on their way aside, until dropped. If that is before they have arrived the point in time is lost: they may
/// be written later, when they hold something else.
struct Moving<'a> {
    point: &'a PointInTime,
    blocks: Range<u64>,
    arrived: bool,
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.point.moving.borrow_mut().retain(|blocks| *blocks != self.blocks);
        if !self.arrived {
            let what = "a write of the guest was given up in the middle";
            self.point.aside.fail(Error::new(Kind::Retry, what));
        }
        self.point.moved.notify_waiters();
    }
}

enum Next<'a> {
    Move(Moving<'a>),
    Wait,
    Done,
}

impl PointInTime {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.layout.size()
    }

    /// The bytes that are to be read: whole chunks, in rising order.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        ranges_of(&self.layout, &self.chunks)
    }

    /// What was put aside, for other threads, too.
    pub fn aside(&self) -> &Arc<Aside> {
        &self.aside
    }

    /// Nothing of a range is read any more.
    pub fn done(&self, range: &Range<u64>) {
        self.done.borrow_mut().set(self.layout.chunks_of(range));
    }

    /// Whether a block is to be kept as it was, and was not put aside.
    fn wants(&self, block: u64) -> bool {
        let at = block * BLOCK;
        let chunks = self.layout.chunks_of(&(at..at + 1));
        self.chunks.all(chunks.clone()) && !self.done.borrow().all(chunks) && !self.aside.has(block)
    }

    /// The first blocks of a range that are to be kept, and were not put aside.
    fn wanted(&self, blocks: Range<u64>) -> Option<Range<u64>> {
        if self.aside.has_failed() {
            return None;
        }
        let blocks = blocks.start..blocks.end.min(self.layout.blocks());
        let start = blocks.clone().find(|block| self.wants(*block))?;
        let end = (start..blocks.end).find(|block| !self.wants(*block)).unwrap_or(blocks.end);
        Some(start..end)
    }

    fn next(&self, blocks: &Range<u64>) -> Next<'_> {
        let Some(blocks) = self.wanted(blocks.clone()) else { return Next::Done };
        let mut moving = self.moving.borrow_mut();
        if moving.iter().any(|m| m.start < blocks.end && blocks.start < m.end) {
            return Next::Wait;
        }
        moving.push(blocks.clone());
        Next::Move(Moving { point: self, blocks, arrived: false })
    }
}

/// The bytes of chunks.
fn ranges_of(layout: &Layout, chunks: &Bits) -> Vec<Range<u64>> {
    runs_of(chunks, 0..chunks.len())
        .map(|run| layout.bytes_of(run.start).start..layout.bytes_of(run.end - 1).end)
        .collect()
}

/// The stretches of set bits.
fn runs_of(bits: &Bits, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = bits.next_set(at, range.end)?;
        at = bits.next_clear(start, range.end).unwrap_or(range.end);
        Some(start..at)
    })
}

impl Volume {
    /// Brings what a capture needs that is not here. What a guest changes meanwhile and later it waits for itself.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] while there is a point in time; those of what has to be fetched.
    pub async fn prepare_point(&self, what: Captured) -> Result<()> {
        self.has_no_point()?;
        for _ in 0..ROUNDS {
            let absent = self.absent_of(&self.to_capture(what));
            if absent.is_empty() {
                break;
            }
            for range in absent {
                self.arrive(&range).await?;
            }
        }
        Ok(())
    }

    /// Fixes a point in time: what every write that has returned has written, and nothing of those that begin later.
    /// This takes as long as the writes that are under way. `file` is empty, and of nobody else; what guests overwrite
    /// is kept there.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] while there is another.
    pub async fn fix_point(&self, what: Captured, file: BlockFile) -> Result<Rc<PointInTime>> {
        self.has_no_point()?;
        let _held = self.traffic.hold().await;
        self.has_no_point()?;
        // What was given up in the middle may still be on its way to the disk.
        self.engine.settle().await;
        let layout = self.layout.get();
        let aside = Arc::new(Aside::new(layout, file)?);
        let chunks = self.to_capture(what);
        let mut maps = self.maps.borrow_mut();
        let changed = std::mem::replace(&mut maps.changed, Bits::new(layout.blocks()));
        maps.captured = Some(changed);
        let point = Rc::new(PointInTime {
            layout,
            done: RefCell::new(Bits::new(chunks.len())),
            aside,
            chunks,
            moving: RefCell::default(),
            moved: Notify::new(),
        });
        self.point.replace(Some(Rc::clone(&point)));
        Ok(point)
    }

    fn has_no_point(&self) -> Result<()> {
        match self.point.borrow().is_some() {
            false => Ok(()),
            true => Err(Error::new(Kind::Conflict, "this volume is being captured already")),
        }
    }

    /// Chunks that a capture has to read.
    fn to_capture(&self, what: Captured) -> Bits {
        let (maps, layout) = (self.maps.borrow(), self.layout.get());
        let mut chunks = Bits::new(layout.chunks());
        match what {
            Captured::All => drop(chunks.set(0..layout.chunks())),
            Captured::Changed { edge } => {
                if let Some(edge) = edge.filter(|edge| *edge < layout.size()) {
                    chunks.set(layout.chunks_of(&(edge..edge + 1)));
                }
                for blocks in runs_of(&maps.changed, 0..layout.blocks()) {
                    let end = (blocks.end * BLOCK).min(layout.size());
                    chunks.set(layout.chunks_of(&(blocks.start * BLOCK..end)));
                }
            }
        }
        chunks
    }

    /// What of these chunks is neither here nor with the base.
    fn absent_of(&self, chunks: &Bits) -> Vec<Range<u64>> {
        let layout = self.layout.get();
        let runs = runs_of(chunks, 0..chunks.len()).flatten();
        runs.map(|chunk| layout.bytes_of(chunk)).filter(|range| !self.can_read(range)).collect()
    }

    /// The file in which a volume lies that is all here, each byte at its own place: it stays there.
    pub fn whole_file(&self) -> Option<BlockFile> {
        self.is_here(&(0..self.layout.get().size())).then(|| self.data.clone())
    }

    /// The files in which the parts of a range lie, each at its own place, when all of it is here. They hold what
    /// was there at the time of a point, but for what was put aside since: whoever reads asks for that afterwards.
    pub async fn files_of(&self, range: &Range<u64>) -> Result<Vec<(BlockFile, Range<u64>)>> {
        self.arrive(range).await?;
        let Some((base, parts)) = self.of_base(range) else {
            return Ok(vec![(self.data.clone(), range.clone())]);
        };
        let mut files = Vec::new();
        let mut at = range.start;
        for part in parts {
            if at < part.start {
                files.push((self.data.clone(), at..part.start));
            }
            at = part.end;
            files.push((base.data.clone(), part));
        }
        if at < range.end {
            files.push((self.data.clone(), at..range.end));
        }
        Ok(files)
    }

    /// Whether a write to a range would have to wait, because a point in time wants what is there and not here.
    pub(super) fn point_lacks(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let point = self.point.borrow().clone()?;
        let mut blocks = self.layout.get().blocks_of(range);
        while let Some(wanted) = point.wanted(blocks.clone()) {
            let bytes = wanted.start * BLOCK..(wanted.end * BLOCK).min(point.size());
            if !self.can_read(&bytes) {
                return Some(bytes);
            }
            blocks.start = wanted.end;
        }
        None
    }

    /// Waits until what a point in time wants of a range is here. If it cannot be had the capture fails, not the
    /// guest.
    pub(super) async fn arrive_for_point(&self, range: &Range<u64>) {
        while let Some(lacks) = self.point_lacks(range) {
            if let Err(error) = self.arrive(&lacks).await {
                self.fail_point(error);
            }
        }
    }

    /// The point in time, if there is one, is lost: whoever captures it fails with this.
    pub fn fail_point(&self, error: Error) {
        if let Some(point) = &*self.point.borrow() {
            point.aside.fail(error);
        }
    }

    /// Puts aside what a point in time wants of a range, all of which is here, before it is written to.
    pub(super) async fn put_aside(&self, range: &Range<u64>) {
        let Some(point) = self.point.borrow().clone() else { return };
        let blocks = self.layout.get().blocks_of(range);
        loop {
            let moved = point.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            match point.next(&blocks) {
                Next::Done => return,
                Next::Wait => moved.await,
                Next::Move(mut moving) => {
                    let kept = self.keep(&point.aside, &moving.blocks).await;
                    moving.arrived = true;
                    if let Err(error) = kept {
                        point.aside.fail(error.at("keeping what the guest overwrites"));
                    }
                }
            }
        }
    }

    /// Keeps blocks as they are, in memory if there is room.
    async fn keep(&self, aside: &Aside, blocks: &Range<u64>) -> Result<()> {
        let range = blocks.start * BLOCK..(blocks.end * BLOCK).min(self.layout.get().size());
        let files = self.files_of(&range).await?;
        let room = aside.room((range.end - range.start) as usize);
        if let ([(file, part)], Some(buf)) = (&files[..], room) {
            let len = buf.len();
            let (read, buf) = self.engine.read_at(file, buf, part.start).await;
            if read.map_err(io)? < len {
                return Err(io(io::ErrorKind::UnexpectedEof.into()));
            }
            aside.hold(blocks.clone(), buf);
            return Ok(());
        }
        for (file, part) in files {
            self.engine.copy_range(aside.file(), &file, part).await.map_err(io)?;
        }
        aside.copied(blocks.clone());
        Ok(())
    }

    /// Ends a capture that has made `image` of the volume, as it was at its point in time. That must have been noted
    /// where the volume is found again ([`Shelf::note_since`](crate::Shelf::note_since)): from here on changes
    /// count from there.
    pub async fn captured(&self, image: &Digest) -> Result<()> {
        self.point.replace(None);
        self.since.set(Since::Image(*image));
        self.left_open.set(0);
        let pages = {
            let mut maps = self.maps.borrow_mut();
            let Some(captured) = maps.captured.take() else { return Ok(()) };
            maps.changed.mark_dirty_like(&captured);
            maps.take_changed()
        };
        self.write_pages(pages).await
    }

    /// Counts as changed what is not known to be as in the volume's image: with what changes from here on that is all in
    /// which it may differ from that.
    pub fn also_changed(&self, unshared: &Unshared) {
        let (mut maps, layout) = (self.maps.borrow_mut(), self.layout.get());
        for range in ranges_of(&layout, &unshared.chunks) {
            maps.changed.set(layout.blocks_of(&range));
        }
    }

    /// What has changed since the last capture, in bytes: whole chunks, in rising order.
    pub fn changed_ranges(&self) -> Vec<Range<u64>> {
        ranges_of(&self.layout.get(), &self.to_capture(Captured::Changed { edge: None }))
    }

    /// The same of a capture that somebody else has fixed, while nothing is written to the volume through us: all that
    /// had changed is in the image.
    pub async fn captured_past_us(&self, image: &Digest) -> Result<()> {
        self.since.set(Since::Image(*image));
        self.left_open.set(0);
        let pages = {
            let mut maps = self.maps.borrow_mut();
            let changed =
                std::mem::replace(&mut maps.changed, Bits::new(self.layout.get().blocks()));
            maps.changed.mark_dirty_like(&changed);
            maps.take_changed()
        };
        self.write_pages(pages).await
    }

    /// Ends a capture that has come to nothing: what had changed before its point in time counts as changed.
    pub fn not_captured(&self) {
        self.point.replace(None);
        let mut maps = self.maps.borrow_mut();
        if let Some(captured) = maps.captured.take() {
            maps.changed.merge(&captured);
        }
    }
}
