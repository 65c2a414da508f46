//! What a chunk's way into the page cache costs in processor time, whoever spends it.
//!
//! Wall time says little on a machine that has other things to do; this counts the time that all
//! threads of the process have spent, the kernel's workers for it included, and apart from it what
//! the runtime's own threads have spent, which is what the network loses. All cores work at once,
//! as on the chunk path. The ways take turns, round after round, so that a disturbance meets all of
//! them; printed are the medians over the rounds, per chunk of 256 KiB. Making the chunk, which is
//! the same for all, is measured as a way of its own and included in the others.
//!
//! `cargo bench -p forebay-blockio --bench cpu`, or with `-- Ring` only the ways so named; `TMPDIR`
//! chooses the disk.

use std::hint::black_box;
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use blockio::{Arena, BlockFile, Engine, EngineKind, EngineOptions, OpenMode};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Builder;
use tokio::task::JoinSet;

const CHUNK: usize = 256 << 10;
const CHUNKS: u64 = 256;
const ROUNDS: usize = 41;

/// How the bytes get into the file.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Not at all: what making them costs.
    Nowhere,
    /// `pwrite` on the runtime's own thread.
    Inline,
    Ring {
        depth: u32,
        registered: bool,
    },
    /// The same past the page cache.
    Direct {
        depth: u32,
        registered: bool,
    },
    Portable {
        threads: u32,
    },
}

const WAYS: [Way; 13] = [
    Way::Nowhere,
    Way::Inline,
    Way::Ring { depth: 1, registered: false },
    Way::Ring { depth: 4, registered: false },
    Way::Ring { depth: 16, registered: false },
    Way::Ring { depth: 64, registered: false },
    Way::Ring { depth: 4, registered: true },
    Way::Ring { depth: 16, registered: true },
    Way::Direct { depth: 16, registered: false },
    Way::Direct { depth: 16, registered: true },
    Way::Portable { threads: 1 },
    Way::Portable { threads: 2 },
    Way::Portable { threads: 4 },
];

/// Microseconds.
#[derive(Clone, Copy)]
struct Cost {
    all: f64,
    own: f64,
    wall: f64,
}

fn now(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// Stands for decompression: every byte is written, at a few GB/s.
fn decode(buf: &mut [u8], seed: u64) {
    let mut x = seed | 1;
    for word in buf.as_chunks_mut::<8>().0 {
        x = x.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        *word = x.to_le_bytes();
    }
}

/// The buffers in use: enough for the depth and one that is being made.
fn arena(way: Way) -> Arena {
    let slots = match way {
        Way::Nowhere | Way::Inline => 1,
        Way::Ring { depth, .. } | Way::Direct { depth, .. } => depth as usize + 1,
        Way::Portable { threads } => threads as usize + 1,
    };
    let arena = Arena::new("bench", CHUNK, slots * CHUNK).unwrap();
    // Touched before, as after a second of work.
    let mut all: Vec<_> = std::iter::from_fn(|| arena.try_acquire()).collect();
    all.iter_mut().for_each(|buf| buf.fill(1));
    drop(all);
    arena
}

fn engine(way: Way, arena: &Arena) -> Option<Engine> {
    let options = match way {
        Way::Nowhere | Way::Inline => return None,
        Way::Ring { depth, registered } | Way::Direct { depth, registered } => EngineOptions {
            depth,
            register: if registered { vec![arena.clone()] } else { Vec::new() },
            ..EngineOptions::kind(EngineKind::Ring)
        },
        Way::Portable { threads } => {
            EngineOptions { threads, ..EngineOptions::kind(EngineKind::Portable) }
        }
    };
    Some(Engine::start(options).unwrap())
}

async fn fill(way: Way, engine: Option<Engine>, file: &BlockFile, arena: &Arena) {
    let mut writes = JoinSet::new();
    for i in 0..CHUNKS {
        let mut buf = arena.acquire().await;
        decode(&mut buf, i);
        match (way, &engine) {
            (Way::Nowhere, _) => drop(black_box(buf)),
            (_, None) => file.write_all_at(&buf, i * CHUNK as u64).unwrap(),
            (_, Some(engine)) => {
                let (engine, file) = (engine.clone(), file.clone());
                writes.spawn(async move { engine.write_at(&file, buf, i * CHUNK as u64).await.0 });
            }
        }
        tokio::task::yield_now().await;
    }
    while let Some(written) = writes.join_next().await {
        written.unwrap().unwrap();
    }
}

/// One core's share; returns what its own thread has spent.
fn lane(way: Way, path: &Path, barrier: &Barrier) -> f64 {
    // A file apart for direct I/O, which would else pay for flushing the others' pages.
    let (path, mode) = match way {
        Way::Direct { .. } => (path.with_extension("direct"), OpenMode::write().direct()),
        _ => (path.to_owned(), OpenMode::write()),
    };
    let file = BlockFile::open(path, mode).unwrap();
    let arena = arena(way);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let engine = runtime.block_on(async { engine(way, &arena) });
    barrier.wait();
    barrier.wait();
    let start = now(ClockId::ThreadCPUTime);
    runtime.block_on(fill(way, engine, &file, &arena));
    let own = now(ClockId::ThreadCPUTime) - start;
    barrier.wait();
    own
}

fn measure(way: Way, paths: &[std::path::PathBuf]) -> Cost {
    let barrier = Barrier::new(paths.len() + 1);
    thread::scope(|scope| {
        let lanes: Vec<_> =
            paths.iter().map(|path| scope.spawn(|| lane(way, path, &barrier))).collect();
        barrier.wait();
        let (all, wall) = (now(ClockId::ProcessCPUTime), now(ClockId::Monotonic));
        barrier.wait();
        barrier.wait();
        let all = now(ClockId::ProcessCPUTime) - all;
        let wall = now(ClockId::Monotonic) - wall;
        let own: f64 = lanes.into_iter().map(|lane| lane.join().unwrap()).sum();
        let chunks = CHUNKS as f64 * paths.len() as f64;
        Cost { all: all / chunks, own: own / chunks, wall: wall / chunks }
    })
}

fn median(costs: &[Cost], of: impl Fn(&Cost) -> f64) -> f64 {
    let mut values: Vec<_> = costs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let cores = thread::available_parallelism().unwrap().get();
    let paths: Vec<_> = (0..cores).map(|i| dir.path().join(format!("disk{i}"))).collect();
    for path in paths.iter().flat_map(|path| [path.clone(), path.with_extension("direct")]) {
        let file = BlockFile::open(path, OpenMode::create()).unwrap();
        file.write_all_at(&vec![1; CHUNK * CHUNKS as usize], 0).unwrap();
        file.sync_data().unwrap();
    }
    let names: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let named = |way: &Way| {
        names.is_empty() || names.iter().any(|name| format!("{way:?}").contains(name.as_str()))
    };
    let ways: Vec<_> = WAYS.into_iter().filter(named).collect();
    let mut costs = vec![Vec::new(); ways.len()];
    for _ in 0..ROUNDS {
        for (way, costs) in ways.iter().zip(&mut costs) {
            costs.push(measure(*way, &paths));
        }
    }
    println!("µs per 256 KiB chunk, median of {ROUNDS} rounds on {cores} cores");
    println!("{:>12} {:>12} {:>12}", "all threads", "own thread", "wall");
    for (way, costs) in ways.iter().zip(&costs) {
        let (all, own) = (median(costs, |cost| cost.all), median(costs, |cost| cost.own));
        println!("{all:>12.1} {own:>12.1} {:>12.1}  {way:?}", median(costs, |cost| cost.wall));
    }
}
