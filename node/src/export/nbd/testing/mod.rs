//! For tests: a disk in memory that can be slow and fail, and a client that knows what to expect.

mod disk;

pub use disk::MemDisk;
