//! What of a volume to ask for next.
//!
//! What guests wait for comes first. What they will want soon (they read on where they read before) comes
//! next, then what others touched when they started (the boot trace). The rest fills the line while guests are
//! quiet: the longer they have been, the more of it is under way at a time, so that a guest that wakes up finds a
//! short queue before it.
//!
//! Pure: times come in as arguments, and what is here is asked of the caller.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use image::{Error, Kind, Priority};

use super::window::{self, Window};

/// How long guests must be quiet for one more chunk to be under way that nobody waits for. While a guest
/// starts, most of its pauses are shorter (100 Mbit/s: 8 ms a chunk; `compare boot`).
const QUIET_STEP: Duration = Duration::from_millis(10);
/// Chunks under way at most that nobody waits for, where there is a limit or a deadline.
const MOST_PACED: usize = 4;
/// Chunks asked for in one request.
const BATCH: usize = 16;
/// Requests of guests under way at a time.
const MOST_GUESTS: usize = 32;
/// Chunks that are asked for ahead of a guest that reads on, at most.
const MOST_AHEAD: u64 = 8;
/// How long a guest waits for a chunk that was asked for before it wanted it, until it is asked for once more, as
/// a guest's. Where the line is what is slow, the first answer comes first; but a cache that others keep busy
/// serves guests first.
const OVERDUE: Duration = Duration::from_millis(250);
/// How long what could not be had is left alone.
const REST: Duration = Duration::from_secs(1);

/// What is asked for together: chunks of one section, in rising order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) chunks: Vec<u64>,
    pub(super) priority: Priority,
}

/// Why a chunk is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// A guest waits for it.
    Guest,
    /// A guest reads on and will come to it.
    Ahead,
    /// Others touched it when they started.
    Trace,
    /// It is missing.
    Filling,
}

impl Reason {
    fn priority(self) -> Priority {
        match self {
            Self::Guest => Priority::Guest,
            Self::Ahead | Self::Trace => Priority::Trace,
            Self::Filling => Priority::Background,
        }
    }
}

/// What the plan must know of the volume.
pub(super) trait Missing {
    /// The first chunk at or after `from` that is not here, and before `end`.
    fn next_absent(&self, from: u64, end: u64) -> Option<u64>;

    /// Number of the section of a chunk.
    fn section_of(&self, chunk: u64) -> u32;
}

/// How a volume is filled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    /// Fetch also what nobody waits for.
    pub(super) fill: bool,
    /// How long a guest waits for what cannot be had before it gets an error; for ever by default.
    pub(super) patience: Option<Duration>,
    /// It has a deadline: a little is fetched also while guests are about.
    pub(super) deadline: bool,
    /// It is held back: few are under way, so that there is something to hold.
    pub(super) paced: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Plan {
    policy: Policy,
    /// Chunks of the image.
    chunks: u64,
    /// Wanted by guests, in the order they asked, and not under way.
    guests: VecDeque<u64>,
    /// Wanted soon.
    ahead: VecDeque<u64>,
    /// The boot trace, as far as it was not asked for.
    trace: VecDeque<u64>,
    window: Window,
    /// Until when the trace is left alone, for what it asked for could not be had.
    trace_rests: Duration,
    /// The same of what nobody waits for.
    filling_rests: Duration,
    /// Until when limits have it wait.
    limited_until: Duration,
    under_way: BTreeMap<u64, Reason>,
    /// Since when guests wait for a chunk.
    waiting: BTreeMap<u64, Duration>,
    /// Could not be had; until when they are left alone.
    resting: BTreeMap<u64, Duration>,
    /// Where the filling is.
    cursor: u64,
    /// When a guest last asked or got something.
    guests_at: Option<Duration>,
    /// Until when nothing is fetched that nobody waits for.
    held_until: Duration,
    /// Where guests that read on will want to read next, and how much is asked for ahead of them.
    streams: VecDeque<(u64, u64)>,
}

impl Plan {
    pub(super) fn new(policy: Policy, chunks: u64) -> Self {
        Self {
            policy,
            chunks,
            guests: VecDeque::new(),
            ahead: VecDeque::new(),
            trace: VecDeque::new(),
            window: Window::new(),
            trace_rests: Duration::ZERO,
            filling_rests: Duration::ZERO,
            limited_until: Duration::ZERO,
            under_way: BTreeMap::new(),
            waiting: BTreeMap::new(),
            resting: BTreeMap::new(),
            cursor: 0,
            guests_at: None,
            held_until: Duration::ZERO,
            streams: VecDeque::new(),
        }
    }

    /// Guests of this image touch these when they start, in this order.
    pub(super) fn trace(&mut self, chunks: impl IntoIterator<Item = u64>) {
        let all = self.chunks;
        self.trace.extend(chunks.into_iter().filter(|chunk| *chunk < all));
    }

    /// Fetches also what nobody waits for, or does not any more.
    pub(super) fn fill(&mut self, fill: bool) {
        self.policy.fill = fill;
    }

    /// Guests have asked for chunks.
    pub(super) fn wanted(&mut self, chunks: &[u64], now: Duration) {
        self.guests_at = Some(now);
        for chunk in chunks {
            self.waiting.entry(*chunk).or_insert(now);
            self.resting.remove(chunk);
            if !self.under_way.contains_key(chunk) {
                self.guests.push_back(*chunk);
            }
            self.read_on(*chunk);
        }
    }

    /// Looks whether a guest reads on where one has read, and asks ahead of it if so.
    fn read_on(&mut self, chunk: u64) {
        const STREAMS: usize = 8;
        let known = self
            .streams
            .iter()
            .position(|(next, ahead)| (next.saturating_sub(*ahead + 1)..=*next).contains(&chunk));
        let (next, ahead) = match known.and_then(|at| self.streams.remove(at)) {
            // Not the same chunk again, but the one that follows.
            Some((next, ahead)) => (next.max(chunk + 1), (ahead * 2).clamp(1, MOST_AHEAD)),
            None => (chunk + 1, 0),
        };
        let to = (chunk + 1 + ahead).min(self.chunks);
        self.ahead.extend(next..to.max(next));
        self.streams.push_front((to.max(next), ahead));
        self.streams.truncate(STREAMS);
    }

    /// What to ask for now, if anything.
    pub(super) fn next(&mut self, now: Duration, volume: &impl Missing) -> Option<Want> {
        self.rested(now);
        self.next_guest(volume)
            .or_else(|| self.next_overdue(now))
            .or_else(|| self.next_ahead(volume))
            .or_else(|| self.next_trace(now, volume))
            .or_else(|| {
                let room = self.room(now)?;
                self.next_filling(room, volume)
            })
    }

    fn count(&self, reason: Reason) -> usize {
        self.under_way.values().filter(|r| **r == reason).count()
    }

    /// Chunks whose rest is over are wanted as before.
    fn rested(&mut self, now: Duration) {
        while let Some((chunk, _)) = self.resting.iter().find(|(_, until)| **until <= now) {
            let chunk = *chunk;
            self.resting.remove(&chunk);
            if self.waiting.contains_key(&chunk) {
                self.guests.push_back(chunk);
            }
        }
    }

    fn next_guest(&mut self, volume: &impl Missing) -> Option<Want> {
        if self.count(Reason::Guest) >= MOST_GUESTS {
            return None;
        }
        let queue = std::mem::take(&mut self.guests);
        let (want, left) = self.pick(queue, Reason::Guest, BATCH, volume);
        self.guests = left;
        want
    }

    /// What a guest has waited for too long, and is under way for another reason.
    fn next_overdue(&mut self, now: Duration) -> Option<Want> {
        let (chunk, _) = self.early().find(|(_, since)| now.saturating_sub(*since) >= OVERDUE)?;
        self.begin(vec![chunk], Reason::Guest)
    }

    /// Chunks that guests wait for which were asked for before they did, and since when they wait.
    fn early(&self) -> impl Iterator<Item = (u64, Duration)> {
        let waiting = self.waiting.iter().map(|(chunk, since)| (*chunk, *since));
        waiting.filter(|(chunk, _)| {
            self.under_way.get(chunk).is_some_and(|reason| *reason != Reason::Guest)
        })
    }

    fn next_ahead(&mut self, volume: &impl Missing) -> Option<Want> {
        if self.count(Reason::Ahead) >= MOST_AHEAD as usize {
            return None;
        }
        let queue = std::mem::take(&mut self.ahead);
        let (want, left) = self.pick(queue, Reason::Ahead, BATCH, volume);
        self.ahead = left;
        want
    }

    fn next_trace(&mut self, now: Duration, volume: &impl Missing) -> Option<Want> {
        if now < self.trace_rests.max(self.limited_until) {
            return None;
        }
        let most = if self.waiting.is_empty() { self.window.most() } else { window::LEAST };
        let room = most.checked_sub(self.count(Reason::Trace)).filter(|room| *room > 0)?;
        // Small requests while the line is slow: each is answered when its last chunk is here.
        let most = room.min((most / window::LEAST).clamp(1, BATCH));
        let queue = std::mem::take(&mut self.trace);
        let (want, left) = self.pick(queue, Reason::Trace, most, volume);
        self.trace = left;
        want
    }

    /// The first of a queue that is still missing, and what follows it in the same section, `most` in all.
    fn pick(
        &mut self,
        mut queue: VecDeque<u64>,
        reason: Reason,
        most: usize,
        volume: &impl Missing,
    ) -> (Option<Want>, VecDeque<u64>) {
        let mut chunks: Vec<u64> = Vec::new();
        while let Some(chunk) = queue.front().copied() {
            let missing = volume.next_absent(chunk, chunk + 1).is_some()
                && !self.under_way.contains_key(&chunk)
                && !self.resting.contains_key(&chunk);
            let fits = chunks.first().is_none_or(|first| {
                chunks.len() < most && volume.section_of(*first) == volume.section_of(chunk)
            });
            if missing && !fits {
                break;
            }
            queue.pop_front();
            if missing && !chunks.contains(&chunk) {
                chunks.push(chunk);
            }
        }
        chunks.sort_unstable();
        (self.begin(chunks, reason), queue)
    }

    fn begin(&mut self, chunks: Vec<u64>, reason: Reason) -> Option<Want> {
        if chunks.is_empty() {
            return None;
        }
        self.under_way.extend(chunks.iter().map(|chunk| (*chunk, reason)));
        Some(Want { chunks, priority: reason.priority() })
    }

    /// Fetches nothing until then that nobody waits for; the boot trace, which does not wait for deadlines, not until
    /// `limited`.
    pub(super) fn hold(&mut self, until: Duration, limited: Duration) {
        (self.held_until, self.limited_until) = (until, limited);
    }

    /// How many more chunks may be under way that nobody waits for.
    fn room(&self, now: Duration) -> Option<usize> {
        if !self.policy.fill
            || now < self.held_until.max(self.filling_rests)
            || !self.trace.is_empty()
        {
            return None;
        }
        if self.count(Reason::Guest) > 0 && !self.policy.deadline {
            return None;
        }
        let most = self.quiet(now).min(self.window.most());
        let most = if self.policy.paced { most.min(MOST_PACED) } else { most };
        most.checked_sub(self.under_way.len()).filter(|room| *room > 0)
    }

    /// How many chunks may be under way that nobody waits for, by how long guests have been quiet.
    fn quiet(&self, now: Duration) -> usize {
        let Some(at) = self.guests_at else { return window::MOST };
        let quiet = now.saturating_sub(at).as_nanos() / QUIET_STEP.as_nanos();
        (quiet as usize).min(window::MOST).max(usize::from(self.policy.deadline))
    }

    fn next_filling(&mut self, room: usize, volume: &impl Missing) -> Option<Want> {
        let mut chunks: Vec<u64> = Vec::new();
        let mut at = self.cursor;
        // Small requests while guests are about, large ones when they are quiet.
        let most = room.div_ceil(4).min(BATCH);
        let mut wrapped = false;
        while chunks.len() < most {
            match volume.next_absent(at, self.chunks) {
                Some(chunk) => {
                    let other = |first: &u64| volume.section_of(*first) != volume.section_of(chunk);
                    if chunks.first().is_some_and(other) || (wrapped && chunk >= self.cursor) {
                        break;
                    }
                    at = chunk + 1;
                    if !self.under_way.contains_key(&chunk) && !self.resting.contains_key(&chunk) {
                        chunks.push(chunk);
                    }
                }
                None if wrapped || !chunks.is_empty() => break,
                None => (wrapped, at) = (true, 0),
            }
        }
        if !chunks.is_empty() {
            self.cursor = at;
        }
        self.begin(chunks, Reason::Filling)
    }

    /// What was asked for is here.
    pub(super) fn arrived(&mut self, want: &Want, now: Duration) {
        if !self.waiting.is_empty() {
            self.window.disturbed();
        }
        let (mut traced, mut filled) = (0, 0);
        for chunk in &want.chunks {
            match self.under_way.remove(chunk) {
                Some(Reason::Trace) => traced += 1,
                Some(Reason::Filling) => filled += 1,
                _ => {}
            }
            if self.waiting.remove(chunk).is_some() {
                self.guests_at = Some(now);
            }
        }
        // What was held back by something else tells nothing of the line.
        let held = self.policy.paced || self.quiet(now) < self.window.most();
        if filled > 0 && held {
            self.window.disturbed();
        } else if traced + filled > 0 && self.waiting.is_empty() {
            self.window.arrived(traced + filled, now);
        }
    }

    /// What was asked for could not be had. Returns the chunks for which guests have waited long enough, or
    /// which waiting does not help; the others are asked for again after a rest.
    pub(super) fn failed(&mut self, want: &Want, error: &Error, now: Duration) -> Vec<u64> {
        let passing = matches!(error.kind(), Kind::Retry | Kind::Busy(_) | Kind::Full | Kind::Io);
        for chunk in want.chunks.iter().rev() {
            match self.under_way.remove(chunk) {
                Some(Reason::Trace) if passing => {
                    self.trace.push_front(*chunk);
                    self.trace_rests = now + REST;
                }
                // Others would fare no better.
                Some(Reason::Filling) if passing => self.filling_rests = now + REST,
                _ => {}
            }
            self.resting.insert(*chunk, now + REST);
        }
        let too_long = |since: &Duration| {
            self.policy.patience.is_some_and(|most| now.saturating_sub(*since) >= most)
        };
        let given_up = want.chunks.iter().copied().filter(|chunk| {
            self.waiting.get(chunk).is_some_and(|since| !passing || too_long(since))
        });
        let given_up: Vec<u64> = given_up.collect();
        self.waiting.retain(|chunk, _| !given_up.contains(chunk));
        given_up
    }

    /// After how long there may be something to ask for, if nothing else happens.
    pub(super) fn wake(&self, now: Duration) -> Duration {
        let rest = self.resting.values().min().map(|until| until.saturating_sub(now));
        let filling = self.held_until.max(self.filling_rests).saturating_sub(now).max(QUIET_STEP);
        let filling = self.policy.fill.then_some(filling);
        let overdue = self.early().map(|(_, since)| (since + OVERDUE).saturating_sub(now)).min();
        let trace = self.limited_until.saturating_sub(now);
        let trace = (!self.trace.is_empty() && !trace.is_zero()).then_some(trace);
        rest.into_iter().chain(overdue).chain(filling).chain(trace).min().unwrap_or(REST)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    /// Chunks that are missing; four to a section.
    struct Disk(BTreeSet<u64>);

    impl Missing for Disk {
        fn next_absent(&self, from: u64, end: u64) -> Option<u64> {
            self.0.range(from..end).next().copied()
        }

        fn section_of(&self, chunk: u64) -> u32 {
            (chunk / 4) as u32
        }
    }

    fn plan(fill: bool) -> (Plan, Disk) {
        let patience = Some(Duration::from_secs(10));
        let policy = Policy { fill, patience, deadline: false, paced: false };
        (Plan::new(policy, 40), Disk((0..40).collect()))
    }

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn guests_come_first_and_filling_waits_for_quiet() {
        let (mut plan, mut disk) = plan(true);
        plan.wanted(&[9, 30], MS(0));
        let want = |chunks: &[u64], priority| Some(Want { chunks: chunks.to_vec(), priority });
        assert_eq!(plan.next(MS(0), &disk), want(&[9], Priority::Guest));
        assert_eq!(plan.next(MS(0), &disk), want(&[30], Priority::Guest));
        assert_eq!(plan.next(MS(5), &disk), None);
        for chunk in [9, 30] {
            disk.0.remove(&chunk);
            plan.arrived(&Want { chunks: vec![chunk], priority: Priority::Guest }, MS(5));
        }
        assert_eq!(plan.next(MS(14), &disk), None);
        assert_eq!(plan.next(MS(15), &disk), want(&[0], Priority::Background));
        assert_eq!(plan.next(MS(15), &disk), None);
        let more: Vec<_> = std::iter::from_fn(|| plan.next(MS(205), &disk)).collect();
        let chunks: Vec<u64> = more.into_iter().flat_map(|want| want.chunks).collect();
        assert_eq!(chunks, [1, 2, 3], "as many as the line is known to take");
    }

    #[test]
    fn what_is_held_is_not_filled_and_a_deadline_goes_on_beside_guests() {
        let (mut plan, disk) = plan(true);
        plan.hold(MS(100), MS(0));
        assert_eq!((plan.next(MS(0), &disk), plan.wake(MS(0))), (None, MS(100)));
        plan.wanted(&[9], MS(50));
        assert_eq!(plan.next(MS(50), &disk).unwrap().chunks, [9]);
        assert_eq!(plan.next(MS(100), &disk), None, "a guest waits");
        plan.policy.deadline = true;
        plan.arrived(&Want { chunks: vec![9], priority: Priority::Guest }, MS(100));
        assert_eq!(plan.next(MS(100), &disk).unwrap().chunks, [0]);
        assert_eq!(plan.next(MS(100), &disk), None, "one at a time");
    }

    #[test]
    fn who_reads_on_finds_it_there() {
        let (mut plan, disk) = plan(false);
        plan.wanted(&[4], MS(0));
        assert_eq!(plan.next(MS(0), &disk).unwrap().chunks, [4]);
        assert_eq!(plan.next(MS(0), &disk), None, "once is not a stream");
        plan.wanted(&[5], MS(1));
        assert_eq!(plan.next(MS(1), &disk).unwrap().chunks, [5]);
        let ahead = plan.next(MS(1), &disk).unwrap();
        assert_eq!((ahead.chunks, ahead.priority), (vec![6], Priority::Trace));
        plan.wanted(&[6, 7], MS(2));
        let next: Vec<_> = std::iter::from_fn(|| plan.next(MS(2), &disk)).collect();
        let all: Vec<u64> = next.iter().flat_map(|w| w.chunks.clone()).collect();
        assert!(all.starts_with(&[7]) && all.len() <= 1 + MOST_AHEAD as usize, "{all:?}");
    }

    fn all(plan: &mut Plan, now: Duration, disk: &Disk) -> Vec<Want> {
        std::iter::from_fn(|| plan.next(now, disk)).collect()
    }

    fn chunks(wants: &[Want]) -> Vec<u64> {
        wants.iter().flat_map(|want| want.chunks.clone()).collect()
    }

    #[test]
    fn a_trace_comes_in_its_order_without_filling_and_a_few_chunks_at_a_time() {
        let (mut plan, mut disk) = plan(false);
        disk.0.remove(&20);
        plan.trace([30, 31, 3, 20, 12, 99, 5, 30]);
        let mut came: Vec<u64> = Vec::new();
        let mut under_way: VecDeque<Want> = all(&mut plan, MS(0), &disk).into();
        assert_eq!(under_way.len(), window::LEAST);
        assert!(under_way.iter().all(|want| want.priority == Priority::Trace));
        while let Some(want) = under_way.pop_front() {
            disk.0.retain(|chunk| !want.chunks.contains(chunk));
            came.extend(&want.chunks);
            plan.arrived(&want, MS(1));
            under_way.extend(all(&mut plan, MS(1), &disk));
        }
        assert_eq!(came, [30, 31, 3, 12, 5]);
        assert_eq!(plan.next(MS(5000), &disk), None);
    }

    #[test]
    fn a_guest_overtakes_the_trace_and_what_is_missing_waits_for_it() {
        let (mut plan, disk) = plan(true);
        plan.trace(0..20);
        let first = all(&mut plan, MS(0), &disk);
        assert_eq!(chunks(&first), [0, 1, 2, 3]);
        plan.wanted(&[33, 2], MS(0));
        let want = plan.next(MS(0), &disk).unwrap();
        assert_eq!((want.chunks.as_slice(), want.priority), (&[33][..], Priority::Guest));
        assert_eq!(plan.next(MS(0), &disk), None, "2 is on its way already");
        // However fast it comes, while a guest waits no more are under way than at first.
        let mut under_way: VecDeque<Want> = first.into();
        for _ in 0..12 {
            let want = under_way.pop_front().unwrap();
            plan.arrived(&want, MS(1));
            under_way.extend(all(&mut plan, MS(1), &disk));
            assert!(under_way.len() <= window::LEAST);
        }
        assert!(under_way.iter().all(|want| want.priority == Priority::Trace));
    }

    #[test]
    fn a_guest_does_not_wait_for_ever_for_what_was_asked_for_before_it() {
        let (mut plan, mut disk) = plan(false);
        plan.trace(0..4);
        let first = all(&mut plan, MS(0), &disk);
        plan.wanted(&[2], MS(100));
        assert_eq!((plan.next(MS(100), &disk), plan.wake(MS(100))), (None, OVERDUE));
        let now = MS(100) + OVERDUE;
        let want = plan.next(now, &disk).unwrap();
        assert_eq!((want.chunks.as_slice(), want.priority), (&[2][..], Priority::Guest));
        assert_eq!(plan.next(now, &disk), None, "once more, and not again and again");
        // Both answers come; whichever is second finds nothing to do.
        disk.0.remove(&2);
        plan.arrived(&want, now);
        first.iter().for_each(|want| plan.arrived(want, now));
        assert!(plan.waiting.is_empty() && plan.under_way.is_empty());
    }

    #[test]
    fn a_trace_keeps_within_limits_and_does_not_wait_for_deadlines() {
        let (mut plan, disk) = plan(true);
        plan.trace(8..20);
        plan.hold(MS(60_000), MS(300));
        assert_eq!(plan.next(MS(0), &disk), None);
        plan.wanted(&[30], MS(200));
        assert_eq!(plan.next(MS(200), &disk).unwrap().chunks, [30], "guests are not limited");
        assert_eq!(plan.next(MS(200), &disk), None);
        assert_eq!(plan.wake(MS(200)), MS(100));
        assert_eq!(chunks(&all(&mut plan, MS(300), &disk)), [8, 9, 10, 11]);
    }

    #[test]
    fn a_trace_that_cannot_be_had_is_asked_for_again_after_a_rest() {
        let (mut plan, disk) = plan(false);
        plan.trace([8, 9, 30]);
        let wants = all(&mut plan, MS(0), &disk);
        let away = Error::new(Kind::Retry, "away");
        for want in wants.iter().rev() {
            assert!(plan.failed(want, &away, MS(0)).is_empty());
        }
        assert_eq!(plan.next(MS(1), &disk), None);
        assert_eq!(plan.wake(MS(1)), REST - MS(1));
        let again = all(&mut plan, MS(1000), &disk);
        assert_eq!(chunks(&again), [8, 9, 30]);
        // What is wrong wherever it comes from is left to whoever wants it.
        let bad = Error::new(Kind::Corrupt, "bad");
        again.iter().for_each(|want| drop(plan.failed(want, &bad, MS(1000))));
        assert_eq!(plan.next(MS(9000), &disk), None);
    }

    #[test]
    fn filling_rests_while_nobody_answers() {
        let (mut plan, disk) = plan(true);
        let first = all(&mut plan, MS(0), &disk);
        let away = Error::new(Kind::Retry, "away");
        first.iter().for_each(|want| drop(plan.failed(want, &away, MS(0))));
        assert_eq!((plan.next(MS(999), &disk), plan.wake(MS(0))), (None, REST));
        plan.wanted(&[30], MS(500));
        assert_eq!(
            plan.next(MS(500), &disk).unwrap().chunks,
            [30],
            "a guest's chunk is asked for all the same"
        );
        plan.arrived(&Want { chunks: vec![30], priority: Priority::Guest }, MS(501));
        assert!(plan.next(MS(1100), &disk).is_some());
    }

    #[test]
    fn what_cannot_be_had_is_asked_for_again_until_patience_ends() {
        let (mut plan, disk) = plan(false);
        let away = Error::new(Kind::Retry, "away");
        plan.wanted(&[3], MS(0));
        let mut now = MS(0);
        let mut tries = 0;
        let given_up = loop {
            let Some(want) = plan.next(now, &disk) else {
                now += plan.wake(now);
                continue;
            };
            tries += 1;
            let given_up = plan.failed(&want, &away, now);
            if !given_up.is_empty() {
                break given_up;
            }
        };
        assert_eq!((given_up, tries, now), (vec![3], 11, MS(10_000)));
        // Bytes that are wrong wherever they come from do not get better by waiting.
        plan.wanted(&[3], now);
        let want = plan.next(now, &disk).unwrap();
        let bad = Error::new(Kind::Corrupt, "bad");
        assert_eq!(plan.failed(&want, &bad, now), [3]);
    }

    proptest! {
        #[test]
        fn all_comes_once_whatever_guests_do(
            asks in prop::collection::vec((0u64..40, 0u64..50), 0..60),
            trace in prop::collection::vec(0u64..45, 0..30),
        ) {
            let (mut plan, mut disk) = plan(true);
            plan.trace(trace);
            let mut asks = asks.into_iter();
            let (mut now, mut under_way) = (MS(0), VecDeque::new());
            let (mut came, mut asked) = (BTreeSet::new(), BTreeMap::new());
            for _ in 0..2000 {
                if let Some((chunk, pause)) = asks.next() {
                    now += MS(pause);
                    if disk.0.contains(&chunk) {
                        plan.wanted(&[chunk], now);
                        asked.entry(chunk).or_insert(now);
                    }
                }
                while let Some(want) = plan.next(now, &disk) {
                    let section = disk.section_of(want.chunks[0]);
                    prop_assert!(want.chunks.iter().all(|c| disk.section_of(*c) == section));
                    prop_assert!(want.chunks.is_sorted());
                    under_way.push_back(want);
                }
                if let Some(want) = under_way.pop_front() {
                    for chunk in &want.chunks {
                        // A guest may have waited too long for it.
                        let first = came.insert(*chunk);
                        let late = asked.get(chunk).is_some_and(|at| now - *at >= OVERDUE);
                        prop_assert!(first || late, "{} came twice", chunk);
                        disk.0.remove(chunk);
                    }
                    plan.arrived(&want, now);
                } else {
                    now += plan.wake(now);
                }
            }
            prop_assert!(disk.0.is_empty(), "left: {:?}", disk.0);
            prop_assert!(plan.waiting.is_empty());
        }
    }
}
