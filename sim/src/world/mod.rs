//! The world around the shipped crates: network, disks, the line to the store; and the hosts, which are
//! those crates put together as `forebay` puts them together, but on one thread and in the run's time.

pub mod caches;
mod door;
pub mod guests;
pub mod net;
pub mod nodes;
pub mod origin;
pub mod papers;
mod socket;
pub mod ways;

use std::sync::Arc;

use stream::transport::Tuning;

use crate::bugs::Bug;
use crate::corpus::Corpus;
use crate::invariants::Watch;
use crate::scenario::Scenario;
use crate::trace::Trace;

/// What every host of a run knows. Clones share it.
#[derive(Clone)]
pub struct World {
    /// The plan.
    pub scenario: Arc<Scenario>,
    /// The images.
    pub corpus: &'static Corpus,
    /// The time, and what happened.
    pub trace: Trace,
    /// The network.
    pub net: net::Net,
    /// How the store is.
    pub mood: origin::Mood,
    /// What must hold.
    pub watch: Watch,
    /// A bug that was planted.
    pub bug: Option<Bug>,
}

impl World {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// QUIC as it is set up outside, but for packets that are longer than any link here takes.
    fn tuning(&self) -> Tuning {
        Tuning { max_payload: 9_000, ..Tuning::default() }
    }
}
