//! Whatever lies on a disk comes out of its image, byte for byte.

#![allow(missing_docs, reason = "test code")]

mod common;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use common::{MemorySink, assert_imports, import_into, noise, run, stream};
use forebay_capture::{DiskSource, ImportOptions, SourceOptions, import};
use image::Kind;
use image::geometry::MAX_DISK;
use proptest::prelude::*;
use tokio::sync::Barrier;

const MIB: u64 = 1 << 20;

/// Stretches of data on a disk of zeros: (offset, seed, length).
type Layout = Vec<(u64, u64, usize)>;

fn build(size: u64, layout: &Layout, path: &Path) -> Vec<u8> {
    let mut disk = vec![0; size as usize];
    let mut file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (offset, seed, len) in layout {
        let at = offset % size.max(1);
        let len = (*len as u64).min(size - at) as usize;
        // Seed 0 writes zeros: data to the file system, nothing to us.
        let bytes = if *seed == 0 { vec![0; len] } else { noise(*seed, len) };
        disk[at as usize..at as usize + len].copy_from_slice(&bytes);
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&bytes).unwrap();
    }
    disk
}

fn open(path: &Path) -> DiskSource {
    DiskSource::open(path, &SourceOptions::default()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_layout_round_trips(
        sectors in 0u64..200_000,
        layout in proptest::collection::vec((any::<u64>(), 0u64..4, 1usize..600_000), 0..8),
        chunk_log2 in 14u8..=20,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk with spaces.raw");
        let disk = build(sectors * 512, &layout, &path);
        let from_file = assert_imports(open(&path), &disk, chunk_log2);
        // The way in does not matter to what the image is.
        let from_stream = stream(disk.clone(), &SourceOptions::default()).unwrap();
        let from_stream = assert_imports(from_stream, &disk, chunk_log2);
        prop_assert_eq!(from_file.image, from_stream.image);
        let behind = ImportOptions { chunk_log2, background: true, ..ImportOptions::default() };
        let behind = run(import(open(&path), &MemorySink::default(), behind)).unwrap();
        prop_assert_eq!((from_file.image, from_file.stats.data), (behind.image, behind.stats.data));
    }
}

#[test]
fn an_empty_disk_is_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty.img");
    File::create(&path).unwrap();
    let imported = assert_imports(open(&path), &[], 18);
    assert_eq!(imported.manifest.sections().len(), 0);
    let said = SourceOptions { size: Some(0), ..SourceOptions::default() };
    let empty = stream(Vec::new(), &said).unwrap();
    assert_eq!(assert_imports(empty, &[], 18).image, imported.image);
    // A stream that was to bring a disk and brings nothing has most likely failed at its other end.
    let nothing = stream(Vec::new(), &SourceOptions::default()).unwrap();
    let e = import_into(nothing, &MemorySink::default(), 18).unwrap_err();
    assert!(e.kind() == Kind::Invalid && e.to_string().contains("empty"), "{e}");
}

#[test]
fn zeros_are_never_offered_wherever_they_come_from() {
    let size = 200 * MIB;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zeros.raw");
    // Written zeros are no hole: they are read, seen to be zeros and let go of.
    build(size, &vec![(3 * MIB, 0, MIB as usize), (150 * MIB, 0, 5)], &path);
    let sink = MemorySink::default();
    let imported = import_into(open(&path), &sink, 18).unwrap();
    assert!(imported.manifest.present().next().is_none());
    assert_eq!(sink.state.borrow().offers, 0);
    assert!(imported.stats.data >= MIB && imported.stats.data < 3 * MIB, "{:?}", imported.stats);
}

#[test]
fn a_tebibyte_of_hole_takes_no_time_and_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("huge.raw");
    let mut file = File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    let places = [0, (1 << 39) + 4096, (1 << 40) - 512];
    for at in places {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&[1; 512]).unwrap();
    }
    let sink = MemorySink::default();
    let imported = import_into(open(&path), &sink, 18).unwrap();
    let sections: Vec<_> = imported.manifest.present().map(|(s, _)| u64::from(s)).collect();
    assert_eq!(sections, places.map(|at| at / (64 * MIB)));
    assert!(imported.stats.data < 4 * MIB, "{:?}", imported.stats);
}

#[test]
fn memory_for_one_section_is_enough_for_any_number() {
    let size = 5 * 64 * MIB + 512;
    let disk: Vec<u8> = noise(7, 4096).into_iter().cycle().take(size as usize).collect();
    for chunk_log2 in [14, 22] {
        let sink = MemorySink::default();
        let options = ImportOptions { memory: 1, chunk_log2, ..ImportOptions::default() };
        let source = stream(disk.clone(), &SourceOptions::default()).unwrap();
        let imported = run(import(source, &sink, options)).unwrap();
        assert_eq!(imported.manifest.geometry().size(), size);
        assert!(sink.disk() == disk);
    }
}

#[test]
fn what_the_receiver_has_is_not_sent_again() {
    let disk = noise(3, 3 * MIB as usize);
    let sink = MemorySink::default();
    let first = stream(disk.clone(), &SourceOptions::default()).unwrap();
    let first = import_into(first, &sink, 18).unwrap();
    assert_eq!((first.stats.sent_chunks, first.stats.known_chunks), (12, 0));
    assert_eq!(first.stats.sent_plain, 3 * MIB);
    let again = import_into(stream(disk, &SourceOptions::default()).unwrap(), &sink, 18).unwrap();
    assert_eq!((again.stats.sent_chunks, again.stats.known_chunks), (0, 12));
    assert_eq!(again.image, first.image);
    assert_eq!(sink.state.borrow().frames, 12);
}

/// Of what has a parent nothing is kept until much of it is new: then what the receiver wants is read again.
#[test]
fn a_child_of_an_image_is_what_it_is_however_much_of_it_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let section = 64 * MIB as usize;
    let mut disk: Vec<u8> = noise(5, 4096).into_iter().cycle().take(2 * section).collect();
    let sink = MemorySink::default();
    // Every chunk another one.
    disk.chunks_mut(256 << 10)
        .zip(0u32..)
        .for_each(|(c, i)| c[..4].copy_from_slice(&i.to_le_bytes()));
    std::fs::write(&path, &disk).unwrap();
    let parent = import_into(open(&path), &sink, 18).unwrap().image;
    for (round, changed) in [0..0, 0..1, 200..202, 100..400, 0..512].into_iter().enumerate() {
        let round = round as u8 + 1;
        changed.clone().for_each(|chunk: usize| disk[(chunk << 18) + 9] = round);
        std::fs::write(&path, &disk).unwrap();
        let options = ImportOptions {
            parent: Some(parent),
            workers: 2.try_into().unwrap(),
            ..ImportOptions::default()
        };
        let child = run(import(open(&path), &sink, options)).unwrap();
        assert!(sink.disk() == disk, "round {round}");
        let (new, known) = (changed.len() as u64, 512 - changed.len() as u64);
        assert_eq!((child.stats.sent_chunks, child.stats.known_chunks), (new, known));
        assert_eq!(child.stats.data, 2 * section as u64);
    }
}

#[test]
fn sections_are_sealed_several_at_a_time() {
    let mut disk = vec![0; 4 * 64 * MIB as usize];
    disk.iter_mut().step_by(64 * MIB as usize).for_each(|b| *b = 1);
    let sink = MemorySink::default();
    // One after the other would wait for ever.
    *sink.gather.borrow_mut() = Some(Rc::new(Barrier::new(4)));
    import_into(stream(disk, &SourceOptions::default()).unwrap(), &sink, 18).unwrap();
    assert_eq!(sink.state.borrow().sealed.len(), 4);
}

#[test]
fn the_sector_size_is_part_of_the_image() {
    let disk = noise(9, 8192);
    let of = |sector, bytes: &[u8]| {
        let options = SourceOptions { sector, ..SourceOptions::default() };
        stream(bytes.to_vec(), &options).map(|s| import_into(s, &MemorySink::default(), 18))
    };
    let small = of(None, &disk).unwrap().unwrap();
    let large = of(Some(4096), &disk).unwrap().unwrap();
    assert_eq!(small.manifest.geometry().sector(), 512);
    assert_eq!(large.manifest.geometry().sector(), 4096);
    assert_ne!(small.image, large.image);
    let e = of(Some(4096), &disk[..512]).unwrap().unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid);
    assert!(e.message().contains("512 bytes") && e.message().contains("truncate -s %4096"), "{e}");
    let known = SourceOptions { sector: Some(1024), size: Some(8192), ..SourceOptions::default() };
    assert!(stream(disk, &known).unwrap_err().message().contains("1024"));
}

#[test]
fn a_size_that_is_not_whole_sectors_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.raw");
    std::fs::write(&path, [1; 1000]).unwrap();
    let e = DiskSource::open(&path, &SourceOptions::default()).unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid);
    for part in ["odd.raw", "1000 bytes", "truncate -s %512"] {
        assert!(e.message().contains(part), "{e}");
    }
}

#[test]
fn a_stream_of_unknown_size_is_planned_as_the_largest_disk() {
    let sink = MemorySink::default();
    let unknown = stream(vec![1; 1024], &SourceOptions::default()).unwrap();
    import_into(unknown, &sink, 18).unwrap();
    let planned = |sink: &MemorySink| sink.state.borrow().plan.as_ref().unwrap().geometry.size();
    assert_eq!(planned(&sink), MAX_DISK);
    let told = SourceOptions { size: Some(1024), ..SourceOptions::default() };
    import_into(stream(vec![1; 1024], &told).unwrap(), &sink, 18).unwrap();
    assert_eq!(planned(&sink), 1024);
    for wrong in [512, 1536] {
        let told = SourceOptions { size: Some(wrong), ..SourceOptions::default() };
        let e = import_into(stream(vec![1; 1024], &told).unwrap(), &sink, 18).unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid, "{e}");
    }
}

#[test]
fn the_plan_says_whose_child_it_is() {
    let sink = MemorySink::default();
    let parent = Some(image::Digest::of_chunk(b"parent"));
    let options = ImportOptions { parent, ..ImportOptions::default() };
    let progress = Arc::clone(&options.progress);
    run(import(stream(vec![1; 512], &SourceOptions::default()).unwrap(), &sink, options)).unwrap();
    assert_eq!(sink.state.borrow().plan.as_ref().unwrap().parent, parent);
    assert_eq!(progress.stats().sealed, 1);
}
