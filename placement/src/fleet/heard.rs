//! What nodes have said last. It is kept in memory alone: nodes say it again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use api::goal::StatusReport;
use image::{Error, Kind, Result};

/// Seconds after which a node that is not heard of does not count any more: three reports.
pub(crate) const AWAY: u64 = 30;
/// Earlier runs of a node's daemon that are remembered, so that they are not taken for the present one.
const RUNS: usize = 16;

/// A node that has reported.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    /// When, by [`Clock::ticks`](crate::clock::Clock::ticks).
    pub ticks: u64,
    /// What it said.
    pub report: Arc<StatusReport>,
    /// The newest last.
    earlier: VecDeque<String>,
}

impl Heard {
    /// Whether it does not count any more, at a time by the same clock.
    pub(crate) fn is_away(&self, now: u64) -> bool {
        now >= self.ticks + AWAY
    }
}

/// Whether something is different that anybody decides by. Of the room a little is always.
fn is_news(before: &StatusReport, now: &StatusReport) -> bool {
    let place = |r: &StatusReport| (r.run.clone(), r.generation, r.goal);
    place(before) != place(now)
        || before.items != now.items
        || before.ready != now.ready
        || before.volumes != now.volumes
        || before.held != now.held
        || before.released != now.released
}

/// By pool, what was taken between two reports: no more than was ready then, whatever a node says. Of what a daemon took
/// before it was heard nobody knows what was counted.
fn taken_since<'a>(
    before: &StatusReport,
    now: &'a StatusReport,
) -> impl Iterator<Item = (&'a String, u64)> {
    now.taken.iter().filter_map(|(pool, taken)| {
        let had = before.taken.get(pool).filter(|_| before.run == now.run).copied().unwrap_or(0);
        let ready = before.ready.iter().filter(|volume| volume.pool == *pool).count() as u64;
        Some((pool, taken.saturating_sub(had).min(ready))).filter(|(_, more)| *more > 0)
    })
}

/// The last report of each node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reports {
    nodes: BTreeMap<String, Heard>,
    /// By pool, what was taken at nodes without placement having been asked, and was not counted yet.
    taken: BTreeMap<String, u64>,
    /// Nodes that have asked for a lease since, and when, by the same clock.
    asked: BTreeMap<String, u64>,
}

impl Reports {
    /// That a run of a node's daemon is the one that counts, or one that begins.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if another daemon has reported as this node since, and is not away.
    pub(crate) fn admit(&self, node: &str, run: &str, now: u64) -> Result<()> {
        let Some(last) = self.nodes.get(node) else { return Ok(()) };
        // A report that was late may have come after the first of the run that followed. Then that one goes on, while
        // nothing more is heard of the other.
        if last.earlier.iter().all(|one| one != run) || last.is_away(now) {
            return Ok(());
        }
        let what = format!(
            "{node}: another daemon reports as this node since: two of one name, or one directory in two places; end \
             one of them"
        );
        Err(Error::new(Kind::Conflict, what))
    }

    /// Whether a report is one that was heard before, or older.
    pub(crate) fn is_old(&self, node: &str, report: &StatusReport) -> bool {
        let last = self.nodes.get(node).map(|last| &last.report);
        last.is_some_and(|last| last.run == report.run && report.number <= last.number)
    }

    /// Takes a report; says whether something is news in it. One that is [old](Self::is_old) has none.
    ///
    /// # Errors
    ///
    /// As of [`admit`](Self::admit).
    pub(crate) fn take(&mut self, node: &str, report: StatusReport, now: u64) -> Result<bool> {
        self.admit(node, &report.run, now)?;
        if self.is_old(node, &report) {
            return Ok(false);
        }
        let Some(last) = self.nodes.get_mut(node) else {
            let heard = Heard { ticks: now, report: Arc::new(report), earlier: VecDeque::new() };
            self.nodes.insert(node.to_owned(), heard);
            self.asked.remove(node);
            return Ok(true);
        };
        if last.report.run != report.run {
            last.earlier.retain(|run| *run != report.run);
            last.earlier.push_back(last.report.run.clone());
            if last.earlier.len() > RUNS {
                last.earlier.pop_front();
            }
        }
        let before = std::mem::replace(&mut last.report, Arc::new(report));
        for (pool, more) in taken_since(&before, &last.report) {
            *self.taken.entry(pool.clone()).or_default() += more;
        }
        last.ticks = now;
        self.asked.remove(node);
        Ok(is_news(&before, &last.report))
    }

    /// By pool, what was taken at nodes without placement having been asked, since this was asked last.
    pub(crate) fn taken(&mut self) -> BTreeMap<String, u64> {
        std::mem::take(&mut self.taken)
    }

    /// What a node has said last.
    pub(crate) fn get(&self, node: &str) -> Option<&Heard> {
        self.nodes.get(node)
    }

    /// A node asks for a lease, at a time.
    pub(crate) fn asks(&mut self, node: &str, now: u64) {
        self.asked.insert(node.to_owned(), now);
    }

    /// When a node has last given a sign of life, of those from which it counts the time of its leases.
    pub(crate) fn sign(&self, node: &str) -> Option<u64> {
        let asked = self.asked.get(node).copied();
        asked.max(self.nodes.get(node).map(|heard| heard.ticks))
    }

    /// Those of some nodes.
    pub(crate) fn of(&self, nodes: &BTreeSet<String>) -> Self {
        let some = nodes.iter().filter_map(|node| self.nodes.get_key_value(node));
        let nodes = some.map(|(node, heard)| (node.clone(), heard.clone())).collect();
        Self { nodes, ..Self::default() }
    }

    /// All that have reported, in the order of their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Heard)> {
        self.nodes.iter()
    }
}

#[cfg(test)]
mod tests {
    use api::goal::ReadyVolume;
    use api::pool::VolumeKind;

    use super::*;

    #[test]
    fn what_was_taken_at_a_node_is_counted_once_and_no_more_than_there_was() {
        let ready = |n: usize| {
            let kind = VolumeKind { size: 1, sector: None, image: None, layout: None };
            let (id, pool, state) = (String::new(), "p".into(), "ready".into());
            vec![ReadyVolume { id, pool, kind, state }; n]
        };
        let said = |run: &str, number, taken, n| StatusReport {
            taken: BTreeMap::from([("p".to_owned(), taken)]),
            ready: ready(n),
            ..report(run, number)
        };
        let mut all = Reports::default();
        let mut take = |report: StatusReport| {
            all.take("n", report, 0).unwrap();
            all.taken().get("p").copied().unwrap_or(0)
        };
        assert_eq!(take(said("a", 1, 7, 3)), 0, "another has counted them, or nobody ever will");
        assert_eq!(take(said("a", 2, 9, 3)), 2);
        assert_eq!(take(said("a", 2, 9, 3)), 0);
        assert_eq!(take(said("a", 3, 9, 3)), 0);
        assert_eq!(take(said("b", 1, 1, 2)), 1, "its daemon was started anew");
        assert_eq!(take(said("b", 2, u64::MAX, 2)), 2, "there were two");
    }

    fn report(run: &str, number: u64) -> StatusReport {
        StatusReport {
            run: run.into(),
            number,
            disk: Default::default(),
            ..StatusReport::default()
        }
    }

    #[test]
    fn old_and_repeated_reports_are_no_news() {
        let mut all = Reports::default();
        assert!(all.take("n", report("a", 2), 10).unwrap());
        assert!(!all.take("n", report("a", 2), 11).unwrap());
        assert!(!all.take("n", report("a", 1), 12).unwrap());
        assert_eq!(all.get("n").unwrap().ticks, 10, "what is repeated says nothing of now");
        assert!(!all.take("n", report("a", 3), 13).unwrap(), "as it was");
        let told = StatusReport { goal: 1, ..report("a", 4) };
        assert!(all.take("n", told, 13).unwrap());
        assert!(!all.get("n").unwrap().is_away(13 + AWAY - 1));
        assert!(all.get("n").unwrap().is_away(13 + AWAY));
    }

    #[test]
    fn of_two_daemons_of_one_name_the_one_that_came_first_is_refused() {
        let mut all = Reports::default();
        all.take("n", report("a", 5), 10).unwrap();
        assert!(all.take("n", report("b", 1), 11).unwrap(), "it was started anew");
        let refused = all.take("n", report("a", 6), 12).unwrap_err();
        assert_eq!(refused.kind(), Kind::Conflict);
        assert_eq!(all.get("n").unwrap().report.run, "b");
    }

    #[test]
    fn of_many_runs_the_last_are_remembered() {
        let mut all = Reports::default();
        // The newest are the first by their names.
        let runs = (0..3 * RUNS).rev().map(|n| format!("{n:03}"));
        for (at, run) in runs.enumerate() {
            all.take("n", report(&run, 1), at as u64).unwrap();
        }
        for run in 1..RUNS {
            let late = all.take("n", report(&format!("{run:03}"), 9), 3 * RUNS as u64);
            assert_eq!(late.unwrap_err().kind(), Kind::Conflict, "{run}");
        }
    }

    #[test]
    fn who_is_taken_for_an_earlier_one_is_heard_again_when_the_other_is_silent() {
        let mut all = Reports::default();
        all.take("n", report("b", 1), 10).unwrap();
        assert!(all.take("n", report("a", 7), 11).unwrap(), "it was sent before, and came late");
        for now in [12, 11 + AWAY - 1] {
            assert_eq!(all.take("n", report("b", 2), now).unwrap_err().kind(), Kind::Conflict);
        }
        assert!(all.take("n", report("b", 3), 11 + AWAY).unwrap());
        assert!(!all.take("n", report("b", 4), 12 + AWAY).unwrap(), "as it was");
        let late = all.take("n", report("a", 8), 13 + AWAY).unwrap_err();
        assert_eq!(late.kind(), Kind::Conflict);
    }
}
