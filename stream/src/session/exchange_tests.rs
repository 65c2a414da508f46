use super::*;
use image::{Codec, Digest, Domain};

fn frame(n: u32) -> Frame {
    let plain = vec![n as u8 + 1; 600];
    Frame::new(Codec::Raw, Domain::PUBLIC, Digest::of_chunk(&plain), 600, &plain)
}

fn chunk(n: u32) -> Message {
    Message::Frame { chunk: n, frame: frame(n) }
}

fn asked() -> Asked {
    Asked::Chunks(ChunkSet::of(8, |c| c % 2 == 1))
}

/// Everything that an answer of these messages says, up to its end.
fn read(asked: Asked, messages: &[Message]) -> Vec<Result<Answer>> {
    let mut answer = PullAnswer::new(asked, 1000);
    let bytes: Vec<u8> = messages.iter().flat_map(|m| m.encode().to_vec()).collect();
    answer.feed(bytes.into());
    let mut out = Vec::new();
    loop {
        match answer.poll() {
            Ok(Some(part)) => out.push(Ok(part)),
            Ok(None) => return out,
            Err(e) => {
                out.push(Err(e.clone()));
                assert_eq!(answer.poll().unwrap_err().message(), e.message(), "for ever");
                return out;
            }
        }
    }
}

fn last_error(asked: Asked, messages: &[Message]) -> Error {
    read(asked, messages).pop().unwrap().unwrap_err()
}

#[test]
fn chunks_come_in_any_order_and_the_end_after_all_of_them() {
    let answers = read(asked(), &[chunk(5), chunk(1), chunk(7), chunk(3), Message::End]);
    let numbers: Vec<_> = answers
        .into_iter()
        .map(|a| match a.unwrap() {
            Answer::Frame { chunk, frame: f } => {
                assert_eq!(f, frame(chunk));
                chunk
            }
            Answer::End => 99,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(numbers, [5, 1, 7, 3, 99]);
}

#[test]
fn what_was_not_asked_for_and_what_came_already_is_refused() {
    for wrong in [[chunk(1), chunk(2)], [chunk(1), chunk(1)], [chunk(1), chunk(8)]] {
        let e = last_error(asked(), &wrong);
        assert_eq!(e.kind(), Kind::Corrupt);
        assert!(e.message().contains("not asked for"), "{e}");
    }
    let e = last_error(Asked::Manifest, &[chunk(1)]);
    assert!(e.message().contains("FRAME where MANIFEST or ERROR belongs"), "{e}");
    let e = last_error(Asked::Table, &[Message::End]);
    assert!(e.message().contains("END where TABLE or ERROR belongs"), "{e}");
}

#[test]
fn an_end_before_all_chunks_names_the_first_that_is_missing() {
    let e = last_error(asked(), &[chunk(1), chunk(5), Message::End]);
    assert_eq!((e.kind(), e.message()), (Kind::Corrupt, "chunk 3: END, but it was not sent"));
}

#[test]
fn a_frame_longer_than_our_limit_is_refused_by_its_header() {
    let plain = vec![1; 2000];
    let frame = Frame::new(Codec::Raw, Domain::PUBLIC, Digest::of_chunk(&plain), 2000, &plain);
    let e = last_error(asked(), &[Message::Frame { chunk: 1, frame }]);
    assert!(e.message().contains("2064 bytes, the limit is 1000"), "{e}");
}

#[test]
fn an_error_may_come_after_chunks() {
    let e = Message::Error(Error::new(Kind::Gone, "chunk 3: pack 8f is gone"));
    let answers = read(asked(), &[chunk(1), chunk(5), e]);
    assert!(matches!(&answers[..2], [Ok(Answer::Frame { .. }), Ok(Answer::Frame { .. })]));
    assert_eq!(answers[2].as_ref().unwrap_err().kind(), Kind::Gone);
}

#[test]
fn a_rotten_payload_is_held_back_and_reported_at_the_end() {
    let mut bytes = frame(3).bytes().to_vec();
    bytes[100] ^= 1;
    let rotten = Message::Frame { chunk: 3, frame: Frame::parse(bytes.into()).unwrap() };
    let answers = read(asked(), &[rotten, chunk(1), chunk(5), chunk(7), Message::End]);
    assert_eq!(answers.len(), 4);
    assert!(
        answers[..3].iter().all(|a| matches!(a, Ok(Answer::Frame { chunk, .. }) if *chunk != 3))
    );
    let e = answers[3].as_ref().unwrap_err();
    assert_eq!(e.kind(), Kind::Corrupt);
    assert!(e.message().starts_with("chunk 3: "), "{e}");
}

#[test]
fn a_stream_that_ends_early_can_be_tried_again() {
    let mut answer = PullAnswer::new(asked(), 1000);
    answer.feed(chunk(1).encode());
    answer.poll().unwrap();
    assert_eq!(answer.end().unwrap_err().kind(), Kind::Retry);
}

#[test]
fn after_its_end_an_answer_says_nothing_more() {
    let mut answer = PullAnswer::new(Asked::Manifest, 1000);
    let manifest = Message::Manifest(Bytes::from_static(b"m")).encode();
    answer.feed(manifest.clone());
    assert!(matches!(answer.poll(), Ok(Some(Answer::Manifest(_)))));
    answer.feed(manifest);
    assert!(matches!(answer.poll(), Ok(None)));
    answer.end().unwrap();
}
