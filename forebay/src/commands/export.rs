//! `forebay export`: an image as a file that other programs take.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::{Digest, Error, Kind, Result};
use node::pull::Watch;
use node::pull::foreign::{Written, pull_file, pull_format};
use volume_pool::foreign::{Codec, Draft, Format};

use super::pull::{options, refuse_terminal, watched};
use super::{block_on, usage};

use crate::cli::{CodecArg, ExportArgs, FormatArg};
use crate::config::Config;
use crate::connect::{Connector, Known};
use crate::grid::Grid;
use crate::output::{Output, Progress, bytes, seconds};
use crate::report::ExportReport;

/// Runs the command.
pub fn run(config: &Config, args: &ExportArgs, output: Output) -> Result<()> {
    let format = format(args)?;
    if args.to == Path::new("-") {
        return block_on(to_stdout(config, args, format));
    }
    output.must_name(&args.to)?;
    let report = block_on(to_file(config, args, format, output))?;
    output.result(&report, human)
}

fn human(report: &ExportReport) -> String {
    format!(
        "{}: {}, {} disk, {} written in {}",
        report.path.display(),
        report.format,
        bytes(report.size),
        bytes(report.written),
        seconds(Duration::from_secs_f64(report.seconds)),
    )
}

/// What is said, else what the path's extension says.
fn format(args: &ExportArgs) -> Result<Format> {
    let named = || match args.to.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "raw" | "img" => Some(FormatArg::Raw),
        "qcow2" => Some(FormatArg::Qcow2),
        "vmdk" => Some(FormatArg::Vmdk),
        _ => None,
    };
    let invalid = |what: String| Err(Error::new(Kind::Invalid, what));
    let Some(format) = args.format.or_else(named) else {
        let path = args.to.display();
        return invalid(match args.to == Path::new("-") {
            true => "standard output has no name: say --format raw or vmdk".into(),
            false => {
                format!("{path}: its name does not tell a format: say --format raw, qcow2 or vmdk")
            }
        });
    };
    let codec = args.compress.map(|codec| match codec {
        CodecArg::Zlib => Codec::Zlib,
        CodecArg::Zstd => Codec::Zstd,
    });
    match (format, codec) {
        (FormatArg::Qcow2, codec) => Ok(Format::Qcow2(codec)),
        (FormatArg::Raw, None) => Ok(Format::Raw),
        (FormatArg::Vmdk, None) => Ok(Format::Vmdk),
        (FormatArg::Raw, _) => {
            invalid("--compress: a raw file cannot be; take --format qcow2".into())
        }
        (FormatArg::Vmdk, _) => {
            invalid("--compress: a vmdk always is, in its own way: leave it out".into())
        }
    }
}

fn name(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Qcow2(_) => "qcow2",
        Format::Vmdk => "vmdk",
    }
}

#[expect(clippy::disallowed_methods, reason = "a command for people reads the real clock")]
async fn to_file(
    config: &Config,
    args: &ExportArgs,
    format: Format,
    output: Output,
) -> Result<ExportReport> {
    let started = Instant::now();
    let grid = Grid::find(&config.data)?;
    let draft = Draft::open(&args.to, args.force)?;
    let known = Known::new();
    let (found, info) = tokio::join!(
        Connector::to_pull(&grid, &args.name, &known),
        grid.placement.image(&args.name)
    );
    let (image, connect) = found?;
    let watch = Arc::new(Watch::default());
    // If the ref moved between the two, how much data there is shows later.
    if let Some(info) = info.ok().filter(|info| info.image == image) {
        watch.expect(info.data());
    }
    let options = options(config, true)?;
    let shown = output.progress(&args.name, 0);
    let seen = Arc::clone(&watch);
    // Its own task, as the progress is shown meanwhile; an interrupt drops it, and with it the draft.
    let job = tokio::task::spawn_local(async move {
        pull_file(connect, image, format, draft, &options, &seen).await
    });
    let written = shown_while(job, shown, &watch).await?;
    Ok(report(args, format, image, &watch, written, (Instant::now() - started).as_secs_f64()))
}

async fn shown_while(
    job: tokio::task::JoinHandle<Result<Written>>,
    mut shown: Progress,
    watch: &Watch,
) -> Result<Written> {
    let ended = watched(job, || {
        let p = watch.progress();
        shown.at(p.written, p.total);
    });
    let ended = ended.await;
    shown.finish();
    ended
}

fn report(
    args: &ExportArgs,
    format: Format,
    image: Digest,
    watch: &Watch,
    written: Written,
    seconds: f64,
) -> ExportReport {
    let progress = watch.progress();
    ExportReport {
        image,
        path: args.to.clone(),
        format: name(format).into(),
        size: progress.size,
        data: progress.data,
        received: progress.received,
        written: written.bytes,
        len: written.len,
        seconds,
    }
}

async fn to_stdout(config: &Config, args: &ExportArgs, format: Format) -> Result<()> {
    if !format.is_stream() {
        let what = "a qcow2 file is not written from front to back: name a file with --to, or take \
                    --format raw or vmdk";
        return Err(usage(what));
    }
    refuse_terminal()?;
    let grid = Grid::find(&config.data)?;
    let (image, connect) = Connector::to_pull(&grid, &args.name, &Known::new()).await?;
    let watch = Arc::new(Watch::default());
    let (mut out, options) = (tokio::io::stdout(), options(config, false)?);
    let written = pull_format(connect, image, format, &mut out, &options, &watch).await?;
    let size = bytes(watch.progress().size);
    eprintln!("{}: {size} as {} of {}", args.name, bytes(written.len), name(format));
    Ok(())
}
