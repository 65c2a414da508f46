//! Moves bytes between memory and the medium as fast as that goes: past the page cache, many pieces at a time.

use std::ops::Range;

use blockio::{Arena, BlockFile, Buf, Engine, EngineOptions};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use image::{Error, Kind, Result};
use tokio::runtime::{Builder, Runtime};

use super::pattern::Pattern;
use crate::shelf::io;

/// Bytes that are written or read at once.
const PIECE: usize = 1 << 20;
/// How many of them are under way.
const DEPTH: usize = 8;

/// What is asked before each piece, with its length in bytes.
pub(super) type Gate<'a> = dyn FnMut(u64) -> Result<()> + 'a;

/// An engine with memory of its own, on the calling thread.
#[derive(Debug)]
pub(super) struct Pump {
    file: BlockFile,
    runtime: Runtime,
    engine: Engine,
    /// Holds what is written: nothing but zeros, if nothing else ever is.
    out: Arena,
    back: Arena,
}

impl Pump {
    pub(super) fn new(file: &BlockFile) -> Result<Self> {
        let file = file.past_cache().unwrap_or_else(|error| {
            tracing::info!(%error, "it is erased through the page cache");
            file.clone()
        });
        let arena = |owner| Arena::new(owner, PIECE, PIECE * DEPTH).map_err(io);
        let (out, back) = (arena("erase")?, arena("erase: reading back")?);
        let runtime = Builder::new_current_thread().enable_all().build().map_err(io)?;
        let register = if file.is_direct() { vec![out.clone(), back.clone()] } else { Vec::new() };
        let options = EngineOptions { depth: DEPTH as u32, register, ..EngineOptions::default() };
        let engine = runtime.block_on(async { Engine::start(options) }).map_err(io)?;
        Ok(Self { file, runtime, engine, out, back })
    }

    /// Writes a pattern over these ranges. What was written lasts after [`sync`](Self::sync).
    pub(super) fn write(
        &self,
        ranges: &[Range<u64>],
        pattern: &mut Pattern,
        gate: &mut Gate<'_>,
    ) -> Result<()> {
        self.each(
            ranges,
            &self.out,
            gate,
            |range, mut buf| {
                buf.set_len((range.end - range.start) as usize);
                pattern.fill(&mut buf, range.start);
                let writing = async move {
                    let (done, buf) = self.engine.write_at(&self.file, buf, range.start).await;
                    (done.map_err(|e| at(&range, "are not overwritten", e)), range, buf)
                };
                Ok(writing)
            },
            |_, _| Ok(()),
        )
    }

    /// Reads these ranges from the medium and sees that the pattern is there.
    pub(super) fn compare(
        &self,
        ranges: &[Range<u64>],
        pattern: &mut Pattern,
        gate: &mut Gate<'_>,
    ) -> Result<()> {
        let mut wanted = vec![0; PIECE];
        self.each(
            ranges,
            &self.back,
            gate,
            |range, mut buf| {
                buf.set_len((range.end - range.start) as usize);
                let reading = async move {
                    let (done, buf) = self.read(range.start, buf).await;
                    let done = done.map(drop).map_err(|e| at(&range, "cannot be read back", e));
                    (done, range, buf)
                };
                Ok(reading)
            },
            |range, buf| {
                let wanted = &mut wanted[..(range.end - range.start) as usize];
                pattern.fill(wanted, range.start);
                if *wanted == buf[..] {
                    return Ok(());
                }
                let same = wanted.iter().zip(&buf[..]).take_while(|(a, b)| a == b).count();
                let what = format!(
                    "{}: at {} it does not read back what was written: the medium may be failing",
                    self.file.path().display(),
                    range.start + same as u64
                );
                Err(Error::new(Kind::Corrupt, what))
            },
        )
    }

    async fn read(&self, offset: u64, mut buf: Buf) -> (std::io::Result<usize>, Buf) {
        if self.file.is_direct() {
            return self.engine.read_at(&self.file, buf, offset).await;
        }
        // What the page cache has of it is let go of before.
        let read = self.file.read_narrow_at(&mut buf, offset);
        if let Ok(read) = read {
            buf.set_len(read);
        }
        (read, buf)
    }

    /// Has a piece after the other begun, while there is memory, and looks at each that has come to its end. After a failure
    /// none is begun, and none is under way when this returns.
    fn each<F>(
        &self,
        ranges: &[Range<u64>],
        arena: &Arena,
        gate: &mut Gate<'_>,
        mut begin: impl FnMut(Range<u64>, Buf) -> Result<F>,
        mut end: impl FnMut(Range<u64>, &Buf) -> Result<()>,
    ) -> Result<()>
    where
        F: Future<Output = (Result<()>, Range<u64>, Buf)>,
    {
        let mut pieces = pieces(ranges);
        let mut under_way = FuturesUnordered::new();
        self.runtime.block_on(async {
            let mut result = Ok(());
            loop {
                while result.is_ok()
                    && let Some(buf) = arena.try_acquire()
                    && let Some(range) = pieces.next()
                {
                    let begun = gate(range.end - range.start).and_then(|()| begin(range, buf));
                    result = begun.map(|future| under_way.push(future));
                }
                let Some((done, range, buf)) = under_way.next().await else { return result };
                let ended = done.and_then(|()| end(range, &buf));
                result = result.and(ended);
            }
        })
    }

    /// Waits until all that was written is on the medium.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(io)
    }
}

fn at(range: &Range<u64>, what: &str, error: std::io::Error) -> Error {
    io(error).at(format!("bytes {} to {} {what}", range.start, range.end))
}

/// Cut where multiples of a piece begin.
fn pieces(ranges: &[Range<u64>]) -> impl Iterator<Item = Range<u64>> {
    ranges.iter().flat_map(|range| {
        let first = range.start - range.start % PIECE as u64;
        (first..range.end)
            .step_by(PIECE)
            .map(|at| at.max(range.start)..(at + PIECE as u64).min(range.end))
    })
}
