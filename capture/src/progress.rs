//! How far an import has come, for who watches.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that an import keeps and anybody may read. They only rise.
#[derive(Debug, Default)]
pub struct Progress {
    size: AtomicU64,
    position: AtomicU64,
    data: AtomicU64,
    sent_chunks: AtomicU64,
    sent_plain: AtomicU64,
    sent_stored: AtomicU64,
    known_chunks: AtomicU64,
    sealed: AtomicU64,
}

/// What the counters showed at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Size of the disk in bytes; 0 while it is not known.
    pub size: u64,
    /// Bytes of the disk that have been dealt with by the reader, holes among them.
    pub position: u64,
    /// Bytes that were read: those outside holes.
    pub data: u64,
    /// Chunks that were sent.
    pub sent_chunks: u64,
    /// Their plain bytes.
    pub sent_plain: u64,
    /// Their bytes as frames.
    pub sent_stored: u64,
    /// Chunks that the receiver had already.
    pub known_chunks: u64,
    /// Sections that are durable.
    pub sealed: u64,
}

impl Progress {
    /// What the counters show now.
    pub fn stats(&self) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            size: get(&self.size),
            position: get(&self.position),
            data: get(&self.data),
            sent_chunks: get(&self.sent_chunks),
            sent_plain: get(&self.sent_plain),
            sent_stored: get(&self.sent_stored),
            known_chunks: get(&self.known_chunks),
            sealed: get(&self.sealed),
        }
    }

    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed);
    }

    pub(crate) fn reached(&self, position: u64) {
        self.position.fetch_max(position, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, bytes: usize) {
        self.data.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, plain: u64, stored: u64) {
        self.sent_chunks.fetch_add(1, Ordering::Relaxed);
        self.sent_plain.fetch_add(plain, Ordering::Relaxed);
        self.sent_stored.fetch_add(stored, Ordering::Relaxed);
    }

    pub(crate) fn known(&self, chunks: u64) {
        self.known_chunks.fetch_add(chunks, Ordering::Relaxed);
    }

    pub(crate) fn sealed(&self) {
        self.sealed.fetch_add(1, Ordering::Relaxed);
    }
}
