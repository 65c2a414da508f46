//! Histories of what clients of three real members of etcd were answered, while members are killed, started again, and
//! stopped. Needs FOREBAY_E2E=1 and etcd.

#[path = "../../placement/tests/common/etcd.rs"]
#[allow(dead_code, missing_docs)]
mod etcd;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use api::goal::{
    DiskRoom, Goal, GoalItem, GoalState, ItemState, ItemStatus, ReadyVolume, StatusReport,
};
use api::lease::{HeldLease, TakeLease, TransferLease};
use api::pool::{Claimed, NewClaim, SetPool};
use etcd::{Etcd, until, wanted};
use forebay_sim::chance::Chance;
use forebay_sim::history::claims::{Given, check as check_claims};
use forebay_sim::history::{History, Verdict, check, keys, lease};
use image::Kind;
use placement::state::keys::{Keys, Listing, Transaction, Versioned, Watch};
use placement::state::{ClusterPlace, Reign, StatePlace};
use placement::testing::Coordinator;
use placement::{Answer, Clock, Uptime};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How often something happens to a member.
const TROUBLES: u32 = 6;
/// Steps of the search for an order.
const STEPS: u64 = 1 << 21;
const CLIENTS: u64 = 4;

/// A client's own way to the members; it asks this one first.
async fn keys_of(etcd: &Etcd, first: usize) -> Arc<dyn Keys> {
    let place = format!("etcd://{}", etcd.addresses(first).join(","));
    let place = ClusterPlace::parse(&place, None).unwrap();
    let place = StatePlace::Cluster { place, uptime: Uptime::system() };
    placement::testing::keys(&place).await.unwrap()
}

/// Keys that now and then forget what a transaction believes: the planted bug.
struct Forgetful(Arc<dyn Keys>, AtomicU64);

impl Keys for Forgetful {
    fn get(&self, key: String) -> Answer<'_, Option<Versioned>> {
        self.0.get(key)
    }

    fn list(&self, prefix: String) -> Answer<'_, Listing> {
        self.0.list(prefix)
    }

    fn commit(&self, mut transaction: Transaction) -> Answer<'_, ()> {
        if self.1.fetch_add(1, Ordering::Relaxed).is_multiple_of(4) {
            transaction.compares.clear();
        }
        self.0.commit(transaction)
    }

    fn watch(&self, prefix: String, after: u64) -> Watch {
        self.0.watch(prefix, after)
    }

    fn campaign(&self, key: String, id: Vec<u8>, ttl: Duration) -> Answer<'_, Reign> {
        self.0.campaign(key, id, ttl)
    }
}

/// Of three members one at a time is killed and started again, or stands still and goes on: half of the time who leads
/// the others, who then do without it.
async fn suffer(etcd: &mut Etcd, over: &AtomicBool) {
    let mut chance = Chance::new(7, "members");
    for _ in 0..TROUBLES {
        let leads = chance.one_in(2);
        let victim = if leads { etcd.leader() } else { chance.within(0..3) as usize };
        let lasts = Duration::from_millis(chance.within(200..3500));
        if chance.one_in(2) {
            etcd.kill(victim);
            sleep(lasts).await;
            etcd.run(victim);
        } else {
            etcd.signal(victim, "-STOP");
            sleep(lasts).await;
            etcd.signal(victim, "-CONT");
        }
        sleep(Duration::from_millis(chance.within(500..1500))).await;
    }
    over.store(true, Ordering::Relaxed);
}

async fn started() -> Etcd {
    let etcd = Etcd::start(3).await;
    let keys = keys_of(&etcd, 0).await;
    until("etcd answers", async || keys.get("x".into()).await.is_ok()).await;
    etcd
}

type OfKeys = History<keys::Asked, keys::Answered>;

fn name(key: u8) -> String {
    format!("history/{key}")
}

/// Reads, and changes two keys if they are as they were read, again and again.
async fn changes_keys(
    keys: Arc<dyn Keys>,
    history: OfKeys,
    mut chance: Chance,
    values: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
) {
    while !over.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(chance.within(5..60))).await;
        let first = chance.within(0..3) as u8;
        let (mut transaction, mut believed, mut changes) = (Transaction::default(), vec![], vec![]);
        for key in [first, (first + 1) % 3] {
            let asked = history.called(keys::Asked::Get(key));
            let Ok(found) = keys.get(name(key)).await else {
                asked.not_done();
                break;
            };
            let number = |v: &Versioned| String::from_utf8_lossy(&v.value).parse().unwrap();
            let value: Option<u64> = found.as_ref().map(number);
            asked.answered(keys::Answered::Value(value));
            transaction = transaction.unchanged(&name(key), found.as_ref());
            believed.push((key, value));
            let next = values.fetch_add(1, Ordering::Relaxed);
            let next = (!chance.one_in(8)).then_some(next);
            transaction.changes.push((name(key), next.map(|next| next.to_string().into_bytes())));
            changes.push((key, next));
        }
        let asked = history.called(keys::Asked::Commit { believed, changes });
        match keys.commit(transaction).await {
            Ok(()) => asked.answered(keys::Answered::Done),
            Err(e) if e.kind() == Kind::Conflict => asked.answered(keys::Answered::Conflict),
            // It may be done all the same.
            Err(_) => drop(asked),
        }
    }
}

async fn history_of_keys(forgetful: bool) -> Verdict {
    let mut etcd = started().await;
    let (history, over) = (OfKeys::default(), Arc::new(AtomicBool::new(false)));
    let (values, mut clients) = (Arc::new(AtomicU64::new(1)), JoinSet::new());
    for n in 0..CLIENTS {
        let mut keys = keys_of(&etcd, n as usize % 3).await;
        if forgetful {
            keys = Arc::new(Forgetful(keys, AtomicU64::new(n)));
        }
        let chance = Chance::new(n, "keys");
        clients.spawn(changes_keys(keys, history.clone(), chance, values.clone(), over.clone()));
    }
    suffer(&mut etcd, &over).await;
    clients.join_all().await;
    let all = history.operations();
    let unknown = all.iter().filter(|op| op.output.is_none()).count();
    println!("keys: {} operations, {unknown} of them not answered", all.len());
    assert!(all.len() > 500);
    check(&keys::Keys, &all, STEPS)
}

type OfLease = History<lease::Asked, lease::Answered>;

const VOLUME: &str = "0123456789abcdef0123456789abcdef";

/// Seconds that a node has its leases.
const TERM: u64 = 2;

fn number(word: &str) -> Option<u8> {
    word.strip_prefix('n')?.parse().ok()
}

/// A node takes a lease, gives it back, hands it on, and looks who has it. It writes nothing: who may when is looked at
/// in the simulation.
async fn uses_leases(fleet: Coordinator, history: OfLease, node: u8, over: Arc<AtomicBool>) {
    use lease::{Answered, Asked};
    let (mut chance, name) = (Chance::new(node.into(), "leases"), format!("n{node}"));
    let (mut has, mut reports): (Option<u64>, u64) = (None, 0);
    while !over.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(chance.within(5..120))).await;
        match (chance.within(0..5), has) {
            (0, Some(epoch)) => {
                reports += 1;
                let asked = history.called(Asked::Release { node, epoch });
                let released = vec![HeldLease { volume: VOLUME.into(), epoch }];
                let report = StatusReport {
                    run: "1".into(),
                    number: reports,
                    generation: 0,
                    goal: 0,
                    items: vec![],
                    ready: vec![],
                    disk: DiskRoom::default(),
                    leases: vec![],
                    released,
                    stats: None,
                    volumes: vec![],
                };
                match fleet.report(&name, report, Duration::ZERO).await {
                    Ok(_) => asked.answered(Answered::Heard),
                    Err(_) => drop(asked),
                }
                has = None;
            }
            (1, Some(epoch)) => {
                let to = (node + 1) % 3;
                let asked = history.called(Asked::Transfer { node, epoch, to });
                let transfer = TransferLease { epoch, to: format!("n{to}") };
                match fleet.transfer_lease(VOLUME, &name, &transfer).await {
                    Ok(grant) => asked.answered(Answered::Granted(grant.epoch)),
                    Err(e) if e.kind() == Kind::Conflict => {
                        let by = e.message().split([' ', ';']).filter_map(number).next();
                        asked.answered(Answered::Refused(by));
                    }
                    Err(_) => drop(asked),
                }
                has = None;
            }
            (2, _) => {
                let asked = history.called(Asked::Look);
                match fleet.leases().await {
                    Ok(all) => {
                        let found = all.leases.iter().find(|lease| lease.volume == VOLUME);
                        let of = found.and_then(|l| Some((number(l.holder.as_deref()?)?, l.epoch)));
                        asked.answered(Answered::Has(of));
                    }
                    Err(_) => asked.not_done(),
                }
            }
            _ => {
                let epoch = has.filter(|_| chance.one_in(2));
                let asked = history.called(Asked::Take { node, epoch });
                let take = TakeLease { holder: name.clone(), called: "v".into(), epoch };
                match fleet.take_lease(VOLUME, &take).await {
                    Ok(grant) => {
                        has = Some(grant.epoch);
                        asked.answered(Answered::Granted(grant.epoch));
                    }
                    Err(e) if e.kind() == Kind::Conflict => {
                        let by = e.message().split([' ', ';']).filter_map(number).next();
                        asked.answered(Answered::Refused(by));
                    }
                    Err(_) => drop(asked),
                }
            }
        }
    }
}

async fn history_of_leases(forgetful: bool) -> Verdict {
    let mut etcd = started().await;
    let mut keys = keys_of(&etcd, 0).await;
    if forgetful {
        keys = Arc::new(Forgetful(keys, AtomicU64::new(0)));
    }
    let fleet = Coordinator::open(keys, Clock::system(), "p", TERM).await.unwrap();
    let control = tokio::spawn({
        let fleet = fleet.clone();
        async move { fleet.control().await }
    });
    let (history, over) = (OfLease::default(), Arc::new(AtomicBool::new(false)));
    let mut nodes = JoinSet::new();
    for node in 0..3 {
        // Each asks several things at a time.
        for _ in 0..2 {
            nodes.spawn(uses_leases(fleet.clone(), history.clone(), node, over.clone()));
        }
    }
    suffer(&mut etcd, &over).await;
    nodes.join_all().await;
    fleet.close();
    control.abort();
    let all = history.operations();
    let of = |what: fn(&lease::Answered) -> bool| {
        all.iter().filter(|op| op.output.as_ref().is_some_and(what)).count()
    };
    let granted = of(|answer| matches!(answer, lease::Answered::Granted(_)));
    let unknown = all.iter().filter(|op| op.output.is_none()).count();
    println!("leases: {} operations, {granted} granted, {unknown} not answered", all.len());
    assert!(granted > 30);
    check(&lease::Lease, &all, STEPS)
}

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
            leases: vec![],
            released: vec![],
            stats: None,
            volumes: vec![],
        }
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
                let status = ItemStatus { id, state, volume, built: false, error: None };
                self.done.insert(item.id, status);
            }
        }
    }

    fn one(&mut self, item: &GoalItem) -> Option<String> {
        let id = item.id.clone();
        match &item.goal {
            Goal::Build { pool, kind } => {
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
            Goal::Discard { .. } | Goal::Unknown => None,
        }
    }

    async fn run(mut self, fleet: Coordinator, over: Arc<AtomicBool>) -> Vec<Given> {
        while !over.load(Ordering::Relaxed) {
            let (name, report) = (self.name.clone(), self.report());
            // What was not answered is said again.
            if let Ok(told) = fleet.report(&name, report, Duration::from_secs(1)).await {
                self.take(told.goal);
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.given
    }
}

/// Claims, later than others, until it is told what it was given.
async fn claims(fleet: Coordinator, n: u64) -> Given {
    sleep(Duration::from_millis(n * 100)).await;
    let (request, volume) = (format!("{n:032x}"), format!("v{n}"));
    let asked = NewClaim { request: request.clone(), volume, node: None, only: false };
    loop {
        if let Ok(operation) = fleet.claim("p", asked.clone(), Duration::from_secs(2)).await
            && let Some(result) = operation.result
        {
            let claimed: Claimed = serde_json::from_value(result).unwrap();
            return Given { request, node: claimed.node, volume: claimed.id };
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Each request is made twice at the same time.
async fn claims_through(etcd: &mut Etcd) -> Vec<String> {
    let keys = keys_of(etcd, 0).await;
    let fleet = Coordinator::open(keys, Clock::system(), "p", TERM).await.unwrap();
    let control = tokio::spawn({
        let fleet = fleet.clone();
        async move { fleet.control().await }
    });
    let set = r#"{"size": 1048576, "low": 20, "target": 40}"#;
    let set: SetPool = serde_json::from_str(set).unwrap();
    until("there is a pool", async || fleet.set_pool("p", set.clone()).await.is_ok()).await;
    let over = Arc::new(AtomicBool::new(false));
    let (mut nodes, mut claimers) = (JoinSet::new(), JoinSet::new());
    for name in ["n0", "n1"] {
        nodes.spawn(Giver::new(name).run(fleet.clone(), over.clone()));
    }
    for n in 0..100 {
        claimers.spawn(claims(fleet.clone(), n));
        claimers.spawn(claims(fleet.clone(), n));
    }
    suffer(etcd, &AtomicBool::new(false)).await;
    let answered = claimers.join_all().await;
    over.store(true, Ordering::Relaxed);
    let there = nodes.join_all().await.concat();
    fleet.close();
    control.abort();
    assert_eq!((answered.len(), there.len()), (200, 100));
    check_claims(&answered, &there)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_claims_over_etcd_are_served_once_while_members_die_and_stand_still() {
    if wanted() {
        assert_eq!(claims_through(&mut started().await).await, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_keys_in_etcd_are_linearizable_while_members_die_and_stand_still() {
    if wanted() {
        assert_eq!(history_of_keys(false).await, Verdict::Linearizable);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_leases_in_etcd_are_linearizable_while_members_die_and_stand_still() {
    if wanted() {
        assert_eq!(history_of_leases(false).await, Verdict::Linearizable);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_keys_that_forget_what_is_believed_are_found_out() {
    if wanted() {
        let verdict = history_of_keys(true).await;
        assert!(matches!(verdict, Verdict::Not(_)), "{verdict}");
    }
}
