//! Carries requests out on a disk, through buffers of our own.

use std::cell::Cell;
use std::ops::Range;

use blockio::Arena;
use futures::{StreamExt, TryStreamExt, stream};
use image::Error;

use super::chain::Spans;
use super::config::Shape;
use super::memory::Mapped;
use super::request::{Request, SERIAL, Status, Work};
use crate::export::Disk;

/// Pieces of one request under way at a time, if it is longer than a buffer.
const PIECES: usize = 4;

/// A disk, and what its guests' requests share.
pub struct Device<D> {
    /// What is served.
    pub disk: std::rc::Rc<D>,
    /// Where bytes lie between guest and disk.
    pub buffers: Arena,
    /// What the guest is told the disk is called; zeros follow the text.
    pub serial: [u8; SERIAL],
    /// The most rings.
    pub queues: u16,
}

impl<D: Disk> Device<D> {
    /// The disk as it is now.
    pub fn shape(&self) -> Shape {
        let disk = &self.disk;
        Shape { size: disk.size(), sector: disk.sector(), read_only: disk.read_only() }
    }
}

/// Why a request failed.
enum Failed {
    Disk(Error),
    Memory(vm_memory::GuestMemoryError),
    /// Nobody waits for it any more.
    Abandoned,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Disk(error)
    }
}

impl From<vm_memory::GuestMemoryError> for Failed {
    fn from(error: vm_memory::GuestMemoryError) -> Self {
        Self::Memory(error)
    }
}

/// What a ring knows that its requests need to.
pub struct Terms {
    /// Cleared when the guest's memory must not be touched any more.
    pub live: Cell<bool>,
    /// Whether the guest takes a write to be durable when it is answered, as it has no flush.
    pub write_through: bool,
}

/// One request on its way.
pub struct Job<'a, D> {
    /// The disk.
    pub device: &'a Device<D>,
    /// The memory that the request is in.
    pub mem: &'a Mapped,
    /// Under which terms.
    pub terms: &'a Terms,
}

impl<D: Disk> Job<'_, D> {
    /// Carries out a request; says what to tell the guest, and how many bytes of data it was given.
    pub async fn perform(&self, request: &Request) -> (Status, u32) {
        let result = match &request.work {
            Work::Answer(status) => return (*status, 0),
            Work::Read(at) => self.read(&request.data, *at).await,
            // What reads do not need is kept out of their way, for it makes the future large.
            work => Box::pin(self.other(work, &request.data)).await,
        };
        let given = match request.work {
            Work::Read(_) | Work::Serial => u32::try_from(request.data.bytes()).unwrap_or(u32::MAX),
            _ => 0,
        };
        match result {
            Ok(()) => return (Status::Ok, given),
            Err(Failed::Disk(error)) => tracing::warn!(%error, "a guest's request failed"),
            Err(Failed::Memory(error)) => tracing::warn!(%error, "a guest's memory is gone"),
            Err(Failed::Abandoned) => {}
        }
        (Status::Failed, given)
    }

    /// Carries out what is no read.
    async fn other(&self, work: &Work, data: &Spans) -> Result<(), Failed> {
        match work {
            Work::Write(at) => self.changed(self.pieces(data, *at, false)).await,
            Work::Flush => self.flush().await,
            Work::Serial => self.serial(data),
            Work::Discard(ranges) => self.changed(self.discard(ranges)).await,
            Work::Zero(ranges) => self.changed(self.zero(ranges)).await,
            Work::Read(_) | Work::Answer(_) => unreachable!("these are carried out elsewhere"),
        }
    }

    /// Fills all of `data`, at once and without a copy if its bytes lie in one file.
    async fn read(&self, data: &Spans, at: u64) -> Result<(), Failed> {
        self.check()?;
        if data.bytes() == 0 {
            return Ok(());
        }
        if let Some((file, engine)) = self.device.disk.read_from(&(at..at + data.bytes()))
            && let Some(guest) = data.mapped(self.mem)
            && let Ok(read) = engine.read_guest(&file, guest, at).await
            && read as u64 == data.bytes()
        {
            return Ok(());
        }
        Box::pin(self.pieces(data, at, true)).await
    }

    /// Reads or writes all of `data`, a buffer at a time.
    async fn pieces(&self, data: &Spans, at: u64, read: bool) -> Result<(), Failed> {
        let (all, most) = (data.bytes(), self.device.buffers.slot_bytes() as u64);
        let piece = |skip: u64| self.piece(data, at, skip, (all - skip).min(most) as usize, read);
        if all <= most {
            return piece(0).await;
        }
        let pieces = stream::iter((0..all).step_by(most as usize)).map(piece);
        pieces.buffer_unordered(PIECES).try_collect().await
    }

    async fn piece(
        &self,
        data: &Spans,
        at: u64,
        skip: u64,
        len: usize,
        read: bool,
    ) -> Result<(), Failed> {
        if len == 0 {
            return Ok(());
        }
        let mut buf = self.device.buffers.acquire().await;
        buf.set_len(len);
        self.check()?;
        if !read {
            data.copy_out(self.mem, skip, &mut buf)?;
            return Ok(self.device.disk.write(at + skip, buf).await.0?);
        }
        let (result, buf) = self.device.disk.read(at + skip, buf).await;
        result?;
        self.check()?;
        Ok(data.copy_in(self.mem, skip, &buf)?)
    }

    fn serial(&self, data: &Spans) -> Result<(), Failed> {
        let len = data.bytes().min(SERIAL as u64) as usize;
        Ok(data.copy_in(self.mem, 0, &self.device.serial[..len])?)
    }

    async fn discard(&self, ranges: &[Range<u64>]) -> Result<(), Failed> {
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            self.check()?;
            self.device.disk.discard(range.clone()).await?;
        }
        Ok(())
    }

    async fn zero(&self, ranges: &[(Range<u64>, bool)]) -> Result<(), Failed> {
        for (range, give_back) in ranges.iter().filter(|(range, _)| !range.is_empty()) {
            self.check()?;
            self.device.disk.zero(range.clone(), *give_back).await?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), Failed> {
        Ok(self.device.disk.flush().await?)
    }

    /// Carries out a change, durably if the guest expects that of every change.
    async fn changed(
        &self,
        change: impl Future<Output = Result<(), Failed>>,
    ) -> Result<(), Failed> {
        change.await?;
        if self.terms.write_through { self.flush().await } else { Ok(()) }
    }

    /// Whether the guest's memory may still be touched.
    fn check(&self) -> Result<(), Failed> {
        if self.terms.live.get() { Ok(()) } else { Err(Failed::Abandoned) }
    }
}
