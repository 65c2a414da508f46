//! A store in memory, which can be told to fail.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use api::care::{CacheStatus, DrainOrder, Evicted, Held, Pinned, ScrubOrder, ScrubStatus, Warming};
use api::catalog::{GcReport, GcRequest, StoreReport, VerifyReport, VerifyStoreRequest};
use image::record::Verified;
use image::{Digest, Error, Kind, Result};
use placement::{Answer, Archive, Care, ImageFacts, RefMove, Swept};
use tokio::sync::Semaphore;

/// How the next append to the log fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Append {
    /// Before anything is kept.
    FailsBefore,
    /// After it is kept: only the answer is lost.
    FailsAfter,
    /// It is kept, then no answer ever comes.
    HangsAfter,
}

#[derive(Default)]
pub struct Shelf {
    pub images: HashMap<Digest, ImageFacts>,
    pub records: HashMap<Digest, Vec<String>>,
    pub log: BTreeMap<u64, RefMove>,
    pub next_append: Option<Append>,
    /// Chunks of images that are not as they were in any other.
    pub changed: HashMap<Digest, Vec<u64>>,
    pub verified: HashMap<Digest, Verified>,
    /// Calls of `facts` and `records`.
    pub look_ups: usize,
    pub gc_roots: Vec<Vec<Digest>>,
}

/// Where calls of one method wait until they are let through.
pub struct Gate {
    arrived: Semaphore,
    leave: Semaphore,
    /// Only the next call waits.
    once: bool,
}

impl Gate {
    /// Returns when so many calls have arrived.
    pub async fn entered(&self, calls: u32) {
        self.arrived.acquire_many(calls).await.unwrap().forget();
    }

    /// Lets so many calls through.
    pub fn open(&self, calls: usize) {
        self.leave.add_permits(calls);
    }
}

pub struct Fake {
    shelf: Mutex<Shelf>,
    gates: Mutex<HashMap<&'static str, Arc<Gate>>>,
}

impl Fake {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { shelf: Mutex::default(), gates: Mutex::default() })
    }

    /// From now on calls of a method wait at a gate, once they have looked at the shelf.
    pub fn hold(&self, method: &'static str) -> Arc<Gate> {
        self.gate(method, false)
    }

    /// As [`Fake::hold`], but only the next call.
    pub fn hold_next(&self, method: &'static str) -> Arc<Gate> {
        self.gate(method, true)
    }

    fn gate(&self, method: &'static str, once: bool) -> Arc<Gate> {
        let gate = Gate { arrived: Semaphore::new(0), leave: Semaphore::new(0), once };
        let gate = Arc::new(gate);
        self.gates.lock().unwrap().insert(method, gate.clone());
        gate
    }

    async fn pass(&self, method: &'static str) {
        let gate = {
            let mut gates = self.gates.lock().unwrap();
            match gates.get(method) {
                Some(gate) if gate.once => gates.remove(method),
                gate => gate.cloned(),
            }
        };
        if let Some(gate) = gate {
            gate.arrived.add_permits(1);
            gate.leave.acquire().await.unwrap().forget();
        }
    }

    pub fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap()
    }

    /// An image that exists from now on.
    pub fn add_image(&self, seed: &str) -> Digest {
        let image = Digest::of_chunk(seed.as_bytes());
        let facts = ImageFacts {
            size: 1 << 30,
            sector: 512,
            chunk: 256 << 10,
            sections: 16,
            sections_present: 3,
            chunks_present: 500,
            stored: 77_000,
        };
        self.shelf().images.insert(image, facts);
        image
    }

    fn facts_now(&self, image: Digest) -> Result<ImageFacts> {
        let mut shelf = self.shelf();
        shelf.look_ups += 1;
        let facts = shelf.images.get(&image).cloned();
        facts.ok_or_else(|| Error::new(Kind::Gone, format!("image {image}: not in the store")))
    }

    fn append_now(&self, entry: RefMove) -> Result<bool> {
        let mut shelf = self.shelf();
        let lost = || Error::new(Kind::Retry, "the store did not answer");
        let fails = shelf.next_append.take();
        if fails == Some(Append::FailsBefore) {
            return Err(lost());
        }
        if shelf.log.contains_key(&entry.seq) {
            return Err(Error::new(Kind::Conflict, "there is such a move"));
        }
        shelf.log.insert(entry.seq, entry);
        match fails {
            Some(Append::FailsAfter) => Err(lost()),
            fails => Ok(fails == Some(Append::HangsAfter)),
        }
    }
}

impl Archive for Fake {
    fn facts(&self, image: Digest) -> Answer<'_, ImageFacts> {
        Box::pin(async move { self.facts_now(image) })
    }

    fn verified(&self, image: Digest) -> Option<Verified> {
        self.shelf().verified.get(&image).cloned()
    }

    fn put_record(&self, image: Digest, token: String) -> Answer<'_, ()> {
        Box::pin(async move {
            self.shelf().records.entry(image).or_default().push(token);
            Ok(())
        })
    }

    fn records(&self, image: Digest) -> Answer<'_, Vec<String>> {
        Box::pin(async move {
            let records = {
                let mut shelf = self.shelf();
                shelf.look_ups += 1;
                shelf.records.get(&image).cloned().unwrap_or_default()
            };
            self.pass("records").await;
            Ok(records)
        })
    }

    fn append_ref_move(&self, entry: RefMove) -> Answer<'_, ()> {
        Box::pin(async move {
            // So that movers at once meet here.
            tokio::task::yield_now().await;
            if self.append_now(entry)? {
                std::future::pending::<()>().await;
            }
            Ok(())
        })
    }

    fn ref_log(&self) -> Answer<'_, Vec<RefMove>> {
        Box::pin(async move { Ok(self.shelf().log.values().rev().cloned().collect()) })
    }

    fn verify_store(&self, request: VerifyStoreRequest) -> Answer<'_, StoreReport> {
        Box::pin(async move { Ok(StoreReport { seed: request.seed, ..StoreReport::default() }) })
    }

    fn gc(
        &self,
        roots: Vec<Digest>,
        request: GcRequest,
        _now: u64,
        swept: Swept,
    ) -> Answer<'_, GcReport> {
        Box::pin(async move {
            let images = roots.len() as u64;
            self.shelf().gc_roots.push(roots);
            if !request.dry_run {
                self.pass("gc").await;
                swept();
                self.pass("rewriting").await;
            }
            Ok(GcReport { images, ..GcReport::default() })
        })
    }

    fn unchanged(&self, image: Digest, before: Digest, chunks: Vec<u64>) -> Answer<'_, Vec<u64>> {
        Box::pin(async move {
            self.facts_now(before)?;
            let changed = self.shelf().changed.get(&image).cloned().unwrap_or_default();
            Ok(chunks.into_iter().filter(|chunk| !changed.contains(chunk)).collect())
        })
    }

    fn verify(&self, image: Digest, deep: bool) -> Answer<'_, VerifyReport> {
        Box::pin(async move {
            self.facts_now(image)?;
            self.pass("verify").await;
            let chunks = if deep { 500 } else { 0 };
            Ok(VerifyReport { sections: 3, chunks, ..VerifyReport::default() })
        })
    }
}

/// A cache that knows nothing.
pub struct NoCare;

fn unknown<T: Send + 'static>() -> Answer<'static, T> {
    Box::pin(async { Err(Error::new(Kind::Gone, "not known here")) })
}

impl Care for NoCare {
    fn status(&self) -> Answer<'_, CacheStatus> {
        unknown()
    }

    fn held(&self, _: Digest) -> Answer<'_, Held> {
        unknown()
    }

    fn warm(&self, _: Digest) -> Answer<'_, Warming> {
        unknown()
    }

    fn warming(&self, _: Digest) -> Answer<'_, Warming> {
        unknown()
    }

    fn stop_warming(&self, _: Digest) -> Answer<'_, Warming> {
        unknown()
    }

    fn pin(&self, _: Digest) -> Answer<'_, Warming> {
        unknown()
    }

    fn unpin(&self, _: Digest) -> Answer<'_, Pinned> {
        unknown()
    }

    fn evict(&self, _: Digest) -> Answer<'_, Evicted> {
        unknown()
    }

    fn scrub(&self, _: ScrubOrder) -> Answer<'_, ScrubStatus> {
        unknown()
    }

    fn drain(&self, _: DrainOrder) -> Answer<'_, CacheStatus> {
        unknown()
    }

    fn metrics(&self) -> String {
        String::new()
    }
}
