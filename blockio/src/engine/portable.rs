//! Threads and plain system calls, for kernels without a ring.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::EngineStats;
use super::pending::{Payload, Pending, Verb};
use crate::file::BlockFile;

/// Hands operations to the blocking pool of one runtime, `threads` at a time.
#[derive(Clone, Debug)]
pub(super) struct Portable {
    runtime: Handle,
    shared: Arc<Shared>,
    threads: u32,
}

#[derive(Debug)]
struct Shared {
    permits: Arc<Semaphore>,
    started: AtomicU64,
    completed: AtomicU64,
}

impl Portable {
    pub(super) fn start(threads: u32) -> io::Result<Portable> {
        if threads == 0 {
            let what = "the portable engine needs a thread";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        let permits = Arc::new(Semaphore::new(threads as usize));
        let shared = Shared { permits, started: AtomicU64::new(0), completed: AtomicU64::new(0) };
        Ok(Portable { runtime, shared: Arc::new(shared), threads })
    }

    pub(super) async fn run(
        &self,
        file: &BlockFile,
        verb: Verb,
        payload: Payload,
        offset: u64,
    ) -> (io::Result<usize>, Payload) {
        let permits = Arc::clone(&self.shared.permits);
        let permit = permits.acquire_owned().await.expect("an engine's line is never closed");
        let (pending, reply) = Pending::new(file.clone(), verb, payload, offset);
        let shared = Arc::clone(&self.shared);
        shared.started.fetch_add(1, Ordering::Relaxed);
        // Should the runtime end before a thread gets to it, dropping `pending` answers for it.
        self.runtime.spawn_blocking(move || {
            pending.run_blocking();
            shared.completed.fetch_add(1, Ordering::Relaxed);
            drop(permit);
        });
        reply.wait().await
    }

    pub(super) async fn settle(&self) {
        let all = self.shared.permits.acquire_many(self.threads).await;
        drop(all.expect("an engine's line is never closed"));
    }

    pub(super) fn stats(&self) -> EngineStats {
        let free = self.shared.permits.available_permits() as u32;
        EngineStats {
            completed: self.shared.completed.load(Ordering::Relaxed),
            submissions: self.shared.started.load(Ordering::Relaxed),
            in_flight: self.threads.saturating_sub(free),
        }
    }
}
