//! The messages: what their bodies hold, to bytes and back.
//!
//! ```text
//! context      | priority u8 | flags u8 | zeros u16 | deadline ms u32 | trace u128 |      24 bytes
//! limits       | n u16 | n × ( id u16 | value u64 ), ids rising |
//! chunk set    | len u32 | ceil(len / 8) bytes, chunk 0 in the lowest bit |
//!
//! HELLO        | "FBAY" | min version u16 | max version u16 | features u64 | limits |
//! WELCOME      | version u16 | zeros u16 | features u64 | limits |
//! TICKET       | token text |
//! GRANTED      | right u16 | zeros u16 | domain u32 | digest | expires u64 | grace u32 |
//! ERROR        | code u16 | zeros u16 | after ms u32 | text |
//! GET_MANIFEST | context | image |
//! GET_TABLE    | context | image | section u32 |
//! GET_CHUNKS   | context | image | section u32 | chunk set |
//! MANIFEST     | manifest |
//! TABLE        | section table |
//! FRAME        | chunk u32 | chunk frame |
//! OPEN_PUSH    | context | domain u32 | size u64 | sector u32 | log2 chunk u8 | zeros 3 | parent |
//! PUSH         | session u64 |
//! OFFER        | session u64 | section u32 | section table |
//! WANT         | chunk set |
//! COMMIT       | manifest |
//! COMMITTED    | image |
//! GOAWAY, END, SEALED have no body
//! ```
//! Digests are 32 bytes; a parent of zeros is none. Decoding never panics, and never allocates from a
//! length that it has not checked.

use std::time::Duration;

use api::Grant;
use bytes::{BufMut, Bytes, BytesMut};
use image::error::FormatError;
use image::reader::Reader;
use image::seam::ImagePlan;
use image::{ChunkSet, Digest, Domain, Error, Frame, Geometry, Place, Priority, ReadContext};

use crate::wire::{CHUNK_PREFIX, HEADER_LEN, Header, MAX_LIMITS, MAX_TEXT, Type};

/// First bytes of a HELLO.
const MAGIC: [u8; 4] = *b"FBAY";
const FLAG_REPAIR: u8 = 1;
const RIGHT_PULL: u16 = 1;
const RIGHT_PUSH: u16 = 2;

/// What one side takes from the other; who sends obeys. A limit that the other side does not list has
/// its default; one with an unknown id is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests in flight on a connection (id 1).
    pub requests: u32,
    /// Longest chunk frame in bytes (id 2).
    pub frame: u32,
    /// Push sessions on a connection (id 3).
    pub pushes: u32,
    /// Rights that a connection remembers (id 4).
    pub tickets: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests: 64, frame: image::frame::MAX_FRAME as u32, pushes: 4, tickets: 64 }
    }
}

impl Limits {
    fn fields(&mut self) -> [(u16, &mut u32); 4] {
        [
            (1, &mut self.requests),
            (2, &mut self.frame),
            (3, &mut self.pushes),
            (4, &mut self.tickets),
        ]
    }

    fn write(mut self, out: &mut BytesMut) {
        let fields = self.fields();
        out.put_u16_le(fields.len() as u16);
        for (id, value) in fields {
            out.put_u16_le(id);
            out.put_u64_le(u64::from(*value));
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let mut limits = Self::default();
        let n = r.u16()?;
        if usize::from(n) > MAX_LIMITS {
            return Err(r.field("number of limits", u64::from(n)));
        }
        let mut last = None;
        for _ in 0..n {
            let (id, value) = (r.u16()?, r.u64()?);
            if last.is_some_and(|last| last >= id) {
                return Err(r.field("order of limits", u64::from(id)));
            }
            last = Some(id);
            if let Some((_, field)) = limits.fields().into_iter().find(|f| f.0 == id) {
                *field = u32::try_from(value).unwrap_or(u32::MAX);
            }
        }
        Ok(limits)
    }
}

/// A right that the server has accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The right.
    pub grant: Grant,
    /// Until when new connections may be opened with it, in seconds since 1970.
    pub expires: u64,
    /// Seconds for which this connection may use it after that.
    pub grace: u32,
}

/// A message. The bodies are drawn in the module's documentation.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the fields are drawn above")]
pub enum Message {
    /// Speaks these versions, has these features.
    Hello { min: u16, max: u16, features: u64, limits: Limits },
    /// Speaks this version with you, and these of your features.
    Welcome { version: u16, features: u64, limits: Limits },
    /// A signed right.
    Ticket(String),
    /// The right is yours on this connection.
    Granted(Granted),
    /// Ask elsewhere; what runs is finished.
    GoAway,
    /// It failed.
    Error(Error),
    /// Asks for a manifest.
    GetManifest { ctx: ReadContext, image: Digest },
    /// Asks for a section table.
    GetTable { ctx: ReadContext, image: Digest, section: u32 },
    /// Asks for chunks of a section.
    GetChunks { ctx: ReadContext, place: Place },
    /// A manifest.
    Manifest(Bytes),
    /// A section table.
    Table(Bytes),
    /// One chunk. Its payload has not been checked.
    Frame { chunk: u32, frame: Frame },
    /// No more chunks.
    End,
    /// Starts an image.
    OpenPush { ctx: ReadContext, plan: ImagePlan },
    /// The push session's number on this connection.
    Push(u64),
    /// Offers a section by its table.
    Offer { session: u64, section: u32, table: Bytes },
    /// The chunks to send.
    Want(ChunkSet),
    /// The section is durable.
    Sealed,
    /// Makes the image of this manifest.
    Commit(Bytes),
    /// The image is durable.
    Committed(Digest),
}

impl Message {
    /// The message's type.
    pub fn ty(&self) -> Type {
        match self {
            Self::Hello { .. } => Type::Hello,
            Self::Welcome { .. } => Type::Welcome,
            Self::Ticket(_) => Type::Ticket,
            Self::Granted(_) => Type::Granted,
            Self::GoAway => Type::GoAway,
            Self::Error(_) => Type::Error,
            Self::GetManifest { .. } => Type::GetManifest,
            Self::GetTable { .. } => Type::GetTable,
            Self::GetChunks { .. } => Type::GetChunks,
            Self::Manifest(_) => Type::Manifest,
            Self::Table(_) => Type::Table,
            Self::Frame { .. } => Type::Frame,
            Self::End => Type::End,
            Self::OpenPush { .. } => Type::OpenPush,
            Self::Push(_) => Type::Push,
            Self::Offer { .. } => Type::Offer,
            Self::Want(_) => Type::Want,
            Self::Sealed => Type::Sealed,
            Self::Commit(_) => Type::Commit,
            Self::Committed(_) => Type::Committed,
        }
    }

    /// Header and body as one run of bytes. Chunk frames are not copied if they are sent as
    /// [`frame_head`] followed by [`Frame::bytes`].
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::zeroed(HEADER_LEN);
        self.write_body(&mut out);
        let header = Header::new(self.ty(), out.len() - HEADER_LEN);
        out[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        out.freeze()
    }

    fn write_body(&self, out: &mut BytesMut) {
        match self {
            Self::Hello { min, max, features, limits } => {
                out.put_slice(&MAGIC);
                out.put_u16_le(*min);
                out.put_u16_le(*max);
                out.put_u64_le(*features);
                limits.write(out);
            }
            Self::Welcome { version, features, limits } => {
                out.put_u16_le(*version);
                out.put_u16_le(0);
                out.put_u64_le(*features);
                limits.write(out);
            }
            Self::Ticket(token) => out.put_slice(token.as_bytes()),
            Self::Granted(granted) => write_granted(granted, out),
            Self::Error(e) => write_error(e, out),
            Self::GetManifest { ctx, image } => {
                write_context(ctx, out);
                out.put_slice(&image.0);
            }
            Self::GetTable { ctx, image, section } => {
                write_context(ctx, out);
                out.put_slice(&image.0);
                out.put_u32_le(*section);
            }
            Self::GetChunks { ctx, place } => {
                write_context(ctx, out);
                out.put_slice(&place.image.0);
                out.put_u32_le(place.section);
                place.chunks.write(out);
            }
            Self::Manifest(bytes) | Self::Table(bytes) | Self::Commit(bytes) => {
                out.put_slice(bytes)
            }
            Self::Frame { chunk, frame } => {
                out.put_u32_le(*chunk);
                out.put_slice(frame.bytes());
            }
            Self::OpenPush { ctx, plan } => {
                write_context(ctx, out);
                write_plan(plan, out);
            }
            Self::Push(session) => out.put_u64_le(*session),
            Self::Offer { session, section, table } => {
                out.put_u64_le(*session);
                out.put_u32_le(*section);
                out.put_slice(table);
            }
            Self::Want(set) => set.write(out),
            Self::Committed(image) => out.put_slice(&image.0),
            Self::GoAway | Self::End | Self::Sealed => {}
        }
    }

    /// Takes a body apart. All of it must be used up.
    pub fn decode_body(ty: Type, body: Bytes) -> Result<Self, FormatError> {
        let mut r = Reader::new(ty.name(), &body);
        let message = match ty {
            Type::Hello => read_hello(&mut r)?,
            Type::Welcome => read_welcome(&mut r)?,
            Type::Ticket => Self::Ticket(read_text(ty, &mut r)?),
            Type::Granted => Self::Granted(read_granted(&mut r)?),
            Type::Error => Self::Error(read_error(&mut r)?),
            Type::GetManifest => {
                Self::GetManifest { ctx: read_context(&mut r)?, image: r.digest()? }
            }
            Type::GetTable => {
                let (ctx, image) = (read_context(&mut r)?, r.digest()?);
                Self::GetTable { ctx, image, section: r.u32()? }
            }
            Type::GetChunks => {
                let (ctx, image, section) = (read_context(&mut r)?, r.digest()?, r.u32()?);
                let chunks = ChunkSet::read(&mut r)?;
                Self::GetChunks { ctx, place: Place { image, section, chunks } }
            }
            Type::Manifest => return Ok(Self::Manifest(body)),
            Type::Table => return Ok(Self::Table(body)),
            Type::Commit => return Ok(Self::Commit(body)),
            Type::Frame => {
                let chunk = r.u32()?;
                return Ok(Self::Frame { chunk, frame: Frame::parse(body.slice(CHUNK_PREFIX..))? });
            }
            Type::OpenPush => {
                Self::OpenPush { ctx: read_context(&mut r)?, plan: read_plan(&mut r)? }
            }
            Type::Push => Self::Push(r.u64()?),
            Type::Offer => {
                let (session, section) = (r.u64()?, r.u32()?);
                return Ok(Self::Offer { session, section, table: body.slice(12..) });
            }
            Type::Want => Self::Want(ChunkSet::read(&mut r)?),
            Type::Committed => Self::Committed(r.digest()?),
            Type::GoAway => Self::GoAway,
            Type::End => Self::End,
            Type::Sealed => Self::Sealed,
        };
        r.end()?;
        Ok(message)
    }
}

/// Takes one message off the front of `bytes`, and says how many bytes it had.
pub fn decode(bytes: &Bytes) -> Result<(Message, usize), FormatError> {
    let mut r = Reader::new("message", bytes);
    let header = Header::parse(&r.array()?)?;
    r.take(header.len as usize)?;
    let end = HEADER_LEN + header.len as usize;
    Ok((Message::decode_body(header.ty, bytes.slice(HEADER_LEN..end))?, end))
}

/// The bytes in front of a chunk frame on the wire: message header and chunk number.
pub fn frame_head(chunk: u32, frame: &Frame) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER_LEN + CHUNK_PREFIX);
    out.put_slice(&Header::new(Type::Frame, CHUNK_PREFIX + frame.bytes().len()).to_bytes());
    out.put_u32_le(chunk);
    out.freeze()
}

fn read_hello(r: &mut Reader<'_>) -> Result<Message, FormatError> {
    let found = r.array()?;
    if found != MAGIC {
        return Err(FormatError::Magic { what: Type::Hello.name(), found });
    }
    let (min, max, features) = (r.u16()?, r.u16()?, r.u64()?);
    if min > max {
        return Err(r.field("smallest version", u64::from(min)));
    }
    Ok(Message::Hello { min, max, features, limits: Limits::read(r)? })
}

fn read_welcome(r: &mut Reader<'_>) -> Result<Message, FormatError> {
    let version = r.u16()?;
    r.reserved(2)?;
    Ok(Message::Welcome { version, features: r.u64()?, limits: Limits::read(r)? })
}

fn read_text(ty: Type, r: &mut Reader<'_>) -> Result<String, FormatError> {
    let text = std::str::from_utf8(r.take(r.remaining())?);
    let why = |e| FormatError::Text { what: ty.name(), why: format!("text: {e}") };
    text.map(str::to_owned).map_err(why)
}

fn write_granted(granted: &Granted, out: &mut BytesMut) {
    let (right, domain, digest) = match &granted.grant {
        Grant::Pull { image } => (RIGHT_PULL, 0, *image),
        Grant::Push { domain, parent } => (RIGHT_PUSH, *domain, parent.unwrap_or(Digest::ZERO)),
    };
    out.put_u16_le(right);
    out.put_u16_le(0);
    out.put_u32_le(domain);
    out.put_slice(&digest.0);
    out.put_u64_le(granted.expires);
    out.put_u32_le(granted.grace);
}

fn read_granted(r: &mut Reader<'_>) -> Result<Granted, FormatError> {
    let right = r.u16()?;
    r.reserved(2)?;
    let (domain, digest) = (r.u32()?, r.digest()?);
    let grant = match right {
        RIGHT_PULL if domain == 0 => Grant::Pull { image: digest },
        RIGHT_PUSH => Grant::Push { domain, parent: some_digest(digest) },
        _ => return Err(r.field("right", u64::from(right))),
    };
    Ok(Granted { grant, expires: r.u64()?, grace: r.u32()? })
}

/// Cuts at the last character that fits.
fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn write_error(e: &Error, out: &mut BytesMut) {
    let (code, after_ms) = api::to_wire(e.kind());
    out.put_u16_le(code);
    out.put_u16_le(0);
    out.put_u32_le(after_ms);
    out.put_slice(cut(e.message(), MAX_TEXT).as_bytes());
}

fn read_error(r: &mut Reader<'_>) -> Result<Error, FormatError> {
    let code = r.u16()?;
    r.reserved(2)?;
    let after_ms = r.u32()?;
    let text = read_text(Type::Error, r)?;
    // It ends in logs and on terminals: the other side must not steer those. The stand-in is the
    // shortest character, so a text that fitted still fits when it is passed on.
    let clean = |c: char| if c.is_control() { '?' } else { c };
    Ok(Error::new(api::from_wire(code, after_ms), text.chars().map(clean).collect::<String>()))
}

fn write_context(ctx: &ReadContext, out: &mut BytesMut) {
    out.put_u8(ctx.priority as u8);
    out.put_u8(if ctx.repair { FLAG_REPAIR } else { 0 });
    out.put_u16_le(0);
    out.put_u32_le(ctx.deadline.map_or(0, deadline_ms));
    out.put_u128_le(ctx.trace);
}

/// Milliseconds of a deadline; 0 means none on the wire, so the shortest is 1.
fn deadline_ms(deadline: Duration) -> u32 {
    u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX).max(1)
}

fn read_context(r: &mut Reader<'_>) -> Result<ReadContext, FormatError> {
    let priority = match r.u8()? {
        0 => Priority::Guest,
        1 => Priority::Trace,
        2 => Priority::Background,
        other => return Err(r.field("priority class", u64::from(other))),
    };
    let flags = r.u8()?;
    if flags & !FLAG_REPAIR != 0 {
        return Err(r.field("request flags", u64::from(flags)));
    }
    r.reserved(2)?;
    let deadline = match r.u32()? {
        0 => None,
        ms => Some(Duration::from_millis(u64::from(ms))),
    };
    let trace = u128::from_le_bytes(r.array()?);
    Ok(ReadContext { priority, deadline, trace, repair: flags & FLAG_REPAIR != 0 })
}

fn some_digest(digest: Digest) -> Option<Digest> {
    Some(digest).filter(|d| !d.is_zero())
}

fn write_plan(plan: &ImagePlan, out: &mut BytesMut) {
    out.put_u32_le(plan.domain.0);
    out.put_u64_le(plan.geometry.size());
    out.put_u32_le(plan.geometry.sector());
    out.put_u8(plan.geometry.chunk_log2());
    out.put_bytes(0, 3);
    out.put_slice(&plan.parent.unwrap_or(Digest::ZERO).0);
}

fn read_plan(r: &mut Reader<'_>) -> Result<ImagePlan, FormatError> {
    let domain = Domain(r.u32()?).check(Type::OpenPush.name())?;
    let (size, sector, chunk_log2) = (r.u64()?, r.u32()?, r.u8()?);
    r.reserved(3)?;
    let geometry = Geometry::new(size, sector, chunk_log2)?;
    Ok(ImagePlan { domain, geometry, parent: some_digest(r.digest()?) })
}
