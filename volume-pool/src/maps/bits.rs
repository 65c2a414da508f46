//! A bitmap that takes little memory where nearly all is clear and none where all is set, and knows which of
//! its pages have changed since they were last written down.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

/// Words of a page.
pub(crate) const WORDS: usize = 63;
/// Bits of a page: with its head it fills one 512-byte sector, which a disk writes whole or not at all.
pub(crate) const PAGE_BITS: u64 = WORDS as u64 * 64;

/// The bits of one page.
pub(crate) type Words = [u64; WORDS];

#[derive(Clone, Debug)]
enum Page {
    Clear,
    Few(Box<Few>),
    Mixed(Box<Mixed>),
    Set,
}

/// The most set bits that are listed: with their count they fill 64 bytes, an eighth of what a mixed page takes.
const FEW: usize = 31;

/// The set bits of a page, in any order.
#[derive(Clone, Debug, Default)]
struct Few {
    count: u16,
    bits: [u16; FEW],
}

#[derive(Clone, Debug)]
struct Mixed {
    words: Words,
    set: u32,
}

/// Bits `0..len`. All clear at first.
#[derive(Clone, Debug)]
pub(crate) struct Bits {
    len: u64,
    set: u64,
    pages: Vec<Page>,
    dirty: BTreeSet<u32>,
}

/// The part of a range that lies in one page.
struct Part {
    page: usize,
    /// Within the page.
    bits: Range<u32>,
}

/// Cuts a range at page boundaries.
fn parts(range: Range<u64>) -> impl Iterator<Item = Part> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let page = at / PAGE_BITS;
        let end = ((page + 1) * PAGE_BITS).min(range.end);
        let part = (at < range.end).then(|| Part {
            page: page as usize,
            bits: (at % PAGE_BITS) as u32..(end - page * PAGE_BITS) as u32,
        });
        at = end;
        part
    })
}

/// Word number and mask of each word that a range within a page touches.
fn masks(bits: Range<u32>) -> impl Iterator<Item = (usize, u64)> {
    let words = bits.start / 64..bits.end.div_ceil(64);
    words.map(move |word| {
        let from = bits.start.max(word * 64) - word * 64;
        let to = bits.end.min(word * 64 + 64) - word * 64;
        (word as usize, (u64::MAX >> (64 - (to - from))) << from)
    })
}

impl Bits {
    pub(crate) fn new(len: u64) -> Self {
        let mut bits = Self { len: 0, set: 0, pages: Vec::new(), dirty: BTreeSet::new() };
        bits.grow(len);
        bits
    }

    /// Adds clear bits at the end.
    pub(crate) fn grow(&mut self, len: u64) {
        assert!(len >= self.len, "a map only grows");
        self.len = len;
        self.pages.resize(len.div_ceil(PAGE_BITS) as usize, Page::Clear);
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// How many are set.
    pub(crate) fn count(&self) -> u64 {
        self.set
    }

    #[cfg(test)]
    pub(crate) fn get(&self, bit: u64) -> bool {
        self.all(bit..bit + 1)
    }

    /// Whether every bit of a range is set.
    pub(crate) fn all(&self, range: Range<u64>) -> bool {
        debug_assert!(range.end <= self.len);
        parts(range).all(|part| match &self.pages[part.page] {
            Page::Clear => false,
            Page::Set => true,
            page => {
                let words = page.words();
                masks(part.bits).all(|(w, mask)| words[w] & mask == mask)
            }
        })
    }

    /// Sets every bit of a range; whether any was clear.
    pub(crate) fn set(&mut self, range: Range<u64>) -> bool {
        debug_assert!(range.end <= self.len);
        let before = self.set;
        for part in parts(range) {
            self.set_part(part);
        }
        self.set != before
    }

    fn set_part(&mut self, Part { page: number, bits }: Part) {
        let page = &mut self.pages[number];
        let before = page.count();
        page.set(bits);
        let added = page.count() - before;
        if added > 0 {
            self.set += u64::from(added);
            self.dirty.insert(number as u32);
        }
    }

    /// The first clear bit at or after `from`, up to `end`.
    pub(crate) fn next_clear(&self, from: u64, end: u64) -> Option<u64> {
        self.next(from, end, |word| !word)
    }

    /// The first set bit at or after `from`, up to `end`.
    pub(crate) fn next_set(&self, from: u64, end: u64) -> Option<u64> {
        self.next(from, end, |word| word)
    }

    fn next(&self, from: u64, end: u64, wanted: impl Fn(u64) -> u64) -> Option<u64> {
        parts(from..end.min(self.len)).find_map(|part| {
            let start = part.page as u64 * PAGE_BITS;
            let first = start + u64::from(part.bits.start);
            let uniform = |word| (wanted(word) != 0).then_some(first);
            match &self.pages[part.page] {
                Page::Clear => uniform(0),
                Page::Set => uniform(u64::MAX),
                page => {
                    let words = page.words();
                    masks(part.bits).find_map(|(w, mask)| {
                        let found = wanted(words[w]) & mask;
                        let bit = w as u64 * 64 + u64::from(found.trailing_zeros());
                        (found != 0).then_some(start + bit)
                    })
                }
            }
        })
    }

    /// The stretches of `range` whose bits are clear.
    pub(crate) fn clear_runs(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let start = self.next_clear(at, range.end)?;
            at = self.next_set(start, range.end).unwrap_or(range.end);
            Some(start..at)
        })
    }

    /// Forgets what a page says, and that it may have to be written down. For pages that nobody asks
    /// any more.
    pub(crate) fn forget(&mut self, page: u32) {
        let was = std::mem::replace(&mut self.pages[page as usize], Page::Clear);
        self.set -= u64::from(was.count());
        self.dirty.remove(&page);
    }

    /// Clears every bit. Those that were set have to be written down.
    pub(crate) fn clear_all(&mut self) {
        for page in 0..self.pages.len() as u32 {
            if !matches!(self.pages[page as usize], Page::Clear) {
                self.forget(page);
                self.dirty.insert(page);
            }
        }
    }

    /// Sets what is set in another map of the same length.
    pub(crate) fn merge(&mut self, other: &Bits) {
        let mut at = 0;
        while let Some(start) = other.next_set(at, other.len) {
            at = other.next_clear(start, other.len).unwrap_or(other.len);
            self.set(start..at);
        }
    }

    #[cfg(test)]
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// The pages that have changed since this was last called: what they say now.
    pub(crate) fn take_dirty(&mut self) -> Vec<(u32, Words)> {
        let dirty = std::mem::take(&mut self.dirty);
        let words = |page: u32| self.pages[page as usize].words().into_owned();
        dirty.into_iter().map(|page| (page, words(page))).collect()
    }

    /// Nothing of it needs to be written down.
    pub(crate) fn forget_dirty(&mut self) {
        self.dirty.clear();
    }

    /// A page has not been written down after all.
    pub(crate) fn mark_dirty(&mut self, page: u32) {
        self.dirty.insert(page);
    }

    /// The pages of which `other` says something have to be written down anew.
    pub(crate) fn mark_dirty_like(&mut self, other: &Bits) {
        let said = other.pages.iter().enumerate().filter(|(_, page)| !matches!(page, Page::Clear));
        self.dirty.extend(said.map(|(number, _)| number as u32));
    }

    /// Adds the bits of a page as it was written down. Bits past the end are left out.
    pub(crate) fn load(&mut self, page: u32, words: &Words) {
        let dirty = self.dirty.contains(&page);
        for (w, word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
            let start = u64::from(page) * PAGE_BITS + w as u64 * 64;
            let mut left = *word;
            while left != 0 {
                let from = left.trailing_zeros();
                let run = (left >> from).trailing_ones();
                let end = (start + u64::from(from + run)).min(self.len);
                self.set((start + u64::from(from)).min(end)..end);
                left = left
                    .checked_shr(from + run)
                    .map_or(0, |l| l.checked_shl(from + run).unwrap_or(0));
            }
        }
        if !dirty {
            self.dirty.remove(&page);
        }
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory(&self) -> usize {
        let of = |page: &Page| match page {
            Page::Clear | Page::Set => 0,
            Page::Few(_) => size_of::<Few>(),
            Page::Mixed(_) => size_of::<Mixed>(),
        };
        self.pages.capacity() * size_of::<Page>() + self.pages.iter().map(of).sum::<usize>()
    }
}

impl Page {
    /// How many bits are set.
    fn count(&self) -> u32 {
        match self {
            Self::Clear => 0,
            Self::Few(few) => u32::from(few.count),
            Self::Mixed(mixed) => mixed.set,
            Self::Set => PAGE_BITS as u32,
        }
    }

    fn words(&self) -> Cow<'_, Words> {
        match self {
            Self::Clear => Cow::Owned([0; WORDS]),
            Self::Few(few) => Cow::Owned(few.words()),
            Self::Mixed(mixed) => Cow::Borrowed(&mixed.words),
            Self::Set => Cow::Owned([u64::MAX; WORDS]),
        }
    }

    fn set(&mut self, bits: Range<u32>) {
        match self {
            Self::Set => {}
            _ if bits.len() as u64 == PAGE_BITS => *self = Self::Set,
            Self::Clear if bits.len() <= FEW => {
                let mut few = Box::<Few>::default();
                few.set(bits);
                *self = Self::Few(few);
            }
            Self::Few(few) if usize::from(few.count) + bits.len() <= FEW => few.set(bits),
            Self::Clear | Self::Few(_) => {
                let (words, set) = (self.words().into_owned(), self.count());
                *self = Self::Mixed(Box::new(Mixed { words, set }));
                self.set(bits);
            }
            Self::Mixed(mixed) => {
                mixed.set(bits);
                if u64::from(mixed.set) == PAGE_BITS {
                    *self = Self::Set;
                }
            }
        }
    }
}

impl Few {
    fn words(&self) -> Words {
        let mut words = [0; WORDS];
        for bit in &self.bits[..usize::from(self.count)] {
            words[usize::from(bit / 64)] |= 1 << (bit % 64);
        }
        words
    }

    /// Sets bits, for which there must be room.
    fn set(&mut self, bits: Range<u32>) {
        for bit in bits.map(|bit| bit as u16) {
            if !self.bits[..usize::from(self.count)].contains(&bit) {
                self.bits[usize::from(self.count)] = bit;
                self.count += 1;
            }
        }
    }
}

impl Mixed {
    fn set(&mut self, bits: Range<u32>) {
        for (word, mask) in masks(bits) {
            self.set += (mask & !self.words[word]).count_ones();
            self.words[word] |= mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEN: u64 = 3 * PAGE_BITS + 777;

    fn range() -> impl Strategy<Value = Range<u64>> {
        let short = (0..LEN, 1..40u64).prop_map(|(at, len)| at..(at + len).min(LEN));
        let edge = prop_oneof![
            0..=LEN,
            (0..=3u64, 0..3u64).prop_map(|(p, o)| (p * PAGE_BITS + o).saturating_sub(1)),
        ];
        let long = (edge.clone(), edge).prop_map(|(a, b)| a.min(b)..a.max(b));
        prop_oneof![long, short]
    }

    proptest! {
        #[test]
        fn behaves_like_a_list_of_bools(sets in prop::collection::vec(range(), 0..12), asked in range(), page in 0..4u32) {
            let (mut bits, mut model) = (Bits::new(LEN), vec![false; LEN as usize]);
            for set in sets {
                let part = &mut model[set.start as usize..set.end as usize];
                prop_assert_eq!(bits.set(set), part.contains(&false));
                part.fill(true);
            }
            let model_at = |r: Range<u64>| &model[r.start as usize..r.end as usize];
            prop_assert_eq!(bits.count(), model.iter().filter(|b| **b).count() as u64);
            prop_assert_eq!(bits.all(asked.clone()), !model_at(asked.clone()).contains(&false));
            let first = |what| model_at(asked.clone()).iter().position(|b| *b == what).map(|i| asked.start + i as u64);
            prop_assert_eq!(bits.next_clear(asked.start, asked.end), first(false));
            prop_assert_eq!(bits.next_set(asked.start, asked.end), first(true));
            let runs: Vec<_> = bits.clear_runs(asked.clone()).collect();
            let clear: u64 = runs.iter().map(|r| r.end - r.start).sum();
            prop_assert_eq!(clear, model_at(asked.clone()).iter().filter(|b| !**b).count() as u64);
            prop_assert!(runs.iter().all(|r| !model_at(r.clone()).contains(&true)));

            // What is written down makes the same map again.
            let mut again = Bits::new(LEN);
            bits.clone().take_dirty().iter().for_each(|(page, words)| again.load(*page, words));
            prop_assert!(!again.is_dirty());
            prop_assert_eq!(again.count(), bits.count());
            prop_assert!((0..LEN).all(|b| again.get(b) == model[b as usize]));

            let mut merged = Bits::new(LEN);
            merged.set(asked.clone());
            merged.merge(&bits);
            prop_assert!((0..LEN).all(|b| merged.get(b) == (model[b as usize] || asked.contains(&b))));
            bits.forget(page);
            prop_assert!((0..LEN).all(|b| bits.get(b) == (model[b as usize] && b / PAGE_BITS != u64::from(page))));
            bits.clear_all();
            prop_assert_eq!((bits.count(), bits.next_set(0, LEN)), (0, None));
        }
    }

    #[test]
    fn what_is_nearly_clear_takes_little_memory() {
        let mut bits = Bits::new(1 << 28);
        let empty = bits.memory();
        for block in (0..1 << 28).step_by(500) {
            bits.set(block..block + 1);
        }
        let pages = (1usize << 28).div_ceil(PAGE_BITS as usize);
        assert_eq!(size_of::<Few>(), 64);
        assert_eq!(bits.memory(), empty + pages * 64);
        assert!(bits.all(500..501) && !bits.all(499..501));
        assert_eq!((bits.next_set(501, 2000), bits.next_clear(500, 502)), (Some(1000), Some(501)));
    }

    #[test]
    fn what_is_uniform_takes_no_memory() {
        let mut bits = Bits::new(1 << 28);
        let empty = bits.memory();
        assert!(bits.set(0..1 << 28));
        assert!(!bits.set(5..9));
        assert_eq!(bits.count(), 1 << 28);
        assert!(bits.memory() <= empty + size_of::<Mixed>());
        assert_eq!(bits.take_dirty().len(), (1u64 << 28).div_ceil(PAGE_BITS) as usize);
        assert!(!bits.is_dirty());
    }
}
