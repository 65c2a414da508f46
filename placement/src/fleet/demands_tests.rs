use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_700_000_000;

prop_compose! {
    fn pool()(
        (floor, more) in (0u32..6, 0u32..40), follows in any::<bool>(), claims in 0u32..80, secs in 0f64..100.0,
        max in proptest::option::of(46u32..50), per_node in proptest::option::of(0u32..9),
        disk_budget in proptest::option::of(0u64..900), size in 1u64..30,
    ) -> (SetPool, u64, Demand) {
        let (low, target) = (floor, floor + more);
        let follow = follows.then(|| Follow::between(floor, target));
        let mut demand = Demand::default();
        demand.claimed(claims, NOW);
        demand.built(secs);
        let set = SetPool { low, target, follow, max, per_node, disk_budget, ..SetPool::default() };
        (set, size, demand)
    }
}

proptest! {
    #[test]
    fn every_bound_holds_and_what_is_not_as_asked_for_says_why(
        pools in prop::collection::vec(pool(), 0..6), bytes in 0u64..3000, nodes in 0u32..5,
    ) {
        let room = Room { bytes, nodes };
        let kind = |size| VolumeKind { size, sector: None, image: None, layout: None };
        let was = pools.clone();
        let wishes = pools.into_iter().enumerate().map(|(n, (set, size, mut demand))| {
            Wish::new(&mut demand, (n.to_string(), set, kind(size)), room, NOW)
        });
        let done = settle(wishes.collect(), room);
        prop_assert_eq!(done.len(), was.len());
        let (mut follow, mut fixed) = (0, 0);
        for ((name, set, kind), demand) in done {
            let before = &was[name.parse::<usize>().unwrap()].0;
            prop_assert_eq!(demand.target, set.target);
            prop_assert!(set.low <= set.target && set.target <= set.most());
            prop_assert!(before.max.is_none_or(|max| set.most() <= max));
            let within = u64::from(set.most()) * kind.size;
            prop_assert!(before.disk_budget.is_none_or(|budget| within <= budget));
            let bytes = u64::from(set.target) * kind.size;
            let Some(Follow { floor, ceiling, .. }) = before.follow else {
                fixed += bytes;
                prop_assert_eq!(demand.bound.is_some(), set.target < before.target);
                continue;
            };
            follow += bytes;
            prop_assert!(set.target <= ceiling);
            prop_assert!(before.per_node.is_none_or(|most| set.target <= most * nodes));
            prop_assert!(set.target == demand.wanted || demand.bound.is_some());
            prop_assert!(demand.bound != Some(PoolBound::Floor) || set.target == floor);
            prop_assert!(demand.bound != Some(PoolBound::Ceiling) || set.target == ceiling);
        }
        prop_assert!(follow == 0 || follow + fixed <= bytes);
    }
}
