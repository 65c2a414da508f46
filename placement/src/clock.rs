//! Time comes in from outside: an injected clock.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// Tells the time, in whole seconds since 1970, and how time passes. Cheap to clone.
#[derive(Clone)]
pub struct Clock {
    now: Arc<dyn Fn() -> u64 + Send + Sync>,
    ticks: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl Clock {
    /// A clock that asks `now`.
    pub fn new(now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let now = Arc::new(now);
        Self { ticks: now.clone(), now }
    }

    /// A clock that asks `now`, and counts how time passes by `ticks`.
    #[cfg(feature = "testing")]
    pub fn ticking(
        now: impl Fn() -> u64 + Send + Sync + 'static,
        ticks: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        Self { now: Arc::new(now), ticks: Arc::new(ticks) }
    }

    /// The operating system's clock. A clock before 1970 is read as 1970.
    #[expect(clippy::disallowed_methods, reason = "this is where the outside's time comes in")]
    pub fn system() -> Self {
        let now = || {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            since.map_or(0, |t| t.as_secs())
        };
        let begun = std::time::Instant::now();
        Self { now: Arc::new(now), ticks: Arc::new(move || begun.elapsed().as_secs()) }
    }

    /// Seconds since 1970.
    pub fn now(&self) -> u64 {
        (self.now)()
    }

    /// Seconds since some moment, by a clock that nobody sets. It may stand still while the machine sleeps: who
    /// counts by it how long to wait waits too long then, and never not long enough.
    pub fn ticks(&self) -> u64 {
        (self.ticks)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// TLS checks certificates against the same clock as everything else.
impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.now())))
    }
}

/// Tells how long the machine has been up, the time that it was suspended included; never steps back. Cheap
/// to clone.
#[derive(Clone)]
pub struct Uptime(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Uptime {
    /// One that asks `now`.
    pub fn new(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The operating system's, `CLOCK_BOOTTIME`.
    pub fn system() -> Self {
        use rustix::time::{ClockId, clock_gettime};
        Self::new(|| {
            let now = clock_gettime(ClockId::Boottime);
            let (secs, nanos) = (now.tv_sec.try_into(), now.tv_nsec.try_into());
            Duration::new(secs.unwrap_or(0), nanos.unwrap_or(0))
        })
    }

    /// Since the machine was started.
    pub fn now(&self) -> Duration {
        (self.0)()
    }
}

impl fmt::Debug for Uptime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Uptime")
    }
}
