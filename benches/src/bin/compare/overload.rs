//! What a cache gets done when more is asked of it than it can do.
//!
//! Nodes (`reader drain`) take one image out of the cache's memory, all at once, over and over; more and
//! more of them, until the cache gives no more. Then three times as many, in turn with the fewest that got
//! (nearly) the most out of it: these machines change by the minute. Only answers that came whole count.

use std::fs::File;
use std::io::Read;
use std::process::Command;

use crate::Setup;
use crate::bars::{Bars, Bound, median, mib};
use crate::grid::{Grid, Servers};
use crate::process::{Answering, beside};

/// Of the disk.
const PIECE: u64 = 512 << 20;
/// Nodes at a time.
const LOADS: [usize; 5] = [1, 2, 4, 8, 16];
const MOST: usize = 3 * 16;
/// So much of the most is as good as all of it.
const NEARLY: f64 = 0.95;

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let dir = setup.dir.join("overload");
    std::fs::create_dir_all(&dir).unwrap();
    let piece = dir.join("piece.raw");
    let mut disk = File::open(&setup.disk).unwrap().take(PIECE);
    std::io::copy(&mut disk, &mut File::create(&piece).unwrap()).unwrap();
    let servers = Servers { set: vec!["cache.memory=1GiB".into()], ..Servers::default() };
    let grid = Grid::start_as(setup, &dir.join("up"), &servers);
    let image = grid.import(&piece, "v:1")["image"].as_str().unwrap().to_owned();
    let nodes: Vec<_> = (0..MOST).map(|i| grid.join("node", &format!("node-{i}"))).collect();
    let readers = |count: usize| {
        let mut reader = Command::new(beside("reader"));
        Answering::start(reader.args(["drain", &image]).args(&nodes[..count])).0
    };
    let alone: Vec<_> = LOADS
        .into_iter()
        .map(|count| {
            let mut readers = readers(count);
            let goodput = median((0..setup.runs).map(|_| goodput(&mut readers)).collect());
            eprintln!("{count} nodes: {}/s", mib(goodput));
            (count, goodput)
        })
        .collect();
    let most = alone.iter().map(|(_, goodput)| *goodput).fold(0.0, f64::max);
    let (enough, _) = *alone.iter().find(|(_, g)| *g >= NEARLY * most).expect("one is the most");
    for (times, bound) in [(3, Bound::AtLeast(0.9)), (MOST / enough, Bound::Told)] {
        let (mut few, mut many) = (readers(enough), readers(times * enough));
        let pairs: Vec<_> =
            (0..2 * setup.runs).map(|_| (goodput(&mut few), goodput(&mut many))).collect();
        let ratio = median(pairs.iter().map(|(few, many)| many / few).collect());
        let rate = |of: fn(&(f64, f64)) -> f64| {
            format!("{}/s", mib(median(pairs.iter().map(of).collect())))
        };
        let nodes = times * enough;
        let what = format!(
            "what {nodes} nodes at once get out of a cache's memory, beside {enough}, which get all it can"
        );
        bars.add(&what, rate(|pair| pair.1), rate(|pair| pair.0), ratio, bound);
    }
}

/// Bytes a second of one round.
fn goodput(readers: &mut Answering) -> f64 {
    let taken = readers.ask();
    taken["bytes"].as_f64().unwrap() / taken["seconds"].as_f64().unwrap()
}
