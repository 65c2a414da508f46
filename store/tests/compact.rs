//! Rewriting packs: what is dead goes, what is small is merged, and nobody who reads or pushes at the
//! same time loses anything.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::*;
use forebay_store::testing::{Fault, Verb};
use forebay_store::{Compaction, GcOptions, GcReport, IndexPlace, Receiver, Store};
use image::seam::ImageSession;
use image::{Digest, ImageSink, Kind};
use tokio::runtime::Handle;

fn owner() -> Digest {
    Digest([7; 32])
}

/// 40 chunks, and a child that has the first three of them and one of its own.
fn family() -> (Disk, Disk) {
    let all: Vec<_> = (0..40).map(|c| (0, c, 2 * u64::from(c))).collect();
    let mut few = all[..3].to_vec();
    few.push((0, 50, 1000));
    (Disk::new(64 * MIB, &all), Disk::new(64 * MIB, &few))
}

fn compacting(bench: &Bench) -> GcOptions {
    let compact = Some(Compaction::default());
    GcOptions { compact, ..sweep(Duration::from_secs(GRACE), false, bench.clock.now()) }
}

async fn collect(bench: &Bench, roots: &[Digest]) -> GcReport {
    bench.store.gc(roots, &compacting(bench)).await.unwrap()
}

async fn packs(bench: &Bench) -> BTreeSet<String> {
    bench.objects.keys_of("packs").await.iter().map(ToString::to_string).collect()
}

async fn reader(bench: &Bench) -> Store {
    let mut options = options(&bench.clock, 500);
    options.index = IndexPlace::Nowhere;
    Store::open(bench.objects.objects(), Handle::current(), options).await.unwrap()
}

#[tokio::test]
async fn a_mostly_dead_pack_gives_its_room_back() {
    let bench = Bench::new().await;
    let (parent, child) = family();
    parent.push(&bench.receiver(), None).await.unwrap();
    child.push(&bench.receiver(), Some(parent.image())).await.unwrap();
    let old = packs(&bench).await;
    assert_eq!(old.len(), 2);
    let (roots, image) = ([child.image()], child.image());
    // A cache that read the image before, and one that reads it between.
    let early = reader(&bench).await;
    assert_eq!(Disk::pull(&early, &image).await.unwrap(), child);
    assert_eq!(collect(&bench, &roots).await.rewritten, 0, "all of it is young");
    bench.wait();
    let dry = GcOptions { dry_run: true, ..compacting(&bench) };
    let changes = bench.objects.log().len();
    let would = bench.store.gc(&roots, &dry).await.unwrap();
    assert_eq!(bench.objects.log().len(), changes);
    let report = collect(&bench, &roots).await;
    // The parent's pack, and the child's small one with it.
    assert_eq!((report.rewritten, report.written, report.relocated), (2, 1, 1), "{report:?}");
    assert_eq!((would.rewritten, would.rewritten_bytes), (2, report.rewritten_bytes));
    assert!(would.written_bytes >= report.written_bytes && would.saved_bytes() > 0, "{would:?}");
    assert!(report.saved_bytes() > 36 * 16_384, "{report:?}");
    let middle = reader(&bench).await;
    assert_eq!(Disk::pull(&middle, &image).await.unwrap(), child);
    let again = collect(&bench, &roots).await;
    assert_eq!((again.rewritten, again.relocated), (0, 0), "{again:?}");
    // The old packs are condemned, and stay for the grace.
    assert!(again.condemned > 0 && packs(&bench).await.is_superset(&old), "{again:?}");
    assert_eq!(Disk::pull(&early, &image).await.unwrap(), child);
    bench.wait();
    assert!(collect(&bench, &roots).await.deleted > 0);
    let new = packs(&bench).await;
    assert_eq!((new.intersection(&old).count(), new.len()), (0, 1));
    for store in [&early, &middle, &bench.store, &bench.reopen(9).await] {
        assert_eq!(Disk::pull(store, &image).await.unwrap(), child);
    }
    let report = bench.reopen(10).await.verify(&image, true).await.unwrap();
    assert_eq!((report.bad.len(), report.repaired.len()), (0, 0), "{report:?}");
    assert_eq!(bench.objects.keys_of("gc/rewrites").await, [], "its record has served");
    let log = bench.objects.keys_of("gc/log").await;
    let text = String::from_utf8(bench.objects.bytes(&log[0]).await.to_vec()).unwrap();
    assert!(log.len() >= 3 && text.contains("\"rewritten\":2"), "{log:?}: {text}");
    bench.clock.advance(91 * 24 * 3600);
    collect(&bench, &roots).await;
    assert!(bench.objects.keys_of("gc/log").await.len() <= 1, "older ones are removed");
}

#[tokio::test]
async fn small_packs_are_merged() {
    let bench = Bench::new().await;
    let disks: Vec<Disk> =
        (0..8).map(|n| Disk::new(64 * MIB, &[(0, n, 10 + u64::from(n)), (0, 9, 5)])).collect();
    let mut roots = Vec::new();
    for disk in &disks {
        disk.push(&bench.receiver(), None).await.unwrap();
        roots.push(disk.image());
    }
    assert_eq!(packs(&bench).await.len(), 8);
    bench.wait();
    let report = collect(&bench, &roots).await;
    assert_eq!((report.rewritten, report.written, report.relocated), (8, 1, 8), "{report:?}");
    for _ in 0..3 {
        bench.wait();
        assert_eq!(collect(&bench, &roots).await.rewritten, 0);
    }
    assert_eq!(packs(&bench).await.len(), 1);
    let store = bench.reopen(9).await;
    for disk in &disks {
        assert_eq!(Disk::pull(&store, &disk.image()).await.unwrap(), *disk);
        disk.push(&bench.receiver().for_owner(owner()), None).await.unwrap();
    }
    assert_eq!(packs(&bench).await.len(), 1, "what is pushed again is found there");
}

#[tokio::test]
async fn limits_are_kept_and_the_next_run_goes_on() {
    let bench = Bench::new().await;
    let mut roots = Vec::new();
    let mut disks = Vec::new();
    for n in 0..3u64 {
        // Too much for one new pack together.
        let all: Vec<_> = (0..600).map(|c| (0, c, 2 * (1000 * n + u64::from(c)))).collect();
        let (parent, child) = (Disk::new(64 * MIB, &all), Disk::new(64 * MIB, &all[..295]));
        parent.push(&bench.receiver(), None).await.unwrap();
        child.push(&bench.receiver(), Some(parent.image())).await.unwrap();
        roots.push(child.image());
        disks.push(child);
    }
    bench.wait();
    let mut options = options(&bench.clock, 70);
    options.limits.pack = 9 << 20;
    let store = Store::open(bench.objects.objects(), Handle::current(), options).await.unwrap();
    let limited = |max_bytes| {
        let compact = Some(Compaction { max_bytes, ..Compaction::default() });
        GcOptions { compact, ..compacting(&bench) }
    };
    let report = store.gc(&roots, &limited(1)).await.unwrap();
    assert_eq!((report.rewritten, report.unfinished), (1, true), "{report:?}");
    // Time runs out: at once here, since the clock jumps while a pack is written.
    let gate = bench.objects.gate(Verb::Put, "gc/rewrites/");
    let (other, all, plenty) = (store.clone(), roots.clone(), limited(u64::MAX));
    let run = tokio::spawn(async move { other.gc(&all, &plenty).await });
    gate.reached().await;
    bench.clock.advance(LIFE);
    gate.open();
    let report = run.await.unwrap().unwrap();
    assert_eq!((report.rewritten, report.unfinished), (1, true), "{report:?}");
    bench.clock.advance(2 * LIFE + 1);
    let report = store.gc(&roots, &limited(u64::MAX)).await.unwrap();
    assert_eq!((report.rewritten, report.unfinished), (1, false), "{report:?}");
    let report = store.gc(&roots, &limited(u64::MAX)).await.unwrap();
    assert_eq!((report.rewritten, report.relocated), (0, 0), "{report:?}");
    for disk in disks {
        assert_eq!(Disk::pull(&bench.reopen(9).await, &disk.image()).await.unwrap(), disk);
    }
}

#[tokio::test]
async fn a_damaged_pack_is_left_as_it_is() {
    let bench = Bench::new().await;
    let (parent, child) = family();
    parent.push(&bench.receiver(), None).await.unwrap();
    let pack = bench.objects.keys_of("packs").await[0].clone();
    child.push(&bench.receiver(), Some(parent.image())).await.unwrap();
    bench.objects.flip(&pack, 16 + 70, 0).await;
    bench.wait();
    let report = collect(&bench, &[child.image()]).await;
    assert_eq!((report.rewritten, report.bad_packs), (1, 1), "{report:?}");
    for _ in 0..2 {
        bench.wait();
        collect(&bench, &[child.image()]).await;
    }
    bench.objects.flip(&pack, 16 + 70, 0).await;
    assert_eq!(Disk::pull(&bench.reopen(9).await, &child.image()).await.unwrap(), child);
}

#[tokio::test]
async fn a_pack_in_a_bad_place_of_a_disk_is_left_and_the_run_goes_on() {
    let bench = Bench::new().await;
    let (parent, child) = family();
    parent.push(&bench.receiver(), None).await.unwrap();
    let pack = bench.objects.keys_of("packs").await[0].to_string();
    child.push(&bench.receiver(), Some(parent.image())).await.unwrap();
    bench.wait();
    bench.objects.fail(move |verb, key| {
        let bad = Fault::Refuse(std::io::ErrorKind::Other);
        (verb == Verb::Get && key == pack).then_some(bad)
    });
    let report = collect(&bench, &[child.image()]).await;
    assert_eq!((report.rewritten, report.bad_packs), (1, 1), "{report:?}");
    bench.objects.heal();
    assert_eq!(Disk::pull(&bench.reopen(9).await, &child.image()).await.unwrap(), child);
}

#[tokio::test]
async fn what_a_run_did_is_logged_and_tidied_though_rewriting_fails() {
    let bench = Bench::new().await;
    let (parent, child) = family();
    parent.push(&bench.receiver(), None).await.unwrap();
    child.push(&bench.receiver(), Some(parent.image())).await.unwrap();
    let session = bench.receiver().open(&CTX, &parent.plan(None)).await.unwrap();
    std::mem::forget(session);
    bench.clock.advance(2 * GRACE + 3 * LIFE);
    assert_ne!(bench.objects.keys_of("sessions").await, []);
    bench.objects.fail(|verb, key| {
        let full = Fault::Refuse(std::io::ErrorKind::StorageFull);
        (verb == Verb::Put && key.starts_with("packs/")).then_some(full)
    });
    let e = bench.store.gc(&[child.image()], &compacting(&bench)).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Full, "{e}");
    assert_eq!(bench.objects.keys_of("sessions").await, [], "the writer is not coming back");
    assert_eq!(bench.objects.keys_of("gc/log").await.len(), 1, "the parent was condemned");
}

/// A push finds a dead chunk in the old pack, and leans on it, while that pack is being rewritten
/// without the chunk.
#[tokio::test]
async fn a_push_that_leans_on_what_was_not_copied_keeps_the_old_pack() {
    let bench = Bench::new().await;
    let (parent, child) = family();
    let receiver = bench.receiver().for_owner(owner());
    parent.push(&receiver, None).await.unwrap();
    child.push(&receiver, Some(parent.image())).await.unwrap();
    for _ in 0..2 {
        bench.wait();
        // The parent goes; its pack stays for the child's sake.
        bench.gc(&[child.image()]).await;
    }
    assert_eq!(bench.store.images().await.unwrap(), [child.image()]);
    let gate = bench.objects.gate(Verb::Put, "packs/");
    let (store, options, roots) = (bench.store.clone(), compacting(&bench), [child.image()]);
    let gc = tokio::spawn(async move { store.gc(&roots, &options).await });
    gate.reached().await;
    let session = receiver.open(&CTX, &parent.plan(None)).await.unwrap();
    assert_eq!(parent.send_all(&session).await.unwrap(), 0, "all of it is stored");
    gate.open();
    assert_eq!(gc.await.unwrap().unwrap().rewritten, 2);
    session.commit(&parent.manifest()).await.unwrap();
    drop(session);
    let roots = [child.image(), parent.image()];
    for _ in 0..4 {
        bench.wait();
        collect(&bench, &roots).await;
        let store = bench.reopen(9).await;
        assert_eq!(Disk::pull(&store, &parent.image()).await.unwrap(), parent);
        assert_eq!(Disk::pull(&store, &child.image()).await.unwrap(), child);
        let report = store.verify(&parent.image(), true).await.unwrap();
        assert_eq!(report.bad, [] as [String; 0]);
    }
}

/// An image that nothing named when the collection marked gets a name while packs are rewritten.
#[tokio::test]
async fn an_image_that_is_named_while_packs_are_rewritten_keeps_its_chunks() {
    let bench = Bench::new().await;
    let (parent, child) = family();
    parent.push(&bench.receiver(), None).await.unwrap();
    child.push(&bench.receiver(), Some(parent.image())).await.unwrap();
    bench.wait();
    let gate = bench.objects.gate(Verb::Put, "packs/");
    let (store, options, roots) = (bench.store.clone(), compacting(&bench), [child.image()]);
    let (tell, told) = tokio::sync::oneshot::channel();
    let swept = move || tell.send(()).unwrap();
    let gc = tokio::spawn(async move { store.gc_and_tell(&roots, &options, swept).await });
    told.await.unwrap();
    gate.reached().await;
    bench.store.keep(&parent.image()).await.unwrap();
    gate.open();
    assert_eq!(gc.await.unwrap().unwrap().rewritten, 2);
    let roots = [child.image(), parent.image()];
    for _ in 0..4 {
        bench.wait();
        collect(&bench, &roots).await;
        let store = bench.reopen(9).await;
        assert_eq!(Disk::pull(&store, &parent.image()).await.unwrap(), parent);
        assert_eq!(Disk::pull(&store, &child.image()).await.unwrap(), child);
    }
}

/// Two pushes, a reader with an old locator, and two collections that rewrite everything, all at
/// once, in many different orders.
#[tokio::test]
async fn whatever_the_order_no_chunk_is_lost() {
    let mut outcomes = BTreeSet::new();
    for seed in 1..150 {
        let bench = Bench::new().await;
        let (parent, child) = family();
        let other = Disk::new(64 * MIB, &[(0, 1, 2), (0, 2, 500), (0, 3, 6)]);
        let receiver = bench.receiver().for_owner(owner());
        parent.push(&receiver, None).await.unwrap();
        child.push(&receiver, Some(parent.image())).await.unwrap();
        let reading = reader(&bench).await;
        assert_eq!(Disk::pull(&reading, &child.image()).await.unwrap(), child);
        bench.wait();
        bench.gc(&[child.image()]).await;
        bench.clock.advance(GRACE + 2 * LIFE);
        bench.objects.jitter(seed);
        let elsewhere = Receiver::new(&bench.reopen(2).await).for_owner(owner());
        let push = |receiver: Receiver, disk: Disk, parent| async move {
            for _ in 0..seed % 40 {
                tokio::task::yield_now().await;
            }
            let session = receiver.open(&CTX, &disk.plan(parent)).await?;
            disk.send_all(&session).await?;
            session.commit(&disk.manifest()).await
        };
        let again = tokio::spawn(push(receiver, parent.clone(), None));
        let new = tokio::spawn(push(elsewhere, other.clone(), Some(child.image())));
        let collector = if seed % 2 == 0 { bench.store.clone() } else { bench.reopen(3).await };
        let (roots, now) = ([child.image()], bench.clock.now());
        let gc = tokio::spawn(async move {
            // No grace, and whatever is not full is rewritten: as hostile as can be.
            let compact = Some(Compaction { min_live_percent: 101, ..Compaction::default() });
            let options = |now| GcOptions { compact, ..sweep(Duration::ZERO, false, now) };
            let first = collector.gc(&roots, &options(now)).await;
            let second = collector.gc(&roots, &options(now + 1)).await;
            (first, second)
        });
        let pulled = Disk::pull(&reading, &child.image()).await;
        let (again, new, gc) = (again.await.unwrap(), new.await.unwrap(), gc.await.unwrap());
        let place = format!("seed {seed}: {again:?}, {new:?}, {gc:?}");
        assert_eq!(pulled.as_ref().ok(), Some(&child), "{place}: {pulled:?}");
        let store = bench.reopen(900).await;
        for image in store.images().await.unwrap() {
            let pulled = Disk::pull(&store, &image).await;
            let pulled = pulled.as_ref().map(Disk::image).map_err(ToString::to_string);
            assert_eq!(pulled, Ok(image), "{place}");
        }
        for result in [&again, &new] {
            let fine = |e: &image::Error| matches!(e.kind(), Kind::Conflict | Kind::Retry);
            assert!(result.as_ref().err().is_none_or(fine), "{place}");
            outcomes.insert(format!("pushed: {}", result.is_ok()));
        }
        let rewritten = [&gc.0, &gc.1].iter().any(|r| r.as_ref().is_ok_and(|r| r.rewritten > 0));
        outcomes.insert(format!("rewritten: {rewritten}"));
        // In peace again, everything that is named can be read, and nothing of gc's own is left.
        let roots = [child.image()];
        for _ in 0..4 {
            bench.wait();
            let result = store.gc(&roots, &compacting(&bench)).await;
            result.unwrap_or_else(|e| panic!("{place}: {e}"));
        }
        let store = bench.reopen(901).await;
        assert_eq!(Disk::pull(&store, &child.image()).await.unwrap(), child, "{place}");
        for folder in ["gc/condemned", "gc/deleting", "gc/rewrites", "sessions"] {
            assert_eq!(bench.objects.keys_of(folder).await, [], "{place}");
        }
    }
    for outcome in ["pushed: true", "rewritten: true"] {
        assert!(outcomes.contains(outcome), "{outcome}: {outcomes:?}");
    }
}
