//! Which way into the page cache is cheapest for a core that has better things to do?
//!
//! Every iteration takes `CHUNKS` chunks of 256 KiB: each is made on the runtime's thread, as a
//! decoder would make it, and written at its place. `idle` does this on one thread and leaves the
//! other cores to whoever helps; `busy` does it on all cores at once, each with its own runtime, as
//! the chunk path does: nobody is idle then, and what counts is the total of work.
//!
//! `cargo bench -p forebay-blockio --bench engines`; `TMPDIR` chooses the disk.

use std::hint::black_box;
use std::path::Path;
use std::thread;

use blockio::bulk::{BulkOptions, read_sequential};
use blockio::{Arena, BlockFile, Engine, EngineChoice, EngineKind, EngineOptions, OpenMode};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Builder;
use tokio::task::JoinSet;

const CHUNK: usize = 256 << 10;
const CHUNKS: u64 = 256;
const SLOTS: usize = 64;

/// How the bytes get into the file.
#[derive(Clone, Copy)]
enum Way {
    /// `pwrite` on the runtime's own thread.
    Inline,
    Ring {
        depth: u32,
        registered: bool,
    },
    Portable {
        threads: u32,
    },
}

const WAYS: [(&str, Way); 11] = [
    ("inline", Way::Inline),
    ("ring/1", Way::Ring { depth: 1, registered: false }),
    ("ring/4", Way::Ring { depth: 4, registered: false }),
    ("ring/16", Way::Ring { depth: 16, registered: false }),
    ("ring/64", Way::Ring { depth: 64, registered: false }),
    ("ring/4 registered", Way::Ring { depth: 4, registered: true }),
    ("ring/16 registered", Way::Ring { depth: 16, registered: true }),
    ("ring/64 registered", Way::Ring { depth: 64, registered: true }),
    ("portable/1", Way::Portable { threads: 1 }),
    ("portable/2", Way::Portable { threads: 2 }),
    ("portable/4", Way::Portable { threads: 4 }),
];

/// Stands for decompression: every byte is written, at a few GB/s.
fn decode(buf: &mut [u8], seed: u64) {
    let mut x = seed | 1;
    for word in buf.as_chunks_mut::<8>().0 {
        x = x.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        *word = x.to_le_bytes();
    }
}

fn fill(way: Way, path: &Path, arena: &Arena) {
    let file = BlockFile::open(path, OpenMode::write()).unwrap();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let Some(engine) = engine(way, arena) else {
            let mut buf = arena.try_acquire().unwrap();
            for i in 0..CHUNKS {
                decode(&mut buf, i);
                file.write_all_at(&buf, i * CHUNK as u64).unwrap();
                tokio::task::yield_now().await;
            }
            return;
        };
        let mut writes = JoinSet::new();
        for i in 0..CHUNKS {
            let mut buf = arena.acquire().await;
            decode(&mut buf, i);
            let (engine, file) = (engine.clone(), file.clone());
            writes.spawn(async move { engine.write_at(&file, buf, i * CHUNK as u64).await.0 });
            tokio::task::yield_now().await;
        }
        while let Some(written) = writes.join_next().await {
            written.unwrap().unwrap();
        }
    });
}

fn engine(way: Way, arena: &Arena) -> Option<Engine> {
    let options = match way {
        Way::Inline => return None,
        Way::Ring { depth, registered } => EngineOptions {
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

fn writes(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let cores = thread::available_parallelism().unwrap().get();
    for (name, threads) in [("idle", 1), ("busy", cores)] {
        let lanes: Vec<_> = (0..threads)
            .map(|i| {
                let path = dir.path().join(format!("disk{i}"));
                let file = BlockFile::open(&path, OpenMode::create()).unwrap();
                file.write_all_at(&vec![1; CHUNK * CHUNKS as usize], 0).unwrap();
                (path, Arena::new("bench", CHUNK, SLOTS * CHUNK).unwrap())
            })
            .collect();
        let mut group = c.benchmark_group(format!("write 256 KiB/{name}"));
        group.throughput(Throughput::Bytes(CHUNK as u64 * CHUNKS * threads as u64));
        group.sample_size(20);
        for (way_name, way) in WAYS {
            group.bench_with_input(BenchmarkId::from_parameter(way_name), &way, |b, way| {
                b.iter(|| {
                    thread::scope(|scope| {
                        for (path, arena) in &lanes {
                            scope.spawn(|| fill(*way, path, arena));
                        }
                    });
                });
            });
        }
        group.finish();
    }
}

/// A disk read from end to end, past the page cache, with a consumer that looks at every byte.
fn reads(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let size = 256_u64 << 20;
    let file = BlockFile::open(&path, OpenMode::create()).unwrap();
    file.write_all_at(&vec![7; size as usize], 0).unwrap();
    file.sync_data().unwrap();
    let Ok(direct) = BlockFile::open(&path, OpenMode::read().direct()) else { return };
    let arena = Arena::new("bench", 1 << 20, 96 << 20).unwrap();
    let mut group = c.benchmark_group("read 256 MiB direct");
    group.throughput(Throughput::Bytes(size));
    group.sample_size(10);
    for kind in [EngineKind::Ring, EngineKind::Portable] {
        for depth in [1, 4, 16, 64] {
            let options = BulkOptions {
                depth,
                choice: EngineChoice::Just(kind),
                ..BulkOptions::new(1 << 20)
            };
            group.bench_function(format!("{kind}/{depth}"), |b| {
                b.iter(|| {
                    let ranges = std::iter::once(0..size).collect();
                    let mut reader =
                        read_sequential(&direct, ranges, &arena, options.clone()).unwrap();
                    let mut sum = 0_u64;
                    while let Some(piece) = reader.blocking_next() {
                        let piece = piece.unwrap();
                        sum += piece.buf.iter().map(|byte| u64::from(*byte)).sum::<u64>();
                    }
                    black_box(sum)
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, writes, reads);
criterion_main!(benches);
