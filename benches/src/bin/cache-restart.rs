//! How soon a cache serves after a restart, by the number of frames in its log.
//!
//! ```text
//! cache-restart DIR [FRAMES…]      1,000,000 and 250,000 frames unless told otherwise
//! ```
//! Fills a log with frames of real data (a fourth of each chunk out of `FOREBAY_BENCH_DISK` or this
//! program, salted so that all differ), closes it, drops it from the page cache, and opens it anew.
//! The frames are short, so that a million need a few gigabytes and not a quarter of a terabyte; the
//! segments are shortened alike, so that there are as many as a large log has. What is read at a
//! restart does not depend on the length of frames.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockio::Engine;
use cache::{Budget, Cache, DiskBudget, DiskState, Options, Shared};
use image::{
    ChunkSet, ChunkSink, ChunkSource, Digest, Domain, Encoder, Error, Geometry, Kind, Manifest,
    Place, ReadContext, Result, SectionTable,
};

const CHUNK_LOG2: u8 = 14;
const CHUNK: usize = 1 << CHUNK_LOG2;
const SECTION: u32 = (64 << 20) / CHUNK as u32;
/// Real bytes in each chunk; zeros behind them.
const REAL: usize = CHUNK / 4;
/// As many frames to a segment as 2 GiB hold of 256 KiB.
const FRAMES_PER_SEGMENT: u64 = 8192;

/// An image of so many chunks, made up as it is asked for.
struct Made {
    data: Vec<u8>,
    tables: Vec<Arc<SectionTable>>,
    manifest: Arc<Manifest>,
}

impl Made {
    fn new(chunks: u32) -> Self {
        let data = forebay_benches::chunks(4096).concat();
        let chunk = |n| Digest::of_chunk(&plain(&data, n));
        let sections = (0..chunks).step_by(SECTION as usize);
        let tables: Vec<_> = sections
            .map(|first| {
                let digests = (first..chunks.min(first + SECTION)).map(chunk).collect();
                Arc::new(SectionTable::new(Domain::PUBLIC, digests))
            })
            .collect();
        let geometry = Geometry::new(u64::from(chunks) * CHUNK as u64, 512, CHUNK_LOG2).unwrap();
        let digests = tables.iter().map(|table| table.digest()).collect();
        let manifest = Arc::new(Manifest::new(Domain::PUBLIC, geometry, digests));
        Self { data, tables, manifest }
    }

    fn image(&self) -> Digest {
        self.manifest.identity()
    }

    fn count(&self) -> u64 {
        self.tables.iter().map(|table| u64::from(table.chunks())).sum()
    }
}

fn plain(data: &[u8], n: u32) -> Vec<u8> {
    let start = n as usize * REAL % (data.len() - REAL);
    let mut plain = data[start..start + REAL].to_vec();
    plain[..4].copy_from_slice(&n.to_le_bytes());
    plain.resize(CHUNK, 0);
    plain
}

impl ChunkSource for Made {
    async fn manifest(&self, _: &ReadContext, _: &Digest) -> Result<Arc<Manifest>> {
        Ok(Arc::clone(&self.manifest))
    }

    async fn section_table(
        &self,
        _: &ReadContext,
        _: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        Ok(Arc::clone(&self.tables[section as usize]))
    }

    async fn chunks<K: ChunkSink>(
        &self,
        _: &ReadContext,
        place: &Place,
        sink: &mut K,
    ) -> Result<()> {
        let mut encoder = Encoder::new()?;
        for chunk in place.chunks.iter() {
            let plain = plain(&self.data, place.section * SECTION + chunk);
            let digest = self.tables[place.section as usize].digests()[chunk as usize];
            sink.chunk(chunk, encoder.encode(Domain::PUBLIC, digest, &plain)).await?;
        }
        Ok(())
    }
}

/// A source that has the papers and no chunks: what is served is a hit.
struct Empty(Rc<Made>);

impl ChunkSource for Empty {
    async fn manifest(&self, ctx: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        self.0.manifest(ctx, image).await
    }

    async fn section_table(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        self.0.section_table(ctx, image, section).await
    }

    async fn chunks<K: ChunkSink>(&self, _: &ReadContext, _: &Place, _: &mut K) -> Result<()> {
        Err(Error::new(Kind::Retry, "only what is cached is served here"))
    }
}

/// What one restart took.
struct Restart {
    frames: u64,
    opened: Duration,
    first_hit: Duration,
    whole: Duration,
    index_bytes: u64,
}

#[expect(clippy::disallowed_methods, reason = "this measures time")]
fn now() -> Instant {
    Instant::now()
}

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().expect("usage: cache-restart DIR [FRAMES…]"));
    let mut sizes: Vec<u32> = args.map(|n| n.parse().expect("a number of frames")).collect();
    if sizes.is_empty() {
        sizes = vec![250_000, 1_000_000];
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let mut restarts = Vec::new();
    for frames in sizes {
        let dir = dir.join(format!("restart-{frames}"));
        let _ = std::fs::remove_dir_all(&dir);
        let made = Rc::new(Made::new(frames));
        local.block_on(&runtime, fill(&dir, Rc::clone(&made)));
        let mut tries = Vec::new();
        for _ in 0..3 {
            drop_from_page_cache(&dir);
            tries.push(local.block_on(&runtime, restart(&dir, Rc::clone(&made))));
        }
        tries.sort_by_key(|restart| restart.whole);
        restarts.push(tries.swap_remove(1));
        std::fs::remove_dir_all(&dir).unwrap();
    }
    report(&restarts);
}

fn options() -> (Budget, Options) {
    let budget = Budget { memory: 256 << 20, in_flight: 256 << 20, disk: None };
    (budget, Options { scrub: 0, ..Options::default() })
}

fn open(dir: &Path, segment: u64) -> Arc<Shared> {
    let (budget, options) = options();
    let disk = DiskBudget { dir: dir.to_owned(), bytes: 64 << 30, reserve: 1 << 30 };
    let budget = Budget { disk: Some(disk), ..budget };
    Shared::start(budget, Options { segment: Some(segment), ..options }).unwrap()
}

/// Fills a log through the cache itself.
async fn fill(dir: &Path, made: Rc<Made>) {
    let mut encoder = Encoder::new().unwrap();
    let len = encoder.encode(Domain::PUBLIC, Digest::ZERO, &plain(&made.data, 77)).bytes().len();
    let shared = open(dir, (len as u64 * FRAMES_PER_SEGMENT).max(1 << 20));
    let image = made.image();
    let chunks = made.count();
    let cache = Cache::new(made, Arc::clone(&shared), Engine::detect().unwrap());
    cache.warm(&ReadContext::default(), &image, |_| {}).await.unwrap();
    shared.close();
    let status = shared.status();
    assert_eq!(status.disk_frames, chunks, "{status:?}");
    eprintln!("{}: {} frames, {} bytes", dir.display(), chunks, status.disk_bytes);
}

/// Writes back what is dirty and has the kernel forget the files.
fn drop_from_page_cache(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let file = std::fs::File::open(entry.unwrap().path()).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

async fn restart(dir: &Path, made: Rc<Made>) -> Restart {
    let chunks = made.count() as u32;
    let (image, last) = (made.image(), (chunks - 1) / SECTION);
    let place = |chunk: u32| {
        let universe = made.tables[(chunk / SECTION) as usize].chunks();
        let chunks = ChunkSet::of(universe, |c| c == chunk % SECTION);
        Place { image, section: chunk / SECTION, chunks }
    };
    let start = now();
    let shared = open(dir, 1 << 20);
    let engine = Engine::detect().unwrap();
    let cache = Cache::new(Empty(Rc::clone(&made)), Arc::clone(&shared), engine);
    let opened = now() - start;
    // The youngest chunk: it is found first.
    let youngest = place(last * SECTION + (chunks - 1) % SECTION);
    let mut first_hit = None;
    while first_hit.is_none() {
        let mut sink = Vec::new();
        let read = cache.chunks(&ReadContext::default(), &youngest, &mut sink).await;
        first_hit = read.is_ok().then(|| now() - start);
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    while shared.status().is_recovering() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let whole = now() - start;
    let status = shared.status();
    assert!(status.disk == DiskState::On && status.disk_frames == u64::from(chunks), "{status:?}");
    let mut sink = Vec::new();
    for chunk in (0..chunks).step_by(chunks as usize / 100) {
        cache.chunks(&ReadContext::default(), &place(chunk), &mut sink).await.unwrap();
    }
    shared.close();
    Restart {
        frames: status.disk_frames,
        opened,
        first_hit: first_hit.unwrap(),
        whole,
        index_bytes: status.index_bytes,
    }
}

fn report(restarts: &[Restart]) {
    println!("|   frames | opened | first hit | index whole | index per frame |");
    println!("|---------:|-------:|----------:|------------:|-----------------:|");
    for r in restarts {
        println!(
            "| {:8} | {:3.1} ms | {:6.1} ms | {:8.1} ms | {:7.1} bytes |",
            r.frames,
            r.opened.as_secs_f64() * 1e3,
            r.first_hit.as_secs_f64() * 1e3,
            r.whole.as_secs_f64() * 1e3,
            r.index_bytes as f64 / r.frames as f64
        );
    }
    if let [.., a, b] = restarts {
        let slope = (b.whole.as_secs_f64() - a.whole.as_secs_f64()) / (b.frames - a.frames) as f64;
        let far = b.whole.as_secs_f64() + slope * (1e8 - b.frames as f64);
        println!("slope {:.0} ns per frame: 100 M frames in {far:.0} s", slope * 1e9);
    }
}
