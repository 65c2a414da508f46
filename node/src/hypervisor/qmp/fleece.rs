//! A running guest's disk as it was at one instant, while the guest goes on: [image fleecing].
//!
//! ```text
//!   guest's device ─▶ copy-before-write ───────────────▶ its node ─▶ … ─▶ source, whose bitmaps note changes
//!                        ▲        └─ what is overwritten ─▶ scratch
//!            snapshot-access ◀── NBD, for reading
//! ```
//! A filter is put between the device and its node: it keeps in `scratch` what the guest overwrites. What there was then is
//! exported over a Unix socket. What a process that died has left is found by its names and taken away first.
//!
//! No trouble of ours is the guest's. If there is no room for what it overwrites, or that takes too long, the point in
//! time is lost: whoever reads it is told so, and the guest's write goes on (`break-snapshot`; a backup job would have it
//! fail). And QEMU before 9.0 may end with an assertion when a client of its NBD server leaves an export that runs in an
//! I/O thread: there a device with one is refused.
//!
//! # What has changed
//!
//! A bitmap of the source notes what the guest writes since the last capture. It goes on through the next one:
//!
//! ```text
//!   before the instant:  `…-since` begins
//!   after it:            `…-known` is a copy of the bitmap, and is what the capture reads
//!   it was captured:     the bitmap becomes what `…-since` has, at once
//!   it came to nothing:  both are removed
//! ```
//! What is written before the instant and after `…-since` began is in both, which says more than it need. Whoever dies leaves
//! the bitmap as it was. If there is none, and what had changed when `…-since` began is known otherwise, that is what
//! `…-known` is a copy of.
//!
//! [image fleecing]: https://qemu-project.gitlab.io/qemu/interop/live-block-operations.html

use std::path::{Path, PathBuf};
use std::time::Duration;

use image::error::At;
use image::{Error, Kind, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::drive::view;
use super::graph::{Node, Parent, View};
use super::monitor::Monitor;
use super::wire::Version;

/// How often is looked whether an export has gone; the pauses grow from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(50);
/// Looks at an export before it counts as one that hangs: about ten seconds.
const LOOKS: u32 = 200;
/// How long a guest's write may wait until what it overwrites is kept, in seconds.
const COPY: u32 = 10;
/// The first that has a filter which does not make its troubles the guest's.
const FIRST: Version = Version { major: 7, minor: 1, micro: 0 };
/// The first in which clients may leave an export that runs in an I/O thread.
const THREADS: Version = Version { major: 9, minor: 0, micro: 0 };

/// What a fleece is called, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleece {
    /// The node whose bitmaps note what the guest writes: the one that its device uses, or below it.
    pub source: String,
    /// What the names of all that is made begin with, at most 24 bytes.
    pub name: String,
    /// An empty file, as large as the disk, that QEMU may write to: an absolute path. It is not left to QEMU to make it:
    /// QEMU 7.2 ends with an assertion if it is asked for its nodes while it does (`blockdev-create`, and in the midst of
    /// it `query-named-block-nodes`).
    pub scratch: PathBuf,
    /// Where the export listens.
    pub socket: PathBuf,
}

/// A disk of a guest's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The device, as QEMU's objects are named.
    pub path: String,
    /// The older name of the disk (`-drive id=`); may be empty.
    pub drive: String,
    /// The node that it uses.
    pub node: String,
    /// The driver of that: `raw`, `qcow2`, …
    pub driver: String,
    /// What it shows, as QEMU writes it: a path, a URL, or `json:{…}`.
    pub filename: String,
    /// Size in bytes.
    pub size: u64,
}

const FILTER: &str = "-cbw";
const FILE: &str = "-file";
const SINCE: &str = "-since";
const KNOWN: &str = "-known";

impl Fleece {
    fn made(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.name)
    }

    /// The bitmap that comes with the export, of what had changed.
    pub fn known(&self) -> String {
        self.made(KNOWN)
    }

    /// The bitmap of what changes since all was [made ready](prepare).
    pub fn since(&self) -> String {
        self.made(SINCE)
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

/// Makes all ready for a point in time; returns whose disk it is. From here on changes are noted in the bitmap
/// [`since`](Fleece::since).
///
/// # Errors
///
/// [`Kind::Gone`] if there is no such node; [`Kind::Unsupported`] for what QEMU of this version cannot do without danger for
/// the guest, and where no device uses the node; [`Kind::Conflict`] if another NBD server of this QEMU runs, and for
/// whatever QEMU refuses. What was made by then is to be [taken away](tidy).
pub async fn prepare(monitor: &mut Monitor, fleece: &Fleece) -> Result<Device> {
    make(monitor, fleece).await.at(|| format!("node {}", fleece.source))
}

async fn make(monitor: &mut Monitor, fleece: &Fleece) -> Result<Device> {
    let device = above(monitor, &fleece.source).await?;
    refuse_dangers(monitor, &device).await?;
    let path = |path: &Path| path.display().to_string();
    let file = json!({
        "driver": "file", "node-name": fleece.made(FILE), "filename": path(&fleece.scratch), "discard": "unmap",
    });
    let for_qemu = || format!("{}, which QEMU must be able to use", fleece.scratch.display());
    monitor.execute("blockdev-add", file).await.at(for_qemu)?;
    let server = json!({ "addr": { "type": "unix", "data": { "path": path(&fleece.socket) } } });
    if let Err(error) = monitor.execute("nbd-server-start", server).await {
        // Another's is not to be taken for ours, and stopped.
        delete(monitor, &fleece.made(FILE)).await?;
        return Err(error);
    }
    let filter = json!({
        "driver": "copy-before-write", "node-name": fleece.made(FILTER), "file": device.node,
        "target": fleece.made(FILE), "on-cbw-error": "break-snapshot", "cbw-timeout": COPY,
    });
    monitor.execute("blockdev-add", filter).await?;
    let since = json!({ "node": fleece.source, "name": fleece.since() });
    monitor.execute("block-dirty-bitmap-add", since).await?;
    Ok(device)
}

/// Fixes the point in time. What has changed by then is in the bitmap `changed`, if anything tells.
///
/// # Errors
///
/// What QEMU says.
pub async fn fix(
    monitor: &mut Monitor,
    fleece: &Fleece,
    device: &Device,
    changed: Option<&str>,
) -> Result<()> {
    use_node(monitor, &device.path, &fleece.made(FILTER)).await?;
    let Some(changed) = changed else { return Ok(()) };
    let known = fleece.known();
    let mut add = fleece.action("add", &known);
    add["data"]["disabled"] = true.into();
    let actions = [add, fleece.merge(&known, changed)];
    monitor.execute("transaction", json!({ "actions": actions })).await.map(drop)
}

/// Exports it, under the fleece's name, and if it is `known` what had changed with it.
///
/// # Errors
///
/// What QEMU says.
pub async fn export(monitor: &mut Monitor, fleece: &Fleece, known: bool) -> Result<()> {
    let access = json!({
        "driver": "snapshot-access", "node-name": fleece.name, "file": fleece.made(FILTER),
    });
    monitor.execute("blockdev-add", access).await?;
    let bitmap = known.then(|| json!({ "node": fleece.source, "name": fleece.known() }));
    let export = json!({
        "type": "nbd", "id": fleece.name, "node-name": fleece.name, "name": fleece.name, "writable": false,
        "bitmaps": Vec::from_iter(bitmap),
    });
    monitor.execute("block-export-add", export).await.map(drop)
}

/// All before the point in time was captured: what changes since is in the bitmap `next`, and `old` ones are removed.
///
/// # Errors
///
/// What QEMU says; then all bitmaps are as before.
pub async fn captured(
    monitor: &mut Monitor,
    fleece: &Fleece,
    next: &str,
    old: &[String],
) -> Result<()> {
    let since = fleece.since();
    let begin = if old.iter().any(|old| old == next) { "clear" } else { "add" };
    let mut actions = vec![fleece.action(begin, next), fleece.merge(next, &since)];
    actions.extend(old.iter().filter(|old| *old != next).map(|old| fleece.action("remove", old)));
    monitor.execute("transaction", json!({ "actions": actions })).await.map(drop)
}

/// Takes away all whose names begin like this, also half of it, also by a process that is gone: the guest's device uses
/// its own node again. Bitmaps that note what has changed stay.
///
/// # Errors
///
/// What QEMU says of what it does not take away.
pub async fn tidy(monitor: &mut Monitor, names: &str) -> Result<()> {
    let others = end_exports(monitor, names).await?;
    let seen = view(monitor).await?;
    let ours = |suffix: &str| {
        let node = |name: &&str| name.starts_with(names) && name.ends_with(suffix);
        seen.nodes.iter().map(|node| node.name.as_str()).filter(node).collect::<Vec<_>>()
    };
    for node in seen.nodes.iter().filter(|node| node.driver == "snapshot-access") {
        if node.name.starts_with(names) {
            delete(monitor, &node.name).await?;
        }
    }
    for filter in ours(FILTER) {
        leave(monitor, &seen, filter).await?;
        delete(monitor, filter).await?;
    }
    let files = ours(FILE);
    // As long as a scratch file is there the server is known to be ours.
    if !files.is_empty() && !others {
        match monitor.execute("nbd-server-stop", Value::Null).await {
            Err(error) if error.kind() == Kind::Retry => return Err(error),
            _ => {}
        }
    }
    for file in files {
        delete(monitor, file).await?;
    }
    forget_bitmaps(monitor, names).await
}

/// The names of a node's bitmaps that note what changes.
///
/// # Errors
///
/// [`Kind::Gone`] if there is no such node.
pub async fn bitmaps(monitor: &mut Monitor, node: &str) -> Result<Vec<String>> {
    let nodes = Bitmaps::all(monitor).await?;
    let found = nodes.into_iter().find(|of| of.node_name == node);
    let gone = || Error::new(Kind::Gone, format!("this QEMU has no node {node}"));
    let bitmaps = found.ok_or_else(gone)?.dirty_bitmaps;
    let good = bitmaps.into_iter().filter(|bitmap| bitmap.recording && !bitmap.inconsistent);
    Ok(good.map(|bitmap| bitmap.name).filter(|name| !name.is_empty()).collect())
}

/// The disks of the guest's devices.
///
/// # Errors
///
/// What QEMU says.
pub async fn devices(monitor: &mut Monitor) -> Result<Vec<Device>> {
    #[derive(Deserialize)]
    struct Info {
        #[serde(default)]
        device: String,
        qdev: Option<String>,
        inserted: Option<Inserted>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Inserted {
        node_name: String,
        drv: String,
        file: String,
        image: Image,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Image {
        virtual_size: u64,
    }
    let all: Vec<Info> = read(monitor, "query-block", Value::Null).await?;
    let device = |info: Info| {
        let inserted = info.inserted?;
        Some(Device {
            path: info.qdev.filter(|path| !path.is_empty())?,
            drive: info.device,
            node: inserted.node_name,
            driver: inserted.drv,
            filename: inserted.file,
            size: inserted.image.virtual_size,
        })
    };
    Ok(all.into_iter().filter_map(device).collect())
}

/// The logical sectors of a device, in bytes; nothing if it is no disk.
///
/// # Errors
///
/// If QEMU does not answer.
pub async fn sector(monitor: &mut Monitor, device: &Device) -> Result<Option<u32>> {
    let value = property(monitor, &device.path, "logical_block_size").await?;
    Ok(value.and_then(|value| value.as_u64()).and_then(|value| value.try_into().ok()))
}

/// Drivers of nodes that show what lies below them, and nothing else.
const SHOWS_BELOW: [&str; 3] = ["raw", "throttle", "copy-on-read"];

/// The device that uses a node, or one that lies over it and shows the same.
async fn above(monitor: &mut Monitor, source: &str) -> Result<Device> {
    let view = view(monitor).await?;
    let gone = || Error::new(Kind::Gone, "this QEMU has no such node");
    let of_source = view.node(source).ok_or_else(gone)?;
    let refused = |what: String| Err(Error::new(Kind::Unsupported, what));
    let mut top = of_source;
    loop {
        let over = top.parents.iter().filter_map(|parent| match parent {
            Parent::Node(at) => Some(&view.nodes[*at]),
            _ => None,
        });
        match over.collect::<Vec<_>>()[..] {
            [] => break,
            [over] if SHOWS_BELOW.contains(&over.driver.as_str()) && over.size == top.size => {
                top = over;
            }
            _ => return refused(format!("more than a view of it lies over node {}", top.name)),
        }
    }
    let mut using = devices(monitor).await?.into_iter().filter(|device| device.node == top.name);
    match (using.next(), using.next()) {
        (Some(device), None) => Ok(device),
        _ => refused(format!(
            "not one device of the guest, and nothing else, uses node {}",
            top.name
        )),
    }
}

async fn refuse_dangers(monitor: &mut Monitor, device: &Device) -> Result<()> {
    let version = monitor.version();
    let cannot = |what: &str| {
        let what =
            format!("QEMU {version} {what}: stop the guest and save its disk, or its volume");
        Err(Error::new(Kind::Unsupported, what))
    };
    if version < FIRST {
        return cannot(
            "cannot keep what a guest overwrites without danger for it, 7.1 and later can",
        );
    }
    if version < THREADS && runs_in_a_thread(monitor, device).await? {
        return cannot(
            "could end when a disk is exported whose device has an I/O thread, before 9.0",
        );
    }
    Ok(())
}

/// Whether a device, or the controller that it hangs on, has an I/O thread.
async fn runs_in_a_thread(monitor: &mut Monitor, device: &Device) -> Result<bool> {
    let threads = monitor.execute("query-iothreads", Value::Null).await?;
    if threads.as_array().is_some_and(Vec::is_empty) {
        return Ok(false);
    }
    let bus = property(monitor, &device.path, "parent_bus").await?;
    let bus = bus.as_ref().and_then(Value::as_str).unwrap_or_default();
    let controller = bus.rsplit_once('/').map_or("", |(controller, _)| controller);
    for object in [device.path.as_str(), controller] {
        let thread = property(monitor, object, "iothread").await?;
        if thread.as_ref().and_then(Value::as_str).is_some_and(|thread| !thread.is_empty()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What QEMU tells of an object; nothing if it has no such property.
async fn property(monitor: &mut Monitor, object: &str, name: &str) -> Result<Option<Value>> {
    let asked = json!({ "path": object, "property": name });
    match monitor.execute("qom-get", asked).await {
        Err(error) if error.kind() == Kind::Retry => Err(error),
        answer => Ok(answer.ok()),
    }
}

/// Has a device use another node: it waits for what is under way, and the guest notices nothing.
async fn use_node(monitor: &mut Monitor, device: &str, node: &str) -> Result<()> {
    let drive = json!({ "path": device, "property": "drive", "value": node });
    monitor.execute("qom-set", drive).await.map(drop)
}

/// Has whatever device uses a filter use the node below it.
async fn leave(monitor: &mut Monitor, view: &View, filter: &str) -> Result<()> {
    let using = devices(monitor).await?.into_iter().find(|device| device.node == filter);
    let (Some(device), Some(at)) = (using, view.nodes.iter().position(|n| n.name == filter)) else {
        return Ok(());
    };
    let scratch = format!("{}{FILE}", filter.trim_end_matches(FILTER));
    let below = |node: &&Node| node.parents.contains(&Parent::Node(at)) && node.name != scratch;
    let none = || Error::new(Kind::Conflict, format!("nothing lies below node {filter}"));
    let node = view.nodes.iter().find(below).ok_or_else(none)?;
    use_node(monitor, &device.path, &node.name).await
}

async fn delete(monitor: &mut Monitor, node: &str) -> Result<()> {
    monitor.execute("blockdev-del", json!({ "node-name": node })).await.map(drop)
}

/// Ends exports, and returns whether there are others. QEMU says that one is gone before it is.
async fn end_exports(monitor: &mut Monitor, names: &str) -> Result<bool> {
    #[derive(Deserialize)]
    struct Export {
        id: String,
    }
    let (mut pause, mut told) = (FIRST_PAUSE, false);
    for _ in 0..LOOKS {
        let all: Vec<Export> = read(monitor, "query-block-exports", Value::Null).await?;
        let (ours, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|export| export.id.starts_with(names));
        if ours.is_empty() {
            return Ok(!others.is_empty());
        }
        if !told {
            for export in &ours {
                let export = json!({ "id": export.id, "mode": "hard" });
                monitor.execute("block-export-del", export).await?;
            }
            told = true;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
    Err(Error::new(Kind::Retry, "QEMU does not end the export"))
}

/// Removes the bitmaps of captures that are over.
async fn forget_bitmaps(monitor: &mut Monitor, names: &str) -> Result<()> {
    for of in Bitmaps::all(monitor).await? {
        let over = |name: &str| {
            name.starts_with(names) && (name.ends_with(SINCE) || name.ends_with(KNOWN))
        };
        for bitmap in of.dirty_bitmaps.iter().filter(|bitmap| over(&bitmap.name)) {
            let bitmap = json!({ "node": of.node_name, "name": bitmap.name });
            monitor.execute("block-dirty-bitmap-remove", bitmap).await?;
        }
    }
    Ok(())
}

/// The bitmaps of a node.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Bitmaps {
    node_name: String,
    #[serde(default)]
    dirty_bitmaps: Vec<Bitmap>,
}

#[derive(Debug, Deserialize)]
struct Bitmap {
    /// Those that QEMU makes for itself have none.
    #[serde(default)]
    name: String,
    recording: bool,
    #[serde(default)]
    inconsistent: bool,
}

impl Bitmaps {
    async fn all(monitor: &mut Monitor) -> Result<Vec<Self>> {
        read(monitor, "query-named-block-nodes", json!({ "flat": true })).await
    }
}

async fn read<T: DeserializeOwned>(
    monitor: &mut Monitor,
    command: &str,
    arguments: Value,
) -> Result<T> {
    let answer = monitor.execute(command, arguments).await?;
    let garbage = |e| Error::caused(Kind::Invalid, format!("the answer to {command}: {e}"), e);
    serde_json::from_value(answer).map_err(garbage)
}
