//! Pools, claims and reservations on seeded keys, ways, power and clocks; `.ci/run sim` runs many more seeds.

use forebay_sim::pools::{BUGS, Counts, run};

/// Within so many seeds every planted bug is found: that two reserve the same at the same moment is rare.
const SEEDS: u64 = 80;

#[test]
fn nothing_is_built_or_given_twice_or_lost_whatever_happens() {
    let mut counts = Counts::default();
    for seed in 0..16 {
        let report = run(seed, None, false);
        assert!(report.violations.is_empty(), "seed {seed}: {:#?}", report.violations);
        counts.add(&report.counts);
    }
    println!("{counts:?}");
    // Else nothing was tested.
    let Counts { built, claimed, reserved, power_cuts, moved, undecided } = counts;
    assert_eq!(undecided, 0);
    assert!(built > 250 && claimed > 250 && reserved > 150, "{counts:?}");
    assert!(power_cuts > 40 && moved > 2, "{counts:?}");
}

#[test]
fn each_planted_bug_of_pools_is_found() {
    for (bug, says) in BUGS {
        let finds = |seed: &u64| {
            let violations = run(*seed, Some(bug), false).violations;
            violations.iter().any(|violation| violation.contains(says))
        };
        let found = (0..SEEDS).find(finds);
        println!("{bug} is found by seed {found:?}");
        assert!(found.is_some(), "{bug} is not found within {SEEDS} seeds");
    }
}

#[test]
fn a_seed_of_pools_is_the_same_every_time() {
    assert_eq!(run(3, None, false).digest, run(3, None, false).digest);
}
