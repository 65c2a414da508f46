mod properties;

use api::fleet::{Fleet, NodeFacts, Resources};
use api::place::{Among, Decision, Explanation, HeadRoom, Of, PlaceRequest, Policy, Rule, Term};
use serde_json::{Value, json};

use super::*;

const GIB: u64 = 1 << 30;

/// A policy without head-room.
fn policy() -> Policy {
    Policy { head_room: HeadRoom::NONE, ..Policy::default() }
}

fn view(fleet: Value) -> View {
    View::of(serde_json::from_value::<Fleet>(fleet).unwrap()).unwrap()
}

/// Three nodes alike, in two racks; what `told` says of the first is added.
fn three(told: Value) -> View {
    let node = |name: &str, domain: &str| {
        json!({
            "name": name, "domain": domain, "architecture": "x86_64",
            "capacity": {"cpu-milli": 8000, "memory": 32 * GIB, "disk": 500 * GIB, "network": 1_000_000},
            "hypervisors": [{"kind": "qemu", "version": "9.1"}],
        })
    };
    let mut first = node("a", "ams/1");
    for (key, value) in told.as_object().unwrap() {
        first[key] = value.clone();
    }
    view(json!({
        "levels": ["site", "rack"],
        "nodes": [first, node("b", "ams/1"), node("c", "ams/2")],
    }))
}

fn request(fields: Value) -> PlaceRequest {
    let mut all = json!({"id": "x"});
    for (key, value) in fields.as_object().unwrap() {
        all[key] = value.clone();
    }
    serde_json::from_value(all).unwrap()
}

fn chosen(decision: &Decision) -> &str {
    decision.chosen.as_ref().map_or("", |chosen| &chosen.node)
}

/// Why `a` cannot be chosen.
fn why(view: &View, fields: Value) -> Vec<(Rule, String)> {
    let explanation = explain(view, &request(fields), &policy()).unwrap();
    let miss = explanation.misses.into_iter().find(|miss| miss.node == "a");
    let reasons = miss.map(|miss| miss.reasons).unwrap_or_default();
    reasons.into_iter().map(|reason| (reason.rule, reason.why)).collect()
}

#[test]
fn each_rule_rules_out_what_it_names_and_nothing_else() {
    for (told, asked, rule, says) in [
        (json!({"cordoned": true}), json!({}), Rule::Cordoned, "cordoned"),
        (json!({"draining": true}), json!({}), Rule::Draining, "draining"),
        (json!({"load": 0.95}), json!({}), Rule::Load, "load 0.95: nothing new above 0.90"),
        (json!({}), json!({"not-on": ["a"]}), Rule::NotOn, "excludes"),
        (
            json!({"reserved": {"cpu-milli": 7000}}),
            json!({"needs": {"cpu-milli": 1001}}),
            Rule::Cpu,
            "CPUs: 1.001 needed, 1 free",
        ),
        (
            json!({"reserved": {"memory": 31 * GIB}}),
            json!({"needs": {"memory": 2 * GIB}}),
            Rule::Memory,
            "memory: 2 GiB needed, 1 GiB free",
        ),
        (
            json!({"capacity": {"disk": GIB}}),
            json!({"needs": {"disk": 2 * GIB}}),
            Rule::Disk,
            "disk: 2 GiB needed, 1 GiB at most",
        ),
        (
            json!({"reserved": {"network": 1_000_000}}),
            json!({"needs": {"network": 1000}}),
            Rule::Network,
            "network: 1 kbit/s needed, 0 bit/s free",
        ),
        (
            json!({"architecture": "aarch64"}),
            json!({"architecture": "x86_64"}),
            Rule::Architecture,
            "architecture aarch64, not x86_64",
        ),
        (
            json!({"hypervisors": []}),
            json!({"hypervisor": {}}),
            Rule::Hypervisor,
            "no hypervisor that fits the guest: it has none",
        ),
        (
            json!({"hypervisors": [{"kind": "qemu", "version": "8.2"}]}),
            json!({"hypervisor": {"at-least": "9"}}),
            Rule::Hypervisor,
            "it has qemu 8.2",
        ),
        (
            json!({"hypervisors": [{"kind": "xen"}]}),
            json!({"hypervisor": {"kinds": ["qemu", "kvm"]}}),
            Rule::Hypervisor,
            "it has xen",
        ),
        (
            json!({"tenants": ["acme"]}),
            json!({"tenant": "other"}),
            Rule::Tenant,
            "it is for acme, not other",
        ),
        (json!({"tenants": ["acme"]}), json!({}), Rule::Tenant, "it is for acme, not none"),
        (json!({"risk-most": 3}), json!({"risk": 4}), Rule::Risk, "risk class 4: it takes up to 3"),
    ] {
        let found = why(&three(told.clone()), asked.clone());
        assert_eq!(found.len(), 1, "{told} {asked}: {found:?}");
        assert_eq!(found[0].0, rule, "{told} {asked}");
        assert!(found[0].1.contains(says), "{found:?}");
        // The others differ from it in what is told alone.
        let decision = decide(&three(told), &request(asked), &policy()).unwrap();
        assert_eq!((decision.fit, decision.nodes, decision.impossible), (2, 3, false));
    }
}

#[test]
fn what_few_nodes_have_is_found_there_alone() {
    for (told, asked) in [
        (json!({"functions": ["web", "db"]}), json!({"function": "web"})),
        (json!({"labels": {"disk": "nvme"}}), json!({"labels": {"disk": "nvme"}})),
        (json!({"licences": {"w": {"held": 1}}}), json!({"licences": ["w"]})),
        (
            json!({"hypervisors": [{"kind": "qemu", "version": "9.2", "features": ["uefi", "tpm"]}]}),
            json!({"hypervisor": {"features": ["tpm"]}}),
        ),
    ] {
        let decision = decide(&three(told), &request(asked.clone()), &policy()).unwrap();
        assert_eq!((decision.fit, chosen(&decision)), (1, "a"), "{asked}");
        let nobody = decide(&three(json!({})), &request(asked), &policy()).unwrap();
        assert!(nobody.impossible && nobody.nearest.is_some());
    }
}

/// Places an instance on `a` and says why another cannot be there.
fn beside(first: Value, second: Value) -> Vec<Rule> {
    let mut view = three(json!({}));
    view.reserve(&PlaceRequest { id: "first".to_owned(), ..request(first) }, "a").unwrap();
    why(&view, second).into_iter().map(|(rule, _)| rule).collect()
}

#[test]
fn neighbours_bear_each_other_or_are_not_neighbours() {
    let (acme, other) = (json!({"tenant": "acme", "alone": true}), json!({"tenant": "other"}));
    assert_eq!(beside(acme.clone(), other.clone()), [Rule::Alone]);
    assert_eq!(beside(other.clone(), acme.clone()), [Rule::Alone]);
    assert_eq!(beside(acme.clone(), json!({})), [Rule::Alone]);
    assert_eq!(beside(acme.clone(), acme.clone()), []);
    assert_eq!(beside(acme, json!({"builds": "p"})), [], "a volume is nobody's neighbour");
    let (wary, risky) = (json!({"beside-risk": 3}), json!({"risk": 4}));
    assert_eq!(beside(wary.clone(), risky.clone()), [Rule::BesideRisk]);
    assert_eq!(beside(risky.clone(), wary.clone()), [Rule::BesideRisk]);
    assert_eq!(beside(risky.clone(), risky), []);
    assert_eq!(beside(wary.clone(), wary), []);
}

#[test]
fn what_shall_be_apart_or_together_is() {
    let among = |level: &str| json!([{"of": {"group": "g"}, "level": level}]);
    let member = json!({"group": "g"});
    for (asked, fit) in [
        (json!({"apart": among("node")}), &["b", "c"][..]),
        (json!({"apart": among("rack")}), &["c"]),
        (json!({"apart": among("site")}), &[]),
        (json!({"together": among("node")}), &["a"]),
        (json!({"together": among("rack")}), &["a", "b"]),
        (json!({"together": among("site")}), &["a", "b", "c"]),
        (json!({"together": [{"of": {"group": "nobody"}}]}), &["a", "b", "c"]),
    ] {
        let mut view = three(json!({}));
        view.reserve(&PlaceRequest { id: "first".to_owned(), ..request(member.clone()) }, "a")
            .unwrap();
        let explanation = explain(&view, &request(asked.clone()), &policy()).unwrap();
        let mut found: Vec<_> = explanation.scored.iter().map(|scored| &scored.node).collect();
        found.sort();
        assert_eq!(found, fit, "{asked}");
        assert!(!explanation.decision.impossible, "it is for who is there");
    }
    let error = decide(&three(json!({})), &request(json!({"apart": among("row")})), &policy());
    assert!(error.unwrap_err().message().contains("choose `site`, `rack`, or `node`"));
    let error = decide(&three(json!({})), &request(json!({"near": ["ams/1/2"]})), &policy());
    assert!(error.unwrap_err().message().contains("deeper than the fleet's levels `site/rack`"));
}

#[test]
fn each_term_draws_to_where_it_is_better() {
    let image = image::Digest::of_chunk(b"i");
    let strong = |cpu: f64| json!([{"kind": "qemu", "version": "9.1", "strengths": {"cpu": cpu}}]);
    for (told, asked, term, value) in [
        (
            json!({"reserved": {"memory": 8 * GIB}}),
            json!({"needs": {"memory": 8 * GIB}}),
            Term::Fit,
            0.75,
        ),
        (
            json!({"images": {image.to_string(): 25}}),
            json!({"image": image, "image-bytes": 100}),
            Term::Image,
            0.4375,
        ),
        (json!({"pools": {"p": 2}}), json!({"pool": "p"}), Term::Pool, 1.0),
        (
            json!({"domain": "fra/9"}),
            json!({"near": ["fra/1", "fra/9", "nowhere"]}),
            Term::Near,
            1.0,
        ),
        (json!({"domain": "fra/9"}), json!({"near": ["fra/1"]}), Term::Near, 0.5),
        (
            json!({"hypervisors": strong(0.75)}),
            json!({"hypervisor": {}, "behaviour": {"cpu": 0.5}}),
            Term::Behaviour,
            0.75,
        ),
    ] {
        let explanation = explain(&three(told), &request(asked.clone()), &policy()).unwrap();
        assert_eq!(chosen(&explanation.decision), "a", "{asked}");
        let points = explanation.scored[0].points.iter().find(|points| points.term == term);
        assert_eq!(points.map(|points| points.value), Some(value), "{term:?}");
    }
}

#[test]
fn load_cost_and_crowds_drive_away() {
    let licences = json!({"w": {"cost": 1}});
    for (told, asked) in [
        (json!({"load": 0.4}), json!({})),
        (json!({"pools": {"p": 1}}), json!({"spread": {"of": {"pool": "p"}, "level": "node"}})),
    ] {
        let decision = decide(&three(told), &request(asked.clone()), &policy()).unwrap();
        assert!(decision.fit == 3 && chosen(&decision) != "a", "{asked}");
    }
    let mut view = three(json!({"licences": licences}));
    let free = NodeFacts { name: "c".to_owned(), ..view.node("a").unwrap().clone() };
    let mut free = NodeFacts { domain: "ams/2".to_owned(), ..free };
    free.licences.get_mut("w").unwrap().cost = 0.0;
    view.set_node(free).unwrap();
    let decision = decide(&view, &request(json!({"licences": ["w"]})), &policy()).unwrap();
    assert_eq!((decision.fit, chosen(&decision)), (2, "c"));
}

#[test]
fn of_several_hypervisors_the_strongest_that_fits_is_taken() {
    let view = three(json!({"hypervisors": [
        {"kind": "qemu", "version": "9.1", "strengths": {"disk": 0.9, "cpu": 0.5}},
        {"kind": "firecracker", "version": "1.9", "strengths": {"disk": 0.5, "cpu": 0.9}},
    ]}));
    for (behaviour, expected) in
        [(json!({"disk": 1}), "qemu 9.1"), (json!({"cpu": 1}), "firecracker 1.9")]
    {
        let asked = json!({"hypervisor": {}, "behaviour": behaviour, "not-on": ["b", "c"]});
        let decision = decide(&view, &request(asked), &policy()).unwrap();
        assert_eq!(decision.chosen.unwrap().hypervisor.as_deref(), Some(expected));
    }
}

#[test]
fn head_room_stays_free() {
    let view = three(json!({}));
    let head_room = HeadRoom { memory: 250, ..HeadRoom::NONE };
    let policy = Policy { head_room, ..policy() };
    let asks = |memory: u64| request(json!({"needs": {"memory": memory}}));
    assert_eq!(decide(&view, &asks(24 * GIB), &policy).unwrap().fit, 3);
    let more = decide(&view, &asks(24 * GIB + 1), &policy).unwrap();
    assert!(more.chosen.is_none() && more.impossible);
    let none = HeadRoom { memory: 1000, ..HeadRoom::NONE };
    assert_eq!(decide(&view, &asks(1), &Policy { head_room: none, ..policy }).unwrap().fit, 0);
}

#[test]
fn the_nearest_miss_lacks_least() {
    // What `a` lacks is a little of two things; `b` and `c` lack half of one.
    let view = three(json!({"capacity": {"cpu-milli": 7500, "memory": 60 * GIB}}));
    let asked = request(json!({"needs": {"cpu-milli": 8000, "memory": 64 * GIB}}));
    let decision = decide(&view, &asked, &policy()).unwrap();
    let nearest = decision.nearest.as_ref().unwrap();
    assert_eq!((nearest.node.as_str(), nearest.lack), ("a", 0.125));
    let rules: Vec<_> = nearest.reasons.iter().map(|reason| (reason.rule, reason.needs)).collect();
    assert_eq!(rules, [(Rule::Cpu, Some(8000)), (Rule::Memory, Some(64 * GIB))]);
    assert!(decision.impossible && decision.fit == 0);
    // Somebody else's reservation is no impossibility.
    let mut full = three(json!({}));
    for node in ["a", "b", "c"] {
        let all = json!({"id": node, "needs": {"memory": 32 * GIB}});
        full.reserve(&request(all), node).unwrap();
    }
    let decision = decide(&full, &request(json!({"needs": {"memory": 1}})), &policy()).unwrap();
    assert!(decision.chosen.is_none() && !decision.impossible);
    let nobody = decide(&view_without_nodes(), &asked, &policy()).unwrap();
    assert!(nobody.impossible && nobody.nearest.is_none());
}

fn view_without_nodes() -> View {
    View::new(Vec::new()).unwrap()
}

#[test]
fn volumes_of_a_pool_are_spread_over_racks_and_then_over_nodes() {
    let mut view = three(json!({}));
    let spread = json!({"of": {"pool": "p"}, "level": "rack"});
    let asked = json!({"needs": {"disk": GIB}, "builds": "p", "spread": spread});
    let decisions = place_many(&mut view, &request(asked), 4, &policy()).unwrap();
    assert_eq!(decisions.len(), 4);
    let racks: Vec<_> = decisions.iter().map(|of| if chosen(of) == "c" { 2 } else { 1 }).collect();
    assert_ne!(racks[0], racks[1]);
    assert_ne!(racks[2], racks[3]);
    let ready = |node: &str| view.node(node).unwrap().pools.get("p").copied().unwrap_or(0);
    assert_eq!((ready("a") + ready("b"), ready("c")), (2, 2));
    // As far as there is room.
    let all = json!({"id": "y", "needs": {"disk": 300 * GIB}});
    let decisions = place_many(&mut view, &request(all), 9, &policy()).unwrap();
    let found: Vec<bool> = decisions.iter().map(|of| of.chosen.is_some()).collect();
    assert_eq!(found, [true, true, true, false]);
}

#[test]
fn an_image_on_its_way_counts_as_there_and_a_claimed_volume_as_gone() {
    let mut view = three(json!({"pools": {"p": 1}}));
    let image = image::Digest::of_chunk(b"i");
    let asked = request(json!({"image": image, "image-bytes": 10, "pool": "p"}));
    assert_eq!(chosen(&place(&mut view, &asked, &policy()).unwrap()), "a");
    let facts = view.node("a").unwrap();
    assert_eq!((facts.images.get(&image), facts.pools.get("p")), (Some(&10), None));
    let next = explain(&view, &request(json!({"id": "y", "pool": "p"})), &policy()).unwrap();
    assert!(
        next.scored
            .iter()
            .all(|of| of.points.iter().all(|p| p.term != Term::Pool || p.value == 0.0))
    );
}

#[test]
fn equals_are_spread_and_always_the_same_way() {
    let view = three(json!({}));
    let where_to = |id: String| {
        chosen(&decide(&view, &request(json!({"id": id})), &policy()).unwrap()).to_owned()
    };
    let found: Vec<String> = (0..300).map(|nth| where_to(format!("vm-{nth}"))).collect();
    for node in ["a", "b", "c"] {
        let times = found.iter().filter(|of| *of == node).count();
        assert!((70..130).contains(&times), "{node}: {times} of 300");
    }
    // Another order would have replicas of two versions disagree.
    assert_eq!(found[..8].concat(), GOLDEN);
}

const GOLDEN: &str = "acbbacbc";

#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_placed() {
    let mut view = three(json!({}));
    let mut wrong = policy();
    wrong.weights.fit = f64::NAN;
    assert!(place(&mut view, &request(json!({})), &wrong).is_err());
    assert!(place(&mut view, &request(json!({"id": ""})), &policy()).is_err());
    assert_eq!(view.instances().count(), 0);
}
