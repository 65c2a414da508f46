//! `forebay import`.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use api::catalog::{Expect, MoveRef, NewRecord};
use capture::{
    Compression, DiskSource, Format, ImportOptions, Progress, Skipped, SourceOptions, import,
};
use image::geometry::DEFAULT_CHUNK_LOG2;
use image::record::{ImageKind, Unread};
use image::{Digest, Error, Kind, Result};
use node::captures::pace;

use super::block_on;
use crate::cli::{CompressionArg, FormatArg, ImportArgs, KindArg, RecordArgs};
use crate::config::Config;
use crate::connect;
use crate::grid::Grid;
use crate::output::{Output, bytes, chunks, say, seconds};
use crate::report::ImportReport;

/// Runs the command.
pub fn run(config: &Config, args: &ImportArgs, output: Output) -> Result<()> {
    run_as(config, args, &Manner::default(), output)
}

/// What is done otherwise than by an import for which somebody waits.
#[derive(Debug, Default)]
pub struct Manner {
    /// The kind of an image of which nothing was said before, unless the arguments say another.
    pub kind: Option<ImageKind>,
    /// Only what nobody else wants of disk and processors is taken.
    pub background: bool,
    /// Bytes a second that are read at most.
    pub rate: Option<u64>,
}

/// Imports in another manner.
pub fn run_as(config: &Config, args: &ImportArgs, how: &Manner, output: Output) -> Result<()> {
    let report = block_on(transfer(config, args, how, output))?;
    warn_of(report.unread.as_ref(), &args.path.display().to_string());
    output.result(&report, human)
}

/// Says of an image that is not all of its disk that it is not.
pub fn warn_of(unread: Option<&Unread>, disk: &str) {
    if let Some(unread) = unread {
        say(format!("warning: {disk}: not all could be read, and zeros stand for {unread}"));
    }
}

fn human(report: &ImportReport) -> String {
    format!(
        "{} → {}\n{} disk, {} of data, {} sent in {}, {}",
        report.name,
        report.image,
        bytes(report.size),
        bytes(report.data),
        bytes(report.sent),
        chunks(report.chunks_sent),
        seconds(std::time::Duration::from_secs_f64(report.seconds)),
    )
}

#[expect(clippy::disallowed_methods, reason = "a command for people reads the real clock")]
async fn transfer(
    config: &Config,
    args: &ImportArgs,
    how: &Manner,
    output: Output,
) -> Result<ImportReport> {
    let started = Instant::now();
    let grid = Grid::find(&config.data)?;
    let source = open(args)?;
    if args.new {
        refuse_taken(&grid, args).await?;
    }
    let parent = parent_of(&grid, args).await?;
    let (parent, client) = connect::to_push(&grid, parent.as_deref()).await?;
    let progress = Arc::new(Progress::default());
    let skipped = args.skip_bad.then(Arc::<Skipped>::default);
    let options = ImportOptions {
        parent,
        chunk_log2: args.disk.chunk_size.unwrap_or(DEFAULT_CHUNK_LOG2),
        workers: NonZeroUsize::new(config.threads("import.workers")).unwrap_or(NonZeroUsize::MIN),
        memory: config.size("import.memory") as usize,
        engine: engine(config)?,
        background: how.background,
        pace: how.rate.map(pace),
        skipped: skipped.clone(),
        progress: Arc::clone(&progress),
        ..ImportOptions::default()
    };
    let mut shown = output.progress(&args.name.to_string(), source.size().unwrap_or(0));
    let job = tokio::task::spawn_local(async move {
        let imported = import(source, &client, options).await;
        client.close().await;
        imported
    });
    let imported = super::pull::watched(job, || {
        let stats = progress.stats();
        shown.at(stats.position, stats.size);
    });
    let imported = imported.await;
    shown.finish();
    let imported = imported?;
    let described = grid.placement.image(&imported.image.to_string()).await?.record.is_some();
    // What the ref pointed at before says nothing of an image that was there already, perhaps under another name, and
    // was described.
    let parent = parent.filter(|_| args.parent.is_some() || !described);
    let said = record(&args.record, parent);
    let unread = skipped.and_then(|skipped| skipped.unread());
    let kind = said.kind.or(how.kind.filter(|_| !described));
    let said = NewRecord { kind, unread: unread.clone(), ..said };
    grid.placement.record(&imported.image, &said).await?;
    let expect = if args.new { Expect::Absent } else { Expect::Anything };
    let to = MoveRef { image: imported.image, expect, fence: None };
    grid.move_ref(&args.name, &to).await?;
    Ok(ImportReport {
        name: args.name.clone(),
        image: imported.image,
        size: imported.manifest.geometry().size(),
        read: imported.stats.data,
        data: imported.stats.sent_plain
            + (imported.stats.known_chunks << imported.manifest.geometry().chunk_log2()),
        sent: imported.stats.sent_stored,
        chunks_sent: imported.stats.sent_chunks,
        unread,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Before anything travels: a name that is taken would be refused in the end.
async fn refuse_taken(grid: &Grid, args: &ImportArgs) -> Result<()> {
    match grid.placement.image(&args.name.to_string()).await {
        Err(e) if e.kind() == Kind::Gone => Ok(()),
        Err(e) => Err(e),
        Ok(info) => {
            let what = format!("{}: taken already by image {}", args.name, info.image);
            Err(Error::new(Kind::Conflict, what))
        }
    }
}

/// The image to lean on: the named one, else what the ref points at now.
async fn parent_of(grid: &Grid, args: &ImportArgs) -> Result<Option<String>> {
    if args.parent.is_some() {
        return Ok(args.parent.clone());
    }
    match grid.placement.image(&args.name.to_string()).await {
        Ok(info) => Ok(Some(info.image.to_string())),
        Err(e) if e.kind() == Kind::Gone => Ok(None),
        Err(e) => Err(e),
    }
}

fn engine(config: &Config) -> Result<blockio::EngineChoice> {
    let engine = config.text("io.engine").parse();
    engine.map_err(|e| Error::caused(Kind::Invalid, "io.engine", e))
}

fn open(args: &ImportArgs) -> Result<DiskSource> {
    let said = &args.disk;
    let format = said.format.map(|f| match f {
        FormatArg::Raw => Format::Raw,
        FormatArg::Qcow2 => Format::Qcow2,
        FormatArg::Vmdk => Format::Vmdk,
    });
    let compression = said.compression.map(|c| match c {
        CompressionArg::None => Compression::None,
        CompressionArg::Zstd => Compression::Zstd,
        CompressionArg::Gzip => Compression::Gzip,
        CompressionArg::Xz => Compression::Xz,
    });
    let sector = said.sector_size.as_ref().and_then(|s| s.parse().ok());
    let options = SourceOptions { format, compression, sector, size: said.size };
    let source = match args.path == Path::new("-") {
        true => DiskSource::stdin(&options)?,
        false => DiskSource::open(&args.path, &options)?,
    };
    Ok(source)
}

/// What the command line says of an image.
pub fn record(said: &RecordArgs, parent: Option<Digest>) -> NewRecord {
    NewRecord {
        parent,
        kind: said.kind.map(|kind| match kind {
            KindArg::Os => ImageKind::Os,
            KindArg::Application => ImageKind::Application,
            KindArg::AsDeployed => ImageKind::AsDeployed,
            KindArg::Snapshot => ImageKind::Snapshot,
        }),
        os: said.os.clone(),
        architecture: said.arch.clone(),
        firmware: said.firmware.clone(),
        cpus: said.cpus,
        memory_mib: said.memory_mib,
        nics: said.nics,
        hypervisor: said.hypervisor.clone(),
        labels: said.labels.iter().cloned().collect(),
        unread: None,
    }
}
