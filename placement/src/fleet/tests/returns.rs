//! A holder that comes back just while its lease is being given to another.

use std::sync::atomic::AtomicBool;

use tokio::sync::Notify;

use super::*;
use crate::archive::Answer;
use crate::state::keys::{Keys, Listing, Versioned, Watch};
use crate::state::{Reign, StatePlace};

/// Keys of which one commit waits.
struct Held {
    keys: Arc<dyn Keys>,
    holds: AtomicBool,
    arrived: Notify,
    go: Notify,
}

impl Keys for Held {
    fn get(&self, key: String) -> Answer<'_, Option<Versioned>> {
        self.keys.get(key)
    }

    fn list(&self, prefix: String) -> Answer<'_, Listing> {
        self.keys.list(prefix)
    }

    fn commit(&self, transaction: Transaction) -> Answer<'_, ()> {
        Box::pin(async move {
            if self.holds.swap(false, Ordering::SeqCst) {
                self.arrived.notify_one();
                self.go.notified().await;
            }
            self.keys.commit(transaction).await
        })
    }

    fn watch(&self, prefix: String, after: u64) -> Watch {
        self.keys.watch(prefix, after)
    }

    fn campaign(&self, key: String, id: Vec<u8>, ttl: Duration) -> Answer<'_, Reign> {
        self.keys.campaign(key, id, ttl)
    }
}

#[tokio::test]
async fn a_holder_that_comes_back_meanwhile_keeps_its_lease_or_is_told_that_it_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let keys = StatePlace::File(dir.path().join("state")).keys(None).await.unwrap();
    let (holds, arrived, go) = (AtomicBool::new(false), Notify::new(), Notify::new());
    let held = Arc::new(Held { keys, holds, arrived, go });
    let state = State::over(Arc::<Held>::clone(&held), "grid").await.unwrap();
    let mut grid = Grid::over(state, &["a"], Policy::default()).await;
    grid.round(&[]).await;
    grid.fleet.take_lease(VOLUME, &take("a")).await.unwrap();
    grid.later(LAPSED);
    // Placement has looked, and is about to write down what follows.
    held.holds.store(true, Ordering::SeqCst);
    let fleet = Arc::clone(&grid.fleet);
    let taking = tokio::spawn(async move { fleet.take_lease(VOLUME, &take("b")).await });
    held.arrived.notified().await;
    let node = grid.nodes.get_mut("a").unwrap();
    node.leases = vec![HeldLease { volume: VOLUME.into(), epoch: 1 }];
    let told = grid.fleet.report("a", node.report(), Duration::ZERO).await.unwrap();
    held.go.notify_one();
    let taken = taking.await.unwrap();
    assert!(told.lost == [VOLUME] || taken.is_err(), "both have it: {told:?}, {taken:?}");
}
