//! A push: what its streams may hold, and what the server checks before its receiver sees anything.
//!
//! ```text
//! session  → OPEN_PUSH  ← PUSH      then  → COMMIT  ← COMMITTED     (each answer may be ERROR;
//! section  → OFFER      ← WANT      → FRAME (each wanted chunk once) … END  ← SEALED  a failed
//!                                                                        COMMIT may be repeated)
//! ```

use bytes::Bytes;
use image::error::FormatError;
use image::frame::FrameHeader;
use image::seam::ImagePlan;
use image::{ChunkSet, Error, Frame, Kind, Manifest, Result, SectionTable};

use super::inbox::{Gate, Inbox, Only, chunk_name, unexpected};
use crate::messages::Message;
use crate::wire::{Header, Type};

/// Reads the small messages of an exchange, one expected answer at a time.
#[derive(Debug, Default)]
pub struct Replies {
    inbox: Inbox,
}

impl Replies {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream.
    pub fn feed(&mut self, bytes: Bytes) {
        self.inbox.feed(bytes);
    }

    /// The next message, which must be of one of these types; `None` until more bytes are fed. An
    /// ERROR becomes an `Err` if it is expected.
    pub fn poll(&mut self, expected: &[Type]) -> Result<Option<Message>> {
        match self.inbox.poll(&mut Only(expected))? {
            Some(Message::Error(e)) => Err(e),
            other => Ok(other),
        }
    }

    /// The header of the next message, which must be of one of these types; `None` until more bytes are fed.
    pub fn begin(&mut self, expected: &[Type]) -> Result<Option<Header>> {
        self.inbox.begin(&mut Only(expected))
    }

    /// How many bytes are to be fed until there is something new to say.
    pub fn missing(&self) -> usize {
        self.inbox.missing()
    }

    /// The stream has ended: an error if that was inside a message.
    pub fn end(&self) -> Result<()> {
        self.inbox.end()
    }

    /// Goes on with the chunks of a section on the same stream.
    pub fn into_upload(self, section: OfferedSection, want: ChunkSet) -> SectionUpload {
        SectionUpload { inbox: self.inbox, expects: Expects { section, left: want }, over: false }
    }
}

/// A section that was offered and fits the image it is for.
#[derive(Clone, Debug)]
pub struct OfferedSection {
    /// Its number.
    pub section: u32,
    /// Its chunk digests.
    pub table: SectionTable,
    plan: ImagePlan,
}

impl OfferedSection {
    /// Parses an offer's table and checks it against the image that it is for.
    pub fn check(plan: &ImagePlan, section: u32, table: &[u8]) -> Result<Self> {
        let table = SectionTable::parse_unverified(table)
            .map_err(|e: FormatError| Error::from(e).at(format!("section {section}")))?;
        plan.check_table(section, &table)?;
        Ok(Self { section, table, plan: plan.clone() })
    }

    /// Checks a receiver's answer to the offer, on its way to the client and again there: it can want
    /// only chunks that are not zeros.
    pub fn check_want(table: &SectionTable, want: &ChunkSet) -> Result<()> {
        let digests = table.digests();
        let fits = want.universe() == table.chunks()
            && want.iter().all(|c| !digests[c as usize].is_zero());
        let why = "WANT names chunks that the section does not have";
        if fits { Ok(()) } else { Err(Error::new(Kind::Corrupt, why)) }
    }
}

/// Checks a manifest against the image that was announced.
pub fn check_commit(plan: &ImagePlan, bytes: &[u8]) -> Result<Manifest> {
    let manifest = Manifest::parse_unverified(bytes)?;
    plan.admits(&manifest)?;
    Ok(manifest)
}

/// What an upload brings.
#[derive(Clone, Debug, PartialEq)]
pub enum Upload {
    /// A wanted chunk that had not come yet, as its table says; its CRC32C is good.
    Frame {
        /// Its number in the section.
        chunk: u32,
        /// The chunk.
        frame: Frame,
    },
    /// Every wanted chunk has come.
    End,
}

/// The server's side of a section on its way in: `feed` and `poll` until [`Upload::End`] or an error.
#[derive(Debug)]
pub struct SectionUpload {
    inbox: Inbox,
    expects: Expects,
    over: bool,
}

#[derive(Debug)]
struct Expects {
    section: OfferedSection,
    left: ChunkSet,
}

const UPLOAD: [Type; 2] = [Type::Frame, Type::End];

impl Gate for Expects {
    fn admit(&mut self, header: &Header) -> Result<()> {
        if UPLOAD.contains(&header.ty) { Ok(()) } else { Err(unexpected(header.ty, &UPLOAD)) }
    }

    fn admit_frame(&mut self, chunk: u32, header: &FrameHeader) -> Result<()> {
        let refuse = |kind, why: &str| Err(Error::new(kind, why).at(chunk_name(chunk)));
        if !self.left.remove(chunk) {
            return refuse(Kind::Invalid, "it was not wanted, or came twice");
        }
        let OfferedSection { section, table, plan } = &self.section;
        if !plan.chunk_fits(*section, table, chunk, header.plain_len as usize) {
            return refuse(Kind::Invalid, "its length is not that of its place");
        }
        if header.domain != table.domain() || header.digest != table.digests()[chunk as usize] {
            return refuse(Kind::Corrupt, "its digest or domain is not that of the section table");
        }
        Ok(())
    }
}

impl SectionUpload {
    /// Takes the next bytes of the stream.
    pub fn feed(&mut self, bytes: Bytes) {
        self.inbox.feed(bytes);
    }

    /// How many bytes are to be fed until there is something new to say.
    pub fn missing(&self) -> usize {
        self.inbox.missing()
    }

    /// What comes next, or `None` until more bytes are fed (and for ever after the end).
    pub fn poll(&mut self) -> Result<Option<Upload>> {
        if self.over {
            return Ok(None);
        }
        match self.inbox.poll(&mut self.expects)? {
            None => Ok(None),
            Some(Message::Frame { chunk, frame }) => {
                frame.check_payload().map_err(|e| Error::from(e).at(chunk_name(chunk)))?;
                Ok(Some(Upload::Frame { chunk, frame }))
            }
            Some(_) => match self.expects.left.iter().next() {
                None => {
                    self.over = true;
                    Ok(Some(Upload::End))
                }
                Some(chunk) => {
                    let why = "END, but it was wanted and not sent";
                    Err(Error::new(Kind::Invalid, why).at(chunk_name(chunk)))
                }
            },
        }
    }
}

#[cfg(test)]
#[path = "push_tests.rs"]
mod tests;
