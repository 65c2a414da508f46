//! What the last answers of a cache were like: a bounded window, and what is read off it.

use std::collections::VecDeque;
use std::time::Duration;

use super::recent::Pace;

/// Answers that are remembered of a cache: enough to know what is rare.
const LENGTH: usize = 32;
/// Of these so many say how it is now: few, so that a change is soon seen, and more than one bad moment spoils.
const RECENT: usize = 7;

/// How one request went. Only the waiting for the cache counts, not what the reader took for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The longest wait for a chunk.
    pub gap: Duration,
    /// Waiting per chunk, over the whole request.
    pub pace: Duration,
    /// Requests in flight at the cache, this one included: they shared its link.
    pub beside: u32,
}

/// What is typical of a cache. A `share` is what a request would have taken had it been alone, if a link
/// is what held it up; without, if anything else did. One who is slow is slow in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Typical {
    /// Of twenty requests one waits longer for a chunk.
    pub gap: Duration,
    /// The same, shared out.
    pub gap_share: Duration,
    /// Half the latest requests take longer per chunk.
    pub pace: Duration,
    /// The same, shared out.
    pub pace_share: Duration,
}

impl Typical {
    /// The pace.
    pub fn pace(&self) -> Pace {
        Pace { each: self.pace, shared: self.pace_share }
    }
}

/// The last samples of one cache.
#[derive(Clone, Debug, Default)]
pub struct Window {
    samples: VecDeque<Sample>,
    typical: Option<Typical>,
}

impl Window {
    /// Adds a sample; the oldest goes.
    pub fn push(&mut self, sample: Sample) {
        if self.samples.len() == LENGTH {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        self.typical = Some(self.over(RECENT));
    }

    /// What is typical, with the pace of the `last` samples.
    fn over(&self, last: usize) -> Typical {
        let shared = |time: Duration, s: &Sample| time / s.beside.max(1);
        Typical {
            gap: self.rank(LENGTH, (19, 20), |s| s.gap),
            gap_share: self.rank(LENGTH, (19, 20), |s| shared(s.gap, s)),
            pace: self.rank(last, (1, 2), |s| s.pace),
            pace_share: self.rank(last, (1, 2), |s| shared(s.pace, s)),
        }
    }

    /// What is typical of all samples that are remembered, once there are as many as can be.
    pub fn lasting(&self) -> Option<Typical> {
        (self.samples.len() == LENGTH).then(|| self.over(LENGTH))
    }

    /// What is typical, once there are `least` samples.
    pub fn typical(&self, least: usize) -> Option<Typical> {
        self.typical.filter(|_| self.samples.len() >= least)
    }

    /// The value below or at which such a part of the last samples lies.
    fn rank(
        &self,
        last: usize,
        (part, whole): (usize, usize),
        value: impl Fn(&Sample) -> Duration,
    ) -> Duration {
        let mut all: Vec<Duration> = self.samples.iter().rev().take(last).map(value).collect();
        let at = (all.len() * part / whole).min(all.len() - 1);
        *all.select_nth_unstable(at).1
    }
}

/// The middle one; of two the lower, so that one slow cache does not spoil the measure.
pub fn lower_median(mut all: Vec<Duration>) -> Option<Duration> {
    let middle = all.len().checked_sub(1)? / 2;
    Some(*all.select_nth_unstable(middle).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_typical_is_of_the_last_samples_and_one_outlier_does_not_move_it() {
        let mut window = Window::default();
        assert_eq!(window.typical(0), None);
        for _ in 0..LENGTH {
            window.push(Sample { gap: ms(900), pace: ms(900), beside: 1 });
        }
        for _ in 0..LENGTH - 1 {
            window.push(Sample { gap: ms(8), pace: ms(4), beside: 4 });
        }
        window.push(Sample { gap: ms(800), pace: ms(400), beside: 4 });
        for _ in 0..RECENT - 1 {
            window.push(Sample { gap: ms(8), pace: ms(4), beside: 4 });
        }
        let typical = window.typical(LENGTH).unwrap();
        let expected = Typical { gap: ms(8), gap_share: ms(2), pace: ms(4), pace_share: ms(1) };
        assert_eq!(typical, expected);
        assert_eq!(window.typical(LENGTH + 1), None);
    }

    #[test]
    fn what_lasts_is_of_all_samples() {
        let mut window = Window::default();
        let mut push = |pace| {
            window.push(Sample { gap: ms(pace), pace: ms(pace), beside: 1 });
            (window.typical(1).unwrap().pace, window.lasting().map(|typical| typical.pace))
        };
        (0..20).for_each(|_| _ = push(900));
        (20..LENGTH - 1).for_each(|_| assert_eq!(push(4).1, None));
        assert_eq!(push(4), (ms(4), Some(ms(900))));
    }

    #[test]
    fn of_two_the_lower_is_the_measure() {
        assert_eq!(lower_median(vec![]), None);
        assert_eq!(lower_median(vec![ms(9), ms(1)]), Some(ms(1)));
        assert_eq!(lower_median(vec![ms(9), ms(1), ms(5)]), Some(ms(5)));
    }
}
