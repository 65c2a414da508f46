//! What a cache gets done when more is asked of it than it can do.
//!
//! Nodes (`reader drain`) take one image out of the cache's memory, all at once, over and over; more and
//! more of them, until the cache gives no more, and then three times as many. Only answers that came
//! whole count.

use std::fs::File;
use std::io::Read;
use std::process::Command;

use crate::Setup;
use crate::bars::{Bars, Bound, mib};
use crate::grid::{Grid, Servers};
use crate::process::{Answering, beside};

/// Of the disk.
const PIECE: u64 = 512 << 20;
/// Nodes at a time, until it is enough.
const LOADS: [usize; 5] = [1, 2, 4, 8, 16];
const OVERLOAD: usize = 3 * 16;

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let dir = setup.dir.join("overload");
    std::fs::create_dir_all(&dir).unwrap();
    let piece = dir.join("piece.raw");
    let mut disk = File::open(&setup.disk).unwrap().take(PIECE);
    std::io::copy(&mut disk, &mut File::create(&piece).unwrap()).unwrap();
    let servers = Servers { set: vec!["cache.memory=1GiB".into()], ..Servers::default() };
    let grid = Grid::start_as(setup, &dir.join("up"), &servers);
    let image = grid.import(&piece, "v:1")["image"].as_str().unwrap().to_owned();
    let nodes: Vec<_> = (0..OVERLOAD).map(|i| grid.join("node", &format!("node-{i}"))).collect();
    let goodput = |count: usize| {
        let mut reader = Command::new(beside("reader"));
        let reader = reader.args(["drain", &image]).args(&nodes[..count]);
        let (mut reader, _) = Answering::start(reader);
        let mut best = 0.0_f64;
        for _ in 0..setup.runs.max(2) {
            let taken = reader.ask();
            best = best.max(taken["bytes"].as_f64().unwrap() / taken["seconds"].as_f64().unwrap());
        }
        eprintln!("{count} nodes: {}/s", mib(best));
        best
    };
    let peak = LOADS.into_iter().map(goodput).fold(0.0, f64::max);
    let over = goodput(OVERLOAD);
    let what =
        "what 48 nodes at once get out of a cache's memory, beside the most that 1 to 16 get";
    let per_second = |bytes| format!("{}/s", mib(bytes));
    bars.add(what, per_second(over), per_second(peak), over / peak, Bound::AtLeast(0.9));
}
