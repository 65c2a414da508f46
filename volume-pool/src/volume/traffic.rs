//! Writes of chunks that are not here yet, fills and repairs: of one chunk there are many writes at a time, or
//! one fill. Writes of chunks that are here take no turn, but wait for a repair. All writes wait while a point in
//! time is being fixed.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use tokio::sync::Notify;

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    now: RefCell<Now>,
    /// Writes that have begun to change bytes.
    under_way: Cell<usize>,
    /// None begins.
    held: Cell<bool>,
    /// Something has ended.
    ended: Notify,
}

/// A write that changes bytes; ends when dropped.
#[derive(Debug)]
pub(super) struct UnderWay<'a>(&'a Traffic);

/// No write changes bytes, until dropped.
#[derive(Debug)]
pub(super) struct Held<'a>(&'a Traffic);

#[derive(Debug, Default)]
struct Now {
    /// Chunks that each write touches.
    writes: Vec<Range<u64>>,
    /// Chunks that each fill touches.
    fills: Vec<Range<u64>>,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// A write under way; ends when dropped.
#[derive(Debug)]
pub(super) struct WriteTurn<'a> {
    traffic: &'a Traffic,
    chunks: Range<u64>,
}

/// A fill under way; ends when dropped.
#[derive(Debug)]
pub(super) struct FillTurn<'a> {
    traffic: &'a Traffic,
    chunks: Range<u64>,
}

impl FillTurn<'_> {
    /// Takes the chunks that follow, up to one of which something else is under way: it waits for nobody, so no two can
    /// wait for each other. These are its chunks now.
    pub(super) fn grow(&mut self, end: u64) -> Range<u64> {
        let mut now = self.traffic.now.borrow_mut();
        let others = now.writes.iter().chain(&now.fills).map(|chunks| chunks.start);
        let next = others.filter(|start| *start >= self.chunks.end).min();
        let end = next.unwrap_or(u64::MAX).min(end).max(self.chunks.end);
        let chunks = self.chunks.start..end;
        now.replace_fill(&self.chunks, Some(chunks.clone()));
        self.chunks = chunks.clone();
        chunks
    }
}

impl Now {
    fn replace_fill(&mut self, was: &Range<u64>, is: Option<Range<u64>>) {
        if let Some(at) = self.fills.iter().position(|chunks| chunks == was) {
            self.fills.swap_remove(at);
        }
        self.fills.extend(is);
    }
}

impl Traffic {
    /// Begins to change bytes, unless that is held up.
    pub(super) fn try_begin(&self) -> Option<UnderWay<'_>> {
        if self.held.get() {
            return None;
        }
        self.under_way.set(self.under_way.get() + 1);
        Some(UnderWay(self))
    }

    /// Whether no write changes bytes.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.under_way.get() == 0
    }

    /// Lets no write begin, and waits until those that have begun have ended.
    pub(super) async fn hold(&self) -> Held<'_> {
        let held = self.turn(|| (!self.held.replace(true)).then_some(Held(self))).await;
        self.turn(|| (self.under_way.get() == 0).then_some(())).await;
        held
    }

    /// Begins a write, unless one of its chunks is being filled.
    pub(super) fn try_write(&self, chunks: Range<u64>) -> Option<WriteTurn<'_>> {
        if self.fills_any(&chunks) {
            return None;
        }
        self.now.borrow_mut().writes.push(chunks.clone());
        Some(WriteTurn { traffic: self, chunks })
    }

    /// Whether one of these chunks is being filled.
    pub(super) fn fills_any(&self, chunks: &Range<u64>) -> bool {
        self.now.borrow().fills.iter().any(|filled| overlap(filled, chunks))
    }

    /// Begins a fill, unless its chunk is being written or filled.
    pub(super) fn try_fill(&self, chunk: u64) -> Option<FillTurn<'_>> {
        let mut now = self.now.borrow_mut();
        if now.fills.iter().chain(&now.writes).any(|chunks| chunks.contains(&chunk)) {
            return None;
        }
        let chunks = chunk..chunk + 1;
        now.fills.push(chunks.clone());
        Some(FillTurn { traffic: self, chunks })
    }

    /// Tries again each time something has ended, until there is an answer.
    pub(super) async fn turn<T>(&self, mut attempt: impl FnMut() -> Option<T>) -> T {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if let Some(turn) = attempt() {
                return turn;
            }
            ended.await;
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let left = self.0.under_way.get() - 1;
        self.0.under_way.set(left);
        if left == 0 && self.0.held.get() {
            self.0.ended.notify_waiters();
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.set(false);
        self.0.ended.notify_waiters();
    }
}

impl Drop for WriteTurn<'_> {
    fn drop(&mut self) {
        let mut now = self.traffic.now.borrow_mut();
        if let Some(at) = now.writes.iter().position(|chunks| *chunks == self.chunks) {
            now.writes.swap_remove(at);
        }
        self.traffic.ended.notify_waiters();
    }
}

impl Drop for FillTurn<'_> {
    fn drop(&mut self) {
        self.traffic.now.borrow_mut().replace_fill(&self.chunks, None);
        self.traffic.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fill_grows_up_to_what_else_is_under_way_and_no_further() {
        let traffic = Traffic::default();
        let mut fill = traffic.try_fill(4).unwrap();
        let (write, other) = (traffic.try_write(8..9).unwrap(), traffic.try_fill(12).unwrap());
        assert_eq!(fill.grow(6), 4..6);
        assert!(traffic.try_write(5..7).is_none() && traffic.try_fill(5).is_none());
        assert_eq!(fill.grow(100), 4..8);
        drop(write);
        assert_eq!(fill.grow(100), 4..12);
        drop(other);
        assert_eq!(fill.grow(3), 4..12, "it gives nothing back");
        drop(fill);
        assert!(traffic.try_write(0..100).is_some() && !traffic.fills_any(&(0..100)));
    }
}
