//! Ten thousand nodes that report every ten seconds, a hundred thousand ready volumes of twenty kinds: what placement
//! needs for that, how long it takes to look at all of it, and how a burst of claims is filled up again.
//!
//! Nodes are modelled, and speak to the real fleet over a real state in this process, without TLS: what the models need is
//! counted with it.

use std::cell::Cell;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use api::goal::{
    DiskRoom, Goal, GoalItem, GoalState, ItemState, ItemStatus, ReadyVolume, StatusReport,
};
use api::pool::{NewClaim, SetPool, VolumeKind};
use placement::Clock;
use placement::testing::{Coordinator, keys};
use tokio::task::{LocalSet, spawn_local};

use crate::Setup;
use crate::bars::{Bars, Bound};
use crate::process::now;

const NODES: usize = 10_000;
const POOLS: usize = 20;
/// Ready volumes of each node.
const READY: usize = 10;
const SIZE: u64 = 10 << 30;
/// A node waits so long for news.
const WAIT: Duration = Duration::from_secs(10);
const MEASURED: Duration = Duration::from_secs(40);
/// Claims that come at once.
const BURST: usize = 400;

fn kind() -> VolumeKind {
    VolumeKind { size: SIZE, sector: None, image: None, layout: None }
}

fn pool(n: usize) -> String {
    format!("pool-{:02}", n % POOLS)
}

/// A node that does at once what it is told.
struct Node {
    name: String,
    number: u64,
    goal: GoalState,
    done: Vec<ItemStatus>,
    ready: Vec<ReadyVolume>,
}

impl Node {
    fn new(n: usize) -> Self {
        let one = |i: usize| {
            let (id, pool) = (format!("{:032x}", n * READY + i), pool(n * READY + i));
            ReadyVolume { id, pool, kind: kind(), state: "ready".into() }
        };
        let ready = (0..READY).map(one).collect();
        let (goal, done) = (GoalState::default(), vec![]);
        Self { name: format!("node-{n:05}"), number: 0, goal, done, ready }
    }

    fn report(&mut self) -> StatusReport {
        self.number += 1;
        let size = 100 * SIZE;
        StatusReport {
            run: "1".into(),
            number: self.number,
            generation: self.goal.generation,
            goal: self.goal.version,
            items: self.done.clone(),
            ready: self.ready.clone(),
            disk: DiskRoom { size, free: size / 2 },
            ..StatusReport::default()
        }
    }

    fn take(&mut self, goal: GoalState) {
        if goal.version <= self.goal.version {
            return;
        }
        self.done.retain(|done| goal.items.iter().any(|item| item.id == done.id));
        self.goal = goal;
        for item in self.goal.items.clone() {
            if self.done.iter().all(|done| done.id != item.id) {
                let status = self.work(&item);
                self.done.push(status);
            }
        }
    }

    fn work(&mut self, item: &GoalItem) -> ItemStatus {
        let id = item.id.clone();
        let mut status = ItemStatus {
            id: id.clone(),
            state: ItemState::Done,
            volume: None,
            built: false,
            took_millis: None,
            error: None,
        };
        match &item.goal {
            Goal::Build { pool, kind, .. } => {
                let (pool, kind) = (pool.clone(), kind.clone());
                self.ready.push(ReadyVolume { id, pool, kind, state: "ready".into() });
            }
            Goal::Claim { pool, .. } => match self.ready.iter().position(|v| v.pool == *pool) {
                Some(at) => status.volume = Some(self.ready.swap_remove(at).id),
                None => status.state = ItemState::Failed,
            },
            Goal::Discard { volume } => self.ready.retain(|v| v.id != *volume),
            Goal::Hold { .. } | Goal::Unknown => status.state = ItemState::Failed,
        }
        status
    }
}

async fn live(mut node: Node, fleet: Coordinator, heard: Rc<Cell<usize>>) {
    // Not all at the same moment.
    tokio::time::sleep(WAIT * (node.number as u32) / 10).await;
    loop {
        let report = node.report();
        let name = node.name.clone();
        if node.number == 1 {
            heard.set(heard.get() + 1);
        }
        let told = fleet.report(&name, report, WAIT).await.expect("the fleet answers");
        node.take(told.goal);
    }
}

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let dir = setup.dir.join("nodes");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let keys = keys(&dir.join("state.redb").into()).await.unwrap();
        let fleet = Coordinator::open(keys, Clock::system(), "bench", 900).await.unwrap();
        let control = fleet.clone();
        tokio::spawn(async move { control.control().await });
        while fleet.status().await.unwrap().leader.is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let heard = Rc::new(Cell::new(0));
        for n in 0..NODES {
            spawn_local(live(Node::new(n), fleet.clone(), Rc::clone(&heard)));
        }
        while heard.get() < NODES {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let each = (NODES * READY / POOLS) as u32;
        for n in 0..POOLS {
            fleet.set_pool(&pool(n), set(each)).await.unwrap();
        }
        tokio::time::sleep(2 * WAIT).await;
        steady(&fleet, bars).await;
        let plot = setup.dir.with_extension("refill.csv");
        burst(&fleet, each, &plot, bars).await;
        fleet.close();
    });
}

fn set(target: u32) -> SetPool {
    SetPool { size: Some(SIZE), low: target, target, ..SetPool::default() }
}

/// Processor time and memory while nothing but reports comes, and how long a look at all of it takes.
async fn steady(fleet: &Coordinator, bars: &mut Bars) {
    let (before, begun) = (processor_seconds(), now());
    let mut looks = Vec::new();
    while now() - begun < MEASURED {
        tokio::time::sleep(Duration::from_secs(1)).await;
        looks.extend(fleet.status().await.unwrap().look_micros);
    }
    let took = (now() - begun).as_secs_f64();
    let cores = (processor_seconds() - before) / took;
    let what = "cores for 10,000 nodes that report every 10 s, the models of them too";
    bars.add(what, format!("{cores:.2}"), "1 core".into(), cores, Bound::AtMost(1.0));
    let mib = status_kib("VmHWM:") as f64 / 1024.0;
    let what = "memory at most, of placement and the models of the nodes, beside 1 GiB";
    bars.add(what, format!("{mib:.0} MiB"), "1024 MiB".into(), mib / 1024.0, Bound::AtMost(1.0));
    looks.sort_unstable();
    let worst = *looks.last().expect("there were looks") as f64 / 1000.0;
    let median = looks[looks.len() / 2] as f64 / 1000.0;
    let what =
        "a look at all pools, 20 kinds and 100,000 volumes, the longest of 40, beside 100 ms";
    bars.add(
        what,
        format!("{worst:.1} ms (median {median:.1})"),
        "100 ms".into(),
        worst / 100.0,
        Bound::AtMost(1.0),
    );
}

/// Claims at once, and how the pool is filled up again: a file beside the directory of the run has it as it went.
async fn burst(fleet: &Coordinator, target: u32, to: &std::path::Path, bars: &mut Bars) {
    let begun = now();
    let claims: Vec<_> = (0..BURST)
        .map(|n| {
            let fleet = fleet.clone();
            spawn_local(async move {
                let (request, volume) = (format!("{n:032x}"), format!("v{n}"));
                let asked = NewClaim { request, volume, node: None, only: false };
                fleet.claim(&pool(0), asked, Duration::from_secs(60)).await.unwrap()
            })
        })
        .collect();
    let (mut plot, mut most) = ("seconds,ready,building\n".to_owned(), 0);
    let mut lowest = target;
    while now() - begun < Duration::from_secs(60) {
        let info = fleet.pool(&pool(0)).await.unwrap();
        let seconds = (now() - begun).as_secs_f64();
        writeln!(plot, "{seconds:.3},{},{}", info.ready, info.building).expect("into a string");
        most = most.max(info.ready + info.building);
        lowest = lowest.min(info.ready);
        if lowest < target && info.ready == target && info.building == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let full = (now() - begun).as_secs_f64();
    let mut given = std::collections::BTreeSet::new();
    for claim in claims {
        let done = claim.await.unwrap();
        let result = done.result.expect("it is served");
        assert!(given.insert(result["id"].to_string()), "handed out twice");
    }
    std::fs::write(to, plot).unwrap();
    let what = "ready and being built at most while a burst of 400 claims is filled up, beside the target (*.refill.csv)";
    let ratio = f64::from(most) / f64::from(target);
    bars.add(
        what,
        format!("{most}, full after {full:.1} s"),
        target.to_string(),
        ratio,
        Bound::AtMost(1.0),
    );
}

/// Of this process, in user and system mode.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap()..].split_whitespace().collect();
    // utime and stime are fields 14 and 15 of proc_pid_stat(5), in hundredths of a second.
    (fields[12].parse::<f64>().unwrap() + fields[13].parse::<f64>().unwrap()) / 100.0
}

fn status_kib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
