//! What nodes say and what is placed on them, by what requests name.

use std::collections::BTreeSet;

use api::fleet::{Hypervisor, Instance, Licence, NodeFacts, Strengths};
use image::Digest;

use super::index::{At, Index};

/// A hypervisor, but for what was measured of it on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Software {
    pub kind: String,
    pub version: String,
    pub features: BTreeSet<String>,
}

impl Software {
    fn of(hypervisor: &Hypervisor) -> Self {
        let Hypervisor { kind, version, features, .. } = hypervisor.clone();
        Self { kind, version, features }
    }
}

/// Facts about nodes, by what requests name.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub architectures: Index<String, ()>,
    pub hypervisors: Index<Software, Strengths>,
    pub licences: Index<String, Licence>,
    pub labels: Index<(String, String), ()>,
    pub functions: Index<String, ()>,
    /// Nodes for some tenants only, by these tenants.
    pub dedicated: Index<String, ()>,
    pub images: Index<Digest, u64>,
    pub pools: Index<String, u64>,
    /// By the paths of domains, of each level.
    pub domains: Index<String, ()>,
    /// How many instances of it are on a node: of a licence, a tenant, a group.
    pub licensed: Index<String, u64>,
    pub tenants: Index<String, u64>,
    pub groups: Index<String, u64>,
}

impl Known {
    /// What a node says, but for its domain.
    pub fn retell(&mut self, at: At, was: &NodeFacts, is: &NodeFacts) {
        let set = |names: &BTreeSet<String>| {
            names.iter().map(|name| (name.clone(), ())).collect::<Vec<_>>()
        };
        if was.architecture != is.architecture {
            let is = is.architecture.iter().map(|name| (name.clone(), ()));
            self.architectures.retell(at, was.architecture.clone(), is);
        }
        if was.hypervisors != is.hypervisors {
            let is = is.hypervisors.iter().map(|of| (Software::of(of), of.strengths));
            self.hypervisors.retell(at, was.hypervisors.iter().map(Software::of), is);
        }
        if was.licences != is.licences {
            self.licences.retell(at, was.licences.keys().cloned(), is.licences.clone());
        }
        if was.labels != is.labels {
            let is = is.labels.clone().into_iter().map(|label| (label, ()));
            self.labels.retell(at, was.labels.clone(), is);
        }
        if was.functions != is.functions {
            self.functions.retell(at, was.functions.clone(), set(&is.functions));
        }
        if was.tenants != is.tenants {
            self.dedicated.retell(at, was.tenants.clone(), set(&is.tenants));
        }
        if was.images != is.images {
            self.images.retell(at, was.images.keys().copied(), is.images.clone());
        }
        if was.pools != is.pools {
            self.pools.retell(at, was.pools.keys().cloned(), is.pools.clone());
        }
    }

    /// An instance comes to a node, or with `false` leaves it.
    pub fn count(&mut self, instance: &Instance, at: At, comes: bool) {
        for licence in &instance.licences {
            self.licensed.count(licence.clone(), at, comes);
        }
        if let Some(group) = &instance.group {
            self.groups.count(group.clone(), at, comes);
        }
        if let Some(tenant) = instance.tenant.as_ref().filter(|_| !instance.builds) {
            self.tenants.count(tenant.clone(), at, comes);
        }
    }
}
