//! A seed is the whole of a run: in any process, beside any other.

use std::process::Command;

use forebay_sim::run;

/// What another process says of a seed: its counts and the digest of its trace.
fn elsewhere(seed: u64) -> String {
    let mut again = Command::new(env!("CARGO_BIN_EXE_forebay-sim"));
    let output = again.args(["--seed", &seed.to_string()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_seed_replays_exactly_in_two_processes() {
    for seed in [1, 7, 11, 42] {
        let first = elsewhere(seed);
        assert!(first.contains("digest"), "{first}");
        assert_eq!(first, elsewhere(seed), "seed {seed}");
    }
}

#[test]
fn a_run_knows_nothing_of_the_runs_before_and_beside_it() {
    let alone = run(5, None, false);
    let crowd: Vec<_> =
        (0..3).map(|n| std::thread::spawn(move || run(5 + n % 2, None, false))).collect();
    let crowd = crowd.into_iter().map(|run| run.join().unwrap());
    for other in crowd.filter(|other| other.seed == alone.seed) {
        assert_eq!((&other.digest, other.events), (&alone.digest, alone.events));
    }
    assert_ne!(run(6, None, false).digest, alone.digest);
}

#[test]
fn a_failing_seed_says_how_to_run_it_again() {
    let mut sim = Command::new(env!("CARGO_BIN_EXE_forebay-sim"));
    let output = sim.args(["--plant", "Forgets", "--seeds", "20"]).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    let again =
        said.lines().find(|line| line.contains("again: ")).unwrap_or_else(|| panic!("{said}"));
    assert!(again.contains("--plant Forgets --seed ") && again.contains("--trace"), "{again}");
}
