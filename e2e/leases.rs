//! Leases: one node writes a volume, as long as placement hears of it.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{CHUNK, Disk, Grid, until};
use crate::member::Node;
use crate::nbd::Nbd;
use crate::volumes::connect;

/// With leases of this term. One that is waited for is short, and not so short that a busy machine is taken for one
/// that is away.
fn rig(term: &str) -> (Grid, Node) {
    let grid = Grid::start_with(&["--set", &format!("placement.lease={term}")]);
    grid.import(&grid.disk("d.raw", &Disk::new("abc")), "d:1");
    let node = Node::join(&grid, "n1");
    assert_eq!(node.run(&["volume", "create", "d:1", "--name", "v"]).code, 0);
    (grid, node)
}

fn attach(node: &Node) -> Nbd {
    let info = node.run(&["volume", "attach", "v", "--no-fill", "--json"]).json();
    connect(info["attached"]["path"].as_str().unwrap().as_ref())
}

fn leases(grid: &Grid) -> Vec<Value> {
    grid.run(&["lease", "list"]).json()["leases"].as_array().unwrap().clone()
}

fn signal(node: &Node, signal: &str) {
    let pid = node.daemon.as_ref().unwrap().child.id().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

#[test]
fn who_attaches_has_the_lease_until_it_is_detached_or_broken() {
    let (grid, node) = rig("15m");
    let mut guest = attach(&node);
    guest.write(0, &[7; 4096]).unwrap();
    let held = leases(&grid);
    assert_eq!((&held[0]["called"], &held[0]["holder"]), (&"v".into(), &"n1".into()));
    assert_eq!(node.run(&["volume", "detach", "v"]).code, 0);
    until("it is given back", || leases(&grid).is_empty());

    let guest = attach(&node);
    let held = leases(&grid);
    assert_eq!(held[0]["epoch"], 2);
    let volume = held[0]["volume"].as_str().unwrap().to_owned();
    grid.run(&["lease", "break", &volume, "--why", "a test"]).json();
    until("its holder has stopped, and has given it back", || leases(&grid).is_empty());
    let info = node.run(&["volume", "show", "v", "--json"]).json();
    assert_eq!(info["attached"], Value::Null);
    drop(guest);
    grid.run(&["lease", "break", &volume, "--why", "again"]).fails(66, &["nobody has it"]);
    drop(attach(&node));
    assert_eq!(leases(&grid)[0]["epoch"], 3);
}

#[test]
fn a_guest_waits_while_its_lease_is_over_and_goes_on_when_it_is_renewed() {
    let (mut grid, node) = rig("12s");
    let mut guest = attach(&node);
    guest.write(0, &[7; 4096]).unwrap();
    grid.kill();
    // Placement does not answer any more: what is attached goes on for its time, and then stands still.
    guest.write(4096, &[8; 4096]).unwrap();
    guest.flush().unwrap();
    let info = node.run(&["volume", "show", "v", "--json"]).json();
    let socket = info["attached"]["path"].as_str().unwrap().to_owned();
    until("the lease is over", || Nbd::connect(socket.as_ref()).is_err());
    assert!(guest.write(0, &[9; 4096]).is_err());
    let daemon = |node: &Node| node.daemon.as_ref().unwrap().child.id();
    let before = daemon(&node);
    grid.restart();
    node.follow(&grid);
    let mut guest = connect(socket.as_ref());
    assert_eq!(guest.read(0, 8192).unwrap(), [[7; 4096], [8; 4096]].concat());
    guest.write(0, &[9; 4096]).unwrap();
    assert_eq!((daemon(&node), leases(&grid)[0]["epoch"].clone()), (before, 1.into()));
}

/// Waits until all leases of the node with this data directory are over, for its watchdog too.
pub fn until_over(data: &Path) {
    let path = data.join("node/leases.json");
    until("the leases are over", || {
        let held: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        held["until"].as_u64().unwrap() + 1000 < node::leases::boottime()
    });
}

#[test]
fn a_capture_outlives_its_lease_which_its_guest_waits_for() {
    let (mut grid, node) = rig("12s");
    assert_eq!(node.run(&["volume", "create", "d:1", "--name", "w"]).code, 0);
    let volume = |args: &[&str]| node.run(&[&["volume"], args, &["--json"]].concat()).json();
    let sockets = ["v", "w"].map(|name| {
        let path = volume(&["attach", name])["attached"]["path"].as_str().unwrap().to_owned();
        until("all of it is here", || volume(&["show", name])["plain"] == true);
        connect(path.as_ref()).write(0, &[7; 3 * CHUNK]).unwrap();
        path
    });
    let ids = ["v", "w"].map(|name| {
        let save = ["save", name, &format!("{name}:1"), "--rate", "128KiB", "--no-wait", "--json"];
        node.run(&save).json()["id"].as_u64().unwrap()
    });
    let capture = |id: u64| {
        let all = node.run(&["node", "captures", "--json"]).json();
        all.as_array().unwrap().iter().find(|c| c["id"] == id).unwrap().clone()
    };
    ids.iter().for_each(|id| until("it reads", || capture(*id)["progress"]["read"] != 0));
    let mut guest = connect(sockets[0].as_ref());
    guest.write(0, &[8; 2 * CHUNK]).unwrap();
    grid.kill();
    until_over(&node.data);
    // Nobody is killed, and nobody writes.
    assert!(guest.write(0, &[9; 4096]).is_err() && Nbd::connect(sockets[0].as_ref()).is_err());
    for id in ids {
        assert!(capture(id)["error"].is_null(), "{}", capture(id));
    }
    let disk = volume(&["show", "v"])["disk"].as_str().unwrap().to_owned();
    assert!(std::fs::read(disk).unwrap().starts_with(&[8; 2 * CHUNK]));
    // One ends before its volume is served again, the other after.
    let cancelled = node.run(&["node", "cancel-capture", &ids[1].to_string(), "--json"]).json();
    assert_eq!(cancelled["state"], "cancelled");
    // A new one begins when it can.
    let new = node.run(&["save", "w", "w:1", "--no-wait", "--json"]).json()["id"].as_u64().unwrap();
    until("it waits", || !capture(new)["trouble"].is_null());
    assert_eq!(capture(new)["state"], "queued");
    grid.restart();
    node.follow(&grid);
    until("the guest goes on", || Nbd::connect(sockets[0].as_ref()).is_ok());
    connect(sockets[0].as_ref()).write(0, &[10; 3 * CHUNK]).unwrap();
    until("the capture ends", || !capture(ids[0])["took_ms"].is_null());
    assert_eq!(capture(ids[0])["state"], "done", "{}", capture(ids[0]));
    let pulled = |name: &str| {
        let to = grid.dir.join("pulled");
        grid.pull(name, &to).json();
        std::fs::read(to).unwrap()
    };
    assert!(pulled("v:1") == [7; 3 * CHUNK]);
    until("the new one ends", || !capture(new)["took_ms"].is_null());
    assert!(pulled("w:1") == [7; 3 * CHUNK]);
    assert!(connect(sockets[1].as_ref()).read(0, 3 * CHUNK).unwrap() == [7; 3 * CHUNK]);
    for (name, byte) in [("v", 10), ("w", 7)] {
        let saved = node.run(&["save", name, &format!("{name}:2"), "--json"]).json();
        assert_eq!(saved["truth"], "changed-map", "{saved}");
        assert!(pulled(&format!("{name}:2")) == [byte; 3 * CHUNK]);
        volume(&["detach", name]);
    }
}

#[test]
fn a_capture_whose_lease_is_taken_away_is_over() {
    let (grid, node) = rig("15m");
    let mut guest = attach(&node);
    guest.write(0, &[7; 3 * CHUNK]).unwrap();
    let volume = leases(&grid)[0]["volume"].as_str().unwrap().to_owned();
    let save = ["save", "v", "v:1", "--rate", "64KiB", "--json"];
    std::thread::scope(|scope| {
        let save = scope.spawn(|| node.run(&save));
        until("it reads", || {
            node.run(&["node", "captures", "--json"]).json()[0]["progress"]["read"].as_u64()
                > Some(0)
        });
        grid.run(&["lease", "break", &volume, "--why", "a test"]).json();
        save.join().unwrap().fails(77, &["its lease was taken from this node"]);
    });
    grid.run(&["inspect", "v:1"]).fails(66, &["v:1"]);
    until("it is detached", || {
        node.run(&["volume", "show", "v", "--json"]).json()["attached"].is_null()
    });
    drop(attach(&node));
}

#[test]
fn a_daemon_that_hangs_is_killed_when_its_leases_are_over() {
    let (grid, mut node) = rig("8s");
    let guest = attach(&node);
    signal(&node, "-STOP");
    let mut daemon = node.daemon.take().unwrap();
    until("it was killed", || daemon.child.try_wait().unwrap().is_some());
    // Not before its time: until then nobody else could have had the lease.
    assert!(leases(&grid)[0]["lapses"].as_u64().unwrap() <= 4);
    drop(guest);
    node.start();
    let info = node.run(&["volume", "show", "v", "--json"]).json();
    drop(connect(info["attached"]["path"].as_str().unwrap().as_ref()));
    assert_eq!(leases(&grid)[0]["holder"], "n1");
}
