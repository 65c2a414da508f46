//! Secure erase: what is in a volume that was given back is destroyed where it lies, and a [`Record`] says what was done.
//!
//! ```text
//! Shelf::erase ─▶ Erasure::run ──────────────────────────────▶ Erasure::record ─▶ signed, kept ─▶ Shelf::remove
//!  journal,        step by step: give back what is shared,
//!  then Erasing    overwrite the rest in place, sync, note it;
//!                  pass by pass; then read back
//! ```
//! - Nothing is claimable meanwhile: the volume is [`Erasing`](VolumeState::Erasing) from before the first change.
//! - A stretch counts as overwritten if it lay at the same place of the medium before and after.
//! - What other files share is never written to: it is given back, for there it would only be written elsewhere. So is all
//!   on a file system that copies on write.
//! - Holes are not filled: nothing is there.
//! - After a power cut, a failure or a cancellation [`Shelf::erase`] goes on where its journal is.

mod journal;
mod medium;
mod pattern;
mod prove;
mod pump;
mod record;
#[cfg(test)]
mod tests;
mod work;

use std::io::ErrorKind;
use std::ops::ControlFlow;

use blockio::{BlockFile, FileKind, OpenMode};
use image::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::Shelf;
use crate::device;
use crate::identity::{IdentityBlocks, VolumeState};
use crate::shelf::{DISK, ERASING, io};
use journal::{Journal, State};
pub use medium::Medium;
pub use record::{Outcome, Record};

/// Bytes between two syncs, each with a note in the journal: so much is done again after a power cut. With it an erasure is no
/// slower than one long write (`compare erase`).
const STEP: u64 = 256 << 20;
/// What a file's length is made a multiple of before it is overwritten: sectors of direct I/O.
const ALIGN: u64 = 4096;
/// Most passes that are done.
pub const MOST_PASSES: u32 = 100;

/// How what is in a volume is destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum Method {
    /// Overwritten with zeros.
    Zeros {
        /// So many times.
        passes: u32,
    },
    /// Overwritten with a stream of BLAKE3 from the plan's seed, another one in each pass.
    Random {
        /// So many times.
        passes: u32,
    },
    /// Given back to the device or the file system, of which it reads as zeros then.
    Discard,
}

/// How much of it is read back from the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "kebab-case")]
pub enum Proof {
    /// Nothing.
    None,
    /// Blocks of 4 KiB at places that are drawn from the plan's seed.
    Sample {
        /// So many.
        places: u32,
    },
    /// All that takes space on the medium.
    All,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How.
    pub method: Method,
    /// How much is read back.
    pub proof: Proof,
    /// Drawn at random.
    pub seed: [u8; 32],
}

impl Plan {
    /// Refuses what cannot be done.
    fn check(&self) -> Result<()> {
        let passes = match self.method {
            Method::Zeros { passes } | Method::Random { passes } => passes,
            Method::Discard => 1,
        };
        let what = match self.proof {
            Proof::Sample { places: 0 } => "a sample has at least one place".to_owned(),
            _ if passes == 0 || passes > MOST_PASSES => {
                format!("{passes} passes: there are 1 to {MOST_PASSES}")
            }
            _ => return Ok(()),
        };
        Err(Error::new(Kind::Invalid, what))
    }

    /// Whether they differ in nothing but chance.
    fn is_like(&self, other: &Self) -> bool {
        (self.method, self.proof) == (other.method, other.proof)
    }
}

/// What was done, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Overwritten in place, in every pass.
    pub overwritten: u64,
    /// Given back, with what was there.
    pub discarded: u64,
    /// Given back because others have it, too, and may go on using it.
    pub shared: u64,
    /// Moved by the file system while it was overwritten: what was there may still be where it was.
    pub moved: u64,
    /// Read back, as it should be.
    pub read_back: u64,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// From 1; one more than there are while it is read back.
    pub pass: u32,
    /// How many there are.
    pub passes: u32,
    /// Bytes of this pass that are behind us.
    pub at: u64,
    /// Bytes of a pass, holes and all.
    pub size: u64,
    /// Bytes that are written or read next.
    pub next: u64,
}

/// Asked before each write or read of at most 1 MiB. It may take its time, to hold down the rate; to break off ends the run.
pub type Hook<'a> = dyn FnMut(&Progress) -> ControlFlow<()> + 'a;

/// A volume that is being erased. Nobody else can use it meanwhile.
#[derive(Debug)]
pub struct Erasure {
    identity: IdentityBlocks,
    /// Held open, so that no virtual machine begins to use it.
    data: BlockFile,
    journal: Journal,
    /// Up to here.
    size: u64,
    step: u64,
}

impl Shelf {
    /// Takes a volume to erase it, or to go on: a plan that differs from the one that was begun, in more than its seed,
    /// begins anew. The volume is [`Erasing`](VolumeState::Erasing) when this returns, and stays so. `now` is in seconds
    /// since 1970. Blocks.
    ///
    /// # Errors
    ///
    /// [`Kind::Gone`] if there is none; [`Kind::Conflict`] if somebody uses it; [`Kind::Invalid`] for a plan that is
    /// none. Nothing has been changed then.
    pub fn erase(&self, name: &str, plan: &Plan, now: u64) -> Result<Erasure> {
        plan.check()?;
        let mut identity = self.take_identity(name)?;
        let data = self.open_to_erase(name, &identity)?;
        let medium = Medium::of(&data)?;
        let was_begun = identity.get().state == VolumeState::Erasing;
        let state = State::new(identity.get().id, *plan, medium, now);
        let journal = Journal::begin(&self.fs, &self.path(name)?.join(ERASING), state, was_begun)?;
        if !was_begun {
            identity.become_state(VolumeState::Erasing)?;
        }
        let size = match data.kind() {
            FileKind::Block => device::place(&data)?,
            FileKind::Regular => {
                let size = data.size().map_err(io)?;
                let whole = size.next_multiple_of(ALIGN);
                if whole > size {
                    data.set_len(whole).map_err(io)?;
                }
                whole
            }
        };
        Ok(Erasure { identity, data, journal, size, step: STEP })
    }

    fn open_to_erase(&self, name: &str, identity: &IdentityBlocks) -> Result<BlockFile> {
        let data = match identity.file().kind() {
            // It is claimed already, and cannot be opened twice.
            FileKind::Block => identity.file().clone(),
            FileKind::Regular => {
                self.fs.open(self.path(name)?.join(DISK), OpenMode::write()).map_err(io)?
            }
        };
        match data.other_user().map_err(io)? {
            None => Ok(data),
            Some(who) => Err(Error::new(Kind::Conflict, format!("{name}: in use: {who}"))),
        }
    }

    /// The volumes whose erasure was begun, each with its plan: to be gone on with by [`erase`](Self::erase).
    ///
    /// # Errors
    ///
    /// Of the disk.
    pub fn erasing(&self) -> Result<Vec<(String, Plan)>> {
        let mut all = Vec::new();
        for name in self.names()? {
            let begun = match self.identity(&name) {
                Ok(identity) if identity.state == VolumeState::Erasing => identity,
                Ok(_) => continue,
                Err(error) if matches!(error.kind(), Kind::Gone | Kind::Corrupt) => continue,
                Err(error) => return Err(error),
            };
            let journal = Journal::read(&self.fs, &self.path(&name)?.join(ERASING), &begun.id)?;
            all.extend(journal.map(|state| (name, state.plan)));
        }
        Ok(all)
    }

    /// Whether the erasure of a volume was begun, perhaps by another version of this program.
    pub(crate) fn is_erased_by_steps(&self, name: &str) -> Result<bool> {
        match self.fs.open(self.path(name)?.join(ERASING), OpenMode::read()) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(io(e)),
        }
    }
}

impl Erasure {
    /// Erases it, from wherever it is. Blocks; must not be called on a runtime's own threads.
    ///
    /// # Errors
    ///
    /// [`Kind::Io`] and others of the disk, naming the bytes; [`Kind::Corrupt`] if something else is read back than was
    /// written: the last pass is then done again the next time; [`Kind::Unsupported`] where nothing can be discarded;
    /// [`Kind::Cancelled`] if the hook broke off. The volume stays [`Erasing`](VolumeState::Erasing), and can be run again.
    pub fn run(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        if self.is_done() {
            return Ok(());
        }
        let mut work = work::Work::new(self)?;
        work.passes(hook)?;
        work.prove(hook)?;
        self.journal.change(|state| state.done = true)
    }

    /// Whether all of the plan is done.
    pub fn is_done(&self) -> bool {
        self.journal.now().done
    }

    /// What it goes by.
    pub fn plan(&self) -> &Plan {
        &self.journal.now().plan
    }

    /// What was done to the volume until `ended` (in seconds since 1970) by this node: that it is erased, or, as long as
    /// that is not so, that it failed because of `why`.
    pub fn record(&self, node: &str, ended: u64, why: Option<&Error>) -> Record {
        record::of(self, node, ended, why)
    }
}
