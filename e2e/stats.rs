//! What nodes measure of themselves, and choosing them by it.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Background, Ended, Grid, run, until};
use crate::member::Node;

/// A node whose configuration says this.
fn node(grid: &Grid, name: &str, toml: &str) -> Node {
    let data = grid.dir.join(name);
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("forebay.toml"), format!("[node]\nstats = \"1s\"\n{toml}")).unwrap();
    Node::join(grid, name)
}

/// A grid of two nodes that have measured twice, so that there is something between; the machine may be as busy as it is.
fn grid() -> (Grid, [Node; 2]) {
    let set = ["place.load_most=1", "place.levels=rack", "place.head_room_disk=0"];
    let args: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
    let grid = Grid::start_with(&args);
    let first = node(&grid, "n1", "domain = \"r1\"\nlabels = \"disk=nvme\"\nlicences = \"seat=3\"");
    let second = node(&grid, "n2", "domain = \"r2\"\nlicences = \"seat=3@0.5\"");
    until("both nodes have measured", || {
        let all = grid.run(&["top"]).json();
        let nodes = all["nodes"].as_array().unwrap();
        nodes.len() == 2 && nodes.iter().all(|n| n["last"]["cpu-per-mille"].is_u64())
    });
    (grid, [first, second])
}

fn place(grid: &Grid, request: &Value, args: &[&str]) -> Ended {
    grid.run(&[&["place", &request.to_string()], args].concat())
}

#[test]
fn nodes_tell_what_they_measure_and_what_happens_on_them() {
    let (grid, nodes) = grid();
    let all = grid.run(&["top", "--sort", "memory"]).json();
    let first = all["nodes"].as_array().unwrap().iter().find(|n| n["name"] == "n1").unwrap();
    for key in ["cores", "memory-total-bytes", "disk-total-bytes", "disk-free-bytes"] {
        assert!(first["last"][key].as_u64().unwrap() > 0, "{key}: {first}");
    }
    assert_eq!(first["away"], false);
    let status = grid.run(&["node", "status"]).json();
    assert!(status["nodes"][0]["last"]["cores"].as_u64().unwrap() > 0, "{status}");
    let table = run(crate::harness::forebay(&grid.data).args(["top", "--sort", "cpu"]));
    assert!(table.out.contains("NODE") && table.out.lines().count() == 3, "{}", table.out);

    // A guest comes and goes: whoever is called as QEMU is, and told of the volume.
    assert_eq!(nodes[0].run(&["volume", "create", "--blank", "1MiB", "--name", "v1"]).code, 0);
    assert_eq!(nodes[0].run(&["volume", "attach", "v1"]).code, 0);
    let info = nodes[0].run(&["volume", "show", "v1", "--json"]).json();
    let socket = info["attached"]["path"].as_str().unwrap();
    let name = format!("guest-{}", std::process::id());
    let as_qemu = format!(
        "exec -a qemu-system-x86_64 bash -c 'echo; read' -name {name} -m 512 -smp 2 -drive path={socket},if=virtio"
    );
    let mut guest = Command::new("bash");
    let mut guest = Background::start(guest.args(["-c", &as_qemu]).stdin(Stdio::piped()));
    guest.line();
    let one = || grid.run(&["top", "--node", "n1"]).json();
    let mut seen = Value::Null;
    until("the guest is seen", || {
        let one = one();
        let vms = one["stats"]["vms"].as_array().unwrap();
        seen = vms.iter().find(|vm| vm["name"] == name.as_str()).cloned().unwrap_or_default();
        !seen.is_null()
    });
    let shape = json!({"name": name, "hypervisor": "qemu", "cpus": 2, "memory-bytes": 512 << 20, "volumes": 1});
    assert_eq!(seen, shape);
    guest.kill();
    until("it is seen to have gone", || {
        let one = one();
        let events = one["events"].as_array().unwrap();
        let what: Vec<&Value> =
            events.iter().filter(|e| e["name"] == name.as_str()).map(|e| &e["what"]).collect();
        what == ["vm-stopped", "vm-started"]
    });
    let one = one();
    assert_eq!(one["stats"]["declared"]["labels"], json!({"disk": "nvme"}));
    let ats: Vec<u64> =
        one["samples"].as_array().unwrap().iter().map(|p| p["at"].as_u64().unwrap()).collect();
    assert!(ats.len() > 2 && ats.is_sorted_by(|a, b| a >= b), "{ats:?}");
    assert_eq!(one["stats"]["holdings"]["attached"], 1);
    grid.run(&["top", "--node", "n9"]).fails(66, &["n9"]);

    let metrics = nodes[0].run(&["node", "metrics"]).out;
    for metric in ["forebay_node_cpu_busy", "forebay_node_space_free_bytes{holds=\"volumes\"}"] {
        assert!(metrics.contains(metric), "{metric} is not in: {metrics}");
    }
    until("the fleet has metrics", || {
        let text = grid.run(&["cache", "metrics"]).out;
        text.contains("forebay_fleet_nodes{heard=\"yes\"} 2")
            && text.contains("forebay_fleet_node_away{node=\"n2\"} 0")
    });
}

#[test]
fn nodes_are_chosen_by_what_they_say_and_no_seat_is_given_twice() {
    let (grid, _nodes) = grid();
    let wanted = json!({"id": "a", "labels": {"disk": "nvme"}});
    let report = place(&grid, &wanted, &["--explain"]).json();
    let line = &report["placed"][0];
    assert_eq!((&line["chosen"]["node"], &line["fit"]), (&"n1".into(), &1.into()));
    assert_eq!(line["misses"][0]["reasons"][0]["rule"], "label");
    assert_eq!(line["scored"][0]["node"], "n1");
    let huge = json!({"id": "b", "needs": {"memory": 1_u64 << 60}});
    let told = run(crate::harness::forebay(&grid.data).args(["place", &huge.to_string()]));
    told.fails(74, &["there is no node for b"]);
    assert!(told.out.contains("b: no node, even if nothing were placed"), "{}", told.out);
    place(&grid, &json!({"id": "c", "near": ["r1/x"]}), &[]).fails(65, &["near r1/x"]);
    place(&grid, &json!({"colour": 1}), &[]).fails(65, &["unknown field `colour`"]);
    grid.run(&["place", "/nowhere.json"]).fails(66, &["/nowhere.json"]);

    // Six seats on two nodes, and twelve who want one.
    let seat = |n: usize| json!({"id": format!("s{n}"), "licences": ["seat"]});
    let codes: Vec<i32> = std::thread::scope(|scope| {
        let race = |n| {
            let grid = &grid;
            scope.spawn(move || place(grid, &seat(n), &["--reserve", "--term", "10m"]).code)
        };
        let racers: Vec<_> = (0..12).map(race).collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 6, "{codes:?}");
    assert!(codes.iter().all(|code| [0, 74].contains(code)), "{codes:?}");
    let reserved = || grid.run(&["place", "--reserved"]).json()["reservations"].clone();
    let all = reserved();
    let on = |node: &str| all.as_array().unwrap().iter().filter(|r| r["node"] == node).count();
    assert_eq!((on("n1"), on("n2")), (3, 3));
    let ids: BTreeSet<&str> =
        all.as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 6);

    // The same again has the same seat, another none, until one is given back.
    let won = codes.iter().position(|code| *code == 0).unwrap();
    let again = place(&grid, &seat(won), &["--reserve"]).json();
    let had = all.as_array().unwrap().iter().find(|r| r["id"] == format!("s{won}")).unwrap();
    assert_eq!(again["placed"][0]["reservation"]["node"], had["node"]);
    place(&grid, &seat(99), &["--reserve"]).fails(74, &["s99"]);
    grid.run(&["place", "--release", &format!("s{won}")]).json();
    grid.run(&["place", "--release", &format!("s{won}")]).fails(66, &["there is none"]);
    let next = place(&grid, &seat(99), &["--reserve", "--term", "1s"]).json();
    assert_eq!(next["placed"][0]["reservation"]["node"], had["node"]);
    until("its term is over", || reserved().as_array().unwrap().len() == 5);
    assert_eq!(place(&grid, &seat(98), &["--reserve"]).code, 0);
}
