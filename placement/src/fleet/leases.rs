//! Leases: one writer of a volume at a time.
//!
//! What is kept is who has a lease, and its epoch; no time is. A lease lasts as long as its holder is heard of, and
//! so long after. A placement that has just started counts all holders as heard of at that moment: it cannot know
//! better, and waits rather than having two write.
//!
//! A lease whose holder is silent is taken from it in two steps, each a change of what is kept: first it is said that the
//! lease is taken back, then, if its holder is still silent, another has it. Between the look at who was heard of and
//! the change that follows from it time passes. A holder that comes back meanwhile is heard after the look; what it is
//! answered is read after that, so it is told of the first step, or the second step sees that it is back.

use std::time::Duration;

use api::lease::{
    BreakLease, Broken, HeldLease, LeaseGrant, LeaseInfo, LeaseList, TakeLease, TransferLease,
};
use image::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use super::goals;
use super::operations::check_id;
use super::{Fleet, TRIES};
use crate::member::check_name;
use crate::state::State;
use crate::state::keys::{Transaction, Versioned, encode};

/// Clocks may run so much apart: one second of so many. Twice what a clock that is being put right (by adjtime) may
/// differ from true time, and ten times what its crystal does.
const PACE: u64 = 500;

/// A lease, as it is kept. It is kept when nobody has it, too: for its epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    epoch: u64,
    holder: Option<String>,
    #[serde(default)]
    called: String,
    since: u64,
    /// Who had it last.
    #[serde(default)]
    last: String,
    /// The first epoch since when nobody else has had it.
    #[serde(default)]
    alone_from: u64,
    /// Its holder is told to stop.
    #[serde(default)]
    revoked: bool,
    #[serde(default)]
    broken: Option<Broken>,
}

impl Lease {
    /// `generation` is the grid's: what was restored from a backup may have forgotten epochs, so those of a later
    /// generation are above all of an earlier one.
    fn give(&mut self, to: &str, called: &str, generation: u64, now: u64) {
        self.epoch = (self.epoch + 1).max(generation << 32);
        if self.last != to {
            (self.last, self.alone_from) = (to.to_owned(), self.epoch);
        }
        self.holder = Some(to.to_owned());
        called.clone_into(&mut self.called);
        (self.since, self.revoked) = (now, false);
    }

    /// The lease of a volume, if there ever was one.
    pub(crate) async fn find(state: &State, volume: &str) -> Result<Option<Self>> {
        check_id(volume)?;
        Ok(state.get::<Self>(&key(volume)).await?.map(|(lease, _)| lease))
    }

    /// Whether nobody else has had it since an epoch.
    pub(crate) fn passes(&self, epoch: u64) -> bool {
        epoch >= self.alone_from
    }

    /// Who has had it, and from which epoch on: for people.
    pub(crate) fn holders(&self) -> String {
        format!("node {} has had that from epoch {} on", self.last, self.alone_from)
    }

    fn take_away(&mut self) {
        (self.holder, self.revoked) = (None, false);
    }
}

fn key(volume: &str) -> String {
    format!("leases/{volume}")
}

impl Fleet {
    /// Gives a lease to a node, or lets it go on with the one that it has.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`], naming its holder, while another has it; or if another daemon reports as this node.
    pub(crate) async fn take_lease(&self, volume: &str, asked: &TakeLease) -> Result<LeaseGrant> {
        check_name(&asked.holder)?;
        self.wait_for_leases_before_a_restore().await?;
        let generation = self.state.generation().await?;
        // Before anything is given: from then on it counts the time of it.
        let ticks = self.clock.ticks();
        self.hearing.with(|reign| {
            let admitted = match &asked.run {
                Some(run) => reign.reports.admit(&asked.holder, run, ticks),
                None => Ok(()),
            };
            admitted.map(|()| reign.reports.asks(&asked.holder, ticks))
        })??;
        self.change_lease(volume, |lease| {
            let other = lease.holder.as_ref().filter(|holder| **holder != asked.holder);
            if let Some(holder) = other {
                lease.revoked |= self.lapses(holder)? == 0;
            }
            Ok(())
        })
        .await?;
        self.change_lease(volume, |lease| {
            match lease.holder.clone() {
                Some(holder) if holder == asked.holder => {
                    if lease.revoked {
                        return Err(revoked(volume));
                    }
                    if asked.epoch == Some(lease.epoch) {
                        return Ok(());
                    }
                }
                Some(holder) => {
                    let left = self.lapses(&holder)?;
                    if left > 0 || !lease.revoked {
                        return Err(held(volume, lease, &holder, left));
                    }
                    tracing::warn!(volume, holder, to = asked.holder, "a lease has lapsed");
                }
                None => {}
            }
            lease.give(&asked.holder, &asked.called, generation, self.clock.now());
            Ok(())
        })
        .await
    }

    /// After a restore nobody knows who was given leases since the backup: until they are over there are none.
    pub(super) async fn wait_for_leases_before_a_restore(&self) -> Result<()> {
        let left = match self.state.not_before().await? {
            Some(then) => then.saturating_sub(self.clock.now()),
            None => 0,
        };
        if left == 0 {
            return Ok(());
        }
        let what = format!(
            "placement's state was restored from a backup: leases that were given since that are over in {left} s; before \
             none is given, and no garbage is collected"
        );
        Err(Error::new(Kind::Busy(Duration::from_secs(left)), what))
    }

    /// Hands a lease from the node that has it to another, of the next epoch.
    pub(crate) async fn transfer_lease(
        &self,
        volume: &str,
        by: Option<&str>,
        asked: &TransferLease,
    ) -> Result<LeaseGrant> {
        check_name(&asked.to)?;
        let generation = self.state.generation().await?;
        self.change_lease(volume, |lease| {
            let theirs = by.is_none_or(|by| lease.holder.as_deref() == Some(by));
            if !theirs || lease.holder.is_none() || lease.epoch != asked.epoch {
                let holder = lease.holder.as_deref().unwrap_or("nobody");
                let what =
                    format!("the lease of volume {volume}: {holder} has it, epoch {}", lease.epoch);
                return Err(Error::new(Kind::Conflict, what));
            }
            let called = lease.called.clone();
            lease.give(&asked.to, &called, generation, self.clock.now());
            Ok(())
        })
        .await
    }

    /// Takes a lease from its holder: when that has stopped, or its time is over; or at once.
    pub(crate) async fn break_lease(
        &self,
        volume: &str,
        by: &str,
        asked: &BreakLease,
    ) -> Result<LeaseInfo> {
        self.change_lease(volume, |lease| {
            let Some(holder) = lease.holder.clone() else {
                let what = format!("the lease of volume {volume}: nobody has it");
                return Err(Error::new(Kind::Gone, what));
            };
            let (why, at_once) = (asked.why.clone(), asked.at_once);
            let at = self.clock.now();
            tracing::warn!(volume, holder, by, why, at_once, "a lease is broken");
            lease.broken = Some(Broken { at, by: by.into(), holder, why, at_once });
            lease.revoked = true;
            if at_once {
                lease.take_away();
            }
            Ok(())
        })
        .await?;
        let found = self.state.get::<Lease>(&key(volume)).await?;
        let (lease, _) = found.ok_or_else(|| Error::new(Kind::Gone, "the lease is gone"))?;
        self.info(volume.to_owned(), lease)
    }

    /// All leases that somebody has.
    pub(crate) async fn leases(&self) -> Result<LeaseList> {
        let all = self.state.list_versioned::<Lease>("leases/").await?;
        let held = all.into_iter().filter(|(_, lease, _)| lease.holder.is_some());
        let leases = held.map(|(volume, lease, _)| self.info(volume, lease)).collect::<Result<_>>();
        Ok(LeaseList { leases: leases?, reads: self.read_leases().await? })
    }

    /// Takes back what a node says it does not need any more.
    pub(super) async fn release(&self, node: &str, released: &[HeldLease]) -> Result<()> {
        for HeldLease { volume, epoch } in released {
            let done = self.change_lease(volume, |lease| {
                if lease.holder.as_deref() == Some(node) && lease.epoch == *epoch {
                    lease.take_away();
                }
                Ok(())
            });
            match done.await {
                // Nobody can say who has it; the others go on.
                Err(error) if error.kind() == Kind::Corrupt => {
                    tracing::error!(%error, node, "a lease that cannot be given back");
                }
                done => drop(done?),
            }
        }
        Ok(())
    }

    /// Of the leases that a node believes to have, those that it has not, or shall give back.
    pub(super) async fn lost(&self, node: &str, believed: &[HeldLease]) -> Result<Vec<String>> {
        let mut lost = Vec::new();
        for HeldLease { volume, epoch } in believed {
            check_id(volume)?;
            let found = match self.state.get::<Lease>(&key(volume)).await {
                // Nobody else is given it either.
                Err(error) if error.kind() == Kind::Corrupt => {
                    tracing::error!(%error, node, "a lease that goes on though it cannot be read");
                    continue;
                }
                found => found?,
            };
            let has = found.is_some_and(|(lease, _)| {
                lease.holder.as_deref() == Some(node) && lease.epoch == *epoch && !lease.revoked
            });
            if !has {
                lost.push(volume.clone());
            }
        }
        Ok(lost)
    }

    /// Seconds until what a node has is anybody's, if it is not heard of again. Seconds are counted whole, and so may be
    /// one too many; and the node's clock may be slower.
    pub(super) fn lapses(&self, node: &str) -> Result<u64> {
        let last = self.hearing.with(|reign| {
            let sign = reign.reports.sign(node).unwrap_or(reign.since);
            sign.max(reign.since)
        })?;
        let lasts = self.lease_secs + self.lease_secs.div_ceil(PACE) + 1;
        Ok((last + lasts).saturating_sub(self.clock.ticks()))
    }

    /// Changes a lease, and nobody else meanwhile.
    async fn change_lease(
        &self,
        volume: &str,
        change: impl Fn(&mut Lease) -> Result<()>,
    ) -> Result<LeaseGrant> {
        check_id(volume)?;
        for _ in 0..TRIES {
            let found: Option<(Lease, Versioned)> = self.state.get(&key(volume)).await?;
            let (before, seen) = found.map_or((None, None), |(l, seen)| (Some(l), Some(seen)));
            let mut lease = before.clone().unwrap_or_default();
            change(&mut lease)?;
            let grant = LeaseGrant { epoch: lease.epoch, lease_secs: self.lease_secs };
            if before.as_ref() == Some(&lease) {
                return Ok(grant);
            }
            let write = Transaction::default().unchanged(&key(volume), seen.as_ref());
            match self.hearing.lead()?.commit(write.put(&key(volume), encode(&lease))).await {
                Err(error) if error.kind() == Kind::Conflict => {}
                done => {
                    done?;
                    let holders = [before.and_then(|lease| lease.holder), lease.holder];
                    self.tell(holders.iter().flatten().map(|holder| goals::key(holder)));
                    return Ok(grant);
                }
            }
        }
        Err(Error::new(Kind::Retry, format!("the lease of volume {volume}: others change it")))
    }

    fn info(&self, volume: String, lease: Lease) -> Result<LeaseInfo> {
        let lapses = lease.holder.as_deref().map(|holder| self.lapses(holder)).transpose()?;
        let Lease { epoch, holder, called, since, revoked, broken, .. } = lease;
        Ok(LeaseInfo { volume, called, holder, epoch, since, lapses, revoked, broken })
    }
}

fn held(volume: &str, lease: &Lease, holder: &str, left: u64) -> Error {
    let called = if lease.called.is_empty() { volume } else { &lease.called };
    let what = match lease.revoked {
        true => format!(
            "volume {called}: its lease is being taken from node {holder}; it is free when that has stopped, or in \
             {left} s"
        ),
        false => format!(
            "volume {called}: node {holder} has the lease to write it; detach it there, or `forebay lease break \
             {volume}`; if {holder} is not heard of it is free in {left} s"
        ),
    };
    Error::new(Kind::Conflict, what)
}

fn revoked(volume: &str) -> Error {
    let what = format!("the lease of volume {volume} is being taken back: try again in a moment");
    Error::new(Kind::Retry, what)
}
