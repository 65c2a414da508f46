//! The permanent storage network: images in any object store, used only through create, range read,
//! list and delete.
//!
//! ```text
//! forebay-store                        the marker: format version, the store's id
//! packs/<pack id>                      chunk frames and a footer that lists them; ≤ 64 MiB
//! sections/<section digest>            section tables
//! manifests/<image>                    manifests: an image exists when its manifest does
//! locators/<image>/<seq>               where its chunks lie; the highest that parses counts
//! records/<image>/<created>-<digest>   signed image records
//! refs/<seq>                           the log of ref moves
//! sessions/<session>/<n>               writers at work; the highest counts
//! gc/condemned/<list>                  what a later run of gc may delete
//! gc/deleting/<run>                    what a run of gc is deleting now
//! gc/rewrites/<run>-<n>                which packs were rewritten, and into which
//! gc/log/<run>                         what a run of gc did
//! ```
//! [`Store`] is an [`image::ChunkSource`], [`Receiver`] an [`image::ImageSink`]. Nothing is ever
//! overwritten; what is derived (locators, the chunk index) is made anew when it is lost; what is
//! damaged is found by its checksum, named, and read from another copy where there is one.
//!
//! ```text
//! in:  receiver (verify to the plain bytes) → packer (deduplicate, lay out, put, read back, index)
//!      → seal (section table) → commit (session, locator, manifest)
//! out: source → locate (locator, or the index) → plan (few range reads) → fetch (check, other copies)
//! ```
//! Reading order: `keys`, `objects`, `remote` → `store`, `marker` → `locate`, `plan`, `fetch`, `source` →
//! `index` → `packer`, `receiver`, `known` → `session` (why nothing is lost to gc) → `commit` → `gc`,
//! `mark` → `rewrites`, `compact_plan`, `compact` → `verify`, `verify_all`.
//!
//! # What is asked of the object store
//!
//! A creation that was acknowledged is durable and whole, fails if the name is taken, and is seen by
//! every listing and read that begins after it. Local directories (with sync), S3 and what speaks
//! like it give that.
//!
//! # Memory
//!
//! Bounded by [`Limits`], where each owner is named; besides, 44 bytes per chunk of an image while
//! its locator is written, one plain chunk per open section of a push, 4 MiB per pack that is being
//! read back (8 at most), 8 MiB for the parent of a push, one pack while packs are rewritten, and
//! names of garbage during gc.

mod cache;
mod commit;
mod compact;
mod compact_plan;
mod condemned;
mod credentials;
mod errors;
mod facts;
mod fetch;
mod footers;
mod gc;
#[cfg(test)]
mod golden;
mod index;
mod keys;
mod known;
mod local;
mod locate;
mod mark;
mod marker;
mod objects;
mod options;
mod packer;
mod plan;
mod receiver;
mod records;
mod remote;
mod rewrites;
mod sealed;
mod session;
mod source;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod unchanged;
mod verify;
mod verify_all;

pub use compact_plan::Compaction;
pub use facts::ImageFacts;
pub use gc::{GcOptions, GcReport};
pub use options::{Clock, DropCache, IdSource, IndexPlace, Limits, StoreOptions};
pub use receiver::{Receiver, ReceiverSection, ReceiverSession};
pub use records::{RefLog, RefMove};
pub use remote::Remote;
pub use store::Store;
pub use verify::VerifyReport;
pub use verify_all::{StoreReport, VerifyAll};
