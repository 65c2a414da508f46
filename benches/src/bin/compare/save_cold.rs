//! An image made of a disk of which nothing is stored, beside other archivers of the same disk.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Setup;
use crate::bars::{Bars, Bound, median, seconds};
use crate::grid::Grid;
use crate::import::non_holes;
use crate::process::{run, settle, timed};

/// What borg takes for a chunk of a fixed length.
const BORG_CHUNKS: &str = "fixed,262144";

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let plain = non_holes(setup);
    let (mut ours, mut borgs, mut whole, mut data) = (vec![], vec![], vec![], vec![]);
    for round in 0..setup.runs {
        borgs.push(borg(setup, round));
        whole.push(zstd(setup, &setup.disk, "-T2"));
        data.push(zstd(setup, &plain, "-T0"));
        ours.push(save(setup, round));
    }
    std::fs::remove_file(&plain).unwrap();
    let better: Vec<f64> = borgs.iter().zip(&whole).map(|(a, b)| a.min(*b)).collect();
    let ratio = |to: &[f64]| median(ours.iter().zip(to).map(|(a, b)| a / b).collect());
    let (beside_tools, beside_data) = (ratio(&better), ratio(&data));
    let took = || seconds(median(ours.clone()));
    let what = "saving a disk, nothing stored (durable), beside the better of borg (zstd 3, fixed chunks) and zstd -3 -T2";
    bars.add(what, took(), seconds(median(better)), beside_tools, Bound::Told);
    let what = "… beside zstd -3 of the non-hole bytes on all cores";
    bars.add(what, took(), seconds(median(data)), beside_data, Bound::Told);
    let met = (beside_tools / 0.6).min(beside_data / 1.15);
    let what = "… the smaller of these ratios to its bar, 0.6 and 1.15";
    bars.add(what, took(), String::new(), met, Bound::AtMost(1.0));
}

fn save(setup: &Setup, round: usize) -> f64 {
    let data = setup.dir.join(format!("save-{round}"));
    let grid = Grid::start(setup, &data, None);
    settle();
    let took = timed(&mut grid.command(&["save", setup.disk.to_str().unwrap(), "v:1"]));
    drop(grid);
    std::fs::remove_dir_all(&data).unwrap();
    took
}

fn zstd(setup: &Setup, of: &Path, threads: &str) -> f64 {
    settle();
    let to = setup.dir.join("archive.zst");
    let took =
        timed(Command::new("zstd").args(["-q", "-3", threads, "-f"]).arg(of).arg("-o").arg(&to));
    std::fs::remove_file(to).unwrap();
    took
}

fn borg(setup: &Setup, round: usize) -> f64 {
    let repository = setup.dir.join(format!("borg-{round}"));
    let home: PathBuf = setup.dir.join("borg-home");
    let borg = || {
        let mut borg = Command::new("borg");
        borg.env("BORG_BASE_DIR", &home).env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
        borg
    };
    run(borg().args(["init", "--encryption=none"]).arg(&repository));
    settle();
    let archive = format!("{}::disk", repository.display());
    let mut create = borg();
    create.args(["create", "--compression=zstd,3", "--chunker-params", BORG_CHUNKS, "--sparse"]);
    let took = timed(create.arg(archive).arg(&setup.disk));
    std::fs::remove_dir_all(repository).unwrap();
    std::fs::remove_dir_all(home).unwrap();
    took
}
