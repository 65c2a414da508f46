//! Warming, pinning, evicting, and saying what is here.

mod common;

use std::sync::Arc;
use std::time::Duration;

use blockio::OpenMode;
use blockio::fake::{CrashPlan, Fault, FaultOp, FaultPlan, MemFs};
use common::{
    CHUNK, DIR, Fake, Rig, Stuff, TestImage, bytes_of, disk_budget, disk_options, on_core,
    on_core_paused, segments,
};
use forebay_cache::{Budget, Cache, DiskState, Options};
use image::{ChunkSource, Kind, Priority, ReadContext};

fn ctx() -> ReadContext {
    ReadContext::default()
}

/// Does `work` on a rig's cache, and lets the log's writer run whenever that waits.
async fn drive<T>(rig: &mut Rig, work: impl AsyncFnOnce(Cache<Arc<Fake>>) -> T) -> T {
    let mut work = std::pin::pin!(work(rig.cache.clone()));
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::task::yield_now() => rig.writer.as_mut().unwrap().run_pending(),
        }
    }
}

async fn pin(rig: &mut Rig, image: &TestImage) -> image::Result<forebay_cache::Warmed> {
    drive(rig, async |cache| cache.pin(&ctx(), &image.id, |_| {}).await).await
}

async fn unpin(rig: &mut Rig, image: &TestImage) -> image::Result<Option<forebay_cache::Pin>> {
    drive(rig, async |cache| cache.shared().unpin(&image.id).await).await
}

/// Has `count` other images of twenty chunks read, so that what is not kept must go.
async fn crowd_out(rig: &mut Rig, count: u64) {
    for round in 1..=count {
        let cold = TestImage::of(round * 1000..round * 1000 + 20, Stuff::Noise);
        rig.source.add(cold.clone());
        cold.check(&cold.all(), rig.read(&cold.all()).await.unwrap());
        rig.settle();
    }
}

fn noise(seeds: std::ops::Range<u64>) -> TestImage {
    TestImage::of(seeds, Stuff::Noise)
}

#[test]
fn warming_brings_everything_once() {
    on_core(async {
        let (image, fs) = (noise(0..50), MemFs::new());
        let source = Fake::new([image.clone()]);
        let mut rig = Rig::on_disk(&source, &fs);
        rig.read(&image.place(|c| c < 10)).await.unwrap();
        rig.settle();
        let mut told = Vec::new();
        let warm = async |cache: Cache<_>| cache.warm(&ctx(), &image.id, |w| told.push(*w)).await;
        let warmed = drive(&mut rig, warm).await.unwrap();
        assert_eq!((warmed.chunks, warmed.fetched, warmed.here), (50, 40, 10));
        assert_eq!(warmed.fetched_bytes, 40 * (CHUNK as u64 + 64));
        assert_eq!((warmed.sections, warmed.of_sections), (1, 1));
        assert_eq!(told.last(), Some(&warmed));
        rig.settle();
        let again = drive(&mut rig, async |c| c.warm(&ctx(), &image.id, |_| {}).await).await;
        assert_eq!(again.unwrap().here, 50);
        assert_eq!(source.given_in_all(), 50);
        let held = rig.cache.held(&ctx(), &image.id).await.unwrap();
        assert_eq!((held.all.disk_chunks, held.all.here, held.pinned), (50, 50, false));
    });
}

#[test]
fn warming_waits_for_a_log_that_is_slow() {
    on_core(async {
        let (image, fs) = (noise(0..700), MemFs::new());
        let source = Fake::new([image.clone()]);
        // The least there is: 4 MiB may wait, of which warming fills half.
        let budget = Budget { in_flight: 0, ..disk_budget(64 << 20) };
        let mut rig = Rig::new(&source, budget, disk_options(&fs));
        drive(&mut rig, async |c| c.warm(&ctx(), &image.id, |_| {}).await).await.unwrap();
        rig.settle();
        assert_eq!((rig.status().disk_frames, rig.status().disk_skipped_frames), (700, 0));
    });
}

#[test]
fn what_stayed_of_a_large_image_can_be_counted_once_the_log_has_written_it() {
    on_core(async {
        let (image, fs) = (noise(0..400), MemFs::new());
        let mut rig = Rig::on_disk(&Fake::new([image.clone()]), &fs);
        let count = async |cache: Cache<Arc<Fake>>| {
            let warmed = cache.warm(&ctx(), &image.id, |_| {}).await.unwrap();
            cache.shared().written().await;
            (warmed, cache.held(&ctx(), &image.id).await.unwrap().all)
        };
        let (warmed, held) = drive(&mut rig, count).await;
        assert_eq!(
            (warmed.chunks, warmed.size, rig.status().disk_queued_bytes),
            (400, 400 * CHUNK as u64, 0)
        );
        assert!(held.here > 100 && held.here < 250, "of 4 MiB: {held:?}");
    });
}

#[test]
fn warming_works_without_a_disk_and_goes_on_after_an_error() {
    on_core(async {
        let image = noise(0..20);
        let source = Fake::new([image.clone()]);
        let rig = Rig::in_memory(&source, 4 << 20);
        assert_eq!(rig.shared.unpin(&image.id).await.unwrap(), None);
        source.lose(7, Some(Kind::Gone));
        let error = rig.cache.warm(&ctx(), &image.id, |_| {}).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Gone);
        assert!(error.message().contains(&image.id.short()), "{error}");
        source.lose(7, None);
        source.fail_next(Kind::Retry);
        let warmed = loop {
            // What is gone is remembered for a moment.
            match rig.cache.warm(&ctx(), &image.id, |_| {}).await {
                Ok(warmed) => break warmed,
                Err(error) => assert_eq!(error.kind(), Kind::Gone),
            }
            tokio::task::yield_now().await;
        };
        assert_eq!((warmed.here, warmed.fetched), (19, 1));
        let held = rig.cache.held(&ctx(), &image.id).await.unwrap();
        assert_eq!((held.all.memory_chunks, held.all.disk_chunks), (20, 0));
        assert_eq!(held.all.memory_bytes, 20 * (CHUNK as u64 + 64));
    });
}

#[test]
fn pinned_frames_are_not_crowded_out() {
    on_core(async {
        let (image, fs) = (noise(0..60), MemFs::new());
        let source = Fake::new([image.clone()]);
        let mut rig = Rig::new(&source, disk_budget(4 << 20), disk_options(&fs));
        // Some of it lies among other things, and is moved; the rest lies by itself.
        for part in 0..4 {
            rig.read(&image.place(|c| c / 5 == part)).await.unwrap();
            crowd_out(&mut rig, 1).await;
        }
        pin(&mut rig, &image).await.unwrap();
        crowd_out(&mut rig, 100).await;
        let held = rig.cache.held(&ctx(), &image.id).await.unwrap();
        assert_eq!((held.all.disk_chunks, held.pinned), (60, true));
        assert!((0..60).all(|chunk| source.given(&image, chunk) == 1));
        let status = rig.status();
        assert_eq!((status.pins, status.pinned_bytes), (1, 60 * (CHUNK as u64 + 64)));
        assert!(status.disk_bytes <= 4 << 20, "{status:?}");
        assert_eq!(status.disk, DiskState::On);
        unpin(&mut rig, &image).await.unwrap();
        crowd_out(&mut rig, 100).await;
        assert_eq!(rig.cache.held(&ctx(), &image.id).await.unwrap().all.disk_chunks, 0);
    });
}

#[test]
fn as_much_may_be_pinned_as_is_said_and_the_log_goes_on() {
    on_core(async {
        let fs = MemFs::new();
        let source = Fake::new([]);
        let mut rig = Rig::new(&source, disk_budget(4 << 20), disk_options(&fs));
        let limit = rig.status().pin_limit;
        assert_eq!(limit, ((4 << 20) - 3 * (256 << 10)) / 5 * 4);
        let images: Vec<_> = (0..16).map(|n| noise(n * 100..n * 100 + 10)).collect();
        images.iter().for_each(|image| source.add(image.clone()));
        // Scattered over the log, between what nobody pins.
        for image in &images {
            rig.read(&image.all()).await.unwrap();
            crowd_out(&mut rig, 1).await;
        }
        for image in &images {
            pin(&mut rig, image).await.unwrap();
        }
        let more = noise(9000..9020);
        source.add(more.clone());
        let error = pin(&mut rig, &more).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Full, "{error}");
        assert!(error.message().contains("pins may take 2.6 MiB"), "{error}");
        assert_eq!(rig.shared.pins().len(), 16);
        crowd_out(&mut rig, 60).await;
        let status = rig.status();
        assert_eq!(status.disk, DiskState::On, "{status:?}");
        assert!(status.disk_bytes <= 4 << 20);
        for image in &images {
            let held = rig.cache.held(&ctx(), &image.id).await.unwrap();
            assert_eq!(held.all.disk_chunks, 10, "{status:?}");
        }
        assert!(status.disk_written_bytes < 8 * status.source_bytes, "{status:?}");
    });
}

#[test]
fn pins_survive_a_restart_and_an_unpin_does_as_well() {
    on_core(async {
        let (a, b, fs) = (noise(0..20), noise(10..30), MemFs::new());
        let source = Fake::new([a.clone(), b.clone()]);
        let mut rig = Rig::on_disk(&source, &fs);
        pin(&mut rig, &a).await.unwrap();
        pin(&mut rig, &b).await.unwrap();
        assert_eq!(pin(&mut rig, &b).await.unwrap().here, 20, "a second time does nothing");
        let pins = rig.shared.pins();
        assert_eq!(rig.status().pinned_bytes, 30 * (CHUNK as u64 + 64));
        rig.close();

        let mut rig = Rig::on_disk(&Fake::new([a.clone(), b.clone()]), &fs);
        assert_eq!(
            (rig.shared.pins(), rig.status().pinned_bytes),
            (pins, 30 * (CHUNK as u64 + 64))
        );
        assert_eq!(unpin(&mut rig, &a).await.unwrap().map(|pin| pin.chunks), Some(20));
        assert_eq!(unpin(&mut rig, &a).await.unwrap(), None, "a second time does nothing");
        crowd_out(&mut rig, 60).await;
        let held = rig.cache.held(&ctx(), &b.id).await.unwrap();
        assert_eq!((held.all.disk_chunks, rig.status().source_frames), (20, 60 * 20));
        rig.close();
        let rig = Rig::on_disk(&Fake::new([]), &fs);
        assert_eq!(rig.shared.pins().iter().map(|p| p.image).collect::<Vec<_>>(), [b.id]);
    });
}

#[test]
fn what_a_pinned_image_lost_is_fetched_again() {
    on_core(async {
        let (image, fs) = (noise(0..20), MemFs::new());
        let source = Fake::new([image.clone()]);
        let mut rig = Rig::on_disk(&source, &fs);
        pin(&mut rig, &image).await.unwrap();
        rig.settle();
        let name = segments(&fs).into_iter().find(|n| n.starts_with("seg-")).unwrap();
        rig.close();
        let file = fs.fs().open(format!("{DIR}/{name}"), OpenMode::write()).unwrap();
        file.write_all_at(&[0xee], 5000).unwrap();

        let mut rig = Rig::on_disk(&source, &fs);
        let tending = rig.cache.clone();
        let tending = tokio::task::spawn_local(async move { tending.tend(&ctx()).await });
        rig.read(&image.one(1)).await.unwrap();
        rig.read(&image.one(0)).await.unwrap();
        while rig.status().disk_frames < 20 || source.given_in_all() < 21 {
            tokio::task::yield_now().await;
            rig.settle();
        }
        assert_eq!(source.given(&image, 0), 2);
        // Also what goes when nobody reads it.
        rig.shared.drop_chunk(image.table.domain(), &image.table.digests()[7]);
        while source.given(&image, 7) < 2 || rig.status().disk_frames < 20 {
            tokio::task::yield_now().await;
            rig.settle();
        }
        tending.abort();
    });
}

#[test]
fn a_pinned_chunk_that_found_no_room_in_the_queue_is_offered_again() {
    on_core_paused(async {
        let (image, others) = (noise(0..20), noise(1000..1400));
        let source = Fake::new([image.clone(), others.clone()]);
        let budget = Budget { in_flight: 0, ..disk_budget(16 << 20) };
        let mut rig = Rig::new(&source, budget, disk_options(&MemFs::new()));
        rig.settle();
        pin(&mut rig, &image).await.unwrap();
        let tending = rig.cache.clone();
        let tending = tokio::task::spawn_local(async move { tending.tend(&ctx()).await });
        tokio::time::sleep(Duration::from_secs(5)).await;
        rig.settle();
        // The queue is full, and stays so for longer than one waits for it.
        rig.read(&others.all()).await.unwrap();
        let skipped = rig.status().disk_skipped_frames;
        rig.shared.drop_chunk(image.table.domain(), &image.table.digests()[7]);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!((2..60).contains(&source.given(&image, 7)), "{}", source.given(&image, 7));
        assert!(rig.status().disk_skipped_frames > skipped);
        for _ in 0..10 {
            rig.settle();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let held = rig.cache.held(&ctx(), &image.id).await.unwrap();
        assert_eq!(held.all.disk_chunks, 20);
        tending.abort();
    });
}

#[test]
fn what_the_log_has_is_not_fetched_while_it_is_read_in() {
    on_core(async {
        let (image, fs) = (noise(0..40), MemFs::new());
        let source = Fake::new([image.clone()]);
        let mut rig = Rig::on_disk(&source, &fs);
        pin(&mut rig, &image).await.unwrap();
        rig.close();
        let mut rig = Rig::new(&source, disk_budget(4 << 20), disk_options(&fs));
        assert!(rig.status().is_recovering());
        assert_eq!(pin(&mut rig, &image).await.unwrap().here, 40);
        assert_eq!((source.given_in_all(), rig.shared.pins().len()), (40, 1));
        rig.close();
        let mut rig = Rig::new(&source, disk_budget(4 << 20), disk_options(&fs));
        unpin(&mut rig, &image).await.unwrap();
        assert!(rig.shared.pins().is_empty());
    });
}

#[test]
fn evicting_spares_what_a_pinned_image_has_too() {
    on_core(async {
        let (a, b, fs) = (noise(0..20), noise(15..35), MemFs::new());
        let source = Fake::new([a.clone(), b.clone()]);
        let budget = Budget { memory: 8 << 20, ..disk_budget(4 << 20) };
        let mut rig = Rig::new(&source, budget, disk_options(&fs));
        rig.read(&a.all()).await.unwrap();
        pin(&mut rig, &b).await.unwrap();
        rig.settle();
        let error = rig.cache.evict(&ctx(), &b.id).await.unwrap_err();
        assert!(error.kind() == Kind::Conflict && error.message().contains("unpin it first"));
        let evicted = rig.cache.evict(&ctx(), &a.id).await.unwrap();
        assert_eq!((evicted.chunks, evicted.stayed), (15, 5));
        let held = rig.cache.held(&ctx(), &a.id).await.unwrap();
        assert_eq!((held.all.disk_chunks, held.all.memory_chunks, held.all.chunks), (5, 5, 20));
        assert_eq!(held.sections.len(), 1);
        assert_eq!(rig.cache.evict(&ctx(), &a.id).await.unwrap().chunks, 0);
        a.check(&a.all(), rig.read(&a.all()).await.unwrap());
        assert!((0..15).all(|c| source.given(&a, c) == 2));
    });
}

#[test]
fn evicting_gives_back_the_segments_in_which_nothing_else_lies() {
    on_core(async {
        let (image, other, fs) = (noise(0..40), noise(100..140), MemFs::new());
        let source = Fake::new([image.clone(), other.clone()]);
        let mut rig = Rig::on_disk(&source, &fs);
        rig.read(&image.all()).await.unwrap();
        rig.read(&other.all()).await.unwrap();
        rig.settle();
        assert_eq!(segments(&fs).len(), 6);
        assert_eq!(rig.cache.evict(&ctx(), &image.id).await.unwrap().chunks, 40);
        rig.settle();
        // Of 40 frames in segments of 15 the last ten lie beside others.
        assert_eq!((segments(&fs).len(), rig.status().disk_frames), (4, 40));
        rig.close();
        let rig = Rig::on_disk(&source, &fs);
        assert_eq!(rig.cache.held(&ctx(), &image.id).await.unwrap().all.disk_chunks, 10);
        assert_eq!(rig.cache.held(&ctx(), &other.id).await.unwrap().all.disk_chunks, 40);
    });
}

#[test]
fn evicting_forgets_what_waits_to_be_written_too() {
    on_core(async {
        let (image, other, fs) = (noise(0..20), noise(100..110), MemFs::new());
        let source = Fake::new([image.clone(), other.clone()]);
        let mut rig = Rig::on_disk(&source, &fs);
        rig.read(&image.all()).await.unwrap();
        rig.read(&other.all()).await.unwrap();
        rig.cache.evict(&ctx(), &image.id).await.unwrap();
        rig.read(&image.one(3)).await.unwrap();
        rig.settle();
        let held = rig.cache.held(&ctx(), &image.id).await.unwrap();
        assert_eq!(held.all.disk_chunks, 1, "what was asked for since");
        assert_eq!(rig.cache.held(&ctx(), &other.id).await.unwrap().all.disk_chunks, 10);
    });
}

#[test]
fn a_fourth_of_memory_is_for_what_is_pinned() {
    on_core(async {
        let (small, fs) = (noise(0..20), MemFs::new());
        let source = Fake::new([small.clone()]);
        let budget = Budget { memory: 2 << 20, ..disk_budget(4 << 20) };
        let mut rig = Rig::new(&source, budget, disk_options(&fs));
        pin(&mut rig, &small).await.unwrap();
        crowd_out(&mut rig, 40).await;
        let held = rig.cache.held(&ctx(), &small.id).await.unwrap();
        assert_eq!(held.all.memory_chunks, 20, "340 of 448 KiB");
        let large = noise(500..600);
        source.add(large.clone());
        pin(&mut rig, &large).await.unwrap();
        crowd_out(&mut rig, 40).await;
        let mut kept = 0;
        for image in [&small, &large] {
            kept += rig.cache.held(&ctx(), &image.id).await.unwrap().all.memory_bytes;
        }
        assert!(kept <= 448 << 10, "{kept} bytes of what is pinned");
        unpin(&mut rig, &small).await.unwrap();
        unpin(&mut rig, &large).await.unwrap();
        // More than memory holds, again and again: that claims all of it.
        let hot = noise(800..1000);
        source.add(hot.clone());
        for _ in 0..8 {
            rig.read(&hot.all()).await.unwrap();
        }
        assert_eq!(rig.cache.held(&ctx(), &small.id).await.unwrap().all.memory_chunks, 0);
    });
}

#[test]
fn a_pin_that_cannot_be_kept_is_none() {
    on_core(async {
        let (image, fs, plan) = (noise(0..20), MemFs::new(), FaultPlan::new());
        let source = Fake::new([image.clone()]);
        let rig = Rig::in_memory(&source, 4 << 20);
        let error = rig.cache.pin(&ctx(), &image.id, |_| {}).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);

        let mut options = disk_options(&fs);
        options.fs = plan.wrap_fs(&options.fs);
        let mut rig = Rig::new(&source, disk_budget(4 << 20), options);
        drive(&mut rig, async |c| c.warm(&ctx(), &image.id, |_| {}).await).await.unwrap();
        rig.settle();
        plan.fail(FaultOp::Sync, 1, Fault::Io);
        let error = pin(&mut rig, &image).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Io, "{error}");
        assert!(error.message().contains("/cache/pin-"), "{error}");
        assert_eq!((rig.shared.pins().len(), rig.status().pinned_bytes), (0, 0));
        source.lose(3, Some(Kind::Gone));
        rig.shared.drop_chunk(image.table.domain(), &image.table.digests()[3]);
        assert_eq!(pin(&mut rig, &image).await.unwrap_err().kind(), Kind::Gone);
        assert_eq!(rig.status().pinned_bytes, 0);
    });
}

#[test]
fn an_unpin_in_a_directory_that_is_gone_says_what_to_do() {
    on_core(async {
        let (image, fs) = (noise(0..20), MemFs::new());
        let mut rig = Rig::on_disk(&Fake::new([image.clone()]), &fs);
        pin(&mut rig, &image).await.unwrap();
        for name in segments(&fs).into_iter().chain(["lock".into()]) {
            fs.fs().remove_file(format!("{DIR}/{name}")).unwrap();
        }
        fs.fs().remove_dir(DIR).unwrap();
        let error = unpin(&mut rig, &image).await.unwrap_err();
        assert!(error.message().contains("restart the cache"), "{error}");
        assert!(matches!(rig.status().disk, DiskState::Off(_)));
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
    });
}

#[test]
fn a_pin_that_is_given_up_leaves_nothing() {
    on_core(async {
        let (image, fs) = (TestImage::of(0..10, Stuff::Text), MemFs::new());
        let mut rig = Rig::on_disk(&Fake::new([image.clone()]), &fs);
        drive(&mut rig, async |c| c.warm(&ctx(), &image.id, |_| {}).await).await.unwrap();
        rig.settle();
        let cache = rig.cache.clone();
        for polls in 0..20 {
            // Up to the moment when the writer is to make it last, and beyond.
            let ctx = ctx();
            let mut pinning = Box::pin(cache.pin(&ctx, &image.id, |_| {}));
            for _ in 0..polls {
                assert!(futures::poll!(&mut pinning).is_pending());
                tokio::task::yield_now().await;
            }
            drop(pinning);
            rig.settle();
            assert_eq!((rig.shared.pins().len(), rig.status().pinned_bytes), (0, 0));
            assert_eq!(segments(&fs).len(), 1, "no pin beside the segment");
        }
    });
}

#[test]
fn a_pin_is_made_or_not_wherever_the_power_goes() {
    let (image, disk) = (TestImage::of(0..4, Stuff::Text), MemFs::new());
    on_core(async {
        let mut rig = Rig::on_disk(&Fake::new([image.clone()]), &disk);
        pin(&mut rig, &image).await.unwrap();
        disk.mark("pinned");
        crowd_out(&mut rig, 1).await;
        disk.mark("unpinning");
        unpin(&mut rig, &image).await.unwrap();
        disk.mark("unpinned");
    });
    let (mut with, mut without) = (0, 0);
    on_core(async {
        for crash in disk.crash_images(CrashPlan { per_point: 16, ..CrashPlan::default() }) {
            let rig = Rig::on_disk(&Fake::new([image.clone()]), crash.disk());
            let pins = rig.shared.pins();
            match pins.first() {
                Some(pin) => assert_eq!((pin.image, pin.chunks, pins.len()), (image.id, 4, 1)),
                None => {
                    assert!(!crash.reached("pinned") || crash.reached("unpinning"), "{crash}");
                }
            }
            if crash.reached("unpinned") {
                assert!(pins.is_empty(), "{crash}");
            }
            with += u32::from(!pins.is_empty());
            without += u32::from(pins.is_empty());
        }
    });
    assert!(with > 10 && without > 10, "{with} with, {without} without");
}

#[test]
fn a_pin_that_is_damaged_is_ignored_and_one_that_is_not_ours_left_alone() {
    let image = TestImage::of(0..4, Stuff::Text);
    let fs = MemFs::new();
    let name = format!("pin-{}", image.id);
    on_core(async {
        let mut rig = Rig::on_disk(&Fake::new([image.clone()]), &fs);
        pin(&mut rig, &image).await.unwrap();
        rig.close();
    });
    let good = bytes_of(&fs, &name);
    on_core(async {
        for byte in 0..good.len() {
            let mut bad = good.clone();
            bad[byte] ^= 1 << (byte % 8);
            let fs = common::fs_with(&[(&name, &bad)]);
            let mut rig = Rig::on_disk(&Fake::new([image.clone()]), &fs);
            assert!(rig.shared.pins().is_empty(), "byte {byte}");
            let again = pin(&mut rig, &image).await;
            if byte < 6 {
                let error = again.unwrap_err();
                assert!(error.message().contains("move it away"), "{error}");
                assert_eq!(bytes_of(&fs, &name), bad);
            } else {
                again.unwrap();
                assert_eq!(bytes_of(&fs, &name), good, "byte {byte}");
            }
        }
        for len in 0..good.len() {
            let fs = common::fs_with(&[(&name, &good[..len])]);
            let rig = Rig::on_disk(&Fake::new([image.clone()]), &fs);
            assert!(rig.shared.pins().is_empty(), "{len} bytes");
        }
    });
}

#[test]
fn asks_are_counted_by_priority() {
    on_core(async {
        let (image, fs) = (noise(0..20), MemFs::new());
        let source = Fake::new([image.clone()]);
        let budget = Budget { memory: 128 << 10, ..disk_budget(4 << 20) };
        let mut rig = Rig::new(&source, budget, disk_options(&fs));
        rig.read(&image.all()).await.unwrap();
        rig.settle();
        let guest = ReadContext { priority: Priority::Guest, ..ctx() };
        let mut sink = Vec::new();
        // Once from the disk, again, and so it is worth a place in memory.
        for _ in 0..3 {
            rig.cache.chunks(&guest, &image.one(0), &mut sink).await.unwrap();
        }
        let status = rig.status();
        assert_eq!((status.background.source, status.background.all()), (20, 20));
        assert_eq!((status.guest.disk, status.guest.memory, status.guest.all()), (2, 1, 3));
        assert_eq!(status.trace.all(), 0);
        assert_eq!((status.misses, status.memory_hits), (22, 1));
    });
}

#[test]
fn a_budget_that_the_disk_cannot_hold_is_said() {
    on_core(async {
        let fs = MemFs::new();
        let options = Options { free_space: Arc::new(|_| Ok(1 << 20)), ..disk_options(&fs) };
        let mut rig = Rig::new(&Fake::new([]), disk_budget(4 << 20), options);
        rig.settle();
        let warning = rig.status().disk_health.warning.unwrap();
        for says in ["cache.disk is 4.0 MiB", "room for 1.0 MiB", "lower the budget"] {
            assert!(warning.contains(says), "{warning}");
        }
        let mut rig = Rig::new(&Fake::new([]), disk_budget(4 << 20), disk_options(&MemFs::new()));
        rig.settle();
        assert_eq!(rig.status().disk_health.warning, None);
    });
}

/// All segment files together, in bytes.
fn log_bytes(fs: &MemFs) -> u64 {
    let logs = segments(fs).into_iter().filter(|name| name.starts_with("seg-"));
    logs.map(|name| bytes_of(fs, &name).len() as u64).sum()
}

/// Has an image read so that one or two of its chunks lie in each segment.
async fn scatter(rig: &mut Rig, image: &TestImage) {
    for chunk in 0..image.chunks() {
        rig.read(&image.one(chunk)).await.unwrap();
        read_others(rig, u64::from(chunk)).await;
    }
}

/// Has an image of eighteen chunks read that nobody has read before.
async fn read_others(rig: &mut Rig, number: u64) {
    let others = noise(50_000 + number * 100..50_018 + number * 100);
    rig.source.add(others.clone());
    rig.read(&others.all()).await.unwrap();
    rig.settle();
}

#[test]
fn a_smaller_budget_is_kept_however_pins_are_scattered() {
    on_core(async {
        let (image, fs) = (noise(0..30), MemFs::new());
        let source = Fake::new([image.clone()]);
        let mut rig = Rig::on_disk_of(&source, &fs, 16 << 20);
        scatter(&mut rig, &image).await;
        pin(&mut rig, &image).await.unwrap();
        rig.close();
        assert!(log_bytes(&fs) > 8 << 20);

        let mut rig = Rig::on_disk_of(&source, &fs, 2 << 20);
        assert!(log_bytes(&fs) <= 2 << 20, "{} before anything is written", log_bytes(&fs));
        crowd_out(&mut rig, 10).await;
        let (status, held) = (rig.status(), rig.cache.held(&ctx(), &image.id).await.unwrap());
        assert_eq!((status.disk.clone(), held.all.disk_chunks), (DiskState::On, 30));
        assert!(log_bytes(&fs) <= 2 << 20 && status.disk_written_bytes > 200 * CHUNK as u64);
        assert!((0..30).all(|chunk| source.given(&image, chunk) == 1));
    });
}

#[test]
fn restarts_do_not_use_up_the_log_when_pins_are_everywhere() {
    on_core(async {
        let (fs, source) = (MemFs::new(), Fake::new([]));
        let mut pinned = Vec::new();
        for start in 0..60 {
            let mut rig = Rig::on_disk_of(&source, &fs, 2 << 20);
            let image = noise(100_000 + start * 100..100_001 + start * 100);
            source.add(image.clone());
            pin(&mut rig, &image).await.unwrap();
            pinned.push(image);
            // Every segment has something pinned; most are short, for want of time.
            let others = noise(start * 1000..start * 1000 + if start % 3 == 0 { 20 } else { 6 });
            source.add(others.clone());
            rig.read(&others.all()).await.unwrap();
            rig.settle();
            let (status, new) = (rig.status(), u64::from(1 + others.chunks()));
            assert_eq!(status.disk, DiskState::On, "start {start}");
            assert!(status.disk_written_bytes >= new * (CHUNK as u64 + 64), "start {start}");
            assert!(log_bytes(&fs) <= 2 << 20, "start {start}: {}", log_bytes(&fs));
            if start % 2 == 0 {
                rig.close();
            }
        }
        let rig = Rig::on_disk_of(&source, &fs, 2 << 20);
        for image in &pinned {
            let held = rig.cache.held(&ctx(), &image.id).await.unwrap();
            assert_eq!((held.all.disk_chunks, source.given(image, 0)), (1, 1));
        }
    });
}

#[test]
fn a_log_that_pins_leave_no_room_says_so_and_asks_for_nothing() {
    on_core(async {
        let (image, fs, clock) = (noise(0..100), MemFs::new(), common::Clock::default());
        let source = Fake::new([image.clone()]);
        let mut rig = Rig::on_disk(&source, &fs);
        pin(&mut rig, &image).await.unwrap();
        rig.close();
        let options = Options { clock: clock.get(), ..disk_options(&fs) };
        let mut rig = Rig::new(&source, disk_budget(1 << 20), options);
        rig.settle();
        crowd_out(&mut rig, 1).await;
        rig.shared.drop_chunk(image.table.domain(), &image.table.digests()[7]);
        let tending = rig.cache.clone();
        let tending = tokio::task::spawn_local(async move { tending.tend(&ctx()).await });
        for _ in 0..5 {
            let state = rig.status().disk;
            assert!(matches!(&state, DiskState::Full(why) if why.contains("unpin one")), "{state}");
            clock.advance(Duration::from_secs(30));
            rig.settle();
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(source.given(&image, 7), 1);
        unpin(&mut rig, &image).await.unwrap();
        clock.advance(Duration::from_secs(30));
        crowd_out(&mut rig, 1).await;
        assert_eq!(rig.status().disk, DiskState::On);
        assert!(log_bytes(&fs) <= 1 << 20);
        tending.abort();
    });
}

#[test]
fn a_footer_that_cannot_be_read_for_a_moment_costs_nothing_that_is_pinned() {
    on_core(async {
        let (image, fs, plan) = (noise(0..10), MemFs::new(), FaultPlan::new());
        let source = Fake::new([image.clone()]);
        let mut options = disk_options(&fs);
        options.fs = plan.wrap_fs(&options.fs);
        let mut rig = Rig::new(&source, disk_budget(4 << 20), options);
        rig.settle();
        scatter(&mut rig, &image).await;
        pin(&mut rig, &image).await.unwrap();
        for number in 100..160 {
            // First a footer is read, in two pieces, for what is pinned; then to move its segment out.
            plan.fail(FaultOp::Read, if number % 2 == 0 { 1 } else { 3 }, Fault::Io);
            read_others(&mut rig, number).await;
        }
        let held = rig.cache.held(&ctx(), &image.id).await.unwrap();
        assert_eq!((held.all.disk_chunks, rig.status().disk), (10, DiskState::On));
        assert!(log_bytes(&fs) <= 4 << 20, "{}", log_bytes(&fs));
    });
}

#[test]
fn a_segment_whose_footer_found_no_room_keeps_what_is_pinned() {
    on_core(async {
        let (image, fs, plan) = (noise(0..15), MemFs::new(), FaultPlan::new());
        let (source, clock) = (Fake::new([image.clone()]), common::Clock::default());
        let mut options = Options { clock: clock.get(), ..disk_options(&fs) };
        options.fs = plan.wrap_fs(&options.fs);
        let mut rig = Rig::new(&source, disk_budget(4 << 20), options);
        // No sixteenth frame fits into their segment.
        pin(&mut rig, &image).await.unwrap();
        rig.settle();
        plan.limit_bytes(Some(0));
        crowd_out(&mut rig, 1).await;
        assert!(matches!(rig.status().disk, DiskState::Full(_)));
        plan.limit_bytes(None);
        clock.advance(Duration::from_secs(30));
        rig.settle();
        crowd_out(&mut rig, 60).await;
        let held = rig.cache.held(&ctx(), &image.id).await.unwrap();
        assert_eq!((held.all.disk_chunks, rig.status().disk), (15, DiskState::On));
        assert!(log_bytes(&fs) <= 4 << 20, "{}", log_bytes(&fs));
    });
}

#[test]
fn what_is_pinned_in_a_segment_with_a_damaged_footer_is_fetched_again() {
    on_core_paused(async {
        let (image, fs) = (noise(0..10), MemFs::new());
        let source = Fake::new([image.clone()]);
        let mut rig = Rig::on_disk(&source, &fs);
        scatter(&mut rig, &image).await;
        pin(&mut rig, &image).await.unwrap();
        for name in segments(&fs).iter().filter(|name| name.starts_with("seg-")) {
            let file = fs.fs().open(format!("{DIR}/{name}"), OpenMode::write()).unwrap();
            file.write_all_at(&[0xff], file.size().unwrap() - 1).unwrap();
        }
        let tending = rig.cache.clone();
        let tending = tokio::task::spawn_local(async move { tending.tend(&ctx()).await });
        let mut number = 100;
        while source.given_in_all() < 300 || {
            let held = rig.cache.held(&ctx(), &image.id).await.unwrap();
            held.all.disk_chunks < 10
        } {
            read_others(&mut rig, number).await;
            number += 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(number < 1000, "{:?}", rig.status());
        }
        assert!((0..10).any(|chunk| source.given(&image, chunk) == 2));
        tending.abort();
    });
}
