//! The disk tier: it survives restarts, damage and lack of room, and never gives a wrong byte.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blockio::fake::{Fault, FaultOp, FaultPlan, MemFs};
use blockio::{Engine, OpenMode};
use common::{
    CHUNK, DIR, Fake, Rig, Stuff, TestImage, bytes_of, disk_budget, disk_options, fs_with, on_core,
    segments,
};
use forebay_cache::{Budget, Cache, DiskBudget, DiskState, Options, Shared};

fn image() -> TestImage {
    TestImage::of(0..6, Stuff::Text)
}

/// The one segment of a log that holds all frames of `image`.
fn sealed_segment(image: TestImage) -> (String, Vec<u8>) {
    let fs = MemFs::new();
    on_core(async {
        let place = image.all();
        let mut rig = Rig::on_disk(&Fake::new([image]), &fs);
        rig.read(&place).await.unwrap();
        rig.settle();
        rig.close();
    });
    let names = segments(&fs);
    assert_eq!(names.len(), 1);
    (names[0].clone(), bytes_of(&fs, &names[0]))
}

#[test]
fn a_restart_serves_from_disk() {
    on_core(async {
        let (image, source, fs) = (image(), Fake::new([image()]), MemFs::new());
        let mut rig = Rig::on_disk(&source, &fs);
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        rig.settle();
        assert_eq!(rig.status().disk_frames, 6);
        rig.close();

        let rig = Rig::on_disk(&source, &fs);
        assert_eq!((rig.status().disk.clone(), rig.status().disk_frames), (DiskState::On, 6));
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        assert_eq!((source.given_in_all(), rig.status().disk_hits), (6, 6));
    });
}

#[test]
fn a_restart_after_a_kill_serves_from_disk() {
    let (name, sealed) = sealed_segment(image());
    on_core(async {
        let (image, source, fs) = (image(), Fake::new([image()]), MemFs::new());
        let mut rig = Rig::on_disk(&source, &fs);
        rig.read(&image.all()).await.unwrap();
        rig.settle();
        drop(rig);

        let rig = Rig::on_disk(&source, &fs);
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        assert_eq!(source.given_in_all(), 6);
        // What was found by reading it through has a footer now.
        drop(rig);
        assert_eq!(bytes_of(&fs, &name), sealed);
    });
}

#[test]
fn works_with_real_files_and_a_thread() {
    on_core(async {
        let dir = tempfile::tempdir().unwrap();
        let disk = DiskBudget { dir: dir.path().join("a/b"), bytes: 1 << 30, reserve: 0 };
        let budget = Budget { memory: 8, in_flight: 64 << 20, disk: Some(disk) };
        let image = TestImage::of(0..40, Stuff::Noise);
        let source = Fake::new([TestImage::of(0..40, Stuff::Noise)]);
        for _ in 0..2 {
            let shared = Shared::start(budget.clone(), Options::default()).unwrap();
            let engine = Engine::detect().unwrap();
            let cache = Cache::new(Arc::clone(&source), Arc::clone(&shared), engine);
            while shared.status().is_recovering() {
                tokio::task::yield_now().await;
            }
            image.check(&image.all(), common::read(&cache, &image.all()).await.unwrap());
            while shared.status().disk_frames < 40 {
                tokio::task::yield_now().await;
            }
            image.check(&image.all(), common::read(&cache, &image.all()).await.unwrap());
            shared.close();
            assert_eq!(shared.status().disk_bad_frames, 0);
        }
        assert_eq!(source.given_in_all(), 40);
    });
}

#[test]
fn serves_from_the_source_while_it_recovers() {
    let (name, bytes) = sealed_segment(image());
    on_core(async {
        let (image, source, fs) = (image(), Fake::new([image()]), fs_with(&[(&name, &bytes)]));
        let mut rig = Rig::new(&source, disk_budget(4 << 20), disk_options(&fs));
        assert!(rig.status().is_recovering());
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        assert_eq!(source.given_in_all(), 6);
        rig.settle();
        assert!(!rig.status().is_recovering());
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        assert_eq!(source.given_in_all(), 6);
        assert_eq!(rig.status().disk_written_bytes, 0, "what was fetched meanwhile was there");
    });
}

/// Reads everything from a log that was damaged; whatever it gives must be right, and what it does
/// not give must come from the source. Returns how many frames did, and how many the log was said to
/// have.
async fn read_damaged(image: &TestImage, name: &str, bytes: &[u8], what: &str) -> (u32, u32) {
    let source = Fake::new([image.clone()]);
    let fs = fs_with(&[(name, bytes)]);
    let budget = Budget { memory: 1 << 20, ..disk_budget(4 << 20) };
    let mut rig = Rig::new(&source, budget.clone(), disk_options(&fs));
    rig.settle();
    image.check(&image.all(), rig.read(&image.all()).await.expect(what));
    let fetched = source.given_in_all();
    assert_eq!(u64::from(fetched) + rig.status().disk_hits, 6, "{what}");
    let recovered = rig.status().disk_hits + rig.status().disk_bad_frames;
    // What was fetched replaces what was damaged, at once and after another start.
    rig.settle();
    assert_eq!(rig.status().disk_frames, 6, "{what}");
    rig.close();
    let mut rig = Rig::new(&source, budget, disk_options(&fs));
    rig.settle();
    image.check(&image.all(), rig.read(&image.all()).await.expect(what));
    assert_eq!((source.given_in_all(), rig.status().disk_hits), (fetched, 6), "{what}");
    (fetched, recovered as u32)
}

#[test]
fn a_flipped_bit_costs_one_frame() {
    let image = image();
    let (name, good) = sealed_segment(image.clone());
    let frames_end = good.len() - 64 - 6 * 48;
    on_core(async {
        for byte in 0..good.len() {
            let mut bad = good.clone();
            bad[byte] ^= 1 << (byte % 8);
            let (fetched, _) = read_damaged(&image, &name, &bad, &format!("byte {byte}")).await;
            let expected = match byte {
                0..64 => 6,
                _ if byte < frames_end => 1,
                _ => 0,
            };
            assert_eq!(fetched, expected, "byte {byte} of {}", good.len());
        }
    });
}

#[test]
fn a_log_cut_anywhere_gives_the_frames_before_the_cut() {
    let image = image();
    let (name, good) = sealed_segment(image.clone());
    let lens: Vec<_> = image.frames.iter().map(|frame| frame.bytes().len()).collect();
    on_core(async {
        for len in 0..good.len() {
            let whole = (0..6).filter(|n| len >= 64 + lens[..=*n].iter().sum::<usize>()).count();
            let found = read_damaged(&image, &name, &good[..len], &format!("cut at {len}")).await;
            assert_eq!(found, (6 - whole as u32, whole as u32), "cut at {len}");
        }
    });
}

#[test]
fn a_broken_header_in_a_segment_without_a_footer_costs_what_follows() {
    let image = image();
    let (name, good) = sealed_segment(image.clone());
    let frames_end = good.len() - 64 - 6 * 48;
    let first = image.frames[0].bytes().len();
    on_core(async {
        let mut bad = good[..frames_end].to_vec();
        bad[64 + first + 20] ^= 1;
        assert_eq!(read_damaged(&image, &name, &bad, "second header").await, (5, 1));
    });
}

#[test]
fn what_lies_behind_the_last_whole_frame_is_cut_off() {
    let (name, good) = sealed_segment(image());
    let frames_end = good.len() - 64 - 6 * 48;
    let mut torn = good[..frames_end].to_vec();
    torn.extend(image().frames[0].bytes().iter().take(50).chain([0xff; 5000].iter()));
    on_core(async {
        let fs = fs_with(&[(&name, &torn)]);
        let rig = Rig::on_disk(&Fake::new([image()]), &fs);
        assert_eq!(rig.status().disk_bytes, good.len() as u64);
        assert_eq!(bytes_of(&fs, &name), good);
    });
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let (name, good) = sealed_segment(image());
    let mut newer = good.clone();
    newer[4] = 2;
    let foreign = b"what somebody else put here".to_vec();
    let files: [(&str, &[u8]); 4] =
        [(&name, &newer), ("seg-0000000000000009", &foreign), ("notes.txt", b"x"), ("seg-1", b"y")];
    on_core(async {
        let (image, source, fs) = (image(), Fake::new([image()]), fs_with(&files));
        let mut rig = Rig::on_disk(&source, &fs);
        assert_eq!(rig.status().disk, DiskState::On);
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        assert_eq!(source.given_in_all(), 6);
        rig.settle();
        rig.shared.drop_all();
        rig.settle();
        rig.read(&image.all()).await.unwrap();
        rig.settle();
        rig.close();
        for (name, bytes) in files {
            assert_eq!(bytes_of(&fs, name), bytes, "{name}");
        }
        assert!(segments(&fs).contains(&"seg-000000000000000b".to_owned()), "{:?}", segments(&fs));
    });
}

#[test]
fn what_never_got_a_header_is_removed() {
    let names = ["seg-0000000000000001", "seg-0000000000000002"];
    on_core(async {
        let fs = fs_with(&[(names[0], &[]), (names[1], &[0; 4096])]);
        let _rig = Rig::on_disk(&Fake::new([image()]), &fs);
        assert!(segments(&fs).is_empty());
    });
}

fn failing_rig(source: &Arc<Fake>, fs: &MemFs, plan: &FaultPlan, clock: &common::Clock) -> Rig {
    let mut options = Options { clock: clock.get(), ..disk_options(fs) };
    options.fs = plan.wrap_fs(&options.fs);
    Rig::new(source, disk_budget(4 << 20), options)
}

#[test]
fn a_full_disk_is_read_and_not_written_until_there_is_room() {
    on_core(async {
        let image = TestImage::of(0..60, Stuff::Noise);
        let source = Fake::new([TestImage::of(0..60, Stuff::Noise)]);
        let (fs, plan, clock) = (MemFs::new(), FaultPlan::new(), common::Clock::default());
        let mut rig = failing_rig(&source, &fs, &plan, &clock);
        rig.settle();
        plan.limit_bytes(Some(100_000));
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        rig.settle();
        let status = rig.status();
        assert!(matches!(&status.disk, DiskState::Full(why) if why.contains(DIR)), "{status:?}");
        assert!(status.disk.to_string().ends_with("tried again every 30s"), "{status:?}");
        assert_eq!(status.disk_frames, 6);
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        assert_eq!((source.given_in_all(), rig.status().disk_hits), (60 + 54, 6));

        plan.limit_bytes(None);
        clock.advance(Duration::from_secs(29));
        rig.settle();
        assert!(matches!(rig.status().disk, DiskState::Full(_)));
        clock.advance(Duration::from_secs(1));
        rig.settle();
        assert_eq!(rig.status().disk, DiskState::On);
        rig.read(&image.all()).await.unwrap();
        rig.settle();
        assert_eq!(rig.status().disk_frames, 60);
        rig.close();
        // The torn frame was written over.
        let rig = Rig::on_disk(&source, &fs);
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        assert_eq!(rig.status().disk_hits, 60);
    });
}

#[test]
fn tries_on_a_full_disk_leave_no_files() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        let (fs, plan, clock) = (MemFs::new(), FaultPlan::new(), common::Clock::default());
        let mut rig = failing_rig(&source, &fs, &plan, &clock);
        rig.settle();
        plan.limit_bytes(Some(10));
        for _ in 0..5 {
            rig.read(&image.all()).await.unwrap();
            rig.settle();
            assert!(matches!(rig.status().disk, DiskState::Full(_)));
            assert!(segments(&fs).is_empty(), "{:?}", segments(&fs));
            clock.advance(Duration::from_secs(30));
            rig.settle();
        }
    });
}

#[test]
fn a_disk_that_fails_to_write_is_switched_off_and_serving_goes_on() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        let (fs, plan, clock) = (MemFs::new(), FaultPlan::new(), common::Clock::default());
        let mut rig = failing_rig(&source, &fs, &plan, &clock);
        rig.settle();
        plan.fail(FaultOp::Write, 3, Fault::Io);
        for _ in 0..3 {
            image.check(&image.all(), rig.read(&image.all()).await.unwrap());
            rig.settle();
        }
        let status = rig.status();
        assert!(matches!(&status.disk, DiskState::Off(why) if why.contains(DIR)), "{status:?}");
        assert_eq!((status.disk_frames, status.disk_bytes), (0, 0));
        assert_eq!(source.given_in_all(), 18);
        clock.advance(Duration::from_secs(3600));
        rig.settle();
        assert!(matches!(rig.status().disk, DiskState::Off(_)), "off until a restart");
    });
}

#[test]
fn a_disk_that_fails_to_read_is_switched_off_and_serving_goes_on() {
    on_core(async {
        let image = TestImage::of(0..20, Stuff::Text);
        let source = Fake::new([TestImage::of(0..20, Stuff::Text)]);
        let (fs, plan, clock) = (MemFs::new(), FaultPlan::new(), common::Clock::default());
        let mut rig = failing_rig(&source, &fs, &plan, &clock);
        rig.read(&image.all()).await.unwrap();
        rig.settle();
        // All that lie side by side, and then the first of them alone.
        (1..=2).for_each(|nth| _ = plan.fail(FaultOp::Read, nth, Fault::Io));
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        assert_eq!(rig.status().disk, DiskState::On, "one failure is the sector's, not the disk's");
        assert_eq!((source.given_in_all(), rig.status().disk_hits), (21, 19));
        rig.settle();
        for nth in 1..=20 {
            plan.fail(FaultOp::Read, nth, Fault::Io);
        }
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        assert!(matches!(rig.status().disk, DiskState::Off(_)), "{:?}", rig.status());
        rig.settle();
        assert_eq!(rig.status().disk_frames, 0);
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
    });
}

/// Removes the directory of the disk tier, as `rm -rf` does.
fn remove_dir(fs: &MemFs) {
    let fs = fs.fs();
    for name in fs.list(DIR).unwrap() {
        fs.remove_file(format!("{DIR}/{}", name.display())).unwrap();
    }
    fs.remove_dir(DIR).unwrap();
}

#[test]
fn a_directory_that_is_removed_is_noticed_and_serving_goes_on() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        let (fs, plan, clock) = (MemFs::new(), FaultPlan::new(), common::Clock::default());
        let mut rig = failing_rig(&source, &fs, &plan, &clock);
        rig.read(&image.all()).await.unwrap();
        rig.settle();
        assert_eq!(rig.status().disk_frames, 6);
        remove_dir(&fs);
        clock.advance(Duration::from_secs(5));
        rig.settle();
        let status = rig.status();
        let says = |why: &str| why.contains("is gone") && why.contains("restart the cache");
        assert!(matches!(&status.disk, DiskState::Off(why) if says(why)), "{status:?}");
        rig.settle();
        assert_eq!((rig.status().disk_frames, rig.status().disk_bytes), (0, 0));
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        rig.close();
        let mut rig = failing_rig(&source, &fs, &plan, &clock);
        rig.settle();
        assert_eq!(rig.status().disk, DiskState::On, "a restart makes it anew");
    });
}

#[test]
fn a_segment_that_cannot_be_begun_in_a_removed_directory_says_why() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        let (fs, plan, clock) = (MemFs::new(), FaultPlan::new(), common::Clock::default());
        let mut rig = failing_rig(&source, &fs, &plan, &clock);
        rig.settle();
        remove_dir(&fs);
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        rig.settle();
        let state = rig.status().disk;
        assert!(matches!(&state, DiskState::Off(why) if why.contains("is gone")), "{state}");
    });
}

#[test]
fn neighbours_are_read_in_one_go() {
    on_core(async {
        let image = TestImage::of(0..40, Stuff::Text);
        let source = Fake::new([TestImage::of(0..40, Stuff::Text)]);
        let (fs, plan, clock) = (MemFs::new(), FaultPlan::new(), common::Clock::default());
        let mut rig = failing_rig(&source, &fs, &plan, &clock);
        rig.read(&image.all()).await.unwrap();
        rig.settle();
        let before = plan.count(FaultOp::Read);
        let odd = image.place(|chunk| chunk % 2 == 1 || chunk < 10);
        image.check(&odd, rig.read(&odd).await.unwrap());
        // The first ten together; between the others lies what nobody asked for.
        assert_eq!(plan.count(FaultOp::Read) - before, 1 + 15);
        assert_eq!(rig.status().disk_hits, 10 + 15);
    });
}

#[test]
fn failed_reads_among_good_ones_are_the_sectors_fault() {
    on_core(async {
        let image = TestImage::of(0..40, Stuff::Text);
        let source = Fake::new([TestImage::of(0..40, Stuff::Text)]);
        let (fs, plan, clock) = (MemFs::new(), FaultPlan::new(), common::Clock::default());
        let mut rig = failing_rig(&source, &fs, &plan, &clock);
        rig.read(&image.all()).await.unwrap();
        rig.settle();
        (1..20).for_each(|nth| _ = plan.fail(FaultOp::Read, 2 * nth, Fault::Io));
        for chunk in 0..40 {
            image.check(&image.one(chunk), rig.read(&image.one(chunk)).await.unwrap());
        }
        assert_eq!(rig.status().disk, DiskState::On);
        assert_eq!(source.given_in_all(), 40 + 19);
    });
}

#[test]
fn short_reads_and_writes_are_carried_on() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        let (fs, plan, clock) = (MemFs::new(), FaultPlan::new(), common::Clock::default());
        let mut rig = failing_rig(&source, &fs, &plan, &clock);
        rig.settle();
        (1..20).for_each(|nth| _ = plan.fail(FaultOp::Write, nth, Fault::Short(7)));
        rig.read(&image.all()).await.unwrap();
        rig.settle();
        (1..20).for_each(|nth| _ = plan.fail(FaultOp::Read, nth, Fault::Short(7)));
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        assert_eq!(source.given_in_all(), 6);
    });
}

#[test]
fn a_directory_that_cannot_be_had_is_no_error() {
    on_core(async {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), b"in the way").unwrap();
        let (image, source) = (image(), Fake::new([image()]));
        let disk = DiskBudget { dir: dir.path().join("file/cache"), bytes: 1 << 30, reserve: 0 };
        let budget = Budget { memory: 8, in_flight: 64 << 20, disk: Some(disk) };
        let mut rig = Rig::new(&source, budget, Options::default());
        rig.settle();
        let state = rig.status().disk;
        assert!(matches!(&state, DiskState::Off(why) if why.contains("file/cache")), "{state}");
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        rig.settle();
    });
}

#[test]
fn a_read_only_directory_is_no_error() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        let (fs, plan, clock) = (MemFs::new(), FaultPlan::new(), common::Clock::default());
        let mut rig = failing_rig(&source, &fs, &plan, &clock);
        plan.fail(FaultOp::Name, 1, Fault::Io);
        rig.settle();
        assert!(matches!(rig.status().disk, DiskState::Off(_)));
        for _ in 0..2 {
            image.check(&image.all(), rig.read(&image.all()).await.unwrap());
            rig.settle();
        }
        // It is tried again: somebody may have mounted it.
        clock.advance(Duration::from_secs(30));
        rig.settle();
        assert_eq!(rig.status().disk, DiskState::On);
    });
}

#[test]
fn a_directory_that_cannot_be_listed_is_tried_again() {
    let (name, bytes) = sealed_segment(image());
    on_core(async {
        let (image, source, fs) = (image(), Fake::new([image()]), fs_with(&[(&name, &bytes)]));
        let (plan, clock) = (FaultPlan::new(), common::Clock::default());
        let mut rig = failing_rig(&source, &fs, &plan, &clock);
        plan.fail(FaultOp::List, 1, Fault::Io);
        rig.settle();
        assert!(matches!(rig.status().disk, DiskState::Off(_)));
        clock.advance(Duration::from_secs(30));
        rig.settle();
        assert_eq!((rig.status().disk, rig.status().disk_frames), (DiskState::On, 6));
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        assert_eq!(source.given_in_all(), 0);
    });
}

#[test]
fn two_caches_never_write_one_directory() {
    on_core(async {
        let (image, source, fs) = (image(), Fake::new([image()]), MemFs::new());
        let first = Rig::on_disk(&source, &fs);
        let clock = common::Clock::default();
        let options = Options { clock: clock.get(), ..disk_options(&fs) };
        let mut second = Rig::new(&source, disk_budget(4 << 20), options);
        second.settle();
        let state = second.status().disk;
        assert!(matches!(&state, DiskState::Off(why) if why.contains("another process")));
        image.check(&image.all(), second.read(&image.all()).await.unwrap());
        first.close();
        clock.advance(Duration::from_secs(30));
        second.settle();
        assert_eq!(second.status().disk, DiskState::On);
    });
}

#[test]
fn the_free_space_reserve_is_kept() {
    on_core(async {
        let image = TestImage::of(0..100, Stuff::Noise);
        let source = Fake::new([TestImage::of(0..100, Stuff::Noise)]);
        let (fs, clock) = (MemFs::new(), common::Clock::default());
        let free = Arc::new(AtomicU64::new(1 << 30));
        let seen = Arc::clone(&free);
        let mut budget = disk_budget(4 << 20);
        budget.disk.as_mut().unwrap().reserve = 1 << 20;
        let options = Options {
            clock: clock.get(),
            free_space: Arc::new(move |_| Ok(seen.load(Ordering::Relaxed))),
            ..disk_options(&fs)
        };
        let mut rig = Rig::new(&source, budget, options);
        rig.read(&image.all()).await.unwrap();
        rig.settle();
        let before = segments(&fs).len();
        assert!(before > 4 && rig.status().disk == DiskState::On);
        // Somebody else fills the disk: the cache gives up what it has, but for the open segment.
        free.store((1 << 20) - 1, Ordering::Relaxed);
        let more = TestImage::of(200..250, Stuff::Noise);
        source.add(TestImage::of(200..250, Stuff::Noise));
        more.check(&more.all(), rig.read(&more.all()).await.unwrap());
        rig.settle();
        assert!(matches!(rig.status().disk, DiskState::Full(_)));
        assert!(segments(&fs).len() <= 1, "{:?}", segments(&fs));
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        free.store(1 << 30, Ordering::Relaxed);
        clock.advance(Duration::from_secs(30));
        rig.settle();
        assert_eq!(rig.status().disk, DiskState::On);
    });
}

/// All segment files together.
fn disk_bytes(fs: &MemFs) -> u64 {
    segments(fs).iter().map(|name| bytes_of(fs, name).len() as u64).sum()
}

#[test]
fn the_oldest_goes_but_what_is_in_use_stays() {
    on_core(async {
        let (fs, source) = (MemFs::new(), Fake::new([]));
        let budget = 2 << 20;
        let mut rig = Rig::new(&source, disk_budget(budget), disk_options(&fs));
        rig.settle();
        let hot = TestImage::of(0..7, Stuff::Noise);
        source.add(TestImage::of(0..7, Stuff::Noise));
        rig.read(&hot.all()).await.unwrap();
        for round in 1..40 {
            let seeds = round * 1000..round * 1000 + 20;
            let cold = TestImage::of(seeds.clone(), Stuff::Noise);
            source.add(TestImage::of(seeds, Stuff::Noise));
            cold.check(&cold.all(), rig.read(&cold.all()).await.unwrap());
            rig.settle();
            hot.check(&hot.all(), rig.read(&hot.all()).await.unwrap());
            assert_eq!(rig.status().disk_bytes, disk_bytes(&fs), "round {round}");
            assert!(disk_bytes(&fs) <= budget, "round {round}: {} bytes", disk_bytes(&fs));
        }
        assert!((0..7).all(|chunk| source.given(&hot, chunk) == 1), "read from disk all along");
        // What was not read since is gone, and the index knows.
        let frames = rig.status().disk_frames;
        assert!(frames * (CHUNK as u64 + 64) <= budget, "{frames} frames");
        let written = rig.status().disk_written_bytes;
        let fetched = rig.status().source_bytes;
        assert!(written <= 2 * fetched, "{written} bytes written for {fetched} fetched");
        rig.close();
        let rig = Rig::on_disk(&source, &fs);
        hot.check(&hot.all(), rig.read(&hot.all()).await.unwrap());
        assert_eq!(rig.status().disk_hits, 7);
    });
}

#[test]
fn what_memory_uses_the_disk_keeps() {
    on_core(async {
        let (fs, source) = (MemFs::new(), Fake::new([]));
        let budget = Budget { memory: 2 << 20, ..disk_budget(2 << 20) };
        let mut rig = Rig::new(&source, budget, disk_options(&fs));
        let hot = TestImage::of(0..7, Stuff::Noise);
        source.add(TestImage::of(0..7, Stuff::Noise));
        for round in 1..40 {
            rig.read(&hot.all()).await.unwrap();
            let seeds = round * 1000..round * 1000 + 20;
            let cold = TestImage::of(seeds.clone(), Stuff::Noise);
            source.add(TestImage::of(seeds, Stuff::Noise));
            rig.read(&cold.all()).await.unwrap();
            rig.settle();
        }
        rig.close();
        let rig = Rig::on_disk(&source, &fs);
        hot.check(&hot.all(), rig.read(&hot.all()).await.unwrap());
        assert_eq!(rig.status().disk_hits, 7);
    });
}

#[test]
fn a_smaller_budget_is_kept_after_a_restart() {
    on_core(async {
        let image = TestImage::of(0..200, Stuff::Noise);
        let source = Fake::new([TestImage::of(0..200, Stuff::Noise)]);
        let fs = MemFs::new();
        let mut rig = Rig::on_disk(&source, &fs);
        rig.read(&image.all()).await.unwrap();
        rig.settle();
        rig.close();
        assert!(disk_bytes(&fs) > 3 << 20);
        let mut rig = Rig::new(&source, disk_budget(1 << 20), disk_options(&fs));
        rig.settle();
        assert!(disk_bytes(&fs) <= 1 << 20, "{} before anything is written", disk_bytes(&fs));
        source.add(TestImage::of(500..501, Stuff::Noise));
        rig.read(&TestImage::of(500..501, Stuff::Noise).all()).await.unwrap();
        rig.settle();
        assert!(disk_bytes(&fs) <= 1 << 20, "{}", disk_bytes(&fs));
        let frames = rig.status().disk_frames;
        assert!(frames * (CHUNK as u64 + 64) <= 1 << 20, "{frames} frames in the index");
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
    });
}

#[test]
fn a_disk_full_of_what_is_in_use_is_not_rewritten_for_ever() {
    on_core(async {
        let (fs, source) = (MemFs::new(), Fake::new([]));
        let mut rig = Rig::new(&source, disk_budget(1 << 20), disk_options(&fs));
        let hot = TestImage::of(0..30, Stuff::Noise);
        source.add(hot.clone());
        for round in 1..40 {
            hot.check(&hot.all(), rig.read(&hot.all()).await.unwrap());
            let cold = TestImage::of(round * 1000..round * 1000 + 1, Stuff::Noise);
            source.add(cold.clone());
            rig.read(&cold.all()).await.unwrap();
            rig.settle();
            assert!(disk_bytes(&fs) <= 1 << 20);
        }
        let (written, fetched) = (rig.status().disk_written_bytes, rig.status().source_bytes);
        assert!(
            written > fetched && written <= 2 * fetched,
            "{written} written, {fetched} fetched"
        );
    });
}

#[test]
fn a_segment_without_a_readable_footer_is_still_evicted() {
    on_core(async {
        let (fs, source) = (MemFs::new(), Fake::new([]));
        let mut rig = Rig::new(&source, disk_budget(1 << 20), disk_options(&fs));
        for round in 0..20 {
            source.add(TestImage::of(round * 1000..round * 1000 + 20, Stuff::Noise));
            let image = TestImage::of(round * 1000..round * 1000 + 20, Stuff::Noise);
            rig.read(&image.all()).await.unwrap();
            rig.settle();
            for name in segments(&fs) {
                let path = format!("{DIR}/{name}");
                let file = fs.fs().open(&path, OpenMode::write()).unwrap();
                let size = file.size().unwrap();
                file.write_all_at(&[0xff], size - 1).unwrap();
            }
            assert!(disk_bytes(&fs) <= 1 << 20);
            assert!(rig.status().disk_frames <= (1 << 20) / CHUNK as u64);
        }
    });
}

#[test]
fn chunks_and_everything_can_be_dropped() {
    on_core(async {
        let (image, source, fs) = (image(), Fake::new([image()]), MemFs::new());
        let budget = Budget { memory: 1 << 20, ..disk_budget(4 << 20) };
        let mut rig = Rig::new(&source, budget, disk_options(&fs));
        rig.read(&image.all()).await.unwrap();
        rig.settle();
        rig.shared.drop_chunk(image.table.domain(), &image.table.digests()[2]);
        rig.read(&image.all()).await.unwrap();
        assert_eq!((source.given_in_all(), source.given(&image, 2)), (7, 2));
        rig.shared.drop_all();
        rig.settle();
        let status = rig.status();
        assert_eq!((status.memory_bytes, status.paper_bytes, status.disk_bytes), (0, 0, 0));
        assert!(segments(&fs).is_empty());
        rig.read(&image.all()).await.unwrap();
        assert_eq!(source.given_in_all(), 13);
        rig.settle();
        assert_eq!(rig.status().disk_frames, 6);
    });
}

#[test]
fn a_log_that_cannot_keep_up_leaves_frames_out() {
    on_core(async {
        let image = TestImage::of(0..400, Stuff::Noise);
        let source = Fake::new([TestImage::of(0..400, Stuff::Noise)]);
        let budget = Budget { in_flight: 0, ..disk_budget(64 << 20) };
        let fs = MemFs::new();
        let mut rig = Rig::new(&source, budget, disk_options(&fs));
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        let status = rig.status();
        assert!(status.disk_queued_bytes <= (4 << 20) + 64);
        assert_eq!(status.disk_skipped_frames, 400 - ((4 << 20) + 64) / (CHUNK as u64 + 64));
        rig.settle();
        assert_eq!(rig.status().disk_queued_bytes, 0);
        assert_eq!(rig.status().disk_frames + status.disk_skipped_frames, 400);
    });
}

#[test]
fn budgets_that_make_no_sense_are_refused() {
    let fs = MemFs::new();
    for (bytes, segment) in [(1 << 20, Some(1 << 19)), (1 << 20, Some(100)), (0, None)] {
        let options = Options { segment, ..disk_options(&fs) };
        let Err(error) = Shared::open(disk_budget(bytes), options) else { panic!("{bytes}") };
        assert_eq!(error.kind(), image::Kind::Invalid);
    }
    let options = || Options { segment: None, ..disk_options(&fs) };
    let Err(error) = Shared::open(disk_budget(1 << 10), options()) else { panic!("too small") };
    assert!(
        error.message().contains("cache.disk: 1.0 KiB are too few: at least 16.0 KiB"),
        "{error}"
    );
    assert!(Shared::open(disk_budget(16 << 10), options()).is_ok());
}

#[test]
fn digests_that_the_index_cannot_tell_apart_are_never_mixed_up() {
    // Nothing here is decoded, so any digest will do: these agree in their first twelve bytes.
    let mut image = TestImage::of(0..2, Stuff::Text);
    let [a, b] = [1u8, 2].map(|last| {
        let mut bytes = [9; 32];
        bytes[20] = last;
        image::Digest(bytes)
    });
    image.frames = [a, b]
        .into_iter()
        .zip(&image.frames)
        .map(|(digest, frame)| {
            let header = frame.header();
            image::Frame::new(
                header.codec,
                header.domain,
                digest,
                header.plain_len,
                frame.payload(),
            )
        })
        .collect();
    let table = image::SectionTable::new(image.table.domain(), vec![a, b]);
    let geometry = *image.manifest.geometry();
    let manifest = image::Manifest::new(table.domain(), geometry, vec![table.digest()]);
    (image.id, image.manifest, image.table) =
        (manifest.identity(), Arc::new(manifest), Arc::new(table));
    on_core(async {
        let (source, fs) = (Fake::new([image.clone()]), MemFs::new());
        let mut rig = Rig::on_disk(&source, &fs);
        for _ in 0..4 {
            image.check(&image.all(), rig.read(&image.all()).await.unwrap());
            rig.settle();
        }
        assert!(
            rig.status().disk_hits > 0 && source.given_in_all() > 2,
            "they push each other out"
        );
    });
}
