//! An image as a disk that can be read anywhere, in bounded memory: what is read is fetched, verified, and kept while there is room.
//!
//! Whoever reads does so synchronously, on a thread of its own, whose runtime it then drives. Chunks are kept by their
//! digest: what two images share is fetched once for both.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blockio::Arena;
use image::geometry::SECTION_LEN;
use image::{
    ChunkSet, ChunkSource, Decoder, Digest, Error, Geometry, Kind, Manifest, Priority, Result,
    SectionTable,
};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;
use volume_pool::Verified;

use super::chunks::Side;
use crate::patience::Patience;
use crate::pull::Watch;
use crate::pull::batch::{Batch, Deliver, Fetch};

/// Plain chunks that are kept, in bytes.
pub(super) const KEPT: usize = 64 << 20;
/// Section tables that are kept of each image: 128 KiB each at most.
const TABLES: usize = 16;

/// How far a reader is, and the way to end it.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Grows with all that it does.
    steps: AtomicU64,
    /// It waits for somebody else.
    waits: AtomicBool,
    ended: AtomicBool,
    /// Bytes of frames that came.
    received: AtomicU64,
}

impl Pace {
    /// One step more; fails when it shall end.
    pub(super) fn step(&self) -> Result<()> {
        self.steps.fetch_add(1, Ordering::Relaxed);
        match self.ended.load(Ordering::Relaxed) {
            true => Err(Error::new(Kind::Cancelled, "the comparison of files was cancelled")),
            false => Ok(()),
        }
    }

    /// Steps so far; nothing while it waits for somebody else.
    pub(super) fn steps(&self) -> Option<u64> {
        let waits = self.waits.load(Ordering::Relaxed);
        (!waits).then(|| self.steps.load(Ordering::Relaxed))
    }

    /// Bytes of frames that came.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Says whether it waits for somebody else.
    pub(super) fn set_waiting(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
    }

    /// Ends it at its next step.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// What the readers of one thread share.
pub(super) struct Desk {
    runtime: Runtime,
    local: LocalSet,
    /// Made once it is known how long chunks are.
    arena: OnceCell<Arena>,
    decoder: Rc<RefCell<Decoder>>,
    watch: Watch,
    pub(super) pace: Arc<Pace>,
    kept: RefCell<Kept>,
}

/// Chunks by their digests, each with when it was last asked for.
#[derive(Default)]
struct Kept {
    chunks: BTreeMap<Digest, (u64, Verified)>,
    now: u64,
}

impl Kept {
    fn read(&mut self, digest: &Digest, at: usize, into: &mut [u8]) -> bool {
        self.now += 1;
        let Some((asked, plain)) = self.chunks.get_mut(digest) else { return false };
        *asked = self.now;
        into.copy_from_slice(&plain[at..at + into.len()]);
        true
    }

    /// Makes room for one more.
    fn leave(&mut self, most: usize) {
        while self.chunks.len() > most {
            let oldest = self.chunks.iter().min_by_key(|(_, (asked, _))| *asked);
            let Some(digest) = oldest.map(|(digest, _)| *digest) else { return };
            self.chunks.remove(&digest);
        }
    }
}

impl Desk {
    pub(super) fn new(pace: Arc<Pace>, runtime: Runtime) -> Result<Self> {
        Ok(Self {
            runtime,
            local: LocalSet::new(),
            arena: OnceCell::new(),
            decoder: Rc::new(RefCell::new(Decoder::new()?)),
            watch: Watch::default(),
            pace,
            kept: RefCell::default(),
        })
    }

    /// Makes room for chunks of at most so many bytes: for `room` bytes of them.
    pub(super) fn make_room(&self, chunk: usize, room: usize) -> Result<()> {
        let arena = Arena::new("files of images", chunk, room);
        let arena = arena.map_err(|e| Error::io("memory for the comparison of files", e))?;
        // It is made once: what is there already is as good.
        let _ = self.arena.set(arena);
        Ok(())
    }

    fn arena(&self) -> Result<&Arena> {
        self.arena.get().ok_or_else(|| Error::new(Kind::Full, "there is no room for chunks"))
    }

    /// Waits for something, and lets what belongs to it go on meanwhile.
    pub(super) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.pace.set_waiting(true);
        let done = self.local.block_on(&self.runtime, work);
        self.pace.set_waiting(false);
        done
    }
}

/// A disk that can be read.
pub(super) trait ReadAt {
    /// Its bytes.
    fn size(&self) -> u64;

    /// Its logical sector in bytes.
    fn sector(&self) -> u32;

    /// Reads all of `into`, which must lie within the disk.
    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<()>;
}

/// An image on a desk.
pub(super) struct View<S> {
    desk: Rc<Desk>,
    source: S,
    image: Digest,
    trace: u128,
    manifest: Arc<Manifest>,
    /// Those asked for last, the last one first.
    tables: RefCell<Vec<(u32, Option<Arc<SectionTable>>)>>,
}

impl<S: ChunkSource> View<S> {
    pub(super) fn open(desk: Rc<Desk>, source: S, image: Digest, trace: u128) -> Result<Self> {
        let manifest = desk.wait(Side { source: &source, image, trace }.manifest())?;
        Ok(Self { desk, source, image, trace, manifest, tables: RefCell::default() })
    }

    pub(super) fn into_source(self) -> S {
        self.source
    }

    /// Bytes of its chunks.
    pub(super) fn chunk(&self) -> usize {
        self.geometry().chunk_len()
    }

    fn geometry(&self) -> Geometry {
        *self.manifest.geometry()
    }

    /// The table of a section; none for one of zeros.
    fn table(&self, section: u32) -> Result<Option<Arc<SectionTable>>> {
        let mut tables = self.tables.borrow_mut();
        if let Some(at) = tables.iter().position(|(of, _)| *of == section) {
            tables[..=at].rotate_right(1);
            return Ok(tables[0].1.clone());
        }
        let side = Side { source: &self.source, image: self.image, trace: self.trace };
        let table = self.desk.wait(side.table(&self.manifest, section))?;
        tables.insert(0, (section, table.clone()));
        tables.truncate(TABLES);
        Ok(table)
    }

    /// Reads a part of one chunk.
    fn read_chunk(&self, section: u32, chunk: u32, at: usize, into: &mut [u8]) -> Result<()> {
        let table = self.table(section)?;
        let digest = table.as_ref().and_then(|t| t.digests().get(chunk as usize).copied());
        let (Some(table), Some(digest)) = (table, digest.filter(|digest| !digest.is_zero())) else {
            into.fill(0);
            return Ok(());
        };
        let mut kept = self.desk.kept.borrow_mut();
        if kept.read(&digest, at, into) {
            return Ok(());
        }
        // One slot is needed for what comes.
        kept.leave(self.desk.arena()?.slots().saturating_sub(2));
        let plain = self.fetch(section, chunk, table)?;
        let now = kept.now;
        kept.chunks.insert(digest, (now, plain));
        kept.read(&digest, at, into);
        Ok(())
    }

    fn fetch(&self, section: u32, chunk: u32, table: Arc<SectionTable>) -> Result<Verified> {
        let fetch = Fetch {
            source: &self.source,
            image: self.image,
            geometry: self.geometry(),
            arena: self.desk.arena()?,
            decoder: Rc::clone(&self.desk.decoder),
            rate: None,
            watch: &self.desk.watch,
            trace: self.trace,
            patience: Patience::new,
        };
        let chunks = ChunkSet::of(table.chunks(), |c| c == chunk);
        let batch = Batch { section, table, chunks, priority: Priority::Background };
        let taken = Taken::default();
        let fetched = self.desk.wait(fetch.batch(batch, &taken));
        let received = self.desk.watch.progress().received;
        self.desk.pace.received.store(received, Ordering::Relaxed);
        fetched?;
        let none = || Error::new(Kind::Retry, "a chunk was delivered, and is not there");
        taken.0.into_inner().ok_or_else(none)
    }
}

impl<S: ChunkSource> ReadAt for View<S> {
    fn size(&self) -> u64 {
        self.geometry().size()
    }

    fn sector(&self) -> u32 {
        self.geometry().sector()
    }

    fn read_at(&self, mut at: u64, mut into: &mut [u8]) -> Result<()> {
        let geometry = self.geometry();
        if at.checked_add(into.len() as u64).is_none_or(|end| end > geometry.size()) {
            let what = format!("byte {at}: a read of {} bytes goes behind the end", into.len());
            return Err(Error::new(Kind::Corrupt, what));
        }
        while !into.is_empty() {
            self.desk.pace.step()?;
            let (section, within) = ((at / SECTION_LEN) as u32, at % SECTION_LEN);
            let chunk = (within >> geometry.chunk_log2()) as u32;
            let offset = (within % geometry.chunk_len() as u64) as usize;
            let len = into.len().min(geometry.chunk_len() - offset);
            let (some, rest) = into.split_at_mut(len);
            self.read_chunk(section, chunk, offset, some)
                .map_err(|e| e.at(format!("image {}: section {section}", self.image)))?;
            (at, into) = (at + len as u64, rest);
        }
        Ok(())
    }
}

/// Takes the one chunk that was asked for.
#[derive(Default)]
struct Taken(RefCell<Option<Verified>>);

impl Deliver for Taken {
    async fn deliver(&self, _: u32, _: u32, plain: Verified) -> Result<()> {
        *self.0.borrow_mut() = Some(plain);
        Ok(())
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
