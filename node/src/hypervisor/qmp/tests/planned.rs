//! What follows from the answers of a QEMU 7.2 in each phase of a pivot.

use image::Kind;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NBD: &str = include_str!("../recorded/nbd.json");
const THROTTLE: &str = include_str!("../recorded/throttle-raw-nbd.json");
const DRIVE: &str = include_str!("../recorded/drive.json");

fn at(recording: &str, phase: &str) -> View {
    let mut answers: Value = serde_json::from_str(recording).unwrap();
    let mut take = |what: &str| answers[phase][what].take();
    View::of(take("nodes"), take("graph"), take("jobs")).unwrap()
}

fn mirror(device: &str, replaces: Option<&str>) -> Step {
    Step::Mirror { device: device.to_owned(), replaces: replaces.map(str::to_owned) }
}

fn delete(node: &str) -> Step {
    Step::Delete { node: node.to_owned() }
}

#[test]
fn a_guest_on_the_export_itself_is_moved() {
    let step = |phase| next(&recorded(), &at(NBD, phase)).unwrap();
    assert_eq!(step("before"), Step::Add { direct: false });
    assert_eq!(step("added"), mirror("nbd0", None));
    assert_eq!(step("ready"), Step::Complete);
    assert_eq!(step("concluded"), Step::Dismiss { error: None });
    assert_eq!(step("dismissed"), delete("nbd0"));
    assert_eq!(step("after"), Step::Done);
}

#[test]
fn filters_stay_where_they_are_and_a_format_goes() {
    let step = |phase| next(&recorded(), &at(THROTTLE, phase)).unwrap();
    assert_eq!(step("added"), mirror("thr0", Some("fmt0")));
    assert_eq!(step("dismissed"), delete("fmt0"));
    let mut view = at(THROTTLE, "dismissed");
    let gone = view.nodes.iter().position(|node| node.name == "fmt0").unwrap();
    view.nodes.iter_mut().for_each(|node| node.parents.retain(|p| *p != Parent::Node(gone)));
    assert_eq!(next(&recorded(), &view).unwrap(), delete("nbd0"));
    assert_eq!(step("after"), Step::Done);
}

#[test]
fn nodes_that_have_no_name_of_their_own_go_by_themselves() {
    let view = at(DRIVE, "added");
    let top = &view.nodes.iter().find(|node| node.driver == "raw" && node.name != "vol").unwrap();
    assert!(top.name.starts_with('#'));
    assert_eq!(next(&recorded(), &view).unwrap(), mirror(&top.name, None));
    assert_eq!(next(&recorded(), &at(DRIVE, "dismissed")).unwrap(), Step::Done);
}

#[test]
fn the_way_back_begins_anywhere_and_knows_when_it_is_too_late() {
    for recording in [NBD, THROTTLE, DRIVE] {
        let step = |phase| undo(&recorded(), &at(recording, phase));
        assert_eq!(step("before"), Undo::Undone);
        assert_eq!(step("added"), Undo::Delete { node: "vol".to_owned() });
        assert_eq!(step("ready"), Undo::Cancel);
        assert_eq!(step("concluded"), Undo::Dismiss);
        assert_eq!(step("dismissed"), Undo::Pivoted);
        assert_eq!(step("after"), Undo::Pivoted);
    }
    // A job that is ending anyway is waited for.
    let mut view = at(NBD, "ready");
    view.jobs[0].status = "aborting".to_owned();
    assert_eq!(undo(&recorded(), &view), Undo::Wait);
    assert_eq!(next(&recorded(), &view).unwrap(), Step::Wait);
}

#[test]
fn a_mirror_that_failed_says_why() {
    let mut view = at(NBD, "ready");
    view.jobs[0].status = "concluded".to_owned();
    view.jobs[0].error = Some("No space left on device".to_owned());
    let error = Some("No space left on device".to_owned());
    assert_eq!(next(&recorded(), &view).unwrap(), Step::Dismiss { error });
}

#[test]
fn another_export_or_none_is_not_touched() {
    let view = at(NBD, "before");
    let mut other = recorded();
    other.export.name = "vol2".to_owned();
    assert_eq!(next(&other, &view).unwrap_err().kind(), Kind::Gone);
    // Defined, but no device uses it.
    let mut unused = view.clone();
    unused.nodes[0].parents.clear();
    assert_eq!(next(&recorded(), &unused).unwrap_err().kind(), Kind::Gone);
    assert_eq!(next(&recorded(), &View::default()).unwrap_err().kind(), Kind::Gone);
}

#[test]
fn a_file_of_another_size_or_name_and_a_foreign_format_are_refused() {
    let mut view = at(NBD, "added");
    let vol = view.nodes.iter().position(|node| node.name == "vol").unwrap();
    view.nodes[vol].size += 512;
    assert_eq!(next(&recorded(), &view).unwrap_err().kind(), Kind::Conflict);
    view.nodes[vol].filename = "/volumes/another".to_owned();
    assert_eq!(next(&recorded(), &view).unwrap_err().kind(), Kind::Conflict);
    assert_eq!(undo(&recorded(), &view), Undo::Undone, "what is not ours stays");

    let mut view = at(THROTTLE, "before");
    let fmt = view.nodes.iter().position(|node| node.name == "fmt0").unwrap();
    view.nodes[fmt].driver = "qcow2".to_owned();
    let error = next(&recorded(), &view).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.message().contains("qcow2"), "{error}");
    // Only a part of the disk.
    view.nodes[fmt].driver = "raw".to_owned();
    view.nodes[fmt].size -= 512;
    assert_eq!(next(&recorded(), &view).unwrap_err().kind(), Kind::Unsupported);
}

#[test]
fn a_disk_with_two_users_and_a_graph_that_is_a_ring_are_refused() {
    let mut view = at(NBD, "before");
    view.nodes.push(view.nodes[0].clone());
    view.nodes[1].name = "other".to_owned();
    view.nodes[0].parents.push(Parent::Node(1));
    assert_eq!(next(&recorded(), &view).unwrap_err().kind(), Kind::Conflict);
    view.nodes.iter_mut().for_each(|node| node.driver = "throttle".to_owned());
    view.nodes[0].driver = "nbd".to_owned();
    view.nodes[0].parents = vec![Parent::Node(1)];
    view.nodes[1].parents = vec![Parent::Node(1)];
    assert_eq!(next(&recorded(), &view).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn what_was_opened_with_other_options_is_opened_again() {
    let mut pivot = recorded();
    pivot.direct = Some(true);
    assert_eq!(next(&pivot, &at(NBD, "before")).unwrap(), Step::Add { direct: true });
    assert_eq!(next(&pivot, &at(NBD, "added")).unwrap(), delete("vol"));
}

#[test]
fn exports_are_known_by_any_of_their_names() {
    let plain = "nbd+unix:///vol1?socket=/run/forebay/nbd.sock";
    let flat = r#"json:{"driver": "nbd", "export": "vol1", "server.type": "unix", "server.path": "/run/forebay/nbd.sock", "tls-creds": "t"}"#;
    let nested = r#"json:{"driver": "nbd", "export": "vol1", "server": {"type": "unix", "path": "/run/forebay/nbd.sock"}}"#;
    let unnamed = "nbd+unix://?socket=/run/forebay/nbd.sock";
    let mut pivot = recorded();
    let mut view = at(NBD, "before");
    let mut found = |pivot: &Pivot, name: &str| {
        view.nodes[0].filename = name.to_owned();
        next(pivot, &view).is_ok()
    };
    for name in [plain, flat, nested] {
        assert!(found(&pivot, name), "{name}");
    }
    for name in [unnamed, "nbd://127.0.0.1:10809/vol1", "json:{", "json:7", "/volumes/d.raw", ""] {
        assert!(!found(&pivot, name), "{name}");
    }
    pivot.export.name = String::new();
    assert!(found(&pivot, unnamed));
    assert!(found(&pivot, "nbd+unix:///?socket=/run/forebay/nbd.sock"));
}

#[test]
fn names_that_qemu_would_not_take_are_refused() {
    let check = |name: &str, raw: &str| {
        Pivot { name: name.to_owned(), raw: raw.to_owned(), ..recorded() }.check().is_ok()
    };
    assert!(check("vol-0.a_B", "/d"));
    for name in ["", "0vol", "#block1", "vol/1", "vol 1", "a23456789012345678901234-"] {
        assert!(!check(name, "/d"), "{name}");
    }
    assert!(!check("vol", "volumes/d"));
}

#[test]
fn answers_of_another_shape_are_refused() {
    let good: Value = serde_json::from_str(NBD).unwrap();
    let good = &good["before"];
    let of = |nodes: &Value, graph: &Value, jobs: &Value| {
        View::of(nodes.clone(), graph.clone(), jobs.clone()).map_err(|e| e.kind())
    };
    for bad in [json!(null), json!({}), json!([7]), json!("x"), json!([{ "node-name": 1 }])] {
        assert_eq!(of(&bad, &good["graph"], &good["jobs"]), Err(Kind::Invalid));
        assert_eq!(of(&good["nodes"], &bad, &good["jobs"]), Err(Kind::Invalid));
        assert_eq!(of(&good["nodes"], &good["graph"], &bad), Err(Kind::Invalid));
    }
    let edge = json!({ "nodes": [], "edges": [{ "parent": 1, "child": 2 }] });
    assert_eq!(of(&good["nodes"], &edge, &good["jobs"]), Err(Kind::Invalid));
}

fn any_parent() -> impl Strategy<Value = Parent> {
    prop_oneof![
        (0usize..6).prop_map(Parent::Node),
        Just(Parent::User("virtio0".to_owned())),
        Just(Parent::Job("vol-job".to_owned())),
    ]
}

fn any_node() -> impl Strategy<Value = Node> {
    let name = prop::sample::select(vec!["vol", "vol-file", "nbd0", "fmt0", "#block1"]);
    let driver = prop::sample::select(vec!["nbd", "raw", "throttle", "file", "mirror_top"]);
    let filename = prop::sample::select(vec![
        "nbd+unix:///vol1?socket=/run/forebay/nbd.sock",
        "/volumes/d.raw",
        "json:{}",
    ]);
    let parents = prop::collection::vec(any_parent(), 0..3);
    (name, driver, filename, 0u64..2, any::<bool>(), parents).prop_map(
        |(name, driver, filename, size, flag, parents)| Node {
            name: name.to_owned(),
            driver: driver.to_owned(),
            filename: filename.to_owned(),
            size: size * 512,
            direct: flag,
            read_only: !flag,
            parents,
        },
    )
}

proptest! {
    /// Whatever QEMU says, nothing but what is ours is deleted on the way back, and nothing is deleted
    /// that somebody uses.
    #[test]
    fn no_graph_leads_astray(nodes in prop::collection::vec(any_node(), 6)) {
        let view = View { nodes, jobs: Vec::new() };
        let unused = |name: &str| view.nodes.iter().any(|n| n.name == name && n.parents.is_empty());
        if let Ok(Step::Delete { node }) = next(&recorded(), &view) {
            prop_assert!(unused(&node));
        }
        if let Undo::Delete { node } = undo(&recorded(), &view) {
            prop_assert!(node == "vol" && unused(&node));
        }
    }
}
