//! Block devices, where this machine lets us have one (a loop device, which takes root).

use std::path::{Path, PathBuf};
use std::process::Command;

use blockio::bulk::{BulkOptions, read_sequential};
use blockio::{
    Arena, BlockFile, Cause, Engine, EngineChoice, EngineKind, EngineOptions, FileKind, OpenMode,
    cause,
};

const SIZE: u64 = 8 << 20;

/// A loop device over a file of ones; gone when dropped.
struct Loop {
    device: PathBuf,
    _file: tempfile::NamedTempFile,
}

impl Loop {
    fn new() -> Option<Loop> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![1; SIZE as usize]).unwrap();
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file.path()).output();
        match output {
            Ok(output) if output.status.success() => {
                let device = String::from_utf8(output.stdout).unwrap().trim().into();
                Some(Loop { device, _file: file })
            }
            other => {
                println!("skipping: no loop device ({other:?})");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

/// Opens a device that an engine may not have let go of yet: it does on a thread of its own.
fn open_soon(path: &Path, mode: OpenMode) -> BlockFile {
    for _ in 0..500 {
        match BlockFile::open(path, mode) {
            Err(error) if cause(&error) == Cause::Busy => {
                std::thread::park_timeout(std::time::Duration::from_millis(10));
            }
            opened => return opened.unwrap(),
        }
    }
    panic!("{} stays in use", path.display());
}

fn content(path: &Path) -> Vec<u8> {
    let device = BlockFile::open(path, OpenMode::read()).unwrap();
    let mut bytes = vec![0; SIZE as usize];
    device.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_device_is_opened_sized_zeroed_and_synced() {
    let Some(disk) = Loop::new() else { return };
    let device = BlockFile::open(&disk.device, OpenMode::write()).unwrap();
    assert_eq!((device.kind(), device.size().unwrap()), (FileKind::Block, SIZE));
    let sectors = device.sectors();
    assert!(sectors.logical >= 512 && sectors.physical >= sectors.logical, "{sectors:?}");
    assert_eq!(device.data_extents(0..u64::MAX).next().unwrap().unwrap(), 0..SIZE);
    assert_eq!(cause(&device.set_len(1).unwrap_err()), Cause::Unsupported);
    device.allocate(0..SIZE).unwrap();
    assert_eq!(cause(&device.allocate(0..SIZE + 1).unwrap_err()), Cause::Full);
    assert!(device.same_file(&disk.device).unwrap());
    assert!(!device.same_file("/dev/null").unwrap());
    assert!(device.try_lock_exclusive().unwrap());

    device.zero_range(1000..2_000_100).unwrap();
    device.zero_range(3_000_001..3_000_003).unwrap();
    match device.punch_hole(4 << 20..5 << 20) {
        Ok(()) => {}
        Err(error) => {
            assert_eq!(cause(&error), Cause::Unsupported);
            device.zero_range(4 << 20..5 << 20).unwrap();
        }
    }
    device.zero_range(SIZE - 100..SIZE + 100).unwrap();
    device.sync_all().unwrap();
    let mut expected = vec![1; SIZE as usize];
    for range in [1000..2_000_100, 3_000_001..3_000_003, 4 << 20..5 << 20] {
        expected[range].fill(0);
    }
    expected[SIZE as usize - 100..].fill(0);
    assert!(content(&disk.device) == expected);
}

#[test]
fn a_device_has_one_writer() {
    let Some(disk) = Loop::new() else { return };
    let first = BlockFile::open(&disk.device, OpenMode::write()).unwrap();
    let second = BlockFile::open(&disk.device, OpenMode::write()).unwrap_err();
    assert_eq!(cause(&second), Cause::Busy, "{second}");
    BlockFile::open(&disk.device, OpenMode::read()).unwrap();
    drop(first);
    BlockFile::open(&disk.device, OpenMode::write()).unwrap();
}

#[test]
fn who_reads_a_device_sees_a_machine_that_writes_to_it_and_keeps_others_out() {
    let Some(disk) = Loop::new() else { return };
    // Locks of every byte, among them those by which QEMU says that it writes.
    let machine = BlockFile::open(&disk.device, OpenMode::write()).unwrap();
    assert_eq!(machine.other_user().unwrap(), None);
    assert!(!BlockFile::open(&disk.device, OpenMode::read()).unwrap().deny_writers().unwrap());
    drop(machine);
    let reader = BlockFile::open(&disk.device, OpenMode::read().claimed()).unwrap();
    assert!(reader.deny_writers().unwrap());
    let other = BlockFile::open(&disk.device, OpenMode::read()).unwrap();
    assert!(other.deny_writers().unwrap(), "who reads too is no harm");
    assert!(!BlockFile::is_mounted_to_read(&disk.device).unwrap(), "claimed, and not by a mount");
}

#[test]
fn engines_work_on_devices() {
    let Some(disk) = Loop::new() else { return };
    let arena = Arena::new("test", 64 << 10, 4 * (64 << 10)).unwrap();
    for kind in [EngineKind::Portable, EngineKind::Ring] {
        for mode in [OpenMode::write(), OpenMode::write().direct()] {
            let device = open_soon(&disk.device, mode);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let options =
                    EngineOptions { register: vec![arena.clone()], ..EngineOptions::kind(kind) };
                let Ok(engine) = Engine::start(options) else { return };
                let mut buf = arena.acquire().await;
                buf.fill(5);
                let (result, mut buf) = engine.write_at(&device, buf, 128 << 10).await;
                result.unwrap();
                engine.sync_data(&device).await.unwrap();
                engine.zero_range(&device, 128 << 10..132 << 10).await.unwrap();
                buf.fill(9);
                let (result, buf) = engine.read_at(&device, buf, 128 << 10).await;
                assert_eq!(result.unwrap(), 64 << 10);
                assert!(buf[..4096].iter().all(|byte| *byte == 0));
                assert!(buf[4096..].iter().all(|byte| *byte == 5));
                // The end, and beyond it.
                let (result, buf) = engine.read_at(&device, buf, SIZE - 4096).await;
                assert_eq!((result.unwrap(), buf.len()), (4096, 4096));
                let (result, _) = engine.write_at(&device, buf, SIZE).await;
                assert_eq!(cause(&result.unwrap_err()), Cause::Full);
            });
            let options = BulkOptions { choice: EngineChoice::Auto, ..BulkOptions::new(64 << 10) };
            let ranges = std::iter::once(0..u64::MAX).collect();
            let mut reader = read_sequential(&device, ranges, &arena, options).unwrap();
            let pieces = std::iter::from_fn(|| reader.blocking_next());
            assert_eq!(pieces.map(|piece| piece.unwrap().buf.len() as u64).sum::<u64>(), SIZE);
            // The next round claims the device again: nobody may hold it behind our back.
        }
    }
}
