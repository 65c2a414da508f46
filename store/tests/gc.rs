//! Collecting garbage: what is kept, what goes and when, and that a push at the same time loses
//! nothing.

mod common;

use std::time::Duration;

use common::*;
use forebay_store::testing::Verb;
use forebay_store::{GcReport, Receiver, RefMove, Store};
use image::seam::ImageSession;
use image::{Digest, ImageSink, Kind};
use object_store::path::Path;

fn disk(seed: u64) -> Disk {
    Disk::new(64 * MIB, &[(0, 0, seed), (0, 1, seed + 2)])
}

fn owner() -> Digest {
    Digest([7; 32])
}

/// Every image that can be seen can be read, from a store that remembers nothing.
async fn assert_no_half_image(bench: &Bench, place: &str) -> Vec<Digest> {
    let store = bench.reopen(900).await;
    let images = store.images().await.unwrap();
    for image in &images {
        let pulled = Disk::pull(&store, image).await;
        assert_eq!(
            pulled.as_ref().map(Disk::image).map_err(ToString::to_string),
            Ok(*image),
            "{place}"
        );
    }
    images
}

#[tokio::test]
async fn what_nothing_names_goes_in_two_steps() {
    let bench = Bench::new().await;
    let (a, b) = (disk(1), disk(3));
    a.push(&bench.receiver(), None).await.unwrap();
    bench.store.put_record(&a.image(), START, "a record").await.unwrap();
    b.push(&bench.receiver(), None).await.unwrap();
    let all = bench.objects.keys().await;
    // Young: kept although nothing names it.
    assert_eq!(bench.gc(&[]).await, GcReport { images: 2, ..Default::default() });
    bench.wait();
    let report = bench.gc(&[b.image()]).await;
    // Manifest, locator, record, table; not the pack: its second chunk is the first one of b.
    assert_eq!((report.images, report.condemned, report.deleted), (1, 4, 0), "{report:?}");
    assert_eq!(report.wait_secs, GRACE);
    assert_eq!(Disk::pull(&bench.store, &a.image()).await.unwrap(), a, "it is still there");
    bench.clock.advance(GRACE - 1);
    let report = bench.gc(&[b.image()]).await;
    assert_eq!((report.condemned, report.deleted, report.wait_secs), (0, 0, 1), "{report:?}");
    bench.clock.advance(1);
    let dry = Duration::from_secs(GRACE);
    let dry = bench.store.gc(&[b.image()], &sweep(dry, true, bench.clock.now())).await.unwrap();
    let report = bench.gc(&[b.image()]).await;
    assert_eq!(report, dry, "a dry run says the same");
    assert_eq!((report.condemned, report.deleted, report.wait_secs), (0, 4, 0), "{report:?}");
    let e = Disk::pull(&bench.store, &a.image()).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Gone, "{e}");
    assert_eq!(Disk::pull(&bench.store, &b.image()).await.unwrap(), b);
    let mut left = bench.objects.keys().await;
    left.retain(|k| !k.as_ref().starts_with("gc/log/"));
    assert!(left.iter().all(|k| all.contains(k)), "nothing of gc's own is left: {left:?}");
    assert_eq!(bench.objects.keys_of("packs").await.len(), 2, "both hold chunks of b");
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let bench = Bench::new().await;
    disk(1).push(&bench.receiver(), None).await.unwrap();
    bench.wait();
    let changes = bench.objects.log().len();
    let now = bench.clock.now();
    let report = bench.store.gc(&[], &sweep(Duration::from_secs(GRACE), true, now)).await.unwrap();
    assert_eq!(report.condemned, 4, "{report:?}");
    assert_eq!(bench.objects.log().len(), changes);
}

#[tokio::test]
async fn a_root_that_cannot_be_read_stops_everything() {
    let bench = Bench::new().await;
    let (a, b) = (disk(1), disk(11));
    a.push(&bench.receiver(), None).await.unwrap();
    b.push(&bench.receiver(), None).await.unwrap();
    bench.wait();
    bench.gc(&[a.image()]).await;
    bench.wait();
    let key = Path::from(format!("sections/{}", a.table(0).digest()));
    bench.objects.flip(&key, 20, 1).await;
    let store = bench.reopen(3).await;
    let before = bench.objects.keys().await;
    let gc = |roots: Vec<Digest>| {
        let (store, now) = (store.clone(), bench.clock.now());
        async move { store.gc(&roots, &sweep(Duration::from_secs(GRACE), false, now)).await }
    };
    let e = gc(vec![a.image()]).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Corrupt, "{e}");
    assert!(e.message().contains(&a.image().to_string()), "{e}");
    let nobody = Digest::of_chunk(b"nobody");
    assert_eq!(gc(vec![nobody]).await.unwrap_err().kind(), Kind::Gone);
    assert_eq!(bench.objects.keys().await, before);
    bench.objects.flip(&key, 20, 1).await;
    assert!(gc(vec![a.image()]).await.unwrap().deleted > 0);
}

#[tokio::test]
async fn superseded_locators_and_stray_packs_go_foreign_objects_stay() {
    let bench = Bench::new().await;
    let a = disk(1);
    for _ in 0..3 {
        a.push(&bench.receiver(), None).await.unwrap();
    }
    let stray = Path::from(format!("packs/{}", "ab".repeat(16)));
    bench.objects.replace(&stray, "cut short".into()).await;
    let foreign = Path::from("packs/readme");
    bench.objects.replace(&foreign, "hello".into()).await;
    assert_eq!(bench.objects.keys_of("locators").await.len(), 3);
    for _ in 0..2 {
        bench.wait();
        bench.gc(&[a.image()]).await;
    }
    assert_eq!(bench.objects.keys_of("locators").await.len(), 1);
    let packs = bench.objects.keys_of("packs").await;
    assert_eq!(packs.len(), 2, "{packs:?}");
    assert!(packs.contains(&foreign) && !packs.contains(&stray));
    assert_eq!(assert_no_half_image(&bench, "").await, [a.image()]);
}

#[tokio::test]
async fn a_second_copy_is_kept() {
    let bench = Bench::new().await;
    let a = disk(1);
    let other = bench.reopen(2).await;
    a.push(&bench.receiver(), None).await.unwrap();
    a.push(&Receiver::new(&other), None).await.unwrap();
    for _ in 0..2 {
        bench.wait();
        bench.gc(&[a.image()]).await;
    }
    assert_eq!(bench.objects.keys_of("packs").await.len(), 2);
}

#[tokio::test]
async fn recent_ref_moves_and_kept_images_are_safe() {
    let bench = Bench::new().await;
    let (a, b, c) = (disk(1), disk(11), disk(21));
    for d in [&a, &b, &c] {
        d.push(&bench.receiver(), None).await.unwrap();
    }
    bench.wait();
    let report = bench.gc(&[]).await;
    assert_eq!(report.condemned, 12, "{report:?}");
    bench.clock.advance(GRACE + 2 * LIFE);
    // A ref is moved to one just before gc, which was started with an older list of refs.
    let name = "debian:12".parse().unwrap();
    let at = bench.clock.now();
    let seq = 0;
    let ref_move = RefMove { seq, name, image: Some(a.image()), at };
    bench.store.append_ref_move(&ref_move).await.unwrap();
    bench.store.keep(&b.image()).await.unwrap();
    let report = bench.gc(&[]).await;
    // Of b only the locator that was superseded when it was kept.
    assert_eq!((report.images, report.deleted), (2, 5), "{report:?}");
    assert_eq!(assert_no_half_image(&bench, "").await.len(), 2);
    let e = bench.store.keep(&c.image()).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Gone, "{e}");
    // Both are forgotten in time.
    for _ in 0..2 {
        bench.wait();
        bench.gc(&[]).await;
    }
    assert_eq!(bench.store.images().await.unwrap(), []);
}

#[tokio::test]
async fn a_session_holds_back_what_it_might_lean_on() {
    let bench = Bench::new().await;
    let a = disk(1);
    a.push(&bench.receiver(), None).await.unwrap();
    bench.wait();
    // It begins before anything is condemned.
    let session = bench.receiver().open(&CTX, &a.plan(None)).await.unwrap();
    a.send_all(&session).await.unwrap();
    let keep_alive = async || {
        // Half a life at a time, so that it never lapses; the background renewal sleeps.
        let start = bench.clock.now();
        while bench.clock.now() < start + 2 * GRACE {
            bench.clock.advance(LIFE / 2);
            session.renew().await.unwrap();
        }
    };
    assert_eq!(bench.gc(&[]).await.condemned, 4);
    keep_alive().await;
    // Whatever was stored since it began may be its own, and is not condemned, however old.
    let b = disk(51);
    let mine = bench.receiver().open(&CTX, &b.plan(None)).await.unwrap();
    b.send_all(&mine).await.unwrap();
    keep_alive().await;
    mine.renew().await.unwrap_err();
    assert_eq!(bench.gc(&[]).await.condemned, 0);
    drop(mine);
    let report = bench.gc(&[]).await;
    assert_eq!((report.deleted, report.sessions), (0, 1), "{report:?}");
    session.commit(&a.manifest()).await.unwrap();
    let report = bench.gc(&[]).await;
    // Its new locator is young; only the old one goes.
    assert_eq!((report.deleted, report.images), (1, 1), "{report:?}");
    assert_eq!(assert_no_half_image(&bench, "").await, [a.image()]);
}

#[tokio::test]
async fn a_session_that_lapsed_holds_nothing_back_and_cannot_commit() {
    let bench = Bench::new().await;
    let a = disk(1);
    let session = bench.receiver().open(&CTX, &a.plan(None)).await.unwrap();
    a.send_all(&session).await.unwrap();
    for _ in 0..2 {
        bench.wait();
        bench.gc(&[]).await;
    }
    assert_eq!(bench.objects.keys_of("packs").await, []);
    let e = session.commit(&a.manifest()).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict, "{e}");
    assert_eq!(bench.store.images().await.unwrap(), []);
    bench.wait();
    bench.gc(&[]).await;
    assert_eq!(bench.objects.keys_of("sessions").await, [], "what it left is tidied up");
}

#[tokio::test]
async fn what_is_condemned_may_be_leaned_on_until_it_is_being_deleted() {
    let bench = Bench::new().await;
    let a = disk(1);
    let receiver = bench.receiver().for_owner(owner());
    a.push(&receiver, None).await.unwrap();
    bench.wait();
    bench.gc(&[]).await;
    bench.clock.advance(GRACE + 2 * LIFE);
    // It begins long after the condemnation, and sends nothing.
    let session = receiver.open(&CTX, &a.plan(None)).await.unwrap();
    assert_eq!(a.send_all(&session).await.unwrap(), 0);
    // gc has decided, and is about to delete the manifest.
    let gate = bench.objects.gate(Verb::Delete, "manifests/");
    let (store, now) = (bench.store.clone(), bench.clock.now());
    let gc =
        tokio::spawn(
            async move { store.gc(&[], &sweep(Duration::from_secs(GRACE), false, now)).await },
        );
    gate.reached().await;
    let e = session.commit(&a.manifest()).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict, "{e}");
    assert!(e.message().contains("being removed"), "{e}");
    gate.open();
    assert_eq!(gc.await.unwrap().unwrap().deleted, 4);
    // Now it is gone, and is noticed to be.
    let e = session.commit(&a.manifest()).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict, "{e}");
    assert_eq!(bench.store.images().await.unwrap(), []);
    assert_eq!(a.push(&receiver, None).await.unwrap(), 2, "all is sent again");
    assert_eq!(assert_no_half_image(&bench, "").await, [a.image()]);
}

#[tokio::test]
async fn a_commit_that_was_checked_before_gc_looked_is_seen_by_gc() {
    let bench = Bench::new().await;
    let a = disk(1);
    let receiver = bench.receiver().for_owner(owner());
    a.push(&receiver, None).await.unwrap();
    bench.wait();
    bench.gc(&[]).await;
    bench.clock.advance(GRACE + 2 * LIFE);
    // The writer is past its checks and about to write the locator; gc runs from start to end.
    let session = receiver.open(&CTX, &a.plan(None)).await.unwrap();
    assert_eq!(a.send_all(&session).await.unwrap(), 0);
    let gate = bench.objects.gate(Verb::Put, "locators/");
    let manifest = a.manifest();
    let commit = tokio::spawn(async move { session.commit(&manifest).await });
    gate.reached().await;
    let report = bench.gc(&[]).await;
    assert_eq!(report.deleted, 0, "{report:?}");
    gate.open();
    commit.await.unwrap().unwrap();
    let report = bench.gc(&[]).await;
    assert_eq!(report.deleted, 1, "the locator that was superseded: {report:?}");
    assert_eq!(assert_no_half_image(&bench, "").await, [a.image()]);
}

#[tokio::test]
async fn what_cannot_be_read_just_then_is_taken_for_the_worst() {
    // A condemned list, seen damaged by the writer; a session, seen damaged by gc.
    for damaged_for_gc in [false, true] {
        let bench = Bench::new().await;
        let a = disk(1);
        let receiver = bench.receiver().for_owner(owner());
        a.push(&receiver, None).await.unwrap();
        bench.wait();
        bench.gc(&[]).await;
        let list = bench.objects.keys_of("gc/condemned").await[0].clone();
        bench.clock.advance(GRACE + 2 * LIFE);
        let session = receiver.open(&CTX, &a.plan(None)).await.unwrap();
        a.send_all(&session).await.unwrap();
        let gate = bench.objects.gate(Verb::Put, "locators/");
        let flip = async |key: &Path| bench.objects.flip(key, 30, 0).await;
        if !damaged_for_gc {
            flip(&list).await;
        }
        let manifest = a.manifest();
        let commit = tokio::spawn(async move { session.commit(&manifest).await });
        gate.reached().await;
        if !damaged_for_gc {
            flip(&list).await;
        }
        let renewals = bench.objects.keys_of("sessions").await;
        if damaged_for_gc {
            flip(renewals.last().unwrap()).await;
        }
        let report = bench.gc(&[]).await;
        assert_eq!((report.deleted, report.sessions), (0, 1), "{report:?}");
        gate.open();
        commit.await.unwrap().unwrap();
        assert_eq!(assert_no_half_image(&bench, "").await, [a.image()]);
    }
}

#[tokio::test]
async fn a_pack_that_went_away_unseen_is_noticed_at_commit() {
    // Another process collects; this one's index still knows the pack.
    let bench = Bench::new().await;
    let a = disk(1);
    let receiver = bench.receiver().for_owner(owner());
    a.push(&receiver, None).await.unwrap();
    let elsewhere = bench.reopen(2).await;
    let gc = async || {
        let now = bench.clock.now();
        elsewhere.gc(&[], &sweep(Duration::from_secs(GRACE), false, now)).await.unwrap()
    };
    bench.wait();
    gc().await;
    bench.wait();
    let session = receiver.open(&CTX, &a.plan(None)).await.unwrap();
    assert_eq!(a.send_all(&session).await.unwrap(), 0);
    assert_eq!(gc().await.deleted, 4);
    let e = session.commit(&a.manifest()).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict, "{e}");
    assert_eq!(bench.store.images().await.unwrap(), []);
    assert_eq!(a.push(&receiver, None).await.unwrap(), 2);
    assert_eq!(assert_no_half_image(&bench, "").await, [a.image()]);
}

#[tokio::test]
async fn one_collection_at_a_time_and_a_dead_one_is_not_waited_for() {
    let bench = Bench::new().await;
    disk(1).push(&bench.receiver(), None).await.unwrap();
    bench.wait();
    let other = bench.reopen(2).await;
    let gc = |store: &Store| {
        let (store, now) = (store.clone(), bench.clock.now());
        async move { store.gc(&[], &sweep(Duration::from_secs(GRACE), false, now)).await }
    };
    let gate = bench.objects.gate(Verb::List, "sessions");
    let first = tokio::spawn(gc(&bench.store));
    gate.reached().await;
    assert_eq!(gc(&bench.store).await.unwrap_err().kind(), Kind::Conflict);
    let e = gc(&other).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict, "{e}");
    first.abort();
    let _ = first.await;
    gate.open();
    // It left its mark; that counts for two lives of a session.
    assert_eq!(bench.objects.keys_of("gc/deleting").await.len(), 1);
    assert_eq!(gc(&other).await.unwrap_err().kind(), Kind::Conflict);
    bench.clock.advance(2 * LIFE + 1);
    assert_eq!(gc(&other).await.unwrap().condemned, 4);
    assert_eq!(bench.objects.keys_of("gc/deleting").await, []);
}

#[tokio::test]
async fn an_image_without_a_name_never_loses_a_chunk_before_it_goes_itself() {
    let bench = Bench::new().await;
    let a = disk(1);
    let receiver = bench.receiver().for_owner(owner());
    // A push that was never committed: its pack is condemned.
    let session = receiver.open(&CTX, &a.plan(None)).await.unwrap();
    a.send_all(&session).await.unwrap();
    drop(session);
    bench.wait();
    assert_eq!(bench.gc(&[]).await.condemned, 2, "a pack and a table");
    // Now it is committed, but no name is given to it for longer than the grace.
    bench.clock.advance(GRACE);
    assert_eq!(a.push(&receiver, None).await.unwrap(), 0);
    bench.wait();
    let report = bench.gc(&[]).await;
    assert_eq!((report.deleted, report.images), (0, 0), "{report:?}");
    assert_eq!(assert_no_half_image(&bench, "condemned").await, [a.image()]);
    bench.wait();
    assert_eq!(bench.gc(&[]).await.deleted, 4);
}

/// A push, a push that leans on it, and gc, all at once, in many different orders.
#[tokio::test]
async fn whatever_the_order_no_chunk_is_lost() {
    let mut outcomes = std::collections::BTreeMap::<String, u32>::new();
    for seed in 1..250 {
        let bench = Bench::new().await;
        let (a, b) = (disk(1), disk(3));
        let receiver = bench.receiver().for_owner(owner());
        a.push(&receiver, None).await.unwrap();
        bench.wait();
        bench.gc(&[]).await;
        bench.clock.advance(GRACE + 2 * LIFE);
        bench.objects.jitter(seed);
        let elsewhere = Receiver::new(&bench.reopen(2).await).for_owner(owner());
        let collector = if seed % 2 == 0 { bench.store.clone() } else { bench.reopen(3).await };
        let now = bench.clock.now();
        let push = |receiver: Receiver, disk: Disk, parent| async move {
            for _ in 0..seed % 40 {
                tokio::task::yield_now().await;
            }
            let session = receiver.open(&CTX, &disk.plan(parent)).await?;
            disk.send_all(&session).await?;
            session.commit(&disk.manifest()).await
        };
        let again = tokio::spawn(push(receiver, a.clone(), None));
        let child = tokio::spawn(push(elsewhere, b.clone(), Some(a.image())));
        // A grace of nothing: as hostile as can be.
        let gc = tokio::spawn(async move {
            let first = collector.gc(&[], &sweep(Duration::ZERO, false, now)).await;
            collector.gc(&[], &sweep(Duration::ZERO, false, now + 1)).await.and(first)
        });
        let (again, child, gc) = (again.await.unwrap(), child.await.unwrap(), gc.await.unwrap());
        let place = format!("seed {seed}: {again:?}, {child:?}, {gc:?}");
        let images = assert_no_half_image(&bench, &place).await;
        for (result, image) in [(&again, a.image()), (&child, b.image())] {
            match result {
                Ok(_) => {}
                Err(e) => assert!(matches!(e.kind(), Kind::Conflict | Kind::Retry), "{place}"),
            }
            // With no grace at all an image without a name may go as soon as it is there.
            *outcomes
                .entry(format!("{} {}", result.is_ok(), images.contains(&image)))
                .or_default() += 1;
        }
        *outcomes.entry(format!("gc deleted: {}", gc.is_ok_and(|r| r.deleted > 0))).or_default() +=
            1;
    }
    // The orders that matter did come up.
    for outcome in ["true true", "false false", "gc deleted: true", "gc deleted: false"] {
        assert!(outcomes.contains_key(outcome), "{outcome}: {outcomes:?}");
    }
}
