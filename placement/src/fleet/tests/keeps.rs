//! Images that must be at hand are put where they must be, follow their names, and are let go of.

use api::catalog::{DeleteRef, Expect, MoveRef};
use api::keep::KeepInfo;
use image::Digest;

use super::*;

/// With room for some images.
async fn roomy(nodes: &[&str]) -> Grid {
    let mut grid = Grid::new(nodes).await;
    grid.nodes.values_mut().for_each(|node| node.free = 100 << 30);
    grid
}

impl Grid {
    /// Has a name mean an image of a disk of its own.
    async fn name(&self, name: &str, what: &str) -> Digest {
        let image = self.archive.add_image(what);
        let to = MoveRef { image, expect: Expect::Anything, fence: None };
        self.fleet.catalog.move_ref(name, &to).await.unwrap();
        image
    }

    async fn must_be_on(&self, nodes: u32) {
        self.fleet.set_keep("d:1", SetKeep { nodes, ..SetKeep::default() }).await.unwrap();
    }

    async fn keep(&self) -> KeepInfo {
        self.fleet.keep("d:1").await.unwrap()
    }

    /// The nodes that have all of an image.
    fn have(&self, image: Digest) -> Vec<&str> {
        let has = |node: &Node| node.held.iter().any(|held| held.image == image);
        self.nodes.iter().filter(|(_, node)| has(node)).map(|(name, _)| name.as_str()).collect()
    }

    /// The nodes that are to hold it.
    fn told(&self, image: Digest) -> Vec<&str> {
        let is_it =
            |item: &GoalItem| matches!(item.goal, Goal::Hold { image: of, .. } if of == image);
        let told = self.nodes.iter().filter(|(_, node)| node.goal.items.iter().any(is_it));
        told.map(|(name, _)| name.as_str()).collect()
    }

    /// Some are silent until they do not count.
    async fn lose(&mut self, nodes: &[&str]) {
        for _ in 0..=AWAY {
            self.round(nodes).await;
        }
    }
}

#[tokio::test]
async fn an_image_is_put_on_as_many_nodes_as_it_must_be_on_and_stays_there() {
    let mut grid = roomy(&["a", "b", "c"]).await;
    let image = grid.name("d:1", "one").await;
    grid.must_be_on(2).await;
    for _ in 0..3 {
        grid.round(&[]).await;
    }
    assert_eq!(
        (grid.told(image).len(), grid.keep().await.nodes),
        (2, 0),
        "told, and not told again"
    );
    grid.settle().await;
    let (have, keep) = (grid.have(image).len(), grid.keep().await);
    assert_eq!((have, keep.nodes, keep.image, keep.on.len()), (2, 2, image, 2), "{keep:?}");
    assert_eq!(keep.why, "2 nodes have it");
    // What is held is done, and stays in the goal: nothing of it is open.
    assert_eq!(grid.told(image).len(), 2);
    assert!(grid.fleet.nodes().await.unwrap().nodes.iter().all(|node| node.open == 0));
    let versions = |grid: &Grid| grid.nodes.values().map(|n| n.goal.version).collect::<Vec<_>>();
    let before = versions(&grid);
    grid.settle().await;
    assert_eq!(versions(&grid), before, "nothing is written while nothing changes");
    // Nothing collects it, though no name leads to it.
    assert_eq!(grid.fleet.held_images().await.unwrap(), [image].into());
    grid.must_be_on(3).await;
    grid.settle().await;
    assert_eq!(grid.have(image).len(), 3);
    grid.must_be_on(1).await;
    grid.settle().await;
    assert_eq!((grid.have(image).len(), grid.told(image).len()), (1, 1));
    grid.fleet.unkeep("d:1").await.unwrap();
    grid.settle().await;
    assert!(grid.have(image).is_empty() && grid.told(image).is_empty());
    assert!(grid.fleet.held_images().await.unwrap().is_empty());
    assert_eq!(grid.fleet.unkeep("d:1").await.unwrap_err().kind(), Kind::Gone);
}

#[tokio::test]
async fn who_is_lost_is_replaced_and_counts_once_when_it_comes_back() {
    let mut grid = roomy(&["a", "b", "c"]).await;
    let image = grid.name("d:1", "one").await;
    grid.must_be_on(2).await;
    grid.settle().await;
    let lost = grid.have(image)[0].to_owned();
    grid.lose(&[&lost]).await;
    assert_eq!(grid.keep().await.nodes, 1, "{:?}", grid.keep().await);
    for _ in 0..4 {
        grid.round(&[&lost]).await;
        grid.work();
    }
    grid.round(&[&lost]).await;
    let keep = grid.keep().await;
    assert_eq!((keep.nodes, keep.on.len(), grid.have(image).len()), (2, 3, 3), "{keep:?}");
    // It comes back with what it has: one too many is let go.
    grid.settle().await;
    let keep = grid.keep().await;
    assert_eq!((keep.nodes, keep.on.len(), grid.have(image).len()), (2, 2, 2), "{keep:?}");
}

#[tokio::test]
async fn who_cannot_hold_it_is_left_alone_for_a_while_and_another_is_told() {
    let mut grid = roomy(&["a", "b"]).await;
    let image = grid.name("d:1", "one").await;
    grid.nodes.get_mut("a").unwrap().fails = true;
    grid.must_be_on(2).await;
    grid.settle().await;
    let keep = grid.keep().await;
    assert_eq!((grid.have(image), keep.nodes), (vec!["b"], 1), "{keep:?}");
    assert!(keep.why.contains("a could not hold it: no room"), "{}", keep.why);
    // Each time it fails the pause is longer.
    let mut told = 0;
    for _ in 0..100 {
        let before = grid.nodes["a"].goal.version;
        grid.round(&[]).await;
        grid.work();
        let is_told = !grid.told(image).iter().all(|node| *node == "b");
        told += u32::from(grid.nodes["a"].goal.version > before && is_told);
    }
    assert!((2..=4).contains(&told), "told {told} times in 100 s");
    grid.nodes.get_mut("a").unwrap().fails = false;
    grid.later(600);
    grid.settle().await;
    assert_eq!(grid.have(image), ["a", "b"]);
}

#[tokio::test]
async fn who_has_lost_what_it_held_is_told_anew() {
    let mut grid = roomy(&["a"]).await;
    let image = grid.name("d:1", "one").await;
    grid.must_be_on(1).await;
    grid.settle().await;
    grid.nodes.get_mut("a").unwrap().held.clear();
    grid.round(&[]).await;
    let keep = grid.keep().await;
    assert!(
        keep.nodes == 0 && keep.why.contains("a could not hold it: it has lost it"),
        "{keep:?}"
    );
    grid.later(20);
    grid.settle().await;
    assert_eq!((grid.have(image), grid.keep().await.nodes), (vec!["a"], 1));
}

#[tokio::test]
async fn of_a_name_that_moves_the_new_image_is_brought_before_the_old_one_is_let_go() {
    let mut grid = roomy(&["a", "b", "c"]).await;
    let one = grid.name("d:1", "one").await;
    grid.must_be_on(2).await;
    grid.settle().await;
    let two = grid.name("d:1", "two").await;
    for _ in 0..4 {
        grid.round(&[]).await;
        assert_eq!((grid.have(one).len(), grid.told(two).len() <= 2), (2, true));
    }
    // Before the second is there the name moves on: it is let go, the first stays.
    let three = grid.name("d:1", "three").await;
    grid.round(&[]).await;
    grid.round(&[]).await;
    assert!(grid.told(two).is_empty());
    assert_eq!((grid.have(one).len(), grid.told(three).len()), (2, 2));
    assert_eq!(grid.keep().await.before, Some(one));
    assert_eq!(grid.fleet.held_images().await.unwrap(), [one, three].into());
    grid.settle().await;
    assert_eq!((grid.have(one).len(), grid.have(three).len()), (0, 2));
    let keep = grid.keep().await;
    assert_eq!((keep.image, keep.before, keep.nodes), (three, None, 2), "{keep:?}");
    // Of a name that is gone what it meant stays.
    let asked = DeleteRef { expect: None };
    grid.fleet.catalog.delete_ref("d:1", asked).await.unwrap();
    grid.settle().await;
    let keep = grid.keep().await;
    assert!(keep.nodes == 2 && keep.why.contains("it stays as it was"), "{keep:?}");
}

#[tokio::test]
async fn who_drains_is_let_go_when_another_has_it_and_who_is_cordoned_keeps_it() {
    let mut grid = roomy(&["a", "b"]).await;
    let image = grid.name("d:1", "one").await;
    grid.must_be_on(1).await;
    grid.settle().await;
    let first = grid.have(image)[0].to_owned();
    grid.fleet.set_standing(&first, Standing::Cordoned, "admin").await.unwrap();
    grid.settle().await;
    assert_eq!((grid.have(image), grid.keep().await.nodes), (vec![first.as_str()], 1));
    grid.fleet.set_standing(&first, Standing::Draining, "admin").await.unwrap();
    grid.round(&[]).await;
    grid.round(&[]).await;
    assert_eq!(grid.told(image).len(), 2, "not before another has it");
    grid.settle().await;
    assert!(grid.have(image) != [first.as_str()] && grid.have(image).len() == 1);
    assert!(grid.fleet.life(&first).await.unwrap().drained);
}

#[tokio::test]
async fn a_placement_that_has_just_started_tells_nobody_anew() {
    let mut grid = roomy(&["a", "b", "c"]).await;
    let image = grid.name("d:1", "one").await;
    grid.must_be_on(2).await;
    grid.settle().await;
    let have: Vec<String> = grid.have(image).into_iter().map(str::to_owned).collect();
    grid.restart();
    grid.memory = Memory::default();
    // One of those who have it is late.
    for _ in 0..AWAY / 2 {
        grid.round(&[&have[0]]).await;
        grid.work();
    }
    grid.settle().await;
    assert_eq!(
        (grid.have(image), grid.told(image).len()),
        (have.iter().map(String::as_str).collect(), 2)
    );
    assert_eq!(grid.keep().await.nodes, 2);
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused() {
    let grid = roomy(&[]).await;
    grid.name("d:1", "one").await;
    let kind = async |name: &str, set| grid.fleet.set_keep(name, set).await.unwrap_err().kind();
    assert_eq!(kind("d:1", SetKeep::default()).await, Kind::Invalid);
    let far = SetKeep { nodes: 1_000_000, ..SetKeep::default() };
    assert_eq!(kind("d:1", far).await, Kind::Invalid);
    let one = SetKeep { nodes: 1, ..SetKeep::default() };
    assert_eq!(kind("e:1", one.clone()).await, Kind::Gone);
    assert_eq!(kind("../x", one).await, Kind::Invalid);
}
