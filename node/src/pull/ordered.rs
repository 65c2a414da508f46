//! Pulling in the order of the disk: chunks may arrive in any order within a window, and are taken in
//! order.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use blockio::Arena;
use futures::{StreamExt, TryStreamExt};
use image::{
    ChunkSet, ChunkSource, Decoder, Digest, Error, Geometry, Kind, Manifest, Priority, ReadContext,
    Result,
};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use volume_pool::Verified;

use super::batch::{BATCH_BYTES, Batch, Deliver, Fetch, batches_of};
use super::worker::IN_FLIGHT;
use super::{Connect, PullOptions, Watch, cancelled};
use crate::patience::Patience;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Chunks with their places on the disk, in order.
pub(super) type Chunks = Vec<(u64, Verified)>;

/// Pulls `image` into `out`, byte after byte. Every chunk is verified before it is written. Runs on
/// a single-threaded runtime inside a `LocalSet`.
pub async fn pull_stream<C: Connect>(
    connect: C,
    image: Digest,
    out: &mut (impl AsyncWrite + Unpin),
    options: &PullOptions,
    watch: &Arc<Watch>,
) -> Result<()> {
    let mut out = Stream::new(out);
    let trace = connect.trace();
    with_source(&connect, watch, async |source| {
        let ordered = Ordered::open(source, trace, image, options, watch).await?;
        let take = async |chunks: Chunks| {
            for (at, plain) in chunks {
                out.write(at, &plain).await?;
                watch.add(|w| &w.written, plain.len() as u64);
            }
            Ok(())
        };
        ordered.each(IN_FLIGHT, async |chunks| Ok(chunks), take).await?;
        out.finish(ordered.geometry().size()).await
    })
    .await
}

/// Does work with a source, and takes leave of it, until the pull is cancelled.
pub(super) async fn with_source<C: Connect, T>(
    connect: &C,
    watch: &Watch,
    work: impl AsyncFnOnce(&C::Source) -> Result<T>,
) -> Result<T> {
    let opening = Patience::with_busy().ask(async || connect.connect(0).await);
    let source = tokio::select! {
        biased;
        () = watch.cancelled() => return Err(cancelled()),
        source = opening => source?,
    };
    let result = tokio::select! {
        biased;
        () = watch.cancelled() => Err(cancelled()),
        result = work(&source) => result,
    };
    connect.close(source).await;
    result
}

/// An image, to be had in the order of its disk.
pub(super) struct Ordered<'a, S> {
    source: &'a S,
    trace: u128,
    image: Digest,
    options: &'a PullOptions,
    watch: &'a Watch,
    manifest: Arc<Manifest>,
}

impl<'a, S: ChunkSource> Ordered<'a, S> {
    pub(super) async fn open(
        source: &'a S,
        trace: u128,
        image: Digest,
        options: &'a PullOptions,
        watch: &'a Watch,
    ) -> Result<Self> {
        let ctx = ReadContext { trace, ..ReadContext::default() };
        let ask = async || source.manifest(&ctx, &image).await;
        let manifest = Patience::with_busy().ask(ask).await?;
        watch.add(|w| &w.size, manifest.geometry().size());
        Ok(Self { source, trace, image, options, watch, manifest })
    }

    pub(super) fn geometry(&self) -> &Geometry {
        self.manifest.geometry()
    }

    /// Fetches all chunks that are not zeros, with so many batches in flight. Each batch is prepared as it
    /// has arrived, beside others, and taken when it is its turn.
    pub(super) async fn each<T>(
        &self,
        in_flight: usize,
        prepare: impl AsyncFn(Chunks) -> Result<T>,
        mut take: impl AsyncFnMut(T) -> Result<()>,
    ) -> Result<()> {
        let geometry = *self.geometry();
        // The window must hold every batch in flight, or the first could wait for memory that later
        // ones hold while they wait for their turn to be written; and one each that is being taken,
        // that waits in the channel, and that waits for it.
        let window = (in_flight + 3) * BATCH_BYTES.max(geometry.chunk_len());
        let memory = self.options.memory.max(window);
        let arena = Arena::new("pull in order", geometry.chunk_len(), memory)
            .map_err(|e| Error::io("memory for the pull", e))?;
        let fetch = Fetch {
            source: self.source,
            image: self.image,
            geometry,
            arena: &arena,
            decoder: Rc::new(RefCell::new(Decoder::new()?)),
            rate: self.options.rate.as_deref(),
            watch: self.watch,
            trace: self.trace,
            patience: Patience::new,
        };
        let (fetch, prepare) = (&fetch, &prepare);
        let batches = futures::stream::iter(self.manifest.present())
            .then(async |(section, _)| {
                let table = fetch.table(section, Priority::Background).await?;
                let wanted =
                    ChunkSet::of(table.chunks(), |c| !table.digests()[c as usize].is_zero());
                Ok::<_, Error>(batches_of(&geometry, section, &table, wanted))
            })
            .map_ok(|batches| futures::stream::iter(batches.into_iter().map(Ok)))
            .try_flatten();
        let made = batches.map_ok(async |batch| prepare(collect(fetch, batch).await?).await);
        let mut made = std::pin::pin!(made.try_buffered(in_flight));
        // More is fetched while something is taken.
        let (send, mut turn) = tokio::sync::mpsc::channel(1);
        let fetched = async move {
            while let Some(made) = made.try_next().await? {
                // Whoever takes them has failed, which ends this too.
                let Ok(()) = send.send(made).await else { break };
            }
            Ok::<_, Error>(())
        };
        let taken = async {
            while let Some(made) = turn.recv().await {
                take(made).await?;
            }
            Ok::<_, Error>(())
        };
        futures::future::try_join(fetched, taken).await.map(drop)
    }
}

/// Holds a batch's chunks.
#[derive(Default)]
struct Collect(RefCell<Vec<(u32, Verified)>>);

impl Deliver for Collect {
    async fn deliver(&self, _section: u32, chunk: u32, plain: Verified) -> Result<()> {
        self.0.borrow_mut().push((chunk, plain));
        Ok(())
    }
}

async fn collect<S: ChunkSource>(fetch: &Fetch<'_, S>, batch: Batch) -> Result<Chunks> {
    let section = batch.section;
    let collected = Collect::default();
    fetch.batch(batch, &collected).await?;
    let mut chunks = collected.0.into_inner();
    chunks.sort_unstable_by_key(|(chunk, _)| *chunk);
    let bytes = chunks.iter().map(|(_, plain)| plain.len() as u64).sum();
    fetch.watch.add(|w| &w.data, bytes);
    let start = |chunk| fetch.geometry.chunk_start(section, chunk);
    Ok(chunks.into_iter().map(|(chunk, plain)| (start(chunk), plain)).collect())
}

/// Bytes in order, and zeros where there are none.
pub(super) struct Stream<'a, W> {
    out: &'a mut W,
    at: u64,
}

impl<'a, W: AsyncWrite + Unpin> Stream<'a, W> {
    pub(super) fn new(out: &'a mut W) -> Self {
        Self { out, at: 0 }
    }

    /// Writes bytes after the zeros before them.
    pub(super) async fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.zeros_to(at).await?;
        self.out.write_all(bytes).await.map_err(unwritten)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Ends it after `len` bytes.
    pub(super) async fn finish(mut self, len: u64) -> Result<()> {
        self.zeros_to(len).await?;
        self.out.flush().await.map_err(unwritten)
    }

    async fn zeros_to(&mut self, to: u64) -> Result<()> {
        while self.at < to {
            let some = (to - self.at).min(ZEROS.len() as u64);
            let written = self.out.write_all(&ZEROS[..some as usize]).await;
            written.map_err(unwritten)?;
            self.at += some;
        }
        Ok(())
    }
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
