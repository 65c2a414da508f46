//! A few seeds in every test run; `.ci/run sim` runs many more.

use forebay_sim::bugs::ALL;
use forebay_sim::{Counts, run};

/// Within so many seeds every planted bug is found.
const SEEDS: u64 = 40;

#[test]
fn seeds_hold_and_something_happens_in_them() {
    let mut counts = Counts::default();
    for seed in 0..24 {
        let report = run(seed, None, false);
        assert!(report.violations.is_empty(), "seed {seed}: {:?}", report.violations);
        counts.add(&report.counts);
    }
    // Else nothing was tested.
    let Counts { pulls, repaired, troubles, starts, joined, .. } = counts;
    assert!(
        pulls > 60 && repaired > 0 && troubles > 40 && starts > 40 && joined > 100,
        "{counts:?}"
    );
    assert!(counts.disk_hits > 20 && counts.net.lost > 1000, "{counts:?}");
    assert!(counts.net.doubled > 100 && counts.net.late > 100, "{counts:?}");
}

#[test]
fn each_planted_bug_is_found() {
    for (bug, invariant) in ALL {
        let finds = |seed: &u64| {
            let violations = run(*seed, Some(bug), false).violations;
            violations.iter().any(|violation| violation.invariant == invariant)
        };
        assert!((0..SEEDS).any(|seed| finds(&seed)), "{bug} breaks {invariant:?}, and is not seen");
    }
}
