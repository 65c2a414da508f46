//! Scrubbing finds what has rotted, in its own time, and goes on where it was.

mod common;

use std::sync::Arc;
use std::time::Duration;

use blockio::OpenMode;
use blockio::fake::{Fault, FaultOp, FaultPlan, MemFs};
use common::{CHUNK, Clock, DIR, Fake, Rig, Stuff, TestImage, disk_budget, disk_options, on_core};
use forebay_cache::{DiskState, Options};

const FRAME: u64 = CHUNK as u64 + 64;

/// A rig on `fs` that scrubs a frame in a second, by a clock of ours.
fn rig(source: &Arc<Fake>, fs: &MemFs, clock: &Clock) -> Rig {
    let options = Options { scrub: FRAME, clock: clock.get(), ..disk_options(fs) };
    let mut rig = Rig::new(source, disk_budget(4 << 20), options);
    rig.settle();
    rig
}

fn advance(rig: &mut Rig, clock: &Clock, seconds: u64) {
    for _ in 0..seconds {
        clock.advance(Duration::from_secs(1));
        rig.settle();
    }
}

/// A log of two sealed segments of fifteen frames and an open one, and what is in it.
async fn filled(fs: &MemFs, clock: &Clock) -> (TestImage, Arc<Fake>) {
    let image = TestImage::of(0..30, Stuff::Noise);
    let source = Fake::new([image.clone()]);
    let options = Options { clock: clock.get(), ..disk_options(fs) };
    let mut rig = Rig::new(&source, disk_budget(4 << 20), options);
    rig.read(&image.all()).await.unwrap();
    rig.settle();
    rig.close();
    assert_eq!(common::segments(fs).len(), 2);
    (image, source)
}

/// Spoils the `nth` frame of a log of equal frames.
fn spoil(fs: &MemFs, nth: u64) {
    let (segment, frame) = (1 + nth / 15, nth % 15);
    let path = format!("{DIR}/seg-{segment:016x}");
    let file = fs.fs().open(path, OpenMode::write()).unwrap();
    file.write_all_at(&[0xee; 3], 64 + frame * FRAME + 5000).unwrap();
}

#[test]
fn a_pass_reads_everything_no_faster_than_it_may() {
    on_core(async {
        let (fs, clock) = (MemFs::new(), Clock::default());
        let (_, source) = filled(&fs, &clock).await;
        let mut rig = rig(&source, &fs, &clock);
        assert!(rig.status().scrub.frames <= 1);
        for second in 1..28 {
            advance(&mut rig, &clock, 1);
            let scrub = rig.status().scrub;
            assert!(scrub.frames >= second && scrub.frames <= second + 2, "{second}: {scrub:?}");
            assert!(scrub.running);
        }
        advance(&mut rig, &clock, 5);
        let scrub = rig.status().scrub;
        assert_eq!((scrub.pass, scrub.frames, scrub.bad, scrub.running), (1, 30, 0, false));
        assert_eq!(scrub.bytes, 30 * FRAME);
        // A small log is not read all the time; who wants it at once says so.
        advance(&mut rig, &clock, 60);
        assert_eq!(rig.status().scrub, scrub);
        assert!(rig.shared.start_scrub());
        advance(&mut rig, &clock, 5);
        assert!(rig.status().scrub.pass == 2 && rig.status().scrub.running);
        assert!(
            !rig.shared.start_scrub(),
            "one is under way, and no other is to follow it at once"
        );
        rig.shared.set_scrub_rate(0);
        let stopped = rig.status().scrub.frames;
        advance(&mut rig, &clock, 50);
        assert_eq!(rig.status().scrub.frames, stopped);
        rig.shared.set_scrub_rate(100 * FRAME);
        advance(&mut rig, &clock, 2);
        let scrub = rig.status().scrub;
        assert_eq!((scrub.pass, scrub.frames, scrub.running), (2, 30, false));
        clock.advance(Duration::from_secs(3600));
        rig.settle();
        assert_eq!(rig.status().scrub.pass, 3);
    });
}

#[test]
fn what_rotted_is_dropped_and_comes_anew() {
    on_core(async {
        let (fs, clock) = (MemFs::new(), Clock::default());
        let (image, source) = filled(&fs, &clock).await;
        spoil(&fs, 4);
        spoil(&fs, 20);
        let mut rig = rig(&source, &fs, &clock);
        advance(&mut rig, &clock, 40);
        let status = rig.status();
        assert_eq!((status.scrub.bad, status.disk_bad_frames, status.disk_frames), (2, 2, 28));
        let last = status.disk_health.last_error.unwrap();
        assert!(last.contains("seg-0000000000000002") && last.contains("offset"), "{last}");
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        assert_eq!((source.given(&image, 4), source.given_in_all()), (2, 32));
        assert_eq!(rig.status().disk_bad_frames, 2, "no reader met them");
        // The next pass counts its own; all are known all the same.
        rig.settle();
        clock.advance(Duration::from_secs(3600));
        rig.settle();
        advance(&mut rig, &clock, 40);
        let status = rig.status();
        assert_eq!((status.scrub.pass, status.scrub.bad, status.scrub_bad_frames), (2, 0, 2));
    });
}

#[test]
fn a_frame_whose_checksums_lie_is_found_by_its_digest() {
    on_core(async {
        let (fs, clock) = (MemFs::new(), Clock::default());
        let mut image = TestImage::of(0..30, Stuff::Noise);
        let header = *image.frames[3].header();
        let mut payload = image.frames[3].payload().to_vec();
        payload[77] ^= 1;
        image.frames[3] = image::Frame::new(
            header.codec,
            header.domain,
            header.digest,
            header.plain_len,
            &payload,
        );
        let source = Fake::new([image.clone()]);
        let mut rig = rig(&source, &fs, &clock);
        rig.read(&image.all()).await.unwrap();
        rig.settle();
        assert_eq!(rig.status().disk_frames, 30);
        rig.shared.set_scrub_rate(1 << 30);
        advance(&mut rig, &clock, 4);
        assert_eq!((rig.status().scrub.bad, rig.status().disk_frames), (1, 29));
    });
}

#[test]
fn it_goes_on_where_it_was_after_a_restart() {
    on_core(async {
        let (fs, clock) = (MemFs::new(), Clock::default());
        let (_, source) = filled(&fs, &clock).await;
        spoil(&fs, 2);
        let mut first = rig(&source, &fs, &clock);
        advance(&mut first, &clock, 20);
        let before = first.status().scrub;
        assert!(before.frames > 15 && before.bad == 1, "{before:?}");
        first.close();

        let mut second = rig(&source, &fs, &clock);
        let after = second.status().scrub;
        assert!(after.frames - before.frames <= 1 && after.pass == 1, "{after:?}");
        advance(&mut second, &clock, 20);
        let end = second.status().scrub;
        assert_eq!((end.frames, end.pass, end.running, end.bad), (30, 1, false, 1));
        // A kill costs no more than a segment.
        second.shared.start_scrub();
        advance(&mut second, &clock, 20);
        drop(second);
        let third = rig(&source, &fs, &clock).status().scrub;
        assert!(third.pass == 2 && (15..=16).contains(&third.frames), "{third:?}");
    });
}

#[test]
fn a_position_that_is_damaged_is_ignored_and_one_that_is_not_ours_left_alone() {
    on_core(async {
        let (fs, clock) = (MemFs::new(), Clock::default());
        let (_, source) = filled(&fs, &clock).await;
        let mut first = rig(&source, &fs, &clock);
        advance(&mut first, &clock, 20);
        first.close();
        let good = common::bytes_of(&fs, "scrub");
        assert_eq!(good.len(), 64);
        for byte in 0..64 {
            let mut bad = good.clone();
            bad[byte] ^= 4;
            let file = fs.fs().open(format!("{DIR}/scrub"), OpenMode::write()).unwrap();
            file.write_all_at(&bad, 0).unwrap();
            let rig = rig(&source, &fs, &clock);
            let scrub = rig.status().scrub;
            assert!(scrub.pass == 1 && scrub.frames <= 1, "byte {byte}: {scrub:?}");
            rig.close();
            let left_alone = common::bytes_of(&fs, "scrub") == bad;
            assert_eq!(left_alone, byte < 6, "byte {byte}");
        }
    });
}

#[test]
fn a_frame_that_cannot_be_read_is_dropped_and_many_are_the_disks_fault() {
    on_core(async {
        let (fs, clock, plan) = (MemFs::new(), Clock::default(), FaultPlan::new());
        let (image, source) = filled(&fs, &clock).await;
        let fake = plan.wrap_fs(&fs.fs());
        let options = Options { fs: fake, scrub: 0, clock: clock.get(), ..disk_options(&fs) };
        let mut rig = Rig::new(&source, disk_budget(4 << 20), options);
        rig.settle();
        rig.shared.set_scrub_rate(FRAME);
        advance(&mut rig, &clock, 3);
        plan.fail(FaultOp::Read, 1, Fault::Io);
        advance(&mut rig, &clock, 3);
        let status = rig.status();
        assert_eq!((status.scrub.bad, status.disk_frames), (1, 29));
        assert_eq!((status.disk_health.failed_reads, status.disk), (1, DiskState::On));
        (1..30).for_each(|nth| _ = plan.fail(FaultOp::Read, nth, Fault::Io));
        advance(&mut rig, &clock, 20);
        let status = rig.status();
        assert!(matches!(&status.disk, DiskState::Off(why) if why.contains("seg-")), "{status:?}");
        let before = status.disk_health.in_state_for;
        clock.advance(Duration::from_secs(7));
        let now = rig.status().disk_health.in_state_for;
        assert_eq!(now - before, Duration::from_secs(7));
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
    });
}

#[test]
fn a_pass_ends_although_the_log_moves_on_under_it() {
    on_core(async {
        let (fs, clock) = (MemFs::new(), Clock::default());
        let source = Fake::new([]);
        let mut rig = rig(&source, &fs, &clock);
        for round in 1..200 {
            let cold = TestImage::of(round * 1000..round * 1000 + 20, Stuff::Noise);
            source.add(cold.clone());
            rig.read(&cold.all()).await.unwrap();
            rig.settle();
            advance(&mut rig, &clock, 1);
        }
        // Segments go ten times faster than they are read.
        advance(&mut rig, &clock, 400);
        let status = rig.status();
        assert_eq!((status.scrub.running, status.scrub.bad), (false, 0), "{status:?}");
        assert!(status.scrub.frames > 100);
        assert_eq!((status.disk, status.disk_health.failed_reads), (DiskState::On, 0));
    });
}
