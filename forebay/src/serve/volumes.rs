//! A node's volumes and captures, as metrics.

use std::sync::Arc;

use api::volume::VolumeInfo;
use image::Result;
use metrics::{counter, gauge};
use node::captures::{Captures, Saves};
use node::daemon::http::Metrics;
use node::restore::Record;
use node::stats::Sampler;

use super::{captures, measures, rehearsals};
use crate::config::Config;
use crate::telemetry;

/// Kinds of trouble: each volume has all of them, and one that is 1.
const TROUBLES: [&str; 11] = [
    "retry",
    "busy",
    "conflict",
    "corrupt",
    "gone",
    "denied",
    "full",
    "unsupported",
    "cancelled",
    "invalid",
    "io",
];

/// Writes the metrics of this process, those of its volumes, its captures and of rehearsed restores brought up to date.
pub fn metrics(
    config: &Config,
    captures: Captures<impl Saves>,
    sampler: Sampler,
) -> Result<Metrics> {
    let handle = telemetry::metrics()?;
    gauge!("forebay_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    let record = rehearsals::path(config);
    Ok(Arc::new(move |volumes| {
        match Record::load(&record) {
            Ok(record) => rehearsals::publish(&record),
            Err(error) => tracing::warn!(%error, "rehearsals are left out of the metrics"),
        }
        gauge!("forebay_volumes").set(volumes.len() as f64);
        volumes.iter().for_each(publish);
        captures::publish(&captures.totals());
        if let Some(stats) = sampler.last() {
            measures::publish(&stats);
        }
        handle.render()
    }))
}

fn publish(v: &VolumeInfo) {
    let name = || v.name.clone();
    let set = |what: &'static str, value: f64| gauge!(what, "volume" => name()).set(value);
    let flag = |what, so: bool| set(what, f64::from(u8::from(so)));
    set("forebay_volume_bytes", v.size as f64);
    flag("forebay_volume_attached", v.attached.is_some());
    flag("forebay_volume_plain", v.plain);
    for kind in TROUBLES {
        let so = v.trouble.as_ref().is_some_and(|t| t.kind == kind);
        let trouble = gauge!("forebay_volume_trouble", "volume" => name(), "kind" => kind);
        trouble.set(f64::from(u8::from(so)));
    }
    let Some(h) = &v.hydration else { return };
    set("forebay_volume_chunks", h.chunks as f64);
    set("forebay_volume_chunks_present", h.present as f64);
    set("forebay_volume_chunks_waited_for", h.wanted as f64);
    set("forebay_volume_left_bytes", h.left as f64);
    flag("forebay_volume_late", h.late);
    let count = |what: &'static str, n| counter!(what, "volume" => name()).absolute(n);
    count("forebay_volume_received_bytes_total", h.received);
    count("forebay_volume_fetched_total", h.fetched);
    count("forebay_volume_demanded_total", h.demanded);
    count("forebay_volume_repaired_total", h.repaired);
}
