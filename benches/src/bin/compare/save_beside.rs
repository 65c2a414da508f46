//! What a guest that writes at its own pace feels of a capture for which nobody waits.

use serde_json::Value;

use crate::Setup;
use crate::bars::{Bars, Bound, median};
use crate::fio::nbd;
use crate::grid::Grid;
use crate::node::Node;
use crate::process::settle;

/// Seconds of each half of a pair. A capture in the background takes longer.
const RUNTIME: &str = "--runtime=8";
/// Pairs at least: one has 1,600 writes, and its p99 the 16 slowest.
const PAIRS: usize = 5;

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let grid = Grid::with_disk(setup, "save-beside");
    let (node, _, socket) = Node::with_volume(&grid, "save-beside-node");
    let uri = format!("nbd+unix:///v?socket={socket}");
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..setup.runs.max(PAIRS) {
        settle();
        without.push(p99(setup, &uri));
        settle();
        let begun = node.save(&["v", "saved:1", "--all", "--background", "--no-wait"]);
        let id = begun["id"].as_u64().unwrap().to_string();
        with.push(p99(setup, &uri));
        let ended = crate::process::json(&mut node.command(&["node", "cancel-capture", &id]));
        let goes_on = ended["state"] == "cancelled" && ended["progress"]["read"] != 0;
        assert!(goes_on, "it was to be captured all the while: {ended}");
    }
    let ratio = median(with.iter().zip(&without).map(|(a, b)| a / b).collect());
    let what = "p99 of a guest's paced writes (200 a second, NBD) while its volume is captured in the background, beside without";
    let micros = |all: Vec<f64>| format!("{:.0} µs", median(all) / 1e3);
    bars.add(what, micros(with), micros(without), ratio, Bound::AtMost(1.5));
}

/// In nanoseconds.
fn p99(setup: &Setup, uri: &str) -> f64 {
    let paced =
        ["--rw=randwrite", "--bs=4k", "--iodepth=4", "--rate_iops=200", "--time_based", RUNTIME];
    let said: Value = nbd(setup, None, uri, &paced);
    let p99 = &said["write"]["clat_ns"]["percentile"]["99.000000"];
    p99.as_f64().unwrap_or_else(|| panic!("no percentile in {said}"))
}
