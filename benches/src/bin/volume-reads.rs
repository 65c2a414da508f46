//! Reads 4 KiB many times, through a volume that is all here or from its file, to be counted by callgrind.
//!
//! ```text
//! volume-reads DIR io_uring|portable volume|file COUNT
//! ```
//! One read after the other, on one thread. Prints the processor time of the reads as a line of JSON.

use std::path::Path;

use blockio::{Arena, Engine, EngineKind, EngineOptions, Fs};
use forebay_benches::cpu_seconds_of;
use image::Geometry;
use serde_json::json;
use volume_pool::{NewVolume, Shelf, Volume};

const SIZE: u64 = 64 << 20;
const READ: usize = 4096;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, engine, what, count] = &args[..] else {
        panic!("usage: volume-reads DIR io_uring|portable volume|file COUNT");
    };
    let kind = match engine.as_str() {
        "io_uring" => EngineKind::Ring,
        _ => EngineKind::Portable,
    };
    let count = count.parse().expect("a number of reads");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let reads = read(Path::new(dir), kind, what == "volume", count);
    tokio::task::LocalSet::new().block_on(&runtime, reads);
}

async fn read(dir: &Path, kind: EngineKind, through_volume: bool, count: u64) {
    let engine = Engine::start(EngineOptions::kind(kind)).unwrap();
    let volume = Volume::open(files(dir), engine.clone()).unwrap();
    assert!(volume.is_complete());
    let arena = Arena::new("reads", READ, 16 * READ).unwrap();
    let mut buf = arena.acquire().await;
    let so_far = || cpu_seconds_of(std::process::id());
    let before = so_far();
    for place in 0..count {
        // Far from the one before, and each the same in every run.
        let at = place.wrapping_mul(0x9e37_79b9) % (SIZE / READ as u64) * READ as u64;
        buf.set_len(READ);
        if through_volume {
            let (read, back) = volume.read(at, buf).await;
            read.unwrap();
            buf = back;
        } else {
            let (read, back) = engine.read_at(volume.data(), buf, at).await;
            assert_eq!(read.unwrap(), READ);
            buf = back;
        }
    }
    println!("{}", json!({ "cpu_seconds": so_far() - before }));
}

/// A blank volume: all of it is here, as zeros.
fn files(dir: &Path) -> volume_pool::Files {
    let shelf = Shelf::open(Fs::os(), dir.join("volumes")).unwrap();
    let geometry = Geometry::new(SIZE, 512, 18).unwrap();
    let (name, id) = ("v".into(), [1; 16]);
    let (image, shares, device) = (None, false, None);
    let new = NewVolume { name, id, geometry, image, shares, device, created: 0 };
    shelf.create(&new).unwrap();
    shelf.take("v").unwrap()
}
