//! Holding a key by a lease of etcd.

use std::time::Duration;

use futures::{StreamExt, stream};
use image::{Error, Kind, Result};

use super::calls::{Members, Twice};
use super::wire::{LeaseGrant, LeaseGranted, LeaseKeepAlive, LeaseKeptAlive};
use super::{Cluster, Keys, Transaction};
use crate::clock::Uptime;
use crate::state::lead::{Deadline, Reign};

const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// A lease is kept alive this many times in its length.
const BEATS: u32 = 4;

/// How long a lease of this length counts here: clocks may differ in their pace.
fn trusted(ttl: Duration) -> Duration {
    ttl * 4 / 5
}

/// Ends a task when it is dropped.
struct Ending(tokio::task::AbortHandle);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Cluster {
    /// See [`Keys::campaign`].
    pub(super) async fn take(&self, key: String, id: Vec<u8>, ttl: Duration) -> Result<Reign> {
        loop {
            self.vacant(&key).await?;
            // Asked for later than this, so it ends later than we count.
            let asked = self.uptime.now();
            let secs = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
            let granted: LeaseGranted =
                self.members.call(GRANT, LeaseGrant { ttl: secs }, Twice::Yes).await?;
            // etcd may give more, never less.
            let deadline = Deadline::at(asked + trusted(ttl), self.uptime.clone());
            let mut take = Transaction::default().put(&key, id.clone());
            take.compares.push((key.clone(), None));
            match self.transact(take, granted.id).await {
                Ok(version) => {
                    let beating = Beating {
                        members: self.members.clone(),
                        uptime: self.uptime.clone(),
                        lease: granted.id,
                        ttl,
                        deadline: deadline.clone(),
                    };
                    let keep = Ending(tokio::spawn(beating.run()).abort_handle());
                    return Ok(Reign { version, deadline, keep: Box::new(keep) });
                }
                Err(e) if e.kind() == Kind::Conflict => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits until nobody has a key.
    async fn vacant(&self, key: &str) -> Result<()> {
        let listing = self.list(key.into()).await?;
        if listing.entries.iter().all(|(there, _)| there != key) {
            return Ok(());
        }
        let mut changes = self.watch(key.into(), listing.revision);
        while let Some(change) = changes.next().await {
            let change = change?;
            if change.key == key && change.value.is_none() {
                break;
            }
        }
        Ok(())
    }
}

/// What keeps a lease alive.
struct Beating {
    members: std::sync::Arc<Members>,
    uptime: Uptime,
    lease: i64,
    ttl: Duration,
    deadline: Deadline,
}

impl Beating {
    async fn run(self) {
        while !self.deadline.passed() {
            tokio::time::sleep(self.ttl / BEATS).await;
            let asked = self.uptime.now();
            // One that hangs must leave time for the next.
            match tokio::time::timeout(self.ttl / BEATS, self.beat()).await {
                Ok(Ok(0)) => self.deadline.pass(),
                Ok(Ok(_)) => drop(self.deadline.put_off(asked + trusted(self.ttl))),
                Ok(Err(e)) => tracing::warn!(error = %e, "a lease could not be kept alive"),
                Err(_) => {
                    self.members.turn_away();
                    tracing::warn!("a lease could not be kept alive: no answer");
                }
            }
        }
    }

    /// The time that the lease has, in seconds; 0 if it has ended.
    async fn beat(&self) -> Result<i64> {
        let asked = || stream::iter([LeaseKeepAlive { id: self.lease }]);
        let mut answer = self.members.stream(KEEP_ALIVE, asked).await?;
        let kept: Option<LeaseKeptAlive> = answer
            .message()
            .await
            .map_err(|status| Error::new(Kind::Retry, format!("etcd: {}", status.message())))?;
        let kept = kept.ok_or_else(|| Error::new(Kind::Retry, "etcd: no answer"))?;
        Ok(kept.ttl)
    }
}
