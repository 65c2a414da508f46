//! The gate that whoever writes a volume passes: a lease from placement, and what stops the writer when that is over.
//!
//! ```text
//!  attach ─▶ gate ─▶ placement: one node has the lease ─▶ Held ── leases.json ──▶ watchdog, a process of its own
//!                        ▲                                 │
//!                        └── reports renew all of them ────┘
//! ```
//! Leases are good for a time from when the last report was *sent* that placement has answered, on a clock that goes
//! on while the machine sleeps (`CLOCK_BOOTTIME`). Some time before that is over the daemon stops serving these
//! volumes; when it is over the [`watchdog`] kills whoever still has one of their files open.
//!
//! A node that belongs to no grid needs no leases: nobody else knows of its volumes.

pub mod watchdog;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use api::lease::{HeldLease, LeaseGrant};
use blockio::Fs;
use image::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// In the daemon's directory.
const STATE: &str = "leases.json";
/// Longest file that is read, in bytes.
const MOST: usize = 16 << 20;
const UNPOISONED: &str = "no panics while locked";

/// Milliseconds since this machine was started, sleep included.
pub fn boottime() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec.max(0) as u64 * 1000 + now.tv_nsec.max(0) as u64 / 1_000_000
}

/// What tells this start of the machine from others.
fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let id = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    Ok(id.trim().to_owned())
}

/// A lease of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Lease {
    epoch: u64,
    /// The file or device that may be written.
    disk: PathBuf,
}

/// What is written down: for the next daemon, and for the watchdog.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    /// Of which start of the machine.
    boot: String,
    /// Until when the leases are good, in milliseconds since then.
    until: u64,
    /// For how long they are after a report, in milliseconds.
    term: u64,
    /// By the volume's id.
    leases: BTreeMap<String, Lease>,
    /// Those of which placement is still to be told that they are not needed any more: their epochs.
    #[serde(default)]
    released: BTreeMap<String, u64>,
}

impl Held {
    fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(STATE);
        match Fs::os().read(&path, MOST) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                let what =
                    format!("{}: {e}; move it away: leases are asked for again", path.display());
                Error::new(Kind::Corrupt, what)
            }),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(Error::io("the leases of this node", e)),
        }
    }
}

/// The leases of a node.
#[derive(Debug)]
pub struct Leases {
    dir: PathBuf,
    boottime: fn() -> u64,
    held: Mutex<Held>,
    changed: Notify,
}

impl Leases {
    /// Those that an earlier daemon has left, if the machine has not been started anew since: then whoever wrote is
    /// gone, and leases are asked for again.
    pub fn load(dir: PathBuf, boottime: fn() -> u64) -> Result<Self> {
        let (mut held, boot) = (Held::load(&dir)?, boot_id()?);
        if held.boot != boot {
            let released = std::mem::take(&mut held.released);
            held = Held { boot, released, ..Held::default() };
        }
        Ok(Self { dir, boottime, held: Mutex::new(held), changed: Notify::new() })
    }

    /// Whether a volume may be written now.
    pub fn has(&self, volume: &str) -> bool {
        let held = self.held.lock().expect(UNPOISONED);
        held.leases.contains_key(volume) && (self.boottime)() < stop_at(&held)
    }

    /// The epoch of a lease that was given, whether or not its time is over.
    pub fn epoch(&self, volume: &str) -> Option<u64> {
        self.held.lock().expect(UNPOISONED).leases.get(volume).map(|lease| lease.epoch)
    }

    /// Notes a lease that was asked for at a time ([`boottime`]), and given. It is written down when this returns.
    pub fn given(&self, volume: &str, disk: PathBuf, grant: LeaseGrant, asked: u64) -> Result<()> {
        let lease = Lease { epoch: grant.epoch, disk };
        self.change(|held| {
            held.released.remove(volume);
            held.term = grant.lease_secs.saturating_mul(1000);
            // The first one counts from when it was asked for; later ones change nothing for those that are there.
            if held.leases.is_empty() {
                held.until = asked.saturating_add(held.term);
            }
            held.leases.insert(volume.to_owned(), lease);
        })?;
        self.changed.notify_one();
        Ok(())
    }

    /// Notes that a lease is not needed any more: nobody writes. Placement is told by the next report.
    pub fn release(&self, volume: &str) -> Result<()> {
        self.change(|held| {
            if let Some(lease) = held.leases.remove(volume) {
                held.released.insert(volume.to_owned(), lease.epoch);
            }
        })?;
        self.changed.notify_one();
        Ok(())
    }

    /// What a report says: those that there are, and those that are not needed any more.
    pub fn told(&self) -> (Vec<HeldLease>, Vec<HeldLease>) {
        let held = self.held.lock().expect(UNPOISONED);
        let line = |(volume, epoch): (&String, u64)| HeldLease { volume: volume.clone(), epoch };
        let has = held.leases.iter().map(|(volume, lease)| line((volume, lease.epoch)));
        let released = held.released.iter().map(|(volume, epoch)| line((volume, *epoch)));
        (has.collect(), released.collect())
    }

    /// A report that was sent at a time was answered: what it said of leases is known, and they are good for so long
    /// from then.
    ///
    /// # Errors
    ///
    /// If it could not be written down. Then they are good for as long as they were before: longer than the watchdog
    /// knows of, it would kill a daemon that is in the right.
    pub fn answered(&self, sent: u64, lease_secs: u64, released: &[HeldLease]) -> Result<()> {
        self.change(|held| {
            held.term = lease_secs.saturating_mul(1000);
            held.until = held.until.max(sent.saturating_add(held.term));
            for HeldLease { volume, epoch } in released {
                if held.released.get(volume) == Some(epoch) {
                    held.released.remove(volume);
                }
            }
        })
    }

    /// How long an answer to a report may be waited for, so that there is time for some more before leases are over.
    pub fn patience(&self) -> Duration {
        let term = self.held.lock().expect(UNPOISONED).term;
        if term == 0 { Duration::MAX } else { Duration::from_millis(term / 4) }
    }

    /// How long these leases are good for the daemon; it stops earlier than the watchdog would stop it. `None`
    /// without any.
    pub fn left(&self) -> Option<Duration> {
        let held = self.held.lock().expect(UNPOISONED);
        if held.leases.is_empty() {
            return None;
        }
        Some(Duration::from_millis(stop_at(&held).saturating_sub((self.boottime)())))
    }

    /// How long what is under way may take to end when leases are over: half of what is left until the watchdog stops it,
    /// since what was written has still to be made to last.
    pub fn grace(&self) -> Duration {
        let held = self.held.lock().expect(UNPOISONED);
        Duration::from_millis(held.until.saturating_sub((self.boottime)()) / 2)
    }

    /// Waits until some were given or released: placement is to hear of that at once.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn change(&self, change: impl FnOnce(&mut Held)) -> Result<()> {
        let mut held = self.held.lock().expect(UNPOISONED);
        let mut now = held.clone();
        change(&mut now);
        if now != *held {
            let bytes = serde_json::to_vec(&now).expect("our own types serialise");
            let written = Fs::os().replace(self.dir.join(STATE), &bytes);
            written.map_err(|e| Error::io("the leases of this node", e))?;
            *held = now;
        }
        Ok(())
    }
}

/// When the daemon itself stops: a tenth of the term earlier, so that what it has begun is over in time.
fn stop_at(held: &Held) -> u64 {
    held.until.saturating_sub(held.term / 10)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    static NOW: AtomicU64 = AtomicU64::new(1_000_000);

    fn now() -> u64 {
        NOW.load(Ordering::SeqCst)
    }

    const GRANT: LeaseGrant = LeaseGrant { epoch: 3, lease_secs: 100 };

    #[test]
    fn leases_are_good_from_when_the_last_answered_report_was_sent() {
        let dir = tempfile::tempdir().unwrap();
        let leases = Leases::load(dir.path().into(), now).unwrap();
        assert!(!leases.has("v") && leases.left().is_none());
        leases.given("v", "/disk".into(), GRANT, now()).unwrap();
        assert_eq!(leases.left(), Some(Duration::from_secs(90)));
        let sent = now();
        NOW.fetch_add(60_000, Ordering::SeqCst);
        leases.answered(sent, 100, &[]).unwrap();
        assert_eq!(leases.left(), Some(Duration::from_secs(30)), "not from when it was answered");
        // Another daemon of the same start of the machine has them too.
        let next = Leases::load(dir.path().into(), now).unwrap();
        assert!(next.has("v") && next.epoch("v") == Some(3));
        NOW.fetch_add(30_000, Ordering::SeqCst);
        assert!(!next.has("v") && next.epoch("v") == Some(3));
        // Of the last tenth, which is what the watchdog leaves.
        assert_eq!(next.grace(), Duration::from_secs(5));
        leases.answered(now(), 100, &[]).unwrap();
        assert!(leases.has("v"));
        leases.release("v").unwrap();
        let (has, released) = leases.told();
        assert!(has.is_empty() && released == [HeldLease { volume: "v".into(), epoch: 3 }]);
        // Of a restart in between nothing is lost.
        let next = Leases::load(dir.path().into(), now).unwrap();
        assert_eq!(next.told().1, released);
        next.answered(now(), 100, &released).unwrap();
        assert!(next.told().1.is_empty());
    }

    #[test]
    fn a_renewal_that_cannot_be_written_down_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("node");
        std::fs::create_dir(&at).unwrap();
        let leases = Leases::load(at.clone(), || 0).unwrap();
        leases.given("v", "/disk".into(), GRANT, 0).unwrap();
        // As on a disk that is full: nothing can be made there.
        std::fs::rename(&at, dir.path().join("away")).unwrap();
        leases.answered(50_000, 100, &[]).unwrap_err();
        assert_eq!(leases.left(), Some(Duration::from_secs(90)), "the watchdog knows of no more");
        std::fs::rename(dir.path().join("away"), &at).unwrap();
        leases.answered(50_000, 100, &[]).unwrap();
        assert_eq!(leases.left(), Some(Duration::from_secs(140)));
    }

    #[test]
    fn what_was_left_before_the_machine_was_started_is_no_lease() {
        let dir = tempfile::tempdir().unwrap();
        let leases = Leases::load(dir.path().into(), now).unwrap();
        leases.given("v", "/disk".into(), GRANT, now()).unwrap();
        let path = dir.path().join(STATE);
        let text = std::fs::read_to_string(&path).unwrap();
        let boot = boot_id().unwrap();
        std::fs::write(&path, text.replace(&boot, "another")).unwrap();
        let next = Leases::load(dir.path().into(), now).unwrap();
        assert!(!next.has("v") && next.epoch("v").is_none());
        std::fs::write(&path, "rubbish").unwrap();
        let wrong = Leases::load(dir.path().into(), now).unwrap_err();
        assert!(
            wrong.kind() == Kind::Corrupt && wrong.message().contains("move it away"),
            "{wrong}"
        );
    }
}
