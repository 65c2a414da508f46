//! Importing, beside zstd -3 of the same bytes on all cores; and what a second version costs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::{Digest, Domain, Encoder, is_zero};

use crate::Setup;
use crate::bars::{Bars, Bound, median, mib, seconds};
use crate::grid::Grid;
use crate::process::{settle, timed};

/// The disk's bytes that are not in holes, as a file of their own.
pub fn non_holes(setup: &Setup) -> PathBuf {
    let path = setup.dir.join("non-holes");
    let mut out = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    for chunk in forebay_benches::chunks_of(&setup.disk, usize::MAX) {
        out.write_all(&chunk).unwrap();
    }
    out.flush().unwrap();
    path
}

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let plain = non_holes(setup);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..setup.runs {
        settle();
        let mut zstd = Command::new("zstd");
        zstd.args(["-q", "-3", "-T0", "-f"]).arg(&plain).arg("-o").arg(setup.dir.join("z.zst"));
        theirs.push(timed(&mut zstd));
        let data = setup.dir.join(format!("import-{run}"));
        let grid = Grid::start(setup, &data, None);
        settle();
        let disk = setup.disk.to_str().unwrap();
        ours.push(timed(&mut grid.command(&["import", disk, "v:1"])));
        drop(grid);
        std::fs::remove_dir_all(&data).unwrap();
    }
    let ratio = median(ours.iter().zip(&theirs).map(|(a, b)| a / b).collect());
    let what = "import (durable), beside zstd -3 -T0 of the non-hole bytes (not synced)";
    let (ours, theirs) = (seconds(median(ours)), seconds(median(theirs)));
    bars.add(what, ours, theirs, ratio, Bound::AtMost(1.25));
}

pub fn second_version(setup: &Setup, bars: &mut Bars) {
    let data = setup.dir.join("second");
    let grid = Grid::start(setup, &data, None);
    grid.import(&setup.disk, "v:1");
    let before = grid.stored();
    let second = setup.second.to_str().unwrap();
    crate::process::run(&mut grid.command(&["import", second, "v:2", "--parent", "v:1"]));
    let grown = grid.stored() - before;
    let differ = compressed_difference(&setup.disk, &setup.second);
    let ratio = grown as f64 / differ as f64;
    let what = "a second version's store, beside the compressed chunks that differ";
    bars.add(what, mib(grown as f64), mib(differ as f64), ratio, Bound::AtMost(1.15));
}

/// Compressed size of the chunks of `second` that stand nowhere in `first`.
fn compressed_difference(first: &Path, second: &Path) -> u64 {
    let all = |p: &Path| forebay_benches::chunks_of(p, usize::MAX);
    let known: std::collections::HashSet<Digest> =
        all(first).iter().map(|c| Digest::of_chunk(c)).collect();
    let mut encoder = Encoder::new().unwrap();
    let mut sum = 0;
    let mut seen = known;
    for chunk in all(second) {
        let digest = Digest::of_chunk(&chunk);
        if !is_zero(&chunk) && seen.insert(digest) {
            sum += encoder.encode(Domain::PUBLIC, digest, &chunk).payload().len() as u64;
        }
    }
    sum
}
