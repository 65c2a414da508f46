//! Whom a grid trusts: certificates are renewed while their members serve, and revoked ones cut what they have begun.

use std::time::Duration;

use crate::caches::{cache, is_wide, join, wide_disk};
use crate::harness::{CHUNK, Disk, Grid, path, until};
use crate::member::Node;
use crate::volumes::connect;

/// Until when the certificate of a member is good, and the certificate itself.
fn certificate(grid: &Grid, node: &Node) -> (u64, String) {
    let all = grid.run(&["node", "list"]).json();
    let members = all["members"].as_array().unwrap();
    let member = members.iter().find(|m| m["name"] == node.name.as_str()).unwrap();
    let text = std::fs::read_to_string(node.data.join("member/cert.pem")).unwrap();
    (member["expires"].as_u64().unwrap(), text)
}

#[test]
fn certificates_are_renewed_while_their_members_serve() {
    let grid = Grid::start_with(&["--set", "placement.certificates=12s"]);
    let image = wide_disk(&grid);
    grid.import(&image, "d:1");
    let data = join(&grid, "server", "c1");
    let _cache = cache(&grid, &data);
    let node = Node::join(&grid, "n1");
    let daemon = node.daemon.as_ref().unwrap().child.id();
    let (first, papers) = certificate(&grid, &node);
    // All that was issued at first has expired then: the node's, the cache's, placement's own.
    until("it was renewed twice", || certificate(&grid, &node).0 > first + 12);
    assert_ne!(certificate(&grid, &node).1, papers);
    let copy = grid.dir.join("copy.raw");
    let pulled = node.run(&["pull", "d:1", "--to", path(&copy)]);
    assert_eq!(pulled.code, 0, "{}", pulled.err);
    is_wide(&copy);
    assert_eq!(node.daemon.as_ref().unwrap().child.id(), daemon);
    let caches = grid.run(&["cache", "status"]).json();
    assert!(caches.to_string().contains("c1"), "{caches}");
}

#[test]
fn what_a_removed_node_has_begun_is_cut() {
    let grid = Grid::start_with(&["--set", "serve.revocations=1s"]);
    let disk = Disk::new(&('0'..='~').collect::<String>());
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let node = Node::join(&grid, "n1");
    assert_eq!(node.run(&["volume", "create", "d:1", "--name", "v"]).code, 0);
    let attach = ["volume", "attach", "v", "--no-fill", "--patience", "1s", "--json"];
    let info = node.run(&attach).json();
    let mut guest = connect(info["attached"]["path"].as_str().unwrap().as_ref());
    assert!(guest.read(0, CHUNK).unwrap() == disk.bytes[..CHUNK]);
    grid.run(&["node", "remove", "n1"]).json();
    // The session that it has would go on for as long as its ticket is good.
    let is_cut = (1..disk.bytes.len() / CHUNK).any(|chunk| {
        std::thread::park_timeout(Duration::from_millis(200));
        guest.read((chunk * CHUNK) as u64, CHUNK).is_err()
    });
    assert!(is_cut, "it has read all of the image");
    let to = grid.dir.join("copy.raw");
    node.run(&["pull", "d:1", "--to", path(&to), "--no-daemon"]).fails(77, &["n1 was removed"]);
}
