//! A fleet of modelled nodes under the real control: pools fill and refill, claims are served once, nodes go and
//! come back.

mod cancel;
mod demand;
mod fences;
mod forged;
mod keeps;
mod life;
mod lots;
mod reads;
mod released;
mod returns;
mod schedules;
mod unreadable;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::error::ErrorBody;
use api::goal::{
    DiskRoom, Goal, GoalItem, GoalState, ItemState, ItemStatus, ReadyVolume, StatusReport,
};
use api::keep::{HeldImage, SetKeep};
use api::lease::{BreakLease, HeldLease, TakeLease, TransferLease};
use api::life::{NodeVolume, Standing};
use api::operation::OperationState;
use api::place::Policy;
use api::pool::{Claimed, Follow, NewClaim, PoolInfo, Served, SetPool};
use api::released::Released;
use image::{Error, Kind};

use super::control::Look;
use super::heard::AWAY;
use super::memory::Memory;
use super::writes::{Write, Writes};
use super::{Fleet, State, Terms};
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::state::Lead;
use crate::state::keys::{Transaction, Versioned, encode};
use crate::tests::fake;

const NOW: u64 = 1_700_000_000;
const SIZE: u64 = 1 << 20;

/// A node that does what it is told when it is let.
struct Node {
    run: u64,
    number: u64,
    goal: GoalState,
    done: BTreeMap<String, ItemStatus>,
    ready: Vec<ReadyVolume>,
    /// Volumes that were handed out, by request.
    given: BTreeMap<String, String>,
    built: BTreeSet<String>,
    fails: bool,
    /// How long it says that a build took.
    took_millis: Option<u64>,
    free: u64,
    volumes: Vec<NodeVolume>,
    held: BTreeSet<HeldImage>,
    erased: Vec<Released>,
    leases: Vec<HeldLease>,
    released: Vec<HeldLease>,
}

impl Node {
    fn new() -> Self {
        Self {
            run: 1,
            number: 0,
            goal: GoalState::default(),
            done: BTreeMap::new(),
            ready: Vec::new(),
            given: BTreeMap::new(),
            built: BTreeSet::new(),
            fails: false,
            took_millis: None,
            free: 300 * SIZE,
            volumes: Vec::new(),
            held: BTreeSet::new(),
            erased: Vec::new(),
            leases: Vec::new(),
            released: Vec::new(),
        }
    }

    fn report(&mut self) -> StatusReport {
        self.number += 1;
        StatusReport {
            run: self.run.to_string(),
            number: self.number,
            goal: self.goal.version,
            items: self.done.values().cloned().collect(),
            ready: self.ready.clone(),
            volumes: self.volumes.clone(),
            held: self.held.iter().copied().collect(),
            disk: DiskRoom { size: (1000 * SIZE).max(2 * self.free), free: self.free },
            leases: self.leases.clone(),
            released: std::mem::take(&mut self.released),
            erased: self.erased.clone(),
            ..StatusReport::default()
        }
    }

    fn take(&mut self, goal: GoalState) {
        if goal.version >= self.goal.version {
            self.done.retain(|id, _| goal.items.iter().any(|item| item.id == *id));
            let is_held = |image| {
                let holds = |item: &GoalItem| matches!(item.goal, Goal::Hold { image: of, .. } if of == image);
                goal.items.iter().any(holds)
            };
            self.held.retain(|held| is_held(held.image));
            self.goal = goal;
        }
    }

    fn work(&mut self) {
        for item in self.goal.items.clone() {
            if !self.done.contains_key(&item.id) {
                let status = self.one(&item);
                self.done.insert(item.id, status);
            }
        }
    }

    fn one(&mut self, item: &GoalItem) -> ItemStatus {
        let id = item.id.clone();
        let mut status = ItemStatus {
            id,
            state: ItemState::Done,
            volume: None,
            built: false,
            took_millis: None,
            error: None,
        };
        let failed = |kind, what: &str| Some(ErrorBody::from(&Error::new(kind, what.to_owned())));
        match &item.goal {
            Goal::Build { .. } if self.fails => status.error = failed(Kind::Io, "no"),
            Goal::Build { pool, kind, .. } => {
                assert!(self.built.insert(item.id.clone()), "built twice");
                let (id, pool, kind) = (item.id.clone(), pool.clone(), kind.clone());
                self.ready.push(ReadyVolume { id, pool, kind, state: "ready".into() });
                self.free -= SIZE;
                status.took_millis = self.took_millis;
            }
            Goal::Claim { cancelled: true, .. } => {
                status.error = failed(Kind::Cancelled, "nobody waits");
            }
            Goal::Claim { request, pool, build, .. } => {
                let at = self.ready.iter().position(|v| v.pool == *pool);
                match (at, build) {
                    (Some(at), _) => {
                        let volume = self.ready.remove(at).id;
                        let before = self.given.insert(request.clone(), volume.clone());
                        assert_eq!(before, None, "handed out twice");
                        status.volume = Some(volume);
                    }
                    (None, Some(_)) => {
                        self.given.insert(request.clone(), item.id.clone());
                        (status.volume, status.built) = (Some(item.id.clone()), true);
                    }
                    (None, None) => status.error = failed(Kind::Gone, "none is ready"),
                }
            }
            Goal::Hold { .. } if self.fails => status.error = failed(Kind::Full, "no room"),
            Goal::Hold { image, size } => {
                self.held.insert(HeldImage { image: *image, size: *size, whole: true });
            }
            Goal::Discard { volume } => self.ready.retain(|v| v.id != *volume),
            Goal::Unknown => status.error = failed(Kind::Unsupported, "not known"),
        }
        if status.error.is_some() {
            status.state = ItemState::Failed;
        }
        status
    }
}

struct Grid {
    fleet: Arc<Fleet>,
    archive: Arc<fake::Fake>,
    now: Arc<AtomicU64>,
    memory: Memory,
    lead: Arc<Lead>,
    nodes: BTreeMap<String, Node>,
}

impl Grid {
    async fn new(nodes: &[&str]) -> Self {
        Self::over(State::in_memory("grid").await, nodes, Policy::default()).await
    }

    async fn with(nodes: &[&str], policy: Policy) -> Self {
        Self::over(State::in_memory("grid").await, nodes, policy).await
    }

    async fn over(state: State, nodes: &[&str], policy: Policy) -> Self {
        let now = Arc::new(AtomicU64::new(NOW));
        let clock = {
            let now = Arc::clone(&now);
            Clock::new(move || now.load(Ordering::SeqCst))
        };
        let dir = tempfile::tempdir().unwrap();
        let authority = crate::Authority::open(&dir.path().join("ca"), NOW).unwrap();
        let key = authority.signing_key().clone();
        let archive = fake::Fake::new();
        let store: Arc<dyn crate::Archive> = archive.clone();
        let catalog =
            Catalog::open(state.clone(), store, key, clock.clone(), vec![]).await.unwrap();
        let lead = state.lead("controllers", "t", Duration::from_secs(10)).await.unwrap();
        let terms = Terms { policy, ..Terms::default() };
        let fleet = Fleet::new(state, clock, Arc::new(catalog), terms);
        let lead = Arc::new(lead);
        fleet.begin(Arc::clone(&lead));
        let nodes = nodes.iter().map(|name| ((*name).to_owned(), Node::new())).collect();
        Self { fleet, archive, now, memory: Memory::default(), lead, nodes }
    }

    fn later(&self, seconds: u64) {
        self.now.fetch_add(seconds, Ordering::SeqCst);
    }

    /// All nodes but some report, once, and are told; then there is a pass.
    async fn round(&mut self, but: &[&str]) {
        for (name, node) in &mut self.nodes {
            if but.contains(&name.as_str()) {
                continue;
            }
            let told = self.fleet.report(name, node.report(), Duration::ZERO).await.unwrap();
            node.take(told.goal);
        }
        self.fleet.pass(&self.lead, &mut self.memory, Look::All).await.unwrap();
        self.later(1);
    }

    fn work(&mut self) {
        self.nodes.values_mut().for_each(Node::work);
    }

    /// Until nothing is left to be done.
    async fn settle(&mut self) {
        for _ in 0..6 {
            self.round(&[]).await;
            self.work();
        }
        self.round(&[]).await;
    }

    async fn pool(&self) -> PoolInfo {
        self.fleet.pool("p").await.unwrap()
    }

    fn ready(&self) -> usize {
        self.nodes.values().map(|node| node.ready.len()).sum()
    }
}

fn set(low: u32, target: u32) -> SetPool {
    SetPool { size: Some(SIZE), low, target, ..SetPool::default() }
}

fn claim(n: u8, node: Option<&str>) -> NewClaim {
    let (volume, node) = (format!("v{n}"), node.map(str::to_owned));
    NewClaim { request: format!("{n:032x}"), volume, node, only: false }
}

#[tokio::test]
async fn a_pool_fills_and_refills_without_overshoot() {
    let mut grid = Grid::new(&["a", "b", "c"]).await;
    grid.fleet.set_pool("p", set(2, 6)).await.unwrap();
    for _ in 0..3 {
        grid.round(&[]).await;
    }
    assert_eq!((grid.pool().await.building, grid.ready()), (6, 0), "told, and not told again");
    let told: usize = grid.nodes.values().map(|n| n.goal.items.len()).sum();
    assert_eq!(told, 6);
    grid.settle().await;
    assert_eq!((grid.ready(), grid.pool().await.ready), (6, 6));
    assert!(grid.nodes.values().all(|n| n.ready.len() == 2 && n.goal.items.is_empty()));
    for n in 0..4 {
        grid.fleet.claim("x", "p", claim(n, None), Duration::ZERO).await.unwrap();
        grid.round(&[]).await;
        grid.work();
        assert!(grid.ready() + grid.nodes.values().map(|n| n.given.len()).sum::<usize>() <= 6);
    }
    grid.settle().await;
    // Two are left: at the threshold nothing is built.
    assert_eq!(grid.ready(), 2, "{}", grid.pool().await.why);
    grid.fleet.claim("x", "p", claim(9, None), Duration::ZERO).await.unwrap();
    grid.settle().await;
    assert_eq!(grid.ready(), 6, "{}", grid.pool().await.why);
}

#[tokio::test]
async fn a_claim_is_served_once_where_it_was_asked_for_or_elsewhere_or_built() {
    let mut grid = Grid::new(&["a", "b"]).await;
    grid.fleet.set_pool("p", SetPool { draining: false, ..set(0, 0) }).await.unwrap();
    grid.settle().await;
    grid.nodes.get_mut("b").unwrap().ready = vec![];
    // Nothing is ready anywhere: it is built where it is wanted.
    let asked = claim(1, Some("b"));
    let first = grid.fleet.claim("x", "p", asked.clone(), Duration::ZERO).await.unwrap();
    assert_eq!(first.state, OperationState::Running, "{first:?}");
    grid.settle().await;
    let done = grid.fleet.claim("x", "p", asked.clone(), Duration::ZERO).await.unwrap();
    let result = |value| serde_json::from_value::<Claimed>(value).unwrap();
    let got = result(done.result.unwrap());
    assert_eq!((got.node.as_str(), got.served), ("b", Served::Built));
    let other = NewClaim { volume: "w".into(), ..asked };
    let misused = grid.fleet.claim("x", "p", other, Duration::ZERO).await.unwrap_err();
    assert_eq!(misused.kind(), Kind::Conflict);

    grid.fleet.set_pool("p", SetPool { per_node: Some(1), ..set(1, 2) }).await.unwrap();
    grid.settle().await;
    for (n, node, served) in [(2, "b", Served::Ready), (3, "b", Served::Elsewhere)] {
        let asked = claim(n, Some("b"));
        grid.fleet.claim("x", "p", asked.clone(), Duration::ZERO).await.unwrap();
        // Both nodes are told before either builds again.
        grid.round(&[]).await;
        for each in grid.nodes.values_mut() {
            each.fails = true;
            each.work();
        }
        grid.round(&[]).await;
        let done = grid.fleet.operation(&asked.request, Duration::ZERO).await.unwrap();
        let got = result(done.result.unwrap());
        assert_eq!(got.served, served, "{n} {node}");
    }
    assert_eq!(grid.nodes.values().map(|n| n.given.len()).sum::<usize>(), 3);
}

#[tokio::test]
async fn a_node_that_had_given_it_away_costs_nothing_and_another_is_told() {
    let mut grid = Grid::new(&["a", "b"]).await;
    grid.fleet.set_pool("p", SetPool { per_node: Some(1), ..set(1, 2) }).await.unwrap();
    grid.settle().await;
    let asked = claim(1, Some("a"));
    grid.fleet.claim("x", "p", asked.clone(), Duration::ZERO).await.unwrap();
    // Meanwhile somebody on the node took it.
    grid.nodes.get_mut("a").unwrap().ready.clear();
    grid.settle().await;
    let done = grid.fleet.operation(&asked.request, Duration::ZERO).await.unwrap();
    assert_eq!(done.state, OperationState::Done, "{done:?}");
    let got: Claimed = serde_json::from_value(done.result.unwrap()).unwrap();
    assert_eq!((got.node.as_str(), got.served), ("b", Served::Elsewhere));
}

#[tokio::test]
async fn a_node_that_vanishes_is_replaced_and_one_that_returns_counts_once() {
    let mut grid = Grid::new(&["a", "b", "c"]).await;
    grid.fleet.set_pool("p", set(3, 3)).await.unwrap();
    grid.settle().await;
    assert_eq!(grid.pool().await.ready, 3);
    for _ in 0..=AWAY {
        grid.round(&["a"]).await;
    }
    assert_eq!(grid.pool().await.ready, 2, "it does not count");
    for _ in 0..4 {
        grid.round(&["a"]).await;
        grid.work();
    }
    assert_eq!(grid.pool().await.ready, 3);
    // Told more than it can hold, what is too many goes.
    grid.settle().await;
    assert_eq!((grid.pool().await.ready, grid.ready()), (4, 4), "up to the maximum it stays");
    grid.fleet.set_pool("p", SetPool { max: Some(3), ..set(3, 3) }).await.unwrap();
    grid.settle().await;
    assert_eq!(grid.ready(), 3);
}

#[tokio::test]
async fn a_build_that_fails_is_made_elsewhere_and_not_tried_there_again_at_once() {
    let mut grid = Grid::new(&["a", "b"]).await;
    grid.nodes.get_mut("a").unwrap().fails = true;
    grid.fleet.set_pool("p", set(2, 2)).await.unwrap();
    grid.settle().await;
    assert_eq!(grid.nodes["b"].ready.len(), 2, "{}", grid.pool().await.why);
    assert_eq!(grid.nodes["a"].ready.len(), 0);
}

#[tokio::test]
async fn a_placement_that_has_just_started_does_not_take_silence_for_absence() {
    let mut grid = Grid::new(&["a", "b"]).await;
    grid.fleet.set_pool("p", set(2, 2)).await.unwrap();
    grid.settle().await;
    // The same state under another process, which has heard of one node only.
    let Fleet { state, clock, catalog, .. } = &*grid.fleet;
    grid.fleet = Fleet::new(state.clone(), clock.clone(), Arc::clone(catalog), Terms::default());
    grid.fleet.begin(Arc::clone(&grid.lead));
    grid.memory = Memory::default();
    grid.round(&["a"]).await;
    grid.round(&["a"]).await;
    assert!(grid.nodes["b"].goal.items.is_empty(), "{:?}", grid.nodes["b"].goal);
    grid.settle().await;
    assert_eq!(grid.ready(), 2);
}

#[tokio::test]
async fn a_pool_of_which_something_is_left_stays_until_it_is_drained() {
    let mut grid = Grid::new(&["a"]).await;
    grid.fleet.set_pool("p", set(1, 2)).await.unwrap();
    grid.settle().await;
    let refused = grid.fleet.delete_pool("p").await.unwrap_err();
    assert!(refused.kind() == Kind::Conflict && refused.message().contains("drain"), "{refused}");
    grid.fleet.set_pool("p", SetPool { draining: true, ..set(1, 2) }).await.unwrap();
    grid.settle().await;
    grid.fleet.delete_pool("p").await.unwrap();
    assert_eq!(grid.fleet.pool("p").await.unwrap_err().kind(), Kind::Gone);
}

/// Of more than the volumes of these tests hold.
fn layout() -> api::layout::Layout {
    serde_json::from_str(r#"{"partitions":[{"fs":"ext4","size":1073741824}]}"#).unwrap()
}

#[tokio::test]
async fn what_a_pool_cannot_be_is_refused() {
    let grid = Grid::new(&[]).await;
    let cases = [
        (SetPool { size: None, ..set(1, 2) }, "needs a size"),
        (set(3, 2), "above the target"),
        (SetPool { max: Some(1), ..set(1, 2) }, "below the target"),
        (SetPool { follow: Some(Follow::between(3, 2)), ..set(1, 2) }, "above the ceiling"),
        (SetPool { follow: Some(Follow::between(0, 1 << 30)), ..set(1, 2) }, "at most 1000000"),
        (
            SetPool { max: Some(2), follow: Some(Follow::between(3, 9)), ..set(1, 2) },
            "below the floor",
        ),
        (SetPool { disk_budget: Some(SIZE - 1), ..set(1, 2) }, "1 of its volumes take"),
        (SetPool { build_rate: Some(0), ..set(1, 2) }, "build nothing"),
        (SetPool { size: Some(5), ..set(1, 2) }, "4096"),
        (SetPool { sector: Some(520), ..set(1, 2) }, "512 or 4096"),
        (SetPool { image: Some("nobody:1".into()), ..set(1, 2) }, "nobody:1"),
        (SetPool { layout: Some(layout()), ..set(1, 2) }, "no room for partitions"),
        (SetPool { layout: Some(layout()), image: Some("a:1".into()), ..set(1, 2) }, "an image"),
    ];
    for (wrong, says) in cases {
        let error = grid.fleet.set_pool("p", wrong).await.unwrap_err();
        assert!(error.message().contains(says), "{error}");
    }
    assert_eq!(grid.fleet.set_pool("a/b", set(1, 2)).await.unwrap_err().kind(), Kind::Invalid);
    assert!(grid.fleet.pools().await.unwrap().pools.is_empty());
}

const VOLUME: &str = "0123456789abcdef0123456789abcdef";

fn take(holder: &str) -> TakeLease {
    TakeLease { holder: holder.into(), called: "web".into(), epoch: None, run: None }
}

#[tokio::test]
async fn one_node_writes_a_volume_and_others_are_told_who() {
    let grid = Grid::new(&[]).await;
    let first = grid.fleet.take_lease(VOLUME, &take("a")).await.unwrap();
    assert_eq!((first.epoch, first.lease_secs), (1, 900));
    let going_on = TakeLease { epoch: Some(1), ..take("a") };
    assert_eq!(grid.fleet.take_lease(VOLUME, &going_on).await.unwrap(), first);
    // Given anew it is another: that the one before is not needed any more may still be on its way.
    assert_eq!(grid.fleet.take_lease(VOLUME, &take("a")).await.unwrap().epoch, 2);
    let late = [HeldLease { volume: VOLUME.into(), epoch: 1 }];
    grid.fleet.release("a", &late).await.unwrap();
    let refused = grid.fleet.take_lease(VOLUME, &take("b")).await.unwrap_err();
    assert!(
        refused.kind() == Kind::Conflict && refused.message().contains("node a has"),
        "{refused}"
    );
    let to = |epoch| TransferLease { epoch, to: "b".into() };
    for (by, epoch) in [(Some("b"), 2), (Some("a"), 1)] {
        let refused = grid.fleet.transfer_lease(VOLUME, by, &to(epoch)).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Conflict, "{by:?} {epoch}");
    }
    let given = grid.fleet.transfer_lease(VOLUME, Some("a"), &to(2)).await.unwrap();
    assert_eq!(given.epoch, 3);
    assert_eq!(grid.fleet.leases().await.unwrap().leases[0].holder.as_deref(), Some("b"));
    assert_eq!(grid.fleet.take_lease("../x", &take("a")).await.unwrap_err().kind(), Kind::Invalid);
}

/// A lease of 900 s is another's after so long: seconds are counted whole, and clocks differ.
const LAPSED: u64 = 903;

#[tokio::test]
async fn a_lease_lasts_while_its_holder_is_heard_of_and_its_time_after_that() {
    let mut grid = Grid::new(&["a"]).await;
    grid.fleet.take_lease(VOLUME, &take("a")).await.unwrap();
    grid.later(899);
    grid.round(&[]).await;
    grid.later(LAPSED - 2);
    assert!(grid.fleet.take_lease(VOLUME, &take("b")).await.is_err(), "it was heard of since");
    grid.later(1);
    let taken = grid.fleet.take_lease(VOLUME, &take("b")).await.unwrap();
    assert_eq!(taken.epoch, 2);
    // Who comes back is told that it has lost it.
    let held = HeldLease { volume: VOLUME.into(), epoch: 1 };
    let node = grid.nodes.get_mut("a").unwrap();
    node.leases = vec![held];
    let told = grid.fleet.report("a", node.report(), Duration::from_secs(50)).await.unwrap();
    assert_eq!(told.lost, [VOLUME]);
}

#[tokio::test]
async fn a_placement_that_has_just_started_waits_before_it_gives_a_lease_to_another() {
    let mut grid = Grid::new(&["a"]).await;
    grid.fleet.take_lease(VOLUME, &take("a")).await.unwrap();
    grid.later(5000);
    let Fleet { state, clock, catalog, .. } = &*grid.fleet;
    grid.fleet = Fleet::new(state.clone(), clock.clone(), Arc::clone(catalog), Terms::default());
    grid.fleet.begin(Arc::clone(&grid.lead));
    grid.later(LAPSED - 1);
    assert!(grid.fleet.take_lease(VOLUME, &take("b")).await.is_err());
    grid.later(1);
    grid.fleet.take_lease(VOLUME, &take("b")).await.unwrap();
}

#[tokio::test]
async fn who_has_just_taken_a_lease_has_it_for_its_time_though_it_has_not_reported() {
    let grid = Grid::new(&[]).await;
    grid.later(5000);
    grid.fleet.take_lease(VOLUME, &take("a")).await.unwrap();
    grid.later(LAPSED - 1);
    assert!(grid.fleet.take_lease(VOLUME, &take("b")).await.is_err());
    grid.later(1);
    grid.fleet.take_lease(VOLUME, &take("b")).await.unwrap();
}

#[tokio::test]
async fn a_lease_that_is_broken_is_free_when_its_holder_has_stopped() {
    let mut grid = Grid::new(&["a"]).await;
    grid.round(&[]).await;
    grid.fleet.take_lease(VOLUME, &take("a")).await.unwrap();
    let held = HeldLease { volume: VOLUME.into(), epoch: 1 };
    let broken = BreakLease { why: "moving".into(), at_once: false };
    let info = grid.fleet.break_lease(VOLUME, "admin", &broken).await.unwrap();
    assert!(info.revoked && info.holder.as_deref() == Some("a"));
    let wait = grid.fleet.take_lease(VOLUME, &take("b")).await.unwrap_err();
    assert!(wait.message().contains("being taken from node a"), "{wait}");
    let node = grid.nodes.get_mut("a").unwrap();
    node.leases = vec![held.clone()];
    let told = grid.fleet.report("a", node.report(), Duration::ZERO).await.unwrap();
    assert_eq!(told.lost, [VOLUME]);
    // What it says of an earlier epoch frees nothing.
    node.released = vec![HeldLease { epoch: 0, ..held.clone() }];
    grid.fleet.report("a", node.report(), Duration::ZERO).await.unwrap();
    assert!(grid.fleet.take_lease(VOLUME, &take("b")).await.is_err());
    (node.leases, node.released) = (vec![], vec![held]);
    grid.fleet.report("a", node.report(), Duration::ZERO).await.unwrap();
    assert_eq!(grid.fleet.take_lease(VOLUME, &take("b")).await.unwrap().epoch, 2);
    let at_once = BreakLease { at_once: true, ..broken };
    let info = grid.fleet.break_lease(VOLUME, "admin", &at_once).await.unwrap();
    assert_eq!((info.holder, info.broken.unwrap().holder.as_str()), (None, "b"));
    assert_eq!(grid.fleet.take_lease(VOLUME, &take("a")).await.unwrap().epoch, 3);
}

#[tokio::test]
async fn after_a_restore_no_lease_is_given_until_those_before_it_are_over() {
    let grid = Grid::new(&[]).await;
    let until = Transaction::default().put("not_before", encode(&(NOW + 100)));
    grid.fleet.state.commit(until).await.unwrap();
    let wait = grid.fleet.take_lease(VOLUME, &take("a")).await.unwrap_err();
    assert_eq!(wait.kind(), Kind::Busy(Duration::from_secs(100)));
    grid.later(100);
    grid.fleet.take_lease(VOLUME, &take("a")).await.unwrap();
}

#[tokio::test]
async fn who_is_to_remove_what_is_ready_is_not_told_to_hand_it_out() {
    let mut grid = Grid::new(&["a", "b"]).await;
    grid.fleet.set_pool("p", set(4, 4)).await.unwrap();
    grid.settle().await;
    grid.fleet.set_pool("p", SetPool { max: Some(1), ..set(0, 1) }).await.unwrap();
    // They are told to remove three, and have not yet.
    grid.round(&[]).await;
    assert_eq!((grid.ready(), grid.pool().await.ready), (4, 4));
    for n in 0..2 {
        grid.fleet.claim("x", "p", claim(n, None), Duration::ZERO).await.unwrap();
    }
    grid.settle().await;
    let done = grid.fleet.operations().await.unwrap().operations;
    let results = done.into_iter().map(|done| done.result.unwrap());
    let served = results.map(|result| serde_json::from_value::<Claimed>(result).unwrap().served);
    let served: Vec<_> = served.collect();
    assert_eq!(served.iter().filter(|served| **served == Served::Built).count(), 1, "{served:?}");
    assert!(grid.nodes.values().all(|node| node.done.values().all(|done| done.error.is_none())));
}

#[tokio::test]
async fn of_what_is_written_together_one_that_conflicts_keeps_none_of_the_others() {
    let grid = Grid::new(&[]).await;
    let mut board = grid.fleet.board.lock().await;
    board.catch_up(&grid.fleet.state).await.unwrap();
    let write = |node: &str, seen: Option<&Versioned>| {
        let key = super::goals::key(node);
        let write = Transaction::default().unchanged(&key, seen);
        let write = write.put(&key, encode(&GoalState::default()));
        Write { node: Some(node.to_owned()), keys: vec![key], write }
    };
    let stale = Versioned { version: 99, value: vec![] };
    let all = vec![write("a", None), write("b", Some(&stale)), write("c", None)];
    let writes = Writes { all, left: BTreeSet::new() };
    let again = grid.fleet.write(&grid.lead, &mut board, writes).await.unwrap();
    assert_eq!(again, ["b".to_owned()].into());
    let told = grid.fleet.state.list_versioned::<GoalState>("goals/").await.unwrap();
    let told: Vec<_> = told.into_iter().map(|(node, ..)| node).collect();
    assert_eq!(told, ["a", "c"]);
}

#[tokio::test]
async fn a_burst_of_claims_is_served_however_many_there_are() {
    let mut grid = Grid::new(&["a"]).await;
    grid.nodes.get_mut("a").unwrap().free = 1000 * SIZE;
    grid.fleet.set_pool("p", set(200, 200)).await.unwrap();
    // More than one pass decides on.
    grid.settle().await;
    grid.settle().await;
    assert_eq!(grid.ready(), 200);
    for n in 0..200 {
        grid.fleet.claim("x", "p", claim(n, None), Duration::ZERO).await.unwrap();
    }
    for _ in 0..10 {
        grid.round(&[]).await;
        grid.work();
    }
    let all = grid.fleet.operations().await.unwrap().operations;
    assert!(all.len() == 200 && all.iter().all(|o| o.state == OperationState::Done));
    assert_eq!(grid.nodes["a"].given.len(), 200);
}

#[tokio::test]
async fn who_had_none_is_told_again_when_nobody_else_is_left_and_not_for_ever() {
    let mut grid = Grid::new(&["a"]).await;
    grid.fleet.set_pool("p", set(0, 1)).await.unwrap();
    grid.fleet.set_pool("p", set(1, 1)).await.unwrap();
    grid.settle().await;
    assert_eq!(grid.ready(), 1);
    grid.fleet.claim("x", "p", claim(1, None), Duration::ZERO).await.unwrap();
    grid.round(&[]).await;
    // Somebody took it at the node itself meanwhile.
    grid.nodes.get_mut("a").unwrap().ready.clear();
    grid.settle().await;
    let done = grid.fleet.claim("x", "p", claim(1, None), Duration::ZERO).await.unwrap();
    assert_eq!(done.state, OperationState::Done, "{done:?}");

    // One that says it has, and never does.
    for _ in 0..24 {
        grid.nodes.get_mut("a").unwrap().free = 0;
        grid.fleet.claim("x", "p", claim(2, None), Duration::ZERO).await.unwrap();
        grid.round(&[]).await;
        let ready = std::mem::take(&mut grid.nodes.get_mut("a").unwrap().ready);
        grid.work();
        grid.nodes.get_mut("a").unwrap().ready = ready;
    }
    let ended = grid.fleet.claim("x", "p", claim(2, None), Duration::ZERO).await.unwrap();
    assert_eq!(ended.state, OperationState::Failed, "{ended:?}");
    assert!(ended.error.unwrap().message.contains("8 times"));
}
