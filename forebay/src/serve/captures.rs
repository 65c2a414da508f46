//! What a node's captures have come to, as metrics.

use metrics::{counter, gauge};
use node::captures::Totals;

/// Brings the metrics of this process up to date.
pub fn publish(totals: &Totals) {
    let states =
        [("queued", totals.queued), ("running", totals.running), ("waiting", totals.waiting)];
    for (state, now) in states {
        gauge!("forebay_captures", "state" => state).set(now as f64);
    }
    let results =
        [("done", totals.done), ("failed", totals.failed), ("cancelled", totals.cancelled)];
    for (result, ended) in results {
        counter!("forebay_captures_total", "result" => result).absolute(ended);
    }
    counter!("forebay_capture_read_bytes_total").absolute(totals.read);
    counter!("forebay_capture_new_bytes_total").absolute(totals.new);
    counter!("forebay_capture_sent_bytes_total").absolute(totals.sent);
    counter!("forebay_capture_unread_bytes_total").absolute(totals.unread);
    counter!("forebay_capture_milliseconds_total").absolute(totals.took_ms);
    counter!("forebay_capture_frozen_milliseconds_total").absolute(totals.frozen_ms);
    counter!("forebay_capture_not_frozen_total").absolute(totals.not_frozen);
    counter!("forebay_capture_waits_total").absolute(totals.waits);
}
