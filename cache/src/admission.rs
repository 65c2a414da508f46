//! Bytes in flight: what is neither in a tier nor in the hands of a reader.
//!
//! Every read takes a place worth one frame before it does anything, and keeps it to its end; when
//! there are no places it waits a little and is then told to come back. A frame that a flight puts
//! into readers' queues is charged once, however many share it, until the last has taken it; what
//! cannot be charged is not queued (see [`crate::mailbox`]). So a flight never waits for memory, and
//! reads and queues together stay within the budget.
//!
//! An eighth is kept for guests, so that background pulls cannot shut them out.

use std::sync::Arc;
use std::time::Duration;

use image::{Error, Kind, Priority, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a reader that found no place is told to wait.
const COME_BACK: Duration = Duration::from_millis(100);
/// The part kept for guests is one over this.
const GUEST_PART: u64 = 8;

/// Bytes of the in-flight budget, given back when dropped.
pub(crate) type Charge = OwnedSemaphorePermit;

/// The in-flight budget of one cache.
pub(crate) struct Admission {
    all: Arc<Semaphore>,
    guests: Arc<Semaphore>,
    patience: Duration,
    budget: u64,
}

impl Admission {
    /// `budget` bytes; a read waits up to `patience` for its place.
    pub(crate) fn new(budget: u64, patience: Duration) -> Self {
        let budget = budget.min(Semaphore::MAX_PERMITS as u64);
        let guests = budget / GUEST_PART;
        let semaphore = |bytes| Arc::new(Semaphore::new(bytes as usize));
        Self { all: semaphore(budget - guests), guests: semaphore(guests), patience, budget }
    }

    /// A place for a read of chunks of `frame_len` bytes.
    pub(crate) async fn enter(&self, frame_len: usize, priority: Priority) -> Result<Charge> {
        let bytes = clamp(frame_len, self.budget - self.budget / GUEST_PART);
        if let Ok(charge) = Arc::clone(&self.all).try_acquire_many_owned(bytes) {
            return Ok(charge);
        }
        if priority == Priority::Guest {
            let bytes = clamp(frame_len, self.budget / GUEST_PART);
            if let Ok(charge) = Arc::clone(&self.guests).try_acquire_many_owned(bytes) {
                return Ok(charge);
            }
        }
        let place = Arc::clone(&self.all).acquire_many_owned(bytes);
        match tokio::time::timeout(self.patience, place).await {
            Ok(charge) => Ok(charge.expect("the semaphore is never closed")),
            Err(_) => {
                let budget = self.budget;
                let why = format!("cache: {budget} bytes in flight are all taken; ask again later");
                Err(Error::new(Kind::Busy(COME_BACK), why))
            }
        }
    }

    /// Room for a frame in readers' queues, if there is some now.
    pub(crate) fn try_charge(&self, frame_len: usize) -> Option<Charge> {
        let bytes = u32::try_from(frame_len).ok()?;
        Arc::clone(&self.all).try_acquire_many_owned(bytes).ok()
    }

    /// Bytes in flight now.
    pub(crate) fn in_flight(&self) -> u64 {
        let free = self.all.available_permits() + self.guests.available_permits();
        self.budget - free as u64
    }
}

/// A budget smaller than one frame still lets one read through at a time.
fn clamp(frame_len: usize, budget: u64) -> u32 {
    u32::try_from((frame_len as u64).min(budget)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_place_is_told_to_come_back_and_guests_still_enter() {
        let admission = Admission::new(800, Duration::from_millis(50));
        let held = admission.enter(700, Priority::Background).await.unwrap();
        assert!(admission.try_charge(1).is_none());
        let refused = admission.enter(100, Priority::Background).await.unwrap_err();
        assert!(matches!(refused.kind(), Kind::Busy(_)), "{refused:?}");
        let guest = admission.enter(100, Priority::Guest).await.unwrap();
        assert_eq!(admission.in_flight(), 800);
        drop(held);
        drop(admission.enter(100, Priority::Background).await.unwrap());
        drop(guest);
        assert_eq!(admission.in_flight(), 0);
    }

    #[tokio::test]
    async fn a_frame_larger_than_the_budget_enters_alone() {
        let admission = Admission::new(800, Duration::from_millis(1));
        let held = admission.enter(10_000, Priority::Background).await.unwrap();
        assert!(admission.enter(1, Priority::Background).await.is_err());
        drop(held);
        drop(admission.enter(1, Priority::Background).await.unwrap());
    }
}
