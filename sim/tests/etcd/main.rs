//! Histories of what clients of three real members of etcd were answered, while members are killed, started again,
//! stopped, and parted from each other. Needs FOREBAY_E2E=1 and etcd; for the last, root and iproute2.

mod claims;
#[path = "../../../placement/tests/common/etcd.rs"]
#[allow(dead_code, missing_docs)]
mod etcd;
mod keys;
mod leases;
mod network;
mod reservations;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use etcd::{Etcd, until, wanted};
use forebay_sim::chance::Chance;
use forebay_sim::history::Verdict;
use network::Network;
use placement::state::keys::Keys;
use placement::state::{ClusterPlace, Papers, StatePlace};
use placement::testing::Coordinator;
use placement::{Clock, Uptime};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How often something happens to a member.
const TROUBLES: usize = 6;
/// Steps of the search for an order.
const STEPS: u64 = 1 << 21;
/// Seconds that a node has its leases.
const TERM: u64 = 2;

/// Whether clients are to stop. Clones share it.
#[derive(Clone, Default)]
struct Over(Arc<AtomicBool>);

impl Over {
    fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A client's own way to the members; it asks this one first.
async fn keys_of(etcd: &Etcd, first: usize) -> Arc<dyn Keys> {
    let place = format!("etcd://{}", etcd.addresses(first).join(","));
    let file = |what: &str| etcd.dir.path().join(format!("etcd-{what}.pem"));
    let papers = Papers { ca: file("ca"), cert: file("cert"), key: file("key") };
    let papers = papers.ca.exists().then_some(papers);
    let place = ClusterPlace::parse(&place, papers).unwrap();
    let place = StatePlace::Cluster { place, uptime: Uptime::system() };
    placement::testing::keys(&place).await.unwrap()
}

/// Placements over one state, of which one leads. Clones share them.
#[derive(Clone)]
struct Placements(Arc<Vec<Coordinator>>);

impl Placements {
    /// They see to everything from now on, until the tasks end.
    async fn over(keys: Vec<Arc<dyn Keys>>) -> (Self, JoinSet<()>) {
        let (mut all, mut control) = (Vec::new(), JoinSet::new());
        for (n, keys) in keys.into_iter().enumerate() {
            let name = format!("p{n}");
            let placement = Coordinator::open(keys, Clock::system(), &name, TERM).await.unwrap();
            all.push(placement.clone());
            control.spawn(async move { placement.control().await });
        }
        (Self(Arc::new(all)), control)
    }

    /// The one that leads, or one that may.
    async fn leading(&self) -> Coordinator {
        if let [one] = &self.0[..] {
            return one.clone();
        }
        for (n, placement) in self.0.iter().enumerate() {
            let leads = placement.status().await.ok().and_then(|status| status.leader);
            if leads.is_some_and(|leads| leads.name == format!("p{n}")) {
                return placement.clone();
            }
        }
        self.0[0].clone()
    }

    fn close(&self) {
        self.0.iter().for_each(Coordinator::close);
    }
}

/// Of three members one at a time is killed and started again, or stands still and goes on: half of the time who leads
/// the others, who then do without it.
async fn suffer(etcd: &mut Etcd, over: &Over) {
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
    over.set();
}

async fn answers(etcd: &Etcd) {
    let keys = keys_of(etcd, 0).await;
    until("etcd answers", async || keys.get("x".into()).await.is_ok()).await;
}

async fn started() -> Etcd {
    let etcd = Etcd::start(3).await;
    answers(&etcd).await;
    etcd
}

async fn history_of_keys(forgetful: bool) -> Verdict {
    let (mut etcd, over) = (started().await, Over::default());
    let keys = keys::begin(&etcd, forgetful, &over).await;
    suffer(&mut etcd, &over).await;
    keys.ends().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_keys_in_etcd_are_linearizable_while_members_die_and_stand_still() {
    if wanted() {
        assert_eq!(history_of_keys(false).await, Verdict::Linearizable);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_keys_that_forget_what_is_believed_are_found_out() {
    if wanted() {
        let verdict = history_of_keys(true).await;
        assert!(matches!(verdict, Verdict::Not(_)), "{verdict}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_leases_in_etcd_are_linearizable_while_members_die_and_stand_still() {
    if wanted() {
        let (mut etcd, over) = (started().await, Over::default());
        let (placements, _control) = Placements::over(vec![keys_of(&etcd, 0).await]).await;
        let leases = leases::begin(&placements, &over);
        suffer(&mut etcd, &over).await;
        assert_eq!(leases.ends().await, Verdict::Linearizable);
        placements.close();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_claims_over_etcd_are_served_once_while_members_die_and_stand_still() {
    if wanted() {
        let mut etcd = started().await;
        let (placements, _control) = Placements::over(vec![keys_of(&etcd, 0).await]).await;
        let claims = claims::begin(&placements).await;
        suffer(&mut etcd, &Over::default()).await;
        assert_eq!(claims.ends().await, Vec::<String>::new());
        placements.close();
    }
}

/// Two placements, whose lead moves when the one that leads is with the member that the others do without.
async fn histories_while_parted(network: &Network) {
    let (etcd, over) = (network.etcd().await, Over::default());
    answers(&etcd).await;
    let ways = vec![keys_of(&etcd, 0).await, keys_of(&etcd, 1).await];
    let (placements, _control) = Placements::over(ways).await;
    let keys = keys::begin(&etcd, false, &over).await;
    let claims = claims::begin(&placements).await;
    let leases = leases::begin(&placements, &over);
    let reservations = reservations::begin(&placements, &over);
    network.suffer(&over).await;
    assert_eq!(keys.ends().await, Verdict::Linearizable);
    assert_eq!(leases.ends().await, Verdict::Linearizable);
    assert_eq!(reservations.ends().await, Verdict::Linearizable);
    assert_eq!(claims.ends().await, Vec::<String>::new());
    placements.close();
}

#[test]
fn real_histories_hold_while_members_of_etcd_are_parted_from_each_other() {
    if let Some(network) = Network::inside() {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(histories_while_parted(&network));
    } else if wanted() {
        Network::runs("real_histories_hold_while_members_of_etcd_are_parted_from_each_other");
    }
}
