//! Nodes are cordoned, drained, forgotten, and come back.

use super::*;

fn volume(n: u8) -> NodeVolume {
    let (id, called) = (format!("{n:032x}"), format!("v{n}"));
    NodeVolume { id, called, size: SIZE, image: None, attached: true }
}

impl Grid {
    async fn stand(&self, node: &str, standing: Standing) {
        self.fleet.set_standing(node, standing, "admin").await.unwrap();
    }

    async fn drained(&self, node: &str) -> bool {
        self.fleet.life(node).await.unwrap().drained
    }
}

#[tokio::test]
async fn a_cordoned_node_keeps_what_it_has_and_gets_nothing_new() {
    let mut grid = Grid::new(&["a", "b"]).await;
    grid.settle().await;
    grid.stand("a", Standing::Cordoned).await;
    grid.fleet.set_pool("p", set(2, 2)).await.unwrap();
    grid.settle().await;
    assert_eq!((grid.nodes["a"].built.len(), grid.nodes["b"].built.len()), (0, 2));
    grid.stand("a", Standing::Open).await;
    grid.stand("b", Standing::Cordoned).await;
    grid.settle().await;
    assert_eq!(grid.nodes["b"].ready.len(), 2, "they stay");
    // Of what is ready, that on a node where something may be put.
    grid.fleet.set_pool("p", set(3, 3)).await.unwrap();
    grid.settle().await;
    let asked = claim(1, Some("b"));
    grid.fleet.claim("x", "p", asked.clone(), Duration::ZERO).await.unwrap();
    grid.round(&[]).await;
    grid.work();
    grid.round(&[]).await;
    assert_eq!((grid.nodes["a"].given.len(), grid.nodes["b"].given.len()), (1, 0));
    let list = grid.fleet.nodes().await.unwrap().nodes;
    assert_eq!(
        list.iter().map(|n| n.standing).collect::<Vec<_>>(),
        [Standing::Open, Standing::Cordoned]
    );
}

#[tokio::test]
async fn what_drains_is_built_elsewhere_first_and_the_pool_stays_at_its_threshold() {
    let mut grid = Grid::new(&["a", "b", "c"]).await;
    grid.fleet.set_pool("p", set(5, 6)).await.unwrap();
    grid.settle().await;
    assert_eq!((grid.ready(), grid.nodes["a"].ready.len()), (6, 2));
    grid.stand("a", Standing::Draining).await;
    for n in 0..8 {
        grid.round(&[]).await;
        assert!(grid.ready() >= 5, "under its threshold: {}", grid.pool().await.why);
        // To build takes longer than to remove.
        match n {
            0..4 => grid.nodes.get_mut("a").unwrap().work(),
            _ => grid.work(),
        }
    }
    grid.round(&[]).await;
    grid.round(&[]).await;
    assert!(grid.nodes["a"].ready.is_empty() && grid.drained("a").await);
    assert!(grid.pool().await.ready >= 5, "{}", grid.pool().await.why);
    // What is somebody's is for people to move: it is listed.
    let node = grid.nodes.get_mut("a").unwrap();
    node.volumes = vec![volume(7)];
    grid.round(&[]).await;
    let life = grid.fleet.life("a").await.unwrap();
    assert!(!life.drained && life.volumes == [volume(7)], "{life:?}");
}

#[tokio::test]
async fn a_node_is_drained_though_nobody_else_has_room() {
    let mut grid = Grid::new(&["a", "b"]).await;
    grid.nodes.get_mut("b").unwrap().free = 0;
    grid.fleet.set_pool("p", set(2, 2)).await.unwrap();
    grid.settle().await;
    assert_eq!(grid.nodes["a"].ready.len(), 2);
    grid.stand("a", Standing::Draining).await;
    grid.settle().await;
    assert!(grid.drained("a").await, "{}", grid.pool().await.why);
}

#[tokio::test]
async fn a_node_that_is_there_is_not_forgotten_unless_that_is_forced() {
    let mut grid = Grid::new(&["a", "b"]).await;
    grid.fleet.set_pool("p", set(2, 2)).await.unwrap();
    grid.settle().await;
    grid.fleet.take_lease(VOLUME, &take("a")).await.unwrap();
    let asked = claim(1, Some("a"));
    grid.fleet.claim("x", "p", asked.clone(), Duration::ZERO).await.unwrap();
    let refused = grid.fleet.forget("a", "admin", false).await.unwrap_err();
    assert!(refused.kind() == Kind::Conflict && refused.message().contains("drain"), "{refused}");
    let before = grid.fleet.goal("a").await.unwrap();

    let forgotten = grid.fleet.forget("a", "admin", true).await.unwrap();
    assert_eq!((forgotten.was.ready.len(), forgotten.was.leases.len()), (1, 1));
    assert!(forgotten.lapses > 890, "{}", forgotten.lapses);
    // It is refused by name; nothing of it counts; what it had promised is told on.
    let report = grid.nodes.get_mut("a").unwrap().report();
    let refused = grid.fleet.report("a", report, Duration::ZERO).await.unwrap_err();
    assert!(
        refused.kind() == Kind::Denied && refused.message().contains("uncordon a"),
        "{refused}"
    );
    grid.round(&["a"]).await;
    let claimed = grid.fleet.operation(&asked.request, Duration::ZERO).await.unwrap();
    assert_eq!(claimed.state, OperationState::Failed);
    assert!(grid.pool().await.nodes.iter().all(|n| n.node != "a"));
    assert!(grid.fleet.nodes().await.unwrap().nodes.iter().all(|n| n.name != "a"));
    // Nobody has its lease before it has stopped.
    grid.later(forgotten.lapses - 3);
    assert!(grid.fleet.take_lease(VOLUME, &take("b")).await.is_err());
    grid.later(10);
    assert_eq!(grid.fleet.take_lease(VOLUME, &take("b")).await.unwrap().epoch, 2);
    // Again it changes nothing; and of versions of its goal none is used twice.
    grid.fleet.forget("a", "admin", false).await.unwrap();
    let after = grid.fleet.goal("a").await.unwrap();
    assert!(after.items.is_empty() && after.version > before.version, "{after:?}");
    grid.stand("a", Standing::Open).await;
    grid.settle().await;
    assert!(grid.fleet.goal("a").await.unwrap().version >= after.version);
}

#[tokio::test]
async fn a_node_that_is_away_is_forgotten_and_comes_back_when_it_joins() {
    let mut grid = Grid::new(&["a", "b"]).await;
    grid.settle().await;
    for _ in 0..=AWAY {
        grid.round(&["a"]).await;
    }
    grid.fleet.forget("a", "admin", false).await.unwrap();
    crate::fleet::life::welcome(&grid.fleet.state, "a").await.unwrap();
    grid.settle().await;
    assert_eq!(grid.fleet.life("a").await.unwrap().standing, Standing::Open);
    // That of a node which was cordoned stays.
    grid.stand("a", Standing::Cordoned).await;
    crate::fleet::life::welcome(&grid.fleet.state, "a").await.unwrap();
    assert_eq!(grid.fleet.life("a").await.unwrap().standing, Standing::Cordoned);
    assert_eq!(grid.fleet.forget("nobody", "admin", true).await.unwrap_err().kind(), Kind::Gone);
}

#[tokio::test]
async fn what_a_placement_has_not_heard_yet_it_does_not_forget() {
    let mut grid = Grid::new(&["a"]).await;
    grid.settle().await;
    let Fleet { state, clock, catalog, .. } = &*grid.fleet;
    grid.fleet = Fleet::new(state.clone(), clock.clone(), Arc::clone(catalog), Terms::default());
    grid.fleet.begin(Arc::clone(&grid.lead));
    let wait = grid.fleet.forget("a", "admin", false).await.unwrap_err();
    assert!(wait.message().contains("just started"), "{wait}");
    grid.later(AWAY);
    grid.fleet.forget("a", "admin", false).await.unwrap();
}
