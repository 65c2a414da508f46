//! Whom to ask, how long to wait, and what to think of those who answer: decisions without I/O or clock.
//!
//! ```text
//!            limps, by its peers' measure              probes: one request at a time
//!   in ───────────────────────────────────▶ out ─────────────────────────────────────▶ in
//!    └────── failed, silent, or it says busy ──▲  └── slow or failed: out for longer ──┘
//! ```
//! All times are measured from one moment, the same for all callers.

use std::collections::BTreeMap;
use std::time::Duration;

use api::grid::CacheInfo;
use api::rendezvous::{Candidate, order};
use image::{Digest, Kind, Priority};

use super::budget::HedgeBudget;
use super::recent::{Pace, Recent};
use super::window::{Sample, Typical, Window, lower_median};

/// How long a cache stays out at first; doubled each time that it did not prove itself.
pub(super) const FIRST_REST: Duration = Duration::from_secs(2);
/// The longest time out. It is asked earlier if the others fail too.
const LAST_REST: Duration = Duration::from_secs(30);
/// What is waited while nothing has been measured, e.g. for a first connection.
pub(super) const UNKNOWN: Duration = Duration::from_secs(1);
/// The same for guests; then another is asked besides, and not instead.
const UNKNOWN_GUEST: Duration = Duration::from_millis(100);
/// No request of the background is late before.
const LATE: Duration = Duration::from_millis(100);
/// No guest's request is late before.
const LATE_GUEST: Duration = Duration::from_millis(10);
/// So many times the limit, and never less than [`UNKNOWN`], before a request goes elsewhere for good.
const LEAVE: u32 = 4;
/// One request leaves a cache in so long, unless the cache is out: one cold chunk is no reason to take the
/// load of an owner elsewhere.
const LEAVE_PAUSE: Duration = Duration::from_secs(1);
/// A cache of which no request gets anything for so long, and for as long as makes one go elsewhere, has failed,
/// if there are so many of them: it may be dead, which the network does not tell.
const SILENT: Duration = Duration::from_secs(2);
const SILENT_AMONG: u32 = 3;
/// People are told of the failures of one cache at most this often.
const NEWS: Duration = Duration::from_secs(10);
/// How often a late request is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// So many times its peers' time per chunk, and a cache limps.
const LIMPS: u32 = 4;
/// So many times for long, and it gets half its share. Not at once: a cold cache is as slow as the store, and
/// would lose the sections that it is to have (`compare versions`: 8 % more of the store was read).
const TIRES: u32 = 2;
/// Nobody limps who gives a chunk in so long: the 8 requests of a core then get 200 MB/s of 256 KiB chunks,
/// and what comes from the store first is as slow.
const FAST_ENOUGH: Duration = Duration::from_millis(10);
/// Answers of a cache before they are a measure for others.
const MEASURE: usize = 2;
/// Good probes in a row that bring back a cache that limped.
const PROVES: u32 = 3;

/// What has been done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests, each counted once however many caches were asked.
    pub requests: u64,
    /// Requests that were asked of a second cache while the first was still being waited for.
    pub hedges: u64,
    /// Requests that went elsewhere because a cache was too slow.
    pub left: u64,
    /// Caches that were taken out because they limped.
    pub limped: u64,
}

/// What a request asks.
#[derive(Clone, Copy, Debug)]
pub struct Asks<'a> {
    /// The lineage's root.
    pub root: &'a Digest,
    /// The section.
    pub section: u32,
    /// How urgent it is.
    pub priority: Priority,
    /// How many of the first in line are not to be asked.
    pub skip: usize,
}

/// How a request goes that is still under way.
#[derive(Clone, Copy, Debug)]
pub struct Underway {
    /// When it began.
    pub began: Duration,
    /// How urgent it is.
    pub priority: Priority,
    /// The wait for the next chunk so far, and time per chunk if all the rest came now; after a while, if the next
    /// one did.
    pub so_far: Sample,
    /// Whether it has been counted against the cache.
    pub counted: bool,
}

/// What to do with a request that is still under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is in time. Look again after so long.
    Wait(Duration),
    /// It is late: another may be asked besides, within the budget. Look again after so long.
    Late(Duration),
    /// Ask another instead. If there is none, look again after so long.
    Leave(Duration),
}

/// What is known of the caches.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    members: BTreeMap<String, Member>,
    budget: HedgeBudget,
    counts: Counts,
}

#[derive(Clone, Debug, Default)]
struct Member {
    /// Of guests' reads, and of others: a guest's overtake, so they are no measure for each other.
    guests: Seen,
    others: Seen,
    in_flight: u32,
    out: Option<Out>,
    left: Option<Duration>,
    /// When it last gave anything, as far as was looked.
    gave: Duration,
    /// When people were last told that it failed.
    told: Option<Duration>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    answers: Window,
    recent: Recent,
}

#[derive(Clone, Copy, Debug)]
struct Out {
    since: Duration,
    /// Then one request may try.
    until: Duration,
    /// How often it has not proved itself.
    times: u32,
    /// It limps; else it failed.
    slow: bool,
    good: u32,
}

impl Member {
    fn seen(&self, priority: Priority) -> &Seen {
        match priority {
            Priority::Guest => &self.guests,
            _ => &self.others,
        }
    }

    fn seen_mut(&mut self, priority: Priority) -> &mut Seen {
        match priority {
            Priority::Guest => &mut self.guests,
            _ => &mut self.others,
        }
    }

    fn typical(&self, priority: Priority) -> Option<Typical> {
        self.seen(priority).answers.typical(MEASURE)
    }

    /// Out for longer than before.
    fn put_out(&mut self, now: Duration, slow: bool) {
        let times = self.out.map_or(0, |out| out.times + 1);
        let until = now + FIRST_REST.saturating_mul(1 << times.min(10)).min(LAST_REST);
        self.out = Some(Out { since: now, until, times, slow, good: 0 });
    }
}

impl Policy {
    /// What has been done so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Forgets caches that are no members any more.
    pub fn keep(&mut self, members: &[CacheInfo]) {
        let listed = |name: &str| members.iter().any(|m| m.name == name);
        self.members.retain(|name, member| member.in_flight > 0 || listed(name));
    }

    /// Whom to ask, in turn, for a new request. A cache that is out comes last, unless the request is the
    /// one that may try it now.
    pub fn turn(&mut self, now: Duration, caches: &[CacheInfo], asks: Asks<'_>) -> Vec<usize> {
        self.budget.earn();
        self.counts.requests += 1;
        let candidates: Vec<_> =
            caches.iter().map(|c| Candidate { name: &c.name, weight: self.weight(c) }).collect();
        let mut turn = order(&candidates, asks.root, asks.section);
        let skip = asks.skip % turn.len().max(1);
        turn.rotate_left(skip);
        let first = turn.first().copied();
        let probe = first.filter(|i| self.probes(&caches[*i].name, now, asks.priority));
        // Stable: among those who are out, and those who are not, the order stays.
        turn.sort_by_key(|i| match self.out(&caches[*i].name) {
            _ if probe == Some(*i) => 0,
            None => 0,
            Some(out) if out.slow => 1,
            Some(_) => 2,
        });
        turn
    }

    /// A cache that tires keeps half its sections; which, all nodes agree on. One that is out has all of
    /// them again: each is a chance to prove itself.
    fn weight(&self, cache: &CacheInfo) -> f64 {
        if !self.is_in(&cache.name) {
            return cache.share();
        }
        let own = self.members.get(&cache.name).and_then(|m| m.others.answers.lasting());
        let peers = self.peers(&cache.name, Priority::Background).map(|peers| peers.pace());
        match (own, peers) {
            (Some(own), Some(peers)) if slower(TIRES, own.pace(), peers) => cache.share() / 2.0,
            _ => cache.share(),
        }
    }

    /// Whether a request may try a cache that is out; nobody else then may for a while. A guest's does not,
    /// unless nobody else has for long.
    fn probes(&mut self, name: &str, now: Duration, priority: Priority) -> bool {
        let Some(out) = self.members.get_mut(name).and_then(|m| m.out.as_mut()) else {
            return false;
        };
        let spared = if priority == Priority::Guest { LAST_REST } else { Duration::ZERO };
        let may = now >= out.until + spared;
        if may {
            out.until = now + FIRST_REST.saturating_mul(1 << out.times.min(10)).min(LAST_REST);
        }
        may
    }

    fn out(&self, name: &str) -> Option<Out> {
        self.members.get(name)?.out
    }

    /// Whether a cache is not out.
    pub fn is_in(&self, name: &str) -> bool {
        self.out(name).is_none()
    }

    /// Whether a cache may answer, however slowly.
    pub fn is_alive(&self, name: &str) -> bool {
        self.out(name).is_none_or(|out| out.slow)
    }

    /// A cache is asked now. Returns how many requests are in flight there with this one.
    pub fn begins(&mut self, name: &str, now: Duration) -> u32 {
        let member = self.members.entry(name.to_owned()).or_default();
        if member.in_flight == 0 {
            member.gave = now;
        }
        member.in_flight += 1;
        member.in_flight
    }

    /// It is not any more, however that ended.
    pub fn ends(&mut self, name: &str) {
        if let Some(member) = self.members.get_mut(name) {
            member.in_flight = member.in_flight.saturating_sub(1);
        }
    }

    /// A cache gave all it was asked for, with this sample if it was chunks and has not been counted.
    pub fn answered(
        &mut self,
        name: &str,
        now: Duration,
        began: Duration,
        priority: Priority,
        sample: Option<Sample>,
    ) {
        let slow = sample.is_some_and(|s| self.limps(name, now, priority, alone(s)));
        let Some(member) = self.members.get_mut(name) else { return };
        member.gave = member.gave.max(now);
        match &mut member.out {
            // Asked before it was taken out: that proves nothing.
            Some(out) if out.slow && began < out.since => {}
            Some(out) if out.slow && slow => member.put_out(now, true),
            Some(out) if out.slow => {
                out.good += u32::from(sample.is_some());
                out.until = now;
                if out.good >= PROVES {
                    *member = Member { in_flight: member.in_flight, ..Member::default() };
                }
            }
            _ => {
                member.out = None;
                if let Some(sample) = sample {
                    member.seen_mut(priority).answers.push(sample);
                }
            }
        }
    }

    /// A cache failed. Says whether that is news: of a cache that fails all the time people hear now and then.
    pub fn failed(&mut self, name: &str, now: Duration, began: Duration, kind: Kind) -> bool {
        let member = self.members.entry(name.to_owned()).or_default();
        let news = member.told.is_none_or(|told| now >= told + NEWS);
        if news {
            member.told = Some(now);
        }
        // Of all that failed together one counts.
        if member.out.is_some_and(|out| !out.slow && began < out.since) {
            return news;
        }
        match kind {
            // It says itself how long, and it is no worse than before.
            Kind::Busy(after) => {
                let times = member.out.map_or(0, |out| out.times);
                let until = now + after.min(LAST_REST);
                member.out = Some(Out { since: now, until, times, slow: false, good: 0 });
            }
            // That is about what was asked, and the same everywhere.
            Kind::Gone | Kind::Invalid | Kind::Unsupported => {}
            _ => member.put_out(now, false),
        }
        news
    }

    /// What to do with a request that is still under way, and whether it was counted now.
    pub fn look(&mut self, name: &str, now: Duration, under: Underway) -> (Verdict, bool) {
        let Underway { began, priority, so_far, counted } = under;
        let (limit, last) = self.limits(name, priority);
        let slow = self.limps(name, now, priority, alone(so_far));
        let late = so_far.gap >= limit;
        self.put_out_if_silent(name, now, so_far.gap, last);
        // A probe that is slow already.
        let probe = |out: &Out| out.slow && began >= out.since;
        let counts = slow && !counted && self.out(name).as_ref().is_some_and(probe);
        if counts {
            self.members.get_mut(name).expect("it is out").put_out(now, true);
        }
        let again = limit.min(LOOK_AGAIN);
        // Who asks one that failed before knows that, and gives it the time that others get.
        let out = self.out(name).is_some_and(|out| out.slow || began < out.since);
        let verdict = if !late && !slow {
            Verdict::Wait(limit - so_far.gap)
        } else if out || (so_far.gap >= last && self.may_leave(name, now)) {
            Verdict::Leave(again)
        } else if late {
            Verdict::Late(again)
        } else {
            Verdict::Wait(again)
        };
        (verdict, counts)
    }

    /// Takes a cache out of which nobody gets anything.
    fn put_out_if_silent(&mut self, name: &str, now: Duration, gap: Duration, last: Duration) {
        let most_are_in = self.most_are_in(|_| true);
        let Some(member) = self.members.get_mut(name) else { return };
        member.gave = member.gave.max(now.saturating_sub(gap));
        let silent = now.saturating_sub(member.gave) >= last.max(SILENT);
        if silent && member.in_flight >= SILENT_AMONG && member.out.is_none() && most_are_in {
            tracing::warn!(cache = name, ?last, "silent: it is left out for a while");
            member.put_out(now, false);
        }
    }

    /// Whether half the caches at least stay in, if one more goes out: if most of them are in trouble it is not
    /// them.
    fn most_are_in(&self, counts: impl Fn(&Out) -> bool) -> bool {
        let out = self.members.values().filter(|m| m.out.as_ref().is_some_and(&counts)).count();
        2 * (out + 1) <= self.members.len()
    }

    fn may_leave(&self, name: &str, now: Duration) -> bool {
        let left = self.members.get(name).and_then(|m| m.left);
        left.is_none_or(|left| now >= left + LEAVE_PAUSE)
    }

    /// A request went elsewhere because of a verdict.
    pub fn left(&mut self, name: &str, now: Duration) {
        self.counts.left += 1;
        self.members.entry(name.to_owned()).or_default().left = Some(now);
    }

    /// Whether one more request may be asked twice now; if so it counts.
    pub fn may_hedge(&mut self) -> bool {
        let may = self.budget.spend();
        self.counts.hedges += u64::from(may);
        may
    }

    /// When a request is first looked at.
    pub fn first_look(&self, name: &str, priority: Priority) -> Duration {
        self.limits(name, priority).0
    }

    /// After how long a wait for a chunk a request is late, and after how long it is given up.
    fn limits(&self, name: &str, priority: Priority) -> (Duration, Duration) {
        let (floor, times, unknown) = match priority {
            Priority::Guest => (LATE_GUEST, 1, UNKNOWN_GUEST),
            _ => (LATE, 2, UNKNOWN),
        };
        let member = self.members.get(name);
        let own = member.and_then(|m| m.typical(priority));
        let Some(usual) = self.peers(name, priority).or(own) else { return (unknown, UNKNOWN) };
        let beside = member.map_or(1, |m| m.in_flight.max(1));
        let gap = usual.gap.max(usual.gap_share.saturating_mul(beside));
        let limit = gap.saturating_mul(times).max(floor);
        (limit, limit.saturating_mul(LEAVE).max(UNKNOWN))
    }

    /// What is typical of the others that are in.
    fn peers(&self, name: &str, priority: Priority) -> Option<Typical> {
        let others = self.members.iter().filter(|(n, m)| *n != name && m.out.is_none());
        let all: Vec<_> = others.filter_map(|(_, m)| m.typical(priority)).collect();
        let middle = |f: fn(&Typical) -> Duration| lower_median(all.iter().map(f).collect());
        Some(Typical {
            gap: middle(|t| t.gap)?,
            gap_share: middle(|t| t.gap_share)?,
            pace: middle(|t| t.pace)?,
            pace_share: middle(|t| t.pace_share)?,
        })
    }

    /// Whether a pace is one of a cache that limps, by that of its peers.
    fn limps(&self, name: &str, now: Duration, priority: Priority, pace: Pace) -> bool {
        let others = self.members.iter().filter(|(n, m)| *n != name && m.out.is_none());
        let all: Vec<_> = others.filter_map(|(_, m)| m.seen(priority).recent.known(now)).collect();
        let middle = |f: fn(&Pace) -> Duration| lower_median(all.iter().map(f).collect());
        let (Some(each), Some(shared)) = (middle(|p| p.each), middle(|p| p.shared)) else {
            return false;
        };
        slower(LIMPS, pace, Pace { each, shared })
    }

    /// A request waited for a cache for so long, and was given so many chunks, since this was last said of
    /// it. Takes the cache out if it limps by what is known then.
    pub fn waited(
        &mut self,
        name: &str,
        now: Duration,
        priority: Priority,
        waited: Duration,
        chunks: u32,
    ) {
        let Some(member) = self.members.get_mut(name) else { return };
        let beside = member.in_flight;
        let recent = &mut member.seen_mut(priority).recent;
        recent.add(now, waited, beside, chunks);
        let Some(pace) = recent.now() else { return };
        let is_in = member.out.is_none();
        if is_in && self.most_are_in(|out| out.slow) && self.limps(name, now, priority, pace) {
            self.counts.limped += 1;
            tracing::warn!(cache = name, ?pace, "limps: it is left out until it proves itself");
            self.members.get_mut(name).expect("it was there").put_out(now, true);
        }
    }
}

/// One request as if all were like it.
fn alone(sample: Sample) -> Pace {
    Pace { each: sample.pace, shared: sample.pace / sample.beside.max(1) }
}

fn slower(times: u32, one: Pace, peers: Pace) -> bool {
    one.each > FAST_ENOUGH
        && one.each > peers.each.saturating_mul(times)
        && one.shared > peers.shared.saturating_mul(times)
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
