//! What a writer must send, what is stored of it, and what it is refused.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use forebay_store::testing::{Fault, Verb};
use forebay_store::{Receiver, Store};
use image::seam::ImageSession;
use image::{
    Codec, Digest, Domain, Encoder, Frame, Geometry, ImageSink, Kind, Manifest, SectionSink,
    SectionTable,
};
use tokio::runtime::Handle;

async fn stored_packs(bench: &Bench) -> usize {
    bench.objects.keys_of("packs").await.len()
}

#[tokio::test]
async fn a_chunk_of_an_image_that_one_may_not_read_must_be_sent() {
    let bench = Bench::new().await;
    let disk = small_disk();
    let (alice, bob) = (Digest([1; 32]), Digest([2; 32]));
    assert_eq!(disk.push(&bench.receiver().for_owner(alice), None).await.unwrap(), 5);
    let before = bench.objects.keys_of("packs").await;
    // Bob learns nothing: he is asked for every byte, and none of them is stored again.
    assert_eq!(disk.push(&bench.receiver().for_owner(bob), None).await.unwrap(), 5);
    assert_eq!(disk.push(&bench.receiver(), None).await.unwrap(), 5);
    assert_eq!(bench.objects.keys_of("packs").await, before);
    // Alice has sent them before, and by now Bob has, too.
    assert_eq!(disk.push(&bench.receiver().for_owner(alice), None).await.unwrap(), 0);
    assert_eq!(disk.push(&bench.receiver().for_owner(bob), None).await.unwrap(), 0);
}

#[tokio::test]
async fn what_was_sent_is_forgotten_in_time() {
    let bench = Bench::new().await;
    let disk = small_disk();
    let receiver = bench.receiver().for_owner(Digest([1; 32]));
    disk.push(&receiver, None).await.unwrap();
    bench.clock.advance(6 * 24 * 3600);
    bench.gc(&[disk.image()]).await;
    assert_eq!(disk.push(&receiver, None).await.unwrap(), 0);
    bench.clock.advance(8 * 24 * 3600);
    bench.gc(&[disk.image()]).await;
    assert_eq!(disk.push(&receiver, None).await.unwrap(), 5);
}

#[tokio::test]
async fn chunks_of_the_parent_need_not_be_sent() {
    let bench = Bench::new().await;
    let parent = small_disk();
    parent.push(&bench.receiver(), None).await.unwrap();
    // One chunk is where it was, one moved to another section, one is new.
    let child = Disk::new(128 * MIB + 20_480, &[(0, 0, 1), (1, 5, 2), (2, 1, 4), (0, 9, 77)]);
    assert_eq!(child.push(&bench.receiver(), Some(parent.image())).await.unwrap(), 1);
    assert_eq!(Disk::pull(&bench.store, &child.image()).await.unwrap(), child);
    assert_eq!(stored_packs(&bench).await, 2);
    // A parent that is not there, or whose tables are damaged, costs no more than bytes.
    let nobody = Digest::of_chunk(b"nobody");
    let other = Disk::new(128 * MIB, &[(0, 0, 1), (1, 1, 99)]);
    assert_eq!(other.push(&bench.receiver(), Some(nobody)).await.unwrap(), 2);
}

#[tokio::test]
async fn a_chunk_that_is_there_many_times_is_sent_once() {
    let bench = Bench::new().await;
    let disk = Disk::new(64 * MIB, &[(0, 0, 1), (0, 1, 1), (0, 9, 1), (0, 10, 2)]);
    assert_eq!(disk.push(&bench.receiver(), None).await.unwrap(), 2);
    assert_eq!(Disk::pull(&bench.store, &disk.image()).await.unwrap(), disk);
    let facts = bench.store.facts(&disk.image()).await.unwrap();
    assert_eq!(facts.chunks_present, 4);
    assert!(facts.stored < 17_000, "each frame is counted once: {}", facts.stored);
}

#[tokio::test]
async fn what_was_read_back_and_what_was_taken_over_of_an_image_is_told() {
    let bench = Bench::new().await;
    let disk = small_disk();
    let sections = disk.manifest().present().count() as u64;
    assert_eq!(bench.store.verified(&disk.image()), None);
    disk.push(&bench.receiver(), None).await.unwrap();
    let first = bench.store.verified(&disk.image()).unwrap();
    assert_eq!((first.by.as_str(), first.at), ("receiver", bench.clock.now()));
    assert_eq!((first.sections, first.chunks, first.taken_over), (sections, 5, 0));
    assert_eq!(first.bytes, bench.store.facts(&disk.image()).await.unwrap().stored);
    // One chunk is new.
    let child = Disk::new(128 * MIB + 20_480, &[(0, 0, 1), (1, 5, 2), (2, 1, 4), (0, 9, 77)]);
    child.push(&bench.receiver(), Some(disk.image())).await.unwrap();
    let second = bench.store.verified(&child.image()).unwrap();
    assert_eq!((second.sections, second.chunks, second.taken_over), (3, 1, 3));
    // What came, but was there, was compared, and is not written again.
    disk.push(&bench.receiver(), None).await.unwrap();
    let again = bench.store.verified(&disk.image()).unwrap();
    assert_eq!((again.chunks, again.bytes, again.taken_over), (0, 0, 5));
}

#[tokio::test]
async fn an_interrupted_push_goes_on_where_it_was() {
    let bench = Bench::new().await;
    let disk = small_disk();
    let receiver = bench.receiver().for_owner(Digest([1; 32]));
    let session = receiver.open(&CTX, &disk.plan(None)).await.unwrap();
    assert_eq!(disk.send(&session, 0).await.unwrap(), 3);
    drop(session);
    assert_eq!(disk.push(&receiver, None).await.unwrap(), 2, "section 0 is there");
    assert_eq!(Disk::pull(&bench.store, &disk.image()).await.unwrap(), disk);
    // The dropped session's objects go away in the background.
    while !bench.objects.keys_of("sessions").await.is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn two_imports_of_one_content_at_once() {
    let bench = Bench::new().await;
    let disk = small_disk();
    let (receiver, other) = (bench.receiver(), Receiver::new(&bench.reopen(2).await));
    let same = tokio::join!(disk.push(&receiver, None), disk.push(&receiver, None));
    assert_eq!((same.0.unwrap(), same.1.unwrap()), (5, 5));
    assert_eq!(stored_packs(&bench).await, 1, "one packer: each chunk is written once");
    // Another process does not see what is on its way here; that costs space, no more.
    disk.push(&other, None).await.unwrap();
    for store in [&bench.store, &bench.reopen(3).await] {
        assert_eq!(Disk::pull(store, &disk.image()).await.unwrap(), disk);
    }
    assert_eq!(bench.store.images().await.unwrap(), [disk.image()]);
}

#[tokio::test]
async fn committing_twice_is_fine() {
    let bench = Bench::new().await;
    let disk = small_disk();
    let session = bench.receiver().open(&CTX, &disk.plan(None)).await.unwrap();
    disk.send_all(&session).await.unwrap();
    disk.send(&session, 0).await.unwrap();
    let image = session.commit(&disk.manifest()).await.unwrap();
    assert_eq!(session.commit(&disk.manifest()).await.unwrap(), image);
    let other = Disk::new(disk.geometry.size(), &[(0, 0, 1)]);
    let e = session.commit(&other.manifest()).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid, "{e}");
}

#[tokio::test]
async fn what_does_not_fit_the_plan_is_refused() {
    let bench = Bench::new().await;
    let disk = small_disk();
    let session = bench.receiver().open(&CTX, &disk.plan(None)).await.unwrap();
    let refused = async |section, table: SectionTable| {
        let e = session.offer(section, &table).await.err().unwrap();
        assert_eq!(e.kind(), Kind::Invalid, "{e}");
        e.message().to_owned()
    };
    assert!(refused(3, disk.table(0)).await.contains("0 in the section"));
    assert!(refused(2, disk.table(0)).await.contains("4096 chunks"));
    assert!(refused(1, disk.table(1)).await.contains("zeros"));
    assert!(
        refused(0, SectionTable::new(Domain(1), disk.table(0).digests().to_vec()))
            .await
            .contains("domain")
    );
    let mut plan = disk.plan(None);
    plan.domain = Domain(1);
    let e = bench.receiver().open(&CTX, &plan).await.err().unwrap();
    assert_eq!(e.kind(), Kind::Unsupported, "{e}");

    let e = session.commit(&disk.manifest()).await.unwrap_err();
    assert!(e.message().contains("section 0 was not sealed"), "{e}");
    let bigger = Disk::new(192 * MIB, &[(0, 0, 1)]);
    let e = session.commit(&bigger.manifest()).await.unwrap_err();
    assert!(e.message().contains("geometry"), "{e}");
    disk.send_all(&session).await.unwrap();
    let mut digests = disk.manifest().sections().to_vec();
    digests[0] = digests[2];
    let wrong = Manifest::new(Domain::PUBLIC, disk.geometry, digests);
    let e = session.commit(&wrong).await.unwrap_err();
    assert!(e.message().contains("section 0 was sealed with another digest"), "{e}");
    assert_eq!(bench.store.images().await.unwrap(), []);
}

#[tokio::test]
async fn a_disk_may_turn_out_smaller_than_was_planned_and_ends_in_one_place() {
    let size = 64 * MIB + 3 * 16384 + 512;
    let disk = Disk::new(size, &[(0, 7, 1), (0, 4095, 2), (1, 0, 3), (1, 3, 4)]);
    let bench = Bench::new().await;
    let mut plan = disk.plan(None);
    plan.geometry = Geometry::new(1 << 40, 512, 14).unwrap();
    let session = bench.receiver().open(&CTX, &plan).await.unwrap();
    disk.send_all(&session).await.unwrap();
    // The tables are right, but the disk would end elsewhere.
    let sections = disk.manifest().sections().to_vec();
    for (wrong, named) in
        [(size - 16384, 1), (size + 16384, 1), (size + 512, 1), (size + 128 * MIB, 1)]
    {
        let geometry = Geometry::new(wrong, 512, 14).unwrap();
        let mut sections = sections.clone();
        sections.resize(geometry.sections() as usize, Digest::ZERO);
        let manifest = Manifest::new(Domain::PUBLIC, geometry, sections);
        let e = session.commit(&manifest).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid, "{wrong}: {e}");
        assert!(e.message().contains(&format!("section {named} does not end")), "{wrong}: {e}");
    }
    assert_eq!(bench.store.images().await.unwrap(), []);
    let image = session.commit(&disk.manifest()).await.unwrap();
    assert_eq!(image, disk.image(), "the same as if its size had been known");
    assert_eq!(Disk::pull(&bench.store, &image).await.unwrap(), disk);
}

#[tokio::test]
async fn a_short_chunk_in_the_middle_of_a_disk_is_refused() {
    let bench = Bench::new().await;
    let disk = Disk::new(128 * MIB, &[(0, 4095, 2), (1, 0, 3)]);
    let session = bench.receiver().open(&CTX, &disk.plan(None)).await.unwrap();
    // The last chunk of section 0, as if the disk ended there.
    let short = Disk::new(64 * MIB - 16384 + 512, &[(0, 4095, 2)]);
    short.send(&session, 0).await.unwrap();
    disk.send(&session, 1).await.unwrap();
    let sections = vec![short.table(0).digest(), disk.table(1).digest()];
    let manifest = Manifest::new(Domain::PUBLIC, disk.geometry, sections);
    let e = session.commit(&manifest).await.unwrap_err();
    assert!(e.message().contains("section 0 does not end"), "{e}");
    assert_eq!(bench.store.images().await.unwrap(), []);
}

#[tokio::test]
async fn bytes_that_are_not_what_they_say_are_refused() {
    let bench = Bench::new().await;
    let disk = small_disk();
    let session = bench.receiver().open(&CTX, &disk.plan(None)).await.unwrap();
    let (wanted, mut sink) = session.offer(0, &disk.table(0)).await.unwrap();
    assert_eq!(wanted.iter().collect::<Vec<_>>(), [0, 7, 4095]);
    let good = &disk.chunks[&(0, 0)];
    let digest = Digest::of_chunk(good);
    let mut encoder = Encoder::new().unwrap();
    let mut bad = good.clone();
    bad[100] ^= 1;
    // Right digest in the header, right CRC32C, other bytes.
    let lying = Frame::new(Codec::Raw, Domain::PUBLIC, digest, bad.len() as u32, &bad);
    let short = encoder.encode(Domain::PUBLIC, digest, &good[..512]);
    let domain = Frame::new(Codec::Raw, Domain(7), digest, good.len() as u32, good);
    let other = encoder.encode(Domain::PUBLIC, Digest::of_chunk(&bad), &bad);
    for (frame, why) in
        [(lying, "BLAKE3"), (short, "length"), (domain, "domain"), (other, "digest")]
    {
        let e = sink.chunk(0, frame).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Corrupt, "{e}");
        assert!(e.message().contains("section 0 chunk 0") && e.message().contains(why), "{e}");
    }
    let frame = encoder.encode(Domain::PUBLIC, digest, good);
    for chunk in [1, 5000] {
        let e = sink.chunk(chunk, frame.clone()).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid, "{e}");
    }
    sink.chunk(0, frame.clone()).await.unwrap();
    let e = sink.chunk(0, frame).await.unwrap_err();
    assert!(e.message().contains("come already"), "{e}");
    let e = sink.seal().await.unwrap_err();
    assert!(e.message().contains("chunk 7 has not come"), "{e}");
}

#[tokio::test]
async fn a_pack_that_reads_back_wrong_is_not_acknowledged() {
    let bench = Bench::new().await;
    let disk = small_disk();
    let mut options = options(&bench.clock, 9);
    // The medium changes a bit just before the pack is read back.
    let (objects, handle) = (bench.objects.clone(), Handle::current());
    options.drop_cache = Some(Arc::new(move |id| {
        let key = object_store::path::Path::from(format!("packs/{id}"));
        handle.block_on(objects.flip(&key, 300, 3));
    }));
    let store = Store::open(bench.objects.objects(), Handle::current(), options).await.unwrap();
    let e = disk.push(&Receiver::new(&store), None).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Corrupt, "{e}");
    assert!(e.message().contains("pack ") && e.message().contains("offset"), "{e}");
    assert_eq!(stored_packs(&bench).await, 0, "nothing leans on it");
    disk.push(&bench.receiver(), None).await.unwrap();
}

#[tokio::test]
async fn an_answer_that_is_lost_does_no_harm() {
    // Whichever single answer is lost, a second try succeeds, and nothing is half there.
    let clean = Bench::new().await;
    let disk = small_disk();
    disk.push(&clean.receiver(), None).await.unwrap();
    for nth in 0..clean.objects.log().len() {
        for fault in [Fault::LoseAnswer, Fault::Refuse] {
            let bench = Bench::new().await;
            let seen = std::sync::atomic::AtomicUsize::new(1);
            bench.objects.fail(move |verb, _| {
                let counts = matches!(verb, Verb::Put | Verb::Delete);
                let hit = counts && seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == nth;
                hit.then_some(fault(std::io::ErrorKind::TimedOut))
            });
            let receiver = bench.receiver().for_owner(Digest([1; 32]));
            let session = receiver.open(&CTX, &disk.plan(None)).await;
            let first = match session {
                Ok(session) => match disk.send_all(&session).await {
                    Ok(_) => session.commit(&disk.manifest()).await.map(drop),
                    Err(e) => Err(e),
                },
                Err(e) => Err(e),
            };
            if let Err(e) = first {
                assert_eq!(e.kind(), Kind::Retry, "{e}");
            }
            bench.objects.heal();
            disk.push(&receiver, None).await.unwrap();
            assert_eq!(Disk::pull(&bench.reopen(5).await, &disk.image()).await.unwrap(), disk);
        }
    }
}

#[tokio::test]
async fn a_full_disk_says_so_and_the_push_goes_on_when_there_is_room() {
    let disk = small_disk();
    let clean = Bench::new().await;
    disk.push(&clean.receiver(), None).await.unwrap();
    let mut total = 0;
    for key in clean.objects.keys().await {
        total += clean.objects.bytes(&key).await.len() as u64;
    }
    for limit in (400..total).step_by(1500) {
        let bench = Bench::new().await;
        bench.objects.limit(limit);
        let receiver = bench.receiver().for_owner(Digest([1; 32]));
        let session = match receiver.open(&CTX, &disk.plan(None)).await {
            Ok(session) => session,
            Err(e) => {
                assert_eq!(e.kind(), Kind::Full, "{e}");
                continue;
            }
        };
        // One section after the other, so that the first may be stored when the second is not.
        let mut sealed = 0;
        let mut result = Ok(());
        for section in [2, 0] {
            result = disk.send(&session, section).await.map(|sent| sealed += sent);
            if result.is_err() {
                break;
            }
        }
        if result.is_ok() {
            result = session.commit(&disk.manifest()).await.map(drop);
        }
        assert_eq!(result.unwrap_err().kind(), Kind::Full);
        drop(session);
        assert_eq!(bench.store.images().await.unwrap(), []);
        bench.objects.heal();
        let sent = disk.push(&receiver, None).await.unwrap();
        assert!(sent <= 5 - sealed, "{sent} sent again although {sealed} were sealed");
        assert_eq!(Disk::pull(&bench.store, &disk.image()).await.unwrap(), disk);
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_is_held_in_memory_than_there_is_room_for() {
    let bench = Bench::new().await;
    let mut options = options(&bench.clock, 9);
    options.limits.pack = 9 << 20;
    options.limits.writing = 18 << 20;
    let store = Store::open(bench.objects.objects(), Handle::current(), options).await.unwrap();
    let seeds: Vec<(u32, u32, u64)> = (0..1536).map(|i| (0, i, u64::from(i) * 2)).collect();
    let disk = Disk::new(64 * MIB, &seeds);
    let session = Receiver::new(&store).open(&CTX, &disk.plan(None)).await.unwrap();
    let gate = bench.objects.gate(Verb::Put, "packs/");
    let (wanted, mut sink) = session.offer(0, &disk.table(0)).await.unwrap();
    let mut encoder = Encoder::new().unwrap();
    let mut taken = 0;
    let mut chunks = wanted.iter();
    let mut send = async |chunk| {
        let plain = &disk.chunks[&(0, chunk)];
        let frame = encoder.encode(Domain::PUBLIC, Digest::of_chunk(plain), plain);
        let bytes = frame.bytes().len();
        // Time stands still while anything can move: an hour passes only when all are stuck.
        let hour = Duration::from_secs(3600);
        tokio::time::timeout(hour, sink.chunk(chunk, frame)).await.ok().map(|sent| {
            sent.unwrap();
            bytes
        })
    };
    let stuck_at = loop {
        let chunk = chunks.next().expect("it gets stuck before the end");
        match send(chunk).await {
            Some(bytes) => taken += bytes,
            None => break chunk,
        }
    };
    assert!((17 << 20..=18 << 20).contains(&taken), "{taken}");
    gate.open();
    assert!(send(stuck_at).await.is_some(), "there is room again");
}

#[tokio::test]
async fn senders_wait_for_room_and_none_is_stuck() {
    let bench = Bench::new().await;
    let mut options = options(&bench.clock, 9);
    // Room for two small packs: 24 MiB of noise must pass through it.
    options.limits.pack = 9 << 20;
    options.limits.writing = 18 << 20;
    let store = Store::open(bench.objects.objects(), Handle::current(), options).await.unwrap();
    let seeds: Vec<(u32, u32, u64)> = (0..1536).map(|i| (i % 3, i / 3, u64::from(i) * 2)).collect();
    let disk = Disk::new(192 * MIB, &seeds);
    disk.push(&Receiver::new(&store), None).await.unwrap();
    let packs = bench.objects.keys_of("packs").await;
    assert!(packs.len() >= 3, "{} packs", packs.len());
    for key in packs {
        assert!(bench.objects.bytes(&key).await.len() <= 9 << 20);
    }
    assert_eq!(Disk::pull(&store, &disk.image()).await.unwrap(), disk);
}

#[tokio::test(start_paused = true)]
async fn a_slow_sender_does_not_hold_up_others() {
    let bench = Bench::new().await;
    let seeds: Vec<(u32, u32, u64)> = (0..40).map(|i| (0, i, 101 + 2 * u64::from(i))).collect();
    let (quick, slow) = (small_disk(), Disk::new(64 * MIB, &seeds));
    let open = async |disk: &Disk| bench.receiver().open(&CTX, &disk.plan(None)).await.unwrap();
    let (quick_session, slow_session) = (open(&quick).await, open(&slow).await);
    let (wanted, mut sink) = slow_session.offer(0, &slow.table(0)).await.unwrap();
    let mut sealing = std::pin::pin!(quick.send(&quick_session, 0));
    let mut encoder = Encoder::new().unwrap();
    // A chunk every 140 ms keeps the pack from ever being idle; there are far too few to fill it.
    let mut rounds = 0;
    for chunk in wanted.iter() {
        tokio::select! {
            sealed = &mut sealing => {
                sealed.unwrap();
                break;
            }
            () = tokio::time::sleep(Duration::from_millis(140)) => {}
        }
        let plain = &slow.chunks[&(0, chunk)];
        let frame = encoder.encode(Domain::PUBLIC, Digest::of_chunk(plain), plain);
        sink.chunk(chunk, frame).await.unwrap();
        rounds += 1;
    }
    assert!((2..12).contains(&rounds), "it was sealed after {rounds} chunks of the other");
}

#[tokio::test(start_paused = true)]
async fn a_session_is_renewed_while_it_lives_and_lapses_when_it_cannot_be() {
    let bench = Bench::new().await;
    let disk = small_disk();
    let session = bench.receiver().open(&CTX, &disk.plan(None)).await.unwrap();
    disk.send_all(&session).await.unwrap();
    for _ in 0..10 {
        bench.clock.advance(LIFE / 3);
        tokio::time::sleep(Duration::from_secs(LIFE / 3 + 1)).await;
    }
    assert!(bench.objects.keys_of("sessions").await.len() > 5);
    session.commit(&disk.manifest()).await.unwrap();
    assert_eq!(bench.objects.keys_of("sessions").await, []);

    let other = Disk::new(64 * MIB, &[(0, 0, 9)]);
    let session = bench.receiver().open(&CTX, &other.plan(None)).await.unwrap();
    other.send_all(&session).await.unwrap();
    bench.clock.advance(LIFE + 1);
    let e = session.commit(&other.manifest()).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict, "{e}");
    assert!(e.message().contains("lapsed"), "{e}");
    assert_eq!(bench.store.images().await.unwrap(), [disk.image()]);
    other.push(&bench.receiver(), None).await.unwrap();
}
