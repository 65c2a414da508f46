//! The threads of an import: one reads, some hash, some compress.
//!
//! ```text
//!            bounded          section complete              wanted chunks           room in bytes
//! reader ──▶ pieces ──▶ hashers ──▶ events ──▶ (offer) ──▶ jobs ──▶ encoders ──▶ frames ──▶ (chunk)
//!    ▲                                                                  │
//!    └───────────────────────── buffers of the arena ◀──────────────────┘
//! ```
//! What is in brackets runs on the caller's runtime. Hashers and encoders are different threads, one
//! of each per core (in the background, one of each): a source that is slow to read then never keeps a core from compressing, and
//! hashing, which is cheap, happens right after the read, while the bytes are in the cache.
//!
//! It cannot get stuck for want of buffers: there are enough for one whole section, sections are read
//! in order, and one that has been read to its end is complete at once. So whenever the reader waits
//! for a buffer, either a section is complete and will give its own back, or there is a free one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use blockio::{Arena, Buf};
use futures::executor::block_on;
use image::{
    ChunkSet, Digest, Domain, Encoder, Error, Frame, Geometry, Kind, Result, SectionTable,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::queue::Queue;
use super::reader;
use super::salvage::{self, Skipped};
use super::section::{Hashed, Held, Open, Plain};
use super::{FRAME_ROOM, ImportOptions, Pace, called_off};
use crate::progress::Progress;
use crate::source::{Content, Disk, changed};

/// While less than one in so many of a section's chunks must be sent, what is read of the next ones is not kept. With
/// a quarter the second reading, mostly from the page cache, costs less than the memory (`compare save`).
const MOSTLY_KNOWN: u64 = 4;
/// What is read at a time when nobody waits for it, in bytes. Not every system lets others have the core before a call has
/// ended (`PREEMPT_NONE`), and one of 256 KiB took up to 3 ms of a cold page cache (`perf sched` of a capture).
const SHORT: usize = 64 << 10;

/// What the threads tell the runtime.
pub(super) enum Event {
    /// A section's digests are known.
    Hashed(Hashed),
    /// All has been read: this is the size of the disk, and so many sections were begun.
    End {
        /// In bytes.
        size: u64,
        /// Each of them is, or was, in an event.
        sections: u32,
    },
}

/// A piece on its way to be hashed.
pub(super) struct HashJob {
    pub(super) section: Arc<Open>,
    pub(super) first_chunk: u32,
    pub(super) buf: Buf,
    /// Where to read it from first, if the reader did not.
    pub(super) fill: Option<(Arc<dyn Disk>, u64)>,
}

struct EncodeJob {
    section: u32,
    chunk: u32,
    digest: Digest,
    plain: Kept,
    done: mpsc::UnboundedSender<Encoded>,
}

/// Where the bytes of a chunk are that must be sent.
enum Kept {
    /// In memory since they were read.
    Here(Plain),
    /// On the disk only.
    There(Arc<dyn Disk>, Taken),
}

/// How the digest of a chunk that is not in memory came about.
#[derive(Clone, Copy)]
enum Taken {
    /// The chunk was read.
    Read,
    /// It is that of the image before, or of an earlier try, and should have been stored.
    Stored,
}

/// A frame on its way to the sink.
pub(super) struct Encoded {
    /// The chunk's number in its section.
    pub(super) chunk: u32,
    /// The frame.
    pub(super) frame: Frame,
    /// Its share of the room for frames; given back when dropped.
    pub(super) room: OwnedSemaphorePermit,
}

/// What all threads share.
pub(super) struct Shared {
    pub(super) arena: Arena,
    /// What the image is cut like; for a stream of unknown size only the cut counts.
    pub(super) geometry: Geometry,
    pub(super) domain: Domain,
    pub(super) progress: Arc<Progress>,
    pub(super) background: bool,
    pub(super) pace: Option<Pace>,
    skipped: Option<Arc<Skipped>>,
    pub(super) pieces: Queue<HashJob>,
    jobs: Queue<EncodeJob>,
    room: Arc<Semaphore>,
    /// Whether what is read is kept until it is known whether it must be sent. Where most of it is known already it is
    /// not: what is to be sent is read once more, and the rest takes neither memory nor the processors' caches.
    keep: AtomicBool,
    disk: Option<Arc<dyn Disk>>,
    events: mpsc::UnboundedSender<Event>,
    failed: mpsc::Sender<Error>,
}

/// The threads, for as long as the import wants them. Dropping it calls them off; they end as soon
/// as the read they are in has ended.
pub(super) struct Crew {
    shared: Arc<Shared>,
    failures: mpsc::Receiver<Error>,
}

impl Crew {
    /// Starts to read, which streams are from front to back, and of disks these ranges; and to hash. If most of it is
    /// expected to be new it is kept at first.
    pub(super) fn start(
        content: Content,
        geometry: Geometry,
        piece: usize,
        ranges: Vec<Range<u64>>,
        expects_new: bool,
        options: &ImportOptions,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Event>)> {
        // One who waits for nobody leaves the other cores alone.
        let workers = if options.background { 1 } else { options.workers.get() };
        let arena = Arena::new("import", piece, options.memory_bytes())
            .map_err(|e| Error::io("memory for an import", e))?;
        let (events, inbox) = mpsc::unbounded_channel();
        let (failed, failures) = mpsc::channel(1);
        let disk = match &content {
            Content::Disk(disk) => Some(Arc::clone(disk)),
            Content::Stream(_) => None,
        };
        let shared = Arc::new(Shared {
            arena,
            keep: AtomicBool::new(expects_new || disk.is_none()),
            disk,
            geometry,
            domain: options.domain,
            progress: Arc::clone(&options.progress),
            background: options.background,
            pace: options.pace.clone(),
            skipped: options.skipped.clone(),
            pieces: Queue::new(2 * workers),
            // As many as there are buffers, at most.
            jobs: Queue::new(usize::MAX),
            room: Arc::new(Semaphore::new(FRAME_ROOM)),
            events,
            failed,
        });
        let crew = Self { shared, failures };
        let engine = options.engine;
        crew.spawn("forebay-read", move |shared| reader::run(shared, content, ranges, engine))?;
        for _ in 0..workers {
            crew.spawn("forebay-hash", hash)?;
            crew.spawn("forebay-zstd", encode)?;
        }
        Ok((crew, inbox))
    }

    fn spawn(
        &self,
        name: &str,
        work: impl FnOnce(&Shared) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (shared, span) = (Arc::clone(&self.shared), tracing::Span::current());
        let work = move || {
            let _of = span.enter();
            if shared.background {
                blockio::in_background();
            }
            let done = catch_unwind(AssertUnwindSafe(|| work(&shared)));
            let died = || Err(Error::new(Kind::Io, "a thread of the import died: see the log"));
            if let Err(error) = done.unwrap_or_else(|_| died()) {
                // Only the first error counts.
                let _ = shared.failed.try_send(error);
            }
        };
        let spawned = thread::Builder::new().name(name.into()).spawn(work);
        spawned.map(drop).map_err(|e| Error::io("starting a thread", e))
    }

    /// The first error of any thread; waits for ever if there is none.
    pub(super) async fn failure(&mut self) -> Error {
        match self.failures.recv().await {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// What the section futures need.
    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.pieces.close();
        self.shared.jobs.close();
        self.shared.room.close();
    }
}

impl Shared {
    pub(super) fn tell(&self, event: Event) {
        // Nobody there: the import is over.
        let _ = self.events.send(event);
    }

    /// Lets go of a section; it is told of when it was the last reference.
    pub(super) fn release(&self, section: Arc<Open>) {
        if let Some(hashed) = section.release(self.domain) {
            self.tell(Event::Hashed(hashed));
        }
    }

    /// Has the wanted chunks of a section compressed, and lets go of the others. As many frames will come out as are
    /// wanted, unless the import ends before. `read` is what was read of the section, and `held` of it what is in memory.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] if chunks are wanted that were not offered.
    pub(super) fn encode(
        &self,
        section: u32,
        wanted: &ChunkSet,
        table: &SectionTable,
        read: &SectionTable,
        held: Vec<Held>,
    ) -> Result<mpsc::UnboundedReceiver<Encoded>> {
        let is_in =
            |t: &SectionTable, c: u32| t.digests().get(c as usize).is_some_and(|d| !d.is_zero());
        if let Some(chunk) = wanted.iter().find(|chunk| !is_in(table, *chunk)) {
            let what = format!("the receiver asks for chunk {chunk}, which was not offered");
            return Err(Error::new(Kind::Invalid, what));
        }
        // What else was read, for it lies beside that, need not be what the image has there.
        let is_read = |c: u32| {
            is_in(read, c) && read.digests().get(c as usize) == table.digests().get(c as usize)
        };
        let was_read = (0..read.chunks()).filter(|chunk| is_read(*chunk)).count() as u64;
        let new = wanted.iter().filter(|chunk| is_read(*chunk)).count() as u64;
        self.progress.known(was_read - new);
        if was_read > 0 && self.disk.is_some() {
            self.keep.store(new * MOSTLY_KNOWN > was_read, Ordering::Relaxed);
        }
        let (done, frames) = mpsc::unbounded_channel();
        let mut here: BTreeMap<u32, Plain> = held
            .into_iter()
            .filter(|held| wanted.contains(held.chunk) && is_read(held.chunk))
            .map(|held| (held.chunk, held.plain))
            .collect();
        for chunk in wanted.iter() {
            let plain = match (here.remove(&chunk), &self.disk) {
                (Some(plain), _) => Kept::Here(plain),
                (None, Some(disk)) if is_read(chunk) => Kept::There(disk.clone(), Taken::Read),
                (None, Some(disk)) => Kept::There(disk.clone(), Taken::Stored),
                // A stream is kept; only one that is over has nothing left.
                (None, None) => return Err(called_off()),
            };
            let digest = table.digests()[chunk as usize];
            let job = EncodeJob { section, chunk, digest, plain, done: done.clone() };
            if self.jobs.push(job).is_err() {
                break;
            }
        }
        Ok(frames)
    }

    /// Reads what is at `offset`, by itself.
    fn read(
        &self,
        disk: &dyn Disk,
        buf: &mut [u8],
        offset: u64,
        skipped: Option<&Skipped>,
    ) -> Result<()> {
        let (by, at_a_time): (salvage::Read, _) = match self.background {
            true => (|disk, buf, at| disk.read_once(buf, at), SHORT),
            false => (|disk, buf, at| disk.read(buf, at), buf.len().max(1)),
        };
        let mut parts = (offset..).step_by(at_a_time).zip(buf.chunks_mut(at_a_time));
        parts.try_for_each(|(at, part)| salvage::read(by, disk, part, at, skipped))
    }

    /// Reads a chunk that is not in memory.
    fn read_again(&self, job: &EncodeJob, disk: &dyn Disk, taken: Taken) -> Result<Vec<u8>> {
        let EncodeJob { section, chunk, digest, .. } = job;
        let mut plain = vec![0; self.geometry.chunk_len_at(*section, *chunk)];
        // What was skipped then is skipped now; what the store has lost was not.
        let skipped = self.skipped.as_deref().filter(|_| matches!(taken, Taken::Read));
        self.read(disk, &mut plain, self.geometry.chunk_start(*section, *chunk), skipped)?;
        if Digest::of_chunk(&plain) == *digest {
            return Ok(plain);
        }
        let error = match taken {
            Taken::Read => changed(),
            Taken::Stored => {
                let what = "the store has lost it, and it was taken for unchanged and is not as it was: save again, \
                            and have all read (`--all`)";
                Error::new(Kind::Corrupt, what)
            }
        };
        Err(error.at(format!("section {section}: chunk {chunk}")))
    }
}

/// What a hasher does until it is called off.
fn hash(shared: &Shared) -> Result<()> {
    while let Some(HashJob { section, first_chunk, mut buf, fill }) = shared.pieces.pop() {
        if let Some((disk, offset)) = fill {
            shared.read(&*disk, &mut buf, offset, shared.skipped.as_deref())?;
        }
        shared.progress.read(buf.len());
        section.hash(first_chunk, buf, shared.keep.load(Ordering::Relaxed));
        shared.release(section);
    }
    Ok(())
}

/// What an encoder does until it is called off.
fn encode(shared: &Shared) -> Result<()> {
    let mut encoder = Encoder::new()?;
    while let Some(job) = shared.jobs.pop() {
        let frame = match &job.plain {
            Kept::Here(plain) => encoder.encode(shared.domain, job.digest, plain.bytes()),
            Kept::There(disk, taken) => {
                let plain = shared.read_again(&job, disk.as_ref(), *taken)?;
                encoder.encode(shared.domain, job.digest, &plain)
            }
        };
        let EncodeJob { chunk, plain, done, .. } = job;
        drop(plain);
        let len = frame.bytes().len() as u32;
        let Ok(room) = block_on(Arc::clone(&shared.room).acquire_many_owned(len)) else {
            break;
        };
        // Nobody there: the import is over.
        let _ = done.send(Encoded { chunk, frame, room });
    }
    Ok(())
}
