use super::*;
use api::ticket::{GRACE_SECS, LIFETIME_SECS, SKEW_SECS, holder_of};
use image::signing::SigningKey;

const NOW: u64 = 1_800_000_000;

struct Ends {
    key: SigningKey,
    client: ClientControl,
    server: ServerControl,
}

fn me() -> Digest {
    holder_of(b"my certificate")
}

fn an_image() -> Digest {
    Digest::of_chunk(b"image")
}

fn limits() -> Limits {
    Limits { requests: 9, ..Limits::default() }
}

fn server(key: &SigningKey) -> ServerControl {
    ServerControl::new(Peer { key: key.verifying_key(), holder: me() }, limits())
}

impl Ends {
    #[expect(clippy::disallowed_methods, reason = "keys of a test: any will do")]
    fn new() -> Self {
        let key = SigningKey::generate().unwrap();
        let server = server(&key);
        Self { key, client: ClientControl::new(Limits::default()), server }
    }

    /// Carries bytes to and fro until both are silent; what each learned.
    fn carry(&mut self, now: u64) -> (Vec<ClientEvent>, Vec<ServerEvent>) {
        loop {
            let (there, back) = (self.client.poll_transmit(), self.server.poll_transmit());
            if there.is_none() && back.is_none() {
                break;
            }
            if let Some(bytes) = there {
                self.server.receive(bytes, now).unwrap();
            }
            if let Some(bytes) = back {
                self.client.receive(bytes).unwrap();
            }
        }
        let client = std::iter::from_fn(|| self.client.poll_event()).collect();
        (client, std::iter::from_fn(|| self.server.poll_event()).collect())
    }

    fn token(&self, holder: Digest, now: u64) -> String {
        Ticket::new(Grant::Pull { image: an_image() }, holder, now).sign(&self.key)
    }
}

/// What a server says to these bytes: its error, and the ERROR that it sends.
#[expect(clippy::disallowed_methods, reason = "keys of a test: any will do")]
fn refused(bytes: Bytes) -> Error {
    let mut server = server(&SigningKey::generate().unwrap());
    let e = server.receive(bytes, NOW).unwrap_err();
    let mut sent = server.poll_transmit().unwrap();
    let mut last = None;
    while !sent.is_empty() {
        let (message, used) = crate::messages::decode(&sent).unwrap();
        sent = sent.slice(used..);
        last = Some(message);
    }
    match last.unwrap() {
        Message::Error(said) => assert_eq!((said.kind(), said.message()), (e.kind(), e.message())),
        other => panic!("{other:?}"),
    }
    assert!(server.receive(Bytes::new(), NOW).is_err(), "it stays refused");
    assert!(server.may_pull(&an_image(), NOW).is_err());
    e
}

#[test]
fn hello_ticket_and_a_right_in_one_round_trip() {
    let mut ends = Ends::new();
    let token = ends.token(me(), NOW);
    ends.client.ticket(&token).unwrap();
    let e = ends.server.may_pull(&an_image(), NOW).unwrap_err();
    assert_eq!((e.kind(), e.message()), (Kind::Invalid, "a request before HELLO"));
    let (client, server) = ends.carry(NOW);
    assert!(matches!(
        &client[..],
        [ClientEvent::Welcome { version: 1, limits: l }, ClientEvent::Granted(g)]
            if *l == limits() && g.expires == NOW + LIFETIME_SECS && u64::from(g.grace) == GRACE_SECS
    ));
    assert!(matches!(&server[..], [ServerEvent::Hello { .. }, ServerEvent::Granted(_)]));
    ends.server.may_pull(&an_image(), NOW).unwrap();
    let other = ends.server.may_pull(&Digest::of_chunk(b"other"), NOW).unwrap_err();
    assert_eq!(other.kind(), Kind::Denied);
}

#[test]
fn a_session_outlives_its_ticket_by_the_grace_and_a_renewal_extends_it() {
    let mut ends = Ends::new();
    ends.client.ticket(&ends.token(me(), NOW)).unwrap();
    ends.carry(NOW);
    let end = NOW + LIFETIME_SECS + GRACE_SECS;
    ends.server.may_pull(&an_image(), end).unwrap();
    assert_eq!(ends.server.may_pull(&an_image(), end + 1).unwrap_err().kind(), Kind::Denied);
    ends.client.ticket(&ends.token(me(), end)).unwrap();
    ends.carry(end);
    ends.server.may_pull(&an_image(), end + 1).unwrap();
}

#[test]
fn tickets_that_are_not_good_are_refused_and_the_connection_lives() {
    let mut ends = Ends::new();
    let good = ends.token(me(), NOW);
    let late = NOW - LIFETIME_SECS - SKEW_SECS - 1;
    let bad = [
        ends.token(holder_of(b"a thief's certificate"), NOW),
        ends.token(me(), late),
        Ends::new().token(me(), NOW),
        good[..good.len() - 2].to_owned(),
        String::new(),
    ];
    for token in &bad {
        ends.client.ticket(token).unwrap();
    }
    let (client, server) = ends.carry(NOW);
    let denied = |e: &Error| e.kind() == Kind::Denied;
    let refusals = client.iter().filter(|e| matches!(e, ClientEvent::Refused(e) if denied(e)));
    assert_eq!(refusals.count(), bad.len());
    assert!(!server.iter().any(|e| matches!(e, ServerEvent::Granted(_))));
    assert!(ends.server.may_pull(&an_image(), NOW).is_err());
    ends.client.ticket(&good).unwrap();
    ends.carry(NOW);
    ends.server.may_pull(&an_image(), NOW).unwrap();
}

#[test]
fn who_tries_tickets_without_end_is_cut_off() {
    let mut ends = Ends::new();
    for _ in 0..=MAX_REFUSED {
        ends.client.ticket("guess").unwrap();
    }
    let bytes = ends.client.poll_transmit().unwrap();
    assert_eq!(ends.server.receive(bytes, NOW).unwrap_err().kind(), Kind::Denied);
}

#[test]
fn versions_meet_at_the_greatest_common_one() {
    assert_eq!(negotiate((1, 1), (1, 1)).unwrap(), 1);
    // N talks with N−1 both ways.
    for n in 2..9 {
        assert_eq!(negotiate((n - 1, n), (n - 2, n - 1)).unwrap(), n - 1);
        assert_eq!(negotiate((n - 2, n - 1), (n - 1, n)).unwrap(), n - 1);
    }
    for (ours, theirs) in [((1, 2), (3, 4)), ((3, 4), (1, 2))] {
        let e = negotiate(ours, theirs).unwrap_err();
        assert_eq!(e.kind(), Kind::Unsupported);
        assert!(e.message().contains("3 to 4") && e.message().contains("1 to 2"), "{e}");
    }
}

#[test]
fn a_newer_client_is_met_and_one_from_the_future_told_why_not() {
    let hello = |min, max| ClientControl::hello(min, max, 0, Limits::default());
    let mut ends = Ends { client: hello(1, 2), ..Ends::new() };
    let (client, _) = ends.carry(NOW);
    assert!(matches!(client[..], [ClientEvent::Welcome { version: 1, .. }]));
    let e = refused(hello(2, 3).poll_transmit().unwrap());
    assert_eq!(e.kind(), Kind::Unsupported);
}

#[test]
fn optional_features_are_ignored_and_required_ones_refused_by_name() {
    let hello = |features| ClientControl::hello(1, 1, features, Limits::default());
    let mut ends = Ends { client: hello(0xffff_ffff), ..Ends::new() };
    ends.carry(NOW);
    let e = refused(hello(1 << 32 | 1 << 40).poll_transmit().unwrap());
    assert_eq!(e.kind(), Kind::Unsupported);
    assert!(e.message().contains("trust domains other than 0, feature bit 40"), "{e}");
}

#[test]
fn what_is_not_the_protocol_is_refused() {
    let hello = ClientControl::new(Limits::default()).poll_transmit().unwrap();
    let twice = [&hello[..], &hello].concat();
    assert_eq!(refused(Message::Ticket("early".into()).encode()).kind(), Kind::Invalid);
    assert_eq!(refused(twice.into()).kind(), Kind::Invalid);
    assert_eq!(
        refused([&hello[..], &Message::GoAway.encode()].concat().into()).kind(),
        Kind::Invalid
    );
    assert_eq!(refused(Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n")).kind(), Kind::Unsupported);
}

#[test]
fn a_client_takes_only_answers_to_what_it_said() {
    let mut hello = ClientControl::new(Limits::default());
    let welcome = Message::Welcome { version: 1, features: 0, limits: Limits::default() }.encode();
    let grant = Grant::Pull { image: an_image() };
    let granted = Message::Granted(Granted { grant, expires: 1, grace: 1 }).encode();
    assert!(ClientControl::new(Limits::default()).receive(granted.clone()).is_err(), "no WELCOME");
    hello.receive(welcome.clone()).unwrap();
    assert!(hello.receive(granted).is_err(), "no ticket was shown");
    let mut other = ClientControl::new(Limits::default());
    let newer = Message::Welcome { version: 2, features: 0, limits: Limits::default() };
    assert_eq!(other.receive(newer.encode()).unwrap_err().kind(), Kind::Unsupported);
    let mut third = ClientControl::new(Limits::default());
    third.receive([&welcome[..], &Message::GoAway.encode()].concat().into()).unwrap();
    assert!(third.receive(Message::GoAway.encode()).is_err(), "gone twice");
}

#[test]
fn after_going_away_requests_are_sent_elsewhere() {
    let mut ends = Ends::new();
    ends.client.ticket(&ends.token(me(), NOW)).unwrap();
    ends.carry(NOW);
    ends.server.go_away();
    ends.server.go_away();
    let (client, _) = ends.carry(NOW);
    assert!(matches!(client[..], [ClientEvent::GoAway]), "said once");
    assert_eq!(ends.server.may_pull(&an_image(), NOW).unwrap_err().kind(), Kind::Retry);
    // Before the HELLO it is said after the WELCOME.
    let mut late = Ends::new();
    late.server.go_away();
    let (client, _) = late.carry(NOW);
    assert!(matches!(client[..], [ClientEvent::Welcome { .. }, ClientEvent::GoAway]));
}

#[test]
fn a_ticket_too_long_to_send_is_refused_at_home() {
    let mut client = ClientControl::new(Limits::default());
    assert_eq!(client.ticket(&"x".repeat(MAX_TICKET + 1)).unwrap_err().kind(), Kind::Invalid);
    client.ticket(&"x".repeat(MAX_TICKET)).unwrap();
}
