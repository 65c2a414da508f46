//! How many bytes of frames a connection may hold.

use std::cell::Cell;
use std::sync::Arc;

use image::{Error, Kind, Priority, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes per permit: semaphores count to 2³² at most.
const UNIT: usize = 1 << 10;
/// A request takes its bytes before it is served and gives them back when it is done, so requests that
/// would exceed the budget wait. A quarter is kept for guests: the other classes, however many they
/// are and however slowly they are read, cannot make a guest wait for memory.
#[derive(Debug)]
pub(crate) struct Budget {
    shared: Arc<Semaphore>,
    guests: Arc<Semaphore>,
    units: Cell<Units>,
}

#[derive(Clone, Copy, Debug)]
struct Units {
    shared: u32,
    guests: u32,
}

impl Units {
    fn of(bytes: usize) -> Self {
        let units = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).max(4);
        let guests = units / 4;
        Self { shared: units - guests, guests }
    }

    fn bytes(self) -> usize {
        (self.shared + self.guests) as usize * UNIT
    }
}

impl Budget {
    /// A budget of `bytes`.
    pub(crate) fn new(bytes: usize) -> Self {
        let units = Units::of(bytes);
        Self {
            shared: Arc::new(Semaphore::new(units.shared as usize)),
            guests: Arc::new(Semaphore::new(units.guests as usize)),
            units: Cell::new(units),
        }
    }

    /// So many bytes more, up to `most` in all.
    pub(crate) fn grow(&self, more: usize, most: usize) {
        let old = self.units.get();
        let new = Units::of((old.bytes() + more).min(most).max(old.bytes()));
        self.shared.add_permits((new.shared - old.shared) as usize);
        self.guests.add_permits((new.guests - old.guests) as usize);
        self.units.set(new);
    }

    /// No more than `bytes`. Nothing may be taken at this time.
    pub(crate) fn shrink(&self, bytes: usize) {
        let (old, new) = (self.units.get(), Units::of(bytes));
        if new.shared < old.shared {
            self.shared.forget_permits((old.shared - new.shared) as usize);
            self.guests.forget_permits((old.guests - new.guests) as usize);
            self.units.set(new);
        }
    }

    /// Most that one request can take.
    pub(crate) fn most(&self) -> usize {
        self.units.get().shared as usize * UNIT
    }

    /// Waits for room for `bytes`. What is more than the whole budget waits until all of it is free.
    pub(crate) async fn take(
        &self,
        bytes: usize,
        priority: Priority,
    ) -> Result<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let shared = units.min(self.units.get().shared);
        if priority == Priority::Guest {
            if let Ok(permit) = self.shared.clone().try_acquire_many_owned(shared) {
                return Ok(permit);
            }
            let permit =
                self.guests.clone().acquire_many_owned(units.min(self.units.get().guests)).await;
            return permit.map_err(closed);
        }
        self.shared.clone().acquire_many_owned(shared).await.map_err(closed)
    }
}

fn closed(_: tokio::sync::AcquireError) -> Error {
    Error::new(Kind::Cancelled, "the connection is closed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn background_waits_and_guests_do_not() {
        let budget = Budget::new(8 << 10);
        let held = budget.take(6 << 10, Priority::Background).now_or_never().unwrap().unwrap();
        assert!(budget.take(1, Priority::Background).now_or_never().is_none());
        assert!(budget.take(1, Priority::Trace).now_or_never().is_none());
        let guest = budget.take(2 << 10, Priority::Guest).now_or_never().unwrap().unwrap();
        assert!(budget.take(1, Priority::Guest).now_or_never().is_none());
        drop((held, guest));
        assert!(budget.take(1 << 30, Priority::Background).now_or_never().is_some());
    }

    #[test]
    fn it_grows_to_a_bound_and_shrinks() {
        let budget = Budget::new(8 << 10);
        let takes = |bytes| budget.take(bytes, Priority::Background).now_or_never().is_some();
        let held = budget.take(6 << 10, Priority::Background).now_or_never().unwrap().unwrap();
        budget.grow(8 << 10, 12 << 10);
        assert!(takes(3 << 10) && !takes(4 << 10), "three quarters of 12 KiB, and 6 are taken");
        drop(held);
        budget.shrink(8 << 10);
        let _held = budget.take(6 << 10, Priority::Background).now_or_never().unwrap().unwrap();
        assert!(!takes(1));
    }
}
