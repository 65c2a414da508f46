//! Where an operation failed, and what the caller can do about it.
//!
//! Everything in this crate returns [`io::Result`], so that a real file and a fake read the same.
//! The error carries the operation, the path and the offset as its payload ([`Located`]); the
//! original system error stays reachable through [`errno`], and [`cause`] folds it into the few
//! things a caller can act on.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// The payload of every error that comes out of a file or an engine: what was being done, where.
#[derive(Debug, thiserror::Error)]
#[error("{op} {}{}: {source}", path.display(), Offset(*offset))]
pub struct Located {
    /// The operation, as a verb: `read`, `write`, `sync`, `rename`, ...
    pub op: &'static str,
    /// The file it was done to.
    pub path: PathBuf,
    /// The byte offset in that file, where the operation has one.
    pub offset: Option<u64>,
    /// What the system said.
    pub source: io::Error,
}

struct Offset(Option<u64>);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(offset) => write!(f, " at byte {offset}"),
            None => Ok(()),
        }
    }
}

/// What a caller can do about a failed disk operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Nothing is wrong with the file or the arguments: the same call may succeed now.
    Retry,
    /// Somebody else holds the file or device: try again later.
    Busy,
    /// The name is taken, or the directory is not empty.
    Conflict,
    /// The medium failed, or data that must be there is not: repair from another copy.
    Corrupt,
    /// The file or device is no longer there.
    Gone,
    /// Permissions, a read-only file system, or a descriptor opened the other way.
    Denied,
    /// No space, no quota, or larger than the file system allows.
    Full,
    /// This kernel, file system or device cannot do it: take the fallback.
    Unsupported,
    /// The engine stopped before the operation was done.
    Cancelled,
    /// The arguments make no sense to the kernel: a fault of the caller.
    Invalid,
    /// None of the above.
    Other,
}

/// Adds operation, path and offset to `source`; keeps its kind. An error that already says where
/// it happened is passed on untouched.
pub(crate) fn locate(
    op: &'static str,
    path: &Path,
    offset: Option<u64>,
    source: io::Error,
) -> io::Error {
    if located(&source).is_some() {
        return source;
    }
    let kind = source.kind();
    let path = path.to_path_buf();
    io::Error::new(kind, Located { op, path, offset, source })
}

/// Where `error` happened, if it came out of this crate.
pub fn located(error: &io::Error) -> Option<&Located> {
    error.get_ref()?.downcast_ref::<Located>()
}

/// The system's error number, also when `error` is wrapped in a [`Located`].
pub fn errno(error: &io::Error) -> Option<i32> {
    match located(error) {
        Some(located) => located.source.raw_os_error(),
        None => error.raw_os_error(),
    }
}

/// What the caller can do about `error`.
pub fn cause(error: &io::Error) -> Cause {
    match errno(error).map(Errno::from_raw_os_error) {
        Some(
            Errno::IO
            | Errno::NODATA
            | Errno::ILSEQ
            | Errno::REMOTEIO
            | Errno::BADMSG
            | Errno::UCLEAN,
        ) => return Cause::Corrupt,
        Some(Errno::NXIO | Errno::NODEV | Errno::STALE) => return Cause::Gone,
        Some(Errno::BADF) => return Cause::Denied,
        Some(Errno::CANCELED) => return Cause::Cancelled,
        _ => {}
    }
    match error.kind() {
        io::ErrorKind::Interrupted => Cause::Retry,
        io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy => Cause::Busy,
        io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => Cause::Conflict,
        io::ErrorKind::UnexpectedEof => Cause::Corrupt,
        io::ErrorKind::NotFound => Cause::Gone,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Cause::Denied,
        io::ErrorKind::StorageFull
        | io::ErrorKind::QuotaExceeded
        | io::ErrorKind::FileTooLarge
        | io::ErrorKind::WriteZero => Cause::Full,
        io::ErrorKind::Unsupported | io::ErrorKind::CrossesDevices => Cause::Unsupported,
        io::ErrorKind::InvalidInput | io::ErrorKind::NotADirectory => Cause::Invalid,
        _ => Cause::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_errno_and_says_where() {
        let raw = io::Error::from(Errno::NOSPC);
        let error = locate("write", Path::new("/d/x"), Some(4096), raw);
        let error = locate("flush", Path::new("/other"), None, error);
        assert_eq!(errno(&error), Some(Errno::NOSPC.raw_os_error()));
        assert_eq!(cause(&error), Cause::Full);
        let text = error.to_string();
        assert!(text.starts_with("write /d/x at byte 4096: "), "{text}");
    }

    #[test]
    fn folds_errno_without_a_stable_kind() {
        assert_eq!(cause(&io::Error::from(Errno::IO)), Cause::Corrupt);
        assert_eq!(cause(&io::Error::from(Errno::CANCELED)), Cause::Cancelled);
        assert_eq!(cause(&io::Error::from(Errno::BADF)), Cause::Denied);
        assert_eq!(cause(&io::Error::from(Errno::OPNOTSUPP)), Cause::Unsupported);
    }
}
