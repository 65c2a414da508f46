//! The handshake: fixed newstyle, from the greeting to the terms of transmission.

use super::context::{Context, Selected};
use super::wire::{
    MAGIC, MAX_PAYLOAD, MAX_STRING, OPTION_MAGIC, OPTION_REPLY_MAGIC, Violation, export_flag,
    handshake_flag, info, option, option_reply,
};
use super::{Card, Cursor, Framing, Terms};

/// Longest data of an option that is looked at, in bytes; that of longer ones is skipped, and the answer
/// is that it is too big. Enough for a name and some queries of the greatest length.
pub const MAX_OPTION: usize = 32 << 10;

/// What is best asked for at a time, in bytes.
const PREFERRED: u32 = 4096;

/// Unused bytes after the answer to `EXPORT_NAME`.
const PADDING: usize = 124;

/// What the server says first.
pub fn greeting() -> [u8; 18] {
    let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    let mut out = [0; 18];
    out[..8].copy_from_slice(&MAGIC.to_be_bytes());
    out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    out[16..].copy_from_slice(&flags.to_be_bytes());
    out
}

/// Where a handshake is after some of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Goes on.
    More,
    /// Transmission begins with the next byte.
    Start(Terms),
    /// The client ends the connection; so does the server.
    Close,
}

/// The server's side of one handshake.
#[derive(Debug, Default)]
pub struct Handshake {
    state: State,
    no_zeroes: bool,
    framing: Framing,
    /// What was selected, and for which export.
    contexts: Option<(usize, Selected)>,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Flags,
    Option,
    /// Bytes of a too long option that are still to come, and its number.
    Skip(u64, u32),
}

impl Handshake {
    /// Takes the next message from the front of `input`, if all of it is there, and appends what the
    /// client is told to `out`. Returns how many bytes it used; none if there must be more first, which
    /// never takes more than [`MAX_OPTION`] and 16 bytes of input.
    pub fn advance(
        &mut self,
        input: &[u8],
        cards: &[Card],
        out: &mut Vec<u8>,
    ) -> Result<(usize, Step), Violation> {
        match self.state {
            State::Flags => self.flags(input),
            State::Option => self.option(input, cards, out),
            State::Skip(left, number) => {
                let used = left.min(input.len() as u64);
                self.state = match left - used {
                    0 => {
                        error(out, number, option_reply::ERR_TOO_BIG, "the option is too long");
                        State::Option
                    }
                    left => State::Skip(left, number),
                };
                Ok((used as usize, Step::More))
            }
        }
    }

    fn flags(&mut self, input: &[u8]) -> Result<(usize, Step), Violation> {
        let Some(flags) = Cursor(input).u32() else { return Ok((0, Step::More)) };
        let known = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        if flags & !u32::from(known) != 0 {
            return Err(Violation::ClientFlags(flags));
        }
        self.no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
        self.state = State::Option;
        Ok((4, Step::More))
    }

    fn option(
        &mut self,
        input: &[u8],
        cards: &[Card],
        out: &mut Vec<u8>,
    ) -> Result<(usize, Step), Violation> {
        let mut cursor = Cursor(input);
        let header = (cursor.u64(), cursor.u32(), cursor.u32());
        let (Some(magic), Some(number), Some(len)) = header else { return Ok((0, Step::More)) };
        if magic != OPTION_MAGIC {
            return Err(Violation::Magic(magic, "an option"));
        }
        if len as usize > MAX_OPTION {
            if number == option::EXPORT_NAME {
                return Err(Violation::ExportName("a name that is too long"));
            }
            self.state = State::Skip(u64::from(len), number);
            return Ok((16, Step::More));
        }
        let Some(data) = cursor.bytes(len as usize) else { return Ok((0, Step::More)) };
        let step = self.answer(number, data, cards, out)?;
        Ok((16 + data.len(), step))
    }

    fn answer(
        &mut self,
        number: u32,
        data: &[u8],
        cards: &[Card],
        out: &mut Vec<u8>,
    ) -> Result<Step, Violation> {
        match number {
            option::EXPORT_NAME => return self.export_name(data, cards, out).map(Step::Start),
            option::ABORT => {
                ack(out, number);
                return Ok(Step::Close);
            }
            option::INFO | option::GO => {
                if let Some(export) = self.inform(number, data, cards, out)
                    && number == option::GO
                {
                    return Ok(Step::Start(self.terms(export)));
                }
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(number, data, cards, out);
            }
            option::LIST | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS
                if !data.is_empty() =>
            {
                error(out, number, option_reply::ERR_INVALID, "the option takes no data");
            }
            option::LIST => list(out, cards),
            option::STRUCTURED_REPLY if self.framing == Framing::Extended => {
                let why = "extended headers are in use";
                error(out, number, option_reply::ERR_EXT_HEADER_REQD, why);
            }
            option::STRUCTURED_REPLY => {
                self.framing = Framing::Structured;
                ack(out, number);
            }
            option::EXTENDED_HEADERS => {
                self.framing = Framing::Extended;
                ack(out, number);
            }
            // The socket's mode is what keeps strangers out.
            option::STARTTLS => {
                error(out, number, option_reply::ERR_UNSUP, "no TLS on this socket");
            }
            _ => error(out, number, option_reply::ERR_UNSUP, "unknown option"),
        }
        Ok(Step::More)
    }

    fn terms(&self, export: usize) -> Terms {
        let contexts = match self.contexts {
            Some((of, selected)) if of == export => selected,
            _ => Selected::default(),
        };
        Terms { export, framing: self.framing, contexts }
    }

    fn export_name(
        &self,
        name: &[u8],
        cards: &[Card],
        out: &mut Vec<u8>,
    ) -> Result<Terms, Violation> {
        if self.framing == Framing::Extended {
            return Err(Violation::ExportName("extended headers"));
        }
        let Some(export) = find(cards, name) else {
            return Err(Violation::ExportName("an unknown export"));
        };
        out.extend(cards[export].size.to_be_bytes());
        out.extend(self.export_flags(&cards[export]).to_be_bytes());
        if !self.no_zeroes {
            out.extend([0; PADDING]);
        }
        Ok(self.terms(export))
    }

    fn export_flags(&self, card: &Card) -> u16 {
        use export_flag as f;
        let mut flags =
            f::HAS_FLAGS | f::SEND_FLUSH | f::SEND_FUA | f::CAN_MULTI_CONN | f::SEND_CACHE;
        flags |= match card.read_only {
            true => f::READ_ONLY,
            false => f::SEND_TRIM | f::SEND_WRITE_ZEROES | f::SEND_FAST_ZERO,
        };
        if self.framing != Framing::Simple {
            flags |= f::SEND_DF;
        }
        flags
    }

    /// `INFO` and `GO`. Returns the export if it was told of.
    fn inform(&self, number: u32, data: &[u8], cards: &[Card], out: &mut Vec<u8>) -> Option<usize> {
        let Some((name, wanted)) = parse_info(data) else {
            error(out, number, option_reply::ERR_INVALID, "the option's lengths do not fit");
            return None;
        };
        let Some(export) = find(cards, name) else {
            error(out, number, option_reply::ERR_UNKNOWN, "no such export");
            return None;
        };
        let card = &cards[export];
        let told = |what: u16, out: &mut Vec<u8>, payload: &[&[u8]]| {
            let what = what.to_be_bytes();
            reply(out, number, option_reply::INFO, &[&[&what[..]], payload].concat());
        };
        let (size, flags) = (card.size.to_be_bytes(), self.export_flags(card).to_be_bytes());
        told(info::EXPORT, out, &[&size, &flags]);
        let wants = |what: u16| wanted.chunks_exact(2).any(|word| word == what.to_be_bytes());
        if wants(info::NAME) {
            told(info::NAME, out, &[card.name.as_bytes()]);
        }
        if wants(info::DESCRIPTION) && !card.description.is_empty() {
            told(info::DESCRIPTION, out, &[card.description.as_bytes()]);
        }
        if wants(info::BLOCK_SIZE) {
            let sizes = [card.sector, PREFERRED.max(card.sector), MAX_PAYLOAD];
            let [least, preferred, most] = sizes.map(u32::to_be_bytes);
            told(info::BLOCK_SIZE, out, &[&least, &preferred, &most]);
        }
        ack(out, number);
        Some(export)
    }

    fn meta_context(&mut self, number: u32, data: &[u8], cards: &[Card], out: &mut Vec<u8>) {
        let set = number == option::SET_META_CONTEXT;
        if set {
            // Also when it fails.
            self.contexts = None;
        }
        if self.framing == Framing::Simple {
            let why = "structured replies come first";
            return error(out, number, option_reply::ERR_INVALID, why);
        }
        let Some((name, queries)) = parse_queries(data) else {
            let why = "the option's lengths do not fit";
            return error(out, number, option_reply::ERR_INVALID, why);
        };
        let Some(export) = find(cards, name) else {
            return error(out, number, option_reply::ERR_UNKNOWN, "no such export");
        };
        let mut selected = Selected::default();
        for context in Context::ALL {
            let named = match set {
                true => queries.contains(&context.name().as_bytes()),
                false => queries.is_empty() || queries.iter().any(|q| context.listed_by(q)),
            };
            if named {
                selected.select(context);
                let id = if set { context.id() } else { 0 };
                let parts = [&id.to_be_bytes()[..], context.name().as_bytes()];
                reply(out, number, option_reply::META_CONTEXT, &parts);
            }
        }
        ack(out, number);
        if set {
            self.contexts = Some((export, selected));
        }
    }
}

/// The export of that name; the first one has the empty name too.
fn find(cards: &[Card], name: &[u8]) -> Option<usize> {
    let named = cards.iter().position(|card| card.name.as_bytes() == name);
    named.or((name.is_empty() && !cards.is_empty()).then_some(0))
}

/// The name, and the pieces of information that are asked for, two bytes each.
fn parse_info(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut cursor = Cursor(data);
    let name = cursor.string()?;
    let count = cursor.u16()?;
    let wanted = cursor.bytes(usize::from(count) * 2)?;
    cursor.0.is_empty().then_some((name, wanted))
}

/// The export's name and the queries.
fn parse_queries(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut cursor = Cursor(data);
    let name = cursor.string()?;
    let count = cursor.u32()?;
    let mut queries = Vec::new();
    // Each takes four bytes at least, so the data bounds them whatever the count says.
    for _ in 0..count {
        queries.push(cursor.string()?);
    }
    cursor.0.is_empty().then_some((name, queries))
}

fn list(out: &mut Vec<u8>, cards: &[Card]) {
    for card in cards {
        let name = card.name.as_bytes();
        let parts = [&(name.len() as u32).to_be_bytes()[..], name, card.description.as_bytes()];
        reply(out, option::LIST, option_reply::SERVER, &parts);
    }
    ack(out, option::LIST);
}

fn ack(out: &mut Vec<u8>, number: u32) {
    reply(out, number, option_reply::ACK, &[]);
}

fn error(out: &mut Vec<u8>, number: u32, kind: u32, why: &str) {
    debug_assert!(why.len() <= MAX_STRING);
    reply(out, number, kind, &[why.as_bytes()]);
}

fn reply(out: &mut Vec<u8>, number: u32, kind: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(number.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((len as u32).to_be_bytes());
    parts.iter().for_each(|part| out.extend(*part));
}
