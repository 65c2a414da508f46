//! In through the receiver, out through the source, on memory and on a directory.

mod common;

use common::*;
use forebay_store::{IndexPlace, Receiver, Store, StoreOptions};
use image::{ChunkSet, ChunkSource, Digest, Geometry, Kind, Place};
use tokio::runtime::Handle;

#[tokio::test]
async fn what_goes_in_comes_out() {
    let bench = Bench::new().await;
    let disk = small_disk();
    assert_eq!(disk.push(&bench.receiver(), None).await.unwrap(), 5);
    assert_eq!(Disk::pull(&bench.store, &disk.image()).await.unwrap(), disk);
    // Another process finds the same.
    let other = bench.reopen(2).await;
    assert_eq!(Disk::pull(&other, &disk.image()).await.unwrap(), disk);
    assert_eq!(other.images().await.unwrap(), [disk.image()]);
    assert_eq!(other.id(), bench.store.id());
    let facts = other.facts(&disk.image()).await.unwrap();
    assert_eq!((facts.sections_present, facts.chunks_present), (2, 5));
    assert_eq!(facts.geometry, disk.geometry);
    let packs = bench.objects.keys_of("packs").await;
    assert_eq!(packs.len(), 1, "sections that are sent together share a pack");
    let pack = bench.objects.bytes(&packs[0]).await.len() as u64;
    assert!(facts.stored < pack && facts.stored > pack - 600, "{} of {pack}", facts.stored);
    assert_eq!(bench.objects.keys_of("sessions").await, [], "the session has ended");
}

#[tokio::test]
async fn an_image_of_zeros_and_one_without_a_disk() {
    let bench = Bench::new().await;
    for size in [0, 512, 3 * 64 * MIB] {
        let disk = Disk::new(size, &[]);
        assert_eq!(disk.push(&bench.receiver(), None).await.unwrap(), 0);
        assert_eq!(Disk::pull(&bench.store, &disk.image()).await.unwrap(), disk);
    }
    assert_eq!(bench.objects.keys_of("packs").await, []);
}

#[tokio::test]
async fn a_directory_is_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let options = || StoreOptions::system(IndexPlace::File(dir.path().join("index/chunks.redb")));
    let path = dir.path().join("store");
    let disk = small_disk();
    {
        let store = Store::open_dir(&path, Handle::current(), options()).await.unwrap();
        disk.push(&Receiver::new(&store), None).await.unwrap();
        assert_eq!(Disk::pull(&store, &disk.image()).await.unwrap(), disk);
    }
    // The packer holds the index for a moment longer.
    let store = loop {
        match Store::open_dir(&path, Handle::current(), options()).await {
            Err(e) if e.kind() == Kind::Conflict => tokio::task::yield_now().await,
            other => break other.unwrap(),
        }
    };
    assert_eq!(Disk::pull(&store, &disk.image()).await.unwrap(), disk);
    assert_eq!(store.verify(&disk.image(), true).await.unwrap().bad, [] as [String; 0]);
    let again = disk.push(&Receiver::new(&store), None).await.unwrap();
    assert_eq!(again, 5, "another writer must send everything");
    let packs = std::fs::read_dir(path.join("packs")).unwrap().count();
    assert_eq!(packs, 1, "but nothing is stored twice");
}

#[tokio::test]
async fn foreign_and_newer_stores_are_refused_and_left_alone() {
    let bench = Bench::new().await;
    let marker = bench.objects.keys().await[0].clone();
    let good = bench.objects.bytes(&marker).await;
    let newer = String::from_utf8(good.to_vec()).unwrap().replace("\"format\":1", "\"format\":2");
    for (bytes, kind) in [
        (newer.into_bytes(), Kind::Unsupported),
        (b"something else".to_vec(), Kind::Invalid),
        (Vec::new(), Kind::Invalid),
    ] {
        bench.objects.replace(&marker, bytes.clone().into()).await;
        let e = open(&bench.objects, &bench.clock, 2).await.unwrap_err();
        assert_eq!(e.kind(), kind, "{e}");
        assert!(e.message().contains("left alone"), "{e}");
        assert_eq!(bench.objects.keys().await, std::slice::from_ref(&marker));
        assert_eq!(bench.objects.bytes(&marker).await, bytes);
    }
    bench.objects.remove(&marker).await;
    let stranger = object_store::path::Path::from("photos/cat.jpg");
    bench.objects.replace(&stranger, "meow".into()).await;
    let e = open(&bench.objects, &bench.clock, 2).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid, "{e}");
    assert!(e.message().contains("photos/cat.jpg"), "{e}");
    assert_eq!(bench.objects.keys().await, [stranger]);
}

#[tokio::test]
async fn places_outside_the_image_are_refused() {
    let bench = Bench::new().await;
    let disk = small_disk();
    disk.push(&bench.receiver(), None).await.unwrap();
    let mut sink = Vec::new();
    let mut read = async |section, chunks| {
        let place = Place { image: disk.image(), section, chunks };
        bench.store.chunks(&CTX, &place, &mut sink).await.unwrap_err().kind()
    };
    assert_eq!(read(3, ChunkSet::of(1, |_| true)).await, Kind::Invalid);
    assert_eq!(read(0, ChunkSet::of(2, |_| true)).await, Kind::Invalid);
    assert_eq!(read(0, ChunkSet::of(4096, |c| c == 1)).await, Kind::Invalid, "zeros");
    let nobody = Digest::of_chunk(b"nobody");
    let e = bench.store.manifest(&CTX, &nobody).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Gone, "{e}");
}

#[tokio::test]
async fn any_runtime_may_use_it_and_a_dropped_read_ends() {
    let bench = Bench::new().await;
    let disk = small_disk();
    disk.push(&bench.receiver(), None).await.unwrap();
    let image = disk.image();
    let (store, expected) = (bench.store.clone(), disk.clone());
    let elsewhere = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async move { Disk::pull(&store, &image).await.unwrap() == expected })
    });
    let joined = tokio::task::spawn_blocking(move || elsewhere.join().unwrap());
    assert!(joined.await.unwrap());

    let gate = bench.objects.gate(forebay_store::testing::Verb::Get, "packs/");
    let reading = Disk::pull(&bench.store, &image);
    tokio::select! {
        _ = reading => panic!("the gate is closed"),
        () = gate.reached() => {}
    }
    gate.open();
    assert_eq!(Disk::pull(&bench.store, &image).await.unwrap(), disk);
}

#[tokio::test]
async fn chunks_of_every_size_go_through() {
    let bench = Bench::new().await;
    for log2 in [14u8, 18, 22] {
        let geometry = Geometry::new((5 << log2) + 512, 512, log2).unwrap();
        let mut disk = Disk { geometry, chunks: Default::default() };
        for c in [0, 1, 3, 5] {
            let len = geometry.chunk_len_at(0, c);
            disk.chunks.insert((0, c), plain(u64::from(log2) * 10 + u64::from(c), len, c != 1));
        }
        disk.push(&bench.receiver(), None).await.unwrap();
        assert_eq!(Disk::pull(&bench.store, &disk.image()).await.unwrap(), disk);
    }
}
