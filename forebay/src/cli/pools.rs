//! Pools of ready volumes, and what was asked of placement: `pool`, `operations`.

use clap::{Args, Subcommand};

/// `forebay pool`.
#[derive(Args, Debug)]
pub struct PoolArgs {
    #[command(subcommand)]
    pub command: PoolCommand,
}

/// Pools.
#[derive(Subcommand, Debug)]
pub enum PoolCommand {
    /// Make a pool: nodes build its volumes ahead
    Create(SetPoolArgs),
    /// List the pools of the grid
    #[command(visible_alias = "ls")]
    List,
    /// Show a pool: what it wants and why, and what is where
    Show(PoolNameArgs),
    /// Change what a pool shall be; what is not named stays as it is
    Set(SetPoolArgs),
    /// Build nothing more for a pool, and remove what is ready
    Drain(PoolNameArgs),
    /// Delete a pool of which nothing is left
    #[command(visible_alias = "rm")]
    Delete(PoolNameArgs),
    /// Take a ready volume of a pool
    Claim(ClaimArgs),
    /// List what is ready on this node; its daemon answers
    Ready,
}

/// A pool.
#[derive(Args, Debug)]
pub struct PoolNameArgs {
    /// The pool
    #[arg(value_name = "POOL")]
    pub name: String,
}

/// `forebay pool create` and `set`.
#[derive(Args, Debug)]
pub struct SetPoolArgs {
    /// The pool
    #[arg(value_name = "POOL")]
    pub name: String,
    /// What its volumes hold: a ref, whose moves the pool follows, or a digest [default: nothing]
    #[arg(long, value_name = "REF")]
    pub image: Option<String>,
    /// Size of its volumes, e.g. 20GiB [default: the image's]
    #[arg(long, value_parser = crate::config::parse_size)]
    pub size: Option<u64>,
    /// Logical sector size in bytes [default: the image's, 512 for blank volumes]
    #[arg(long, value_parser = ["512", "4096"])]
    pub sector_size: Option<String>,
    /// Format them: a GPT with one partition of this file system
    #[arg(long, value_name = "FS", value_parser = ["ext3", "ext4", "xfs", "btrfs", "fat16", "fat32", "ntfs", "swap"], conflicts_with = "image")]
    pub format: Option<String>,
    /// Partition and format them as this JSON file says: see the operations guide
    #[arg(long, value_name = "FILE", conflicts_with_all = ["image", "format"], value_hint = clap::ValueHint::FilePath)]
    pub layout: Option<std::path::PathBuf>,
    /// With fewer ready volumes than this more are built [default: half the target]
    #[arg(long, value_name = "N")]
    pub low: Option<u32>,
    /// Until there are so many [default when it is made: 2]
    #[arg(long, value_name = "N")]
    pub target: Option<u32>,
    /// More than this are removed [default: twice the target]
    #[arg(long, value_name = "N")]
    pub max: Option<u32>,
    /// At most so many on one node
    #[arg(long, value_name = "N")]
    pub per_node: Option<u32>,
    /// Build at most so many at the same time
    #[arg(long, value_name = "N")]
    pub builds: Option<u32>,
    /// Follow demand, with so many ready at least and at most, e.g. 1..40: low threshold and target are what claims ask for
    #[arg(long, value_name = "FLOOR..CEILING", value_parser = crate::config::parse_range, conflicts_with = "no_follow")]
    pub follow: Option<(u32, u32)>,
    /// Go by the low threshold and the target again
    #[arg(long, conflicts_with_all = ["ahead", "hold"])]
    pub no_follow: bool,
    /// Keep the claims of so long ready, beyond those that come while one is built [default: 1m]
    #[arg(long, value_name = "TIME", value_parser = crate::config::parse_time)]
    pub ahead: Option<std::time::Duration>,
    /// Get smaller only after fewer were wanted for so long [default: 30m]
    #[arg(long, value_name = "TIME", value_parser = crate::config::parse_time)]
    pub hold: Option<std::time::Duration>,
    /// Bytes that its volumes may have over the grid; 0: no limit
    #[arg(long, value_name = "SIZE", value_parser = crate::config::parse_size)]
    pub disk_budget: Option<u64>,
    /// Bytes a second that builds of it over the grid may fetch together; 0: no limit
    #[arg(long, value_name = "RATE", value_parser = crate::config::parse_rate)]
    pub build_rate: Option<u64>,
}

/// `forebay pool claim`.
#[derive(Args, Debug)]
pub struct ClaimArgs {
    /// The pool
    #[arg(value_name = "POOL")]
    pub pool: String,
    /// What the volume is to be called on its node
    #[arg(value_name = "VOLUME")]
    pub volume: String,
    /// The node that it should be on; another will do
    #[arg(long)]
    pub node: Option<String>,
    /// No other node will do
    #[arg(long, requires = "node")]
    pub only: bool,
    /// Take what is ready on this node, without asking placement
    #[arg(long, conflicts_with_all = ["node", "only"])]
    pub here: bool,
    /// 32 hexadecimal digits: the same request again has the same answer [default: drawn]
    #[arg(long, value_name = "ID")]
    pub request: Option<String>,
    /// How long the volume is waited for
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = crate::config::parse_time)]
    pub wait: std::time::Duration,
}

/// `forebay operations`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct OperationsArgs {
    #[command(subcommand)]
    pub command: Option<OperationsCommand>,
    /// Show this one, by its id [default: list those of the last day]
    #[arg(value_name = "ID")]
    pub id: Option<String>,
    /// Wait until it has ended, at most for so long
    #[arg(long, value_name = "TIME", requires = "id", value_parser = crate::config::parse_time)]
    pub wait: Option<std::time::Duration>,
}

/// Operations.
#[derive(Subcommand, Debug)]
pub enum OperationsCommand {
    /// Show each step of an operation until it has ended
    Watch(OperationIdArgs),
    /// End an operation, if no node has done it meanwhile
    Cancel(OperationIdArgs),
}

/// An operation.
#[derive(Args, Debug)]
pub struct OperationIdArgs {
    /// Its id
    #[arg(value_name = "ID")]
    pub id: String,
}
