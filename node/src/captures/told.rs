//! What is known of one capture while it goes on, and after.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use api::ErrorBody;
use api::capture::{Capture, CaptureProgress, CaptureState, SaveVolume};
use capture::Progress;
use image::{Digest, Kind, Result};
use tokio::sync::Notify;

use super::totals::Totals;

const UNPOISONED: &str = "no panics while locked";

/// What is known of a capture, for who watches, and the way to end it.
pub(super) struct Told {
    now: Mutex<Capture>,
    /// What is to be read.
    ranges: OnceLock<Vec<Range<u64>>>,
    /// What the pipeline has done by now.
    pub(super) progress: Arc<Progress>,
    /// When its turn came.
    began: OnceLock<Instant>,
    cancelled: Notify,
    /// It has changed its state.
    changed: Notify,
}

impl Told {
    pub(super) fn new(id: u64, request: SaveVolume) -> Self {
        let now = Capture {
            id,
            request,
            state: CaptureState::Queued,
            truth: None,
            why: None,
            parent: None,
            progress: CaptureProgress::default(),
            taken: None,
            frozen_ms: None,
            not_frozen: None,
            unread: None,
            waits: 0,
            took_ms: None,
            image: None,
            trouble: None,
            error: None,
        };
        Self {
            now: Mutex::new(now),
            ranges: OnceLock::new(),
            progress: Arc::default(),
            began: OnceLock::new(),
            cancelled: Notify::new(),
            changed: Notify::new(),
        }
    }

    /// How it stands.
    pub(super) fn now(&self) -> Capture {
        let mut now = self.now.lock().expect(UNPOISONED).clone();
        let stats = self.progress.stats();
        let ranges = self.ranges.get().into_iter().flatten();
        let passed = ranges.map(|range| range.end.min(stats.position).saturating_sub(range.start));
        now.progress = CaptureProgress {
            size: stats.size,
            passed: passed.sum(),
            read: stats.data,
            position: stats.position,
            new_chunks: stats.sent_chunks,
            new: stats.sent_plain,
            sent: stats.sent_stored,
            stored: stats.sealed,
            ..now.progress
        };
        let all_read = stats.size > 0 && stats.position == stats.size;
        if now.state == CaptureState::Running && all_read {
            now.state = CaptureState::Verifying;
        }
        now
    }

    /// Changes what is known.
    pub(super) fn tell(&self, change: impl FnOnce(&mut Capture)) {
        change(&mut self.now.lock().expect(UNPOISONED));
        self.changed.notify_waiters();
    }

    /// How it ended; waits for that.
    pub(super) async fn ended(&self) -> Capture {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = self.now();
            if now.state.is_final() {
                return now;
            }
            changed.await;
        }
    }

    /// Has it end soon.
    pub(super) fn cancel(&self) {
        self.cancelled.notify_one();
    }

    /// Its turn has come.
    pub(super) fn begin(&self) {
        let _ = self.began.set(instant());
        self.tell(|now| now.state = CaptureState::Running);
    }

    /// This is to be read, in bytes.
    pub(super) fn reads(&self, ranges: Vec<Range<u64>>) {
        let _ = self.ranges.set(ranges);
    }

    /// Returns once it is to end.
    pub(super) async fn is_cancelled(&self) {
        self.cancelled.notified().await;
    }

    /// Tells how it ended, and counts it before anybody can know.
    pub(super) fn end(&self, ended: Result<Digest>, totals: &Mutex<Totals>) {
        let state = match &ended {
            Ok(_) => CaptureState::Done,
            Err(error) if error.kind() == Kind::Cancelled => CaptureState::Cancelled,
            Err(_) => CaptureState::Failed,
        };
        let took_ms = self.began.get().map(|began| (instant() - *began).as_millis() as u64);
        let last = Capture { state, took_ms, ..self.now() };
        totals.lock().expect(UNPOISONED).add(&last);
        self.tell(|now| {
            (now.state, now.took_ms) = (state, took_ms);
            match ended {
                Ok(image) => now.image = Some(image),
                Err(error) => now.error = Some(ErrorBody::from(&error)),
            }
        });
    }
}

fn instant() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "how long a capture takes is told in real time")]
    Instant::now()
}
