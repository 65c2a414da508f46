//! Forebay in a world of its own: the shipped crates, unchanged, on time, network and disks that follow
//! from a seed.
//!
//! ```text
//!  NodeHost ─ node::pull ─ Spread ─ stream::Client ─ quinn ─┐
//!                │                                        Socket ─ Net ─ Socket
//!              MemFs                                                        └ quinn ─ stream::serve
//!                                              Corpus ─ store::Store ─ Origin ─ cache::Cache ┘
//!                                                                                   └ MemFs
//! ```
//! One thread, one runtime whose clock jumps ahead when there is nothing to do: minutes take
//! milliseconds, and a run is a function of its seed. [`Scenario`] says what happens, [`world`] is what
//! it happens to, [`invariants`] are what must hold all the same. Leases have a world of their own ([`leases`]), and so have
//! pools, claims and reservations ([`pools`]); their [`history`] is checked.
//!
//! ```text
//! cargo run --release -p forebay-sim                  500 seeds
//! cargo run --release -p forebay-sim -- --seeds 10000
//! cargo run --release -p forebay-sim -- --seed 42 --trace
//! ```

pub mod bugs;
pub mod chance;
pub mod corpus;
pub mod fleets;
mod grid;
pub mod history;
pub mod invariants;
pub mod leases;
pub mod pools;
pub mod run;
pub mod scenario;
pub mod trace;
pub mod world;

pub use bugs::Bug;
pub use invariants::Invariant;
pub use run::{Counts, Report, run};
pub use scenario::Scenario;
