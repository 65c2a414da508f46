//! Volumes that are given back: taken from whoever had them, erased, and gone, with a signed record of what was done.
//!
//! ```text
//!  give back ─▶ take_back: no name leads there ─▶ erase, step by step ─▶ record, signed, on disk ─▶ removed
//!                    └── after any end of the daemon gone on with ──┘
//! ```

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use api::volume::{EraseMethod, EraseProof, Erasure as Erasing, ReleaseVolume};
use blockio::Fs;
use image::error::At;
use image::{Error, Kind, Result};
use volume_pool::erase::{Method, Plan, Proof, Record};
use volume_pool::ready::name_of;
use volume_pool::{Shelf, VolumeState};

use super::erased;
use super::service::{UNPOISONED, Volumes, blocking, now};
use crate::daemon::Grid;

/// Places that are read back of a sample.
const SAMPLE: u32 = 1000;

/// Signs for this node.
pub trait Signs: Send + Sync + 'static {
    /// What this node is called.
    fn name(&self) -> Result<String>;

    /// A signature over some bytes.
    fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>>;
}

/// An erasure that runs, or has failed.
pub(super) struct Run {
    name: String,
    size: u64,
    done: AtomicU64,
    stop: AtomicBool,
    failed: std::sync::Mutex<Option<Error>>,
}

impl<G: Grid> Volumes<G> {
    /// Takes a volume from whoever had it, and begins to erase it. It is nobody's when this returns, and lasts.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] while it is attached, or somebody uses it.
    pub async fn give_back(
        &self,
        name: &str,
        asked: &ReleaseVolume,
        seed: [u8; 32],
    ) -> Result<Erasing> {
        let _only = self.only(name).await;
        let was = self.at_rest(name).await?;
        // Who cannot sign cannot say that it is erased.
        self.0.signer.name().at(|| format!("{name}: nobody could sign that it is erased"))?;
        let plan = plan(asked, seed);
        let (shelf, taken) = (self.0.shelf.clone(), name.to_owned());
        let id = self.blocking(move || shelf.take_back(&taken, &plan, now())).await?;
        self.begin_erasure(name_of(&id), plan, name.to_owned(), was.size);
        self.erasure(&name_of(&id))
    }

    /// Begins to erase a ready volume that nobody wants, as one that was given back; nothing is done if it is not there.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if it was handed out, or is in use.
    pub(crate) async fn erase_ready(&self, id: &[u8; 16], seed: [u8; 32]) -> Result<()> {
        let name = name_of(id);
        self.0.signer.name().at(|| format!("{name}: nobody could sign that it is erased"))?;
        let plan = plan(&ReleaseVolume::default(), seed);
        let (shelf, taken) = (self.0.shelf.clone(), name.clone());
        let size = self.blocking(move || {
            let ready = shelf.ready()?;
            let identity = match ready.identity(&taken) {
                Err(error) if error.kind() == Kind::Gone => return Ok(None),
                found => found?,
            };
            match identity.state {
                // Begun before: the daemon goes on with it by itself.
                VolumeState::Erasing => return Ok(None),
                VolumeState::Allocated => {
                    let what = format!("{taken}: it was handed out");
                    return Err(Error::new(Kind::Conflict, what));
                }
                _ => drop(ready.erase(&taken, &plan, now())?),
            }
            Ok(Some(identity.size))
        });
        if let Some(size) = size.await? {
            self.begin_erasure(name.clone(), plan, name, size);
        }
        Ok(())
    }

    /// Goes on with what an earlier daemon has begun to erase.
    pub(super) async fn resume_erasures(&self) -> Result<()> {
        let shelf = self.0.shelf.clone();
        let begun = self.blocking(move || {
            let ready = shelf.ready()?;
            let begun = ready.erasing()?.into_iter();
            begun.map(|(id, plan)| Ok((ready.identity(&id)?, id, plan))).collect::<Result<Vec<_>>>()
        });
        for (identity, id, plan) in begun.await? {
            self.begin_erasure(id, plan, identity.name, identity.size);
        }
        Ok(())
    }

    fn begin_erasure(&self, id: String, plan: Plan, name: String, size: u64) {
        let run = Arc::new(Run {
            name,
            size,
            done: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            failed: std::sync::Mutex::default(),
        });
        self.0.erasures.lock().expect(UNPOISONED).insert(id.clone(), Arc::clone(&run));
        let volumes = self.clone();
        tokio::spawn(async move {
            let (shelf, signer, records) =
                (volumes.0.shelf.clone(), Arc::clone(&volumes.0.signer), volumes.0.records.clone());
            let (erased, going) = (id.clone(), Arc::clone(&run));
            let result =
                blocking(move || erase(&shelf, &erased, &plan, (&*signer, records), &going)).await;
            match result {
                Ok(()) => {
                    tracing::info!(volume = run.name, id, "erased");
                    volumes.0.erasures.lock().expect(UNPOISONED).remove(&id);
                    volumes.0.told.changed();
                }
                Err(error) => {
                    tracing::error!(%error, volume = run.name, id, "not erased; it stays out of use");
                    *run.failed.lock().expect(UNPOISONED) = Some(error);
                }
            }
        });
    }

    /// Erasures that run, or have failed.
    pub fn erasures(&self) -> Vec<Erasing> {
        let all = self.0.erasures.lock().expect(UNPOISONED);
        all.iter().map(|(id, run)| run.told(id)).collect()
    }

    /// One of them.
    ///
    /// # Errors
    ///
    /// [`Kind::Gone`] if there is none: it is done, or was never begun.
    pub fn erasure(&self, id: &str) -> Result<Erasing> {
        let run = self.0.erasures.lock().expect(UNPOISONED).get(id).cloned();
        let gone = || Error::new(Kind::Gone, format!("{id}: no such volume is being erased"));
        run.map(|run| run.told(id)).ok_or_else(gone)
    }

    /// Breaks off all erasures; the next daemon goes on.
    pub(super) fn stop_erasures(&self) {
        let all = self.0.erasures.lock().expect(UNPOISONED);
        all.values().for_each(|run| run.stop.store(true, Ordering::Relaxed));
    }
}

impl Run {
    fn told(&self, id: &str) -> Erasing {
        let failed = self.failed.lock().expect(UNPOISONED).as_ref().map(Into::into);
        let (name, size) = (self.name.clone(), self.size);
        Erasing { id: id.to_owned(), name, size, done: self.done.load(Ordering::Relaxed), failed }
    }
}

fn plan(asked: &ReleaseVolume, seed: [u8; 32]) -> Plan {
    let passes = asked.passes;
    let method = match asked.method {
        EraseMethod::Zeros => Method::Zeros { passes },
        EraseMethod::Random => Method::Random { passes },
        EraseMethod::Discard => Method::Discard,
    };
    let proof = match asked.proof {
        EraseProof::None => Proof::None,
        EraseProof::Sample => Proof::Sample { places: SAMPLE },
        EraseProof::All => Proof::All,
    };
    Plan { method, proof, seed }
}

/// Erases a volume, keeps the record, and removes what is left. Blocks.
fn erase(
    shelf: &Shelf,
    id: &str,
    plan: &Plan,
    (signer, records): (&dyn Signs, PathBuf),
    run: &Run,
) -> Result<()> {
    let ready = shelf.ready()?;
    let mut erasure = ready.erase(id, plan, now())?;
    erasure.run(&mut |progress| {
        let behind = u64::from(progress.pass - 1) * progress.size + progress.at;
        run.done.store(behind, Ordering::Relaxed);
        match run.stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })?;
    let record = erasure.record(&signer.name()?, now(), None);
    // Before there is a record, so that none is ever left untold.
    erased::note(&records, id, ready.origin(id)?.as_deref())?;
    keep(&record, signer, &records, id)?;
    // Only now: until it is said what was done, it is not done.
    drop(erasure);
    ready.remove(id)?;
    shelf.remove_idle_bases()
}

fn keep(record: &Record, signer: &dyn Signs, records: &std::path::Path, id: &str) -> Result<()> {
    let text = record.sign(|bytes| signer.sign(bytes))?;
    let io = |e| Error::io("the record of an erasure", e);
    Fs::os().create_dir_all(records).map_err(io)?;
    Fs::os().replace(records.join(format!("{id}.erasure")), text.as_bytes()).map_err(io)
}
