//! Planted bugs: for each invariant one that breaks it, to show that it would be seen.

use std::fmt;
use std::str::FromStr;

use crate::invariants::Invariant;

/// A bug to plant into a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A cache alters a frame in a hundred on its way out, and makes its checksum good.
    AlteredFrames,
    /// A node believes the section table of another image.
    UncheckedTables,
    /// A pull calls itself durable, and has synced nothing.
    UnsyncedFinish,
    /// A cache does not look after what is pinned.
    Untended,
    /// A server asks the store for each reader anew.
    NoSharing,
    /// A cache forgets what it has fetched.
    Forgets,
    /// A cache takes many times the memory that it was given.
    Greedy,
    /// A node that was told of a failure waits for ever.
    WaitsForEver,
    /// A server goes on reading for those who have gone.
    LeftBehind,
}

/// All of them, with the invariant that each breaks.
pub const ALL: [(Bug, Invariant); 9] = [
    (Bug::AlteredFrames, Invariant::RightFrames),
    (Bug::UncheckedTables, Invariant::RightBytes),
    (Bug::UnsyncedFinish, Invariant::Durable),
    (Bug::Untended, Invariant::Kept),
    (Bug::NoSharing, Invariant::SingleFlight),
    (Bug::Forgets, Invariant::Egress),
    (Bug::Greedy, Invariant::Memory),
    (Bug::WaitsForEver, Invariant::Finished),
    (Bug::LeftBehind, Invariant::Quiet),
];

impl fmt::Display for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for Bug {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || ALL.map(|(bug, _)| bug.to_string()).join(", ");
        let found = ALL.iter().find(|(bug, _)| bug.to_string() == name);
        found.map(|(bug, _)| *bug).ok_or_else(|| format!("there is no bug {name}, but {}", names()))
    }
}
