//! The caches of the grid, as they are now: a long read learns who joined, left or drains.

use std::sync::Arc;

use api::grid::CacheInfo;
use tokio::sync::watch;

/// Who serves; a clone sees the same changes.
#[derive(Clone, Debug)]
pub struct Members(watch::Receiver<Arc<[CacheInfo]>>);

/// Tells all holders of [`Members`] who serves.
#[derive(Debug)]
pub struct Updates(watch::Sender<Arc<[CacheInfo]>>);

impl Members {
    /// These, until the [`Updates`] say otherwise. Dropping those leaves the last list for good.
    pub fn new(caches: impl Into<Arc<[CacheInfo]>>) -> (Updates, Self) {
        let (send, receive) = watch::channel(caches.into());
        (Updates(send), Self(receive))
    }

    /// These for good.
    pub fn fixed(caches: impl Into<Arc<[CacheInfo]>>) -> Self {
        Self::new(caches).1
    }

    /// Who serves now.
    pub fn list(&self) -> Arc<[CacheInfo]> {
        Arc::clone(&self.0.borrow())
    }
}

impl Updates {
    /// Who serves from now on. A list of nobody is not believed: what is known may still answer, and with
    /// nobody a read could only fail.
    pub fn set(&self, caches: Vec<CacheInfo>) {
        if !caches.is_empty() && self.0.borrow()[..] != caches[..] {
            tracing::info!(caches = caches.len(), "the caches of the grid have changed");
            self.0.send_replace(caches.into());
        }
    }

    /// Returns when nobody wants to know any more.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}
