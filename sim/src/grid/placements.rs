//! A placement process: started, killed, stopped, cut off from its keys.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use placement::testing::Coordinator;
use placement::{Clock, Uptime};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::host::{Mode, Process};
use super::keys::Etcd;
use super::line::{Flaw, Line};
use super::{TERM, pace};
use crate::chance::Chance;
use crate::trace::Trace;

/// Most of them over one state.
pub(super) const MOST: u64 = 2;
/// What the clock on the wall shows when a run begins.
const NOW: u64 = 1_700_000_000;

/// See the [module](self).
pub(crate) struct Placement {
    number: u64,
    flaw: Option<Flaw>,
    trace: Trace,
    etcd: Arc<Etcd>,
    chance: Arc<Mutex<Chance>>,
    cut: Arc<AtomicBool>,
    /// Seconds by which somebody has set the clock on the wall.
    set: Arc<AtomicU64>,
    /// How many milliseconds its clock counts in a million, and what it shows at first.
    pace: (u64, u64),
    process: RefCell<Process>,
    serves: RefCell<Option<Arc<Coordinator>>>,
}

impl Placement {
    pub(crate) fn new(
        number: u64,
        seed: u64,
        flaw: Option<Flaw>,
        trace: &Trace,
        etcd: &Arc<Etcd>,
    ) -> Rc<Self> {
        let mut chance = Chance::new(seed, &format!("placement {number}"));
        let pace = (pace(&mut chance), chance.within(0..100_000));
        Rc::new(Self {
            number,
            flaw,
            trace: trace.clone(),
            etcd: Arc::clone(etcd),
            chance: Arc::new(Mutex::new(chance)),
            cut: Arc::default(),
            set: Arc::default(),
            pace,
            process: RefCell::new(Process::started()),
            serves: RefCell::default(),
        })
    }

    /// The process and what it serves, if there is one that does.
    pub(crate) fn serves(&self) -> Option<(Process, Arc<Coordinator>)> {
        let coordinator = self.serves.borrow().clone()?;
        Some((self.process.borrow().clone(), coordinator))
    }

    pub(crate) fn start(self: &Rc<Self>) {
        let process = Process::started();
        *self.process.borrow_mut() = process.clone();
        let placement = Rc::clone(self);
        spawn_local(async move { process.run(placement.work()).await });
    }

    async fn work(&self) {
        let (trace, (pace, first)) = (self.trace.clone(), self.pace);
        let shows = move || {
            let millis = trace.now().as_millis() as u64;
            Duration::from_millis(first + millis * pace / 1_000_000)
        };
        let (ticks, wall, set) = (shows.clone(), shows.clone(), Arc::clone(&self.set));
        let clock = Clock::ticking(
            move || NOW + wall().as_secs() + set.load(Ordering::Relaxed),
            move || ticks().as_secs(),
        );
        let line = Line {
            etcd: Arc::clone(&self.etcd),
            process: self.process.borrow().clone(),
            cut: Arc::clone(&self.cut),
            chance: Arc::clone(&self.chance),
            uptime: Uptime::new(shows),
            trace: self.trace.clone(),
            flaw: self.flaw,
        };
        let name = format!("p{}", self.number);
        loop {
            let opened =
                Coordinator::open(Arc::new(line.clone()), clock.clone(), &name, TERM).await;
            if let Ok(coordinator) = opened {
                let coordinator = Arc::new(coordinator);
                *self.serves.borrow_mut() = Some(Arc::clone(&coordinator));
                return coordinator.control().await;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Is killed, and started again.
    pub(crate) async fn dies(self: &Rc<Self>, lasts: Duration) {
        let process = self.process.borrow().clone();
        // Who has killed it before starts it.
        if process.mode() == Mode::Killed {
            return;
        }
        process.set(Mode::Killed);
        self.serves.borrow_mut().take();
        sleep(lasts).await;
        self.start();
    }

    /// Stands still for a while; meanwhile somebody sets its clock, so many seconds on.
    pub(crate) async fn stops(&self, lasts: Duration, set: u64) {
        let process = self.process.borrow().clone();
        process.set(Mode::Stopped);
        sleep(lasts).await;
        self.set.fetch_add(set, Ordering::Relaxed);
        process.set(Mode::Runs);
    }

    /// Does not reach its keys.
    pub(crate) async fn is_cut_off(&self, lasts: Duration) {
        self.cut.store(true, Ordering::Relaxed);
        sleep(lasts.min(Duration::from_secs(10))).await;
        self.cut.store(false, Ordering::Relaxed);
    }
}
