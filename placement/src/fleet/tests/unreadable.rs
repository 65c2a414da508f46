//! A value that nobody can read stops what it concerns, and nothing else.

use super::*;
use crate::state::keys::Versioned;

impl Grid {
    async fn write(&self, key: &str, value: &[u8]) {
        let put = Transaction::default().put(key, value.to_vec());
        self.fleet.state.commit(put).await.unwrap();
    }

    async fn read(&self, key: &str) -> Vec<u8> {
        let entries = self.fleet.state.listing(key).await.unwrap().entries;
        let [(_, Versioned { value, .. })] = &entries[..] else { panic!("{entries:?}") };
        value.clone()
    }
}

#[tokio::test]
async fn a_goal_that_cannot_be_read_stops_its_node_alone() {
    let mut grid = Grid::new(&["a", "b"]).await;
    grid.fleet.set_pool("p", SetPool { per_node: Some(2), ..set(1, 2) }).await.unwrap();
    grid.settle().await;
    grid.fleet.take_lease(VOLUME, &take("a")).await.unwrap();
    let held = vec![HeldLease { volume: VOLUME.into(), epoch: 1 }];
    grid.nodes.get_mut("a").unwrap().leases = held;
    // It is told to do something, and then nobody can read what.
    let claimed = claim(1, Some("a"));
    grid.fleet.claim("x", "p", claimed.clone(), Duration::ZERO).await.unwrap();
    let goal = grid.read("goals/a").await;
    let wrong = String::from_utf8(goal.clone()).unwrap().replace("\"items\":[{", "\"items\":[7,{");
    assert_ne!(wrong.as_bytes(), goal);
    grid.write("goals/a", wrong.as_bytes()).await;
    for n in 2..4 {
        grid.fleet.claim("x", "p", claim(n, Some("a")), Duration::ZERO).await.unwrap();
    }
    grid.settle().await;
    assert_eq!(grid.nodes["b"].given.len(), 2, "the others do what is to be done");
    assert!(grid.nodes["a"].given.is_empty(), "it was told nothing");
    let waits = grid.fleet.operation(&claimed.request, Duration::ZERO).await.unwrap();
    assert_eq!(waits.state, OperationState::Running, "{waits:?}");
    assert_eq!(grid.fleet.nodes().await.unwrap().nodes.len(), 2);
    // Its leases go on: nobody else is let.
    let refused = grid.fleet.take_lease(VOLUME, &take("b")).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Conflict, "{refused}");
    // Who collects garbage has to know what nodes build of.
    assert_eq!(grid.fleet.held_images().await.unwrap_err().kind(), Kind::Corrupt);
    grid.write("goals/a", &goal).await;
    grid.settle().await;
    let done = grid.fleet.operation(&claimed.request, Duration::ZERO).await.unwrap();
    assert_eq!(done.state, OperationState::Done, "{done:?}");
    assert_eq!(grid.nodes["a"].given.len(), 1);
}

#[tokio::test]
async fn what_a_node_has_done_counts_when_its_goal_can_be_read_again() {
    let mut grid = Grid::new(&["a"]).await;
    grid.fleet.set_pool("p", set(1, 1)).await.unwrap();
    grid.settle().await;
    let claimed = claim(1, None);
    grid.fleet.claim("x", "p", claimed.clone(), Duration::ZERO).await.unwrap();
    grid.round(&[]).await;
    let goal = grid.read("goals/a").await;
    grid.write("goals/a", b"{").await;
    grid.work();
    grid.round(&[]).await;
    grid.write("goals/a", &goal).await;
    // It says nothing new.
    grid.round(&[]).await;
    let done = grid.fleet.operation(&claimed.request, Duration::ZERO).await.unwrap();
    assert_eq!(done.state, OperationState::Done, "{done:?}");
}

#[tokio::test]
async fn of_each_kind_one_that_cannot_be_read_is_left_out() {
    let mut grid = Grid::new(&["a", "b"]).await;
    grid.round(&[]).await;
    grid.fleet.set_pool("p", set(1, 2)).await.unwrap();
    for key in ["pools/q", "operations/00000000000000000000000000000000", "nodes/gone"] {
        grid.write(key, b"{").await;
    }
    grid.write("reserved/a", b"[").await;
    grid.write("standing/b", b"[").await;
    grid.write(&format!("leases/{VOLUME}"), b"{").await;
    let held = vec![HeldLease { volume: VOLUME.into(), epoch: 1 }];
    let node = grid.nodes.get_mut("a").unwrap();
    (node.leases, node.released) = (held.clone(), held);
    // Reports are answered: of the lease nothing is said, and nobody is given it.
    for _ in 0..4 {
        grid.round(&["b"]).await;
        grid.work();
    }
    assert_eq!(grid.fleet.lost("a", &grid.nodes["a"].leases).await.unwrap(), Vec::<String>::new());
    let refused = grid.fleet.take_lease(VOLUME, &take("b")).await.unwrap_err();
    assert!(refused.message().contains(&format!("leases/{VOLUME}")), "{refused}");
    // Who may have been forgotten is not heard, and nothing new is put there.
    let report = grid.nodes.get_mut("b").unwrap().report();
    let refused = grid.fleet.report("b", report, Duration::ZERO).await.unwrap_err();
    assert!(refused.message().contains("`standing/b`"), "{refused}");
    let told = grid.fleet.goal("b").await.unwrap();
    assert!(told.items.is_empty(), "{told:?}");
    assert_eq!((grid.nodes["a"].ready.len(), grid.nodes["b"].ready.len()), (2, 0));
    assert_eq!(grid.fleet.pools().await.unwrap().pools.len(), 1);
    assert!(grid.fleet.operations().await.unwrap().operations.is_empty());
    assert!(grid.fleet.reservations().await.unwrap().reservations.is_empty());
}
