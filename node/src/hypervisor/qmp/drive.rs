//! Does what was planned, and looks again.

use std::time::Duration;

use image::error::At;
use image::{Error, Kind, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::graph::View;
use super::monitor::Monitor;
use super::plan::{Pivot, Step, Undo, next, undo};
use super::wire::Version;

/// So often a state is looked at while QEMU works; the pauses grow from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(50);
/// Steps of one way, pauses not counted: five nodes to delete, and twice what a pivot needs.
const MOST_STEPS: u32 = 16;
/// The way back may take so long: it ends a job that waits for I/O that hangs, perhaps.
const BACK: Duration = Duration::from_secs(10);

/// What a pivot came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest uses the file now. The export can end.
    Moved,
    /// It did before.
    WasThere,
}

/// Who is behind a monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its name (`-name`), if it has one.
    pub name: Option<String>,
    /// QEMU's version.
    pub version: Version,
    /// What its packager calls it; may be empty.
    pub package: String,
    /// `running`, `paused`, `shutdown`, …: `RunState` of QEMU's reference.
    pub status: String,
}

/// Asks who is behind the monitor.
pub async fn identify(monitor: &mut Monitor) -> Result<Machine> {
    #[derive(Deserialize)]
    struct Name {
        name: Option<String>,
    }
    #[derive(Deserialize)]
    struct Status {
        status: String,
    }
    let name: Name = read(monitor.execute("query-name", Value::Null).await?)?;
    let status: Status = read(monitor.execute("query-status", Value::Null).await?)?;
    let (version, package) = (monitor.version(), monitor.package().to_owned());
    Ok(Machine { name: name.name, version, package, status: status.status })
}

/// Looks at QEMU's nodes and jobs.
pub async fn view(monitor: &mut Monitor) -> Result<View> {
    let nodes = monitor.execute("query-named-block-nodes", json!({ "flat": true })).await?;
    let graph = monitor.execute("x-debug-query-block-graph", Value::Null).await?;
    let jobs = monitor.execute("query-jobs", Value::Null).await?;
    View::of(nodes, graph, jobs)
}

/// Moves a running guest from an export to the raw file behind it. Returns when no node of QEMU names the
/// export any more.
///
/// It can be called again whatever happened to an earlier call, or to its process, and finds out what is
/// left to do. `patience` is for the way forward; the way back has its own.
///
/// # Errors
///
/// Those of [`next`], and what QEMU says. After an error the guest is where it was, on the export, unless
/// the message says that this is unknown: then the connection was lost, or QEMU hangs, and the export must
/// be kept until a later call returns.
pub async fn pivot(monitor: &mut Monitor, pivot: &Pivot, patience: Duration) -> Result<Outcome> {
    pivot.check()?;
    let forward = timeout(patience, forward(monitor, pivot)).await;
    let error = match forward {
        Ok(Ok(outcome)) => return Ok(outcome),
        Ok(Err(error)) => error,
        Err(_) => {
            let message = format!("not done within {} ms", patience.as_millis());
            Error::new(Kind::Retry, message).at(&pivot.export)
        }
    };
    let hangs = || Error::new(Kind::Retry, "QEMU does not end the job");
    let after = async {
        match back(monitor, pivot).await? {
            // It was too late to turn back.
            Undo::Pivoted => self::forward(monitor, pivot).await.map(Some),
            _ => Ok(None),
        }
    };
    match timeout(BACK, after).await.unwrap_or_else(|_| Err(hangs())) {
        Ok(Some(outcome)) => Ok(outcome),
        Ok(None) => Err(error),
        Err(back) => Err(error.at(format!("where the guest is now is unknown ({back})"))),
    }
}

async fn forward(monitor: &mut Monitor, pivot: &Pivot) -> Result<Outcome> {
    let mut pause = FIRST_PAUSE;
    let mut outcome = Outcome::WasThere;
    let mut completing = false;
    let mut steps = 0;
    while steps < MOST_STEPS {
        let step = next(pivot, &view(monitor).await?)?;
        let wait = step == Step::Wait || (completing && step == Step::Complete);
        if wait {
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
            continue;
        }
        tracing::debug!(export = %pivot.export, ?step, "pivot");
        steps += 1;
        match step {
            Step::Done => return Ok(outcome),
            Step::Complete => (completing, outcome) = (true, Outcome::Moved),
            _ => {}
        }
        carry_out(monitor, pivot, step).await?;
    }
    let message = "QEMU does what it is told, and nothing comes of it";
    Err(Error::new(Kind::Conflict, message).at(&pivot.export))
}

async fn carry_out(monitor: &mut Monitor, pivot: &Pivot, step: Step) -> Result<()> {
    let job = pivot.job();
    let (command, arguments) = match step {
        Step::Add { direct } => {
            monitor.execute("blockdev-add", pivot.node_options(direct)).await?;
            // Who dies here leaves a node without: then what is written to it is not known, and nobody thinks so.
            let Some(bitmap) = &pivot.bitmap else { return Ok(()) };
            ("block-dirty-bitmap-add", json!({ "node": pivot.name, "name": bitmap }))
        }
        Step::Mirror { device, replaces } => {
            let mut options = json!({
                "job-id": job,
                "device": device,
                "target": pivot.name,
                "sync": "none",
                "copy-mode": "write-blocking",
                // It stays until we have seen how it ended.
                "auto-dismiss": false,
            });
            if let Some(replaces) = replaces {
                options["replaces"] = replaces.into();
            }
            ("blockdev-mirror", options)
        }
        Step::Complete => ("job-complete", json!({ "id": job })),
        Step::Dismiss { error } => {
            monitor.execute("job-dismiss", json!({ "id": job })).await?;
            let failed = |error| Error::new(Kind::Conflict, format!("the mirror failed: {error}"));
            return error.map_or(Ok(()), |error| Err(failed(error)));
        }
        Step::Delete { node } => ("blockdev-del", json!({ "node-name": node })),
        Step::Wait | Step::Done => return Ok(()),
    };
    monitor.execute(command, arguments).await.map(drop)
}

async fn back(monitor: &mut Monitor, pivot: &Pivot) -> Result<Undo> {
    let mut pause = FIRST_PAUSE;
    let mut canceled = false;
    loop {
        let step = undo(pivot, &view(monitor).await?);
        let done = match &step {
            Undo::Undone | Undo::Pivoted => return Ok(step),
            Undo::Cancel if !canceled => {
                canceled = true;
                monitor.execute("job-cancel", json!({ "id": pivot.job() })).await
            }
            Undo::Dismiss => monitor.execute("job-dismiss", json!({ "id": pivot.job() })).await,
            Undo::Delete { node } => {
                monitor.execute("blockdev-del", json!({ "node-name": node })).await
            }
            Undo::Cancel | Undo::Wait => Ok(Value::Null),
        };
        if let Err(error) = done {
            // It may have moved on by itself between the look and the step.
            tracing::debug!(export = %pivot.export, %error, "on the way back");
            if error.kind() == Kind::Retry {
                return Err(error);
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// Tells a guest that its disk has grown. `node` is that of a raw file ([`Pivot::name`]) or above it; while
/// a guest is on an export QEMU cannot do it.
///
/// # Errors
///
/// [`Kind::Invalid`] for less than the disk has now, [`Kind::Gone`] if there is no such node, and what
/// QEMU says.
pub async fn resize(monitor: &mut Monitor, node: &str, bytes: u64) -> Result<()> {
    let place = || format!("node {node}");
    let view = view(monitor).await?;
    let now = view.node(node).ok_or_else(|| Error::new(Kind::Gone, "no such node")).at(place)?;
    if bytes < now.size {
        let message = format!("{bytes} bytes are less than the {} it has", now.size);
        return Err(Error::new(Kind::Invalid, message)).at(place);
    }
    let arguments = json!({ "node-name": node, "size": bytes });
    monitor.execute("block_resize", arguments).await.at(place)?;
    Ok(())
}

fn read<T: serde::de::DeserializeOwned>(answer: Value) -> Result<T> {
    serde_json::from_value(answer).map_err(|e| {
        Error::caused(Kind::Invalid, format!("not what a QEMU monitor answers: {e}"), e)
    })
}
