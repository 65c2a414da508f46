//! How a connection can end out of order.

use std::io;

use super::proto::wire::Violation;

/// Why a connection ended that should not have.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The socket failed, or the client went away in the middle.
    #[error("the socket: {0}")]
    Socket(#[from] io::Error),
    /// The client does not speak the protocol.
    #[error("the client: {0}")]
    Violation(#[from] Violation),
    /// A read failed too late to be told.
    #[error("a read at {at} failed after the header of its simple reply was sent: {why}")]
    Broken {
        /// Where, in bytes.
        at: u64,
        /// What the disk said.
        why: String,
    },
    /// The handshake took too long.
    #[error("no handshake in {0} s")]
    Slow(u64),
}
