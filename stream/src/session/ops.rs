//! Operations made of arbitrary bytes, for fuzzers and property tests: whatever they do, nothing
//! panics, nobody gets a right that was not granted, and the pieces in which bytes arrive do not
//! matter.

use api::{Grant, Ticket};
use bytes::{Bytes, BytesMut};
use image::seam::ImagePlan;
use image::signing::SigningKey;
use image::{ChunkSet, Codec, Digest, Domain, Frame, Geometry, SectionTable};

use super::control::{ClientControl, ClientEvent, Peer, ServerControl, ServerEvent};
use super::exchange::{Answer, Asked, PullAnswer};
use super::push::{OfferedSection, Replies, Upload};
use crate::messages::{Limits, Message};

/// Seed and public key of a key that signs nothing but this module's tickets.
const KEY: [u8; 64] = [
    0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4,
    0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
    0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a,
    0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
];

fn image(n: u8) -> Digest {
    Digest::of_chunk(&[n % 4])
}

/// Both ends of a control stream and what has been said between them.
struct Pair {
    key: SigningKey,
    holder: Digest,
    client: ClientControl,
    server: ServerControl,
    to_server: BytesMut,
    to_client: BytesMut,
    client_dead: bool,
    server_dead: bool,
    now: u64,
    asked: usize,
    answered: usize,
    /// Every right that the server said it granted, with the end of its grace.
    granted: Vec<(Grant, u64)>,
    hello: bool,
    gone: bool,
}

impl Pair {
    fn new() -> Self {
        let key = SigningKey::from_bytes(&KEY).expect("a valid key");
        let holder = api::ticket::holder_of(b"client");
        let peer = Peer { key: key.verifying_key(), holder };
        let limits = Limits { tickets: 3, ..Limits::default() };
        Self {
            key,
            holder,
            client: ClientControl::new(Limits::default()),
            server: ServerControl::new(peer, limits),
            to_server: BytesMut::new(),
            to_client: BytesMut::new(),
            client_dead: false,
            server_dead: false,
            now: 1_000_000,
            asked: 0,
            answered: 0,
            granted: Vec::new(),
            hello: false,
            gone: false,
        }
    }

    fn show(&mut self, arg: u8) {
        let grant = if arg & 4 == 0 {
            Grant::Pull { image: image(arg) }
        } else {
            Grant::Push { domain: u32::from(arg & 8), parent: Some(image(arg)) }
        };
        let holder = if arg & 16 == 0 { self.holder } else { Digest::of_chunk(b"thief") };
        let issued = if arg & 32 == 0 { self.now } else { self.now - 10_000 };
        let mut token = Ticket::new(grant, holder, issued).sign(&self.key);
        if arg & 64 != 0 {
            token.truncate(token.len() / 2);
        }
        self.client.ticket(&token).expect("shorter than the limit");
        self.asked += 1;
    }

    fn deliver_to_server(&mut self, n: usize) {
        let n = n.min(self.to_server.len());
        let bytes = self.to_server.split_to(n).freeze();
        self.server_dead |= self.server.receive(bytes, self.now).is_err();
        while let Some(event) = self.server.poll_event() {
            match event {
                ServerEvent::Hello { .. } => {
                    assert!(!self.hello, "one HELLO is enough");
                    self.hello = true;
                }
                ServerEvent::Granted(g) => {
                    assert!(self.hello, "a right before HELLO");
                    self.granted.push((g.grant, g.expires + u64::from(g.grace)));
                }
                ServerEvent::Refused(_) => {}
            }
        }
    }

    fn deliver_to_client(&mut self, n: usize) {
        let n = n.min(self.to_client.len());
        let bytes = self.to_client.split_to(n).freeze();
        self.client_dead |= self.client.receive(bytes).is_err();
        while let Some(event) = self.client.poll_event() {
            match event {
                ClientEvent::Granted(_) | ClientEvent::Refused(_) => self.answered += 1,
                ClientEvent::Welcome { .. } | ClientEvent::GoAway => {}
            }
        }
        assert!(self.answered <= self.asked, "more answers than tickets");
    }

    fn carry(&mut self) {
        while let Some(bytes) = self.client.poll_transmit() {
            self.to_server.extend_from_slice(&bytes);
        }
        while let Some(bytes) = self.server.poll_transmit() {
            self.to_client.extend_from_slice(&bytes);
        }
    }

    fn check(&self) {
        for n in 0..4 {
            let wanted = Grant::Pull { image: image(n) };
            let right = self.granted.iter().any(|(g, end)| *g == wanted && self.now <= *end);
            let open = self.hello && !self.gone && !self.server_dead;
            let allowed = self.server.may_pull(&image(n), self.now).is_ok();
            assert!(!allowed || (open && right), "a right that nobody granted");
        }
    }
}

/// Runs two bytes per operation on both ends of a control stream.
pub fn control(ops: &[u8]) {
    let mut pair = Pair::new();
    for op in ops.chunks_exact(2) {
        let arg = op[1];
        match op[0] % 8 {
            0 => pair.show(arg),
            1 | 2 => pair.deliver_to_server(usize::from(arg) * 4),
            3 | 4 => pair.deliver_to_client(usize::from(arg) * 4),
            5 => pair.now += u64::from(arg) * 20,
            6 if arg > 250 => {
                pair.server.go_away();
                pair.gone = true;
            }
            6 => {}
            // Noise in the middle of what is under way.
            _ if arg > 200 => pair.to_server.extend_from_slice(&[arg, 0, arg, 1]),
            _ => {}
        }
        pair.carry();
        pair.check();
    }
}

/// Cuts `bytes` into pieces whose lengths come from `cuts`, over and over.
fn pieces(bytes: &Bytes, cuts: &[u8]) -> Vec<Bytes> {
    let (mut rest, mut out) = (bytes.clone(), Vec::new());
    let mut lengths = cuts.iter().map(|c| usize::from(*c)).cycle();
    while !rest.is_empty() {
        let n = lengths.next().map_or(rest.len(), |n| n.clamp(1, rest.len()));
        out.push(rest.split_to(n));
    }
    out
}

/// The chunks that the fuzzed streams are about.
fn chunk_frame(n: u32) -> Frame {
    let plain = vec![n as u8 + 1; if n == 3 { 512 } else { 16 << 10 }];
    Frame::new(Codec::Raw, Domain::PUBLIC, Digest::of_chunk(&plain), plain.len() as u32, &plain)
}

/// A stream made of whole messages and noise, as `ops` say.
fn stream(ops: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    for op in ops.chunks(2) {
        let arg = op.get(1).copied().unwrap_or(0);
        let chunk = u32::from(arg % 5);
        let message = match op[0] % 8 {
            0..=3 => Message::Frame { chunk, frame: chunk_frame(chunk) },
            4 => Message::End,
            5 => Message::Error(image::Error::new(image::Kind::Gone, "gone")),
            6 => Message::Manifest(Bytes::from_static(b"manifest")),
            _ => {
                let mut bad = Message::Frame { chunk, frame: chunk_frame(chunk) }.encode().to_vec();
                let at = usize::from(arg) % bad.len();
                bad[at] ^= 1 << (arg % 8);
                out.extend_from_slice(&bad);
                continue;
            }
        };
        out.extend_from_slice(&message.encode());
    }
    out.freeze()
}

fn answers(asked: Asked, pieces: &[Bytes]) -> Vec<Result<Answer, String>> {
    let mut machine = PullAnswer::new(asked, 64 << 10);
    let mut out = Vec::new();
    for piece in pieces {
        machine.feed(piece.clone());
        loop {
            match machine.poll() {
                Ok(Some(answer)) => out.push(Ok(answer)),
                Ok(None) => break,
                Err(e) => {
                    out.push(Err(e.to_string()));
                    return out;
                }
            }
        }
    }
    out
}

/// Reads an answer twice: in one piece, and cut as `cuts` say.
pub fn answer(asked: u8, ops: &[u8], cuts: &[u8]) {
    let bytes = stream(ops);
    let asked = match asked {
        0 => Asked::Manifest,
        1 => Asked::Table,
        bits => Asked::Chunks(ChunkSet::of(4, |c| bits >> c & 1 == 1)),
    };
    let whole = answers(asked.clone(), &pieces(&bytes, &[]));
    assert_eq!(whole, answers(asked.clone(), &pieces(&bytes, cuts)));
    if let Asked::Chunks(set) = asked {
        let mut left = set;
        for answer in whole.into_iter().flatten() {
            match answer {
                Answer::Frame { chunk, frame } => {
                    assert!(left.remove(chunk), "not asked, or twice");
                    frame.check_payload().expect("only good payloads are given");
                }
                Answer::End => assert!(left.is_empty(), "an end without all chunks"),
                other => panic!("{other:?} was not asked for"),
            }
        }
    }
}

fn uploads(pieces: &[Bytes]) -> Vec<Result<Upload, String>> {
    let geometry = Geometry::new((48 << 10) + 512, 512, 14).expect("a valid geometry");
    let plan = ImagePlan { domain: Domain::PUBLIC, geometry, parent: None };
    let digests = (0..4).map(|n| chunk_frame(n).header().digest).collect();
    let table = SectionTable::new(Domain::PUBLIC, digests).to_bytes();
    let offer = OfferedSection::check(&plan, 0, &table).expect("it fits");
    let mut machine = Replies::new().into_upload(offer, ChunkSet::of(4, |c| c != 1));
    let mut out = Vec::new();
    for piece in pieces {
        machine.feed(piece.clone());
        loop {
            match machine.poll() {
                Ok(Some(upload)) => out.push(Ok(upload)),
                Ok(None) => break,
                Err(e) => {
                    out.push(Err(e.to_string()));
                    return out;
                }
            }
        }
    }
    out
}

/// Takes an upload twice: in one piece, and cut as `cuts` say.
pub fn upload(ops: &[u8], cuts: &[u8]) {
    let bytes = stream(ops);
    let whole = uploads(&pieces(&bytes, &[]));
    assert_eq!(whole, uploads(&pieces(&bytes, cuts)));
    for upload in whole.into_iter().flatten() {
        if let Upload::Frame { chunk, frame } = upload {
            assert_eq!(frame, chunk_frame(chunk), "a chunk that its table does not name");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn control_streams_hold(ops in vec(any::<u8>(), 0..120)) {
            control(&ops);
        }

        #[test]
        fn answers_do_not_depend_on_the_pieces(
            asked in 0u8..16,
            ops in vec(any::<u8>(), 0..24),
            cuts in vec(any::<u8>(), 1..8),
        ) {
            answer(asked, &ops, &cuts);
        }

        #[test]
        fn uploads_do_not_depend_on_the_pieces(
            ops in vec(any::<u8>(), 0..24),
            cuts in vec(any::<u8>(), 1..8),
        ) {
            upload(&ops, &cuts);
        }
    }
}
