//! What a node has measured and declared, as far as it matters for choosing it. Pure.
//!
//! What is taken of a node is what is more of two: what its kernel says is in use, and what its guests and volumes may
//! use some day. So nothing is promised twice, and what was given out thinly counts whole.

use std::collections::BTreeMap;

use api::fleet::{Hypervisor, Licence, NodeFacts, Resources, Strengths};
use api::stats::{Declared, DeclaredLicence, DeclaredStrengths, NodeStats};

/// What a node has, and what is taken of it beside reservations.
pub(super) fn facts(name: &str, stats: &NodeStats, cordoned: bool) -> NodeFacts {
    let says = &stats.declared;
    let (capacity, reserved) = resources(stats);
    NodeFacts {
        name: name.to_owned(),
        capacity,
        reserved,
        architecture: Some(says.architecture.clone()).filter(|text| !text.is_empty()),
        hypervisors: hypervisors(stats),
        licences: says.licences.iter().map(|(name, of)| (name.clone(), licence(of))).collect(),
        labels: says.labels.clone(),
        functions: says.functions.clone(),
        tenants: says.tenants.clone(),
        risk_most: says.risk_most.unwrap_or(u8::MAX),
        domain: says.domain.clone(),
        cordoned,
        draining: false,
        load: share(stats.pressure.load_per_mille().unwrap_or(0)),
        images: stats.holdings.images.clone(),
        pools: stats.holdings.pools.clone(),
    }
}

fn resources(stats: &NodeStats) -> (Resources, Resources) {
    let Declared { network_bits_per_sec, .. } = stats.declared;
    let memory = stats.memory.clone().unwrap_or_default();
    let space = stats.volumes_space().cloned().unwrap_or_default();
    let (guests, holdings) = (stats.guests, &stats.holdings);
    let speeds = stats.carriers().filter_map(|link| link.speed_bits_per_sec);
    let traffic = |of: fn(&api::stats::InterfaceStats) -> Option<u64>| {
        stats.carriers().filter_map(of).fold(0, u64::saturating_add)
    };
    let bytes =
        traffic(|link| link.received_bytes_per_sec).max(traffic(|link| link.sent_bytes_per_sec));
    let capacity = Resources {
        cpu_milli: stats.cpu.as_ref().map_or(0, |cpu| u64::from(cpu.cores) * 1000),
        memory: memory.total_bytes,
        disk: space.total_bytes,
        network: network_bits_per_sec.unwrap_or_else(|| speeds.fold(0, u64::saturating_add)),
    };
    let reserved = Resources {
        cpu_milli: u64::from(guests.cpus) * 1000,
        memory: memory.total_bytes.saturating_sub(memory.available_bytes).max(guests.memory_bytes),
        disk: space
            .total_bytes
            .saturating_sub(space.free_bytes)
            .max(holdings.volume_bytes)
            .saturating_add(holdings.promised_bytes),
        network: bytes.saturating_mul(8),
    };
    (capacity, reserved)
}

fn hypervisors(stats: &NodeStats) -> Vec<Hypervisor> {
    let measured: &BTreeMap<String, DeclaredStrengths> = &stats.declared.strengths;
    let hypervisor = |of: &api::stats::HypervisorStats| Hypervisor {
        kind: of.kind.clone(),
        version: of.version.clone(),
        features: of.features.clone(),
        strengths: measured.get(&of.kind).map(strengths).unwrap_or_default(),
    };
    stats.hypervisors.iter().map(hypervisor).collect()
}

fn strengths(of: &DeclaredStrengths) -> Strengths {
    Strengths {
        cpu: share(of.cpu_per_mille),
        disk: share(of.disk_per_mille),
        network: share(of.network_per_mille),
    }
}

fn licence(of: &DeclaredLicence) -> Licence {
    Licence { held: of.held, cost: f64::from(of.cost_per_mille) / 1000.0 }
}

fn share(per_mille: u32) -> f64 {
    f64::from(per_mille.min(1000)) / 1000.0
}

#[cfg(test)]
mod tests {
    use api::stats::{
        CpuStats, GuestTotals, Holdings, InterfaceStats, MemoryStats, Pressures, SpaceStats, Stall,
    };

    use super::*;

    #[test]
    fn what_is_taken_is_what_is_in_use_or_may_be() {
        let stats = |available_bytes, free_bytes, volume_bytes| NodeStats {
            cpu: Some(CpuStats { cores: 8, ..CpuStats::default() }),
            memory: Some(MemoryStats {
                total_bytes: 100,
                available_bytes,
                ..MemoryStats::default()
            }),
            pressure: Pressures {
                io: Some(Stall { some60_per_mille: 250, ..Stall::default() }),
                ..Pressures::default()
            },
            spaces: vec![SpaceStats { holds: "volumes".into(), total_bytes: 1000, free_bytes }],
            interfaces: vec![InterfaceStats {
                up: true,
                physical: true,
                speed_bits_per_sec: Some(1_000_000),
                sent_bytes_per_sec: Some(100),
                ..InterfaceStats::default()
            }],
            guests: GuestTotals { vms: 2, cpus: 3, memory_bytes: 40 },
            holdings: Holdings { volume_bytes, promised_bytes: 7, ..Holdings::default() },
            ..NodeStats::default()
        };
        let thin = facts("n", &stats(90, 900, 500), true);
        let amounts = |r: Resources| r.all();
        assert_eq!(amounts(thin.capacity), [8000, 100, 1000, 1_000_000]);
        assert_eq!(amounts(thin.reserved), [3000, 40, 507, 800]);
        assert_eq!((thin.load, thin.cordoned, thin.risk_most), (0.25, true, u8::MAX));
        let full = facts("n", &stats(10, 100, 500), false);
        assert_eq!(amounts(full.reserved), [3000, 90, 907, 800]);
        full.check().unwrap();
    }
}
