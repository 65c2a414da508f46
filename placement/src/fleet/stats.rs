//! What nodes have measured: the last of it, and a bounded past. In memory alone: nodes say it again.
//!
//! Of each node all of the last sample is kept (some 4 KB of a usual one, [`NodeStats::check`] bounds it), the essentials
//! of the last [`SAMPLES`] and of one in each of the last [`MINUTES`] minutes, and the last [`EVENTS`] events: less than
//! 24 KB, so that 10,000 nodes take less than 240 MB.
//!
//! The same lock has the fleet as it is for choosing nodes, which a sample changes where it concerns its node alone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard};

use api::stats::{Event, NodeHistory, NodeStats, NodeSummary, Since, StatsList, StatsPoint};
use image::{Error, Kind, Result};

use super::UNPOISONED;
use super::facts::facts;
use super::heard::AWAY;
use crate::decide::View;

/// Samples of which the essentials are kept.
pub(super) const SAMPLES: usize = 60;
/// Minutes of each of which one is kept.
pub(super) const MINUTES: usize = 60;
/// Events that are kept.
pub(super) const EVENTS: usize = 64;
/// Seconds after which nothing is kept of a node that is not heard of.
const FORGOTTEN: u64 = 2 * 3600;
/// Seconds for which nodes measure more often after somebody has looked.
const LOOKING: u64 = 30;
/// Nodes that measure in a second at most because somebody looks at all of them.
const A_SECOND: usize = 1000;

/// How often somebody wants to see what is measured, in seconds, and until when.
#[derive(Clone, Copy, Default)]
struct Look {
    every: u32,
    until: u64,
}

impl Look {
    fn now(&self, ticks: u64) -> Option<u32> {
        (ticks < self.until).then_some(self.every)
    }

    /// Who looks more closely counts.
    fn look(&mut self, every: u32, ticks: u64) {
        if every > 0 {
            let every = self.now(ticks).map_or(every, |is| is.min(every));
            *self = Self { every, until: ticks + LOOKING };
        }
    }
}

/// What is kept of a node.
#[derive(Default)]
pub(super) struct Past {
    /// When it was heard, by [`Clock::ticks`](crate::clock::Clock::ticks).
    pub ticks: u64,
    /// Which run of its daemon it was.
    run: String,
    pub last: NodeStats,
    samples: VecDeque<StatsPoint>,
    minutes: VecDeque<StatsPoint>,
    events: VecDeque<Event>,
    look: Look,
    /// Why it cannot be chosen.
    pub unfit: Option<String>,
}

impl Past {
    pub(super) fn is_away(&self, now: u64) -> bool {
        now >= self.ticks + AWAY
    }

    fn add(&mut self, stats: NodeStats) {
        let point = stats.point();
        let minute = |point: &StatsPoint| point.at / 60;
        if self.minutes.front().map(minute) != Some(minute(&point)) {
            push(&mut self.minutes, point, MINUTES);
        }
        push(&mut self.samples, point, SAMPLES);
        // A node says again what it does not know to have been heard.
        for event in &stats.events {
            if !self.events.contains(event) {
                push(&mut self.events, event.clone(), EVENTS);
            }
        }
        self.last = stats;
    }

    /// It can be chosen by what it said last, if that makes sense.
    fn is_here(&mut self, name: &str, view: &mut View, ticks: u64) {
        self.ticks = ticks;
        let cordoned = view.node(name).is_some_and(|before| before.cordoned);
        let told = view.set_node(facts(name, &self.last, cordoned));
        self.unfit = told.err().map(|error| error.to_string());
        if let Some(why) = &self.unfit {
            tracing::warn!(why, node = name, "a node cannot be chosen");
            view.remove_node(name);
        }
    }

    fn summary(&self, name: &str, now: u64) -> NodeSummary {
        let hypervisors = self.last.hypervisors.iter();
        let hypervisors = hypervisors.map(|of| format!("{} {}", of.kind, of.version));
        NodeSummary {
            name: name.to_owned(),
            heard: now.saturating_sub(self.ticks),
            away: self.is_away(now),
            last: self.last.point(),
            hypervisors: hypervisors.collect(),
            unfit: self.unfit.clone(),
        }
    }
}

/// Puts the newest in front; the oldest goes. Room is taken as it is needed, and never more than that.
fn push<T>(past: &mut VecDeque<T>, newest: T, most: usize) {
    if past.len() == most {
        past.pop_back();
    } else if past.len() == past.capacity() {
        past.reserve_exact((past.len().max(4)).min(most - past.len()));
    }
    past.push_front(newest);
}

/// What is known of all nodes.
pub(super) struct Known {
    pub nodes: BTreeMap<String, Past>,
    /// Of those that are heard of, and make sense.
    pub view: View,
    /// At all of them.
    look: Look,
}

/// See the [module](self).
pub(crate) struct Stats {
    known: Mutex<Known>,
}

impl Stats {
    /// Of a fleet with these levels of failure domains.
    pub(crate) fn new(levels: Vec<String>) -> Result<Self> {
        let view = View::new(levels)?;
        let known = Known { nodes: BTreeMap::new(), view, look: Look::default() };
        Ok(Self { known: Mutex::new(known) })
    }

    /// Takes what a node says. What makes no sense is said in the log, and changes nothing: a node's leases do not
    /// depend on what it measures. What is repeated or late changes nothing either.
    pub(super) fn take(&self, node: &str, run: &str, stats: NodeStats, ticks: u64) {
        if let Err(error) = stats.check() {
            tracing::warn!(%error, node, "what a node measures is not taken");
            return;
        }
        let Known { nodes, view, .. } = &mut *self.lock();
        let past = nodes.entry(node.to_owned()).or_default();
        if past.run == run && stats.number <= past.last.number {
            return;
        }
        run.clone_into(&mut past.run);
        past.add(stats);
        past.is_here(node, view, ticks);
    }

    /// A node is there, and has measured nothing new.
    pub(super) fn heard(&self, node: &str, ticks: u64) {
        let Known { nodes, view, .. } = &mut *self.lock();
        let Some(past) = nodes.get_mut(node) else { return };
        match view.node(node).is_some() {
            true => past.ticks = ticks,
            false => past.is_here(node, view, ticks),
        }
    }

    /// Everything, with nobody in it who is not heard of.
    pub(super) fn now(&self, ticks: u64) -> MutexGuard<'_, Known> {
        let mut known = self.lock();
        let Known { nodes, view, .. } = &mut *known;
        nodes.retain(|_, past| ticks < past.ticks + FORGOTTEN);
        for (name, _) in nodes.iter().filter(|(_, past)| past.is_away(ticks)) {
            view.remove_node(name);
        }
        known
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect(UNPOISONED)
    }

    /// The last of all nodes. With `every`, they are asked for more, so many seconds apart.
    pub(super) fn list(&self, every: u32, ticks: u64) -> StatsList {
        let mut known = self.now(ticks);
        known.look.look(every, ticks);
        let summaries = known.nodes.iter().map(|(name, past)| past.summary(name, ticks));
        StatsList { nodes: summaries.collect(), ..StatsList::default() }
    }

    /// How often somebody wants to see what a node measures, in seconds.
    pub(super) fn wanted(&self, node: &str, ticks: u64) -> Option<u32> {
        let known = self.lock();
        let least = u32::try_from(known.nodes.len().div_ceil(A_SECOND)).unwrap_or(u32::MAX);
        let all = known.look.now(ticks).map(|every| every.max(least));
        let one = known.nodes.get(node).and_then(|past| past.look.now(ticks));
        all.into_iter().chain(one).min()
    }

    /// All that is kept of a node, of what is later than `since`. With `every`, it is asked for more.
    ///
    /// # Errors
    ///
    /// [`Kind::Gone`] if it has said nothing.
    pub(super) fn history(
        &self,
        node: &str,
        Since { since, every }: Since,
        ticks: u64,
    ) -> Result<NodeHistory> {
        let mut known = self.lock();
        let Some(past) = known.nodes.get_mut(node) else {
            let what = format!("node {node}: it has measured nothing yet, or there is none");
            return Err(Error::new(Kind::Gone, what));
        };
        past.look.look(every, ticks);
        let later = |points: &VecDeque<StatsPoint>| {
            points.iter().filter(|point| point.at > since).copied().collect()
        };
        Ok(NodeHistory {
            summary: past.summary(node, ticks),
            stats: past.last.clone(),
            samples: later(&past.samples),
            minutes: later(&past.minutes),
            events: past.events.iter().filter(|event| event.at > since).cloned().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use api::stats::{CpuStats, SCHEMA, What};

    use super::*;

    fn stats(number: u64, at: u64) -> NodeStats {
        let cpu = Some(CpuStats { cores: 4, ..CpuStats::default() });
        let event = Event { at, what: What::VmStarted, name: number.to_string() };
        NodeStats { schema: SCHEMA, number, at, cpu, events: vec![event], ..NodeStats::default() }
    }

    fn since(since: u64) -> Since {
        Since { since, every: 0 }
    }

    #[test]
    fn the_past_is_bounded_and_the_newest_comes_first() {
        let all = Stats::new(Vec::new()).unwrap();
        for number in 1..=1000 {
            all.take("n", "run", stats(number, number * 10), number * 10);
        }
        let history = all.history("n", since(0), 10_000).unwrap();
        let ats: Vec<u64> = history.samples.iter().map(|point| point.at).collect();
        assert_eq!((ats.len(), ats[0], ats[59]), (SAMPLES, 10_000, 9410));
        assert_eq!((history.minutes.len(), history.minutes[1].at), (MINUTES, 9900));
        assert_eq!((history.events.len(), history.events[0].name.as_str()), (EVENTS, "1000"));
        assert_eq!(all.history("n", since(9990), 10_000).unwrap().samples.len(), 1);
        assert_eq!(all.history("m", since(0), 0).unwrap_err().kind(), Kind::Gone);
        let known = all.lock();
        let past = &known.nodes["n"];
        let points = (past.samples.capacity() + past.minutes.capacity()) * size_of::<StatsPoint>();
        let events = past.events.capacity() * (size_of::<Event>() + 16);
        assert!(points + events < 24 << 10, "{points} + {events}");
    }

    #[test]
    fn what_is_repeated_late_or_too_much_changes_nothing() {
        let all = Stats::new(vec!["rack".into()]).unwrap();
        all.take("n", "a", stats(2, 20), 20);
        for again in [stats(2, 30), stats(1, 10)] {
            all.take("n", "a", again, 30);
        }
        let mut third = stats(3, 30);
        third.events.insert(0, stats(2, 20).events.remove(0));
        all.take("n", "a", third, 30);
        let events = all.history("n", since(0), 30).unwrap().events;
        let names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
        assert_eq!(names, ["3", "2"], "each has happened once");
        let later = NodeStats { schema: SCHEMA + 1, ..stats(4, 40) };
        all.take("n", "a", later, 40);
        let summary = all.list(0, 45).nodes.remove(0);
        assert_eq!((summary.heard, summary.last.at, summary.away), (15, 30, false));
        all.take("n", "b", stats(1, 50), 50);
        assert_eq!(all.list(0, 50).nodes[0].last.at, 50, "it was started anew");
        // Who is not heard of cannot be chosen; nor can who makes no sense.
        assert_eq!(all.now(50 + AWAY).view.nodes(), 0);
        assert!(all.list(0, 50 + AWAY).nodes[0].away);
        all.heard("n", 80);
        assert_eq!(all.now(80).view.nodes(), 1, "it measures seldom");
        all.take("n", "b", stats(2, 90), 90);
        assert_eq!(all.now(90).view.nodes(), 1);
        let mut deep = stats(3, 100);
        deep.declared.domain = "ams/rack-1/shelf-2".into();
        all.take("n", "b", deep, 100);
        assert_eq!(all.now(100).view.nodes(), 0);
        assert!(all.list(0, 100).nodes[0].unfit.as_ref().unwrap().contains("deeper"));
        assert!(all.list(0, 100 + FORGOTTEN).nodes.is_empty());
    }

    #[test]
    fn nodes_measure_more_often_while_somebody_looks_and_not_all_of_many() {
        let all = Stats::new(Vec::new()).unwrap();
        let wanted = |ticks| all.wanted("n", ticks);
        all.take("n", "run", stats(1, 1), 10);
        assert_eq!(wanted(10), None);
        all.list(0, 10);
        assert_eq!(wanted(10), None);
        all.list(5, 10);
        all.list(2, 11);
        all.list(5, 12);
        assert_eq!((wanted(12), wanted(12 + LOOKING)), (Some(2), None));
        (0..2500).for_each(|n| all.take(&n.to_string(), "run", stats(1, 1), 12));
        assert_eq!((wanted(12), all.wanted("7", 12)), (Some(3), Some(3)), "of so many seldom");
        all.history("n", Since { since: 0, every: 1 }, 12).unwrap();
        assert_eq!((wanted(12), all.wanted("7", 12)), (Some(1), Some(3)), "of one as often");
    }
}
