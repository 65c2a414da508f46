//! Boot traces over HTTP: recorded by nodes, merged, inherited, and gone with their image.

mod common;

use api::catalog::{Expect, GcRequest, MoveRef, NewRecord};
use api::grid::Role;
use common::Grid;
use image::{BootTrace, Digest, Kind, Touch};

fn recording(image: Digest, touches: &[(u64, u32)]) -> BootTrace {
    let touches = touches.iter().map(|&(chunk, at)| Touch { chunk, at, seen: 1 });
    BootTrace::new(image, 1, touches.collect()).unwrap()
}

fn chunks(trace: Option<BootTrace>) -> Option<Vec<u64>> {
    trace.map(|trace| trace.touches().iter().map(|t| t.chunk).collect())
}

#[tokio::test]
async fn recordings_of_nodes_become_one() {
    let grid = Grid::start().await;
    let image = grid.archive.add_image("a");
    let name = image.to_string();
    let node = grid.client(&grid.member(Role::Node, "n1"));
    let server = grid.client(&grid.member(Role::Server, "c1"));
    assert_eq!(node.trace(&name).await.unwrap(), None);
    assert_eq!(node.image(&name).await.unwrap().boot_trace, None);
    node.add_trace(&recording(image, &[(5, 0), (7, 100)])).await.unwrap();
    let both = recording(image, &[(5, 0), (9, 20), (7, 300)]);
    let info = node.add_trace(&both).await.unwrap();
    assert_eq!((info.recordings, info.chunks, info.millis), (2, 3, 200));
    assert_eq!(chunks(server.trace(&name).await.unwrap()), Some(vec![5, 9, 7]));
    assert_eq!(server.image(&name).await.unwrap().boot_trace, Some(info));
    let denied = server.add_trace(&both).await.unwrap_err();
    assert_eq!(denied.kind(), Kind::Denied);

    // The image has 4,096 chunks.
    let beyond = node.add_trace(&recording(image, &[(4095, 0), (4096, 1)])).await.unwrap_err();
    assert_eq!(beyond.kind(), Kind::Invalid, "{beyond}");
    let merged = BootTrace::new(image, 2, vec![]).unwrap();
    assert_eq!(node.add_trace(&merged).await.unwrap_err().kind(), Kind::Invalid);
    let nobody = recording(Digest::of_chunk(b"no image"), &[]);
    assert_eq!(node.add_trace(&nobody).await.unwrap_err().kind(), Kind::Gone);
}

#[tokio::test]
async fn of_recorders_at_once_none_is_lost_without_a_word() {
    let grid = Grid::start().await;
    let image = grid.archive.add_image("a");
    let node = grid.client(&grid.member(Role::Node, "n1"));
    let all = futures::future::join_all((0..8).map(|n| {
        let (node, recording) = (node.clone(), recording(image, &[(n, 0)]));
        async move { node.add_trace(&recording).await }
    }));
    let all = all.await;
    let kept = all.iter().filter(|added| added.is_ok()).count();
    assert!(kept >= 1);
    assert!(all.iter().flat_map(|a| a.as_ref().err()).all(|e| e.kind() == Kind::Retry));
    let info = node.image(&image.to_string()).await.unwrap().boot_trace.unwrap();
    assert_eq!((usize::from(info.recordings), info.chunks as usize), (kept, kept));
}

#[tokio::test]
async fn the_longest_trace_is_taken() {
    let grid = Grid::start().await;
    let image = grid.archive.add_image("a");
    grid.archive.shelf().images.get_mut(&image).unwrap().size = 64 << 40;
    let node = grid.client(&grid.member(Role::Node, "n1"));
    // Far apart, so that each takes its most bytes.
    let far = |n: u64| if n.is_multiple_of(2) { n } else { (200 << 20) + n };
    let touches: Vec<_> =
        (0..image::trace::MAX_TOUCHES as u64).map(|n| (far(n), n as u32 * 20_000)).collect();
    let recording = recording(image, &touches);
    node.add_trace(&recording).await.unwrap();
    assert_eq!(node.trace(&image.to_string()).await.unwrap(), Some(recording));
}

#[tokio::test]
async fn the_next_version_inherits_what_has_not_changed_until_it_is_recorded() {
    let grid = Grid::start().await;
    let [old, middle, new] = ["a", "b", "c"].map(|seed| grid.archive.add_image(seed));
    let node = grid.client(&grid.member(Role::Node, "n1"));
    for (image, parent) in [(new, middle), (middle, old)] {
        let said = NewRecord { parent: Some(parent), ..NewRecord::default() };
        node.record(&image, &said).await.unwrap();
    }
    assert_eq!(node.trace(&new.to_string()).await.unwrap(), None);
    node.add_trace(&recording(old, &[(5, 0), (7, 100), (6, 200)])).await.unwrap();
    grid.archive.shelf().changed.insert(new, vec![7, 8]);
    let inherited = node.trace(&new.to_string()).await.unwrap();
    assert_eq!(inherited.as_ref().map(|t| *t.image()), Some(new));
    assert_eq!(chunks(inherited), Some(vec![5, 6]));
    assert_eq!(node.image(&new.to_string()).await.unwrap().boot_trace, None);

    let info = node.add_trace(&recording(new, &[(5, 0), (8, 100)])).await.unwrap();
    assert_eq!((info.recordings, info.chunks), (2, 3));
    assert_eq!(chunks(node.trace(&new.to_string()).await.unwrap()), Some(vec![5, 8, 6]));
    // Of an ancestor that is gone nothing can be compared.
    grid.archive.shelf().images.remove(&old);
    assert_eq!(node.trace(&middle.to_string()).await.unwrap(), None);
}

#[tokio::test]
async fn a_trace_outlives_a_restart_and_goes_with_its_image() {
    let mut grid = Grid::start().await;
    let [kept, young, gone] = ["a", "b", "c"].map(|seed| grid.archive.add_image(seed));
    let papers = grid.member(Role::Node, "n1");
    let node = grid.client(&papers);
    let to = MoveRef { image: kept, expect: Expect::Anything, fence: None };
    node.move_ref(&"a:1".parse().unwrap(), &to).await.unwrap();
    for image in [kept, young, gone] {
        node.add_trace(&recording(image, &[(1, 0)])).await.unwrap();
    }
    grid.stop().await.unwrap();
    grid.run().await.unwrap();
    let node = grid.client(&papers);
    // The store deletes one of the two that no ref reaches.
    grid.archive.shelf().images.remove(&gone);
    grid.admin().gc(&GcRequest { dry_run: true, grace_secs: None }).await.unwrap();
    assert!(node.trace(&gone.to_string()).await.unwrap().is_some());
    grid.admin().gc(&GcRequest::default()).await.unwrap();
    assert!(node.trace(&kept.to_string()).await.unwrap().is_some());
    assert!(node.trace(&young.to_string()).await.unwrap().is_some());
    assert_eq!(node.trace(&gone.to_string()).await.unwrap(), None);
}
