//! Images from which nodes read are not collected.

use std::collections::BTreeSet;

use api::catalog::GcRequest;
use image::Digest;

use super::*;

fn image() -> Digest {
    Digest::of_chunk(b"an image")
}

/// Of which something is still to come.
fn lazy() -> NodeVolume {
    let (id, called) = (format!("{:032x}", 1), "v".to_owned());
    NodeVolume { id, called, size: SIZE, image: Some(image()), attached: false }
}

impl Grid {
    async fn held(&self) -> BTreeSet<Digest> {
        self.fleet.held_images().await.unwrap()
    }

    /// Another process over the same state.
    pub(super) fn restart(&mut self) {
        let Fleet { state, clock, catalog, .. } = &*self.fleet;
        self.fleet =
            Fleet::new(state.clone(), clock.clone(), Arc::clone(catalog), Terms::default());
        self.fleet.begin(Arc::clone(&self.lead));
    }
}

#[tokio::test]
async fn an_image_is_held_while_a_volume_reads_from_it_and_its_node_is_heard_of() {
    let mut grid = Grid::new(&["a"]).await;
    grid.nodes.get_mut("a").unwrap().volumes = vec![lazy()];
    grid.round(&[]).await;
    assert_eq!(grid.held().await, [image()].into());
    let leases = grid.fleet.leases().await.unwrap();
    assert_eq!((leases.reads[0].image, leases.reads[0].holder.as_str()), (image(), "a"));
    // A placement that has just started knows it too, and counts from then.
    grid.later(5000);
    grid.restart();
    grid.later(LAPSED - 1);
    assert_eq!(grid.held().await, [image()].into());
    grid.later(1);
    assert!(grid.held().await.is_empty(), "its node was not heard of for too long");
    grid.round(&[]).await;
    assert_eq!(grid.held().await, [image()].into());
    // All of it is there.
    grid.nodes.get_mut("a").unwrap().volumes[0].image = None;
    grid.round(&[]).await;
    assert!(grid.held().await.is_empty());
}

#[tokio::test]
async fn what_another_placement_heard_in_between_is_not_taken_for_ours() {
    let mut grid = Grid::new(&["a"]).await;
    grid.nodes.get_mut("a").unwrap().volumes = vec![lazy()];
    grid.round(&[]).await;
    let ours = Arc::clone(&grid.fleet);
    grid.restart();
    grid.nodes.get_mut("a").unwrap().volumes = vec![];
    grid.round(&[]).await;
    grid.fleet = ours;
    let node = grid.nodes.get_mut("a").unwrap();
    node.volumes = vec![lazy()];
    let report = node.report();
    grid.fleet.report("a", report, Duration::ZERO).await.unwrap();
    assert_eq!(grid.held().await, [image()].into());
}

#[tokio::test]
async fn after_a_restore_nothing_is_collected_until_leases_since_the_backup_are_over() {
    let grid = Grid::new(&[]).await;
    let until = Transaction::default().put("not_before", encode(&(NOW + 100)));
    grid.fleet.state.commit(until).await.unwrap();
    let wait = grid.fleet.held_images().await.unwrap_err();
    assert_eq!(wait.kind(), Kind::Busy(Duration::from_secs(100)));
    grid.later(100);
    assert!(grid.held().await.is_empty());
}

#[tokio::test]
async fn what_is_held_is_a_root_if_there_is_such_an_image() {
    let grid = Grid::new(&[]).await;
    let (there, gone) = (grid.archive.add_image("there"), image());
    let asked = GcRequest { dry_run: true, grace_secs: None };
    let catalog = Arc::clone(&grid.fleet.catalog);
    let report = catalog.gc(Arc::clone(&grid.lead), asked, [there, gone].into()).await.unwrap();
    assert_eq!(report.images, 1);
    assert_eq!(grid.archive.shelf().gc_roots, [[there]]);
}
