//! A guest that reads 4 KiB of chunks that have not arrived, one after the other, beside whoever asks the same
//! cache for the same chunks and does nothing else.
//!
//! Between node and cache is the line of [`cold`](crate::cold): 20 ms there and back, 1 Gbit/s. What a plain
//! fetch of a chunk takes (`reader each`) is that, the time its frame takes on the line, and the time to decode
//! and check it: what no read can do without. The chunks are too far apart to look like a guest that reads on.

use crate::Setup;
use crate::bars::{Bars, Bound, median};
use crate::cold::{FAR, FAR_IP, Line, NEAR};
use crate::fio::nbd;
use crate::grid::{Grid, Servers};
use crate::node::Node;
use crate::process::{beside, inside, json, run};
use crate::volume::dense;

/// Of the chunks one in so many is read.
const EVERY: u64 = 16;
/// How many are read in a run.
const READS: u64 = 200;
const CHUNK: u64 = forebay_benches::CHUNK as u64;

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let _line = Line::up();
    let dir = setup.dir.join("absent");
    std::fs::create_dir_all(&dir).unwrap();
    let disk = dir.join("dense.raw");
    dense(setup, &disk);
    let size = disk.metadata().unwrap().len();
    assert!(size > EVERY * CHUNK * READS, "the disk has too little in it");
    let set = vec!["cache.memory=1GiB".to_owned()];
    let servers = Servers { place: Some((FAR, FAR_IP, NEAR)), set, ..Servers::default() };
    let grid = Grid::start_as(setup, &dir.join("up"), &servers);
    let image = grid.import(&disk, "v:1")["image"].as_str().unwrap().to_owned();
    run(&mut grid.command(&["cache", "warm", "v:1"]));
    let node = Node::start(&grid, "absent-node");

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..setup.runs {
        let mut reader = inside(Some(NEAR), beside("reader"));
        reader.args(["each", &image]).arg(&grid.data);
        let said = json(reader.args([EVERY.to_string(), READS.to_string()]));
        theirs.push(said["median"].as_f64().unwrap());
        ours.push(read_one_by_one(setup, &node));
        eprintln!("{round}: {} ms, a plain fetch {} ms", ms(&ours), ms(&theirs));
    }
    let ratio = median(ours.iter().zip(&theirs).map(|(a, b)| a / b).collect());
    let what = "a read of 4 KiB of a chunk that has not arrived, the cache 20 ms away, beside a plain fetch \
                of the chunk; p50";
    let (ours, theirs) = (format!("{} ms", ms(&ours)), format!("{} ms", ms(&theirs)));
    bars.add(what, ours, theirs, ratio, Bound::AtMost(1.15));
}

fn ms(times: &[f64]) -> String {
    format!("{:.2}", median(times.to_vec()) * 1e3)
}

/// The median, in seconds.
fn read_one_by_one(setup: &Setup, node: &Node) -> f64 {
    node.volume(&["create", "v:1", "--name", "absent"]);
    let socket = node.attach("absent", &["--no-fill", "--no-trace"]);
    // 4 KiB, and on to the chunk so many chunks behind it.
    let on = format!("--rw=read:{}", EVERY * CHUNK - 4096);
    let reads = format!("--number_ios={READS}");
    let uri = format!("nbd+unix:///absent?socket={socket}");
    let job = nbd(setup, None, &uri, &["--bs=4096", "--iodepth=1", &on, &reads]);
    eprintln!("{}", node.hydration("absent"));
    node.remove("absent");
    let median = &job["read"]["clat_ns"]["percentile"]["50.000000"];
    median.as_f64().unwrap() / 1e9
}
