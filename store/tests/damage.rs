//! A flipped bit or a cut at every byte of everything: caught, named, repaired where there is
//! another copy, never given as good.

mod common;

use common::*;
use forebay_store::testing::{Fault, Verb};
use forebay_store::{Receiver, Store};
use image::{Frame, FrameHeader, Kind, Priority, ReadContext};
use object_store::path::Path;

const REPAIR: ReadContext =
    ReadContext { priority: Priority::Guest, deadline: None, trace: 1, repair: true };

/// Small enough to damage every byte of what is stored of it.
fn tiny() -> Disk {
    Disk::new(5 * 16_384, &[(0, 0, 1), (0, 2, 3), (0, 3, 5)])
}

/// How an object may be damaged: a flipped bit at every byte, a cut at every length.
fn damages(good: &[u8]) -> Vec<(usize, Vec<u8>)> {
    let flips = (0..good.len()).map(|byte| {
        let mut bad = good.to_vec();
        bad[byte] ^= 1 << (byte % 8);
        (byte, bad)
    });
    flips.chain((0..good.len()).map(|len| (len, good[..len].to_vec()))).collect()
}

async fn only(bench: &Bench, folder: &str) -> Path {
    let keys = bench.objects.keys_of(folder).await;
    assert_eq!(keys.len(), 1, "{keys:?}");
    keys[0].clone()
}

/// Damages an object in every way, and looks at the store with `check` each time.
async fn for_each_damage(
    bench: &Bench,
    key: &Path,
    mut check: impl AsyncFnMut(usize, bool, Store),
) {
    let good = bench.objects.bytes(key).await;
    for (at, bad) in damages(&good) {
        let cut = bad.len() < good.len();
        bench.objects.replace(key, bad.into()).await;
        check(at, cut, bench.reopen(50).await).await;
        bench.objects.replace(key, good.clone()).await;
    }
}

#[tokio::test]
async fn manifests_and_tables() {
    let bench = Bench::new().await;
    let disk = tiny();
    disk.push(&bench.receiver(), None).await.unwrap();
    for folder in ["manifests", "sections"] {
        let key = only(&bench, folder).await;
        for_each_damage(&bench, &key, async |at, _, store| {
            let e = Disk::pull(&store, &disk.image()).await.unwrap_err();
            assert!(matches!(e.kind(), Kind::Corrupt | Kind::Unsupported), "{key} at {at}: {e}");
            assert!(e.message().contains(key.as_ref()), "{key} at {at}: {e}");
            let report = store.verify(&disk.image(), true).await;
            match report {
                Ok(report) => assert!(report.bad[0].contains(key.as_ref()), "{report:?}"),
                Err(e) => assert_eq!(e.kind(), Kind::Unsupported, "{key} at {at}: {e}"),
            }
            // Pushing the image again mends it.
            if at % 16 == 0 {
                disk.push(&Receiver::new(&store), None).await.unwrap();
                let store = bench.reopen(51).await;
                assert_eq!(Disk::pull(&store, &disk.image()).await.unwrap(), disk, "{key} at {at}");
            }
        })
        .await;
    }
}

#[tokio::test]
async fn locators_are_made_anew() {
    let bench = Bench::new().await;
    let disk = tiny();
    disk.push(&bench.receiver(), None).await.unwrap();
    let key = only(&bench, "locators").await;
    for_each_damage(&bench, &key, async |at, _, store| {
        let pulled = Disk::pull(&store, &disk.image()).await;
        assert_eq!(pulled.unwrap(), disk, "at {at}");
        let locators = bench.objects.keys_of("locators").await;
        assert_eq!(locators.len(), 2, "at {at}: a new one counts");
        assert_eq!(Disk::pull(&bench.reopen(51).await, &disk.image()).await.unwrap(), disk);
        bench.objects.remove(&locators[1]).await;
        // A verification says so, too, and mends it.
        let store = bench.reopen(52).await;
        let report = store.verify(&disk.image(), false).await.unwrap();
        assert_eq!((report.bad.len(), report.repaired.len()), (0, 1), "at {at}: {report:?}");
        assert!(report.repaired[0].contains(key.as_ref()), "{report:?}");
        bench.objects.remove(&locators[1]).await;
    })
    .await;
    bench.objects.remove(&key).await;
    let store = bench.reopen(53).await;
    assert_eq!(Disk::pull(&store, &disk.image()).await.unwrap(), disk, "there is none at all");
    // An earlier one that is whole counts before one that was cut short.
    disk.push(&Receiver::new(&store), None).await.unwrap();
    let locators = bench.objects.keys_of("locators").await;
    let whole = bench.objects.bytes(&locators[1]).await.len();
    bench.objects.truncate(&locators[1], whole - 1).await;
    let store = bench.reopen(54).await;
    assert_eq!(Disk::pull(&store, &disk.image()).await.unwrap(), disk);
    assert_eq!(bench.objects.keys_of("locators").await, locators);
}

#[tokio::test]
async fn a_locator_in_a_bad_place_of_a_disk_is_made_anew_and_stops_no_collection() {
    let bench = Bench::new().await;
    let disk = tiny();
    disk.push(&bench.receiver(), None).await.unwrap();
    let key = only(&bench, "locators").await.to_string();
    let bad = move |verb, k: &str| {
        (verb == Verb::Get && k == key).then_some(Fault::Refuse(std::io::ErrorKind::Other))
    };
    bench.objects.fail(bad);
    bench.wait();
    for _ in 0..2 {
        assert_eq!(Disk::pull(&bench.reopen(2).await, &disk.image()).await.unwrap(), disk);
        bench.gc(&[disk.image()]).await;
        bench.wait();
    }
    assert_eq!(bench.objects.keys_of("locators").await.len(), 1, "the bad one is garbage");
    assert_eq!(Disk::pull(&bench.reopen(3).await, &disk.image()).await.unwrap(), disk);
}

#[tokio::test]
async fn packs_of_which_there_is_one() {
    let bench = Bench::new().await;
    let disk = tiny();
    disk.push(&bench.receiver(), None).await.unwrap();
    let key = only(&bench, "packs").await;
    let name = key.as_ref().replace('/', " ").replace("packs", "pack");
    let stored = bench.store.facts(&disk.image()).await.unwrap().stored as usize;
    for_each_damage(&bench, &key, async |at, cut, store| {
        let in_frames = (16..16 + stored).contains(&at);
        match Disk::pull(&store, &disk.image()).await {
            Ok(pulled) => {
                assert_eq!(pulled, disk, "at {at}");
                assert!(!in_frames, "at {at}: a bad frame was given as good");
            }
            Err(e) => {
                assert!(in_frames || cut, "at {at}: {e}");
                assert!(matches!(e.kind(), Kind::Corrupt | Kind::Unsupported), "at {at}: {e}");
                assert!(e.message().contains(&name) && e.message().contains("offset"), "{e}");
            }
        }
        let report = store.verify(&disk.image(), true).await.unwrap();
        assert!(report.bad.iter().any(|b| b.contains(&name)), "at {at}: {report:?}");
        let report = store.verify(&disk.image(), false).await.unwrap();
        assert_eq!(report.bad.is_empty(), in_frames && !cut, "at {at}: {report:?}");
    })
    .await;
    let report = bench.store.verify(&disk.image(), true).await.unwrap();
    assert_eq!((report.bad.len(), report.repaired.len()), (0, 0), "{report:?}");
    assert_eq!((report.sections, report.chunks, report.bytes as usize), (1, 3, stored));
}

#[tokio::test]
async fn the_other_chunks_are_given_all_the_same() {
    let bench = Bench::new().await;
    let disk = tiny();
    disk.push(&bench.receiver(), None).await.unwrap();
    let key = only(&bench, "packs").await;
    bench.objects.flip(&key, 16 + 70, 0).await;
    let place = image::Place {
        image: disk.image(),
        section: 0,
        chunks: image::ChunkSet::of(5, |c| disk.chunks.contains_key(&(0, c))),
    };
    let mut sink = Vec::new();
    let e = image::ChunkSource::chunks(&bench.store, &CTX, &place, &mut sink).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Corrupt, "{e}");
    assert!(e.message().contains("offset 16: section 0 chunk 0"), "{e}");
    let given: Vec<u32> = sink.iter().map(|(c, _)| *c).collect();
    assert_eq!(given, [2, 3]);
}

async fn remove_others(bench: &Bench, locators: &[Path]) {
    for added in bench.objects.keys_of("locators").await {
        if !locators.contains(&added) {
            bench.objects.remove(&added).await;
        }
    }
}

#[tokio::test]
async fn packs_of_which_there_are_two() {
    let bench = Bench::new().await;
    let disk = tiny();
    // Two processes that do not see each other's packs.
    let other = bench.reopen(2).await;
    disk.push(&bench.receiver(), None).await.unwrap();
    disk.push(&Receiver::new(&other), None).await.unwrap();
    let packs = bench.objects.keys_of("packs").await;
    assert_eq!(packs.len(), 2);
    let locators = bench.objects.keys_of("locators").await;
    for key in &packs {
        for_each_damage(&bench, key, async |at, _, store| {
            let pulled = Disk::pull(&store, &disk.image()).await;
            assert_eq!(pulled.unwrap(), disk, "{key} at {at}");
            let report = store.verify(&disk.image(), true).await.unwrap();
            let frames_lost = report.bad.iter().filter(|b| b.contains("chunk")).count();
            assert_eq!(frames_lost, 0, "{key} at {at}: {report:?}");
            if at % 8 != 0 {
                return remove_others(&bench, &locators).await;
            }
            // Now a locator names the good copies: what was repaired is not found bad again.
            let again = bench.reopen(51).await.verify(&disk.image(), true).await.unwrap();
            assert_eq!(again.repaired.len(), 0, "{key} at {at}: {again:?}");
            remove_others(&bench, &locators).await;
        })
        .await;
    }
    // A pack that is gone altogether.
    bench.clock.advance(60);
    bench.objects.remove(&packs[1]).await;
    for store in [&bench.store, &other, &bench.reopen(60).await] {
        assert_eq!(Disk::pull(store, &disk.image()).await.unwrap(), disk);
    }
    let report = bench.store.verify(&disk.image(), false).await.unwrap();
    assert_eq!((report.bad.len(), report.repaired.len()), (0, 3), "{report:?}");
}

#[tokio::test]
async fn a_damaged_chunk_that_is_pushed_again_is_stored_again() {
    let bench = Bench::new().await;
    let disk = tiny();
    let receiver = bench.receiver().for_owner(image::Digest([1; 32]));
    disk.push(&receiver, None).await.unwrap();
    let key = only(&bench, "packs").await;
    bench.objects.flip(&key, 16 + 70, 0).await;
    Disk::pull(&bench.store, &disk.image()).await.unwrap_err();
    assert_eq!(disk.push(&receiver, None).await.unwrap(), 1, "the one that was found damaged");
    assert_eq!(Disk::pull(&bench.store, &disk.image()).await.unwrap(), disk);
    assert_eq!(Disk::pull(&bench.reopen(5).await, &disk.image()).await.unwrap(), disk);
}

#[tokio::test]
async fn a_reader_that_got_wrong_bytes_has_them_checked_to_the_plain_bytes() {
    // A frame that is as it was written, but was written wrong: only decoding tells.
    let bench = Bench::new().await;
    let disk = tiny();
    let other = bench.reopen(2).await;
    disk.push(&bench.receiver(), None).await.unwrap();
    let first = only(&bench, "packs").await;
    disk.push(&Receiver::new(&other), None).await.unwrap();
    let packs = bench.objects.keys_of("packs").await;
    let second = packs.iter().find(|k| **k != first).unwrap();
    let wrong = |pack: &[u8]| forge(pack);
    bench.objects.replace(&first, wrong(&bench.objects.bytes(&first).await).into()).await;
    bench.objects.replace(second, wrong(&bench.objects.bytes(second).await).into()).await;
    for locator in bench.objects.keys_of("locators").await {
        bench.objects.remove(&locator).await;
    }
    let store = bench.reopen(3).await;
    let place = image::Place {
        image: disk.image(),
        section: 0,
        chunks: image::ChunkSet::of(5, |c| c == 0),
    };
    let mut sink = Vec::new();
    image::ChunkSource::chunks(&store, &CTX, &place, &mut sink).await.unwrap();
    assert_eq!(sink.len(), 1, "every hop's checks pass");
    let e = image::ChunkSource::chunks(&store, &REPAIR, &place, &mut sink).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Corrupt, "{e}");
    let report = bench.reopen(4).await.verify(&disk.image(), true).await.unwrap();
    assert!(report.bad[0].contains("offset 16"), "{report:?}");
    let report = bench.reopen(4).await.verify(&disk.image(), false).await.unwrap();
    assert_eq!(report.bad, [] as [String; 0], "a shallow one cannot tell");
    // With one good copy the reader is given that.
    assert_eq!(disk.push(&Receiver::new(&store), None).await.unwrap(), 3);
    sink.clear();
    image::ChunkSource::chunks(&store, &REPAIR, &place, &mut sink).await.unwrap();
    assert_eq!(Disk::pull_with(&store, &disk.image(), &REPAIR).await.unwrap(), disk);
}

#[tokio::test]
async fn a_frame_that_is_good_in_itself_is_not_taken_for_another() {
    let bench = Bench::new().await;
    let disk = tiny();
    disk.push(&bench.receiver(), None).await.unwrap();
    let key = only(&bench, "packs").await;
    let good = bench.objects.bytes(&key).await;
    let entry = footer_of(&good).entries[0];
    let frame = Frame::parse(good.slice(16..16 + entry.frame_len as usize)).unwrap();
    let header = *frame.header();
    let mut payload = frame.payload().to_vec();
    payload[3] ^= 1;
    let altered =
        Frame::new(header.codec, header.domain, header.digest, header.plain_len, &payload);
    let with = |header: FrameHeader| [&header.to_bytes()[..], frame.payload()].concat();
    let other = image::Digest::of_chunk(b"another chunk");
    for (forged, why) in [
        (altered.bytes().to_vec(), "BLAKE3 of the stored payload"),
        (with(FrameHeader { digest: other, ..header }), "digest in the section table"),
        (with(FrameHeader { plain_len: header.plain_len - 1, ..header }), "length of the chunk"),
        (with(FrameHeader { payload_crc: 7, ..header }), "payload CRC32C"),
    ] {
        let bad = [&good[..16], &forged, &good[16 + forged.len()..]].concat();
        bench.objects.replace(&key, bad.into()).await;
        let e = Disk::pull(&bench.reopen(9).await, &disk.image()).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Corrupt, "{e}");
        assert!(e.message().contains(why) && e.message().contains("offset 16"), "{why}: {e}");
    }
}
