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
//! # What has changed
//!
//! A dirty bitmap of the source notes what the guest writes since the last capture. There are two names for it, so that
//! the next one begins at the very instant at which the last one ends:
//!
//! ```text
//!                                   b0 notes      all of it is captured         b1 notes …
//!   the point in time, atomically:  b0 ends, b1 begins, the backup begins
//!   it was captured:                b0 is removed
//!   it came to nothing:             b0 goes on, with what b1 has
//! ```
//! Both are there only during a capture, or if a process died in it: then they are made one, which says more than it
//! need. Where nobody knows what has changed, `p` begins at the point in time, and becomes a `b` only when it was noted
//! that all before was captured.
//!
//! [image fleecing]: https://qemu-project.gitlab.io/qemu/interop/live-block-operations.html

use std::path::{Path, PathBuf};
use std::time::Duration;

use image::error::At;
use image::{Error, Kind, Result};
use serde::Deserialize;
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

    /// The names of the bitmap that notes what changes.
    pub fn bitmaps(&self) -> [String; 2] {
        ["b0", "b1"].map(|side| format!("{}-{side}", self.name))
    }

    fn pending(&self) -> String {
        format!("{}-p", self.name)
    }

    /// Something to be done with a bitmap, in a transaction.
    fn action(&self, what: &str, bitmap: &str) -> Value {
        let data = json!({ "node": self.source, "name": bitmap });
        json!({ "type": format!("block-dirty-bitmap-{what}"), "data": data })
    }

    fn merge(&self, into: &str, from: &str) -> Value {
        let data = json!({ "node": self.source, "target": into, "bitmaps": [from] });
        json!({ "type": "block-dirty-bitmap-merge", "data": data })
    }
}

/// Makes all ready for a point in time.
///
/// # Errors
///
/// [`Kind::Gone`] if there is no such node; [`Kind::Conflict`] if another NBD server of this QEMU runs, and for whatever
/// QEMU refuses. What was made by then is to be [taken away](end).
pub async fn prepare(monitor: &mut Monitor, fleece: &Fleece) -> Result<()> {
    end(monitor, fleece, false).await?;
    make(monitor, fleece).await.at(|| format!("node {}", fleece.source))
}

/// Fixes the point in time: one command. From here on changes are noted anew, beside those in the `known` bitmap.
///
/// # Errors
///
/// What QEMU says.
pub async fn fix(monitor: &mut Monitor, fleece: &Fleece, known: Option<&str>) -> Result<()> {
    let mut actions = Vec::new();
    let next = match known {
        Some(known) => {
            actions.push(fleece.action("disable", known));
            fleece.bitmaps().into_iter().find(|side| side != known).expect("there are two")
        }
        None => fleece.pending(),
    };
    actions.push(fleece.action("add", &next));
    let backup = json!({
        "job-id": fleece.job(), "device": fleece.source, "target": fleece.name, "sync": "none",
        "auto-dismiss": false,
        // The guest goes on if there is no room for what it overwrites; the job does not.
        "on-target-error": "report",
    });
    actions.push(json!({ "type": "blockdev-backup", "data": backup }));
    monitor.execute("transaction", json!({ "actions": actions })).await.map(drop)
}

/// Exports it, under the fleece's name, and what had changed with it.
///
/// # Errors
///
/// What QEMU says.
pub async fn export(monitor: &mut Monitor, fleece: &Fleece, known: Option<&str>) -> Result<()> {
    let bitmaps: Vec<Value> =
        known.iter().map(|name| json!({ "node": fleece.source, "name": name })).collect();
    let export = json!({
        "type": "nbd", "id": fleece.export(), "node-name": fleece.name, "name": fleece.name, "writable": false,
        "bitmaps": bitmaps,
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

/// Takes away all that was made, also half of it, also by a process that is gone; what changes is noted on. With
/// `captured` from the point in time on, for it was noted that all before was captured.
///
/// # Errors
///
/// What QEMU says of what it does not take away.
pub async fn end(monitor: &mut Monitor, fleece: &Fleece, captured: bool) -> Result<()> {
    take_away(monitor, fleece).await?;
    let bitmaps = Bitmap::all(monitor, fleece).await?;
    let there = |name: &str| bitmaps.iter().find(|bitmap| bitmap.name == name);
    let [b0, b1] = fleece.bitmaps();
    let pending = fleece.pending();
    if there(&pending).is_some() {
        if captured {
            let actions = [fleece.action("add", &b0), fleece.merge(&b0, &pending)];
            monitor.execute("transaction", json!({ "actions": actions })).await?;
        }
        remove(monitor, fleece, &pending).await?;
    }
    let (Some(one), Some(other)) = (there(&b0), there(&b1)) else { return Ok(()) };
    let (old, new) = if one.recording { (other, one) } else { (one, other) };
    if !captured {
        let mut actions = vec![fleece.merge(&old.name, &new.name)];
        if !old.recording {
            actions.insert(0, fleece.action("enable", &old.name));
        }
        monitor.execute("transaction", json!({ "actions": actions })).await?;
        return remove(monitor, fleece, &new.name).await;
    }
    remove(monitor, fleece, &old.name).await
}

/// The bitmap that notes what has changed since the last capture, if there is one.
///
/// # Errors
///
/// [`Kind::Gone`] if there is no such node.
pub async fn known(monitor: &mut Monitor, fleece: &Fleece) -> Result<Option<String>> {
    end(monitor, fleece, false).await?;
    let bitmaps = Bitmap::all(monitor, fleece).await?;
    let ours = fleece.bitmaps();
    let known = bitmaps.into_iter().find(|bitmap| ours.contains(&bitmap.name));
    match known {
        Some(bitmap) if bitmap.recording && !bitmap.inconsistent => Ok(Some(bitmap.name)),
        Some(bitmap) => remove(monitor, fleece, &bitmap.name).await.map(|()| None),
        None => Ok(None),
    }
}

async fn remove(monitor: &mut Monitor, fleece: &Fleece, bitmap: &str) -> Result<()> {
    let bitmap = json!({ "node": fleece.source, "name": bitmap });
    monitor.execute("block-dirty-bitmap-remove", bitmap).await.map(drop)
}

/// A bitmap of the source.
#[derive(Debug, Deserialize)]
struct Bitmap {
    #[serde(default)]
    name: String,
    recording: bool,
    #[serde(default)]
    inconsistent: bool,
}

impl Bitmap {
    async fn all(monitor: &mut Monitor, fleece: &Fleece) -> Result<Vec<Self>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Node {
            node_name: String,
            #[serde(default)]
            dirty_bitmaps: Vec<Bitmap>,
        }
        let nodes = monitor.execute("query-named-block-nodes", json!({ "flat": true })).await?;
        let nodes: Vec<Node> = serde_json::from_value(nodes).map_err(|e| {
            Error::caused(Kind::Invalid, format!("the answer to query-named-block-nodes: {e}"), e)
        })?;
        let source = nodes.into_iter().find(|node| node.node_name == fleece.source);
        let gone = || Error::new(Kind::Gone, format!("this QEMU has no node {}", fleece.source));
        Ok(source.ok_or_else(gone)?.dirty_bitmaps)
    }
}

async fn take_away(monitor: &mut Monitor, fleece: &Fleece) -> Result<()> {
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
