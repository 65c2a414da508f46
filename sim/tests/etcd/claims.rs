//! Nodes that build and hand out volumes, and claims.

use std::collections::BTreeMap;
use std::time::Duration;

use api::goal::{
    DiskRoom, Goal, GoalItem, GoalState, ItemState, ItemStatus, ReadyVolume, StatusReport,
};
use api::pool::{Claimed, NewClaim, SetPool};
use api::stats::{CpuStats, NodeStats, SCHEMA};
use forebay_sim::history::claims::{Given, check as check_claims};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::etcd::until;
use crate::{Over, Placements};

/// The nodes.
pub const NODES: [&str; 2] = ["g0", "g1"];
/// What each has.
pub const CPUS: usize = 4;

/// A node that hands out what it is told, once each.
struct Giver {
    name: String,
    reports: u64,
    goal: GoalState,
    done: BTreeMap<String, ItemStatus>,
    ready: Vec<ReadyVolume>,
    given: Vec<Given>,
}

impl Giver {
    fn new(name: &str) -> Self {
        let (goal, done) = (GoalState::default(), BTreeMap::new());
        Self { name: name.into(), reports: 0, goal, done, ready: vec![], given: vec![] }
    }

    fn report(&mut self) -> StatusReport {
        self.reports += 1;
        StatusReport {
            run: "1".into(),
            number: self.reports,
            generation: self.goal.generation,
            goal: self.goal.version,
            items: self.done.values().cloned().collect(),
            ready: self.ready.clone(),
            disk: DiskRoom { size: 1 << 40, free: 1 << 39 },
            stats: Some(Box::new(self.stats())),
            ..StatusReport::default()
        }
    }

    /// It has room for a few, of which each wants a CPU.
    fn stats(&self) -> NodeStats {
        let cpu = Some(CpuStats { cores: CPUS as u32, ..CpuStats::default() });
        NodeStats { schema: SCHEMA, number: self.reports, cpu, ..NodeStats::default() }
    }

    fn take(&mut self, goal: GoalState) {
        if goal.version <= self.goal.version {
            return;
        }
        self.done.retain(|id, _| goal.items.iter().any(|item| item.id == *id));
        self.goal = goal;
        for item in self.goal.items.clone() {
            if !self.done.contains_key(&item.id) {
                let volume = self.one(&item);
                let (id, state) = (item.id.clone(), ItemState::Done);
                let status =
                    ItemStatus { id, state, volume, built: false, took_millis: None, error: None };
                self.done.insert(item.id, status);
            }
        }
    }

    fn one(&mut self, item: &GoalItem) -> Option<String> {
        let id = item.id.clone();
        match &item.goal {
            Goal::Build { pool, kind, .. } => {
                let (pool, kind) = (pool.clone(), kind.clone());
                self.ready.push(ReadyVolume { id, pool, kind, state: "ready".into() });
                None
            }
            Goal::Claim { request, .. } => {
                let volume = self.ready.pop().map_or(id, |ready| ready.id);
                let (request, node) = (request.clone(), self.name.clone());
                self.given.push(Given { request, node, volume: volume.clone() });
                Some(volume)
            }
            Goal::Discard { .. } | Goal::Hold { .. } | Goal::Unknown => None,
        }
    }

    async fn run(mut self, placements: Placements, over: Over) -> Vec<Given> {
        while !over.is() {
            let (name, report) = (self.name.clone(), self.report());
            // What was not answered is said again.
            let fleet = placements.leading().await;
            if let Ok(told) = fleet.report(&name, report, Duration::from_secs(1)).await {
                self.take(told.goal);
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.given
    }
}

/// Claims, later than others, until it is told what it was given.
async fn claims(placements: Placements, n: u64) -> Given {
    sleep(Duration::from_millis(n * 100)).await;
    let (request, volume) = (format!("{n:032x}"), format!("v{n}"));
    let asked = NewClaim { request: request.clone(), volume, node: None, only: false };
    loop {
        let fleet = placements.leading().await;
        if let Ok(operation) = fleet.claim("p", asked.clone(), Duration::from_secs(2)).await
            && let Some(result) = operation.result
        {
            let claimed: Claimed = serde_json::from_value(result).unwrap();
            return Given { request, node: claimed.node, volume: claimed.id };
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// What is going on.
pub struct Run {
    over: Over,
    nodes: JoinSet<Vec<Given>>,
    claimers: JoinSet<Given>,
}

/// Each request is made twice at the same time.
pub async fn begin(placements: &Placements) -> Run {
    let set = r#"{"size": 1048576, "low": 20, "target": 40}"#;
    let set: SetPool = serde_json::from_str(set).unwrap();
    until("there is a pool", async || {
        placements.leading().await.set_pool("p", set.clone()).await.is_ok()
    })
    .await;
    let over = Over::default();
    let (mut nodes, mut claimers) = (JoinSet::new(), JoinSet::new());
    for name in NODES {
        nodes.spawn(Giver::new(name).run(placements.clone(), over.clone()));
    }
    for n in 0..100 {
        claimers.spawn(claims(placements.clone(), n));
        claimers.spawn(claims(placements.clone(), n));
    }
    Run { over, nodes, claimers }
}

impl Run {
    /// What is wrong.
    pub async fn ends(self) -> Vec<String> {
        let answered = self.claimers.join_all().await;
        self.over.set();
        let there = self.nodes.join_all().await.concat();
        println!("claims: {} answers, {} volumes", answered.len(), there.len());
        assert_eq!((answered.len(), there.len()), (200, 100));
        check_claims(&answered, &there)
    }
}
