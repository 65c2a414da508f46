//! Which packs have been rewritten: gc's records of it in the store, and what follows for finding
//! chunks.
//!
//! A record says: what was live in the packs `from` was copied into the pack `to`. It is created before
//! `to` is. It is never more than a preference: a rewritten pack is *passed over* where another copy of
//! a chunk is known, and is as good as any where there is none. So a record may be there without its
//! pack, be lost, or say too much (a chunk that a push leaned on meanwhile, and that was not copied):
//! nothing is lost by it, and at worst a pack stays longer than it must.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use futures::stream::{self, StreamExt, TryStreamExt};
use image::{Error, Kind, PackId, Result};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::condemned::{self, Found, List};
use crate::index::Copy;
use crate::keys::{self, folder};
use crate::objects::{Listed, Objects};
use crate::sealed;

/// Records that are read at a time.
const MANY: usize = 16;

/// The record of a rewriting, `gc/rewrites/<run>-<n>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rewrite {
    /// When, in seconds since 1970.
    pub(crate) at: u64,
    /// The packs that were rewritten: 32 hex digits each.
    pub(crate) from: Vec<String>,
    /// The pack that holds what was live in them.
    pub(crate) to: String,
}

impl List for Rewrite {
    const WHAT: &'static str = "rewriting of packs";
}

/// A set of packs that does not change.
pub(crate) type Packs = Arc<HashSet<PackId>>;

/// The rewritings that are known here. Memory: 16 bytes per rewritten pack that still exists, and the
/// names of the records. Owner: the store.
#[derive(Default)]
pub(crate) struct Rewrites {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    records: HashMap<Path, Rewrite>,
    from: Packs,
}

impl Rewrites {
    /// The packs that were rewritten.
    pub(crate) fn from(&self) -> Packs {
        self.lock().from.clone()
    }

    /// Writes a record.
    pub(crate) async fn add(&self, objects: &Objects, key: Path, rewrite: Rewrite) -> Result<()> {
        objects.create(&key, sealed::seal(Rewrite::WHAT, &rewrite)).await?;
        self.lock().change(|records| drop(records.insert(key, rewrite)));
        Ok(())
    }

    /// Reads the records that are new in the store, and forgets those that are gone.
    pub(crate) async fn refresh(&self, objects: &Objects) -> Result<()> {
        let listed = objects.list_sorted(&folder("gc/rewrites")).await?;
        let known: HashSet<Path> = self.lock().records.keys().cloned().collect();
        let new: Vec<Listed> = listed.iter().filter(|o| !known.contains(&o.key)).cloned().collect();
        let read = stream::iter(new).map(|o| async move {
            let rewrite = match condemned::read::<Rewrite>(objects, &o).await? {
                Found::Whole(rewrite) => Some(rewrite),
                // It says nothing; it is removed in time.
                Found::Unreadable => {
                    Some(Rewrite { at: o.modified, from: Vec::new(), to: String::new() })
                }
                Found::Gone => None,
            };
            Ok::<_, Error>((o.key, rewrite))
        });
        let read: Vec<_> = read.buffer_unordered(MANY).try_collect().await?;
        let there: HashSet<Path> = listed.into_iter().map(|o| o.key).collect();
        self.lock().change(|records| {
            records.retain(|key, _| there.contains(key));
            records.extend(read.into_iter().filter_map(|(key, rewrite)| Some((key, rewrite?))));
        });
        Ok(())
    }

    /// Removes the records that say nothing any more: none of the rewritten packs exists, or the new
    /// one does not and was not made just now.
    pub(crate) async fn tidy(
        &self,
        objects: &Objects,
        exists: impl Fn(&PackId) -> bool,
        before: u64,
    ) -> Result<()> {
        let there = |id: &str| id.parse().is_ok_and(|id| exists(&id));
        let done: Vec<Path> = {
            let state = self.lock();
            let done = state.records.iter().filter(|(_, r)| {
                let of_use = there(&r.to) || (r.at >= before && !r.from.is_empty());
                !of_use || !r.from.iter().any(|id| there(id))
            });
            done.map(|(key, _)| key.clone()).collect()
        };
        objects.delete_all(done.clone()).await?;
        self.lock().change(|records| records.retain(|key, _| !done.contains(key)));
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

impl State {
    fn change(&mut self, f: impl FnOnce(&mut HashMap<Path, Rewrite>)) {
        f(&mut self.records);
        let from = self.records.values().flat_map(|r| &r.from);
        self.from = Arc::new(from.filter_map(|id| id.parse().ok()).collect());
    }
}

/// The copies of a chunk that count: those in rewritten packs only if there is no other.
pub(crate) fn standing(mut copies: Vec<Copy>, rewritten: &HashSet<PackId>) -> Vec<Copy> {
    if copies.iter().any(|c| !rewritten.contains(&c.pack)) {
        copies.retain(|c| !rewritten.contains(&c.pack));
    }
    copies
}

/// The name of a record.
pub(crate) fn record_key(run: &str, n: usize) -> Path {
    keys::rewrite(&format!("{run}-{n:04x}"))
}

/// The error of a run that has no time left for more.
pub(crate) fn out_of_time() -> Error {
    Error::new(Kind::Retry, "this run of gc took too long; the next one goes on with it")
}
