//! How many ready volumes demand asks for: pure, times come in as arguments.
//!
//! The model is a base stock, replenished one for one: each claim has another built at once, so as many are kept, ready
//! or being built, as are claimed while one is built (Feeney and Sherbrooke, "The (s−1, s) inventory policy under
//! compound Poisson demand", Management Science 12, 1966), and for some time ahead:
//!
//! ```text
//! rate     = ln 2 / HALF_LIFE × Σ 2^(−age of a claim / HALF_LIFE)         claims a second
//! forecast = rate × (seconds of a build + seconds ahead)                  claims
//! wanted   = ⌈forecast + MARGIN × √forecast⌉                              volumes
//! value    = forecast × seconds of a build                                seconds that nobody waits
//! ```
//! The rate is Brown's exponential smoothing ("Smoothing, Forecasting and Prediction", 1963) over time instead of steps.
//! Claims that come independently of each other have the square root of what is expected as their standard deviation:
//! that is the margin for bursts.
//!
//! What counts is the highest forecast of the last while: a pool grows at once, and gets smaller only after less was
//! wanted for that long.

use api::pool::Follow;
use serde::{Deserialize, Serialize};

/// Seconds after which a claim counts half.
pub(super) const HALF_LIFE: f64 = 300.0;
/// Standard deviations that are kept beyond the forecast: of bursts, 97.7 % need no more.
const MARGIN: f64 = 2.0;
/// A chance to be claimed at all below which nothing is kept: as small as that of a burst beyond the margin.
const NEGLIGIBLE: f64 = 0.023;
/// How much a newly measured build counts.
const NEWEST: f64 = 0.25;
/// Steps in which the time is counted for which a forecast holds.
const STEPS: u64 = 16;
/// No more volumes than this, whatever the rate.
const MOST: f64 = 1e6;

/// What is known of the demand for a pool. Times are in seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Demand {
    /// Claims, each counted the less the longer ago it was,
    weight: f64,
    /// as of this moment.
    at: u64,
    /// Seconds that a build takes.
    build_secs: Option<f64>,
    /// Highest forecasts that still hold: each lower than the one before, and holding for longer.
    peaks: Vec<Peak>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Peak {
    forecast: f64,
    until: u64,
}

/// What demand asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Asked {
    /// Claims that are expected: the highest forecast that holds.
    pub forecast: f64,
    /// Volumes for them.
    pub wanted: u32,
    /// Until when as many are asked for, though by the forecast of now it would be fewer.
    pub until: Option<u64>,
}

impl Demand {
    /// So many were claimed.
    pub(crate) fn claimed(&mut self, claims: u32, now: u64) {
        (self.weight, self.at) = (self.weight_at(now) + f64::from(claims), now);
    }

    /// One was built, in so many seconds.
    pub(crate) fn built(&mut self, secs: f64) {
        let before = self.build_secs.unwrap_or(secs);
        self.build_secs = Some(before + (secs - before) * NEWEST);
    }

    /// Seconds that a build takes, if any was measured.
    pub(crate) fn build_secs(&self) -> Option<f64> {
        self.build_secs
    }

    /// Claims a second.
    pub(crate) fn rate(&self, now: u64) -> f64 {
        self.weight_at(now) * std::f64::consts::LN_2 / HALF_LIFE
    }

    fn weight_at(&self, now: u64) -> f64 {
        // A clock that was set back makes nothing of it more.
        self.weight * (-(now.saturating_sub(self.at) as f64) / HALF_LIFE).exp2()
    }

    /// What is asked for now.
    pub(crate) fn look(&mut self, follow: &Follow, now: u64) -> Asked {
        let horizon = self.build_secs.unwrap_or(0.0) + f64::from(follow.ahead_secs);
        let current = self.rate(now) * horizon;
        self.hold(current, u64::from(follow.hold_secs), now);
        let forecast = self.peaks.first().map_or(current, |peak| peak.forecast);
        let wanted = base_stock(forecast);
        let holding = self.peaks.iter().rev().find(|peak| base_stock(peak.forecast) == wanted);
        let until = holding.filter(|_| base_stock(current) < wanted).map(|peak| peak.until);
        Asked { forecast, wanted, until }
    }

    /// Lets go of what has held for long enough, and holds this forecast.
    fn hold(&mut self, forecast: f64, secs: u64, now: u64) {
        let until = now.saturating_add(secs).next_multiple_of((secs / STEPS).max(1));
        // Also after the clock was set back, or the time was made shorter.
        self.peaks.iter_mut().for_each(|peak| peak.until = peak.until.min(until));
        self.peaks.retain(|peak| peak.until > now && peak.forecast > forecast);
        if base_stock(forecast) > 0 && self.peaks.last().is_none_or(|peak| peak.until < until) {
            self.peaks.push(Peak { forecast, until });
        }
    }
}

/// Volumes for so many expected claims.
fn base_stock(forecast: f64) -> u32 {
    let chance = -(-forecast).exp_m1();
    match chance <= NEGLIGIBLE {
        true => 0,
        false => (forecast + MARGIN * forecast.sqrt()).ceil().min(MOST) as u32,
    }
}

/// What a pool would have of the disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Share {
    /// Bytes of a volume.
    pub size: u64,
    /// Volumes that it has before others have more than theirs.
    pub floor: u32,
    /// Volumes in all.
    pub wanted: u32,
    /// Seconds that they save.
    pub saved_secs: f64,
}

impl Share {
    /// Seconds that a byte saves.
    pub(crate) fn worth(&self) -> f64 {
        self.saved_secs / (f64::from(self.wanted.max(1)) * self.size.max(1) as f64)
    }
}

/// Shares `room` bytes out: how many volumes each has. Floors first, then what is worth most by the byte.
pub(crate) fn share_out(shares: &[Share], mut room: u64) -> Vec<u32> {
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by(|a, b| shares[*b].worth().total_cmp(&shares[*a].worth()));
    let mut given = vec![0; shares.len()];
    let mut give = |most: fn(&Share) -> u32| {
        for at in &order {
            let share = &shares[*at];
            let fits = room.checked_div(share.size).and_then(|n| u32::try_from(n).ok());
            let more = most(share).saturating_sub(given[*at]).min(fits.unwrap_or(u32::MAX));
            given[*at] += more;
            room -= u64::from(more) * share.size;
        }
    };
    give(|share| share.floor.min(share.wanted));
    give(|share| share.wanted);
    given
}

/// Bytes a second that builds which begin now get of a budget, of which builds under way have some: how many begin, and what
/// each gets. One alone gets all; a part of the budget that is too small to be of use is not given.
pub(crate) fn lanes(budget: u64, taken: u64, lacking: u32) -> (u32, u64) {
    let left = budget.saturating_sub(taken);
    let builds = (left / (budget / LANES).max(1)).min(lacking.into()) as u32;
    (builds, left / u64::from(builds.max(1)))
}

/// Builds at most that a budget of bandwidth is divided among.
const LANES: u64 = 8;

#[cfg(test)]
#[path = "demand_tests.rs"]
mod tests;
