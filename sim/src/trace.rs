//! What happened in a run, in order: a digest of all events, and their text if somebody wants to read it.
//!
//! Two runs of one seed have the same digest, in any process on any day. So no event may tell of
//! anything that differs between them: keys, addresses in memory, real time.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A run's time and trace. Clones share them.
#[derive(Clone)]
pub struct Trace {
    start: Instant,
    events: Arc<Mutex<Events>>,
}

struct Events {
    digest: blake3::Hasher,
    count: u64,
    print: bool,
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trace")
    }
}

impl Trace {
    /// Begins with nothing, at time zero. Call it inside the runtime whose time it tells. With `print`
    /// every event is also shown as it happens.
    pub fn start(print: bool) -> Self {
        let events = Events { digest: blake3::Hasher::new(), count: 0, print };
        Self { start: runtime_now(), events: Arc::new(Mutex::new(events)) }
    }

    /// The time since the run began.
    pub fn now(&self) -> Duration {
        runtime_now() - self.start
    }

    /// Waits until that time; returns at once if it has passed.
    pub async fn until(&self, at: Duration) {
        tokio::time::sleep_until(self.start + at).await;
    }

    /// Something happened.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        let now = self.now();
        let line = format!("{:>9.3} {what}\n", now.as_secs_f64() * 1e3);
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.digest.update(line.as_bytes());
        events.count += 1;
        if events.print {
            print!("{line}");
        }
    }

    /// The digest of everything so far, and how many events that were.
    pub fn digest(&self) -> (String, u64) {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        (events.digest.finalize().to_hex()[..16].to_owned(), events.count)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one clock of a run: the runtime's, which is paused"
)]
fn runtime_now() -> Instant {
    Instant::now()
}
