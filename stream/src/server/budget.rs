//! How many bytes of frames a connection may hold.

use std::sync::Arc;

use image::{Error, Kind, Priority, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes per permit: semaphores count to 2³² at most.
const UNIT: usize = 1 << 10;
/// A request takes its bytes before it is served and gives them back when it is done, so requests that
/// would exceed the budget wait. A quarter is kept for guests: the other classes, however many they
/// are and however slowly they are read, cannot make a guest wait for memory.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    shared: Arc<Semaphore>,
    guests: Arc<Semaphore>,
    shared_units: u32,
    guest_units: u32,
}

impl Budget {
    /// A budget of `bytes`.
    pub(crate) fn new(bytes: usize) -> Self {
        let units = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).max(4);
        let guest_units = units / 4;
        let shared_units = units - guest_units;
        Self {
            shared: Arc::new(Semaphore::new(shared_units as usize)),
            guests: Arc::new(Semaphore::new(guest_units as usize)),
            shared_units,
            guest_units,
        }
    }

    /// Waits for room for `bytes`. What is more than the whole budget waits until all of it is free.
    pub(crate) async fn take(
        &self,
        bytes: usize,
        priority: Priority,
    ) -> Result<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let shared = units.min(self.shared_units);
        if priority == Priority::Guest {
            if let Ok(permit) = self.shared.clone().try_acquire_many_owned(shared) {
                return Ok(permit);
            }
            let permit = self.guests.clone().acquire_many_owned(units.min(self.guest_units)).await;
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
}
