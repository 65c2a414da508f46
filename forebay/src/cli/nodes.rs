//! Nodes and their volumes: `node`, `volume`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

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
    /// List the nodes that report to placement, and what they have
    Status,
    /// Put nothing new on a node
    Cordon(NodeNameArgs),
    /// Put new things on a node again; one that was forgotten may report again
    Uncordon(NodeNameArgs),
    /// Put nothing new on a node, and have what is ready there built elsewhere and then removed; volumes that are
    /// somebody's are listed
    Drain(DrainNodeArgs),
    /// Forget a node that is away or drained, and refuse its certificate
    Forget(ForgetArgs),
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
    /// Stop the writers of volumes whose leases are over; the daemon starts it
    #[command(hide = true)]
    Watch(HoldArgs),
    /// Keep the mounts of volumes while the daemon is away; the daemon starts it
    #[command(hide = true)]
    Hold(HoldArgs),
}

/// `forebay node cordon` and `uncordon`.
#[derive(Args, Debug)]
pub struct NodeNameArgs {
    /// The node
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `forebay node drain`.
#[derive(Args, Debug)]
pub struct DrainNodeArgs {
    /// The node
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Wait until nothing is left that goes by itself, at most so long
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "1h", value_parser = crate::config::parse_time)]
    pub wait: Option<std::time::Duration>,
}

/// `forebay node forget`.
#[derive(Args, Debug)]
pub struct ForgetArgs {
    /// The node
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Though it is there, and something is left on it: what is on its disks alone is lost to the grid
    #[arg(long)]
    pub force: bool,
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
    /// Give a volume back: what is in it is overwritten, read back, and recorded as erased; then it is gone
    Release(ReleaseVolumeArgs),
    /// List what is being erased, or the records of what was
    Erasures(ErasuresArgs),
    /// Remove volumes; their bytes are left to the file system
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

/// `forebay volume release`.
#[derive(Args, Debug)]
pub struct ReleaseVolumeArgs {
    /// The volume
    #[arg(value_name = "VOLUME")]
    pub name: String,
    /// How what is in it is destroyed. On a file system that copies on write it is discarded, whatever is said here
    #[arg(long, value_enum, default_value = "zeros")]
    pub by: EraseArg,
    /// How often it is overwritten
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub passes: u32,
    /// How much is read back
    #[arg(long, value_enum, default_value = "sample")]
    pub verify: ProofArg,
    /// Do not wait until it is erased
    #[arg(long)]
    pub no_wait: bool,
}

/// How what is in a volume is destroyed.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum EraseArg {
    /// Overwrite it with zeros
    Zeros,
    /// Overwrite it with what is drawn at random
    Random,
    /// Give it back to the device or the file system
    Discard,
}

/// How much is read back.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProofArg {
    /// Nothing
    None,
    /// Some places
    Sample,
    /// All of it
    All,
}

/// `forebay volume erasures`.
#[derive(Args, Debug)]
pub struct ErasuresArgs {
    /// The records of what was erased, each checked against this node's certificate
    #[arg(long)]
    pub records: bool,
    /// What was erased lately on all nodes, as placement remembers it
    #[arg(long, conflicts_with = "records")]
    pub grid: bool,
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
