//! Statistics of nodes: what a node measures of itself and says with its reports, and what placement keeps of it.
//!
//! | method and path | body → answer | who |
//! |---|---|---|
//! | `GET /v1/stats?every=S` | → [`StatsList`]; nodes are asked to measure so often for a while | any member |
//! | `GET /v1/nodes/{name}/stats?since=T&every=S` | → [`NodeHistory`]: what came after that time | any member |
//!
//! One schema and one set of units: bytes, microseconds, seconds, thousandths (`per-mille`), counts. What ends in `-total` or
//! is called `errors` only grows while the machine or the daemon is up; what ends in `-per-sec` is the mean since the sample
//! before. What a kernel or a hypervisor does not say is left out, never 0.

mod bounds;
mod past;

pub use bounds::{MAX_EVENTS, MAX_LIST, MAX_TEXT};
pub use past::*;

use std::collections::{BTreeMap, BTreeSet};

use image::Digest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The version of what is said. A later one that says the same things otherwise is refused by name.
pub const SCHEMA: u32 = 1;

/// Why a sample was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// It was time.
    #[default]
    Interval,
    /// Something has happened on the node.
    Trigger,
    /// Somebody looks, and wants more of them.
    Asked,
}

/// What a node measured of itself at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct NodeStats {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Grows with each sample of a run of the daemon.
    pub number: u64,
    /// When, in seconds since 1970, by the node's clock.
    pub at: u64,
    /// Milliseconds since the sample before, over which means are; 0 of the first, which has none.
    pub span_millis: u64,
    /// Why now.
    pub cause: Cause,
    /// CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuStats>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStats>,
    /// How long tasks wait for what they lack.
    pub pressure: Pressures,
    /// File systems that volumes and state lie on.
    pub spaces: Vec<SpaceStats>,
    /// Block devices.
    pub disks: Vec<DiskStats>,
    /// Arrays of block devices.
    pub raids: Vec<RaidStats>,
    /// Network interfaces, VLANs among them.
    pub interfaces: Vec<InterfaceStats>,
    /// What can run guests.
    pub hypervisors: Vec<HypervisorStats>,
    /// What all running guests have together, also those that are left out of `vms`.
    pub guests: GuestTotals,
    /// Running guests.
    pub vms: Vec<VmStats>,
    /// What has happened since the sample before.
    pub events: Vec<Event>,
    /// Volumes and images.
    pub holdings: Holdings,
    /// What went wrong.
    pub requests: RequestStats,
    /// What its configuration says.
    pub declared: Declared,
    /// How many entries of these lists were left out because there are too many.
    pub left_out: u64,
}

/// CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct CpuStats {
    /// How many.
    pub cores: u32,
    /// How busy all of them are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busy_per_mille: Option<u32>,
    /// What a hypervisor below took from them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stolen_per_mille: Option<u32>,
    /// How busy each is.
    pub cores_busy_per_mille: Vec<u32>,
}

/// Memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct MemoryStats {
    /// All of it.
    pub total_bytes: u64,
    /// What can be had without swapping.
    pub available_bytes: u64,
    /// Swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_total_bytes: Option<u64>,
    /// What of that is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_free_bytes: Option<u64>,
}

/// Pressure stall information of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct Pressures {
    /// Waiting for a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Stall>,
    /// Waiting for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Stall>,
    /// Waiting for disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<Stall>,
}

/// The share of the time in which some tasks, or all of them, waited, over the last 10 and 60 seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct Stall {
    /// Some, 10 s.
    pub some10_per_mille: u32,
    /// Some, 60 s.
    pub some60_per_mille: u32,
    /// All, 10 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full10_per_mille: Option<u32>,
    /// All, 60 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full60_per_mille: Option<u32>,
}

impl Pressures {
    /// The highest share of the last minute in which some tasks waited; `None` if the kernel does not say.
    pub fn load_per_mille(&self) -> Option<u32> {
        let stalls = [self.cpu, self.memory, self.io];
        stalls.into_iter().flatten().map(|stall| stall.some60_per_mille.min(1000)).max()
    }
}

/// A file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct SpaceStats {
    /// What lies on it: `volumes` or `data`.
    pub holds: String,
    /// All of it.
    pub total_bytes: u64,
    /// What can be written.
    pub free_bytes: u64,
}

/// A block device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct DiskStats {
    /// What the kernel calls it.
    pub name: String,
    /// Its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// It has heads that move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotational: Option<bool>,
    /// What it did; `None` of the first sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work: Option<DiskWork>,
    /// Requests that failed, as the driver counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<u64>,
}

/// What a block device did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct DiskWork {
    /// Reads.
    pub reads_per_sec: u32,
    /// Writes.
    pub writes_per_sec: u32,
    /// What was read.
    pub read_bytes_per_sec: u64,
    /// What was written.
    pub written_bytes_per_sec: u64,
    /// How long a read took, on average; `None` if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_micros: Option<u64>,
    /// The same of a write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_micros: Option<u64>,
    /// The share of the time in which it had something to do.
    pub busy_per_mille: u32,
}

/// An array of block devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct RaidStats {
    /// What the kernel calls it.
    pub name: String,
    /// E.g. `raid1`.
    pub level: String,
    /// E.g. `clean`, as the kernel says.
    pub state: String,
    /// Devices that it is to have.
    pub devices: u32,
    /// How many of them are missing.
    pub degraded: u32,
    /// Errors of its devices that were made good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<u64>,
    /// Places where copies differed at the last check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mismatches: Option<u64>,
    /// How far it is with being checked or made good, while it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_per_mille: Option<u32>,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct InterfaceStats {
    /// What the kernel calls it.
    pub name: String,
    /// It carries.
    pub up: bool,
    /// There is a device behind it: it is no bridge, no tunnel, no VLAN.
    pub physical: bool,
    /// The number of its VLAN, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// The interface that the VLAN is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Bits a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed_bits_per_sec: Option<u64>,
    /// What came; `None` of the first sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received_bytes_per_sec: Option<u64>,
    /// What went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_bytes_per_sec: Option<u64>,
    /// Packets that were bad, both ways.
    pub errors: u64,
    /// Packets that were dropped, both ways.
    pub drops: u64,
}

/// A hypervisor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct HypervisorStats {
    /// E.g. `qemu`.
    pub kind: String,
    /// E.g. `9.1.2`.
    pub version: String,
    /// What it can do, e.g. `kvm`.
    pub features: BTreeSet<String>,
}

/// What running guests have together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct GuestTotals {
    /// How many there are.
    pub vms: u32,
    /// Their CPUs.
    pub cpus: u32,
    /// Their memory.
    pub memory_bytes: u64,
}

/// A running guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct VmStats {
    /// As its hypervisor was told, else the number of its process.
    pub name: String,
    /// The hypervisor's kind.
    pub hypervisor: String,
    /// Its CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Its memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// How many of this node's volumes it was given.
    pub volumes: u32,
}

/// Something that has happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct Event {
    /// When it was seen, in seconds since 1970.
    pub at: u64,
    /// What.
    pub what: What,
    /// To whom: a guest, or a hypervisor.
    pub name: String,
}

/// What may have happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A guest runs.
    VmStarted,
    /// A guest runs no longer.
    VmStopped,
    /// A hypervisor is there, or is of another version.
    HypervisorChanged,
    /// A hypervisor is there no longer.
    HypervisorGone,
    /// What a later version knows.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What a node has of volumes and images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct Holdings {
    /// Volumes that are somebody's.
    pub volumes: u32,
    /// Of these, the ones that are shown to guests.
    pub attached: u32,
    /// What their guests see, and what ready volumes have: written or not, it may be some time.
    pub volume_bytes: u64,
    /// What is to be built still.
    pub promised_bytes: u64,
    /// Images of which there are chunks, and about how many bytes.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub images: BTreeMap<Digest, u64>,
    /// Pools of which volumes are ready, and how many.
    pub pools: BTreeMap<String, u64>,
}

/// What went wrong since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct RequestStats {
    /// Pulls, captures, and what placement wanted, that ended with an error.
    pub failed_total: u64,
    /// What was asked again: reports that did not arrive, captures that waited for the grid, chunks that came wrong.
    pub retried_total: u64,
}

/// What a node's configuration says of it, for choosing it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct Declared {
    /// CPU architecture.
    pub architecture: String,
    /// Where it stands: `ams/row-2/rack-7`.
    pub domain: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What it is there for.
    pub functions: BTreeSet<String>,
    /// The only tenants that it takes; all if empty.
    pub tenants: BTreeSet<String>,
    /// The highest risk class that it takes; any if unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub risk_most: Option<u8>,
    /// Licences that it holds.
    pub licences: BTreeMap<String, DeclaredLicence>,
    /// What was measured of its hypervisors, by kind.
    pub strengths: BTreeMap<String, DeclaredStrengths>,
    /// What its network carries, where interfaces do not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_bits_per_sec: Option<u64>,
}

/// A licence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct DeclaredLicence {
    /// How many guests it is good for; any number if unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<u64>,
    /// What one more guest costs, in thousandths of a unit that is the same for all nodes.
    pub cost_per_mille: u32,
}

/// How much of what the bare machine does guests reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct DeclaredStrengths {
    /// Computing.
    pub cpu_per_mille: u32,
    /// Reading and writing the disk.
    pub disk_per_mille: u32,
    /// Sending and receiving.
    pub network_per_mille: u32,
}

impl NodeStats {
    /// The file system that volumes lie on.
    pub fn volumes_space(&self) -> Option<&SpaceStats> {
        self.spaces.iter().find(|space| space.holds == "volumes").or(self.spaces.first())
    }

    /// Physical interfaces that carry.
    pub fn carriers(&self) -> impl Iterator<Item = &InterfaceStats> {
        self.interfaces.iter().filter(|interface| interface.physical && interface.up)
    }
}
