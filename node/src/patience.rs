//! How often something is asked again before it is given up.

use std::time::Duration;

use image::{Error, Kind, Result};

/// How often it may fail.
const ATTEMPTS: u32 = 6;
/// How often all servers may say that they are busy. They say for how long, and serve others meanwhile: that
/// is no failure, unless it never ends.
const BUSY_ATTEMPTS: u32 = 100;
/// Pause after the first failure; it doubles with each, up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// What has been tried so far.
#[derive(Debug)]
pub struct Patience {
    /// How often it may fail, and who is asked be busy.
    most: (u32, u32),
    failed: u32,
    busy: u32,
}

impl Patience {
    /// Waits for who is busy, and asks again who failed: for what is part of something under way.
    pub fn new() -> Self {
        Self { most: (ATTEMPTS, BUSY_ATTEMPTS), failed: 0, busy: 0 }
    }

    /// Waits only for who is busy: for a first contact, which should fail soon if nobody is there.
    pub fn with_busy() -> Self {
        Self { most: (1, BUSY_ATTEMPTS), ..Self::new() }
    }

    /// Waits for who is busy, and asks who failed once more: for what somebody else asks for again.
    pub fn brief() -> Self {
        Self { most: (2, BUSY_ATTEMPTS), ..Self::new() }
    }

    /// As long as it takes: for what nobody would ask for again.
    pub fn endless() -> Self {
        Self { most: (u32::MAX, u32::MAX), ..Self::new() }
    }

    /// After how long to ask again; nothing if that has no sense, or was done often enough.
    pub fn again(&mut self, error: &Error) -> Option<Duration> {
        match error.kind() {
            Kind::Corrupt | Kind::Retry => {
                self.failed += 1;
                let pause = FIRST_PAUSE.saturating_mul(1 << (self.failed - 1).min(16));
                (self.failed < self.most.0).then_some(pause.min(LAST_PAUSE))
            }
            Kind::Busy(after) => {
                self.busy += 1;
                (self.busy < self.most.1).then_some(after.max(FIRST_PAUSE))
            }
            _ => None,
        }
    }

    /// Asks until there is an answer, or no sense in asking again.
    pub async fn ask<T>(mut self, mut ask: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        loop {
            let error = match ask().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(pause) = self.again(&error) else { return Err(error) };
            tracing::warn!(%error, "asking again in {:.1} s", pause.as_secs_f32());
            tokio::time::sleep(pause).await;
        }
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    async fn asked(patience: Patience, kinds: impl Fn(u32) -> Option<Kind>) -> (u32, bool) {
        let count = Cell::new(0);
        let answer = patience.ask(async || {
            count.set(count.get() + 1);
            kinds(count.get()).map_or(Ok(()), |kind| Err(Error::new(kind, "not now")))
        });
        let answer = answer.await;
        (count.get(), answer.is_ok())
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_busy_is_waited_for_and_who_fails_asked_a_few_times() {
        let busy = |times| move |n| (n <= times).then_some(Kind::Busy(Duration::from_secs(1)));
        let failing = |times| move |n| (n <= times).then_some(Kind::Retry);
        assert_eq!(asked(Patience::with_busy(), busy(20)).await, (21, true));
        assert_eq!(asked(Patience::with_busy(), busy(200)).await, (BUSY_ATTEMPTS, false));
        assert_eq!(asked(Patience::with_busy(), failing(1)).await, (1, false));
        assert_eq!(asked(Patience::new(), failing(5)).await, (6, true));
        assert_eq!(asked(Patience::new(), failing(6)).await, (6, false));
        assert_eq!(asked(Patience::endless(), failing(1000)).await, (1001, true));
        assert_eq!(asked(Patience::new(), |_| Some(Kind::Denied)).await, (1, false));
    }
}
