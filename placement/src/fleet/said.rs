//! What a report may say at all. A node speaks for itself alone; what it cannot have said counts nothing, all of it.

use std::collections::BTreeSet;

use api::goal::StatusReport;
use image::{Error, Kind, Result};

use super::operations::check_id;
use super::{Fleet, reads, released};
use crate::member::check_name;

/// Longest name of a run, in bytes.
const RUN: usize = 64;
/// No run sends more reports. A number beyond would leave none for those that follow.
const NUMBERS: u64 = 1 << 48;

/// That a report can be one.
fn check(node: &str, report: &StatusReport) -> Result<()> {
    let bad =
        |what: &str| Err(Error::new(Kind::Invalid, format!("a report of node {node}: {what}")));
    if report.run.is_empty() || report.run.len() > RUN {
        return bad("a run is called by 1 to 64 bytes");
    }
    if report.number > NUMBERS {
        return bad("its number is one that no run comes to");
    }
    let ready = report.ready.iter().map(|volume| &volume.id);
    let volumes = report.volumes.iter().map(|volume| &volume.id);
    let items = report.items.iter().map(|item| &item.id);
    let leases = report.leases.iter().chain(&report.released).map(|lease| &lease.volume);
    ready.chain(volumes).chain(items).chain(leases).try_for_each(|id| check_id(id))?;
    released::check(&report.erased)?;
    reads::check(node, report)
}

/// Of what a report names twice it has one.
pub(super) fn once(report: &mut StatusReport) {
    let mut seen = BTreeSet::new();
    report.ready.retain(|volume| seen.insert(volume.id.clone()));
}

impl Fleet {
    /// Looks at a report before anything of it counts. Says whether it is newer than what was heard of that node.
    ///
    /// # Errors
    ///
    /// If it cannot be one; if the node was forgotten; [`Kind::Conflict`] if another daemon reports as this node since.
    pub(super) async fn admit(&self, node: &str, report: &StatusReport) -> Result<bool> {
        check_name(node)?;
        check(node, report)?;
        self.refuse_forgotten(node).await?;
        let ticks = self.clock.ticks();
        self.hearing.with(|reign| {
            reign.reports.admit(node, &report.run, ticks)?;
            Ok(!reign.reports.is_old(node, report))
        })?
    }
}
