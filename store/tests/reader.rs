//! A store that is only read, as a cache does: it opens by its marker alone, changes nothing, and
//! follows what others rewrite.

mod common;

use std::time::Duration;

use common::*;
use forebay_store::testing::{TestStore, Verb};
use forebay_store::{IndexPlace, Receiver, RefMove, Store, StoreOptions};
use image::{Digest, ImageSink, Kind};
use object_store::path::Path;
use tokio::runtime::Handle;

fn reading(bench: &Bench) -> StoreOptions {
    let mut options = options(&bench.clock, 500);
    options.index = IndexPlace::Nowhere;
    options
}

async fn reader(bench: &Bench) -> Store {
    let options = reading(bench);
    Store::open(bench.objects.objects(), Handle::current(), options).await.unwrap()
}

/// Requests that something takes: reads, listings.
async fn requests<T>(objects: &TestStore, of: impl Future<Output = T>) -> (T, u64, u64) {
    let count = || (objects.requests(Verb::Get), objects.requests(Verb::List));
    let before = count();
    let out = of.await;
    let after = count();
    (out, after.0 - before.0, after.1 - before.1)
}

#[tokio::test]
async fn opening_reads_the_marker_and_nothing_else() {
    let bench = Bench::new().await;
    for seed in 0..5 {
        Disk::new(64 * MIB, &[(0, 0, seed)]).push(&bench.receiver(), None).await.unwrap();
    }
    let changes = bench.objects.log().len();
    let (store, gets, lists) = requests(&bench.objects, reader(&bench)).await;
    assert_eq!((gets, lists), (1, 0));
    assert_eq!(store.id(), bench.store.id());
    assert_eq!(bench.objects.log().len(), changes);
}

#[tokio::test]
async fn an_image_is_read_by_its_own_objects_alone_in_few_requests() {
    let bench = Bench::new().await;
    // 1,000 chunks of noise that follow each other: 16 MiB.
    let chunks: Vec<_> = (0..1000).map(|c| (0, c, 2 * u64::from(c))).collect();
    let disk = Disk::new(64 * MIB, &chunks);
    disk.push(&bench.receiver(), None).await.unwrap();
    for seed in 0..5 {
        Disk::new(64 * MIB, &[(0, 0, seed + 5000)]).push(&bench.receiver(), None).await.unwrap();
    }
    let store = reader(&bench).await;
    let (pulled, gets, lists) = requests(&bench.objects, Disk::pull(&store, &disk.image())).await;
    assert_eq!(pulled.unwrap(), disk);
    // Manifest, table, head and block of the locator; then 4 MiB at a time.
    assert_eq!((gets, lists), (4 + 4, 1));
    let (_, gets, lists) = requests(&bench.objects, Disk::pull(&store, &disk.image())).await;
    assert_eq!((gets, lists), (4, 0), "what says where it lies is kept");
}

#[tokio::test]
async fn what_is_not_the_store_is_refused_and_left_as_it_is() {
    let bench = Bench::new().await;
    // Nothing there.
    let empty = TestStore::new(bench.clock.clock());
    let open = |objects: &TestStore, options| {
        let objects = objects.objects();
        async move { Store::open(objects, Handle::current(), options).await }
    };
    let e = open(&empty, reading(&bench)).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Gone, "{e}");
    assert!(e.message().contains("store.at"), "{e}");
    // Something else.
    empty.replace(&Path::from("photos/cat"), "meow".into()).await;
    let e = open(&empty, reading(&bench)).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid, "{e}");
    assert!(e.message().contains("photos/cat") && e.message().contains("not a Forebay"), "{e}");
    assert_eq!(empty.log().len(), 0);
    // Another grid's.
    let mut options = reading(&bench);
    options.expect = Some("00".repeat(16));
    let e = open(&bench.objects, options.clone()).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid, "{e}");
    assert!(e.message().contains("another grid") && e.message().contains(bench.store.id()), "{e}");
    assert!(e.message().contains(&"00".repeat(16)) && e.message().contains("store.at"), "{e}");
    options.expect = Some(bench.store.id().to_owned());
    open(&bench.objects, options).await.unwrap();
    // A directory that is not there is not made.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let e = Store::open_dir(&path, Handle::current(), StoreOptions::reading()).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Gone, "{e}");
    assert!(e.message().contains("mount it") && e.message().contains("/store"), "{e}");
    assert!(!path.exists());
    std::fs::create_dir(&path).unwrap();
    let e = Store::open_dir(&path, Handle::current(), StoreOptions::reading()).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Gone, "{e}");
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
}

#[tokio::test]
async fn nothing_can_be_changed() {
    let bench = Bench::new().await;
    let disk = small_disk();
    disk.push(&bench.receiver(), None).await.unwrap();
    bench.wait();
    let store = reader(&bench).await;
    let before = (bench.objects.log().len(), bench.objects.keys().await);
    let image = disk.image();
    let name = "debian:12".parse().unwrap();
    let ref_move = RefMove { seq: 0, name, image: Some(image), at: START };
    let now = bench.clock.now();
    let refused = [
        Receiver::new(&store).open(&CTX, &disk.plan(None)).await.err(),
        store.keep(&image).await.err(),
        store.put_record(&image, START, "token").await.err(),
        store.append_ref_move(&ref_move).await.err(),
        store.gc(&[], &sweep(Duration::from_secs(GRACE), false, now)).await.err(),
    ];
    for e in refused {
        let e = e.unwrap();
        assert_eq!(e.kind(), Kind::Denied, "{e}");
        assert!(e.message().contains("reading only"), "{e}");
    }
    assert_eq!(store.verify(&image, true).await.unwrap().bad, [] as [String; 0]);
    assert_eq!((bench.objects.log().len(), bench.objects.keys().await), before);
}

#[tokio::test]
async fn a_reader_with_an_old_locator_finds_what_was_moved() {
    let bench = Bench::new().await;
    let disk = small_disk();
    // Two processes that do not see each other's packs: the image is stored twice.
    let other = bench.reopen(2).await;
    disk.push(&bench.receiver(), None).await.unwrap();
    let old_pack = bench.objects.keys_of("packs").await[0].clone();
    let old_locator = bench.objects.keys_of("locators").await[0].clone();
    let store = reader(&bench).await;
    assert_eq!(Disk::pull(&store, &disk.image()).await.unwrap(), disk);
    disk.push(&Receiver::new(&other), None).await.unwrap();
    // The first copy goes, and with it the locator that this reader knows.
    bench.objects.remove(&old_pack).await;
    bench.objects.remove(&old_locator).await;
    let (pulled, gets, lists) = requests(&bench.objects, Disk::pull(&store, &disk.image())).await;
    assert_eq!(pulled.unwrap(), disk);
    assert!(gets <= 10 && lists <= 2, "{gets} reads and {lists} listings");
    assert_eq!(Disk::pull(&store, &disk.image()).await.unwrap(), disk);
}

#[tokio::test]
async fn a_damaged_locator_and_a_lost_pack_are_named_with_what_to_do() {
    let bench = Bench::new().await;
    let disk = small_disk();
    disk.push(&bench.receiver(), None).await.unwrap();
    let locator = bench.objects.keys_of("locators").await[0].clone();
    bench.objects.flip(&locator, 20, 0).await;
    let store = reader(&bench).await;
    let e = Disk::pull(&store, &disk.image()).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Corrupt, "{e}");
    assert!(e.message().contains("forebay verify"), "{e}");
    // Where the store is written it is made anew, and the reader finds it.
    bench.reopen(3).await.verify(&disk.image(), false).await.unwrap();
    assert_eq!(Disk::pull(&store, &disk.image()).await.unwrap(), disk);
    let pack = bench.objects.keys_of("packs").await[0].clone();
    bench.objects.remove(&pack).await;
    let e = Disk::pull(&store, &disk.image()).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Gone, "{e}");
    assert!(e.message().contains("section 0 chunk 0"), "{e}");
    assert_eq!(store.facts(&Digest([1; 32])).await.unwrap_err().kind(), Kind::Gone);
}

#[tokio::test]
async fn a_store_that_is_away_is_not_asked_for_every_chunk() {
    let bench = Bench::new().await;
    let disk = small_disk();
    disk.push(&bench.receiver(), None).await.unwrap();
    for store in [reader(&bench).await, bench.reopen(3).await] {
        Disk::pull(&store, &disk.image()).await.unwrap();
        bench.objects.fail(|verb, key| {
            let refused = forebay_store::testing::Fault::Refuse(std::io::ErrorKind::TimedOut);
            (verb == Verb::Get && key.starts_with("packs/")).then_some(refused)
        });
        let (pulled, gets, _) = requests(&bench.objects, Disk::pull(&store, &disk.image())).await;
        bench.objects.heal();
        assert_eq!(pulled.unwrap_err().kind(), Kind::Retry);
        // One for the read, one to see whether the pack was cut short.
        assert!(gets <= 2, "{gets} requests of a store that does not answer");
    }
}
