//! The one place where logging and metrics are set up.

use std::io::IsTerminal;
use std::time::Duration;

use image::{Error, Kind, Result};
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::Config;

/// Starts logging to standard error, as the configuration says.
pub fn start(config: &Config) {
    let filter = EnvFilter::try_new(config.text("log.filter")).unwrap_or_else(|e| {
        eprintln!("forebay: log.filter: {e}; logging warnings");
        EnvFilter::new(crate::config::DEFAULT_FILTER)
    });
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match config.text("log.format") {
        "json" => log.json().init(),
        _ => log.init(),
    }
}

/// Bounds of the times that are told apart, in seconds.
const BUCKETS: &[f64] = &[0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];
/// How often what was recorded is put into its buckets, if nobody asks.
const UPKEEP: Duration = Duration::from_secs(5);

/// The registry of metrics of this process, into which every part records. Needs a tokio runtime.
pub fn metrics() -> Result<PrometheusHandle> {
    let builder = PrometheusBuilder::new().set_buckets(BUCKETS);
    let builder = builder.map_err(|e| Error::caused(Kind::Io, "buckets of metrics", e))?;
    let handle = builder.install_recorder();
    let handle = handle.map_err(|e| Error::caused(Kind::Io, "starting the metrics", e))?;
    describe();
    let upkeep = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

/// Says what each metric means. There is none that does not stand here.
fn describe() {
    use Unit::{Bytes, Count, Milliseconds, Seconds};
    describe_gauge!("forebay_build_info", Count, "1; the version is a label");
    describe_gauge!("forebay_volumes", Count, "volumes of this node");
    describe_gauge!("forebay_volume_bytes", Bytes, "size of a volume");
    describe_gauge!("forebay_volume_attached", Count, "1 while a volume is shown to a guest");
    describe_gauge!("forebay_volume_plain", Count, "1 once all of a volume is here");
    describe_gauge!("forebay_volume_trouble", Count, "1 while chunks do not come, by kind");
    describe_gauge!("forebay_volume_chunks", Count, "chunks of a volume");
    describe_gauge!("forebay_volume_chunks_present", Count, "those that are here");
    describe_gauge!("forebay_volume_chunks_waited_for", Count, "those that guests wait for");
    describe_gauge!("forebay_volume_left_bytes", Bytes, "what is still to come, about");
    describe_gauge!("forebay_volume_late", Count, "1 if it cannot all be here when it should");
    describe_counter!("forebay_volume_received_bytes_total", Bytes, "frames that came");
    describe_counter!("forebay_volume_fetched_total", Count, "chunks that came");
    describe_counter!("forebay_volume_demanded_total", Count, "chunks that guests waited for");
    describe_counter!("forebay_volume_repaired_total", Count, "chunks that came wrong");
    describe_gauge!("forebay_captures", Count, "captures now, by state; waiting: for the grid");
    describe_counter!("forebay_captures_total", Count, "captures that have ended, by result");
    describe_counter!("forebay_capture_read_bytes_total", Bytes, "what they read of volumes");
    describe_counter!("forebay_capture_new_bytes_total", Bytes, "what of it was new");
    describe_counter!("forebay_capture_sent_bytes_total", Bytes, "what they sent");
    describe_counter!("forebay_capture_unread_bytes_total", Bytes, "what they could not read");
    describe_counter!("forebay_capture_milliseconds_total", Milliseconds, "how long they took");
    describe_counter!(
        "forebay_capture_frozen_milliseconds_total",
        Milliseconds,
        "for how long guests' file systems held still"
    );
    describe_counter!(
        "forebay_capture_not_frozen_total",
        Count,
        "captures whose guest's file systems did not hold still, and were to"
    );
    describe_counter!("forebay_capture_waits_total", Count, "how often they waited for the grid");
    describe_gauge!("forebay_node_cores", Count, "CPUs of this node");
    describe_gauge!("forebay_node_cpu_busy", Count, "how busy they are, 0 to 1");
    describe_gauge!(
        "forebay_node_stall",
        Count,
        "share of a minute in which tasks waited, by what"
    );
    describe_gauge!("forebay_node_memory_bytes", Bytes, "memory of this node");
    describe_gauge!("forebay_node_memory_available_bytes", Bytes, "what of it can be had");
    describe_gauge!("forebay_node_space_bytes", Bytes, "a file system, by what it holds");
    describe_gauge!("forebay_node_space_free_bytes", Bytes, "what of it can be written");
    describe_gauge!("forebay_node_disk_reads", Count, "reads a second, by disk");
    describe_gauge!("forebay_node_disk_writes", Count, "writes a second, by disk");
    describe_gauge!("forebay_node_disk_read_seconds", Seconds, "how long a read took, by disk");
    describe_gauge!("forebay_node_disk_write_seconds", Seconds, "how long a write took, by disk");
    describe_gauge!("forebay_node_disk_busy", Count, "how busy a disk is, 0 to 1");
    describe_gauge!("forebay_node_disk_errors", Count, "requests of a disk that failed");
    describe_gauge!("forebay_node_raid_degraded", Count, "devices that an array lacks");
    describe_gauge!("forebay_node_raid_errors", Count, "errors of an array's devices");
    describe_gauge!("forebay_node_received_bytes", Bytes, "what came in a second, by interface");
    describe_gauge!("forebay_node_sent_bytes", Bytes, "what went in a second, by interface");
    describe_gauge!("forebay_node_interface_errors", Count, "bad packets, by interface");
    describe_gauge!("forebay_node_vms", Count, "running guests");
    describe_gauge!("forebay_node_vm_cpus", Count, "their CPUs");
    describe_gauge!("forebay_node_vm_memory_bytes", Bytes, "their memory");
    describe_gauge!("forebay_node_hypervisor_info", Count, "1; kind and version are labels");
    describe_counter!("forebay_node_failed_total", Count, "pulls, captures and goals that failed");
    describe_counter!("forebay_node_retried_total", Count, "what was asked again");
    describe_gauge!(
        "forebay_fleet_nodes",
        Count,
        "nodes that are heard of, and those that are not"
    );
    describe_gauge!("forebay_fleet_cores", Count, "CPUs of all nodes that are heard of");
    describe_gauge!("forebay_fleet_memory_bytes", Bytes, "their memory");
    describe_gauge!("forebay_fleet_memory_available_bytes", Bytes, "what of it can be had");
    describe_gauge!("forebay_fleet_disk_bytes", Bytes, "where their volumes lie");
    describe_gauge!("forebay_fleet_disk_free_bytes", Bytes, "what of it can be written");
    describe_gauge!("forebay_fleet_vms", Count, "guests that run on them");
    describe_gauge!("forebay_fleet_volumes", Count, "volumes on them");
    describe_counter!("forebay_fleet_released_total", Count, "volumes given back and erased");
    describe_counter!("forebay_fleet_released_bytes_total", Bytes, "what they have freed");
    describe_gauge!("forebay_fleet_node_away", Count, "1 while a node is not heard of");
    describe_gauge!("forebay_fleet_node_cpu_busy", Count, "how busy a node is, 0 to 1");
    describe_gauge!("forebay_fleet_node_stall", Count, "share of a minute in which tasks waited");
    describe_gauge!("forebay_fleet_node_memory_available_bytes", Bytes, "memory that can be had");
    describe_gauge!("forebay_fleet_node_disk_free_bytes", Bytes, "what can be written");
    describe_gauge!("forebay_fleet_node_disk_errors", Count, "errors of disks and arrays");
    describe_gauge!("forebay_fleet_node_raid_degraded", Count, "devices that arrays lack");
    describe_gauge!("forebay_pool_ready", Count, "ready volumes of a pool");
    describe_gauge!("forebay_pool_building", Count, "volumes of it that are being built");
    describe_gauge!("forebay_pool_target", Count, "ready volumes that it is filled to");
    describe_gauge!("forebay_pool_wanted", Count, "those that demand asks for");
    describe_gauge!("forebay_pool_claims_per_hour", Count, "claims of it, by the rate of now");
    describe_gauge!("forebay_pool_build_seconds", Seconds, "how long a build takes, smoothed");
    describe_gauge!("forebay_pool_forecast_claims", Count, "claims that it is to do for");
    describe_gauge!("forebay_pool_saved_seconds", Seconds, "what these do not wait");
    describe_gauge!(
        "forebay_pool_holds_until_seconds",
        Seconds,
        "until when it holds its target, since 1970; 0: not by that"
    );
    describe_gauge!("forebay_pool_bound", Count, "1 where that keeps it from what it wants");
    describe_gauge!("forebay_rehearsal_passed", Count, "1 if the last restore was good");
    describe_gauge!("forebay_rehearsal_timestamp_seconds", Seconds, "when that was, since 1970");
    describe_gauge!("forebay_rehearsal_pull_seconds", Seconds, "until all of it was restored");
    describe_gauge!("forebay_rehearsal_data_bytes", Bytes, "what of it is not zeros");
    describe_gauge!("forebay_rehearsal_damaged_parts", Count, "parts of the disk that are damaged");
    describe_gauge!("forebay_rehearsal_unchecked_parts", Count, "parts of which nothing is known");
    describe_gauge!("forebay_rehearsal_boot_seconds", Seconds, "until a machine had started on it");
    describe_histogram!("forebay_request_seconds", Seconds, "requests of nodes, by op and class");
    describe_counter!(
        "forebay_request_errors_total",
        Count,
        "requests that failed, by op and kind"
    );
    describe_histogram!("forebay_store_seconds", Seconds, "reads of the store, by op and class");
    describe_counter!("forebay_store_errors_total", Count, "reads that failed, by op and kind");
    describe_counter!("forebay_store_egress_bytes_total", Bytes, "frames fetched from the store");
    describe_counter!("forebay_store_requests_total", Count, "asks of the store for chunks");
    describe_counter!("forebay_cache_asks_total", Count, "asks for chunks, by class and answer");
    describe_gauge!("forebay_cache_budget_bytes", Bytes, "what a tier may hold");
    describe_gauge!("forebay_cache_bytes", Bytes, "what a tier holds");
    describe_gauge!("forebay_cache_frames", Count, "frames in a tier");
    describe_gauge!("forebay_cache_in_flight_bytes", Bytes, "memory of reads under way");
    describe_gauge!("forebay_cache_flights", Count, "chunks being fetched");
    describe_gauge!("forebay_cache_disk_on", Count, "1 while the disk tier is read and written");
    describe_counter!("forebay_cache_disk_errors_total", Count, "reads and frames that were bad");
    describe_counter!("forebay_cache_disk_written_bytes_total", Bytes, "bytes written to the log");
    describe_counter!(
        "forebay_cache_disk_skipped_total",
        Count,
        "frames the disk was too slow for"
    );
    describe_counter!("forebay_cache_healed_total", Count, "wrong copies that were dropped");
    describe_gauge!("forebay_cache_pinned_bytes", Bytes, "frames of pinned images");
    describe_gauge!("forebay_cache_scrub_pass", Count, "the pass of the scrub");
    describe_gauge!("forebay_cache_scrub_bad_frames", Count, "bad frames that this pass found");
    describe_counter!("forebay_cache_scrub_bad_total", Count, "bad frames, of all its passes");
    describe_gauge!("forebay_serve_connections", Count, "connections of nodes");
    describe_gauge!("forebay_serve_memory_lent_bytes", Bytes, "what they were lent");
    describe_gauge!("forebay_serve_memory_bytes", Bytes, "what may be lent to them");
    describe_counter!("forebay_serve_refused_total", Count, "connections that got no memory");
    describe_gauge!("forebay_cache_draining", Count, "1 while it sends nodes elsewhere");
}
