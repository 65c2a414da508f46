//! What every engine promises, held against each of them.

use std::future::Future;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use blockio::fake::{Fault, FaultOp, FaultPlan, MemFs};
use blockio::{
    Arena, Backing, BlockFile, Buf, Cause, Engine, EngineChoice, EngineKind, EngineOptions,
    FileKind, GuestBuf, OpenMode, SyncWhat, cause,
};
use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

const SLOT: usize = 16 << 10;

/// The engines this machine has.
fn kinds() -> Vec<EngineKind> {
    let runtime = runtime();
    let _inside = runtime.enter();
    let mut kinds = vec![EngineKind::Portable];
    match Engine::start(EngineOptions::kind(EngineKind::Ring)) {
        Ok(_) => kinds.push(EngineKind::Ring),
        Err(error) => println!("skipping io_uring: {error}"),
    }
    kinds
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn options(kind: EngineKind, depth: u32) -> EngineOptions {
    EngineOptions { depth, threads: depth, ..EngineOptions::kind(kind) }
}

/// Runs `test` once per kind of engine, on a runtime of its own, over a fresh file.
fn on_each<F: Future<Output = ()>>(depth: u32, test: impl Fn(Engine, BlockFile, Arena) -> F) {
    for kind in kinds() {
        println!("engine: {kind}");
        let (_dir, file) = temp_file();
        let arena = arena(32);
        let inner = arena.clone();
        runtime().block_on(async {
            let engine = Engine::start(options(kind, depth)).unwrap();
            assert_eq!(engine.kind(), kind);
            test(engine, file, inner).await;
        });
        assert_eq!(arena.available(), arena.slots(), "{kind}: buffers did not come back");
    }
}

fn arena(slots: usize) -> Arena {
    Arena::new("test", SLOT, slots * SLOT).unwrap()
}

fn temp_file() -> (tempfile::TempDir, BlockFile) {
    let dir = tempfile::tempdir().unwrap();
    let file = BlockFile::open(dir.path().join("f"), OpenMode::create_new()).unwrap();
    (dir, file)
}

fn buf(arena: &Arena, bytes: &[u8]) -> Buf {
    let mut buf = arena.try_acquire().expect("a free buffer");
    buf.copy_from(bytes);
    buf
}

async fn write(engine: &Engine, file: &BlockFile, arena: &Arena, bytes: &[u8], offset: u64) {
    let mut buf = arena.acquire().await;
    buf.copy_from(bytes);
    engine.write_at(file, buf, offset).await.0.unwrap();
}

async fn read(engine: &Engine, file: &BlockFile, arena: &Arena, len: usize, at: u64) -> Vec<u8> {
    let mut buf = arena.acquire().await;
    buf.set_len(len);
    let (result, buf) = engine.read_at(file, buf, at).await;
    assert_eq!(result.unwrap(), buf.len());
    buf.to_vec()
}

/// Polls `future` once and drops it: it has been started, and nobody waits for it.
fn abandon(future: impl Future) -> bool {
    let future = pin!(future);
    future.poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

/// Lets the engine work until all buffers are back.
async fn settle(arena: &Arena) {
    let mut all = Vec::new();
    for _ in 0..arena.slots() {
        all.push(arena.acquire().await);
    }
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(seed | 1).wrapping_add(seed) >> 3) as u8).collect()
}

/// Memory of a guest in two mappings that meet at 64 KiB, and all of it.
fn guest() -> (Arc<GuestMemoryMmap>, impl Fn(&GuestMemoryMmap) -> Vec<u8>) {
    let ranges = [(GuestAddress(0), 0x1_0000), (GuestAddress(0x1_0000), 0x1_0000)];
    let all = |mem: &GuestMemoryMmap| {
        let mut all = vec![0; 0x2_0000];
        mem.read_slice(&mut all, GuestAddress(0)).unwrap();
        all
    };
    (Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap()), all)
}

fn pieces(mem: &Arc<GuestMemoryMmap>, list: &[(u64, usize)]) -> Option<GuestBuf> {
    GuestBuf::new(mem, list.iter().map(|&(at, len)| (GuestAddress(at), len)))
}

async fn fill_a_guest(engine: Engine, file: BlockFile, arena: Arena) {
    let bytes = pattern(7, 10_000);
    write(&engine, &file, &arena, &bytes, 500).await;
    for list in [&[(0x100, 3000), (0x1_8000, 5000), (0, 1)][..], &[(0x1_0000, 4096)]] {
        let (mem, all) = guest();
        let mut expected = all(&mem);
        let mut from = 700;
        for &(at, len) in list {
            expected[at as usize..][..len].copy_from_slice(&bytes[from - 500..][..len]);
            from += len;
        }
        let read = engine.read_guest(&file, pieces(&mem, list).unwrap(), 700).await;
        assert_eq!(read.unwrap(), from - 700);
        assert!(all(&mem) == expected);
    }
    let (mem, all) = guest();
    let read = engine.read_guest(&file, pieces(&mem, &[(64, 400)]).unwrap(), 10_400).await;
    assert_eq!(read.unwrap(), 100, "the file ends there");
    assert_eq!(all(&mem)[64..164], bytes[9_900..]);
    assert_eq!(engine.read_guest(&file, pieces(&mem, &[]).unwrap(), 0).await.unwrap(), 0);
}

#[test]
fn a_guests_memory_is_filled_piece_by_piece() {
    on_each(4, fill_a_guest);
    let file = MemFs::new().fs().open("/f", OpenMode::create()).unwrap();
    runtime().block_on(async { fill_a_guest(Engine::detect().unwrap(), file, arena(1)).await });
}

#[test]
fn a_guests_memory_stays_mapped_until_it_is_filled() {
    on_each(4, |engine, file, arena| async move {
        let bytes = pattern(9, 8000);
        write(&engine, &file, &arena, &bytes, 0).await;
        let (mem, all) = guest();
        let buf = pieces(&mem, &[(0x9000, 8000)]).unwrap();
        abandon(engine.read_guest(&file, buf, 0));
        engine.settle().await;
        assert!(all(&mem)[0x9000..][..8000] == bytes, "it is carried out all the same");
        let buf = pieces(&mem, &[(0, 8000)]).unwrap();
        drop(mem);
        assert_eq!(engine.read_guest(&file, buf, 0).await.unwrap(), 8000);
    });
}

#[test]
fn only_memory_that_is_mapped_in_one_piece_is_taken() {
    let (mem, _) = guest();
    assert!(pieces(&mem, &[(0xffff, 2)]).is_none());
    assert!(pieces(&mem, &[(0x1_ffff, 2)]).is_none());
    assert!(pieces(&mem, &[(u64::MAX, 2)]).is_none());
    assert!(pieces(&mem, &[(0, 1); GuestBuf::MAX_PIECES + 1]).is_none());
    assert_eq!(pieces(&mem, &[(0, 1); GuestBuf::MAX_PIECES]).unwrap().len(), 1024);
    // The same memory, again and again.
    let most = GuestBuf::MAX_LEN as usize / 0x1_0000;
    assert_eq!(pieces(&mem, &vec![(0, 0x1_0000); most]).unwrap().len(), GuestBuf::MAX_LEN);
    assert!(pieces(&mem, &vec![(0, 0x1_0000); most + 1]).is_none());
}

#[derive(Clone, Debug)]
enum Step {
    Write { offset: u64, len: usize, seed: u64 },
    Read { offset: u64, len: usize },
    Zero { offset: u64, len: u64 },
    Punch { offset: u64, len: u64 },
    Sync,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (offset, len) = (0..200_000_u64, 0..=SLOT);
    let step = prop_oneof![
        4 => (offset.clone(), len.clone(), any::<u64>())
            .prop_map(|(offset, len, seed)| Step::Write { offset, len, seed }),
        4 => (offset.clone(), len).prop_map(|(offset, len)| Step::Read { offset, len }),
        1 => (offset.clone(), 0..100_000_u64).prop_map(|(offset, len)| Step::Zero { offset, len }),
        1 => (offset, 0..100_000_u64).prop_map(|(offset, len)| Step::Punch { offset, len }),
        1 => Just(Step::Sync),
    ];
    prop::collection::vec(step, 1..40)
}

async fn follow(engine: &Engine, file: &BlockFile, arena: &Arena, steps: &[Step]) {
    let mut model: Vec<u8> = Vec::new();
    let clip = |model: &Vec<u8>, offset: u64, len: u64| {
        let end = (offset + len).min(model.len() as u64) as usize;
        (offset as usize).min(end)..end
    };
    for step in steps {
        match *step {
            Step::Write { offset, len, seed } => {
                let bytes = pattern(seed, len);
                write(engine, file, arena, &bytes, offset).await;
                if len > 0 {
                    model.resize(model.len().max(offset as usize + len), 0);
                    model[offset as usize..][..len].copy_from_slice(&bytes);
                }
            }
            Step::Read { offset, len } => {
                let got = read(engine, file, arena, len, offset).await;
                assert!(got == model[clip(&model, offset, len as u64)], "{step:?}");
            }
            Step::Zero { offset, len } => {
                engine.zero_range(file, offset..offset + len).await.unwrap();
                let range = clip(&model, offset, len);
                model[range].fill(0);
            }
            Step::Punch { offset, len } => {
                engine.punch_hole(file, offset..offset + len).await.unwrap();
                let range = clip(&model, offset, len);
                model[range].fill(0);
            }
            Step::Sync => engine.sync_data(file).await.unwrap(),
        }
    }
    assert_eq!(file.size().unwrap(), model.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/engines.regressions",
        ))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_file_is_what_was_written_to_it(steps in steps()) {
        on_each(4, |engine, file, arena| {
            let steps = steps.clone();
            async move { follow(&engine, &file, &arena, &steps).await }
        });
        let mem = MemFs::new().fs().open("/f", OpenMode::create()).unwrap();
        runtime().block_on(async {
            let engine = Engine::start(EngineOptions::kind(EngineKind::Portable)).unwrap();
            follow(&engine, &mem, &arena(1), &steps).await;
        });
    }
}

#[test]
fn many_at_once_each_to_its_place() {
    // More operations than the ring has places, more tasks than the arena has buffers.
    on_each(8, |engine, file, arena| async move {
        let mut tasks = JoinSet::new();
        for i in 0..300_u64 {
            let (engine, file, arena) = (engine.clone(), file.clone(), arena.clone());
            tasks.spawn(async move {
                let bytes = pattern(i, SLOT);
                write(&engine, &file, &arena, &bytes, i * SLOT as u64).await;
                let got = read(&engine, &file, &arena, SLOT, i * SLOT as u64).await;
                assert!(got == bytes, "block {i}");
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
        engine.sync_data(&file).await.unwrap();
        let stats = engine.stats();
        assert!((600..=601).contains(&stats.completed), "{stats:?}");
        println!("{stats:?}");
        if engine.kind() == EngineKind::Ring {
            assert!(stats.submissions < 400, "no batches: {stats:?}");
        }
    });
}

#[test]
fn no_more_than_depth_are_under_way() {
    on_each(3, |engine, file, arena| async move {
        let mut tasks = JoinSet::new();
        for i in 0..100_u64 {
            let (engine, file, arena) = (engine.clone(), file.clone(), arena.clone());
            tasks.spawn(async move {
                write(&engine, &file, &arena, &[1; 4096], i * 4096).await;
                engine.stats().in_flight
            });
        }
        let mut most = 0;
        while let Some(in_flight) = tasks.join_next().await {
            most = most.max(in_flight.unwrap());
        }
        assert!(most <= 3, "{most} under way");
    });
}

#[test]
fn abandoned_writes_are_carried_out_and_harm_nobody() {
    on_each(16, |engine, file, arena| async move {
        let total = 400_u64;
        for i in 0..total {
            let mut buf = arena.acquire().await;
            buf.copy_from(&pattern(i, SLOT));
            abandon(engine.write_at(&file, buf, i * SLOT as u64));
            if i % 16 == 15 {
                // Scribble over every buffer that has come back. If one came back too early, the
                // disk gets the scribble.
                let mut mine = Vec::new();
                while let Some(mut buf) = arena.try_acquire() {
                    buf.fill(0xee);
                    mine.push(buf);
                }
                tokio::task::yield_now().await;
            }
        }
        settle(&arena).await;
        engine.sync_data(&file).await.unwrap();
        let mut bytes = vec![0; SLOT];
        // Those that waited in line when they were dropped were never started.
        let mut written = 0;
        for i in 0..total {
            if file.read_at(&mut bytes, i * SLOT as u64).unwrap() == SLOT
                && bytes.iter().any(|byte| *byte != 0)
            {
                assert!(bytes == pattern(i, SLOT), "block {i} is torn or scribbled on");
                written += 1;
            }
        }
        println!("{written} of {total} were started");
        assert!(written >= 16);
    });
}

#[test]
fn abandoned_reads_never_land_in_somebody_elses_buffer() {
    on_each(16, |engine, file, arena| async move {
        file.write_all_at(&vec![0xaa; 64 * SLOT], 0).unwrap();
        file.sync_data().unwrap();
        for round in 0..50_u64 {
            for i in 0..16 {
                let buf = arena.acquire().await;
                abandon(engine.read_at(&file, buf, (round * 7 + i) % 60 * SLOT as u64));
            }
            let mut mine = Vec::new();
            while let Some(mut buf) = arena.try_acquire() {
                buf.fill(0x55);
                mine.push(buf);
            }
            for _ in 0..5 {
                tokio::task::yield_now().await;
            }
            assert!(mine.iter().all(|buf| buf.iter().all(|byte| *byte == 0x55)), "round {round}");
        }
        settle(&arena).await;
    });
}

#[test]
fn a_runtime_may_end_with_operations_under_way() {
    for kind in kinds() {
        let (_dir, file) = temp_file();
        let arena = arena(32);
        for round in 0..20 {
            let runtime = runtime();
            let engine = runtime.block_on(async {
                let engine = Engine::start(options(kind, 32)).unwrap();
                for i in 0..32_u64 {
                    let buf = buf(&arena, &pattern(i, SLOT));
                    abandon(engine.write_at(&file, buf, i * SLOT as u64));
                }
                for _ in 0..round % 4 {
                    tokio::task::yield_now().await;
                }
                engine
            });
            drop(runtime);
            assert_eq!(arena.available(), 32, "{kind}: buffers outlive the runtime");
            // The engine is of no use any more, and says so instead of waiting for ever.
            self::runtime().block_on(async {
                let (result, _buf) = engine.read_at(&file, buf(&arena, b"x"), 0).await;
                assert_eq!(cause(&result.unwrap_err()), Cause::Cancelled);
            });
        }
    }
}

#[test]
fn the_last_handle_may_go_first() {
    on_each(16, |engine, file, arena| async move {
        for i in 0..16_u64 {
            abandon(engine.write_at(&file, buf(&arena, &pattern(i, SLOT)), i * SLOT as u64));
        }
        drop(engine);
        settle(&arena).await;
        let mut bytes = vec![0; SLOT];
        for i in 0..16 {
            file.read_exact_at(&mut bytes, i * SLOT as u64).unwrap();
            assert!(bytes == pattern(i, SLOT), "block {i}");
        }
    });
}

/// Something to read from that does not answer before it is told to: a pipe in a disk's place.
#[derive(Debug)]
struct Slow(OwnedFd);

impl Backing for Slow {
    fn kind(&self) -> FileKind {
        FileKind::Regular
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn read_at(&self, buf: &mut [u8], _offset: u64) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, buf)?)
    }

    fn write_at(&self, _buf: &[u8], _offset: u64) -> io::Result<usize> {
        Err(ErrorKind::Unsupported.into())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn sync(&self, _what: SyncWhat) -> io::Result<()> {
        Ok(())
    }

    fn try_lock_exclusive(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn same_file(&self, _path: &Path) -> io::Result<bool> {
        Ok(false)
    }
}

fn slow() -> (BlockFile, io::PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    (BlockFile::from_backing("slow", Box::new(Slow(reader.into()))), writer)
}

async fn yield_often() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn what_the_kernel_holds_stays_out_of_reach() {
    on_each(4, |engine, file, arena| async move {
        let (disk, mut writer) = slow();
        assert!(abandon(engine.read_at(&disk, buf(&arena, &[1; 100]), 0)));
        // The descriptor is the engine's as well, until then.
        drop(disk);
        yield_often().await;
        assert_eq!((engine.stats().in_flight, arena.available()), (1, 31));
        // Others are not held up.
        write(&engine, &file, &arena, b"meanwhile", 0).await;
        let mut others: Vec<_> = std::iter::from_fn(|| arena.try_acquire()).collect();
        others.iter_mut().for_each(|buf| buf.fill(9));
        writer.write_all(&[7; 100]).unwrap();
        let landed = arena.acquire().await;
        assert_eq!(landed[..100], [7; 100], "the kernel wrote into the buffer it was given");
        assert!(others.iter().all(|buf| buf.iter().all(|byte| *byte == 9)));
    });
}

#[test]
fn the_line_holds_back_what_the_disk_does_not_take() {
    on_each(2, |engine, _file, arena| async move {
        let (disk, mut writer) = slow();
        let mut tasks = JoinSet::new();
        for _ in 0..5 {
            let (engine, disk, buf) = (engine.clone(), disk.clone(), buf(&arena, &[0; 10]));
            tasks.spawn(async move { engine.read_at(&disk, buf, 0).await.0 });
        }
        yield_often().await;
        assert_eq!(engine.stats().in_flight, 2);
        // One that waits in line is gone at once when it is dropped, and so is its buffer.
        assert!(abandon(engine.read_at(&disk, buf(&arena, &[0; 10]), 0)));
        assert_eq!(arena.available(), 32 - 5);
        writer.write_all(&[3; 50]).unwrap();
        while let Some(read) = tasks.join_next().await {
            assert_eq!(read.unwrap().unwrap(), 10);
        }
    });
}

#[test]
fn a_runtime_that_ends_waits_for_the_kernel() {
    for kind in kinds() {
        let (disk, mut writer) = slow();
        let arena = arena(2);
        let runtime = runtime();
        let engine = runtime.block_on(async {
            let engine = Engine::start(options(kind, 2)).unwrap();
            abandon(engine.read_at(&disk, buf(&arena, &[0; 10]), 0));
            yield_often().await;
            engine
        });
        let ending = std::thread::spawn(move || drop(runtime));
        for _ in 0..1000 {
            std::thread::yield_now();
        }
        assert!(!ending.is_finished(), "{kind}: memory the kernel may write to was let go");
        assert_eq!(arena.available(), 1);
        writer.write_all(&[3; 10]).unwrap();
        ending.join().unwrap();
        assert_eq!(arena.available(), 2);
        drop(engine);
    }
}

#[test]
fn reads_stop_at_the_end() {
    on_each(4, |engine, file, arena| async move {
        write(&engine, &file, &arena, b"0123456789", 0).await;
        assert_eq!(read(&engine, &file, &arena, 100, 4).await, b"456789");
        assert_eq!(read(&engine, &file, &arena, 100, 10).await, b"");
        assert_eq!(read(&engine, &file, &arena, 100, 1 << 40).await, b"");
        assert_eq!(read(&engine, &file, &arena, 0, 0).await, b"");
        write(&engine, &file, &arena, b"", 50).await;
        assert_eq!(file.size().unwrap(), 10);
    });
}

#[test]
fn errors_bring_the_buffer_back_and_say_where() {
    on_each(4, |engine, file, arena| async move {
        let read_only = BlockFile::open(file.path(), OpenMode::read()).unwrap();
        let (result, buf) = engine.write_at(&read_only, buf(&arena, b"abc"), 8192).await;
        let error = result.unwrap_err();
        assert_eq!((cause(&error), &buf[..]), (Cause::Denied, &b"abc"[..]));
        let text = error.to_string();
        assert!(text.starts_with("write ") && text.contains("at byte 8192"), "{text}");
        // The caller was told, so the file is as good as before.
        read_only.sync_data().unwrap();

        let mode = OpenMode { read: false, ..OpenMode::write() };
        let write_only = BlockFile::open(file.path(), mode).unwrap();
        let (result, buf) = engine.read_at(&write_only, buf, 0).await;
        assert_eq!((cause(&result.unwrap_err()), buf.len()), (Cause::Denied, 3));

        let (result, _) = engine.write_at(&file, buf, i64::MAX as u64 - 1).await;
        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
        let far = engine.zero_range(&file, 0..u64::MAX).await.unwrap_err();
        assert_eq!(far.kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn a_write_that_fails_unheard_fails_the_sync() {
    on_each(4, |engine, file, arena| async move {
        let read_only = BlockFile::open(file.path(), OpenMode::read()).unwrap();
        if !abandon(engine.write_at(&read_only, buf(&arena, b"abc"), 0)) {
            // A thread was faster than we: somebody heard.
            return;
        }
        settle(&arena).await;
        for _ in 0..2 {
            let error = engine.sync_data(&read_only).await.unwrap_err();
            assert_eq!(cause(&error), Cause::Denied, "{error}");
            read_only.clone().sync_all().unwrap_err();
        }
        engine.sync_data(&file).await.unwrap();
    });
}

#[test]
fn an_outcome_nobody_picked_up_counts_as_unheard() {
    on_each(4, |engine, file, arena| async move {
        let read_only = BlockFile::open(file.path(), OpenMode::read()).unwrap();
        {
            let mut write = pin!(engine.write_at(&read_only, buf(&arena, b"abc"), 0));
            if let Poll::Ready(heard) = write.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            {
                return drop(heard);
            }
            while engine.stats().completed == 0 {
                tokio::task::yield_now().await;
            }
            // Completed, told, and dropped before it was looked at.
        }
        engine.sync_data(&read_only).await.unwrap_err();
    });
}

#[test]
fn failing_and_remembering_files_work_under_any_engine() {
    on_each(4, |engine, _file, arena| async move {
        let disk = MemFs::new();
        let plan = FaultPlan::new();
        let file = plan.wrap(&disk.fs().open("/f", OpenMode::create()).unwrap());
        plan.fail(FaultOp::Write, 1, Fault::Short(3)).limit_bytes(Some(10));
        let (result, buf) = engine.write_at(&file, buf(&arena, b"0123456"), 0).await;
        result.unwrap();
        let (result, buf) = engine.write_at(&file, buf, 7).await;
        assert_eq!(cause(&result.unwrap_err()), Cause::Full);
        assert_eq!(&buf[..], b"0123456");
        drop(buf);
        assert_eq!(read(&engine, &file, &arena, 100, 0).await, b"0123456012");
        plan.fail(FaultOp::Sync, 1, Fault::Io);
        engine.sync_data(&file).await.unwrap_err();
        engine.sync_data(&file).await.unwrap_err();
        assert_eq!(disk.log().len(), 4, "create and three writes: {:?}", disk.log());
    });
}

#[test]
fn bytes_are_written_from_where_they_lie() {
    on_each(4, |engine, file, arena| async move {
        let bytes = Bytes::from(pattern(5, 100_000));
        engine.write_bytes_at(&file, bytes.slice(10..), 3).await.unwrap();
        abandon(engine.write_bytes_at(&file, bytes.slice(..10), 200_000));
        while file.size().unwrap() < 200_010 {
            tokio::task::yield_now().await;
        }
        assert!(read(&engine, &file, &arena, SLOT, 3).await == bytes[10..10 + SLOT]);
        assert_eq!(read(&engine, &file, &arena, 100, 200_000).await, bytes[..10]);
    });
}

#[test]
fn registered_buffers_and_direct_io() {
    for kind in kinds() {
        let (_dir, plain) = temp_file();
        plain.set_len(20 * SLOT as u64 + 1000).unwrap();
        let mode = OpenMode::write().direct();
        let direct = match BlockFile::open(plain.path(), mode) {
            Ok(file) => file,
            Err(error) => return println!("skipping direct I/O: {error}"),
        };
        let (registered, other) = (arena(8), arena(8));
        let options =
            EngineOptions { register: vec![arena(3), registered.clone()], ..options(kind, 8) };
        runtime().block_on(async {
            let engine = Engine::start(options).unwrap();
            for file in [&plain, &direct] {
                for (i, arena) in [&registered, &other].into_iter().cycle().take(20).enumerate() {
                    let at = (i * SLOT) as u64;
                    write(&engine, file, arena, &pattern(i as u64 + 7, SLOT), at).await;
                }
                for (i, arena) in [&other, &registered].into_iter().cycle().take(20).enumerate() {
                    let got = read(&engine, file, arena, SLOT, (i * SLOT) as u64).await;
                    assert!(got == pattern(i as u64 + 7, SLOT), "{kind}, block {i}");
                }
                // The end lies within a sector.
                let tail = read(&engine, file, &registered, SLOT, 20 * SLOT as u64).await;
                assert_eq!(tail.len(), 1000);
                engine.sync_data(file).await.unwrap();
            }
        });
        assert_eq!((registered.available(), other.available()), (8, 8));
    }
}

#[test]
fn it_works_on_many_threads_as_well() {
    for kind in kinds() {
        let (_dir, file) = temp_file();
        let arena = arena(8);
        let runtime = Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
        runtime.block_on(async {
            let engine = Engine::start(options(kind, 8)).unwrap();
            let mut tasks = JoinSet::new();
            for i in 0..200_u64 {
                let (engine, file, arena) = (engine.clone(), file.clone(), arena.clone());
                tasks.spawn(async move {
                    write(&engine, &file, &arena, &pattern(i, SLOT), i * SLOT as u64).await;
                    let got = read(&engine, &file, &arena, SLOT, i * SLOT as u64).await;
                    assert!(got == pattern(i, SLOT));
                });
            }
            while let Some(task) = tasks.join_next().await {
                task.unwrap();
            }
        });
    }
}

#[test]
fn starting_needs_a_runtime_and_sense() {
    for kind in kinds() {
        Engine::start(EngineOptions::kind(kind)).unwrap_err();
        let runtime = runtime();
        let _inside = runtime.enter();
        let error = Engine::start(options(kind, 0)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let runtime = runtime();
    let _inside = runtime.enter();
    let engine = Engine::detect().unwrap();
    assert_eq!(engine.kind(), *kinds().last().unwrap());
    assert_eq!(EngineOptions::default().choice, EngineChoice::Auto);
}

#[test]
fn a_range_is_copied_from_another_file_and_a_read_takes_both() {
    on_each(4, |engine, file, arena| async move {
        let (_dir, other) = temp_file();
        let (ours, theirs) = (pattern(1, 3 * SLOT), pattern(2, 3 * SLOT));
        file.write_all_at(&ours, 0).unwrap();
        other.write_all_at(&theirs, 0).unwrap();
        // Along blocks, which may be shared, and not.
        for range in [SLOT..2 * SLOT, 100..SLOT + 5, 7..8, 9..9, 0..3 * SLOT] {
            file.write_all_at(&ours, 0).unwrap();
            let wide = range.start as u64..range.end as u64;
            engine.copy_range(&file, &other, wide.clone()).await.unwrap();
            let mut want = ours.clone();
            want[range.clone()].copy_from_slice(&theirs[range]);
            let mut found = vec![0; 3 * SLOT];
            file.read_exact_at(&mut found, 0).unwrap();
            assert!(found == want, "{wide:?}");
        }
        let behind = 3 * SLOT as u64 - 10..3 * SLOT as u64 + 10;
        let short = engine.copy_range(&file, &other, behind).await.unwrap_err();
        assert_eq!(short.kind(), ErrorKind::UnexpectedEof);
        file.write_all_at(&ours, 0).unwrap();
        let mut buf = arena.acquire().await;
        buf.set_len(1000);
        let parts = vec![50..50, 60..100, 1000..1050];
        let (read, buf) = engine.read_over(&file, buf, 50, &other, parts).await;
        let (ours, theirs) = (&ours[50..1050], &theirs[50..1050]);
        let want = [&ours[..10], &theirs[10..50], &ours[50..950], &theirs[950..]].concat();
        assert!(read.unwrap() == 1000 && *buf == want[..]);
    });
}

#[test]
fn what_was_given_up_is_done_when_all_has_settled() {
    on_each(3, |engine, file, arena| async move {
        let (_dir, other) = temp_file();
        other.write_all_at(&pattern(9, SLOT), 0).unwrap();
        for round in 0..20u64 {
            let at = round * 2 * SLOT as u64;
            abandon(engine.write_at(&file, buf(&arena, &pattern(round, SLOT)), at));
            abandon(engine.zero_range(&file, at..at + 10));
            engine.settle().await;
            let found = read(&engine, &file, &arena, SLOT, at).await;
            assert!(found[10..] == pattern(round, SLOT)[10..], "round {round}");
            abandon(engine.copy_range(&file, &other, 0..SLOT as u64));
            engine.settle().await;
            assert!(read(&engine, &file, &arena, SLOT, 0).await == pattern(9, SLOT));
        }
    });
}
