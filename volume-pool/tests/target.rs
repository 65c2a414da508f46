//! Targets: reuse, interruption, power cuts, full disks, two at once.

use std::path::Path;

use blockio::fake::{CrashPlan, FaultOp, FaultPlan, MemFs};
use blockio::{Arena, Engine, EngineKind, EngineOptions, Fs, OpenMode};
use forebay_volume_pool::{Target, Verified};
use image::{Decoder, Digest, Domain, Encoder, Geometry, Kind, Result, SectionTable, is_zero};
use proptest::prelude::*;

const CHUNK: usize = 16 << 10;

/// A disk of one section, and its table.
#[derive(Clone, Debug)]
struct Disk {
    bytes: Vec<u8>,
}

impl Disk {
    /// Chunks by one letter each (`.` is zeros), the last one short by `short` bytes.
    fn new(chunks: &str, short: usize) -> Self {
        let mut bytes: Vec<u8> = chunks
            .bytes()
            .flat_map(|c| {
                let fill = if c == b'.' { 0 } else { c };
                (0..CHUNK).map(move |i| if fill == 0 { 0 } else { fill ^ (i / 512) as u8 | 1 })
            })
            .collect();
        bytes.truncate(bytes.len().saturating_sub(short));
        Self { bytes }
    }

    fn geometry(&self) -> Geometry {
        Geometry::new(self.bytes.len() as u64, 512, 14).unwrap()
    }

    fn table(&self) -> SectionTable {
        let digest = |c: &[u8]| if is_zero(c) { Digest::ZERO } else { Digest::of_chunk(c) };
        SectionTable::new(Domain::PUBLIC, self.bytes.chunks(CHUNK).map(digest).collect())
    }

    fn chunk(&self, chunk: u32) -> &[u8] {
        self.bytes.chunks(CHUNK).nth(chunk as usize).unwrap()
    }
}

fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Pulls at most `limit` chunks; returns how many were written, and the target.
async fn fill(target: &Target, disk: &Disk, limit: usize) -> Result<usize> {
    let engine = Engine::start(EngineOptions::kind(EngineKind::Portable)).unwrap();
    let arena = Arena::new("test", CHUNK, 4 * CHUNK).unwrap();
    let table = disk.table();
    if table.chunks() == 0 {
        return Ok(0);
    }
    let missing = target.scan(0, &table).await?;
    let mut written = 0;
    for chunk in missing.iter().take(limit) {
        let mut buf = arena.acquire().await;
        buf.copy_from(disk.chunk(chunk));
        let digest = &table.digests()[chunk as usize];
        let plain = Verified::check(buf, disk.chunk(chunk).len(), digest).unwrap();
        target.write(&engine, 0, chunk, plain).await?;
        written += 1;
    }
    Ok(written)
}

/// Pulls the whole disk to a path; returns how many chunks were written.
fn pull(fs: &Fs, path: &str, disk: &Disk, sync: bool) -> Result<usize> {
    on_runtime(async {
        let target = Target::open_in(fs, Path::new(path), disk.geometry())?;
        let written = fill(&target, disk, usize::MAX).await?;
        target.finish(sync)?;
        Ok(written)
    })
}

fn content(fs: &Fs, path: &str) -> Option<Vec<u8>> {
    fs.read(path, 1 << 30).ok()
}

fn memory() -> (MemFs, Fs) {
    let disk = MemFs::new();
    let fs = disk.fs();
    fs.create_dir_all("/d").unwrap();
    disk.settle();
    (disk, fs)
}

proptest! {
    #[test]
    fn only_what_differs_is_written_and_the_result_is_exact(
        old in "[a-d.]{0,12}", new in "[a-d.]{0,12}", cut in 0usize..30,
    ) {
        let (_, fs) = memory();
        let (old, new) = (Disk::new(&old, 0), Disk::new(&new, cut * 512));
        pull(&fs, "/d/disk", &old, true).unwrap();
        prop_assert_eq!(&content(&fs, "/d/disk").unwrap(), &old.bytes);
        let differ = new.bytes.chunks(CHUNK).enumerate().filter(|(i, c)| {
            let there = old.bytes.chunks(CHUNK).nth(*i).unwrap_or(&[]);
            !is_zero(c) && there.get(..c.len()) != Some(*c)
        });
        let differ = differ.count();
        prop_assert_eq!(pull(&fs, "/d/disk", &new, true).unwrap(), differ);
        prop_assert_eq!(&content(&fs, "/d/disk").unwrap(), &new.bytes);
        prop_assert_eq!(pull(&fs, "/d/disk", &new, true).unwrap(), 0);
        prop_assert_eq!(fs.list("/d").unwrap(), ["disk"]);
    }
}

#[test]
fn an_interrupted_pull_is_gone_on_with_and_never_shows() {
    let (_, fs) = memory();
    let disk = Disk::new("abcdefgh", 512);
    on_runtime(async {
        let target = Target::open_in(&fs, Path::new("/d/disk"), disk.geometry()).unwrap();
        assert_eq!(fill(&target, &disk, 3).await.unwrap(), 3);
    });
    assert_eq!(content(&fs, "/d/disk"), None);
    assert_eq!(pull(&fs, "/d/disk", &disk, true).unwrap(), 5);
    assert_eq!(content(&fs, "/d/disk").unwrap(), disk.bytes);
}

#[test]
fn a_pull_that_comes_to_nothing_has_changed_nothing() {
    let (_, fs) = memory();
    let old = Disk::new("abc", 0);
    pull(&fs, "/d/disk", &old, true).unwrap();
    // Shorter, longer and equal images; looked at, but not a byte of them arrived.
    for new in [Disk::new("xy", 512), Disk::new("xyzxyz", 0), Disk::new("xbz", 0)] {
        on_runtime(async {
            let target = Target::open_in(&fs, Path::new("/d/disk"), new.geometry()).unwrap();
            target.scan(0, &new.table()).await.unwrap();
            assert_eq!(content(&fs, "/d/disk").unwrap(), old.bytes);
        });
        assert_eq!(content(&fs, "/d/disk").unwrap(), old.bytes);
    }
    drop(Target::open_in(&fs, Path::new("/d/new"), old.geometry()).unwrap());
    assert_eq!(fs.list("/d").unwrap(), ["disk"]);
}

#[test]
fn an_earlier_image_that_is_the_new_one_is_not_touched() {
    let (memory, fs) = memory();
    let disk = Disk::new("ab.c", 512);
    pull(&fs, "/d/disk", &disk, true).unwrap();
    memory.settle();
    assert_eq!(pull(&fs, "/d/disk", &disk, true).unwrap(), 0);
    let log = memory.log();
    assert!(log.iter().all(|op| !op.can_be_lost()), "{log:?}");
    assert_eq!(content(&fs, "/d/disk").unwrap(), disk.bytes);
}

#[test]
fn an_image_that_only_lost_its_end_is_cut_under_the_partial_name() {
    let (memory, fs) = memory();
    let (old, new) = (Disk::new("abcd", 0), Disk::new("ab", 0));
    pull(&fs, "/d/disk", &old, true).unwrap();
    memory.settle();
    assert_eq!(pull(&fs, "/d/disk", &new, true).unwrap(), 0);
    assert_eq!(content(&fs, "/d/disk").unwrap(), new.bytes);
    for image in memory.crash_images(CrashPlan::default()) {
        let found = content(&image.fs(), "/d/disk");
        let whole = found.iter().all(|f| *f == old.bytes || *f == new.bytes);
        assert!(whole, "{image}");
    }
}

#[test]
fn what_others_do_to_the_names_meanwhile_is_a_conflict() {
    let (_, fs) = memory();
    let (old, new) = (Disk::new("abc", 0), Disk::new("xyz", 0));
    let (path, partial) = (Path::new("/d/disk"), "/d/.disk.forebay-partial");
    // The earlier image is moved away before the first write.
    pull(&fs, "/d/disk", &old, true).unwrap();
    on_runtime(async {
        let target = Target::open_in(&fs, path, new.geometry()).unwrap();
        fs.rename_durable("/d/disk", "/d/moved").unwrap();
        let e = fill(&target, &new, 1).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Conflict, "{e}");
    });
    assert_eq!(content(&fs, "/d/moved").unwrap(), old.bytes);
    // Something else takes the partial name before the end.
    on_runtime(async {
        let target = Target::open_in(&fs, path, new.geometry()).unwrap();
        fill(&target, &new, usize::MAX).await.unwrap();
        fs.replace(partial, b"not an image").unwrap();
        let e = target.finish(true).unwrap_err();
        assert_eq!(e.kind(), Kind::Conflict, "{e}");
    });
    assert_eq!(content(&fs, "/d/disk"), None);
}

#[test]
fn the_second_pull_to_a_path_is_a_conflict() {
    let (_, fs) = memory();
    let disk = Disk::new("abc", 0);
    let path = Path::new("/d/disk");
    for _ in 0..2 {
        let first = Target::open_in(&fs, path, disk.geometry()).unwrap();
        let second = Target::open_in(&fs, path, disk.geometry()).unwrap_err();
        assert_eq!(second.kind(), Kind::Conflict);
        assert!(second.message().contains("/d/disk"), "{second}");
        drop(first);
        pull(&fs, "/d/disk", &disk, true).unwrap();
    }
}

#[test]
fn an_image_that_a_virtual_machine_uses_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let (old, new) = (Disk::new("abc", 0), Disk::new("xyz", 0));
    std::fs::write(&path, &old.bytes).unwrap();
    // Its locks are on bytes, and have nothing to do with the lock of pulls.
    let machine = Fs::os().open(&path, OpenMode::write()).unwrap();
    assert_eq!(machine.other_user().unwrap(), None);
    let partial = dir.path().join(".disk.forebay-partial");
    for interrupted in [false, true] {
        if interrupted {
            std::fs::write(&partial, &new.bytes).unwrap();
        }
        let e = Target::open(&path, new.geometry()).unwrap_err();
        assert_eq!(e.kind(), Kind::Conflict, "{e}");
        assert!(e.message().contains("virtual machine"), "{e}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), old.bytes);
    drop(machine);
    std::fs::remove_file(&partial).unwrap();
    let other = dir.path().join("other");
    for prepare in [
        // It is changed in place; it is replaced by what an interrupted pull left; it has another name.
        &|| {},
        &|| std::fs::write(&partial, &new.bytes).unwrap(),
        &|| std::fs::hard_link(&path, &other).unwrap(),
    ] as [&dyn Fn(); 3]
    {
        prepare();
        let ours = Target::open(&path, new.geometry()).unwrap();
        let machine = Fs::os().open(&path, OpenMode::write()).unwrap();
        assert!(machine.other_user().unwrap().is_some(), "none can start meanwhile");
        drop(ours);
        let _ = std::fs::remove_file(&partial);
    }
}

#[test]
fn a_file_system_without_room_is_refused_and_the_earlier_image_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let (old, new) = (Disk::new("abc", 0), Disk::new("xyz", 0));
    std::fs::write(&path, &old.bytes).unwrap();
    if Fs::os().open(&path, OpenMode::read()).unwrap().space().unwrap().is_none() {
        return; // A file system that compresses cannot tell.
    }
    let target = Target::open(&path, new.geometry()).unwrap();
    let e = target.check_room(1 << 60).unwrap_err();
    assert_eq!(e.kind(), Kind::Full, "{e}");
    assert!(e.message().contains("disk: ") && e.message().contains("bytes more"), "{e}");
    // What is there needs no more room, however little is free.
    target.check_room(3 * CHUNK as u64).unwrap();
    drop(target);
    assert_eq!(std::fs::read(&path).unwrap(), old.bytes);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_path_where_no_file_can_be_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let geometry = Disk::new("abc", 0).geometry();
    for (name, kind, says) in [
        ("no/disk", Kind::Gone, "there is no directory"),
        ("new/", Kind::Invalid, "a directory"),
        ("", Kind::Invalid, "a directory"),
    ] {
        let path = dir.path().join(name);
        let e = Target::open(&path, geometry).unwrap_err();
        assert_eq!(e.kind(), kind, "{name}: {e}");
        assert!(e.message().contains(says), "{e}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made");
    forebay_volume_pool::check_path(Path::new("disk")).unwrap();
}

#[test]
fn zeros_replace_old_data_on_files_and_devices() {
    let (memory, fs) = memory();
    let (old, new) = (Disk::new("aaaa", 0), Disk::new("a..b", 0));
    pull(&fs, "/d/disk", &old, true).unwrap();
    pull(&fs, "/d/disk", &new, true).unwrap();
    assert_eq!(content(&fs, "/d/disk").unwrap(), new.bytes);

    memory.add_device("/d/sda", 6 * CHUNK as u64).unwrap();
    let device = fs.open("/d/sda", OpenMode::write()).unwrap();
    device.write_all_at(&[7; 6 * CHUNK], 0).unwrap();
    assert_eq!(pull(&fs, "/d/sda", &new, true).unwrap(), 2);
    let mut there = vec![0; 6 * CHUNK];
    device.read_exact_at(&mut there, 0).unwrap();
    assert_eq!(there[..4 * CHUNK], new.bytes);
    assert!(there[4 * CHUNK..].iter().all(|b| *b == 7), "past the image nothing is touched");
}

#[test]
fn a_device_that_is_too_small_is_refused_untouched() {
    let (memory, fs) = memory();
    memory.add_device("/d/sda", CHUNK as u64).unwrap();
    let e = Target::open_in(&fs, Path::new("/d/sda"), Disk::new("ab", 0).geometry()).unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid);
    assert!(e.message().contains("too small"), "{e}");
}

#[test]
fn a_full_disk_is_said_clearly_and_the_pull_goes_on_when_there_is_room() {
    let (_, fs) = memory();
    let disk = Disk::new("abcdef", 0);
    let plan = FaultPlan::new();
    // A disk runs full by blocks: what is written past the page cache stays aligned.
    plan.limit_bytes(Some(2 * CHUNK as u64 + 4096));
    let e = pull(&plan.wrap_fs(&fs), "/d/disk", &disk, true).unwrap_err();
    assert_eq!(e.kind(), Kind::Full);
    assert!(e.message().contains("/d/disk") && e.message().contains("run it again"), "{e}");
    assert_eq!(content(&fs, "/d/disk"), None);
    assert!(pull(&fs, "/d/disk", &disk, true).unwrap() <= 5);
    assert_eq!(content(&fs, "/d/disk").unwrap(), disk.bytes);
}

#[test]
fn a_sync_that_fails_is_an_error_and_the_image_gets_no_name() {
    let (_, fs) = memory();
    let disk = Disk::new("abc", 0);
    let plan = FaultPlan::new();
    plan.fail(FaultOp::Sync, 1, blockio::fake::Fault::Io);
    let e = pull(&plan.wrap_fs(&fs), "/d/disk", &disk, true).unwrap_err();
    assert_eq!(e.kind(), Kind::Io);
    assert_eq!(content(&fs, "/d/disk"), None);
}

/// Every prefix of what was done, with any subset of what was not synced lost: what has the name is
/// a complete image, the old or the new one, and another pull ends with the new one.
#[test]
fn a_power_cut_at_any_instant_leaves_a_whole_image_or_none() {
    for old in [None, Some(Disk::new("abcd.", 0))] {
        let (memory, fs) = memory();
        let new = Disk::new("abXY.Zc", 1024);
        if let Some(old) = &old {
            pull(&fs, "/d/disk", old, true).unwrap();
        }
        memory.settle();
        pull(&fs, "/d/disk", &new, true).unwrap();
        memory.mark("done");
        let mut images = 0;
        for image in memory.crash_images(CrashPlan::default()) {
            images += 1;
            let fs = image.fs();
            let found = content(&fs, "/d/disk");
            let is_new = found.as_ref() == Some(&new.bytes);
            let is_old = found.as_ref() == old.as_ref().map(|o| &o.bytes);
            assert!(is_new || !image.reached("done"), "{image}: lost after it was done");
            assert!(is_new || is_old || found.is_none(), "{image}: half an image has the name");
            pull(&fs, "/d/disk", &new, true).unwrap_or_else(|e| panic!("{image}: {e}"));
            assert_eq!(content(&fs, "/d/disk").unwrap(), new.bytes, "{image}");
        }
        assert!(images > 50, "only {images} images");
    }
}

/// The power goes again while the pull after the first cut is under way.
#[test]
fn two_power_cuts_are_no_worse_than_one() {
    let (memory, fs) = memory();
    let (old, new) = (Disk::new("ab.", 0), Disk::new("aX.Y", 512));
    pull(&fs, "/d/disk", &old, true).unwrap();
    memory.settle();
    pull(&fs, "/d/disk", &new, true).unwrap();
    let few = CrashPlan { per_point: 8, ..CrashPlan::default() };
    for first in memory.crash_images(few) {
        pull(&first.fs(), "/d/disk", &new, true).unwrap();
        for second in first.disk().crash_images(few) {
            let found = content(&second.fs(), "/d/disk");
            let whole = found.iter().all(|f| *f == old.bytes || *f == new.bytes);
            assert!(whole, "{first}, then {second}");
            pull(&second.fs(), "/d/disk", &new, true).unwrap();
            assert_eq!(content(&second.fs(), "/d/disk").unwrap(), new.bytes);
        }
    }
}

#[test]
fn nothing_is_called_verified_that_is_not() {
    let disk = Disk::new("ab", 0);
    let digest = Digest::of_chunk(disk.chunk(0));
    let arena = Arena::new("test", CHUNK, 2 * CHUNK).unwrap();
    let buf = |bytes: &[u8]| {
        let mut buf = arena.try_acquire().unwrap();
        buf.copy_from(bytes);
        buf
    };
    assert!(Verified::check(buf(disk.chunk(0)), CHUNK, &digest).is_ok());
    assert!(Verified::check(buf(disk.chunk(1)), CHUNK, &digest).is_err());
    assert!(Verified::check(buf(disk.chunk(0)), CHUNK - 512, &digest).is_err());
    let frame = Encoder::new().unwrap().encode(Domain::PUBLIC, digest, disk.chunk(0));
    let mut decoder = Decoder::new().unwrap();
    let mut decode = |digest: &Digest, len| {
        Verified::decode(&mut decoder, &frame, digest, arena.try_acquire().unwrap(), len)
    };
    assert_eq!(&*decode(&digest, CHUNK).unwrap(), disk.chunk(0));
    assert!(decode(&digest, CHUNK - 512).is_err());
    assert!(decode(&Digest::of_chunk(disk.chunk(1)), CHUNK).is_err());
}

#[test]
fn a_file_with_another_name_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (path, kept) = (dir.path().join("disk"), dir.path().join("kept"));
    let (old, new) = (Disk::new("abc", 0), Disk::new("abX", 0));
    pull(&Fs::os(), path.to_str().unwrap(), &old, true).unwrap();
    std::fs::hard_link(&path, &kept).unwrap();
    assert_eq!(pull(&Fs::os(), path.to_str().unwrap(), &new, true).unwrap(), 3);
    assert_eq!(std::fs::read(&path).unwrap(), new.bytes);
    assert_eq!(std::fs::read(&kept).unwrap(), old.bytes);
}

#[test]
fn a_link_that_leads_nowhere_yet_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::os::unix::fs::symlink("sub/../sub/disk", &link).unwrap();
    let disk = Disk::new("ab", 0);
    on_runtime(async {
        let target = Target::open(&link, disk.geometry()).unwrap();
        fill(&target, &disk, usize::MAX).await.unwrap();
        target.finish(true).unwrap();
    });
    assert!(link.is_symlink());
    assert_eq!(std::fs::read(dir.path().join("sub/disk")).unwrap(), disk.bytes);
    let around = dir.path().join("around");
    std::os::unix::fs::symlink("around", &around).unwrap();
    let e = Target::open(&around, disk.geometry()).unwrap_err();
    assert!(e.message().contains("links"), "{e}");
}

#[test]
fn real_files_links_and_odd_names() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new("ab.c", 512);
    let real = dir.path().join("the disk – ü..raw");
    let link = dir.path().join("link");
    std::fs::write(&real, b"an earlier something").unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    on_runtime(async {
        let target = Target::open(&link, disk.geometry()).unwrap();
        assert!(!target.is_fresh());
        assert_eq!(fill(&target, &disk, usize::MAX).await.unwrap(), 3);
        target.finish(true).unwrap();
    });
    assert!(link.is_symlink());
    assert_eq!(std::fs::read(&real).unwrap(), disk.bytes);
    for bad in ["/", "", "/no/such/directory/disk"] {
        assert!(Target::open(Path::new(bad), disk.geometry()).is_err(), "{bad}");
    }
}
