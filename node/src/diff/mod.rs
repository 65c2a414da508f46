//! What differs between two images.
//!
//! - [`chunks`]: which bytes, by digests alone: no chunk is fetched
//! - `view`: an image as a disk that can be read anywhere; what is read is fetched and verified
//! - `ext`: an ext file system on such a disk, as far as it can be trusted
//! - [`files`]: which files: what there is on both disks, and which of it can be compared
//! - `walk`: the same of two file systems

pub mod chunks;
mod ext;
pub mod files;
mod view;
mod walk;

pub use chunks::{Difference, Side, SideReport, Span, differences};
pub use files::{FileChange, FileSystemDiff, file_differences};
