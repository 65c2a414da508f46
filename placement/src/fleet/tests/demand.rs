//! Pools that follow demand, and budgets.

use api::pool::PoolBound;

use super::*;
use crate::fleet::demand::Demand;
use crate::fleet::demands::{self, Demands, Room};

fn following(floor: u32, ceiling: u32) -> SetPool {
    SetPool { follow: Some(Follow::between(floor, ceiling)), ..set(0, 0) }
}

impl Grid {
    async fn set(&self, pool: &str, set: SetPool) {
        self.fleet.set_pool(pool, set).await.unwrap();
    }

    async fn claims(&self, pool: &str, from: u8, to: u8) {
        for n in from..to {
            let request = format!("{:02x}{n:030x}", pool.as_bytes()[0]);
            let asked = NewClaim { request, ..claim(n, None) };
            self.fleet.claim("x", pool, asked, Duration::ZERO).await.unwrap();
        }
    }

    /// Another placement leads, over the same state.
    async fn succeed(&mut self) {
        let Fleet { state, clock, catalog, policy, .. } = &*self.fleet;
        let terms = Terms { policy: *policy, ..Terms::default() };
        self.fleet = Fleet::new(state.clone(), clock.clone(), Arc::clone(catalog), terms);
        self.fleet.begin(Arc::clone(&self.lead));
        self.memory = Memory::default();
    }

    async fn kept(&self, pool: &str) -> Option<Demand> {
        let found = self.fleet.state.get::<Demand>(&demands::key(pool)).await.unwrap();
        found.map(|(demand, _)| demand)
    }

    fn ready_of(&self, pool: &str) -> usize {
        self.nodes.values().flat_map(|node| &node.ready).filter(|v| v.pool == pool).count()
    }
}

#[tokio::test]
async fn a_burst_of_claims_makes_a_pool_larger_at_once_and_smaller_after_its_time() {
    let mut grid = Grid::new(&["a", "b"]).await;
    grid.nodes.values_mut().for_each(|node| node.took_millis = Some(30_000));
    grid.set("p", following(2, 40)).await;
    grid.settle().await;
    let before = grid.pool().await;
    assert_eq!((grid.ready(), before.demand.as_ref().unwrap().bound), (2, Some(PoolBound::Floor)));
    grid.claims("p", 0, 30).await;
    grid.settle().await;
    grid.settle().await;
    let info = grid.pool().await;
    let demand = info.demand.clone().unwrap();
    assert_eq!(demand.build_secs, Some(30.0));
    assert!((200.0..300.0).contains(&demand.claims_per_hour), "{demand:?}");
    // 30 claims, by a rate that is half after 300 s, in 90 s: 6, and twice the square root of it.
    assert_eq!((demand.wanted, demand.target, demand.bound), (12, 12, None), "{demand:?}");
    assert_eq!((grid.ready(), info.ready), (12, 12), "{}", info.why);
    assert!((5.0 * 30.0..7.0 * 30.0).contains(&demand.saved_secs), "{demand:?}");
    assert!(info.why.contains("30.0 s a build ask for 12"), "{}", info.why);
    // It is held though nobody claims, and by whoever leads.
    grid.later(900);
    grid.settle().await;
    grid.succeed().await;
    grid.settle().await;
    let held = grid.pool().await.demand.unwrap();
    assert_eq!((held.target, grid.ready()), (12, 12), "{held:?}");
    let until = held.holds_until.unwrap();
    assert!((NOW + 1800..NOW + 1950).contains(&until), "{held:?}");
    grid.later(1800);
    grid.settle().await;
    let over = grid.pool().await.demand.unwrap();
    assert!(over.target < 12 && over.holds_until.is_none_or(|next| next > until), "{over:?}");
    grid.later(3600);
    grid.settle().await;
    let over = grid.pool().await;
    assert_eq!(over.demand.unwrap().target, 2);
    assert_eq!(grid.ready(), 4, "what is more than twice that is removed");
}

#[tokio::test]
async fn demand_is_written_down_seldom_and_goes_with_its_pool() {
    let mut grid = Grid::new(&["a"]).await;
    grid.set("p", following(0, 9)).await;
    grid.settle().await;
    assert_eq!(grid.kept("p").await, None, "nothing is known of it");
    grid.claims("p", 0, 1).await;
    grid.round(&[]).await;
    let first = grid.kept("p").await.expect("it was never written");
    grid.claims("p", 1, 2).await;
    grid.round(&[]).await;
    assert_eq!(grid.kept("p").await.as_ref(), Some(&first), "not each time");
    for _ in 0..6 {
        grid.round(&[]).await;
    }
    let second = grid.kept("p").await.unwrap();
    assert!(second.rate(NOW + 9) > 1.5 * first.rate(NOW + 9));
    grid.set("p", SetPool { draining: true, ..following(0, 9) }).await;
    grid.work();
    grid.settle().await;
    grid.fleet.delete_pool("p").await.unwrap();
    for _ in 0..8 {
        grid.round(&[]).await;
    }
    assert_eq!(grid.kept("p").await, None);
}

#[tokio::test]
async fn what_was_to_be_written_of_a_pool_that_is_deleted_meanwhile_is_not() {
    let grid = Grid::new(&[]).await;
    grid.set("p", following(0, 9)).await;
    let (late, _) = {
        let mut board = grid.fleet.board.lock().await;
        board.catch_up(&grid.fleet.state).await.unwrap();
        let mut demands = Demands::default();
        demands.built("p", Some(1));
        demands.apply(&board, Vec::new(), Room::default(), NOW);
        demands.keep(&board, NOW).expect("it has changed")
    };
    grid.fleet.delete_pool("p").await.unwrap();
    assert_eq!(grid.lead.commit(late).await.unwrap_err().kind(), Kind::Conflict);
}

#[tokio::test]
async fn of_many_pools_all_are_written_down_in_turn() {
    let grid = Grid::new(&[]).await;
    let names: Vec<String> = (0..70).map(|n| format!("p{n:02}")).collect();
    for name in &names {
        grid.set(name, following(0, 9)).await;
    }
    let mut board = grid.fleet.board.lock().await;
    board.catch_up(&grid.fleet.state).await.unwrap();
    let (mut demands, mut written) = (Demands::default(), BTreeSet::new());
    for time in 0..3 {
        names.iter().for_each(|name| demands.built(name, Some(1 + time)));
        demands.apply(&board, Vec::new(), Room::default(), NOW);
        let (write, keys) = demands.keep(&board, NOW + 10 * time).expect("all have changed");
        grid.lead.commit(write).await.unwrap();
        board.wrote(&keys);
        board.catch_up(&grid.fleet.state).await.unwrap();
        written.extend(keys);
    }
    assert_eq!(written.len(), names.len());
}

#[tokio::test]
async fn a_budget_of_disk_bounds_a_pool_and_what_is_beyond_it_goes() {
    let mut grid = Grid::new(&["a", "b"]).await;
    grid.set("p", SetPool { disk_budget: Some(3 * SIZE + 5), ..set(2, 6) }).await;
    grid.settle().await;
    let info = grid.pool().await;
    assert_eq!((grid.ready(), info.demand.unwrap().bound), (3, Some(PoolBound::Disk)));
    assert!(info.why.contains("bound to 3 by disk"), "{}", info.why);
    grid.set("p", SetPool { disk_budget: None, ..set(2, 6) }).await;
    grid.claims("p", 0, 2).await;
    grid.settle().await;
    assert_eq!(grid.ready(), 6, "{}", grid.pool().await.why);
    grid.set("p", SetPool { disk_budget: Some(SIZE), ..set(2, 6) }).await;
    grid.settle().await;
    assert_eq!(grid.ready(), 1, "{}", grid.pool().await.why);
}

#[tokio::test]
async fn bounds_that_were_set_hold_whatever_demand_asks_for() {
    let mut grid = Grid::new(&["a", "b"]).await;
    grid.nodes.values_mut().for_each(|node| node.took_millis = Some(30_000));
    grid.set("p", following(0, 3)).await;
    grid.claims("p", 0, 30).await;
    grid.settle().await;
    let bound = |info: PoolInfo| info.demand.map(|d| (d.target, d.bound)).unwrap();
    assert_eq!(bound(grid.pool().await), (3, Some(PoolBound::Ceiling)));
    grid.set("p", SetPool { max: Some(2), ..following(0, 90) }).await;
    grid.settle().await;
    assert_eq!(bound(grid.pool().await), (2, Some(PoolBound::Ceiling)));
    grid.set("p", SetPool { per_node: Some(2), ..following(0, 90) }).await;
    grid.settle().await;
    assert_eq!(bound(grid.pool().await), (4, Some(PoolBound::PerNode)));
    // A node that is not heard of for a while makes it no smaller.
    for _ in 0..=AWAY {
        grid.round(&["a"]).await;
    }
    assert_eq!(bound(grid.pool().await), (4, Some(PoolBound::PerNode)));
    // Without following, it is as it was set.
    grid.set("p", set(1, 1)).await;
    grid.settle().await;
    assert_eq!(bound(grid.pool().await), (1, None));
}

#[tokio::test]
async fn what_pools_may_have_together_goes_to_where_it_saves_most() {
    // 8 volumes on each node, of all pools.
    let policy = Policy { pools_disk: 8, ..Policy::default() };
    let mut grid = Grid::with(&["a", "b"], policy).await;
    grid.nodes.values_mut().for_each(|node| node.took_millis = Some(20_000));
    grid.set("p", following(1, 40)).await;
    grid.set("q", following(1, 40)).await;
    grid.claims("q", 0, 10).await;
    grid.claims("p", 0, 40).await;
    for _ in 0..4 {
        grid.settle().await;
    }
    let p = grid.fleet.pool("p").await.unwrap().demand.unwrap();
    let q = grid.fleet.pool("q").await.unwrap().demand.unwrap();
    assert!(p.bound.is_none() && p.target == p.wanted, "{p:?}");
    assert_eq!((q.bound, q.target), (Some(PoolBound::Disk), 16 - p.target), "{q:?}");
    assert_eq!((grid.ready_of("p"), grid.ready_of("q")), (p.target as usize, q.target as usize));
    assert!(grid.nodes.values().all(|node| node.ready.len() <= 8));
}
