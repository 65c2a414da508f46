//! Disks, from below: the only crate of Forebay that speaks to the kernel in its own tongue.
//!
//! - [`Arena`] and [`Buf`]: bounded memory, lent out as owned, aligned buffers. [`GuestBuf`]: memory of a guest.
//! - [`BlockFile`]: a regular file or a block device, opened once and held until synced. [`Fs`]:
//!   names that last.
//! - [`LoopDevice`]: a part of a file for programs that want a device.
//! - [`Engine`]: positional reads, writes and syncs that do not block the runtime, through a ring
//!   of our own or a bounded pool of threads.
//! - [`in_background`]: threads that take what others leave.
//! - [`watch()`]: a descriptor that says when it is readable.
//! - [`bulk`]: one job reading one disk from end to end.
//! - [`fake`]: files in memory that record what was done to them and show what a power cut may
//!   leave, and files that fail on request. Code that takes [`BlockFile`] and [`Fs`] runs over
//!   either without knowing.
//!
//! # Memory and the kernel
//!
//! A buffer given to an engine belongs to it until the kernel is done with it. Dropping the future
//! of an operation changes nothing about that: the operation goes on, its buffer goes back to the
//! arena when it completes, and if it was a write that fails, the file remembers.
//!
//! This is the one crate with `unsafe` code; each block says why it is sound.

pub mod arena;
mod background;
pub mod backing;
pub mod bulk;
pub mod descriptor;
pub mod engine;
pub mod error;
pub mod fake;
pub mod file;
pub mod fs;
pub mod guest;
mod holder;
mod in_use;
mod loops;
mod os_file;
mod places;
mod stamp;
mod watch;

pub use arena::{Arena, Buf};
pub use background::in_background;
pub use backing::{Backing, FileKind, OpenMode, Sectors, Space, SyncWhat, Zeroing};
pub use engine::{Engine, EngineChoice, EngineKind, EngineOptions};
pub use error::{Cause, Located, cause, errno};
pub use file::{BlockFile, Extents};
pub use fs::{Fs, Namespace, rename_durable, sync_dir};
pub use guest::GuestBuf;
pub use holder::lock_holder;
pub use loops::LoopDevice;
pub use places::{Placed, Places};
pub use stamp::Stamp;
pub use watch::watch;
