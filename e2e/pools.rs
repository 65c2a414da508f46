//! Pools: volumes that nodes build ahead, handed out, and built again.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::{Disk, Grid, forebay, run, until};
use crate::member::Node;
use crate::real::wanted;

fn pool(grid: &Grid, args: &[&str]) -> Value {
    grid.run(&[&["pool"], args].concat()).json()
}

fn until_ready(grid: &Grid, name: &str, many: u64) {
    until(&format!("{many} ready volumes of {name}"), || {
        let info = pool(grid, &["show", name]);
        info["ready"] == many && info["building"] == 0
    });
}

#[test]
fn a_pool_is_filled_claimed_from_and_filled_again() {
    let (grid, disk) = (Grid::start(), Disk::new("abc.def"));
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let nodes = [Node::join(&grid, "n1"), Node::join(&grid, "n2")];
    pool(&grid, &["create", "web", "--image", "d:1", "--target", "4", "--low", "2"]);
    grid.run(&["pool", "create", "web", "--target", "9"]).fails(73, &["pool set web"]);
    until_ready(&grid, "web", 4);
    assert!(nodes.iter().all(|node| node.ready().len() == 2), "spread evenly");

    // By placement: where it is wanted, and once however often it is asked for.
    let asked = ["claim", "web", "v1", "--node", "n1", "--request", &"01".repeat(16)];
    let first = pool(&grid, &asked);
    assert_eq!((&first["node"], &first["served"]), (&"n1".into(), &"ready".into()));
    assert_eq!(pool(&grid, &asked), first);
    assert!(nodes[0].disk("v1") == disk.bytes);
    let other = ["pool", "claim", "web", "v9", "--request", &"01".repeat(16)];
    grid.run(&other).fails(73, &["used for something else"]);
    // Without it, at the node.
    let here = ["pool", "claim", "web", "v2", "--here", "--request", &"02".repeat(16), "--json"];
    let local = nodes[1].run(&here).json();
    assert_eq!(nodes[1].run(&here).json()["id"], local["id"]);
    assert!(nodes[1].disk("v2") == disk.bytes);
    nodes[1].run(&["pool", "claim", "web", "v2", "--here"]).fails(73, &["v2"]);
    // At its threshold it is left; below it is filled.
    until_ready(&grid, "web", 2);
    pool(&grid, &["claim", "web", "v3", "--node", "n1", "--only"]);
    until_ready(&grid, "web", 4);

    // What is claimed where nothing is ready comes from elsewhere, or is built.
    pool(&grid, &["set", "web", "--target", "1", "--low", "0", "--max", "1"]);
    until_ready(&grid, "web", 1);
    until("what is too much is gone", || nodes.iter().map(|n| n.ready().len()).sum::<usize>() == 1);
    let has = nodes.iter().position(|node| node.ready().len() == 1).unwrap();
    let lacks = &nodes[1 - has];
    let near = pool(&grid, &["claim", "web", "v4", "--node", &lacks.name]);
    assert_eq!(
        (&near["node"], &near["served"]),
        (&nodes[has].name.as_str().into(), &"elsewhere".into())
    );
    let built = pool(&grid, &["claim", "web", "v5", "--node", &lacks.name]);
    assert_eq!((&built["node"], &built["served"]), (&lacks.name.as_str().into(), &"built".into()));
    assert!(lacks.disk("v5") == disk.bytes);

    // What a new image of the name makes stale goes when it is replaced.
    pool(&grid, &["set", "web", "--target", "2", "--low", "2", "--max", "2"]);
    until_ready(&grid, "web", 2);
    let next = Disk::new("zzz.y");
    grid.import(&grid.disk("e.raw", &next), "d:1");
    let image = grid.run(&["inspect", "d:1"]).json()["image"].clone();
    until("the pool is of the new image", || {
        let all: Vec<Value> = nodes.iter().flat_map(Node::ready).collect();
        all.len() == 2 && all.iter().all(|v| v["kind"]["image"] == image)
    });
    grid.run(&["pool", "delete", "web"]).fails(73, &["pool drain web"]);
    pool(&grid, &["drain", "web"]);
    until("it can be deleted", || grid.run(&["pool", "delete", "web"]).code == 0);
    assert!(nodes.iter().all(|node| node.ready().is_empty()));
    let all = grid.run(&["operations"]).json();
    assert_eq!(all["operations"].as_array().unwrap().len(), 4);
}

#[test]
fn of_more_who_claim_at_a_node_than_there_is_each_of_those_that_are_ready_is_had_once() {
    const READY: usize = 6;
    let (mut grid, disk) = (Grid::start(), Disk::new("ab"));
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let node = Node::join(&grid, "n1");
    pool(&grid, &["create", "web", "--image", "d:1", "--target", "6", "--low", "1", "--max", "6"]);
    until_ready(&grid, "web", READY as u64);
    // So that none is built meanwhile.
    grid.kill();
    let claim = |n: usize| {
        let (volume, request) = (format!("v{}", n / 2), format!("{:032x}", n / 2 + 1));
        node.run(&["pool", "claim", "web", &volume, "--here", "--request", &request, "--json"])
    };
    // Each request twice at the same time.
    let ended: Vec<_> = std::thread::scope(|scope| {
        let claims: Vec<_> = (0..4 * READY).map(|n| scope.spawn(move || claim(n))).collect();
        claims.into_iter().map(|claim| claim.join().unwrap()).collect()
    });
    let had = ended.chunks(2).filter(|pair| pair[0].code == 0);
    let had: BTreeSet<String> = had.map(|pair| pair[0].json()["id"].to_string()).collect();
    assert_eq!(had.len(), READY, "none twice");
    for pair in ended.chunks(2) {
        assert_eq!((pair[0].code, &pair[0].out), (pair[1].code, &pair[1].out), "served once");
    }
    let served = ended.iter().filter(|ended| ended.code == 0).count();
    assert_eq!(served, 2 * READY);
    assert!(node.ready().is_empty());
}

#[test]
fn nodes_and_placement_that_die_and_come_back_lose_and_double_nothing() {
    let (mut grid, disk) = (Grid::start(), Disk::new("abc.def"));
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let mut nodes = [Node::join(&grid, "n1"), Node::join(&grid, "n2")];
    pool(&grid, &["create", "web", "--image", "d:1", "--target", "6", "--low", "6"]);
    // In the middle of it, whatever of it that is.
    nodes[0].kill();
    grid.kill();
    nodes[1].kill();
    grid.restart();
    for node in &mut nodes {
        node.follow(&grid);
        node.start();
    }
    until_ready(&grid, "web", 6);

    // Placement is away: a node hands out what it has, and says so later.
    grid.kill();
    let on_first = nodes[0].ready().len();
    let here = ["pool", "claim", "web", "v1", "--here", "--json"];
    let id = nodes[0].run(&here).json()["id"].clone();
    nodes[0].kill();
    nodes[0].start();
    assert_eq!(nodes[0].ready().len(), on_first - 1);
    assert!(nodes[0].disk("v1") == disk.bytes);
    grid.restart();
    nodes.iter().for_each(|node| node.follow(&grid));
    until_ready(&grid, "web", 6);
    let ids = nodes.iter().flat_map(Node::ready).map(|v| v["id"].to_string());
    let ids: BTreeSet<String> = ids.collect();
    assert!(ids.len() == 6 && !ids.contains(&id.to_string()));
}

#[test]
fn what_is_given_back_is_erased_recorded_and_built_again() {
    let (grid, disk) = (Grid::start(), Disk::new("abc.def"));
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let mut node = Node::join(&grid, "n1");
    pool(&grid, &["create", "web", "--image", "d:1", "--target", "1"]);
    until_ready(&grid, "web", 1);
    pool(&grid, &["claim", "web", "v1"]);
    until_ready(&grid, "web", 1);
    assert_eq!(node.run(&["volume", "attach", "v1"]).code, 0);
    node.run(&["volume", "release", "v1"]).fails(73, &["detach it first"]);
    assert_eq!(node.run(&["volume", "detach", "v1"]).code, 0);
    let id = node.run(&["volume", "show", "v1", "--json"]).json()["id"].clone();
    let record = node.run(&["volume", "release", "v1", "--verify", "all", "--json"]).json();
    assert_eq!((&record["volume"], &record["name"]), (&id, &"v1".into()));
    assert_eq!((&record["outcome"]["is"], &record["node"]), (&"erased".into(), &"n1".into()));
    let tally = &record["tally"];
    let gone = tally["overwritten"].as_u64().unwrap() + tally["discarded"].as_u64().unwrap();
    assert!(gone >= 6 * crate::harness::CHUNK as u64, "{record}");
    node.run(&["volume", "show", "v1"]).fails(66, &["no such volume"]);
    // Nor has its request anything of another volume of its name.
    let again = ["pool", "claim", "web", "v1", "--here", "--request", &"03".repeat(16), "--json"];
    node.run(&again).json();
    assert_eq!(node.run(&["volume", "release", "v1"]).code, 0);
    assert_eq!(node.run(&["volume", "create", "--blank", "1MiB", "--name", "v1"]).code, 0);
    node.run(&again).fails(66, &["was given back"]);
    until_ready(&grid, "web", 1);

    // A daemon that dies goes on with it, and nobody finds it meanwhile.
    pool(&grid, &["claim", "web", "v2"]);
    let slowly = ["volume", "release", "v2", "--by", "random", "--passes", "100", "--no-wait"];
    assert_eq!(node.run(&slowly).code, 0);
    node.kill();
    node.start();
    node.run(&["volume", "show", "v2"]).fails(66, &["no such volume"]);
    until("it is erased", || {
        node.run(&["volume", "erasures", "--json"]).json() == Value::from(Vec::<Value>::new())
    });
    let records = node.run(&["volume", "erasures", "--records", "--json"]).json();
    let name = |record: &Value| record["name"].as_str().unwrap().to_owned();
    let mut names: Vec<String> = records.as_array().unwrap().iter().map(name).collect();
    names.sort();
    assert_eq!(names, ["v1", "v1", "v2"]);
    // What somebody has altered is no record.
    let path = node.data.join("node/erasures").join(format!("{}.erasure", id.as_str().unwrap()));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"v1\"", "\"v3\"")).unwrap();
    node.run(&["volume", "erasures", "--records"]).fails(76, &["signature is not good"]);
    until_ready(&grid, "web", 1);
}

#[test]
fn a_pool_that_follows_demand_wants_more_after_a_burst_and_says_why() {
    let (grid, disk) = (Grid::start(), Disk::new("abc.def"));
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let nodes = [Node::join(&grid, "n1"), Node::join(&grid, "n2")];
    pool(&grid, &["create", "web", "--image", "d:1", "--follow", "1..30", "--ahead", "10m"]);
    until_ready(&grid, "web", 1);
    let quiet = pool(&grid, &["show", "web"]);
    let demand = &quiet["demand"];
    assert_eq!((&demand["wanted"], &demand["target"]), (&0.into(), &1.into()), "{quiet}");
    assert_eq!(demand["bound"], "floor");
    for n in 0..6 {
        pool(&grid, &["claim", "web", &format!("v{n}")]);
    }
    // 6 claims, by a rate that is half after 300 s, in the 600 s ahead: 8, and twice the square root of it.
    let mut last = Value::Null;
    until("as many are ready as demand asks for", || {
        last = pool(&grid, &["show", "web"]);
        let wanted = last["demand"]["wanted"].as_u64().unwrap();
        wanted >= 10 && last["demand"]["target"] == wanted && last["ready"] == wanted
    });
    assert_eq!(last["demand"]["bound"], Value::Null, "{last}");
    assert!(last["demand"]["build-secs"].as_f64().unwrap() > 0.0, "{last}");
    assert!(last["demand"]["saved-secs"].as_f64().unwrap() > 0.0, "{last}");
    assert!(last["why"].as_str().unwrap().contains("claims an hour"), "{last}");
    let said = run(forebay(&grid.data).args(["pool", "show", "web"])).out;
    for says in ["by demand, from 1 to 30", "an hour", "a build", "claims during a build and 600 s"]
    {
        assert!(said.contains(says), "{says}: {said}");
    }
    // What was set bounds it, and what is too many then goes.
    let args = ["set", "web", "--follow", "1..4", "--disk-budget", "1GiB", "--max", "4"];
    pool(&grid, &args);
    until_ready(&grid, "web", 4);
    let bound = pool(&grid, &["show", "web"])["demand"]["bound"].clone();
    assert_eq!(bound, "ceiling");
    pool(&grid, &["set", "web", "--disk-budget", "4MiB"]);
    until_ready(&grid, "web", 2);
    assert_eq!(pool(&grid, &["show", "web"])["demand"]["bound"], "disk");
    pool(
        &grid,
        &["set", "web", "--no-follow", "--disk-budget", "0", "--target", "3", "--low", "3"],
    );
    until_ready(&grid, "web", 3);
    assert!(nodes.iter().all(|node| !node.ready().is_empty()));
    // What is taken at a node without placement is demand, too. The rate falls while nobody claims.
    let rate = || pool(&grid, &["show", "web"])["demand"]["claims-per-hour"].as_f64().unwrap();
    let before = rate();
    assert_eq!(nodes[0].run(&["pool", "claim", "web", "here", "--here"]).code, 0);
    until("it is counted", || rate() > before);
    until("it is in the metrics", || {
        grid.run(&["cache", "metrics"]).out.contains("forebay_pool_claims_per_hour{pool=\"web\"}")
    });
    grid.run(&["pool", "set", "web", "--hold", "1h"]).fails(65, &["--follow FLOOR..CEILING"]);
    grid.run(&["pool", "set", "web", "--follow", "5..2"]).fails(64, &["1..40"]);
    grid.run(&["pool", "set", "web", "--disk-budget", "1MiB"]).fails(65, &["of its volumes take"]);
}

#[test]
fn a_build_takes_no_more_bandwidth_than_its_pool_may_have() {
    let (grid, disk) = (Grid::start(), Disk::new("abcdefghijklmnopqrst"));
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let mut node = Node::join(&grid, "n1");
    // 2.6 MiB, of which a quarter of a second's passes at once, and a part of what was asked for before.
    let limited = |name: &str| {
        until_ready(&grid, name, 1);
        let took = pool(&grid, &["show", name])["demand"]["build-secs"].as_f64().unwrap();
        assert!(took > 1.0, "{name}: {took}");
    };
    let one = |name, more: &[&str]| {
        pool(&grid, &[&["create", name, "--image", "d:1", "--target", "1"], more].concat());
    };
    one("web", &["--build-rate", "1MiB"]);
    limited("web");
    pool(&grid, &["claim", "web", "v1"]);
    assert!(node.disk("v1") == disk.bytes);
    // All builds on a node together.
    node.kill();
    std::fs::write(node.data.join("forebay.toml"), "[node]\nbuild_rate = \"1MiB\"\n").unwrap();
    node.start();
    pool(&grid, &["drain", "web"]);
    until_ready(&grid, "web", 0);
    one("other", &[]);
    limited("other");
}

#[test]
fn real_a_formatted_pool_has_volumes_whose_file_systems_are_clean() {
    if !wanted() {
        return;
    }
    let grid = Grid::start();
    let node = Node::join(&grid, "n1");
    let made = ["create", "data", "--size", "256MiB", "--target", "2", "--format", "ext4"];
    pool(&grid, &made);
    until_ready(&grid, "data", 2);
    let uuids = ["v1", "v2"].map(|name| {
        pool(&grid, &["claim", "data", name]);
        let info = node.run(&["volume", "show", name, "--json"]).json();
        let disk = info["disk"].as_str().unwrap();
        let offset = format!("{disk}?offset=1048576");
        let checked = run(std::process::Command::new("e2fsck").args(["-fn", &offset]));
        assert_eq!(checked.code, 0, "{}{}", checked.out, checked.err);
        let probe = ["-p", "-O", "1048576", "-s", "UUID", "-o", "value", disk];
        run(std::process::Command::new("blkid").args(probe)).out
    });
    assert_ne!(uuids[0], uuids[1], "each has its own");
    // A save of one reads what the tools have written.
    let saved = node.run(&["save", "v1", "data:1", "--json"]).json();
    assert!(saved["progress"]["new_chunks"].as_u64().unwrap() > 0, "{saved}");
    grid.run(&["pool", "set", "data", "--layout", "/nowhere"]).fails(66, &["/nowhere"]);
    grid.run(&["pool", "set", "data", "--size", "1MiB"]).fails(65, &["pool data"]);
}
