//! Between disks and images: `import`, `save`, `pull`, `export`.

use std::path::PathBuf;

use api::capture::RunningDisk;
use clap::{Args, ValueEnum, ValueHint};

use super::{new_name, pair, value_of};

/// `forebay import`.
#[derive(Args, Debug)]
pub struct ImportArgs {
    /// A disk: a regular file, a block device, or `-` for standard input
    #[arg(value_hint = ValueHint::FilePath)]
    pub path: PathBuf,
    /// The name that it gets, `[tenant/]name:tag`
    #[arg(value_name = "REF", value_parser = new_name)]
    pub name: image::Ref,
    #[command(flatten)]
    pub disk: DiskArgs,
    /// An image that this one was made from; what they share is not sent
    #[arg(long, value_name = "REF")]
    pub parent: Option<String>,
    /// Take zeros for what cannot be read of the disk: the image's record says which bytes
    #[arg(long)]
    pub skip_bad: bool,
    /// Fail if the name is taken already
    #[arg(long)]
    pub new: bool,
    #[command(flatten)]
    pub record: RecordArgs,
}

/// How a disk that is a path lies there, and is cut.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "A disk that is a path")]
pub struct DiskArgs {
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
    /// Chunk size: a power of two from 16KiB to 4MiB [default: 256KiB]
    #[arg(long, value_parser = chunk_log2)]
    pub chunk_size: Option<u8>,
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
    /// A volume of this node, by its name; or the path, with a `/` in it, of a disk: a file, or a block device; or
    /// `qmp:SOCKET` or `qmp:SOCKET#DISK`: a disk, by its node or device, of a running QEMU with this monitor
    #[arg(value_name = "SOURCE", value_hint = ValueHint::FilePath)]
    pub source: String,
    /// The name that the image gets, `[tenant/]name:tag`
    #[arg(value_name = "REF", value_parser = new_name)]
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
    /// Of a disk of a running QEMU: where to keep what its guest overwrites meanwhile [default: beside the disk]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub scratch: Option<PathBuf>,
    /// Do not wait until it is done
    #[arg(long)]
    pub no_wait: bool,
    /// Take zeros for what cannot be read of the disk: the image's record says which bytes
    #[arg(long)]
    pub skip_bad: bool,
    /// Fail if the name is taken already
    #[arg(long)]
    pub new: bool,
    #[command(flatten)]
    pub disk: DiskArgs,
    #[command(flatten)]
    pub record: RecordArgs,
}

/// Which disk `forebay save` is to save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// A volume of this node.
    Volume,
    /// A file or a block device.
    Path,
    /// A disk of a running QEMU.
    Running,
}

impl SaveArgs {
    /// Which disk the source is.
    pub fn kind(&self) -> SourceKind {
        match &self.source {
            source if RunningDisk::of(source).is_some() => SourceKind::Running,
            source if source.contains('/') => SourceKind::Path,
            _ => SourceKind::Volume,
        }
    }

    /// Options that mean nothing for a disk of this kind.
    ///
    /// # Errors
    ///
    /// Which, and what they are for.
    pub fn check(&self) -> Result<(), String> {
        let source = &self.source;
        let scratch = first(&[("--scratch", self.scratch.is_some())]);
        let jobs = [("--agent", self.agent.is_some()), ("--no-wait", self.no_wait)];
        let (wrong, why) = match self.kind() {
            SourceKind::Volume => {
                let why = format!("is not for a volume; for the file of that name say ./{source}");
                (self.disk.given().or(scratch), why)
            }
            SourceKind::Path => {
                let why = "is for volumes, which are named without a `/`, and for running disks";
                (first(&jobs).or(scratch), why.to_owned())
            }
            SourceKind::Running => (self.disk.given(), "is for a disk that is a path".to_owned()),
        };
        wrong.map_or(Ok(()), |option| Err(format!("{source}: {option} {why}")))
    }
}

impl DiskArgs {
    /// One that is given.
    fn given(&self) -> Option<&'static str> {
        first(&[
            ("--format", self.format.is_some()),
            ("--compression", self.compression.is_some()),
            ("--sector-size", self.sector_size.is_some()),
            ("--size", self.size.is_some()),
            ("--chunk-size", self.chunk_size.is_some()),
        ])
    }
}

/// The first option that is given.
fn first(given: &[(&'static str, bool)]) -> Option<&'static str> {
    given.iter().find(|(_, given)| *given).map(|(option, _)| *option)
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
