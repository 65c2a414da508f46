//! Pulling to a stream: chunks may arrive in any order within a window, and are written in order.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use blockio::Arena;
use futures::{StreamExt, TryStreamExt};
use image::{
    ChunkSet, ChunkSource, Decoder, Digest, Error, Geometry, Kind, Priority, ReadContext, Result,
};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use volume_pool::Verified;

use super::batch::{BATCH_BYTES, Batch, Deliver, Fetch, batches_of};
use super::worker::IN_FLIGHT;
use super::{Connect, PullOptions, Watch, cancelled};
use crate::patience::Patience;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Pulls `image` into `out`, byte after byte. Every chunk is verified before it is written. Runs on
/// a single-threaded runtime inside a `LocalSet`.
pub async fn pull_stream<C: Connect>(
    connect: C,
    image: Digest,
    out: &mut (impl AsyncWrite + Unpin),
    options: &PullOptions,
    watch: &Arc<Watch>,
) -> Result<()> {
    let opening = Patience::with_busy().ask(async || connect.connect(0).await);
    let source = tokio::select! {
        biased;
        () = watch.cancelled() => return Err(cancelled()),
        source = opening => source?,
    };
    let result = tokio::select! {
        biased;
        () = watch.cancelled() => Err(cancelled()),
        result = transfer(&source, connect.trace(), image, out, options, watch) => result,
    };
    connect.close(source).await;
    result
}

async fn transfer<S: ChunkSource>(
    source: &S,
    trace: u128,
    image: Digest,
    out: &mut (impl AsyncWrite + Unpin),
    options: &PullOptions,
    watch: &Arc<Watch>,
) -> Result<()> {
    let ctx = ReadContext { trace, ..ReadContext::default() };
    let ask = async || source.manifest(&ctx, &image).await;
    let manifest = Patience::with_busy().ask(ask).await?;
    let geometry = *manifest.geometry();
    watch.add(|w| &w.size, geometry.size());
    // The window must hold every batch in flight, or the first could wait for memory that later
    // ones hold while they wait for their turn to be written.
    let window = (IN_FLIGHT + 1) * BATCH_BYTES.max(geometry.chunk_len());
    let arena = Arena::new("pull to a stream", geometry.chunk_len(), options.memory.max(window))
        .map_err(|e| Error::io("memory for the pull", e))?;
    let fetch = Fetch {
        source,
        image,
        geometry,
        arena: &arena,
        decoder: Rc::new(RefCell::new(Decoder::new()?)),
        rate: options.rate.as_deref(),
        watch,
        trace,
        patience: Patience::new,
    };
    let mut at = 0;
    let batches = futures::stream::iter(manifest.present())
        .then(async |(section, _)| {
            let table = fetch.table(section, Priority::Background).await?;
            let wanted = ChunkSet::of(table.chunks(), |c| !table.digests()[c as usize].is_zero());
            Ok::<_, Error>(batches_of(&geometry, section, &table, wanted))
        })
        .map_ok(|batches| futures::stream::iter(batches.into_iter().map(Ok)))
        .try_flatten();
    let mut arrived =
        std::pin::pin!(batches.map_ok(|batch| collect(&fetch, batch)).try_buffered(IN_FLIGHT));
    while let Some((section, chunks)) = arrived.try_next().await? {
        for (chunk, plain) in chunks {
            at = write_at(out, &geometry, at, section, chunk, &plain).await?;
            watch.add(|w| &w.data, plain.len() as u64);
            watch.add(|w| &w.written, plain.len() as u64);
        }
    }
    write_zeros(out, geometry.size() - at).await?;
    out.flush().await.map_err(unwritten)
}

/// A reader that has gone is no reason to try again.
fn unwritten(e: std::io::Error) -> Error {
    match e.kind() {
        std::io::ErrorKind::BrokenPipe => {
            Error::caused(Kind::Io, "standard output: its reader went before the end", e)
        }
        _ => Error::io("standard output", e),
    }
}

/// Holds a batch's chunks in order.
#[derive(Default)]
struct Collect(RefCell<BTreeMap<u32, Verified>>);

impl Deliver for Collect {
    async fn deliver(&self, _section: u32, chunk: u32, plain: Verified) -> Result<()> {
        self.0.borrow_mut().insert(chunk, plain);
        Ok(())
    }
}

async fn collect<S: ChunkSource>(
    fetch: &Fetch<'_, S>,
    batch: Batch,
) -> Result<(u32, BTreeMap<u32, Verified>)> {
    let section = batch.section;
    let collected = Collect::default();
    fetch.batch(batch, &collected).await?;
    Ok((section, collected.0.into_inner()))
}

/// Writes a chunk after the zeros before it; returns where the stream then is.
async fn write_at(
    out: &mut (impl AsyncWrite + Unpin),
    geometry: &Geometry,
    at: u64,
    section: u32,
    chunk: u32,
    plain: &[u8],
) -> Result<u64> {
    let start = geometry.chunk_start(section, chunk);
    write_zeros(out, start - at).await?;
    out.write_all(plain).await.map_err(unwritten)?;
    Ok(start + plain.len() as u64)
}

async fn write_zeros(out: &mut (impl AsyncWrite + Unpin), mut n: u64) -> Result<()> {
    while n > 0 {
        let some = n.min(ZEROS.len() as u64);
        let written = out.write_all(&ZEROS[..some as usize]).await;
        written.map_err(unwritten)?;
        n -= some;
    }
    Ok(())
}
