//! Proof that an image can be restored: a scratch copy of it is looked at as whoever restores it would.
//!
//! ```text
//!  Scratch ─▶ pull (every byte verified) ─▶ survey ─▶ a Plan for each part ─▶ tools, read-only ─▶ judge ─▶ Verdict
//!                                          layout.rs                          check.rs          verdict.rs
//!                                                └─▶ Machine: QEMU until the console says a marker (boot.rs)
//! ```
//! What a disk holds is believed by nobody: the tools read it, nothing is mounted unless asked for, and what they and
//! guests say is kept to its last words. Which images are rehearsed is drawn (`draw`); what came of it is kept
//! ([`Record`]).

mod boot;
mod check;
mod draw;
mod layout;
mod machine;
mod record;
mod report;
mod run;
mod said;
mod scratch;
mod verdict;

pub use boot::{BootTest, boot};
pub use check::{CheckOptions, Survey, check};
pub use draw::{Candidate, Limits, draw};
pub use machine::{Accelerator, Firmware, Kernel, Machine};
pub use record::{MAX_RECORDED, Record};
pub use report::{Boot, Failure, Part, Rehearsal, Restored, Verdict};
pub use said::MAX_WANTED;
pub use scratch::Scratch;
