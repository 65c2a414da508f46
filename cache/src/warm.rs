//! Bringing a whole image into the cache before anybody asks for it, and keeping it there.
//!
//! ```text
//!  warm:  section by section, batch by batch:  on disk ── nothing to do
//!                                              in memory ── offered to the log
//!                                              neither ── read as a reader in the background does
//!  pin:   warm, and every chunk is kept from the moment it is here; then the pin is made to last
//!  tend:  whenever a pinned chunk may be missing, warm the pinned images again
//! ```
//! A batch waits until the log has room for it, so that nothing is left out of it for lack of that.
//! Dropping the future ends the work; what came is kept, and the next run finds it.

use std::sync::Arc;
use std::time::Duration;

use image::error::At;
use image::frame::HEADER_LEN;
use image::{
    ChunkSet, ChunkSink, ChunkSource, Digest, Error, Frame, Kind, Place, Priority, ReadContext,
    Result, SectionTable,
};
use tokio::sync::oneshot;

use crate::cache::Cache;
use crate::disk::pin_file::{MAX_CHUNKS, PinFile};
use crate::disk::queue::{Command, NewPin};
use crate::disk::{Disk, DiskState};
use crate::key::Key;
use crate::pins::Pin;
use crate::shared::Shared;

/// Plain bytes of one batch, at most.
const BATCH: u64 = 16 << 20;
/// A source that cannot give a chunk for a moment is asked so often in all.
const TRIES: u32 = 5;
/// How long to wait before the second try; doubled each time.
const BACK_OFF: Duration = Duration::from_millis(200);
/// So often it is looked whether the log has been read in.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Pinned images are not looked at more often than this: the log may be too slow for them.
const TEND_PAUSE: Duration = Duration::from_secs(1);
/// Pinned images that could not be had whole are looked at again after this.
const TEND_AGAIN: Duration = Duration::from_secs(60);
/// The log is not waited for longer than this to write what it was offered.
const WRITE_OUT: Duration = Duration::from_secs(30);

/// How far warming an image has come. Chunks of zeros are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Warmed {
    /// Chunks of the image that have been looked at.
    pub chunks: u64,
    /// Of these, the ones that had to be fetched.
    pub fetched: u64,
    /// The frames that were fetched, in bytes.
    pub fetched_bytes: u64,
    /// Of the chunks, the ones that were here already.
    pub here: u64,
    /// Sections that have been done.
    pub sections: u32,
    /// Sections that the image has, without those of zeros.
    pub of_sections: u32,
    /// Bytes of the disk that the image is, zeros and all.
    pub size: u64,
}

/// What warming does with each chunk that is here, by key and length of frame.
type EachChunk<'a> = &'a mut dyn FnMut(&Key, u32) -> Result<()>;

impl<S: ChunkSource + 'static> Cache<S> {
    /// Brings every chunk of an image into the cache: onto its disk, or into memory if there is
    /// none. Tells `progress` after each batch. It fetches in the background whatever `ctx` says.
    ///
    /// # Errors
    ///
    /// What the source says of the first chunk that it cannot give; what came before stays.
    pub async fn warm(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        mut progress: impl FnMut(&Warmed),
    ) -> Result<Warmed> {
        let warmed = self.bring(ctx, image, &mut |_, _| Ok(()), &mut progress).await;
        warmed.at(|| format!("image {}", image.short()))
    }

    /// Pins an image: warms it, and keeps its chunks on disk until it is unpinned, also over
    /// restarts. To pin a pinned image brings what is missing of it.
    ///
    /// # Errors
    ///
    /// [`Kind::Full`] if pins would take more of the disk than they may ([`Status::pin_limit`]);
    /// [`Kind::Unsupported`] without a disk tier; [`Kind::Conflict`] while the image is being pinned
    /// by somebody else; otherwise as for [`warm`](Self::warm). Nothing is pinned then.
    ///
    /// [`Status::pin_limit`]: crate::Status::pin_limit
    pub async fn pin(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        mut progress: impl FnMut(&Warmed),
    ) -> Result<Warmed> {
        self.shared().recovered().await;
        if self.shared().is_pinned(image) {
            return self.warm(ctx, image, progress).await;
        }
        let pinned = self.make_pin(ctx, image, &mut progress).await;
        pinned.at(|| format!("pin image {}", image.short()))
    }

    async fn make_pin(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        progress: &mut dyn FnMut(&Warmed),
    ) -> Result<Warmed> {
        let disk = self.shared().disk_for_pins()?;
        let mut pinning = disk.pins().begin(*image)?;
        let keep: EachChunk<'_> = &mut |key, len| pinning.add(key, len);
        let warmed = self.bring(ctx, image, keep, progress).await?;
        let domain = self.get_manifest(ctx, image).await?.domain();
        let chunks = pinning.chunks();
        if chunks.len() > MAX_CHUNKS {
            let why = format!("it has {} chunks; {MAX_CHUNKS} can be pinned", chunks.len());
            return Err(Error::new(Kind::Invalid, why));
        }
        let file = PinFile { image: *image, domain, chunks };
        let pin = NewPin { number: pinning.number(), file };
        order(disk, |reply| Command::SavePin(pin, reply)).await?;
        // Some may have left between coming and being kept.
        disk.pins().lost.notify_one();
        Ok(warmed)
    }

    /// Fetches what is lost of pinned images, for ever: after a restart, when a frame rots, when
    /// the log could not keep up. One core runs it; dropping it ends it.
    pub async fn tend(&self, ctx: &ReadContext) {
        let Some(disk) = self.shared().disk.clone() else { return };
        loop {
            disk.pins().lost.notified().await;
            if disk.state() != DiskState::On {
                // Told again when it is.
                continue;
            }
            let mut whole = true;
            for pin in disk.pins().list() {
                if let Err(error) = self.warm(ctx, &pin.image, |_| {}).await {
                    tracing::warn!(%error, "cache: a pinned image is not whole");
                    whole = false;
                }
            }
            tokio::time::sleep(if whole { TEND_PAUSE } else { TEND_AGAIN }).await;
            if !whole {
                disk.pins().lost.notify_one();
            }
        }
    }

    async fn bring(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        each: EachChunk<'_>,
        progress: &mut dyn FnMut(&Warmed),
    ) -> Result<Warmed> {
        let ctx = &background(ctx);
        self.shared().recovered().await;
        let manifest = self.get_manifest(ctx, image).await?;
        let of_sections = manifest.present().count() as u32;
        let size = manifest.geometry().size();
        let mut warmed = Warmed { of_sections, size, ..Warmed::default() };
        let chunk_len = manifest.geometry().chunk_len() as u64;
        let frames = self.shared().disk.as_ref().map_or(BATCH, |disk| disk.queue().limit() / 2);
        let batch = (BATCH.min(frames) / (chunk_len + HEADER_LEN as u64)).max(1) as usize;
        for (section, _) in manifest.present() {
            let (_, table) = self.get_table(ctx, image, section).await?;
            let chunks = (0..table.chunks()).filter(|c| !table.digests()[*c as usize].is_zero());
            for batch in chunks.collect::<Vec<_>>().chunks(batch) {
                let place = Place { image: *image, section, chunks: set(&table, batch) };
                let mut batch = Batch { table: &table, each: &mut *each, warmed: &mut warmed };
                self.bring_batch(ctx, place, &mut batch).await?;
                progress(&warmed);
            }
            warmed.sections += 1;
            progress(&warmed);
        }
        Ok(warmed)
    }

    /// Brings the chunks of `place`, of which there are no more than the log may have waiting.
    async fn bring_batch(
        &self,
        ctx: &ReadContext,
        mut place: Place,
        batch: &mut Batch<'_, '_>,
    ) -> Result<()> {
        let shared = self.shared();
        if let Some(disk) = &shared.disk {
            disk.has_room().await;
        }
        for chunk in place.chunks.clone().iter() {
            let key = batch.key(chunk);
            if let Some(len) = shared.find_or_offer(&key) {
                place.chunks.remove(chunk);
                batch.warmed.chunks += 1;
                batch.warmed.here += 1;
                (batch.each)(&key, len)?;
            }
        }
        let mut tries = 1;
        while !place.chunks.is_empty() {
            let asked = place.clone();
            let mut sink = WarmSink { batch: &mut *batch, left: &mut place.chunks };
            let Err(error) = self.get_chunks(ctx, &asked, &mut sink).await else { continue };
            let wait = match error.kind() {
                Kind::Busy(wait) => wait,
                Kind::Retry if tries < TRIES => {
                    tries += 1;
                    BACK_OFF * (1 << tries)
                }
                _ => return Err(error.at(format!("section {}", place.section))),
            };
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }
}

impl Shared {
    /// The pinned images.
    pub fn pins(&self) -> Vec<Pin> {
        self.disk.as_ref().map_or_else(Vec::new, |disk| disk.pins().list())
    }

    /// Whether an image is pinned.
    pub fn is_pinned(&self, image: &Digest) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.pins().is_pinned(image))
    }

    /// Ends a pin, and returns it when that lasts; of an image that is not pinned there is none. The
    /// image's chunks stay until their room is needed.
    ///
    /// # Errors
    ///
    /// What the disk says: it is still pinned then.
    pub async fn unpin(&self, image: &Digest) -> Result<Option<Pin>> {
        if self.disk.is_none() {
            return Ok(None);
        }
        let at = || format!("unpin image {}", image.short());
        self.recovered().await;
        let disk = self.disk_for_pins().at(at)?;
        let was = disk.pins().list().into_iter().find(|pin| pin.image == *image);
        // Also if there is none: one that was given up may still be on its way to the disk, and a
        // crash in between would leave it there.
        order(disk, |reply| Command::RemovePin(*image, reply)).await.at(at)?;
        Ok(was)
    }

    /// Returns when the disk tier has written, or left out, what waits for it now, so that what is held
    /// can be counted; or when it is too slow to wait for.
    pub async fn written(&self) {
        if let Some(disk) = &self.disk {
            let _ = tokio::time::timeout(WRITE_OUT, order(disk, Command::Tell)).await;
        }
    }

    /// Returns when the log has been read in: what is not found before that may be there all the
    /// same, and pins are not known.
    async fn recovered(&self) {
        while self.disk.as_ref().is_some_and(|disk| disk.state() == DiskState::Recovering) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn disk_for_pins(&self) -> Result<&Arc<Disk>> {
        let none = || Error::new(Kind::Unsupported, "pins need a disk tier: give the cache one");
        let disk = self.disk.as_ref().ok_or_else(none)?;
        match disk.state() {
            DiskState::Off(why) => {
                Err(Error::new(Kind::Io, format!("pins need the disk tier, which is off: {why}")))
            }
            _ => Ok(disk),
        }
    }

    /// The length of a frame that is here; one that is in memory alone is offered to the disk.
    fn find_or_offer(&self, key: &Key) -> Option<u32> {
        let on_disk = self.disk.as_ref().and_then(|disk| disk.frame_len(key));
        on_disk.or_else(|| {
            let frame = self.memory.peek(key)?;
            if let Some(disk) = &self.disk {
                disk.offer(*key, &frame);
            }
            Some(frame.bytes().len() as u32)
        })
    }
}

/// Has the log's writer do something, and waits for its answer.
async fn order(
    disk: &Disk,
    command: impl FnOnce(oneshot::Sender<Result<()>>) -> Command,
) -> Result<()> {
    let (reply, answer) = oneshot::channel();
    disk.queue().order(command(reply));
    answer.await.unwrap_or_else(|_| {
        let why = format!("the disk tier is not there (it is {}); ask again", disk.state());
        Err(Error::new(Kind::Retry, why))
    })
}

struct Batch<'a, 'b> {
    table: &'a SectionTable,
    each: &'a mut (dyn FnMut(&Key, u32) -> Result<()> + 'b),
    warmed: &'a mut Warmed,
}

impl Batch<'_, '_> {
    fn key(&self, chunk: u32) -> Key {
        Key { domain: self.table.domain(), digest: self.table.digests()[chunk as usize] }
    }
}

/// Counts what comes, and lets go of it: it is in the tiers by now.
struct WarmSink<'a, 'b, 'c> {
    batch: &'a mut Batch<'b, 'c>,
    left: &'a mut ChunkSet,
}

impl ChunkSink for WarmSink<'_, '_, '_> {
    async fn chunk(&mut self, chunk: u32, frame: Frame) -> Result<()> {
        self.left.remove(chunk);
        let len = frame.bytes().len() as u32;
        let batch = &mut *self.batch;
        batch.warmed.chunks += 1;
        batch.warmed.fetched += 1;
        batch.warmed.fetched_bytes += u64::from(len);
        let key = batch.key(chunk);
        (batch.each)(&key, len)
    }
}

fn background(ctx: &ReadContext) -> ReadContext {
    ReadContext { priority: Priority::Background, deadline: None, repair: false, ..*ctx }
}

fn set(table: &SectionTable, chunks: &[u32]) -> ChunkSet {
    let mut set = ChunkSet::empty(table.chunks());
    chunks.iter().for_each(|chunk| set.insert(*chunk));
    set
}
