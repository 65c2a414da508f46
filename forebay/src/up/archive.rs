//! Joins placement to the store.

use std::time::Duration;

use api::catalog::{GcReport, GcRequest, StoreReport, VerifyReport, VerifyStoreRequest};
use image::Digest;
use image::record::Verified;
use placement::{Answer, Archive, Clock, ImageFacts, RefMove, Swept};
use store::{Compaction, GcOptions, Store, VerifyAll};

/// The store, as placement uses it.
pub struct StoreArchive {
    store: Store,
    /// How long garbage is kept unless a request says otherwise.
    grace: Duration,
    clock: Clock,
}

impl StoreArchive {
    /// Of a store.
    pub fn new(store: Store, grace: Duration, clock: Clock) -> Self {
        Self { store, grace, clock }
    }
}

impl Archive for StoreArchive {
    fn facts(&self, image: Digest) -> Answer<'_, ImageFacts> {
        Box::pin(async move {
            let facts = self.store.facts(&image).await?;
            Ok(ImageFacts {
                size: facts.geometry.size(),
                sector: facts.geometry.sector(),
                chunk: facts.geometry.chunk_len() as u32,
                sections: facts.geometry.sections(),
                sections_present: facts.sections_present,
                chunks_present: facts.chunks_present,
                stored: facts.stored,
            })
        })
    }

    fn verified(&self, image: Digest) -> Option<Verified> {
        self.store.verified(&image)
    }

    fn put_record(&self, image: Digest, token: String) -> Answer<'_, ()> {
        let now = self.clock.now();
        Box::pin(async move { self.store.put_record(&image, now, &token).await })
    }

    fn records(&self, image: Digest) -> Answer<'_, Vec<String>> {
        Box::pin(async move { self.store.records(&image).await })
    }

    fn append_ref_move(&self, entry: RefMove) -> Answer<'_, ()> {
        let RefMove { seq, name, image, at } = entry;
        let entry = store::RefMove { seq, name, image, at };
        Box::pin(async move {
            if let Some(image) = &entry.image {
                // An older image may be condemned by now: kept before it is named, it stays.
                self.store.keep(image).await?;
            }
            self.store.append_ref_move(&entry).await
        })
    }

    fn ref_log(&self) -> Answer<'_, Vec<RefMove>> {
        Box::pin(async move {
            let log = self.store.ref_log().await?;
            // One rotten old entry must not keep the grid from starting: the state, where it is not
            // lost too, has that move already.
            log.bad.iter().for_each(|bad| tracing::error!("the log of ref moves: {bad}"));
            let moves = log.moves.into_iter();
            Ok(moves
                .map(|m| RefMove { seq: m.seq, name: m.name, image: m.image, at: m.at })
                .collect())
        })
    }

    fn gc(
        &self,
        roots: Vec<Digest>,
        request: GcRequest,
        now: u64,
        swept: Swept,
    ) -> Answer<'_, GcReport> {
        let grace = request.grace_secs.map_or(self.grace, Duration::from_secs);
        Box::pin(async move {
            let compact = Some(Compaction::default());
            let options = GcOptions { grace, dry_run: request.dry_run, now, compact };
            let report = self.store.gc_and_tell(&roots, &options, swept).await?;
            Ok(GcReport {
                images: report.images,
                condemned: report.condemned,
                condemned_bytes: report.condemned_bytes,
                deleted: report.deleted,
                deleted_bytes: report.deleted_bytes,
                sessions: report.sessions,
                wait_secs: report.wait_secs,
                rewritten: report.rewritten,
                written: report.written,
                saved_bytes: report.saved_bytes(),
                relocated: report.relocated,
                bad_packs: report.bad_packs,
                unfinished: report.unfinished,
            })
        })
    }

    fn verify_store(&self, request: VerifyStoreRequest) -> Answer<'_, StoreReport> {
        let VerifyStoreRequest { deep, within_secs, bytes, rate, seed, after } = request;
        let within = within_secs.map(Duration::from_secs);
        let options = VerifyAll { deep, seed, bytes, within, rate, after };
        Box::pin(async move {
            let report = self.store.verify_all(&options, |_| {}).await?;
            Ok(StoreReport {
                seed,
                images: report.images,
                packs: report.packs,
                frames: report.frames,
                bytes: report.bytes,
                in_all: report.in_all,
                before: report.before,
                repaired: report.repaired,
                bad: report.bad,
                bad_places: report.bad_places,
                orphans: report.orphans,
                orphan_bytes: report.orphan_bytes,
                next: report.next,
            })
        })
    }

    fn unchanged(&self, image: Digest, before: Digest, chunks: Vec<u64>) -> Answer<'_, Vec<u64>> {
        let store = self.store.clone();
        Box::pin(async move { store.unchanged(&image, &before, chunks).await })
    }

    fn verify(&self, image: Digest, deep: bool) -> Answer<'_, VerifyReport> {
        Box::pin(async move {
            let report = self.store.verify(&image, deep).await?;
            Ok(VerifyReport {
                sections: report.sections,
                chunks: report.chunks,
                bytes: report.bytes,
                repaired: report.repaired,
                bad: report.bad,
            })
        })
    }
}
