//! The node's side: pulling images to disks of this machine, alone or as a daemon that does one
//! transfer per image however many ask; and trying out that images can be restored.

pub mod captures;
pub mod daemon;
pub mod diff;
pub mod export;
pub mod format;
pub mod hypervisor;
pub mod leases;
pub mod patience;
pub mod pools;
pub mod pull;
pub mod rate;
pub mod restore;
pub mod spread;
pub mod stats;
mod tools;
pub mod volumes;
