//! What placement keeps of samples, and how it is asked for.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{DiskWork, Event, InterfaceStats, NodeStats};

/// The essentials of a sample: what is kept of the past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct StatsPoint {
    /// When, in seconds since 1970, by the node's clock.
    pub at: u64,
    /// CPUs.
    pub cores: u32,
    /// How busy they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_per_mille: Option<u32>,
    /// [`Pressures::load_per_mille`](super::Pressures::load_per_mille).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_per_mille: Option<u32>,
    /// Memory.
    pub memory_total_bytes: u64,
    /// What of it can be had.
    pub memory_available_bytes: u64,
    /// Where volumes lie.
    pub disk_total_bytes: u64,
    /// What of it can be written.
    pub disk_free_bytes: u64,
    /// Reads of all disks.
    pub reads_per_sec: u32,
    /// Writes of all disks.
    pub writes_per_sec: u32,
    /// How long either took, on average; `None` if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_micros: Option<u32>,
    /// What came, over physical interfaces.
    pub received_bytes_per_sec: u64,
    /// What went.
    pub sent_bytes_per_sec: u64,
    /// Running guests.
    pub vms: u32,
    /// Volumes that are somebody's.
    pub volumes: u32,
    /// Errors of disks and arrays.
    pub disk_errors: u32,
    /// Devices that arrays lack.
    pub degraded: u32,
    /// [`RequestStats::failed_total`](super::RequestStats::failed_total).
    pub failed_total: u32,
    /// [`RequestStats::retried_total`](super::RequestStats::retried_total).
    pub retried_total: u32,
}

/// The last that a node has said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct NodeSummary {
    /// The node.
    pub name: String,
    /// Seconds since placement got it.
    pub heard: u64,
    /// It is not heard of any more.
    pub away: bool,
    /// What it was.
    pub last: StatsPoint,
    /// Its hypervisors: kind and version.
    pub hypervisors: Vec<String>,
    /// Why it cannot be chosen for anything, if what it says of itself makes no sense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfit: Option<String>,
}

/// The last of all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct StatsList {
    /// In the order of their names.
    pub nodes: Vec<NodeSummary>,
    /// Volumes that were given back and erased, as far as the placement that leads has heard since it was started.
    #[serde(default)]
    pub released_volumes: u64,
    /// Bytes that they have freed.
    #[serde(default)]
    pub released_bytes: u64,
}

/// What is known of a node, and what is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct NodeHistory {
    /// As in the list.
    #[serde(flatten)]
    pub summary: NodeSummary,
    /// All of the last sample.
    pub stats: NodeStats,
    /// The last samples, the newest first.
    pub samples: Vec<StatsPoint>,
    /// One of each minute of the last hour, the newest first.
    pub minutes: Vec<StatsPoint>,
    /// What has happened, the newest first.
    pub events: Vec<Event>,
}

/// How closely somebody looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Every {
    /// Seconds from one sample of each node to the next, for the next half minute; 0: as nodes are configured. Of many
    /// nodes so often that a thousand a second measure at most.
    #[serde(default)]
    pub every: u32,
}

/// Which part of a history is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Since {
    /// What is later than this, in seconds since 1970 by the node's clock.
    #[serde(default)]
    pub since: u64,
    /// Seconds from one sample to the next, for the next half minute; 0: as the node is configured.
    #[serde(default)]
    pub every: u32,
}

impl NodeStats {
    /// The essentials.
    pub fn point(&self) -> StatsPoint {
        let memory = self.memory.clone().unwrap_or_default();
        let space = self.volumes_space().cloned().unwrap_or_default();
        let work = || self.disks.iter().filter_map(|disk| disk.work);
        let sum = |of: fn(&DiskWork) -> u32| work().fold(0_u32, |a, w| a.saturating_add(of(&w)));
        let net = |of: fn(&InterfaceStats) -> Option<u64>| {
            self.carriers().filter_map(of).fold(0_u64, u64::saturating_add)
        };
        let arrays = self.raids.iter().filter_map(|raid| raid.errors);
        let errors = self.disks.iter().filter_map(|disk| disk.errors).chain(arrays);
        StatsPoint {
            at: self.at,
            cores: self.cpu.as_ref().map_or(0, |cpu| cpu.cores),
            cpu_per_mille: self.cpu.as_ref().and_then(|cpu| cpu.busy_per_mille),
            load_per_mille: self.pressure.load_per_mille(),
            memory_total_bytes: memory.total_bytes,
            memory_available_bytes: memory.available_bytes,
            disk_total_bytes: space.total_bytes,
            disk_free_bytes: space.free_bytes,
            reads_per_sec: sum(|work| work.reads_per_sec),
            writes_per_sec: sum(|work| work.writes_per_sec),
            io_micros: mean_micros(work()),
            received_bytes_per_sec: net(|of| of.received_bytes_per_sec),
            sent_bytes_per_sec: net(|of| of.sent_bytes_per_sec),
            vms: self.guests.vms,
            volumes: self.holdings.volumes,
            disk_errors: small(errors.fold(0, u64::saturating_add)),
            degraded: self.raids.iter().fold(0, |sum, raid| sum.saturating_add(raid.degraded)),
            failed_total: small(self.requests.failed_total),
            retried_total: small(self.requests.retried_total),
        }
    }
}

fn small(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Of reads and writes of all disks, each counted as often as there were such.
fn mean_micros(works: impl Iterator<Item = DiskWork>) -> Option<u32> {
    let (mut count, mut micros) = (0_u128, 0_u128);
    for work in works {
        for (many, each) in
            [(work.reads_per_sec, work.read_micros), (work.writes_per_sec, work.write_micros)]
        {
            // Fewer than one a second count as one, or their time would count for nothing.
            let Some(each) = each else { continue };
            count += u128::from(many.max(1));
            micros += u128::from(many.max(1)) * u128::from(each);
        }
    }
    (count > 0).then(|| u32::try_from(micros / count).unwrap_or(u32::MAX))
}
