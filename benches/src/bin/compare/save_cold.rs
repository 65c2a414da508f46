//! An image made of a disk of which nothing is stored, beside other archivers of the same disk.

use std::path::{Path, PathBuf};
use std::process::Command;

use image::{Decoder, Digest, Domain, Encoder, is_zero};

use crate::Setup;
use crate::bars::{Bars, Bound, median, seconds};
use crate::grid::{Grid, Servers};
use crate::import::non_holes;
use crate::process::{now, on_core, run, settle, timed};

/// What borg takes for a chunk of a fixed length.
const BORG_CHUNKS: &str = "fixed,262144";
/// The cores of the two machines, where saver and receiver are not the same one.
const NODE: usize = 0;
const RECEIVER: usize = 1;

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let plain = non_holes(setup);
    let (mut ours, mut borgs, mut whole, mut data) = (vec![], vec![], vec![], vec![]);
    let (mut apart, mut alone, mut least) = (vec![], vec![], vec![]);
    for round in 0..setup.runs {
        borgs.push(borg(setup, round));
        whole.push(timed(&mut zstd(setup, &setup.disk, "-T2")));
        data.push(timed(&mut zstd(setup, &plain, "-T0")));
        ours.push(save(setup, round, &Servers::default(), |command| command));
        least.push(both_ends(setup));
        let there = Servers { core: Some(RECEIVER), ..Servers::default() };
        apart.push(save(setup, round, &there, |command| on_core(NODE, &command)));
        alone.push(timed(&mut on_core(NODE, &zstd(setup, &plain, "-T1"))));
    }
    for file in [plain, archive(setup)] {
        std::fs::remove_file(file).unwrap();
    }
    let better: Vec<f64> = borgs.iter().zip(&whole).map(|(a, b)| a.min(*b)).collect();
    let (beside_tools, beside_data) = (ratio_of(&ours, &better), ratio_of(&ours, &data));
    let took = || seconds(median(ours.clone()));
    let what = "saving a disk, nothing stored (durable), beside the better of borg (zstd 3, fixed chunks) and zstd -3 -T2";
    bars.add(what, took(), seconds(median(better)), beside_tools, Bound::Told);
    let what = "… beside zstd -3 of the non-hole bytes on all cores";
    bars.add(what, took(), seconds(median(data.clone())), beside_data, Bound::Told);
    let what = "… what its two ends must compute, on the same cores: zstd -3 and BLAKE3, undone and BLAKE3 again";
    bars.add(
        what,
        seconds(median(least.clone())),
        seconds(median(data.clone())),
        ratio_of(&least, &data),
        Bound::Told,
    );
    let met = (beside_tools / 0.6).min(beside_data / 1.15);
    let what = "… the smaller of these ratios to its bar, 0.6 and 1.15";
    bars.add(what, took(), String::new(), met, Bound::AtMost(1.0));
    let beside_alone = ratio_of(&apart, &alone);
    let (apart, alone) = (seconds(median(apart)), seconds(median(alone)));
    let what = "saving it from a machine of one core to a receiver on another, beside zstd -3 of the non-hole bytes there";
    bars.add(what, apart, alone, beside_alone, Bound::AtMost(1.15));
}

fn ratio_of(ours: &[f64], theirs: &[f64]) -> f64 {
    median(ours.iter().zip(theirs).map(|(a, b)| a / b).collect())
}

/// Seconds that all cores take for what a saver must compute of each chunk, and who takes it: nothing is read from a disk,
/// sent, written or read back.
fn both_ends(setup: &Setup) -> f64 {
    settle();
    let chunks = forebay_benches::chunks_of(&setup.disk, usize::MAX);
    let cores = std::thread::available_parallelism().unwrap().get();
    let start = now();
    std::thread::scope(|scope| {
        for core in 0..cores {
            let mine = chunks.iter().skip(core).step_by(cores);
            scope.spawn(move || mine.for_each(saved_and_received()));
        }
    });
    (now() - start).as_secs_f64()
}

fn saved_and_received() -> impl FnMut(&Vec<u8>) {
    let (mut encoder, mut decoder) = (Encoder::new().unwrap(), Decoder::new().unwrap());
    let mut plain = vec![0; 1 << 20];
    move |chunk| {
        if !is_zero(chunk) {
            let frame = encoder.encode(Domain::PUBLIC, Digest::of_chunk(chunk), chunk);
            let decoded = decoder.decode(&frame, &frame.header().digest, &mut plain[..chunk.len()]);
            decoded.unwrap();
        }
    }
}

fn save(setup: &Setup, round: usize, to: &Servers, on: impl Fn(Command) -> Command) -> f64 {
    let data = setup.dir.join(format!("save-{round}"));
    let grid = Grid::start_as(setup, &data, to);
    settle();
    let took = timed(&mut on(grid.command(&["save", setup.disk.to_str().unwrap(), "v:1"])));
    drop(grid);
    std::fs::remove_dir_all(&data).unwrap();
    took
}

/// To be run once all else has settled.
fn zstd(setup: &Setup, of: &Path, threads: &str) -> Command {
    settle();
    let mut zstd = Command::new("zstd");
    zstd.args(["-q", "-3", threads, "-f"]).arg(of).arg("-o").arg(archive(setup));
    zstd
}

fn archive(setup: &Setup) -> PathBuf {
    setup.dir.join("archive.zst")
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
