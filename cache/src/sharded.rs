//! State that all cores share, cut into pieces so that they seldom meet.
//!
//! Every lock of this crate is held for a few map operations and never across an `await`. A thread
//! that panicked under one left maps that are each consistent, so poisoning is ignored.

use std::sync::{Mutex, MutexGuard, PoisonError};

use image::Digest;

/// `T`, in a power of two of pieces; a digest says which.
pub(crate) struct Sharded<T> {
    shards: Box<[Mutex<T>]>,
}

impl<T> Sharded<T> {
    /// `count` (a power of two, at most 256) pieces.
    pub(crate) fn new(count: usize, make: impl Fn() -> T) -> Self {
        assert!(count.is_power_of_two() && count <= 256, "{count} shards");
        Self { shards: (0..count).map(|_| Mutex::new(make())).collect() }
    }

    /// Locks the piece that a digest falls into.
    pub(crate) fn of(&self, digest: &Digest) -> MutexGuard<'_, T> {
        // The last byte: the maps inside hash the whole digest or its front.
        lock(&self.shards[usize::from(digest.0[31]) & (self.shards.len() - 1)])
    }

    /// Locks each piece in turn.
    pub(crate) fn each(&self, f: impl FnMut(MutexGuard<'_, T>)) {
        self.shards.iter().map(lock).for_each(f);
    }
}

/// Locks, whatever happened to others who did.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
