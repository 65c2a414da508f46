//! `forebay pull`: asks the node daemon where one runs, and does the same job itself elsewhere.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::catalog::ImageInfo;
use api::node::{Progress, PullRequest, TransferState};
use image::{Error, Kind, Result};
use node::daemon::DaemonClient;
use node::pull::{PullOptions, Watch, ordered::pull_stream, pull};
use node::rate::{Rate, RealTime};

use super::block_on;
use crate::cli::PullArgs;
use crate::config::Config;
use crate::connect::{Connector, Known};
use crate::grid::Grid;
use crate::output::{Output, bytes, seconds};
use crate::report::PullReport;

/// How often progress is shown.
pub const TICK: Duration = Duration::from_millis(100);

/// Runs the command.
pub fn run(config: &Config, args: &PullArgs, output: Output) -> Result<()> {
    if args.to == Path::new("-") {
        return block_on(to_stdout(config, args));
    }
    output.must_name(&args.to)?;
    let report = block_on(async {
        let daemon = DaemonClient::new(config.path("node.socket", "node/node.sock"));
        if args.no_daemon || !daemon.is_running().await {
            return here(config, args, output).await;
        }
        if args.rate.is_some() {
            eprintln!("forebay: done here, not by the node daemon: --rate is for this pull alone");
            return here(config, args, output).await;
        }
        by_daemon(&daemon, args, output).await
    })?;
    output.result(&report, human)
}

fn human(report: &PullReport) -> String {
    let p = &report.progress;
    let repaired = match p.repaired {
        0 => String::new(),
        n => format!("; {n} chunks came wrong and were fetched again"),
    };
    format!(
        "{}: {} of data in {}; {} were there, {} came as {}{repaired}",
        report.path.display(),
        bytes(p.data),
        seconds(Duration::from_secs_f64(report.seconds)),
        bytes(p.reused),
        bytes(p.written),
        bytes(p.received),
    )
}

#[expect(clippy::disallowed_methods, reason = "a command for people reads the real clock")]
fn now() -> Instant {
    Instant::now()
}

/// The options of a pull in this process.
pub fn options(config: &Config, sync: bool) -> Result<PullOptions> {
    let rate = config.size("node.rate");
    Ok(PullOptions {
        cores: config.threads("node.cores"),
        memory: config.size("node.memory") as usize,
        rate: (rate > 0).then(|| Arc::new(Rate::new(rate, RealTime::start()))),
        engine: crate::serve::engine(config)?,
        sync,
        ..PullOptions::default()
    })
}

async fn here(config: &Config, args: &PullArgs, output: Output) -> Result<PullReport> {
    let grid = Grid::find(&config.data)?;
    volume_pool::check_path(&args.to)?;
    let options = options(config, !args.no_sync)?;
    let (report, _) = to_file(&grid, &args.name, args.to.clone(), options, output).await?;
    Ok(report)
}

/// Pulls an image to a file or device in this process; and what placement says of the image, if that can be had.
pub async fn to_file(
    grid: &Grid,
    name: &str,
    path: PathBuf,
    options: PullOptions,
    output: Output,
) -> Result<(PullReport, Option<ImageInfo>)> {
    let started = now();
    let known = Known::new();
    let (found, info) =
        tokio::join!(Connector::to_pull(grid, name, &known), grid.placement.image(name));
    let (image, connect) = found?;
    let watch = Arc::new(Watch::default());
    // If the ref moved between the two, how much data there is shows later.
    let info = info.ok().filter(|info| info.image == image);
    if let Some(info) = &info {
        watch.expect(info.data());
    }
    let mut shown = output.progress(name, 0);
    // Its own task, so that an interrupt lets it put things in order before the process ends.
    let job = tokio::spawn(pull(connect, image, path.clone(), options, Arc::clone(&watch)));
    let ended = CancelOnDrop(Arc::clone(&watch));
    let result = watched(job, || {
        let p = watch.progress();
        shown.at(p.reused + p.written, p.total);
    });
    let result = result.await;
    shown.finish();
    drop(ended);
    result?;
    let progress = watch.progress();
    let seconds = (now() - started).as_secs_f64();
    Ok((PullReport { image, path, progress, seconds }, info))
}

/// Ends the pull's threads when the command is interrupted.
struct CancelOnDrop(Arc<Watch>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Waits for a job and shows its progress meanwhile.
pub async fn watched<T>(
    mut job: tokio::task::JoinHandle<Result<T>>,
    mut show: impl FnMut(),
) -> Result<T> {
    loop {
        match tokio::time::timeout(TICK, &mut job).await {
            Ok(ended) => {
                return ended
                    .unwrap_or_else(|e| Err(Error::caused(Kind::Io, "the job ended badly", e)));
            }
            Err(_) => show(),
        }
    }
}

async fn by_daemon(daemon: &DaemonClient, args: &PullArgs, output: Output) -> Result<PullReport> {
    let started = now();
    let to = absolute(&args.to)?;
    let request = PullRequest { image: args.name.clone(), to: to.clone(), sync: !args.no_sync };
    let mut transfer = daemon.ask(&request).await?;
    let mut shown = output.progress(&args.name, 0);
    while !transfer.state.is_final() {
        tokio::time::sleep(TICK).await;
        transfer = daemon.transfer(transfer.id).await?;
        let p = &transfer.progress;
        shown.at(p.reused + p.written, p.total);
    }
    shown.finish();
    match (transfer.state, transfer.error, transfer.image) {
        (TransferState::Done, _, Some(image)) => {
            let seconds = (now() - started).as_secs_f64();
            let progress: Progress = transfer.progress;
            Ok(PullReport { image, path: to, progress, seconds })
        }
        (TransferState::Failed, Some(error), _) => Err(error.into()),
        _ => Err(Error::new(Kind::Cancelled, format!("transfer {} was cancelled", transfer.id))),
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io(path.display(), e))
}

/// Fails if whoever reads standard output is a person.
pub fn refuse_terminal() -> Result<()> {
    if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        let why = "standard output is a terminal; a disk image is not for reading";
        return Err(Error::new(Kind::Invalid, why));
    }
    Ok(())
}

async fn to_stdout(config: &Config, args: &PullArgs) -> Result<()> {
    refuse_terminal()?;
    let grid = Grid::find(&config.data)?;
    let (image, connect) = Connector::to_pull(&grid, &args.name, &Known::new()).await?;
    let watch = Arc::new(Watch::default());
    let mut out = tokio::io::stdout();
    pull_stream(connect, image, &mut out, &options(config, false)?, &watch).await?;
    let p = watch.progress();
    eprintln!("{}: {} as {}", args.name, bytes(p.size), bytes(p.received));
    Ok(())
}
