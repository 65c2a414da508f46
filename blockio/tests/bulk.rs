//! Reading a disk from end to end, with either kind of engine.

use std::io::ErrorKind;
use std::ops::Range;

use blockio::bulk::{BulkOptions, BulkReader, read_sequential};
use blockio::fake::{Fault, FaultOp, FaultPlan, MemFs};
use blockio::{Arena, BlockFile, Cause, EngineChoice, EngineKind, OpenMode, cause};

const PIECE: usize = 64 << 10;

const ALL: Range<u64> = 0..u64::MAX;

fn kinds() -> Vec<EngineKind> {
    let (_dir, file) = disk(1);
    let arena = arena(1);
    let options =
        BulkOptions { choice: EngineChoice::Just(EngineKind::Ring), ..BulkOptions::new(PIECE) };
    match read_sequential(&file, Vec::new(), &arena, options) {
        Ok(_) => vec![EngineKind::Portable, EngineKind::Ring],
        Err(error) => {
            println!("skipping io_uring: {error}");
            vec![EngineKind::Portable]
        }
    }
}

fn arena(slots: usize) -> Arena {
    Arena::new("test", PIECE, slots * PIECE).unwrap()
}

/// A file of `pieces` pieces, each filled with its number plus one.
fn disk(pieces: usize) -> (tempfile::TempDir, BlockFile) {
    let dir = tempfile::tempdir().unwrap();
    let file = BlockFile::open(dir.path().join("disk"), OpenMode::create()).unwrap();
    for i in 0..pieces {
        file.write_all_at(&vec![i as u8 + 1; PIECE], (i * PIECE) as u64).unwrap();
    }
    (dir, file)
}

fn start(
    file: &BlockFile,
    ranges: &[Range<u64>],
    arena: &Arena,
    kind: EngineKind,
    depth: usize,
) -> BulkReader {
    let options =
        BulkOptions { choice: EngineChoice::Just(kind), depth, ..BulkOptions::new(PIECE) };
    let reader = read_sequential(file, ranges.to_vec(), arena, options).unwrap();
    assert_eq!(reader.kind(), kind);
    reader
}

/// Waits until the job's thread has let go of everything.
fn settled(arena: &Arena) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut all = Vec::new();
    for _ in 0..arena.slots() {
        all.push(runtime.block_on(arena.acquire()));
    }
}

#[test]
fn everything_comes_in_order() {
    for kind in kinds() {
        let (_dir, file) = disk(100);
        file.write_all_at(&[200; 1000], (100 * PIECE) as u64).unwrap();
        for (depth, slots) in [(1, 1), (8, 3), (16, 32), (200, 200)] {
            let arena = arena(slots);
            let mut reader = start(&file, &[ALL], &arena, kind, depth);
            for i in 0..100 {
                let piece = reader.blocking_next().unwrap().unwrap();
                assert_eq!((piece.offset, piece.buf.len()), ((i * PIECE) as u64, PIECE));
                assert!(piece.buf.iter().all(|byte| *byte == i as u8 + 1), "{kind}: piece {i}");
            }
            let last = reader.blocking_next().unwrap().unwrap();
            assert_eq!(&last.buf[..], [200; 1000]);
            drop(last);
            assert!(reader.blocking_next().is_none() && reader.blocking_next().is_none());
            settled(&arena);
        }
    }
}

#[test]
fn a_consumer_may_keep_everything() {
    for kind in kinds() {
        let (_dir, file) = disk(8);
        let arena = arena(8);
        let mut reader = start(&file, &[ALL], &arena, kind, 4);
        let pieces: Vec<_> =
            std::iter::from_fn(|| reader.blocking_next()).map(Result::unwrap).collect();
        assert_eq!((pieces.len(), arena.available()), (8, 0));
    }
}

#[test]
fn holes_and_what_was_not_asked_for_are_left_out() {
    for kind in kinds() {
        let (_dir, file) = disk(0);
        file.set_len(1 << 30).unwrap();
        file.write_all_at(&[1; 100], 10 << 20).unwrap();
        file.write_all_at(&[2; 100], 900 << 20).unwrap();
        let arena = arena(4);
        let ranges = [5..100, (10 << 20) - 10..(10 << 20) + 50, (600 << 20)..(1 << 30)];
        let mut reader = start(&file, &ranges, &arena, kind, 4);
        let mut next = || {
            reader.blocking_next().map(|piece| {
                let piece = piece.unwrap();
                (piece.offset, piece.buf.len(), piece.buf[0])
            })
        };
        assert_eq!(next(), Some((10 << 20, 50, 1)));
        assert_eq!(next(), Some((900 << 20, PIECE, 2)));
        assert_eq!(next(), None);
    }
}

#[test]
fn direct_io_reads_to_the_very_end() {
    for kind in kinds() {
        let (_dir, file) = disk(3);
        file.set_len((3 * PIECE - 1001) as u64).unwrap();
        let direct = match BlockFile::open(file.path(), OpenMode::read().direct()) {
            Ok(direct) => direct,
            Err(error) => return println!("skipping direct I/O: {error}"),
        };
        let arena = arena(2);
        let mut reader = start(&direct, &[ALL], &arena, kind, 4);
        for (i, len) in [PIECE, PIECE, PIECE - 1001].into_iter().enumerate() {
            let piece = reader.blocking_next().unwrap().unwrap();
            assert!(piece.buf[..] == vec![i as u8 + 1; len]);
        }
        assert!(reader.blocking_next().is_none());
    }
}

#[test]
fn a_reader_dropped_early_brings_its_buffers_back() {
    for kind in kinds() {
        let (_dir, file) = disk(64);
        let arena = arena(16);
        for taken in 0..6 {
            let mut reader = start(&file, &[ALL], &arena, kind, 8);
            for _ in 0..taken {
                reader.blocking_next().unwrap().unwrap();
            }
            drop(reader);
            settled(&arena);
        }
    }
}

#[test]
fn it_serves_a_runtime() {
    let (_dir, file) = disk(20);
    let arena = arena(4);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for kind in kinds() {
        let mut reader = start(&file, &[ALL], &arena, kind, 4);
        let count = runtime.block_on(async {
            let mut count = 0;
            while let Some(piece) = reader.next().await {
                piece.unwrap();
                count += 1;
            }
            count
        });
        assert_eq!(count, 20);
    }
}

#[test]
fn a_bad_sector_is_an_error_with_its_place_and_the_end() {
    let plan = FaultPlan::new();
    let (_dir, file) = disk(10);
    let file = plan.wrap(&file);
    let arena = arena(4);
    plan.fail(FaultOp::Read, 2, Fault::Short(100)).fail(FaultOp::Read, 5, Fault::Io);
    let mut reader = start(&file, &[ALL], &arena, EngineKind::Portable, 4);
    for _ in 0..3 {
        reader.blocking_next().unwrap().unwrap();
    }
    let error = reader.blocking_next().unwrap().unwrap_err();
    assert_eq!(cause(&error), Cause::Corrupt);
    assert!(error.to_string().contains(&format!("at byte {}", 3 * PIECE)), "{error}");
    assert!(reader.blocking_next().is_none());
}

#[test]
fn a_file_opened_for_writing_only_cannot_be_read() {
    for kind in kinds() {
        let (_dir, file) = disk(2);
        let mode = OpenMode { read: false, ..OpenMode::write() };
        let file = BlockFile::open(file.path(), mode).unwrap();
        let arena = arena(4);
        let mut reader = start(&file, &[ALL], &arena, kind, 4);
        let error = reader.blocking_next().unwrap().unwrap_err();
        assert_eq!(cause(&error), Cause::Denied, "{kind}: {error}");
        settled(&arena);
    }
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    for kind in kinds() {
        let (_dir, file) = disk(32);
        let arena = arena(2);
        let mut reader = start(&file, &[ALL], &arena, kind, 2);
        let first = reader.blocking_next().unwrap().unwrap();
        file.set_len((16 * PIECE + 10) as u64).unwrap();
        drop(first);
        let error = std::iter::from_fn(|| reader.blocking_next()).find_map(Result::err);
        // Either the piece is cut short, or the plan sees that nothing more is there.
        if let Some(error) = error {
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{kind}");
        }
    }
}

#[test]
fn fakes_and_devices() {
    let mem = MemFs::new();
    mem.add_device("/disk", 3 * PIECE as u64).unwrap();
    let file = mem.fs().open("/disk", OpenMode::read()).unwrap();
    let arena = arena(2);
    let options = BulkOptions::new(PIECE);
    let mut reader =
        read_sequential(&file, std::iter::once(0..u64::MAX).collect(), &arena, options).unwrap();
    assert_eq!(reader.kind(), EngineKind::Portable);
    assert_eq!(std::iter::from_fn(|| reader.blocking_next()).count(), 3);
}

#[test]
fn nonsense_is_refused() {
    let (_dir, file) = disk(1);
    let arena = arena(1);
    let refused = |ranges: Vec<Range<u64>>, options| {
        let error = read_sequential(&file, ranges, &arena, options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    };
    refused(Vec::new(), BulkOptions::new(PIECE + 1));
    refused(Vec::new(), BulkOptions::new(0));
    refused(Vec::new(), BulkOptions { depth: 0, ..BulkOptions::new(PIECE) });
    refused(vec![10..20, 15..30], BulkOptions::new(PIECE));
    refused(vec![10..20, 0..5], BulkOptions::new(PIECE));
}
