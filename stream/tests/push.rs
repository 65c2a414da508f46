//! Pushes through a real server on loopback.

mod common;

use std::rc::Rc;
use std::time::Duration;

use api::Grant;
use common::{MemImage, World};
use forebay_stream::{Client, Memory};
use image::error::Result;
use image::seam::{ImagePlan, ImageSession};
use image::{Digest, Domain, Error, Frame, ImageSink, Kind, ReadContext, SectionSink};

fn plan(image: &MemImage) -> ImagePlan {
    let geometry = *image.manifest.geometry();
    ImagePlan { domain: Domain::PUBLIC, geometry, parent: None }
}

/// Pushes one section; how many chunks had to be sent.
async fn push_section<S: ImageSession>(session: &S, image: &MemImage, section: u32) -> Result<u32> {
    let (want, mut sink) = session.offer(section, &image.tables[section as usize]).await?;
    for chunk in want.iter() {
        sink.chunk(chunk, image.frames[&(section, chunk)].clone()).await?;
    }
    sink.seal().await?;
    Ok(want.count())
}

#[test]
fn a_whole_image_is_pushed_and_committed() {
    World::new(MemImage::small()).run(async |grid| {
        let (client, holder) = grid.pusher().await;
        let image = grid.image();
        let session = client.open(&ReadContext::default(), &plan(image)).await.unwrap();
        // Both sections at the same time.
        let (a, b) =
            futures::join!(push_section(&session, image, 0), push_section(&session, image, 1));
        assert_eq!((a.unwrap() + b.unwrap()) as usize, image.frames.len());
        assert_eq!(session.commit(&image.manifest).await.unwrap(), image.id);
        let received = grid.world.sink.received.borrow();
        assert_eq!(received.opened, [(holder, plan(image))], "the receiver knows who pushes");
        assert_eq!(received.chunks.len(), image.plain.len());
        assert!(received.chunks.iter().all(|(at, plain)| image.plain[at] == *plain));
        assert_eq!(received.committed, [image.id]);
    });
}

/// Four sections, of which the frames of one take all the memory of a connection that gets no more than it
/// has at first.
fn scarce() -> World {
    let image = MemImage::new(4 * (64 << 20), 18, |s, c, len| match c {
        0..4 => common::noise(u64::from(100 * s + c) + 1, len),
        _ => Vec::new(),
    });
    let mut world = World::new(image);
    world.limits.memory = Memory::new(8 << 20);
    world
}

#[test]
fn sections_for_which_there_is_no_memory_wait_their_turn() {
    scarce().run(async |grid| {
        let (client, _) = grid.pusher().await;
        let image = grid.image();
        let session = client.open(&ReadContext::default(), &plan(image)).await.unwrap();
        let sections = (0..4).map(|section| push_section(&session, image, section));
        for pushed in futures::future::join_all(sections).await {
            assert_eq!(pushed.unwrap(), 4);
        }
        assert_eq!(session.commit(&image.manifest).await.unwrap(), image.id);
    });
}

#[test]
fn a_section_that_is_being_sealed_leaves_its_memory_to_the_next() {
    scarce().run(async |grid| {
        let (client, _) = grid.pusher().await;
        let (image, sink) = (grid.image(), &grid.world.sink);
        let session = client.open(&ReadContext::default(), &plan(image)).await.unwrap();
        sink.received.borrow_mut().hang_seal = true;
        let next = async {
            sink.until(|r| r.sealing == 1).await;
            let offer = session.offer(1, &image.tables[1]);
            let offered = tokio::time::timeout(Duration::from_secs(10), offer).await;
            sink.received.borrow_mut().hang_seal = false;
            sink.changed.notify_waiters();
            offered.expect("there is memory for it").map(|(want, _)| want.count())
        };
        let (first, next) = futures::join!(push_section(&session, image, 0), next);
        assert_eq!((first.unwrap(), next.unwrap()), (4, 4));
    });
}

#[test]
fn what_the_receiver_has_is_not_sent() {
    World::new(MemImage::small()).run(async |grid| {
        let (client, _) = grid.pusher().await;
        let image = grid.image();
        let known = image.tables[0].digests()[1];
        grid.world.sink.received.borrow_mut().known.push(known);
        let session = client.open(&ReadContext::default(), &plan(image)).await.unwrap();
        let sent = push_section(&session, image, 0).await.unwrap();
        assert_eq!(sent, image.place(0).chunks.count() - 1);
        assert!(!grid.world.sink.received.borrow().chunks.contains_key(&(0, 1)));
        // A section of which everything is known is sealed without a chunk.
        grid.world.sink.received.borrow_mut().known.extend(image.tables[1].digests());
        assert_eq!(push_section(&session, image, 1).await.unwrap(), 0);
        assert_eq!(grid.world.sink.received.borrow().sealed, [0, 1]);
    });
}

#[test]
fn the_receivers_errors_pass_and_leave_the_session_usable() {
    World::new(MemImage::small()).run(async |grid| {
        let (client, _) = grid.pusher().await;
        let image = grid.image();
        let session = client.open(&ReadContext::default(), &plan(image)).await.unwrap();
        grid.world.sink.received.borrow_mut().fail_seal =
            Some(Error::new(Kind::Full, "store: no space left"));
        let e = push_section(&session, image, 1).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Full);
        assert!(e.message().contains("store: no space left"), "{e}");
        push_section(&session, image, 1).await.unwrap();
        push_section(&session, image, 0).await.unwrap();
        grid.world.sink.received.borrow_mut().fail_commit =
            Some(Error::new(Kind::Conflict, "a pack was condemned"));
        let e = session.commit(&image.manifest).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Conflict);
        assert_eq!(session.commit(&image.manifest).await.unwrap(), image.id);
    });
}

#[test]
fn bytes_that_are_not_the_tables_are_refused_while_they_are_sent() {
    // Chunks of noise, so that what follows the wrong one fills more than the windows.
    let image = MemImage::new(64 << 20, 18, |_, c, len| match c {
        0..100 => common::noise(u64::from(c) + 1, len),
        _ => Vec::new(),
    });
    World::new(image).run(async |grid| {
        let (client, _) = grid.pusher().await;
        let image = grid.image();
        let session = client.open(&ReadContext::default(), &plan(image)).await.unwrap();
        let (want, mut sink) = session.offer(0, &image.tables[0]).await.unwrap();
        let mut result = Ok(());
        for chunk in want.iter() {
            // Every chunk under the number of another.
            result = sink.chunk(chunk, image.frames[&(0, (chunk + 1) % 100)].clone()).await;
            if result.is_err() {
                break;
            }
        }
        let e = result.expect_err("the server stops the stream");
        assert_eq!(e.kind(), Kind::Corrupt, "{e}");
        assert!(e.message().contains("section table"), "{e}");
        assert!(grid.world.sink.received.borrow().chunks.is_empty());
    });
}

#[test]
fn a_frame_that_was_damaged_on_its_way_is_refused_and_taken_when_it_comes_again() {
    World::new(MemImage::small()).run(async |grid| {
        let (client, _) = grid.pusher().await;
        let image = grid.image();
        let session = client.open(&ReadContext::default(), &plan(image)).await.unwrap();
        let damaged = |frame: &Frame| {
            // After its CRC32C was made, and before the checksum of the datagrams.
            let mut bytes = frame.bytes().to_vec();
            *bytes.last_mut().unwrap() ^= 1;
            Frame::parse(bytes.into()).unwrap()
        };
        let (want, mut sink) = session.offer(0, &image.tables[0]).await.unwrap();
        let pushed = async {
            for chunk in want.iter() {
                sink.chunk(chunk, damaged(&image.frames[&(0, chunk)])).await?;
            }
            sink.seal().await
        };
        let e = pushed.await.unwrap_err();
        assert!(e.kind() == Kind::Corrupt && e.message().contains("CRC32C"), "{e}");
        assert!(grid.world.sink.received.borrow().chunks.is_empty());
        for section in [0, 1] {
            push_section(&session, image, section).await.unwrap();
        }
        assert_eq!(session.commit(&image.manifest).await.unwrap(), image.id);
    });
}

#[test]
fn a_commit_of_something_else_is_no_commit() {
    World::new(MemImage::small()).run(async |grid| {
        let (client, _) = grid.pusher().await;
        let image = grid.image();
        grid.world.sink.received.borrow_mut().lie = Some(Digest::of_chunk(b"another image"));
        let session = client.open(&ReadContext::default(), &plan(image)).await.unwrap();
        let e = session.commit(&image.manifest).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Corrupt, "{e}");
    });
}

#[test]
fn what_does_not_belong_to_the_announced_image_is_refused() {
    World::new(MemImage::small()).run(async |grid| {
        let (client, _) = grid.pusher().await;
        let image = grid.image();
        let session = client.open(&ReadContext::default(), &plan(image)).await.unwrap();
        let e = session.offer(1, &image.tables[0]).await.map(|_| ()).unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid, "{e}");
        let larger = |_, c, len| if c == 0 { vec![1; len] } else { Vec::new() };
        let other = MemImage::new(128 << 20, 16, larger);
        let e = session.commit(&other.manifest).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid, "{e}");
        let (_, mut sink) = session.offer(1, &image.tables[1]).await.unwrap();
        let unwanted = sink.chunk(2, image.frames[&(1, 1)].clone()).await.unwrap_err();
        assert_eq!(unwanted.kind(), Kind::Invalid);
        let e = sink.seal().await.unwrap_err();
        assert!(e.message().contains("chunk 0 was wanted and not sent"), "{e}");
        assert!(grid.world.sink.received.borrow().committed.is_empty());
    });
}

#[test]
fn dropping_the_session_or_the_client_ends_it_on_the_server() {
    World::new(MemImage::small()).run(async |grid| {
        let (client, _) = grid.pusher().await;
        let plan = plan(grid.image());
        let session = client.open(&ReadContext::default(), &plan).await.unwrap();
        drop(session);
        grid.world.sink.until(|r| r.closed == 1).await;
        let session = client.open(&ReadContext::default(), &plan).await.unwrap();
        let (_, half) = session.offer(1, &grid.image().tables[1]).await.unwrap();
        drop((half, session, client));
        grid.world.sink.until(|r| r.closed == 2).await;
        assert!(grid.world.sink.received.borrow().sealed.is_empty());
    });
}

#[test]
fn sessions_are_bounded_and_belong_to_their_connection() {
    let mut world = World::new(MemImage::small());
    world.limits.pushes = 2;
    world.run(async |grid| {
        let (client, _) = grid.pusher().await;
        let (ctx, plan) = (ReadContext::default(), plan(grid.image()));
        let one = client.open(&ctx, &plan).await.unwrap();
        let two = client.open(&ctx, &plan).await.unwrap();
        let e = client.open(&ctx, &plan).await.map(|_| ()).unwrap_err();
        assert!(matches!(e.kind(), Kind::Busy(_)), "{e:?}");
        drop(one);
        grid.world.sink.until(|r| r.closed == 1).await;
        let _three = client.open(&ctx, &plan).await.unwrap();
        drop(two);
        // Another connection cannot use this one's sessions: its own numbers begin anew.
        let (other, _) = grid.pusher().await;
        let mine = other.open(&ctx, &plan).await.unwrap();
        push_section(&mine, grid.image(), 1).await.unwrap();
    });
}

#[test]
fn leaning_on_a_parent_needs_the_right_to_read_it() {
    World::new(MemImage::small()).run(async |grid| {
        let member = grid.world.ca.member("node-2");
        let (mine, other) = (Digest::of_chunk(b"mine"), Digest::of_chunk(b"other"));
        let ticket = grid.ticket(Grant::Push { domain: 0, parent: Some(mine) }, &member);
        let client = Client::connect(grid.options(&member, vec![ticket])).await.unwrap();
        let ctx = ReadContext::default();
        let leaning = |parent| ImagePlan { parent: Some(parent), ..plan(grid.image()) };
        client.open(&ctx, &leaning(mine)).await.unwrap();
        let e = client.open(&ctx, &leaning(other)).await.map(|_| ()).unwrap_err();
        assert_eq!(e.kind(), Kind::Denied, "{e}");
        client.add_ticket(&grid.ticket(Grant::Pull { image: other }, &member)).await.unwrap();
        client.open(&ctx, &leaning(other)).await.unwrap();
    });
}

#[test]
fn a_server_of_chunks_takes_no_images() {
    let image: Rc<MemImage> = MemImage::small();
    World::new(image).run_without_sink(async |grid| {
        let (client, _) = grid.pusher().await;
        let e = client.open(&ReadContext::default(), &plan(grid.image())).await.map(|_| ());
        assert_eq!(e.unwrap_err().kind(), Kind::Unsupported);
    });
}
