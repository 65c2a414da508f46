//! A disk in memory.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use blockio::Buf;
use image::{Error, Kind, Result};

use crate::export::{Disk, Stretch};

/// A disk in memory. Each operation lets others run as often as the next number of a sequence says, so
/// that they end in another order than they began.
pub struct MemDisk {
    /// What it holds.
    pub bytes: RefCell<Vec<u8>>,
    /// What of it is what; the rest is data.
    pub marks: RefCell<Vec<(Range<u64>, Stretch)>>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Operations that touch this range fail with this kind.
    pub bad: RefCell<Option<(Range<u64>, Kind)>>,
    /// Operations that touch this range wait until it is taken away.
    pub held: RefCell<Option<Range<u64>>>,
    /// The state of the sequence; zero for a disk that is always ready at once.
    pub delays: Cell<u64>,
    /// How often [`Disk::flush`] was called.
    pub flushes: Cell<u64>,
    /// What [`Disk::zero`] and [`Disk::discard`] were asked, with `give_back`.
    pub zeroed: RefCell<Vec<(Range<u64>, Option<bool>)>>,
}

impl MemDisk {
    /// A disk with these bytes.
    pub fn new(bytes: Vec<u8>) -> MemDisk {
        MemDisk {
            bytes: bytes.into(),
            marks: RefCell::default(),
            read_only: false,
            bad: RefCell::default(),
            held: RefCell::default(),
            delays: Cell::new(0),
            flushes: Cell::new(0),
            zeroed: RefCell::default(),
        }
    }

    async fn turn(&self, range: Range<u64>) -> Result<()> {
        let mut state = self.delays.get();
        if state != 0 {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            self.delays.set(state);
            for _ in 0..state % 8 {
                tokio::task::yield_now().await;
            }
        }
        let touches = |other: &Range<u64>| range.start < other.end && other.start < range.end;
        while self.held.borrow().as_ref().is_some_and(touches) {
            tokio::task::yield_now().await;
        }
        match &*self.bad.borrow() {
            Some((bad, kind)) if touches(bad) => Err(Error::new(*kind, "a bad spot")),
            _ => Ok(()),
        }
    }

    fn fill(&self, range: &Range<u64>) {
        self.bytes.borrow_mut()[range.start as usize..range.end as usize].fill(0);
    }

    /// What is written is data.
    fn mark_data(&self, range: &Range<u64>) {
        let mut marks = self.marks.borrow_mut();
        let cut = |(marked, stretch): (Range<u64>, Stretch)| {
            let before = marked.start..marked.end.min(range.start);
            let after = marked.start.max(range.end)..marked.end;
            [(before, stretch), (after, stretch)]
        };
        *marks = std::mem::take(&mut *marks)
            .into_iter()
            .flat_map(cut)
            .filter(|(marked, _)| !marked.is_empty())
            .collect();
    }
}

impl Disk for MemDisk {
    fn size(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }

    fn sector(&self) -> u32 {
        512
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    async fn read(&self, at: u64, mut buf: Buf) -> (Result<()>, Buf) {
        let result = self.turn(at..at + buf.len() as u64).await;
        if result.is_ok() {
            let len = buf.len();
            buf.copy_from_slice(&self.bytes.borrow()[at as usize..][..len]);
        }
        (result, buf)
    }

    async fn write(&self, at: u64, buf: Buf) -> (Result<()>, Buf) {
        let range = at..at + buf.len() as u64;
        let result = self.turn(range.clone()).await;
        if result.is_ok() {
            self.bytes.borrow_mut()[at as usize..][..buf.len()].copy_from_slice(&buf);
            self.mark_data(&range);
        }
        (result, buf)
    }

    async fn zero(&self, range: Range<u64>, give_back: bool) -> Result<()> {
        self.turn(range.clone()).await?;
        self.fill(&range);
        self.mark_data(&range);
        self.zeroed.borrow_mut().push((range, Some(give_back)));
        Ok(())
    }

    fn zero_is_fast(&self, give_back: bool) -> bool {
        give_back
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.turn(range.clone()).await?;
        self.fill(&range);
        self.mark_data(&range);
        self.zeroed.borrow_mut().push((range, None));
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        self.turn(0..0).await?;
        self.flushes.set(self.flushes.get() + 1);
        Ok(())
    }

    fn stretches(&self, range: Range<u64>, most: usize) -> Result<Vec<(u64, Stretch)>> {
        let marks = self.marks.borrow();
        let mut found: Vec<(u64, Stretch)> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let here = marks.iter().find(|(marked, _)| marked.contains(&at));
            let (end, stretch) = match here {
                Some((marked, stretch)) => (marked.end, *stretch),
                None => {
                    let starts = marks.iter().map(|(marked, _)| marked.start);
                    (starts.filter(|start| *start > at).min().unwrap_or(range.end), Stretch::Data)
                }
            };
            let len = end.min(range.end) - at;
            let full = found.len() == most;
            match found.last_mut() {
                Some((last, same)) if *same == stretch => *last += len,
                _ if full => break,
                _ => found.push((len, stretch)),
            }
            at += len;
        }
        Ok(found)
    }
}
