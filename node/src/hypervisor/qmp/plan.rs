//! Which step follows from what is seen: forward to the raw file, or back to the export.
//!
//! ```text
//!   guest ─ [throttle …] ─ [raw] ─ nbd                     seen            step
//!                                                          no node of ours Add
//!   guest ─ …  nbd        raw ─ file (nobody uses it)      added           Mirror
//!   guest ─ … mirror ─ nbd   and   raw ─ file              job ready       Complete
//!   guest ─ … raw ─ file      [raw] ─ nbd (nobody)         job concluded   Dismiss, Delete …, Done
//! ```
//! Each of these is also what an earlier try may have left, so that there is nothing to remember.

use std::fmt;

use image::{Error, Kind, Result};
use serde_json::{Value, json};

use super::graph::{Node, Parent, View};

/// Which export QEMU uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdExport {
    /// The Unix socket of the NBD server, as QEMU was told.
    pub socket: String,
    /// The name of the export; may be empty.
    pub name: String,
}

impl fmt::Display for NbdExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nbd+unix:///{}?socket={}", self.name, self.socket)
    }
}

impl NbdExport {
    /// Whether a node's file name, as QEMU shows it, is this export.
    ///
    /// QEMU puts socket and name into a URL without escaping anything, so that a URL is compared, never
    /// taken apart. With options that no URL has it shows JSON.
    fn is(&self, filename: &str) -> bool {
        if let Some(options) = filename.strip_prefix("json:") {
            let options: Value = serde_json::from_str(options).unwrap_or_default();
            let text = |flat: &str, nested: &str| {
                let found = options.get(flat).or_else(|| options.pointer(nested));
                found.and_then(Value::as_str).unwrap_or("").to_owned()
            };
            return text("server.path", "/server/path") == self.socket
                && text("export", "/export") == self.name;
        }
        filename == self.to_string()
            || (self.name.is_empty() && filename == format!("nbd+unix://?socket={}", self.socket))
    }
}

/// Whether QEMU locks the file it opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locking {
    /// As it always does: who holds a lock on the bytes of the file must have let go of it before.
    #[default]
    Auto,
    /// Not at all: nothing then keeps another program from the file while the guest writes to it.
    Off,
}

/// A move of one guest's disk from an export to the raw file that the export serves.
///
/// Why it loses nothing: the mirror copies no bytes by itself (`sync=none`). Each write of the guest goes
/// to the export and then to the file, and is answered after both (`copy-mode=write-blocking`); both end in
/// the same file, with the same bytes, and the job keeps two writes of one place in order. When it
/// completes QEMU waits for what is under way and exchanges the nodes. The export must be complete
/// (nothing is fetched any more, all that it was given is written to the file, not kept in memory) and
/// must not write by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pivot {
    /// Where the guest is.
    pub export: NbdExport,
    /// Where it is to be: an absolute path, as QEMU sees it.
    pub raw: String,
    /// Whether `raw` is a block device.
    pub device: bool,
    /// Name of the new node, at most 24 bytes (its file is `NAME-file`, its job `NAME-job`): the same
    /// each time that this is tried for this volume.
    pub name: String,
    /// Past the page cache, or not; `None`: as the guest has it now.
    pub direct: Option<bool>,
    /// Whether QEMU locks the file.
    pub locking: Locking,
    /// A bitmap of this name notes what is written to the new node, from the start.
    pub bitmap: Option<String>,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Open the file.
    Add {
        /// Past the page cache.
        direct: bool,
    },
    /// Begin to repeat writes.
    Mirror {
        /// The topmost node.
        device: String,
        /// The node whose place is taken, if that is another.
        replaces: Option<String>,
    },
    /// Look again in a moment.
    Wait,
    /// Take the place of the source.
    Complete,
    /// Have QEMU forget a job that has ended.
    Dismiss {
        /// Why it failed, if it did.
        error: Option<String>,
    },
    /// Remove a node that nobody uses.
    Delete {
        /// Its name.
        node: String,
    },
    /// No node names the export, and the guest uses the file.
    Done,
}

/// The next thing to do on the way back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undo {
    /// End the job.
    Cancel,
    /// Look again in a moment.
    Wait,
    /// Have QEMU forget the job.
    Dismiss,
    /// Close the file.
    Delete {
        /// The node.
        node: String,
    },
    /// The guest is on the export, and nothing of ours is left.
    Undone,
    /// Too late: the guest uses the file. Go forward.
    Pivoted,
}

impl Pivot {
    /// Checks what QEMU would not say clearly.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] for a name that QEMU would not take, or a relative path.
    pub fn check(&self) -> Result<()> {
        let good = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let begins = self.name.starts_with(|c: char| c.is_ascii_alphabetic());
        if !begins || !self.name.chars().all(good) || self.name.len() > 24 {
            let rule = "a letter, then letters, digits, '-', '.' and '_', at most 24";
            return Err(Error::new(Kind::Invalid, format!("node name {:?}: {rule}", self.name)));
        }
        if !self.raw.starts_with('/') {
            let message = format!("{}: QEMU needs an absolute path", self.raw);
            return Err(Error::new(Kind::Invalid, message));
        }
        Ok(())
    }

    /// The id of the job.
    pub fn job(&self) -> String {
        format!("{}-job", self.name)
    }

    /// The arguments of `blockdev-add`. Always for writing, which a mirror's target must be; when it takes
    /// its place QEMU makes it what the source was.
    pub(super) fn node_options(&self, direct: bool) -> Value {
        let cache = json!({ "direct": direct, "no-flush": false });
        json!({
            "driver": "raw",
            "node-name": self.name,
            "cache": cache,
            "discard": "unmap",
            "file": {
                "driver": if self.device { "host_device" } else { "file" },
                "node-name": format!("{}-file", self.name),
                "filename": self.raw,
                "cache": cache,
                "discard": "unmap",
                "locking": match self.locking { Locking::Auto => "auto", Locking::Off => "off" },
            },
        })
    }

    /// Whether this is what [`Step::Add`] makes.
    fn made(&self, node: &Node) -> bool {
        node.name == self.name && node.driver == "raw" && node.filename == self.raw
    }

    fn conflict(&self, what: impl fmt::Display) -> Error {
        Error::new(Kind::Conflict, format!("{}: {what}", self.export))
    }
}

/// What to do next, on the way forward.
///
/// # Errors
///
/// [`Kind::Gone`] if no guest uses the export, [`Kind::Unsupported`] if something lies on it that is not
/// the disk itself (qcow2, encryption), [`Kind::Conflict`] if nodes of our name are not ours.
pub fn next(pivot: &Pivot, view: &View) -> Result<Step> {
    if let Some(job) = view.job(&pivot.job()) {
        return Ok(match job.status.as_str() {
            "ready" => Step::Complete,
            "concluded" => Step::Dismiss { error: job.error.clone() },
            _ => Step::Wait,
        });
    }
    let raw = view.node(&pivot.name);
    let in_place = raw.is_some_and(|raw| pivot.made(raw) && !raw.parents.is_empty());
    let exports: Vec<usize> = (0..view.nodes.len())
        .filter(|i| view.nodes[*i].driver == "nbd" && pivot.export.is(&view.nodes[*i].filename))
        .collect();
    for export in &exports {
        let chain = chain(pivot, view, *export)?;
        if chain.used {
            if in_place {
                return Err(pivot.conflict(format!("{} is already in use", pivot.name)));
            }
            return begin(pivot, view, &chain, raw);
        }
        // The topmost first: those below are used by it. What has no name of its own goes with it.
        let top = &view.nodes[chain.top];
        if in_place {
            return Ok(match top.name.starts_with('#') {
                true => Step::Wait,
                false => Step::Delete { node: top.name.clone() },
            });
        }
    }
    match in_place {
        true => Ok(Step::Done),
        false => {
            let message = format!("{}: no device of this QEMU uses it", pivot.export);
            Err(Error::new(Kind::Gone, message))
        }
    }
}

/// What lies between an export and whoever uses it.
struct Chain {
    /// The node that shows the disk as it is: the export's, or a `raw` format right above it.
    disk: usize,
    /// The topmost: above it is no other node.
    top: usize,
    used: bool,
}

fn chain(pivot: &Pivot, view: &View, export: usize) -> Result<Chain> {
    let (mut disk, mut top) = (export, export);
    // A graph has no cycles; a wrong answer might.
    for _ in 0..view.nodes.len() {
        let node = &view.nodes[top];
        let above: Vec<usize> = node
            .parents
            .iter()
            .filter_map(|parent| match parent {
                Parent::Node(above) => Some(*above),
                _ => None,
            })
            .collect();
        match above[..] {
            [] => return Ok(Chain { disk, top, used: !node.parents.is_empty() }),
            [above] if node.parents.len() == 1 => {
                let driver = view.nodes[above].driver.as_str();
                match driver {
                    "raw" if disk == top && view.nodes[above].size == node.size => disk = above,
                    "throttle" | "copy-on-read" => {}
                    _ => {
                        let message = format!("{}: {driver} lies on it", pivot.export);
                        return Err(Error::new(Kind::Unsupported, message));
                    }
                }
                top = above;
            }
            _ => return Err(pivot.conflict(format!("{} has several users", node.name))),
        }
    }
    Err(Error::new(Kind::Invalid, format!("{}: its graph has no top", pivot.export)))
}

fn begin(pivot: &Pivot, view: &View, chain: &Chain, raw: Option<&Node>) -> Result<Step> {
    let disk = &view.nodes[chain.disk];
    let direct = pivot.direct.unwrap_or(disk.direct);
    let Some(raw) = raw else {
        return Ok(Step::Add { direct });
    };
    if !pivot.made(raw) {
        return Err(pivot.conflict(format!("node {} is of {}", raw.name, raw.filename)));
    }
    if raw.direct != direct {
        return Ok(Step::Delete { node: raw.name.clone() });
    }
    if raw.size != disk.size {
        let sizes = format!("{} bytes, the guest's disk {}", raw.size, disk.size);
        return Err(pivot.conflict(format!("{} has {sizes}", pivot.raw)));
    }
    let device = view.nodes[chain.top].name.clone();
    let replaces = (chain.top != chain.disk).then(|| disk.name.clone());
    Ok(Step::Mirror { device, replaces })
}

/// What to do next, on the way back.
pub fn undo(pivot: &Pivot, view: &View) -> Undo {
    if let Some(job) = view.job(&pivot.job()) {
        return match job.status.as_str() {
            "concluded" => Undo::Dismiss,
            "created" | "running" | "ready" | "paused" | "standby" => Undo::Cancel,
            _ => Undo::Wait,
        };
    }
    match view.node(&pivot.name) {
        Some(raw) if !pivot.made(raw) => Undo::Undone,
        Some(raw) if raw.parents.is_empty() => Undo::Delete { node: raw.name.clone() },
        Some(_) => Undo::Pivoted,
        None => Undo::Undone,
    }
}
