//! `forebay place` on fleets that are written down.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Ended, forebay, path, run};

const GIB: u64 = 1 << 30;

fn place(dir: &Path, what: &str, args: &[&str]) -> Ended {
    let file = dir.join("fleet.json");
    std::fs::write(&file, what).expect("a file that can be written");
    run(forebay(dir).args(["place", "--simulate", path(&file)]).args(args))
}

fn fleet(requests: Value) -> Value {
    let node = |name: &str, gib: u64| json!({"name": name, "capacity": {"memory": gib * GIB}});
    json!({"fleet": {"nodes": [node("small", 8), node("large", 64)]}, "requests": requests})
}

#[test]
fn each_request_finds_what_those_before_have_left() {
    let dir = tempfile::tempdir().expect("a directory");
    let wants = |id: &str, gib: u64| json!({"id": id, "needs": {"memory": gib * GIB}});
    let three = fleet(json!([wants("a", 6), wants("b", 6), wants("c", 40)]));
    let report = place(dir.path(), &three.to_string(), &["--json"]).json();
    let nodes: Vec<_> = (0..3).map(|n| &report["placed"][n]["chosen"]["node"]).collect();
    assert_eq!(nodes, ["small", "large", "large"]);

    // The others go where they would; what finds nothing is named, with what is nearest.
    let four = fleet(json!([wants("a", 40), wants("b", 40), wants("c", 100), wants("d", 1)]));
    let told = place(dir.path(), &four.to_string(), &[]);
    told.fails(74, &["there is no node for b, and for 1 more"]);
    for line in [
        "a: large (score ",
        "b: no node; the nearest is large: memory: 40 GiB needed, 24 GiB free",
        "c: no node, even if nothing were placed; the nearest is large: memory: 100 GiB needed, 64 GiB at most",
        "d: large (score ",
    ] {
        assert!(told.out.contains(line), "`{line}` is not in: {}", told.out);
    }
    let nobody = json!({"fleet": {"nodes": []}, "requests": [wants("a", 1)]}).to_string();
    let told = place(dir.path(), &nobody, &[]);
    told.fails(74, &["there is no node for a"]);
    assert!(told.out.contains("a: no node: there are none"), "{}", told.out);
}

#[test]
fn an_explanation_names_every_node_and_adds_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut what = fleet(json!([{"id": "a", "needs": {"memory": 16 * GIB}}]));
    what["policy"] = json!({"weights": {"fit": 4}});
    let told = place(dir.path(), &what.to_string(), &["--explain"]);
    assert_eq!(told.code, 0, "{}", told.err);
    for line in
        ["large  3.000  fit 0.625 × 4 + idle 1.000 × 0.5", "small  -      memory: 16 GiB needed"]
    {
        assert!(told.out.contains(line), "`{line}` is not in: {}", told.out);
    }
    let report = place(dir.path(), &what.to_string(), &["--explain", "--json"]).json();
    let line = &report["placed"][0];
    assert_eq!(line["chosen"], json!({"node": "large", "score": 3.0}));
    assert_eq!(line["scored"][0]["points"][0]["points"], 2.5);
    assert_eq!(line["misses"][0]["reasons"][0]["rule"], "memory");
    // Weights can be configured too; what a file says counts before them.
    what.as_object_mut().expect("a map").remove("policy");
    let set = ["--set", "place.weight_idle=0", "--json"];
    let report = place(dir.path(), &what.to_string(), &set).json();
    assert_eq!(report["placed"][0]["chosen"]["score"], 0.625);
}

#[test]
fn a_file_that_cannot_be_meant_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let good = fleet(json!([{"id": "a"}]));
    let with = |at: &str, value: Value| {
        let mut wrong = good.clone();
        *wrong.pointer_mut(at).expect("a place in it") = value;
        wrong.to_string()
    };
    let extra = |at: &str, key: &str, value: Value| {
        let mut wrong = good.clone();
        wrong.pointer_mut(at).expect("a place in it")[key] = value;
        wrong.to_string()
    };
    for (what, says) in [
        (String::new(), "EOF while parsing"),
        ("[1".to_owned(), "fleet.json: "),
        ("{}".to_owned(), "missing field `fleet`"),
        (extra("", "colour", json!(1)), "unknown field `colour`"),
        (extra("/fleet/nodes/0", "colour", json!(1)), "unknown field `colour`"),
        (extra("/requests/0", "colour", json!(1)), "unknown field `colour`"),
        (extra("", "policy", json!({"weights": {"colour": 1}})), "unknown field `colour`"),
        (extra("", "policy", json!({"weights": {"fit": -1}})), "weight fit is -1"),
        (with("/fleet/nodes/1/name", json!("small")), "node small is there twice"),
        (with("/fleet/nodes/1/capacity/memory", json!(-5)), "invalid value: integer `-5`"),
        (with("/fleet/nodes/1/capacity/memory", json!(1e40)), "invalid type: floating point"),
        (with("/requests", json!([{"id": "a"}, {"id": "a"}])), "request a: something of this name"),
        (with("/requests/0", json!({"id": "a", "near": ["x"]})), "request a: near x: it is deeper"),
    ] {
        let ended = place(dir.path(), &what, &[]);
        ended.fails(65, &["fleet.json", says]);
        assert_eq!(ended.out, "", "{what}");
    }
    let file = dir.path().join("gone.json");
    run(forebay(dir.path()).args(["place", "--simulate", path(&file)])).fails(66, &["gone.json"]);
    std::fs::write(&file, [0xff, 0xfe]).expect("a file that can be written");
    run(forebay(dir.path()).args(["place", "--simulate", path(&file)])).fails(65, &["not UTF-8"]);
    run(forebay(dir.path()).arg("place")).fails(64, &["REQUEST"]);
}
