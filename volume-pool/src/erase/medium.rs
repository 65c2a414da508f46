//! What a volume lies on, and what of it takes space there.

use std::fmt;
use std::ops::Range;

use blockio::{BlockFile, FileKind, Placed};
use image::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::shelf::io;

/// What a volume lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Medium {
    /// A block device.
    Device = 1,
    /// A file that is overwritten where it lies.
    File = 2,
    /// A file that is written elsewhere when it is overwritten, as far as is known: it is discarded.
    CopyOnWrite = 3,
}

impl fmt::Display for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "block device",
            Self::File => "file overwritten in place",
            Self::CopyOnWrite => "file on a file system that copies on write",
        })
    }
}

impl Medium {
    pub(super) fn of(file: &BlockFile) -> Result<Self> {
        Ok(match (file.kind(), file.overwrites().map_err(io)?) {
            (FileKind::Block, _) => Self::Device,
            (FileKind::Regular, true) => Self::File,
            (FileKind::Regular, false) => Self::CopyOnWrite,
        })
    }

    pub(super) fn by_number(number: u8) -> Option<Self> {
        [Self::Device, Self::File, Self::CopyOnWrite].into_iter().find(|m| *m as u8 == number)
    }
}

/// What of a range takes space, in rising order: also what was allocated and not written, where old bytes may lie.
pub(super) fn look(file: &BlockFile, range: Range<u64>) -> Result<Vec<Placed>> {
    let whole = |bytes| Placed { bytes, place: None, shared: false };
    match file.kind() {
        FileKind::Block => Ok(vec![whole(range)]),
        FileKind::Regular => match file.places(range.clone(), true).collect() {
            Ok(placed) => Ok(placed),
            // tmpfs and fakes.
            Err(e) if e.kind() == std::io::ErrorKind::Unsupported => {
                file.data_extents(range).map(|data| data.map(whole).map_err(io)).collect()
            }
            Err(e) => Err(io(e)),
        },
    }
}

/// The bytes of those that others share, or do not, joined where they touch.
pub(super) fn bytes_of(placed: &[Placed], shared: impl Fn(bool) -> bool) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    for one in placed.iter().filter(|one| shared(one.shared)) {
        match all.last_mut() {
            Some(last) if last.end == one.bytes.start => last.end = one.bytes.end,
            _ => all.push(one.bytes.clone()),
        }
    }
    all
}

/// How many bytes these are.
pub(super) fn total(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// How many bytes of what was nobody else's have left the place that they are known to have had.
pub(super) fn moved(before: &[Placed], after: &[Placed]) -> u64 {
    let mut after = after.iter().peekable();
    let mut moved = 0;
    for was in before.iter().filter(|was| !was.shared) {
        let Some(place) = was.place else { continue };
        let mut stayed = 0;
        while let Some(is) = after.peek() {
            let start = is.bytes.start.max(was.bytes.start);
            let end = is.bytes.end.min(was.bytes.end);
            let is_same = !is.shared
                && is.place.map(|at| at + start.saturating_sub(is.bytes.start))
                    == Some(place + (start - was.bytes.start));
            if start < end && is_same {
                stayed += end - start;
            }
            if is.bytes.end > was.bytes.end {
                break;
            }
            after.next();
        }
        moved += was.bytes.end - was.bytes.start - stayed;
    }
    moved
}

/// Gives back the space of a range, which reads as zeros then.
pub(super) fn give_back(file: &BlockFile, range: &Range<u64>) -> Result<()> {
    file.punch_hole(range.clone()).map_err(|e| match e.kind() {
        std::io::ErrorKind::Unsupported => {
            let what = format!("{e}: nothing can be discarded there: overwrite it instead");
            Error::caused(Kind::Unsupported, what, e)
        }
        _ => io(e).at(format!("bytes {} to {} are not given back", range.start, range.end)),
    })
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    fn at(bytes: Range<u64>, place: u64) -> Placed {
        Placed { bytes, place: Some(place), shared: false }
    }

    #[test]
    fn what_has_left_its_place_is_counted() {
        let before = [at(0..100, 1000), at(200..300, 5000), at(300..310, 9000)];
        assert_eq!(moved(&before, &before), 0);
        // However it is cut or joined.
        let cut = [at(0..40, 1000), at(40..100, 1040), at(200..300, 5000), at(300..310, 9000)];
        assert_eq!((moved(&before, &cut), moved(&cut, &before)), (0, 0));
        // Elsewhere, gone, shared since, or nothing that is known.
        let elsewhere = [at(0..40, 1000), at(40..100, 7040), at(200..300, 5000)];
        assert_eq!(moved(&before, &elsewhere), 70);
        let mut odd = before.clone();
        odd[0].shared = true;
        odd[1].place = None;
        assert_eq!(moved(&before, &odd), 200);
        assert_eq!(moved(&odd, &before), 0, "it was not told");
        assert_eq!(moved(&before, &[]), 210);
    }

    #[test]
    fn what_is_shared_is_told_from_what_is_not() {
        let shared = |bytes, place| Placed { shared: true, ..at(bytes, place) };
        let placed = [at(0..10, 0), at(10..20, 50), shared(20..30, 60), at(40..50, 80)];
        assert_eq!(bytes_of(&placed, |shared| !shared), [0..20, 40..50]);
        assert_eq!(bytes_of(&placed, |shared| shared), slice::from_ref(&(20..30)));
        assert_eq!(total(&bytes_of(&placed, |_| true)), 40);
    }
}
