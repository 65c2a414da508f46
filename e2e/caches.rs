//! Caches as processes of their own.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::harness::{Background, Disk, Grid, forebay, path, run};

const SECTION: u64 = 64 << 20;
const SECTIONS: u64 = 12;

/// A disk with a chunk of data in each of many sections.
pub fn wide_disk(grid: &Grid) -> PathBuf {
    let name = grid.dir.join("wide.raw");
    let file = File::create(&name).unwrap();
    file.set_len(SECTIONS * SECTION).unwrap();
    for section in 0..SECTIONS {
        file.write_all_at(&chunk_of(section), section * SECTION).unwrap();
    }
    name
}

fn chunk_of(section: u64) -> Vec<u8> {
    Disk::new(&char::from(b'a' + section as u8).to_string()).bytes
}

#[track_caller]
pub fn is_wide(copy: &Path) {
    let file = File::open(copy).unwrap();
    assert_eq!(file.metadata().unwrap().len(), SECTIONS * SECTION);
    for section in 0..SECTIONS {
        let mut found = chunk_of(section);
        file.read_exact_at(&mut found, section * SECTION).unwrap();
        assert!(found == chunk_of(section), "section {section}");
    }
}

/// Joins with a token of a role, in a data directory of its own.
pub fn join(grid: &Grid, role: &str, name: &str) -> PathBuf {
    let token = grid.run(&["node", "token", "--role", role]).json();
    let data = grid.dir.join(name);
    let joined = run(forebay(&data).args([
        "node",
        "join",
        token["token"].as_str().unwrap(),
        "--name",
        name,
    ]));
    assert_eq!(joined.code, 0, "{}", joined.err);
    data
}

pub fn cache(grid: &Grid, data: &Path) -> Background {
    let store = format!("store.at={}", path(&grid.data.join("store")));
    let mut cache = Background::start(forebay(data).args(["cache", "--json", "--set", &store]));
    assert!(!cache.line().is_empty(), "the cache ended before it served");
    cache
}

pub fn egress(ended: (String, i32)) -> u64 {
    assert_eq!(ended.1, 0, "{}", ended.0);
    let said: serde_json::Value = serde_json::from_str(&ended.0).unwrap();
    said["store_egress"].as_u64().unwrap()
}

#[test]
fn pulls_spread_over_the_caches_and_a_dead_one_costs_no_pull() {
    let mut grid = Grid::start();
    let disk = wide_disk(&grid);
    grid.import(&disk, "wide:1");
    let mut caches = ["c1", "c2"].map(|name| cache(&grid, &join(&grid, "server", name)));
    let copy = grid.dir.join("copy.raw");
    grid.pull("wide:1", &copy).json();
    is_wide(&copy);

    // One dies: placement goes on naming it for a while.
    let [first, second] = &mut caches;
    first.kill();
    let again = grid.dir.join("again.raw");
    grid.pull("wide:1", &again).json();
    is_wide(&again);

    // One leaves in good order, and comes back with what it had.
    assert!(egress(second.terminate()) > 0, "it served some sections");
    let mut second = cache(&grid, &grid.dir.join("c2"));
    let third = grid.dir.join("third.raw");
    grid.pull("wide:1", &third).json();
    is_wide(&third);
    assert_eq!(egress(second.terminate()), 0, "its disk had them");
    let up = grid.stop()["store_egress"].as_u64().unwrap();
    assert!(up > 0, "`up` served what the others did not");
}

#[test]
fn a_cache_has_the_share_of_its_weight() {
    let mut grid = Grid::start_with(&["--set", "cache.weight=0"]);
    let disk = wide_disk(&grid);
    grid.import(&disk, "wide:1");
    let data = join(&grid, "server", "c1");
    let mut cache = cache(&grid, &data);
    let copy = grid.dir.join("copy.raw");
    grid.pull("wide:1", &copy).json();
    is_wide(&copy);
    assert!(egress(cache.terminate()) > 0);
    // A cache by itself has to have some.
    let store = format!("store.at={}", path(&grid.data.join("store")));
    run(forebay(&data).args(["cache", "--set", &store, "--set", "cache.weight=0"]))
        .fails(65, &["cache.weight"]);
    assert_eq!(grid.stop()["store_egress"], 0, "`up` has no sections of its own");
}

/// The id of a grid's store, by its marker.
fn store_id(grid: &Grid) -> String {
    let marker = std::fs::read_to_string(grid.data.join("store/forebay-store")).unwrap();
    let marker: serde_json::Value = serde_json::from_str(&marker).unwrap();
    marker["body"]["store"].as_str().unwrap().to_owned()
}

#[test]
fn a_cache_with_the_store_of_another_grid_does_not_start() {
    let (grid, other) = (Grid::start(), Grid::start());
    let data = join(&grid, "server", "c1");
    let store = path(&other.data.join("store")).to_owned();
    let refused = run(forebay(&data).args(["cache", "--set", &format!("store.at={store}")]));
    let says = ["store.at", &store, &store_id(&grid), &store_id(&other), "another grid"];
    refused.fails(65, &says);
    // With its own it does.
    cache(&grid, &data);
}

#[test]
fn only_who_joined_as_a_server_may_be_a_cache() {
    let grid = Grid::start();
    let node = join(&grid, "node", "n1");
    run(forebay(&node).arg("cache")).fails(77, &["--role server"]);
    let stranger = grid.dir.join("nowhere");
    run(forebay(&stranger).arg("cache")).fails(66, &["forebay node join"]);
    // Two on one directory.
    let data = join(&grid, "server", "c1");
    let _first = cache(&grid, &data);
    run(forebay(&data).arg("cache")).fails(73, &["forebay cache"]);
}
