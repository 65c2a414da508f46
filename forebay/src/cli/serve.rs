//! What serves: `try`, `up`, `cache`, `completions`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use super::value_of;

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

/// `forebay completions`.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}
