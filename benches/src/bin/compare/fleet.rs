//! Many nodes pull one cold image at once: the store gives it once.
//!
//! The nodes are 50 members of the grid, each with its own certificate, ticket and connection, in one
//! process (`reader drain`): they receive and check every frame and drop it. What the store sends is
//! counted at the sockets of the S3 server that it lies in, so headers, manifest, tables and locator
//! count too, and what placement looks up to give the first ticket.

use std::process::Command;

use crate::Setup;
use crate::bars::{Bars, Bound, mib};
use crate::grid::Grid;
use crate::process::{Answering, beside};
use crate::s3::S3;

const NODES: usize = 50;

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let dir = setup.dir.join("fleet");
    let mut s3 = S3::start(&dir.join("s3"), None, "127.0.0.1");
    let (servers, data) = (s3.servers(), dir.join("up"));
    let grid = Grid::start_as(setup, &data, &servers);
    let image = grid.import(&setup.disk, "v:1")["image"].as_str().unwrap().to_owned();
    // Started anew, it knows nothing of the image.
    grid.stop();
    let _ = std::fs::remove_dir_all(data.join("cache"));
    let grid = Grid::start_as(setup, &data, &servers);
    let nodes: Vec<_> = (0..NODES).map(|i| grid.join("node", &format!("node-{i}"))).collect();
    let one: u64 =
        forebay_benches::frames_of(&setup.disk).iter().map(|f| f.bytes().len() as u64).sum();

    let before = s3.sent();
    let mut reader = Command::new(beside("reader"));
    let (mut reader, _) = Answering::start(reader.args(["drain", &image]).args(&nodes));
    let taken = reader.ask();
    let egress = s3.sent() - before;
    let (bytes, seconds) = (taken["bytes"].as_f64().unwrap(), taken["seconds"].as_f64().unwrap());
    assert!(bytes >= (one * NODES as u64) as f64, "every node got the whole image");
    let frames = grid.stop()["store_egress"].as_f64().unwrap();
    eprintln!(
        "{NODES} nodes took {} in {seconds:.1} s ({}/s); the store sent {}, {} of them frames",
        mib(bytes),
        mib(bytes / seconds),
        mib(egress as f64),
        mib(frames),
    );
    let what = "what the store sends for 50 nodes that pull one cold image at once, beside one \
                compressed copy";
    let ratio = egress as f64 / one as f64;
    bars.add(what, mib(egress as f64), mib(one as f64), ratio, Bound::AtMost(1.01));
}
