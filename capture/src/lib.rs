//! Disks in: what a new image is made of, and how it gets to who keeps it.
//!
//! [`DiskSource`] is a disk to import: a file or device, a format that must be unpacked, a stream.
//! [`import`] reads it once and hands it, section by section, to an
//! [`ImageSink`](image::ImageSink): the receiver beside it, or a push across the network.
//!
//! Reading order: [`mod@format`] → [`source`] → [`pipeline`].

pub mod format;
pub mod pipeline;
pub mod progress;
pub mod source;

pub use format::{Compression, Format};
pub use pipeline::{ImportOptions, Imported, import};
pub use progress::{Progress, Stats};
pub use source::{Disk, DiskSource, SourceOptions};
