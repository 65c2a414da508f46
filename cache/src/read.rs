//! One read: what a reader asked for, round by round, until it has it.
//!
//! ```text
//!  round:  board ── in memory? remember it ── on its way? join ── else lead a new flight
//!          serve ── what was in memory goes to the sink, while the flights fly
//!          receive ─ frames as they land; what did not fit the mailbox is for the next round
//! ```
//! Mostly there is one round. A round boards no more than fits the mailbox, or than the memory tier can
//! hold for a while, so that a slow reader with a small cache does not have everything fetched again
//! and again.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use image::frame::HEADER_LEN;
use image::{
    ChunkSet, ChunkSink, ChunkSource, Error, Kind, Manifest, Place, ReadContext, Result,
    SectionTable,
};

use crate::cache::Core;
use crate::disk::Disk;
use crate::flight::{Flight, Job};
use crate::flights::{Boarded, Fetch, FlightKey, Waiter};
use crate::gone::Absent;
use crate::key::Key;
use crate::mailbox::{Event, Inbox, mailbox};
use crate::status::AskCounts;

/// A read under way. Dropping it leaves its flights.
pub(crate) struct Read<'a, S> {
    core: &'a Rc<Core<S>>,
    ctx: &'a ReadContext,
    place: &'a Place,
    manifest: Arc<Manifest>,
    table: Arc<SectionTable>,
    inbox: Inbox,
    /// Not yet given, and not awaited.
    left: ChunkSet,
    /// Boarded, and no event has come for it.
    awaited: ChunkSet,
    /// Looked for before: counted already.
    counted: ChunkSet,
    error: Option<Error>,
}

impl<'a, S: ChunkSource + 'static> Read<'a, S> {
    /// The read of a place, after checking that it is one.
    pub(crate) fn new(
        core: &'a Rc<Core<S>>,
        ctx: &'a ReadContext,
        place: &'a Place,
        manifest: Arc<Manifest>,
        table: Arc<SectionTable>,
    ) -> Result<Self> {
        let wanted = &place.chunks;
        let invalid = |why: String| Err(Error::new(Kind::Invalid, why));
        if wanted.universe() != table.chunks() {
            let (asked, has) = (wanted.universe(), table.chunks());
            return invalid(format!("asked for chunks of {asked}; the section has {has}"));
        }
        if let Some(chunk) = wanted.iter().find(|c| table.digests()[*c as usize].is_zero()) {
            return invalid(format!("chunk {chunk} is zeros: there is nothing to ask for"));
        }
        let none = ChunkSet::empty(wanted.universe());
        Ok(Self {
            core,
            ctx,
            place,
            manifest,
            table,
            inbox: mailbox(core.shared.window),
            left: wanted.clone(),
            awaited: none.clone(),
            counted: none,
            error: None,
        })
    }

    /// Gives everything to the sink.
    pub(crate) async fn run<K: ChunkSink>(&mut self, sink: &mut K) -> Result<()> {
        while !self.left.is_empty() {
            let hits = self.board();
            self.serve(&hits, sink).await?;
            self.receive(sink).await?;
        }
        self.error.take().map_or(Ok(()), Err)
    }

    /// Finds or begins a flight for everything that is not in memory; returns what is.
    fn board(&mut self) -> Vec<u32> {
        let fetch = Arc::new(Fetch::default());
        let (mut hits, mut jobs) = (Vec::new(), BTreeMap::new());
        let batch = self.core.shared.batch;
        let mut room = batch;
        for chunk in self.left.clone().iter() {
            if !self.ctx.repair && self.core.shared.memory.contains(&self.job(chunk).key) {
                hits.push(chunk);
                continue;
            }
            let job = self.job(chunk);
            let frame = u64::from(job.plain_len) + HEADER_LEN as u64;
            // The first goes however long it is.
            if (frame > room && room < batch) || self.is_gone(chunk) {
                continue;
            }
            room = room.saturating_sub(frame);
            match self.board_one(chunk, &job, &fetch) {
                Boarded::Landed => hits.push(chunk),
                Boarded::Joined => self.await_chunk(chunk, |counts| &counts.joined),
                Boarded::Leads => {
                    let on_disk = |disk: &Arc<Disk>| !self.ctx.repair && disk.contains(&job.key);
                    match self.core.shared.disk.as_ref().is_some_and(on_disk) {
                        true => self.await_chunk(chunk, |counts| &counts.disk),
                        false => self.await_chunk(chunk, |counts| &counts.source),
                    }
                    jobs.insert(chunk, job);
                }
            }
        }
        if !jobs.is_empty() {
            let flight = Flight::new(self.core, self.ctx, self.place, fetch, jobs);
            tokio::task::spawn_local(flight.run());
        }
        hits
    }

    fn board_one(&self, chunk: u32, job: &Job, fetch: &Arc<Fetch>) -> Boarded {
        let shared = &self.core.shared;
        let repair = self.ctx.repair;
        let key = FlightKey { key: job.key, repair };
        let waiter = Waiter { mailbox: Arc::clone(self.inbox.mailbox()), chunk };
        let landed = || !repair && shared.memory.contains(&job.key);
        shared.flights.board(key, waiter, self.ctx.priority, fetch, landed)
    }

    fn await_chunk(&mut self, chunk: u32, counter: fn(&AskCounts) -> &AtomicU64) {
        self.left.remove(chunk);
        self.awaited.insert(chunk);
        self.count(chunk, counter);
    }

    /// Whether a chunk is known to be gone; then that is its answer.
    fn is_gone(&mut self, chunk: u32) -> bool {
        let Place { image, section, .. } = *self.place;
        if self.ctx.repair {
            return false;
        }
        let Some(error) = self.core.shared.gone.find(&Absent::Chunk(image, section, chunk)) else {
            return false;
        };
        self.left.remove(chunk);
        self.fail(chunk, error);
        true
    }

    /// Gives what was in memory when it was looked for. What has left since stays for another round.
    async fn serve<K: ChunkSink>(&mut self, hits: &[u32], sink: &mut K) -> Result<()> {
        for chunk in hits.iter().copied() {
            let Some(frame) = self.core.shared.memory.get(&self.job(chunk).key) else { continue };
            self.left.remove(chunk);
            self.count(chunk, |counts| &counts.memory);
            sink.chunk(chunk, frame).await?;
            tokio::task::consume_budget().await;
        }
        Ok(())
    }

    /// Gives what lands, until everything that was boarded has.
    async fn receive<K: ChunkSink>(&mut self, sink: &mut K) -> Result<()> {
        while !self.awaited.is_empty() {
            match self.inbox.next().await {
                Event::Frame(chunk, frame, charge) => {
                    self.awaited.remove(chunk);
                    let len = frame.bytes().len();
                    sink.chunk(chunk, frame).await?;
                    self.inbox.taken(len);
                    drop(charge);
                }
                Event::LookAgain(chunk) => {
                    self.awaited.remove(chunk);
                    self.left.insert(chunk);
                }
                Event::Failed(chunk, error) => {
                    self.awaited.remove(chunk);
                    self.fail(chunk, error);
                }
            }
        }
        Ok(())
    }

    fn fail(&mut self, chunk: u32, error: Error) {
        self.error.get_or_insert(error.at(format!("chunk {chunk}")));
    }

    fn count(&mut self, chunk: u32, counter: fn(&AskCounts) -> &AtomicU64) {
        if !self.counted.contains(chunk) {
            self.counted.insert(chunk);
            let counts = self.core.shared.counts.of(self.ctx.priority);
            counter(counts).fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<S> Read<'_, S> {
    fn job(&self, chunk: u32) -> Job {
        let digest = self.table.digests()[chunk as usize];
        let len = self.manifest.geometry().chunk_len_at(self.place.section, chunk);
        Job { key: Key { domain: self.table.domain(), digest }, plain_len: len as u32 }
    }
}

impl<S> Drop for Read<'_, S> {
    fn drop(&mut self) {
        for chunk in self.awaited.iter() {
            let key = FlightKey { key: self.job(chunk).key, repair: self.ctx.repair };
            self.core.shared.flights.leave(&key, self.inbox.mailbox());
        }
    }
}
