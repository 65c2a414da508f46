//! A disk that another program on this machine exports over NBD, for reading: a client of [the protocol] over a Unix
//! socket, with structured replies and block status. Calls block; each thread that reads has a connection.
//!
//! What the server says is checked: lengths before memory is taken for them, places before bytes are put there.
//!
//! [the protocol]: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md

use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use capture::Disk;
use image::error::At;
use image::{Error, Kind, Result};

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const HAVE_OPTION: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const FIXED_NEWSTYLE: u16 = 1;
const CLIENT_FLAGS: u32 = 3;

const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_SET_META_CONTEXT: u32 = 10;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;

const REQUEST: u32 = 0x2560_9513;
const STRUCTURED: u32 = 0x668e_33ef;
const CMD_READ: u16 = 0;
const CMD_BLOCK_STATUS: u16 = 7;
const CHUNK_DONE: u16 = 1;
const CHUNK_NONE: u16 = 0;
const CHUNK_DATA: u16 = 1;
const CHUNK_HOLE: u16 = 2;
const CHUNK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = 1 << 15;

const ALLOCATION: &str = "base:allocation";
const STATE_ZERO: u32 = 2;
const STATE_DIRTY: u32 = 1;

/// Longest option reply that is read, in bytes.
const MOST_OPTION: u32 = 64 << 10;
/// Longest block status that is read, in bytes, and how much is asked about at a time.
const MOST_STATUS: u32 = 1 << 20;
const STATUS_SPAN: u64 = 1 << 30;
/// How long an answer may take: the disk below may be slow, a server that hangs must not be waited for for ever.
const PATIENCE: Duration = Duration::from_secs(120);

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct NbdDisk {
    socket: PathBuf,
    export: String,
    /// A dirty bitmap of QEMU's that comes with it.
    bitmap: Option<String>,
    size: u64,
    idle: Mutex<Vec<Connection>>,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    size: u64,
    /// The number by which the server calls `base:allocation`, if it tells it.
    allocation: Option<u32>,
    /// The same of the bitmap.
    dirty: Option<u32>,
    last: u64,
}

/// A structured reply's part.
struct Part {
    flags: u16,
    kind: u16,
    len: u32,
}

fn garbage(what: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, format!("not what an NBD server says: {}", what.into()))
}

impl NbdDisk {
    /// Connects.
    ///
    /// # Errors
    ///
    /// [`Kind::Retry`] if nobody answers; [`Kind::Gone`] if there is no such export; [`Kind::Unsupported`] if the server
    /// has no structured replies.
    pub(crate) fn connect(socket: PathBuf, export: String, bitmap: Option<String>) -> Result<Self> {
        let mut disk = Self { socket, export, bitmap, size: 0, idle: Mutex::default() };
        let first = disk.open()?;
        disk.size = first.size;
        disk.give_back(first);
        Ok(disk)
    }

    fn open(&self) -> Result<Connection> {
        let place = || format!("the NBD server at {}", self.socket.display());
        Connection::open(&self.socket, &self.export, self.bitmap.as_deref()).at(place)
    }

    /// Asks on a connection of its own; one that has failed is not used again.
    fn ask<T>(&self, ask: impl FnOnce(&mut Connection) -> Result<T>) -> Result<T> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut connection = idle.map_or_else(|| self.open(), Ok)?;
        let place = || format!("the NBD server at {}", self.socket.display());
        let answer = ask(&mut connection).at(place)?;
        self.give_back(connection);
        Ok(answer)
    }

    /// What the bitmap says has changed, in bytes, in rising order.
    ///
    /// # Errors
    ///
    /// [`Kind::Unsupported`] if the server does not tell.
    pub(crate) fn dirty(&self) -> Result<Vec<Range<u64>>> {
        let (mut at, mut dirty) = (0, Vec::new());
        while at < self.size {
            let asked = at..self.size.min(at + STATUS_SPAN);
            let said = self.ask(|connection| {
                let untold = || Error::new(Kind::Unsupported, "it does not tell what has changed");
                let context = connection.dirty.ok_or_else(untold)?;
                connection.status(&asked, context)
            });
            for (len, state) in said? {
                let range = at..(at + len).min(self.size);
                at = range.end;
                if state & STATE_DIRTY != 0 {
                    dirty.push(range);
                }
            }
        }
        Ok(dirty)
    }

    fn give_back(&self, connection: Connection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }
}

impl Disk for NbdDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>> {
        let mut at = from;
        while at < self.size {
            let asked = at..self.size.min(at + STATUS_SPAN);
            for (len, state) in self.ask(|connection| connection.allocated(&asked))? {
                let range = at..(at + len).min(self.size);
                at = range.end;
                if state & STATE_ZERO == 0 {
                    return Ok(Some(range));
                }
            }
        }
        Ok(None)
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.ask(|connection| connection.read(buf, offset))
            .at(|| format!("reading {} bytes at {offset}", buf.len()))
    }

    fn check_unchanged(&self) -> Result<()> {
        // The server fixed the point in time, and lets nobody read any more if it has lost it.
        self.read(&mut vec![0; self.size.min(512) as usize], 0)
    }
}

impl Connection {
    fn open(socket: &std::path::Path, export: &str, bitmap: Option<&str>) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .map_err(|e| Error::caused(Kind::Retry, e.to_string(), e))?;
        let set = stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
        set.map_err(lost)?;
        let mut this = Self { stream, size: 0, allocation: None, dirty: None, last: 0 };
        if this.u64()? != MAGIC || this.u64()? != HAVE_OPTION || this.u16()? & FIXED_NEWSTYLE == 0 {
            return Err(garbage("its greeting"));
        }
        this.send(&CLIENT_FLAGS.to_be_bytes())?;
        this.structured()?;
        this.contexts(export, bitmap)?;
        this.go(export)?;
        Ok(this)
    }

    fn structured(&mut self) -> Result<()> {
        self.option(OPT_STRUCTURED_REPLY, &[])?;
        match self.option_reply(OPT_STRUCTURED_REPLY)? {
            (REP_ACK, _) => Ok(()),
            _ => Err(Error::new(Kind::Unsupported, "it has no structured replies")),
        }
    }

    fn contexts(&mut self, export: &str, bitmap: Option<&str>) -> Result<()> {
        let dirty = bitmap.map(|bitmap| format!("qemu:dirty-bitmap:{bitmap}"));
        let mut asked = text(export);
        asked.extend((1 + u32::from(dirty.is_some())).to_be_bytes());
        asked.extend(text(ALLOCATION));
        asked.extend(dirty.iter().flat_map(|dirty| text(dirty)));
        self.option(OPT_SET_META_CONTEXT, &asked)?;
        loop {
            match self.option_reply(OPT_SET_META_CONTEXT)? {
                (REP_META_CONTEXT, reply) if reply.len() >= 4 => {
                    let id = u32::from_be_bytes(reply[..4].try_into().expect("four bytes"));
                    let name = &reply[4..];
                    if name == ALLOCATION.as_bytes() {
                        self.allocation = Some(id);
                    } else if dirty.as_ref().is_some_and(|dirty| name == dirty.as_bytes()) {
                        self.dirty = Some(id);
                    }
                }
                (REP_ACK, _) => return Ok(()),
                // It does not tell, and then all is data.
                (kind, _) if kind & REP_ERROR != 0 => return Ok(()),
                (kind, _) => return Err(garbage(format!("reply {kind} to a list of contexts"))),
            }
        }
    }

    fn go(&mut self, export: &str) -> Result<()> {
        let mut asked = text(export);
        asked.extend(0u16.to_be_bytes());
        self.option(OPT_GO, &asked)?;
        loop {
            match self.option_reply(OPT_GO)? {
                (REP_INFO, info) if info.len() >= 12 && info[..2] == INFO_EXPORT.to_be_bytes() => {
                    self.size = u64::from_be_bytes(info[2..10].try_into().expect("eight bytes"));
                }
                (REP_INFO, _) => {}
                (REP_ACK, _) => return Ok(()),
                (_, why) => {
                    let why = String::from_utf8_lossy(&why).into_owned();
                    return Err(Error::new(Kind::Gone, format!("export {export:?}: {why}")));
                }
            }
        }
    }

    fn option(&mut self, option: u32, data: &[u8]) -> Result<()> {
        let mut message = HAVE_OPTION.to_be_bytes().to_vec();
        message.extend(option.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        self.send(&message)
    }

    fn option_reply(&mut self, option: u32) -> Result<(u32, Vec<u8>)> {
        let (magic, of, kind, len) = (self.u64()?, self.u32()?, self.u32()?, self.u32()?);
        if magic != OPTION_REPLY || of != option || len > MOST_OPTION {
            return Err(garbage(format!("the reply to option {option}")));
        }
        let mut data = vec![0; len as usize];
        self.receive(&mut data)?;
        Ok((kind, data))
    }

    fn request(&mut self, command: u16, at: u64, len: u32) -> Result<()> {
        self.last += 1;
        let mut message = REQUEST.to_be_bytes().to_vec();
        message.extend([0, 0]);
        message.extend(command.to_be_bytes());
        message.extend(self.last.to_be_bytes());
        message.extend(at.to_be_bytes());
        message.extend(len.to_be_bytes());
        self.send(&message)
    }

    /// The head of the next part of the answer.
    fn part(&mut self) -> Result<Part> {
        let magic = self.u32()?;
        let part = Part { flags: self.u16()?, kind: self.u16()?, len: 0 };
        let (of, len) = (self.u64()?, self.u32()?);
        if magic != STRUCTURED || of != self.last {
            return Err(garbage("an answer that nobody asked for"));
        }
        Ok(Part { len, ..part })
    }

    fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.request(CMD_READ, offset, buf.len() as u32)?;
        let mut missing = buf.len() as u64;
        let mut failed = None;
        loop {
            let part = self.part()?;
            match part.kind {
                CHUNK_DATA if part.len > 8 => {
                    let at = self.u64()?;
                    let into = within(buf, offset, at, u64::from(part.len) - 8)?;
                    missing = missing.saturating_sub(into.len() as u64);
                    self.receive(into)?;
                }
                CHUNK_HOLE if part.len == 12 => {
                    let (at, len) = (self.u64()?, self.u32()?);
                    let into = within(buf, offset, at, u64::from(len))?;
                    missing = missing.saturating_sub(into.len() as u64);
                    into.fill(0);
                }
                CHUNK_NONE if part.len == 0 => {}
                kind if kind & CHUNK_ERROR != 0 => failed = Some(self.error(part.len)?),
                kind => return Err(garbage(format!("part {kind} of a read"))),
            }
            if part.flags & CHUNK_DONE != 0 {
                break;
            }
        }
        match failed {
            Some(error) => Err(error),
            None if missing > 0 => Err(garbage("a read with holes in it")),
            None => Ok(()),
        }
    }

    /// What a context says of a range, piece by piece: lengths and states.
    fn status(&mut self, range: &Range<u64>, context: u32) -> Result<Vec<(u64, u32)>> {
        self.request(CMD_BLOCK_STATUS, range.start, (range.end - range.start) as u32)?;
        let (mut pieces, mut failed) = (Vec::new(), None);
        loop {
            let part = self.part()?;
            match part.kind {
                CHUNK_STATUS if part.len >= 12 && part.len <= MOST_STATUS && part.len % 8 == 4 => {
                    let of = self.u32()?;
                    let mut data = vec![0; part.len as usize - 4];
                    self.receive(&mut data)?;
                    let number =
                        |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
                    let all =
                        data.chunks_exact(8).map(|d| (u64::from(number(&d[..4])), number(&d[4..])));
                    if of == context {
                        pieces = all.collect();
                    }
                }
                CHUNK_NONE if part.len == 0 => {}
                kind if kind & CHUNK_ERROR != 0 => failed = Some(self.error(part.len)?),
                kind => return Err(garbage(format!("part {kind} of a block status"))),
            }
            if part.flags & CHUNK_DONE != 0 {
                break;
            }
        }
        match failed {
            Some(error) => Err(error),
            None if pieces.is_empty() || pieces.iter().any(|(len, _)| *len == 0) => {
                Err(garbage("a block status that says nothing"))
            }
            None => Ok(pieces),
        }
    }

    /// What lies in a range. All of it is data if the server does not tell.
    fn allocated(&mut self, range: &Range<u64>) -> Result<Vec<(u64, u32)>> {
        match self.allocation {
            Some(allocation) => self.status(range, allocation),
            None => Ok(vec![(range.end - range.start, 0)]),
        }
    }

    fn error(&mut self, len: u32) -> Result<Error> {
        if !(6..=MOST_OPTION).contains(&len) {
            return Err(garbage("an error"));
        }
        let code = self.u32()?;
        let mut rest = vec![0; len as usize - 4];
        self.receive(&mut rest)?;
        let text_len = usize::from(u16::from_be_bytes([rest[0], rest[1]])).min(rest.len() - 2);
        let text = String::from_utf8_lossy(&rest[2..2 + text_len]).into_owned();
        let os = std::io::Error::from_raw_os_error(code as i32);
        let what = format!(
            "it answers with an error: {text} ({os}); was there no room, or not in time, for what the guest overwrites?"
        );
        Ok(Error::caused(Kind::Io, what, os))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).map_err(lost)
    }

    fn receive(&mut self, into: &mut [u8]) -> Result<()> {
        self.stream.read_exact(into).map_err(lost)
    }

    fn u16(&mut self) -> Result<u16> {
        let mut bytes = [0; 2];
        self.receive(&mut bytes)?;
        Ok(u16::from_be_bytes(bytes))
    }

    fn u32(&mut self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.receive(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.receive(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
}

/// A point in time that is lost with its server cannot be had again.
fn lost(error: std::io::Error) -> Error {
    Error::caused(Kind::Io, format!("the connection was lost: {error}"), error)
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// The part of what is read at `offset` that lies at `at`.
fn within(buf: &mut [u8], offset: u64, at: u64, len: u64) -> Result<&mut [u8]> {
    let start = at.checked_sub(offset).filter(|start| *start <= buf.len() as u64);
    let end = start.and_then(|start| start.checked_add(len)).filter(|end| *end <= buf.len() as u64);
    match (start, end) {
        (Some(start), Some(end)) => Ok(&mut buf[start as usize..end as usize]),
        _ => Err(garbage("bytes of somewhere else")),
    }
}
