//! Which images are rehearsed next: drawn by lot, in which those weigh more that were not rehearsed for longer.
//!
//! Weighted drawing without replacement, by a key for each that is exponentially distributed with its weight: the
//! smallest keys are drawn (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006).

/// An image that can be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Bytes of the budget that it takes.
    pub cost: u64,
    /// When it was last rehearsed, in seconds since 1970; none if it never was.
    pub last: Option<u64>,
}

/// What a run may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Images.
    pub count: usize,
    /// Bytes.
    pub budget: u64,
}

const HOUR: u64 = 3600;
/// One that was never rehearsed weighs as one of so many seconds ago, or twice as much as the oldest, if that is more.
const NEVER: u64 = 365 * 24 * HOUR;

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Above 0, at most 1.
    fn share(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

/// Draws among candidates at `now`, in seconds since 1970; their numbers, in the order in which they were drawn. One that
/// costs more than what is left of the budget is passed over. The same seed draws the same.
pub fn draw(candidates: &[Candidate], now: u64, seed: u64, limits: Limits) -> Vec<usize> {
    let age = |candidate: &Candidate| candidate.last.map(|last| now.saturating_sub(last));
    let oldest = candidates.iter().filter_map(age).max().unwrap_or(0);
    let never = NEVER.max(oldest.saturating_mul(2));
    let mut random = Random(seed);
    let mut keys: Vec<(f64, usize)> = Vec::with_capacity(candidates.len());
    for (number, candidate) in candidates.iter().enumerate() {
        // By the square: of two, one of which waits twice as long, that one comes first four times of five.
        let weight = (age(candidate).unwrap_or(never).max(HOUR) as f64).powi(2);
        keys.push((-random.share().ln() / weight, number));
    }
    keys.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut left = limits.budget;
    let mut drawn = Vec::new();
    for (_, number) in keys {
        if drawn.len() == limits.count {
            break;
        }
        if let Some(rest) = left.checked_sub(candidates[number].cost) {
            left = rest;
            drawn.push(number);
        }
    }
    drawn
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let last = prop::option::of(0..NOW * 2);
        let one = (0u64..1000, last).prop_map(|(cost, last)| Candidate { cost, last });
        prop::collection::vec(one, 0..40)
    }

    proptest! {
        #[test]
        fn limits_hold_and_nothing_that_fits_is_left(
            all in candidates(), seed in any::<u64>(), count in 0usize..50, budget in 0u64..20_000,
        ) {
            let limits = Limits { count, budget };
            let drawn = draw(&all, NOW, seed, limits);
            prop_assert_eq!(&drawn, &draw(&all, NOW, seed, limits));
            let mut once = drawn.clone();
            once.sort_unstable();
            once.dedup();
            prop_assert_eq!(once.len(), drawn.len());
            let spent: u64 = drawn.iter().map(|n| all[*n].cost).sum();
            prop_assert!(drawn.len() <= count && spent <= budget);
            if drawn.len() < count {
                let fits = |n: &usize| !drawn.contains(n) && all[*n].cost <= budget - spent;
                prop_assert_eq!((0..all.len()).find(fits), None);
            }
        }

        #[test]
        fn more_of_the_budget_draws_what_less_drew_first(all in candidates(), seed in any::<u64>()) {
            let unlimited = |count| draw(&all, NOW, seed, Limits { count, budget: u64::MAX });
            let order = unlimited(usize::MAX);
            prop_assert_eq!(order.len(), all.len());
            prop_assert_eq!(&unlimited(3)[..], &order[..order.len().min(3)]);
        }
    }

    /// How often each is the first of 10,000 seeds.
    fn firsts(all: &[Candidate]) -> Vec<usize> {
        let mut firsts = vec![0; all.len()];
        for seed in 0..10_000 {
            firsts[draw(all, NOW, seed, Limits { count: 1, budget: u64::MAX })[0]] += 1;
        }
        firsts
    }

    #[test]
    fn who_waits_longer_comes_more_often_and_all_come() {
        let ago = |days: u64| Candidate { cost: 1, last: Some(NOW - days * 24 * HOUR) };
        let twice = firsts(&[ago(10), ago(20)]);
        assert!((7_800..8_200).contains(&twice[1]), "{twice:?}");
        let never = firsts(&[ago(400), Candidate { cost: 1, last: None }, ago(0)]);
        assert!(never[1] > 3 * never[0] && never[0] > never[2], "{never:?}");
        let alike = firsts(&[ago(0); 4]);
        assert!(alike.iter().all(|n| (2_200..2_800).contains(n)), "{alike:?}");
    }
}
