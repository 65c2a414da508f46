//! Scrubbing: reading the log through, over and over, to find what has rotted before a reader does.
//!
//! ```text
//!  pass:  oldest segment ──► each of its frames, in order ──► … ──► youngest sealed segment
//!                               └── still in the index? read past the page cache, check the
//!                                   CRC32C, decode, compare the digest; bad ones are dropped
//! ```
//! It is done by the log's writer when that has nothing else to do, a frame at a time and never more
//! than the rate allows. Where it was is kept in a file `scrub`, at the end of each segment and when
//! the cache is closed:
//!
//! ```text
//!  0      4       6       8        16            24           32           40          48        56        60       64
//!  | FBSC | ver 1 | flags | pass   | segment u64 | offset u64 | frames u64 | bytes u64 | bad u64 | zeros 4 | CRC32C |
//! ```
//! Numbers are little-endian; bit 0 of the flags says that the pass is not at its end.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use blockio::{Arena, BlockFile, Buf, OpenMode};
use bytes::{BufMut, Bytes};
use image::reader::Reader;
use image::{FormatError, Frame};

use crate::disk::DiskState;
use crate::disk::format::Entry;
use crate::disk::index::Spot;
use crate::disk::reads::{LARGE_SLOT, Window};
use crate::disk::writer::{LogWriter, Phase};
use crate::key::check_plain;
use crate::sharded::lock;

/// A pass over a small log is not begun more often than this.
const PASS_EVERY: Duration = Duration::from_secs(3600);
/// After a pause scrubbing does not catch up on more than this.
const CATCH_UP: Duration = Duration::from_millis(500);

const NAME: &str = "scrub";
const LEN: usize = 64;
const MAGIC: [u8; 4] = *b"FBSC";
const VERSION: u16 = 1;
const WHAT: &str = "scrub position";

/// How far scrubbing has come. Frames and bytes are of this pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Bytes that may be read per second; 0: scrubbing is switched off.
    pub rate: u64,
    /// The pass under way, or the last one; the first is 1.
    pub pass: u64,
    /// Whether a pass is under way.
    pub running: bool,
    /// The segment that is being read.
    pub segment: u64,
    /// Where in it the next frame lies, in bytes.
    pub offset: u64,
    /// Frames checked.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that were bad and dropped.
    pub bad: u64,
}

/// What others want of scrubbing, and what it says of itself.
pub(crate) struct Orders {
    rate: AtomicU64,
    now: AtomicBool,
    status: Mutex<ScrubStatus>,
    /// Bad frames of all passes since the start.
    bad: AtomicU64,
}

impl Orders {
    pub(super) fn new(rate: u64) -> Self {
        let (now, status) = (AtomicBool::new(false), Mutex::default());
        Self { rate: AtomicU64::new(rate), now, status, bad: AtomicU64::new(0) }
    }

    /// Sets the bytes to read per second; 0 switches it off.
    pub(crate) fn set_rate(&self, rate: u64) {
        self.rate.store(rate, Ordering::Relaxed);
    }

    /// Does not wait with the next pass; `false` if one is under way.
    pub(crate) fn start_pass(&self) -> bool {
        let status = lock(&self.status);
        if !status.running {
            self.now.store(true, Ordering::Release);
        }
        !status.running
    }

    /// Bad frames that scrubbing found since the start.
    pub(crate) fn bad(&self) -> u64 {
        self.bad.load(Ordering::Relaxed)
    }

    pub(crate) fn status(&self) -> ScrubStatus {
        ScrubStatus { rate: self.rate(), ..*lock(&self.status) }
    }

    fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }
}

/// Scrubbing, as its worker sees it.
#[derive(Default)]
pub(super) struct Scrub {
    at: Option<Work>,
    /// One buffer: made when it is first needed.
    buffer: Option<Arena>,
    /// Nothing is read before this.
    due: Duration,
    /// No pass begins before this.
    next_pass: Duration,
}

/// A segment that is being read.
struct Work {
    id: u32,
    file: BlockFile,
    /// The youngest last.
    left: Vec<Entry>,
}

impl LogWriter {
    /// Reads on, if it is time; `false` if not.
    pub(super) fn scrub_next(&mut self) -> bool {
        if !self.may_scrub() || !self.scrub_in().is_zero() {
            return false;
        }
        let Some(mut work) = self.scrub.at.take().or_else(|| self.next_segment()) else {
            return false;
        };
        let there = self.disk.segments().contains_key(&work.id);
        let Some(entry) = work.left.pop().filter(|_| there) else {
            let mut status = lock(&self.disk.scrub().status);
            (status.segment, status.offset) = (u64::from(work.id) + 1, 0);
            drop(status);
            self.save_scrub();
            return true;
        };
        let spot = Spot::new(work.id, entry.offset, entry.len);
        let mut status = lock(&self.disk.scrub().status);
        (status.segment, status.offset) = (work.id.into(), u64::from(entry.offset + entry.len));
        drop(status);
        if self.disk.index().is_at(&entry.key, &spot) {
            self.scrub_frame(&work.file, &entry, &spot);
        }
        self.scrub.at = Some(work);
        true
    }

    /// How long it is until scrubbing goes on.
    pub(super) fn scrub_in(&self) -> Duration {
        if !self.may_scrub() {
            return Duration::MAX;
        }
        let orders = self.disk.scrub();
        let running = self.scrub.at.is_some() || lock(&orders.status).running;
        let due = match running || orders.now.load(Ordering::Acquire) {
            true => self.scrub.due,
            false => self.scrub.due.max(self.scrub.next_pass),
        };
        due.saturating_sub((self.outside.clock)())
    }

    fn may_scrub(&self) -> bool {
        matches!(self.phase, Phase::Running)
            && matches!(self.disk.state(), DiskState::On | DiskState::Full(_))
            && self.disk.scrub().rate() > 0
    }

    /// Goes on to the segment after the last one, or ends the pass.
    fn next_segment(&mut self) -> Option<Work> {
        let now = (self.outside.clock)();
        let orders = self.disk.scrub();
        let mut status = *lock(&orders.status);
        let sealed = self.sealed();
        if !status.running && !sealed.is_empty() {
            orders.now.store(false, Ordering::Release);
            self.scrub.next_pass = now + PASS_EVERY;
            let pass = status.pass + 1;
            tracing::debug!(pass, "cache: scrubbing begins");
            status = ScrubStatus { pass, running: true, ..ScrubStatus::default() };
        }
        // Where a pass left off in the middle of a segment, it goes on behind that frame.
        let behind = |id: u32| match u64::from(id) == status.segment {
            true => status.offset,
            false => 0,
        };
        let next = sealed.into_iter().find(|(id, _)| u64::from(*id) >= status.segment);
        let Some((id, segment)) = next.filter(|_| status.running) else {
            if std::mem::take(&mut status.running) {
                let ScrubStatus { pass, frames, bad, .. } = status;
                tracing::info!(pass, frames, bad, "cache: scrubbing read the log through");
            }
            *lock(&orders.status) = status;
            self.scrub.due = now + Duration::from_secs(1);
            return None;
        };
        let left = match self.footer(id, &segment) {
            Ok(mut entries) => {
                entries.retain(|entry| u64::from(entry.offset) >= behind(id));
                entries.reverse();
                entries
            }
            Err(error) => {
                tracing::warn!(%error, "cache: a segment without a footer is not scrubbed");
                Vec::new()
            }
        };
        *lock(&orders.status) = status;
        Some(Work { id, file: self.open_for_scrubbing(&segment.file), left })
    }

    /// The same file past the page cache, so that the medium is asked; where that cannot be had,
    /// the file itself.
    fn open_for_scrubbing(&self, file: &BlockFile) -> BlockFile {
        if file.is_direct() {
            return file.clone();
        }
        let direct = self.outside.fs.open(file.path(), OpenMode::read().direct());
        direct.unwrap_or_else(|_| file.clone())
    }

    fn scrub_frame(&mut self, file: &BlockFile, entry: &Entry, spot: &Spot) {
        let rate = self.disk.scrub().rate().max(1);
        let now = (self.outside.clock)();
        let cost = Duration::from_secs_f64(f64::from(entry.len) / rate as f64);
        self.scrub.due = self.scrub.due.max(now.saturating_sub(CATCH_UP)) + cost;
        let good = match self.read_direct(file, entry) {
            Err(error) => {
                self.disk.drop_frame(&entry.key, spot);
                self.disk.health().note_failed_read(&error.to_string());
                false
            }
            Ok(bytes) => {
                self.disk.health().note_good_read();
                match check_decoded(bytes, entry) {
                    Ok(()) => true,
                    Err(error) => {
                        self.disk.drop_bad(&entry.key, spot, file.path(), &error);
                        false
                    }
                }
            }
        };
        let mut status = lock(&self.disk.scrub().status);
        status.frames += 1;
        status.bytes += u64::from(entry.len);
        status.bad += u64::from(!good);
        self.disk.scrub().bad.fetch_add(u64::from(!good), Ordering::Relaxed);
    }

    fn read_direct(&mut self, file: &BlockFile, entry: &Entry) -> io::Result<Bytes> {
        let mut buf = self.scrub_buffer()?;
        let range = u64::from(entry.offset)..u64::from(entry.offset) + u64::from(entry.len);
        let window = Window::of(range.clone(), file.is_direct());
        buf.set_len(window.len);
        let read = file.read_at(&mut buf, window.from)?;
        Ok(Bytes::copy_from_slice(&buf[window.within(range, read)]))
    }

    fn scrub_buffer(&mut self) -> io::Result<Buf> {
        if self.scrub.buffer.is_none() {
            self.scrub.buffer = Some(Arena::new("cache: scrubbing", LARGE_SLOT, LARGE_SLOT)?);
        }
        let buffer = self.scrub.buffer.as_ref().and_then(Arena::try_acquire);
        buffer.ok_or_else(|| io::Error::other("the buffer of scrubbing is in use"))
    }

    /// Takes up where the last run left off. What cannot be read is where a first pass begins.
    pub(super) fn load_scrub(&mut self) {
        let path = self.limits.dir.join(NAME);
        match self.outside.fs.read(&path, LEN).map(|bytes| parse(&bytes)) {
            Ok(Ok(status)) => {
                *lock(&self.disk.scrub().status) = status;
                self.scrub.next_pass = (self.outside.clock)() + PASS_EVERY;
            }
            Ok(Err(error)) => {
                let path = path.display();
                tracing::warn!(%path, %error, "cache: scrubbing begins anew");
            }
            // There is none yet, or the disk has worse troubles.
            Err(_) => {}
        }
    }

    /// Remembers where scrubbing is. Not synced: at worst some of it is done again.
    pub(super) fn save_scrub(&mut self) {
        let status = *lock(&self.disk.scrub().status);
        if status.pass == 0 || matches!(self.disk.state(), DiskState::Off(_)) {
            return;
        }
        let path = self.limits.dir.join(NAME);
        let ours = match self.outside.fs.read(&path, LEN).map(|bytes| parse(&bytes)) {
            Ok(Err(FormatError::Magic { .. } | FormatError::Version { .. })) => return,
            _ => path.with_extension("new"),
        };
        let write = || {
            let file = self.outside.fs.open(&ours, OpenMode::create())?;
            file.set_len(0)?;
            file.write_all_at(&to_bytes(&status), 0)?;
            self.outside.fs.rename_soon(&ours, &path)
        };
        if let Err(error) = write() {
            tracing::warn!(%error, "cache: the position of scrubbing could not be kept");
        }
    }
}

/// Whether a frame decodes to what it says it is.
fn check_decoded(bytes: Bytes, entry: &Entry) -> image::Result<()> {
    let frame = Frame::parse(bytes)?;
    let plain_len = frame.header().plain_len;
    check_plain(&frame, &entry.key, plain_len)
}

fn to_bytes(status: &ScrubStatus) -> [u8; LEN] {
    let mut out = [0; LEN];
    let mut w = &mut out[..];
    w.put_slice(&MAGIC);
    w.put_u16_le(VERSION);
    w.put_u16_le(u16::from(status.running));
    w.put_u64_le(status.pass);
    w.put_u64_le(status.segment);
    w.put_u64_le(status.offset);
    w.put_u64_le(status.frames);
    w.put_u64_le(status.bytes);
    w.put_u64_le(status.bad);
    let crc = crc32c::crc32c(&out[..LEN - 4]);
    out[LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn parse(bytes: &[u8]) -> Result<ScrubStatus, FormatError> {
    let mut r = Reader::new(WHAT, bytes);
    r.magic(MAGIC, VERSION)?;
    let running = r.u16()?;
    let status = ScrubStatus {
        rate: 0,
        pass: r.u64()?,
        running: running == 1,
        segment: r.u64()?,
        offset: r.u64()?,
        frames: r.u64()?,
        bytes: r.u64()?,
        bad: r.u64()?,
    };
    r.reserved(4)?;
    let crc = r.u32()?;
    r.end()?;
    if crc32c::crc32c(&bytes[..LEN - 4]) != crc {
        return Err(FormatError::Mismatch { what: WHAT, which: "CRC32C" });
    }
    if running > 1 {
        return Err(FormatError::Field { what: WHAT, field: "flags", value: running.into() });
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These bytes are on people's disks. If this fails the version must go up, and files of the old
    /// version must be told apart.
    #[test]
    fn golden_bytes_version_bump_required() {
        let status = ScrubStatus {
            rate: 0,
            pass: 2,
            running: true,
            segment: 7,
            offset: 0x1234,
            frames: 99,
            bytes: 0xabcdef,
            bad: 1,
        };
        let golden = [
            "4642534301000100020000000000000007000000000000003412000000000000",
            "6300000000000000efcdab00000000000100000000000000000000001870ef13",
        ];
        let hex: String = to_bytes(&status).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, golden.concat());
        assert_eq!(parse(&to_bytes(&status)).unwrap(), status);
        for bit in 0..LEN * 8 {
            let mut bad = to_bytes(&status);
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&bad).is_err(), "bit {bit}");
        }
        assert!((0..LEN).all(|len| parse(&to_bytes(&status)[..len]).is_err()));
    }
}
