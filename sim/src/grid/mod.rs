//! Placements over one state, and those who ask them: what worlds of the shipped placement have in common.
//!
//! ```text
//!  who asks ── Way: late, lost, cut off ──▶ Placement: placement::testing::Coordinator
//!                                              │ Line: late, lost, cut off
//!                                            Etcd: power cuts
//! ```
//! Each of several placements may be asked, and sends who asks on to the one that leads.

mod host;
mod keys;
mod line;
mod placements;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use image::{Error, Kind, Result};
use placement::testing::Coordinator;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{sleep, timeout};

use crate::chance::Chance;
use crate::trace::Trace;
pub(crate) use host::{Mode, Process};
pub(crate) use keys::Etcd;
pub(crate) use line::Flaw;
pub(crate) use placements::Placement;

/// Seconds for which a node has its leases after a report.
pub(crate) const TERM: u64 = 12;
/// How far clocks run fast or slow, in millionths: what leases are made for.
const PACE: u64 = 1000;

/// A clock's pace: how many milliseconds it counts in a million.
pub(crate) fn pace(chance: &mut Chance) -> u64 {
    1_000_000 - PACE + chance.within(0..2 * PACE + 1)
}

/// See the [module](self).
pub(crate) struct Grid {
    pub etcd: Arc<Etcd>,
    pub placements: Vec<Rc<Placement>>,
    chance: RefCell<Chance>,
    /// Nodes that reach nobody.
    cut: RefCell<Vec<bool>>,
}

/// What becomes of a question.
struct Way {
    there: Duration,
    back: Duration,
    /// It never arrives.
    lost: bool,
    /// Its answer never does.
    mute: bool,
    /// Who gives up waiting ends the work, too.
    ends: bool,
}

impl Grid {
    /// Of one placement or several, and so many nodes.
    pub(crate) fn new(seed: u64, trace: &Trace, nodes: usize, flaw: Option<Flaw>) -> Rc<Self> {
        let etcd = Etcd::new(trace);
        let count = Chance::new(seed, "placements").within(1..placements::MOST + 1);
        let placements = (0..count).map(|n| Placement::new(n, seed, flaw, trace, &etcd));
        Rc::new(Self {
            placements: placements.collect(),
            etcd,
            chance: RefCell::new(Chance::new(seed, "ways")),
            cut: RefCell::new(vec![false; nodes]),
        })
    }

    /// Starts all placements.
    pub(crate) fn start(&self) {
        self.placements.iter().for_each(|placement| placement.start());
    }

    /// A node reaches nobody, or everybody again.
    pub(crate) fn cut(&self, node: usize, is_cut: bool) {
        self.cut.borrow_mut()[node] = is_cut;
    }

    fn is_cut(&self, node: Option<usize>) -> bool {
        node.is_some_and(|node| self.cut.borrow()[node])
    }

    fn way(&self) -> Way {
        let mut chance = self.chance.borrow_mut();
        let mut late = || {
            let most = if chance.one_in(30) { 3000 } else { 20 };
            Duration::from_millis(chance.within(0..most))
        };
        let (there, back) = (late(), late());
        let (lost, mute, ends) = (chance.one_in(60), chance.one_in(60), chance.one_in(2));
        Way { there, back, lost, mute, ends }
    }

    /// The one that leads, by what the one says that was asked; that one, if it does not know.
    async fn leading(&self, asked: usize) -> Option<(Process, Arc<Coordinator>)> {
        let (process, coordinator) = self.placements[asked].serves()?;
        if self.placements.len() == 1 {
            return Some((process, coordinator));
        }
        let status = process.run(async { coordinator.status().await.ok() }).await??;
        let leads = status.leader.and_then(|leads| leads.name.strip_prefix('p')?.parse().ok());
        match leads.filter(|leads| *leads != asked) {
            None => Some((process, coordinator)),
            Some(leads) => {
                sleep(self.way().there).await;
                self.placements.get::<usize>(leads)?.serves()
            }
        }
    }

    /// Asks a placement something; whoever leads answers.
    ///
    /// # Errors
    ///
    /// [`Kind::Retry`] if no answer comes for so long: it may be done all the same.
    pub(crate) async fn ask<T: 'static, F: Future<Output = Result<T>> + 'static>(
        self: &Rc<Self>,
        node: Option<usize>,
        patience: Duration,
        work: impl FnOnce(Arc<Coordinator>) -> F + 'static,
    ) -> Result<T> {
        let (way, grid) = (self.way(), Rc::clone(self));
        let (answer, answered) = oneshot::channel();
        let ends = way.ends;
        let handler = spawn_local(async move {
            sleep(way.there).await;
            if way.lost || grid.is_cut(node) {
                return std::future::pending().await;
            }
            let at = grid.chance.borrow_mut().within(0..grid.placements.len() as u64) as usize;
            let Some((process, coordinator)) = grid.leading(at).await else {
                return drop(answer);
            };
            let Some(done) = process.run(work(coordinator)).await else { return };
            sleep(way.back).await;
            if way.mute || grid.is_cut(node) {
                return std::future::pending().await;
            }
            let _ = answer.send(done);
        });
        let _ends = ends.then(|| Ends(handler.abort_handle()));
        match timeout(patience, answered).await {
            Ok(Ok(done)) => done,
            _ => Err(Error::new(Kind::Retry, "placement does not answer")),
        }
    }
}

/// Ends a task when it is dropped.
struct Ends(AbortHandle);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}
