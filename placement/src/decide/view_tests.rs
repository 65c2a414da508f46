use api::fleet::Licence;

use super::*;

const GIB: u64 = 1 << 30;

fn node(name: &str, memory: u64) -> NodeFacts {
    let capacity = Resources { cpu_milli: 8000, memory, disk: 100 * GIB, network: 0 };
    NodeFacts { name: name.to_owned(), capacity, ..NodeFacts::default() }
}

fn view(nodes: &[&str]) -> View {
    let mut view = View::new(vec!["site".to_owned(), "rack".to_owned()]).unwrap();
    nodes.iter().for_each(|name| view.set_node(node(name, 16 * GIB)).unwrap());
    view
}

fn wants(id: &str, memory: u64) -> PlaceRequest {
    PlaceRequest::new(id, Resources { memory, ..Resources::default() })
}

#[test]
fn what_is_placed_is_counted_until_it_is_released() {
    let mut view = view(&["a"]);
    view.reserve(&wants("x", 10 * GIB), "a").unwrap();
    assert_eq!(view.taken("a").unwrap().memory, 10 * GIB);
    // Twice, or where there is no room, or no node.
    let refused = |view: &mut View, id, memory, node| {
        view.reserve(&wants(id, memory), node).unwrap_err().kind()
    };
    assert_eq!(refused(&mut view, "x", 1, "a"), Kind::Conflict);
    assert_eq!(refused(&mut view, "y", 7 * GIB, "a"), Kind::Full);
    assert_eq!(refused(&mut view, "y", 1, "b"), Kind::Gone);
    assert_eq!(view.taken("a").unwrap().memory, 10 * GIB);
    // A report does not forget what is placed.
    let mut report = node("a", 16 * GIB);
    report.reserved.memory = GIB;
    view.set_node(report).unwrap();
    assert_eq!(view.taken("a").unwrap().memory, 11 * GIB);
    view.release("x");
    view.release("x");
    assert_eq!(view.taken("a").unwrap().memory, GIB);
}

#[test]
fn a_licence_is_taken_once() {
    let mut view = view(&["a"]);
    let mut report = node("a", 16 * GIB);
    report.licences.insert("w".to_owned(), Licence { held: Some(1), cost: 0.0 });
    view.set_node(report).unwrap();
    let wants = |id: &str| PlaceRequest { licences: ["w".to_owned()].into(), ..wants(id, 1) };
    view.reserve(&wants("x"), "a").unwrap();
    assert_eq!(view.reserve(&wants("y"), "a").unwrap_err().kind(), Kind::Full);
    view.release("x");
    view.reserve(&wants("y"), "a").unwrap();
}

#[test]
fn a_node_that_is_gone_leaves_nothing_behind() {
    let mut view = view(&["a", "b"]);
    let mut told = node("a", 16 * GIB);
    told.domain = "ams/1".to_owned();
    told.functions.insert("web".to_owned());
    told.images.insert(Digest::of_chunk(b"i"), 5);
    view.set_node(told).unwrap();
    view.reserve(&PlaceRequest { group: Some("g".to_owned()), ..wants("x", GIB) }, "a").unwrap();
    view.remove_node("a");
    view.remove_node("a");
    assert_eq!((view.nodes(), view.instances().count()), (1, 0));
    assert!(view.node("a").is_none() && view.taken("a").is_none());
    // Another takes its number, and nothing of what it had.
    view.set_node(node("c", GIB)).unwrap();
    let known = &view.known;
    assert_eq!(known.groups.all().count() + known.functions.all().count(), 0);
    assert_eq!(known.images.all().count(), 0);
    assert_eq!(known.domains.of("ams").count(), 0);
    assert_eq!(
        known.domains.of("").count(),
        2,
        "nodes that do not say where they are stand together"
    );
}

#[test]
fn what_is_refused_changes_nothing() {
    let mut view = view(&["a"]);
    view.reserve(&wants("x", GIB), "a").unwrap();
    let before = format!("{view:?}");
    let mut deep = node("a", GIB);
    deep.domain = "ams/1/2".to_owned();
    let mut endless = node("a", GIB);
    endless.reserved.memory = u64::MAX;
    for wrong in [deep, endless, node("", GIB)] {
        assert_eq!(view.set_node(wrong).unwrap_err().kind(), Kind::Invalid);
    }
    let mut instance = view.instances().next().unwrap().clone();
    instance.id = "y".to_owned();
    instance.takes.memory = u64::MAX;
    assert_eq!(view.add(instance).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(format!("{view:?}"), before);
}

#[test]
fn a_fleet_that_contradicts_itself_is_refused() {
    let fleet = |nodes: &[&str], instances: &[(&str, &str)]| {
        let nodes = nodes.iter().map(|name| node(name, GIB)).collect();
        let instances = instances.iter().map(|(id, node)| Instance {
            id: (*id).to_owned(),
            node: (*node).to_owned(),
            takes: Resources::default(),
            tenant: None,
            alone: false,
            risk: 0,
            beside_risk: u8::MAX,
            group: None,
            licences: BTreeSet::new(),
            builds: false,
        });
        View::of(Fleet { levels: Vec::new(), nodes, instances: instances.collect() })
    };
    fleet(&["a"], &[("x", "a")]).unwrap();
    for (nodes, instances, says) in [
        (&["a", "a"][..], &[][..], "node a is there twice"),
        (&["a"], &[("x", "b")], "instance x is on node b, which is not known"),
        (&["a"], &[("x", "a"), ("x", "a")], "instance x is placed already"),
    ] {
        let error = fleet(nodes, instances).unwrap_err();
        assert!(error.message().contains(says), "{error}");
    }
}
