//! From a disk to an image, in one pass.
//!
//! ```text
//! read → zero-scan → BLAKE3 → section table → offer → zstd of the wanted chunks → CRC32C, frame
//!      → chunk → seal → … → commit
//! ```
//! Memory is bounded whatever the size of the disk: plain bytes lie in an arena of
//! [`ImportOptions::memory`] bytes, frames take [`FRAME_ROOM`] and one more per worker. Chunks of
//! zeros are let go of when they have been seen, chunks that the receiver has when it says so, the
//! others when they have been compressed. Where most is known to the receiver nothing is kept, and what it
//! wants is read once more. Sections of zeros are never offered.
//!
//! A stream's size is known only at its end, but a session needs a geometry at its start: it is
//! opened for the largest disk there is, and the manifest that is committed has the true size. The
//! sink checks tables against the manifest, not against the plan.

mod changes;
mod crew;
mod queue;
mod reader;
mod salvage;
mod section;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;

use blockio::EngineChoice;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use image::error::At;
use image::geometry::{DEFAULT_CHUNK_LOG2, MAX_DISK, SECTION_LEN};
use image::seam::{ImagePlan, ImageSession};
use image::{
    ChunkSource, Digest, Domain, Error, Geometry, ImageSink, Kind, Manifest, ReadContext, Result,
    SectionSink, SectionTable,
};
use tokio::sync::mpsc;

use crate::progress::{Progress, Stats};
use crate::source::{Content, Disk, DiskSource};
use changes::{All, Changed, Reading};
pub use changes::{Ancestor, Changes, whole};
use crew::{Crew, Event, Shared};
pub use salvage::Skipped;
use section::{Hashed, Held};

/// Memory for plain bytes unless told otherwise: three sections.
pub const DEFAULT_MEMORY: usize = 3 * SECTION_LEN as usize;

/// Memory for frames on their way to the sink, in bytes.
pub const FRAME_ROOM: usize = 16 << 20;

/// Sections offered, sent or being sealed at a time: enough that packs fill while seals wait for
/// the store.
const SECTIONS_AT_ONCE: usize = 64;

/// How often a section is offered of which something has come, or was written, other than it was sent: a bit that
/// flips somewhere does so once.
const TRIES: usize = 3;

/// Bytes read, hashed and let go of together, at least: with smaller chunks a read takes several.
const MIN_PIECE: usize = 256 << 10;

/// How to import. The default makes a public image with the usual chunks, on all cores.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Whose chunks the image may share.
    pub domain: Domain,
    /// The image it was made from, if there is one and the writer may read it.
    pub parent: Option<Digest>,
    /// Log2 of the chunk length.
    pub chunk_log2: u8,
    /// Threads that hash, and again as many that compress.
    pub workers: NonZeroUsize,
    /// Memory for plain bytes, in bytes. No less than a section is taken.
    pub memory: usize,
    /// How raw files are read.
    pub engine: EngineChoice,
    /// Trace and priority, for the sink.
    pub context: ReadContext,
    /// Nobody waits for it: its threads, of each kind one, take of processors and disks what others leave.
    pub background: bool,
    /// How fast it may read; as fast as it can if nobody says.
    pub pace: Option<Pace>,
    /// What cannot be read of the disk is noted there, and zeros stand for it; if it is not to be noted that is an
    /// error.
    pub skipped: Option<Arc<Skipped>>,
    /// Counts what happens.
    pub progress: Arc<Progress>,
}

/// Is told of so many bytes that are to be read, and returns when they may be.
#[derive(Clone)]
pub struct Pace(pub Arc<dyn Fn(usize) + Send + Sync>);

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pace")
    }
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            domain: Domain::PUBLIC,
            parent: None,
            chunk_log2: DEFAULT_CHUNK_LOG2,
            workers: available_parallelism().unwrap_or(NonZeroUsize::MIN),
            memory: DEFAULT_MEMORY,
            engine: EngineChoice::Auto,
            context: ReadContext::default(),
            background: false,
            pace: None,
            skipped: None,
            progress: Arc::default(),
        }
    }
}

impl ImportOptions {
    /// A section is offered when all of it has been read, so all of it must fit.
    fn memory_bytes(&self) -> usize {
        self.memory.max(SECTION_LEN as usize)
    }
}

/// What came of an import.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The image's identity.
    pub image: Digest,
    /// Its manifest.
    pub manifest: Manifest,
    /// What it took.
    pub stats: Stats,
}

/// Length of a piece: at least a chunk and a granule of the source. All are powers of two and divide
/// a section.
fn piece_len(chunk_log2: u8, granule: usize) -> usize {
    debug_assert!(granule.is_power_of_two() && granule <= 4 << 20);
    MIN_PIECE.max(1 << chunk_log2).max(granule)
}

/// Makes an image of a disk.
///
/// Runs on any tokio runtime; reading, hashing and compressing happen on threads of their own.
/// Dropping the future cancels the import: what was sent is left to the sink's garbage collection,
/// and a new import of the same disk finds the sections that were sealed. After an error, too, a
/// thread may outlive the call until the read that it is in has ended.
///
/// # Errors
///
/// The first thing that went wrong: the source's errors (see [`DiskSource::open`]; those of reading
/// name what cannot be read; [`Kind::Unsupported`] for a stream of which that is to be skipped; [`Kind::Conflict`] if the source changed meanwhile) or the sink's, unaltered but
/// for the place.
pub async fn import<K: ImageSink>(
    source: DiskSource,
    sink: &K,
    options: ImportOptions,
) -> Result<Imported> {
    run(source, sink, options, None, |_, _| Ok(All)).await
}

/// The sections that earlier tries have stored: tables of 32 bytes for each chunk.
#[derive(Debug, Default)]
pub struct Stored(Mutex<BTreeMap<u32, SectionTable>>);

impl Stored {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, SectionTable>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many they are.
    pub fn count(&self) -> usize {
        self.lock().len()
    }
}

/// Makes an image of a disk of which only what has changed is read: the rest is as in another image. If that fails it
/// can be tried again, perhaps with another sink: what was `stored` of the same point in time is neither read again nor
/// sent.
///
/// # Errors
///
/// As [`import`]; [`Kind::Unsupported`] for a stream, which can only be read from front to back.
pub async fn save<K: ImageSink, S: ChunkSource>(
    source: DiskSource,
    changes: &Changes<S>,
    sink: &K,
    stored: &Stored,
    options: ImportOptions,
) -> Result<Imported> {
    if source.size().is_none() {
        let what = format!("{}: a stream is read from front to back", source.name());
        return Err(Error::new(Kind::Unsupported, what));
    }
    let (domain, context) = (options.domain, options.context);
    let changed = |geometry, piece| Changed::new(changes, geometry, domain, piece, context);
    run(source, sink, options, Some(stored), changed).await
}

async fn run<K: ImageSink, R: Reading>(
    source: DiskSource,
    sink: &K,
    options: ImportOptions,
    stored: Option<&Stored>,
    reading: impl FnOnce(Geometry, usize) -> Result<R>,
) -> Result<Imported> {
    let (name, sector, size) = (source.name().to_owned(), source.sector(), source.size());
    let cut = |size| Geometry::new(size, sector, options.chunk_log2).map_err(invalid);
    let geometry = cut(size.unwrap_or(MAX_DISK)).at(|| &name)?;
    let piece = piece_len(options.chunk_log2, source.granule());
    let reading = reading(geometry, piece).at(|| &name)?;
    let content = source.into_content();
    let disk = match &content {
        Content::Disk(disk) => Some(Arc::clone(disk)),
        Content::Stream(_) if options.skipped.is_some() => {
            let what = format!(
                "{name}: it is read from front to back, and nothing of that can be skipped: unpack it first, or leave \
                 `--skip-bad` out"
            );
            return Err(Error::new(Kind::Unsupported, what));
        }
        Content::Stream(_) => None,
    };
    options.progress.set_size(size.unwrap_or(0));
    let mut ranges = reading.ranges(geometry.size());
    if let Some(stored) = stored {
        ranges = without(ranges, &stored.lock());
    }
    let new = reading.expects_new(options.parent.is_some());
    // It reads while the session is opened.
    let (mut crew, events) = Crew::start(content, geometry, piece, ranges, new, &options)?;
    let plan = ImagePlan { domain: options.domain, geometry, parent: options.parent };
    let session = sink.open(&options.context, &plan).await.at(|| &name)?;
    let sending = Sending { session: &session, shared: crew.shared(), reading, disk, stored };
    let sent = tokio::select! {
        // A thread's error is the cause of whatever else may be ready.
        biased;
        error = crew.failure() => Err(error),
        sent = sending.all(events) => sent,
    };
    let sent = sent.map_err(|e| e.at(&name))?;
    if let Some(disk) = &sending.disk {
        disk.check_unchanged().at(|| &name)?;
    }
    let manifest = sent.manifest(options.domain, cut(sent.size)?);
    let image = session.commit(&manifest).await.at(|| &name)?;
    if image != manifest.identity() {
        let what = format!("{name}: the receiver made image {image} of it, which is another one");
        return Err(Error::new(Kind::Corrupt, what));
    }
    Ok(Imported { image, manifest, stats: options.progress.stats() })
}

/// Leaves out what lies in sections that are stored.
fn without(ranges: Vec<Range<u64>>, stored: &BTreeMap<u32, SectionTable>) -> Vec<Range<u64>> {
    let by_section = |range: Range<u64>| {
        let sections = range.start / SECTION_LEN..range.end.div_ceil(SECTION_LEN);
        sections.filter(|section| !stored.contains_key(&(*section as u32))).map(move |section| {
            let (start, end) = (section * SECTION_LEN, (section + 1) * SECTION_LEN);
            range.start.max(start)..range.end.min(end)
        })
    };
    match stored.is_empty() {
        true => ranges,
        false => ranges.into_iter().flat_map(by_section).collect(),
    }
}

/// What was sent: the size, and the sections that are not zeros.
struct Sent {
    size: u64,
    sections: Vec<(u32, Digest)>,
}

impl Sent {
    fn manifest(&self, domain: Domain, geometry: Geometry) -> Manifest {
        let mut digests = vec![Digest::ZERO; geometry.sections() as usize];
        for (index, digest) in &self.sections {
            digests[*index as usize] = *digest;
        }
        Manifest::new(domain, geometry, digests)
    }
}

/// Sections on their way to the sink.
struct Sending<'a, S, R> {
    session: &'a S,
    shared: Arc<Shared>,
    reading: R,
    /// Is told what is stored.
    disk: Option<Arc<dyn Disk>>,
    stored: Option<&'a Stored>,
}

impl<S: ImageSession, R: Reading> Sending<'_, S, R> {
    /// Sends every section, several at a time, and waits until all are sealed.
    async fn all(&self, mut events: mpsc::UnboundedReceiver<Event>) -> Result<Sent> {
        let mut sending = FuturesUnordered::new();
        let mut sections = Vec::new();
        let mut untouched: BTreeSet<u32> = self.reading.untouched().into_iter().collect();
        untouched.extend(
            self.stored.iter().flat_map(|stored| stored.lock().keys().copied().collect::<Vec<_>>()),
        );
        let mut seen = 0;
        let mut end = None;
        loop {
            let all_seen = end.is_some_and(|(_, begun)| begun == seen);
            let more = sending.len() < SECTIONS_AT_ONCE;
            if all_seen
                && more
                && let Some(section) = untouched.pop_first()
            {
                let table = SectionTable::zeros(self.shared.domain, 0);
                sending.push(self.send(Hashed { index: section, table, held: Vec::new() }));
                continue;
            }
            if let Some((size, _)) = end.filter(|_| all_seen && sending.is_empty()) {
                return Ok(Sent { size, sections });
            }
            tokio::select! {
                Some(sent) = sending.next() => sections.extend(sent?),
                event = events.recv(), if !all_seen && more => {
                    match event.ok_or_else(called_off)? {
                        Event::End { size, sections } => end = Some((size, sections)),
                        Event::Hashed(section) => {
                            seen += 1;
                            untouched.remove(&section.index);
                            sending.push(self.send(section));
                        }
                    }
                }
            }
        }
    }

    /// Offers a section, sends what is wanted of it, and seals it. Nothing is to be done of one that is zeros.
    async fn send(&self, section: Hashed) -> Result<Option<(u32, Digest)>> {
        let Hashed { index, table: read, held } = section;
        let place = || format!("section {index}");
        let before = self.stored.and_then(|stored| stored.lock().get(&index).cloned());
        let table = match before {
            Some(table) => table,
            None => self.reading.complete(index, read.clone()).await.at(place)?,
        };
        if !table.is_zero() {
            self.store(index, &table, &read, held).await.at(place)?;
        }
        if let Some(stored) = self.stored {
            stored.lock().insert(index, table.clone());
        }
        if let Some(disk) = &self.disk {
            let start = self.shared.geometry.section_start(index);
            disk.stored(start..start + self.shared.geometry.section_len(index));
        }
        Ok((!table.is_zero()).then(|| (index, table.digest())))
    }

    /// Offers a section, and again if what has come of it is not what it should be. What is wanted then is read anew:
    /// of a stream it cannot be.
    async fn store(
        &self,
        index: u32,
        table: &SectionTable,
        read: &SectionTable,
        mut held: Vec<Held>,
    ) -> Result<()> {
        let mut tries = 1;
        loop {
            match self.offer(index, table, read, std::mem::take(&mut held)).await {
                Err(e) if e.kind() == Kind::Corrupt && self.disk.is_some() && tries < TRIES => {
                    tracing::warn!(error = %e, section = index, "sending a section again");
                    tries += 1;
                }
                ended => return ended,
            }
        }
    }

    async fn offer(
        &self,
        index: u32,
        table: &SectionTable,
        read: &SectionTable,
        held: Vec<Held>,
    ) -> Result<()> {
        let (wanted, mut sink) = self.session.offer(index, table).await?;
        let mut frames = self.shared.encode(index, &wanted, table, read, held)?;
        let mut left = wanted.count();
        while let Some(encoded) = frames.recv().await {
            let plain = u64::from(encoded.frame.header().plain_len);
            let stored = encoded.frame.bytes().len() as u64;
            sink.chunk(encoded.chunk, encoded.frame).await?;
            drop(encoded.room);
            self.shared.progress.sent(plain, stored);
            left -= 1;
        }
        if left > 0 {
            return Err(called_off());
        }
        sink.seal().await?;
        self.shared.progress.sealed();
        Ok(())
    }
}

/// The threads are gone before their work was done.
fn called_off() -> Error {
    Error::new(Kind::Cancelled, "the import's threads have ended")
}

fn invalid(e: image::FormatError) -> Error {
    Error::caused(Kind::Invalid, e.to_string(), e)
}
