//! Leases: `lease`.

use clap::{Args, Subcommand};

/// `forebay lease`.
#[derive(Args, Debug)]
pub struct LeaseArgs {
    #[command(subcommand)]
    pub command: LeaseCommand,
}

/// Leases.
#[derive(Subcommand, Debug)]
pub enum LeaseCommand {
    /// List who may write which volume
    #[command(visible_alias = "ls")]
    List,
    /// Take the right to write a volume from the node that has it: it is free when that has stopped, or its time is over
    Break(BreakLeaseArgs),
}

/// `forebay lease break`.
#[derive(Args, Debug)]
pub struct BreakLeaseArgs {
    /// The volume's id, as `forebay lease list` shows it
    #[arg(value_name = "VOLUME")]
    pub volume: String,
    /// Why: is kept with the lease
    #[arg(long)]
    pub why: String,
    /// Do not wait until its node has stopped. Only if it is certain that it does not write any more: two who write
    /// one volume destroy it
    #[arg(long)]
    pub at_once: bool,
}
