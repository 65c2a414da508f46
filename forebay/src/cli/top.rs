//! How busy nodes are: `top`.

use clap::{Args, ValueEnum};

/// `forebay top`.
#[derive(Args, Debug)]
#[command(
    after_help = "On a terminal the table is drawn again and again until Ctrl-C; else it is printed once, but with --watch."
)]
pub struct TopArgs {
    /// All of one node: its disks, interfaces, guests, and what has happened there
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// By what nodes are sorted, the highest first; names from a to z
    #[arg(long, value_enum, default_value = "name")]
    pub sort: SortArg,
    /// Go on, and have nodes measure themselves so often while it runs, e.g. 1s
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "1s", value_parser = crate::config::parse_later)]
    pub watch: Option<std::time::Duration>,
}

/// By what nodes are sorted.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum SortArg {
    /// Their names
    Name,
    /// How busy their CPUs are
    Cpu,
    /// The share of memory that is taken
    Memory,
    /// The share of the disk that is taken
    Disk,
    /// How long their tasks wait
    Load,
    /// Reads and writes a second
    Io,
    /// What comes and goes over the network
    Network,
    /// Running guests
    Vms,
}
