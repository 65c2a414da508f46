//! Disk hits through the page cache, and past it.
//!
//! ```text
//! cache-disk DIR [GIB]      2 GiB of frames unless told otherwise
//! ```
//! Reads frames of about 200 kB, as a 256 KiB chunk mostly is when it has shrunk, each once and in
//! random order, as many at a time as an engine takes, copies each out of its buffer and checks a
//! CRC32C, as a hit does. What counts is the time, and the processor time, which the network wants.

use std::path::Path;
use std::time::{Duration, Instant};

use blockio::{Arena, BlockFile, Engine, OpenMode};
use bytes::Bytes;
use futures::StreamExt;

/// Odd, so that hardly any frame begins or ends on a sector.
const FRAME: u64 = 200_003;
const SECTOR: u64 = 4096;
const SLOT: usize = 65 * 4096;
const AT_ONCE: usize = 16;
const RUNS: usize = 5;

#[expect(clippy::disallowed_methods, reason = "this measures time")]
fn now() -> Instant {
    Instant::now()
}

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = args.next().expect("usage: cache-disk DIR [GIB]");
    let gib: u64 = args.next().map_or(2, |n| n.parse().expect("a number of GiB"));
    let path = Path::new(&dir).join("frames");
    fill(&path, gib << 30);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    println!("|                      |   MB/s | processor time per frame |");
    println!("|:---------------------|-------:|-------------------------:|");
    for (name, direct, cold) in [
        ("past the page cache", true, true),
        ("page cache, cold", false, true),
        ("page cache, warm", false, false),
    ] {
        let mut runs: Vec<_> = (0..RUNS)
            .map(|_| {
                if cold {
                    drop_from_page_cache(&path);
                }
                runtime.block_on(read_all(&path, direct, gib << 30))
            })
            .collect();
        runs.sort_by_key(|(wall, _)| *wall);
        let (wall, processor) = runs[RUNS / 2];
        let frames = (gib << 30) / FRAME;
        let rate = (frames * FRAME) as f64 / wall.as_secs_f64() / 1e6;
        let each = processor.as_secs_f64() * 1e6 / frames as f64;
        println!("| {name:20} | {rate:6.0} | {each:21.0} µs |");
    }
    std::fs::remove_file(&path).unwrap();
}

fn fill(path: &Path, len: u64) {
    let file = BlockFile::open(path, OpenMode::create()).unwrap();
    let mut x = 1u64;
    let mut block = vec![0; 4 << 20];
    for at in (0..len).step_by(block.len()) {
        for word in block.chunks_exact_mut(8) {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            word.copy_from_slice(&x.to_le_bytes());
        }
        file.write_all_at(&block, at).unwrap();
    }
    file.sync_all().unwrap();
}

fn drop_from_page_cache(path: &Path) {
    let file = std::fs::File::open(path).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

async fn read_all(path: &Path, direct: bool, len: u64) -> (Duration, Duration) {
    let mode = if direct { OpenMode::read().direct() } else { OpenMode::read() };
    let file = BlockFile::open(path, mode).unwrap();
    let arena = Arena::new("frames", SLOT, AT_ONCE * SLOT).unwrap();
    let engine = Engine::detect().unwrap();
    let frames = len / FRAME;
    // A step that has no divisor in common with the count visits each once.
    let step = (frames * 5 / 8..).find(|step| gcd(*step, frames) == 1).unwrap();
    let (start, before) = (now(), processor_time());
    let reads = futures::stream::iter(0..frames).map(|n| {
        let at = n * step % frames * FRAME;
        read_frame(&engine, &file, &arena, at, direct)
    });
    let sums = reads.buffer_unordered(AT_ONCE).map(u64::from);
    let sum = sums.fold(0, |sum, crc| async move { sum ^ crc }).await;
    assert_ne!(sum, 0);
    (now() - start, processor_time() - before)
}

async fn read_frame(
    engine: &Engine,
    file: &BlockFile,
    arena: &Arena,
    at: u64,
    direct: bool,
) -> u32 {
    let mut buf = arena.acquire().await;
    let (from, end) = match direct {
        true => (at - at % SECTOR, (at + FRAME).next_multiple_of(SECTOR)),
        false => (at, at + FRAME),
    };
    buf.set_len((end - from) as usize);
    let (result, buf) = engine.read_at(file, buf, from).await;
    result.unwrap();
    let skip = (at - from) as usize;
    let frame = Bytes::copy_from_slice(&buf[skip..skip + FRAME as usize]);
    crc32c::crc32c(&frame)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What this process and the kernel on its behalf have used, in ticks of 10 ms.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after = stat.rsplit(')').next().unwrap().split_whitespace();
    let ticks: u64 = after.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(10 * ticks)
}
