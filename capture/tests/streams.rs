//! Streams: what is wound around a raw disk, and what happens when it is damaged.

#![allow(missing_docs, reason = "test code")]

mod common;

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{MemorySink, assert_imports, import_into, noise, stream};
use forebay_capture::{Compression, DiskSource, SourceOptions};
use image::{Error, Kind};

const KINDS: [Compression; 3] = [Compression::Zstd, Compression::Gzip, Compression::Xz];

fn pack(kind: Compression, plain: &[u8]) -> Vec<u8> {
    match kind {
        Compression::None => plain.to_vec(),
        Compression::Zstd => zstd::encode_all(plain, 1).unwrap(),
        Compression::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(plain).unwrap();
            out.finish().unwrap()
        }
        Compression::Xz => {
            let mut out = liblzma::write::XzEncoder::new(Vec::new(), 1);
            out.write_all(plain).unwrap();
            out.finish().unwrap()
        }
    }
}

fn options(kind: Compression) -> SourceOptions {
    SourceOptions { compression: Some(kind), ..SourceOptions::default() }
}

fn attempt(kind: Compression, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
    let sink = MemorySink::default();
    import_into(stream(bytes, &options(kind))?, &sink, 18)?;
    Ok(sink.disk())
}

fn disk() -> Vec<u8> {
    let mut disk = vec![0; (3 << 20) + 512];
    disk[700_000..1_000_000].copy_from_slice(&noise(5, 300_000));
    disk[2_000_000..2_400_000].fill(3);
    disk
}

#[test]
fn compressed_files_are_known_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, extension) in KINDS.into_iter().zip(["zst", "gz", "xz"]) {
        let path = dir.path().join(format!("disk.raw.{extension}"));
        std::fs::write(&path, pack(kind, &disk())).unwrap();
        let source = DiskSource::open(&path, &SourceOptions::default()).unwrap();
        assert_eq!(source.size(), None);
        assert_imports(source, &disk(), 18);
    }
}

#[test]
fn several_streams_in_one_file_are_one_disk() {
    let disk = disk();
    let (a, b) = disk.split_at(1_234_567);
    for kind in KINDS {
        let packed = [pack(kind, a), pack(kind, b)].concat();
        assert!(attempt(kind, packed).unwrap() == disk, "{kind}");
    }
}

#[test]
fn a_truncated_stream_is_an_error_wherever_it_ends() {
    let disk = disk();
    for kind in KINDS {
        let packed = pack(kind, &disk);
        for len in (0..30).chain((30..packed.len()).step_by(packed.len() / 40)) {
            let e = attempt(kind, packed[..len].to_vec()).expect_err(&format!("{kind} at {len}"));
            assert_eq!(e.kind(), Kind::Corrupt, "{kind} at {len}: {e}");
            assert!(e.message().contains(kind.name()), "{e}");
        }
    }
}

#[test]
fn a_flipped_bit_is_noticed() {
    let plain = noise(8, 1 << 20);
    // gzip and xz carry checksums; zstd does when it is asked to, as the command line tool is.
    for kind in [Compression::Gzip, Compression::Xz] {
        let mut packed = pack(kind, &plain);
        let middle = packed.len() / 2;
        packed[middle] ^= 0x10;
        assert_eq!(attempt(kind, packed).unwrap_err().kind(), Kind::Corrupt, "{kind}");
    }
}

#[test]
fn garbage_is_an_error() {
    for kind in KINDS {
        assert_eq!(attempt(kind, noise(1, 5000)).unwrap_err().kind(), Kind::Corrupt);
    }
}

#[test]
fn a_bomb_is_cut_off_where_the_disk_should_end() {
    // 1 GiB of zeros in a megabyte or less; said to be 64 MiB.
    let size = 64 << 20;
    let bomb = pack(Compression::Zstd, &vec![0; 1 << 30]);
    let told = SourceOptions { size: Some(size), ..options(Compression::Zstd) };
    let e = import_into(stream(bomb, &told).unwrap(), &MemorySink::default(), 18).unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid);
    assert!(e.message().contains("longer than 67108864"), "{e}");
}

#[test]
fn a_window_beyond_the_limit_is_refused_not_allocated() {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(29).unwrap();
    encoder.write_all(&noise(1, 4096)).unwrap();
    let packed = encoder.finish().unwrap();
    let e = attempt(Compression::Zstd, packed).unwrap_err();
    assert!(e.kind() == Kind::Corrupt && e.message().contains("memory"), "{e}");

    let mut lzma = liblzma::stream::LzmaOptions::new_preset(1).unwrap();
    lzma.dict_size(1 << 29);
    let mut filters = liblzma::stream::Filters::new();
    filters.lzma2(&lzma);
    let check = liblzma::stream::Check::Crc64;
    let stream = liblzma::stream::Stream::new_stream_encoder(&filters, check).unwrap();
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(&noise(1, 4096)).unwrap();
    let packed = encoder.finish().unwrap();
    let e = attempt(Compression::Xz, packed).unwrap_err();
    assert!(e.kind() == Kind::Corrupt && e.message().contains("memory"), "{e}");
}

/// Gives a byte at a time, then fails.
struct Drip {
    left: u64,
    given: Arc<AtomicU64>,
}

impl Read for Drip {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        self.left -= 1;
        self.given.fetch_add(1, Ordering::Relaxed);
        buf[0] = 1;
        Ok(1)
    }
}

#[test]
fn a_stream_that_breaks_says_where() {
    let given = Arc::new(AtomicU64::new(0));
    let drip = Drip { left: 777, given: Arc::clone(&given) };
    let source = DiskSource::stream("pipe", Box::new(drip), &SourceOptions::default()).unwrap();
    let e = import_into(source, &MemorySink::default(), 18).unwrap_err();
    assert_eq!(e.kind(), Kind::Retry, "{e}");
    assert!(e.message().starts_with("pipe: at byte 777"), "{e}");
    assert_eq!(given.load(Ordering::Relaxed), 777);
}
