//! The life of a node: it joins, is cordoned, drained, forgotten, and joins anew.

use serde_json::Value;

use crate::harness::{Disk, Grid, until};
use crate::member::Node;
use crate::volumes::connect;

fn node(grid: &Grid, args: &[&str]) -> Value {
    grid.run(&[&["node"], args].concat()).json()
}

fn nodes(grid: &Grid) -> Vec<(Value, Value)> {
    let all = node(grid, &["status"]);
    let one = |n: &Value| (n["name"].clone(), n["standing"].clone());
    all["nodes"].as_array().unwrap().iter().map(one).collect()
}

#[test]
fn a_node_is_cordoned_drained_forgotten_and_joins_anew() {
    let grid = Grid::start();
    grid.import(&grid.disk("d.raw", &Disk::new("abc.def")), "d:1");
    let mut all = [Node::join(&grid, "n1"), Node::join(&grid, "n2")];
    until("both are heard of", || nodes(&grid).len() == 2);
    node(&grid, &["cordon", "n2"]);
    grid.run(&["pool", "create", "web", "--image", "d:1", "--target", "2", "--low", "2"]).json();
    until("it is filled", || all[0].ready().len() == 2);
    assert!(all[1].ready().is_empty());
    let claimed = grid.run(&["pool", "claim", "web", "mine", "--node", "n1"]).json();
    assert_eq!(claimed["node"], "n1");
    until("it is filled again", || all[0].ready().len() == 2);

    node(&grid, &["uncordon", "n2"]);
    assert!(nodes(&grid).iter().all(|(_, standing)| standing == "open"));
    let refused = grid.run(&["node", "forget", "n1"]);
    refused.fails(73, &["n1 is there", "node drain n1", "--force"]);
    // What is somebody's stays, and is said.
    let left = grid.run(&["node", "drain", "n1", "--wait", "60s"]);
    left.fails(75, &["0 ready volumes", "1 volumes of somebody"]);
    until("it is elsewhere", || all[0].ready().is_empty() && all[1].ready().len() == 2);
    // It is erased as what is given back is.
    until("it is recorded as erased", || {
        let records = all[0].run(&["volume", "erasures", "--records", "--json"]).json();
        records.as_array().unwrap().len() >= 2
    });
    let life = node(&grid, &["drain", "n1"]);
    assert_eq!((&life["volumes"][0]["called"], &life["drained"]), (&"mine".into(), &false.into()));
    assert_eq!(all[0].run(&["volume", "rm", "mine"]).code, 0);
    until("nothing of it is left", || node(&grid, &["drain", "n1"])["drained"] == true);
    let life = node(&grid, &["drain", "n1", "--wait"]);
    assert_eq!((&life["standing"], &life["drained"]), (&"draining".into(), &true.into()));

    let gone = node(&grid, &["forget", "n1"]);
    assert_eq!((&gone["was"]["name"], &gone["revoked"]), (&"n1".into(), &true.into()));
    assert!(nodes(&grid).iter().all(|(name, _)| name == "n2"));
    all[0].run(&["pull", "d:1", "--to", "x.raw"]).fails(77, &["n1 was removed", "joins anew"]);
    grid.run(&["node", "drain", "n1"]).fails(66, &["n1 was forgotten"]);
    grid.run(&["node", "cordon", "n9"]).fails(66, &["n9", "node status"]);

    // The machine comes back as a new member.
    all[0].kill();
    std::fs::remove_dir_all(all[0].data.join("member")).unwrap();
    let token = node(&grid, &["token", "--name", "n1"]);
    let joined = all[0].run(&["node", "join", token["token"].as_str().unwrap(), "--name", "n1"]);
    assert_eq!(joined.code, 0, "{}", joined.err);
    all[0].start();
    until("it is a node again", || nodes(&grid).contains(&("n1".into(), "open".into())));
}

#[test]
fn an_image_stays_while_a_volume_reads_from_it_whatever_becomes_of_its_name() {
    let mut grid = Grid::start();
    let disk = Disk::new("abc.def");
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    grid.import(&grid.disk("e.raw", &Disk::new("xyz")), "e:1");
    let node = Node::join(&grid, "n1");
    assert_eq!(node.run(&["volume", "create", "d:1", "--name", "v"]).code, 0);
    let reads = |grid: &Grid| grid.run(&["lease", "list"]).json()["reads"].clone();
    until("it reads from its image", || reads(&grid)[0]["holder"] == "n1");
    for name in ["d:1", "e:1"] {
        grid.run(&["rm", name]).json();
    }
    // It knows of it after a restart, too, before the node has reported to it.
    grid.kill();
    grid.restart();
    let collect = |grid: &Grid| grid.run(&["gc", "--grace", "0s"]).json();
    for _ in 0..3 {
        assert_eq!(collect(&grid)["images"], 1);
    }
    node.follow(&grid);
    let info = node.run(&["volume", "attach", "v", "--json"]).json();
    let mut guest = connect(info["attached"]["path"].as_str().unwrap().as_ref());
    assert!(guest.read(0, disk.bytes.len()).unwrap() == disk.bytes);
    drop(guest);
    until("all of it is here", || {
        node.run(&["volume", "show", "v", "--json"]).json()["plain"] == true
    });
    until("it reads from it no more", || reads(&grid).as_array().unwrap().is_empty());
    assert_eq!(collect(&grid)["images"], 0);
}
