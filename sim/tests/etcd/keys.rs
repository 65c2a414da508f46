//! Keys, changed by clients that each have a way of their own to the members.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use forebay_sim::chance::Chance;
use forebay_sim::history::{History, Verdict, check, keys};
use image::Kind;
use placement::Answer;
use placement::state::Reign;
use placement::state::keys::{Keys, Listing, Transaction, Versioned, Watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::etcd::Etcd;
use crate::{Over, STEPS, keys_of};

const CLIENTS: u64 = 4;

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
    over: Over,
) {
    while !over.is() {
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

/// What is going on.
pub struct Run(OfKeys, JoinSet<()>);

pub async fn begin(etcd: &Etcd, forgetful: bool, over: &Over) -> Run {
    let (history, values, mut clients) =
        (OfKeys::default(), Arc::new(AtomicU64::new(1)), JoinSet::new());
    for n in 0..CLIENTS {
        let mut keys = keys_of(etcd, n as usize % 3).await;
        if forgetful {
            keys = Arc::new(Forgetful(keys, AtomicU64::new(n)));
        }
        let chance = Chance::new(n, "keys");
        clients.spawn(changes_keys(keys, history.clone(), chance, values.clone(), over.clone()));
    }
    Run(history, clients)
}

impl Run {
    pub async fn ends(self) -> Verdict {
        self.1.join_all().await;
        let all = self.0.operations();
        let unknown = all.iter().filter(|op| op.output.is_none()).count();
        println!("keys: {} operations, {unknown} of them not answered", all.len());
        assert!(all.len() > 500);
        check(&keys::Keys, &all, STEPS)
    }
}
