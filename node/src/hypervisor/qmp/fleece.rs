//! A running guest's disk as it was at one instant, while the guest goes on: [image fleecing].
//!
//! ```text
//!   guest ─▶ source ──────────────── what a write overwrites is copied before ──▶ scratch (qcow2)
//!               ▲                                                                    │
//!               └───────────────── what was not overwritten ─────────────────────────┤
//!                                                                           NBD ◀────┘
//! ```
//! A backup job that copies nothing by itself (`sync=none`) keeps in `scratch` what the guest overwrites; `scratch` has
//! the source behind it, and is exported over a Unix socket, for reading. What a process that died has left is found by
//! its names and taken away first.
//!
//! [image fleecing]: https://qemu-project.gitlab.io/qemu/interop/live-block-operations.html

use std::path::{Path, PathBuf};
use std::time::Duration;

use image::error::At;
use image::{Error, Kind, Result};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::drive::view;
use super::graph::Job;
use super::monitor::Monitor;

/// How often a job is looked at; the pauses grow from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(50);
/// Looks at a job before it counts as one that hangs: about ten seconds.
const LOOKS: u32 = 200;

/// What a fleece is called, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleece {
    /// The node that the guest's device uses.
    pub source: String,
    /// What the names of all that is made begin with, at most 24 bytes: the same each time for one disk.
    pub name: String,
    /// An empty qcow2 file, as large as the disk, that QEMU may write to: an absolute path. It is not left to QEMU to
    /// make it: QEMU 7.2 ends with an assertion if it is asked for its nodes while it does (`blockdev-create`, and in
    /// the midst of it `query-named-block-nodes`).
    pub scratch: PathBuf,
    /// Where the export listens.
    pub socket: PathBuf,
}

impl Fleece {
    fn file(&self) -> String {
        format!("{}-file", self.name)
    }

    fn job(&self) -> String {
        format!("{}-job", self.name)
    }

    fn export(&self) -> String {
        format!("{}-export", self.name)
    }
}

/// Makes all ready for a point in time.
///
/// # Errors
///
/// [`Kind::Gone`] if there is no such node; [`Kind::Conflict`] if another NBD server of this QEMU runs, and for whatever
/// QEMU refuses. What was made by then is to be [taken away](end).
pub async fn prepare(monitor: &mut Monitor, fleece: &Fleece) -> Result<()> {
    end(monitor, fleece).await?;
    make(monitor, fleece).await.at(|| format!("node {}", fleece.source))
}

/// Fixes the point in time: one command.
///
/// # Errors
///
/// What QEMU says.
pub async fn fix(monitor: &mut Monitor, fleece: &Fleece) -> Result<()> {
    let backup = json!({
        "job-id": fleece.job(), "device": fleece.source, "target": fleece.name, "sync": "none",
        "auto-dismiss": false,
        // The guest goes on if there is no room for what it overwrites; the job does not.
        "on-target-error": "report",
    });
    monitor.execute("blockdev-backup", backup).await.map(drop)
}

/// Exports it, under the fleece's name.
///
/// # Errors
///
/// What QEMU says.
pub async fn export(monitor: &mut Monitor, fleece: &Fleece) -> Result<()> {
    let export = json!({
        "type": "nbd", "id": fleece.export(), "node-name": fleece.name, "name": fleece.name, "writable": false,
    });
    monitor.execute("block-export-add", export).await.map(drop)
}

async fn make(monitor: &mut Monitor, fleece: &Fleece) -> Result<()> {
    if view(monitor).await?.node(&fleece.source).is_none() {
        return Err(Error::new(Kind::Gone, "this QEMU has no such node"));
    }
    let path = |path: &Path| path.display().to_string();
    let file = json!({
        "driver": "file", "node-name": fleece.file(), "filename": path(&fleece.scratch), "discard": "unmap",
    });
    monitor.execute("blockdev-add", file).await?;
    let scratch = json!({
        "driver": "qcow2", "node-name": fleece.name, "file": fleece.file(), "backing": fleece.source,
        "discard": "unmap",
    });
    monitor.execute("blockdev-add", scratch).await?;
    let server = json!({ "addr": { "type": "unix", "data": { "path": path(&fleece.socket) } } });
    monitor.execute("nbd-server-start", server).await.map(drop)
}

/// Whether the point in time is still kept: not if there was no room for what the guest has overwritten.
///
/// # Errors
///
/// [`Kind::Full`] or what QEMU says of the job, if it is not.
pub async fn is_kept(monitor: &mut Monitor, fleece: &Fleece) -> Result<()> {
    match job(monitor, &fleece.job()).await? {
        Some(job) if job.status != "concluded" && job.status != "aborting" => Ok(()),
        job => {
            let why =
                job.and_then(|job| job.error.clone()).unwrap_or_else(|| "it ended".to_owned());
            let what = format!("QEMU does not keep any more what the guest overwrites: {why}");
            Err(Error::new(Kind::Io, what))
        }
    }
}

/// Takes away all that was made, also half of it, also by a process that is gone.
///
/// # Errors
///
/// What QEMU says of what it does not take away.
pub async fn end(monitor: &mut Monitor, fleece: &Fleece) -> Result<()> {
    let exports = monitor.execute("query-block-exports", Value::Null).await?;
    let exports = exports.as_array().cloned().unwrap_or_default();
    let ours = |export: &&Value| export["id"] == fleece.export();
    if exports.iter().any(|export| ours(&export)) {
        let export = json!({ "id": fleece.export(), "mode": "hard" });
        monitor.execute("block-export-del", export).await?;
        gone(monitor, fleece).await?;
    }
    end_job(monitor, &fleece.job()).await?;
    let view = view(monitor).await?;
    let had_nodes = view.node(&fleece.name).is_some() || view.node(&fleece.file()).is_some();
    for node in [fleece.name.clone(), fleece.file()] {
        if view.node(&node).is_some() {
            monitor.execute("blockdev-del", json!({ "node-name": node })).await?;
        }
    }
    // One that others use stays.
    if had_nodes && exports.iter().all(|export| ours(&export)) {
        match monitor.execute("nbd-server-stop", Value::Null).await {
            Err(error) if error.kind() == Kind::Retry => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Waits until the export is gone: QEMU says that it will be before it is.
async fn gone(monitor: &mut Monitor, fleece: &Fleece) -> Result<()> {
    let mut pause = FIRST_PAUSE;
    for _ in 0..LOOKS {
        let exports = monitor.execute("query-block-exports", Value::Null).await?;
        let there =
            exports.as_array().is_some_and(|all| all.iter().any(|e| e["id"] == fleece.export()));
        if !there {
            return Ok(());
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
    Err(Error::new(Kind::Retry, "QEMU does not end the export"))
}

async fn job(monitor: &mut Monitor, id: &str) -> Result<Option<Job>> {
    let jobs = monitor.execute("query-jobs", Value::Null).await?;
    let jobs: Vec<Job> = serde_json::from_value(jobs)
        .map_err(|e| Error::caused(Kind::Invalid, format!("the answer to query-jobs: {e}"), e))?;
    Ok(jobs.into_iter().find(|job| job.id == id))
}

async fn end_job(monitor: &mut Monitor, id: &str) -> Result<()> {
    match job(monitor, id).await?.map(|job| job.status) {
        None => return Ok(()),
        Some(status) if status == "concluded" => {}
        Some(_) => drop(monitor.execute("job-cancel", json!({ "id": id })).await?),
    }
    match concluded(monitor, id).await {
        Err(error) if error.kind() == Kind::Retry => Err(error),
        _ => Ok(()),
    }
}

/// Waits for a job, and has QEMU forget it.
async fn concluded(monitor: &mut Monitor, id: &str) -> Result<()> {
    let mut pause = FIRST_PAUSE;
    for _ in 0..LOOKS {
        let Some(job) = job(monitor, id).await? else { return Ok(()) };
        if job.status == "concluded" {
            monitor.execute("job-dismiss", json!({ "id": id })).await?;
            return match &job.error {
                Some(error) => Err(Error::new(Kind::Conflict, format!("job {id}: {error}"))),
                None => Ok(()),
            };
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
    Err(Error::new(Kind::Retry, format!("QEMU does not end job {id}")))
}
