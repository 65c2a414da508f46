//! Everything stops between any two changes, or in the middle of any: no half image is ever seen,
//! what was acknowledged is there, and doing it again completes it.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::*;
use forebay_store::testing::{ManualClock, TestStore, Unacknowledged};
use forebay_store::{Compaction, GcOptions, IndexPlace, Receiver, RefMove, Store, StoreOptions};
use image::{Digest, Kind};
use tokio::runtime::Handle;

/// Opens what is left after a crash. Only a marker that was never written whole may prevent it.
async fn open_after(objects: &TestStore, clock: &ManualClock, place: &str) -> Option<Store> {
    match open(objects, clock, 77).await {
        Ok(store) => Some(store),
        Err(e) => {
            assert_eq!(objects.keys().await.len(), 1, "{place}: {e}");
            assert_eq!(e.kind(), Kind::Invalid, "{place}: {e}");
            None
        }
    }
}

/// The images that can be seen; each of them whole.
async fn whole_images(store: &Store, place: &str) -> BTreeSet<Digest> {
    let mut whole = BTreeSet::new();
    for image in store.images().await.unwrap() {
        match image::ChunkSource::manifest(store, &CTX, &image).await {
            Ok(_) => {
                let pulled = Disk::pull(store, &image).await;
                let pulled = pulled.as_ref().map(Disk::image).map_err(ToString::to_string);
                assert_eq!(pulled, Ok(image), "{place}: half an image");
                whole.insert(image);
            }
            // A manifest that was torn and never acknowledged is no image.
            Err(e) => assert_eq!(e.kind(), Kind::Corrupt, "{place}: {e}"),
        }
    }
    whole
}

#[tokio::test]
async fn at_any_point_of_a_push() {
    let clock = ManualClock::at(START);
    let objects = TestStore::new(clock.clock());
    let store = open(&objects, &clock, 1).await.unwrap();
    let disk = small_disk();
    let receiver = Receiver::new(&store).for_owner(Digest([1; 32]));
    disk.push(&receiver, None).await.unwrap();
    let committed = objects.events();
    let mut seen = BTreeSet::new();
    let mut crashes = 0;
    for event in 0..=objects.events() {
        for fate in objects.fates(event) {
            let place = format!("before event {event}, {fate:?}");
            let after = objects.after_crash(event, fate).await;
            let Some(store) = open_after(&after, &clock, &place).await else { continue };
            let images = whole_images(&store, &place).await;
            if event == committed {
                assert_eq!(images, BTreeSet::from([disk.image()]), "{place}");
            }
            seen.insert(images.len());
            disk.push(&Receiver::new(&store), None).await.unwrap();
            let fresh = open(&after, &clock, 78).await.unwrap();
            assert_eq!(Disk::pull(&fresh, &disk.image()).await.unwrap(), disk, "{place}");
            crashes += 1;
        }
    }
    assert_eq!(seen, BTreeSet::from([0, 1]));
    assert!(crashes > 30, "{crashes}");
}

#[tokio::test]
async fn at_any_point_of_collecting_and_pushing() {
    let clock = ManualClock::at(START);
    let objects = TestStore::new(clock.clock());
    let store = open(&objects, &clock, 1).await.unwrap();
    let grace = Duration::from_secs(GRACE);
    let base = Disk::new(64 * MIB, &[(0, 0, 1), (0, 1, 2)]);
    let kept = Disk::new(64 * MIB, &[(0, 1, 2), (0, 2, 3)]);
    let other = Disk::new(64 * MIB, &[(0, 0, 1), (0, 3, 5)]);
    let receiver = Receiver::new(&store).for_owner(Digest([1; 32]));
    base.push(&receiver, None).await.unwrap();
    kept.push(&receiver, Some(base.image())).await.unwrap();
    let began = objects.events();
    for _ in 0..2 {
        clock.advance(GRACE + 3 * LIFE);
        store.gc(&[kept.image()], &sweep(grace, false, clock.now())).await.unwrap();
    }
    other.push(&receiver, None).await.unwrap();
    assert_eq!(store.images().await.unwrap().len(), 2);
    for event in began..=objects.events() {
        let fates = objects.fates(event).into_iter();
        // A local file system may undo removals that were not synced.
        for fate in fates.chain([Unacknowledged::RemovalsLost]) {
            let place = format!("before event {event}, {fate:?}");
            let after = objects.after_crash(event, fate).await;
            let store = open(&after, &clock, 77).await.unwrap();
            let images = whole_images(&store, &place).await;
            assert!(images.contains(&kept.image()), "{place}");
            // It goes on from there, and ends with what is named and nothing else.
            other.push(&Receiver::new(&store), None).await.unwrap();
            let roots = [kept.image(), other.image()];
            let clock = ManualClock::at(clock.now());
            let store = open(&after, &clock, 78).await.unwrap();
            for _ in 0..3 {
                clock.advance(GRACE + 3 * LIFE);
                store.gc(&roots, &sweep(grace, false, clock.now())).await.unwrap();
            }
            let left = whole_images(&store, &place).await;
            assert_eq!(left, roots.into_iter().collect(), "{place}");
            for folder in ["gc/condemned", "gc/deleting", "sessions"] {
                assert_eq!(after.keys_of(folder).await, [], "{place}");
            }
            assert_eq!(after.keys_of("sections").await.len(), 2, "{place}");
        }
    }
}

#[tokio::test]
async fn at_any_point_of_rewriting_packs() {
    let clock = ManualClock::at(START);
    let objects = TestStore::new(clock.clock());
    let store = open(&objects, &clock, 1).await.unwrap();
    let all: Vec<_> = (0..20).map(|c| (0, c, 2 * u64::from(c))).collect();
    let parent = Disk::new(64 * MIB, &all);
    let (child, second) = (Disk::new(64 * MIB, &all[..2]), Disk::new(64 * MIB, &all[1..4]));
    let receiver = Receiver::new(&store).for_owner(Digest([1; 32]));
    parent.push(&receiver, None).await.unwrap();
    child.push(&receiver, Some(parent.image())).await.unwrap();
    second.push(&receiver, Some(parent.image())).await.unwrap();
    let roots = [child.image(), second.image()];
    let compacting = |clock: &ManualClock| GcOptions {
        compact: Some(Compaction::default()),
        ..sweep(Duration::from_secs(GRACE), false, clock.now())
    };
    let began = objects.events();
    let mut rewritten = 0;
    for _ in 0..3 {
        clock.advance(GRACE + 3 * LIFE);
        rewritten += store.gc(&roots, &compacting(&clock)).await.unwrap().rewritten;
    }
    assert_eq!(rewritten, 1);
    for event in began..=objects.events() {
        let fates = objects.fates(event).into_iter();
        for fate in fates.chain([Unacknowledged::RemovalsLost]) {
            let place = format!("before event {event}, {fate:?}");
            let after = objects.after_crash(event, fate).await;
            let store = open(&after, &clock, 77).await.unwrap();
            let images = whole_images(&store, &place).await;
            assert!(roots.iter().all(|r| images.contains(r)), "{place}");
            // It goes on from there, and ends where it would have ended.
            let clock = ManualClock::at(clock.now());
            let store = open(&after, &clock, 78).await.unwrap();
            for _ in 0..5 {
                clock.advance(GRACE + 3 * LIFE);
                store.gc(&roots, &compacting(&clock)).await.unwrap();
            }
            let left = whole_images(&store, &place).await;
            assert_eq!(left, roots.into_iter().collect(), "{place}");
            assert_eq!(after.keys_of("packs").await.len(), 1, "{place}");
            assert_eq!(after.keys_of("locators").await.len(), 2, "{place}");
            for folder in ["gc/condemned", "gc/deleting", "gc/rewrites", "sessions"] {
                assert_eq!(after.keys_of(folder).await, [], "{place}");
            }
        }
    }
}

#[tokio::test]
async fn ref_moves_and_records() {
    let bench = Bench::new().await;
    let image = small_disk().image();
    let ref_move = |seq, name: &str| RefMove {
        seq,
        name: name.parse().unwrap(),
        image: (seq != 2).then_some(image),
        at: START + seq,
    };
    for seq in 0..3 {
        bench.store.append_ref_move(&ref_move(seq, "debian:12")).await.unwrap();
        bench.store.put_record(&image, START + seq, &format!("token {seq}")).await.unwrap();
    }
    bench.store.append_ref_move(&ref_move(1, "debian:12")).await.unwrap();
    let e = bench.store.append_ref_move(&ref_move(1, "alpine:3")).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict, "{e}");
    assert!(e.message().contains("debian:12"), "{e}");
    bench.store.put_record(&image, START, "token 0").await.unwrap();
    let e = bench.store.put_record(&image, START, "").await.unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid, "{e}");
    let log = bench.store.ref_log().await.unwrap();
    assert_eq!(log.moves, [0, 1, 2].map(|seq| ref_move(seq, "debian:12")));
    assert_eq!(log.bad, [] as [String; 0]);
    let tokens = ["token 0", "token 1", "token 2"];
    assert_eq!(bench.store.records(&image).await.unwrap(), tokens);

    // A flipped bit is caught, and costs no more than its own entry.
    for folder in ["refs", "records"] {
        let key = &bench.objects.keys_of(folder).await[1];
        for byte in 0..bench.objects.bytes(key).await.len() {
            bench.objects.flip(key, byte, (byte % 8) as u8).await;
            let log = bench.store.ref_log().await.unwrap();
            let records = bench.store.records(&image).await.unwrap();
            match folder {
                "refs" => {
                    assert_eq!((log.moves.len(), log.bad.len()), (2, 1), "byte {byte}: {log:?}");
                    assert!(log.bad[0].contains(key.as_ref()), "{log:?}");
                }
                _ => assert_eq!(records, ["token 0", "token 2"], "byte {byte}"),
            }
            bench.objects.flip(key, byte, (byte % 8) as u8).await;
        }
    }

    // A move that was torn was not acknowledged, and is written again.
    let events = bench.objects.events();
    bench.store.append_ref_move(&ref_move(3, "debian:13")).await.unwrap();
    let at = bench.objects.log().len() - 1;
    let torn = bench.objects.after_crash(events + 1, Unacknowledged::OneTorn(at)).await;
    let store = open(&torn, &bench.clock, 5).await.unwrap();
    assert_eq!(store.ref_log().await.unwrap().bad.len(), 1);
    store.append_ref_move(&ref_move(3, "debian:13")).await.unwrap();
    assert_eq!(store.ref_log().await.unwrap().moves.len(), 4);
}

#[tokio::test]
async fn an_index_that_was_lost_or_is_old_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let (path, index) = (dir.path().join("store"), dir.path().join("chunks.redb"));
    let old = dir.path().join("old.redb");
    let place = |path: &std::path::Path| StoreOptions::system(IndexPlace::File(path.to_owned()));
    let first = small_disk();
    let second = Disk::new(64 * MIB, &[(0, 3, 101), (0, 4, 103)]);
    let memory = StoreOptions::system(IndexPlace::Memory);
    {
        let store = Store::open_dir(&path, Handle::current(), place(&index)).await.unwrap();
        first.push(&Receiver::new(&store), None).await.unwrap();
    }
    // The packer holds the index for a moment longer, and saves it at the end.
    while let Err(e) = Store::open_dir(&path, Handle::current(), place(&index)).await {
        assert_eq!(e.kind(), Kind::Conflict, "{e}");
        tokio::task::yield_now().await;
    }
    std::fs::copy(&index, &old).unwrap();
    let packs: Vec<_> = std::fs::read_dir(path.join("packs")).unwrap().collect();
    let first_pack = packs[0].as_ref().unwrap().path();
    {
        let store = Store::open_dir(&path, Handle::current(), memory.clone()).await.unwrap();
        second.push(&Receiver::new(&store), None).await.unwrap();
    }
    std::fs::remove_file(first_pack).unwrap();
    // The old index knows a pack that is gone, and does not know the one that is there. Without
    // locators it is all there is to go by.
    std::fs::remove_dir_all(path.join("locators")).unwrap();
    let store = Store::open_dir(&path, Handle::current(), place(&old)).await.unwrap();
    assert_eq!(Disk::pull(&store, &second.image()).await.unwrap(), second);
    let e = Disk::pull(&store, &first.image()).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Corrupt, "{e}");
    assert!(e.message().contains("no pack holds"), "{e}");
    let sent = first.push(&Receiver::new(&store), None).await.unwrap();
    assert_eq!(sent, 5);
    assert_eq!(Disk::pull(&store, &first.image()).await.unwrap(), first);
}
