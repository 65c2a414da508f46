//! The state's generation: a restore begins a new one, and what opened the state before it changes nothing
//! any more.

use std::sync::Arc;
use std::time::Duration;

use image::{Error, Kind, Result};

use super::keys::{Keys, Listing, Transaction, Versioned, Watch};
use super::lead::Reign;
use crate::archive::Answer;

/// The number of the generation; not there in the first.
pub(super) const GENERATION: &str = "generation";
/// Since a restore: the time before which no lease may be handed out, in seconds since 1970.
pub(super) const NOT_BEFORE: &str = "not_before";
/// There while a restore is not at its end.
pub(super) const RESTORING: &str = "restoring";

/// The longest lease that is handed out, unless a longer one is configured. A restored state does not know the
/// leases since its backup: for so long somebody may hold one.
pub const LONGEST_LEASE: Duration = Duration::from_secs(15 * 60);

/// Keys, as long as they are of the generation in which they were opened.
pub(super) struct Fenced {
    keys: Arc<dyn Keys>,
    /// The version of the key; nothing: it was not there.
    generation: Option<u64>,
}

impl Fenced {
    /// Of the generation that is there now.
    pub(super) async fn new(keys: Arc<dyn Keys>) -> Result<Self> {
        let generation = keys.get(GENERATION.into()).await?.map(|there| there.version);
        Ok(Self { keys, generation })
    }
}

impl Keys for Fenced {
    fn get(&self, key: String) -> Answer<'_, Option<Versioned>> {
        self.keys.get(key)
    }

    fn list(&self, prefix: String) -> Answer<'_, Listing> {
        self.keys.list(prefix)
    }

    fn commit(&self, mut transaction: Transaction) -> Answer<'_, ()> {
        transaction.compares.push((GENERATION.into(), self.generation));
        Box::pin(async move {
            let done = self.keys.commit(transaction).await;
            let Err(e) = &done else { return done };
            if e.kind() != Kind::Conflict {
                return done;
            }
            let now = self.keys.get(GENERATION.into()).await?;
            if now.map(|there| there.version) == self.generation {
                return done;
            }
            let what = "placement's state was restored from a backup meanwhile: restart placement";
            Err(Error::new(Kind::Conflict, what))
        })
    }

    fn watch(&self, prefix: String, after: u64) -> Watch {
        self.keys.watch(prefix, after)
    }

    fn campaign(&self, key: String, id: Vec<u8>, ttl: Duration) -> Answer<'_, Reign> {
        self.keys.campaign(key, id, ttl)
    }
}
