//! Verifying a whole store: what is bad is named, a sample is fair, and a run goes on where one ended.

mod common;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use forebay_store::testing::{Fault, Verb};
use forebay_store::{IndexPlace, RefMove, Store, StoreReport, VerifyAll};
use image::{ImageSink, Kind, Priority, ReadContext};
use tokio::runtime::Handle;

/// Ten images with a pack of two chunks each.
async fn bench() -> (Bench, Vec<Disk>) {
    let bench = Bench::new().await;
    let disks: Vec<Disk> =
        (0..10).map(|n| Disk::new(64 * MIB, &[(0, 0, 100 + n), (0, 1, 200 + n)])).collect();
    for disk in &disks {
        disk.push(&bench.receiver(), None).await.unwrap();
    }
    (bench, disks)
}

async fn verify(store: &Store, options: VerifyAll) -> StoreReport {
    store.verify_all(&options, |_| {}).await.unwrap()
}

#[tokio::test]
async fn a_good_store_is_good_and_all_of_it_is_looked_at() {
    let (bench, _) = bench().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    for deep in [false, true] {
        let seen = seen.clone();
        seen.lock().unwrap().clear();
        let options = VerifyAll { deep, ..VerifyAll::default() };
        let progress = {
            let seen = seen.clone();
            move |report: &StoreReport| seen.lock().unwrap().push(report.images + report.packs)
        };
        let report = bench.store.verify_all(&options, progress).await.unwrap();
        assert_eq!((report.images, report.sections, report.chunks), (10, 10, 20));
        assert_eq!((report.packs, report.frames, report.in_all), (10, 20, 20));
        let mut bytes = 0;
        for key in bench.objects.keys_of("packs").await {
            bytes += bench.objects.bytes(&key).await.len() as u64;
        }
        assert_eq!(report.bytes, bytes);
        assert_eq!((report.bad_places, report.repaired.len(), report.next), (0, 0, None));
        assert_eq!(report.orphans, Some(Vec::new()));
        assert_eq!(*seen.lock().unwrap(), (1..=20).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn every_bad_place_is_named() {
    let (bench, _) = bench().await;
    let keys = async |folder| bench.objects.keys_of(folder).await;
    let packs = keys("packs").await;
    let (manifest, table) = (&keys("manifests").await[0], &keys("sections").await[1]);
    let locator = keys("locators").await[2].clone();
    bench.objects.flip(&packs[0], 16 + 70, 0).await;
    let len = bench.objects.bytes(&packs[1]).await.len();
    bench.objects.flip(&packs[1], len - 1, 0).await;
    bench.objects.truncate(&packs[2], len / 2).await;
    bench.objects.flip(manifest, 20, 0).await;
    bench.objects.flip(table, 20, 0).await;
    bench.objects.flip(&locator, 20, 0).await;
    let store = bench.reopen(3).await;
    let report = verify(&store, VerifyAll::default()).await;
    let name = |key: &object_store::path::Path| key.as_ref().replace("packs/", "pack ");
    for key in [&packs[0], &packs[1], &packs[2], manifest, table] {
        assert!(report.bad.iter().any(|b| b.contains(&name(key))), "{key}: {report:?}");
    }
    let frame = format!("{}: offset 16", name(&packs[0]));
    assert!(report.bad.iter().any(|b| b.contains(&frame)), "{report:?}");
    assert_eq!(report.bad_places, report.bad.len() as u64);
    assert!(report.repaired.iter().any(|r| r.contains(locator.as_ref())), "{report:?}");
    // The packs of the image whose manifest is bad are what it is mended from.
    assert_eq!((report.orphans, report.orphan_bytes), (None, 0));
    // What is read only can be verified as well; then nothing is repaired.
    let mut options = options(&bench.clock, 500);
    options.index = IndexPlace::Nowhere;
    let reader = Store::open(bench.objects.objects(), Handle::current(), options).await.unwrap();
    let changes = bench.objects.log().len();
    let seen = verify(&reader, VerifyAll { deep: true, ..VerifyAll::default() }).await;
    assert!(seen.bad.iter().any(|b| b.contains(&frame)), "{seen:?}");
    assert_eq!(bench.objects.log().len(), changes);
}

#[tokio::test]
async fn a_sample_goes_on_where_it_ended_and_covers_everything_once() {
    let (bench, _) = bench().await;
    let mut orders = Vec::new();
    for seed in [1, 2] {
        let (mut after, mut counts, mut runs) = (None, (0, 0), Vec::new());
        loop {
            let options = VerifyAll { seed, bytes: Some(1), after, ..VerifyAll::default() };
            let report = verify(&bench.store, options).await;
            assert!(report.packs <= 1 && report.orphans.is_none(), "{report:?}");
            assert_eq!(report.before, counts.0 + counts.1);
            counts = (counts.0 + report.images, counts.1 + report.packs);
            runs.push(report.images);
            after = report.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(counts, (10, 10));
        orders.push(runs);
    }
    assert_ne!(orders[0], orders[1], "another seed, another order");
    let nonsense = VerifyAll { after: Some("packs/1".into()), ..VerifyAll::default() };
    let e = bench.store.verify_all(&nonsense, |_| {}).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid, "{e}");
}

#[tokio::test]
async fn time_and_rate_are_kept() {
    let (bench, _) = bench().await;
    let clock = bench.clock.clone();
    let options = VerifyAll { within: Some(Duration::from_secs(50)), ..VerifyAll::default() };
    let report = bench.store.verify_all(&options, move |_| clock.advance(20)).await.unwrap();
    assert_eq!(report.images + report.packs, 3);
    assert!(report.next.is_some());
}

#[tokio::test(start_paused = true)]
#[expect(clippy::disallowed_methods, reason = "the paused clock of the runtime")]
async fn no_more_bytes_a_second_than_allowed() {
    let (bench, _) = bench().await;
    let began = tokio::time::Instant::now();
    let options = VerifyAll { rate: Some(10_000), ..VerifyAll::default() };
    let report = verify(&bench.store, options).await;
    // The clock of the runtime stands still but for sleeps.
    let least = Duration::from_secs_f64(report.bytes as f64 / 10_000.0);
    assert!(began.elapsed() >= least.mul_f64(0.99), "{:?} for {}", began.elapsed(), report.bytes);
}

#[tokio::test]
async fn orphans_are_named_and_are_not_bad() {
    let (bench, _) = bench().await;
    // A push that was never committed.
    let disk = Disk::new(64 * MIB, &[(0, 0, 900)]);
    let session = bench.receiver().open(&CTX, &disk.plan(None)).await.unwrap();
    disk.send_all(&session).await.unwrap();
    let report = verify(&bench.store, VerifyAll::default()).await;
    let orphans = report.orphans.unwrap();
    assert_eq!((orphans.len(), report.bad_places), (2, 0), "{orphans:?}");
    assert!(orphans[0].starts_with("sections/") && orphans[1].starts_with("packs/"), "{orphans:?}");
    assert!(report.orphan_bytes > 16_384);
    drop(session);
}

#[tokio::test]
async fn what_is_collected_meanwhile_is_not_bad_and_a_store_that_is_away_is_an_error() {
    let (bench, _) = bench().await;
    let gone = bench.objects.keys_of("packs").await[0].clone();
    let gate = bench.objects.gate(Verb::Get, gone.as_ref());
    let store = bench.store.clone();
    let run = tokio::spawn(async move { verify_of_packs(&store).await });
    gate.reached().await;
    bench.objects.remove(&gone).await;
    gate.open();
    let report = run.await.unwrap();
    assert!(report.packs < 10, "{report:?}");
    bench.objects.fail(|verb, key| {
        let away = Fault::Refuse(std::io::ErrorKind::TimedOut);
        (verb == Verb::Get && key.starts_with("packs/")).then_some(away)
    });
    let e = bench.store.verify_all(&VerifyAll::default(), |_| {}).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Retry, "{e}");
}

/// A disk gives some bytes of it no more.
fn bad_sector(bench: &Bench, keys: Vec<String>) {
    bench.objects.fail(move |verb, key| {
        let bad = Fault::Refuse(std::io::ErrorKind::Other);
        (verb == Verb::Get && keys.iter().any(|k| k == key)).then_some(bad)
    });
}

#[tokio::test]
async fn a_bad_sector_is_named_and_the_rest_looked_at() {
    let (bench, disks) = bench().await;
    let mut repaired = false;
    for folder in ["packs", "manifests", "sections", "locators", "refs"] {
        let entry =
            RefMove { seq: 1, name: "x:1".parse().unwrap(), image: Some(disks[0].image()), at: 1 };
        bench.store.append_ref_move(&entry).await.unwrap();
        let key = bench.objects.keys_of(folder).await[0].to_string();
        bad_sector(&bench, vec![key.clone()]);
        // Also of a store that is opened anew, whose index is made from the footers.
        let fresh = bench.reopen(3).await;
        for store in [&bench.store, &fresh] {
            let report = verify(store, VerifyAll::default()).await;
            assert_eq!((report.images, report.packs, &report.next), (10, 10, &None));
            let name = key.replace("packs/", "pack ");
            let named =
                |places: &[String]| places.iter().any(|b| b.contains(&key) || b.contains(&name));
            // A locator is made anew, once.
            match folder {
                "locators" => assert_eq!(report.bad_places, 0, "{report:?}"),
                _ => assert!(named(&report.bad) && report.bad_places < 5, "{key}: {report:?}"),
            }
            let known = folder != "manifests";
            assert_eq!(report.orphans, known.then(Vec::new), "{key}");
            repaired |= named(&report.repaired);
        }
        bench.objects.heal();
        assert_eq!(verify(&bench.store, VerifyAll::default()).await.bad_places, 0);
    }
    assert!(repaired, "a locator was");
}

#[tokio::test]
async fn a_bad_sector_in_a_pack_hides_nothing_else_of_it() {
    let bench = Bench::new().await;
    // Three reads of 4 MiB.
    let chunks: Vec<_> = (0..600).map(|c| (0, c, 2 * u64::from(c))).collect();
    let disk = Disk::new(64 * MIB, &chunks);
    disk.push(&bench.receiver(), None).await.unwrap();
    let mut some = 0;
    for bad in 0..10 {
        let asked = AtomicU32::new(0);
        bench.objects.fail(move |verb, key| {
            let of_pack = verb == Verb::Get && key.starts_with("packs/");
            let hit = of_pack && asked.fetch_add(1, Ordering::Relaxed) == bad;
            hit.then_some(Fault::Refuse(std::io::ErrorKind::Other))
        });
        let report = verify(&bench.store, VerifyAll::default()).await;
        assert!(report.bad_places <= 1 && report.packs == 1, "{report:?}");
        some += u32::from(report.bad_places == 1 && (200..600).contains(&report.frames));
    }
    assert!(some > 0, "a read of frames was hit");
    // Of an image each chunk is named.
    let asked = AtomicU32::new(0);
    bench.objects.fail(move |verb, key| {
        let of_pack = verb == Verb::Get && key.starts_with("packs/");
        // Its length, header and footer are still read.
        let hit = of_pack && asked.fetch_add(1, Ordering::Relaxed) >= 3;
        hit.then_some(Fault::Refuse(std::io::ErrorKind::Other))
    });
    let report = bench.store.verify(&disk.image(), true).await.unwrap();
    assert_eq!((report.bad.len(), report.chunks), (600, 600));
}

async fn verify_of_packs(store: &Store) -> StoreReport {
    verify(store, VerifyAll::default()).await
}

#[tokio::test]
async fn only_a_deep_one_sees_what_was_wrong_before_it_was_stored() {
    let bench = Bench::new().await;
    let disk = Disk::new(64 * MIB, &[(0, 0, 1)]);
    disk.push(&bench.receiver(), None).await.unwrap();
    let key = bench.objects.keys_of("packs").await[0].clone();
    let forged = forge(&bench.objects.bytes(&key).await);
    bench.objects.replace(&key, forged.into()).await;
    for locator in bench.objects.keys_of("locators").await {
        bench.objects.remove(&locator).await;
    }
    let store = bench.reopen(4).await;
    assert_eq!(verify(&store, VerifyAll::default()).await.bad_places, 0);
    let report = verify(&store, VerifyAll { deep: true, ..VerifyAll::default() }).await;
    assert!(report.bad[0].contains("offset 16"), "{report:?}");
    let repair = ReadContext { priority: Priority::Guest, repair: true, ..CTX };
    assert_eq!(
        Disk::pull_with(&store, &disk.image(), &repair).await.unwrap_err().kind(),
        Kind::Corrupt
    );
}
