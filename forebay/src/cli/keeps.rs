//! Images that must be at hand: `keep`, `kept`, `unkeep`.

use clap::Args;

/// `forebay keep`.
#[derive(Args, Debug)]
pub struct KeepArgs {
    /// A ref, whose moves are followed, or a digest
    #[arg(value_name = "REF")]
    pub name: String,
    /// On how many nodes it must be whole
    #[arg(long, value_name = "N", default_value_t = 0, required_unless_present = "caches")]
    pub nodes: u32,
    /// In how many caches it must be whole
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub caches: u32,
    /// Only on nodes that are there for this function
    #[arg(long, value_name = "NAME", requires = "nodes")]
    pub function: Option<String>,
}

/// `forebay kept`.
#[derive(Args, Debug)]
pub struct KeptArgs {
    /// Show where this one is, and why
    #[arg(value_name = "REF")]
    pub name: Option<String>,
}

/// `forebay unkeep`.
#[derive(Args, Debug)]
pub struct UnkeepArgs {
    /// The ref or digest, as `forebay kept` lists it
    #[arg(value_name = "REF")]
    pub name: String,
}
