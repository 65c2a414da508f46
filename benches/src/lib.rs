//! What the benchmarks share: real chunks, and how their programs meet.

pub mod s3;

use std::collections::HashSet;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use image::{Digest, Domain, Encoder, Frame, is_zero};
use rustix::time::{ClockId, clock_gettime};

/// Length of a chunk in bytes, as most images have it.
pub const CHUNK: usize = 256 << 10;

/// The data to measure on: the disk named by `FOREBAY_BENCH_DISK`, else this very program, which is
/// about as compressible as what lies on a system disk.
pub fn disk() -> PathBuf {
    std::env::var_os("FOREBAY_BENCH_DISK").map_or_else(
        || std::env::current_exe().expect("a program knows where it lies"),
        PathBuf::from,
    )
}

/// Up to `count` chunks that are not zeros, spread evenly over [`disk`].
pub fn chunks(count: usize) -> Vec<Vec<u8>> {
    chunks_of(&disk(), count)
}

/// Up to `count` chunks that are not zeros, spread evenly over a disk.
pub fn chunks_of(path: &Path, count: usize) -> Vec<Vec<u8>> {
    let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let total =
        file.metadata().expect("metadata of an open file").len().div_ceil(CHUNK as u64) as usize;
    let mut found = Vec::new();
    for i in 0..total {
        let start = (i * CHUNK) as u64;
        let len =
            (file.metadata().expect("metadata of an open file").len() - start).min(CHUNK as u64);
        let mut chunk = vec![0; len as usize];
        file.read_exact_at(&mut chunk, start).expect("a chunk inside the file");
        if !is_zero(&chunk) {
            found.push(chunk);
        }
    }
    let step = found.len().div_ceil(count).max(1);
    found.into_iter().step_by(step).collect()
}

/// The frames of a disk's chunks in the order of the disk, each distinct chunk once: what a store has of
/// it.
pub fn frames_of(path: &Path) -> Vec<Frame> {
    let (mut encoder, mut seen) = (Encoder::new().expect("zstd"), HashSet::new());
    let mut frames = Vec::new();
    for chunk in chunks_of(path, usize::MAX) {
        let digest = Digest::of_chunk(&chunk);
        if seen.insert(digest) {
            frames.push(encoder.encode(Domain::PUBLIC, digest, &chunk));
        }
    }
    frames
}

/// The digests of a disk's chunks that are not zeros, by section of 64 MiB.
pub fn sections_of(path: &Path) -> Vec<HashSet<Digest>> {
    const SECTION: u64 = 64 << 20;
    let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let total = file.metadata().expect("metadata of an open file").len();
    let starts = (0..total).step_by(SECTION as usize);
    let sections = starts.map(|start| {
        let mut bytes = vec![0; (total - start).min(SECTION) as usize];
        file.read_exact_at(&mut bytes, start).expect("a section inside the file");
        bytes.chunks(CHUNK).filter(|c| !is_zero(c)).map(Digest::of_chunk).collect()
    });
    sections.collect()
}

/// Processor time that this process has taken, in seconds.
pub fn cpu_seconds() -> f64 {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9
}

/// Processor time that the threads of a process have had so far, those that have ended left out. Unlike
/// [`cpu_seconds`] it does not ask the kernel's page of clocks, which valgrind does not show.
pub fn cpu_seconds_of(pid: u32) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process that runs");
    let spent = tasks.map(|task| {
        let stat = std::fs::read_to_string(task.expect("a task").path().join("schedstat"));
        let first = |stat: String| stat.split(' ').next().and_then(|ns| ns.parse::<u64>().ok());
        stat.ok().and_then(first).unwrap_or(0)
    });
    spent.sum::<u64>() as f64 / 1e9
}
