//! Reads through a real server on loopback.

mod common;

use std::rc::Rc;
use std::time::Duration;

use common::{MemImage, World, pull_and_check};
use futures::future::join;
use image::{ChunkSet, ChunkSource, Digest, Error, Frame, Kind, Place, Priority, ReadContext};

#[test]
fn every_chunk_of_an_image_arrives() {
    World::new(MemImage::small()).run(async |grid| {
        let client = grid.reader().await;
        pull_and_check(&client, grid.image()).await;
    });
}

#[test]
fn two_pulls_run_at_the_same_time() {
    World::new(MemImage::small()).run(async |grid| {
        let (one, two) = (grid.reader().await, grid.reader().await);
        let image = grid.image();
        join(pull_and_check(&one, image), pull_and_check(&two, image)).await;
        join(pull_and_check(&one, image), pull_and_check(&one, image)).await;
    });
}

#[test]
fn every_kind_of_error_passes_with_its_message_and_the_other_chunks_come() {
    World::new(MemImage::small()).run(async |grid| {
        let client = grid.reader().await;
        let place = grid.image().place(0);
        let kinds = [
            Kind::Retry,
            Kind::Busy(Duration::from_millis(1234)),
            Kind::Conflict,
            Kind::Corrupt,
            Kind::Gone,
            Kind::Denied,
            Kind::Full,
            Kind::Unsupported,
            Kind::Cancelled,
            Kind::Invalid,
            Kind::Io,
        ];
        for kind in kinds {
            let e = Error::new(kind, "pack 8f: chunk 3: \u{1b}[2J rotten");
            grid.world.source.0.fail.replace(Some((3, e)));
            let mut got: Vec<(u32, Frame)> = Vec::new();
            let e = client.chunks(&ReadContext::default(), &place, &mut got).await.unwrap_err();
            assert_eq!(e.kind(), kind);
            assert!(e.message().contains("pack 8f: chunk 3: ?[2J rotten"), "{e}");
            assert!(e.message().contains(common::SERVER), "the error names the server: {e}");
            assert_eq!(got.len() as u32, place.chunks.count() - 1);
        }
    });
}

/// The small image with something altered.
fn altered(alter: impl FnOnce(&mut MemImage)) -> World {
    let image = MemImage::small();
    let mut copy = MemImage {
        id: image.id,
        manifest: image.manifest.clone(),
        tables: image.tables.clone(),
        frames: image.frames.clone(),
        plain: image.plain.clone(),
    };
    alter(&mut copy);
    World::new(Rc::new(copy))
}

#[test]
fn a_source_that_gives_rotten_bytes_is_caught_on_arrival() {
    let rot = |image: &mut MemImage| {
        let mut bytes = image.frames[&(0, 0)].bytes().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        image.frames.insert((0, 0), Frame::parse(bytes.into()).unwrap());
    };
    altered(rot).run(async |grid| {
        let client = grid.reader().await;
        let place = grid.image().place(0);
        let mut got: Vec<(u32, Frame)> = Vec::new();
        let e = client.chunks(&ReadContext::default(), &place, &mut got).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Corrupt);
        assert!(e.message().contains("chunk 0"), "{e}");
        assert_eq!(got.len() as u32, place.chunks.count() - 1);
        assert!(got.iter().all(|(c, _)| *c != 0));
    });
}

#[test]
fn another_images_manifest_and_table_are_caught_on_arrival() {
    let other = MemImage::new(64 << 20, 16, |_, c, len| match c {
        0 => vec![1; len],
        _ => Vec::new(),
    });
    let (manifest, table) = (other.manifest.clone(), other.tables[0].clone());
    altered(|image| image.manifest = manifest).run(async |grid| {
        let client = grid.reader().await;
        let e = client.manifest(&ReadContext::default(), &grid.image().id).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Corrupt);
        assert!(e.message().contains("identity"), "{e}");
    });
    altered(|image| image.tables[0] = table).run(async |grid| {
        let (client, ctx, image) = (grid.reader().await, ReadContext::default(), grid.image().id);
        let e = client.section_table(&ctx, &image, 0).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Corrupt);
        assert!(e.message().contains("section 0"), "{e}");
        client.section_table(&ctx, &image, 1).await.unwrap();
    });
}

#[test]
fn places_that_the_image_does_not_have_are_refused() {
    World::new(MemImage::small()).run(async |grid| {
        let client = grid.reader().await;
        let ctx = ReadContext::default();
        let image = grid.image().id;
        let wrong = [
            Place { image, section: 2, chunks: ChunkSet::of(4, |c| c == 0) },
            Place { image, section: 1, chunks: ChunkSet::of(3, |c| c == 0) },
            Place { image, section: 0, chunks: ChunkSet::of(1025, |c| c == 1024) },
        ];
        for place in wrong {
            let e = client.chunks(&ctx, &place, &mut Vec::new()).await.unwrap_err();
            assert_eq!(e.kind(), Kind::Invalid, "{e}");
        }
        assert_eq!(grid.world.source.0.started.get(), 0, "nothing of it reached the source");
        let e = client.section_table(&ctx, &image, 2).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid);
    });
}

#[test]
fn dropping_the_read_ends_the_servers_work() {
    World::new(MemImage::small()).run(async |grid| {
        let client = grid.reader().await;
        let source = &grid.world.source;
        source.0.hang.set(true);
        let place = grid.image().place(1);
        let mut got: Vec<(u32, Frame)> = Vec::new();
        {
            let ctx = ReadContext::default();
            let read = client.chunks(&ctx, &place, &mut got);
            tokio::select! {
                _ = read => panic!("the source hangs"),
                () = source.until(|s| s.started.get() == 1) => {}
            }
        }
        source.until(|s| s.dropped.get() == 1).await;
        source.0.hang.set(false);
        pull_and_check(&client, grid.image()).await;
    });
}

#[test]
fn a_deadline_ends_the_read_on_both_sides() {
    World::new(MemImage::small()).run(async |grid| {
        let client = grid.reader().await;
        let source = &grid.world.source;
        source.0.hang.set(true);
        let ctx = ReadContext {
            deadline: Some(Duration::from_secs(1)),
            priority: Priority::Guest,
            ..ReadContext::default()
        };
        let place = grid.image().place(1);
        let e = client.chunks(&ctx, &place, &mut Vec::new()).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Retry);
        assert!(e.message().contains("deadline"), "{e}");
        source.until(|s| s.dropped.get() == 1).await;
    });
}

#[test]
fn a_shutdown_finishes_what_runs_and_takes_nothing_new() {
    let mut world = World::new(MemImage::small());
    // Only a GOAWAY, and only the end of what runs, can end this test.
    world.limits.drain = Duration::from_secs(3600);
    world.limits.stall = Duration::from_secs(3600);
    world.run(async |grid| {
        let (client, source) = (grid.reader().await, &grid.world.source);
        let (ctx, place) = (ReadContext::default(), grid.image().place(0));
        let mut got: Vec<(u32, Frame)> = Vec::new();
        source.0.hang.set(true);
        let running = client.chunks(&ctx, &place, &mut got);
        let rest = async {
            source.until(|s| s.taken.get() as u32 == place.chunks.count()).await;
            grid.stop.notify_one();
            // Until the GOAWAY is there the request is refused by the server; then by the client.
            loop {
                match client.manifest(&ctx, &Digest::of_chunk(b"unknown")).await {
                    Ok(_) => panic!("there is no such image"),
                    Err(e) if e.kind() == Kind::Denied => tokio::task::yield_now().await,
                    Err(e) => {
                        assert!(matches!(e.kind(), Kind::Retry | Kind::Busy(_)), "{e:?}");
                        break;
                    }
                }
            }
            source.0.hang.set(false);
            source.0.changed.notify_waiters();
        };
        let (result, ()) = join(running, rest).await;
        result.unwrap();
        assert_eq!(got.len() as u32, place.chunks.count());
    });
}

#[test]
fn images_the_server_does_not_have_are_gone() {
    World::new(MemImage::small()).run(async |grid| {
        let member = grid.world.ca.member("node-9");
        let other = Digest::of_chunk(b"another image");
        let ticket = grid.ticket(api::Grant::Pull { image: other }, &member);
        let client =
            forebay_stream::Client::connect(grid.options(&member, vec![ticket])).await.unwrap();
        let e = client.manifest(&ReadContext::default(), &other).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Gone);
    });
}
