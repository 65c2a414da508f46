//! Pulling into a file of another program: a raw, qcow2 or vmdk file.
//!
//! ```text
//! Ordered::each ─ fetch, verify ─ pack (compressed on threads) ─▶ in order: place ─▶ draft, or stream
//! ```
//! Memory is that of the batches in flight, 4 MiB each: some are plain, some packed, and as many as there are threads
//! both.

use std::sync::Arc;

use blockio::{Engine, EngineOptions};
use image::error::At;
use image::{Digest, Error, Kind, Result};
use tokio::io::AsyncWrite;
use tokio::sync::Semaphore;
use volume_pool::foreign::{Draft, Format, Packed, Packer, Piece, Writer};

use super::ordered::{Chunks, Ordered, Stream, with_source};
use super::worker::IN_FLIGHT;
use super::{Connect, PullOptions, Watch};

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the file, holes among them.
    pub len: u64,
    /// Bytes that were written into it.
    pub bytes: u64,
}

/// Where the pieces of a file go.
trait Out {
    async fn write(&mut self, pieces: Vec<Piece>) -> Result<()>;

    async fn finish(self, len: u64) -> Result<()>;
}

/// Pulls `image` into a file of this format. On an error, or when the future is dropped, nothing is left
/// behind. Runs inside a `LocalSet`.
///
/// # Errors
///
/// What the source says, or the format, or the file system; [`Kind::Cancelled`].
pub async fn pull_file<C: Connect>(
    connect: C,
    image: Digest,
    format: Format,
    draft: Draft,
    options: &PullOptions,
    watch: &Arc<Watch>,
) -> Result<Written> {
    let engine = EngineOptions { choice: options.engine, ..EngineOptions::default() };
    let engine = Engine::start(engine).map_err(|e| Error::io("starting file I/O", e))?;
    let name = draft.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    // Known before anything is fetched, where the disk's size is told and its data take as much room.
    if format.is_plain() {
        draft.check_room(watch.progress().total)?;
    }
    let out = File { draft, engine };
    pull_packed(connect, image, (format, &name), out, options, watch).await
}

/// Pulls `image` into a stream of this format, which must [be one](Format::is_stream).
///
/// # Errors
///
/// What the source says, or the format, or the reader; [`Kind::Cancelled`].
pub async fn pull_format<C: Connect>(
    connect: C,
    image: Digest,
    format: Format,
    out: &mut (impl AsyncWrite + Unpin),
    options: &PullOptions,
    watch: &Arc<Watch>,
) -> Result<Written> {
    if !format.is_stream() {
        let what = "a qcow2 file is not written from front to back: name a file";
        return Err(Error::new(Kind::Invalid, what));
    }
    let name = "disk.vmdk";
    pull_packed(connect, image, (format, name), Stream::new(out), options, watch).await
}

async fn pull_packed<C: Connect>(
    connect: C,
    image: Digest,
    (format, name): (Format, &str),
    mut out: impl Out,
    options: &PullOptions,
    watch: &Arc<Watch>,
) -> Result<Written> {
    let trace = connect.trace();
    with_source(&connect, watch, async |source| {
        let ordered = Ordered::open(source, trace, image, options, watch).await?;
        let mut writer = Writer::new(format, ordered.geometry(), &image, name);
        let (packer, threads) = (writer.packer(), Semaphore::new(options.cores.max(1)));
        // Enough that every thread has one while others arrive.
        let in_flight = match packer.compresses() {
            true => IN_FLIGHT + options.cores.min(IN_FLIGHT),
            false => IN_FLIGHT,
        };
        let mut bytes = 0;
        let take = async |batch: Vec<Packed>| {
            let (mut plain, mut pieces) = (0, Vec::new());
            for packed in batch {
                plain += packed.plain_len();
                pieces.extend(writer.place(packed).at(|| name)?);
            }
            bytes += total(&pieces);
            out.write(pieces).await?;
            watch.add(|w| &w.written, plain);
            Ok(())
        };
        ordered.each(in_flight, async |chunks| pack(packer, &threads, chunks).await, take).await?;
        let end = writer.finish().at(|| name)?;
        bytes += total(&end.pieces);
        out.write(end.pieces).await?;
        out.finish(end.len).await?;
        Ok(Written { len: end.len, bytes })
    })
    .await
}

fn total(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| piece.bytes.len() as u64).sum()
}

/// Packs a batch: on a thread of its own, if that takes its time.
async fn pack(packer: Packer, threads: &Semaphore, chunks: Chunks) -> Result<Vec<Packed>> {
    let work = move || -> Result<Vec<Packed>> {
        chunks.into_iter().map(|(at, plain)| packer.pack(at, plain)).collect()
    };
    if !packer.compresses() {
        return work();
    }
    let _turn = threads.acquire().await;
    let packed = tokio::task::spawn_blocking(work).await;
    packed.map_err(|e| Error::caused(Kind::Io, format!("compressing: {e}"), e))?
}

/// A file on its way.
struct File {
    draft: Draft,
    engine: Engine,
}

impl Out for File {
    async fn write(&mut self, pieces: Vec<Piece>) -> Result<()> {
        let writes = pieces.into_iter().map(|piece| self.draft.write(&self.engine, piece));
        futures::future::try_join_all(writes).await.map(drop)
    }

    async fn finish(self, len: u64) -> Result<()> {
        self.draft.finish(&self.engine, len).await
    }
}

impl<W: AsyncWrite + Unpin> Out for Stream<'_, W> {
    async fn write(&mut self, pieces: Vec<Piece>) -> Result<()> {
        for piece in pieces {
            Stream::write(self, piece.at, &piece.bytes).await?;
        }
        Ok(())
    }

    async fn finish(self, len: u64) -> Result<()> {
        Stream::finish(self, len).await
    }
}
