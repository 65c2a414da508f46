//! What nodes measure, as metrics: of this node, and of the fleet.

use std::time::Duration;

use api::pool::{PoolBound, PoolInfo, PoolList};
use api::stats::{DiskStats, InterfaceStats, NodeStats, NodeSummary, RaidStats, Stall, StatsList};
use metrics::{counter, gauge};
use placement::Client;

/// How often the fleet's are brought up to date.
const EVERY: Duration = Duration::from_secs(10);
/// Nodes that have metrics of their own: the first of these by name. All count in the sums.
const NAMED: usize = 500;

fn share(per_mille: u32) -> f64 {
    f64::from(per_mille) / 1000.0
}

/// Publishes what this node has measured.
pub fn publish(stats: &NodeStats) {
    let set = |what: &'static str, value: f64| gauge!(what).set(value);
    if let Some(cpu) = &stats.cpu {
        set("forebay_node_cores", f64::from(cpu.cores));
        if let Some(busy) = cpu.busy_per_mille {
            set("forebay_node_cpu_busy", share(busy));
        }
    }
    let stall = |what: &'static str, stall: Option<Stall>| {
        if let Some(stall) = stall {
            gauge!("forebay_node_stall", "of" => what).set(share(stall.some60_per_mille));
        }
    };
    stall("cpu", stats.pressure.cpu);
    stall("memory", stats.pressure.memory);
    stall("io", stats.pressure.io);
    if let Some(memory) = &stats.memory {
        set("forebay_node_memory_bytes", memory.total_bytes as f64);
        set("forebay_node_memory_available_bytes", memory.available_bytes as f64);
    }
    for space in &stats.spaces {
        let set = |what: &'static str, bytes: u64| {
            gauge!(what, "holds" => space.holds.clone()).set(bytes as f64);
        };
        set("forebay_node_space_bytes", space.total_bytes);
        set("forebay_node_space_free_bytes", space.free_bytes);
    }
    stats.disks.iter().for_each(disk);
    stats.raids.iter().for_each(raid);
    stats.interfaces.iter().for_each(interface);
    for of in &stats.hypervisors {
        let (kind, version) = (of.kind.clone(), of.version.clone());
        gauge!("forebay_node_hypervisor_info", "kind" => kind, "version" => version).set(1.0);
    }
    set("forebay_node_vms", f64::from(stats.guests.vms));
    set("forebay_node_vm_cpus", f64::from(stats.guests.cpus));
    set("forebay_node_vm_memory_bytes", stats.guests.memory_bytes as f64);
    counter!("forebay_node_failed_total").absolute(stats.requests.failed_total);
    counter!("forebay_node_retried_total").absolute(stats.requests.retried_total);
}

fn disk(disk: &DiskStats) {
    let set = |what: &'static str, value: f64| gauge!(what, "disk" => disk.name.clone()).set(value);
    if let Some(errors) = disk.errors {
        set("forebay_node_disk_errors", errors as f64);
    }
    let Some(work) = disk.work else { return };
    let seconds = |micros: u64| micros as f64 / 1e6;
    set("forebay_node_disk_reads", f64::from(work.reads_per_sec));
    set("forebay_node_disk_writes", f64::from(work.writes_per_sec));
    set("forebay_node_disk_busy", share(work.busy_per_mille));
    set("forebay_node_disk_read_seconds", work.read_micros.map_or(0.0, seconds));
    set("forebay_node_disk_write_seconds", work.write_micros.map_or(0.0, seconds));
}

fn raid(raid: &RaidStats) {
    let set = |what: &'static str, value: f64| {
        gauge!(what, "array" => raid.name.clone(), "level" => raid.level.clone()).set(value);
    };
    set("forebay_node_raid_degraded", f64::from(raid.degraded));
    if let Some(errors) = raid.errors {
        set("forebay_node_raid_errors", errors as f64);
    }
}

fn interface(link: &InterfaceStats) {
    let vlan = link.vlan.map(|number| number.to_string()).unwrap_or_default();
    let set = |what: &'static str, value: u64| {
        gauge!(what, "interface" => link.name.clone(), "vlan" => vlan.clone()).set(value as f64);
    };
    set("forebay_node_received_bytes", link.received_bytes_per_sec.unwrap_or(0));
    set("forebay_node_sent_bytes", link.sent_bytes_per_sec.unwrap_or(0));
    set("forebay_node_interface_errors", link.errors);
}

/// Publishes what the fleet has measured, and how its pools stand, again and again.
pub async fn of_the_fleet(placement: &Client) {
    loop {
        match placement.stats(0).await {
            Ok(list) => fleet(&list),
            Err(error) => tracing::debug!(%error, "what nodes measure is not known just now"),
        }
        match placement.pools().await {
            Ok(PoolList { pools }) => pools.iter().take(NAMED).for_each(pool),
            Err(error) => tracing::debug!(%error, "how pools stand is not known just now"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn fleet(list: &StatsList) {
    let here = || list.nodes.iter().filter(|node| !node.away);
    let sum = |what: &'static str, of: fn(&NodeSummary) -> u64| {
        gauge!(what).set(here().fold(0.0, |sum, node| sum + of(node) as f64));
    };
    let away = list.nodes.len() - here().count();
    gauge!("forebay_fleet_nodes", "heard" => "yes").set(here().count() as f64);
    gauge!("forebay_fleet_nodes", "heard" => "no").set(away as f64);
    sum("forebay_fleet_cores", |node| node.last.cores.into());
    sum("forebay_fleet_memory_bytes", |node| node.last.memory_total_bytes);
    sum("forebay_fleet_memory_available_bytes", |node| node.last.memory_available_bytes);
    sum("forebay_fleet_disk_bytes", |node| node.last.disk_total_bytes);
    sum("forebay_fleet_disk_free_bytes", |node| node.last.disk_free_bytes);
    sum("forebay_fleet_vms", |node| node.last.vms.into());
    sum("forebay_fleet_volumes", |node| node.last.volumes.into());
    counter!("forebay_fleet_released_total").absolute(list.released_volumes);
    counter!("forebay_fleet_released_bytes_total").absolute(list.released_bytes);
    list.nodes.iter().take(NAMED).for_each(node);
}

fn pool(pool: &PoolInfo) {
    let set = |what: &'static str, value: f64| gauge!(what, "pool" => pool.name.clone()).set(value);
    set("forebay_pool_ready", pool.ready.into());
    set("forebay_pool_building", pool.building.into());
    let Some(demand) = &pool.demand else { return };
    set("forebay_pool_target", demand.target.into());
    set("forebay_pool_wanted", demand.wanted.into());
    set("forebay_pool_claims_per_hour", demand.claims_per_hour);
    set("forebay_pool_build_seconds", demand.build_secs.unwrap_or(0.0));
    set("forebay_pool_forecast_claims", demand.forecast);
    set("forebay_pool_saved_seconds", demand.saved_secs);
    set("forebay_pool_holds_until_seconds", demand.holds_until.unwrap_or(0) as f64);
    use PoolBound::{Bandwidth, Ceiling, Disk, Floor, PerNode};
    for bound in [Floor, Ceiling, Disk, Bandwidth, PerNode] {
        let is = f64::from(u8::from(demand.bound == Some(bound)));
        gauge!("forebay_pool_bound", "pool" => pool.name.clone(), "by" => bound.name()).set(is);
    }
}

fn node(node: &NodeSummary) {
    let last = &node.last;
    let set = |what: &'static str, value: f64| gauge!(what, "node" => node.name.clone()).set(value);
    set("forebay_fleet_node_away", f64::from(u8::from(node.away)));
    set("forebay_fleet_node_cpu_busy", share(last.cpu_per_mille.unwrap_or(0)));
    set("forebay_fleet_node_stall", share(last.load_per_mille.unwrap_or(0)));
    set("forebay_fleet_node_memory_available_bytes", last.memory_available_bytes as f64);
    set("forebay_fleet_node_disk_free_bytes", last.disk_free_bytes as f64);
    set("forebay_fleet_node_disk_errors", f64::from(last.disk_errors));
    set("forebay_fleet_node_raid_degraded", f64::from(last.degraded));
}
