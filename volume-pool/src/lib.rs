//! What images are written into.
//!
//! - [`Verified`]: plain bytes of a chunk that were checked against their digest. Nothing else can
//!   be written into a target.
//! - [`Target`]: a raw file or a block device that becomes a complete image, or is found half done
//!   and gone on with.
//! - [`Volume`]: a writable disk that a guest may use before its image has arrived. [`Identity`]: what it
//!   says of itself. [`Shelf`]: the directory in which a node keeps its volumes, and the bases that they share.
//! - [`ready`]: volumes that were made ahead, and are nobody's yet.
//! - [`erase`]: what was in a volume is destroyed, and a record says so.
//! - [`foreign`]: files of other programs: raw, qcow2, vmdk.
//! - [`size`]: the sizes that a volume may have.
//! - [`inside`]: what lies on a disk, as far as it must be known to extend it or to cut it.

mod bases;
mod device;
pub mod erase;
mod extending;
pub mod foreign;
mod held;
mod identity;
pub mod inside;
mod layout;
mod left;
mod maps;
mod place;
pub mod ready;
mod scan;
mod shelf;
mod shrink;
mod since;
pub mod size;
mod target;
mod unshared;
mod verified;
mod volume;

pub use device::{DEVICE_TAIL, disk_at, identify};
pub use held::Held;
pub use identity::{Base, Identity, IdentityBlocks, MAX_NAME, VolumeState};
pub use layout::BLOCK;
pub use place::check_path;
pub use shelf::{NewVolume, Shelf};
pub use since::Since;
pub use target::Target;
pub use unshared::{Unshared, unshared};
pub use verified::Verified;
pub use volume::{Arrived, Aside, Captured, Files, Original, Piece, PointInTime, Verdict, Volume};
