//! What images are written into.
//!
//! - [`Verified`]: plain bytes of a chunk that were checked against their digest. Nothing else can
//!   be written into a target.
//! - [`Target`]: a raw file or a block device that becomes a complete image, or is found half done
//!   and gone on with.

mod place;
mod scan;
mod target;
mod verified;

pub use place::check_path;
pub use target::Target;
pub use verified::Verified;
