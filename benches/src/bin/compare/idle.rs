//! What volumes cost a node that do nothing: 50 of them, and one of 1 TiB.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::Setup;
use crate::bars::{Bars, Bound, median, mib};
use crate::fio::nbd;
use crate::grid::{Grid, Servers};
use crate::node::Node;
use crate::process::{now, pause, resident};

const MIB: f64 = 1048576.0;
const VOLUMES: usize = 50;
const LARGE: u64 = 1 << 40;
/// Random writes over 1 TiB, 4 KiB each: enough to reach nearly every piece that its maps are made of.
const WRITES: &str = "250000";

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let dir = setup.dir.join("idle");
    std::fs::create_dir_all(&dir).unwrap();
    let large = dir.join("large.raw");
    sparse(&large);
    let grid = Grid::start_as(setup, &dir.join("up"), &Servers::default());
    grid.import(&setup.disk, "v:1");
    grid.import(&large, "large:1");
    std::fs::remove_file(&large).unwrap();
    many(&grid, bars);
    let node = Node::start_on(&grid, "large-node", 0);
    one_large(setup, &node, bars);
}

/// 1 TiB with something in every tenth GiB.
fn sparse(path: &Path) {
    let (file, data) = (File::create(path).unwrap(), std::fs::read("/bin/bash").unwrap());
    file.set_len(LARGE).unwrap();
    (0..LARGE).step_by(10 << 30).for_each(|at| file.write_all_at(&data, at).unwrap());
}

/// Resident bytes of the daemon, when it has come to rest.
fn rest(node: &Node) -> f64 {
    pause(Duration::from_secs(1));
    resident(node.daemon.0.id()) as f64
}

fn many(grid: &Grid, bars: &mut Bars) {
    let node = Node::start(grid, "many-node");
    let names: Vec<String> = (0..VOLUMES).map(|i| format!("idle-{i}")).collect();
    names.iter().for_each(|name| drop(node.volume(&["create", "v:1", "--name", name])));
    let before = rest(&node);
    names.iter().for_each(|name| drop(node.attach(name, &["--no-fill"])));
    let grown = rest(&node) - before;
    eprintln!("{VOLUMES} volumes: from {} to {}", mib(before), mib(before + grown));
    let each = grown / VOLUMES as f64;
    let what = "resident memory of a volume that is attached, lacks all, and is idle; of 50";
    bars.add(what, mib(each), mib(4.0 * MIB), each / (4.0 * MIB), Bound::AtMost(1.0));
}

fn one_large(setup: &Setup, node: &Node, bars: &mut Bars) {
    // The memory between guests and disks is the daemon's, whoever uses it: it is used once before.
    node.volume(&["create", "--blank", "1GiB", "--name", "small"]);
    scatter(setup, &node.attach("small", &[]), "small");
    node.remove("small");
    node.volume(&["create", "large:1", "--name", "large"]);
    let before = rest(node);
    let fresh: Vec<f64> = (0..setup.runs).map(|_| attach(node)).collect();
    let socket = attached(node);
    let grown = rest(node) - before;
    scatter(setup, &socket, "large");
    let written = rest(node) - before;
    node.volume(&["detach", "large"]);
    let after: Vec<f64> = (0..setup.runs).map(|_| attach(node)).collect();
    for (what, times) in [
        ("attaching a volume of 1 TiB that lacks all", fresh),
        ("… that was written to all over", after),
    ] {
        let took = median(times);
        let ours = format!("{:.0} ms", took * 1e3);
        bars.add(what, ours, "200 ms".into(), took / 0.2, Bound::AtMost(1.0));
    }
    for (what, bytes) in [
        ("resident memory of a volume of 1 TiB that lacks all", grown),
        ("… after random writes all over it", written),
    ] {
        bars.add(what, mib(bytes), mib(64.0 * MIB), bytes / (64.0 * MIB), Bound::AtMost(1.0));
    }
    node.volume(&["rm", "large"]);
}

fn attached(node: &Node) -> String {
    node.attach("large", &["--no-fill"])
}

/// Seconds that it takes, the command's own time with it.
fn attach(node: &Node) -> f64 {
    let start = now();
    attached(node);
    let took = (now() - start).as_secs_f64();
    node.volume(&["detach", "large"]);
    took
}

/// Writes blocks all over a volume.
fn scatter(setup: &Setup, socket: &str, name: &str) {
    let writes = format!("--number_ios={WRITES}");
    let load = ["--rw=randwrite", "--bs=4096", "--iodepth=32", "--norandommap", "--end_fsync=1"];
    let uri = format!("nbd+unix:///{name}?socket={socket}");
    let job = nbd(setup, None, &uri, &[&load[..], &[&writes]].concat());
    eprintln!(
        "{} writes to {name}, {:.0} /s",
        job["write"]["total_ios"],
        job["write"]["iops"].as_f64().unwrap()
    );
}
