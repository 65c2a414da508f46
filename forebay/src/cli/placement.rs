//! Taking care of placement's state: `placement`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

/// `forebay placement`.
#[derive(Args, Debug)]
pub struct PlacementArgs {
    #[command(subcommand)]
    pub command: PlacementCommand,
}

/// What can be done with placement's state (placement.state). Of one in a file placement must be stopped.
#[derive(Subcommand, Debug)]
pub enum PlacementCommand {
    /// Write all of placement's state, as of one moment, to a file
    Backup(BackUpStateArgs),
    /// Put placement's state back from a file; every placement must be stopped
    Restore(RestoreStateArgs),
    /// Read all of placement's state, and say what is wrong
    Check,
    /// Say which placement answers, and which leads
    Status,
}

/// `forebay placement backup`.
#[derive(Args, Debug)]
pub struct BackUpStateArgs {
    /// The file to write; it must not be there yet
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// `forebay placement restore`.
#[derive(Args, Debug)]
pub struct RestoreStateArgs {
    /// The file of a backup
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Replace the state that is there; it is lost
    #[arg(long)]
    pub force: bool,
}
