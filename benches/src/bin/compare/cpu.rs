//! What the maps of a volume cost a read, in instructions: through the volume, and from the bare file by the
//! same engine, counted by callgrind (`volume-reads`). Only what the process itself does is counted; in the
//! kernel both do the same, as the processor time of both shows that is said beside.

use std::process::Command;

use crate::Setup;
use crate::bars::{Bars, Bound, median};
use crate::process::{beside, json, run};

const FEW: u64 = 2_000;
const MANY: u64 = 22_000;
/// Reads whose processor time is taken, without callgrind.
const TIMED: u64 = 300_000;

pub fn measure(setup: &Setup, bars: &mut Bars) {
    for engine in ["io_uring", "portable"] {
        let [volume, file] = ["volume", "file"].map(|what| each(setup, engine, what));
        let what = format!(
            "instructions for a read of 4 KiB through the maps, by the engine `{engine}`, beside the bare file"
        );
        let count = |n: f64| format!("{n:.0}");
        bars.add(&what, count(volume), count(file), volume / file, Bound::AtMost(1.05));
        processor_time(setup, engine, bars);
    }
}

fn processor_time(setup: &Setup, engine: &str, bars: &mut Bars) {
    let each = |what: &str| {
        let program = Command::new(beside("volume-reads"));
        let said = json(&mut reads(program, setup, engine, what, TIMED));
        said["cpu_seconds"].as_f64().unwrap() / TIMED as f64
    };
    let both: Vec<_> = (0..setup.runs).map(|_| (each("volume"), each("file"))).collect();
    let ratio = median(both.iter().map(|(volume, file)| volume / file).collect());
    let (volume, file) = both.into_iter().unzip();
    let time = |times: Vec<f64>| format!("{:.2} µs", median(times) * 1e6);
    let what = "… processor time, the kernel's with it";
    bars.add(what, time(volume), time(file), ratio, Bound::Told);
}

/// The command, told what to read, in a directory of its own.
fn reads(mut command: Command, setup: &Setup, engine: &str, what: &str, count: u64) -> Command {
    let dir = setup.dir.join("cpu");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    command.arg(&dir).args([engine, what, &count.to_string()]);
    command
}

/// Instructions for one read: what many take more than few, so that starting and ending do not count.
fn each(setup: &Setup, engine: &str, what: &str) -> f64 {
    let [few, many] = [FEW, MANY].map(|count| instructions(setup, engine, what, count));
    (many - few) as f64 / (MANY - FEW) as f64
}

fn instructions(setup: &Setup, engine: &str, what: &str, count: u64) -> u64 {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    valgrind.arg(beside("volume-reads"));
    let said = run(&mut reads(valgrind, setup, engine, what, count)).stderr;
    let said = String::from_utf8_lossy(&said);
    let counted = said.lines().find_map(|line| line.split("Collected : ").nth(1));
    let counted = counted.and_then(|number| number.trim().parse().ok());
    let counted = counted.unwrap_or_else(|| panic!("callgrind counted nothing: {said}"));
    eprintln!("{what}, {engine}, {count} reads: {counted} instructions");
    counted
}
