//! Requests: the header, and what a well-meant one asks for.

use super::wire::{
    EXTENDED_REQUEST_MAGIC, Errno, MAX_PAYLOAD, REQUEST_MAGIC, Violation, command, command_flag,
};
use super::{Cursor, Framing, Terms};

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Flags of the command.
    pub flags: u16,
    /// The command.
    pub command: u16,
    /// What the client knows the request by.
    pub cookie: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub len: u64,
    /// How many bytes of payload follow; at most [`MAX_PAYLOAD`].
    pub payload: u32,
}

/// What a request asks for, within the bounds of the disk and of what was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read; `whole` in one chunk.
    Read {
        /// Not in pieces.
        whole: bool,
    },
    /// Write the payload.
    Write {
        /// It lasts before it is answered.
        lasting: bool,
    },
    /// Make what was answered last.
    Flush,
    /// Nobody needs the range.
    Trim {
        /// It lasts before it is answered.
        lasting: bool,
    },
    /// Fetch what is absent.
    Cache,
    /// Write zeros.
    Zero {
        /// It lasts before it is answered.
        lasting: bool,
        /// The space may be given back.
        give_back: bool,
        /// Refuse it if it takes as long as writing.
        fast: bool,
    },
    /// Tell what the range holds.
    Status {
        /// Only its first extent.
        one: bool,
    },
}

/// A request that is answered with an error; what the client says after it is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error.
    pub errno: Errno,
    /// Why, for people.
    pub why: &'static str,
}

/// What requests are held against.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Size of the disk, in bytes.
    pub size: u64,
    /// Offsets and lengths are multiples of this, in bytes.
    pub sector: u32,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl Request {
    /// Takes a header from the front of `input`, and says how long it was; `None` if there must be more
    /// bytes first.
    pub fn parse(input: &[u8], framing: Framing) -> Result<Option<(usize, Request)>, Violation> {
        let extended = framing == Framing::Extended;
        let Some(header) = input.get(..if extended { 32 } else { 28 }) else { return Ok(None) };
        let mut cursor = Cursor(header);
        let mut fields = || {
            let (magic, flags, command) = (cursor.u32()?, cursor.u16()?, cursor.u16()?);
            let (cookie, offset) = (cursor.u64()?, cursor.u64()?);
            let len = if extended { cursor.u64()? } else { u64::from(cursor.u32()?) };
            Some((magic, Request { flags, command, cookie, offset, len, payload: 0 }))
        };
        let Some((magic, mut request)) = fields() else { return Ok(None) };
        if magic != if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC } {
            return Err(Violation::Magic(u64::from(magic), "a request"));
        }
        let carries = match extended {
            true => request.has(command_flag::PAYLOAD_LEN),
            false => request.command == command::WRITE,
        };
        if carries {
            let payload = u32::try_from(request.len).ok().filter(|len| *len <= MAX_PAYLOAD);
            request.payload = payload.ok_or(Violation::Payload(request.len))?;
        }
        Ok(Some((header.len(), request)))
    }

    /// Whether the client says that there is nothing more to come.
    pub fn is_disconnect(&self) -> bool {
        self.command == command::DISC
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// What it asks for, if that may be asked.
    pub fn check(&self, terms: &Terms, bounds: &Bounds) -> Result<Command, Refusal> {
        use command_flag as f;
        let lasting = self.has(f::FUA);
        let chunks = terms.framing != Framing::Simple;
        let (command, flags) = match self.command {
            command::READ if chunks => (Command::Read { whole: self.has(f::DF) }, f::DF),
            command::READ => (Command::Read { whole: false }, 0),
            command::WRITE if terms.framing == Framing::Extended => {
                if !self.has(f::PAYLOAD_LEN) {
                    return Err(invalid("a write says that it has a payload"));
                }
                (Command::Write { lasting }, f::PAYLOAD_LEN)
            }
            command::WRITE => (Command::Write { lasting }, 0),
            command::FLUSH => (Command::Flush, 0),
            command::TRIM => (Command::Trim { lasting }, 0),
            command::CACHE => (Command::Cache, 0),
            command::WRITE_ZEROES => {
                let (give_back, fast) = (!self.has(f::NO_HOLE), self.has(f::FAST_ZERO));
                (Command::Zero { lasting, give_back, fast }, f::NO_HOLE | f::FAST_ZERO)
            }
            command::BLOCK_STATUS if terms.contexts.is_empty() => {
                return Err(invalid("no metadata context was selected"));
            }
            command::BLOCK_STATUS => (Command::Status { one: self.has(f::REQ_ONE) }, f::REQ_ONE),
            _ => return Err(invalid("unknown command")),
        };
        // Clients set FUA on commands that write nothing, too.
        if self.flags & !(flags | f::FUA) != 0 {
            return Err(invalid("unknown flag, or not for this command"));
        }
        self.check_range(command, bounds, chunks)?;
        Ok(command)
    }

    fn check_range(&self, command: Command, bounds: &Bounds, chunks: bool) -> Result<(), Refusal> {
        let writes = match command {
            Command::Flush if (self.offset, self.len) == (0, 0) => return Ok(()),
            Command::Flush => return Err(invalid("a flush has no range")),
            Command::Write { .. } | Command::Zero { .. } => true,
            Command::Trim { .. }
            | Command::Read { .. }
            | Command::Cache
            | Command::Status { .. } => false,
        };
        if bounds.read_only && (writes || matches!(command, Command::Trim { .. })) {
            return Err(Refusal { errno: Errno::Eperm, why: "the export is read-only" });
        }
        if self.len == 0 {
            return Err(invalid("an empty range"));
        }
        if self.offset.checked_add(self.len).is_none_or(|end| end > bounds.size) {
            let errno = if writes { Errno::Enospc } else { Errno::Einval };
            return Err(Refusal { errno, why: "beyond the end of the disk" });
        }
        let sector = u64::from(bounds.sector);
        if !self.offset.is_multiple_of(sector) || !self.len.is_multiple_of(sector) {
            return Err(invalid("not on the boundaries of sectors"));
        }
        if matches!(command, Command::Read { .. }) && self.len > u64::from(MAX_PAYLOAD) {
            let errno = if chunks { Errno::Eoverflow } else { Errno::Einval };
            return Err(Refusal { errno, why: "more than one read may move" });
        }
        Ok(())
    }
}

fn invalid(why: &'static str) -> Refusal {
    Refusal { errno: Errno::Einval, why }
}
