//! Writer sessions: what keeps gc from removing what a writer leans on.
//!
//! # Why a commit that races with gc never loses a chunk
//!
//! There is no compare-and-set in an object store, only creation, listing and removal of names.
//! Say a writer W leans on object K (a pack, a section table, a manifest), and gc removes things in
//! this order; each step is acknowledged before the next begins:
//!
//! ```text
//! gc, one run    C: creates a condemned list R that names K              (K was not reachable)
//! gc, later run  D: creates a mark "deleting R"; ends if another gc has one
//!                L: lists the sessions. If a live one began before C or holds R,
//!                   R is left for another time
//!                M: lists the manifests, and marks what images reach
//!                X: deletes what R names and M did not reach
//!                then removes R, then the mark
//!
//! writer         S: creates its session, then does its work
//!                a: reads every condemned list
//!                H: writes into its session that it holds those that name what it leans on
//!                b: lists gc's marks, and gives up (conflict) if one is about a held list
//!                c: checks that everything that it leans on exists, or gives up
//!                P: creates the manifest, which makes K reachable
//!                E: ends the session
//! ```
//! Suppose K is deleted (X) although W commits (P). W saw K at c, so c comes before X; and M did not
//! see the manifest, so M comes before P, and L before that, before E: at L, W's session was listed.
//!
//! (M sees a manifest means: while an image exists and is not itself deleted by this run, nothing
//! that it leans on is, whether or not a name leads to it.)
//!
//! * If R was there at a, then H was before b. If the mark was there at b, W gave up. If not, b
//!   comes before D (the mark is removed after X, and X comes after c), so H comes before L: gc saw
//!   that W holds R, and left R alone. Contradiction.
//! * If R was not there at a, it was either made after a, so W's session began before C: gc saw that
//!   at L, and left R alone; or R was removed before a, after its X, so K was gone at c (or was
//!   created anew by W, after X). Contradiction.
//!
//! What is assumed: listings show every object whose creation was acknowledged before the listing
//! began; clocks agree within a session's life, and no request takes longer than that. A session
//! counts as live for one more life after it expires, while its writer stops trusting it when it
//! expires; "began before C" is taken with one life to spare. A name that is used again (tables,
//! manifests) is covered because a writer treats what it creates like what it finds, and because
//! one gc runs at a time.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use image::{Error, Kind, Result};
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::condemned::{self, Condemned, Deleting, Found};
use crate::keys::{self, folder, last_part};
use crate::objects::Listed;
use crate::sealed;
use crate::store::Shared;

pub(crate) const SESSION: &str = "session";
/// Longest renewal in bytes: it may name many held lists.
pub(crate) const MAX_RENEWAL: usize = 16 << 20;

/// One object of a session. Times in seconds since 1970.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Renewal {
    pub(crate) started: u64,
    pub(crate) expires: u64,
    /// Condemned lists which name something that the writer leans on.
    pub(crate) holds: BTreeSet<String>,
}

/// What a writer leans on.
#[derive(Default)]
pub(crate) struct Leans {
    /// Packs and section tables: they must exist.
    pub(crate) existing: HashSet<Path>,
    /// What is about to be created, or is there already: manifest.
    pub(crate) making: HashSet<Path>,
}

impl Leans {
    fn names(&self, key: &str) -> bool {
        let key = Path::from(key);
        self.existing.contains(&key) || self.making.contains(&key)
    }
}

/// A session in the store, renewed in the background until it is ended or dropped.
pub(crate) struct WriterSession {
    shared: Arc<Shared>,
    id: String,
    state: Mutex<State>,
}

struct State {
    renewal: Renewal,
    /// Number of the next object.
    next: u32,
    ended: bool,
}

impl WriterSession {
    /// Begins a session: it is in the store, which is still the one that was opened, before this
    /// returns.
    pub(crate) async fn open(shared: Arc<Shared>) -> Result<Arc<Self>> {
        shared.is_here().await?;
        let id = shared.new_id();
        let now = shared.now();
        let renewal =
            Renewal { started: now, expires: now + shared.life(), holds: BTreeSet::new() };
        let first = sealed::seal(SESSION, &renewal);
        shared.objects.create(&keys::session(&id, 0), first).await?;
        let state = Mutex::new(State { renewal, next: 1, ended: false });
        let session = Arc::new(Self { shared: shared.clone(), id, state });
        shared.handle.spawn(renew_in_background(Arc::downgrade(&session), shared.life()));
        Ok(session)
    }

    /// The session's name: 32 hex digits.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Prolongs the session, unless it has lapsed.
    pub(crate) async fn renew(&self) -> Result<()> {
        let mut state = self.state.lock().await;
        self.write(&mut state, BTreeSet::new()).await
    }

    /// Writes the next object of the session. Earlier ones stay until the end: a listing that runs
    /// at the same time must find one.
    async fn write(&self, state: &mut State, more_holds: BTreeSet<String>) -> Result<()> {
        self.live(state)?;
        let mut renewal = state.renewal.clone();
        renewal.expires = self.shared.now() + self.shared.life();
        renewal.holds.extend(more_holds);
        let key = keys::session(&self.id, state.next);
        // Used up even if this fails: the object may be there all the same.
        state.next += 1;
        self.shared.objects.create(&key, sealed::seal(SESSION, &renewal)).await?;
        state.renewal = renewal;
        Ok(())
    }

    fn live(&self, state: &State) -> Result<()> {
        if !state.ended && self.shared.now() <= state.renewal.expires {
            return Ok(());
        }
        let message = format!(
            "writer session {} has lapsed; push again: chunks that were stored need not be sent \
             again",
            self.id
        );
        Err(Error::new(Kind::Conflict, message))
    }

    /// How long the session lives without being renewed again; an error if it has lapsed.
    pub(crate) async fn remaining(&self) -> Result<Duration> {
        let state = self.state.lock().await;
        self.live(&state)?;
        Ok(Duration::from_secs(state.renewal.expires.saturating_sub(self.shared.now())))
    }

    /// Makes sure that what the writer leans on exists and will not be removed while the session
    /// lives: steps a, H, b and c above.
    pub(crate) async fn secure(&self, leans: &Leans) -> Result<()> {
        let mut state = self.state.lock().await;
        self.live(&state)?;
        let objects = &self.shared.objects;
        let mut holds = BTreeSet::new();
        for listed in objects.list_sorted(&folder("gc/condemned")).await? {
            let names_it = match condemned::read::<Condemned>(objects, &listed).await? {
                Found::Whole(list) => list.keys.iter().any(|k| leans.names(k)),
                // It may name anything. To hold a list in vain does no harm.
                Found::Unreadable => true,
                Found::Gone => false,
            };
            if names_it {
                holds.insert(last_part(&listed.key).to_owned());
            }
        }
        if !holds.is_subset(&state.renewal.holds) {
            self.write(&mut state, holds).await?;
        }
        for listed in objects.list_sorted(&folder("gc/deleting")).await? {
            let (mark, any) = match condemned::read::<Deleting>(objects, &listed).await? {
                Found::Whole(mark) => (mark, false),
                Found::Unreadable => (Deleting { at: listed.modified, lists: Vec::new() }, true),
                Found::Gone => continue,
            };
            let held = |list| state.renewal.holds.contains(list);
            let mine = mark.lists.iter().any(held) || (any && !state.renewal.holds.is_empty());
            if mine && mark.counts(self.shared.now(), self.shared.life()) {
                let message = "something that this push leans on is being removed as garbage right \
                               now; push again in a minute";
                return Err(Error::new(Kind::Conflict, message));
            }
        }
        self.shared.check_existing(leans).await
    }

    /// Ends the session: what it leaned on is reachable now, or given up. If its objects cannot be
    /// removed the session lapses by itself.
    pub(crate) async fn end(&self) {
        let mut state = self.state.lock().await;
        if std::mem::replace(&mut state.ended, true) {
            return;
        }
        let keys = self.keys(state.next);
        if let Err(error) = self.shared.objects.delete_all(keys).await {
            tracing::warn!(session = self.id, %error, "a writer session is left to lapse");
        }
    }

    fn keys(&self, next: u32) -> Vec<Path> {
        (0..next).map(|n| keys::session(&self.id, n)).collect()
    }
}

impl Drop for WriterSession {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if !state.ended {
            let next = state.next;
            let (keys, objects) = (self.keys(next), self.shared.objects.clone());
            self.shared.handle.spawn(async move { objects.delete_all(keys).await });
        }
    }
}

impl Shared {
    /// Makes sure that what a writer leans on exists.
    pub(crate) async fn check_existing(&self, leans: &Leans) -> Result<()> {
        let mut by_folder: HashMap<String, HashSet<Path>> = HashMap::new();
        for key in &leans.existing {
            let name = key.as_ref().split('/').next().unwrap_or_default();
            by_folder.entry(name.to_owned()).or_default().insert(key.clone());
        }
        for (name, keys) in by_folder {
            let missing = self.objects.missing(&folder(&name), keys).await?;
            if let Some(key) = missing.iter().next() {
                self.forget_packs(&missing).await;
                let message = format!(
                    "{key} was removed while this push leaned on it; push again: only what is \
                     missing need be sent"
                );
                return Err(Error::new(Kind::Conflict, message));
            }
        }
        Ok(())
    }

    /// Packs that are gone are not leaned on again.
    async fn forget_packs(&self, missing: &HashSet<Path>) {
        let packs = missing.iter().filter_map(|key| match keys::Key::parse(key) {
            Some(keys::Key::Pack(id)) => Some(id),
            _ => None,
        });
        let packs: Vec<_> = packs.collect();
        if let Err(error) = self.indexed(move |i| i.drop_packs(&packs)).await {
            tracing::warn!(%error, "could not drop packs that are gone");
        }
    }
}

async fn renew_in_background(session: Weak<WriterSession>, life: u64) {
    loop {
        tokio::time::sleep(Duration::from_secs(life) / 3).await;
        let Some(session) = session.upgrade() else { return };
        if session.state.lock().await.ended {
            return;
        }
        if let Err(error) = session.renew().await {
            tracing::warn!(session = session.id, %error, "a writer session was not renewed");
            if error.kind() == Kind::Conflict {
                return;
            }
        }
    }
}

/// A session as gc finds it.
pub(crate) struct FoundSession {
    pub(crate) renewal: Renewal,
    pub(crate) keys: Vec<Path>,
}

/// Reads every session in the store: of each the highest object that parses.
pub(crate) async fn find_sessions(shared: &Shared) -> Result<Vec<FoundSession>> {
    let mut by_session: HashMap<String, Vec<Listed>> = HashMap::new();
    for listed in shared.objects.list_sorted(&folder("sessions")).await? {
        let mut parts = listed.key.as_ref().split('/');
        if let (Some(_), Some(id), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        {
            by_session.entry(id.to_owned()).or_default().push(listed);
        }
    }
    let mut found = Vec::new();
    for objects in by_session.into_values() {
        let renewal = newest_renewal(shared, &objects).await?;
        let keys = objects.into_iter().map(|o| o.key).collect();
        found.push(FoundSession { renewal, keys });
    }
    Ok(found)
}

async fn newest_renewal(shared: &Shared, objects: &[Listed]) -> Result<Renewal> {
    let mut unreadable = false;
    for object in objects.iter().rev() {
        let bytes = match shared.objects.get(&object.key, MAX_RENEWAL).await {
            Ok(bytes) => bytes,
            // It ended just now.
            Err(e) if e.kind() == Kind::Gone => continue,
            Err(e) => return Err(e),
        };
        match sealed::open::<Renewal>(SESSION, &bytes) {
            Ok(renewal) if !unreadable => return Ok(renewal),
            Ok(_) => break,
            Err(error) => {
                tracing::warn!(key = %object.key, %error, "a renewal is unreadable");
                unreadable = true;
            }
        }
    }
    // What it said last cannot be known: as if it had begun before everything.
    let renewed = objects.last().map_or(0, |o| o.modified);
    Ok(Renewal { started: 0, expires: renewed + shared.life(), holds: BTreeSet::new() })
}
