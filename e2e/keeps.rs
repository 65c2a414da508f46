//! Images that must be at hand: nodes hold them, caches pin them; and what was given back is reported.

use std::path::Path;

use serde_json::Value;

use crate::caches::{cache, join};
use crate::harness::{Disk, Grid, forebay, run, until};
use crate::member::Node;
use crate::nbd::Nbd;
use crate::real::wanted;

fn kept(grid: &Grid, name: &str) -> Value {
    grid.run(&["kept", name]).json()
}

fn until_on(grid: &Grid, name: &str, nodes: u64) {
    until(&format!("{name} on {nodes} nodes"), || {
        let kept = kept(grid, name);
        kept["nodes"] == nodes && kept["on"].as_array().unwrap().len() as u64 == nodes
    });
}

/// The bases of images on a node.
fn bases(node: &Node) -> Vec<String> {
    let found = std::fs::read_dir(node.data.join("volumes/.images"));
    let names = found.into_iter().flatten();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Makes a volume on a node that holds its image, and reads it all while nobody else is there who has any of it.
fn is_all_there(grid: &mut Grid, node: &Node, image: &str, disk: &Disk) {
    let name = "v1";
    assert_eq!(node.run(&["volume", "create", image, "--name", name]).code, 0);
    grid.kill();
    let attached = node.run(&["volume", "attach", name, "--read-only", "--json"]).json();
    let socket = attached["attached"]["path"].as_str().expect("a socket").to_owned();
    let mut nbd = Nbd::connect(Path::new(&socket)).unwrap();
    let read = nbd.read(0, disk.bytes.len()).unwrap();
    assert!(read == disk.bytes, "as the image is");
    let shown = node.run(&["volume", "show", name, "--json"]).json();
    assert_eq!(
        (&shown["hydration"]["fetched"], &shown["hydration"]["received"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn an_image_is_on_as_many_nodes_as_it_must_be_on_and_a_volume_there_needs_no_cache() {
    let (mut grid, disk) = (Grid::start(), Disk::new("abc.def"));
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let nodes = [Node::join(&grid, "n1"), Node::join(&grid, "n2")];
    grid.run(&["keep", "nothing:1", "--nodes", "1"]).fails(66, &["nothing:1"]);
    grid.run(&["keep", "d:1"]).fails(64, &["--nodes"]);
    grid.run(&["keep", "d:1", "--nodes", "1"]).json();
    until_on(&grid, "d:1", 1);
    assert_eq!(nodes.iter().map(|node| bases(node).len()).sum::<usize>(), 1);
    grid.run(&["keep", "d:1", "--nodes", "2"]).json();
    until_on(&grid, "d:1", 2);
    let table = run(forebay(&grid.data).args(["kept"]));
    assert!(table.code == 0 && table.out.contains("2 of 2"), "{}", table.out);

    // The name moves: the new image comes, and then the old one goes.
    let next = Disk::new("zzz.y");
    grid.import(&grid.disk("e.raw", &next), "d:1");
    let image = grid.run(&["inspect", "d:1"]).json()["image"].clone();
    until("the new image alone is held", || {
        let kept = kept(&grid, "d:1");
        kept["image"] == image
            && kept["nodes"] == 2
            && nodes.iter().all(|node| bases(node) == [image.as_str().unwrap()])
    });
    // Nothing collects it, though no name leads to it any more.
    grid.run(&["rm", "d:1"]).json();
    grid.run(&["gc", "--grace", "0s"]).json();
    let leases = grid.run(&["lease", "list"]).json();
    assert!(leases["reads"].as_array().unwrap().iter().any(|read| read["image"] == image));
    is_all_there(&mut grid, &nodes[1], image.as_str().unwrap(), &next);

    // A daemon that was started anew has it still; what nobody wants goes, but for what a volume leans on.
    grid.restart();
    let [mut first, second] = nodes;
    first.kill();
    first.start();
    for node in [&first, &second] {
        node.follow(&grid);
    }
    until_on(&grid, "d:1", 2);
    grid.run(&["unkeep", "d:1"]).json();
    until("it is let go of", || bases(&first).is_empty());
    assert_eq!(bases(&second), [image.as_str().unwrap()]);
    grid.run(&["unkeep", "d:1"]).fails(66, &["forebay kept"]);
}

#[test]
fn real_of_two_nodes_one_is_lost_and_a_third_takes_its_place() {
    if !wanted() {
        return;
    }
    let (mut grid, disk) = (Grid::start(), Disk::new("abc.def"));
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let mut nodes = [Node::join(&grid, "n1"), Node::join(&grid, "n2")];
    grid.run(&["keep", "d:1", "--nodes", "2"]).json();
    until_on(&grid, "d:1", 2);
    nodes[0].kill();
    let third = Node::join(&grid, "n3");
    until("the third has it", || {
        let kept = kept(&grid, "d:1");
        kept["nodes"] == 2 && kept["on"].as_array().unwrap().iter().any(|on| on["node"] == "n3")
    });
    let image = kept(&grid, "d:1")["image"].as_str().unwrap().to_owned();
    assert_eq!(bases(&third), [image]);
    // The lost one comes back with what it has: of three one is let go.
    nodes[0].start();
    until_on(&grid, "d:1", 2);
    nodes[0].kill();
    let holder = if bases(&third).is_empty() { &nodes[1] } else { &third };
    is_all_there(&mut grid, holder, "d:1", &disk);
}

#[test]
fn an_image_is_in_as_many_caches_as_it_must_be_in_and_what_people_have_pinned_stays() {
    let (grid, disk) = (Grid::start(), Disk::new("abc.def"));
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let pinned = |on: &str| {
        let status = grid.run(&["cache", "status", "--on", on]).json();
        status[0]["pinned"].as_array().unwrap().len()
    };
    let datas = ["c1", "c2"].map(|name| join(&grid, "server", name));
    let _c1 = cache(&grid, &datas[0]);
    grid.run(&["cache", "pin", "d:1", "--on", "c1"]).json();
    let mut c2 = cache(&grid, &datas[1]);
    grid.run(&["keep", "d:1", "--caches", "2"]).json();
    until("it is in both", || kept(&grid, "d:1")["caches"] == 2);
    assert_eq!((pinned("c1"), pinned("c2")), (1, 1));
    // One that has lost all is warmed again.
    c2.kill();
    std::fs::remove_dir_all(datas[1].join("cache")).unwrap();
    let _c2 = cache(&grid, &datas[1]);
    until("it has it again", || pinned("c2") == 1 && kept(&grid, "d:1")["caches"] == 2);
    for of in kept(&grid, "d:1")["in"].as_array().unwrap() {
        let said = &of["said"];
        assert_eq!((&said["held"], &said["pinned"]), (&said["chunks"], &true.into()), "{said}");
    }
    // Placement's pin goes, that of people stays.
    grid.run(&["unkeep", "d:1"]).json();
    until("placement's pin goes", || pinned("c2") == 0);
    assert_eq!(pinned("c1"), 1);
}

#[test]
fn what_was_given_back_is_reported_once_and_shown_for_the_grid() {
    let (grid, disk) = (Grid::start(), Disk::new("abc.def"));
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let mut node = Node::join(&grid, "n1");
    let pool = ["pool", "create", "web", "--image", "d:1", "--target", "1"];
    grid.run(&pool).json();
    until("one is ready", || node.ready().len() == 1);
    grid.run(&["pool", "claim", "web", "v1"]).json();
    let id = node.run(&["volume", "show", "v1", "--json"]).json()["id"].clone();
    assert_eq!(node.run(&["volume", "release", "v1"]).code, 0);
    let released = || grid.run(&["volume", "erasures", "--grid"]).json();
    until("placement knows", || released()["volumes"] == 1);
    let one = released()["released"][0].clone();
    assert_eq!((&one["volume"], &one["node"], &one["pool"]), (&id, &"n1".into(), &"web".into()));
    assert!(one["freed"].as_u64().unwrap() >= 6 * crate::harness::CHUNK as u64, "{one}");
    let untold = node.data.join("node/erasures/untold");
    until("the node knows that", || std::fs::read_dir(&untold).unwrap().next().is_none());
    // Told again, as if the answer had been lost, it counts once.
    let id = id.as_str().unwrap();
    std::fs::write(untold.join(id), r#"{"pool":"web"}"#).unwrap();
    node.kill();
    node.start();
    until("it was told again", || std::fs::read_dir(&untold).unwrap().next().is_none());
    assert_eq!(
        (&released()["volumes"], released()["released"].as_array().unwrap().len()),
        (&1.into(), 1)
    );
    until("it is in the audit log, once", || {
        let log = grid.run(&["audit"]).json();
        let of_it = |entry: &&Value| entry["what"] == "erased" && entry["object"] == id;
        let found: Vec<&Value> = log.as_array().unwrap().iter().filter(of_it).collect();
        found.len() == 1 && found[0]["who"] == "node n1"
    });
    let shown = run(forebay(&grid.data).args(["volume", "erasures", "--grid"]));
    assert!(shown.out.contains("v1") && shown.out.contains("in all: 1 volumes"), "{}", shown.out);
}
