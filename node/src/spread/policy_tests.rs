use proptest::prelude::*;

use super::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn caches(n: usize) -> Vec<CacheInfo> {
    let cache = |i| CacheInfo {
        name: format!("cache-{i}"),
        server_name: String::new(),
        endpoints: Vec::new(),
        receives: false,
        api: None,
        weight: 1.0,
        draining: false,
    };
    (0..n).map(cache).collect()
}

const BULK: Priority = Priority::Background;

fn sample(gap: u64, pace: u64, beside: u32) -> Sample {
    Sample { gap: ms(gap), pace: ms(pace), beside }
}

/// A policy that has had answers like this from each of the caches.
fn knows(samples: &[Sample]) -> Policy {
    knows_for(6, samples)
}

/// The same after so many answers of each.
fn knows_for(answered: usize, samples: &[Sample]) -> Policy {
    let mut policy = Policy::default();
    for _ in 0..answered {
        for (i, sample) in samples.iter().enumerate() {
            answers(&mut policy, &format!("cache-{i}"), ms(0), *sample);
        }
    }
    for half in 0..7 {
        for (i, Sample { pace, beside, .. }) in samples.iter().enumerate() {
            waits(&mut policy, &format!("cache-{i}"), ms(500 * half), *beside, 16 * *pace, 16);
        }
    }
    policy
}

/// Requests, so many at once, which waited for so long and were given so many chunks.
fn waits(policy: &mut Policy, name: &str, now: Duration, beside: u32, time: Duration, chunks: u32) {
    (0..beside).for_each(|_| _ = policy.begins(name, now));
    policy.waited(name, now, BULK, time, chunks);
    (0..beside).for_each(|_| policy.ends(name));
}

fn answers(policy: &mut Policy, name: &str, now: Duration, sample: Sample) {
    policy.begins(name, now);
    policy.answered(name, now, now, BULK, Some(sample));
    policy.ends(name);
}

fn turn(policy: &mut Policy, now: Duration, section: u32) -> Vec<usize> {
    let root = Digest::of_chunk(b"root");
    let asks = Asks { root: &root, section, priority: BULK, skip: 0 };
    policy.turn(now, &caches(3), asks)
}

#[test]
fn several_times_slower_than_the_others_limps_and_less_does_not() {
    let ok = sample(20, 15, 1);
    assert_eq!(knows(&[ok, ok, sample(90, 55, 1)]).counts().limped, 0);
    let policy = knows(&[ok, ok, sample(90, 65, 1)]);
    assert_eq!(policy.counts().limped, 1);
    assert!(!policy.is_in("cache-2"));
    // However much slower: whoever is fast enough does not limp.
    assert_eq!(knows(&[sample(1, 0, 1), sample(1, 0, 1), sample(9, 9, 1)]).counts().limped, 0);
}

#[test]
fn one_request_with_bad_luck_is_no_limp_and_all_of_them_are() {
    let ok = sample(20, 15, 8);
    for (given, limps) in [(7, false), (3, false), (1, true), (0, true)] {
        let mut policy = knows(&[ok, ok, ok]);
        // Of eight so many get a chunk every 15 ms; the others nothing.
        for half in 7..20 {
            waits(&mut policy, "cache-1", ms(500 * half), 8, ms(8 * 500), given * 500 / 15);
        }
        assert_eq!(!policy.is_in("cache-1"), limps, "{given} of 8");
    }
}

#[test]
fn who_is_asked_more_at_once_is_not_blamed_for_its_link() {
    // Eight requests share what one has alone: the link is the same.
    assert_eq!(knows(&[sample(90, 80, 1), sample(800, 640, 8)]).counts().limped, 0);
    // Nor is one blamed who is asked less at once, and answers each as fast.
    assert_eq!(knows(&[sample(90, 80, 1), sample(90, 80, 8)]).counts().limped, 0);
    assert_eq!(knows(&[sample(90, 80, 1), sample(9000, 6400, 8)]).counts().limped, 1);
}

#[test]
fn if_all_others_are_slow_it_is_not_they_who_limp() {
    let slow = sample(900, 600, 1);
    let policy = knows(&[sample(20, 15, 1), slow, slow, slow]);
    let left = (0..4).filter(|i| policy.is_in(&format!("cache-{i}"))).count();
    assert!(left >= 2, "{left} are left");
}

#[test]
fn a_cache_that_tires_for_long_keeps_half_its_sections() {
    let (ok, slow) = (sample(20, 15, 1), sample(60, 45, 1));
    let owns = |policy: &mut Policy| (0..2000).filter(|s| turn(policy, ms(0), *s)[0] == 2).count();
    let fresh = owns(&mut knows(&[ok, ok, ok])) as f64;
    assert_eq!(owns(&mut knows_for(31, &[ok, ok, slow])) as f64, fresh, "it may only be cold");
    let tired = owns(&mut knows_for(32, &[ok, ok, slow])) as f64;
    // Of 1 + 1 + 1/2 it has a fifth, and had a third.
    assert!((tired / fresh - 0.6).abs() < 0.06, "{tired} of {fresh}");
}

#[test]
fn late_is_what_is_rare_among_the_others_and_sooner_for_a_guest() {
    let mut policy = knows(&[sample(300, 15, 1), sample(400, 15, 1), sample(9, 5, 1)]);
    // The lower of the two others', twice.
    assert_eq!(policy.first_look("cache-2", BULK), ms(600));
    assert_eq!(policy.first_look("cache-0", BULK), ms(100), "not before that");
    for name in ["cache-0", "cache-1"] {
        for _ in 0..6 {
            policy.begins(name, ms(0));
            policy.answered(name, ms(0), ms(0), Priority::Guest, Some(sample(40, 40, 1)));
            policy.ends(name);
        }
    }
    assert_eq!(policy.first_look("cache-2", Priority::Guest), ms(40));
    assert_eq!(Policy::default().first_look("cache-2", BULK), UNKNOWN);
}

#[test]
fn a_cache_of_which_nobody_gets_anything_has_failed() {
    let ok = sample(20, 5, 1);
    let look = |policy: &mut Policy, now: u64, gap: u64| {
        let so_far = Sample { gap: ms(gap), pace: ms(gap / 16), beside: 8 };
        let under = Underway { began: ms(0), priority: BULK, so_far, counted: true };
        policy.look("cache-0", ms(now), under).0
    };
    let asked = |requests: u32| {
        let mut policy = knows(&[ok, ok, ok]);
        (0..requests).for_each(|_| _ = policy.begins("cache-0", ms(100)));
        policy
    };
    let mut policy = asked(3);
    look(&mut policy, 2000, 1900);
    assert!(policy.is_in("cache-0"), "not yet");
    look(&mut policy, 2100, 2000);
    assert!(!policy.is_in("cache-0") && !policy.is_alive("cache-0"));
    // Nobody waits any longer for it, and nobody pauses before leaving it.
    policy.left("cache-0", ms(2100));
    assert!(matches!(look(&mut policy, 2101, 500), Verdict::Leave(_)));
    // While one of many gets something it is alive, and two may wait for the same cold chunk.
    let mut policy = asked(3);
    look(&mut policy, 2000, 100);
    look(&mut policy, 2100, 2000);
    assert!(policy.is_in("cache-0"));
    let mut policy = asked(2);
    look(&mut policy, 2100, 2000);
    assert!(policy.is_in("cache-0"));
    // If most give nothing it is not them.
    let mut policy = asked(3);
    policy.failed("cache-1", ms(0), ms(0), Kind::Retry);
    look(&mut policy, 2100, 2000);
    assert!(policy.is_in("cache-0"));
}

#[test]
fn one_cold_chunk_does_not_take_all_requests_elsewhere() {
    let ok = sample(20, 5, 1);
    let mut policy = knows(&[ok, ok, ok]);
    let slow = |gap| Underway {
        began: ms(0),
        priority: BULK,
        so_far: Sample { gap: ms(gap), pace: ms(gap / 16), beside: 8 },
        counted: false,
    };
    assert!(matches!(policy.look("cache-0", ms(50), slow(50)).0, Verdict::Wait(_)));
    assert!(matches!(policy.look("cache-0", ms(300), slow(300)).0, Verdict::Late(_)));
    assert!(matches!(policy.look("cache-0", ms(1200), slow(1200)).0, Verdict::Leave(_)));
    policy.left("cache-0", ms(1200));
    assert!(matches!(policy.look("cache-0", ms(1300), slow(1300)).0, Verdict::Late(_)));
    assert!(matches!(policy.look("cache-0", ms(2200), slow(2200)).0, Verdict::Leave(_)));
    policy.failed("cache-0", ms(2200), ms(0), Kind::Retry);
    assert!(matches!(policy.look("cache-0", ms(2200), slow(300)).0, Verdict::Leave(_)));
}

#[test]
fn of_requests_that_fail_together_one_counts() {
    let mut policy = Policy::default();
    for n in 0..8 {
        assert_eq!(policy.failed("cache-0", ms(100), ms(0), Kind::Retry), n == 0, "told once");
    }
    let first = |policy: &mut Policy, now| {
        let section = (0..).find(|s| turn(&mut Policy::default(), ms(0), *s)[0] == 0).unwrap();
        turn(policy, now, section)[0]
    };
    assert_ne!(first(&mut policy, ms(100) + FIRST_REST - ms(1)), 0);
    assert_eq!(first(&mut policy, ms(100) + FIRST_REST), 0, "one may try");
    assert_ne!(first(&mut policy, ms(100) + FIRST_REST), 0, "and no other");
}

#[test]
fn a_guest_does_not_try_who_is_out() {
    let mut policy = Policy::default();
    policy.failed("cache-0", ms(0), ms(0), Kind::Retry);
    let root = Digest::of_chunk(b"root");
    let section = (0..).find(|s| turn(&mut Policy::default(), ms(0), *s)[0] == 0).unwrap();
    let asks = Asks { root: &root, section, priority: Priority::Guest, skip: 0 };
    assert_ne!(policy.turn(FIRST_REST, &caches(3), asks)[0], 0);
    assert_eq!(policy.turn(FIRST_REST + LAST_REST, &caches(3), asks)[0], 0, "if nobody else does");
}

#[derive(Clone, Debug)]
enum Step {
    Turn(u32, bool),
    Begin(usize),
    End(usize),
    Answer(usize, u64, u32),
    Wait(usize, u64, u32),
    Fail(usize, bool),
    Look(usize, u64),
    Hedge,
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..50u32, any::<bool>()).prop_map(|(s, g)| Step::Turn(s, g)),
        (0..4usize).prop_map(Step::Begin),
        (0..4usize).prop_map(Step::End),
        (0..4usize, 0..3000u64, 1..9u32).prop_map(|(c, p, b)| Step::Answer(c, p, b)),
        (0..4usize, 0..3000u64, 0..9u32).prop_map(|(c, w, n)| Step::Wait(c, w, n)),
        (0..4usize, any::<bool>()).prop_map(|(c, b)| Step::Fail(c, b)),
        (0..4usize, 0..5000u64).prop_map(|(c, g)| Step::Look(c, g)),
        Just(Step::Hedge),
        (0..4000u64).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 0..400)
}

proptest! {
    #[test]
    fn whatever_happens_everybody_can_be_asked_and_the_bounds_hold(steps in steps()) {
        let (mut policy, caches, mut now) = (Policy::default(), caches(4), ms(0));
        let root = Digest::of_chunk(b"root");
        for step in steps {
            let name = |c: usize| caches[c].name.as_str();
            match step {
                Step::Turn(section, guest) => {
                    let priority = if guest { Priority::Guest } else { BULK };
                    let asks = Asks { root: &root, section, priority, skip: section as usize };
                    let mut turn = policy.turn(now, &caches, asks);
                    turn.sort_unstable();
                    prop_assert_eq!(turn, [0, 1, 2, 3]);
                }
                Step::Begin(c) => drop(policy.begins(name(c), now)),
                Step::End(c) => policy.ends(name(c)),
                Step::Answer(c, pace, beside) => {
                    let sample = Some(sample(pace, pace, beside));
                    policy.answered(name(c), now, now, BULK, sample);
                }
                Step::Wait(c, time, chunks) => policy.waited(name(c), now, BULK, ms(time), chunks),
                Step::Fail(c, busy) => {
                    let kind = if busy { Kind::Busy(ms(300)) } else { Kind::Retry };
                    let _ = policy.failed(name(c), now, now, kind);
                }
                Step::Look(c, gap) => {
                    let so_far = sample(gap, gap, 1);
                    let under = Underway { began: ms(0), priority: BULK, so_far, counted: false };
                    let (Verdict::Wait(again) | Verdict::Late(again) | Verdict::Leave(again)) =
                        policy.look(name(c), now, under).0;
                    prop_assert!(!again.is_zero(), "it would be looked at without end");
                }
                Step::Hedge => drop(policy.may_hedge()),
                Step::Pass(time) => now += ms(time),
            }
            let counts = policy.counts();
            prop_assert!(counts.hedges * 20 <= counts.requests);
            let limping = policy.members.values().filter(|m| m.out.is_some_and(|o| o.slow));
            prop_assert!(2 * limping.count() <= caches.len());
            let latest = policy.members.values().filter_map(|m| m.out).map(|out| out.until).max();
            prop_assert!(latest.is_none_or(|until| until <= now + LAST_REST), "nobody is out for ever");
        }
    }
}
