//! How many requests may be asked twice.

/// Requests that pay for one hedge: no more than one in twenty is asked twice.
pub const PER_HEDGE: u64 = 20;
/// Hedges that can be saved up: after a long calm a bad moment does not double the load.
const SAVED: u64 = 8;

/// A token bucket that fills by requests and not by time: whatever happens, hedges are at most a twentieth
/// of the requests. Many slow answers at once mean that everybody is slow, and that is when extra requests do
/// harm. (Dean, Barroso, "The tail at scale", CACM 2013.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HedgeBudget {
    /// Requests that were made and not spent.
    saved: u64,
}

impl HedgeBudget {
    /// A request was made.
    pub fn earn(&mut self) {
        self.saved = (self.saved + 1).min(SAVED * PER_HEDGE);
    }

    /// Whether one may be asked twice now; if so it is paid for.
    pub fn spend(&mut self) -> bool {
        let can = self.saved >= PER_HEDGE;
        if can {
            self.saved -= PER_HEDGE;
        }
        can
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hedges_are_never_more_than_a_twentieth(steps in prop::collection::vec(any::<bool>(), 0..4000)) {
            let mut budget = HedgeBudget::default();
            let (mut requests, mut hedges) = (0u64, 0u64);
            for spend in steps {
                if spend {
                    hedges += u64::from(budget.spend());
                } else {
                    budget.earn();
                    requests += 1;
                }
                prop_assert!(hedges * PER_HEDGE <= requests);
            }
        }

        #[test]
        fn what_is_saved_up_is_bounded(calm in 0u64..100_000) {
            let mut budget = HedgeBudget::default();
            (0..calm).for_each(|_| budget.earn());
            let burst = std::iter::from_fn(|| budget.spend().then_some(())).count() as u64;
            prop_assert_eq!(burst, (calm / PER_HEDGE).min(SAVED));
        }
    }
}
