//! A second version through three caches that have the first: the store gives what differs.
//!
//! Three `forebay cache` beside the one in `forebay up`; a node pulls version 1, and then version 2 to
//! another path, so that it has nothing to start from. What the store sends is counted at the sockets
//! of the S3 server that it lies in.

use std::collections::HashSet;

use image::Digest;

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
    let shares: Vec<_> = caches.into_iter().map(|cache| cache.terminate()).collect();
    let share = |said: &serde_json::Value| mib(said["store_egress"].as_f64().unwrap());
    eprintln!(
        "for version 1 the store sent {}; frames fetched by the caches over both: {}, and by `up`: {}",
        mib(egress[0] as f64),
        shares.iter().map(share).collect::<Vec<_>>().join(", "),
        share(&grid.stop()),
    );
    let differ = frames_that_differ(setup);
    let ratio = |of: u64| egress[1] as f64 / of as f64;
    let sent = mib(egress[1] as f64);
    let what = "what the store sends for version 2 through caches that have version 1, beside the \
                frames that differ";
    let bound = Bound::AtMost(1.05);
    bars.add(what, sent.clone(), mib(differ.in_section as f64), ratio(differ.in_section), bound);
    let what = "… beside those that version 1 has in no section: the others lie at another cache";
    bars.add(what, sent, mib(differ.anywhere as f64), ratio(differ.anywhere), Bound::Told);
}

/// Bytes of frames of the second disk, each counted once.
struct Differ {
    /// That the first disk does not have in the same section: a cache owns a section.
    in_section: u64,
    /// That the first disk does not have at all.
    anywhere: u64,
}

fn frames_that_differ(setup: &Setup) -> Differ {
    let sections = |path| -> Vec<HashSet<Digest>> {
        forebay_benches::sections_of(path).map(|s| s.into_iter().collect()).collect()
    };
    let (first, second) = (sections(&setup.disk), sections(&setup.second));
    let none = HashSet::new();
    let was = |section| first.get(section).unwrap_or(&none);
    let all: HashSet<_> = first.iter().flatten().collect();
    let moved: HashSet<_> =
        (0..).zip(&second).flat_map(|(i, now)| now.difference(was(i))).collect();
    let frames = forebay_benches::frames_of(&setup.second);
    let bytes = |of: &dyn Fn(&Digest) -> bool| {
        let some = frames.iter().filter(|f| of(&f.header().digest));
        some.map(|f| f.bytes().len() as u64).sum()
    };
    Differ { in_section: bytes(&|d| moved.contains(d)), anywhere: bytes(&|d| !all.contains(d)) }
}
