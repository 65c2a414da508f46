//! A second version through three caches that have the first: the store gives what differs.
//!
//! Three `forebay cache` beside the one in `forebay up`; a node pulls version 1, and then version 2 to
//! another path, so that it has nothing to start from. What the store sends is counted at the sockets
//! of the S3 server that it lies in.

use std::collections::HashSet;

use image::Frame;

use crate::Setup;
use crate::bars::{Bars, Bound, mib};
use crate::grid::Grid;
use crate::process::run;
use crate::s3::S3;

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let dir = setup.dir.join("versions");
    let mut s3 = S3::start(&dir.join("s3"), None, "127.0.0.1");
    let servers = s3.servers();
    let grid = Grid::start_as(setup, &dir.join("up"), &servers);
    grid.import(&setup.disk, "v:1");
    let second = setup.second.to_str().unwrap();
    run(&mut grid.command(&["import", second, "v:2", "--parent", "v:1"]));
    let caches: Vec<_> = ["cache-1", "cache-2", "cache-3"]
        .map(|name| grid.cache(setup, &grid.join("server", name), &servers))
        .into();
    let node = grid.join("node", "node");
    let mut egress = [0; 2];
    for (version, sent) in ["v:1", "v:2"].iter().zip(&mut egress) {
        let copy = dir.join("copy.raw");
        let before = s3.sent();
        let to = copy.to_str().unwrap();
        let args = ["pull", version, "--no-daemon", "--no-sync", "--to", to];
        run(&mut grid.command_as(&node, &args));
        *sent = s3.sent() - before;
        std::fs::remove_file(&copy).unwrap();
    }
    let mut ended: Vec<_> = caches.into_iter().map(|cache| cache.terminate()).collect();
    ended.push(grid.stop());
    let fetched: Vec<_> = ended.iter().map(|said| said["store_egress"].as_f64().unwrap()).collect();
    let first = forebay_benches::frames_of(&setup.disk);
    let differ = bytes(&that_differ(&first, forebay_benches::frames_of(&setup.second)));
    eprintln!(
        "for version 1 the store sent {}; of both the caches and `up` fetched {} as frames, {} of them \
         for the second time",
        mib(egress[0] as f64),
        fetched.iter().map(|f| mib(*f)).collect::<Vec<_>>().join(" + "),
        mib(fetched.iter().sum::<f64>() - (bytes(&first) + differ) as f64),
    );
    let ratio = egress[1] as f64 / differ as f64;
    let what = "what the store sends for version 2 through caches that have version 1, beside the \
                frames that differ";
    bars.add(what, mib(egress[1] as f64), mib(differ as f64), ratio, Bound::AtMost(1.05));
}

/// The frames of a second disk that the first does not have anywhere.
fn that_differ(first: &[Frame], mut second: Vec<Frame>) -> Vec<Frame> {
    let known: HashSet<_> = first.iter().map(|f| f.header().digest).collect();
    second.retain(|f| !known.contains(&f.header().digest));
    second
}

fn bytes(frames: &[Frame]) -> u64 {
    frames.iter().map(|f| f.bytes().len() as u64).sum()
}
