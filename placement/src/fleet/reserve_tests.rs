//! Nodes of four CPUs each, and whoever wants to have them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::fleet::Resources;
use api::place::{Among, Of, PlaceAsk, PlaceRequest};
use api::stats::{CpuStats, GuestTotals, Holdings, NodeStats, SCHEMA, SpaceStats};
use image::{Digest, Kind};
use proptest::prelude::*;

use super::super::heard::AWAY;
use super::super::{Fleet, State, Terms};
use super::*;
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::tests::fake;

const NOW: u64 = 1_700_000_000;
const CPUS: u64 = 4000;

struct Grid {
    /// Each with a view of its own, over one state.
    fleets: Vec<Arc<Fleet>>,
    now: Arc<AtomicU64>,
    nodes: Vec<String>,
}

impl Grid {
    async fn new(fleets: usize, nodes: usize) -> Self {
        let state = State::in_memory("grid").await;
        let now = Arc::new(AtomicU64::new(NOW));
        let clock = {
            let now = Arc::clone(&now);
            Clock::new(move || now.load(Ordering::SeqCst))
        };
        let dir = tempfile::tempdir().unwrap();
        let authority = crate::Authority::open(&dir.path().join("ca"), NOW).unwrap();
        let key = authority.signing_key().clone();
        let archive: Arc<dyn crate::Archive> = fake::Fake::new();
        let catalog = Catalog::open(state.clone(), archive, key, clock.clone(), vec![]);
        let catalog = Arc::new(catalog.await.unwrap());
        let lead = Arc::new(state.lead("controllers", "t", Duration::from_secs(10)).await.unwrap());
        // Each believes that it leads, as one does that was deposed and is in the middle of a choice.
        let one = || {
            let (state, catalog) = (state.clone(), Arc::clone(&catalog));
            let fleet = Fleet::new(state, clock.clone(), catalog, Terms::default());
            fleet.begin(Arc::clone(&lead));
            fleet
        };
        let nodes = (0..nodes).map(|n| format!("n{n}")).collect();
        let grid = Self { fleets: (0..fleets).map(|_| one()).collect(), now, nodes };
        grid.say(1);
        grid
    }

    fn say(&self, number: u64) {
        let cpu = Some(CpuStats { cores: 4, ..CpuStats::default() });
        for (fleet, node) in self.fleets.iter().flat_map(|f| self.nodes.iter().map(move |n| (f, n)))
        {
            let stats =
                NodeStats { schema: SCHEMA, number, cpu: cpu.clone(), ..NodeStats::default() };
            fleet.stats.take(node, "run", stats, fleet.clock.ticks());
        }
    }

    /// All nodes have a disk, too.
    fn space(&self) {
        for node in &self.nodes {
            let space = SpaceStats { holds: "volumes".into(), total_bytes: 100, free_bytes: 100 };
            let cpu = Some(CpuStats { cores: 4, ..CpuStats::default() });
            let spaces = vec![space];
            let stats =
                NodeStats { schema: SCHEMA, number: 2, cpu, spaces, ..NodeStats::default() };
            self.fleets[0].stats.take(node, "run", stats, NOW);
        }
    }

    fn later(&self, seconds: u64) {
        self.now.fetch_add(seconds, Ordering::SeqCst);
    }

    async fn ask(&self, owner: &str, ask: PlaceAsk) -> Result<PlaceAnswer> {
        self.fleets[0].place(owner, &ask).await
    }

    async fn reserved(&self) -> Vec<Reservation> {
        self.fleets[0].reservations().await.unwrap().reservations
    }

    /// That no node has more reserved than it has.
    async fn is_right(&self) -> usize {
        let all = self.reserved().await;
        for node in &self.nodes {
            let taken = all.iter().filter(|of| of.node == *node).map(|of| of.takes.cpu_milli);
            assert!(taken.sum::<u64>() <= CPUS, "{node}: {all:?}");
        }
        all.len()
    }
}

fn wants(id: &str, cpu_milli: u64) -> PlaceRequest {
    PlaceRequest::new(id, Resources { cpu_milli, ..Resources::default() })
}

fn reserve(requests: Vec<PlaceRequest>) -> PlaceAsk {
    PlaceAsk { requests, explain: false, reserve: true, term_secs: 60 }
}

#[tokio::test]
async fn a_reservation_counts_until_it_is_over_or_released() {
    let grid = Grid::new(1, 2).await;
    let answer = grid.ask("a", reserve(vec![wants("x", 3000), wants("y", 3000)])).await.unwrap();
    let nodes: Vec<_> =
        answer.placed.iter().map(|p| &p.decision.chosen.as_ref().unwrap().node).collect();
    assert_ne!(nodes[0], nodes[1]);
    let third = reserve(vec![wants("z", 3000)]);
    let none = grid.ask("a", third.clone()).await.unwrap();
    assert!(none.placed[0].reservation.is_none() && none.placed[0].decision.nearest.is_some());
    assert!(!none.placed[0].decision.impossible, "it would fit if nothing were reserved");
    // The same again is the same, and goes on for another term.
    grid.later(30);
    grid.say(2);
    let again = grid.ask("a", reserve(vec![wants("x", 3000)])).await.unwrap();
    let again = again.placed[0].reservation.clone().unwrap();
    assert_eq!((&again.node, again.until), (nodes[0], NOW + 90));
    let other = grid.ask("b", reserve(vec![wants("x", 3000)])).await.unwrap_err();
    assert_eq!(other.kind(), Kind::Conflict, "{other}");
    let other = grid.fleets[0].release_reservation("x", Some("b")).await.unwrap_err();
    assert_eq!(other.kind(), Kind::Denied);
    assert_eq!(grid.is_right().await, 2);
    // `y` is over, `x` is given back.
    grid.later(30);
    grid.say(3);
    assert_eq!(grid.is_right().await, 1);
    grid.fleets[0].release_reservation("x", None).await.unwrap();
    let gone = grid.fleets[0].release_reservation("x", None).await.unwrap_err();
    assert_eq!(gone.kind(), Kind::Gone);
    let placed = grid.ask("a", third).await.unwrap();
    assert!(placed.placed[0].reservation.is_some());
}

#[tokio::test]
async fn of_two_choices_of_one_moment_that_want_the_same_one_is_dropped() {
    let grid = Grid::new(1, 1).await;
    let fleet = &grid.fleets[0];
    let seen = fleet.seen().await.unwrap();
    let chosen = |id: &str| {
        let request = wants(id, 3000);
        let answer = fleet.choose(&seen, std::slice::from_ref(&request), false).unwrap();
        let decision = answer.placed[0].decision.clone();
        assert!(decision.chosen.is_some(), "each alone has room");
        Hold { request, owner: "a".into(), until: NOW + 60, decision }
    };
    let (first, second) = (chosen("x"), chosen("y"));
    fleet.write_down(&seen, first).await.unwrap();
    let dropped = fleet.write_down(&seen, second).await.unwrap_err();
    assert_eq!(dropped.kind(), Kind::Conflict);
    assert_eq!(grid.is_right().await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn however_many_race_no_node_is_promised_twice() {
    let grid = Grid::new(4, 3).await;
    let racers = (0..48).map(|n| {
        let fleet = Arc::clone(&grid.fleets[n % 4]);
        let ask = reserve(vec![wants(&format!("r{n}"), 1000)]);
        tokio::spawn(async move {
            loop {
                match fleet.place("a", &ask).await {
                    Err(error) if error.kind() == Kind::Retry => {}
                    done => return done.unwrap().placed[0].reservation.is_some(),
                }
            }
        })
    });
    let racers: Vec<_> = racers.collect();
    let mut won = 0;
    for racer in racers {
        won += usize::from(racer.await.unwrap());
    }
    assert_eq!((won, grid.is_right().await), (12, 12), "all there is, and no more");
}

#[tokio::test]
async fn a_node_that_says_what_cannot_be_keeps_nobody_from_choosing_others() {
    let grid = Grid::new(1, 2).await;
    let first =
        PlaceRequest::new("x", Resources { cpu_milli: 1000, disk: 1, ..Resources::default() });
    grid.space();
    let first = grid.ask("a", reserve(vec![first])).await.unwrap();
    let node = first.placed[0].reservation.clone().unwrap().node;
    let guests = GuestTotals { cpus: u32::MAX, memory_bytes: u64::MAX, ..GuestTotals::default() };
    let holdings =
        Holdings { volume_bytes: u64::MAX, promised_bytes: u64::MAX, ..Holdings::default() };
    let wild = NodeStats { schema: SCHEMA, number: 9, guests, holdings, ..NodeStats::default() };
    grid.fleets[0].stats.take(&node, "run", wild, NOW);
    let placed = grid.ask("a", reserve(vec![wants("y", 1000)])).await.unwrap();
    assert_ne!(placed.placed[0].reservation.as_ref().unwrap().node, node);
}

#[tokio::test]
async fn what_is_only_asked_changes_nothing_and_rules_hold_over_nodes() {
    let grid = Grid::new(1, 2).await;
    let ask = |reserve| {
        let image = PlaceRequest {
            image: Some(Digest::of_chunk(b"i")),
            image_bytes: 1 << 30,
            ..wants("x", 1000)
        };
        let requests = vec![image, wants("y", 1000)];
        PlaceAsk { requests, explain: true, reserve, term_secs: 60 }
    };
    let first = grid.ask("a", ask(false)).await.unwrap();
    assert_eq!(grid.ask("a", ask(false)).await.unwrap(), first);
    assert!(grid.reserved().await.is_empty());
    let scored = first.placed[0].scored.as_ref().unwrap();
    assert_eq!((scored.len(), first.placed[0].misses.as_ref().unwrap().len()), (2, 0));
    let among = Among { of: Of::Group("g".into()), level: "node".into() };
    let apart = |id: &str| PlaceRequest {
        group: Some("g".into()),
        apart: vec![among.clone()],
        ..wants(id, 1000)
    };
    let asks = ["p", "q", "r"].map(|id| grid.ask("a", reserve(vec![apart(id)])));
    let [p, q, r] = asks;
    let (p, q, r) = (p.await.unwrap(), q.await.unwrap(), r.await.unwrap());
    let node =
        |answer: &PlaceAnswer| answer.placed[0].reservation.as_ref().map(|of| of.node.clone());
    assert!(node(&p).is_some() && node(&q).is_some() && node(&p) != node(&q));
    assert_eq!(node(&r), None);
    // Who is not heard of is left out, by name.
    grid.later(AWAY);
    let away = grid.ask("a", ask(false)).await.unwrap();
    assert_eq!((away.left_out.len(), away.placed[0].decision.nodes), (2, 0));
    for (asked, says) in [
        (reserve(vec![]), "0 requests"),
        (reserve(vec![wants("x", 1), wants("x", 1)]), "there twice"),
        (PlaceAsk { term_secs: 0, ..reserve(vec![wants("x", 1)]) }, "a term of 0 s"),
    ] {
        let error = grid.ask("a", asked).await.unwrap_err();
        assert!(error.kind() == Kind::Invalid && error.message().contains(says), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_is_reserved_and_given_back_no_node_has_too_much(
        steps in prop::collection::vec((0u8..12, 1u64..5, 0u8..4, 0u64..40), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let grid = Grid::new(2, 3).await;
            for (number, (id, cpus, step, seconds)) in steps.into_iter().enumerate() {
                let (id, fleet) = (format!("r{id}"), &grid.fleets[usize::from(step % 2)]);
                if step < 3 {
                    let asked = fleet.place("a", &reserve(vec![wants(&id, cpus * 1000)])).await;
                    let fine = asked.as_ref().map_err(|e| e.kind());
                    assert!(matches!(fine, Ok(_) | Err(Kind::Conflict)), "{asked:?}");
                } else {
                    let _ = fleet.release_reservation(&id, Some("a")).await;
                }
                grid.later(seconds);
                grid.say(number as u64 + 2);
                grid.is_right().await;
            }
        });
    }
}
