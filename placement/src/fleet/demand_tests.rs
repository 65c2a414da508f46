use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_700_000_000;

/// Claims every `apart` seconds, from one moment to another, looked at every second: what was wanted.
fn run(demand: &mut Demand, follow: &Follow, from: u64, to: u64, apart: Option<u64>) -> Vec<u32> {
    let each = |now: u64| {
        if apart.is_some_and(|apart| (now - NOW).is_multiple_of(apart)) {
            demand.claimed(1, now);
        }
        demand.look(follow, now).wanted
    };
    (from..to).map(each).collect()
}

fn built(secs: f64) -> Demand {
    let mut demand = Demand::default();
    demand.built(secs);
    demand
}

#[test]
fn what_is_wanted_covers_the_claims_of_one_build_and_the_time_ahead_and_bursts() {
    let follow = Follow::between(0, 1000);
    let mut demand = built(40.0);
    run(&mut demand, &follow, NOW, NOW + 4000, Some(10));
    // A claim in ten seconds, for 40 s and 60 s: 10, and twice the square root of that.
    let asked = demand.look(&follow, NOW + 4000);
    assert!((9.5..10.5).contains(&asked.forecast), "{asked:?}");
    assert!((16..=17).contains(&asked.wanted), "{asked:?}");
    assert_eq!(built(40.0).look(&follow, NOW).wanted, 0, "nobody claims");
}

#[test]
fn a_burst_is_seen_at_once_and_held_for_its_time_and_no_longer() {
    let follow = Follow { hold_secs: 600, ..Follow::between(0, 1000) };
    let mut demand = built(30.0);
    demand.claimed(40, NOW);
    let first = demand.look(&follow, NOW);
    assert!(first.wanted >= 8 && first.until.is_none(), "{first:?}");
    let later = demand.look(&follow, NOW + 599);
    assert_eq!(later.wanted, first.wanted, "held");
    assert!(later.until.is_some_and(|until| (NOW + 600..NOW + 640).contains(&until)), "{later:?}");
    assert!(demand.look(&follow, NOW + 640).wanted < first.wanted);
    // As another placement reads it from the state.
    let text = serde_json::to_string(&demand).unwrap();
    let mut read: Demand = serde_json::from_str(&text).unwrap();
    assert_eq!(read.look(&follow, NOW + 700), demand.look(&follow, NOW + 700));
    // A clock that was set back holds nothing for ever.
    demand.claimed(40, NOW + 1_000_000);
    demand.look(&follow, NOW + 1_000_000);
    assert!(demand.look(&follow, NOW).wanted > 0);
    assert_eq!(demand.look(&follow, NOW + 1_020_000).wanted, 0);
}

#[test]
fn the_time_of_a_build_is_smoothed() {
    let mut demand = built(10.0);
    assert_eq!(demand.build_secs(), Some(10.0));
    demand.built(50.0);
    assert_eq!(demand.build_secs(), Some(20.0), "one that is slow is not all");
    (0..40).for_each(|_| demand.built(50.0));
    assert!(demand.build_secs().unwrap() > 49.9);
}

#[test]
fn the_room_goes_to_what_saves_most_by_the_byte_after_all_have_their_floors() {
    let share = |size, floor, wanted, saved_secs| Share { size, floor, wanted, saved_secs };
    let all = [share(10, 1, 5, 50.0), share(10, 2, 5, 500.0), share(1, 0, 9, 1.0)];
    assert_eq!(share_out(&all, 1000), [5, 5, 9]);
    assert_eq!(
        share_out(&all, 73),
        [2, 5, 3],
        "the second first, then the first, and what is left fits the third"
    );
    assert_eq!(share_out(&all, 25), [0, 2, 5], "floors too");
    assert_eq!(share_out(&[share(0, 0, 3, 0.0)], 0), [3], "what takes nothing fits");
}

#[test]
fn one_build_alone_has_all_of_the_bandwidth_and_no_more_begin_than_get_a_useful_part() {
    assert_eq!(lanes(800, 0, 1), (1, 800));
    assert_eq!(lanes(800, 0, 3), (3, 266));
    assert_eq!(lanes(800, 0, 100), (8, 100));
    assert_eq!(lanes(800, 701, 5).0, 0);
    assert_eq!(lanes(800, 700, 5), (1, 100));
    assert_eq!(lanes(800, u64::MAX, 5).0, 0);
    assert_eq!(lanes(800, 0, 0).0, 0);
    assert_eq!(lanes(3, 0, 9), (3, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A constant rate never changes what is wanted, once it has settled.
    #[test]
    fn what_is_constant_changes_nothing(apart in 1u64..1500, secs in 0.1f64..600.0) {
        let follow = Follow::between(0, 1000);
        let mut demand = built(secs);
        let settled = NOW + 30 * HALF_LIFE as u64;
        run(&mut demand, &follow, NOW, settled, Some(apart));
        let wanted = run(&mut demand, &follow, settled, settled + 10_000, Some(apart));
        prop_assert!(wanted.iter().all(|w| *w == wanted[0]), "{:?}", wanted);
    }

    /// A step up is at its level, but for a twentieth, after so many half-lives or a build, whichever is longer: it never waits
    /// for the time that falls wait.
    #[test]
    fn a_step_up_reaches_its_level(apart in 1u64..60, secs in 1.0f64..600.0) {
        let follow = Follow::between(0, 1_000_000);
        let mut demand = built(secs);
        let wanted = run(&mut demand, &follow, NOW, NOW + 5 * HALF_LIFE as u64, Some(apart));
        let level = base_stock((secs + 60.0) / apart as f64);
        prop_assert!(*wanted.last().unwrap() + 1 >= level - level / 20, "{:?} of {level}", wanted.last());
        prop_assert!(wanted.is_sorted(), "it never falls on its way up");
    }

    /// When claims end, fewer and fewer are wanted, down to none, and none goes before its time.
    #[test]
    fn what_decays_falls_monotonically_to_the_floor(
        apart in 1u64..60, secs in 1.0f64..600.0, hold_secs in 0u32..4000,
    ) {
        let follow = Follow { hold_secs, ..Follow::between(0, 1_000_000) };
        let mut demand = built(secs);
        run(&mut demand, &follow, NOW, NOW + 2000, Some(apart));
        let end = NOW + 2000 + u64::from(hold_secs) * 17 / 16 + 20 * HALF_LIFE as u64;
        let wanted = run(&mut demand, &follow, NOW + 2000, end, None);
        prop_assert!(wanted.iter().rev().is_sorted());
        let held = wanted.iter().take_while(|w| **w == wanted[0]).count();
        prop_assert!(held + 60 >= hold_secs as usize, "{held} of {hold_secs}");
        prop_assert_eq!(*wanted.last().unwrap(), 0);
    }

    /// No more is given than there is, nor than is wanted; what is left over is too little for whoever lacks.
    #[test]
    fn no_more_is_shared_out_than_there_is(
        shares in prop::collection::vec((1u64..50, 0u32..9, 0u32..20, 0f64..1e6), 0..8), room in 0u64..3000,
    ) {
        let one = |(size, floor, wanted, saved_secs)| Share { size, floor, wanted, saved_secs };
        let shares: Vec<Share> = shares.into_iter().map(one).collect();
        let given = share_out(&shares, room);
        let bytes = |(share, n): (&Share, &u32)| share.size * u64::from(*n);
        let left = room.checked_sub(shares.iter().zip(&given).map(bytes).sum());
        prop_assert!(left.is_some());
        for (share, given) in shares.iter().zip(&given) {
            prop_assert!(*given == share.wanted || (*given < share.wanted && share.size > left.unwrap()));
        }
    }

    #[test]
    fn builds_never_have_more_than_their_budget(
        budget in 1u64..1 << 40, steps in prop::collection::vec((0u32..20, any::<bool>()), 1..40),
    ) {
        let mut under_way: Vec<u64> = Vec::new();
        for (lacking, ends) in steps {
            let (builds, each) = lanes(budget, under_way.iter().sum(), lacking);
            prop_assert!(builds <= lacking && (builds == 0 || each > 0));
            under_way.extend((0..builds).map(|_| each));
            prop_assert!(under_way.iter().sum::<u64>() <= budget);
            // Whoever waits has a turn when the others are done.
            prop_assert!(!under_way.is_empty() || lacking == 0);
            if ends {
                under_way.pop();
            }
        }
    }
}
