//! What the benchmarks share: real chunks.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use image::is_zero;

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
