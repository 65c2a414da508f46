//! How many chunks that nobody waits for, of a boot trace or to fill, are under way at a time: as many as make the line
//! faster, and no more.
//!
//! What is under way is in front of a guest that asks for something else. Guests overtake where requests queue by
//! priority, but not what is on the wire (at 100 Mbit/s a boot took 23.6 s with 64 chunks under way
//! to fill, and 19.3 s with three; `compare boot-slow`). So it begins with few chunks and doubles them while that doubles
//! what arrives, or nearly: a fast line, or a slow store behind it, takes more at a time; on a slow line more would
//! only wait longer. From time to time it tries again.
//!
//! Pure: times come in as arguments.

use std::time::Duration;

/// Chunks under way at least, and while a guest waits: what it may find in front of it. At 100 Mbit/s a guest that
/// reads what is not in the trace then waits 30 ms for a chunk in the median, where it waits 13 ms without a trace, and
/// 56 ms if 32 are under way (`docs/decisions/0023`).
pub(super) const LEAST: usize = 4;
/// Chunks under way at most: 8 MiB of the usual ones, which is 10 Gbit/s for some milliseconds.
pub(super) const MOST: usize = 32;
/// How many times as fast twice as much under way must be.
const WORTH_IT: f64 = 1.5;
/// Rounds after which more is tried again.
const HOLD: u32 = 16;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Window {
    most: usize,
    /// When the round began, and what has arrived in it since.
    round: Option<(Duration, usize)>,
    /// Chunks a second with half as much under way, while more is tried.
    before: Option<f64>,
    /// Rounds until more is tried.
    hold: u32,
}

impl Window {
    pub(super) fn new() -> Self {
        Self { most: LEAST, round: None, before: None, hold: 0 }
    }

    /// Chunks that may be under way.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Something else was in the way: what arrives now says nothing of the line.
    pub(super) fn disturbed(&mut self) {
        self.round = None;
    }

    /// Chunks of the trace have arrived, while as much was under way as may be.
    pub(super) fn arrived(&mut self, chunks: usize, now: Duration) {
        let Some((since, arrived)) = self.round else {
            self.round = Some((now, 0));
            return;
        };
        let arrived = arrived + chunks;
        if arrived < 2 * self.most {
            self.round = Some((since, arrived));
            return;
        }
        self.round = None;
        let took = now.saturating_sub(since).max(Duration::from_micros(1));
        self.ended(arrived as f64 / took.as_secs_f64());
    }

    /// A round has ended, in which chunks arrived at this rate.
    fn ended(&mut self, rate: f64) {
        match self.before.take() {
            Some(before) if rate < WORTH_IT * before => {
                self.most /= 2;
                self.hold = HOLD;
            }
            None if self.hold > 0 => self.hold -= 1,
            _ if self.most < MOST => {
                self.before = Some(rate);
                self.most = (2 * self.most).min(MOST);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A line that gives one chunk after the other, each `each` after the one before, and none sooner than `away`
    /// after it was asked for. Fetches 2,000 chunks; how many were under way on average, and how long it took.
    fn fetch(each: Duration, away: Duration) -> (f64, Duration) {
        let (mut window, mut now, mut free) = (Window::new(), Duration::ZERO, Duration::ZERO);
        let (mut under_way, mut sum) = (VecDeque::new(), 0);
        for _ in 0..2000 {
            while under_way.len() < window.most() {
                free = free.max(now + away) + each;
                under_way.push_back(free);
            }
            sum += under_way.len();
            now = under_way.pop_front().unwrap();
            window.arrived(1, now);
        }
        (f64::from(sum as u32) / 2000.0, now)
    }

    #[test]
    fn a_slow_line_keeps_few_under_way_and_loses_nothing() {
        let us = Duration::from_micros;
        // 10, 100 and 1,000 Mbit/s: chunks of 128 KiB when compressed.
        for each in [us(104_000), us(10_400), us(1_040)] {
            let (under_way, took) = fetch(each, us(500));
            assert!(under_way < 6.0, "{each:?}: {under_way} under way");
            assert!(took < each * 2020, "{each:?}: {took:?}");
        }
    }

    #[test]
    fn a_line_with_much_room_is_filled() {
        let us = Duration::from_micros;
        // 10 Gbit/s at 5 ms, and a slow store behind a fast line.
        for (each, away) in [(us(104), us(5_000)), (us(500), us(100_000))] {
            let (under_way, took) = fetch(each, away);
            assert!(under_way > 25.0, "{each:?} {away:?}: {under_way} under way");
            assert!(took < (away + each) * 2000 / 25, "{each:?} {away:?}: {took:?}");
        }
    }
}
