//! The thread that reads: it walks the disk once, in order, and cuts it into pieces.
//!
//! Raw files and devices are read here, in bulk, by `blockio` (`tokio-uring` where there is one);
//! streams are decompressed here. Disks in a format are only walked: whoever hashes a piece reads it
//! first, so that clusters are decompressed on all cores. So are raw ones in the background, in short calls.

use std::ops::Range;
use std::sync::Arc;

use blockio::bulk::{BulkOptions, read_sequential};
use blockio::{BlockFile, EngineChoice};
use futures::executor::block_on;
use image::geometry::{MAX_DISK, SECTION_LEN};
use image::{Error, Kind, Result};

use super::Pace;
use super::crew::{Event, HashJob, Shared};
use super::queue::Closed;
use super::section::Open;
use crate::source::{Content, Disk, Stream, check_size, read_error};

/// Why reading stopped early.
enum Stop {
    /// The import is over; nobody waits for an error.
    Closed,
    /// This went wrong.
    Failed(Error),
}

impl From<Closed> for Stop {
    fn from(_: Closed) -> Self {
        Stop::Closed
    }
}

impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        Stop::Failed(e)
    }
}

/// Reads what is to be read of the disk, in rising order.
pub(super) fn run(
    shared: &Shared,
    content: Content,
    ranges: Vec<Range<u64>>,
    engine: EngineChoice,
) -> Result<()> {
    let mut cutter = Cutter { shared, current: None, sections: 0 };
    let size = match content {
        Content::Disk(disk) => {
            // In bulk is a burst, which guests feel.
            let file = disk.raw_file().filter(|_| !shared.background).cloned();
            match file {
                Some(file) => read_raw(&mut cutter, &disk, &file, ranges, engine),
                None => walk(&mut cutter, &disk, ranges),
            }
        }
        Content::Stream(stream) => read_stream(&mut cutter, stream),
    };
    match size {
        Ok(size) => {
            cutter.finish(size);
            Ok(())
        }
        Err(Stop::Closed) => Ok(()),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// In bulk, but for sections in which that fails: there it is found out, by who hashes a piece, what cannot be read.
fn read_raw(
    cutter: &mut Cutter<'_>,
    disk: &Arc<dyn Disk>,
    file: &BlockFile,
    mut ranges: Vec<Range<u64>>,
    engine: EngineChoice,
) -> Result<u64, Stop> {
    while let Some(failed) = read_bulk(cutter, file, disk.size(), ranges.clone(), engine)? {
        let all = failed..u64::MAX;
        let left: Vec<_> = ranges.iter().filter_map(|range| common(range, &all)).collect();
        let first = left.first().map_or(failed, |range| range.start);
        let end = first - first % SECTION_LEN + SECTION_LEN;
        walk(cutter, disk, left.iter().filter_map(|range| common(range, &(0..end))).collect())?;
        ranges = left.iter().filter_map(|range| common(range, &(end..u64::MAX))).collect();
    }
    Ok(disk.size())
}

/// What lies in both.
fn common(a: &Range<u64>, b: &Range<u64>) -> Option<Range<u64>> {
    let both = a.start.max(b.start)..a.end.min(b.end);
    (!both.is_empty()).then_some(both)
}

/// Reads until all is read, or a read fails: then it says up to where everything was read.
fn read_bulk(
    cutter: &mut Cutter<'_>,
    file: &BlockFile,
    size: u64,
    ranges: Vec<Range<u64>>,
    engine: EngineChoice,
) -> Result<Option<u64>, Stop> {
    let options = BulkOptions { choice: engine, ..BulkOptions::new(cutter.piece()) };
    let bulk = read_sequential(file, ranges, &cutter.shared.arena, options);
    let mut bulk = bulk.map_err(read_error)?;
    let mut read = 0;
    while let Some(piece) = bulk.blocking_next() {
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                tracing::debug!(%error, "reading in bulk has failed");
                return Ok(Some(read));
            }
        };
        read = piece.offset + piece.buf.len() as u64;
        cutter.add(piece.offset, size, piece.buf, None)?;
    }
    Ok(None)
}

fn walk(
    cutter: &mut Cutter<'_>,
    disk: &Arc<dyn Disk>,
    ranges: Vec<Range<u64>>,
) -> Result<u64, Stop> {
    let (size, piece) = (disk.size(), cutter.piece() as u64);
    for range in ranges {
        let mut at = range.start;
        while at < range.end
            && let Some(data) = disk.next_data(at)?
        {
            at = (data.start - data.start % piece).max(at);
            while at < data.end.min(range.end) {
                let mut buf = block_on(cutter.shared.arena.acquire());
                let len = piece.min(size - at);
                buf.set_len(len as usize);
                cutter.add(at, size, buf, Some((Arc::clone(disk), at)))?;
                at += len;
            }
        }
    }
    Ok(size)
}

fn read_stream(cutter: &mut Cutter<'_>, mut stream: Stream) -> Result<u64, Stop> {
    let limit = stream.size().unwrap_or(MAX_DISK);
    let mut at = 0;
    loop {
        let mut buf = block_on(cutter.shared.arena.acquire());
        buf.set_len(cutter.piece());
        let len = stream.fill(&mut buf)?;
        let end = at + len as u64;
        if end > limit {
            let what = format!("it is longer than {limit} bytes");
            return Err(Error::new(Kind::Invalid, what).into());
        }
        let last = len < buf.len();
        buf.set_len(len);
        if len > 0 {
            cutter.add(at, end, buf, None)?;
        }
        at = end;
        if last {
            break;
        }
    }
    if at == 0 && stream.size().is_none() {
        // An empty disk is one whose size was said; here what should have come has failed.
        return Err(Error::new(Kind::Invalid, "it is empty").into());
    }
    if stream.size().is_some_and(|declared| declared != at) {
        let what = format!("it ends after {at} of {limit} bytes");
        return Err(Error::new(Kind::Invalid, what).into());
    }
    check_size(at, cutter.shared.geometry.sector())?;
    stream.check_unchanged()?;
    Ok(at)
}

/// Hands out pieces, and keeps the section that is being read.
struct Cutter<'a> {
    shared: &'a Shared,
    current: Option<Arc<Open>>,
    sections: u32,
}

impl Cutter<'_> {
    /// Length of a piece in bytes: whole chunks, and a whole number of pieces per section.
    fn piece(&self) -> usize {
        self.shared.arena.slot_bytes()
    }

    /// Passes a piece on. Pieces come in rising order; `known` is how long the disk is at least.
    fn add(
        &mut self,
        offset: u64,
        known: u64,
        buf: blockio::Buf,
        fill: Option<(Arc<dyn Disk>, u64)>,
    ) -> Result<(), Closed> {
        if let Some(Pace(pace)) = &self.shared.pace {
            pace(buf.len());
        }
        let index = (offset / SECTION_LEN) as u32;
        if self.current.as_ref().is_some_and(|s| s.index() != index) {
            self.close(known);
        }
        let current = self.current.get_or_insert_with(|| {
            self.sections += 1;
            Arc::new(Open::new(index, self.shared.geometry.chunk_len()))
        });
        let section = Arc::clone(current);
        let first_chunk = ((offset % SECTION_LEN) >> self.shared.geometry.chunk_log2()) as u32;
        let end = offset + buf.len() as u64;
        self.shared.pieces.push(HashJob { section, first_chunk, buf, fill })?;
        self.shared.progress.reached(end);
        if end.is_multiple_of(SECTION_LEN) {
            // Now, not with the next piece: this section may have all the buffers there are, and
            // gives them back only when it is complete.
            self.close(end);
        }
        Ok(())
    }

    /// Ends the current section; `size` is the disk's, if it ends within this section.
    fn close(&mut self, size: u64) {
        if let Some(section) = self.current.take() {
            let start = u64::from(section.index()) * SECTION_LEN;
            let len = (size - start).min(SECTION_LEN);
            section.set_chunks(len.div_ceil(self.shared.geometry.chunk_len() as u64) as u32);
            self.shared.release(section);
        }
    }

    fn finish(mut self, size: u64) {
        self.close(size);
        self.shared.progress.set_size(size);
        self.shared.progress.reached(size);
        self.shared.tell(Event::End { size, sections: self.sections });
    }
}
