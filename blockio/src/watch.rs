//! Descriptors whose readiness a runtime watches.

#![expect(unsafe_code, reason = "registers a descriptor with the runtime")]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the current runtime watch `fd`, which must be of a kind that can be polled (an eventfd, a pipe,
/// a socket, a ring), for being readable.
///
/// # Errors
///
/// `PermissionDenied` for what cannot be polled, such as a regular file; otherwise what the system says.
///
/// # Panics
///
/// Outside a tokio runtime with I/O enabled.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open and the same until it is dropped, and the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? })
}
