//! Read leases: images from which nodes read, which no collection of garbage takes.
//!
//! A node's reports name them: its volumes read from them until all is there. What is kept is which node reads from
//! what, and no time: as any lease, it lasts as long as the node is heard of, and so long after.

use std::collections::BTreeSet;

use api::goal::{Goal, StatusReport};
use api::lease::ReadLease;
use image::{Digest, Error, Kind, Result};

use super::goals::Goals;
use super::{Fleet, Keep, TRIES};
use crate::state::keys::{Transaction, encode};

const PREFIX: &str = "reads/";
/// Images that one node reads from at most: they are one value of the state.
const MOST: usize = 8192;

/// What a node reads from, as it says.
fn of(report: &StatusReport) -> BTreeSet<Digest> {
    let volumes = report.volumes.iter().filter_map(|volume| volume.image);
    volumes.chain(report.held.iter().map(|held| held.image)).collect()
}

/// That a node can read from these.
pub(super) fn check(node: &str, report: &StatusReport) -> Result<()> {
    match of(report).len() {
        ..=MOST => Ok(()),
        many => {
            let what = format!("node {node}: reads from {many} images, of {MOST} at most");
            Err(Error::new(Kind::Invalid, what))
        }
    }
}

impl Fleet {
    /// Writes down what a node reads from, unless it is as its last report has said.
    pub(super) async fn note_reads(&self, node: &str, report: &StatusReport) -> Result<()> {
        let reads = of(report);
        let is_known = {
            self.hearing.with(|reign| {
                reign.reports.get(node).is_some_and(|last| {
                    let (before, same) = (&last.report, last.report.run == report.run);
                    // After a gap another placement may have heard of others.
                    let next = same && before.number + 1 == report.number && of(before) == reads;
                    next || (same && report.number <= before.number)
                })
            })?
        };
        if is_known {
            return Ok(());
        }
        let key = format!("{PREFIX}{node}");
        for _ in 0..TRIES {
            let found = self.state.get::<BTreeSet<Digest>>(&key).await?;
            let (before, seen) = found.unzip();
            if before.unwrap_or_default() == reads {
                return Ok(());
            }
            let change = Transaction::default().unchanged(&key, seen.as_ref());
            let change = match reads.is_empty() {
                true => change.delete(&key),
                false => change.put(&key, encode(&reads)),
            };
            match self.hearing.lead()?.commit(change).await {
                Err(error) if error.kind() == Kind::Conflict => {}
                done => return done,
            }
        }
        Err(Error::new(Kind::Retry, format!("node {node}: others change what it reads from")))
    }

    /// Who reads from which images now, in the order of the nodes.
    pub(crate) async fn read_leases(&self) -> Result<Vec<ReadLease>> {
        let all = self.state.list_versioned::<BTreeSet<Digest>>(PREFIX).await?;
        let lease = |(holder, images, _): (String, BTreeSet<Digest>, _)| {
            let lapses = self.lapses(&holder)?;
            let one = move |image| ReadLease { image, holder: holder.clone(), lapses };
            Ok(images.into_iter().map(one))
        };
        let all = all.into_iter().map(lease).collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().flatten().filter(|lease| lease.lapses > 0).collect())
    }

    /// The images that are not to be collected though no ref leads to them: nodes read from them, or were told to
    /// build of them.
    ///
    /// # Errors
    ///
    /// [`Kind::Busy`] after a restore, until those of which nothing is known are over.
    pub(crate) async fn held_images(&self) -> Result<BTreeSet<Digest>> {
        self.wait_for_leases_before_a_restore().await?;
        let mut held: BTreeSet<Digest> =
            self.read_leases().await?.into_iter().map(|lease| lease.image).collect();
        let goals = Goals::load(&self.state).await?;
        let items = goals.iter().flat_map(|(_, goal)| &goal.items);
        held.extend(items.filter_map(|item| wanted(&item.goal)));
        let kept = self.state.list_versioned::<Keep>(super::keeps::PREFIX).await?;
        held.extend(kept.iter().flat_map(|(_, keep, _)| [Some(keep.image), keep.before]).flatten());
        Ok(held)
    }
}

/// The image that a node needs for what it is told.
fn wanted(goal: &Goal) -> Option<Digest> {
    match goal {
        Goal::Build { kind, .. } | Goal::Claim { build: Some(kind), .. } => kind.image,
        Goal::Hold { image, .. } => Some(*image),
        _ => None,
    }
}
