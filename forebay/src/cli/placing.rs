//! Choosing nodes: `place`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueHint};

/// `forebay place`.
#[derive(Args, Debug)]
#[command(
    after_help = "A request is JSON, e.g. '{\"id\": \"web-1\", \"needs\": {\"cpu-milli\": 2000, \"memory\": 4294967296}}', or a file \
    of one. What a request gets counts for those after it. The file of --simulate holds a fleet, requests, and a policy \
    if it is not to be the configuration's (place.*). Ends with 74 if there was no node for one of them."
)]
pub struct PlaceArgs {
    /// What is to be placed on the fleet as it is: JSON, a file of JSON, or `-` for standard input
    #[arg(
        value_name = "REQUEST",
        required_unless_present_any = ["simulate", "reserved", "release"],
        conflicts_with_all = ["simulate", "reserved", "release"]
    )]
    pub requests: Vec<String>,
    /// A fleet and what is to be placed on it: JSON, in a file, or `-` for standard input; nothing is placed in earnest
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with_all = ["reserved", "release", "reserve"])]
    pub simulate: Option<PathBuf>,
    /// Say why each node was chosen or not
    #[arg(long)]
    pub explain: bool,
    /// Reserve what is chosen, in the moment of the choice
    #[arg(long)]
    pub reserve: bool,
    /// For how long
    #[arg(long, value_name = "TIME", default_value = "1m", requires = "reserve", value_parser = crate::config::parse_later)]
    pub term: Duration,
    /// List what is reserved
    #[arg(long, conflicts_with_all = ["release", "reserve"])]
    pub reserved: bool,
    /// Give a reservation back
    #[arg(long, value_name = "ID", conflicts_with = "reserve")]
    pub release: Option<String>,
}
