//! A guest: reads a few chunks at a time, in a hurry, and often goes away before it has them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use image::{
    ChunkSet, ChunkSink, ChunkSource, Decoder, Frame, Place, Priority, ReadContext, Result,
};
use node::pull::Connect;
use tokio::time::{sleep, timeout};

use super::World;
use super::ways::{Road, Way};
use crate::chance::Chance;
use crate::corpus::Truth;
use crate::invariants::Invariant;
use crate::scenario::GuestPlan;

/// Guests have the papers of these nodes and up: no pull has them.
pub const FIRST: usize = 6;
/// Before what failed is tried again.
const PAUSE: Duration = Duration::from_millis(200);

/// A guest.
pub struct GuestHost {
    world: World,
    number: usize,
    plan: GuestPlan,
    truth: Arc<Truth>,
    left: Cell<u64>,
}

impl GuestHost {
    /// Guest number `number`.
    pub fn new(world: &World, number: usize) -> Rc<Self> {
        let plan = world.scenario.guests[number].clone();
        let truth = Arc::clone(&world.corpus.images[plan.image]);
        let left = Cell::new(plan.reads);
        Rc::new(Self { world: world.clone(), number, plan, truth, left })
    }

    /// Whether it has read all it wants.
    pub fn is_done(&self) -> bool {
        self.left.get() == 0
    }

    /// Reads, until it is done.
    ///
    /// # Errors
    ///
    /// If there is no memory for a decoder.
    pub async fn run(self: Rc<Self>) -> Result<()> {
        let whose = format!("guest-{}", self.number);
        let mut chance = Chance::new(self.world.scenario.seed, &whose);
        let way = Way::new(&self.world, FIRST + self.number, self.truth.image, whose);
        let road = way.connect(0).await?;
        let decoder = RefCell::new(Decoder::new()?);
        self.world.trace.until(self.plan.at).await;
        while !self.is_done() {
            let place = self.somewhere(&mut chance);
            let hurry = chance.one_in(3).then(|| Duration::from_millis(chance.within(1..80)));
            let deadline = chance.one_in(4).then(|| Duration::from_millis(chance.within(5..3_000)));
            let priority = chance.pick(&[Priority::Guest, Priority::Guest, Priority::Trace]);
            let ctx = ReadContext { priority, deadline, ..ReadContext::default() };
            let read = self.read(&road, ctx, place, &decoder);
            let end = match hurry {
                None => read.await,
                // It goes away in the middle of it.
                Some(hurry) => timeout(hurry, read).await.unwrap_or(Ok(())),
            };
            let said = end.as_ref().map_err(|e| e.kind().name());
            self.world.trace.note(format_args!("guest-{} read: {said:?}", self.number));
            match end {
                Ok(()) => self.left.set(self.left.get() - 1),
                Err(_) => sleep(PAUSE).await,
            }
        }
        Ok(())
    }

    /// Some neighbouring chunks that are not zeros.
    fn somewhere(&self, chance: &mut Chance) -> Place {
        let tables = self.truth.tables.iter().zip(0..).filter(|(table, _)| !table.is_zero());
        let tables: Vec<_> = tables.collect();
        let (table, section) = chance.pick(&tables);
        let present = (0..table.chunks()).filter(|c| !table.digests()[*c as usize].is_zero());
        let present: Vec<u32> = present.collect();
        let first = chance.within(0..present.len() as u64) as usize;
        let wanted = &present[first..present.len().min(first + chance.within(1..5) as usize)];
        let chunks = ChunkSet::of(table.chunks(), |c| wanted.contains(&c));
        Place { image: self.truth.image, section, chunks }
    }

    /// Reads, and reads what came wrong once more, as a repair.
    async fn read(
        &self,
        road: &Road,
        ctx: ReadContext,
        place: Place,
        decoder: &RefCell<Decoder>,
    ) -> Result<()> {
        let left = place.chunks.clone();
        let mut reading = Reading { guest: self, section: place.section, decoder, left };
        road.chunks(&ctx, &place, &mut reading).await?;
        if reading.left.is_empty() {
            return Ok(());
        }
        let place = Place { chunks: reading.left.clone(), ..place };
        let ctx = ReadContext { repair: true, ..ctx };
        road.chunks(&ctx, &place, &mut reading).await
    }
}

struct Reading<'a> {
    guest: &'a GuestHost,
    section: u32,
    decoder: &'a RefCell<Decoder>,
    left: ChunkSet,
}

impl ChunkSink for Reading<'_> {
    async fn chunk(&mut self, chunk: u32, frame: Frame) -> Result<()> {
        let truth = &self.guest.truth;
        let digest = truth.digest(self.section, chunk);
        let mut plain = vec![0; truth.geometry.chunk_len_at(self.section, chunk)];
        match self.decoder.borrow_mut().decode(&frame, &digest, &mut plain) {
            Ok(()) => drop(self.left.remove(chunk)),
            Err(_) if self.guest.world.watch.is_forged(&digest) => {}
            Err(e) => {
                let (guest, section) = (self.guest.number, self.section);
                let what = format!("guest-{guest}: section {section}, chunk {chunk}: {e}");
                self.guest.world.watch.violated(Invariant::RightBytes, what);
            }
        }
        Ok(())
    }
}
