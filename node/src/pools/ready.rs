//! The ready volumes of a node: which there are, and who gets one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use api::goal::ReadyVolume;
use api::pool::{LocalClaim, VolumeKind};
use api::volume::VolumeInfo;
use image::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, OwnedMutexGuard};
use volume_pool::VolumeState;
use volume_pool::ready::name_of;

use crate::daemon::Grid;
use crate::volumes::{Birth, Hurry, Volumes};

const UNPOISONED: &str = "no panics while locked";

/// What a volume was made for, as it is kept beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    pool: String,
    kind: VolumeKind,
}

/// Says what a volume was made for.
#[derive(Clone, Debug)]
struct Entry {
    origin: Origin,
    state: VolumeState,
    created: u64,
}

/// The ready volumes of a node. Clones share it.
pub struct Ready<G>(Arc<Inner<G>>);

impl<G> Clone for Ready<G> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<G> {
    volumes: Volumes<G>,
    index: Mutex<Index>,
    /// One answer to a request at a time.
    asking: Mutex<BTreeMap<[u8; 16], Arc<tokio::sync::Mutex<()>>>>,
    changed: Notify,
}

#[derive(Default)]
struct Index {
    /// What is nobody's, by id. Whoever takes an entry out has the volume for itself.
    unclaimed: BTreeMap<[u8; 16], Entry>,
    /// What was handed out, by request: what it was called.
    claimed: BTreeMap<[u8; 16], String>,
    /// By pool, how many were taken here since the start without placement having been asked.
    taken: BTreeMap<String, u64>,
}

impl<G: Grid> Ready<G> {
    /// Those of a node.
    pub async fn open(volumes: Volumes<G>) -> Result<Self> {
        let mut index = Index::default();
        for found in volumes.unclaimed().await? {
            let id = found.identity.id;
            // What is being erased is for nobody.
            if found.identity.state == VolumeState::Erasing {
                continue;
            }
            match serde_json::from_slice::<Origin>(&found.origin) {
                Ok(origin) => {
                    let (state, created) = (found.identity.state, found.identity.created);
                    index.unclaimed.insert(id, Entry { origin, state, created });
                }
                Err(error) => {
                    tracing::error!(%error, id = name_of(&id), "a volume made for nobody knows what");
                }
            }
        }
        for (claim, identity) in volumes.claimed().await? {
            index.claimed.insert(claim, identity.name);
        }
        let (index, asking) = (Mutex::new(index), Mutex::default());
        Ok(Self(Arc::new(Inner { volumes, index, asking, changed: Notify::new() })))
    }

    /// All that are nobody's.
    pub fn list(&self) -> Vec<ReadyVolume> {
        let index = self.0.index.lock().expect(UNPOISONED);
        let line = |(id, entry): (&[u8; 16], &Entry)| ReadyVolume {
            id: name_of(id),
            pool: entry.origin.pool.clone(),
            kind: entry.origin.kind.clone(),
            state: entry.state.name().to_owned(),
        };
        index.unclaimed.iter().map(line).collect()
    }

    /// By pool, how many were taken here without placement having been asked.
    pub fn taken(&self) -> BTreeMap<String, u64> {
        self.0.index.lock().expect(UNPOISONED).taken.clone()
    }

    /// Bytes of the file system that they lie on, and of what is free there.
    pub fn room(&self) -> Result<(u64, u64)> {
        self.0.volumes.room()
    }

    /// Waits until something has changed.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Builds one. If it is there already, or was handed out meanwhile, nothing is done.
    pub async fn build(
        &self,
        pool: &str,
        kind: &VolumeKind,
        birth: Birth,
        hurry: Hurry,
    ) -> Result<()> {
        if self.has(&birth.id) || self.was_handed_out(&birth.id).await? {
            return Ok(());
        }
        let origin = Origin { pool: pool.to_owned(), kind: kind.clone() };
        let bytes = serde_json::to_vec(&origin).expect("our own types serialise");
        let made = self.0.volumes.make_ready(kind, bytes, birth, hurry).await?;
        let entry = Entry { origin, state: made.state, created: made.created };
        self.0.index.lock().expect(UNPOISONED).unclaimed.insert(birth.id, entry);
        self.0.changed.notify_one();
        Ok(())
    }

    fn has(&self, id: &[u8; 16]) -> bool {
        self.0.index.lock().expect(UNPOISONED).unclaimed.contains_key(id)
    }

    async fn was_handed_out(&self, id: &[u8; 16]) -> Result<bool> {
        Ok(self.0.volumes.claimed().await?.iter().any(|(_, identity)| identity.id == *id))
    }

    /// Hands out a ready volume of a pool. The same request again has the same answer.
    ///
    /// # Errors
    ///
    /// [`Kind::Gone`] if none is ready; [`Kind::Conflict`] if there is a volume of this name.
    pub async fn claim(&self, pool: &str, asked: &LocalClaim) -> Result<VolumeInfo> {
        self.hand_out(pool, asked, false).await
    }

    /// As [`claim`](Self::claim), for who has not asked placement: that counts it by what it is told of this.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn take(&self, pool: &str, asked: &LocalClaim) -> Result<VolumeInfo> {
        self.hand_out(pool, asked, true).await
    }

    async fn hand_out(&self, pool: &str, asked: &LocalClaim, counts: bool) -> Result<VolumeInfo> {
        let request = request_of(&asked.request)?;
        let _only = self.only(request).await;
        if let Some(name) = self.handed_out(&request) {
            return self.0.volumes.show_claimed(&name, request).await;
        }
        loop {
            let Some((id, entry)) = self.pick(pool) else {
                let what = format!("pool {pool}: no volume is ready on this node");
                return Err(Error::new(Kind::Gone, what));
            };
            match self.0.volumes.hand_out(id, &asked.volume, request).await {
                Ok(info) => {
                    let mut index = self.0.index.lock().expect(UNPOISONED);
                    index.claimed.insert(request, asked.volume.clone());
                    if counts {
                        *index.taken.entry(pool.to_owned()).or_default() += 1;
                    }
                    self.0.changed.notify_one();
                    return Ok(info);
                }
                // It went past us.
                Err(error) if error.kind() == Kind::Gone => {}
                Err(error) => {
                    self.put_back(id, entry).await;
                    return Err(error);
                }
            }
        }
    }

    /// Keeps what was not handed out after all. What is half handed out is completed by the next start, and nobody's
    /// until then.
    async fn put_back(&self, id: [u8; 16], entry: Entry) {
        match self.0.volumes.is_ready(&id).await {
            Ok(true) => drop(self.0.index.lock().expect(UNPOISONED).unclaimed.insert(id, entry)),
            Ok(false) => tracing::error!(id = name_of(&id), "a volume is half handed out"),
            Err(error) => tracing::error!(%error, id = name_of(&id), "a volume is out of use"),
        }
    }

    /// What a request was answered with, if it was.
    fn handed_out(&self, request: &[u8; 16]) -> Option<String> {
        self.0.index.lock().expect(UNPOISONED).claimed.get(request).cloned()
    }

    /// Takes one for whoever asks: of the kind that was built last, the oldest.
    fn pick(&self, pool: &str) -> Option<([u8; 16], Entry)> {
        let mut index = self.0.index.lock().expect(UNPOISONED);
        let ready = || {
            let of = |entry: &Entry| entry.origin.pool == pool && entry.state == VolumeState::Ready;
            index.unclaimed.iter().filter(move |(_, entry)| of(entry))
        };
        let newest = &ready().max_by_key(|(_, entry)| entry.created)?.1.origin.kind;
        let oldest = ready().filter(|(_, entry)| entry.origin.kind == *newest);
        let id = *oldest.min_by_key(|(id, entry)| (entry.created, **id))?.0;
        index.unclaimed.remove_entry(&id)
    }

    /// Takes away one that nobody wants: it is erased, and then removed. Nothing is done if it is not there.
    pub async fn discard(&self, id: [u8; 16], seed: [u8; 32]) -> Result<()> {
        let taken = self.0.index.lock().expect(UNPOISONED).unclaimed.remove(&id);
        let Some(entry) = taken else { return Ok(()) };
        let removed = self.0.volumes.erase_ready(&id, seed).await;
        if removed.is_err() {
            self.0.index.lock().expect(UNPOISONED).unclaimed.insert(id, entry);
        }
        self.0.changed.notify_one();
        removed
    }

    async fn only(&self, request: [u8; 16]) -> OwnedMutexGuard<()> {
        let lock = {
            let mut asking = self.0.asking.lock().expect(UNPOISONED);
            asking.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(asking.entry(request).or_default())
        };
        lock.lock_owned().await
    }
}

/// A request, or an id, of its 32 hexadecimal digits.
pub(super) fn request_of(text: &str) -> Result<[u8; 16]> {
    let bad = || {
        let shown: String = text.chars().take(40).collect();
        let what = format!("`{}`: 32 hexadecimal digits are needed", shown.escape_debug());
        Error::new(Kind::Invalid, what)
    };
    if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err(bad());
    }
    let mut id = [0; 16];
    for (at, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| bad())?;
    }
    Ok(id)
}
