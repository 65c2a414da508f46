//! A mount over one file.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use image::error::At;
use image::{Error, Kind, Result};
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::MOST;
use super::session::Connection;

/// Mounts over `path`, a regular file (made if there is none), and returns the connection that is to be
/// served. Until that is done whoever opens the path waits. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
///
/// [`Kind::Conflict`] if there is a mount, [`Kind::Denied`] without the right to mount,
/// [`Kind::Unsupported`] if the kernel has no FUSE, and what else the system says.
pub fn mount(path: &Path) -> Result<Connection> {
    let place = || format!("mounting over {}", path.display());
    let io = |e| Error::io(place(), e);
    if is_mounted(path) {
        let message = "something is mounted there, which nobody may serve: unmount it first";
        return Err(Error::new(Kind::Conflict, message)).at(place);
    }
    File::options().create(true).append(true).open(path).map_err(io)?;
    let path = path.canonicalize().map_err(io)?;
    if !path.metadata().map_err(io)?.is_file() {
        return Err(Error::new(Kind::Invalid, "not a regular file")).at(place);
    }
    let device =
        File::options().read(true).write(true).open("/dev/fuse").map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::caused(Kind::Unsupported, format!("{}: no /dev/fuse", place()), e)
            }
            _ => Error::io(format!("{}: /dev/fuse", place()), e),
        })?;
    // Whoever may open the file is a matter of its mode, which the kernel checks; all users may ask.
    let data = format!(
        "fd={},rootmode=100600,user_id=0,group_id=0,allow_other,default_permissions,max_read={MOST}",
        device.as_raw_fd()
    );
    let data = CString::new(data).expect("a text without zero bytes");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    rustix::mount::mount("forebay", &path, "fuse.forebay", flags, data.as_c_str())
        .map_err(|e| Error::io(place(), e.into()))?;
    Ok(Connection::New(OwnedFd::from(device)))
}

/// Whether a path is where something is mounted. Asks no server of a file system: one that is away would
/// not answer.
fn is_mounted(path: &Path) -> bool {
    let about = rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::empty());
    about.is_ok_and(|about| about.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Takes the mount away: the path shows what lies below it. Files that are open stay usable and are served
/// until they are closed; then [`Export::run`](super::Export::run) returns.
///
/// # Errors
///
/// [`Kind::Gone`] if nothing is mounted there, and what else the system says.
pub fn unmount(path: &Path) -> Result<()> {
    rustix::mount::unmount(path, UnmountFlags::DETACH).map_err(|errno| {
        let place = format!("unmounting {}", path.display());
        match errno {
            Errno::INVAL => Error::new(Kind::Gone, format!("{place}: nothing is mounted there")),
            errno => Error::io(place, errno.into()),
        }
    })
}
