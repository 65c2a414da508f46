//! An export over NBD: for QEMU, libnbd and the kernel's client, on a Unix socket of this machine.
//!
//! [`proto`] is the protocol, sans-IO. The rest drives it: [`Server`] listens and ends; each connection is
//! one task that reads many requests at a time, has the disk work on them side by side, and gathers the
//! replies. What is served, and what is not, is in `docs/exports.md`.

mod connection;
mod cut;
mod fault;
mod inbox;
mod leaving;
mod ledger;
mod memory;
mod outbox;
pub mod proto;
mod server;
mod slots;
mod socket;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tools_tests;
mod transmission;
mod work;

pub use fault::Fault;
pub use memory::Memory;
pub use server::{Export, Limits, Server};
pub use socket::Socket;
