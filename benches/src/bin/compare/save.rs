//! Captures of a volume, beside what they cannot do without: with nothing changed, and with one chunk in a hundred.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use blockio::{BlockFile, OpenMode};
use image::{Digest, Domain, Encoder, is_zero};
use serde_json::Value;

use crate::Setup;
use crate::bars::{Bars, Bound, median, mib, seconds};
use crate::fio::nbd;
use crate::grid::Grid;
use crate::node::Node;
use crate::process::{now, settle};

const CHUNK: u64 = forebay_benches::CHUNK as u64;
/// Of the chunks one in so many is written to.
const EVERY: u64 = 100;
/// Threads that read and hash: all cores.
const CORES: usize = 2;

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let grid = Grid::with_disk(setup, "save");
    let (node, file, socket) = Node::with_volume(&grid, "save-node");
    node.save(&["v", "saved:0"]);
    nothing_changed(setup, bars, &node, &file);
    some_changed(setup, bars, &node, &file, &socket);
}

fn nothing_changed(setup: &Setup, bars: &mut Bars, node: &Node, file: &Path) {
    let gib = file.metadata().unwrap().len() as f64 / f64::from(1 << 30);
    let (mut by_map, mut full, mut limit, mut data) = (vec![], vec![], vec![], vec![]);
    let (all, no_holes) = (chunks_of(file, false), chunks_of(file, true));
    for _ in 0..setup.runs {
        settle();
        by_map.push(timed(|| {
            let saved = node.save(&["v", "saved:0"]);
            assert_eq!(
                (&saved["truth"], &saved["progress"]["read"]),
                (&"changed-map".into(), &0.into())
            );
        }));
        limit.push(timed(|| read_and_hash(file, &all)));
        data.push(timed(|| read_and_hash(file, &no_holes)));
        full.push(timed(|| drop(node.save(&["v", "saved:0", "--all"]))));
    }
    let allowed = 0.1 + 0.001 * gib;
    let ratio = median(by_map.iter().map(|t| t / allowed).collect());
    let what =
        "a capture when nothing has changed, by the map, beside 100 ms and 1 ms for each GiB";
    bars.add(what, millis(median(by_map)), millis(allowed), ratio, Bound::AtMost(1.0));
    let beside = |limit: &[f64]| median(full.iter().zip(limit).map(|(a, b)| a / b).collect());
    let (to_all, to_data, took) = (beside(&limit), beside(&data), median(full.clone()));
    let what = "… when all is read, beside reading it and BLAKE3 on all cores";
    bars.add(what, seconds(took), seconds(median(limit)), to_all, Bound::AtMost(1.1));
    let what = "… beside the same of what is not hole";
    bars.add(what, seconds(took), seconds(median(data)), to_data, Bound::Told);
}

/// Where the chunks of a file begin, those that are nothing but hole left out or not.
fn chunks_of(path: &Path, no_holes: bool) -> Vec<u64> {
    let file = BlockFile::open(path, OpenMode::read()).unwrap();
    let size = file.size().unwrap();
    let all = (0..size).step_by(CHUNK as usize);
    match no_holes {
        false => all.collect(),
        true => all
            .filter(|at| file.data_extents(*at..(at + CHUNK).min(size)).next().is_some())
            .collect(),
    }
}

fn some_changed(setup: &Setup, bars: &mut Bars, node: &Node, file: &Path, socket: &str) {
    let chunks = file.metadata().unwrap().len() / CHUNK;
    let (on, writes) = (EVERY * CHUNK - 4096, chunks / EVERY);
    let uri = format!("nbd+unix:///v?socket={socket}");
    let (on, number) = (format!("--rw=write:{on}"), format!("--number_ios={writes}"));
    nbd(setup, None, &uri, &["--bs=4096", "--iodepth=1", "--end_fsync=1", &on, &number]);
    let changed: Vec<u64> = (0..writes).map(|n| n * EVERY).collect();
    let saved = node.save(&["v", "saved:1"]);
    let read = saved["progress"]["read"].as_u64().unwrap() as f64;
    let plain = (changed.len() as u64 * CHUNK) as f64;
    let what = "what a capture reads when one chunk in a hundred has changed, beside these chunks";
    bars.add(what, mib(read), mib(plain), read / plain, Bound::AtMost(1.05));
    let sent = saved["progress"]["sent"].as_u64().unwrap() as f64;
    let packed = compressed(file, &changed) as f64;
    let what = "… what it sends, beside their compressed size";
    bars.add(what, mib(sent), mib(packed), sent / packed, Bound::AtMost(1.05));
}

/// What no capture that reads all can do without.
fn read_and_hash(path: &Path, chunks: &[u64]) {
    let (file, next) = (File::open(path).unwrap(), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CORES {
            scope.spawn(|| {
                let mut chunk = vec![0; CHUNK as usize];
                while let Some(at) = chunks.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
                    file.read_exact_at(&mut chunk, at).unwrap();
                    if !is_zero(&chunk) {
                        std::hint::black_box(Digest::of_chunk(&chunk));
                    }
                }
            });
        }
    });
}

/// Bytes of the frames of these chunks.
fn compressed(path: &Path, chunks: &[u64]) -> usize {
    let (file, mut plain) = (File::open(path).unwrap(), vec![0; CHUNK as usize]);
    let mut encoder = Encoder::new().unwrap();
    let frame = |chunk: &u64| {
        file.read_exact_at(&mut plain, chunk * CHUNK).unwrap();
        encoder.encode(Domain::PUBLIC, Digest::of_chunk(&plain), &plain).bytes().len()
    };
    chunks.iter().map(frame).sum()
}

fn timed(work: impl FnOnce()) -> f64 {
    let started = now();
    work();
    Duration::as_secs_f64(&(now() - started))
}

fn millis(seconds: f64) -> String {
    format!("{:.0} ms", seconds * 1e3)
}

impl Node<'_> {
    /// Saves a volume; how that ended.
    pub fn save(&self, args: &[&str]) -> Value {
        crate::process::json(&mut self.command(&[&["save"], args].concat()))
    }
}
