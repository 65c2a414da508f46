//! `forebay try`: the main job end to end, in processes of their own, on real files of this machine.

mod disk;
mod grid;

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use serde::Serialize;

use crate::cli::TryArgs;
use crate::commands::block_on;
use crate::output::{Output, bytes, chunks, table};
use crate::report::{ImportReport, PullReport};
use grid::Grid;

/// One line of the table.
#[derive(Debug, Serialize)]
struct Step {
    what: &'static str,
    /// Bytes of data on the disk in question.
    disk: u64,
    /// Bytes that travelled.
    travelled: u64,
    seconds: f64,
    outcome: String,
}

/// Runs the tour.
pub fn run(args: &TryArgs, output: Output) -> anyhow::Result<()> {
    let steps = block_on(async {
        // Taken away whatever ends the tour, after the processes that work in it.
        let mut dir = tempfile::Builder::new();
        let dir = dir.prefix("forebay-try-").disable_cleanup(args.keep).tempdir()?;
        if args.keep {
            say(&format!("Keeping {}", dir.path().display()));
        }
        tour(args, dir.path()).await.with_context(|| format!("in {}", dir.path().display()))
    })?;
    Ok(output.result(&steps, |steps| human(steps))?)
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

async fn tour(args: &TryArgs, dir: &Path) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    let from = args.from.clone().map_or_else(disk::real_files, Ok)?;
    say(&format!("Making a disk of files under {} …", from.display()));
    let started = now();
    let (first, second) = (dir.join("first.raw"), dir.join("second.raw"));
    let made = disk::make(&from, &first, args.size).await?;
    let outcome = format!("{} files", made.files);
    steps.push(Step {
        what: "make a disk",
        disk: made.bytes,
        travelled: 0,
        seconds: (now() - started).as_secs_f64(),
        outcome,
    });

    say("Starting a grid: store, receiver, cache and placement in one process …");
    let grid = Grid::start(dir).await?;
    say("Importing the disk as try:1 …");
    steps.push(import(&grid, "import it", &first, "try:1").await?);
    say("Pulling try:1 over QUIC …");
    let copy = dir.join("copy.raw");
    steps.push(pull(&grid, "pull it", "try:1", &copy, &first).await?);

    say("Changing one chunk in fifty, importing that as try:2, pulling it over the copy …");
    disk::change(&first, &second).await?;
    steps.push(import(&grid, "import a changed version", &second, "try:2").await?);
    steps.push(pull(&grid, "pull it over the first", "try:2", &copy, &second).await?);

    say("Stopping the grid, flipping bits in the cache's files, starting it again …");
    let cache = grid.cache_dir();
    grid.stop().await?;
    let flipped = disk::flip_bits(&cache)?;
    let (mut step, caught) = again(dir, "pull through a corrupted cache", &second).await?;
    if caught == 0 {
        bail!("{flipped} flipped bits in the cache were not noticed");
    }
    step.outcome = format!("{caught} bad frames caught; {}", step.outcome);
    steps.push(step);

    say("Reading all of the cache once more …");
    let (mut step, left) = again(dir, "pull through the repaired cache", &second).await?;
    if left > 0 {
        bail!("{left} of {caught} bad frames are still in the cache");
    }
    step.outcome = format!("no bad frames left; {}", step.outcome);
    steps.push(step);
    Ok(steps)
}

/// Pulls the second version to a new file through a grid that has just started; with it, the bad frames
/// that the cache met.
async fn again(dir: &Path, what: &'static str, second: &Path) -> anyhow::Result<(Step, u64)> {
    let grid = Grid::start(dir).await?;
    let copy = dir.join("again.raw");
    let step = pull(&grid, what, "try:2", &copy, second).await?;
    std::fs::remove_file(&copy)?;
    Ok((step, grid.stop().await?.bad_frames))
}

#[expect(clippy::disallowed_methods, reason = "a tour for people reads the real clock")]
fn now() -> Instant {
    Instant::now()
}

async fn import(grid: &Grid, what: &'static str, disk: &Path, name: &str) -> anyhow::Result<Step> {
    let disk = disk.to_str().context("a temporary path is UTF-8")?;
    let report: ImportReport = grid.command(&["import", disk, name]).await?;
    Ok(Step {
        what,
        disk: report.data,
        travelled: report.sent,
        seconds: report.seconds,
        outcome: format!("{} sent", chunks(report.chunks_sent)),
    })
}

async fn pull(
    grid: &Grid,
    what: &'static str,
    name: &str,
    to: &Path,
    original: &Path,
) -> anyhow::Result<Step> {
    let target = to.to_str().context("a temporary path is UTF-8")?;
    let report: PullReport = grid.command(&["pull", name, "--to", target, "--no-daemon"]).await?;
    disk::compare(to, original).await?;
    Ok(Step {
        what,
        disk: report.progress.data,
        travelled: report.progress.received,
        seconds: report.seconds,
        outcome: format!("{}; same bytes", chunks(report.progress.chunks)),
    })
}

fn human(steps: &[Step]) -> String {
    let head = ["STEP", "DATA ON DISK", "TRAVELLED", "SECONDS", ""].map(str::to_owned).to_vec();
    let rows = steps.iter().map(|s| {
        let travelled = if s.travelled == 0 { "-".into() } else { bytes(s.travelled) };
        let seconds = format!("{:.2}", s.seconds);
        vec![s.what.to_owned(), bytes(s.disk), travelled, seconds, s.outcome.clone()]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}
