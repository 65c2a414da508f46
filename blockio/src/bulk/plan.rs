//! What to read, piece by piece.

use std::io;
use std::ops::Range;

use crate::file::BlockFile;

/// Cuts ranges of a file into pieces, and leaves out the holes.
#[derive(Debug)]
pub(super) struct Plan {
    file: BlockFile,
    /// What is left, the next at the end.
    ranges: Vec<Range<u64>>,
    piece: u64,
    skip_holes: bool,
    /// Up to here all is known to be data.
    data_until: u64,
}

impl Plan {
    pub(super) fn new(
        file: BlockFile,
        mut ranges: Vec<Range<u64>>,
        piece: u64,
        skip_holes: bool,
    ) -> io::Result<Plan> {
        if !ranges.is_sorted_by(|a, b| a.end <= b.start) {
            let what = "the ranges to read must be ascending and apart";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let size = file.size()?;
        ranges.iter_mut().for_each(|range| range.end = range.end.min(size));
        ranges.retain(|range| range.start < range.end);
        ranges.reverse();
        Ok(Plan { file, ranges, piece, skip_holes, data_until: 0 })
    }

    /// The first byte of `range` in a piece that has data.
    fn start(&mut self, range: &Range<u64>) -> io::Result<Option<u64>> {
        if !self.skip_holes || range.start < self.data_until {
            return Ok(Some(range.start));
        }
        let Some(data) = self.file.data_extents(range.clone()).next().transpose()? else {
            return Ok(None);
        };
        self.data_until = data.end;
        let piece_start = data.start - data.start % self.piece;
        Ok(Some(piece_start.max(range.start)))
    }

    fn cut(&mut self) -> io::Result<Option<Range<u64>>> {
        while let Some(range) = self.ranges.pop() {
            let Some(start) = self.start(&range)? else { continue };
            let end = (start - start % self.piece + self.piece).min(range.end);
            if end < range.end {
                self.ranges.push(end..range.end);
            }
            return Ok(Some(start..end));
        }
        Ok(None)
    }
}

impl Iterator for Plan {
    type Item = io::Result<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        let cut = self.cut();
        if cut.is_err() {
            self.ranges.clear();
        }
        cut.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::OpenMode;
    use crate::fake::MemFs;

    fn plan(ranges: Vec<Range<u64>>, skip_holes: bool) -> Vec<Range<u64>> {
        let fs = MemFs::new().fs();
        let file = fs.open("/disk", OpenMode::create()).unwrap();
        file.set_len(100_000).unwrap();
        file.write_all_at(&[1; 4096], 20480).unwrap();
        file.write_all_at(&[1; 4096], 28672).unwrap();
        file.write_all_at(&[1], 99_999).unwrap();
        Plan::new(file, ranges, 16384, skip_holes).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn pieces_with_any_data_are_read_whole() {
        #[expect(clippy::single_range_in_vec_init, reason = "one range is what is meant")]
        let all = vec![0..u64::MAX];
        assert_eq!(plan(all.clone(), true), [16384..32768, 98304..100_000]);
        assert_eq!(plan(all, false).len(), 7);
    }

    #[test]
    fn ranges_are_kept_to() {
        let ranges = vec![0..20_000, 21_000..22_000, 30_000..30_001, 70_000..90_000];
        assert_eq!(plan(ranges, true), [21_000..22_000, 30_000..30_001]);
    }
}
