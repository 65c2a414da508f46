//! What a pool lacks, and who is to build it: a pure function of what nodes have said and were told.
//!
//! A volume counts as long as it is ready on a node that is heard of; so does one that such a node was told to build.
//! Under the low threshold a pool begins to fill, and goes on until as many as its target are *ready*: what fails
//! meanwhile is built elsewhere, and what is claimed meanwhile is built again. Never is more being built than what
//! lacks.

use std::collections::BTreeMap;

use api::goal::ReadyVolume;
use api::pool::{PoolOnNode, SetPool, VolumeKind};

/// A pool, for planning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolView<'a> {
    pub name: &'a str,
    pub set: &'a SetPool,
    pub kind: &'a VolumeKind,
    /// It has been filling since it was under its threshold.
    pub filling: bool,
}

/// A node, for planning.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeView<'a> {
    pub name: &'a str,
    /// It is not heard of: nothing of it counts.
    pub away: bool,
    /// Nothing new is to be put there.
    pub cordoned: bool,
    /// Bytes that are free for volumes, and that nothing was promised of.
    pub free: u64,
    /// What is ready there and is to stay, of all pools.
    pub ready: Vec<&'a ReadyVolume>,
    /// Of each pool, how many it was told to build and has not.
    pub building: BTreeMap<&'a str, u32>,
    /// Builds of a pool that have failed there lately: not there, for now.
    pub shunned: Vec<&'a str>,
}

/// What is to be done for a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// A node for each volume that is to be built.
    pub build: Vec<String>,
    /// Ready volumes that are to be removed: node and id.
    pub discard: Vec<(String, String)>,
    /// Whether it goes on filling.
    pub filling: bool,
    /// As it is now.
    pub ready: u32,
    pub building: u32,
    pub nodes: Vec<PoolOnNode>,
    /// For people.
    pub why: String,
}

/// Plans for one pool. Who is chosen has less room afterwards: `nodes` is to be kept for the next pool.
pub(crate) fn plan<'a>(pool: &PoolView<'a>, nodes: &mut [NodeView<'a>]) -> Plan {
    let mut plan = count(pool, nodes);
    let set = pool.set;
    let stale = |v: &&&ReadyVolume| v.pool == pool.name && v.kind != *pool.kind;
    if set.draining {
        discard(&mut plan, nodes, u32::MAX, |v| v.pool == pool.name);
        plan.why = "draining: what is ready is removed, and nothing is built".into();
        return plan;
    }
    let have = plan.ready + plan.building;
    plan.filling = (pool.filling && plan.ready < set.target) || have < set.low;
    plan.why = match plan.filling {
        true if have < set.low => {
            format!("{have} ready or building, under the threshold of {}", set.low)
        }
        true => format!(
            "filling up to {}: {} ready, {} building",
            set.target, plan.ready, plan.building
        ),
        false => format!("{} ready, at or above the threshold of {}", plan.ready, set.low),
    };
    if plan.filling {
        let room = set.builds.map_or(u32::MAX, |most| most.saturating_sub(plan.building));
        let lacking = set.target.saturating_sub(have).min(room);
        build(pool, &mut plan, nodes, lacking);
    }
    // What is of another kind serves until there is enough of the right one.
    if plan.ready >= set.low {
        discard(&mut plan, nodes, u32::MAX, |v| stale(&v));
    }
    let excess = plan.ready.saturating_sub(set.most());
    discard(&mut plan, nodes, excess, |v| v.pool == pool.name && v.kind == *pool.kind);
    plan
}

fn count(pool: &PoolView<'_>, nodes: &[NodeView<'_>]) -> Plan {
    let mut plan = Plan::default();
    for node in nodes {
        let ready = node.ready.iter().filter(|v| is_of(pool, v)).count() as u32;
        let building = node.building.get(pool.name).copied().unwrap_or(0);
        if !node.away {
            plan.ready += ready;
            plan.building += building;
        }
        if ready + building > 0 {
            let (name, away) = (node.name.to_owned(), node.away);
            plan.nodes.push(PoolOnNode { node: name, ready, building, away });
        }
    }
    plan
}

fn is_of(pool: &PoolView<'_>, volume: &ReadyVolume) -> bool {
    volume.pool == pool.name && volume.kind == *pool.kind && volume.state == "ready"
}

/// Why a node is not told to build.
fn unfit(pool: &PoolView<'_>, node: &NodeView<'_>) -> Option<String> {
    let here = on(pool, node);
    match () {
        () if node.away => Some("not heard of".into()),
        () if node.cordoned => Some("cordoned".into()),
        () if node.shunned.contains(&pool.name) => Some("a build has failed there lately".into()),
        () if pool.set.per_node.is_some_and(|most| here >= most) => {
            Some(format!("has {here} already"))
        }
        () if node.free < pool.kind.size => {
            Some(format!("lacks {} bytes of room", pool.kind.size - node.free))
        }
        () => None,
    }
}

fn on(pool: &PoolView<'_>, node: &NodeView<'_>) -> u32 {
    let ready = node.ready.iter().filter(|v| is_of(pool, v)).count() as u32;
    ready + node.building.get(pool.name).copied().unwrap_or(0)
}

/// Tells nodes to build: each time the one that has the fewest of this pool, and of these the one with the most
/// room.
fn build<'a>(pool: &PoolView<'a>, plan: &mut Plan, nodes: &mut [NodeView<'a>], lacking: u32) {
    for n in 0..lacking {
        let fit = nodes.iter_mut().filter(|node| unfit(pool, node).is_none());
        let best = fit.min_by_key(|node| (on(pool, node), u64::MAX - node.free, node.name));
        let Some(node) = best else {
            let why: Vec<_> = nodes
                .iter()
                .filter_map(|node| Some(format!("{} {}", node.name, unfit(pool, node)?)))
                .take(3)
                .collect();
            let missing = lacking - n;
            let why = if why.is_empty() { "there is none".into() } else { why.join(", ") };
            plan.why += &format!("; no node can build {missing} more: {why}");
            return;
        };
        node.free -= pool.kind.size;
        *node.building.entry(pool.name).or_default() += 1;
        plan.build.push(node.name.to_owned());
    }
}

/// Has up to so many ready volumes removed, first where there are the most.
fn discard(
    plan: &mut Plan,
    nodes: &[NodeView<'_>],
    most: u32,
    which: impl Fn(&&ReadyVolume) -> bool,
) {
    let mut left: Vec<(&str, Vec<&str>)> = nodes
        .iter()
        .filter(|node| !node.away)
        .map(|node| {
            let of = node.ready.iter().filter(|v| which(v) && v.state == "ready");
            (node.name, of.map(|v| v.id.as_str()).collect())
        })
        .collect();
    for _ in 0..most {
        let fullest = left.iter_mut().max_by_key(|(name, ids)| (ids.len(), *name));
        let Some((node, id)) = fullest.and_then(|(name, ids)| Some((*name, ids.pop()?))) else {
            return;
        };
        plan.discard.push((node.to_owned(), id.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind(size: u64) -> VolumeKind {
        VolumeKind { size, sector: None, image: None }
    }

    fn set(low: u32, target: u32) -> SetPool {
        SetPool {
            image: None,
            size: Some(10),
            sector: None,
            low,
            target,
            max: None,
            per_node: None,
            builds: None,
            draining: false,
        }
    }

    fn volumes(pool: &str, size: u64, n: u32) -> Vec<ReadyVolume> {
        let one = |i| ReadyVolume {
            id: format!("{pool}-{size}-{i}"),
            pool: pool.into(),
            kind: kind(size),
            state: "ready".into(),
        };
        (0..n).map(one).collect()
    }

    fn node<'a>(name: &'a str, free: u64, ready: &'a [ReadyVolume]) -> NodeView<'a> {
        NodeView { name, free, ready: ready.iter().collect(), ..NodeView::default() }
    }

    #[test]
    fn under_its_threshold_a_pool_is_filled_evenly_and_then_left_alone() {
        let (set, kind) = (set(2, 5), kind(10));
        let pool = PoolView { name: "p", set: &set, kind: &kind, filling: false };
        let one = volumes("p", 10, 1);
        let mut nodes = [node("a", 100, &one), node("b", 100, &[]), node("c", 100, &[])];
        let made = plan(&pool, &mut nodes);
        // `a` has one already; of those that are equal the emptier comes first.
        assert_eq!(made.build, ["b", "c", "a", "b"]);
        assert!(made.filling && made.discard.is_empty());
        // Told once: now they count.
        let again = plan(&PoolView { filling: true, ..pool }, &mut nodes);
        assert!(again.filling && again.build.is_empty(), "{again:?}");
        let enough = volumes("p", 10, 2);
        let left = plan(&pool, &mut [node("a", 100, &enough)]);
        assert!(!left.filling && left.build.is_empty(), "{left:?}");
    }

    #[test]
    fn who_is_away_does_not_count_and_is_told_nothing() {
        let (set, kind) = (set(2, 2), kind(10));
        let pool = PoolView { name: "p", set: &set, kind: &kind, filling: false };
        let two = volumes("p", 10, 2);
        let away = NodeView { away: true, ..node("a", 100, &two) };
        let made = plan(&pool, &mut [away.clone(), node("b", 15, &[])]);
        assert_eq!((made.ready, made.build.as_slice()), (0, &["b".to_owned()][..]));
        assert!(made.why.contains("b lacks 5 bytes of room"), "{}", made.why);
        let none = plan(&pool, &mut [away]);
        assert!(none.why.contains("no node can build 2 more: a not heard of"), "{}", none.why);
    }

    #[test]
    fn what_is_too_many_goes_from_where_there_are_most_and_what_is_stale_goes_when_it_is_replaced()
    {
        let (set, kind) = (SetPool { max: Some(3), ..set(1, 2) }, kind(10));
        let pool = PoolView { name: "p", set: &set, kind: &kind, filling: false };
        let (four, old) = (volumes("p", 10, 4), volumes("p", 11, 1));
        let made = plan(&pool, &mut [node("a", 100, &four), node("b", 100, &old)]);
        assert_eq!(made.discard.len(), 2, "{made:?}");
        assert!(made.discard.contains(&("b".into(), "p-11-0".into())));
        assert!(made.discard.iter().any(|(node, _)| node == "a"));
        let not_yet = plan(&pool, &mut [node("b", 100, &old)]);
        assert!(not_yet.discard.is_empty() && not_yet.build.len() == 2, "{not_yet:?}");
    }

    proptest! {
        #[test]
        fn never_more_is_built_than_lacks_nor_where_it_has_no_room(
            low in 0u32..6, more in 0u32..6, builds in proptest::option::of(0u32..4),
            per_node in proptest::option::of(0u32..4),
            fleet in prop::collection::vec((0u64..60, 0u32..4, 0u32..4, any::<bool>(), any::<bool>()), 0..6),
            filling in any::<bool>(),
        ) {
            let set = SetPool { builds, per_node, ..set(low, low + more) };
            let kind = kind(10);
            let pool = PoolView { name: "p", set: &set, kind: &kind, filling };
            let names: Vec<String> = (0..fleet.len()).map(|i| format!("n{i}")).collect();
            let ready: Vec<_> = fleet.iter().map(|f| volumes("p", 10, f.1)).collect();
            let mut nodes: Vec<NodeView<'_>> = fleet.iter().enumerate().map(|(i, f)| NodeView {
                away: f.3,
                cordoned: f.4,
                building: [("p", f.2)].into(),
                ..node(&names[i], f.0, &ready[i])
            }).collect();
            let made = plan(&pool, &mut nodes);
            let counts = |f: &&(u64, u32, u32, bool, bool)| !f.3;
            let have: u32 = fleet.iter().filter(counts).map(|f| f.1 + f.2).sum();
            prop_assert!(made.build.is_empty() || have + made.build.len() as u32 <= set.target);
            for (i, f) in fleet.iter().enumerate() {
                let told = made.build.iter().filter(|n| **n == names[i]).count() as u64;
                prop_assert!(told * 10 <= f.0);
                prop_assert!(told == 0 || (!f.3 && !f.4));
                prop_assert!(told == 0 || per_node.is_none_or(|most| f.1 + f.2 + told as u32 <= most));
            }
            if let Some(builds) = builds {
                let under_way: u32 = fleet.iter().filter(counts).map(|f| f.2).sum();
                prop_assert!(made.build.is_empty() || under_way + made.build.len() as u32 <= builds);
            }
        }
    }
}
