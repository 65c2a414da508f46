//! Bits that one thread sets while others look, none of whom waits for another.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words of a page, which there is once a bit of it is set.
const WORDS: usize = 512;
const PAGE: u64 = WORDS as u64 * 64;

type Page = [AtomicU64; WORDS];

/// Bits that are only ever set. Who sees one set sees all that was done before.
#[derive(Debug)]
pub(super) struct Marks(Box<[OnceLock<Box<Page>>]>);

impl Marks {
    /// So many, clear.
    pub(super) fn new(len: u64) -> Self {
        Self((0..len.div_ceil(PAGE)).map(|_| OnceLock::new()).collect())
    }

    pub(super) fn set(&self, range: Range<u64>) {
        for bit in range {
            let page = self.0[(bit / PAGE) as usize]
                .get_or_init(|| Box::new([const { AtomicU64::new(0) }; WORDS]));
            page[(bit % PAGE / 64) as usize].fetch_or(1 << (bit % 64), Ordering::Release);
        }
    }

    pub(super) fn has(&self, bit: u64) -> bool {
        self.next(bit..bit + 1, true).is_some()
    }

    /// The stretches of set bits in a range.
    pub(super) fn runs(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let start = self.next(at..range.end, true)?;
            at = self.next(start..range.end, false).unwrap_or(range.end);
            Some(start..at)
        })
    }

    /// The first bit of a range that is set, or that is clear.
    fn next(&self, range: Range<u64>, set: bool) -> Option<u64> {
        let mut at = range.start;
        while at < range.end {
            let Some(page) = self.0[(at / PAGE) as usize].get() else {
                if !set {
                    return Some(at);
                }
                at = (at / PAGE + 1) * PAGE;
                continue;
            };
            let word = page[(at % PAGE / 64) as usize].load(Ordering::Acquire);
            let left = if set { word } else { !word } >> (at % 64);
            if left != 0 {
                return Some(at + u64::from(left.trailing_zeros())).filter(|bit| *bit < range.end);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEN: u64 = 2 * PAGE + 100;

    proptest! {
        #[test]
        fn runs_are_what_was_set(
            sets in prop::collection::vec((0..LEN, 1..200_u64), 0..20),
            (from, to) in (0..LEN, 0..=LEN),
        ) {
            let (marks, mut model) = (Marks::new(LEN), vec![false; LEN as usize]);
            for (start, len) in sets {
                let range = start..(start + len).min(LEN);
                marks.set(range.clone());
                model[range.start as usize..range.end as usize].fill(true);
            }
            let mut seen = vec![false; LEN as usize];
            let mut last = None;
            for run in marks.runs(from..to) {
                prop_assert!(run.start < run.end && last.is_none_or(|last| last < run.start));
                last = Some(run.end);
                seen[run.start as usize..run.end as usize].fill(true);
            }
            for bit in 0..LEN {
                let within = (from..to).contains(&bit);
                prop_assert_eq!(seen[bit as usize], within && model[bit as usize]);
                prop_assert_eq!(marks.has(bit), model[bit as usize]);
            }
        }
    }
}
