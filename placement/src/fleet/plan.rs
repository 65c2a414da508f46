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

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use api::fleet::{NodeFacts, Resources};
use api::goal::ReadyVolume;
use api::place::{Decision, PlaceRequest, Policy};
use api::pool::{PoolDemand, PoolOnNode, SetPool, VolumeKind};
use image::Result;

use super::demand::lanes;
use super::demands::most_of;
use crate::decide::{At, View, place_but};

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
    /// Bytes a second that these may fetch.
    pub fetching: BTreeMap<&'a str, u64>,
    /// Bytes that volumes of pools have there, and will have.
    pub pooled: u64,
    /// Builds of a pool that have failed there lately: not there, for now.
    pub shunned: Vec<&'a str>,
}

/// What is to be done for a pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// A node for each volume that is to be built.
    pub build: Vec<String>,
    /// Bytes a second that each of these may fetch, if there is a limit.
    pub rate: Option<u64>,
    /// Fewer are built than lack, since those under way have the bandwidth.
    pub throttled: bool,
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
    /// What it was made by.
    pub demand: Option<PoolDemand>,
}

impl NodeView<'_> {
    /// For choosing.
    fn facts(&self) -> NodeFacts {
        let taken = self.size.saturating_sub(self.free);
        let images = self.ready.iter().filter_map(|v| Some((v.kind.image?, v.kind.size)));
        NodeFacts {
            name: self.name.to_owned(),
            capacity: Resources { disk: self.size, ..Resources::default() },
            reserved: Resources { disk: taken, ..Resources::default() },
            risk_most: u8::MAX,
            cordoned: self.cordoned,
            images: images.collect(),
            ..NodeFacts::default()
        }
    }
}

/// All nodes, for planning one pool after the other: who is chosen has less room for the next.
pub(crate) struct Nodes<'a> {
    all: Vec<NodeView<'a>>,
    /// What there is of each pool, of whatever kind: the place of a node in `all`, rising, and a volume. So each volume
    /// is looked at for its own pool alone.
    volumes: BTreeMap<&'a str, Vec<(usize, &'a ReadyVolume)>>,
    /// Builds that may still be decided on.
    left: u32,
    /// There were more than these.
    more: bool,
    choice: Option<Choice>,
}

/// What of a pool is on a node.
#[derive(Clone, Copy, Default)]
struct Share {
    ready: u32,
    building: u32,
    /// Of another kind than the pool's is now.
    stale: u32,
}

/// Those that are heard of, for choosing among them.
struct Choice {
    view: View,
    /// The number in it of each node.
    numbers: Vec<Option<At>>,
}

impl<'a> Nodes<'a> {
    /// With as many builds for all pools together.
    pub(crate) fn new(all: Vec<NodeView<'a>>, builds: u32) -> Self {
        let mut volumes: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for (n, node) in all.iter().enumerate() {
            for volume in node.ready.iter().filter(|volume| volume.state == "ready") {
                volumes.entry(volume.pool.as_str()).or_default().push((n, *volume));
            }
        }
        Self { all, volumes, left: builds, more: false, choice: None }
    }

    /// Whether more would be built if more might be decided on.
    pub(crate) fn more(&self) -> bool {
        self.more
    }

    /// What of a pool each node has.
    fn shares(&self, pool: &PoolView<'_>) -> Vec<Share> {
        let building = |node: &NodeView<'_>| node.building.get(pool.name).copied().unwrap_or(0);
        let share = |node| Share { building: building(node), ..Share::default() };
        let mut shares: Vec<Share> = self.all.iter().map(share).collect();
        for (n, volume) in self.of(pool) {
            match volume.kind == *pool.kind {
                true => shares[n].ready += 1,
                false => shares[n].stale += 1,
            }
        }
        shares
    }

    fn of(&self, pool: &PoolView<'_>) -> impl Iterator<Item = (usize, &'a ReadyVolume)> {
        self.volumes.get(pool.name).into_iter().flatten().copied()
    }

    /// Ready volumes of those that drain.
    fn leaving(&self, shares: &[Share]) -> u32 {
        let nodes = self.all.iter().zip(shares).filter(|(node, _)| node.leaves && !node.away);
        nodes.map(|(_, share)| share.ready).sum()
    }

    fn choice(&mut self) -> Result<(&mut Choice, &mut Vec<NodeView<'a>>)> {
        if self.choice.is_none() {
            self.choice = Some(Choice::of(&self.all)?);
        }
        Ok((self.choice.as_mut().expect("it was made"), &mut self.all))
    }
}

impl Choice {
    fn of(nodes: &[NodeView<'_>]) -> Result<Self> {
        let mut view = View::new(Vec::new())?;
        for node in nodes.iter().filter(|node| !node.away) {
            // What one says of itself keeps nobody from choosing the others.
            if let Err(error) = view.set_node(node.facts()) {
                tracing::warn!(%error, node = node.name, "nothing is built on a node that makes no sense");
            }
        }
        let numbers = nodes.iter().map(|node| view.number(node.name)).collect();
        Ok(Self { view, numbers })
    }
}

/// Plans for one pool.
pub(crate) fn plan<'a>(pool: &PoolView<'a>, nodes: &mut Nodes<'a>, policy: &Policy) -> Plan {
    let mut shares = nodes.shares(pool);
    let mut plan = count(nodes, &shares);
    let set = pool.set;
    if set.draining {
        discard(&mut plan, nodes, pool, u32::MAX, |_, _| true);
        plan.why = "draining: what is ready is removed, and nothing is built".into();
        return plan;
    }
    let stays = plan.ready - nodes.leaving(&shares);
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
        let lacking = throttle(pool, &mut plan, &nodes.all, lacking);
        let chosen = build(pool, &mut plan, (nodes, &mut shares), policy, lacking);
        if let Err(error) = chosen {
            plan.why += &format!("; {error}");
        }
    }
    empty(pool, &mut plan, nodes, &shares);
    // What is of another kind serves until there is enough of the right one.
    if stays >= set.low && shares.iter().any(|share| share.stale > 0) {
        discard(&mut plan, nodes, pool, u32::MAX, |node, kind| !node.leaves && !kind);
    }
    let excess = stays.saturating_sub(set.most());
    discard(&mut plan, nodes, pool, excess, |node, kind| !node.leaves && kind);
    plan
}

/// Removes what is on nodes that drain, as far as the pool stays at its threshold without it; all of it, if nobody else
/// can build any.
fn empty(pool: &PoolView<'_>, plan: &mut Plan, nodes: &Nodes<'_>, shares: &[Share]) {
    if !nodes.all.iter().any(|node| node.leaves && !node.away) {
        return;
    }
    // Who has failed to build is told again in a while.
    let waits = nodes
        .all
        .iter()
        .any(|node| !node.away && !node.cordoned && node.shunned.contains(&pool.name));
    let hopeless = plan.filling && plan.building == 0 && plan.build.is_empty() && !waits;
    let spare = match hopeless {
        true => u32::MAX,
        false => plan.ready.saturating_sub(pool.set.low),
    };
    discard(plan, nodes, pool, spare, |node, kind| node.leaves && kind);
    discard(plan, nodes, pool, u32::MAX, |node, kind| node.leaves && !kind);
    plan.why += &format!("; {} on nodes that drain", nodes.leaving(shares));
}

fn count(nodes: &Nodes<'_>, shares: &[Share]) -> Plan {
    let mut plan = Plan::default();
    for (node, Share { ready, building, .. }) in nodes.all.iter().zip(shares.iter().copied()) {
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

/// How many of those that lack can begin within the pool's bandwidth, and how fast each is.
fn throttle(pool: &PoolView<'_>, plan: &mut Plan, nodes: &[NodeView<'_>], lacking: u32) -> u32 {
    // What is blank fetches nothing.
    let Some(budget) = pool.set.build_rate.filter(|_| pool.kind.image.is_some()) else {
        return lacking;
    };
    let under_way = nodes.iter().filter_map(|node| node.fetching.get(pool.name));
    let (builds, each) =
        lanes(budget, under_way.fold(0, |sum, rate| sum.saturating_add(*rate)), lacking);
    (plan.rate, plan.throttled) = (Some(each), builds < lacking);
    builds
}

/// Tells nodes to build, as many as are lacking.
fn build<'a>(
    pool: &PoolView<'a>,
    plan: &mut Plan,
    (nodes, shares): (&mut Nodes<'a>, &mut [Share]),
    policy: &Policy,
    lacking: u32,
) -> Result<()> {
    let needs = Resources { disk: pool.kind.size, ..Resources::default() };
    nodes.more |= lacking > nodes.left;
    for n in 0..lacking.min(nodes.left) {
        let request = PlaceRequest {
            builds: Some(pool.name.to_owned()),
            image: pool.kind.image,
            image_bytes: pool.kind.image.map_or(0, |_| pool.kind.size),
            ..PlaceRequest::new(format!("pools/{}/{n}", pool.name), needs)
        };
        let (choice, all) = nodes.choice()?;
        let decision = fewest_first(pool, (choice, all, shares), &request, policy)?;
        let Some(chosen) = decision.chosen else {
            let nearest = decision.nearest.map_or("no node is heard of".to_owned(), |miss| {
                let why: Vec<String> = miss.reasons.into_iter().map(|reason| reason.why).collect();
                format!("{} comes nearest: {}", miss.node, why.join(", "))
            });
            plan.why += &format!("; no node can build {} more: {nearest}", lacking - n);
            let full = all.iter().filter(|node| !node.away && is_full(pool, node, policy)).count();
            if full > 0 {
                plan.why += &format!("; on {full} pools have all that place.pools_disk lets them");
            }
            return Ok(());
        };
        let number = choice.view.number(&chosen.node);
        if let Some(at) = choice.numbers.iter().position(|at| *at == number) {
            all[at].free = all[at].free.saturating_sub(pool.kind.size);
            all[at].pooled = all[at].pooled.saturating_add(pool.kind.size);
            *all[at].building.entry(pool.name).or_default() += 1;
            shares[at].building += 1;
        }
        nodes.left -= 1;
        plan.build.push(chosen.node);
    }
    Ok(())
}

/// Decides among the nodes that have the fewest of a pool; if none of them can, among those that have one more, and so
/// on: a node that is lost takes no more with it than it must.
fn fewest_first(
    pool: &PoolView<'_>,
    (choice, nodes, shares): (&mut Choice, &[NodeView<'_>], &[Share]),
    request: &PlaceRequest,
    policy: &Policy,
) -> Result<Decision> {
    let Choice { view, numbers } = choice;
    let all = nodes.iter().zip(shares.iter().map(|share| share.ready + share.building));
    let heard = || all.clone().zip(&*numbers).filter(|((node, _), _)| !node.away);
    let counts: BTreeSet<u32> = heard().map(|((_, on), _)| on).collect();
    let mut last = None;
    for most in counts {
        let shut = |node, on| is_shut(pool, node, on) || is_full(pool, node, policy);
        let barred = heard().filter(|((node, on), _)| *on > most || shut(node, *on));
        let decision = place_but(view, request, policy, barred.filter_map(|(_, number)| *number))?;
        if decision.chosen.is_some() {
            return Ok(decision);
        }
        last = Some(decision);
    }
    last.map_or_else(|| place_but(view, request, policy, []), Ok)
}

/// Whether a pool, of which a node has so many, is not to be built for there, whatever room there is.
fn is_shut(pool: &PoolView<'_>, node: &NodeView<'_>, on: u32) -> bool {
    node.shunned.contains(&pool.name) || pool.set.per_node.is_some_and(|most| on >= most)
}

/// Whether pools have as much of its disk as they may.
fn is_full(pool: &PoolView<'_>, node: &NodeView<'_>, policy: &Policy) -> bool {
    node.pooled.saturating_add(pool.kind.size) > most_of(node.size, policy)
}

/// Has up to so many ready volumes removed, first where there are the most, of those that are to go by their node and by
/// whether they are of the pool's kind.
fn discard(
    plan: &mut Plan,
    nodes: &Nodes<'_>,
    pool: &PoolView<'_>,
    most: u32,
    goes: impl Fn(&NodeView<'_>, bool) -> bool,
) {
    if most == 0 {
        return;
    }
    let going = nodes.of(pool).filter(|(n, volume)| {
        let node = &nodes.all[*n];
        !node.away && goes(node, volume.kind == *pool.kind)
    });
    let mut ids: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for (n, volume) in going {
        ids.entry(n).or_default().push(&volume.id);
    }
    let full = ids.into_iter().map(|(n, ids)| (ids.len(), nodes.all[n].name, ids));
    let mut left: BinaryHeap<(usize, &str, Vec<&str>)> = full.collect();
    for _ in 0..most {
        let Some((n, node, mut ids)) = left.pop() else { return };
        plan.discard.extend(ids.pop().map(|id| (node.to_owned(), id.to_owned())));
        left.extend((n > 1).then_some((n - 1, node, ids)));
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
        let mut all = Nodes::new(nodes.to_vec(), 100);
        let made = super::plan(pool, &mut all, &policy);
        nodes.clone_from_slice(&all.all);
        made
    }

    fn kind(size: u64) -> VolumeKind {
        VolumeKind { size, sector: None, image: None, layout: None }
    }

    fn set(low: u32, target: u32) -> SetPool {
        SetPool { size: Some(10), low, target, ..SetPool::default() }
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
    fn builds_begin_within_the_bandwidth_that_those_under_way_leave() {
        let image = Some(image::Digest::of_chunk(b"image"));
        let kind = VolumeKind { image, ..kind(10) };
        let set = SetPool { build_rate: Some(800), ..set(20, 20) };
        let pool = PoolView { name: "p", set: &set, kind: &kind, filling: false };
        let mut nodes = [node("a", 500, &[]), node("b", 500, &[])];
        let made = plan(&pool, &mut nodes);
        assert_eq!((made.build.len(), made.rate, made.throttled), (8, Some(100), true), "{made:?}");
        // Told once: now they have it all.
        for node in &mut nodes {
            node.fetching.insert("p", 400);
        }
        let none = plan(&pool, &mut nodes);
        assert!(none.build.is_empty() && none.throttled && none.building == 8, "{none:?}");
        nodes[0].fetching.insert("p", 100);
        let more = plan(&pool, &mut nodes);
        assert_eq!((more.build.len(), more.rate), (3, Some(100)), "{more:?}");
        // What is blank fetches nothing.
        let blank = VolumeKind { image: None, ..kind.clone() };
        let made = plan(&PoolView { kind: &blank, ..pool }, &mut [node("a", 500, &[])]);
        assert_eq!((made.build.len(), made.rate, made.throttled), (20, None, false));
    }

    #[test]
    fn pools_have_no_more_of_a_node_than_they_may_together() {
        let (set, kind) = (set(9, 9), kind(10));
        let pool = PoolView { name: "p", set: &set, kind: &kind, filling: false };
        let policy = Policy { head_room: HeadRoom::NONE, pools_disk: 100, ..Policy::default() };
        let nodes = [
            NodeView { pooled: 75, ..node("a", 900, &[]) },
            NodeView { pooled: 91, ..node("b", 900, &[]) },
            NodeView { pooled: 0, size: 50, ..node("c", 40, &[]) },
        ];
        let made = super::plan(&pool, &mut Nodes::new(nodes.to_vec(), 100), &policy);
        assert_eq!(made.build, ["a", "a"], "{made:?}");
        assert!(made.why.contains("can build 7 more"), "{}", made.why);
        assert!(made.why.contains("on 3 pools have all that"), "{}", made.why);
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
