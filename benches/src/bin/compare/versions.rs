//! A second version through three caches that have the first: the store gives what differs.
//!
//! Three `forebay cache` beside the one in `forebay up`; a node pulls version 1, and then version 2 to
//! another path, so that it has nothing to start from. What the store sends is counted at the sockets
//! of the S3 server that it lies in.

use std::collections::{HashMap, HashSet};

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
    let mut ended: Vec<_> = caches.into_iter().map(|cache| cache.terminate()).collect();
    ended.push(grid.stop());
    let fetched: Vec<_> = ended.iter().map(|said| said["store_egress"].as_f64().unwrap()).collect();
    let differ = Differ::of(setup);
    eprintln!(
        "for version 1 the store sent {}; of both the caches and `up` fetched {} as frames",
        mib(egress[0] as f64),
        fetched.iter().map(|f| mib(*f)).collect::<Vec<_>>().join(" + "),
    );
    let (sent, ratio) = (mib(egress[1] as f64), |of: u64| egress[1] as f64 / of as f64);
    let what = "what the store sends for version 2 through caches that have version 1, beside the \
                frames that differ";
    let bound = Bound::AtMost(1.05);
    bars.add(what, sent.clone(), mib(differ.by_section as f64), ratio(differ.by_section), bound);
    let what =
        "… beside those of them that stand nowhere else: one cache does not know of another's";
    bars.add(what, sent, mib(differ.anywhere as f64), ratio(differ.anywhere), Bound::Told);
}

/// Bytes of the frames by which the second disk differs from the first.
#[derive(Default)]
struct Differ {
    /// Those that a section has and did not have, for every section: its cache needs them.
    by_section: u64,
    /// Those that the disk has and did not have, however often.
    anywhere: u64,
}

impl Differ {
    fn of(setup: &Setup) -> Self {
        let first = forebay_benches::sections_of(&setup.disk);
        let known: HashSet<Digest> = first.iter().flatten().copied().collect();
        let frames = forebay_benches::frames_of(&setup.second);
        let bytes: HashMap<Digest, u64> =
            frames.iter().map(|f| (f.header().digest, f.bytes().len() as u64)).collect();
        let mut differ = Self::default();
        for (section, now) in forebay_benches::sections_of(&setup.second).iter().enumerate() {
            let had = first.get(section).cloned().unwrap_or_default();
            differ.by_section += now.difference(&had).map(|digest| bytes[digest]).sum::<u64>();
        }
        let new = bytes.iter().filter(|(digest, _)| !known.contains(digest));
        differ.anywhere = new.map(|(_, len)| len).sum();
        differ
    }
}
