//! The catalogue: what the API's routes do, free of HTTP.

mod listing;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::catalog::{
    DeleteRef, GcReport, GcRequest, ImageInfo, MoveRef, NewRecord, RefInfo, StoreReport,
    TicketAnswer, TicketRequest, VerifyReport, VerifyStoreRequest,
};
use api::grid::{CacheInfo, Lease, Serving};
use api::keep::MOST_CACHED;
use api::ticket::{Grant, Ticket};
use api::trace::TraceInfo;
use image::error::At;
use image::record::{Unread, Verified};
use image::signing::{MAX_TOKEN, SigningKey};
use image::{BootTrace, Digest, Error, ImageRecord, Kind, Result};
use tokio::sync::{Mutex, RwLock, Semaphore};

use crate::archive::Archive;
use crate::clock::Clock;
use crate::fleet::pinned::Cache;
use crate::known::Images;
use crate::member::{Member, dns_name};
use crate::names::{self, Name};
use crate::refs::{Refs, no_such_ref};
use crate::state::{Lead, State};
use crate::traces::Traces;

/// Verifications at the same time: each reads a whole image.
const VERIFICATIONS: usize = 2;
/// How long a move waits for a collection of garbage to end before the mover is told to come back.
const GC_WAIT: Duration = Duration::from_secs(30);
/// How long a cache counts as serving without being heard of. Nodes go on to others by themselves
/// when one does not answer; this only keeps the list short.
const LEASE_SECS: u64 = 15;
/// Addresses of one cache at most: one per core.
const MAX_ENDPOINTS: usize = 1024;
/// Ancestors that are followed to the root of a lineage.
const MAX_LINEAGE: usize = 256;
/// When to come back.
const COME_BACK: Duration = Duration::from_secs(10);

/// Images, refs and rights.
pub(crate) struct Catalog {
    state: State,
    refs: Refs,
    archive: Arc<dyn Archive>,
    images: Images,
    traces: Traces,
    key: SigningKey,
    clock: Clock,
    /// Writing records, one at a time: each must be newer than the last.
    recording: Mutex<()>,
    /// Moves of refs share it; a collection of garbage has it alone, from when it reads its roots
    /// until it has deleted what they do not reach. Else a ref could come to point at an image that
    /// the collection, whose roots are older, is just deleting.
    collecting: Arc<RwLock<()>>,
    /// Collections of garbage, one at a time, each to its very end: what comes after the deleting
    /// takes minutes, and must not have another one refused.
    collector: Mutex<()>,
    verifying: Semaphore,
    /// Servers of chunks in this very process: they serve as long as it does.
    own: Vec<CacheInfo>,
}

impl Catalog {
    /// The catalogue over `state`, brought up to the log in `archive`.
    pub(crate) async fn open(
        state: State,
        archive: Arc<dyn Archive>,
        key: SigningKey,
        clock: Clock,
        own: Vec<CacheInfo>,
    ) -> Result<Self> {
        let refs = Refs::open(state.clone(), archive.clone(), clock.clone()).await?;
        Ok(Self {
            refs,
            traces: Traces::new(state.clone(), archive.clone()),
            images: Images::new(archive.clone(), key.verifying_key()),
            state,
            archive,
            key,
            clock,
            recording: Mutex::default(),
            collecting: Arc::default(),
            collector: Mutex::default(),
            verifying: Semaphore::new(VERIFICATIONS),
            own,
        })
    }

    /// What is known of an image.
    pub(crate) async fn info(&self, name: &str) -> Result<ImageInfo> {
        let image = self.resolve(name).await?;
        self.describe(image).await.at(|| format!("image {name}"))
    }

    /// The image that a name means, and its disk's size and sector in bytes.
    pub(crate) async fn disk(&self, name: &str) -> Result<(Digest, u64, u32)> {
        let image = self.resolve(name).await?;
        let known = self.images.get(image).await.at(|| format!("image {name}"))?;
        Ok((image, known.facts.size, known.facts.sector))
    }

    async fn describe(&self, image: Digest) -> Result<ImageInfo> {
        let known = self.images.get(image).await?;
        let refs = self.state.refs().await?.into_iter().filter(|r| r.image == image);
        let facts = &known.facts;
        Ok(ImageInfo {
            image,
            refs: refs.map(|r| r.name).collect(),
            size: facts.size,
            sector: facts.sector,
            chunk: facts.chunk,
            sections: facts.sections,
            sections_present: facts.sections_present,
            chunks_present: facts.chunks_present,
            stored: facts.stored,
            record: known.record.clone(),
            boot_trace: self.traced(image).await,
        })
    }

    /// How much is known of how its guests start. What is damaged is as good as nothing.
    async fn traced(&self, image: Digest) -> Option<TraceInfo> {
        match self.traces.own(image).await {
            Ok(own) => own.as_ref().map(TraceInfo::from),
            Err(error) => {
                tracing::warn!(%image, %error, "a boot trace that cannot be read");
                None
            }
        }
    }

    /// What guests of an image touch when they start.
    pub(crate) async fn trace(&self, name: &str) -> Result<BootTrace> {
        let image = self.resolve(name).await?;
        let found = self.traces.get(image, &self.images).await?;
        let none = || Error::new(Kind::Gone, format!("image {name}: it has no boot trace yet"));
        found.ok_or_else(none)
    }

    /// Keeps what a node has seen of a guest's start.
    pub(crate) async fn add_trace(&self, image: &str, recording: BootTrace) -> Result<TraceInfo> {
        if names::parse_digest(image)? != *recording.image() {
            let what = format!("image {image}: the boot trace is of image {}", recording.image());
            return Err(Error::new(Kind::Invalid, what));
        }
        Ok(TraceInfo::from(&self.traces.add(recording, &self.images).await?))
    }

    /// The image that a ref or digest names. A digest is taken at its word.
    async fn resolve(&self, name: &str) -> Result<Digest> {
        match names::parse(name)? {
            Name::Image(image) => Ok(image),
            Name::Ref(name) => {
                let at = self.state.get_ref(&name).await?;
                at.map(|r| r.image).ok_or_else(|| no_such_ref(&name))
            }
        }
    }

    /// Signs and keeps what a writer says of an image, with what was said before.
    pub(crate) async fn record(&self, image: &str, said: NewRecord) -> Result<ImageInfo> {
        let image = names::parse_digest(image)?;
        if said.unread.as_ref().is_some_and(|unread| unread.first.len() > Unread::MOST) {
            let what = format!("unread: more than {} stretches one by one", Unread::MOST);
            return Err(Error::new(Kind::Invalid, what));
        }
        let _one = self.recording.lock().await;
        // Of the store itself: what is remembered may be gone.
        self.archive.facts(image).await.at(|| format!("image {image}"))?;
        let before = self.images.newest_record(image).await?;
        let verified = self.archive.verified(image);
        let Some(record) = revise(image, before, said, verified, self.clock.now()) else {
            return self.describe(image).await;
        };
        let token = record.sign(&self.key);
        if token.len() > MAX_TOKEN {
            let what = format!("image record: longer than {MAX_TOKEN} bytes when signed");
            return Err(Error::new(Kind::Invalid, what));
        }
        let kept = self.archive.put_record(image, token).await;
        // Also after an error: perhaps only the answer was lost.
        self.images.changed(&image);
        kept.at(|| format!("image {image}: its record"))?;
        self.describe(image).await
    }

    /// Moves or makes a ref; the image must exist.
    pub(crate) async fn move_ref(&self, name: &str, to: &MoveRef) -> Result<RefInfo> {
        let (name, image) = (names::parse_ref(name)?, to.image);
        // One that is there already can be moved, and removed.
        if name.looks_like_digest() && self.state.get_ref(&name).await?.is_none() {
            let what = format!(
                "ref {name}: it can be taken for the digest of an image: choose another name"
            );
            return Err(Error::new(Kind::Invalid, what));
        }
        let _no_gc = tokio::time::timeout(GC_WAIT, self.collecting.read()).await.map_err(|_| {
            let what = format!("moving ref {name}: a collection of garbage is running");
            Error::new(Kind::Busy(COME_BACK), what)
        })?;
        self.archive.facts(image).await.at(|| format!("moving ref {name} to image {image}"))?;
        self.refs.set(&name, image, to.expect, to.fence.as_ref()).await
    }

    /// Deletes a ref, if it is what is expected.
    pub(crate) async fn delete_ref(&self, name: &str, asked: DeleteRef) -> Result<RefInfo> {
        self.refs.delete(&names::parse_ref(name)?, asked.expect).await
    }

    /// Verifies a stored image.
    pub(crate) async fn verify(&self, name: &str, deep: bool) -> Result<VerifyReport> {
        let image = self.resolve(name).await?;
        let _turn = self.verifying.try_acquire().map_err(|_| {
            let what = format!("image {name}: {VERIFICATIONS} verifications are running already");
            Error::new(Kind::Busy(COME_BACK), what)
        })?;
        self.archive.verify(image, deep).await.at(|| format!("image {name}"))
    }

    /// Verifies the store, or a sample of it.
    pub(crate) async fn verify_store(&self, asked: VerifyStoreRequest) -> Result<StoreReport> {
        let _turn = self.verifying.try_acquire().map_err(|_| {
            let what = format!("{VERIFICATIONS} verifications are running already");
            Error::new(Kind::Busy(COME_BACK), what)
        })?;
        self.archive.verify_store(asked).await
    }

    /// Collects garbage: everything that neither a ref's image nor one of `held` reaches.
    /// Ends when this placement leads no longer: where another does, refs move meanwhile.
    pub(crate) async fn gc(
        self: Arc<Self>,
        lead: Arc<Lead>,
        request: GcRequest,
        held: BTreeSet<Digest>,
    ) -> Result<GcReport> {
        // In a task of its own: the store's work does not stop when the caller hangs up, so neither
        // may what keeps refs from moving meanwhile.
        let task = tokio::spawn(async move {
            let dry_run = request.dry_run;
            let (_turn, alone) = match dry_run {
                true => (None, None),
                false => {
                    let turn = self.collector.lock().await;
                    (Some(turn), Some(self.collecting.clone().write_owned().await))
                }
            };
            let mut roots: BTreeSet<_> = self.refs.all().await?.iter().map(|r| r.image).collect();
            for image in held {
                // Who says that it reads from what is not there keeps nobody from collecting.
                if !roots.contains(&image) && self.is_there(image).await? {
                    roots.insert(image);
                }
            }
            let roots: Vec<_> = roots.into_iter().collect();
            let swept = Box::new(move || drop(alone));
            let work = self.archive.gc(roots.clone(), request, self.clock.now(), swept);
            let done = lead.during(work).await;
            if !dry_run {
                self.images.keep_only(&roots);
                if let Err(error) = self.traces.tidy(&roots).await {
                    tracing::warn!(%error, "boot traces of images that are gone are left");
                }
            }
            done
        });
        let done = task.await;
        done.map_err(|e| Error::new(Kind::Io, format!("collection of garbage: {e}")))?
    }

    async fn is_there(&self, image: Digest) -> Result<bool> {
        match self.archive.facts(image).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == Kind::Gone => Ok(false),
            Err(error) => Err(error.at(format!("image {image}, from which a node reads"))),
        }
    }

    /// A ticket for who asks.
    pub(crate) async fn ticket(
        &self,
        member: &Member,
        request: TicketRequest,
    ) -> Result<TicketAnswer> {
        let (image, grant) = match request {
            TicketRequest::Pull { image } => {
                let image = self.resolve(&image).await?;
                (Some(image), Grant::Pull { image })
            }
            TicketRequest::Push { domain, parent } => {
                let domain = api::ticket::push_domain(domain)?.0;
                let parent = match parent {
                    Some(name) => Some(self.parent(&name).await?),
                    None => None,
                };
                (parent, Grant::Push { domain, parent })
            }
        };
        let now = self.clock.now();
        let pushes = matches!(grant, Grant::Push { .. });
        let ticket = Ticket::new(grant, member.holder, now);
        let mut servers = self.servers().await?;
        servers.retain(|server| server.receives || !pushes);
        // Who is about to leave is named only where there is nobody else.
        if servers.iter().any(|server| !server.draining) {
            servers.retain(|server| !server.draining);
        }
        let root = match (pushes, image) {
            (false, Some(image)) => Some(self.root(image).await),
            _ => None,
        };
        let (expires, ticket) = (ticket.expires, ticket.sign(&self.key));
        Ok(TicketAnswer { image, root, ticket, expires, servers })
    }

    /// The oldest ancestor that records lead to. It only spreads load: where records are missing it
    /// is a nearer one, and who makes a circle of them gets some member of it.
    async fn root(&self, image: Digest) -> Digest {
        let mut root = image;
        for _ in 0..MAX_LINEAGE {
            let Ok(known) = self.images.get(root).await else { break };
            match known.record.as_ref().and_then(|r| r.parent) {
                Some(parent) => root = parent,
                None => break,
            }
        }
        root
    }

    /// The image that a push leans on must exist: else the pusher would learn of it late.
    async fn parent(&self, name: &str) -> Result<Digest> {
        let image = self.resolve(name).await?;
        self.archive.facts(image).await.at(|| format!("parent {name}"))?;
        Ok(image)
    }

    /// The servers of chunks.
    pub(crate) async fn servers(&self) -> Result<Vec<CacheInfo>> {
        let mut servers = self.state.servers(self.clock.now()).await?;
        servers.retain(|server| self.own.iter().all(|own| own.name != server.name));
        servers.extend_from_slice(&self.own);
        servers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(servers)
    }

    /// The caches that can be told to keep images: those that serve with a lease of their own.
    pub(crate) async fn caches(&self) -> Result<Vec<Cache>> {
        let mut caches = self.state.caches(self.clock.now()).await?;
        caches.retain(|cache| !cache.info.receives);
        Ok(caches)
    }

    /// Says of the servers of this process that they serve, to the other placements.
    pub(crate) async fn announce(&self) -> Result<()> {
        for own in &self.own {
            self.state.lease_server(own, self.clock.now() + LEASE_SECS).await?;
        }
        Ok(())
    }

    /// The same, again and again.
    pub(crate) async fn keep_announcing(&self) {
        loop {
            tokio::time::sleep(Duration::from_secs(LEASE_SECS / 3)).await;
            if let Err(error) = self.announce().await {
                tracing::warn!(%error, "other placements do not know that this one serves chunks");
            }
        }
    }

    /// Says of the servers of this process that they serve no longer.
    pub(crate) async fn leave_all(&self) -> Result<()> {
        for own in &self.own {
            self.state.drop_server(&own.name).await?;
        }
        Ok(())
    }

    /// Counts a cache as serving, for a while.
    pub(crate) async fn serving(&self, member: &Member, at: Serving) -> Result<Lease> {
        let bad = |what: String| Err(Error::new(Kind::Invalid, what));
        if !(1..=MAX_ENDPOINTS).contains(&at.endpoints.len()) {
            return bad(format!("endpoints: must be 1 to {MAX_ENDPOINTS}"));
        }
        let unreachable = |a: &&SocketAddr| a.ip().is_unspecified() || a.port() == 0;
        if let Some(address) = at.endpoints.iter().chain(&at.api).find(unreachable) {
            return bad(format!("endpoints: nobody can reach {address}"));
        }
        if !(at.weight > 0.0 && at.weight.is_finite()) {
            return bad("weight: must be above 0 (cache.weight)".into());
        }
        if at.kept.len() > MOST_CACHED {
            return bad(format!("kept: at most {MOST_CACHED} images"));
        }
        let info = CacheInfo {
            name: member.name.clone(),
            server_name: dns_name(&member.name),
            endpoints: at.endpoints,
            receives: false,
            api: at.api,
            weight: at.weight,
            draining: at.draining,
        };
        self.state.lease_cache(&info, at.kept, self.clock.now() + LEASE_SECS).await?;
        Ok(Lease { lease_secs: LEASE_SECS, keep: Vec::new() })
    }

    /// Counts a cache no longer.
    pub(crate) async fn leave(&self, name: &str) -> Result<CacheInfo> {
        let leased = self.own.iter().all(|own| own.name != name);
        let left = if leased { self.state.drop_server(name).await? } else { None };
        left.ok_or_else(|| Error::new(Kind::Gone, format!("no cache {name} serves with a lease")))
    }
}

/// The record of `image` after somebody said something of it at `now`: what is given overrides what
/// was known before, the rest stays, and so do when the image was made and what was verified of it. `None` if nothing is new.
fn revise(
    image: Digest,
    before: Option<ImageRecord>,
    said: NewRecord,
    verified: Option<Verified>,
    now: u64,
) -> Option<ImageRecord> {
    fn set<T>(field: &mut Option<T>, given: Option<T>) {
        *field = given.or(field.take());
    }
    let mut record = before.clone().unwrap_or_else(|| ImageRecord::new(image, now));
    // No image was made from itself.
    set(&mut record.parent, said.parent.filter(|parent| *parent != image));
    record.kind = said.kind.unwrap_or(record.kind);
    set(&mut record.os, said.os);
    set(&mut record.architecture, said.architecture);
    set(&mut record.firmware, said.firmware);
    set(&mut record.cpus, said.cpus);
    set(&mut record.memory_mib, said.memory_mib);
    set(&mut record.nics, said.nics);
    set(&mut record.hypervisor, said.hypervisor);
    record.labels.extend(said.labels);
    set(&mut record.unread, said.unread);
    // The first time tells the most: what came then is taken over when the same comes again.
    record.verified = record.verified.or(verified);
    if let Some(before) = before {
        if before == record {
            return None;
        }
        // The last one said counts, so this one must be later, even if the clock went back.
        record.revised = Some(now.max(before.said() + 1));
    }
    Some(record)
}
