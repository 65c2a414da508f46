//! Two of what there may be one of: daemons in one directory, nodes of one identity.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::{Background, Disk, Ended, Grid, files, forebay, path, run, until};
use crate::member::Node;

/// All files of a directory, and what is in them.
fn all(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = Vec::new();
    files(dir, &mut found);
    // Of a socket nothing can be read.
    found.into_iter().map(|path| (path.clone(), std::fs::read(&path).unwrap_or_default())).collect()
}

/// The process that holds it is named, where the file system lets us know.
fn names(ended: &Ended, holder: &Background) {
    let pid = format!("(process {})", holder.child.id());
    assert!(!ended.err.contains("(process") || ended.err.contains(&pid), "{}", ended.err);
}

fn daemon(data: &Path, args: &[&str]) -> Background {
    let mut daemon = Background::start(forebay(data).args(["node", "--json"]).args(args));
    assert!(daemon.line().contains("socket"));
    daemon
}

#[test]
fn of_two_node_daemons_in_one_directory_the_second_is_refused_until_the_first_is_gone() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("node");
    let mut first = daemon(&data, &[]);
    let create = ["volume", "create", "--blank", "1MiB", "--name", "v"];
    assert_eq!(run(forebay(&data).args(create)).code, 0);
    let before = all(&data);
    let elsewhere = format!("node.socket={}", path(&temp.path().join("other.sock")));
    let volumes = format!("volumes.dir={}", path(&temp.path().join("volumes")));
    // At the same socket, and at another: also with other volumes it is the same daemon's directory.
    for args in [&[][..], &["--set", &elsewhere], &["--set", &elsewhere, "--set", &volumes]] {
        let second = run(forebay(&data).arg("node").args(args));
        second.fails(73, &[path(&data.join("node")), "another `forebay node`"]);
        names(&second, &first);
    }
    assert_eq!(all(&data), before);
    assert!(!temp.path().join("volumes").exists() && !temp.path().join("other.sock").exists());
    assert_eq!(run(forebay(&data).args(["volume", "show", "v"])).code, 0, "the first serves");
    first.kill();
    let _second = daemon(&data, &[]);
    assert_eq!(run(forebay(&data).args(["volume", "show", "v"])).code, 0);
}

#[test]
fn of_two_node_daemons_with_one_directory_of_volumes_the_second_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (one, two) = (temp.path().join("one"), temp.path().join("two"));
    let volumes = temp.path().join("volumes");
    let shared = format!("volumes.dir={}", path(&volumes));
    let args = ["--set", &shared];
    let mut first = daemon(&one, &args);
    let create = ["volume", "create", "--blank", "1MiB", "--name", "v"];
    assert_eq!(run(forebay(&one).args(create)).code, 0);
    let before = all(&volumes);
    let second = run(forebay(&two).arg("node").args(args));
    second.fails(73, &[path(&volumes), "another node daemon", "volumes.dir"]);
    names(&second, &first);
    assert_eq!(all(&volumes), before);
    first.kill();
    let _second = daemon(&two, &args);
    assert_eq!(run(forebay(&two).args(["volume", "show", "v"])).code, 0);
}

#[test]
fn of_two_servers_in_one_directory_the_second_is_refused_and_a_node_is_welcome() {
    let mut grid = Grid::start();
    grid.import(&grid.disk("d.raw", &Disk::new("ab")), "d:1");
    let up = ["up", "--listen", "127.0.0.1:0"];
    let known = |grid: &Grid| std::fs::read(grid.data.join("up.json")).unwrap();
    let before = (known(&grid), grid.objects("packs"));
    for args in [&up[..], &["cache"]] {
        let second = run(forebay(&grid.data).args(args));
        second.fails(73, &[path(&grid.data), "another `forebay up`"]);
        names(&second, grid.up.as_ref().unwrap());
    }
    assert_eq!((known(&grid), grid.objects("packs")), before);
    grid.run(&["inspect", "d:1"]).json();
    // Another role, in a part of the directory that is its own.
    let mut node = daemon(&grid.data, &[]);
    grid.kill();
    grid.restart();
    grid.run(&["inspect", "d:1"]).json();
    node.kill();
}

/// A node's daemon, whose words are kept.
fn told(node: &mut Node, log: &Path) {
    let mut command = forebay(&node.data);
    command.args(["node", "--json"]).stderr(File::create(log).unwrap());
    let mut daemon = Background::start(&mut command);
    assert!(daemon.line().contains("socket"));
    node.daemon = Some(daemon);
}

#[test]
fn of_two_nodes_of_one_identity_the_one_that_was_started_last_counts() {
    let grid = Grid::start_with(&["--set", "placement.lease=10s"]);
    let mut node = Node::join(&grid, "n1");
    grid.run(&["pool", "create", "p", "--size", "1MiB", "--low", "2", "--target", "2"]).json();
    until("the pool is full", || grid.run(&["pool", "show", "p"]).json()["ready"] == 2);
    let create = ["volume", "create", "--blank", "1MiB", "--name", "v"];
    assert_eq!(node.run(&create).code, 0);
    node.kill();
    // Certificate, key, volumes, all.
    let copy = grid.dir.join("copy");
    assert!(Command::new("cp").arg("-a").args([&node.data, &copy]).status().unwrap().success());
    let mut other = Node { name: "n1".into(), data: copy, daemon: None };
    let (log, its_log) = (grid.dir.join("first.log"), grid.dir.join("second.log"));
    let leases = || grid.run(&["lease", "list"]).json()["leases"].as_array().unwrap().clone();

    told(&mut node, &log);
    assert_eq!(node.run(&["volume", "attach", "v"]).code, 0);
    let first = leases();
    assert_eq!((first.len(), &first[0]["holder"]), (1, &"n1".into()));
    told(&mut other, &its_log);
    let says = || std::fs::read_to_string(&log).unwrap();
    until("the first is told", || says().contains("another daemon reports as this node since"));
    assert!(says().contains("end one of them"), "{}", says());
    // What the first has it keeps until its time is over, and it is given nothing more.
    assert_eq!(node.run(&["volume", "create", "--blank", "1MiB", "--name", "w"]).code, 0);
    node.run(&["volume", "attach", "w"]).fails(73, &["another daemon reports as this node"]);
    assert_eq!(other.run(&["volume", "attach", "v"]).code, 0);
    let held = leases();
    assert_eq!((held.len(), &held[0]["holder"]), (1, &"n1".into()));
    assert!(held[0]["epoch"].as_u64() > first[0]["epoch"].as_u64(), "{held:?}");
    until("the first stops", || says().contains("its lease is over"));
    // All that both have is one node's, once.
    let pool = grid.run(&["pool", "show", "p"]).json();
    assert_eq!(pool["ready"], 2, "{pool}");
    let nodes = grid.run(&["node", "status"]).json();
    let nodes = nodes["nodes"].as_array().unwrap();
    assert_eq!(nodes.iter().map(|n| &n["name"]).collect::<Vec<&Value>>(), ["n1"]);
    let says = std::fs::read_to_string(&its_log).unwrap();
    assert!(!says.contains("another daemon"), "{says}");
    let (_, code) = other.daemon.take().unwrap().terminate();
    assert_eq!(code, 0);
}
