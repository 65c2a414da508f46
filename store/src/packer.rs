//! The packer: one task per trust domain, shared by every session, that turns frames into packs.
//!
//! ```text
//! add(frame) ─→ the chunk is stored      → Placed::Stored, nothing is written
//!            ─→ it is on its way         → Placed::Pending, with the pack it is in
//!            ─→ appended to the open pack → Placed::Pending
//! open pack: full, or somebody waits and no more comes ─→ put ─→ read back ─→ index ─→ release
//! ```
//! Frames take room (bytes) from a shared budget from before they are handed over until their pack
//! is durable; a sender without room waits. That budget is the only bound on what is queued. It
//! holds two packs at least, and an open pack takes up one at most: whoever waits for room waits for
//! a pack in flight, which lands.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use image::pack::PackBuilder;
use image::{Digest, Domain, Error, Footer, Frame, Kind, PackId, Result};
use object_store::PutPayload;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Sleep;

use crate::footers::check_pack;
use crate::index::{Index, Sent};
use crate::keys;
use crate::rewrites::standing;
use crate::store::Shared;

/// A pack that somebody waits for is closed when no frame has come for this long…
const IDLE: Duration = Duration::from_millis(150);
/// …or this long, if nobody is sending: every section that was begun is waiting or gone.
const QUIET: Duration = Duration::from_millis(3);
/// …and at the latest so long after somebody began to wait: a slow sender must not hold up others.
const PATIENCE: Duration = Duration::from_secs(1);
/// Packs that are being written at a time; small ones would not be held back by their bytes.
const FLIGHTS: usize = 8;

/// How often a pack is put, if the store does not answer or its answer is lost.
const TRIES: usize = 3;

/// How the writing of a pack ended; `None` while it goes on.
type Landing = Option<Result<()>>;

/// A pack on its way into the store.
#[derive(Clone)]
pub(crate) struct Pending {
    pub(crate) pack: PackId,
    done: watch::Receiver<Landing>,
}

impl Pending {
    /// Waits until the pack is durable, read back and indexed.
    pub(crate) async fn landed(mut self) -> Result<()> {
        match self.done.wait_for(Option::is_some).await {
            Ok(landing) => landing.clone().unwrap_or_else(|| Err(packer_ended())),
            Err(_) => Err(packer_ended()),
        }
    }
}

/// Where a frame went.
pub(crate) enum Placed {
    /// Its chunk is in each of these packs already, by the index.
    Stored(Vec<PackId>),
    /// It will be in this pack.
    Pending(Pending),
}

enum Message {
    Frame {
        frame: Frame,
        owner: Digest,
        room: OwnedSemaphorePermit,
        reply: oneshot::Sender<Placed>,
    },
    /// Somebody waits for these packs.
    Settle(Vec<PackId>),
}

/// The packers of a store, one per trust domain.
pub(crate) struct Packers {
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
    open: Mutex<HashMap<Domain, Packer>>,
}

impl Packers {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let room = Arc::new(Semaphore::new(shared.options.limits.writing));
        Self { shared, room, open: Mutex::default() }
    }

    /// The packer of a domain; started when it is first asked for.
    pub(crate) fn of(&self, domain: Domain) -> Packer {
        let mut open = self.open.lock().expect("no code panics while it holds this lock");
        let packer = open.entry(domain).or_insert_with(|| {
            let (queue, messages) = mpsc::unbounded_channel();
            let senders = Arc::new(AtomicUsize::new(0));
            let task = Task::new(self.shared.clone(), domain, messages, senders.clone());
            self.shared.handle.spawn(task.run());
            Packer { queue, room: self.room.clone(), senders }
        });
        packer.clone()
    }
}

/// A way to hand frames to a packer. Works on any runtime.
#[derive(Clone)]
pub(crate) struct Packer {
    queue: mpsc::UnboundedSender<Message>,
    room: Arc<Semaphore>,
    senders: Arc<AtomicUsize>,
}

/// Says that somebody may send frames soon, while it lives.
pub(crate) struct Sending(Arc<AtomicUsize>);

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Packer {
    /// Announces frames.
    pub(crate) fn sending(&self) -> Sending {
        self.senders.fetch_add(1, Ordering::Relaxed);
        Sending(self.senders.clone())
    }

    /// Hands over a frame that was verified to the plain bytes; waits while there is no room. Where
    /// it went comes later, through the answer.
    pub(crate) async fn add(
        &self,
        frame: Frame,
        owner: Digest,
    ) -> Result<oneshot::Receiver<Placed>> {
        let bytes =
            u32::try_from(frame.bytes().len()).expect("a frame is at most 4 MiB and 64 bytes");
        let room = self.room.clone().acquire_many_owned(bytes).await;
        let room = room.map_err(|_| packer_ended())?;
        let (reply, placed) = oneshot::channel();
        self.send(Message::Frame { frame, owner, room, reply })?;
        Ok(placed)
    }

    /// Asks for these packs to be closed soon.
    pub(crate) fn settle(&self, packs: Vec<PackId>) -> Result<()> {
        self.send(Message::Settle(packs))
    }

    fn send(&self, message: Message) -> Result<()> {
        self.queue.send(message).map_err(|_| packer_ended())
    }
}

pub(crate) fn packer_ended() -> Error {
    Error::new(Kind::Cancelled, "the store's packer has ended: the store is closing")
}

/// The pack that frames are appended to.
struct Open {
    id: PackId,
    builder: PackBuilder,
    /// Who sent which of its frames.
    sent: Vec<Sent>,
    /// Ends when it must be closed; there once somebody waits for it.
    patience: Option<Pin<Box<Sleep>>>,
}

/// What the packer keeps of a pack, open or in flight.
struct Track {
    done: watch::Sender<Landing>,
    digests: Vec<Digest>,
    /// The room of its frames; given back when it has landed.
    room: Vec<OwnedSemaphorePermit>,
}

struct Task {
    shared: Arc<Shared>,
    domain: Domain,
    messages: mpsc::UnboundedReceiver<Message>,
    senders: Arc<AtomicUsize>,
    open: Option<Open>,
    tracks: HashMap<PackId, Track>,
    /// Chunks in packs that have not landed: pack, and which of its frames.
    pending: HashMap<Digest, (PackId, u32)>,
    flights: JoinSet<Result<()>>,
    flying: HashMap<tokio::task::Id, PackId>,
    /// Sent chunks that lie in packs which are written already or being written.
    sent: VecDeque<Sent>,
}

impl Task {
    fn new(
        shared: Arc<Shared>,
        domain: Domain,
        messages: mpsc::UnboundedReceiver<Message>,
        senders: Arc<AtomicUsize>,
    ) -> Self {
        Self {
            shared,
            domain,
            messages,
            senders,
            open: None,
            tracks: HashMap::new(),
            pending: HashMap::new(),
            flights: JoinSet::new(),
            flying: HashMap::new(),
            sent: VecDeque::new(),
        }
    }

    /// Runs until every handle is gone, then writes what is left.
    async fn run(mut self) {
        loop {
            let idle = self.idle();
            let patience = self.open.as_mut().and_then(|o| o.patience.as_mut());
            tokio::select! {
                biased;
                Some(landed) = self.flights.join_next_with_id() => self.landed(landed).await,
                () = run_out(patience), if idle.is_some() => self.close().await,
                message = self.messages.recv() => match message {
                    Some(message) => self.take(message).await,
                    None => break,
                },
                // Made anew for each message: it measures from the last one.
                () = tokio::time::sleep(idle.unwrap_or_default()), if idle.is_some() => {
                    self.close().await;
                }
            }
        }
        self.close().await;
        while let Some(landed) = self.flights.join_next_with_id().await {
            self.landed(landed).await;
        }
    }

    /// How long to wait for more before the open pack is closed.
    fn idle(&self) -> Option<Duration> {
        let waited = self.open.as_ref().is_some_and(|o| o.patience.is_some());
        let quiet = self.senders.load(Ordering::Relaxed) == 0;
        waited.then_some(if quiet { QUIET } else { IDLE })
    }

    async fn take(&mut self, message: Message) {
        match message {
            Message::Frame { frame, owner, room, reply } => {
                let placed = self.place(frame, owner, room).await;
                // Who sent it may have gone; the frame stays, for when they come back.
                let _ = reply.send(placed);
            }
            Message::Settle(packs) => {
                if let Some(open) = self.open.as_mut().filter(|o| packs.contains(&o.id)) {
                    open.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
                }
                self.remember_sent().await;
            }
        }
    }

    async fn place(&mut self, frame: Frame, owner: Digest, room: OwnedSemaphorePermit) -> Placed {
        let digest = frame.header().digest;
        if let Some((pack, number)) = self.pending.get(&digest).copied() {
            match self.open.as_mut().filter(|o| o.id == pack) {
                Some(open) => open.sent.push((owner, pack, number)),
                None => self.sent.push_back((owner, pack, number)),
            }
            return self.pending_in(pack);
        }
        match self.shared.index().and_then(|i| i.copies(self.domain, &digest)) {
            Ok(copies) if !copies.is_empty() => {
                let copies = standing(copies, &self.shared.rewrites.from());
                self.sent.extend(copies.iter().map(|c| (owner, c.pack, c.number)));
                return Placed::Stored(copies.iter().map(|c| c.pack).collect());
            }
            Ok(_) => {}
            // Only deduplication is lost.
            Err(error) => tracing::warn!(%error, "storing a chunk without looking it up"),
        }
        let pack = self.append(&frame, owner, room).await;
        self.pending_in(pack)
    }

    fn pending_in(&self, pack: PackId) -> Placed {
        let done =
            self.tracks.get(&pack).expect("kept until its chunks are not pending").done.subscribe();
        Placed::Pending(Pending { pack, done })
    }

    async fn append(&mut self, frame: &Frame, owner: Digest, room: OwnedSemaphorePermit) -> PackId {
        let limit = self.shared.options.limits.pack;
        let full = |o: &Open| {
            !o.builder.fits(frame) || o.builder.finished_len() + frame.bytes().len() + 80 > limit
        };
        if self.open.as_ref().is_some_and(full) {
            self.close().await;
        }
        let open = self.open.get_or_insert_with(|| Open {
            id: PackId((self.shared.options.ids)()),
            builder: PackBuilder::new(self.domain),
            sent: Vec::new(),
            patience: None,
        });
        let track = self.tracks.entry(open.id).or_insert_with(|| Track {
            done: watch::Sender::new(None),
            digests: Vec::new(),
            room: Vec::new(),
        });
        let digest = open.builder.push(frame).digest;
        let number = track.digests.len() as u32;
        open.sent.push((owner, open.id, number));
        track.digests.push(digest);
        track.room.push(room);
        self.pending.insert(digest, (open.id, number));
        open.id
    }

    /// Closes the open pack and sends it off.
    async fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        while self.flights.len() >= FLIGHTS {
            if let Some(landed) = self.flights.join_next_with_id().await {
                self.landed(landed).await;
            }
        }
        let (parts, footer) = open.builder.finish();
        let (shared, id, sent) = (self.shared.clone(), open.id, open.sent);
        let flight = async move { fly(&shared, id, parts, footer, sent).await };
        let task = self.flights.spawn(flight);
        self.flying.insert(task.id(), open.id);
    }

    async fn landed(
        &mut self,
        landed: std::result::Result<(tokio::task::Id, Result<()>), tokio::task::JoinError>,
    ) {
        let (task, result) = match landed {
            Ok(landed) => landed,
            Err(e) => (e.id(), Err(crate::objects::joined(&e))),
        };
        let Some(pack) = self.flying.remove(&task) else { return };
        let Some(track) = self.tracks.remove(&pack) else { return };
        if let Err(error) = &result {
            tracing::warn!(%error, "a pack was not stored");
        }
        for digest in &track.digests {
            self.pending.remove(digest);
        }
        drop(track.room);
        track.done.send_replace(Some(result));
        self.remember_sent().await;
    }

    /// Hands what writers sent of packs that have landed to the index.
    async fn remember_sent(&mut self) {
        let tracks = &self.tracks;
        let (later, now): (Vec<Sent>, Vec<Sent>) =
            self.sent.drain(..).partition(|(_, pack, _)| tracks.contains_key(pack));
        self.sent = later.into();
        if now.is_empty() {
            return;
        }
        let at = self.shared.now();
        let added = self.shared.indexed(move |index: &Index| index.add_sent(&now, at)).await;
        if let Err(error) = added {
            // The writer would have to send them again after an interruption: no more than that.
            tracing::warn!(%error, "could not remember what a writer has sent");
        }
    }
}

async fn run_out(patience: Option<&mut Pin<Box<Sleep>>>) {
    match patience {
        Some(patience) => patience.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Writes a pack, reads it back, and adds it to the index.
pub(crate) async fn fly(
    shared: &Shared,
    id: PackId,
    parts: Vec<Bytes>,
    footer: Footer,
    sent: Vec<Sent>,
) -> Result<()> {
    let len = parts.iter().map(|p| p.len() as u64).sum();
    let key = keys::pack(&id);
    let payload = PutPayload::from_iter(parts);
    let mut created = shared.objects.create(&key, payload.clone()).await;
    for _ in 1..TRIES {
        // Nobody else uses this name: whatever became of the first try, another one does no harm.
        if created.as_ref().is_err_and(|e| e.kind() == Kind::Retry) {
            created = shared.objects.create(&key, payload.clone()).await;
        }
    }
    match &created {
        // A retry, here or inside the object store, may have met its own first try: reading back tells.
        Err(e) if e.kind() == Kind::Conflict => {}
        _ => created.clone()?,
    }
    if let Some(drop_cache) = &shared.options.drop_cache {
        let (drop_cache, id) = (drop_cache.clone(), id);
        crate::objects::blocking(move || {
            drop_cache(&id);
            Ok(())
        })
        .await?;
    }
    if let Err(error) = check_pack(&shared.objects, &id, len, &footer).await {
        if created.is_ok() && error.kind() == Kind::Corrupt {
            // It is ours and nothing leans on it.
            let _ = shared.objects.delete(&key).await;
        }
        return Err(error);
    }
    let now = shared.now();
    shared.indexed(move |index| index.add_pack(&id, len, &footer, &sent, now)).await
}
