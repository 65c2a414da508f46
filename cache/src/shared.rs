//! What the cores of one cache share, and what it may take.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use blockio::{Arena, Fs};
use image::frame::MAX_FRAME;
use image::geometry::SECTION_LEN;
use image::{Digest, Domain, Error, Kind, Result};

use crate::admission::Admission;
use crate::disk::{Disk, LogLimits, LogWriter, Means, Outside};
use crate::flights::Flights;
use crate::gone::Gone;
use crate::human::bytes;
use crate::key::Key;
use crate::memory::Memory;
use crate::papers::Papers;
use crate::pins::Pins;
use crate::sharded::lock;
use crate::status::{Counts, Status};

/// No disk tier is smaller than this, in bytes.
const MIN_DISK: u64 = SEGMENTS * MIN_SEGMENT;
/// So many segments must fit, and none is shorter than this, in bytes.
const SEGMENTS: u64 = 4;
const MIN_SEGMENT: u64 = 4 << 10;

/// A monotonic clock: time since some moment.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;
/// Bytes free to us on the file system that holds a directory.
pub type FreeSpace = Arc<dyn Fn(&Path) -> io::Result<u64> + Send + Sync>;

/// What a cache may take.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Memory for frames (7/8) and for manifests and section tables (1/8), in bytes.
    pub memory: u64,
    /// Memory for what is on its way, in bytes: reads and their queues (1/2), frames that wait to
    /// be written to disk (1/4), buffers for disk reads (1/4). Each part has room for at least one
    /// of the longest frames.
    pub in_flight: u64,
    /// The disk tier, if there is to be one.
    pub disk: Option<DiskBudget>,
}

/// What the disk tier may take.
#[derive(Clone, Debug)]
pub struct DiskBudget {
    /// A directory for this cache alone; it is made if need be.
    pub dir: PathBuf,
    /// All its files together, in bytes; at least four segments.
    pub bytes: u64,
    /// What must stay free on the file system, in bytes: below that the cache gives up segments.
    pub reserve: u64,
}

/// How a cache behaves. The default is right outside of tests.
#[derive(Clone)]
pub struct Options {
    /// Tells the time for what is remembered or tried again later.
    pub clock: Clock,
    /// Where the disk tier's files are.
    pub fs: Fs,
    /// Looks at the free space.
    pub free_space: FreeSpace,
    /// Length of a segment in bytes, at most 2 GiB; unless given, a 256th of the disk budget, within
    /// 64 MiB and 2 GiB and at most a fourth of it.
    pub segment: Option<u64>,
    /// A source that gives nothing for this long has failed.
    pub stall: Duration,
    /// A disk read that takes longer than this has failed.
    pub disk_timeout: Duration,
    /// A read waits for a place no longer than this before it is told that we are busy.
    pub patience: Duration,
    /// What does not exist is not asked for again for this long.
    pub gone: Duration,
    /// Frames that wait for one slow reader, in bytes.
    pub window: u64,
    /// Hits are read from disk past the page cache, where the file system allows that: memory is
    /// then taken by the memory tier alone.
    pub direct: bool,
    /// Scrubbing reads so many bytes of the disk tier per second; 0 switches it off.
    pub scrub: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            clock: system_clock(),
            fs: Fs::os(),
            free_space: Arc::new(system_free_space),
            segment: None,
            stall: Duration::from_secs(30),
            disk_timeout: Duration::from_secs(2),
            patience: Duration::from_secs(1),
            gone: Duration::from_secs(1),
            window: 8 << 20,
            direct: true,
            scrub: 8 << 20,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock that is injected outside of tests")]
fn system_clock() -> Clock {
    let start = std::time::Instant::now();
    Arc::new(move || start.elapsed())
}

fn system_free_space(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir).map_err(|errno| {
        let error = io::Error::from(errno);
        io::Error::new(error.kind(), format!("free space of {}: {error}", dir.display()))
    })?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The tiers and flights of one cache, shared by its cores.
pub struct Shared {
    pub(crate) memory: Arc<Memory>,
    pub(crate) papers: Papers,
    pub(crate) disk: Option<Arc<Disk>>,
    pub(crate) flights: Flights,
    pub(crate) gone: Gone,
    pub(crate) admission: Admission,
    pub(crate) counts: Counts,
    pub(crate) stall: Duration,
    pub(crate) window: u64,
    /// Bytes of frames, if they do not shrink, that one read fetches ahead of its reader.
    pub(crate) batch: u64,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Shared {
    /// A cache whose disk tier is written on a thread of its own.
    ///
    /// The disk tier may turn out to be unusable, now or later: that is no error here, the cache
    /// then works without it and says so ([`Shared::status`]).
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] for a budget that makes no sense; [`Kind::Io`] without memory or threads.
    pub fn start(budget: Budget, options: Options) -> Result<Arc<Self>> {
        let (shared, writer) = Self::open(budget, options)?;
        if let Some(writer) = writer {
            let thread = std::thread::Builder::new().name("cache-log".to_owned());
            let thread = thread.spawn(|| writer.run());
            let thread = thread.map_err(|e| Error::io("cache: log thread", e))?;
            *lock(&shared.writer) = Some(thread);
        }
        Ok(shared)
    }

    /// As [`start`](Self::start), but the caller runs the writer of the disk tier.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn open(budget: Budget, options: Options) -> Result<(Arc<Self>, Option<LogWriter>)> {
        let frames = budget.memory - budget.memory / 8;
        let (log, segment) = match &budget.disk {
            None => (0, 0),
            Some(disk) => (disk.bytes, segment_len(disk.bytes, options.segment)?),
        };
        let pins = Arc::new(Pins::new(log, segment));
        let memory = Arc::new(Memory::new(frames, Arc::clone(&pins)));
        let (disk, writer) = match &budget.disk {
            None => (None, None),
            Some(dir) => {
                let disk = Arc::new(open_disk(budget.in_flight, &options, pins)?);
                let writer = log_writer(dir, segment, &options, &disk, &memory);
                (Some(disk), Some(writer))
            }
        };
        let shared = Self {
            memory,
            papers: Papers::new(budget.memory / 8),
            disk,
            flights: Flights::new(),
            gone: Gone::new(Arc::clone(&options.clock), options.gone),
            admission: Admission::new(one_frame(budget.in_flight / 2), options.patience),
            counts: Counts::default(),
            stall: options.stall,
            window: options.window,
            batch: (frames / 4).max(options.window).clamp(1, SECTION_LEN),
            writer: Mutex::new(None),
        };
        Ok((Arc::new(shared), writer))
    }

    /// The buffers that most reads of the disk tier use, for an engine to register.
    pub fn read_buffers(&self) -> Option<Arena> {
        self.disk.as_ref().map(|disk| disk.buffers().clone())
    }

    /// How it is and what it has done so far.
    pub fn status(&self) -> Status {
        let (memory_bytes, memory_frames) = self.memory.size();
        let mut status = Status {
            memory_bytes,
            memory_frames,
            paper_bytes: self.papers.bytes(),
            in_flight_bytes: self.admission.in_flight(),
            flights: self.flights.len(),
            ..self.counts.status()
        };
        if let Some(disk) = &self.disk {
            let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            let counts = disk.counts();
            status.disk = disk.state();
            status.disk_frames = disk.index().frames();
            status.index_bytes = disk.index().bytes();
            status.disk_bytes = count(&counts.bytes);
            status.disk_hits = count(&counts.hits);
            status.disk_health = disk.health().report();
            status.disk_bad_frames = status.disk_health.bad_frames;
            status.pins = disk.pins().list().len() as u64;
            status.pinned_bytes = disk.pins().bytes();
            status.pin_limit = disk.pins().limit();
            status.scrub = disk.scrub().status();
            status.scrub_bad_frames = disk.scrub().bad();
            status.disk_written_bytes = count(&counts.written);
            status.disk_skipped_frames = count(&counts.skipped);
            status.disk_queued_bytes = disk.queue().bytes();
        }
        status
    }

    /// Forgets one chunk in every tier. On disk its bytes stay until their segment goes, and a
    /// restart may find them again.
    pub fn drop_chunk(&self, domain: Domain, digest: &Digest) {
        let key = Key { domain, digest: *digest };
        self.memory.remove(&key);
        self.forget_on_disk(&key);
    }

    /// Empties memory at once, and the disk tier as soon as its writer gets to it.
    pub fn drop_all(&self) {
        self.memory.clear();
        self.papers.clear();
        if let Some(disk) = &self.disk {
            disk.index().clear();
            disk.queue().clear();
        }
    }

    /// Sets how many bytes of the disk tier scrubbing reads per second; 0 switches it off.
    pub fn set_scrub_rate(&self, rate: u64) {
        if let Some(disk) = &self.disk {
            disk.scrub().set_rate(rate);
            disk.queue().nudge();
        }
    }

    /// Begins a pass of scrubbing now, unless one is under way; says whether. It keeps to the rate.
    pub fn start_scrub(&self) -> bool {
        let Some(disk) = &self.disk else { return false };
        let begins = disk.scrub().start_pass();
        disk.queue().nudge();
        begins
    }

    /// Forgets where on disk a frame lies; says in which segment that was.
    pub(crate) fn forget_on_disk(&self, key: &Key) -> Option<u32> {
        self.disk.as_ref().and_then(|disk| disk.forget(key))
    }

    /// Ends the disk tier in good order: what waits is written, the open segment is sealed. Blocks
    /// until the thread that [`start`](Self::start) began is done. Reads go on without the disk.
    pub fn close(&self) {
        if let Some(disk) = &self.disk {
            disk.queue().close();
        }
        if let Some(thread) = lock(&self.writer).take()
            && thread.join().is_err()
        {
            tracing::error!("cache: the log thread had panicked");
        }
    }
}

impl Drop for Shared {
    /// The writer ends by itself; [`Shared::close`] would wait for it.
    fn drop(&mut self) {
        if let Some(disk) = &self.disk {
            disk.queue().close();
        }
    }
}

/// The length of a segment of a log of `budget` bytes.
fn segment_len(budget: u64, given: Option<u64>) -> Result<u64> {
    if budget < MIN_DISK {
        let why =
            format!("cache.disk: {} are too few: at least {}", bytes(budget), bytes(MIN_DISK));
        return Err(Error::new(Kind::Invalid, why));
    }
    let usual = || (budget / 256).clamp(64 << 20, 2 << 30).min(budget / SEGMENTS);
    let segment = given.unwrap_or_else(usual);
    if !(MIN_SEGMENT..=2 << 30).contains(&segment) || segment > budget / SEGMENTS {
        let (segment, budget) = (bytes(segment), bytes(budget));
        let why = format!(
            "cache: segments of {segment} for a disk budget of {budget}: they must have 4 KiB to \
             2 GiB, and at least {SEGMENTS} must fit"
        );
        return Err(Error::new(Kind::Invalid, why));
    }
    Ok(segment)
}

fn open_disk(in_flight: u64, options: &Options, pins: Arc<Pins>) -> Result<Disk> {
    let means = Means {
        queue: one_frame(in_flight / 4),
        buffers: in_flight / 8,
        timeout: options.disk_timeout,
        scrub: options.scrub,
        clock: Arc::clone(&options.clock),
    };
    Disk::new(means, pins).map_err(|e| Error::io("cache: buffers for disk reads", e))
}

fn log_writer(
    budget: &DiskBudget,
    segment: u64,
    options: &Options,
    disk: &Arc<Disk>,
    memory: &Arc<Memory>,
) -> LogWriter {
    let limits = LogLimits {
        dir: budget.dir.clone(),
        budget: budget.bytes,
        reserve: budget.reserve,
        segment,
        direct: options.direct,
    };
    let outside = Outside {
        fs: options.fs.clone(),
        clock: Arc::clone(&options.clock),
        free_space: Arc::clone(&options.free_space),
    };
    LogWriter::new(Arc::clone(disk), Arc::clone(memory), limits, outside)
}

fn one_frame(bytes: u64) -> u64 {
    bytes.max(MAX_FRAME as u64)
}
