//! A client: says what it is told to, and reads what comes back. It trusts the server's lengths, and panics
//! at what is not the protocol.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::export::nbd::proto::Framing;
use crate::export::nbd::proto::context::Context;
use crate::export::nbd::proto::handshake::greeting;
use crate::export::nbd::proto::wire::{
    EXTENDED_REPLY_MAGIC, EXTENDED_REQUEST_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC,
    REPLY_FLAG_DONE, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, command,
    command_flag, info, option, option_reply,
};

/// How a client comes in.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// How replies are to look.
    pub framing: Framing,
    /// Name of the export.
    pub name: String,
    /// By the option that knows no errors.
    pub by_name: bool,
    /// What `BLOCK_STATUS` is to tell.
    pub contexts: Vec<Context>,
}

/// A part of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It went well.
    Ok,
    /// Bytes from here on.
    Data(u64, Vec<u8>),
    /// So many zeros from here on.
    Hole(u64, u32),
    /// Of a context: lengths in bytes, and flags.
    Status(u32, Vec<(u64, u64)>),
    /// The error, and where.
    Error(u32, Option<u64>),
}

/// The bytes of an option.
pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut out = OPTION_MAGIC.to_be_bytes().to_vec();
    out.extend(number.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

/// A string with its length in front.
pub fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

/// The data of `INFO` and `GO`.
pub fn go(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut out = string(name);
    out.extend((wanted.len() as u16).to_be_bytes());
    wanted.iter().for_each(|what| out.extend(what.to_be_bytes()));
    out
}

/// The data of `SET_META_CONTEXT` and `LIST_META_CONTEXT`.
pub fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut out = string(name);
    out.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| out.extend(string(query)));
    out
}

/// The header of a request.
pub fn request(
    framing: Framing,
    (command, flags): (u16, u16),
    cookie: u64,
    at: u64,
    len: u64,
) -> Vec<u8> {
    let extended = framing == Framing::Extended;
    let magic = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
    let carries = extended && command == command::WRITE;
    let flags = if carries { flags | command_flag::PAYLOAD_LEN } else { flags };
    let mut out = magic.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(command.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(at.to_be_bytes());
    match extended {
        true => out.extend(len.to_be_bytes()),
        false => out.extend((len as u32).to_be_bytes()),
    }
    out
}

/// Goes through the handshake; returns the size of the export and its flags.
pub async fn shake<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, ask: &Ask) -> (u64, u16) {
    let mut greeted = [0; 18];
    stream.read_exact(&mut greeted).await.unwrap();
    assert_eq!(greeted, greeting());
    stream.write_all(&3u32.to_be_bytes()).await.unwrap();
    match ask.framing {
        Framing::Simple => {}
        Framing::Structured => acked(stream, option::STRUCTURED_REPLY, &[]).await,
        Framing::Extended => acked(stream, option::EXTENDED_HEADERS, &[]).await,
    }
    if !ask.contexts.is_empty() {
        let names: Vec<_> = ask.contexts.iter().map(|context| context.name()).collect();
        acked(stream, option::SET_META_CONTEXT, &queries(&ask.name, &names)).await;
    }
    if ask.by_name {
        stream.write_all(&option(option::EXPORT_NAME, ask.name.as_bytes())).await.unwrap();
        return (stream.read_u64().await.unwrap(), stream.read_u16().await.unwrap());
    }
    let data = go(&ask.name, &[info::BLOCK_SIZE]);
    stream.write_all(&option(option::GO, &data)).await.unwrap();
    let mut export = None;
    loop {
        let (kind, data) = option_answer(stream, option::GO).await;
        if kind == option_reply::ACK {
            return export.expect("INFO_EXPORT before the ACK");
        }
        assert_eq!(kind, option_reply::INFO, "{}", String::from_utf8_lossy(&data));
        if data[..2] == info::EXPORT.to_be_bytes() {
            let size = u64::from_be_bytes(data[2..10].try_into().unwrap());
            export = Some((size, u16::from_be_bytes(data[10..12].try_into().unwrap())));
        }
    }
}

async fn acked<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, number: u32, data: &[u8]) {
    stream.write_all(&option(number, data)).await.unwrap();
    loop {
        let (kind, data) = option_answer(stream, number).await;
        if kind == option_reply::ACK {
            return;
        }
        assert_eq!(kind, option_reply::META_CONTEXT, "{}", String::from_utf8_lossy(&data));
    }
}

/// Reads one reply to an option: its kind and its data.
pub async fn option_answer<S: AsyncRead + Unpin>(stream: &mut S, number: u32) -> (u32, Vec<u8>) {
    assert_eq!(stream.read_u64().await.unwrap(), OPTION_REPLY_MAGIC);
    assert_eq!(stream.read_u32().await.unwrap(), number);
    let kind = stream.read_u32().await.unwrap();
    let mut data = vec![0; stream.read_u32().await.unwrap() as usize];
    stream.read_exact(&mut data).await.unwrap();
    (kind, data)
}

/// Reads one part of a reply: the cookie, whether it is the last one, and what it says. `read` knows the
/// offset and the length of the reads that simple replies are for.
pub async fn reply<S: AsyncRead + Unpin>(
    stream: &mut S,
    read: impl Fn(u64) -> Option<(u64, u32)>,
) -> std::io::Result<(u64, bool, Told)> {
    let magic = stream.read_u32().await?;
    if magic == SIMPLE_REPLY_MAGIC {
        let errno = stream.read_u32().await?;
        let cookie = stream.read_u64().await?;
        let told = match read(cookie) {
            _ if errno != 0 => Told::Error(errno, None),
            Some((at, len)) => {
                let mut data = vec![0; len as usize];
                stream.read_exact(&mut data).await?;
                Told::Data(at, data)
            }
            None => Told::Ok,
        };
        return Ok((cookie, true, told));
    }
    let (flags, kind) = (stream.read_u16().await?, stream.read_u16().await?);
    let cookie = stream.read_u64().await?;
    let len = match magic {
        STRUCTURED_REPLY_MAGIC => u64::from(stream.read_u32().await?),
        EXTENDED_REPLY_MAGIC => {
            stream.read_u64().await?;
            stream.read_u64().await?
        }
        other => panic!("{other:#x} is no reply"),
    };
    let mut payload = vec![0; len as usize];
    stream.read_exact(&mut payload).await?;
    Ok((cookie, flags & REPLY_FLAG_DONE != 0, told(kind, &payload)))
}

fn told(kind: u16, payload: &[u8]) -> Told {
    let u32_at = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().unwrap());
    match kind {
        chunk::NONE => Told::Ok,
        chunk::OFFSET_DATA => Told::Data(u64_at(0), payload[8..].to_vec()),
        chunk::OFFSET_HOLE => Told::Hole(u64_at(0), u32_at(8)),
        chunk::BLOCK_STATUS => {
            assert!(payload.len() > 4 && payload.len() % 8 == 4);
            let each = (4..payload.len()).step_by(8);
            Told::Status(
                u32_at(0),
                each.map(|i| (u32_at(i).into(), u32_at(i + 4).into())).collect(),
            )
        }
        chunk::BLOCK_STATUS_EXT => {
            assert_eq!(payload.len(), 8 + 16 * u32_at(4) as usize);
            let each = (8..payload.len()).step_by(16);
            Told::Status(u32_at(0), each.map(|i| (u64_at(i), u64_at(i + 8))).collect())
        }
        chunk::ERROR => Told::Error(u32_at(0), None),
        chunk::ERROR_OFFSET => Told::Error(u32_at(0), Some(u64_at(payload.len() - 8))),
        other => panic!("a chunk of type {other}"),
    }
}
