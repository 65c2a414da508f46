//! Leases on seeded keys, ways, processes and clocks; `.ci/run sim` runs many more seeds.

use forebay_sim::leases::{BUGS, Counts, run};

/// Within so many seeds every planted bug is found.
const SEEDS: u64 = 20;

#[test]
fn one_writes_at_a_time_whatever_happens() {
    let mut counts = Counts::default();
    for seed in 0..40 {
        let report = run(seed, None, false);
        assert!(report.violations.is_empty(), "seed {seed}: {:#?}", report.violations);
        counts.add(&report.counts);
    }
    println!("{counts:?}");
    // Else nothing was tested.
    let Counts { granted, refused, unanswered, writes, killed, undecided } = counts;
    assert_eq!(undecided, 0);
    assert!(granted > 400 && refused > 400 && unanswered > 40, "{counts:?}");
    assert!(writes > 40_000 && killed > 10, "{counts:?}");
}

#[test]
fn each_planted_bug_of_leases_is_found() {
    for bug in BUGS {
        let finds = |seed: &u64| !run(*seed, Some(bug), false).violations.is_empty();
        let found = (0..SEEDS).find(finds);
        println!("{bug} is found by seed {found:?}");
        assert!(found.is_some(), "{bug} is not found within {SEEDS} seeds");
    }
}

#[test]
fn a_seed_of_leases_is_the_same_every_time() {
    assert_eq!(run(3, None, false).digest, run(3, None, false).digest);
}
