//! What of a plain volume is not as in its image, by what its file shares with the file of its image's [base](crate::bases):
//! the truth that is left when somebody may have written to the file past us.
//!
//! A chunk is as in the image where both files lie at the same place of their file system, or both have a hole. All else
//! counts as changed, whatever it holds. That is right because
//!
//! - the base holds its image, whole and durably, before it says that it is [plain](crate::Identity::plain), and no guest
//!   writes to it: what lies at a place that is the base's is the image's;
//! - a write to a block that files share never goes to its place: it gets another one. What was written before is given
//!   its place before the volume's extents are read;
//! - a place is compared only if all that the file system says of it is that it is shared ([`Placed::place`]). An extent
//!   that was allocated and not written reads as zeros, as a hole does; it counts as changed all the same, for to read it
//!   costs nothing;
//! - blocks may be moved under files (balancing, defragmenting, deduplicating, a base that is repaired). Content stays
//!   where it is for whoever reads a file, but between two looks a place could pass from the base to the volume with
//!   other content. So the base's extents are read before *and* after the volume's, section by section; where
//!   they differ all of the section counts as changed.
//!
//! # Before the point in time
//!
//! The extents are read before a point in time is fixed, while whatever the guest writes is counted already: by the
//! volume's map, or by a bitmap of QEMU's. What is written after the look then counts as changed by that. The other
//! way round would be wrong: of what was discarded after the instant nothing would be left but a hole like the base's.

use std::ops::Range;

use blockio::{BlockFile, OpenMode, Placed};
use image::geometry::SECTION_LEN;
use image::{Kind, Result};

use crate::Identity;
use crate::identity::VolumeState;
use crate::layout::Layout;
use crate::maps::Bits;
use crate::shelf::{DISK, Shelf, io};

/// The chunks of a volume that are not known to be as in its image.
#[derive(Debug)]
pub struct Unshared {
    pub(crate) chunks: Bits,
}

/// Where a stretch of a file lies.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    bytes: Range<u64>,
    place: Option<u64>,
}

impl Shelf {
    /// The file of the base of a volume's image, for reading: it holds all of the image and stays as it is, whoever uses
    /// or removes the base meanwhile. Nothing if there is none that is whole, or the volume shares nothing.
    ///
    /// # Errors
    ///
    /// Of the disk.
    pub fn whole_base(&self, identity: &Identity) -> Result<Option<BlockFile>> {
        let Some(base) = identity.base.filter(|_| identity.shares) else { return Ok(None) };
        let (bases, name) = (self.bases()?, base.image.to_string());
        let path = bases.path(&name)?.join(DISK);
        let file = match self.fs.open(&path, OpenMode::read()) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(io)?,
        };
        let found = match bases.identity(&name) {
            Err(error) if error.kind() == Kind::Gone => return Ok(None),
            found => found?,
        };
        let of_image = found.base.is_some_and(|of| of.image == base.image);
        let is_whole = of_image && found.plain && found.state == VolumeState::Ready;
        // The file lies there as long as what was read says of it: it is the first to go.
        let is_its = is_whole && file.same_file(&path).map_err(io)?;
        Ok(is_its.then_some(file))
    }
}

/// Compares where the file of a volume and that of its [base](Shelf::whole_base) lie; nothing if that tells nothing on
/// their file system. Blocks, for as long as it takes to write down what was written.
///
/// # Errors
///
/// Of the disk.
pub fn unshared(
    identity: &Identity,
    data: &BlockFile,
    base: &BlockFile,
) -> Result<Option<Unshared>> {
    if !data.is_placed_with(base).map_err(io)? {
        return Ok(None);
    }
    let layout = Layout::of(identity)?;
    let mut chunks = Bits::new(layout.chunks());
    for start in (0..layout.size()).step_by(SECTION_LEN as usize) {
        let section = start..(start + SECTION_LEN).min(layout.size());
        let runs = |file: &BlockFile, is_base: bool| {
            let placed = file.places(section.clone(), start == 0);
            runs(placed.map(|placed| placed.map_err(io)), is_base)
        };
        let before = runs(base, true)?;
        let ours = runs(data, false)?;
        let after = runs(base, true)?;
        for changed in apart(&section, [&before, &after], &ours) {
            chunks.set(layout.chunks_of(&changed));
        }
    }
    Ok(Some(Unshared { chunks }))
}

/// Joins what lies side by side, however it was told: so much is kept in memory as a section has blocks. Of a volume
/// only shared extents have a place; those of a base are the base's, shared or not.
fn runs(placed: impl Iterator<Item = Result<Placed>>, is_base: bool) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for placed in placed {
        let Placed { bytes, place, shared } = placed?;
        let place = place.filter(|_| shared || is_base);
        match runs.last_mut() {
            Some(last) if last.bytes.end == bytes.start && last.place_at(bytes.start) == place => {
                last.bytes.end = bytes.end;
            }
            _ => runs.push(Run { bytes, place }),
        }
    }
    Ok(runs)
}

impl Run {
    /// Where one of its bytes lies, or the one behind them would.
    fn place_at(&self, at: u64) -> Option<u64> {
        self.place.map(|place| place + (at - self.bytes.start))
    }
}

/// What of a section is not known to be as in the base, in rising order. The base was looked at before and after.
fn apart(section: &Range<u64>, base: [&[Run]; 2], ours: &[Run]) -> Vec<Range<u64>> {
    let [before, after] = base;
    if before != after {
        return vec![section.clone()];
    }
    let (mut base, mut ours) = (Runs(before), Runs(ours));
    let mut all: Vec<Range<u64>> = Vec::new();
    let mut at = section.start;
    while at < section.end {
        let (theirs, until) = base.at(at, section.end);
        let (this, end) = ours.at(at, until);
        let is_same = match (this, theirs) {
            (Lies::Nowhere, Lies::Nowhere) => true,
            (Lies::At(this), Lies::At(that)) => this == that,
            _ => false,
        };
        match all.last_mut() {
            _ if is_same => {}
            Some(last) if last.end == at => last.end = end,
            _ => all.push(at..end),
        }
        at = end;
    }
    all
}

/// Where a byte of a file lies.
#[derive(Clone, Copy)]
enum Lies {
    /// In a hole.
    Nowhere,
    At(u64),
    /// Somewhere.
    Untold,
}

/// The runs from some place on.
struct Runs<'a>(&'a [Run]);

impl Runs<'_> {
    /// How it is at `at`, and up to where it goes on like that, `end` at most. To be asked in rising order.
    fn at(&mut self, at: u64, end: u64) -> (Lies, u64) {
        while let [first, rest @ ..] = self.0
            && first.bytes.end <= at
        {
            self.0 = rest;
        }
        match self.0 {
            [run, ..] if run.bytes.start <= at => {
                (run.place_at(at).map_or(Lies::Untold, Lies::At), run.bytes.end.min(end))
            }
            [run, ..] => (Lies::Nowhere, run.bytes.start.min(end)),
            [] => (Lies::Nowhere, end),
        }
    }
}

#[cfg(test)]
mod tests;
