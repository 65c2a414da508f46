//! Volumes of this node: made, shown to guests, filled meanwhile, removed.
//!
//! ```text
//! Volumes ─ Cores: each volume on one ─ Live ─┬─ Serving: export ─ VolumeDisk ─ volume_pool::Volume ─ data file
//!                                             └─ Hydration: Plan, Fetch ─ caches ───────────▲
//! ```
//! Volumes that share their image's chunks live on the core of the image, and lean on one of the core's Bases,
//! which is filled in their place.
//!
//! The attachments are kept in a file: after a restart of the daemon every volume is served again at the same
//! socket, and guests that reconnect go on.

mod bases;
mod cores;
mod disk;
mod erased;
mod extend;
mod fleeced;
mod gate;
mod held;
pub(crate) mod http;
mod hydrate;
mod kept;
mod left;
mod live;
mod pace;
mod plan;
mod ready;
mod recorder;
mod release;
mod resize;
mod scrub;
mod service;
mod serving;
mod shared;
mod source;
mod still;
mod taken;
mod told;
pub(crate) mod tools;
mod window;

pub use cores::CoreOptions;
pub use fleeced::Fleeced;
pub use ready::Hurry;
pub use release::Signs;
pub use service::{Birth, Share, VolumeOptions, Volumes, identify};
pub use serving::Holder;
pub(crate) use source::LazySource;
pub use taken::{Fixed, Taken};
