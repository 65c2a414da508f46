//! A read cut to pieces: what is known to be zeros is not read, and the rest goes in buffers.

use std::ops::Range;

use crate::export::{Disk, Stretch};

/// Reads shorter than this are read without asking what is a hole, and a hole shorter than this is read
/// as data, in bytes: another chunk of a reply costs as much as some zeros.
const SPARSE: u64 = 32 << 10;
/// Stretches that are asked for at a time.
const AT_ONCE: usize = 64;

/// A read that is being begun.
pub(super) struct Cut {
    request: usize,
    range: Range<u64>,
    at: u64,
    purpose: Purpose,
    /// Until where it is known what to do, and that.
    known: (u64, Do),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// All of it is read.
    Plain,
    /// Holes are told, not read.
    Sparse,
    /// What is absent is read, and not told.
    Cache,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Do {
    Read,
    Hole,
    Nothing,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Bytes to read.
    Read { at: u64, len: usize, last: bool },
    /// Zeros to tell.
    Hole { at: u64, len: u32, last: bool },
    /// So many bytes with nothing to do.
    Nothing(u64),
}

impl Cut {
    /// A read of `range`, at most 4 GiB, whose holes may be told as such if it is `sparse`.
    pub fn read(request: usize, range: Range<u64>, sparse: bool) -> Cut {
        let sparse = sparse && range.end - range.start >= SPARSE;
        Cut::new(request, range, if sparse { Purpose::Sparse } else { Purpose::Plain })
    }

    /// Fetching what is absent of `range`.
    pub fn cache(request: usize, range: Range<u64>) -> Cut {
        Cut::new(request, range, Purpose::Cache)
    }

    fn new(request: usize, range: Range<u64>, purpose: Purpose) -> Cut {
        let at = range.start;
        let until = if purpose == Purpose::Plain { range.end } else { at };
        Cut { request, range, at, purpose, known: (until, Do::Read) }
    }

    /// The request it belongs to.
    pub fn request(&self) -> usize {
        self.request
    }

    /// The length of all of it, in bytes.
    pub fn len(&self) -> u32 {
        (self.range.end - self.range.start) as u32
    }

    /// Whether the piece at `at` is the first of a plain read.
    pub fn is_first(&self, at: u64) -> bool {
        self.purpose == Purpose::Plain && at == self.range.start
    }

    /// Whether all of it was begun.
    pub fn is_done(&self) -> bool {
        self.at == self.range.end
    }

    /// The next piece, of at most `most` bytes to read. It is the same until [`advance`](Self::advance)
    /// was called with its length; there is one unless it [is done](Self::is_done).
    pub fn next<D: Disk>(&mut self, disk: &D, most: usize) -> Piece {
        if self.known.0 <= self.at {
            self.known = self.look(disk);
        }
        let (until, what) = self.known;
        let (at, len) = (self.at, until - self.at);
        match what {
            Do::Read => {
                let len = len.min(most as u64);
                Piece::Read { at, len: len as usize, last: at + len == self.range.end }
            }
            Do::Hole => Piece::Hole { at, len: len as u32, last: until == self.range.end },
            Do::Nothing => Piece::Nothing(len),
        }
    }

    /// The piece that came next was begun.
    pub fn advance(&mut self, len: u64) {
        self.at += len;
    }

    /// What to do from here on, and until where. A disk that cannot tell is read.
    fn look<D: Disk>(&self, disk: &D) -> (u64, Do) {
        let rest = self.at..self.range.end;
        let stretches = disk.stretches(rest.clone(), AT_ONCE).unwrap_or_default();
        let mut known: Option<(u64, Do)> = None;
        let mut at = self.at;
        for (len, stretch) in stretches {
            let what = match (self.purpose, stretch) {
                (Purpose::Sparse, Stretch::Hole) if len >= SPARSE => Do::Hole,
                (Purpose::Cache, Stretch::Hole | Stretch::Data) => Do::Nothing,
                _ => Do::Read,
            };
            at = at.saturating_add(len).min(rest.end);
            match &mut known {
                Some((until, same)) if *same == what => *until = at,
                Some(_) => break,
                None => known = Some((at, what)),
            }
        }
        known.filter(|(until, _)| *until > self.at).unwrap_or((rest.end, Do::Read))
    }
}
