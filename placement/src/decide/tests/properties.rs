//! Whatever the fleet and whatever is asked: fleets and requests follow from a seed, and are judged by a model that
//! reads each node's facts, one by one, as the documentation of the fields says.

use std::collections::{BTreeMap, BTreeSet};

use api::fleet::{Hypervisor, Instance, Licence, NODE_LEVEL, Strengths};
use api::place::{Behaviour, HypervisorNeed};
use image::Digest;
use proptest::prelude::*;

use super::*;

/// Numbers that follow from a seed (SplitMix64: Steele, Lea, Flood, 2014).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        draw(self.0, 0) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len() as u64) as usize]
    }

    fn some(&mut self, of: &[&str]) -> BTreeSet<String> {
        of.iter().filter(|_| self.one_in(2)).map(|name| (*name).to_owned()).collect()
    }

    fn maybe(&mut self, of: &[&str]) -> Option<String> {
        self.one_in(2).then(|| self.pick(of).to_owned())
    }

    fn resources(&mut self, most: u64) -> Resources {
        Resources::of([0; 4].map(|_: u64| self.below(most + 1)))
    }
}

const LEVELS: [&str; 2] = ["site", "rack"];
const FEATURES: [&str; 2] = ["uefi", "tpm"];
const TENANTS: [&str; 2] = ["acme", "other"];
const GROUPS: [&str; 2] = ["g", "h"];

fn node(dice: &mut Dice, name: String) -> NodeFacts {
    let hypervisor = |dice: &mut Dice| Hypervisor {
        kind: dice.pick(&["qemu", "xen"]).to_owned(),
        version: dice.pick(&["8", "9.1"]).to_owned(),
        features: dice.some(&FEATURES),
        strengths: Strengths { cpu: dice.below(5) as f64 / 4.0, ..Strengths::default() },
    };
    NodeFacts {
        name,
        capacity: Resources::of([0; 4].map(|_: u64| 4 + dice.below(12))),
        reserved: dice.resources(2),
        architecture: dice.maybe(&["x86_64", "aarch64"]),
        hypervisors: (0..1 + dice.below(3)).map(|_| hypervisor(dice)).collect(),
        licences: dice
            .some(&["w", "v"])
            .into_iter()
            .map(|name| {
                (
                    name,
                    Licence {
                        held: dice.one_in(2).then(|| dice.below(3)),
                        cost: dice.below(3) as f64,
                    },
                )
            })
            .collect(),
        labels: dice
            .some(&["x", "y"])
            .into_iter()
            .map(|key| (key, dice.pick(&["0", "1"]).to_owned()))
            .collect(),
        functions: dice.some(&["web", "db"]),
        tenants: if dice.one_in(6) { dice.some(&TENANTS) } else { BTreeSet::new() },
        risk_most: 1 + dice.below(3) as u8,
        domain: dice.pick(&["", "s", "s/1", "s/2", "t/1"]).to_owned(),
        cordoned: dice.one_in(12),
        draining: dice.one_in(12),
        load: dice.below(10) as f64 / 10.0,
        images: dice
            .some(&["i", "j"])
            .into_iter()
            .map(|name| (digest(&name), dice.below(9)))
            .collect(),
        pools: dice.some(&["p", "q"]).into_iter().map(|name| (name, 1 + dice.below(2))).collect(),
    }
}

fn digest(name: &str) -> Digest {
    Digest::of_chunk(name.as_bytes())
}

fn among(dice: &mut Dice) -> Among {
    let of = match dice.one_in(3) {
        true => Of::Pool(dice.pick(&["p", "q"]).to_owned()),
        false => Of::Group(dice.pick(&GROUPS).to_owned()),
    };
    Among { of, level: dice.pick(&["site", "rack", NODE_LEVEL]).to_owned() }
}

fn wanted(dice: &mut Dice, id: String) -> PlaceRequest {
    let mut request = PlaceRequest::new(id, dice.resources(4));
    if dice.one_in(3) {
        request.hypervisor = Some(HypervisorNeed {
            kinds: if dice.one_in(2) { dice.some(&["qemu", "xen"]) } else { BTreeSet::new() },
            at_least: dice.maybe(&["9"]),
            features: if dice.one_in(2) { dice.some(&FEATURES) } else { BTreeSet::new() },
        });
        request.behaviour = Behaviour { cpu: dice.below(3) as f64 / 2.0, ..Behaviour::default() };
    }
    // Each rule now and then: together they would leave no node.
    match dice.below(9) {
        0 => request.architecture = Some("x86_64".to_owned()),
        1 => request.function = Some("web".to_owned()),
        2 => drop(request.labels.insert("x".to_owned(), "1".to_owned())),
        3 => request.licences = dice.some(&["w", "v"]),
        4 => request.apart.push(among(dice)),
        5 => request.together.push(among(dice)),
        6 => drop(request.not_on.insert("n0".to_owned())),
        7 => request.alone = true,
        _ => {}
    }
    request.tenant = dice.maybe(&TENANTS);
    request.risk = dice.below(3) as u8;
    request.beside_risk = if dice.one_in(4) { dice.below(3) as u8 } else { u8::MAX };
    request.group = dice.maybe(&GROUPS);
    request.spread = dice.one_in(2).then(|| among(dice));
    if dice.one_in(2) {
        (request.image, request.image_bytes) =
            (Some(digest(dice.pick(&["i", "j"]))), 1 + dice.below(9));
    }
    request.pool = dice.maybe(&["p", "q"]);
    request.builds = if dice.one_in(4) { dice.maybe(&["p", "q"]) } else { None };
    request.near = dice.maybe(&["s", "s/1", "t/9"]).into_iter().collect();
    request
}

fn fleet(dice: &mut Dice) -> Fleet {
    let nodes = (0..1 + dice.below(8)).map(|n| node(dice, format!("n{n}"))).collect();
    Fleet { levels: LEVELS.map(str::to_owned).to_vec(), nodes, instances: Vec::new() }
}

fn rules(dice: &mut Dice) -> Policy {
    let mut policy = Policy { load_most: 0.8, ..policy() };
    policy.head_room.memory = 100 * dice.below(4) as u16;
    policy.weights.spread = dice.below(4) as f64;
    policy
}

/// A view to which much has happened: nodes came, said other things and left; instances came and left.
fn lived(dice: &mut Dice, policy: &Policy) -> View {
    let mut view = View::of(fleet(dice)).unwrap();
    for step in 0..40 {
        let name = format!("n{}", dice.below(10));
        match dice.below(12) {
            0 => view.remove_node(&name),
            1 => {
                let facts = node(dice, name);
                view.set_node(facts).unwrap();
            }
            2 => view.release(&format!("i{}", dice.below(step + 1))),
            _ => {
                let request = wanted(dice, format!("i{step}"));
                place(&mut view, &request, policy).unwrap();
            }
        }
    }
    view
}

/// The same, told anew, in another order.
fn told_anew(view: &View) -> View {
    let mut nodes: Vec<NodeFacts> = view.slots().map(|(at, _)| view.facts(at).clone()).collect();
    nodes.sort_by(|a, b| b.name.cmp(&a.name));
    let mut instances: Vec<Instance> = view.instances().cloned().collect();
    instances.reverse();
    View::of(Fleet { levels: view.levels().to_vec(), nodes, instances }).unwrap()
}

/// Whether a node can be chosen, by what the fields mean.
fn fits(view: &View, request: &PlaceRequest, policy: &Policy, node: &NodeFacts) -> bool {
    let there: Vec<&Instance> = view.instances().filter(|i| i.node == node.name).collect();
    let guests: Vec<&Instance> = there.iter().copied().filter(|i| !i.builds).collect();
    let mut taken = node.reserved.all();
    for instance in &there {
        taken.iter_mut().zip(instance.takes.all()).for_each(|(sum, takes)| *sum += takes);
    }
    let room = (0..4).all(|n| {
        let stays = node.capacity.all()[n] as f64 * f64::from(policy.head_room.all()[n]) / 1000.0;
        let needs = request.needs.all()[n];
        needs == 0 || (needs + taken[n]) as f64 + stays.ceil() <= node.capacity.all()[n] as f64
    });
    let hypervisor = |need: &HypervisorNeed| {
        node.hypervisors.iter().any(|has| {
            (need.kinds.is_empty() || need.kinds.contains(&has.kind))
                && (need.at_least.is_none() || has.version == "9.1")
                && need.features.iter().all(|feature| has.features.contains(feature))
        })
    };
    let licence = |name: &String| {
        let taken = there.iter().filter(|i| i.licences.contains(name)).count() as u64;
        node.licences.get(name).is_some_and(|has| has.held.is_none_or(|held| taken < held))
    };
    let count = |among: &Among, at: Option<&NodeFacts>| -> u64 {
        let near = |other: &NodeFacts| at.is_none_or(|node| same_domain(node, other, &among.level));
        match &among.of {
            Of::Group(name) => {
                let of = |i: &&Instance| {
                    i.group.as_ref() == Some(name) && near(view.node(&i.node).unwrap())
                };
                view.instances().filter(of).count() as u64
            }
            Of::Pool(name) => {
                let nodes = view.slots().map(|(at, _)| view.facts(at)).filter(|other| near(other));
                nodes.filter_map(|other| other.pools.get(name)).sum()
            }
        }
    };
    let alone = request.alone || guests.iter().any(|i| i.alone);
    let mine = |i: &&Instance| request.tenant.is_some() && i.tenant == request.tenant;
    let guest = request.builds.is_none();
    room && !node.cordoned
        && !node.draining
        && node.load <= policy.load_most
        && !request.not_on.contains(&node.name)
        && (request.architecture.is_none() || request.architecture == node.architecture)
        && request.function.as_ref().is_none_or(|of| node.functions.contains(of))
        && request.labels.iter().all(|(key, value)| node.labels.get(key) == Some(value))
        && request.hypervisor.as_ref().is_none_or(hypervisor)
        && request.licences.iter().all(licence)
        && (node.tenants.is_empty()
            || request.tenant.as_ref().is_some_and(|of| node.tenants.contains(of)))
        && !(guest && alone && !guests.iter().all(mine))
        && request.risk <= node.risk_most
        && !(guest
            && guests.iter().any(|i| i.risk > request.beside_risk || request.risk > i.beside_risk))
        && request.together.iter().all(|of| count(of, None) == 0 || count(of, Some(node)) > 0)
        && request.apart.iter().all(|of| count(of, Some(node)) == 0)
}

fn same_domain(a: &NodeFacts, b: &NodeFacts, level: &str) -> bool {
    let depth = LEVELS.iter().position(|of| *of == level);
    let part = |node: &NodeFacts, n| node.domain.split('/').nth(n).unwrap_or("").to_owned();
    match depth {
        None => a.name == b.name,
        Some(depth) => (0..=depth).all(|n| part(a, n) == part(b, n)),
    }
}

proptest! {
    #[test]
    fn nodes_can_be_chosen_as_a_simple_model_says_and_the_sums_add_up(seed: u64) {
        let dice = &mut Dice(seed);
        let policy = rules(dice);
        let view = lived(dice, &policy);
        let request = wanted(dice, "x".to_owned());
        let Explanation { decision, scored, misses } = explain(&view, &request, &policy).unwrap();
        prop_assert_eq!(&decision, &decide(&view, &request, &policy).unwrap());
        let mut judged = BTreeMap::new();
        for of in &scored {
            judged.insert(of.node.clone(), true);
            let sum = of.points.iter().fold(0.0, |sum, points| sum + points.points);
            prop_assert_eq!(sum, of.score);
            for points in &of.points {
                prop_assert_eq!(points.value * points.weight, points.points);
                prop_assert!((0.0..=1.0).contains(&points.value), "{:?}", points);
            }
        }
        for miss in &misses {
            judged.insert(miss.node.clone(), false);
            let sum = miss.reasons.iter().fold(0.0, |sum, reason| sum + reason.lack);
            prop_assert_eq!(sum, miss.lack);
            prop_assert!(miss.reasons.iter().all(|of| of.lack > 0.0 && of.lack <= 1.0) && sum > 0.0);
        }
        prop_assert_eq!(scored.len() + misses.len(), view.nodes());
        for (at, _) in view.slots() {
            let node = view.facts(at);
            prop_assert_eq!(judged[&node.name], fits(&view, &request, &policy, node), "{}", node.name);
        }
        let best = scored.iter().map(|of| of.score).fold(f64::MIN, f64::max);
        let least = misses.iter().map(|miss| miss.lack).fold(f64::MAX, f64::min);
        match (&decision.chosen, &decision.nearest) {
            (Some(chosen), None) => {
                prop_assert_eq!((&chosen.node, chosen.score), (&scored[0].node, best));
                prop_assert!(!decision.impossible);
            }
            (None, Some(nearest)) => {
                prop_assert!(scored.is_empty() && nearest == &misses[0] && nearest.lack == least);
                let lasts = |miss: &Miss| miss.reasons.iter().any(|reason| reason.lasting);
                prop_assert_eq!(decision.impossible, misses.iter().all(lasts));
            }
            (None, None) => prop_assert_eq!(view.nodes(), 0),
            both => prop_assert!(false, "{:?}", both),
        }
    }

    #[test]
    fn nothing_is_ever_given_twice(seed: u64) {
        let dice = &mut Dice(seed);
        let policy = rules(dice);
        let mut view = View::of(fleet(dice)).unwrap();
        for step in 0..60 {
            match dice.one_in(5) {
                true => view.release(&format!("i{}", dice.below(step + 1))),
                false => {
                    let request = wanted(dice, format!("i{step}"));
                    place(&mut view, &request, &policy).unwrap();
                }
            }
        }
        for (at, _) in view.slots() {
            let node = view.facts(at);
            let there: Vec<&Instance> = view.instances().filter(|i| i.node == node.name).collect();
            for n in 0..4 {
                let placed: u64 = there.iter().map(|i| i.takes.all()[n]).sum();
                let room = node.capacity.all()[n].saturating_sub(node.reserved.all()[n]);
                prop_assert!(placed <= room, "{} of {} on {}", placed, room, node.name);
            }
            for (name, licence) in &node.licences {
                let taken = there.iter().filter(|i| i.licences.contains(name)).count() as u64;
                prop_assert!(licence.held.is_none_or(|held| taken <= held));
            }
            for one in &there {
                let bears = |other: &&Instance| other.risk <= one.beside_risk
                    && (!one.alone || other.tenant.is_some() && other.tenant == one.tenant);
                let others = there.iter().copied().filter(|other| other.id != one.id && !other.builds);
                prop_assert!(one.builds || others.into_iter().all(|other| bears(&other)));
            }
        }
    }

    #[test]
    fn what_was_learnt_in_which_order_does_not_matter(seed: u64) {
        let dice = &mut Dice(seed);
        let policy = rules(dice);
        let view = lived(dice, &policy);
        let anew = told_anew(&view);
        for n in 0..8 {
            let request = wanted(dice, format!("x{n}"));
            let told = explain(&view, &request, &policy).unwrap();
            prop_assert_eq!(told, explain(&anew, &request, &policy).unwrap());
        }
    }

    #[test]
    fn a_loser_that_leaves_changes_no_winner(seed: u64) {
        let dice = &mut Dice(seed);
        let policy = rules(dice);
        let mut view = lived(dice, &policy);
        let found = |n| {
            let request = wanted(dice, format!("x{n}"));
            let chosen = decide(&view, &request, &policy).unwrap().chosen;
            Some((request, chosen?))
        };
        let Some((request, before)) = (0..20).find_map(found) else { return Ok(()) };
        let names: Vec<String> = view.slots().map(|(at, _)| view.facts(at).name.clone()).collect();
        for name in names.into_iter().filter(|name| *name != before.node) {
            let mut facts = view.node(&name).unwrap().clone();
            // Those from whom to be apart would leave with it.
            match facts.pools.is_empty() && !view.instances().any(|i| i.node == name) {
                true => view.remove_node(&name),
                false => {
                    facts.cordoned = true;
                    view.set_node(facts).unwrap();
                }
            }
            let now = decide(&view, &request, &policy).unwrap().chosen;
            prop_assert_eq!(now.as_ref(), Some(&before));
        }
    }
}
