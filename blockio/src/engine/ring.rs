//! The ring: many operations per system call, on the thread that has the data in its cache.
//!
//! Callers put operations into the submission queue and wake the driver, one task of the runtime.
//! The driver runs after the tasks that were ready before it, so that it finds what all of them
//! have queued and hands it to the kernel with a single call. It then takes whatever has completed,
//! and sleeps until the kernel posts more (the ring's descriptor becomes readable) or somebody
//! queues more. Nothing here waits for the runtime to fall idle: a core kept busy by the network
//! still submits once per turn.

mod core;
mod registered;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::unix::AsyncFd;
use tokio::runtime;
use tokio::sync::{Notify, Semaphore};

use self::core::{Core, Finished, Turn};
use super::pending::{Payload, Pending, Verb};
use super::portable::Portable;
use super::{EngineOptions, EngineStats};
use crate::file::BlockFile;
use crate::watch::watch;

/// The deepest ring that can be asked for.
const MAX_DEPTH: u32 = 4096;

/// Threads for what a ring cannot do as cheaply as it can be asked to: zeroing, punching and copying, with
/// their fallbacks, and reads out of two files.
const ASIDE: u32 = 2;

/// A handle to a ring and its driver.
#[derive(Clone)]
pub(super) struct Ring {
    handle: Arc<Handle>,
}

/// What the clones of a [`Ring`] share; when it goes, the driver is told to finish.
struct Handle {
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    depth: u32,
    aside: Portable,
}

/// What the handles share with the driver.
struct Shared {
    core: Mutex<Core>,
    /// Something was queued, or the last handle is gone.
    kick: Notify,
}

impl Ring {
    pub(super) fn start(options: &EngineOptions) -> io::Result<Ring> {
        if !(1..=MAX_DEPTH).contains(&options.depth) {
            let what = format!("a ring's depth is 1 to {MAX_DEPTH}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let runtime = runtime::Handle::try_current().map_err(io::Error::other)?;
        let core = Core::new(options.depth, &options.register)?;
        let posted = watch(core.descriptor()?)?;
        let shared = Arc::new(Shared { core: Mutex::new(core), kick: Notify::new() });
        // The guard goes in ready: a runtime may end before it has polled the driver once.
        runtime.spawn(drive(StopOnDrop(Arc::clone(&shared)), posted));
        let permits = Arc::new(Semaphore::new(options.depth as usize));
        let handle =
            Handle { shared, permits, depth: options.depth, aside: Portable::start(ASIDE)? };
        Ok(Ring { handle: Arc::new(handle) })
    }

    pub(super) async fn run(
        &self,
        file: &BlockFile,
        verb: Verb,
        payload: Payload,
        offset: u64,
    ) -> (io::Result<usize>, Payload) {
        match verb {
            Verb::Read | Verb::Write if payload.len() == 0 => return (Ok(0), payload),
            Verb::Read | Verb::Write | Verb::Sync if !matches!(payload, Payload::Over(..)) => {}
            _ => {
                return self.handle.aside.run(file, verb, payload, offset).await;
            }
        }
        let permits = Arc::clone(&self.handle.permits);
        let permit = permits.acquire_owned().await.expect("an engine's line is never closed");
        let (pending, reply) = Pending::new(file.clone(), verb, payload, offset);
        // A refused operation answers for itself when it is dropped, outside the lock.
        let refused = self.handle.shared.core().queue(pending, permit);
        drop(refused);
        self.handle.shared.kick.notify_one();
        reply.wait().await
    }

    pub(super) async fn settle(&self) {
        let all = self.handle.permits.acquire_many(self.handle.depth).await;
        drop(all.expect("an engine's line is never closed"));
        self.handle.aside.settle().await;
    }

    pub(super) fn stats(&self) -> EngineStats {
        self.handle.shared.core().stats()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.core().close();
        self.shared.kick.notify_one();
    }
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        // No code of others runs under the lock; if ours panicked, `Core` still knows which
        // operations the kernel holds, and its drop still waits for them.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Submits and reaps, and tells the callers outside the lock: waking somebody may run code that
    /// takes it.
    fn turn(&self) -> Turn {
        let mut finished = Vec::new();
        let turn = self.core().turn(&mut finished);
        finished.into_iter().for_each(Finished::deliver);
        turn
    }
}

/// Whether a ring can be had.
pub(super) fn available() -> io::Result<()> {
    Core::new(1, &[]).map(drop)
}

/// Stops the core when the driver goes, for whatever reason: if the runtime is dropped under it,
/// what the kernel holds is waited for here and now.
struct StopOnDrop(Arc<Shared>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        let mut finished = Vec::new();
        self.0.core().stop(&mut finished);
        finished.into_iter().for_each(Finished::deliver);
    }
}

/// The driver: the task that submits and reaps.
async fn drive(shared: StopOnDrop, posted: AsyncFd<OwnedFd>) {
    loop {
        match shared.0.turn() {
            Turn::Ended => return,
            // The kernel was short of memory and holds nothing of ours that could wake us.
            Turn::Stalled => tokio::task::yield_now().await,
            Turn::Idle => {
                tokio::select! {
                    () = shared.0.kick.notified() => {}
                    ready = posted.readable() => match ready {
                        // Before the turn: what is posted after it makes the descriptor ready again.
                        Ok(mut ready) => ready.clear_ready(),
                        Err(error) => {
                            tracing::error!(%error, "lost the ring's readiness: the engine stops");
                            return;
                        }
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
