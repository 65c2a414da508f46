//! Collecting garbage in two phases: what nothing reaches is condemned; a later run, when the grace
//! is over and no older writer is left, marks again and deletes what is still not reached.
//!
//! Why a push that runs at the same time loses nothing is argued in the `session` module, whose
//! letters (C, D, L, M, X) name the steps here.

use std::collections::HashSet;
use std::time::Duration;

use futures::TryStreamExt;
use image::error::At;
use image::{Digest, Error, Kind, Result};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::compact::Compactor;
use crate::compact_plan::Compaction;
use crate::condemned::{self, Condemned, Deleting, Found, LIST_KEYS, List};
use crate::index::Index;
use crate::keys::{self, Key, folder, last_part};
use crate::mark::{Reached, image_times};
use crate::objects::{Listed, blocking};
use crate::sealed;
use crate::session::{FoundSession, find_sessions};
use crate::store::{Shared, Store};

/// Objects that are deleted in one request, and between two looks at the clock.
const BATCH: usize = 1000;

/// How long what a run did is kept in the store, in seconds.
const KEEP_LOG: u64 = 90 * 24 * 3600;

/// What a collection of garbage did, or with `dry_run` would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcReport {
    /// Images that are reachable.
    pub images: u64,
    /// Objects that were condemned now.
    pub condemned: u64,
    /// Their bytes.
    pub condemned_bytes: u64,
    /// Objects that were deleted now: condemned by an earlier run.
    pub deleted: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Live writer sessions, which may hold objects back.
    pub sessions: u64,
    /// Seconds until what is condemned may be deleted; 0 if nothing waits.
    pub wait_secs: u64,
    /// Packs that were rewritten now: what is live in them is in new packs, and they are garbage.
    #[serde(default)]
    pub rewritten: u64,
    /// Their bytes.
    #[serde(default)]
    pub rewritten_bytes: u64,
    /// New packs that were written.
    #[serde(default)]
    pub written: u64,
    /// Their bytes; of a dry run an upper bound.
    #[serde(default)]
    pub written_bytes: u64,
    /// Images that got a new locator, as packs of theirs were rewritten.
    #[serde(default)]
    pub relocated: u64,
    /// Packs that could not be rewritten, for they are damaged; `forebay store verify` names them.
    #[serde(default)]
    pub bad_packs: u64,
    /// Whether rewriting reached a limit: the next run goes on with it.
    #[serde(default)]
    pub unfinished: bool,
}

impl GcReport {
    /// Bytes that rewriting gives back when the old packs are deleted.
    pub fn saved_bytes(&self) -> u64 {
        self.rewritten_bytes.saturating_sub(self.written_bytes)
    }

    fn changed_something(&self) -> bool {
        self.condemned + self.deleted + self.rewritten + self.relocated > 0
    }
}

impl List for GcReport {
    const WHAT: &'static str = "report of a gc run";
}

/// How garbage is collected.
#[derive(Clone, Debug)]
pub struct GcOptions {
    /// What nothing reaches is condemned at once, and deleted by a run at least so much later.
    pub grace: Duration,
    /// Change nothing, and say what would be done.
    pub dry_run: bool,
    /// The time, in seconds since 1970.
    pub now: u64,
    /// Rewrite mostly dead and small packs as well.
    pub compact: Option<Compaction>,
}

impl Store {
    /// Collects garbage. Images in `roots` (everything that a ref names) are kept, and so are
    /// images that were committed, kept ([`Store::keep`]) or named by a ref move less than `grace`
    /// ago. An object that nothing reaches is condemned first, and deleted by a run that is at
    /// least `grace` later. Then packs are rewritten, if the options say so: what is live in mostly
    /// dead or small ones is copied, and they are garbage for the next run. What was done is kept for
    /// 90 days in the store, under `gc/log/`. A conflict if another run is going on.
    ///
    /// If a root cannot be read nothing is removed: the error names it.
    pub async fn gc(&self, roots: &[Digest], options: &GcOptions) -> Result<GcReport> {
        self.gc_and_tell(roots, options, || {}).await
    }

    /// The same, and tells when nothing will be deleted any more by `roots`: from then on names may
    /// move again. `swept` is called once at most; not if the run fails before. Why the rewriting that
    /// follows needs no names is said in the `compact` module.
    pub async fn gc_and_tell(
        &self,
        roots: &[Digest],
        options: &GcOptions,
        swept: impl FnOnce() + Send + 'static,
    ) -> Result<GcReport> {
        let (shared, roots, options) = (self.shared.clone(), roots.to_vec(), options.clone());
        self.run(async move {
            let Ok(_alone) = shared.collecting.try_lock() else { return Err(another_runs()) };
            let run = Run::new(&shared, &options);
            run.collect(&roots, options.compact.as_ref(), swept).await.at(|| "gc")
        })
        .await
    }
}

fn another_runs() -> Error {
    Error::new(Kind::Conflict, "gc: another collection of garbage is running; try again later")
}

struct Run<'a> {
    shared: &'a Shared,
    id: String,
    now: u64,
    grace: u64,
    dry_run: bool,
    /// By the store's own clock: deleting ends one life of a session later.
    began: u64,
}

/// A condemned list and its name.
struct Named {
    name: String,
    list: Condemned,
}

/// What the lists that can be worked off now name, and what the others do. Owner of this memory:
/// the run; it is as large as the garbage there is.
struct Lists {
    ready: HashSet<Path>,
    waiting: HashSet<Path>,
}

impl Lists {
    fn new(ready: &[Named], waiting: &[Named]) -> Self {
        let names = |lists: &[Named]| {
            lists.iter().flat_map(|n| &n.list.keys).map(|k| Path::from(k.as_str())).collect()
        };
        Self { ready: names(ready), waiting: names(waiting) }
    }
}

/// What a sweep came to.
struct Swept {
    report: GcReport,
    /// What the images reach that are named or young.
    reached: Reached,
    /// When the oldest live session began, with one life to spare.
    oldest: Option<u64>,
}

/// What is to be done with objects that nothing reaches.
#[derive(Default)]
struct Verdict {
    condemn: Vec<Path>,
    /// In the order in which they are deleted: an image ends before what it leans on.
    delete: [Vec<Path>; 4],
    report: GcReport,
}

impl<'a> Run<'a> {
    fn new(shared: &'a Shared, options: &GcOptions) -> Self {
        let GcOptions { dry_run, now, .. } = *options;
        let grace = options.grace.as_secs();
        let id = format!("{now:016x}-{}", shared.new_id());
        Self { shared, id, now, grace, dry_run, began: shared.now() }
    }

    async fn collect(
        &self,
        roots: &[Digest],
        compact: Option<&Compaction>,
        tell: impl FnOnce(),
    ) -> Result<GcReport> {
        self.shared.is_here().await?;
        self.shared.refresh_index().await?;
        let lists = self.condemned_lists().await?;
        if self.dry_run {
            let mut swept = self.sweep(roots, lists).await?;
            self.compact(&mut swept, compact, 0).await?;
            return Ok(swept.report);
        }
        let due = lists.iter().filter(|n| self.is_due(&n.list)).map(|n| n.name.clone());
        let due = due.collect();
        let swept = self.marked(&self.id, due, self.sweep(roots, lists)).await;
        let mut swept = swept?;
        tell();
        // What was done is told, and what is over cleared away, whatever comes of the rewriting.
        let rewritten = self.rewrite(&mut swept, compact).await;
        let logged = self.log(&swept.report).await;
        let tidied = self.housekeeping().await;
        rewritten.and(logged).and(tidied).map(|()| swept.report)
    }

    async fn rewrite(&self, swept: &mut Swept, compact: Option<&Compaction>) -> Result<()> {
        if compact.is_none() {
            return Ok(());
        }
        // Another mark, which is about nothing that a writer may hold.
        let until = self.shared.now().saturating_add(self.shared.life());
        let id = format!("{}-rewriting", self.id);
        match self.marked(&id, Vec::new(), self.compact(swept, compact, until)).await {
            // Another run began between the two marks; it rewrites, or the next one does.
            Err(e) if e.kind() == Kind::Conflict => {
                swept.report.unfinished = true;
                Ok(())
            }
            other => other,
        }
    }

    async fn log(&self, report: &GcReport) -> Result<()> {
        if !report.changed_something() {
            return Ok(());
        }
        let log = sealed::seal(GcReport::WHAT, report);
        self.shared.objects.create(&keys::gc_log(&self.id), log).await
    }

    /// Works under a mark: no other run does.
    async fn marked<T>(
        &self,
        id: &str,
        lists: Vec<String>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let placed = self.place_mark(id, lists).await;
        let done = match placed {
            Ok(()) => work.await,
            Err(e) => Err(e),
        };
        let removed = self.shared.objects.delete(&keys::deleting(id)).await;
        let done = done?;
        removed.map(|()| done)
    }

    /// Rewrites packs, or says what would be rewritten.
    async fn compact(
        &self,
        swept: &mut Swept,
        options: Option<&Compaction>,
        until: u64,
    ) -> Result<()> {
        let Some(options) = options else { return Ok(()) };
        let Swept { report, reached, oldest } = swept;
        let shared = self.shared;
        let mut compactor = Compactor { shared, options, run: &self.id, until, reached, report };
        let groups = compactor.plan(|modified| self.is_young(modified, *oldest)).await?;
        if self.dry_run {
            return Ok(());
        }
        compactor.execute(groups).await.at(|| "rewriting packs")
    }

    fn is_due(&self, list: &Condemned) -> bool {
        list.at.saturating_add(self.grace) <= self.now
    }

    /// Reads every condemned list. One that cannot be read is removed: what it named is condemned
    /// anew.
    async fn condemned_lists(&self) -> Result<Vec<Named>> {
        let objects = &self.shared.objects;
        let mut lists = Vec::new();
        for listed in objects.list_sorted(&folder("gc/condemned")).await? {
            match condemned::read::<Condemned>(objects, &listed).await? {
                Found::Whole(list) => {
                    lists.push(Named { name: last_part(&listed.key).to_owned(), list });
                }
                Found::Unreadable if !self.dry_run => objects.delete(&listed.key).await?,
                Found::Unreadable | Found::Gone => {}
            }
        }
        Ok(lists)
    }

    /// D: says what may be deleted now, and makes sure that this run is alone.
    async fn place_mark(&self, id: &str, lists: Vec<String>) -> Result<()> {
        let objects = &self.shared.objects;
        let own = keys::deleting(id);
        let mark = Deleting { at: self.shared.now(), lists };
        objects.create(&own, sealed::seal(Deleting::WHAT, &mark)).await?;
        for listed in objects.list_sorted(&folder("gc/deleting")).await? {
            if listed.key == own {
                continue;
            }
            let other = match condemned::read::<Deleting>(objects, &listed).await? {
                Found::Whole(mark) => mark,
                Found::Unreadable => Deleting { at: listed.modified, lists: Vec::new() },
                Found::Gone => continue,
            };
            if other.counts(self.shared.now(), self.shared.life()) {
                return Err(another_runs());
            }
            objects.delete(&listed.key).await?;
        }
        Ok(())
    }

    async fn sweep(&self, roots: &[Digest], lists: Vec<Named>) -> Result<Swept> {
        // L
        let sessions: Vec<FoundSession> = find_sessions(self.shared).await?;
        let life = self.shared.life();
        let live: Vec<_> = sessions
            .iter()
            .map(|s| &s.renewal)
            .filter(|r| self.now <= r.expires.saturating_add(life))
            .collect();
        let ready = |n: &Named| {
            self.is_due(&n.list)
                && live.iter().all(|r| r.started > n.list.at + life && !r.holds.contains(&n.name))
        };
        // What began before the oldest live session is not its work.
        let oldest = live.iter().map(|r| r.started.saturating_sub(life)).min();
        let (ready, waiting): (Vec<Named>, Vec<Named>) = lists.into_iter().partition(ready);
        let lists = Lists::new(&ready, &waiting);
        // M
        let times = image_times(self.shared).await?;
        let young = |modified| self.is_young(modified, oldest);
        let named = Reached::by_names(self.shared, roots, &times, young).await?;
        let mut spared = Reached::default();
        if !ready.is_empty() {
            // No name leads to them, and they may be condemned; but while an image exists, nothing
            // that it leans on is deleted.
            let stay = times.iter().filter(|(image, (exists, _))| {
                *exists && !lists.ready.contains(&keys::manifest(image))
            });
            let stay: Vec<Digest> = stay.map(|(image, _)| *image).collect();
            spared.add_readable(self.shared, stay).await?;
        }
        let mut verdict = self.judge(&named, &spared, &lists, young).await?;
        verdict.report.images = named.images() as u64;
        verdict.report.sessions = live.len() as u64;
        let due_at = waiting.iter().map(|n| n.list.at).chain(
            // What is condemned by this run waits, too.
            (!verdict.condemn.is_empty()).then_some(self.now),
        );
        verdict.report.wait_secs =
            due_at.map(|at| (at + self.grace).saturating_sub(self.now)).max().unwrap_or(0);
        if !self.dry_run {
            self.execute(&verdict, &ready).await?;
        }
        Ok(Swept { report: verdict.report, reached: named, oldest })
    }

    /// Whether an object is too young to be garbage: it may be part of something unfinished.
    fn is_young(&self, modified: u64, oldest_session: Option<u64>) -> bool {
        modified.saturating_add(self.grace) > self.now
            || oldest_session.is_some_and(|s| modified >= s)
    }

    /// Looks at every object that gc may touch, after M.
    async fn judge(
        &self,
        named: &Reached,
        spared: &Reached,
        lists: &Lists,
        is_young: impl Fn(u64) -> bool,
    ) -> Result<Verdict> {
        let mut verdict = Verdict::default();
        for name in ["manifests", "locators", "records", "sections", "packs"] {
            let mut listed = self.shared.objects.list(&folder(name));
            while let Some(object) = listed.try_next().await? {
                let Some(key) = Key::parse(&object.key) else { continue };
                if named.has(&key) {
                    continue;
                }
                if lists.ready.contains(&object.key) && !spared.has(&key) {
                    verdict.delete(&key, object);
                } else if !lists.waiting.contains(&object.key) && !is_young(object.modified) {
                    verdict.condemn(object);
                }
            }
        }
        Ok(verdict)
    }

    async fn execute(&self, verdict: &Verdict, ready: &[Named]) -> Result<()> {
        self.delete(verdict).await?;
        // Only now: a list is the reason why a writer stays clear of what it names.
        let done = ready.iter().map(|n| keys::condemned(&n.name)).collect();
        self.shared.objects.delete_all(done).await?;
        // C
        for (n, keys) in verdict.condemn.chunks(LIST_KEYS).enumerate() {
            self.condemn(n, keys).await?;
        }
        Ok(())
    }

    /// X
    async fn delete(&self, verdict: &Verdict) -> Result<()> {
        for (stage, keys) in verdict.delete.iter().enumerate() {
            for batch in keys.chunks(BATCH) {
                if self.shared.now() >= self.began.saturating_add(self.shared.life()) {
                    let message = "deleting took too long; the next run goes on with it";
                    return Err(Error::new(Kind::Retry, message));
                }
                self.shared.objects.delete_all(batch.to_vec()).await?;
            }
            if stage == 0 && !keys.is_empty() {
                // An image that is back after a power cut must not find its chunks gone.
                self.shared.objects.sync_folder("manifests").await?;
            }
        }
        self.forget(verdict).await
    }

    /// What was deleted is no longer kept in memory, nor leaned on.
    async fn forget(&self, verdict: &Verdict) -> Result<()> {
        let keys = verdict.delete.iter().flatten().filter_map(Key::parse);
        let keys: HashSet<Key> = keys.collect();
        let has = |key| keys.contains(&key);
        self.shared.manifests.forget(|d| has(Key::Manifest(*d)));
        self.shared.tables.forget(|d| has(Key::Section(*d)));
        self.shared.heads.forget(|d| has(Key::Manifest(*d)));
        self.shared.blocks.forget(|(d, seq, _)| has(Key::Locator(*d, *seq)));
        let packs: Vec<_> = keys
            .into_iter()
            .filter_map(|k| if let Key::Pack(id) = k { Some(id) } else { None })
            .collect();
        self.shared.indexed(move |index| index.drop_packs(&packs)).await
    }

    async fn condemn(&self, n: usize, keys: &[Path]) -> Result<()> {
        let name = format!("{}-{n:04x}", self.id);
        let keys = keys.iter().map(ToString::to_string).collect();
        // The later of two clocks: a session that the list does not wait for must see it.
        let list = Condemned { at: self.now.max(self.shared.now()), keys };
        let sealed = sealed::seal(Condemned::WHAT, &list);
        self.shared.objects.create(&keys::condemned(&name), sealed).await
    }

    /// Sessions that lapsed long ago, writers that are not coming back, files left by a crash.
    async fn housekeeping(&self) -> Result<()> {
        let (shared, now) = (self.shared, self.now);
        for session in find_sessions(shared).await? {
            if session.renewal.expires.saturating_add(2 * shared.life() + self.grace) < now {
                shared.objects.delete_all(session.keys).await?;
            }
        }
        for listed in shared.objects.list_sorted(&folder("gc/log")).await? {
            if listed.modified.saturating_add(KEEP_LOG) < now {
                shared.objects.delete(&listed.key).await?;
            }
        }
        let packs = shared.indexed(Index::packs).await?;
        let before = now.saturating_sub(2 * shared.life());
        shared.rewrites.tidy(&shared.objects, |id| packs.contains_key(id), before).await?;
        let before = now.saturating_sub(shared.options.remember_writers.as_secs());
        shared.indexed(move |index: &Index| index.forget_sent(before)).await?;
        if let Some(local) = shared.objects.local().cloned() {
            let before = now.saturating_sub(self.grace.max(2 * shared.life()));
            blocking(move || local.sweep(before)).await?;
        }
        Ok(())
    }
}

impl Verdict {
    fn delete(&mut self, key: &Key, object: Listed) {
        let stage = match key {
            Key::Manifest(_) => 0,
            Key::Locator(..) | Key::Record(_) => 1,
            Key::Section(_) => 2,
            Key::Pack(_) => 3,
        };
        self.report.deleted += 1;
        self.report.deleted_bytes += object.len;
        self.delete[stage].push(object.key);
    }

    fn condemn(&mut self, object: Listed) {
        self.report.condemned += 1;
        self.report.condemned_bytes += object.len;
        self.condemn.push(object.key);
    }
}
