//! What is asked of the disk: one future for each piece of a request.

use std::ops::Range;
use std::rc::Rc;

use image::Result;

use super::memory::{Claim, Lent};
use crate::export::Disk;

/// One piece of work.
pub(super) enum Work {
    Read { at: u64, into: Claim },
    Write { at: u64, from: Lent },
    Zero { range: Range<u64>, give_back: bool },
    Discard { range: Range<u64> },
    Flush,
}

impl Work {
    /// Whether it is for the client alone, so that nothing is lost if it is not done.
    pub fn is_idle(&self) -> bool {
        matches!(self, Work::Read { .. })
    }
}

/// How it went.
pub(super) struct Done {
    /// Which request it was a piece of.
    pub request: usize,
    /// Where the piece begins, in bytes.
    pub at: u64,
    pub result: Result<()>,
    /// What was read.
    pub data: Option<Lent>,
}

/// Does a piece of a request.
pub(super) async fn run<D: Disk>(disk: Rc<D>, request: usize, work: Work) -> Done {
    let done = |at, result| Done { request, at, result, data: None };
    match work {
        Work::Read { at, into } => {
            let Lent { buf, held } = into.buffer().await;
            let (result, buf) = disk.read(at, buf).await;
            Done { request, at, result, data: Some(Lent { buf, held }) }
        }
        Work::Write { at, from: Lent { buf, held } } => {
            let (result, buf) = disk.write(at, buf).await;
            drop((buf, held));
            done(at, result)
        }
        Work::Zero { range, give_back } => done(range.start, disk.zero(range, give_back).await),
        Work::Discard { range } => done(range.start, disk.discard(range).await),
        Work::Flush => done(0, disk.flush().await),
    }
}
