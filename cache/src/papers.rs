//! Manifests and section tables: kept by digest, fetched once however many ask.
//!
//! They are what vouches for chunks, so each is checked against its own digest before it is kept: a
//! wrong one would make every frame of its image look wrong. Equal sections of different images
//! share one table.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use image::error::At;
use image::{Digest, Error, Kind, Manifest, Result, SectionTable};
use tokio::sync::oneshot;

use crate::gone::Absent;
use crate::memory::OVERHEAD;
use crate::s3fifo::S3Fifo;
use crate::sharded::lock;
use crate::shared::Shared;

/// A manifest or a table.
#[derive(Clone)]
pub(crate) enum Paper {
    Manifest(Arc<Manifest>),
    Table(Arc<SectionTable>),
}

impl Paper {
    fn bytes(&self) -> u64 {
        let digests = match self {
            Paper::Manifest(manifest) => manifest.sections().len(),
            Paper::Table(table) => table.digests().len(),
        };
        32 * digests as u64 + OVERHEAD
    }
}

/// The papers of a cache.
pub(crate) struct Papers {
    state: Mutex<State>,
}

struct State {
    kept: S3Fifo<Digest, Paper>,
    flights: HashMap<Digest, Vec<oneshot::Sender<Result<Paper>>>>,
}

impl Papers {
    /// Keeps at most `budget` bytes.
    pub(crate) fn new(budget: u64) -> Self {
        let state = State { kept: S3Fifo::new(budget), flights: HashMap::new() };
        Self { state: Mutex::new(state) }
    }

    /// Bytes kept.
    pub(crate) fn bytes(&self) -> u64 {
        lock(&self.state).kept.bytes()
    }

    /// Drops all.
    pub(crate) fn clear(&self) {
        lock(&self.state).kept.clear();
    }

    fn end_flight(&self, digest: &Digest, result: &Result<Paper>) {
        let mut state = lock(&self.state);
        if let Ok(paper) = result {
            state.kept.insert(*digest, paper.clone(), paper.bytes());
        }
        let waiters = state.flights.remove(digest).unwrap_or_default();
        drop(state);
        for waiter in waiters {
            let _ = waiter.send(result.clone());
        }
    }
}

/// The paper with this digest: kept, being fetched, or else fetched with `fetch`, on a task of its
/// own so that it outlives whoever asked first.
pub(crate) async fn get<F>(
    shared: &Arc<Shared>,
    digest: Digest,
    absent: Absent,
    fetch: impl FnOnce() -> F,
) -> Result<Paper>
where
    F: Future<Output = Result<Paper>> + 'static,
{
    if let Some(error) = shared.gone.find(&absent) {
        return Err(error);
    }
    let (sender, receiver) = oneshot::channel();
    let leads = {
        let mut state = lock(&shared.papers.state);
        if let Some(paper) = state.kept.get(&digest) {
            return Ok(paper);
        }
        match state.flights.entry(digest) {
            Entry::Occupied(mut waiters) => {
                waiters.get_mut().push(sender);
                false
            }
            Entry::Vacant(place) => {
                place.insert(vec![sender]);
                true
            }
        }
    };
    if leads {
        let flight = PaperFlight { shared: Arc::clone(shared), digest, absent, landed: false };
        tokio::task::spawn_local(flight.run(fetch()));
    }
    receiver.await.unwrap_or_else(|_| Err(ended()))
}

/// One paper on its way; whatever becomes of the task, those who wait hear of it.
struct PaperFlight {
    shared: Arc<Shared>,
    digest: Digest,
    absent: Absent,
    landed: bool,
}

impl PaperFlight {
    async fn run(mut self, fetch: impl Future<Output = Result<Paper>>) {
        let stall = self.shared.stall;
        let result = tokio::time::timeout(stall, fetch).await;
        let result = result.unwrap_or_else(|_| Err(stalled(stall)));
        if let Err(error) = &result
            && error.kind() == Kind::Gone
        {
            self.shared.gone.note(self.absent, error);
        }
        self.shared.papers.end_flight(&self.digest, &result);
        self.landed = true;
    }
}

impl Drop for PaperFlight {
    fn drop(&mut self) {
        if !self.landed {
            self.shared.papers.end_flight(&self.digest, &Err(ended()));
        }
    }
}

/// The error of a fetch whose task was taken away.
pub(crate) fn ended() -> Error {
    Error::new(Kind::Retry, "cache: the fetch was ended by a shutdown; ask again")
}

/// The error of a fetch that does not move.
pub(crate) fn stalled(after: Duration) -> Error {
    let why = format!("cache: the source gave nothing for {after:?}; ask again or elsewhere");
    Error::new(Kind::Retry, why)
}

/// A manifest as the source gave it, if it is that of the image.
pub(crate) fn check_manifest(image: &Digest, manifest: Arc<Manifest>) -> Result<Paper> {
    match manifest.identity() == *image {
        true => Ok(Paper::Manifest(manifest)),
        false => mismatch("manifest", "identity").at(|| format!("image {}", image.short())),
    }
}

/// A table as the source gave it, if the manifest vouches for it.
pub(crate) fn check_table(
    manifest: &Manifest,
    section: u32,
    table: Arc<SectionTable>,
) -> Result<Paper> {
    let good = manifest.section(section) == Some(table.digest())
        && table.domain() == manifest.domain()
        && table.chunks() == manifest.geometry().chunks_in(section);
    match good {
        true => Ok(Paper::Table(table)),
        false => mismatch("section table", "digest").at(|| format!("section {section}")),
    }
}

fn mismatch(what: &'static str, which: &'static str) -> Result<Paper> {
    Err(image::FormatError::Mismatch { what, which }.into())
}
