//! The command line: what can be asked, and how.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

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
    /// Remove what no name reaches from the store, in two steps with a pause between
    Gc(GcArgs),
    /// Take care of the permanent store
    Store(StoreArgs),
    /// Run the node's daemon, or manage nodes
    Node(NodeArgs),
    /// Disks of this node that can be used before their image has arrived; the node's daemon keeps them
    Volume(VolumeArgs),
    /// Show the configuration in force, and where each value came from
    Config,
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

/// `forebay try`.
#[derive(Args, Debug)]
pub struct TryArgs {
    /// Keep the directory in which it worked
    #[arg(long)]
    pub keep: bool,
    /// Directory of real files to make the disk of [default: the Rust toolchain's, or /usr]
    #[arg(long, value_hint = ValueHint::DirPath)]
    pub from: Option<PathBuf>,
    /// Bytes of files to put on the disk, at most
    #[arg(long, default_value = "512MiB", value_parser = crate::config::parse_size)]
    pub size: u64,
}

/// `forebay up`.
#[derive(Args, Debug)]
pub struct UpArgs {
    /// Where placement's API listens (up.listen)
    #[arg(long, value_parser = value_of("up.listen"))]
    pub listen: Option<String>,
}

/// `forebay cache`.
#[derive(Args, Debug)]
pub struct CacheArgs {
    #[command(subcommand)]
    pub command: Option<CacheCommand>,
}

/// Taking care of caches. Without one of these, `forebay cache` serves.
#[derive(Subcommand, Debug)]
pub enum CacheCommand {
    /// Show how the caches are, or how much of an image each holds
    Status(CacheStatusArgs),
    /// Fetch what caches lack of an image, before nodes ask for it
    Warm(OnCachesArgs),
    /// Keep an image in caches, whatever else is asked for; fetches what they lack
    Pin(OnCachesArgs),
    /// Let a pinned image be evicted again
    Unpin(OnCachesArgs),
    /// Drop an image from caches
    Evict(OnCachesArgs),
    /// Check every frame on the caches' disks, again and again
    Scrub(ScrubArgs),
    /// Print the caches' metrics, as Prometheus reads them
    Metrics(On),
    /// Send nodes to other caches; the drained one ends when nobody asks it any more
    Drain(DrainArgs),
}

/// Which caches.
#[derive(Args, Debug)]
pub struct On {
    /// Only this cache (may be repeated) [default: all]
    #[arg(long, value_name = "CACHE")]
    pub on: Vec<String>,
}

/// An image, on caches.
#[derive(Args, Debug)]
pub struct OnCachesArgs {
    /// A ref or a digest
    #[arg(value_name = "REF")]
    pub name: String,
    #[command(flatten)]
    pub on: On,
}

/// `forebay cache status`.
#[derive(Args, Debug)]
pub struct CacheStatusArgs {
    /// A ref or a digest: how much of it each cache holds
    #[arg(value_name = "REF")]
    pub name: Option<String>,
    #[command(flatten)]
    pub on: On,
}

/// `forebay cache scrub`.
#[derive(Args, Debug)]
pub struct ScrubArgs {
    /// Bytes a second until the cache is restarted; 0 stops it [default: the cache's cache.scrub]
    #[arg(long, value_parser = crate::config::parse_size)]
    pub rate: Option<u64>,
    #[command(flatten)]
    pub on: On,
}

/// `forebay cache drain`.
#[derive(Args, Debug)]
pub struct DrainArgs {
    /// The cache
    #[arg(value_name = "CACHE")]
    pub name: String,
    /// Let it stay after all
    #[arg(long)]
    pub undo: bool,
}

/// `forebay import`.
#[derive(Args, Debug)]
pub struct ImportArgs {
    /// A disk: a regular file, a block device, or `-` for standard input
    #[arg(value_hint = ValueHint::FilePath)]
    pub path: PathBuf,
    /// The name that it gets, `[tenant/]name:tag`
    #[arg(value_name = "REF")]
    pub name: image::Ref,
    /// Format of the disk [default: what the extension says]
    #[arg(long, value_enum)]
    pub format: Option<FormatArg>,
    /// What the disk is compressed with, as a whole [default: what the extension says]
    #[arg(long, value_enum)]
    pub compression: Option<CompressionArg>,
    /// Logical sector size in bytes [default: the device's own, 512 for files]
    #[arg(long, value_parser = ["512", "4096"])]
    pub sector_size: Option<String>,
    /// Size of the disk, e.g. 4GiB: a stream that is shorter or longer is refused
    #[arg(long, value_parser = crate::config::parse_size)]
    pub size: Option<u64>,
    /// Chunk size: a power of two from 16KiB to 4MiB
    #[arg(long, default_value = "256KiB", value_parser = chunk_log2)]
    pub chunk_size: u8,
    /// An image that this one was made from; what they share is not sent
    #[arg(long, value_name = "REF")]
    pub parent: Option<String>,
    /// Fail if the name is taken already
    #[arg(long)]
    pub new: bool,
    #[command(flatten)]
    pub record: RecordArgs,
}

fn rate(text: &str) -> Result<u64, String> {
    match crate::config::parse_size(text)? {
        0 => Err("nothing would ever be read: leave it out for no limit".into()),
        rate => Ok(rate),
    }
}

/// `forebay save`.
#[derive(Args, Debug)]
pub struct SaveArgs {
    /// A volume of this node, by its name; or the path, with a `/` in it, of a disk: a file, or a block device
    #[arg(value_name = "SOURCE", value_hint = ValueHint::FilePath)]
    pub source: String,
    /// The name that the image gets, `[tenant/]name:tag`
    #[arg(value_name = "REF")]
    pub name: image::Ref,
    /// The image that this one was made from [default: of a volume, the one that its changes count from]
    #[arg(long, value_name = "REF")]
    pub parent: Option<String>,
    /// Read all of the disk, whatever is known of what has changed
    #[arg(long)]
    pub all: bool,
    /// Take only what nobody else wants of disk and network
    #[arg(long)]
    pub background: bool,
    /// Bytes a second to read at most
    #[arg(long, value_parser = rate)]
    pub rate: Option<u64>,
    /// The socket of the guest's agent (qemu-guest-agent): file systems hold still while the instant is fixed
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::AnyPath)]
    pub agent: Option<PathBuf>,
    /// Do not wait until it is done
    #[arg(long)]
    pub no_wait: bool,
    /// Fail if the name is taken already
    #[arg(long)]
    pub new: bool,
    #[command(flatten)]
    pub record: RecordArgs,
}

fn chunk_log2(text: &str) -> Result<u8, String> {
    let size = crate::config::parse_size(text)?;
    let log2 = size.checked_ilog2().unwrap_or(0) as u8;
    if size.is_power_of_two() && image::geometry::CHUNK_LOG2.contains(&log2) {
        Ok(log2)
    } else {
        Err("must be a power of two from 16KiB to 4MiB".into())
    }
}

/// Format of a disk.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormatArg {
    /// The bytes of the disk.
    Raw,
    /// QEMU's qcow2.
    Qcow2,
    /// VMware's vmdk.
    Vmdk,
}

/// What a disk is compressed with.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompressionArg {
    /// Nothing.
    None,
    /// zstd.
    Zstd,
    /// gzip.
    Gzip,
    /// xz.
    Xz,
}

/// What people say of an image.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "What is said of the image")]
pub struct RecordArgs {
    /// Kind of image [default: os]
    #[arg(long, value_enum)]
    pub kind: Option<KindArg>,
    /// Operating system, e.g. `debian 12`
    #[arg(long)]
    pub os: Option<String>,
    /// CPU architecture, e.g. `x86_64`
    #[arg(long)]
    pub arch: Option<String>,
    /// `bios` or `uefi`
    #[arg(long)]
    pub firmware: Option<String>,
    /// CPUs that it wants
    #[arg(long)]
    pub cpus: Option<u32>,
    /// Memory that it wants, in MiB
    #[arg(long)]
    pub memory_mib: Option<u64>,
    /// Network interfaces that it wants
    #[arg(long)]
    pub nics: Option<u32>,
    /// Hypervisor that it was made for
    #[arg(long)]
    pub hypervisor: Option<String>,
    /// Anything else
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub labels: Vec<(String, String)>,
}

/// Kind of image.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum KindArg {
    /// An operating system to install from.
    Os,
    /// An operating system with an application.
    Application,
    /// A disk as it was before its first start.
    AsDeployed,
    /// A disk as it was at some time.
    Snapshot,
}

/// `forebay pull`.
#[derive(Args, Debug)]
pub struct PullArgs {
    /// A ref or a digest
    #[arg(value_name = "REF")]
    pub name: String,
    /// Where to: a regular file (sparse), a block device, or `-` for standard output
    #[arg(long, value_hint = ValueHint::AnyPath)]
    pub to: PathBuf,
    /// Do not wait until the disk has it durably
    #[arg(long)]
    pub no_sync: bool,
    /// Do the job here even where a node daemon runs
    #[arg(long)]
    pub no_daemon: bool,
    /// Bytes a second at most (node.rate); the job is done here even where a node daemon runs
    #[arg(long, value_name = "RATE", value_parser = value_of("node.rate"))]
    pub rate: Option<String>,
}

/// `forebay export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// A ref or a digest
    #[arg(value_name = "REF")]
    pub name: String,
    /// The file, or `-` for standard output (raw and vmdk)
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub to: PathBuf,
    /// Format of the file [default: what the extension says: .raw, .img, .qcow2, .vmdk]
    #[arg(long, value_enum)]
    pub format: Option<FormatArg>,
    /// Compress the clusters of a qcow2 file, with zlib if nothing else is said
    #[arg(long, value_enum, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "zlib")]
    pub compress: Option<CodecArg>,
    /// Replace a file that is there
    #[arg(long)]
    pub force: bool,
}

/// What the clusters of a qcow2 file are compressed with.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodecArg {
    /// What every reader of qcow2 knows.
    Zlib,
    /// Faster, and smaller mostly; QEMU 5.1 and later, and not `forebay import`.
    Zstd,
}

/// `forebay images`.
#[derive(Args, Debug)]
pub struct ImagesArgs {
    /// Only names that begin so, or, with a `*` in it for any text, that are so
    #[arg(value_name = "FILTER")]
    pub filter: Option<String>,
    /// Show what they were made from, too: each below its parent
    #[arg(long)]
    pub tree: bool,
}

/// A ref or a digest.
#[derive(Args, Debug)]
pub struct NameArgs {
    /// A ref or a digest
    #[arg(value_name = "REF")]
    pub name: String,
}

/// `forebay diff`.
#[derive(Args, Debug)]
pub struct DiffArgs {
    /// A ref or a digest
    #[arg(value_name = "OLD")]
    pub old: String,
    /// A ref or a digest
    #[arg(value_name = "NEW")]
    pub new: String,
    /// Show where the bytes are that differ
    #[arg(long)]
    pub ranges: bool,
    /// Show which files differ, on file systems of ext2, ext3 and ext4; the chunks in which these are described are
    /// fetched, and files of the same size that were written at other times
    #[arg(long)]
    pub files: bool,
}

/// `forebay verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// A ref or a digest
    #[arg(value_name = "REF")]
    pub name: String,
    /// Read and decode every chunk
    #[arg(long, conflicts_with = "restore_test")]
    pub deep: bool,
    /// Pull it to scratch space of this machine, and check the partitions and file systems on it
    #[arg(long)]
    pub restore_test: bool,
    #[command(flatten)]
    pub restore: RestoreArgs,
}

/// How a restore is tried out.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Trying out a restore")]
pub struct RestoreArgs {
    /// Directory for the copy, in which all of the image must have room [default: DATA/restore]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub scratch: Option<PathBuf>,
    /// Let this machine's kernel mount an XFS of the copy whose log has to be replayed: only of images that you trust
    #[arg(long)]
    pub mount: bool,
    /// Start a machine on the copy too, in QEMU and without a network
    #[arg(long)]
    pub boot: bool,
    /// What its serial console says when it has started [default: `login:`]
    #[arg(long, value_name = "TEXT", requires = "boot", value_parser = marker)]
    pub marker: Option<String>,
    /// How long that may take [default: 5m]
    #[arg(long, value_name = "TIME", requires = "boot", value_parser = crate::config::parse_later)]
    pub timeout: Option<std::time::Duration>,
    /// Its memory in MiB [default: what the image's record says, or 1024]
    #[arg(long, value_name = "N", requires = "boot", value_parser = clap::value_parser!(u64).range(16..=1 << 20))]
    pub memory_mib: Option<u64>,
    /// A kernel that is started in place of the disk's boot loader
    #[arg(long, value_name = "FILE", requires = "boot", value_hint = ValueHint::FilePath)]
    pub kernel: Option<PathBuf>,
    /// Its initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel", value_hint = ValueHint::FilePath)]
    pub initrd: Option<PathBuf>,
    /// Its command line, e.g. `root=/dev/vda1 console=ttyS0`
    #[arg(long, value_name = "TEXT", requires = "kernel", allow_hyphen_values = true)]
    pub append: Option<String>,
}

impl RestoreArgs {
    /// Whether one of them was given; the others need `--boot`.
    pub fn is_asked(&self) -> bool {
        self.boot || self.mount || self.scratch.is_some()
    }
}

fn marker(text: &str) -> Result<String, String> {
    let most = node::restore::MAX_WANTED;
    match text.len() {
        0 => Err("a text".into()),
        n if n > most => Err(format!("{most} bytes at most")),
        _ if text.contains(char::is_control) => Err("a text of one line".into()),
        _ => Ok(text.to_owned()),
    }
}

/// `forebay rehearse`.
#[derive(Args, Debug)]
pub struct RehearseArgs {
    /// Only names that begin so, or, with a `*` in it for any text, that are so
    #[arg(value_name = "FILTER")]
    pub filter: Option<String>,
    /// Images a run, at most [default: 1, or as many as the budget allows]
    #[arg(long, value_name = "N")]
    pub count: Option<usize>,
    /// Bytes a run, at most, of what the store keeps of the images
    #[arg(long, value_name = "SIZE", value_parser = crate::config::parse_size)]
    pub budget: Option<u64>,
    /// Do it again and again, a run in this time, e.g. 1d, until it is stopped
    #[arg(long, value_name = "TIME", value_parser = crate::config::parse_later)]
    pub every: Option<std::time::Duration>,
    /// Draw with this seed [default: by chance]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Show what came of earlier runs, and do nothing else
    #[arg(long, conflicts_with_all = ["count", "budget", "every", "boot", "scratch", "mount", "seed"])]
    pub report: bool,
    /// Print the last outcome of each image as Prometheus reads it, and do nothing else
    #[arg(long, conflicts_with_all = ["report", "count", "budget", "every", "boot", "scratch", "mount", "seed"])]
    pub metrics: bool,
    #[command(flatten)]
    pub restore: RestoreArgs,
}

/// `forebay tag`.
#[derive(Args, Debug)]
pub struct TagArgs {
    /// A ref or a digest
    #[arg(value_name = "REF")]
    pub name: String,
    /// The new name
    #[arg(value_name = "NEW")]
    pub new: image::Ref,
    /// Fail if the new name is taken already
    #[arg(long = "new")]
    pub only_new: bool,
}

/// `forebay rm`.
#[derive(Args, Debug)]
pub struct RmArgs {
    /// The names; one that cannot be removed does not keep the others
    #[arg(value_name = "REF", required = true)]
    pub names: Vec<image::Ref>,
}

/// `forebay prune`.
#[derive(Args, Debug)]
#[command(
    after_help = "Names that are the same up to the tag ([tenant/]name) are a group; the rules hold for each group. All \
    names of an image stay or go together. An image that several rules keep counts for each of them. Hours, days, \
    weeks (ISO 8601), months and years are in UTC, and of when the image was made, not of when it was named."
)]
pub struct PruneArgs {
    /// Only this group ([tenant/]name) or this name, or, with a `*` in it for any text, all names that are so
    /// [default: all]
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Keep so many images, the newest
    #[arg(long, value_name = "N")]
    pub keep_last: Option<u32>,
    /// Keep the newest image of each hour, of so many hours with images
    #[arg(long, value_name = "N")]
    pub keep_hourly: Option<u32>,
    /// Keep the newest image of each day, of so many days with images
    #[arg(long, value_name = "N")]
    pub keep_daily: Option<u32>,
    /// Keep the newest image of each week, of so many weeks with images
    #[arg(long, value_name = "N")]
    pub keep_weekly: Option<u32>,
    /// Keep the newest image of each month, of so many months with images
    #[arg(long, value_name = "N")]
    pub keep_monthly: Option<u32>,
    /// Keep the newest image of each year, of so many years with images
    #[arg(long, value_name = "N")]
    pub keep_yearly: Option<u32>,
    /// Keep what was made within this time before now, e.g. 14d
    #[arg(long, value_name = "TIME", value_parser = crate::config::parse_time)]
    pub keep_within: Option<std::time::Duration>,
    /// Keep what has this label (may be repeated)
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub keep_label: Vec<(String, String)>,
    /// Let groups go of which no rule keeps anything
    #[arg(long)]
    pub keep_none: bool,
    /// Say what would be removed, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `forebay gc`.
#[derive(Args, Debug)]
pub struct GcArgs {
    /// Say what would be condemned, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// How long garbage is kept after it was condemned (gc.grace)
    #[arg(long, value_name = "TIME", value_parser = crate::config::parse_time)]
    pub grace: Option<std::time::Duration>,
}

/// `forebay store`.
#[derive(Args, Debug)]
pub struct StoreArgs {
    #[command(subcommand)]
    pub command: StoreCommand,
}

/// Taking care of the store.
#[derive(Subcommand, Debug)]
pub enum StoreCommand {
    /// Check every object of the store, or a random sample
    Verify(VerifyStoreArgs),
}

/// `forebay store verify`.
#[derive(Args, Debug)]
pub struct VerifyStoreArgs {
    /// Decode every chunk; else checksums of what is stored
    #[arg(long)]
    pub deep: bool,
    /// Stop after this time: what was looked at by then is a random sample
    #[arg(long, value_name = "TIME", value_parser = crate::config::parse_time)]
    pub within: Option<std::time::Duration>,
    /// Stop after so many bytes
    #[arg(long, value_name = "SIZE", value_parser = crate::config::parse_size)]
    pub bytes: Option<u64>,
    /// Bytes a second at most, e.g. 40MiB
    #[arg(long, value_parser = crate::config::parse_rate)]
    pub rate: Option<u64>,
    /// Seed of the order, to go on with an earlier run [default: the time]
    #[arg(long, requires = "after")]
    pub seed: Option<u64>,
    /// Where the earlier run ended
    #[arg(long, value_name = "PLACE", requires = "seed")]
    pub after: Option<String>,
}

/// `forebay node`.
#[derive(Args, Debug)]
pub struct NodeArgs {
    #[command(subcommand)]
    pub command: Option<NodeCommand>,
}

/// Managing nodes. Without one of these, `forebay node` runs the daemon, which pulls images and
/// keeps volumes.
#[derive(Subcommand, Debug)]
pub enum NodeCommand {
    /// Make a one-time token with which a machine can join the grid
    Token(TokenArgs),
    /// Join the grid with a one-time token
    Join(JoinArgs),
    /// List the members of the grid
    List,
    /// Take a member's name and rights away; tickets that it holds are good for some minutes more
    Remove(RemoveArgs),
    /// List the daemon's transfers
    Transfers,
    /// End a transfer of the daemon
    Cancel(CancelArgs),
    /// List the daemon's captures: see `forebay save`
    Captures,
    /// End a capture of the daemon
    CancelCapture(CancelArgs),
    /// Print the daemon's metrics, as Prometheus reads them
    Metrics,
    /// Let a guest's file systems go on if the daemon dies while they hold still; the daemon starts it
    #[command(hide = true)]
    Thaw(HoldArgs),
    /// Keep the mounts of volumes while the daemon is away; the daemon starts it
    #[command(hide = true)]
    Hold(HoldArgs),
}

/// `forebay node token`.
#[derive(Args, Debug)]
pub struct TokenArgs {
    /// What the machine may do
    #[arg(long, value_enum, default_value = "node")]
    pub role: RoleArg,
    /// The only name with which it can be used [default: the machine chooses]
    #[arg(long)]
    pub name: Option<String>,
    /// How long the token can be used
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = crate::config::parse_time)]
    pub lifetime: std::time::Duration,
}

/// What a machine may do.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleArg {
    /// Pull and push images, make and move refs.
    Node,
    /// Serve chunks: `forebay cache`.
    Server,
    /// Everything.
    Admin,
}

/// `forebay node join`.
#[derive(Args, Debug)]
pub struct JoinArgs {
    /// The token
    pub token: String,
    /// This machine's name in the grid [default: its host name]
    #[arg(long)]
    pub name: Option<String>,
}

/// `forebay node remove`.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// The member
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `forebay node cancel` and `cancel-capture`.
#[derive(Args, Debug)]
pub struct CancelArgs {
    /// The number that the list shows
    pub id: u64,
}

/// `forebay node hold`.
#[derive(Args, Debug)]
pub struct HoldArgs {
    /// Its socket
    pub socket: PathBuf,
}

/// `forebay volume`.
#[derive(Args, Debug)]
pub struct VolumeArgs {
    #[command(subcommand)]
    pub command: VolumeCommand,
}

/// Volumes.
#[derive(Subcommand, Debug)]
pub enum VolumeCommand {
    /// Make a volume of an image, or a blank one
    Create(CreateVolumeArgs),
    /// List the volumes of this node
    #[command(visible_alias = "list")]
    Ls,
    /// Show a volume, and how much of it is here
    Show(VolumeNameArgs),
    /// Make a volume larger, also while it is attached; or smaller, if nothing lies behind
    Resize(ResizeVolumeArgs),
    /// Remove volumes, and what is in them
    Rm(RmVolumesArgs),
    /// Show a volume to a guest, whatever of it is here; one that is attached already is shown as it is, if nothing else
    /// is asked for
    Attach(AttachVolumeArgs),
    /// Take a volume from its guest
    Detach(VolumeNameArgs),
    /// Compare what an attached volume has of its image with the image, and repair what has rotted
    Scrub(VolumeNameArgs),
    /// Say what volume a device, a copy of one or a volume's directory holds, wherever it was found
    Identify {
        /// The device, file or directory
        #[arg(value_name = "PATH", value_hint = ValueHint::AnyPath)]
        path: PathBuf,
    },
}

/// `forebay volume create`.
#[derive(Args, Debug)]
pub struct CreateVolumeArgs {
    /// A ref or a digest
    #[arg(value_name = "REF", required_unless_present = "blank")]
    pub image: Option<String>,
    /// Make a blank one, of this size, e.g. 20GiB
    #[arg(long, value_name = "SIZE", conflicts_with = "image", value_parser = crate::config::parse_size)]
    pub blank: Option<u64>,
    /// Its name [default: the image's, and a number]
    #[arg(long)]
    pub name: Option<String>,
    /// Its size, if it is to be larger than the image, e.g. 20GiB
    #[arg(long, conflicts_with = "blank", value_parser = crate::config::parse_size)]
    pub size: Option<u64>,
    /// Logical sector size in bytes [default: the image's, 512 for a blank one]
    #[arg(long, value_parser = ["512", "4096"])]
    pub sector_size: Option<String>,
    /// The block device that it is to lie on; what is on it is overwritten [default: a file]
    #[arg(long, value_hint = ValueHint::FilePath)]
    pub device: Option<PathBuf>,
    /// Extend the image's last partition and the file system in it (ext, XFS, btrfs, NTFS) to the end of the volume.
    /// XFS and btrfs are mounted by this machine for that: only of images that you trust
    #[arg(long, conflicts_with = "blank")]
    pub extend: bool,
}

/// A volume.
#[derive(Args, Debug)]
pub struct VolumeNameArgs {
    /// The volume
    #[arg(value_name = "VOLUME")]
    pub name: String,
}

/// `forebay volume resize`.
#[derive(Args, Debug)]
pub struct ResizeVolumeArgs {
    /// The volume
    #[arg(value_name = "VOLUME")]
    pub name: String,
    /// The size that it gets, e.g. 40GiB
    #[arg(value_parser = crate::config::parse_size)]
    pub size: u64,
    /// Extend the last partition and the file system in it (ext, XFS, btrfs, NTFS), of a volume that is not attached;
    /// the same size again goes on with what was ended midway. XFS and btrfs are mounted by this machine for that: only
    /// of images that you trust
    #[arg(long)]
    pub extend: bool,
}

/// `forebay volume rm`.
#[derive(Args, Debug)]
pub struct RmVolumesArgs {
    /// The volumes; one that is in use does not keep the others, a name that there is not keeps them all
    #[arg(value_name = "VOLUME", required = true)]
    pub names: Vec<String>,
}

/// `forebay volume attach`.
#[derive(Args, Debug, Default, PartialEq)]
pub struct AttachVolumeArgs {
    /// The volume
    #[arg(value_name = "VOLUME")]
    pub name: String,
    /// How the guest gets at it [default: nbd]
    #[arg(long, value_enum)]
    pub export: Option<ExportArg>,
    /// Where the socket, or the file, is to be [default: in the daemon's directory]
    #[arg(long, value_hint = ValueHint::FilePath)]
    pub path: Option<PathBuf>,
    /// The QMP socket of the QEMU that will use it: when all is here, the guest is moved to the plain file
    #[arg(long, value_hint = ValueHint::FilePath)]
    pub qmp: Option<PathBuf>,
    /// Refuse writes
    #[arg(long)]
    pub read_only: bool,
    /// Fetch only what the guest asks for, and what guests of its image ask for when they start
    #[arg(long)]
    pub no_fill: bool,
    /// Have all of it here after this time, e.g. 30m, and spread the fetching over it
    #[arg(long, value_name = "TIME", conflicts_with = "no_fill", value_parser = crate::config::parse_later)]
    pub by: Option<std::time::Duration>,
    /// Bytes a second at most for what no guest waits for, e.g. 40MiB [default: volumes.rate, of all volumes together]
    #[arg(long, value_parser = crate::config::parse_rate)]
    pub rate: Option<u64>,
    /// Make it a plain disk also where that means to copy what it shares with other volumes
    #[arg(long)]
    pub copy: bool,
    /// How long a guest waits for what cannot be had until it gets an I/O error, e.g. 30s [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = crate::config::parse_time)]
    pub patience: Option<std::time::Duration>,
    /// Fetch nothing ahead of the guest because others touched it when they started, and record nothing
    #[arg(long, conflicts_with = "record")]
    pub no_trace: bool,
    /// Record what the guest touches when it starts, though the volume has been in use before
    #[arg(long)]
    pub record: bool,
}

impl AttachVolumeArgs {
    /// Whether nothing is asked for but that it is attached.
    pub fn is_plain(&self) -> bool {
        *self == Self { name: self.name.clone(), ..Self::default() }
    }
}

/// How a guest gets at a volume.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportArg {
    /// Network block device, over a Unix socket: QEMU, libnbd.
    Nbd,
    /// A virtio device in memory shared with the hypervisor: QEMU, cloud-hypervisor.
    VhostUser,
    /// A file: for what takes nothing but a path.
    Fuse,
}

/// `forebay completions`.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}
