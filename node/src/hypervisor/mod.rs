//! The programs that run guests, where a node has to talk to them.

pub mod agent;
pub mod qmp;
