//! A limit in bytes a second, shared by everything that takes from it.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A token bucket. Cheap to share; `None` of it is no limit.
#[derive(Debug)]
pub struct Rate {
    per_second: f64,
    state: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// Bytes that may be taken now; below zero while a debt is being waited off.
    level: f64,
    at: Instant,
}

impl Rate {
    /// A limit of `per_second` bytes, from `now` on. Bursts of up to a quarter of a second pass.
    pub fn new(per_second: u64, now: Instant) -> Self {
        let per_second = per_second.max(1) as f64;
        Self { per_second, state: Mutex::new(Bucket { level: per_second / 4.0, at: now }) }
    }

    /// Takes `bytes` at `now` and says how long to wait before going on. Takers go into debt one
    /// after the other, so the wait is fair and the long-run rate exact whatever the sizes are.
    pub fn take(&self, bytes: u64, now: Instant) -> Duration {
        let mut bucket = self.state.lock().expect("no panics while locked");
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.at = bucket.at.max(now);
        bucket.level = (bucket.level + passed * self.per_second).min(self.per_second / 4.0);
        bucket.level -= bytes as f64;
        Duration::from_secs_f64((-bucket.level / self.per_second).max(0.0))
    }

    /// Takes `bytes`, and sleeps as long as the limit asks.
    pub async fn wait(&self, bytes: u64) {
        #[expect(clippy::disallowed_methods, reason = "this is the driver: it sleeps in real time")]
        let now = Instant::now();
        let pause = self.take(bytes, now);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_long_run_rate_is_exact() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as a start")]
        let start = Instant::now();
        let rate = Rate::new(1000, start);
        let mut now = start;
        for _ in 0..100 {
            now += rate.take(100, now);
        }
        let took = (now - start).as_secs_f64();
        assert!((9.7..=9.8).contains(&took), "10,000 bytes less a burst of 250 took {took} s");
    }

    #[test]
    fn idle_time_buys_one_burst_only() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as a start")]
        let start = Instant::now();
        let rate = Rate::new(1000, start);
        let later = start + Duration::from_secs(100);
        assert_eq!(rate.take(250, later), Duration::ZERO);
        assert!(rate.take(250, later) >= Duration::from_millis(249));
    }
}
