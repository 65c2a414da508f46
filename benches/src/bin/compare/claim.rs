//! How long a claim takes, at its node and by placement, beside what no journaled rename can do without: a write, its sync,
//! a rename, and the sync of its directory.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use api::pool::{LocalClaim, NewClaim};
use node::daemon::DaemonClient;
use placement::{Client, Papers};

use crate::Setup;
use crate::bars::{Bars, Bound, median};
use crate::grid::Grid;
use crate::node::Node;
use crate::process::{json, now, pause, settle};

/// Claims of each kind.
const CLAIMS: usize = 200;
/// A placement's answer is waited for so long.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let dir = setup.dir.join("claim");
    let grid = Grid::start(setup, &dir.join("grid"), None);
    let node = Node::start(&grid, "claim-node");
    let many = (2 * CLAIMS).to_string();
    let create = ["pool", "create", "p", "--size", "256MiB", "--target", &many, "--low", &many];
    json(&mut grid.command(&create));
    while json(&mut grid.command(&["pool", "show", "p"]))["ready"] != 2 * CLAIMS {
        pause(Duration::from_millis(200));
    }
    // Nothing is built meanwhile.
    json(&mut grid.command(&["pool", "set", "p", "--low", "0", "--target", "0", "--max", &many]));
    settle();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut local, mut by_placement, mut renames, mut round_trips) =
        (vec![], vec![], vec![], vec![]);
    runtime.block_on(async {
        let daemon = DaemonClient::new(node.socket());
        let placement = client(&grid);
        for n in 0..CLAIMS {
            let rename = {
                let start = now();
                journaled_rename(&dir, n);
                (now() - start).as_secs_f64()
            };
            renames.push(rename);
            let asked = LocalClaim { request: format!("{n:032x}"), volume: format!("l{n}") };
            let start = now();
            daemon.claim("p", &asked).await.unwrap();
            local.push((now() - start).as_secs_f64());
            let start = now();
            placement.health().await.unwrap();
            round_trips.push((now() - start).as_secs_f64());
            let asked = NewClaim {
                request: format!("{:032x}", n + CLAIMS),
                volume: format!("p{n}"),
                node: None,
                only: false,
            };
            let start = now();
            let done = placement.claim("p", &asked, PATIENCE).await.unwrap();
            by_placement.push((now() - start).as_secs_f64());
            assert!(done.result.is_some(), "{done:?}");
        }
    });
    let millis = |s: f64| format!("{:.2} ms", s * 1000.0);
    let told = |all: &[f64]| {
        let (p99, usual) = (p99(all.to_vec()), median(all.to_vec()));
        format!("{} (median {})", millis(p99), millis(usual))
    };
    let (at_node, at_placement) = (told(&local), told(&by_placement));
    let (bare, trips) = (told(&renames), told(&round_trips));
    let [local, by_placement, renames, round_trips] =
        [local, by_placement, renames, round_trips].map(p99);
    let what =
        "a claim at its node, p99 of 200, beside write, fsync, rename and fsync of the directory";
    bars.add(what, at_node, bare, local / renames, Bound::AtMost(3.0));
    // A commit of placement's state is a write and a sync or two: as much as the rename is generous to ourselves, so it
    // is told and no more.
    let allowed = 3.0 * renames + round_trips + renames;
    let what = "… by placement, beside three of these, one round trip of TLS and one commit";
    bars.add(
        what,
        at_placement,
        format!("{}; the round trip {trips}", millis(allowed)),
        by_placement / allowed,
        Bound::AtMost(1.0),
    );
}

fn client(grid: &Grid) -> Client {
    let up: serde_json::Value =
        serde_json::from_slice(&std::fs::read(grid.data.join("up.json")).unwrap()).unwrap();
    let papers = Papers::load(&grid.data.join("admin")).unwrap();
    Client::new(up["placement"].as_str().unwrap(), &papers).unwrap()
}

fn journaled_rename(dir: &Path, n: usize) {
    let (new, path) = (dir.join("new"), dir.join(format!("renamed-{n}")));
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(&new).unwrap();
    file.write_all(&[7; 512]).unwrap();
    file.sync_all().unwrap();
    std::fs::rename(&new, &path).unwrap();
    File::open(dir).unwrap().sync_all().unwrap();
}

fn p99(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() * 99 / 100]
}
