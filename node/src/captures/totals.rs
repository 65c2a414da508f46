//! What the captures of a node have come to, all together.

use api::capture::{Capture, CaptureState};

/// Captures since the daemon started. Bytes and times are of those that have ended, however.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Waiting for their turn now.
    pub queued: u64,
    /// Under way now.
    pub running: u64,
    /// Those of them that wait for the grid.
    pub waiting: u64,
    /// Stored and named.
    pub done: u64,
    /// Ended with an error.
    pub failed: u64,
    /// Ended on request.
    pub cancelled: u64,
    /// Bytes that were read of volumes.
    pub read: u64,
    /// Bytes of chunks that were new to the store's side.
    pub new: u64,
    /// Bytes that were sent for them.
    pub sent: u64,
    /// Milliseconds from when their turn came.
    pub took_ms: u64,
    /// Milliseconds for which guests' file systems held still.
    pub frozen_ms: u64,
    /// Captures whose guest's file systems were to hold still and did not.
    pub not_frozen: u64,
    /// How often the grid was waited for.
    pub waits: u64,
    /// Bytes that could not be read, and were skipped.
    pub unread: u64,
}

impl Totals {
    /// Counts one that has ended.
    pub(super) fn add(&mut self, ended: &Capture) {
        match ended.state {
            CaptureState::Done => self.done += 1,
            CaptureState::Cancelled => self.cancelled += 1,
            _ => self.failed += 1,
        }
        self.read += ended.progress.read;
        self.new += ended.progress.new;
        self.sent += ended.progress.sent;
        self.took_ms += ended.took_ms.unwrap_or_default();
        self.frozen_ms += ended.frozen_ms.unwrap_or_default();
        self.not_frozen += u64::from(ended.not_frozen.is_some());
        self.waits += ended.waits;
        self.unread += ended.unread.as_ref().map_or(0, |unread| unread.bytes);
    }

    /// Counts one as it is now.
    pub(super) fn see(&mut self, now: &Capture) {
        match now.state {
            CaptureState::Queued => self.queued += 1,
            state if !state.is_final() => {
                self.running += 1;
                self.waiting += u64::from(now.trouble.is_some());
            }
            _ => {}
        }
    }
}
