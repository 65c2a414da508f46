//! Very many who claim at the same time, through the API, from nodes that hand out what they have.
#![allow(missing_docs)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::error::ErrorBody;
use api::goal::{
    DiskRoom, Goal, GoalItem, GoalState, ItemState, ItemStatus, ReadyVolume, StatusReport,
};
use api::operation::{Operation, OperationState};
use api::pool::{Claimed, NewClaim, Served, SetPool};
use common::Grid;
use image::{Error, Kind};
use placement::{Client, Limits};
use tokio::sync::watch;
use tokio::task::JoinSet;

const SIZE: u64 = 1 << 20;
const NODES: u32 = 3;
/// How far the test is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Pools are filled.
    Filling,
    /// Somebody else has taken the rest of all disks.
    Full,
    Over,
}

/// A node that does at once what it is told.
struct Node {
    name: String,
    number: u64,
    goal: GoalState,
    done: BTreeMap<String, ItemStatus>,
    ready: Vec<ReadyVolume>,
    /// What it has handed out: the request, and the volume.
    given: Vec<(String, String)>,
    phase: watch::Receiver<Phase>,
}

impl Node {
    fn new(number: u32, phase: watch::Receiver<Phase>) -> Self {
        Self {
            name: format!("n{number}"),
            number: 0,
            goal: GoalState::default(),
            done: BTreeMap::new(),
            ready: vec![],
            given: vec![],
            phase,
        }
    }

    fn is_full(&self) -> bool {
        *self.phase.borrow() > Phase::Filling
    }

    fn report(&mut self) -> StatusReport {
        self.number += 1;
        let size = 10_000 * SIZE;
        StatusReport {
            run: "1".into(),
            number: self.number,
            generation: self.goal.generation,
            goal: self.goal.version,
            items: self.done.values().cloned().collect(),
            ready: self.ready.clone(),
            disk: DiskRoom { size, free: if self.is_full() { 0 } else { size } },
            ..StatusReport::default()
        }
    }

    /// Takes a goal; says whether something of it was new.
    fn take(&mut self, goal: GoalState) -> bool {
        if goal.version <= self.goal.version {
            return false;
        }
        self.done.retain(|id, _| goal.items.iter().any(|item| item.id == *id));
        self.goal = goal;
        for item in self.goal.items.clone() {
            if !self.done.contains_key(&item.id) {
                let status = self.one(&item);
                self.done.insert(item.id, status);
            }
        }
        true
    }

    fn one(&mut self, item: &GoalItem) -> ItemStatus {
        let (id, state) = (item.id.clone(), ItemState::Done);
        let mut status =
            ItemStatus { id, state, volume: None, built: false, took_millis: None, error: None };
        match &item.goal {
            Goal::Build { pool, kind, .. } if !self.is_full() => {
                let (id, pool, kind) = (item.id.clone(), pool.clone(), kind.clone());
                self.ready.push(ReadyVolume { id, pool, kind, state: "ready".into() });
            }
            Goal::Claim { request, .. } if !self.ready.is_empty() => {
                let volume = self.ready.remove(0).id;
                self.given.push((request.clone(), volume.clone()));
                status.volume = Some(volume);
            }
            other => {
                let error = Error::new(Kind::Gone, format!("none is there for {other:?}"));
                (status.state, status.error) = (ItemState::Failed, Some(ErrorBody::from(&error)));
            }
        }
        status
    }

    /// Reports, and does what it is told, until somebody says that it is enough.
    async fn run(mut self, placement: Client) -> Self {
        let mut phase = self.phase.clone();
        while *phase.borrow_and_update() < Phase::Over {
            let report = self.report();
            let told = tokio::select! {
                told = placement.report(&self.name, &report, Duration::from_secs(5)) => told,
                _ = phase.changed() => continue,
            };
            match told {
                Ok(told) => drop(self.take(told.goal)),
                Err(error) => {
                    assert!(matches!(error.kind(), Kind::Retry | Kind::Busy(_)), "{error}")
                }
            }
        }
        self
    }
}

/// Claims until it is answered, as the command line does.
async fn claims(placement: Client, n: u32) -> Operation {
    let (request, volume) = (format!("{n:032x}"), format!("v{n}"));
    let node = n.is_multiple_of(2).then(|| format!("n{}", n % NODES));
    let asked = NewClaim { request: request.clone(), volume, node, only: false };
    loop {
        let wait = Duration::from_secs(30);
        match placement.claim("p", &asked, wait).await {
            Ok(operation) if operation.state.is_final() => return operation,
            Ok(_) => {}
            Err(error) => assert!(matches!(error.kind(), Kind::Retry | Kind::Busy(_)), "{error}"),
        }
    }
}

/// So many claim at the same time, and fewer are ready, with no room for more: all that are ready are given, each once,
/// and the others are told so.
async fn contend(ready: u32, claimers: u32) {
    let limits = Limits { connections: 2048, per_machine: 2048, ..Limits::default() };
    let grid = Grid::start_with(limits).await;
    let placement = grid.admin();
    let phase = watch::Sender::new(Phase::Filling);
    let mut nodes = JoinSet::new();
    for n in 0..NODES {
        nodes.spawn(Node::new(n, phase.subscribe()).run(placement.clone()));
    }
    let set = SetPool {
        size: Some(SIZE),
        low: ready,
        target: ready,
        max: Some(ready),
        builds: Some(ready),
        ..SetPool::default()
    };
    placement.set_pool("p", &set).await.unwrap();
    while placement.pool("p").await.unwrap().ready < ready {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    phase.send(Phase::Full).unwrap();
    while placement.nodes().await.unwrap().nodes.iter().any(|node| node.disk.free > 0) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let mut all = JoinSet::new();
    for n in 0..claimers {
        all.spawn(claims(placement.clone(), n));
    }
    let all = all.join_all().await;
    phase.send(Phase::Over).unwrap();
    let nodes = nodes.join_all().await;

    let (done, failed): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|operation| operation.state == OperationState::Done);
    assert_eq!((done.len() as u32, failed.len() as u32), (ready, claimers - ready));
    for operation in &failed {
        let error = operation.error.clone().expect("it says why");
        assert_eq!(Error::from(error).kind(), Kind::Full);
    }
    // What clients were told, and what nodes say that they gave: each once, and the same.
    let mut told = BTreeSet::new();
    for operation in done {
        let claimed: Claimed = serde_json::from_value(operation.result.unwrap()).unwrap();
        assert_ne!(claimed.served, Served::Built);
        assert!(told.insert((operation.id, claimed.id)));
    }
    let given: Vec<_> = nodes.iter().flat_map(|node| node.given.clone()).collect();
    assert_eq!(given.len() as u32, ready);
    let volumes: BTreeSet<_> = given.iter().map(|(_, volume)| volume).collect();
    assert_eq!(volumes.len() as u32, ready, "none twice");
    assert_eq!(given.into_iter().collect::<BTreeSet<_>>(), told);
    assert!(nodes.iter().all(|node| node.ready.is_empty()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_claims_has_one_of_those_that_are_ready_as_long_as_there_are_any() {
    contend(90, 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_of_a_thousand_who_claim_nine_hundred_have_the_nine_hundred_that_are_ready() {
    if std::env::var_os("FOREBAY_E2E").is_none() {
        println!("left out: needs FOREBAY_E2E=1 and a minute");
        return;
    }
    contend(900, 1000).await;
}
