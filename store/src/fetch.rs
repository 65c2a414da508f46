//! Reading frames out of packs: each one checked, and replaced by another copy if it is bad.

use std::sync::Arc;

use bytes::Bytes;
use image::error::At;
use image::{
    Decoder, Digest, Error, FormatError, Frame, Geometry, Kind, PackId, Result, SectionTable, Spot,
};
use tokio::sync::OwnedSemaphorePermit;

use crate::keys;
use crate::locate::is_bad_place;
use crate::objects::blocking;
use crate::plan::{Read, Want};
use crate::store::Shared;

/// What vouches for the chunks of a section that are being read.
pub(crate) struct Job {
    pub(crate) section: u32,
    pub(crate) geometry: Geometry,
    pub(crate) table: Arc<SectionTable>,
    /// Check down to the plain bytes: somebody got wrong ones, or asked for a deep verification.
    pub(crate) deep: bool,
    /// The spots are from the newest locator: for what is not there, other copies are looked for.
    /// Else it is left to another round, after the locator was read again.
    pub(crate) last: bool,
}

impl Job {
    fn digest(&self, chunk: u32) -> Digest {
        self.table.digests()[chunk as usize]
    }
}

/// One chunk, as it was found.
pub(crate) struct Got {
    pub(crate) chunk: u32,
    pub(crate) frame: Result<Frame>,
    /// Where the good frame was found, if not where the locator says, and what is wrong there.
    pub(crate) instead: Option<(Spot, Error)>,
}

/// What one read gave, and the room that it takes up for as long as it is held.
pub(crate) struct Batch {
    pub(crate) chunks: Vec<Got>,
    _room: OwnedSemaphorePermit,
}

impl Shared {
    /// Reads and checks the chunks of one read. Waits for room first.
    pub(crate) async fn fetch(&self, job: &Arc<Job>, read: Read) -> Result<Batch> {
        let room = self.reading.clone().acquire_many_owned(read.len()).await;
        let room = room.map_err(|_| Error::new(Kind::Cancelled, "the store is closing"))?;
        let range = u64::from(read.range.start)..u64::from(read.range.end);
        let bytes = self.objects.range(&keys::pack(&read.pack), range).await;
        let checked = match bytes {
            Ok(bytes) => check_all(job, &read, bytes).await?,
            // One frame past the end of a pack that was cut short, or in a bad place of a disk, must
            // not fail its neighbours.
            Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::Io) && read.wants.len() > 1 => {
                self.one_by_one(job, &read).await
            }
            Err(e) => read.wants.iter().map(|_| Err(e.clone())).collect(),
        };
        let mut chunks = Vec::with_capacity(checked.len());
        for (want, result) in read.wants.iter().zip(checked) {
            chunks.push(match result {
                Ok(frame) => Got { chunk: want.chunk, frame: Ok(frame), instead: None },
                Err(error) => self.recover(job, want, error).await,
            });
        }
        Ok(Batch { chunks, _room: room })
    }

    async fn one_by_one(&self, job: &Arc<Job>, read: &Read) -> Vec<Result<Frame>> {
        let mut all = Vec::with_capacity(read.wants.len());
        for want in &read.wants {
            all.push(self.read_one(job, want).await);
        }
        all
    }

    async fn read_one(&self, job: &Arc<Job>, want: &Want) -> Result<Frame> {
        let Spot { pack, offset, frame_len, .. } = want.spot;
        let range = offset..offset + frame_len;
        let bytes = self
            .objects
            .range(&keys::pack(&pack), u64::from(range.start)..u64::from(range.end))
            .await?;
        let read = Read { pack, range, wants: vec![*want] };
        let mut one = check_all(job, &read, bytes).await?;
        one.pop().unwrap_or_else(|| Err(Error::new(Kind::Io, "nothing was checked")))
    }

    /// Finds another copy of a chunk whose frame is bad. Takes no further room: the bad frame's is
    /// used for the good one.
    async fn recover(&self, job: &Arc<Job>, want: &Want, error: Error) -> Got {
        let chunk = want.chunk;
        if error.kind() == Kind::Corrupt {
            // Once more: the bytes in the store may be fine, and the way from there not.
            if let Ok(frame) = self.read_one(job, want).await {
                return Got { chunk, frame: Ok(frame), instead: None };
            }
            if job.last {
                self.forget(job, chunk, &want.spot.pack).await;
            }
        }
        let Spot { pack, offset, .. } = want.spot;
        let error = error.at(format_args!(
            "pack {pack}: offset {offset}: section {} chunk {chunk}",
            job.section
        ));
        if !job.last || !is_bad_place(&error) {
            return Got { chunk, frame: Err(error), instead: None };
        }
        match self.another_copy(job, want).await {
            Some((spot, frame)) => {
                tracing::warn!(%error, instead = %spot.pack, "read another copy of a chunk");
                Got { chunk, frame: Ok(frame), instead: Some((spot, error)) }
            }
            None => Got { chunk, frame: Err(error), instead: None },
        }
    }

    async fn another_copy(&self, job: &Arc<Job>, want: &Want) -> Option<(Spot, Frame)> {
        if !self.has_index() {
            return None;
        }
        loop {
            let (domain, digest) = (job.table.domain(), job.digest(want.chunk));
            let copies = self.indexed(move |i| i.copies(domain, &digest)).await;
            let copies = copies.inspect_err(|error| tracing::warn!(%error, "no index")).ok()?;
            for spot in copies.iter().map(|c| c.spot()).filter(|s| s.pack != want.spot.pack) {
                match self.read_one(job, &Want { chunk: want.chunk, spot }).await {
                    Ok(frame) => return Some((spot, frame)),
                    Err(e) if e.kind() == Kind::Corrupt => {
                        self.forget(job, want.chunk, &spot.pack).await;
                    }
                    Err(_) => {}
                }
            }
            // Another process may have written packs that this one has not seen.
            if !self.refresh_index_if_old().await.unwrap_or(false) {
                return None;
            }
        }
    }

    /// A damaged copy is not offered again; a push of the chunk then stores a good one.
    async fn forget(&self, job: &Job, chunk: u32, pack: &PackId) {
        if !self.has_index() {
            return;
        }
        let (domain, digest, pack) = (job.table.domain(), job.digest(chunk), *pack);
        let forgotten = self.indexed(move |i| i.forget_copy(domain, &digest, &pack)).await;
        if let Err(error) = forgotten {
            tracing::warn!(%error, %pack, "could not forget a damaged copy");
        }
    }
}

/// Takes the frames of a read apart and checks each.
async fn check_all(job: &Arc<Job>, read: &Read, bytes: Bytes) -> Result<Vec<Result<Frame>>> {
    if !job.deep {
        return Ok(read.wants.iter().map(|w| Ok(check(job, read, w, &bytes)?)).collect());
    }
    let (job, read) = (job.clone(), read.clone());
    blocking(move || {
        let mut decoder = Decoder::new()?;
        let mut plain = vec![0; job.geometry.chunk_len()];
        let deep = read.wants.iter().map(|want| {
            let frame = check(&job, &read, want, &bytes)?;
            let plain = &mut plain[..frame.header().plain_len as usize];
            decoder.decode(&frame, &job.digest(want.chunk), plain)?;
            Ok(frame)
        });
        Ok(deep.collect())
    })
    .await
}

/// Checks one frame against everything that is said of it: its own header and CRC32C, the section
/// table's digest, and the locator's BLAKE3 of the stored payload.
fn check(job: &Job, read: &Read, want: &Want, bytes: &Bytes) -> Result<Frame, FormatError> {
    let at = (want.spot.offset - read.range.start) as usize;
    let frame = Frame::parse(bytes.slice(at..at + want.spot.frame_len as usize))?;
    let wrong = |which| Err(FormatError::Mismatch { what: "chunk frame", which });
    if frame.header().digest != job.digest(want.chunk) {
        return wrong("digest in the section table");
    }
    if frame.header().domain != job.table.domain() {
        return wrong("trust domain");
    }
    if frame.header().plain_len as usize != job.geometry.chunk_len_at(job.section, want.chunk) {
        return wrong("length of the chunk");
    }
    frame.check_payload()?;
    if Digest::of_stored(frame.payload()) != want.spot.stored {
        return wrong("BLAKE3 of the stored payload");
    }
    Ok(frame)
}

impl Job {
    /// An error for a chunk that no pack holds.
    pub(crate) fn nowhere(&self, chunk: u32) -> Error {
        let digest = self.digest(chunk);
        let message = format!("section {} chunk {chunk}: no pack holds {digest}", self.section);
        Error::new(Kind::Corrupt, message)
    }

    /// Refuses a place that is not one of the section's.
    pub(crate) fn check_place(&self, chunks: &image::ChunkSet) -> Result<()> {
        let n = self.table.chunks();
        let wrong = |why: String| Err(Error::new(Kind::Invalid, why));
        if chunks.universe() != n {
            return wrong(format!("a set of {} chunks, where there are {n}", chunks.universe()))
                .at(|| format!("section {}", self.section));
        }
        match chunks.iter().find(|c| self.digest(*c).is_zero()) {
            Some(c) => wrong(format!("section {} chunk {c} is zeros", self.section)),
            None => Ok(()),
        }
    }
}
