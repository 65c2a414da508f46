//! Pools on a node: volumes are built ahead, and handed out.
//!
//! ```text
//!  placement ◀─ report ── Agent ── goal ─▶ Items ── what is new ─▶ Ready ─▶ Volumes
//!                           ▲                 └── how far it is ◀───┘
//!                           └ whoever asks at the daemon's socket ─▶ Ready
//! ```
//! A node hands out what it has without asking anybody: whether a volume was handed out is said by its identity
//! alone. Placement learns of it by the next report.

mod agent;
pub(crate) mod http;
mod items;
mod ready;

pub use agent::{Agent, AgentOptions, Reports};
pub use items::{Items, Outcome};
pub use ready::Ready;
