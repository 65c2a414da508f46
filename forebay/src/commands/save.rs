//! `forebay save`: an image of a volume, or of a disk of a running QEMU, by the node's daemon; or of a disk that is a path, as `import` makes it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::capture::{Capture, CaptureState, RunningDisk, SaveVolume, Truth};
use image::record::ImageKind;
use image::{Error, Kind, Result};
use node::daemon::DaemonClient;

use super::import::{Manner, record};
use super::node::{background_rate, daemon_client};
use super::{import, run_to_end};
use crate::cli::{ImportArgs, SaveArgs, SourceKind};
use crate::config::Config;
use crate::output::{Output, bytes, chunks, say, seconds, table, time};

/// How often progress is asked for. The end of a capture is told at once.
const TICK: Duration = Duration::from_millis(100);
/// How long a cancelled capture may take to end.
const CANCEL: Duration = Duration::from_secs(30);

/// Runs the command.
pub fn run(config: &Config, args: SaveArgs, output: Output) -> Result<()> {
    if args.kind() == SourceKind::Path {
        let how = Manner {
            kind: Some(ImageKind::Snapshot),
            background: args.background,
            rate: args.rate.or_else(|| background_rate(config).filter(|_| args.background)),
        };
        return import::run_as(config, &of_path(args), &how, output);
    }
    let daemon = daemon_client(config);
    let capture = run_to_end(by_daemon(&daemon, &args, output))?;
    import::warn_of(capture.unread.as_ref(), &args.source);
    if let Some(why) = &capture.not_frozen {
        say(format!("warning: {}: its file systems did not hold still: {why}", args.source));
    }
    output.result(&capture, human)
}

/// A disk that is no volume.
fn of_path(args: SaveArgs) -> ImportArgs {
    ImportArgs {
        path: PathBuf::from(args.source),
        name: args.name,
        disk: args.disk,
        parent: args.parent,
        skip_bad: args.skip_bad,
        new: args.new,
        record: args.record,
    }
}

/// Ends the capture when the command is interrupted.
async fn by_daemon(daemon: &DaemonClient, args: &SaveArgs, output: Output) -> Result<Capture> {
    let absolute =
        |path: &Path| std::path::absolute(path).map_err(|e| Error::io(path.display(), e));
    let volume = match RunningDisk::of(&args.source) {
        Some(disk) => RunningDisk { qmp: absolute(&disk.qmp)?, ..disk }.to_string(),
        None => args.source.clone(),
    };
    let asked = SaveVolume {
        volume,
        name: args.name.clone(),
        parent: args.parent.clone(),
        all: args.all,
        background: args.background,
        rate: args.rate,
        agent: args.agent.as_deref().map(absolute).transpose()?,
        scratch: args.scratch.as_deref().map(absolute).transpose()?,
        skip_bad: args.skip_bad,
        new: args.new,
        record: record(&args.record, None),
    };
    // From here on: one that has begun is not left alone.
    let interrupted = super::interrupted();
    let begun = daemon.save_volume(&asked).await.map_err(|e| meant_a_path(e, &args.source))?;
    if args.no_wait {
        return Ok(begun);
    }
    tokio::select! {
        ended = watch(daemon, begun.id, args, output) => ended,
        () = interrupted => {
            let id = begun.id;
            let ended = tokio::time::timeout(CANCEL, daemon.cancel_capture(id)).await;
            let what = match ended {
                Ok(Ok(_)) => format!("interrupted: capture {id} was cancelled"),
                _ => format!("interrupted, and capture {id} goes on: end it with `forebay node cancel-capture {id}`"),
            };
            Err(Error::new(Kind::Cancelled, what))
        }
    }
}

/// A volume that is not there may be a file that is.
fn meant_a_path(error: Error, source: &str) -> Error {
    match error.kind() == Kind::Gone && Path::new(source).exists() {
        true => {
            Error::new(Kind::Gone, format!("{error}; for the file of that name say ./{source}"))
        }
        false => error,
    }
}

async fn watch(daemon: &DaemonClient, id: u64, args: &SaveArgs, output: Output) -> Result<Capture> {
    let mut shown = output.progress(&args.name.to_string(), 0);
    let mut told = None;
    let capture = loop {
        let capture = daemon.capture(id, TICK).await.map_err(|error| lost(error, args))?;
        shown.at(capture.progress.passed, capture.progress.to_read);
        let waits = waits_for(&capture);
        if waits.is_some() && waits != told {
            say(waits.clone().unwrap_or_default());
            told = waits;
        }
        if capture.state.is_final() {
            break capture;
        }
    };
    shown.finish();
    match (capture.state, &capture.error) {
        (CaptureState::Done, _) => Ok(capture),
        (_, Some(error)) => Err(error.clone().into()),
        _ => Err(Error::new(Kind::Cancelled, format!("capture {id} was cancelled"))),
    }
}

/// What a capture that gets no further waits for.
fn waits_for(capture: &Capture) -> Option<String> {
    let name = &capture.request.name;
    match (capture.state, &capture.trouble) {
        (_, Some(trouble)) if capture.taken.is_none() => Some(format!(
            "{name}: waits for placement before it fixes its instant: {}",
            trouble.message
        )),
        (CaptureState::Queued, _) => Some(format!(
            "{name}: waits for its turn: others are being saved (`forebay node captures`)"
        )),
        (_, Some(trouble)) => Some(format!("{name}: waits, and tries again: {}", trouble.message)),
        _ => None,
    }
}

/// A daemon that dies takes the instant with it.
fn lost(error: Error, args: &SaveArgs) -> Error {
    match error.kind() {
        Kind::Retry => {
            let what = format!(
                "the node's daemon went away while it saved {}: {} is not made; when it is back, save again ({error})",
                args.source, args.name
            );
            Error::caused(Kind::Retry, what, error)
        }
        _ => error,
    }
}

/// Captures, as people read them.
pub fn rows(all: &[Capture]) -> String {
    let head = ["ID", "STATE", "VOLUME", "REF", "TAKEN", "TOOK", "READ", "BY", "IMAGE"];
    let rows = all.iter().map(|c| {
        let p = &c.progress;
        let took = c.took_ms.map(|ms| seconds(Duration::from_millis(ms)));
        let ended = c.error.as_ref().map(|e| e.message.clone());
        let image = c.image.map(|image| image.to_string());
        vec![
            c.id.to_string(),
            word(c.state),
            c.request.volume.clone(),
            c.request.name.to_string(),
            c.taken.map(time).unwrap_or_default(),
            took.unwrap_or_default(),
            format!("{} of {}", bytes(p.read), bytes(p.to_read)),
            c.truth.map(word).unwrap_or_default(),
            ended.or(image).unwrap_or_default(),
        ]
    });
    table(&std::iter::once(head.map(str::to_owned).to_vec()).chain(rows).collect::<Vec<_>>())
}

/// A state or a truth as JSON has it.
fn word(of: impl serde::Serialize) -> String {
    let value = serde_json::to_value(of).ok();
    value.and_then(|value| Some(value.as_str()?.to_owned())).unwrap_or_default()
}

fn human(capture: &Capture) -> String {
    let (p, name) = (&capture.progress, &capture.request.name);
    let Some(image) = capture.image else {
        let (id, volume) = (capture.id, &capture.request.volume);
        return format!("capture {id} of {volume} goes on: see `forebay node captures`");
    };
    let how = match (capture.truth, &capture.why) {
        (Some(Truth::ChangedMap), None) => "what has changed, by the volume's own map".to_owned(),
        (Some(Truth::ChangedMap), Some(why)) => {
            format!("what has changed, by the volume's own map; {why}")
        }
        (Some(Truth::QemuBitmap), _) => "what has changed, by a bitmap of QEMU's".to_owned(),
        (Some(Truth::SharedExtents), why) => {
            let why = why.iter().map(|why| format!(": {why}")).collect::<String>();
            format!("what has changed, by the extents that it no longer shares with its image{why}")
        }
        (_, Some(why)) => format!("all, because {why}"),
        _ => "all".to_owned(),
    };
    let still = match (capture.frozen_ms, &capture.not_frozen) {
        (Some(ms), _) => format!("\nits file systems held still for {ms} ms"),
        (_, Some(why)) => format!("\nits file systems did not hold still: {why}"),
        _ => String::new(),
    };
    format!(
        "{name} → {image}\n{} disk; read {} of it ({how}); {} new, {} sent{still}",
        bytes(p.size),
        bytes(p.read),
        chunks(p.new_chunks),
        bytes(p.sent),
    )
}
