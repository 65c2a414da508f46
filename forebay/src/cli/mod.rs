//! The command line: what can be asked, and how.

mod disks;
mod images;
mod keeps;
mod leases;
mod nodes;
mod people;
mod placement;
mod placing;
mod pools;
mod serve;
mod top;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

pub use disks::*;
pub use images::*;
pub use keeps::*;
pub use leases::*;
pub use nodes::*;
pub use people::*;
pub use placement::*;
pub use placing::*;
pub use pools::*;
pub use serve::*;
pub use top::*;

/// Brings disk images to machines, verified chunk by chunk, and makes images of disks, of which only
/// what is new is sent and stored.
#[derive(Parser, Debug)]
#[command(name = "forebay", version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 success, 64 wrong usage, 65 bad input, 66 not found, 69 unsupported, 70 anything else,\n\
    73 conflict, 74 disk full or I/O error, 75 try again, 76 corrupt, 77 denied, 130 cancelled."
)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

const GLOBAL: &str = "Global options";

/// Options of every command.
#[derive(Args, Debug, Clone)]
pub struct Common {
    /// Data directory: finds the grid, keeps its papers [env: FOREBAY_DATA] [default: the user's data directory]
    #[arg(long, global = true, help_heading = GLOBAL, value_hint = ValueHint::DirPath)]
    pub data: Option<PathBuf>,
    /// Configuration file [env: FOREBAY_CONFIG] [default: DATA/forebay.toml if it is there]
    #[arg(long, global = true, help_heading = GLOBAL, value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Sets a key of the configuration; `forebay config` lists them
    #[arg(long = "set", global = true, help_heading = GLOBAL, value_name = "KEY=VALUE", value_parser = setting)]
    pub set: Vec<(String, String)>,
    /// Print JSON, for programs
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub json: bool,
    /// When to draw progress bars
    #[arg(long, global = true, help_heading = GLOBAL, value_enum, default_value = "auto")]
    pub progress: ProgressWhen,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = pair(text)?;
    crate::config::check_setting(&key, &value).map_err(|why| format!("{key}: {why}"))?;
    Ok((key, value))
}

/// A name that may have to be made.
fn new_name(text: &str) -> Result<image::Ref, String> {
    let name: image::Ref = text.parse().map_err(|e: image::Error| e.to_string())?;
    match name.looks_like_digest() {
        true => Err("it can be taken for the digest of an image: choose another name".into()),
        false => Ok(name),
    }
}

/// The value of a flag that stands for a key of the configuration.
fn value_of(key: &'static str) -> impl Fn(&str) -> Result<String, String> + Clone {
    move |text| crate::config::check_setting(key, text).map(|()| text.to_owned())
}

/// When to draw progress bars.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressWhen {
    /// Bars on a terminal, plain lines elsewhere.
    Auto,
    /// Plain lines.
    Plain,
    /// Nothing.
    Never,
}

/// What can be asked.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show the main job end to end on real files of this machine, then clean up
    Try(TryArgs),
    /// Serve a grid from this machine: store, receiver, cache and placement in one process
    Up(UpArgs),
    /// Serve chunks from this machine as one more cache of a grid that it joined, or take care of caches
    Cache(CacheArgs),
    /// Make an image of a disk and name it
    Import(Box<ImportArgs>),
    /// Make an image of a volume, or of any disk, as it is now, of which only what has changed is read and sent
    Save(Box<SaveArgs>),
    /// Bring an image to a file, a block device, or standard output
    Pull(PullArgs),
    /// Write an image to a file that other programs take: raw, qcow2 or vmdk
    Export(ExportArgs),
    /// List the images that have a name
    Images(ImagesArgs),
    /// Show what is known of an image
    Inspect(NameArgs),
    /// Show what differs between two images: how many bytes, where, and which files
    Diff(DiffArgs),
    /// Check an image in the store, or by restoring it
    Verify(Box<VerifyArgs>),
    /// Restore images drawn by lot to scratch space, check them, and keep a record
    Rehearse(Box<RehearseArgs>),
    /// Give an image one more name
    Tag(TagArgs),
    /// Remove names
    Rm(RmArgs),
    /// Remove names of images by rules: what of each hour, day, week, month or year is kept
    Prune(PruneArgs),
    /// Have an image whole on so many nodes, or in so many caches, whatever becomes of them
    Keep(KeepArgs),
    /// List the images that must be at hand, and where they are
    Kept(KeptArgs),
    /// Have an image be anywhere or nowhere again
    Unkeep(UnkeepArgs),
    /// Remove what no name reaches from the store, in two steps with a pause between
    Gc(GcArgs),
    /// Take care of the permanent store
    Store(StoreArgs),
    /// Take care of placement's state: back it up, restore it, check it
    Placement(PlacementArgs),
    /// Run the node's daemon, or manage nodes
    Node(NodeArgs),
    /// Disks of this node that can be used before their image has arrived; the node's daemon keeps them
    Volume(VolumeArgs),
    /// Volumes that nodes build ahead, so that there is one at once when it is wanted
    Pool(PoolArgs),
    /// Show who may write which volume, or take that right away
    Lease(LeaseArgs),
    /// List what was asked of placement and takes its time, wait for it, or end it
    Operations(OperationsArgs),
    /// Show changes of operations, pools, nodes and leases as they happen
    Watch(WatchArgs),
    /// Tokens with which people use the grid without a certificate
    Token(PeopleArgs),
    /// Use the grid as a person, by a token; it is kept in the data directory
    Login(LoginArgs),
    /// Show who changed what in the grid, and who was refused
    Audit(AuditArgs),
    /// Show how busy nodes are, and what runs on them
    Top(TopArgs),
    /// Choose nodes for what is to be placed, and say why; reserve them
    Place(PlaceArgs),
    /// Show the configuration in force, and where each value came from
    Config,
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}
