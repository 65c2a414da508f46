//! The receiver: takes pushed sections, verifies them to the plain bytes, and has them packed.
//!
//! # Which chunks a writer need not send
//!
//! A digest is accepted without its bytes only if the writer could have the bytes anyway: it is a
//! chunk of the parent image, which the writer may read (who opens the session checked that), or
//! the same writer has sent it before. Everything else is asked for even if it is stored, and
//! deduplicated when it has come and was verified; so nobody learns what others have stored, and
//! nobody gets at a chunk by naming its digest.
//!
//! That a writer has sent a chunk is remembered per writer (`Receiver::for_owner`, by the digest of
//! its certificate) in the chunk index for a week, and goes away with the pack: a push that was
//! interrupted goes on where it was when it starts again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use image::error::At;
use image::frame::MAX_FRAME;
use image::seam::{ImagePlan, ImageSession};
use image::{
    ChunkSet, Decoder, Digest, Error, FormatError, Frame, ImageSink, Kind, Manifest, PackId,
    ReadContext, Result, SectionSink, SectionTable,
};
use tokio::sync::oneshot;

use crate::keys;
use crate::known::Parent;
use crate::packer::{Packer, Pending, Placed, Sending, packer_ended};
use crate::session::WriterSession;
use crate::store::{Shared, Store};

/// Takes new images into a store.
#[derive(Clone, Debug)]
pub struct Receiver {
    store: Store,
    owner: Option<Digest>,
}

impl Receiver {
    /// A receiver whose sessions remember nothing of each other.
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone(), owner: None }
    }

    /// The same for one writer, named by the digest of its certificate: chunks that it has sent
    /// need not be sent again by a later session.
    #[must_use]
    pub fn for_owner(&self, owner: Digest) -> Self {
        Self { store: self.store.clone(), owner: Some(owner) }
    }
}

impl ImageSink for Receiver {
    type Session = ReceiverSession;

    async fn open(&self, _ctx: &ReadContext, plan: &ImagePlan) -> Result<ReceiverSession> {
        plan.domain.check("image plan")?;
        let (shared, parent) = (self.store.shared.clone(), plan.parent);
        let domain = plan.domain;
        let opening = async move {
            let writer = WriterSession::open(shared.clone()).await?;
            let parent = match parent {
                Some(image) => Parent::find(&shared, &image, domain).await?,
                None => None,
            };
            Ok((writer, parent))
        };
        let (writer, parent) = self.store.run(opening).await?;
        let owner = self.owner.unwrap_or_else(|| Digest::of_stored(writer.id().as_bytes()));
        let incoming = Incoming {
            shared: self.store.shared.clone(),
            packer: self.store.packers.of(plan.domain),
            plan: plan.clone(),
            owner,
            writer,
            parent,
            packs: Mutex::default(),
            sealed: Mutex::default(),
            committed: tokio::sync::Mutex::new(None),
        };
        Ok(ReceiverSession { store: self.store.clone(), incoming: Arc::new(incoming) })
    }
}

/// A section that was sealed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sealed {
    pub(crate) digest: Digest,
    /// Chunks in its table.
    pub(crate) chunks: u32,
    /// Those of them that are not zeros.
    pub(crate) present: u32,
    /// Plain length of the last of them in bytes, if it was sent: what was not is known by its
    /// digest alone.
    pub(crate) last_len: Option<u32>,
    /// Chunks that came and were written and read back, and the bytes of their frames.
    pub(crate) read_back: (u64, u64),
}

/// An image on its way in: what its sections share.
pub(crate) struct Incoming {
    pub(crate) shared: Arc<Shared>,
    packer: Packer,
    pub(crate) plan: ImagePlan,
    pub(crate) owner: Digest,
    pub(crate) writer: Arc<WriterSession>,
    pub(crate) parent: Option<Parent>,
    /// Packs that were seen to exist in this session, and that it may lean on.
    packs: Mutex<HashSet<PackId>>,
    /// The sections that were sealed.
    sealed: Mutex<HashMap<u32, Sealed>>,
    /// The image that this session has made.
    pub(crate) committed: tokio::sync::Mutex<Option<Digest>>,
}

impl Incoming {
    pub(crate) fn packs(&self) -> HashSet<PackId> {
        self.packs.lock().expect("no code panics while it holds this lock").clone()
    }

    pub(crate) fn sealed(&self, section: u32) -> Option<Sealed> {
        let sealed = self.sealed.lock().expect("no code panics while it holds this lock");
        sealed.get(&section).copied()
    }

    fn add_packs(&self, packs: impl IntoIterator<Item = PackId>) {
        self.packs.lock().expect("no code panics while it holds this lock").extend(packs);
    }

    /// Which of these packs exist. Each is looked for once in a session; one that is gone is
    /// dropped from the index.
    pub(crate) async fn confirm(&self, packs: HashSet<PackId>) -> Result<HashSet<PackId>> {
        let known = self.packs();
        let unknown: Vec<PackId> = packs.iter().filter(|p| !known.contains(p)).copied().collect();
        if unknown.is_empty() {
            return Ok(packs);
        }
        let names = unknown.iter().map(keys::pack).collect();
        let missing = self.shared.objects.missing(&keys::folder("packs"), names).await?;
        let (there, gone): (Vec<PackId>, Vec<PackId>) =
            unknown.into_iter().partition(|p| !missing.contains(&keys::pack(p)));
        if !gone.is_empty() {
            self.shared.is_here().await?;
        }
        self.add_packs(there);
        let still = packs.into_iter().filter(|p| !gone.contains(p)).collect();
        self.shared.indexed(move |index| index.drop_packs(&gone)).await?;
        Ok(still)
    }
}

/// One image on its way into the store.
pub struct ReceiverSession {
    store: Store,
    incoming: Arc<Incoming>,
}

impl ReceiverSession {
    /// Prolongs the session now. It also happens in the background, three times in a session's
    /// life. A conflict if it has lapsed.
    pub async fn renew(&self) -> Result<()> {
        let incoming = self.incoming.clone();
        self.store.run(async move { incoming.writer.renew().await }).await
    }
}

impl ImageSession for ReceiverSession {
    type Section = ReceiverSection;

    async fn offer(
        &self,
        section: u32,
        table: &SectionTable,
    ) -> Result<(ChunkSet, ReceiverSection)> {
        self.incoming.plan.check_table(section, table)?;
        // Before the look-up: a pack that others wait for is held open for what comes now.
        let sending = self.incoming.packer.sending();
        let table = Arc::new(table.clone());
        let (incoming, offered) = (self.incoming.clone(), table.clone());
        let known = self.store.run(async move { incoming.known(section, &offered).await }).await?;
        let mut asked = HashSet::new();
        let wanted = (0u32..)
            .zip(table.digests())
            .filter(|(_, d)| !d.is_zero() && !known.contains(*d) && asked.insert(**d));
        let mut set = ChunkSet::empty(table.chunks());
        wanted.for_each(|(chunk, _)| set.insert(chunk));
        let section = ReceiverSection {
            store: self.store.clone(),
            incoming: self.incoming.clone(),
            section,
            table,
            missing: set.clone(),
            decoder: None,
            plain: Vec::new(),
            placed: Vec::new(),
            last_len: None,
            sending,
        };
        Ok((set, section))
    }

    async fn commit(&self, manifest: &Manifest) -> Result<Digest> {
        let (incoming, manifest) = (self.incoming.clone(), manifest.clone());
        self.store.run(async move { incoming.commit(&manifest).await }).await
    }
}

/// One section on its way into the store. Its scratch memory: one plain chunk and a zstd context.
pub struct ReceiverSection {
    store: Store,
    incoming: Arc<Incoming>,
    section: u32,
    table: Arc<SectionTable>,
    /// Wanted, and not yet here.
    missing: ChunkSet,
    decoder: Option<Decoder>,
    plain: Vec<u8>,
    /// Where each frame goes, and its length.
    placed: Vec<(oneshot::Receiver<Placed>, u64)>,
    /// Plain length of the section's last chunk, if it was sent.
    last_len: Option<u32>,
    sending: Sending,
}

impl ReceiverSection {
    /// Verifies a frame to the plain bytes, on the caller's core.
    fn verify(&mut self, chunk: u32, frame: &Frame) -> Result<()> {
        if frame.header().domain != self.table.domain() {
            let wrong = FormatError::Mismatch { what: "chunk frame", which: "trust domain" };
            return Err(wrong.into());
        }
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(Decoder::new()?),
        };
        let len = frame.header().plain_len as usize;
        if !self.incoming.plan.chunk_fits(self.section, &self.table, chunk, len) {
            let value = u64::from(frame.header().plain_len);
            let wrong = FormatError::Field { what: "chunk frame", field: "plain length", value };
            return Err(wrong.into());
        }
        if self.plain.len() < len {
            self.plain.resize(len, 0);
        }
        let expected = &self.table.digests()[chunk as usize];
        Ok(decoder.decode(frame, expected, &mut self.plain[..len])?)
    }
}

impl SectionSink for ReceiverSection {
    async fn chunk(&mut self, chunk: u32, frame: Frame) -> Result<()> {
        debug_assert!(frame.bytes().len() <= MAX_FRAME);
        let place = |section| format!("section {section} chunk {chunk}");
        if !self.missing.contains(chunk) {
            let message = "it was not asked for, or has come already";
            return Err(Error::new(Kind::Invalid, message)).at(|| place(self.section));
        }
        self.verify(chunk, &frame).at(|| place(self.section))?;
        let (plain_len, len) = (frame.header().plain_len, frame.bytes().len() as u64);
        self.placed.push((self.incoming.packer.add(frame, self.incoming.owner).await?, len));
        self.missing.remove(chunk);
        if chunk + 1 == self.table.chunks() {
            self.last_len = Some(plain_len);
        }
        Ok(())
    }

    async fn seal(self) -> Result<()> {
        let place = format!("section {}", self.section);
        if let Some(chunk) = self.missing.iter().next() {
            let message = format!("{place}: chunk {chunk} has not come");
            return Err(Error::new(Kind::Invalid, message));
        }
        let Self { store, incoming, section, table, placed, last_len, sending, .. } = self;
        drop(sending);
        let sealing = async move { incoming.seal(section, table, last_len, placed).await };
        store.run(sealing).await.at(|| place)
    }
}

impl Incoming {
    async fn seal(
        &self,
        section: u32,
        table: Arc<SectionTable>,
        last_len: Option<u32>,
        placed: Vec<(oneshot::Receiver<Placed>, u64)>,
    ) -> Result<()> {
        let mut pending: HashMap<PackId, Pending> = HashMap::new();
        let mut stored: HashSet<Vec<PackId>> = HashSet::new();
        let mut read_back = (0, 0);
        for (placed, len) in placed {
            match placed.await.map_err(|_| packer_ended())? {
                Placed::Pending(p) => {
                    read_back = (read_back.0 + 1, read_back.1 + len);
                    pending.insert(p.pack, p);
                }
                Placed::Stored(packs) => drop(stored.insert(packs)),
            }
        }
        // Those stored matter, too: what was sent of them is remembered at this point.
        self.packer.settle(pending.keys().copied().collect())?;
        self.lean_on_stored(&stored).await?;
        for (id, pack) in pending {
            pack.landed().await?;
            self.add_packs([id]);
        }
        let digest = table.digest();
        self.shared.objects.create_same(&keys::section(&digest), &table.to_bytes()).await?;
        self.shared.keep_table(&digest, &table);
        let present = table.digests().iter().filter(|d| !d.is_zero()).count() as u32;
        let mut sealed = self.sealed.lock().expect("no code panics while it holds this lock");
        let chunks = table.chunks();
        sealed.insert(section, Sealed { digest, chunks, present, last_len, read_back });
        Ok(())
    }

    /// Each of these chunks was not written because the index knows it in one of these packs: one
    /// of them must exist.
    async fn lean_on_stored(&self, stored: &HashSet<Vec<PackId>>) -> Result<()> {
        let there = self.confirm(stored.iter().flatten().copied().collect()).await?;
        match stored.iter().find(|packs| !packs.iter().any(|p| there.contains(p))) {
            None => Ok(()),
            Some(packs) => {
                let names: Vec<String> = packs.iter().map(ToString::to_string).collect();
                let message = format!(
                    "a chunk was stored in pack {}, which is gone; offer the section again",
                    names.join(", ")
                );
                Err(Error::new(Kind::Retry, message))
            }
        }
    }
}
