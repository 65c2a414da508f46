use super::*;
use image::{Codec, Digest, Domain, Geometry};

const CHUNK: usize = 16 << 10;

fn plain(n: u32) -> Vec<u8> {
    vec![n as u8 + 1; if n == 3 { 1024 } else { CHUNK }]
}

fn frame_of(plain: &[u8]) -> Frame {
    Frame::new(Codec::Raw, Domain::PUBLIC, Digest::of_chunk(plain), plain.len() as u32, plain)
}

fn chunk(n: u32) -> Message {
    Message::Frame { chunk: n, frame: frame_of(&plain(n)) }
}

fn plan() -> ImagePlan {
    let geometry = Geometry::new(3 * CHUNK as u64 + 1024, 512, 14).unwrap();
    ImagePlan { domain: Domain::PUBLIC, geometry, parent: None }
}

/// Four chunks, number 2 zeros.
fn table() -> SectionTable {
    let digest = |n| if n == 2 { Digest::ZERO } else { Digest::of_chunk(&plain(n)) };
    SectionTable::new(Domain::PUBLIC, (0..4).map(digest).collect())
}

fn upload(messages: &[Message]) -> Result<Vec<Upload>> {
    let offered = OfferedSection::check(&plan(), 0, &table().to_bytes())?;
    let mut upload = Replies::new().into_upload(offered, ChunkSet::of(4, |c| c % 2 == 1));
    for message in messages {
        upload.feed(message.encode());
    }
    let mut out = Vec::new();
    while let Some(part) = upload.poll()? {
        out.push(part);
    }
    Ok(out)
}

#[test]
fn wanted_chunks_come_and_then_the_end() {
    let parts = upload(&[chunk(3), chunk(1), Message::End]).unwrap();
    assert_eq!(parts.len(), 3);
    assert_eq!(parts[1], Upload::Frame { chunk: 1, frame: frame_of(&plain(1)) });
    assert_eq!(parts[2], Upload::End);
}

#[test]
fn every_way_to_send_the_wrong_thing_is_refused() {
    let other = Message::Frame { chunk: 1, frame: frame_of(&[9; CHUNK]) };
    let long = Message::Frame { chunk: 3, frame: frame_of(&[4; CHUNK]) };
    let mut bytes = frame_of(&plain(1)).bytes().to_vec();
    bytes[70] ^= 1;
    let rotten = Message::Frame { chunk: 1, frame: Frame::parse(bytes.into()).unwrap() };
    let cases = [
        (vec![chunk(0)], Kind::Invalid, "not wanted"),
        (vec![chunk(1), chunk(1)], Kind::Invalid, "came twice"),
        (vec![other], Kind::Corrupt, "section table"),
        (vec![long], Kind::Invalid, "length"),
        (vec![rotten], Kind::Corrupt, "payload CRC32C"),
        (vec![chunk(3), Message::End], Kind::Invalid, "chunk 1: END"),
        (vec![Message::Sealed], Kind::Corrupt, "SEALED where FRAME or END belongs"),
    ];
    for (messages, kind, text) in cases {
        let e = upload(&messages).unwrap_err();
        assert_eq!(e.kind(), kind, "{e}");
        assert!(e.message().contains(text), "{e}");
    }
}

#[test]
fn only_the_last_chunk_of_a_table_may_be_short() {
    let short = [7; 512];
    for (at, fits) in [(0, false), (1, true)] {
        let mut digests = [Digest::of_chunk(&plain(0)), Digest::of_chunk(&plain(1))];
        digests[at] = Digest::of_chunk(&short);
        let table = SectionTable::new(Domain::PUBLIC, digests.to_vec());
        let offered = OfferedSection::check(&plan(), 0, &table.to_bytes()).unwrap();
        let mut upload = Replies::new().into_upload(offered, ChunkSet::of(2, |_| true));
        let message = Message::Frame { chunk: at as u32, frame: frame_of(&short) };
        upload.feed(message.encode());
        assert_eq!(upload.poll().is_ok(), fits, "chunk {at}");
    }
}

#[test]
fn an_offer_must_fit_its_image() {
    let good = table().to_bytes();
    OfferedSection::check(&plan(), 0, &good).unwrap();
    let e = OfferedSection::check(&plan(), 1, &good).unwrap_err();
    assert_eq!(
        (e.kind(), e.message()),
        (Kind::Invalid, "section 1: 4 chunks in the table, 0 in the section at most")
    );
    let mut digests = table().digests().to_vec();
    // The disk may end earlier than was thought.
    let short = SectionTable::new(Domain::PUBLIC, digests[..2].to_vec());
    OfferedSection::check(&plan(), 0, &short.to_bytes()).unwrap();
    digests.push(Digest::of_chunk(b"more"));
    let long = SectionTable::new(Domain::PUBLIC, digests);
    assert!(OfferedSection::check(&plan(), 0, &long.to_bytes()).is_err());
    let zeros = SectionTable::zeros(Domain::PUBLIC, 4);
    assert!(OfferedSection::check(&plan(), 0, &zeros.to_bytes()).is_err());
    let elsewhere = SectionTable::new(Domain(7), table().digests().to_vec());
    let e = OfferedSection::check(&plan(), 0, &elsewhere.to_bytes()).unwrap_err();
    assert_eq!(e.kind(), Kind::Unsupported);
    assert!(OfferedSection::check(&plan(), 0, b"not a table").is_err());
}

#[test]
fn a_receiver_wants_only_what_there_is() {
    OfferedSection::check_want(&table(), &ChunkSet::of(4, |c| c != 2)).unwrap();
    assert!(OfferedSection::check_want(&table(), &ChunkSet::of(4, |c| c == 2)).is_err());
    assert!(OfferedSection::check_want(&table(), &ChunkSet::empty(3)).is_err());
    assert!(OfferedSection::check_want(&table(), &ChunkSet::of(5, |c| c == 4)).is_err());
}

#[test]
fn a_commit_is_of_the_image_that_was_announced() {
    let manifest = |size| {
        let geometry = Geometry::new(size, 512, 14).unwrap();
        Manifest::new(Domain::PUBLIC, geometry, vec![Digest::of_chunk(b"s")]).to_bytes()
    };
    check_commit(&plan(), &manifest(plan().geometry.size())).unwrap();
    check_commit(&plan(), &manifest(512)).unwrap();
    assert_eq!(check_commit(&plan(), &manifest(1 << 20)).unwrap_err().kind(), Kind::Invalid);
    for (sector, chunk_log2) in [(4096, 14), (512, 15)] {
        let geometry = Geometry::new(4096, sector, chunk_log2).unwrap();
        let other = Manifest::new(Domain::PUBLIC, geometry, vec![Digest::of_chunk(b"s")]);
        assert!(check_commit(&plan(), &other.to_bytes()).is_err());
    }
    assert_eq!(check_commit(&plan(), b"noise").unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn replies_are_the_expected_one_or_the_error() {
    let mut replies = Replies::new();
    replies.feed(Message::Push(7).encode());
    assert!(matches!(replies.poll(&[Type::Push, Type::Error]), Ok(Some(Message::Push(7)))));
    replies.end().unwrap();
    replies.feed(Message::Error(Error::new(Kind::Full, "no room")).encode());
    let e = replies.poll(&[Type::Sealed, Type::Error]).unwrap_err();
    assert_eq!((e.kind(), e.message()), (Kind::Full, "no room"));
    replies.feed(Message::Sealed.encode());
    assert!(replies.poll(&[Type::Committed, Type::Error]).is_err());
}
