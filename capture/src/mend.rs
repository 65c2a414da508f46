//! What a store has lost of an image is given back by somebody who has it: a cache.
//!
//! It is a push of the same image, made from itself: the receiver wants what it has lost, and checks what comes to the
//! plain bytes, as always. Chunks are passed on one by one; nothing is kept.

use image::error::At;
use image::seam::{ImagePlan, ImageSession};
use image::{
    ChunkSink, ChunkSource, Decoder, Digest, Error, Frame, ImageSink, Kind, Manifest, Place,
    Priority, ReadContext, Result, SectionSink, SectionTable,
};

/// What was given back.
#[derive(Debug, Default)]
pub struct Mended {
    /// Chunks that the store had lost and has again.
    pub chunks: u64,
    /// What is still lost: the manifest, or something of these sections; and why.
    pub failed: Vec<Error>,
}

/// Gives `sink` what it has lost of an image, as far as `source` has it. Only if nothing is lost any more is the image
/// committed again: that also makes its manifest anew.
///
/// # Errors
///
/// Those of the sink, and of a source that cannot be reached.
pub async fn mend<S: ChunkSource, K: ImageSink>(
    image: &Digest,
    source: &S,
    sink: &K,
) -> Result<Mended> {
    let ctx = ReadContext { priority: Priority::Background, ..ReadContext::default() };
    let mut mended = Mended::default();
    let manifest = match source.manifest(&ctx, image).await {
        Err(e) if is_lost(&e) => {
            mended.failed.push(e);
            return Ok(mended);
        }
        manifest => manifest?,
    };
    let (domain, geometry) = (manifest.domain(), *manifest.geometry());
    let session = sink.open(&ctx, &ImagePlan { domain, geometry, parent: Some(*image) }).await?;
    for (section, _) in manifest.present() {
        let place = || format!("section {section}");
        match give(&ctx, &manifest, section, source, &session).await.at(place) {
            Ok(chunks) => mended.chunks += chunks,
            Err(e) if is_lost(&e) => mended.failed.push(e),
            Err(e) => return Err(e),
        }
    }
    if mended.failed.is_empty() {
        session.commit(&manifest).await?;
    }
    Ok(mended)
}

/// Nobody has it who was asked.
fn is_lost(error: &Error) -> bool {
    matches!(error.kind(), Kind::Corrupt | Kind::Gone)
}

/// Gives what is wanted of a section; how many chunks that was.
async fn give<S: ChunkSource, P: ImageSession>(
    ctx: &ReadContext,
    manifest: &Manifest,
    section: u32,
    source: &S,
    session: &P,
) -> Result<u64> {
    let image = manifest.identity();
    let table = source.section_table(ctx, &image, section).await?;
    let (chunks, sink) = session.offer(section, &table).await?;
    let wanted = u64::from(chunks.count());
    let mut passing = Passing { table: &table, sink, decoder: Decoder::new()?, plain: Vec::new() };
    passing.plain.resize(manifest.geometry().chunk_len(), 0);
    if wanted > 0 {
        source.chunks(ctx, &Place { image, section, chunks }, &mut passing).await?;
    }
    passing.sink.seal().await?;
    Ok(wanted)
}

/// Passes on what is as the section table says.
struct Passing<'a, S> {
    table: &'a SectionTable,
    sink: S,
    decoder: Decoder,
    plain: Vec<u8>,
}

impl<S: SectionSink> ChunkSink for Passing<'_, S> {
    async fn chunk(&mut self, chunk: u32, frame: Frame) -> Result<()> {
        let (len, digest) =
            (frame.header().plain_len as usize, self.table.digests()[chunk as usize]);
        let plain = self.plain.get_mut(..len).ok_or_else(|| {
            Error::new(Kind::Corrupt, format!("chunk {chunk}: longer than chunks are"))
        })?;
        let decoded = self.decoder.decode(&frame, &digest, plain);
        decoded.map_err(Error::from).at(|| format!("chunk {chunk}"))?;
        self.sink.chunk(chunk, frame).await
    }
}
