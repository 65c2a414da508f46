//! What the benchmarks share: real chunks.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

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
    let path = disk();
    let file = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let total = file.metadata().expect("metadata of an open file").len() as usize / CHUNK;
    let mut found = Vec::new();
    for i in 0..total {
        let mut chunk = vec![0; CHUNK];
        file.read_exact_at(&mut chunk, (i * CHUNK) as u64).expect("a chunk inside the file");
        if !is_zero(&chunk) {
            found.push(chunk);
        }
    }
    let step = found.len().div_ceil(count).max(1);
    found.into_iter().step_by(step).collect()
}
