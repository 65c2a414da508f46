//! Pushes images to a server over QUIC: [`Client`] as an [`ImageSink`].
//!
//! ```text
//! open    → OPEN_PUSH  ← PUSH       the stream stays open: the push session lives as long as it
//! offer   → OFFER      ← WANT       a stream per section
//! chunk   → FRAME
//! seal    → END        ← SEALED
//! commit  → COMMIT     ← COMMITTED  on the first stream
//! ```

use std::sync::Arc;
use std::time::Duration;

use image::error::At;
use image::seam::{ImagePlan, ImageSession};
use image::{
    ChunkSet, Digest, Error, Frame, ImageSink, Kind, Manifest, Priority, ReadContext, Result,
    SectionSink, SectionTable,
};
use tokio::sync::Mutex;

use crate::client::{Client, Request, Session};
use crate::io;
use crate::messages::{Message, frame_head};
use crate::session::inbox::unexpected;
use crate::session::push::{OfferedSection, Replies};
use crate::transport::stream_code;
use crate::wire::Type;

/// How long a refusal is waited for after the server has stopped taking bytes.
const REFUSAL: Duration = Duration::from_secs(5);

/// How often a section is offered to a server that says that it is busy: for ten minutes, at the second that
/// servers ask for.
const OFFERS: u32 = 600;

/// A request stream, and the answers on it.
#[derive(Debug)]
struct Talk {
    request: Request,
    replies: Replies,
    patience: Duration,
    /// A question is out whose answer nobody has taken.
    unanswered: bool,
}

impl Talk {
    fn new(request: Request, patience: Duration) -> Self {
        Self { request, replies: Replies::new(), patience, unanswered: true }
    }

    /// The next message: `expected`, or the server's error.
    async fn reply(&mut self, expected: Type) -> Result<Message> {
        let types = [expected, Type::Error];
        let message = loop {
            match self.replies.poll(&types) {
                Ok(Some(message)) => break Ok(message),
                Ok(None) => {}
                Err(e) => break Err(e),
            }
            let Talk { request, replies, .. } = self;
            if !io::read(&mut request.recv, self.patience, |piece| replies.feed(piece)).await? {
                let why = format!("the stream ended before {}", expected.name());
                return Err(Error::new(Kind::Retry, why));
            }
        };
        self.unanswered = false;
        message
    }

    /// Writes; if the server has stopped listening, the error is the one that it sent.
    async fn write(&mut self, buffers: &mut [bytes::Bytes]) -> Result<()> {
        let Err(e) = io::write(&mut self.request.send, self.patience, buffers).await else {
            return Ok(());
        };
        self.patience = self.patience.min(REFUSAL);
        self.unanswered = true;
        match self.reply(Type::Error).await {
            Err(refusal) if !self.unanswered => Err(refusal),
            _ => Err(e),
        }
    }
}

/// An image on its way to a server. Dropping it ends the push session.
#[derive(Debug)]
pub struct PushSession {
    session: Arc<Session>,
    id: u64,
    patience: Duration,
    talk: Mutex<Talk>,
}

/// A section on its way to a server. Dropping it before [`SectionSink::seal`] cancels it.
#[derive(Debug)]
pub struct PushSection {
    session: Arc<Session>,
    talk: Talk,
    left: ChunkSet,
    section: u32,
    sealed: bool,
}

impl ImageSink for Client {
    type Session = PushSession;

    async fn open(&self, ctx: &ReadContext, plan: &ImagePlan) -> Result<PushSession> {
        let session = self.session().await?;
        let (patience, message) =
            (self.patience(), Message::OpenPush { ctx: *ctx, plan: plan.clone() });
        let opened = async {
            // It stays open for as long as the push: it must not take the place of a short request.
            let request = session.request(&message, Priority::Guest, patience).await?;
            let mut talk = Talk::new(request, patience);
            match talk.reply(Type::Push).await? {
                Message::Push(id) => Ok((id, talk)),
                other => Err(unexpected(other.ty(), &[Type::Push])),
            }
        };
        let (id, talk) = opened.await.at(|| session.name())?;
        Ok(PushSession { session, id, patience, talk: Mutex::new(talk) })
    }
}

impl PushSession {
    async fn offer_once(&self, section: u32, table: &SectionTable) -> Result<(ChunkSet, Talk)> {
        let offer = Message::Offer { session: self.id, section, table: table.to_bytes() };
        let request = self.session.request(&offer, Priority::Background, self.patience).await?;
        let mut talk = Talk::new(request, self.patience);
        match talk.reply(Type::Want).await? {
            Message::Want(want) => Ok((want, talk)),
            other => Err(unexpected(other.ty(), &[Type::Want])),
        }
    }
}

impl ImageSession for PushSession {
    type Section = PushSection;

    /// A server that is busy is asked again when it says so: the other sections make room.
    async fn offer(&self, section: u32, table: &SectionTable) -> Result<(ChunkSet, PushSection)> {
        let place = || format!("{}: section {section}", self.session.name());
        let mut offers = 1;
        let (want, talk) = loop {
            match self.offer_once(section, table).await {
                Err(e) if offers < OFFERS => {
                    let Kind::Busy(after) = e.kind() else { return Err(e.at(place())) };
                    tokio::time::sleep(after).await;
                    offers += 1;
                }
                offered => break offered.at(place)?,
            }
        };
        OfferedSection::check_want(table, &want).at(place)?;
        let left = want.clone();
        let session = self.session.clone();
        Ok((want, PushSection { session, talk, left, section, sealed: false }))
    }

    async fn commit(&self, manifest: &Manifest) -> Result<Digest> {
        let committed = async {
            let mut talk = self.talk.lock().await;
            if talk.unanswered {
                let why = "an earlier commit was given up half-way; open another push session";
                return Err(Error::new(Kind::Cancelled, why));
            }
            talk.unanswered = true;
            talk.write(&mut [Message::Commit(manifest.to_bytes()).encode()]).await?;
            match talk.reply(Type::Committed).await? {
                Message::Committed(image) if image == manifest.identity() => Ok(image),
                Message::Committed(image) => {
                    let why = format!("it committed {image}, not {}", manifest.identity());
                    Err(Error::new(Kind::Corrupt, why))
                }
                other => Err(unexpected(other.ty(), &[Type::Committed])),
            }
        };
        committed.await.at(|| format!("{}: commit", self.session.name()))
    }
}

impl SectionSink for PushSection {
    async fn chunk(&mut self, chunk: u32, frame: Frame) -> Result<()> {
        let place = format!("{}: section {}: chunk {chunk}", self.session.name(), self.section);
        if !self.left.remove(chunk) {
            return Err(Error::new(Kind::Invalid, "not wanted, or sent already")).at(|| place);
        }
        let (len, max) = (frame.bytes().len(), self.session.max_frame());
        if len > max {
            let why = format!("a frame of {len} bytes; the server takes {max}");
            return Err(Error::new(Kind::Unsupported, why)).at(|| place);
        }
        let mut parts = [frame_head(chunk, &frame), frame.bytes().clone()];
        drop(frame);
        self.talk.write(&mut parts).await.at(|| place)
    }

    async fn seal(mut self) -> Result<()> {
        let place = format!("{}: section {}", self.session.name(), self.section);
        if let Some(chunk) = self.left.iter().next() {
            let why = format!("chunk {chunk} was wanted and not sent");
            return Err(Error::new(Kind::Invalid, why)).at(|| place);
        }
        let sealed = async {
            self.talk.unanswered = true;
            self.talk.write(&mut [Message::End.encode()]).await?;
            let _ = self.talk.request.send.finish();
            self.sealed = true;
            self.talk.reply(Type::Sealed).await
        };
        sealed.await.at(|| place).map(drop)
    }
}

impl Drop for PushSection {
    fn drop(&mut self) {
        if !self.sealed {
            let _ = self.talk.request.send.reset(stream_code::CANCELLED);
        }
    }
}
