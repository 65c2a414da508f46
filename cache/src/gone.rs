//! Remembering for a moment what does not exist, so that a fleet that asks for it does not all ask
//! the store.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use image::{Digest, Error};

use crate::sharded::lock;
use crate::shared::Clock;

/// More than this many are not remembered.
const MAX: usize = 4096;

/// What was not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Absent {
    /// An image's manifest.
    Manifest(Digest),
    /// A section's table.
    Table(Digest, u32),
    /// A chunk: of this image, as what one image lost another may have.
    Chunk(Digest, u32, u32),
}

/// What was not there lately.
pub(crate) struct Gone {
    clock: Clock,
    keep: Duration,
    absent: Mutex<HashMap<Absent, (Duration, Error)>>,
    /// Whether there may be anything in `absent`: mostly there is not, and every miss asks.
    some: AtomicBool,
}

impl Gone {
    /// Remembers for `keep`.
    pub(crate) fn new(clock: Clock, keep: Duration) -> Self {
        Self { clock, keep, absent: Mutex::default(), some: AtomicBool::new(false) }
    }

    /// The error with which something was not there, if that is recent.
    pub(crate) fn find(&self, what: &Absent) -> Option<Error> {
        if !self.some.load(Ordering::Acquire) {
            return None;
        }
        let mut absent = lock(&self.absent);
        let (until, error) = absent.get(what)?;
        if (self.clock)() < *until {
            return Some(error.clone());
        }
        absent.remove(what);
        self.some.store(!absent.is_empty(), Ordering::Release);
        None
    }

    /// Remembers that something was not there.
    pub(crate) fn note(&self, what: Absent, error: &Error) {
        let now = (self.clock)();
        let mut absent = lock(&self.absent);
        if absent.len() >= MAX {
            absent.retain(|_, (until, _)| now < *until);
        }
        if absent.len() < MAX {
            absent.insert(what, (now + self.keep, error.clone()));
            self.some.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Kind;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn is_remembered_for_a_moment_and_bounded() {
        let now = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&now);
        let clock: Clock = Arc::new(move || Duration::from_millis(clock.load(Ordering::Relaxed)));
        let gone = Gone::new(clock, Duration::from_millis(1000));
        let image = Digest::of_chunk(b"image");
        let error = Error::new(Kind::Gone, "no such image");
        gone.note(Absent::Manifest(image), &error);
        assert_eq!(gone.find(&Absent::Manifest(image)).unwrap().kind(), Kind::Gone);
        assert!(gone.find(&Absent::Table(image, 0)).is_none());
        now.store(1000, Ordering::Relaxed);
        assert!(gone.find(&Absent::Manifest(image)).is_none());
        for section in 0..MAX as u32 + 10 {
            gone.note(Absent::Table(image, section), &error);
        }
        assert_eq!(lock(&gone.absent).len(), MAX);
        now.store(5000, Ordering::Relaxed);
        gone.note(Absent::Manifest(image), &error);
        assert_eq!(lock(&gone.absent).len(), 1);
    }
}
