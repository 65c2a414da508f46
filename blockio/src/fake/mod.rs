//! Files that are not there: for tests of what must survive a power cut or a failing disk.
//!
//! - [`MemFs`]: a file system in memory that keeps a log of everything done to it, and from the log
//!   makes every disk that a power cut could have left behind ([`MemFs::crash_images`]).
//! - [`FaultPlan`]: wraps any file or file system, real or in memory, and makes chosen operations
//!   fail.
//!
//! A crash test runs the code once over [`MemFs::fs`], [marking](MemFs::mark) the points at which
//! it has promised something to somebody, and then runs recovery over each image, asserting what
//! was promised by then:
//!
//! ```
//! use blockio::fake::{CrashPlan, MemFs};
//!
//! let disk = MemFs::new();
//! disk.fs().replace("/state", b"one").unwrap();
//! disk.mark("one");
//! disk.fs().replace("/state", b"two").unwrap();
//! disk.mark("two");
//!
//! for image in disk.crash_images(CrashPlan::default()) {
//!     let state = image.fs().read("/state", 16).unwrap_or_default();
//!     let fits = match (image.reached("one"), image.reached("two")) {
//!         (_, true) => state == b"two",
//!         (true, false) => state == b"one" || state == b"two",
//!         (false, false) => state.is_empty() || state == b"one",
//!     };
//!     assert!(fits, "{image}: {state:?}");
//! }
//! ```

mod crash;
mod fail;
mod mem;
mod model;
mod pages;

pub use crash::{CrashImage, CrashImages, CrashPlan, Fate};
pub use fail::{Fault, FaultOp, FaultPlan};
pub use mem::MemFs;
pub use model::{NodeId, NodeKind, Op};
