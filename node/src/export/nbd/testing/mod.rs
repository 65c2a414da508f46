//! For tests: a disk in memory that can be slow and fail, and a client that knows what to expect.

pub mod client;
mod disk;
pub mod hostile;
pub mod model;

pub use disk::MemDisk;
