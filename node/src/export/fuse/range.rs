//! Where a request lies on a disk: what of it exists, its whole sectors, and the next data or hole.

use std::ops::Range;

use super::super::Stretch;

/// What of `len` bytes from `at` lies on a disk of `size` bytes.
pub fn clip(at: u64, len: u64, size: u64) -> Range<u64> {
    let start = at.min(size);
    start..at.saturating_add(len).min(size).max(start)
}

/// The sectors that a range touches. `size` is whole sectors.
pub fn outer(range: &Range<u64>, sector: u64, size: u64) -> Range<u64> {
    let start = range.start - range.start % sector;
    start..range.end.next_multiple_of(sector).min(size)
}

/// A range as whole sectors between two pieces that are less than one, each of which may be empty.
pub fn pieces(range: &Range<u64>, sector: u64) -> (Range<u64>, Range<u64>, Range<u64>) {
    let first = range.start.next_multiple_of(sector).min(range.end);
    let last = (range.end - range.end % sector).max(first);
    (range.start..first, first..last, last..range.end)
}

/// What a hypervisor looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// Bytes, or what may turn out to be bytes.
    Data,
    /// Zeros that take no space, or the end.
    Hole,
}

impl Seek {
    /// By `lseek`'s number.
    pub fn of(whence: i32) -> Option<Seek> {
        match whence {
            libc::SEEK_DATA => Some(Seek::Data),
            libc::SEEK_HOLE => Some(Seek::Hole),
            _ => None,
        }
    }
}

/// How far a search came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Here.
    At(u64),
    /// Not before here.
    NotBefore(u64),
}

/// Looks for `what` from `from` on among the `stretches` that begin at `start`, at or before it. What has not
/// arrived counts as data: nobody knows better, and whoever copies the disk must read it.
pub fn search(start: u64, stretches: &[(u64, Stretch)], from: u64, what: Seek) -> Found {
    let mut at = start;
    for (len, stretch) in stretches {
        let end = at.saturating_add(*len);
        if end > from && (*stretch == Stretch::Hole) == (what == Seek::Hole) {
            return Found::At(at.max(from));
        }
        at = end;
    }
    Found::NotBefore(at.max(from))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_lies_beyond_the_end_is_left_out() {
        assert_eq!(clip(0, 10, 4096), 0..10);
        assert_eq!(clip(4000, 1000, 4096), 4000..4096);
        assert_eq!(clip(4096, 1, 4096), 4096..4096);
        assert_eq!(clip(9000, 1, 4096), 4096..4096);
        assert_eq!(clip(u64::MAX, u64::MAX, 4096), 4096..4096);
    }

    #[test]
    fn data_and_holes_are_found_and_what_is_absent_is_data() {
        use Stretch::{Absent, Data, Hole};
        let disk = [(100, Data), (50, Absent), (100, Hole), (10, Absent)];
        let find = |from, what| search(0, &disk, from, what);
        assert_eq!(find(0, Seek::Data), Found::At(0));
        assert_eq!(find(99, Seek::Data), Found::At(99));
        assert_eq!(find(0, Seek::Hole), Found::At(150));
        assert_eq!(find(200, Seek::Hole), Found::At(200));
        assert_eq!(find(200, Seek::Data), Found::At(250));
        assert_eq!(find(250, Seek::Hole), Found::NotBefore(260));
        assert_eq!(find(300, Seek::Data), Found::NotBefore(300));
        assert_eq!(search(512, &disk, 520, Seek::Hole), Found::At(662));
        assert_eq!(search(512, &[], 520, Seek::Hole), Found::NotBefore(520));
    }

    #[test]
    fn lseek_has_two_numbers_that_reach_us() {
        assert_eq!(
            [0, 1, 2, 3, 4, 5].map(Seek::of),
            [None, None, None, Some(Seek::Data), Some(Seek::Hole), None]
        );
    }

    proptest! {
        #[test]
        fn pieces_cover_a_range_and_only_the_middle_is_whole(
            start in 0u64..20_000, len in 0u64..20_000, large in any::<bool>()
        ) {
            let sector = if large { 4096 } else { 512 };
            let range = start..start + len;
            let (head, middle, tail) = pieces(&range, sector);
            prop_assert_eq!(head.start, range.start);
            prop_assert_eq!(tail.end, range.end);
            prop_assert_eq!((head.end, middle.end), (middle.start, tail.start));
            prop_assert!(middle.is_empty() || middle.start.is_multiple_of(sector) && middle.end.is_multiple_of(sector));
            prop_assert!(head.end - head.start < sector && tail.end - tail.start < sector);
            let outer = outer(&range, sector, 1 << 20);
            prop_assert!(outer.start <= range.start && range.end <= outer.end);
            prop_assert!(outer.start.is_multiple_of(sector) && outer.end.is_multiple_of(sector));
            prop_assert!(outer.end - outer.start < len + 2 * sector);
        }
    }
}
