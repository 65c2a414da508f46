//! The bytes of one file in memory: sparse, and cheap to copy.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Bytes per page: what a hole is a multiple of.
const PAGE: u64 = 4096;

type Page = [u8; PAGE as usize];

/// A length and the pages that were ever written; clones share them until one is changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages {
    len: u64,
    pages: BTreeMap<u64, Arc<Page>>,
}

impl Pages {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Reads up to the end; returns how much.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let len = (buf.len() as u64).min(self.len.saturating_sub(offset));
        for (index, within, part) in spans(offset..offset + len) {
            let to = &mut buf[part];
            match self.pages.get(&index) {
                Some(page) => to.copy_from_slice(&page[within]),
                None => to.fill(0),
            }
        }
        len as usize
    }

    /// Writes, and grows the file if need be.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        for (index, within, part) in spans(offset..end) {
            Arc::make_mut(self.page(index))[within].copy_from_slice(&data[part]);
        }
        self.len = self.len.max(end);
    }

    /// Makes `range` zero; whole pages of it become holes.
    pub(super) fn zero(&mut self, range: Range<u64>) {
        for (index, within, _) in spans(range) {
            if within.len() as u64 == PAGE {
                self.pages.remove(&index);
            } else if let Some(page) = self.pages.get_mut(&index) {
                Arc::make_mut(page)[within].fill(0);
            }
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.pages.split_off(&len.div_ceil(PAGE));
            let page_end = len.next_multiple_of(PAGE);
            self.zero(len..page_end);
        }
        self.len = len;
    }

    /// The first page at or after `from` that was written, from `from` on.
    pub(super) fn next_data(&self, from: u64) -> Option<u64> {
        let (index, _) = self.pages.range(from / PAGE..).next()?;
        let start = from.max(index * PAGE);
        (start < self.len).then_some(start)
    }

    /// The first page at or after `from` that was not written, or the end.
    pub(super) fn next_hole(&self, from: u64) -> u64 {
        let mut index = from / PAGE;
        while self.pages.contains_key(&index) {
            index += 1;
        }
        (index * PAGE).max(from).min(self.len)
    }

    fn page(&mut self, index: u64) -> &mut Arc<Page> {
        self.pages.entry(index).or_insert_with(|| Arc::new([0; PAGE as usize]))
    }
}

/// Cuts a range at page boundaries: page number, range within the page, range within the whole.
fn spans(range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let (index, start) = (at / PAGE, at % PAGE);
        let len = (PAGE - start).min(range.end - at);
        let done = (at - range.start) as usize;
        at += len;
        Some((index, start as usize..(start + len) as usize, done..done + len as usize))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_edges() {
        let mut pages = Pages::default();
        pages.write(5000, &[7; 8000]);
        assert_eq!(pages.len(), 13000);
        assert_eq!(pages.next_data(0), Some(4096));
        assert_eq!(pages.next_hole(4096), 13000);
        pages.zero(6000..9000);
        pages.zero(8192..12288);
        assert_eq!(pages.next_hole(4096), 8192);
        assert_eq!(pages.next_data(8192), Some(12288));
        let mut buf = [9; 3];
        assert_eq!(pages.read(&mut buf, 5999), 3);
        assert_eq!(buf, [7, 0, 0]);
        assert_eq!(pages.read(&mut buf, 12999), 1);
        assert_eq!(pages.read(&mut buf, 20000), 0);
    }

    #[test]
    fn what_is_cut_off_does_not_come_back() {
        let mut pages = Pages::default();
        pages.write(0, &[7; 9000]);
        pages.set_len(100);
        pages.set_len(9000);
        let mut buf = [1; 9000];
        pages.read(&mut buf, 0);
        assert!(buf[..100].iter().all(|b| *b == 7) && buf[100..].iter().all(|b| *b == 0));
        assert_eq!(pages.next_data(4096), None);
    }
}
