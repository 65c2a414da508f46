//! A server's cache between the store and the nodes: memory, else a log on disk, else one fetch from
//! the source behind it, however many ask.
//!
//! ```text
//!                    ┌──────────── Shared (one for all cores) ─────────────┐
//!  Cache (a core) ──►│ papers · memory (S3-FIFO) · flights · disk log      │
//!  Cache (a core) ──►│                                        ▲            │
//!                    └────────────────────────────────────────┼────────────┘
//!         └── source (its own handle)                 LogWriter (one thread)
//! ```
//! [`Cache`] is a [`ChunkSource`](image::ChunkSource) in front of another. The cores of a server
//! share tiers and flights through sharded mutexes, each held for a few map operations and never
//! across an `await`.
//!
//! What it promises:
//!
//! - A frame is given only after its CRC32C, digest, domain and length were checked, from whichever
//!   tier; a copy that fails is dropped and fetched anew.
//! - A chunk is fetched once for everybody who asks while it is under way, and reaches each of them
//!   while the rest is still arriving. (A guest may overtake a background fetch with one more.)
//! - Memory is bounded ([`Budget`]); a reader that is slow, or goes away, holds up nobody.
//! - A disk that is full, read-only or broken costs hits, not answers.
//!
//! Besides what is asked for it takes care of what it has: whole images are brought here before they
//! are asked for ([`Cache::warm`]), kept ([`Cache::pin`]), forgotten ([`Cache::evict`]) and counted
//! ([`Cache::held`]); the log is read through for rot ([`Shared::start_scrub`]), and what pinned images
//! lose is fetched again ([`Cache::tend`]).
//!
//! Reading order: [`Cache`] → `read` (one reader) → `flights` and `flight` (one fetch for all) →
//! `mailbox` (from the one to the other) → `memory`, `s3fifo` → `disk` → `warm`, `held`, `pins`. The
//! bytes on disk are described in `docs/formats-cache.md`.

mod admission;
mod cache;
mod disk;
mod flight;
mod flights;
mod gone;
mod held;
mod human;
mod key;
mod mailbox;
mod memory;
mod papers;
mod pins;
mod read;
mod s3fifo;
mod sharded;
mod shared;
mod status;
mod warm;

pub use cache::Cache;
pub use disk::{DiskHealth, DiskState, LogWriter, ScrubStatus};
pub use held::{Evicted, Held, HeldSection};
pub use pins::Pin;
pub use s3fifo::S3Fifo;
pub use shared::{Budget, Clock, DiskBudget, FreeSpace, Options, Shared};
pub use status::{Asks, Status};
pub use warm::Warmed;
