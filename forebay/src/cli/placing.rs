//! Choosing nodes: `place`.

use std::path::PathBuf;

use clap::{Args, ValueHint};

/// `forebay place`.
#[derive(Args, Debug)]
#[command(
    after_help = "The file holds a fleet, requests, and a policy if it is not to be the configuration's (place.*). What a \
    request gets counts for those after it. Ends with 74 if there was no node for one of them."
)]
pub struct PlaceArgs {
    /// A fleet and what is to be placed on it: JSON, in a file, or `-` for standard input; nothing is placed in earnest
    #[arg(long, value_name = "FILE", required = true, value_hint = ValueHint::FilePath)]
    pub simulate: PathBuf,
    /// Say why each node was chosen or not
    #[arg(long)]
    pub explain: bool,
}
