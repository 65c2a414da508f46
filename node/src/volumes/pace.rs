//! How fast a volume is filled when nobody waits: within its limits, and evenly towards its deadline.
//!
//! Pure: times come in as arguments. Guests are never held up here; what they ask for counts, and the filling
//! waits for it.

use std::sync::Arc;
use std::time::Duration;

use crate::rate::Rate;

/// Share of the time to a deadline after which all should be here.
const IN_TIME: f64 = 0.9;
/// How much of an earlier measurement stays in the next one.
const MEMORY: f64 = 0.8;
/// A measurement takes so long.
const MEASURE: Duration = Duration::from_secs(1);

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Pace {
    limits: Vec<Arc<Rate>>,
    by: Option<Duration>,
    /// When all should be here, so that it is in time.
    aim: Option<Duration>,
    held_until: Duration,
    limited_until: Duration,
    /// When the measurement under way began, and what came since.
    since: Option<(Duration, u64)>,
    /// Bytes a second, as measured.
    measured: Option<f64>,
}

impl Pace {
    /// With these limits, and a deadline on the clock that later calls show.
    pub(super) fn new(limits: Vec<Arc<Rate>>, by: Option<Duration>) -> Self {
        Self { limits, by, ..Self::default() }
    }

    /// Whether it ever has the filling wait.
    pub(super) fn holds(&self) -> bool {
        !self.limits.is_empty() || self.by.is_some()
    }

    /// So many bytes have come, and so many are to come. Until when the filling is to wait.
    pub(super) fn came(&mut self, bytes: u64, left: u64, now: Duration) -> Duration {
        self.measure(bytes, now);
        let limited = self.limits.iter().map(|limit| now + limit.take(bytes, now)).max();
        self.limited_until = limited.unwrap_or(now);
        let even = self.by.map(|by| {
            let aim = *self.aim.get_or_insert(now + by.saturating_sub(now).mul_f64(IN_TIME));
            let share = bytes as f64 / (bytes + left).max(1) as f64;
            self.held_until.max(now) + aim.saturating_sub(now).mul_f64(share)
        });
        self.held_until = limited.into_iter().chain(even).max().unwrap_or(now);
        self.held_until
    }

    /// Until when the limits have all wait that no guest waits for, by what has come.
    pub(super) fn limited_until(&self) -> Duration {
        self.limited_until
    }

    fn measure(&mut self, bytes: u64, now: Duration) {
        let (since, sum) = self.since.unwrap_or((now, 0));
        let passed = now.saturating_sub(since);
        if passed < MEASURE {
            self.since = Some((since, sum + bytes));
            return;
        }
        let rate = (sum + bytes) as f64 / passed.as_secs_f64();
        self.measured =
            Some(self.measured.map_or(rate, |old| old * MEMORY + rate * (1.0 - MEMORY)));
        self.since = Some((now, 0));
    }

    /// How long `left` bytes take, as far as that can be told: by the limits, and as it went so far.
    pub(super) fn expected(&self, left: u64) -> Option<Duration> {
        let limits = self.limits.iter().map(|limit| limit.per_second());
        // Towards a deadline we go slowly on purpose: that says nothing of what is possible.
        let measured = self.measured.filter(|_| self.by.is_none());
        let slowest = limits.chain(measured).min_by(f64::total_cmp)?;
        Some(Duration::from_secs_f64((left as f64 / slowest.max(1.0)).min(1e9)))
    }

    /// Whether `left` bytes cannot be here by the deadline.
    pub(super) fn is_late(&self, left: u64, now: Duration) -> bool {
        let Some(by) = self.by.filter(|_| left > 0) else { return false };
        now >= by || self.expected(left).is_some_and(|takes| now + takes > by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate::RealTime;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// How long it takes to fill `total` bytes in steps that arrive at once.
    fn filled(pace: &mut Pace, total: u64, step: u64) -> Duration {
        let (mut now, mut left) = (MS(0), total);
        while left > 0 {
            left -= step;
            now = now.max(pace.came(step, left, now));
        }
        now
    }

    #[test]
    fn without_a_deadline_or_limit_nothing_waits() {
        assert_eq!(filled(&mut Pace::default(), 1000, 10), MS(0));
    }

    #[test]
    fn a_deadline_is_gone_towards_evenly() {
        let mut pace = Pace::new(Vec::new(), Some(MS(10_000)));
        let half = pace.came(500, 500, MS(0));
        assert!((MS(4400)..MS(4600)).contains(&half), "{half:?}");
        let took = filled(&mut Pace::new(Vec::new(), Some(MS(10_000))), 1000, 10);
        assert!((MS(8000)..MS(9500)).contains(&took), "{took:?}");
        // Behind it is no reason to wait.
        assert_eq!(Pace::new(Vec::new(), Some(MS(10))).came(5, 5, MS(20)), MS(20));
    }

    #[test]
    fn what_cannot_be_is_said_at_once() {
        let limit = Arc::new(Rate::new(100, RealTime::start()));
        let pace = Pace::new(vec![Arc::clone(&limit)], Some(MS(10_000)));
        assert!(pace.is_late(1100, MS(0)) && !pace.is_late(900, MS(0)));
        assert!(pace.is_late(1, MS(10_001)) && !pace.is_late(0, MS(10_001)));
        assert_eq!(pace.expected(200), Some(MS(2000)));
        assert!(!Pace::new(vec![limit], None).is_late(u64::MAX, MS(0)));
    }

    #[test]
    fn how_it_goes_is_measured() {
        let mut pace = Pace::default();
        for second in 0..20 {
            pace.came(1000, 50_000, MS(second * 1000));
        }
        let expected = pace.expected(10_000).unwrap();
        assert!((MS(9_000)..MS(11_000)).contains(&expected), "{expected:?}");
    }
}
