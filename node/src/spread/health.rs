//! What all cores of a process know together of the caches: who is out, who limps, who may be tried.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::policy::{Counts, Policy};

/// The policy behind a lock that is held for one decision, and never while anything is waited for. One core
/// finds a cache dead, and the others need not.
#[derive(Debug, Default)]
pub struct Health(Mutex<Policy>);

impl Health {
    pub(super) fn policy(&self) -> MutexGuard<'_, Policy> {
        // A panic inside a decision leaves numbers that are at worst a little off.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has been done so far.
    pub fn counts(&self) -> Counts {
        self.policy().counts()
    }
}
