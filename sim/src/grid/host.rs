//! A process, which can be stopped (SIGSTOP), let go on (SIGCONT) and killed.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// What it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Runs,
    /// Its time goes on without it.
    Stopped,
    Killed,
}

/// See the [module](self). Clones are the same process.
#[derive(Clone, Debug)]
pub(crate) struct Process(Arc<(Mutex<Mode>, Notify)>);

impl Process {
    pub(crate) fn started() -> Self {
        Self(Arc::new((Mutex::new(Mode::Runs), Notify::new())))
    }

    pub(crate) fn mode(&self) -> Mode {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing comes after it was killed.
    pub(crate) fn set(&self, mode: Mode) {
        let (now, changed) = &*self.0;
        let mut now = now.lock().unwrap_or_else(PoisonError::into_inner);
        if *now != Mode::Killed {
            *now = mode;
        }
        drop(now);
        // In the order in which they wait: `watch` has an order that is drawn.
        changed.notify_waiters();
    }

    /// Does something as a part of it; nothing, if it is killed.
    pub(crate) async fn run<F: Future>(&self, work: F) -> Option<F::Output> {
        let mut work = pin!(work);
        loop {
            let mut changed = pin!(self.0.1.notified());
            changed.as_mut().enable();
            match self.mode() {
                Mode::Killed => return None,
                Mode::Stopped => changed.await,
                Mode::Runs => tokio::select! {
                    biased;
                    () = changed => {}
                    done = &mut work => return Some(done),
                },
            }
        }
    }
}
