//! What came of rehearsed restores, as metrics.

use std::path::PathBuf;

use image::Result;
use metrics::gauge;
use node::restore::{Record, Rehearsal};

use crate::config::Config;
use crate::telemetry;

/// Where the record of rehearsals is.
pub fn path(config: &Config) -> PathBuf {
    config.data.join("rehearsals.json")
}

/// The last outcome of each image, as Prometheus reads it. Needs a tokio runtime.
pub fn text(record: &Record) -> Result<String> {
    let handle = telemetry::metrics()?;
    publish(record);
    Ok(handle.render())
}

/// Brings the metrics of this process up to date.
pub fn publish(record: &Record) {
    record.latest().into_iter().for_each(publish_one);
}

fn publish_one(r: &Rehearsal) {
    let set = |what: &'static str, value: f64| gauge!(what, "image" => r.name.clone()).set(value);
    set("forebay_rehearsal_timestamp_seconds", r.at as f64);
    set("forebay_rehearsal_passed", f64::from(u8::from(r.passed())));
    let Some(restored) = &r.restored else { return };
    set("forebay_rehearsal_pull_seconds", restored.pull_millis as f64 / 1000.0);
    set("forebay_rehearsal_data_bytes", restored.data as f64);
    set("forebay_rehearsal_damaged_parts", restored.damaged().count() as f64);
    set("forebay_rehearsal_unchecked_parts", restored.not_checked() as f64);
    if let Some(boot) = restored.boot.as_ref().filter(|boot| boot.failed.is_none()) {
        set("forebay_rehearsal_boot_seconds", boot.millis as f64 / 1000.0);
    }
}
