//! QEMU, through its monitor: moving a running guest from our export to the raw file behind it.
//!
//! A volume whose chunks are all present is a plain raw disk, and our code has no business in its I/O
//! path any more. [`pivot`] tells QEMU to open the file itself and to put it where the NBD client was,
//! while the guest runs: a mirror job that copies nothing, but repeats the guest's writes of those few
//! milliseconds ([`Pivot`] says why that is safe), and then takes the place of its source.
//!
//! - [`Monitor`]: one connection, one command at a time ([the protocol's specification]).
//! - [`View`]: what QEMU's block layer looks like, made of the answers to three queries.
//! - [`next`] and [`undo`]: pure; which step follows from what is seen. Nothing is remembered between
//!   steps: who was interrupted looks again and goes on, or back.
//! - [`fleece`]: a running guest's disk as it was at one instant.
//! - [`pivot`], [`resize`], [`identify`]: thin loops around them.
//!
//! [the protocol's specification]: https://www.qemu.org/docs/master/interop/qmp-spec.html

mod drive;
pub mod fleece;
mod graph;
mod monitor;
mod plan;
#[cfg(test)]
mod tests;
mod wire;

pub use drive::{Machine, Outcome, identify, pivot, resize, view};
pub use graph::{Job, Node, Parent, View};
pub use monitor::Monitor;
pub use plan::{Locking, NbdExport, Pivot, Step, Undo, next, undo};
pub use wire::{QmpError, Version};
