//! Who may do what, and what hostile requests get.

mod common;

use std::time::Duration;

use api::catalog::{Expect, GcRequest, MoveRef, NewRecord, TicketRequest};
use api::grid::{NewToken, Role};
use api::{ErrorBody, Problem};
use common::Grid;
use image::{Digest, Kind, Ref};
use placement::{Client, Limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn kind<T: std::fmt::Debug>(result: image::Result<T>) -> Option<Kind> {
    result.err().map(|e| e.kind())
}

#[tokio::test]
async fn roles_may_do_what_the_tables_say() {
    let grid = Grid::start().await;
    let image = grid.archive.add_image("a");
    let name: Ref = "debian:12".parse().unwrap();
    let to = MoveRef { image, expect: Expect::Anything, fence: None };
    let push = TicketRequest::Push { domain: 0, parent: None };
    let pull = TicketRequest::Pull { image: "debian:12".into() };
    let token = NewToken { role: Role::Node, lifetime_secs: 60, name: None };
    let no = Some(Kind::Denied);
    for (role, writes, rules) in
        [(Role::Server, no, no), (Role::Node, None, no), (Role::Admin, None, None)]
    {
        let client = grid.client(&grid.member(role, "m"));
        assert_eq!(kind(client.move_ref(&name, &to).await), writes, "{role:?}");
        assert_eq!(kind(client.record(&image, &NewRecord::default()).await), writes, "{role:?}");
        assert_eq!(kind(client.ticket(&push).await), writes, "{role:?}");
        grid.admin().move_ref(&name, &to).await.unwrap();
        assert_eq!(kind(client.ticket(&pull).await), None, "{role:?}");
        assert_eq!(kind(client.images().await), None, "{role:?}");
        assert_eq!(kind(client.image("debian:12").await), None, "{role:?}");
        assert_eq!(kind(client.verify("debian:12", &Default::default()).await), None, "{role:?}");
        assert_eq!(kind(client.caches().await), None, "{role:?}");
        assert_eq!(kind(client.openapi().await), None, "{role:?}");
        assert_eq!(kind(client.new_token(&token).await), rules, "{role:?}");
        assert_eq!(kind(client.verify_store(&Default::default()).await), rules, "{role:?}");
        assert_eq!(kind(client.members().await), rules, "{role:?}");
        assert_eq!(kind(client.remove_member("nobody").await), rules, "{role:?}");
        assert_eq!(kind(client.gc(&GcRequest::default()).await), rules, "{role:?}");
        assert_eq!(kind(client.delete_ref(&name).await), rules, "{role:?}");
    }
}

#[tokio::test]
async fn without_a_certificate_only_health_and_join_answer() {
    let grid = Grid::start().await;
    grid.archive.add_image("a");
    assert_eq!(grid.ask(None, "GET", "/v1/health", "").await.0, 200);
    assert_eq!(grid.ask(None, "POST", "/v1/join", "{}").await.0, 400);
    for (method, path) in [
        ("GET", "/v1/images"),
        ("HEAD", "/v1/images"),
        ("GET", "/v1/images/debian:12"),
        ("POST", "/v1/images/debian:12/record"),
        ("POST", "/v1/images/debian:12/verify"),
        ("PUT", "/v1/refs/debian:12"),
        ("DELETE", "/v1/refs/debian:12"),
        ("POST", "/v1/tickets"),
        ("POST", "/v1/tokens"),
        ("POST", "/v1/store/verify"),
        ("GET", "/v1/members"),
        ("DELETE", "/v1/members/n1"),
        ("POST", "/v1/gc"),
        ("GET", "/v1/caches"),
        ("GET", "/v1/openapi.json"),
    ] {
        let (status, body) = grid.ask(None, method, path, "{}").await;
        assert_eq!(status, 403, "{method} {path}");
        if method != "HEAD" {
            let error: ErrorBody = serde_json::from_str(&body).unwrap();
            assert!(error.message.contains("certificate is needed"), "{body}");
        }
    }
}

#[tokio::test]
async fn grids_do_not_trust_each_other() {
    let (grid, other) = (Grid::start().await, Grid::start().await);
    // Their client does not believe our server.
    let e = Client::new(&grid.address.to_string(), &other.admin_papers()).unwrap();
    let e = e.images().await.unwrap_err();
    assert_eq!(e.kind(), Kind::Denied, "{e}");
    assert!(e.message().contains("not the placement of this grid"), "{e}");
    // One that believes it shows their certificate: our server does not believe that.
    let papers = other.admin_papers();
    let (status, body) = match grid.connect(Some(&papers)).await {
        Ok(_) => grid.raw(Some(&papers), b"GET /v1/images HTTP/1.1\r\nhost: x\r\n\r\n").await,
        Err(_) => (0, String::new()),
    };
    assert_eq!((status, body.as_str()), (0, ""));
    // A client of ours, whose papers are good, learns that they are refused there.
    let mixed = placement::Papers { ca_pem: grid.authority.ca_pem().into(), ..papers };
    let e = grid.client(&mixed).images().await.unwrap_err();
    assert_eq!(e.kind(), Kind::Denied, "{e}");
    assert!(e.message().contains("refuses these papers"), "{e}");
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "keys of a test: any will do")]
async fn a_certificate_that_names_no_member_of_the_grid_is_refused() {
    // Our CA issued it, but for another grid, as after a mix-up of directories.
    let grid = Grid::start().await;
    let ca = std::fs::read_to_string(grid.dir.path().join("ca/ca.pem")).unwrap();
    let key = std::fs::read_to_string(grid.dir.path().join("ca/ca.key")).unwrap();
    let key = rcgen::KeyPair::from_pem(&key).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&ca, key).unwrap();
    let id = grid.authority.grid();
    let ours = format!("forebay://{id}/admin/a");
    for uris in [
        vec!["forebay://0123/admin/a".to_owned()],
        vec![format!("forebay://{id}/root/a")],
        vec![format!("forebay://{id}/admin/a/b")],
        vec![format!("https://{id}/admin/a")],
        vec![ours.clone(), format!("forebay://{id}/node/a")],
        vec![],
    ] {
        let mut params = rcgen::CertificateParams::default();
        let san = |uri: &String| rcgen::SanType::URI(uri.as_str().try_into().unwrap());
        params.subject_alt_names = uris.iter().map(san).collect();
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        let cert_pem = params.signed_by(&key, &issuer).unwrap().pem();
        let papers =
            placement::Papers { ca_pem: ca.clone(), cert_pem, key_pem: key.serialize_pem() };
        let (status, body) = grid.ask(Some(&papers), "GET", "/v1/images", "").await;
        assert_eq!(status, 403, "{uris:?}: {body}");
        assert!(body.contains("the certificate is refused"), "{uris:?}: {body}");
    }
}

#[tokio::test]
async fn hostile_names_are_refused_with_a_reason() {
    let grid = Grid::start().await;
    let admin = grid.admin_papers();
    let image = grid.archive.add_image("a");
    let body = format!(r#"{{"image":"{image}"}}"#);
    let long = "x".repeat(3000);
    let digest = image.to_string();
    for name in [
        "..%2F..%2Fetc:x",
        "%2e%2e",
        "a%2F..%2Fb:x",
        "%2Fetc%2Fpasswd",
        "a%20b",
        "a%00b",
        "a%0d%0ab",
        "d%C3%A9bian:12",
        "%F0%9F%92%A5",
        "%ff%fe",
        "a%252e",
        "a%2Fb%2Fc:d",
        "a:b:c",
        "-a",
        "%22",
        "$(reboot)",
        "a..b",
        &long,
        &digest,
        &digest[..12],
        &digest[..63],
    ] {
        for (method, path, body) in [
            ("PUT", format!("/v1/refs/{name}"), body.as_str()),
            ("DELETE", format!("/v1/refs/{name}"), ""),
            ("POST", format!("/v1/images/{name}/record"), "{}"),
            ("POST", format!("/v1/images/{name}/verify"), "{}"),
            ("GET", format!("/v1/images/{name}"), ""),
        ] {
            // A whole digest is a good name of an image.
            if name == digest && path.contains("images") {
                continue;
            }
            let (status, answer) = grid.ask(Some(&admin), method, &path, body).await;
            assert_eq!(status, 400, "{method} {path}: {answer}");
            let error: ErrorBody = serde_json::from_str(&answer).unwrap();
            assert_eq!(error.kind, "invalid", "{answer}");
            let problem: Problem = serde_json::from_str(&answer).unwrap();
            assert_eq!((problem.status, problem.detail), (400, error.message.clone()));
            assert!(error.message.len() < 1500, "{}", error.message.len());
        }
    }
    assert!(grid.archive.shelf().log.is_empty());
    // Routes that do not exist, and heads longer than the limit.
    for path in ["/", "/v1/refs/", "/v1/refs/a/b", "/v2/images", "/v1/images/../gc", "//v1/health"]
    {
        let (status, answer) = grid.ask(Some(&admin), "GET", path, "").await;
        assert_eq!(status, 404, "{path}: {answer}");
    }
    assert_eq!(grid.ask(Some(&admin), "PATCH", "/v1/gc", "{}").await.0, 405);
    let path = format!("/v1/images/{}", "x".repeat(40_000));
    let (status, _) = grid.ask(Some(&admin), "GET", &path, "").await;
    assert!([0, 414, 431].contains(&status), "{status}");
    grid.admin().health().await.unwrap();
}

#[tokio::test]
async fn bodies_are_json_and_not_too_long() {
    let grid = Grid::start().await;
    let admin = grid.admin_papers();
    let image = grid.archive.add_image("a");
    let path = format!("/v1/images/{image}/record");
    let nested = format!(r#"{{"labels":{}"#, "[".repeat(60_000));
    for body in ["", "{", "null", "[]", "rubbish", r#"{"cpus":-1}"#, &nested] {
        let (status, answer) = grid.ask(Some(&admin), "POST", &path, body).await;
        assert_eq!(status, 400, "{answer}");
    }
    let not_utf8 = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: 10\r\n\r\n"
    );
    let not_utf8 = [not_utf8.as_bytes(), b"{\"os\":\"\xff\"}"].concat();
    assert_eq!(grid.raw(Some(&admin), &not_utf8).await.0, 400);
    let fits = format!(r#"{{"os":"{}"}}"#, "x".repeat(30_000));
    assert_eq!(grid.ask(Some(&admin), "POST", &path, &fits).await.0, 200);
    let too_long_to_sign = format!(r#"{{"os":"{}"}}"#, "x".repeat(60_000));
    let (status, answer) = grid.ask(Some(&admin), "POST", &path, &too_long_to_sign).await;
    assert!(status == 400 && answer.contains("when signed"), "{status} {answer}");
    // A server that hangs up before it has read everything may be heard or not.
    let refused = |(status, answer): (u16, String)| {
        let said = status == 400 && answer.contains("at most 65536");
        assert!(status == 0 || said, "{status} {answer}");
    };
    let too_long = format!(r#"{{"os":"{}"}}"#, "x".repeat(70_000));
    refused(grid.ask(Some(&admin), "POST", &path, &too_long).await);
    // It is not read before it is refused, however long it says it is.
    let endless = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: 1000000000000\r\n\r\n{{"
    );
    let (status, answer) = grid.raw(Some(&admin), endless.as_bytes()).await;
    assert!(status == 400 && answer.contains("at most 65536"), "{status} {answer}");
    let chunks = "10000\r\n".to_owned() + &"x".repeat(0x10000) + "\r\n";
    let chunked = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n{chunks}{chunks}0\r\n\r\n"
    );
    refused(grid.raw(Some(&admin), chunked.as_bytes()).await);
    assert_eq!(grid.archive.shelf().records[&image].len(), 1, "only what fitted was kept");
    // What another site could make a browser send.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp"] {
        let request = format!(
            "POST /v1/gc HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {kind}\r\n\
             content-length: 2\r\n\r\n{{}}"
        );
        let (status, answer) = grid.raw(Some(&admin), request.as_bytes()).await;
        assert!(status == 400 && answer.contains("application/json"), "{kind}: {answer}");
    }
    assert!(grid.archive.shelf().gc_roots.is_empty());
}

#[tokio::test]
async fn what_a_query_asks_is_known_or_refused() {
    let grid = Grid::start().await;
    let admin = grid.admin_papers();
    let (a, b) = (grid.archive.add_image("a"), grid.archive.add_image("b"));
    let to = MoveRef { image: a, expect: Expect::Absent, fence: None };
    grid.admin().move_ref(&"x:1".parse().unwrap(), &to).await.unwrap();
    for (method, path, expected) in [
        ("GET", "/v1/images?ancestor=true".to_owned(), 400),
        ("GET", "/v1/images?ancestors=perhaps".to_owned(), 400),
        ("GET", "/v1/images?ancestors=false".to_owned(), 200),
        // Not understood, it must not count as if nothing were expected.
        ("DELETE", format!("/v1/refs/x:1?expected={b}"), 400),
        ("DELETE", "/v1/refs/x:1?expect=x".to_owned(), 400),
        ("DELETE", "/v1/refs/x:1?expect".to_owned(), 400),
        ("DELETE", format!("/v1/refs/x:1?expect={b}"), 409),
        ("DELETE", format!("/v1/refs/x:1?expect={a}&expect={b}"), 400),
        ("DELETE", format!("/v1/refs/x:1?expect={a}"), 200),
    ] {
        let (status, answer) = grid.ask(Some(&admin), method, &path, "").await;
        assert_eq!(status, expected, "{method} {path}: {answer}");
    }
}

#[tokio::test]
async fn who_says_nothing_is_hung_up_on() {
    let read = Duration::from_secs(1);
    let grid = Grid::start_with(Limits { read, ..Limits::default() }).await;
    let admin = grid.admin_papers();
    let no_tls = async {
        let mut silent = tokio::net::TcpStream::connect(grid.address).await.unwrap();
        silent.read(&mut [0; 16]).await.unwrap_or(0)
    };
    let half_body = b"POST /v1/gc HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                      content-length: 10\r\n\r\n{";
    let all = futures::future::join4(
        no_tls,
        grid.raw(Some(&admin), b""),
        grid.raw(Some(&admin), b"GET /v1/images HTTP/1.1\r\nhost"),
        grid.raw(Some(&admin), half_body),
    );
    // Else one would wait for ever.
    let all = tokio::time::timeout(Duration::from_secs(60), all).await;
    let (no_tls, no_request, half_head, half_body) = all.expect("all were hung up on");
    assert_eq!((no_tls, no_request.0), (0, 0));
    assert!([0, 408].contains(&half_head.0), "{half_head:?}");
    assert!(half_body.0 == 400 && half_body.1.contains("in time"), "{half_body:?}");
}

#[tokio::test]
async fn further_connections_wait_their_turn() {
    let grid = Grid::start_with(Limits { connections: 2, ..Limits::default() }).await;
    let (first, second) = (grid.connect(None).await.unwrap(), grid.connect(None).await.unwrap());
    let mut third = Box::pin(grid.connect(None));
    // Passes whatever the machine's speed: with the limit, it never connects.
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut third).await.is_err());
    drop(first);
    let mut third = third.await.unwrap();
    third.write_all(b"GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(third.read(&mut [0; 16]).await.unwrap() > 0);
    drop(second);
}

#[tokio::test]
async fn who_asks_and_takes_no_answer_is_hung_up_on_and_others_are_served_meanwhile() {
    let write = Duration::from_millis(500);
    let grid = Grid::start_with(Limits { write, ..Limits::default() }).await;
    let admin = grid.admin();
    // The less the system takes in its stead, the sooner it has had enough.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let greedy = socket.connect(grid.address).await.unwrap();
    let papers = grid.admin_papers();
    let mut greedy = common::tls(greedy, grid.authority.ca_pem(), Some(&papers)).await.unwrap();
    let requests = b"GET /v1/openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
    let greedy = async { while greedy.write_all(&requests).await.is_ok() {} };
    let (greedy, served) = tokio::join!(
        // Else it would wait for ever.
        tokio::time::timeout(Duration::from_secs(60), greedy),
        admin.health(),
    );
    greedy.expect("it was hung up on");
    served.unwrap();
}

#[tokio::test]
async fn one_machine_does_not_take_the_places_of_all() {
    let read = Duration::from_secs(3600);
    let limits = Limits { connections: 3, per_machine: 2, read, ..Limits::default() };
    let grid = Grid::start_with(limits).await;
    let taken = (grid.connect(None).await.unwrap(), grid.connect(None).await.unwrap());
    let mut third = tokio::net::TcpStream::connect(grid.address).await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(60), third.read(&mut [0; 1])).await;
    assert_eq!(closed.expect("it is closed at once").unwrap_or(0), 0);
    let other = tokio::net::TcpSocket::new_v4().unwrap();
    other.bind(([127, 0, 0, 2], 0).into()).unwrap();
    let other = other.connect(grid.address).await.unwrap();
    common::tls(other, grid.authority.ca_pem(), None).await.unwrap();
    // A place that was left is there again, once that was noticed.
    drop(taken);
    while grid.connect(None).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_running_request_ends_before_placement_does() {
    let mut grid = Grid::start().await;
    let (admin, gate) = (grid.admin(), grid.archive.hold("gc"));
    let running = tokio::spawn(async move { admin.gc(&GcRequest::default()).await });
    gate.entered(1).await;
    let idle = grid.connect(None).await.unwrap();
    let address = grid.address;
    let release = tokio::spawn(async move {
        // Once placement shuts down, it accepts no more.
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        // Long enough to be cut off, were requests not given their time; short of that time.
        tokio::time::sleep(Duration::from_millis(200)).await;
        gate.open(1);
    });
    grid.stop().await.unwrap();
    release.await.unwrap();
    assert_eq!(running.await.unwrap().unwrap().images, 0);
    drop(idle);
    let e = grid.admin().health().await.unwrap_err();
    assert_eq!(e.kind(), Kind::Retry, "{e}");
    let address = grid.address.to_string();
    assert!(e.message().contains(&address) && e.message().contains("forebay up"), "{e}");
}

#[tokio::test]
async fn only_so_many_verifications_run_at_once() {
    let grid = Grid::start().await;
    let image = grid.archive.add_image("a").to_string();
    let gate = grid.archive.hold("verify");
    let admin = grid.admin();
    let verify = || {
        let (admin, image) = (admin.clone(), image.clone());
        tokio::spawn(async move { admin.verify(&image, &Default::default()).await })
    };
    let running = [verify(), verify()];
    gate.entered(2).await;
    let e = tokio::select! {
        refused = verify() => refused.unwrap().unwrap_err(),
        () = gate.entered(1) => panic!("a third one runs"),
    };
    assert!(matches!(e.kind(), Kind::Busy(after) if !after.is_zero()), "{e}");
    gate.open(2);
    for task in running {
        task.await.unwrap().unwrap();
    }
    gate.open(1);
    verify().await.unwrap().unwrap();
}

#[tokio::test]
async fn addresses_that_are_none_are_refused() {
    let grid = Grid::start().await;
    let papers = grid.admin_papers();
    for bad in
        ["", "host", ":1", "host:", "host:x", "host:0", "http://h:1", "h:1/x", "u@h:1", "a b:1"]
    {
        assert_eq!(Client::new(bad, &papers).unwrap_err().kind(), Kind::Invalid, "{bad}");
    }
    let url = format!("https://{}/", grid.address);
    Client::new(&url, &papers).unwrap().health().await.unwrap();
    assert_eq!(Digest::of_chunk(b"x").short().len(), 12, "what is shown is what is refused");
}
