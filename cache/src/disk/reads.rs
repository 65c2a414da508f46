//! Hits: frames out of segments. What lies side by side is read in one go.
//!
//! ```text
//!  wanted ─► spots ─► runs of neighbours ─► buffer, one read each ─► frames, each checked alone
//! ```
//! A frame is a slice of the buffer that it was read into, while enough buffers are free; then a copy.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;

use blockio::{Arena, BlockFile, Buf, Engine};
use bytes::Bytes;
use image::frame::MAX_FRAME;
use image::{Frame, Priority};

use super::Disk;
use super::index::Spot;
use crate::key::{Key, check_frame};

/// Reads past the page cache start and end on multiples of this, in bytes.
const SECTOR: u64 = 4096;
/// A frame of a 256 KiB chunk that did not shrink, with the sectors that it begins and ends in.
/// Neighbours are read together up to this length.
pub(super) const SLOT: usize = 66 * SECTOR as usize;
/// More reads than this need not be under way, and a processor's cache does not hold what they bring:
/// with 62 buffers a hit took a quarter more of its time than with 15 (`compare hits-disk`).
const SLOTS_MAX: usize = 32;
/// The longest frame, with the sectors that it begins and ends in.
pub(super) const LARGE_SLOT: usize = MAX_FRAME.next_multiple_of(SECTOR as usize) + SECTOR as usize;

/// By what and for whom is read.
#[derive(Clone, Copy)]
pub(crate) struct Way<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) priority: Priority,
}

/// A frame that is looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// The caller's name for it.
    pub(crate) chunk: u32,
    pub(crate) key: Key,
    pub(crate) plain_len: u32,
}

/// Frames that lie side by side, and one read gives.
#[derive(Debug)]
pub(crate) struct Run {
    file: BlockFile,
    frames: Vec<(Wanted, Spot)>,
}

impl Run {
    fn of(file: BlockFile, wanted: Wanted, spot: Spot) -> Self {
        Self { file, frames: vec![(wanted, spot)] }
    }

    /// Takes in a frame that begins where this ends, if both fit one buffer; says whether.
    fn extend(&mut self, wanted: Wanted, spot: Spot) -> bool {
        let (first, last) = self.ends();
        let follows = last.segment == spot.segment && last.range().end == spot.range().start;
        let whole = first.range().start..spot.range().end;
        let fits = follows && Window::of(whole, self.file.is_direct()).len <= SLOT;
        if fits {
            self.frames.push((wanted, spot));
        }
        fits
    }

    fn window(&self) -> Window {
        let (first, last) = self.ends();
        Window::of(first.range().start..last.range().end, self.file.is_direct())
    }

    /// The first frame's and the last one's.
    fn ends(&self) -> (Spot, Spot) {
        (self.frames[0].1, self.frames[self.frames.len() - 1].1)
    }
}

/// What has to be read for a range of a segment, in bytes.
pub(super) struct Window {
    pub(super) from: u64,
    pub(super) len: usize,
}

impl Window {
    /// Just the range; past the page cache the sectors that it lies in.
    pub(super) fn of(range: Range<u64>, direct: bool) -> Self {
        if !direct {
            return Self { from: range.start, len: (range.end - range.start) as usize };
        }
        let from = range.start - range.start % SECTOR;
        Self { from, len: (range.end.next_multiple_of(SECTOR) - from) as usize }
    }

    /// Where in what was read a range of the segment lies, or what there is of it.
    pub(super) fn within(&self, range: Range<u64>, read: usize) -> Range<usize> {
        let [start, end] = [range.start, range.end].map(|at| (at - self.from) as usize);
        start.min(read)..end.min(read)
    }
}

/// Buffers of their own that guests have: so they never wait in line behind bulk reads.
const GUEST_SLOTS: usize = 4;

/// Buffers that hits are read into, of two sizes.
pub(super) struct Buffers {
    pub(super) usual: Arena,
    guests: Arena,
    large: Arena,
}

impl Buffers {
    /// Of so many bytes in all, but at least one of each size.
    pub(super) fn new(bytes: u64) -> io::Result<Self> {
        let half = usize::try_from(bytes / 2).unwrap_or(usize::MAX);
        let arena = |slot: usize, most: usize| {
            Arena::new("cache: disk reads", slot, half.clamp(slot, most))
        };
        Ok(Self {
            usual: arena(SLOT, SLOTS_MAX * SLOT)?,
            guests: Arena::new("cache: guests' disk reads", SLOT, GUEST_SLOTS * SLOT)?,
            large: arena(LARGE_SLOT, usize::MAX)?,
        })
    }

    fn of(&self, len: usize, priority: Priority) -> &Arena {
        match priority {
            _ if len > SLOT => &self.large,
            Priority::Guest if self.usual.available() == 0 => &self.guests,
            _ => &self.usual,
        }
    }
}

impl Disk {
    /// Where frames lie, neighbours together; and the chunks that are not here.
    pub(crate) fn runs(&self, wanted: impl IntoIterator<Item = Wanted>) -> (Vec<Run>, Vec<u32>) {
        let (mut found, mut lost) = (Vec::new(), Vec::new());
        for wanted in wanted {
            match self.health.is_read().then(|| self.index.find(&wanted.key)).flatten() {
                Some(spot) => found.push((wanted, spot)),
                None => lost.push(wanted.chunk),
            }
        }
        found.sort_unstable_by_key(|(_, spot)| (spot.segment, spot.offset));
        let mut runs: Vec<Run> = Vec::new();
        for (wanted, spot) in found {
            if runs.last_mut().is_some_and(|run| run.extend(wanted, spot)) {
                continue;
            }
            match self.segments().get(&spot.segment).map(|segment| segment.file.clone()) {
                Some(file) => runs.push(Run::of(file, wanted, spot)),
                None => {
                    self.index.remove(&wanted.key, &spot);
                    lost.push(wanted.chunk);
                }
            }
        }
        (runs, lost)
    }

    /// Reads a frame and checks it as [`check_frame`] does. One that is not what it should be is
    /// forgotten; whatever goes wrong is a miss.
    pub(crate) async fn read(&self, way: Way<'_>, key: &Key, plain_len: u32) -> Option<Frame> {
        let wanted = Wanted { chunk: 0, key: *key, plain_len };
        let run = self.runs([wanted]).0.pop()?;
        self.read_run(way, run).await.pop()?.1
    }

    /// Reads frames that lie side by side, each as [`Disk::read`] does. If that fails, each is read
    /// alone: a bad sector costs the frame that it is in.
    pub(crate) async fn read_run(&self, way: Way<'_>, run: Run) -> Vec<(u32, Option<Frame>)> {
        let (bytes, window) = match self.read_window(way, &run).await {
            Ok(read) => read,
            Err(Failed::Read(_)) if run.frames.len() > 1 => {
                return self.read_one_by_one(way, run).await;
            }
            Err(failed) => {
                self.note(&failed, &run);
                return run.frames.iter().map(|(wanted, _)| (wanted.chunk, None)).collect();
            }
        };
        self.health.note_good_read();
        let judge = |(wanted, spot): &(Wanted, Spot)| {
            let frame = bytes.slice(window.within(spot.range(), bytes.len()));
            (wanted.chunk, self.judge(wanted, spot, frame, &run.file))
        };
        run.frames.iter().map(judge).collect()
    }

    async fn read_one_by_one(&self, way: Way<'_>, run: Run) -> Vec<(u32, Option<Frame>)> {
        let mut frames = Vec::new();
        for (wanted, spot) in run.frames {
            let alone = Run::of(run.file.clone(), wanted, spot);
            frames.extend(Box::pin(self.read_run(way, alone)).await);
        }
        frames
    }

    /// What lies there, or less if the file ends before.
    async fn read_window(&self, way: Way<'_>, run: &Run) -> Result<(Bytes, Window), Failed> {
        let window = run.window();
        let arena = self.buffers.of(window.len, way.priority);
        let acquired = tokio::time::timeout(self.timeout, arena.acquire()).await;
        let mut buf = acquired.map_err(|_| Failed::NoBuffer)?;
        buf.set_len(window.len);
        let read = way.engine.read_at(&run.file, buf, window.from);
        match tokio::time::timeout(self.timeout, read).await {
            Ok((Ok(_), buf)) => Ok((self.lend(arena, buf), window)),
            Ok((Err(error), _)) => Err(Failed::Read(error.to_string())),
            Err(_) => Err(Failed::NoAnswer),
        }
    }

    /// What was read, for as long as its readers like while half of the buffers are free; else a copy,
    /// so that slow readers do not keep others from the disk.
    fn lend(&self, arena: &Arena, buf: Buf) -> Bytes {
        match arena.slots() > 1 && 2 * arena.available() >= arena.slots() {
            true => Bytes::from(buf),
            false => Bytes::copy_from_slice(&buf),
        }
    }

    fn note(&self, failed: &Failed, run: &Run) {
        let path = run.file.path().display();
        let no_answer = || format!("read {path}: no answer in {:?}", self.timeout);
        match failed {
            Failed::NoBuffer => self.health.note_late_read(&no_answer()),
            Failed::NoAnswer => self.health.note_unanswered_read(&no_answer()),
            Failed::Read(error) => {
                run.frames.iter().for_each(|(wanted, spot)| self.drop_frame(&wanted.key, spot));
                self.health.note_failed_read(error);
            }
        }
    }

    /// Takes what was read for a frame, or finds out why it is none.
    fn judge(&self, wanted: &Wanted, spot: &Spot, bytes: Bytes, file: &BlockFile) -> Option<Frame> {
        let Wanted { key, plain_len, .. } = wanted;
        let frame = Frame::parse(bytes);
        match frame.and_then(|frame| check_frame(&frame, key, *plain_len).map(|()| frame)) {
            Ok(frame) => {
                self.counts.hits.fetch_add(1, Ordering::Relaxed);
                Some(frame)
            }
            Err(error) => {
                self.drop_bad(key, spot, file.path(), &error);
                None
            }
        }
    }
}

/// Why nothing was read.
enum Failed {
    /// All buffers were out for too long.
    NoBuffer,
    NoAnswer,
    Read(String),
}
