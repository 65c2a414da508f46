//! A cache's own counters, as metrics.

use api::care::{Asks, AsksByClass, CacheStatus, Tier};
use cache::{DiskState, Status};
use metrics::{counter, gauge};
use stream::Lent;

/// Asks by class.
pub fn by_class(status: &Status) -> AsksByClass {
    let asks = |a: &cache::Asks| Asks {
        memory: a.memory,
        disk: a.disk,
        joined: a.joined,
        fetched: a.source,
    };
    AsksByClass {
        guest: asks(&status.guest),
        trace: asks(&status.trace),
        background: asks(&status.background),
    }
}

/// All asks so far.
pub fn asks(status: &Status) -> u64 {
    status.guest.all() + status.trace.all() + status.background.all()
}

/// Brings the metrics up to date.
pub fn publish(now: &CacheStatus, status: &Status) {
    gauge!("forebay_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    let classes =
        [("guest", now.asks.guest), ("trace", now.asks.trace), ("background", now.asks.background)];
    for (class, asks) in classes {
        let answers = [
            ("memory", asks.memory),
            ("disk", asks.disk),
            ("joined", asks.joined),
            ("store", asks.fetched),
        ];
        for (from, count) in answers {
            counter!("forebay_cache_asks_total", "class" => class, "from" => from).absolute(count);
        }
    }
    tier("memory", &now.memory);
    tier("disk", &now.disk);
    counter!("forebay_store_egress_bytes_total").absolute(status.source_bytes);
    counter!("forebay_store_requests_total").absolute(status.source_requests);
    gauge!("forebay_cache_in_flight_bytes").set(status.in_flight_bytes as f64);
    gauge!("forebay_cache_flights").set(status.flights as f64);
    let on = matches!(status.disk, DiskState::On | DiskState::Recovering);
    // Where none was asked for, nothing is wrong either.
    if status.disk != DiskState::None {
        gauge!("forebay_cache_disk_on").set(f64::from(u8::from(on)));
    }
    counter!("forebay_cache_disk_errors_total").absolute(now.disk_errors);
    counter!("forebay_cache_disk_written_bytes_total").absolute(status.disk_written_bytes);
    counter!("forebay_cache_disk_skipped_total").absolute(status.disk_skipped_frames);
    counter!("forebay_cache_healed_total").absolute(status.healed_copies);
    gauge!("forebay_cache_pinned_bytes").set(status.pinned_bytes as f64);
    gauge!("forebay_cache_scrub_pass").set(status.scrub.pass as f64);
    gauge!("forebay_cache_scrub_bad_frames").set(status.scrub.bad as f64);
    counter!("forebay_cache_scrub_bad_total").absolute(status.scrub_bad_frames);
    gauge!("forebay_cache_draining").set(f64::from(u8::from(now.draining)));
}

/// What the connections of nodes take.
pub fn connections(lent: &Lent) {
    gauge!("forebay_serve_connections").set(lent.connections as f64);
    gauge!("forebay_serve_memory_lent_bytes").set(lent.bytes as f64);
    gauge!("forebay_serve_memory_bytes").set(lent.total as f64);
    counter!("forebay_serve_refused_total").absolute(lent.refused);
}

fn tier(name: &'static str, tier: &Tier) {
    gauge!("forebay_cache_budget_bytes", "tier" => name).set(tier.budget as f64);
    gauge!("forebay_cache_bytes", "tier" => name).set(tier.bytes as f64);
    gauge!("forebay_cache_frames", "tier" => name).set(tier.frames as f64);
}
