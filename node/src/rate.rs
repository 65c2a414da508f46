//! A limit in bytes a second, shared by everything that takes from it.

use std::fmt::Debug;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;

/// Time, as a limit sees it.
pub trait Time: Debug + Send + Sync {
    /// The time since some moment.
    fn now(&self) -> Duration;

    /// Returns after so long.
    fn sleep(&self, pause: Duration) -> BoxFuture<'_, ()>;
}

/// The time that really passes.
#[derive(Debug)]
pub struct RealTime(Instant);

impl RealTime {
    /// Starts now. Sleeping takes a tokio runtime.
    pub fn start() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the driver: it reads the real clock"
        )]
        Self(Instant::now())
    }
}

impl Time for RealTime {
    #[expect(clippy::disallowed_methods, reason = "this is the driver: it reads the real clock")]
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, pause: Duration) -> BoxFuture<'_, ()> {
        tokio::time::sleep(pause).boxed()
    }
}

/// A token bucket. Cheap to share; `None` of it is no limit.
#[derive(Debug)]
pub struct Rate {
    per_second: f64,
    time: Box<dyn Time>,
    state: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// Bytes that may be taken now; below zero while a debt is being waited off.
    level: f64,
    at: Duration,
}

impl Rate {
    /// A limit of `per_second` bytes, from now on. Bursts of up to a quarter of a second pass.
    pub fn new(per_second: u64, time: impl Time + 'static) -> Self {
        let per_second = per_second.max(1) as f64;
        let state = Mutex::new(Bucket { level: per_second / 4.0, at: time.now() });
        Self { per_second, time: Box::new(time), state }
    }

    /// The limit.
    pub fn per_second(&self) -> f64 {
        self.per_second
    }

    /// Takes `bytes` at `now` and says how long to wait before going on. Takers go into debt one
    /// after the other, so the wait is fair and the long-run rate exact whatever the sizes are.
    pub fn take(&self, bytes: u64, now: Duration) -> Duration {
        let mut bucket = self.state.lock().expect("no panics while locked");
        let passed = now.saturating_sub(bucket.at).as_secs_f64();
        bucket.at = bucket.at.max(now);
        bucket.level = (bucket.level + passed * self.per_second).min(self.per_second / 4.0);
        bucket.level -= bytes as f64;
        Duration::from_secs_f64((-bucket.level / self.per_second).max(0.0))
    }

    /// Takes `bytes`, and says how long to wait before going on.
    pub fn take_now(&self, bytes: u64) -> Duration {
        self.take(bytes, self.time.now())
    }

    /// Takes `bytes`, and sleeps as long as the limit asks.
    pub async fn wait(&self, bytes: u64) {
        let pause = self.take_now(bytes);
        if !pause.is_zero() {
            self.time.sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_long_run_rate_is_exact() {
        let rate = Rate::new(1000, RealTime::start());
        let start = rate.time.now();
        let mut now = start;
        for _ in 0..100 {
            now += rate.take(100, now);
        }
        let took = (now - start).as_secs_f64();
        assert!((9.7..=9.8).contains(&took), "10,000 bytes less a burst of 250 took {took} s");
    }

    #[test]
    fn idle_time_buys_one_burst_only() {
        let rate = Rate::new(1000, RealTime::start());
        let later = rate.time.now() + Duration::from_secs(100);
        assert_eq!(rate.take(250, later), Duration::ZERO);
        assert!(rate.take(250, later) >= Duration::from_millis(249));
    }
}
