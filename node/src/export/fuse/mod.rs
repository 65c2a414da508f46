//! A disk as a file in the file system, for hypervisors that take nothing but a path.
//!
//! The file is a mount of its own, over a regular file: one path, no directory around it, and it is
//! opened like any other disk image, also past the page cache (`O_DIRECT`).
//!
//! ```text
//!  guest ── hypervisor ── open("disk.raw") ── kernel ── /dev/fuse ── thread ──▶ runtime ──▶ Disk
//!                                                │                   (Front)    (Export::run)
//!                                                └── after graduation: the raw file itself
//! ```
//!
//! - [`mount()`] and [`unmount`]: a mount is not tied to a process. Its [`Connection`] is a descriptor that
//!   can be kept elsewhere ([`holder`]) and served by the next process, in which all requests that the last
//!   one had not answered come again. Nobody's I/O fails meanwhile; it waits.
//! - `front`: takes requests on a thread of their own, copies what is written into bounded memory, and
//!   passes them on. `serve` does them on the disk's core and answers from there.
//! - No page cache on this level (`FOPEN_DIRECT_IO`): the guest has one, what was written is at the disk
//!   when `write` returns, and a file that is cached could not be passed through later.
//!
//! How to use it and what it cannot do: `docs/exports-fuse.md`.

mod front;
pub mod holder;
mod mount;
mod range;
mod serve;
mod session;
#[cfg(test)]
mod tests;

pub use mount::{mount, unmount};
pub use serve::Export;
pub use session::{Connection, Handle};

/// Longest request, in bytes: what the kernel takes by default (`/proc/sys/fs/fuse/max_pages_limit`).
pub const MOST: usize = 1 << 20;

/// How a disk is shown.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Memory for what is on its way, in bytes: half of it for reads, half for writes. At least four
    /// requests of [`MOST`] bytes.
    pub memory: usize,
    /// Owner of the file.
    pub uid: u32,
    /// Group of the file.
    pub gid: u32,
    /// Its permissions; those for writing are left out of a read-only disk's.
    pub mode: u16,
}

impl Default for Options {
    fn default() -> Options {
        Options { memory: 16 * MOST, uid: 0, gid: 0, mode: 0o600 }
    }
}
