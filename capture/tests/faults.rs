//! What happens when something fails: the first error comes out, everything else winds down.

#![allow(missing_docs, reason = "test code")]

mod common;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use blockio::fake::{Fault, FaultOp, FaultPlan};
use blockio::{BlockFile, OpenMode};
use common::{At, MemorySink, import_into, noise, run, stream};
use forebay_capture::source::RawDisk;
use forebay_capture::{Disk, DiskSource, ImportOptions, Imported, Skipped, SourceOptions, import};
use image::record::Unread;
use image::{Digest, Error, Kind, Result};

const MIB: usize = 1 << 20;

/// A raw file of noise, and its directory.
fn raw(len: usize) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, noise(11, len)).unwrap();
    (dir, path)
}

fn open(path: &std::path::Path) -> DiskSource {
    DiskSource::open(path, &SourceOptions::default()).unwrap()
}

#[test]
fn the_sinks_errors_come_out_unaltered() {
    let busy = Kind::Busy(Duration::from_secs(3));
    for (at, kind) in [
        (At::Open, Kind::Denied),
        (At::Offer, Kind::Retry),
        (At::Chunk, Kind::Full),
        (At::Seal, busy),
        (At::Commit, Kind::Conflict),
    ] {
        let (_dir, path) = raw(70 * MIB);
        let sink = MemorySink::default();
        sink.fail.set(Some((at, kind)));
        let e = import_into(open(&path), &sink, 18).unwrap_err();
        assert_eq!(e.kind(), kind, "{e}");
        assert!(e.message().contains("disk.raw") && e.message().contains("fails"), "{e}");
        assert!(sink.state.borrow().manifest.is_none());
    }
}

#[test]
fn what_does_not_arrive_as_it_was_is_read_and_sent_again_a_few_times() {
    for at in [At::Chunk, At::Seal] {
        let (_dir, path) = raw(70 * MIB);
        let sink = MemorySink::default();
        sink.fail.set(Some((at, Kind::Corrupt)));
        sink.times.set(Some(2));
        import_into(open(&path), &sink, 18).unwrap();
        assert!(sink.disk() == noise(11, 70 * MIB), "{at:?}");
        // What is always wrong is not the work of a bit that has flipped.
        let sink = MemorySink::default();
        sink.fail.set(Some((at, Kind::Corrupt)));
        let e = import_into(open(&path), &sink, 18).unwrap_err();
        assert_eq!(e.kind(), Kind::Corrupt, "{e}");
        assert!(e.message().contains("section ") && sink.state.borrow().offers <= 6, "{e}");
        // A stream cannot be read again.
        let sink = MemorySink::default();
        sink.fail.set(Some((at, Kind::Corrupt)));
        sink.times.set(Some(1));
        let stream = stream(noise(11, MIB), &SourceOptions::default()).unwrap();
        assert_eq!(import_into(stream, &sink, 18).unwrap_err().kind(), Kind::Corrupt);
    }
}

#[test]
fn a_sink_that_makes_another_image_is_caught() {
    let (_dir, path) = raw(MIB);
    let sink = MemorySink::default();
    sink.lie.set(true);
    assert_eq!(import_into(open(&path), &sink, 18).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn a_sink_that_wants_what_was_not_offered_is_refused() {
    let mut disk = noise(1, MIB);
    disk[..256 << 10].fill(0);
    let sink = MemorySink::default();
    sink.greedy.set(true);
    let e = import_into(stream(disk, &SourceOptions::default()).unwrap(), &sink, 18).unwrap_err();
    assert!(e.kind() == Kind::Invalid && e.message().contains("section 0"), "{e}");
}

/// The system's numbers for a medium that fails, and for a device that is not there any more.
const EIO: i32 = 5;
const ENXIO: i32 = 6;
const ENODATA: i32 = 61;

/// A disk of which some bytes cannot be read.
fn failing(
    path: &std::path::Path,
    bad: impl IntoIterator<Item = Range<u64>>,
    errno: i32,
) -> DiskSource {
    let plan = FaultPlan::new();
    let file = plan.wrap(&BlockFile::open(path, OpenMode::read()).unwrap());
    let disk = Arc::new(RawDisk::new(file).unwrap());
    for bad in bad {
        plan.unreadable(bad, errno);
    }
    DiskSource::disk("failing", 512, disk).unwrap()
}

/// The same as in `import_into`, with what cannot be read noted. With a parent little is expected to be new, and what is
/// new is read twice.
fn skipping(
    source: DiskSource,
    sink: &MemorySink,
    parent: Option<Digest>,
) -> (Result<Imported>, Option<Unread>) {
    let skipped = Arc::new(Skipped::default());
    let options =
        ImportOptions { parent, skipped: Some(Arc::clone(&skipped)), ..ImportOptions::default() };
    let imported = run(import(source, sink, options));
    (imported, skipped.unread())
}

#[test]
fn what_cannot_be_read_is_named_to_the_block() {
    let (_dir, path) = raw(MIB);
    for (bad, errno, says) in [
        (700_000..700_001, EIO, "4096 bytes at 696320 cannot be read"),
        (540_000..570_000, ENODATA, "36864 bytes at 536576 cannot be read"),
        (MIB as u64 - 1..MIB as u64, EIO, "4096 bytes at 1044480 cannot be read"),
    ] {
        let e = import_into(failing(&path, [bad], errno), &MemorySink::default(), 18).unwrap_err();
        assert_eq!(e.kind(), Kind::Io, "{e}");
        assert!(e.message().contains(says) && e.message().contains("--skip-bad"), "{e}");
    }
}

#[test]
fn a_read_that_fails_once_is_repeated() {
    let (_dir, path) = raw(MIB);
    let plan = FaultPlan::new();
    let file = plan.wrap(&BlockFile::open(&path, OpenMode::read()).unwrap());
    plan.fail(FaultOp::Read, 3, Fault::Io);
    let source = DiskSource::disk("failing", 512, Arc::new(RawDisk::new(file).unwrap())).unwrap();
    common::assert_imports(source, &noise(11, MIB), 18);
}

#[test]
fn what_cannot_be_read_is_skipped_and_noted_if_that_is_wanted() {
    // Over the edges of pieces and of a section; the last bytes of the disk, too.
    let (_dir, path) = raw(130 * MIB + 512);
    let end = 130 * MIB as u64 + 512;
    let section = 64 * MIB as u64;
    let bad = [100..101, 262_000..262_200, section - 1..section + 1, end - 1..end];
    let stretches = [(0, 4096), (258_048, 8192), (section - 4096, 8192), (end - 512, 512)];
    let mut disk = noise(11, 130 * MIB + 512);
    for (start, len) in stretches {
        disk[start as usize..(start + len) as usize].fill(0);
    }
    for parent in [None, Some(Digest::of_chunk(b"parent"))] {
        let sink = MemorySink::default();
        let (imported, unread) = skipping(failing(&path, bad.clone(), EIO), &sink, parent);
        imported.unwrap();
        let unread = unread.unwrap();
        let got: Vec<_> = unread.first.iter().map(|s| (s.start, s.len)).collect();
        assert_eq!((got.as_slice(), unread.stretches), (&stretches[..], 4));
        assert!(sink.disk() == disk);
    }
}

#[test]
fn a_disk_that_can_be_read_has_nothing_to_note() {
    let (_dir, path) = raw(MIB);
    let (imported, unread) = skipping(open(&path), &MemorySink::default(), None);
    assert_eq!((imported.is_ok(), unread), (true, None));
}

#[test]
fn a_device_that_is_gone_is_not_skipped() {
    let (_dir, path) = raw(MIB);
    // Within one chunk: of two that fail at once, either may be the one that is named.
    let gone = std::iter::once(600_000..786_432);
    let source = failing(&path, gone, ENXIO);
    let (imported, _) = skipping(source, &MemorySink::default(), None);
    let e = imported.unwrap_err();
    assert_eq!(e.kind(), Kind::Io, "{e}");
    assert!(e.message().contains("262144 bytes at 524288 cannot be read"), "{e}");
}

#[test]
fn nothing_of_a_stream_is_skipped() {
    let source = stream(noise(1, MIB), &SourceOptions::default()).unwrap();
    let sink = MemorySink::default();
    let e = skipping(source, &sink, None).0.unwrap_err();
    assert!(e.kind() == Kind::Unsupported && e.message().contains("--skip-bad"), "{e}");
    assert!(sink.state.borrow().plan.is_none());
}

#[test]
fn a_file_that_is_removed_is_read_to_its_end() {
    let (_dir, path) = raw(MIB);
    let source = open(&path);
    std::fs::remove_file(&path).unwrap();
    common::assert_imports(source, &noise(11, MIB), 18);
}

#[test]
fn short_reads_are_no_error() {
    let (_dir, path) = raw(MIB);
    let plan = FaultPlan::new();
    let file = plan.wrap(&BlockFile::open(&path, OpenMode::read()).unwrap());
    let disk = Arc::new(RawDisk::new(file).unwrap());
    plan.fail(FaultOp::Read, 2, Fault::Short(1)).fail(FaultOp::Read, 4, Fault::Short(4097));
    let source = DiskSource::disk("slow", 512, disk).unwrap();
    common::assert_imports(source, &noise(11, MIB), 18);
}

#[test]
fn a_file_that_shrinks_or_changes_is_named() {
    for change in [100, MIB as u64 - 512, MIB as u64 + 512] {
        let (_dir, path) = raw(MIB);
        let source = open(&path);
        std::fs::File::options().write(true).open(&path).unwrap().set_len(change).unwrap();
        let e = import_into(source, &MemorySink::default(), 18).unwrap_err();
        assert_eq!(e.kind(), Kind::Conflict, "{change}: {e}");
        assert!(e.message().contains("changed while"), "{e}");
        assert!(e.message().contains(&format!("it had {MIB} bytes, and has {change}")), "{e}");
    }
    // The same size, but other bytes, however little later.
    let (_dir, path) = raw(MIB);
    let source = open(&path);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let was = file.metadata().unwrap().modified().unwrap();
    file.set_modified(was + Duration::from_nanos(4_000_000)).unwrap();
    let e = import_into(source, &MemorySink::default(), 18).unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict, "{e}");
}

/// Never the same bytes twice.
struct Restless(AtomicU64);

impl Disk for Restless {
    fn size(&self) -> u64 {
        MIB as u64
    }

    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>> {
        Ok((from < self.size()).then(|| from..self.size()))
    }

    fn read(&self, buf: &mut [u8], _offset: u64) -> Result<()> {
        buf.copy_from_slice(&noise(self.0.fetch_add(1, Ordering::SeqCst), buf.len()));
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

/// What is read again, as the receiver wants it, must be what was offered.
#[test]
fn what_is_not_the_same_when_it_is_read_again_is_named() {
    let source = DiskSource::disk("restless", 512, Arc::new(Restless(1.into()))).unwrap();
    let parent = Some(Digest::of_chunk(b"parent"));
    let options = ImportOptions { parent, ..ImportOptions::default() };
    let e = run(import(source, &MemorySink::default(), options)).unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict, "{e}");
    assert!(e.message().contains("restless: section 0: chunk"), "{e}");
    assert!(e.message().contains("changed while"), "{e}");
}

/// Endless data; knows whether anybody still holds it.
struct Endless {
    dropped: Arc<AtomicBool>,
    panics: bool,
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::SeqCst);
    }
}

impl Disk for Endless {
    fn size(&self) -> u64 {
        1 << 40
    }

    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>> {
        Ok(Some(from..from + (1 << 20)))
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        assert!(!self.panics, "on purpose");
        buf.fill((offset >> 18) as u8 | 1);
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        Err(Error::new(Kind::Conflict, "unreachable: it never ends"))
    }
}

fn endless(panics: bool) -> (DiskSource, Arc<AtomicBool>) {
    let dropped = Arc::new(AtomicBool::new(false));
    let disk = Arc::new(Endless { dropped: Arc::clone(&dropped), panics });
    (DiskSource::disk("endless", 512, disk).unwrap(), dropped)
}

/// Waits until nobody holds the disk any more; hangs if somebody keeps it.
fn wait_for_end(dropped: &AtomicBool) {
    while !dropped.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
}

#[test]
fn dropping_the_future_ends_the_threads() {
    // Once while the sink works, once while it hangs with all memory taken.
    for hang in [false, true] {
        let (source, dropped) = endless(false);
        let sink = MemorySink::default();
        sink.hang.set(hang);
        let options = ImportOptions { memory: 1, ..ImportOptions::default() };
        let progress = Arc::clone(&options.progress);
        run(async {
            let mut import = std::pin::pin!(import(source, &sink, options));
            while progress.stats().data < 64 << 20 {
                tokio::select! {
                    biased;
                    done = &mut import => panic!("it ended: {done:?}"),
                    () = tokio::task::yield_now() => {}
                }
            }
        });
        wait_for_end(&dropped);
    }
}

#[test]
fn an_error_ends_the_threads() {
    let (source, dropped) = endless(false);
    let sink = MemorySink::default();
    sink.fail.set(Some((At::Seal, Kind::Full)));
    assert_eq!(import_into(source, &sink, 18).unwrap_err().kind(), Kind::Full);
    wait_for_end(&dropped);
}

#[test]
fn a_reader_that_fails_ends_a_sink_that_hangs() {
    let (_dir, path) = raw(100 * MIB);
    let plan = FaultPlan::new();
    let file = plan.wrap(&BlockFile::open(&path, OpenMode::read()).unwrap());
    let disk = Arc::new(RawDisk::new(file).unwrap());
    plan.unreadable(70 << 20..71 << 20, EIO);
    let sink = MemorySink::default();
    sink.hang.set(true);
    let source = DiskSource::disk("failing", 512, disk).unwrap();
    assert_eq!(import_into(source, &sink, 18).unwrap_err().kind(), Kind::Io);
}

#[test]
fn a_thread_that_dies_is_an_error_not_a_hang() {
    let (source, dropped) = endless(true);
    let e = import_into(source, &MemorySink::default(), 18).unwrap_err();
    assert!(e.message().contains("died"), "{e}");
    wait_for_end(&dropped);
}

#[test]
fn an_import_after_a_failed_one_sends_only_the_rest() {
    let (_dir, path) = raw(130 * MIB);
    let sink = MemorySink::default();
    sink.fail.set(Some((At::Commit, Kind::Retry)));
    import_into(open(&path), &sink, 18).unwrap_err();
    sink.fail.set(None);
    let again = import_into(open(&path), &sink, 18).unwrap();
    assert_eq!(again.stats.sent_chunks, 0);
    assert!(sink.disk() == noise(11, 130 * MIB));
}
