//! wip
mod cache;
mod commit;
mod condemned;
mod errors;
mod facts;
mod fetch;
mod footers;
mod gc;
mod index;
mod keys;
mod known;
mod local;
mod locate;
mod mark;
mod objects;
mod options;
mod packer;
mod plan;
mod receiver;
mod records;
mod sealed;
mod session;
mod source;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod verify;

pub use facts::ImageFacts;
pub use gc::GcReport;
pub use options::{Clock, DropCache, IdSource, IndexPlace, Limits, StoreOptions};
pub use receiver::{Receiver, ReceiverSection, ReceiverSession};
pub use records::{RefLog, RefMove};
pub use store::Store;
pub use verify::VerifyReport;
