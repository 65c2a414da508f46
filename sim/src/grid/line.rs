//! The way of one placement to its keys: late, lost, cut off. What was sent may be done long after who sent it has
//! given up, or is dead.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use image::{Error, Kind, Result};
use placement::state::keys::{Keys, Listing, Transaction, Versioned, Watch};
use placement::state::{Deadline, Reign};
use placement::{Answer, Uptime};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::host::{Mode, Process};
use super::keys::Etcd;
use crate::chance::Chance;
use crate::trace::Trace;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// See the [module](self).
#[derive(Clone)]
pub(crate) struct Line {
    pub etcd: Arc<Etcd>,
    pub process: Process,
    pub cut: Arc<AtomicBool>,
    pub chance: Arc<Mutex<Chance>>,
    pub uptime: Uptime,
    pub trace: Trace,
    pub flaw: Option<Flaw>,
}

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Keys that begin so forget now and then what a transaction believes.
    Forgets(&'static str),
    /// Who leads does not look at its lease of the lead any more.
    Unled,
}

/// Where leads are.
const LEADS: &str = "leaders/";

impl Line {
    fn draw<T>(&self, what: impl FnOnce(&mut Chance) -> T) -> T {
        what(&mut self.chance.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn takes_its_time(&self) {
        let most = self.draw(|chance| if chance.one_in(50) { 800 } else { 8 });
        sleep(Duration::from_millis(self.draw(|chance| chance.within(0..most)))).await;
    }

    /// On its way, either way.
    async fn passes(&self) -> Result<()> {
        self.takes_its_time().await;
        let lost = self.draw(|chance| chance.one_in(300));
        if lost || self.cut.load(Ordering::Relaxed) || self.etcd.is_off() {
            sleep(PATIENCE).await;
            return Err(Error::new(Kind::Retry, "no keys are reached"));
        }
        Ok(())
    }

    async fn read<T>(&self, read: impl FnOnce(&Etcd) -> T) -> Result<T> {
        self.passes().await?;
        let found = read(&self.etcd);
        self.passes().await?;
        Ok(found)
    }

    async fn write(&self, mut transaction: Transaction) -> Result<()> {
        let (late, lost) = self.draw(|chance| (chance.one_in(40), chance.one_in(100)));
        let there = self.draw(|chance| chance.within(0..if late { 5000 } else { 8 }));
        let of = |begin: &str| transaction.changes.iter().any(|(key, _)| key.starts_with(begin));
        match self.flaw {
            Some(Flaw::Forgets(begin)) if of(begin) && self.draw(|chance| chance.one_in(2)) => {
                transaction.compares.clear();
            }
            Some(Flaw::Unled) => transaction.compares.retain(|(key, _)| !key.starts_with(LEADS)),
            _ => {}
        }
        let (etcd, cut) = (Arc::clone(&self.etcd), Arc::clone(&self.cut));
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            if !lost && !cut.load(Ordering::Relaxed) {
                let sent = etcd.starts();
                sleep(Duration::from_millis(there)).await;
                // What was under way when the power went is lost.
                if !etcd.is_off() && etcd.starts() == sent {
                    let done = etcd.commit(transaction);
                    // Who asked may have given up.
                    let _ = answer.send(done);
                }
            }
        });
        let unknown = || Error::new(Kind::Retry, "whether it was done is not known");
        let done = match timeout(PATIENCE, answered).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => {
                sleep(PATIENCE).await;
                return Err(unknown());
            }
            Err(_) => return Err(unknown()),
        };
        self.passes().await.map_err(|_| unknown())?;
        done
    }

    /// Keeps a key for as long as the process runs and reaches it.
    async fn keep(self, key: String, version: u64, ttl: Duration, deadline: Deadline) {
        loop {
            sleep(ttl / 4).await;
            let asked = self.uptime.now();
            if self.process.mode() != Mode::Runs || self.passes().await.is_err() {
                continue;
            }
            let kept = self.etcd.keep(&key, version, self.trace.now() + ttl);
            if !kept && self.flaw != Some(Flaw::Unled) {
                return deadline.pass();
            }
            if self.passes().await.is_ok() && !deadline.put_off(asked + ttl * 4 / 5) {
                return;
            }
        }
    }
}

impl Keys for Line {
    fn get(&self, key: String) -> Answer<'_, Option<Versioned>> {
        Box::pin(async move { self.read(|etcd| etcd.get(&key)).await })
    }

    fn list(&self, prefix: String) -> Answer<'_, Listing> {
        Box::pin(async move { self.read(|etcd| etcd.list(&prefix)).await })
    }

    fn commit(&self, transaction: Transaction) -> Answer<'_, ()> {
        Box::pin(self.write(transaction))
    }

    fn watch(&self, prefix: String, after: u64) -> Watch {
        self.etcd.watch(prefix, after)
    }

    fn campaign(&self, key: String, id: Vec<u8>, ttl: Duration) -> Answer<'_, Reign> {
        Box::pin(async move {
            loop {
                self.passes().await?;
                let asked = self.uptime.now();
                let taken = self.etcd.take(&key, &id, self.trace.now() + ttl);
                if let Some(version) = taken {
                    let until = match self.flaw {
                        Some(Flaw::Unled) => Duration::MAX,
                        _ => asked + ttl * 4 / 5,
                    };
                    let deadline = Deadline::at(until, self.uptime.clone());
                    let mut keep = JoinSet::new();
                    keep.spawn(self.clone().keep(key, version, ttl, deadline.clone()));
                    return Ok(Reign { version, deadline, keep: Box::new(keep) });
                }
                sleep(Duration::from_millis(100)).await;
            }
        })
    }
}
