//! Golden bytes, from the specification, and parsers against any input.

use proptest::prelude::*;

use super::context::{Context, Selected};
use super::handshake::{Handshake, MAX_OPTION, Step, greeting};
use super::reply::To;
use super::request::{Bounds, Command, Refusal, Request};
use super::wire::{Errno, Violation, command, command_flag, info, option, option_reply};
use super::{Card, Framing, Terms};
use crate::export::nbd::testing::client::{self, go, queries};

fn cards() -> Vec<Card> {
    let card = |name: &str, size| Card {
        name: name.into(),
        description: "d".into(),
        size,
        sector: 512,
        read_only: name == "b",
    };
    vec![card("a", 1 << 30), card("b", 4096)]
}

/// What a handshake answers to `messages` after the client's flags, and where it is then.
fn haggle(messages: &[Vec<u8>]) -> Result<(Vec<u8>, Step), Violation> {
    let (mut handshake, mut out) = (Handshake::default(), Vec::new());
    let input = [&[0, 0, 0, 3][..], &messages.concat()].concat();
    let mut rest = &input[..];
    loop {
        let (used, step) = handshake.advance(rest, &cards(), &mut out)?;
        rest = &rest[used..];
        if step != Step::More || used == 0 {
            return Ok((out, step));
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Kinds and data of the answers to options.
fn answers(mut out: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut found = Vec::new();
    while !out.is_empty() {
        let word = |at: usize| u32::from_be_bytes(out[at..at + 4].try_into().unwrap());
        let len = word(16) as usize;
        found.push((word(12), out[20..20 + len].to_vec()));
        out = &out[20 + len..];
    }
    found
}

fn kinds(messages: &[Vec<u8>]) -> Vec<u32> {
    let (out, _) = haggle(messages).unwrap();
    answers(&out).into_iter().map(|(kind, _)| kind).collect()
}

#[test]
fn golden_bytes_of_the_handshake() {
    assert_eq!(hex(&greeting()), "4e42444d4147494349484156454f50540003");
    let export_name = client::option(option::EXPORT_NAME, b"");
    assert_eq!(hex(&export_name), "49484156454f50540000000100000000");
    let (out, step) = haggle(&[export_name]).unwrap();
    assert_eq!(hex(&out), "0000000040000000".to_owned() + "0d6d");
    let contexts = Selected::default();
    assert_eq!(step, Step::Start(Terms { export: 0, framing: Framing::Simple, contexts }));
    let structured = client::option(option::STRUCTURED_REPLY, &[]);
    let sizes = client::option(option::GO, &go("b", &[info::BLOCK_SIZE]));
    let (out, step) = haggle(&[structured, sizes]).unwrap();
    let wanted = [
        "0003e889045565a9",
        "00000008",
        "00000001",
        "00000000",
        "0003e889045565a9",
        "00000007",
        "00000003",
        "0000000c",
        "0000",
        "0000000000001000",
        "058f",
        "0003e889045565a9",
        "00000007",
        "00000003",
        "0000000e",
        "0003",
        "00000200",
        "00001000",
        "02000000",
        "0003e889045565a9",
        "00000007",
        "00000001",
        "00000000",
    ];
    assert_eq!(hex(&out), wanted.concat());
    assert_eq!(step, Step::Start(Terms { export: 1, framing: Framing::Structured, contexts }));
}

#[test]
fn old_clients_get_their_zeros() {
    let (mut handshake, mut out) = (Handshake::default(), Vec::new());
    assert_eq!(handshake.advance(&[0, 0, 0, 1], &cards(), &mut out), Ok((4, Step::More)));
    let name = client::option(option::EXPORT_NAME, b"a");
    let (_, step) = handshake.advance(&name, &cards(), &mut out).unwrap();
    assert!(matches!(step, Step::Start(_)));
    assert_eq!(out.len(), 10 + 124);
}

#[test]
fn golden_bytes_of_replies() {
    let to = To { cookie: 0x0102_0304_0506_0708, offset: 0x1000 };
    let head = |head: super::reply::Head| hex(head.bytes());
    let cookie = "0102030405060708";
    assert_eq!(head(Framing::Simple.ok(to)), format!("6744669800000000{cookie}"));
    assert_eq!(head(Framing::Simple.data(to, 0x1000, 512, true)), head(Framing::Simple.ok(to)));
    assert_eq!(head(Framing::Structured.ok(to)), head(Framing::Simple.ok(to)));
    let extended = |flags, kind, len| format!("6e8a278c{flags}{kind}{cookie}0000000000001000{len}");
    assert_eq!(head(Framing::Extended.ok(to)), extended("0001", "0000", "0000000000000000"));
    assert_eq!(
        head(Framing::Structured.data(to, 0x1200, 512, true)),
        format!("668e33ef00010001{cookie}000002080000000000001200")
    );
    assert_eq!(
        head(Framing::Extended.data(to, 0x1200, 512, false)),
        extended("0000", "0001", "0000000000000208") + "0000000000001200"
    );
    assert_eq!(
        head(Framing::Structured.hole(to, 0x1200, 512, false)),
        format!("668e33ef00000002{cookie}0000000c000000000000120000000200")
    );
    assert_eq!(
        head(Framing::Extended.hole(to, 0x1200, 512, true)),
        extended("0001", "0002", "000000000000000c") + "000000000000120000000200"
    );
    assert_eq!(
        head(Framing::Structured.status(to, 12, true)),
        format!("668e33ef00010005{cookie}0000000c")
    );
    assert_eq!(
        head(Framing::Extended.status(to, 24, true)),
        extended("0001", "0006", "0000000000000018")
    );
    let error = |framing: Framing, at| {
        let (head, body) = framing.error(to, Errno::Eio, "no", at);
        hex(head.bytes()) + &hex(&body)
    };
    assert_eq!(error(Framing::Simple, Some(1)), format!("6744669800000005{cookie}"));
    assert_eq!(
        error(Framing::Structured, None),
        format!("668e33ef00018001{cookie}000000080000000500026e6f")
    );
    assert_eq!(
        error(Framing::Extended, Some(0x1200)),
        extended("0001", "8002", "0000000000000010") + "0000000500026e6f0000000000001200"
    );
    let long = "ä".repeat(4000);
    assert_eq!(Framing::Structured.error(to, Errno::Eio, &long, None).1.len(), 6 + 512);
}

#[test]
fn every_option_is_answered_and_unknown_ones_too() {
    use option_reply as r;
    let opt = client::option;
    assert_eq!(kinds(&[opt(option::LIST, &[])]), [r::SERVER, r::SERVER, r::ACK]);
    assert_eq!(kinds(&[opt(option::LIST, b"x")]), [r::ERR_INVALID]);
    assert_eq!(kinds(&[opt(option::STARTTLS, &[])]), [r::ERR_UNSUP]);
    assert_eq!(kinds(&[opt(99, b"whatever")]), [r::ERR_UNSUP]);
    assert_eq!(kinds(&[opt(option::INFO, &go("c", &[]))]), [r::ERR_UNKNOWN]);
    assert_eq!(kinds(&[opt(option::GO, b"\0\0\0\x09a\0\0")]), [r::ERR_INVALID]);
    assert_eq!(kinds(&[opt(option::GO, &[&go("a", &[])[..], b"!"].concat())]), [r::ERR_INVALID]);
    let all = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE, 77];
    let told = [r::INFO, r::INFO, r::INFO, r::INFO, r::ACK];
    assert_eq!(kinds(&[opt(option::INFO, &go("", &all))]), told);
    let long = opt(77, &vec![0; MAX_OPTION + 1]);
    assert_eq!(kinds(&[long, opt(option::STARTTLS, &[])]), [r::ERR_TOO_BIG, r::ERR_UNSUP]);
    let (extended, structured) =
        (opt(option::EXTENDED_HEADERS, &[]), opt(option::STRUCTURED_REPLY, &[]));
    let both = [structured.clone(), extended.clone(), structured];
    assert_eq!(kinds(&both), [r::ACK, r::ACK, r::ERR_EXT_HEADER_REQD]);
    let (out, step) = haggle(&[opt(option::ABORT, b"?")]).unwrap();
    assert_eq!((answers(&out), step), (vec![(r::ACK, vec![])], Step::Close));
    let late = haggle(&[extended, opt(option::EXPORT_NAME, b"a")]);
    assert_eq!(late, Err(Violation::ExportName("extended headers")));
    let unknown = haggle(&[opt(option::EXPORT_NAME, b"c")]);
    assert_eq!(unknown, Err(Violation::ExportName("an unknown export")));
}

#[test]
fn contexts_are_those_last_set_for_the_export() {
    let opt = client::option;
    let structured = opt(option::STRUCTURED_REPLY, &[]);
    let set = |name: &str, names: &[&str]| opt(option::SET_META_CONTEXT, &queries(name, names));
    let selected = |messages: &[Vec<u8>]| {
        let go = [opt(option::GO, &go("a", &[]))];
        let Ok((_, Step::Start(terms))) = haggle(&[messages, &go].concat()) else { panic!() };
        terms.contexts.each().collect::<Vec<_>>()
    };
    let both = ["qemu:x", "forebay:present", "base:allocation", "base:allocation"];
    let good = set("", &both);
    assert_eq!(selected(&[structured.clone(), good.clone()]), Context::ALL);
    assert_eq!(selected(&[good.clone(), structured.clone()]), []);
    assert_eq!(selected(&[structured.clone(), set("b", &both)]), []);
    assert_eq!(selected(&[structured.clone(), set("a", &["base:", "base"])]), []);
    let bad = opt(option::SET_META_CONTEXT, b"\0\0\0\0\xff\xff\xff\xff");
    assert_eq!(selected(&[structured.clone(), good, bad]), []);
    let list = |names: &[&str]| {
        let list = opt(option::LIST_META_CONTEXT, &queries("a", names));
        let (out, _) = haggle(&[structured.clone(), list]).unwrap();
        let names =
            answers(&out).into_iter().filter(|(kind, _)| *kind == option_reply::META_CONTEXT);
        names.map(|(_, data)| String::from_utf8(data[4..].to_vec()).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(list(&[]), ["base:allocation", "forebay:present"]);
    assert_eq!(list(&["base:"]), ["base:allocation"]);
    assert_eq!(list(&["forebay:present"]), ["forebay:present"]);
    assert_eq!(list(&["qemu:"]), [""; 0]);
}

#[test]
fn requests_beyond_the_bounds_are_refused_by_the_errors_of_the_specification() {
    let terms = Terms { export: 0, framing: Framing::Structured, contexts: Selected::default() };
    let bounds = Bounds { size: 1 << 20, sector: 4096, read_only: false };
    let check = |command, flags, offset, len| {
        let request = Request { flags, command, cookie: 0, offset, len, payload: 0 };
        request.check(&terms, &bounds).map_err(|Refusal { errno, .. }| errno)
    };
    let end = 1 << 20;
    assert_eq!(check(command::READ, 0, end - 4096, 4096), Ok(Command::Read { whole: false }));
    assert_eq!(check(command::READ, 0, end, 4096), Err(Errno::Einval));
    assert_eq!(check(command::READ, 0, u64::MAX - 4095, 4096), Err(Errno::Einval));
    assert_eq!(check(command::WRITE, 0, end, 4096), Err(Errno::Enospc));
    assert_eq!(check(command::WRITE_ZEROES, 0, end, 4096), Err(Errno::Enospc));
    assert_eq!(check(command::TRIM, 0, end, 4096), Err(Errno::Einval));
    assert_eq!(check(command::READ, 0, 512, 4096), Err(Errno::Einval));
    assert_eq!(check(command::READ, 0, 0, 0), Err(Errno::Einval));
    assert_eq!(
        check(command::READ, command_flag::FUA, 0, 4096),
        Ok(Command::Read { whole: false })
    );
    assert_eq!(check(command::READ, command_flag::NO_HOLE, 0, 4096), Err(Errno::Einval));
    assert_eq!(check(command::READ, command_flag::PAYLOAD_LEN, 0, 4096), Err(Errno::Einval));
    assert_eq!(check(command::FLUSH, 0, 0, 4096), Err(Errno::Einval));
    assert_eq!(check(command::BLOCK_STATUS, 0, 0, 4096), Err(Errno::Einval));
    assert_eq!(check(8, 0, 0, 4096), Err(Errno::Einval));
}

proptest! {
    #[test]
    fn a_request_is_what_was_said(
        extended: bool, flags: u16, number: u16, cookie: u64, offset: u64, len: u32,
    ) {
        let framing = if extended { Framing::Extended } else { Framing::Structured };
        let bytes = client::request(framing, (number, flags), cookie, offset, len.into());
        for cut in 0..bytes.len() {
            prop_assert_eq!(Request::parse(&bytes[..cut], framing), Ok(None));
        }
        match Request::parse(&bytes, framing) {
            Ok(Some((used, request))) => {
                prop_assert_eq!(used, bytes.len());
                prop_assert_eq!((request.command, request.cookie), (number, cookie));
                prop_assert_eq!((request.offset, request.len), (offset, u64::from(len)));
            }
            Err(Violation::Payload(long)) => prop_assert_eq!(long, u64::from(len)),
            other => prop_assert!(false, "{other:?}"),
        }
    }

    /// However the bytes are cut, a handshake comes to the same answers and the same end.
    #[test]
    fn a_handshake_does_not_depend_on_cuts(
        messages in prop::collection::vec(message(), 0..6),
        cut in 1..40usize,
    ) {
        let input = [&[0, 0, 0, 3][..], &messages.concat()].concat();
        let run = |cut: usize| {
            let (mut handshake, mut out) = (Handshake::default(), Vec::new());
            let (mut held, mut end) = (Vec::new(), None);
            for part in input.chunks(cut) {
                held.extend(part);
                while end.is_none() {
                    match handshake.advance(&held, &cards(), &mut out) {
                        Ok((0, Step::More)) => break,
                        Ok((used, step)) => {
                            drop(held.drain(..used));
                            end = (step != Step::More).then_some(Ok(step));
                        }
                        Err(violation) => end = Some(Err(violation)),
                    }
                }
            }
            (out, end)
        };
        prop_assert_eq!(run(cut), run(usize::MAX));
    }
}

/// Options that are right, or nearly.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just("a"), Just(""), Just("none")];
    let query = prop_oneof![Just("base:"), Just("base:allocation"), Just("forebay:present")];
    let infos = prop::collection::vec(0..5u16, 0..4);
    prop_oneof![
        (6..8u32, name.clone(), infos)
            .prop_map(|(n, name, wanted)| client::option(n, &go(name, &wanted))),
        (9..11u32, name, prop::collection::vec(query, 0..3))
            .prop_map(|(n, name, all)| client::option(n, &queries(name, &all))),
        (0..13u32).prop_map(|n| client::option(n, &[])),
        (0..13u32, prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(n, data)| client::option(n, &data)),
        Just(client::option(3, &vec![0; MAX_OPTION + 1])),
        prop::collection::vec(any::<u8>(), 0..20),
    ]
}
