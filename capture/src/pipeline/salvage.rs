//! What cannot be read of a disk. A read that fails is repeated block by block: so the error says exactly what cannot be
//! read, or, if that is to be skipped, exactly that is taken for zeros, and noted.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use blockio::Cause;
use image::record::{Stretch, Unread};
use image::{Error, Kind, Result};

use crate::source::Disk;

/// What is read at a time where reading fails, in bytes: a block, the least that disks of today lose.
const BLOCK: u64 = 4096;
/// Stretches that are noted at most: what is that damaged is to be copied by a program made for it.
const MOST: usize = 1 << 16;

/// What was skipped of a disk because it could not be read: zeros stand for it. Several tries to make an image of one
/// point in time may share it.
#[derive(Debug, Default)]
pub struct Skipped(Mutex<Vec<Range<u64>>>);

impl Skipped {
    /// What the record of the image is to say; `None` if all could be read.
    pub fn unread(&self) -> Option<Unread> {
        let all = self.lock();
        Unread::of(all.iter().map(|r| Stretch { start: r.start, len: r.end - r.start }))
    }

    /// Notes a stretch. One that was noted before counts once.
    fn note(&self, bad: Range<u64>) -> Result<()> {
        let mut all = self.lock();
        let from = all.partition_point(|range| range.end < bad.start);
        let to = all.partition_point(|range| range.start <= bad.end);
        let start = all[from..to].iter().map(|range| range.start).chain([bad.start]).min();
        let end = all[from..to].iter().map(|range| range.end).chain([bad.end]).max();
        all.splice(from..to, start.zip(end).map(|(start, end)| start..end));
        if all.len() <= MOST {
            return Ok(());
        }
        let what = format!(
            "more than {MOST} places cannot be read: copy what can be with a program made for it (ddrescue), and \
             import the copy"
        );
        Err(Error::new(Kind::Io, what))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        // A note that panicked is of an import that has ended.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A way to read a disk.
pub(super) type Read = fn(&dyn Disk, &mut [u8], u64) -> Result<()>;

/// Fills `buf` from `offset`. What cannot be read is skipped if there is somewhere to note it.
pub(super) fn read(
    by: Read,
    disk: &dyn Disk,
    buf: &mut [u8],
    offset: u64,
    skipped: Option<&Skipped>,
) -> Result<()> {
    match by(disk, buf, offset) {
        Err(error) if is_of_the_medium(&error) => by_block(disk, buf, offset, skipped),
        Err(error) if error.kind() == Kind::Io => {
            Err(error.at(format!("{} bytes at {offset} cannot be read", buf.len())))
        }
        read => read,
    }
}

/// Whether it is these bytes that cannot be read, and not the disk as a whole that is gone.
fn is_of_the_medium(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    source.is_some_and(|e| blockio::errno(e).is_some() && blockio::cause(e) == Cause::Corrupt)
}

fn by_block(disk: &dyn Disk, buf: &mut [u8], offset: u64, skipped: Option<&Skipped>) -> Result<()> {
    let end = offset + buf.len() as u64;
    let mut bad: Option<(Range<u64>, Error)> = None;
    let mut at = offset;
    while at < end {
        let next = (at - at % BLOCK + BLOCK).min(end);
        let block = &mut buf[(at - offset) as usize..(next - offset) as usize];
        match (disk.read_narrow(block, at), bad.as_mut()) {
            (Err(error), _) if !is_of_the_medium(&error) => return Err(error),
            (Err(_), Some((stretch, _))) => {
                block.fill(0);
                stretch.end = next;
            }
            (Err(error), None) => {
                block.fill(0);
                bad = Some((at..next, error));
            }
            (Ok(()), _) => settle(bad.take(), skipped)?,
        }
        at = next;
    }
    settle(bad, skipped)
}

/// Notes a stretch that has come to its end, or fails for it.
fn settle(bad: Option<(Range<u64>, Error)>, skipped: Option<&Skipped>) -> Result<()> {
    let Some((stretch, error)) = bad else { return Ok(()) };
    let len = stretch.end - stretch.start;
    let place = format!("{len} bytes at {} cannot be read", stretch.start);
    match skipped {
        Some(skipped) => {
            tracing::warn!(%error, "{place}: zeros stand for them");
            skipped.note(stretch)
        }
        None => {
            let what =
                format!("{place} ({error}): with `--skip-bad` zeros stand for what cannot be read");
            Err(Error::caused(error.kind(), what, error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_joined_and_count_once() {
        let skipped = Skipped::default();
        assert_eq!(skipped.unread(), None);
        for bad in [40..50, 0..10, 20..30, 10..12, 45..60, 0..5] {
            skipped.note(bad).unwrap();
        }
        let unread = skipped.unread().unwrap();
        assert_eq!((unread.bytes, unread.stretches), (42, 3));
        assert_eq!(unread.to_string(), "42 bytes in 3 places: 12 at 0, 10 at 20, 20 at 40");
    }

    #[test]
    fn a_list_without_end_is_an_error() {
        let skipped = Skipped::default();
        let noted: Result<Vec<()>> =
            (0..=MOST as u64).map(|n| skipped.note(2 * n..2 * n + 1)).collect();
        assert!(noted.unwrap_err().message().contains("ddrescue"));
    }
}
