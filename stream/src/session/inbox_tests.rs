use super::*;
use image::{Codec, Digest, Domain};

/// Lets everything through, and says what it was asked.
#[derive(Default)]
struct Asked(Vec<String>);

impl Gate for Asked {
    fn admit(&mut self, header: &Header) -> Result<()> {
        self.0.push(format!("{} {}", header.ty.name(), header.len));
        Ok(())
    }

    fn admit_frame(&mut self, chunk: u32, header: &FrameHeader) -> Result<()> {
        self.0.push(format!("chunk {chunk} of {}", header.frame_len()));
        Ok(())
    }
}

fn frame() -> Frame {
    let plain = vec![7; 5000];
    Frame::new(Codec::Raw, Domain::PUBLIC, Digest::of_chunk(&plain), 5000, &plain)
}

fn frame_message() -> Bytes {
    Message::Frame { chunk: 3, frame: frame() }.encode()
}

#[test]
fn a_body_is_admitted_before_a_byte_of_it_is_there() {
    let bytes = Message::Manifest(Bytes::from_static(b"manifest")).encode();
    let (mut inbox, mut gate) = (Inbox::new(), Asked::default());
    inbox.feed(bytes.slice(..HEADER_LEN - 1));
    assert!(inbox.poll(&mut gate).unwrap().is_none());
    assert!(gate.0.is_empty());
    inbox.feed(bytes.slice(HEADER_LEN - 1..HEADER_LEN));
    assert!(inbox.poll(&mut gate).unwrap().is_none());
    assert_eq!(gate.0, ["MANIFEST 8"]);
    inbox.feed(bytes.slice(HEADER_LEN..));
    assert!(matches!(inbox.poll(&mut gate), Ok(Some(Message::Manifest(b))) if b == "manifest"));
}

#[test]
fn who_feeds_what_is_missing_has_each_header_before_its_body_and_nothing_beside() {
    let messages =
        [Message::Manifest(Bytes::from_static(b"manifest")).encode(), Message::End.encode()];
    let (mut stream, mut gate) = (Bytes::from(messages.concat()), Asked::default());
    let mut inbox = Inbox::new();
    for (ty, len) in [(Type::Manifest, 8), (Type::End, 0)] {
        assert_eq!(inbox.begin(&mut gate).unwrap(), None);
        inbox.feed(stream.split_to(3));
        assert_eq!(inbox.begin(&mut gate).unwrap(), None);
        assert_eq!(inbox.missing(), HEADER_LEN - 3);
        inbox.feed(stream.split_to(inbox.missing()));
        for _ in 0..2 {
            assert_eq!(inbox.begin(&mut gate).unwrap(), Some(Header::new(ty, len)));
        }
        assert_eq!(inbox.missing(), len);
        inbox.feed(stream.split_to(len));
        assert_eq!(inbox.poll(&mut gate).unwrap().unwrap().ty(), ty);
    }
    assert_eq!(gate.0, ["MANIFEST 8", "END 0"]);
    let frame = frame_message();
    let mut pieces = 0;
    let (mut inbox, mut left) = (Inbox::new(), frame);
    while inbox.poll(&mut gate).unwrap().is_none() {
        inbox.feed(left.split_to(inbox.missing()));
        pieces += 1;
    }
    assert_eq!((pieces, left.len()), (3, 0));
}

#[test]
fn a_frame_is_admitted_by_its_header_and_then_buffered_exactly() {
    let bytes = frame_message();
    let (mut inbox, mut gate) = (Inbox::new(), Asked::default());
    let head = HEADER_LEN + FRAME_HEAD;
    inbox.feed(bytes.slice(..head - 1));
    assert!(inbox.poll(&mut gate).unwrap().is_none());
    assert_eq!(gate.0, ["FRAME 5068"]);
    inbox.feed(bytes.slice(head - 1..head));
    assert!(inbox.poll(&mut gate).unwrap().is_none());
    assert_eq!(gate.0, ["FRAME 5068", "chunk 3 of 5064"]);
    let State::Payload { len, bytes: buffer, .. } = &inbox.state else { panic!("{inbox:?}") };
    assert_eq!((*len, buffer.capacity()), (5064, 5064));
    inbox.feed(bytes.slice(head..));
    match inbox.poll(&mut gate).unwrap().unwrap() {
        Message::Frame { chunk: 3, frame: f } => assert_eq!(f, frame()),
        other => panic!("{other:?}"),
    }
    inbox.end().unwrap();
}

#[test]
fn a_long_length_alone_takes_little_memory() {
    let header = Header { ty: Type::Manifest, len: Type::Manifest.max_body() as u32 };
    let mut inbox = Inbox::new();
    inbox.feed(header.to_bytes().to_vec().into());
    assert!(inbox.poll(&mut Asked::default()).unwrap().is_none());
    let State::Body { body, .. } = &inbox.state else { panic!("{inbox:?}") };
    assert!(body.capacity() <= FIRST_CAPACITY, "{}", body.capacity());
}

#[test]
fn hostile_lengths_are_refused_before_memory_is_taken() {
    let mut huge = Header { ty: Type::Table, len: 0 }.to_bytes();
    huge[4..].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut inbox = Inbox::new();
    inbox.feed(huge.to_vec().into());
    let e = inbox.poll(&mut Asked::default()).unwrap_err();
    assert!(e.message().contains("length of the body"), "{e}");
    assert!(matches!(inbox.state, State::Header(_)));
    // The same for ever, whatever comes.
    inbox.feed(frame_message());
    assert_eq!(inbox.poll(&mut Asked::default()).unwrap_err().message(), e.message());
    assert_eq!(inbox.end().unwrap_err().message(), e.message());
    assert!(inbox.pieces.is_empty(), "nothing is kept after an error");
}

#[test]
fn a_frame_header_that_is_wrong_is_refused_before_its_payload() {
    let good = frame_message();
    // A flipped bit in each byte of the frame header, and a message length that does not fit it.
    let places = (HEADER_LEN + CHUNK_PREFIX..HEADER_LEN + FRAME_HEAD).chain(4..6);
    for at in places {
        let mut bytes = good.to_vec();
        bytes[at] ^= 4;
        let (mut inbox, mut gate) = (Inbox::new(), Asked::default());
        inbox.feed(Bytes::from(bytes).slice(..HEADER_LEN + FRAME_HEAD));
        assert!(inbox.poll(&mut gate).is_err(), "byte {at}");
        assert_eq!(gate.0.len(), 1, "byte {at}: the frame was not admitted");
    }
    let mut short = Header { ty: Type::Frame, len: FRAME_HEAD as u32 - 1 }.to_bytes().to_vec();
    short.resize(HEADER_LEN + FRAME_HEAD, 0);
    let mut inbox = Inbox::new();
    inbox.feed(short.into());
    assert!(inbox.poll(&mut Asked::default()).unwrap_err().message().contains("truncated"));
}

#[test]
fn the_end_of_a_stream_is_an_error_inside_a_message_only() {
    let bytes = frame_message();
    for cut in 0..bytes.len() {
        let mut inbox = Inbox::new();
        inbox.feed(bytes.slice(..cut));
        assert!(inbox.poll(&mut Asked::default()).unwrap().is_none());
        assert_eq!(inbox.end().is_ok(), cut == 0, "cut at {cut}");
    }
}

#[test]
fn nothing_but_the_types_of_the_moment_comes_through() {
    let mut inbox = Inbox::new();
    inbox.feed(Message::GoAway.encode());
    let e = inbox.poll(&mut Only(&[Type::Welcome, Type::Error])).unwrap_err();
    assert_eq!(e.message(), "GOAWAY where WELCOME or ERROR belongs");
    let mut inbox = Inbox::new();
    inbox.feed(frame_message());
    assert!(inbox.poll(&mut Only(&[Type::Frame])).is_err(), "frames need a gate of their own");
}
