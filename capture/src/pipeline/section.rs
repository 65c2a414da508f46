//! A section while its chunks are being hashed, and when they have been.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockio::Buf;
use image::{Digest, Domain, SectionTable, is_zero};

/// A section that pieces are still added to, by several threads.
///
/// The reader holds one reference while it reads the section, and every piece on its way to be
/// hashed holds one: who lets go of the last one [finishes](Open::release) the section.
pub(super) struct Open {
    index: u32,
    chunk_len: usize,
    parts: Mutex<Parts>,
}

#[derive(Default)]
struct Parts {
    digests: Vec<Digest>,
    held: Vec<Held>,
}

/// A chunk that is not zeros, in memory until it is known whether it must be sent.
pub(super) struct Held {
    /// Its number in the section.
    pub(super) chunk: u32,
    /// Its bytes.
    pub(super) plain: Plain,
}

/// Part of a shared buffer, which is free when all of its parts are.
pub(super) struct Plain {
    piece: Arc<Buf>,
    range: Range<usize>,
}

impl Plain {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.piece[self.range.clone()]
    }
}

/// A section whose digests are all known.
pub(super) struct Hashed {
    /// Its number.
    pub(super) index: u32,
    /// Its digests.
    pub(super) table: SectionTable,
    /// Those of its chunks that are not zeros and are kept, in no order.
    pub(super) held: Vec<Held>,
}

impl Open {
    pub(super) fn new(index: u32, chunk_len: usize) -> Self {
        Self { index, chunk_len, parts: Mutex::default() }
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// Hashes a piece that begins at a chunk. Chunks of zeros are let go of at once, and the others if they need not be
    /// kept.
    pub(super) fn hash(&self, first_chunk: u32, piece: Buf, keep: bool) {
        let digest = |plain| if is_zero(plain) { Digest::ZERO } else { Digest::of_chunk(plain) };
        let digests: Vec<_> = piece.chunks(self.chunk_len).map(digest).collect();
        let piece = Arc::new(piece);
        let mut parts = self.lock();
        for (chunk, digest) in (first_chunk..).zip(digests) {
            if digest.is_zero() {
                continue;
            }
            let start = (chunk - first_chunk) as usize * self.chunk_len;
            let range = start..(start + self.chunk_len).min(piece.len());
            parts.set(chunk, digest);
            if keep {
                parts.held.push(Held { chunk, plain: Plain { piece: Arc::clone(&piece), range } });
            }
        }
    }

    /// Lets go of a reference; the last one gets the section.
    pub(super) fn release(self: Arc<Self>, domain: Domain) -> Option<Hashed> {
        let this = Arc::into_inner(self)?;
        let parts = this.parts.into_inner().unwrap_or_else(PoisonError::into_inner);
        let table = SectionTable::new(domain, parts.digests);
        Some(Hashed { index: this.index, table, held: parts.held })
    }

    /// Says how many chunks there are, which the reader of a stream knows only at the end.
    pub(super) fn set_chunks(&self, chunks: u32) {
        let mut parts = self.lock();
        debug_assert!(parts.digests.len() <= chunks as usize);
        parts.digests.resize(chunks as usize, Digest::ZERO);
    }

    fn lock(&self) -> MutexGuard<'_, Parts> {
        // Whoever panicked here ends the import.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Parts {
    fn set(&mut self, chunk: u32, digest: Digest) {
        let at = chunk as usize;
        if self.digests.len() <= at {
            self.digests.resize(at + 1, Digest::ZERO);
        }
        self.digests[at] = digest;
    }
}
