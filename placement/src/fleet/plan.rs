//! What a pool lacks, and who is to build it: a pure function of what nodes have said and were told.
//!
//! Which node builds is decided as where anything else goes ([`crate::decide`]), by room and by what of its image is near,
//! among those that have the fewest of the pool.
//!
//! A volume counts as long as it is ready on a node that is heard of; so does one that such a node was told to build.
//! What is on a node that drains counts until there is enough elsewhere, and then goes.
//! Under the low threshold a pool begins to fill, and goes on until as many as its target are *ready*: what fails
//! meanwhile is built elsewhere, and what is claimed meanwhile is built again. Never is more being built than what
//! lacks.

use std::collections::{BTreeMap, BTreeSet};

use api::fleet::{NodeFacts, Resources};
use api::goal::ReadyVolume;
use api::place::{Decision, PlaceRequest, Policy};
use api::pool::{PoolOnNode, SetPool, VolumeKind};
use image::Result;

use crate::decide::{View, place};

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
    /// What is ready there is to be built elsewhere, and then to go.
    pub leaves: bool,
    /// Bytes that volumes and all else on their file system can have.
    pub size: u64,
    /// Bytes that are free of that, and that nothing was promised of.
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

/// The nodes for choosing among them: those that are heard of.
pub(crate) fn view(nodes: &[NodeView<'_>]) -> Result<View> {
    let mut view = View::new(Vec::new())?;
    for node in nodes.iter().filter(|node| !node.away) {
        let mut pools: BTreeMap<String, u64> = BTreeMap::new();
        let mut images = BTreeMap::new();
        for ready in &node.ready {
            *pools.entry(ready.pool.clone()).or_default() += 1;
            images.extend(ready.kind.image.map(|image| (image, ready.kind.size)));
        }
        for (pool, building) in &node.building {
            *pools.entry((*pool).to_owned()).or_default() += u64::from(*building);
        }
        let told = view.set_node(NodeFacts {
            name: node.name.to_owned(),
            capacity: Resources { disk: node.size, ..Resources::default() },
            reserved: Resources {
                disk: node.size.saturating_sub(node.free),
                ..Resources::default()
            },
            risk_most: u8::MAX,
            cordoned: node.cordoned,
            pools,
            images,
            ..NodeFacts::default()
        });
        // What one says of itself keeps nobody from choosing the others.
        if let Err(error) = told {
            tracing::warn!(%error, node = node.name, "nothing is built on a node that makes no sense");
        }
    }
    Ok(view)
}

/// Plans for one pool. Who is chosen has less room afterwards: `nodes` and `view`, which is of them, are to be kept for
/// the next pool.
pub(crate) fn plan<'a>(
    pool: &PoolView<'a>,
    nodes: &mut [NodeView<'a>],
    view: &mut View,
    policy: &Policy,
) -> Plan {
    let mut plan = count(pool, nodes);
    let set = pool.set;
    let stale = |v: &&&ReadyVolume| v.pool == pool.name && v.kind != *pool.kind;
    if set.draining {
        discard(&mut plan, nodes, u32::MAX, |v| v.pool == pool.name);
        plan.why = "draining: what is ready is removed, and nothing is built".into();
        return plan;
    }
    let leaves = |node: &&NodeView<'_>| node.leaves && !node.away;
    let leaving: Vec<NodeView<'a>> = nodes.iter().filter(leaves).cloned().collect();
    let stays = plan.ready - leaving.iter().map(|node| ready_on(pool, node)).sum::<u32>();
    let have = stays + plan.building;
    plan.filling = (pool.filling && stays < set.target) || have < set.low;
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
        let chosen = build(pool, &mut plan, nodes, (view, policy), lacking);
        if let Err(error) = chosen {
            plan.why += &format!("; {error}");
        }
    }
    empty(pool, &mut plan, &leaving, nodes);
    let staying: Vec<NodeView<'a>> = nodes.iter().filter(|node| !node.leaves).cloned().collect();
    // What is of another kind serves until there is enough of the right one.
    if stays >= set.low {
        discard(&mut plan, &staying, u32::MAX, |v| stale(&v));
    }
    let excess = stays.saturating_sub(set.most());
    discard(&mut plan, &staying, excess, |v| v.pool == pool.name && v.kind == *pool.kind);
    plan
}

/// Removes what is on nodes that drain, as far as the pool stays at its threshold without it; all of it, if nobody else
/// can build any.
fn empty(pool: &PoolView<'_>, plan: &mut Plan, leaving: &[NodeView<'_>], nodes: &[NodeView<'_>]) {
    if leaving.is_empty() {
        return;
    }
    // Who has failed to build is told again in a while.
    let waits =
        nodes.iter().any(|node| !node.away && !node.cordoned && node.shunned.contains(&pool.name));
    let hopeless = plan.filling && plan.building == 0 && plan.build.is_empty() && !waits;
    let spare = match hopeless {
        true => u32::MAX,
        false => plan.ready.saturating_sub(pool.set.low),
    };
    discard(plan, leaving, spare, |v| is_of(pool, v));
    discard(plan, leaving, u32::MAX, |v| v.pool == pool.name && !is_of(pool, v));
    plan.why += &format!(
        "; {} on nodes that drain",
        leaving.iter().map(|n| ready_on(pool, n)).sum::<u32>()
    );
}

fn ready_on(pool: &PoolView<'_>, node: &NodeView<'_>) -> u32 {
    node.ready.iter().filter(|v| is_of(pool, v)).count() as u32
}

fn count(pool: &PoolView<'_>, nodes: &[NodeView<'_>]) -> Plan {
    let mut plan = Plan::default();
    for node in nodes {
        let ready = ready_on(pool, node);
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

/// Tells nodes to build, as many as are lacking.
fn build<'a>(
    pool: &PoolView<'a>,
    plan: &mut Plan,
    nodes: &mut [NodeView<'a>],
    (view, policy): (&mut View, &Policy),
    lacking: u32,
) -> Result<()> {
    let needs = Resources { disk: pool.kind.size, ..Resources::default() };
    for n in 0..lacking {
        let mut request = PlaceRequest {
            builds: Some(pool.name.to_owned()),
            image: pool.kind.image,
            image_bytes: pool.kind.image.map_or(0, |_| pool.kind.size),
            ..PlaceRequest::new(format!("pools/{}/{n}", pool.name), needs)
        };
        let decision = fewest_first(pool, nodes, |not_on| {
            request.not_on = not_on;
            place(view, &request, policy)
        })?;
        let Some(chosen) = decision.chosen else {
            let nearest = decision.nearest.map_or("no node is heard of".to_owned(), |miss| {
                let why: Vec<String> = miss.reasons.into_iter().map(|reason| reason.why).collect();
                format!("{} comes nearest: {}", miss.node, why.join(", "))
            });
            plan.why += &format!("; no node can build {} more: {nearest}", lacking - n);
            return Ok(());
        };
        if let Some(node) = nodes.iter_mut().find(|node| node.name == chosen.node) {
            node.free = node.free.saturating_sub(pool.kind.size);
            *node.building.entry(pool.name).or_default() += 1;
        }
        plan.build.push(chosen.node);
    }
    Ok(())
}

/// Decides among the nodes that have the fewest of a pool; if none of them can, among those that have one more, and so
/// on: a node that is lost takes no more with it than it must.
fn fewest_first(
    pool: &PoolView<'_>,
    nodes: &[NodeView<'_>],
    mut decide: impl FnMut(BTreeSet<String>) -> Result<Decision>,
) -> Result<Decision> {
    let heard = || nodes.iter().filter(|node| !node.away);
    let counts: BTreeSet<u32> = heard().map(|node| on(pool, node)).collect();
    let mut last = None;
    for most in counts {
        let barred = heard().filter(|node| is_shut(pool, node) || on(pool, node) > most);
        let decision = decide(barred.map(|node| node.name.to_owned()).collect())?;
        if decision.chosen.is_some() {
            return Ok(decision);
        }
        last = Some(decision);
    }
    last.map_or_else(|| decide(BTreeSet::new()), Ok)
}

/// How many of a pool are on a node, or will be.
fn on(pool: &PoolView<'_>, node: &NodeView<'_>) -> u32 {
    ready_on(pool, node) + node.building.get(pool.name).copied().unwrap_or(0)
}

/// Whether a pool is not to be built for there, whatever room there is.
fn is_shut(pool: &PoolView<'_>, node: &NodeView<'_>) -> bool {
    let shunned = node.shunned.contains(&pool.name);
    shunned || pool.set.per_node.is_some_and(|most| on(pool, node) >= most)
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
    use api::place::HeadRoom;
    use proptest::prelude::*;

    use super::*;

    /// With the whole disk for volumes.
    fn plan<'a>(pool: &PoolView<'a>, nodes: &mut [NodeView<'a>]) -> Plan {
        let policy = Policy { head_room: HeadRoom::NONE, ..Policy::default() };
        let mut seen = view(nodes).unwrap();
        super::plan(pool, nodes, &mut seen, &policy)
    }

    fn kind(size: u64) -> VolumeKind {
        VolumeKind { size, sector: None, image: None, layout: None }
    }

    fn set(low: u32, target: u32) -> SetPool {
        SetPool {
            image: None,
            size: Some(10),
            sector: None,
            layout: None,
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
        let ready = ready.iter().collect();
        NodeView { name, size: 1000, free, ready, ..NodeView::default() }
    }

    #[test]
    fn under_its_threshold_a_pool_is_filled_evenly_and_then_left_alone() {
        let (set, kind) = (set(2, 5), kind(10));
        let pool = PoolView { name: "p", set: &set, kind: &kind, filling: false };
        let one = volumes("p", 10, 1);
        let mut nodes = [node("a", 100, &one), node("b", 100, &[]), node("c", 100, &[])];
        let made = plan(&pool, &mut nodes);
        // `a` has one already.
        let told = |name| made.build.iter().filter(|node| *node == name).count();
        let mut all = [told("a") + 1, told("b"), told("c")];
        all.sort_unstable();
        assert_eq!(all, [1, 2, 2], "{made:?}");
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
        assert!(made.why.contains("no node can build 1 more: b comes nearest"), "{}", made.why);
        let none = plan(&pool, &mut [away]);
        assert!(none.why.contains("can build 2 more: no node is heard of"), "{}", none.why);
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
