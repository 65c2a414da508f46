//! Records what a guest touches when it starts: each chunk of the image once, in order.
//!
//! A chunk counts when it is read, and when a write covers part of a block only: then the rest of the block is
//! needed. Whether it is here already says nothing of the guest, so that is not asked: what a trace brings ahead is
//! recorded as before.
//!
//! It begins with the guest's first I/O, and ends when nothing new was touched for a while, or after a while in
//! all, or when the trace is full. [`Recording`] is pure: times come in as arguments.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use image::trace::MAX_TOUCHES;
use image::{BootTrace, Digest, Error, Kind, Result, Touch};
use tokio::sync::Notify;
use volume_pool::{BLOCK, Volume};

use crate::daemon::Grid;
use crate::rate::{RealTime, Time};

/// How long a guest touches nothing new when it has started: longer than most of its waits for others.
const QUIET: Duration = Duration::from_secs(10);
/// How long a start takes at most.
const LONGEST: Duration = Duration::from_secs(180);
/// How often placement is told of a recording, and the first pause; the next ones are four times as long.
const TELL_TRIES: u32 = 6;
const TELL_PAUSE: Duration = Duration::from_secs(1);

/// What was touched so far.
#[derive(Debug)]
struct Recording {
    chunk_log2: u8,
    /// Chunks of the image.
    chunks: u64,
    seen: BTreeSet<u64>,
    touches: Vec<Touch>,
    /// When the guest first did something.
    first: Option<Duration>,
    /// When it last touched something new, or waited for it.
    last: Duration,
    /// The volume was taken from it.
    stopped: bool,
}

impl Recording {
    fn new(chunk_log2: u8, chunks: u64) -> Self {
        let (seen, touches) = (BTreeSet::new(), Vec::new());
        Self {
            chunk_log2,
            chunks,
            seen,
            touches,
            first: None,
            last: Duration::ZERO,
            stopped: false,
        }
    }

    /// The guest reads a range of bytes. Whether that is the first that it does.
    fn read(&mut self, range: Range<u64>, now: Duration) -> bool {
        let begins = self.begin(now);
        self.touch(range, now);
        begins
    }

    /// The guest writes a range of bytes: of blocks that it covers in part the rest is needed.
    fn write(&mut self, range: Range<u64>, now: Duration) -> bool {
        let begins = self.begin(now);
        for edge in [range.start, range.end] {
            if !edge.is_multiple_of(BLOCK) {
                self.touch(edge..edge + 1, now);
            }
        }
        begins
    }

    fn begin(&mut self, now: Duration) -> bool {
        if self.first.is_some() {
            return false;
        }
        (self.first, self.last) = (Some(now), now);
        true
    }

    fn touch(&mut self, range: Range<u64>, now: Duration) {
        let chunks = range.start >> self.chunk_log2..range.end.div_ceil(1 << self.chunk_log2);
        let at = self.first.map_or(0, |first| now.saturating_sub(first).as_millis()) as u32;
        for chunk in chunks.start..chunks.end.min(self.chunks) {
            if self.touches.len() == MAX_TOUCHES {
                break;
            }
            if self.seen.insert(chunk) {
                self.touches.push(Touch { chunk, at, seen: 1 });
                self.last = now;
            }
        }
    }

    /// When it ends if nothing else happens; never before the guest has begun.
    fn end(&self) -> Option<Duration> {
        if self.stopped {
            return Some(self.last);
        }
        let first = self.first?;
        match self.touches.len() < MAX_TOUCHES {
            true => Some((self.last + QUIET).min(first + LONGEST)),
            false => Some(self.last),
        }
    }

    /// The guest waits for something: that it touches nothing new means nothing.
    fn waits(&mut self, now: Duration) {
        self.last = self.last.max(now);
    }
}

/// Whether the start of a volume's guest is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// No.
    Unseen,
    /// If nobody has used the volume before.
    First,
    /// Yes.
    Recorded,
}

/// The recording of one volume's guest. It costs a look into a set for each request, and nothing when it is over.
#[derive(Debug)]
pub(super) struct Recorder {
    image: Digest,
    time: RealTime,
    recording: RefCell<Option<Recording>>,
    /// The guest has done something for the first time, or the recording has ended.
    changed: Notify,
}

impl Recorder {
    /// Of a volume, if it is to be recorded and has an image.
    pub(super) fn of(volume: &Volume, start: Start) -> Option<Self> {
        let wanted = match start {
            Start::Unseen => false,
            Start::First => volume.was_fresh(),
            Start::Recorded => true,
        };
        let identity = volume.identity();
        let base = identity.base.filter(|_| wanted)?;
        Some(Self::new(base.image, identity.chunk_log2, volume.image_chunks()))
    }

    /// Of a volume of an image with so many chunks.
    fn new(image: Digest, chunk_log2: u8, chunks: u64) -> Self {
        let recording = RefCell::new(Some(Recording::new(chunk_log2, chunks)));
        Self { image, time: RealTime::start(), recording, changed: Notify::new() }
    }

    /// The guest reads.
    pub(super) fn read(&self, range: Range<u64>) {
        self.note(|recording, now| recording.read(range, now));
    }

    /// The guest writes.
    pub(super) fn write(&self, range: Range<u64>) {
        self.note(|recording, now| recording.write(range, now));
    }

    fn note(&self, note: impl FnOnce(&mut Recording, Duration) -> bool) {
        if let Some(recording) = &mut *self.recording.borrow_mut()
            && note(recording, self.time.now())
        {
            self.changed.notify_waiters();
        }
    }

    /// Whether the guest has done anything yet.
    pub(super) fn has_begun(&self) -> bool {
        self.recording.borrow().as_ref().is_some_and(|recording| recording.first.is_some())
    }

    /// The volume is taken from the guest: it touches nothing any more.
    pub(super) fn stop(&self) {
        if let Some(recording) = &mut *self.recording.borrow_mut() {
            recording.stopped = true;
        }
        self.changed.notify_waiters();
    }

    /// Returns when the guest has started. `waits` says whether it waits for chunks.
    pub(super) async fn over(&self, waits: impl Fn() -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = self.time.now();
            let end = match &mut *self.recording.borrow_mut() {
                None => return,
                Some(recording) => {
                    if waits() {
                        recording.waits(now);
                    }
                    recording.end()
                }
            };
            match end {
                Some(end) if end <= now => return,
                Some(end) => tokio::select! {
                    () = changed => {}
                    () = self.time.sleep(end - now) => {}
                },
                None => changed.await,
            }
        }
    }

    /// Waits until the guest has started, and tells placement of it. What cannot be told is dropped: there will
    /// be other starts.
    pub(super) async fn run<G: Grid>(self: Rc<Self>, volume: Weak<Volume>, grid: Arc<G>) {
        self.over(|| volume.upgrade().is_some_and(|volume| volume.is_waited_for())).await;
        let recording = match self.take() {
            None => return,
            Some(Ok(recording)) => recording,
            Some(Err(error)) => return tracing::error!(%error, "a recording of a start is lost"),
        };
        let mut pause = TELL_PAUSE;
        for _ in 0..TELL_TRIES {
            match grid.add_trace(&recording).await {
                Ok(()) => {
                    let (image, chunks) = (recording.image(), recording.touches().len());
                    return tracing::info!(%image, chunks, "a start was recorded");
                }
                Err(error) if refused(&error) => {
                    return tracing::warn!(%error, "a recording of a start is not taken");
                }
                // Of a grid whose `up` is away nothing is known on its own machine.
                Err(error) => tracing::info!(%error, "a recording of a start is told later"),
            }
            self.time.sleep(pause).await;
            pause *= 4;
        }
        tracing::warn!("a recording of a start is dropped: nobody has taken it");
    }

    /// Ends the recording: nothing if it was ended before, or nothing was touched.
    fn take(&self) -> Option<Result<BootTrace>> {
        let recording = self.recording.borrow_mut().take()?;
        self.changed.notify_waiters();
        let some = !recording.touches.is_empty();
        some.then(|| Ok(BootTrace::new(self.image, 1, recording.touches)?))
    }
}

fn refused(error: &Error) -> bool {
    matches!(error.kind(), Kind::Invalid | Kind::Denied | Kind::Unsupported)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;
    const CHUNK: u64 = 256 << 10;

    fn touched(recording: &Recording) -> Vec<(u64, u32)> {
        recording.touches.iter().map(|t| (t.chunk, t.at)).collect()
    }

    #[test]
    fn each_chunk_counts_once_from_the_guests_first_io_on() {
        let mut recording = Recording::new(18, 100);
        assert_eq!(recording.end(), None);
        assert!(recording.write(0..8192, MS(5000)), "the first, though no chunk is needed");
        assert!(!recording.read(7 * CHUNK..7 * CHUNK + 512, MS(5003)));
        recording.read(3 * CHUNK - 512..3 * CHUNK + 512, MS(5010));
        recording.read(3 * CHUNK..4 * CHUNK, MS(5020));
        // Behind the image, and at its end.
        recording.read(99 * CHUNK..105 * CHUNK, MS(5030));
        assert_eq!(touched(&recording), [(7, 3), (2, 10), (3, 10), (99, 30)]);
        assert_eq!(recording.end(), Some(MS(15_030)));
    }

    #[test]
    fn a_write_touches_what_it_needs_at_its_edges() {
        let mut recording = Recording::new(18, 100);
        recording.write(CHUNK..5 * CHUNK, MS(0));
        assert_eq!(touched(&recording), []);
        recording.write(6 * CHUNK + 512..9 * CHUNK - 512, MS(1));
        assert_eq!(touched(&recording), [(6, 1), (8, 1)]);
        recording.write(10 * CHUNK..10 * CHUNK + 512, MS(2));
        assert_eq!(touched(&recording), [(6, 1), (8, 1), (10, 2)]);
    }

    #[test]
    fn it_ends_when_the_guest_is_quiet_or_takes_too_long_or_touches_too_much() {
        let mut recording = Recording::new(14, u64::MAX >> 14);
        recording.read(0..512, MS(1000));
        assert_eq!(recording.end(), Some(MS(11_000)));
        recording.read(0..512, MS(9000));
        assert_eq!(recording.end(), Some(MS(11_000)), "nothing new");
        recording.waits(MS(10_900));
        assert_eq!(recording.end(), Some(MS(20_900)), "a guest that waits is not quiet");
        recording.read(1 << 20..(1 << 20) + 512, MS(178_000));
        assert_eq!(recording.end(), Some(MS(181_000)));
        recording.read(0..1 << 50, MS(178_001));
        assert_eq!(recording.touches.len(), MAX_TOUCHES);
        assert_eq!(recording.end(), Some(MS(178_001)));
    }

    #[tokio::test]
    async fn who_waits_for_its_end_is_told() {
        let recorder = Recorder::new(Digest::of_chunk(b"i"), 18, 10);
        assert!(!recorder.has_begun());
        recorder.read(0..512);
        assert!(recorder.has_begun());
        tokio::join!(recorder.over(|| false), async { recorder.stop() });
        let trace = recorder.take().unwrap().unwrap();
        assert_eq!(trace.touches().len(), 1);
        recorder.read(CHUNK..CHUNK + 512);
        recorder.over(|| true).await;
        assert!(recorder.take().is_none());
        let unused = Recorder::new(Digest::of_chunk(b"i"), 18, 10);
        unused.stop();
        unused.over(|| true).await;
        assert!(unused.take().is_none());
    }
}
