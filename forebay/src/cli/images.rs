//! What is kept, and care of it: `images`, `diff`, `verify`, `rehearse`, `prune`, `gc`, `store`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use super::{new_name, pair};

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
    /// Have the grid's caches give back what is bad, as far as they have it
    #[arg(long, requires = "deep")]
    pub repair: bool,
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
    #[arg(value_name = "NEW", value_parser = new_name)]
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
