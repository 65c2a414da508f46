//! The bytes of `forebay/1`: golden ones, round trips, hostile ones.

use std::time::Duration;

use api::Grant;
use bytes::Bytes;
use forebay_stream::messages::{Granted, Limits, Message, decode, frame_head};
use forebay_stream::wire::{HEADER_LEN, MAX_TEXT, Type};
use image::seam::ImagePlan;
use image::{
    ChunkSet, Codec, Digest, Domain, Error, Frame, Geometry, Kind, Place, Priority, ReadContext,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn digest(n: u8) -> Digest {
    Digest([n; 32])
}

fn context() -> ReadContext {
    ReadContext {
        priority: Priority::Trace,
        deadline: Some(Duration::from_millis(258)),
        trace: 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100,
        repair: true,
    }
}

/// One message of every type.
fn samples() -> Vec<Message> {
    let limits = Limits { requests: 1, frame: 2, pushes: 3, tickets: 4 };
    let geometry = Geometry::new(0x1_0000_1000, 4096, 18).unwrap();
    let frame = Frame::new(Codec::Raw, Domain::PUBLIC, digest(9), 3, b"abc");
    vec![
        Message::Hello { min: 1, max: 2, features: 3 << 32 | 4, limits },
        Message::Welcome { version: 1, features: 5, limits },
        Message::Ticket("v4.public.token".into()),
        Message::Granted(Granted { grant: Grant::Pull { image: digest(1) }, expires: 6, grace: 7 }),
        Message::Granted(Granted {
            grant: Grant::Push { domain: 8, parent: Some(digest(2)) },
            expires: 9,
            grace: 10,
        }),
        Message::GoAway,
        Message::Error(Error::new(Kind::Busy(Duration::from_millis(258)), "later")),
        Message::GetManifest { ctx: context(), image: digest(3) },
        Message::GetTable { ctx: ReadContext::default(), image: digest(3), section: 258 },
        Message::GetChunks {
            ctx: context(),
            place: Place { image: digest(3), section: 2, chunks: ChunkSet::of(10, |c| c % 3 == 0) },
        },
        Message::Manifest(Bytes::from_static(b"manifest")),
        Message::Table(Bytes::from_static(b"table")),
        Message::Frame { chunk: 258, frame },
        Message::End,
        Message::OpenPush {
            ctx: context(),
            plan: ImagePlan { domain: Domain::PUBLIC, geometry, parent: Some(digest(4)) },
        },
        Message::Push(0x0102_0304_0506_0708),
        Message::Offer { session: 11, section: 12, table: Bytes::from_static(b"table") },
        Message::Want(ChunkSet::of(9, |c| c == 8)),
        Message::Sealed,
        Message::Commit(Bytes::from_static(b"manifest")),
        Message::Committed(digest(5)),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Name and bytes of every sample, a line each.
fn golden_text() -> String {
    samples().iter().map(|m| format!("{} {}\n", m.ty().name(), hex(&m.encode()))).collect()
}

#[test]
fn golden_bytes() {
    let golden = include_str!("golden/messages-v1.txt");
    for (is, was) in golden_text().lines().zip(golden.lines()) {
        assert_eq!(is, was, "the bytes of a message have changed: version bump required");
    }
    assert_eq!(golden_text().lines().count(), golden.lines().count());
}

#[test]
fn golden_bytes_are_read_for_ever() {
    for (line, sample) in include_str!("golden/messages-v1.txt").lines().zip(samples()) {
        let (name, digits) = line.split_once(' ').unwrap();
        let byte = |i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap();
        let bytes: Bytes = (0..digits.len()).step_by(2).map(byte).collect();
        let (message, used) = decode(&bytes).unwrap();
        assert_eq!((message.ty().name(), used), (name, bytes.len()));
        assert_eq!(format!("{message:?}"), format!("{sample:?}"));
    }
}

#[test]
fn a_frame_is_its_head_and_the_frames_own_bytes() {
    let frame = Frame::new(Codec::Raw, Domain::PUBLIC, digest(9), 3, b"abc");
    let whole = Message::Frame { chunk: 7, frame: frame.clone() }.encode();
    assert_eq!([&frame_head(7, &frame)[..], frame.bytes()].concat(), whole);
}

#[test]
fn every_cut_of_every_message_is_refused() {
    for sample in samples() {
        let bytes = sample.encode();
        for end in 0..bytes.len() {
            assert!(decode(&bytes.slice(..end)).is_err(), "{} cut at {end}", sample.ty().name());
        }
    }
}

#[test]
fn bytes_after_a_body_are_refused_where_the_body_has_an_end() {
    for sample in samples() {
        let open =
            [Type::Ticket, Type::Error, Type::Manifest, Type::Table, Type::Offer, Type::Commit];
        if open.contains(&sample.ty()) {
            continue;
        }
        let mut bytes = sample.encode().to_vec();
        bytes.push(0);
        let len = (bytes.len() - HEADER_LEN) as u32;
        bytes[4..8].copy_from_slice(&len.to_le_bytes());
        assert!(decode(&bytes.into()).is_err(), "{}", sample.ty().name());
    }
}

#[test]
fn unknown_limits_are_ignored_and_missing_ones_have_defaults() {
    // HELLO with limits 2 (frame) and 77 (unknown).
    let mut body = b"FBAY\x01\0\x01\0\0\0\0\0\0\0\0\0\x02\0".to_vec();
    body.extend_from_slice(&[2, 0, 100, 0, 0, 0, 0, 0, 0, 0]);
    body.extend_from_slice(&[77, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    let Message::Hello { limits, .. } = Message::decode_body(Type::Hello, body.into()).unwrap()
    else {
        panic!("a HELLO")
    };
    assert_eq!(limits, Limits { frame: 100, ..Limits::default() });
}

#[test]
fn long_texts_are_cut_between_characters() {
    let text = "é".repeat(MAX_TEXT);
    let bytes = Message::Error(Error::new(Kind::Io, text)).encode();
    assert_eq!(bytes.len(), HEADER_LEN + 8 + MAX_TEXT);
    let bytes =
        Message::Error(Error::new(Kind::Io, "x".to_owned() + &"é".repeat(MAX_TEXT))).encode();
    let Message::Error(e) = decode(&bytes).unwrap().0 else { panic!("an ERROR") };
    assert_eq!(e.message().len(), MAX_TEXT - 1);
}

#[test]
fn a_text_of_control_characters_is_passed_on_whole() {
    for control in ["\u{1b}", "\u{85}"] {
        let text = control.repeat(MAX_TEXT / control.len());
        let first = Message::Error(Error::new(Kind::Io, text)).encode();
        let (read, _) = decode(&first).unwrap();
        let Message::Error(e) = &read else { panic!("an ERROR") };
        assert_eq!(e.message(), "?".repeat(MAX_TEXT / control.len()));
        let (again, _) = decode(&read.encode()).unwrap();
        assert_eq!(format!("{again:?}"), format!("{read:?}"));
    }
}

#[test]
fn a_deadline_of_nothing_is_not_no_deadline() {
    let ctx = ReadContext { deadline: Some(Duration::ZERO), ..ReadContext::default() };
    let bytes = Message::GetManifest { ctx, image: digest(1) }.encode();
    let Message::GetManifest { ctx, .. } = decode(&bytes).unwrap().0 else { panic!("the same") };
    assert_eq!(ctx.deadline, Some(Duration::from_millis(1)));
}

fn any_set() -> impl Strategy<Value = ChunkSet> {
    (0u32..=4096, any::<u64>())
        .prop_map(|(len, bits)| ChunkSet::of(len, |c| bits >> (c % 61) & 1 == 1))
}

fn any_context() -> impl Strategy<Value = ReadContext> {
    let deadline =
        proptest::option::of((1u64..=u64::from(u32::MAX)).prop_map(Duration::from_millis));
    (0u8..3, deadline, any::<u128>(), any::<bool>()).prop_map(|(class, deadline, trace, repair)| {
        let priority = [Priority::Guest, Priority::Trace, Priority::Background][usize::from(class)];
        ReadContext { priority, deadline, trace, repair }
    })
}

fn any_digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn any_bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}

fn any_plan() -> impl Strategy<Value = ImagePlan> {
    (0u64..1 << 37, 14u8..=22, proptest::option::of(any_digest())).prop_map(
        |(sectors, log2, parent)| {
            let geometry = Geometry::new(sectors * 512, 512, log2).unwrap();
            let parent = parent.filter(|p| !p.is_zero());
            ImagePlan { domain: Domain::PUBLIC, geometry, parent }
        },
    )
}

fn any_limits() -> impl Strategy<Value = Limits> {
    any::<[u32; 4]>().prop_map(|[requests, frame, pushes, tickets]| Limits {
        requests,
        frame,
        pushes,
        tickets,
    })
}

fn any_message() -> impl Strategy<Value = Message> {
    let hello = (any::<(u16, u16, u64)>(), any_limits()).prop_map(|((a, b, features), limits)| {
        Message::Hello { min: a.min(b), max: a.max(b), features, limits }
    });
    let welcome = (any::<(u16, u64)>(), any_limits())
        .prop_map(|((version, features), limits)| Message::Welcome { version, features, limits });
    let grant =
        (any::<u32>(), any_digest(), any::<bool>()).prop_map(|(domain, d, pull)| match pull {
            true => Grant::Pull { image: d },
            false => Grant::Push { domain, parent: Some(d).filter(|d| !d.is_zero()) },
        });
    let granted = (grant, any::<(u64, u32)>())
        .prop_map(|(grant, (expires, grace))| Message::Granted(Granted { grant, expires, grace }));
    let error = (1u16..12, any::<u32>(), "\\PC{0,60}").prop_map(|(code, after, text)| {
        Message::Error(Error::new(api::from_wire(code, after), text))
    });
    let frame =
        (any::<u32>(), vec(any::<u8>(), 1..300), any::<[u8; 31]>()).prop_map(|(chunk, p, d)| {
            let mut digest = [1; 32];
            digest[1..].copy_from_slice(&d);
            let len = p.len() as u32;
            let frame = Frame::new(Codec::Raw, Domain::PUBLIC, Digest(digest), len, &p);
            Message::Frame { chunk, frame }
        });
    prop_oneof![
        hello,
        welcome,
        "\\PC{0,200}".prop_map(Message::Ticket),
        granted,
        Just(Message::GoAway),
        error,
        (any_context(), any_digest()).prop_map(|(ctx, image)| Message::GetManifest { ctx, image }),
        (any_context(), any_digest(), any::<u32>())
            .prop_map(|(ctx, image, section)| Message::GetTable { ctx, image, section }),
        (any_context(), any_digest(), any::<u32>(), any_set()).prop_map(
            |(ctx, image, section, chunks)| {
                Message::GetChunks { ctx, place: Place { image, section, chunks } }
            }
        ),
        any_bytes().prop_map(Message::Manifest),
        any_bytes().prop_map(Message::Table),
        frame,
        Just(Message::End),
        (any_context(), any_plan()).prop_map(|(ctx, plan)| Message::OpenPush { ctx, plan }),
        any::<u64>().prop_map(Message::Push),
        (any::<(u64, u32)>(), any_bytes()).prop_map(|((session, section), table)| Message::Offer {
            session,
            section,
            table
        }),
        any_set().prop_map(Message::Want),
        Just(Message::Sealed),
        any_bytes().prop_map(Message::Commit),
        any_digest().prop_map(Message::Committed),
    ]
}

proptest! {
    #[test]
    fn every_message_survives(message in any_message(), rest in any_bytes()) {
        let bytes = message.encode();
        let (again, used) = decode(&[&bytes[..], &rest].concat().into()).unwrap();
        prop_assert_eq!(used, bytes.len());
        prop_assert_eq!(format!("{again:?}"), format!("{message:?}"));
        prop_assert_eq!(again.encode(), bytes);
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        ty in prop_oneof![1u16..7, 16u16..19, 32u16..36, 48u16..55, any::<u16>()],
        body in vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = ty.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&body);
        if let Ok((message, used)) = decode(&bytes.into()) {
            prop_assert_eq!(used, HEADER_LEN + body.len());
            // What was read can be said again. (Limits and control characters may be dropped.)
            decode(&message.encode()).unwrap();
        }
    }

    #[test]
    fn an_altered_message_never_panics(message in any_message(), at in any::<usize>(), to in any::<u8>()) {
        let mut bytes = message.encode().to_vec();
        let at = at % bytes.len();
        bytes[at] = to;
        let _ = decode(&bytes.into());
    }
}
