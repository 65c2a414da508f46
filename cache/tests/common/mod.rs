//! A source that counts, a cache around it, and images to ask for.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blockio::fake::MemFs;
use blockio::{Engine, EngineKind, EngineOptions, OpenMode};
use forebay_cache::{Budget, Cache, DiskBudget, LogWriter, Options, Shared, Status};
use image::{
    ChunkSet, ChunkSink, ChunkSource, Digest, Domain, Encoder, Error, Frame, Geometry, Kind,
    Manifest, Place, ReadContext, Result, SectionTable,
};
use tokio::sync::Semaphore;

/// 16 KiB: many chunks for few bytes.
pub const CHUNK_LOG2: u8 = 14;
pub const CHUNK: usize = 1 << CHUNK_LOG2;
/// The directory of the disk tier in memory.
pub const DIR: &str = "/cache";

/// How well chunks compress.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stuff {
    /// Frames of about a hundred bytes.
    Text,
    /// Frames of about a thousand bytes.
    Mixed,
    /// Frames of a chunk and a header.
    Noise,
}

/// An image of one section, with its frames.
#[derive(Clone)]
pub struct TestImage {
    pub id: Digest,
    pub manifest: Arc<Manifest>,
    pub table: Arc<SectionTable>,
    pub plain: Arc<Vec<Vec<u8>>>,
    pub frames: Vec<Frame>,
}

/// The plain bytes of a chunk.
pub fn plain(seed: u64, stuff: Stuff) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 33) as u8
    };
    match stuff {
        Stuff::Noise => (0..CHUNK).map(|_| next()).collect(),
        Stuff::Mixed => (0..CHUNK).map(|i| if i < 1000 { next() | 1 } else { 0 }).collect(),
        Stuff::Text => {
            let word: Vec<u8> = (0..8).map(|_| next() | 1).collect();
            word.iter().copied().cycle().take(CHUNK).collect()
        }
    }
}

impl TestImage {
    /// An image of these chunks, each told by its seed.
    pub fn of(seeds: impl IntoIterator<Item = u64>, stuff: Stuff) -> Self {
        let plain: Vec<_> = seeds.into_iter().map(|seed| plain(seed, stuff)).collect();
        let mut encoder = Encoder::new().unwrap();
        let digests: Vec<_> = plain.iter().map(|p| Digest::of_chunk(p)).collect();
        let frames = digests.iter().zip(&plain);
        let frames = frames.map(|(d, p)| encoder.encode(Domain::PUBLIC, *d, p)).collect();
        let size = (plain.len() * CHUNK) as u64;
        let geometry = Geometry::new(size, 512, CHUNK_LOG2).unwrap();
        assert_eq!(geometry.sections(), 1);
        let table = SectionTable::new(Domain::PUBLIC, digests);
        let manifest = Manifest::new(Domain::PUBLIC, geometry, vec![table.digest()]);
        let id = manifest.identity();
        Self {
            id,
            manifest: Arc::new(manifest),
            table: Arc::new(table),
            plain: Arc::new(plain),
            frames,
        }
    }

    pub fn chunks(&self) -> u32 {
        self.frames.len() as u32
    }

    pub fn place(&self, wanted: impl Fn(u32) -> bool) -> Place {
        Place { image: self.id, section: 0, chunks: ChunkSet::of(self.chunks(), wanted) }
    }

    pub fn all(&self) -> Place {
        self.place(|_| true)
    }

    pub fn one(&self, chunk: u32) -> Place {
        self.place(|c| c == chunk)
    }

    /// Checks that `got` is exactly the frames of `place`.
    pub fn check(&self, place: &Place, mut got: Vec<(u32, Frame)>) {
        got.sort_by_key(|(chunk, _)| *chunk);
        let numbers: Vec<_> = got.iter().map(|(chunk, _)| *chunk).collect();
        assert_eq!(numbers, place.chunks.iter().collect::<Vec<_>>());
        for (chunk, frame) in got {
            assert!(frame == self.frames[chunk as usize], "chunk {chunk}: {:?}", frame.header());
        }
    }
}

type Tamper = Box<dyn Fn(u32, &ReadContext, Frame) -> Frame + Send + Sync>;

/// A source in memory that counts, fails, waits and lies on request.
#[derive(Default)]
pub struct Fake {
    images: Mutex<HashMap<Digest, Arc<TestImage>>>,
    /// Frames given, by image and chunk.
    given: Mutex<BTreeMap<(Digest, u32), u32>>,
    pub requests: AtomicU64,
    pub papers: AtomicU64,
    /// Requests for chunks that were dropped before their end.
    pub dropped: AtomicU64,
    errors: Mutex<VecDeque<Error>>,
    missing: Mutex<HashMap<u32, Kind>>,
    gate: Mutex<Option<Arc<Semaphore>>>,
    tamper: Mutex<Option<Tamper>>,
    pub repairs: AtomicU64,
}

impl Fake {
    pub fn new(images: impl IntoIterator<Item = TestImage>) -> Arc<Self> {
        let fake = Self::default();
        for image in images {
            fake.images.lock().unwrap().insert(image.id, Arc::new(image));
        }
        Arc::new(fake)
    }

    /// The next request for chunks fails before it gives anything.
    pub fn fail_next(&self, kind: Kind) {
        let error = Error::new(kind, "the source was told to fail");
        self.errors.lock().unwrap().push_back(error);
    }

    /// This chunk cannot be had, until it is said to be there again.
    pub fn lose(&self, chunk: u32, kind: Option<Kind>) {
        let mut missing = self.missing.lock().unwrap();
        match kind {
            Some(kind) => drop(missing.insert(chunk, kind)),
            None => drop(missing.remove(&chunk)),
        }
    }

    /// From now on each frame needs a permit.
    pub fn gate(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.gate.lock().unwrap() = Some(Arc::clone(&gate));
        gate
    }

    /// From now on frames go through `f`.
    pub fn tamper(&self, f: impl Fn(u32, &ReadContext, Frame) -> Frame + Send + Sync + 'static) {
        *self.tamper.lock().unwrap() = Some(Box::new(f));
    }

    /// How many frames of this image and chunk were given.
    pub fn given(&self, image: &TestImage, chunk: u32) -> u32 {
        self.given.lock().unwrap().get(&(image.id, chunk)).copied().unwrap_or(0)
    }

    /// How many frames were given in all.
    pub fn given_in_all(&self) -> u32 {
        self.given.lock().unwrap().values().sum()
    }

    fn image(&self, id: &Digest) -> Result<Arc<TestImage>> {
        let image = self.images.lock().unwrap().get(id).cloned();
        image.ok_or_else(|| Error::new(Kind::Gone, "no such image"))
    }

    pub fn add(&self, image: TestImage) {
        self.images.lock().unwrap().insert(image.id, Arc::new(image));
    }
}

struct CountDrop<'a>(&'a AtomicU64, bool);

impl Drop for CountDrop<'_> {
    fn drop(&mut self) {
        if self.1 {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl ChunkSource for Fake {
    async fn manifest(&self, _: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        self.papers.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        Ok(Arc::clone(&self.image(image)?.manifest))
    }

    async fn section_table(
        &self,
        _: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        assert_eq!(section, 0);
        self.papers.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        Ok(Arc::clone(&self.image(image)?.table))
    }

    async fn chunks<S: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> Result<()> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.repairs.fetch_add(u64::from(ctx.repair), Ordering::Relaxed);
        let mut count = CountDrop(&self.dropped, true);
        let image = self.image(&place.image)?;
        tokio::task::yield_now().await;
        if let Some(error) = self.errors.lock().unwrap().pop_front() {
            return Err(error);
        }
        let mut first_error = None;
        for chunk in place.chunks.iter() {
            let lost = self.missing.lock().unwrap().get(&chunk).copied();
            if let Some(kind) = lost {
                first_error.get_or_insert(Error::new(kind, format!("chunk {chunk} is lost")));
                continue;
            }
            let gate = self.gate.lock().unwrap().clone();
            if let Some(gate) = gate {
                gate.acquire().await.unwrap().forget();
            }
            let mut frame = image.frames[chunk as usize].clone();
            if let Some(tamper) = &*self.tamper.lock().unwrap() {
                frame = tamper(chunk, ctx, frame);
            }
            *self.given.lock().unwrap().entry((image.id, chunk)).or_default() += 1;
            sink.chunk(chunk, frame).await?;
        }
        count.1 = false;
        first_error.map_or(Ok(()), Err)
    }
}

/// Runs on a single-threaded runtime inside a `LocalSet`, as a core does.
pub fn on_core<F: Future>(work: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

/// The same, with a clock that jumps ahead when there is nothing to do.
pub fn on_core_paused<F: Future>(work: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

pub fn engine() -> Engine {
    Engine::start(EngineOptions::kind(EngineKind::Portable)).unwrap()
}

/// A clock that stands still until it is moved.
#[derive(Clone, Default)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
    }

    pub fn get(&self) -> forebay_cache::Clock {
        let millis = Arc::clone(&self.0);
        Arc::new(move || Duration::from_millis(millis.load(Ordering::Relaxed)))
    }
}

/// A cache with its source, and with the writer of its log in our hands.
pub struct Rig {
    pub source: Arc<Fake>,
    pub shared: Arc<Shared>,
    pub writer: Option<LogWriter>,
    pub cache: Cache<Arc<Fake>>,
}

impl Rig {
    pub fn new(source: &Arc<Fake>, budget: Budget, options: Options) -> Self {
        let (shared, writer) = Shared::open(budget, options).unwrap();
        let cache = Cache::new(Arc::clone(source), Arc::clone(&shared), engine());
        Self { source: Arc::clone(source), shared, writer, cache }
    }

    /// Memory only.
    pub fn in_memory(source: &Arc<Fake>, memory: u64) -> Self {
        let budget = Budget { memory, in_flight: 64 << 20, disk: None };
        Self::new(source, budget, Options::default())
    }

    /// With a disk tier in `fs`, and next to nothing in memory, so that the disk is asked. What the
    /// disk tier has to do at start is done.
    pub fn on_disk(source: &Arc<Fake>, fs: &MemFs) -> Self {
        Self::on_disk_of(source, fs, 4 << 20)
    }

    /// The same with a disk budget of so many bytes.
    pub fn on_disk_of(source: &Arc<Fake>, fs: &MemFs, budget: u64) -> Self {
        let mut rig = Self::new(source, disk_budget(budget), disk_options(fs));
        rig.settle();
        rig
    }

    /// Lets the log's writer do all it has to do.
    pub fn settle(&mut self) {
        self.writer.as_mut().expect("a rig with a disk").run_pending();
    }

    /// Ends the disk tier in good order.
    pub fn close(mut self) {
        self.shared.close();
        self.settle();
    }

    pub async fn read(&self, place: &Place) -> Result<Vec<(u32, Frame)>> {
        read(&self.cache, place).await
    }

    pub fn status(&self) -> Status {
        self.shared.status()
    }
}

pub fn disk_budget(bytes: u64) -> Budget {
    let disk = DiskBudget { dir: DIR.into(), bytes, reserve: 0 };
    Budget { memory: 8, in_flight: 64 << 20, disk: Some(disk) }
}

pub fn disk_options(fs: &MemFs) -> Options {
    Options {
        fs: fs.fs(),
        free_space: Arc::new(|_| Ok(u64::MAX)),
        segment: Some(256 << 10),
        scrub: 0,
        ..Options::default()
    }
}

pub async fn read(cache: &Cache<Arc<Fake>>, place: &Place) -> Result<Vec<(u32, Frame)>> {
    let mut sink = Vec::new();
    cache.chunks(&ReadContext::default(), place, &mut sink).await?;
    Ok(sink)
}

pub fn repair() -> ReadContext {
    ReadContext { repair: true, ..ReadContext::default() }
}

/// All of a file in memory.
pub fn bytes_of(fs: &MemFs, name: &str) -> Vec<u8> {
    fs.fs().read(format!("{DIR}/{name}"), 1 << 30).unwrap()
}

/// A file system with a cache directory that holds these files.
pub fn fs_with(files: &[(&str, &[u8])]) -> MemFs {
    let fs = MemFs::new();
    fs.fs().create_dir_all(DIR).unwrap();
    for (name, bytes) in files {
        let file = fs.fs().open(format!("{DIR}/{name}"), OpenMode::create()).unwrap();
        file.write_all_at(bytes, 0).unwrap();
    }
    fs
}

/// The names in the cache directory, other than the lock.
pub fn segments(fs: &MemFs) -> Vec<String> {
    let names = fs.fs().list(DIR).unwrap().into_iter();
    names.map(|n| n.into_string().unwrap()).filter(|n| n != "lock").collect()
}
