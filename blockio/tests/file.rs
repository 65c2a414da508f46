//! Files and names on a real file system, and the same over the one in memory.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use blockio::fake::{Fault, FaultOp, FaultPlan, MemFs};
use blockio::{BlockFile, Cause, FileKind, Fs, OpenMode, cause, errno, rename_durable, sync_dir};
use rustix::io::Errno;

/// Runs `test` on this machine's file system and on the one in memory.
fn on_both(test: impl Fn(&Fs, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    test(&Fs::os(), dir.path());
    let mem = MemFs::new().fs();
    mem.create_dir_all("/a/b").unwrap();
    test(&mem, Path::new("/a/b"));
}

fn content(file: &BlockFile) -> Vec<u8> {
    let mut bytes = vec![0; file.size().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn open_modes() {
    on_both(|fs, dir| {
        let path = dir.join("f");
        assert_eq!(fs.open(&path, OpenMode::write()).unwrap_err().kind(), ErrorKind::NotFound);
        let file = fs.open(&path, OpenMode::create_new()).unwrap();
        assert_eq!((file.kind(), file.size().unwrap()), (FileKind::Regular, 0));
        assert!(file.sectors().logical.is_power_of_two());
        let again = fs.open(&path, OpenMode::create_new()).unwrap_err();
        assert_eq!(cause(&again), Cause::Conflict);
        fs.open(&path, OpenMode::create()).unwrap();
        let dir = fs.open(dir, OpenMode::read()).unwrap_err();
        assert_eq!(cause(&dir), Cause::Invalid, "{dir}");
    });
}

#[test]
fn nothing_but_files_and_disks_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, rustix::fs::Mode::RUSR, 0).unwrap();
    // It must not wait for a writer either.
    assert_eq!(
        BlockFile::open(&fifo, OpenMode::read()).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    let null = BlockFile::open("/dev/null", OpenMode::write()).unwrap_err();
    assert_eq!(null.kind(), ErrorKind::InvalidInput);
    assert!(null.to_string().contains("/dev/null"), "{null}");
    assert_eq!(
        BlockFile::open(&fifo, OpenMode::default()).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
}

#[test]
fn new_files_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    BlockFile::open(&path, OpenMode::create()).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0);
}

#[test]
fn reading_the_wrong_way_is_denied() {
    on_both(|fs, dir| {
        let path = dir.join("f");
        fs.open(&path, OpenMode::create()).unwrap();
        let file = fs.open(&path, OpenMode::read()).unwrap();
        let error = file.write_all_at(b"x", 10).unwrap_err();
        assert_eq!(
            (cause(&error), errno(&error)),
            (Cause::Denied, Some(Errno::BADF.raw_os_error()))
        );
        assert!(error.to_string().contains("at byte 10"), "{error}");
    });
}

#[test]
fn the_end_of_a_file() {
    on_both(|fs, dir| {
        let file = fs.open(dir.join("f"), OpenMode::create()).unwrap();
        file.write_all_at(b"0123456789", 0).unwrap();
        let mut buf = [0; 8];
        assert_eq!(file.read_at(&mut buf, 6).unwrap(), 4);
        assert_eq!(file.read_at(&mut buf, 10).unwrap(), 0);
        let error = file.read_exact_at(&mut buf, 6).unwrap_err();
        assert_eq!((error.kind(), cause(&error)), (ErrorKind::UnexpectedEof, Cause::Corrupt));
        file.set_len(4).unwrap();
        file.set_len(6).unwrap();
        assert_eq!(content(&file), b"0123\0\0");
    });
}

#[test]
fn what_is_read_once_is_the_same() {
    on_both(|fs, dir| {
        let file = fs.open(dir.join("f"), OpenMode::create()).unwrap();
        file.write_all_at(&[7; 9000], 100).unwrap();
        let mut buf = [1; 9000];
        assert_eq!(file.read_once_at(&mut buf, 90).unwrap(), 9000);
        assert!(buf[..10] == [0; 10] && buf[10..] == [7; 8990]);
        assert_eq!(file.read_once_at(&mut buf, 9000).unwrap(), 100);
        assert_eq!(file.read_once_at(&mut buf, 9100).unwrap(), 0);
    });
}

#[test]
fn holes_zeros_and_extents() {
    on_both(|fs, dir| {
        let file = fs.open(dir.join("f"), OpenMode::create()).unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(file.data_extents(0..1 << 20).count(), 0);
        file.write_all_at(&[1; 65536], 131_072).unwrap();
        file.write_all_at(&[2; 4096], 524_288).unwrap();
        let extents: Vec<_> = file.data_extents(0..u64::MAX).map(Result::unwrap).collect();
        assert_eq!(extents, [131_072..196_608, 524_288..528_384]);
        let part: Vec<_> = file.data_extents(140_000..150_000).map(Result::unwrap).collect();
        assert_eq!(part, std::iter::once(140_000..150_000).collect::<Vec<_>>());

        file.punch_hole(131_072..163_840).unwrap();
        file.zero_range(180_001..180_101).unwrap();
        file.zero_range(524_288..9 << 20).unwrap();
        file.zero_range(2 << 20..3 << 20).unwrap();
        file.punch_hole(5..5).unwrap();
        assert_eq!(file.size().unwrap(), 1 << 20);
        let first = file.data_extents(0..1 << 20).next().unwrap().unwrap();
        assert_eq!(first.start, 163_840);
        let mut expected = vec![0; 1 << 20];
        expected[163_840..196_608].fill(1);
        expected[180_001..180_101].fill(0);
        assert!(content(&file) == expected);
    });
}

#[test]
fn reserving_space_grows_the_file() {
    on_both(|fs, dir| {
        let file = fs.open(dir.join("f"), OpenMode::create()).unwrap();
        match file.allocate(0..1 << 20) {
            Ok(()) => assert_eq!(file.size().unwrap(), 1 << 20),
            Err(error) => assert_eq!(cause(&error), Cause::Unsupported),
        }
        file.allocate(7..7).unwrap();
    });
}

#[test]
fn a_device_in_memory_is_all_data_and_of_fixed_size() {
    let mem = MemFs::new();
    mem.add_device("/disk", 1 << 20).unwrap();
    let disk = mem.fs().open("/disk", OpenMode::write()).unwrap();
    assert_eq!((disk.kind(), disk.size().unwrap()), (FileKind::Block, 1 << 20));
    assert_eq!(disk.data_extents(0..2 << 20).next().unwrap().unwrap(), 0..1 << 20);
    assert_eq!(cause(&disk.set_len(5).unwrap_err()), Cause::Unsupported);
    assert_eq!(cause(&disk.write_all_at(&[1; 512], 1 << 20).unwrap_err()), Cause::Full);
    disk.write_all_at(&[1; 4096], 0).unwrap();
    // The edges that are no whole sectors are written, the rest is left to the device.
    disk.zero_range(100..1500).unwrap();
    let mut expected = vec![1; 4096];
    expected[100..1500].fill(0);
    assert_eq!(content(&disk)[..4096], expected);
}

#[test]
fn one_holder_of_the_lock() {
    on_both(|fs, dir| {
        let path = dir.join("f");
        let first = fs.open(&path, OpenMode::create()).unwrap();
        let second = fs.open(&path, OpenMode::read()).unwrap();
        assert!(first.try_lock_exclusive().unwrap());
        assert!(first.try_lock_exclusive().unwrap());
        assert!(!second.try_lock_exclusive().unwrap());
        let clone = first.clone();
        drop(first);
        assert!(!second.try_lock_exclusive().unwrap(), "a clone still holds it");
        drop(clone);
        assert!(second.try_lock_exclusive().unwrap());
    });
}

#[test]
fn the_same_file_or_another() {
    on_both(|fs, dir| {
        let (a, b) = (dir.join("a"), dir.join("b"));
        let file = fs.open(&a, OpenMode::create()).unwrap();
        fs.open(&b, OpenMode::create()).unwrap();
        assert!(file.same_file(&a).unwrap());
        fs.rename_durable(&b, &a).unwrap();
        assert!(!file.same_file(&a).unwrap());
        assert_eq!(cause(&file.same_file(&b).unwrap_err()), Cause::Gone);
    });
}

#[test]
fn sharing_blocks_works_or_says_that_it_cannot() {
    on_both(|fs, dir| {
        let source = fs.open(dir.join("a"), OpenMode::create()).unwrap();
        source.write_all_at(&[5; 8192], 0).unwrap();
        let copy = fs.open(dir.join("b"), OpenMode::create()).unwrap();
        match copy.reflink_from(&source) {
            Ok(()) => assert_eq!(content(&copy), [5; 8192]),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                assert_eq!(cause(&error), Cause::Unsupported);
            }
        }
    });
}

#[test]
fn names() {
    on_both(|fs, dir| {
        let deep = dir.join("x/y/z");
        fs.create_dir_all(&deep).unwrap();
        fs.create_dir_all(&deep).unwrap();
        fs.replace(deep.join("f"), b"one").unwrap();
        fs.replace(deep.join("f"), b"2").unwrap();
        assert_eq!(fs.read(deep.join("f"), 1).unwrap(), b"2");
        assert_eq!(fs.read(deep.join("f"), 0).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(fs.list(&deep).unwrap(), ["f"]);
        assert_eq!(fs.remove_dir(&deep).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);

        fs.replace(dir.join("g"), b"g").unwrap();
        let taken = fs.rename_new_durable(dir.join("g"), deep.join("f")).unwrap_err();
        assert_eq!(cause(&taken), Cause::Conflict);
        // A directory takes what is in it along.
        fs.rename_new_durable(dir.join("x/y"), dir.join("w")).unwrap();
        assert_eq!(fs.read(dir.join("w/z/f"), 9).unwrap(), b"2");
        assert!(!fs.exists(dir.join("x/y")).unwrap());
        let gone = fs.rename_new_durable(dir.join("x/y"), dir.join("v")).unwrap_err();
        assert_eq!(cause(&gone), Cause::Gone);

        fs.remove_file(dir.join("w/z/f")).unwrap();
        fs.remove_dir(dir.join("w/z")).unwrap();
        fs.sync_dir(dir.join("w")).unwrap();
        assert_eq!(fs.list(dir).unwrap(), ["g", "w", "x"]);
    });
}

#[test]
fn helpers_for_this_machines_files() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), b"a").unwrap();
    rename_durable(dir.path().join("a"), dir.path().join("b")).unwrap();
    sync_dir(dir.path()).unwrap();
    assert_eq!(sync_dir(dir.path().join("b")).unwrap_err().kind(), ErrorKind::NotADirectory);
}

#[test]
fn direct_io_keeps_to_sectors() {
    on_both(|fs, dir| {
        let path = dir.join("f");
        fs.open(&path, OpenMode::create()).unwrap().set_len(5000).unwrap();
        let file = match fs.open(&path, OpenMode::write().direct()) {
            Ok(file) => file,
            Err(error) => return assert_eq!(cause(&error), Cause::Unsupported),
        };
        assert!(file.is_direct());
        let arena = blockio::Arena::new("test", 16384, 16384).unwrap();
        let mut buf = arena.try_acquire().unwrap();
        buf.fill(3);
        assert_eq!(file.read_at(&mut buf, 0).unwrap(), 5000);
        buf.set_len(4096);
        buf.fill(9);
        file.write_all_at(&buf, 0).unwrap();
        assert_eq!(cause(&file.write_all_at(&buf[..100], 0).unwrap_err()), Cause::Invalid);
        let plain = fs.open(&path, OpenMode::read()).unwrap();
        assert_eq!(content(&plain)[4095..4097], [9, 0]);
    });
}

fn failing() -> (FaultPlan, BlockFile) {
    let plan = FaultPlan::new();
    let file = MemFs::new().fs().open("/f", OpenMode::create()).unwrap();
    let file = plan.wrap(&file);
    (plan, file)
}

#[test]
fn a_failed_sync_is_never_followed_by_a_good_one() {
    let (plan, file) = failing();
    file.write_all_at(b"x", 0).unwrap();
    plan.fail(FaultOp::Sync, 1, Fault::Io);
    for attempt in 0..3 {
        let error = file.clone().sync_data().unwrap_err();
        assert_eq!(cause(&error), Cause::Corrupt, "attempt {attempt}");
    }
    assert_eq!(plan.count(FaultOp::Sync), 1, "the disk is not asked again");
    assert!(file.sync_all().is_err());
}

#[test]
fn failures_to_order() {
    let (plan, file) = failing();
    plan.fail(FaultOp::Write, 2, Fault::Io).fail(FaultOp::Write, 3, Fault::Short(3));
    file.write_all_at(b"abcdef", 0).unwrap();
    assert_eq!(cause(&file.write_all_at(b"ghi", 6).unwrap_err()), Cause::Corrupt);
    file.write_all_at(b"ghijk", 6).unwrap();
    assert_eq!((content(&file), plan.count(FaultOp::Write)), (b"abcdefghijk".to_vec(), 4));

    plan.fail(FaultOp::Read, 1, Fault::Short(2)).fail(FaultOp::Read, 3, Fault::Io);
    assert_eq!(content(&file), b"abcdefghijk");
    assert!(file.read_at(&mut [0], 0).is_err());

    plan.limit_bytes(Some(5));
    let error = file.write_all_at(b"12345678", 11).unwrap_err();
    assert_eq!((error.kind(), cause(&error)), (ErrorKind::StorageFull, Cause::Full));
    assert!(error.to_string().contains("at byte 16"), "{error}");
    assert_eq!(content(&file), b"abcdefghijk12345");
    plan.limit_bytes(None);
    file.write_all_at(b"678", 16).unwrap();
    file.sync_data().unwrap();
}

#[test]
fn names_fail_to_order_on_a_real_disk_too() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("f");
    let plan = FaultPlan::new();
    let fs = plan.wrap_fs(&Fs::os());
    fs.replace(&path, b"old").unwrap();
    plan.fail(FaultOp::Name, 2, Fault::Io);
    fs.replace(&path, b"new").unwrap_err();
    assert_eq!(fs.read(&path, 3).unwrap(), b"old");
    plan.fail(FaultOp::SyncDir, 1, Fault::Io);
    fs.replace(&path, b"new").unwrap_err();
    plan.fail(FaultOp::Sync, 1, Fault::Full);
    fs.replace(&path, b"newer").unwrap_err();
    assert_eq!(fs.read(&path, 3).unwrap(), b"new");
}

#[test]
fn a_file_is_opened_once_more_past_the_page_cache_wherever_its_path_leads() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let file = BlockFile::open(&path, OpenMode::create()).unwrap();
    file.write_all_at(&[7; 8192], 0).unwrap();
    std::fs::rename(&path, dir.path().join("g")).unwrap();
    std::fs::write(&path, "another").unwrap();
    let arena = blockio::Arena::new("test", 4096, 4096).unwrap();
    let direct = match file.past_cache() {
        Ok(direct) => direct,
        Err(error) => return assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}"),
    };
    assert!(direct.is_direct() && !file.is_direct());
    let mut buf = arena.try_acquire().unwrap();
    direct.read_exact_at(&mut buf, 4096).unwrap();
    assert_eq!(buf[..], [7; 4096]);
    buf.fill(8);
    direct.write_all_at(&buf, 0).unwrap();
    assert!(content(&file)[..4096].iter().all(|b| *b == 8));
    // What cannot be written this cannot write either.
    let read_only = BlockFile::open(dir.path().join("g"), OpenMode::read()).unwrap();
    let error = read_only.past_cache().unwrap().write_all_at(&buf, 0).unwrap_err();
    assert_eq!(errno(&error), Some(Errno::BADF.raw_os_error()), "{error}");
}

#[test]
fn bytes_are_known_to_be_overwritten_where_a_file_system_is_known_to_do_that() {
    let dir = tempfile::tempdir().unwrap();
    let file = BlockFile::open(dir.path().join("f"), OpenMode::create()).unwrap();
    let kind = rustix::fs::fstatfs(file.descriptor().unwrap()).unwrap().f_type;
    let known = [0xef53, 0x5846_5342, 0x0102_1994].contains(&kind);
    assert_eq!(file.overwrites().unwrap(), known);
    let fake = MemFs::new().fs().open("/f", OpenMode::create()).unwrap();
    assert!(fake.overwrites().unwrap());
    assert_eq!(fake.past_cache().unwrap_err().kind(), ErrorKind::Unsupported);
}
