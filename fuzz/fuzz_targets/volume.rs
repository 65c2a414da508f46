//! A volume's files: whatever is in them, it is opened or refused, and what is opened can be read.
#![no_main]

use std::path::PathBuf;

use blockio::fake::MemFs;
use blockio::{Arena, Engine, EngineKind, EngineOptions, Fs, OpenMode};
use image::{Digest, Domain, Geometry, Manifest};
use libfuzzer_sys::fuzz_target;
use volume_pool::{NewVolume, Shelf, Volume};

const IDENTITY: usize = 512;
const PAGE: usize = 512;

/// A volume of one section, some of which is not there.
fn made() -> (Fs, Shelf) {
    let fs = MemFs::new().fs();
    let shelf = Shelf::open(fs.clone(), PathBuf::from("/v")).unwrap();
    let geometry = Geometry::new(1 << 20, 512, 14).unwrap();
    let image = Manifest::new(Domain(0), geometry, vec![Digest([1; 32])]);
    let (name, id) = ("v".to_owned(), [3; 16]);
    let (image, shares, device) = (Some(image.into()), false, None);
    shelf.create(&NewVolume { name, id, geometry, image, shares, device, created: 0 }).unwrap();
    (fs, shelf)
}

fuzz_target!(|data: &[u8]| {
    let (fs, shelf) = made();
    let file = |name: &str| fs.open(format!("/v/v/{name}"), OpenMode::write()).unwrap();
    let (identity, pages) = data.split_at(data.len().min(IDENTITY));
    if let [first, rest @ ..] = identity {
        // With a checksum that fits, or as it is.
        let mut block = rest.to_vec();
        if first % 2 == 0 && block.len() > 4 {
            let at = block.len().min(IDENTITY) - 4;
            block.truncate(at);
            block.resize(IDENTITY - 4, 0);
            block.extend(crc32c::crc32c(&block).to_le_bytes());
        }
        if first % 3 > 0 {
            file("identity").write_all_at(&block, 0).unwrap();
        }
    }
    for (number, page) in pages.chunks(PAGE + 2).enumerate() {
        let [kind, at, bytes @ ..] = page else { continue };
        let region = u64::from(kind % 8) * (4 << 30);
        let place = region + u64::from(at % 8) * PAGE as u64 + number as u64 % 2;
        file("maps").write_all_at(bytes, place).unwrap();
    }
    let Ok(files) = shelf.take("v") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let engine = Engine::start(EngineOptions::kind(EngineKind::Portable)).unwrap();
        let Ok(volume) = Volume::open(files, engine) else { return };
        let arrived = volume.arrived();
        assert!(arrived.present <= arrived.chunks);
        let all = 0..volume.size().min(1 << 20);
        let _ = volume.pieces(all, 1000).unwrap();
        if volume.is_here(&(0..4096.min(volume.size()))) {
            let arena = Arena::new("fuzz", 4096, 4096).unwrap();
            let mut buf = arena.acquire().await;
            buf.set_len(4096.min(volume.size() as usize));
            let _ = volume.read(0, buf).await;
        }
        let _ = volume.close().await;
    });
});
