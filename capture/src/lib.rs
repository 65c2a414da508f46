//! Disks in: what a new image is made of, and how it gets to who keeps it.
//!
//! [`DiskSource`] is a disk to import: a file or device, a format that must be unpacked, a stream.
//! [`import`] reads it once, and [`save`] only what may have changed since another image was made of it; they hand it, section by section, to an
//! [`ImageSink`](image::ImageSink): the receiver beside it, or a push across the network.
//!
//! [`mend()`] gives a store back what it has lost of an image.
//!
//! Reading order: [`mod@format`] → [`source`] → [`pipeline`].

pub mod format;
mod mend;
pub mod pipeline;
pub mod progress;
pub mod source;

pub use format::{Compression, Format};
pub use mend::{Mended, mend};
pub use pipeline::{
    Ancestor, Changes, ImportOptions, Imported, Pace, Skipped, Stored, import, save, whole,
};
pub use progress::{Progress, Stats};
pub use source::{Disk, DiskSource, SourceOptions};
