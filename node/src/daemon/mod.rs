//! The pull daemon: a service of a host that others ask for images.
//!
//! One transfer per image: whoever asks for a path that is on its way joins that transfer; whoever
//! asks for the same image at another path waits for the first, and takes its chunks from there.
//! What was asked survives a restart ([`table`]); what had arrived is found again by hashing.

pub mod client;
pub mod http;
pub mod run;
pub mod table;

pub use client::DaemonClient;
pub use run::{Daemon, DaemonOptions, Grid};
