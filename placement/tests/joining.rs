//! Joining a grid: tokens, names, certificates.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use api::catalog::TicketRequest;
use api::grid::{JoinRequest, NewToken, Role};
use common::Grid;
use image::{Digest, Kind};
use placement::{Client, Clock, JoinCode, MAX_LIFETIME_SECS, Papers};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use tokio::net::{TcpListener, TcpStream};

fn denied<T: std::fmt::Debug>(result: image::Result<T>, why: &str) {
    let e = result.unwrap_err();
    assert_eq!(e.kind(), Kind::Denied, "{e}");
    assert!(e.message().contains(why), "`{e}` does not say `{why}`");
}

#[tokio::test]
async fn a_token_is_good_once() {
    let mut grid = Grid::start().await;
    let token = grid.token(Role::Node, None).await;
    let papers = Client::join(&token, "n1").await.unwrap();
    let member = papers.member().unwrap();
    assert_eq!((member.role, member.name.as_str()), (Role::Node, "n1"));
    assert_eq!(member.grid, grid.authority.grid());
    assert_eq!(papers.ca_digest().unwrap(), grid.authority.ca_digest());
    grid.client(&papers).images().await.unwrap();

    denied(Client::join(&token, "n2").await, "used already");
    grid.restart().await;
    let token = token.replace(&port_of(&token), &grid.address.port().to_string());
    denied(Client::join(&token, "n2").await, "used already");
    grid.client(&papers).images().await.unwrap();
}

fn port_of(token: &str) -> String {
    token.split(['/', ':']).nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn of_two_who_use_a_token_at_once_one_joins() {
    let grid = Grid::start().await;
    for round in 0..5 {
        let token = grid.token(Role::Node, None).await;
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        let (a, b) = tokio::join!(Client::join(&token, &a), Client::join(&token, &b));
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
    }
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let grid = Grid::start().await;
    let token = grid.token(Role::Node, None).await;
    grid.ahead.store(59, Ordering::Relaxed);
    let other = grid.token(Role::Node, None).await;
    grid.ahead.store(61, Ordering::Relaxed);
    denied(Client::join(&token, "n1").await, "expired");
    Client::join(&other, "n1").await.unwrap();
    for lifetime_secs in [0, MAX_LIFETIME_SECS + 1, u64::MAX] {
        let asked = NewToken { role: Role::Node, lifetime_secs, name: None };
        assert_eq!(grid.admin().new_token(&asked).await.unwrap_err().kind(), Kind::Invalid);
    }
}

#[tokio::test]
async fn an_altered_token_is_refused() {
    let grid = Grid::start().await;
    let token = grid.token(Role::Node, None).await;
    let code: JoinCode = token.parse().unwrap();
    assert_eq!(code.to_string(), token);
    assert!(!format!("{code:?}").contains(&code.secret));

    let secret = Digest::of_chunk(b"guess").to_string();
    let guessed = JoinCode { secret, ..code.clone() };
    denied(Client::join(&guessed.to_string(), "n1").await, "not known");
    let ca = Digest::of_chunk(b"another CA");
    let misled = JoinCode { ca, ..code.clone() };
    denied(Client::join(&misled.to_string(), "n1").await, "not of the token's grid");
    for text in ["", "x", "a/b/c", &token[..token.len() - 1], &format!("{token}0"), &token[10..]] {
        let e = Client::join(text, "n1").await.unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid, "{text}: {e}");
        assert!(!e.message().contains(&code.secret[1..]), "a secret is not shown: {e}");
    }
    // None of this used it up.
    Client::join(&format!(" {token}\n"), "n1").await.unwrap();
}

#[tokio::test]
async fn a_false_server_does_not_see_the_secret() {
    // It has a certificate of the right name, under a CA of its own, and shows our CA's too.
    let (grid, other) = (Grid::start().await, Grid::start().await);
    let token: JoinCode = grid.token(Role::Node, None).await.parse().unwrap();
    let papers = other.dir.path().join("server");
    let papers = Papers::load(&papers).unwrap();
    let chain = vec![papers.certificate().unwrap(), grid.admin_papers().ca().unwrap()];
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, papers.key().unwrap())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        acceptor.accept(stream).await.map(drop)
    });
    let misled = JoinCode { address, ..token };
    denied(Client::join(&misled.to_string(), "n1").await, "not the placement of this grid");
    assert!(server.await.unwrap().is_err(), "the handshake was refused");
}

#[tokio::test]
async fn names_belong_to_who_has_them() {
    let grid = Grid::start().await;
    let join = |role, only: Option<&'static str>, name: &'static str| {
        let grid = &grid;
        async move { Client::join(&grid.token(role, only).await, name).await }
    };
    join(Role::Server, None, "cache-1").await.unwrap();
    denied(join(Role::Server, None, "cache-1").await, "a member (server) has it");
    denied(join(Role::Node, None, "cache-1").await, "a member (server) has it");
    denied(join(Role::Server, Some("cache-2"), "cache-1").await, "the token is for `cache-2`");
    // A machine that was installed anew.
    join(Role::Server, Some("cache-1"), "cache-1").await.unwrap();
    // Placement's own names.
    denied(join(Role::Server, None, "placement").await, "placement's own");
    denied(join(Role::Server, None, "one").await, "a member (server) has it");
    denied(join(Role::Node, None, "admin").await, "a member (admin) has it");
    let asked = NewToken { role: Role::Server, lifetime_secs: 60, name: Some("placement".into()) };
    denied(grid.admin().new_token(&asked).await, "placement's own");
    for bad in ["", "UPPER", "a b", "../x", "a/b", "é", "*", "a..b"] {
        assert_eq!(join(Role::Node, None, bad).await.unwrap_err().kind(), Kind::Invalid, "{bad}");
    }
    // A name whose holder's certificate has expired is free.
    grid.ahead.store(366 * 24 * 3600, Ordering::Relaxed);
    let admin = grid.authority.issue(Role::Admin, "later", grid.clock().now()).unwrap();
    let asked = NewToken { role: Role::Node, lifetime_secs: 60, name: None };
    let (status, answer) =
        grid.ask(Some(&admin), "POST", "/v1/tokens", &serde_json::to_string(&asked).unwrap()).await;
    assert_eq!(status, 200, "{answer}");
    let answer: api::grid::JoinToken = serde_json::from_str(&answer).unwrap();
    let code: JoinCode = answer.token.parse().unwrap();
    let request = csr(CertificateParams::default()).0;
    let join = JoinRequest { secret: code.secret, name: "cache-1".into(), request };
    let body = serde_json::to_string(&join).unwrap();
    assert_eq!(grid.ask(None, "POST", "/v1/join", &body).await.0, 200);
}

#[expect(clippy::disallowed_methods, reason = "keys of a test: any will do")]
fn csr(params: CertificateParams) -> (String, KeyPair) {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    (params.serialize_request(&key).unwrap().pem().unwrap(), key)
}

#[tokio::test]
async fn a_request_says_nothing_but_its_key() {
    let grid = Grid::start().await;
    let mut params = CertificateParams::new(vec!["placement.forebay.internal".into()]).unwrap();
    let uri = format!("forebay://{}/admin/admin", grid.authority.grid());
    params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().unwrap()));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let (request, key) = csr(params);
    let signed = grid.authority.sign_request(&request, Role::Node, "n1", Clock::system().now());
    let (ca_pem, key_pem) = (grid.authority.ca_pem().to_owned(), key.serialize_pem());
    let papers = Papers { ca_pem, cert_pem: signed.unwrap(), key_pem };
    let member = papers.member().unwrap();
    assert_eq!((member.role, member.name.as_str()), (Role::Node, "n1"));
    let e = grid.client(&papers).gc(&Default::default()).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Denied, "{e}");
    assert!(serves(&grid, &papers).await.is_err());
}

#[tokio::test]
async fn a_request_whose_signature_is_not_good_costs_no_token() {
    let grid = Grid::start().await;
    let token: JoinCode = grid.token(Role::Node, None).await.parse().unwrap();
    let good = csr(CertificateParams::default()).0;
    // The request of one key with the signature of another.
    let other = csr(CertificateParams::default()).0;
    let (a, b) = (der(&good), der(&other));
    let forged = [&a[..a.len() - 60], &b[b.len() - 60..]].concat();
    let forged = pem(&forged);
    let huge = format!("{good}{}", " ".repeat(20 << 10));
    for bad in ["", "rubbish", &good[..good.len() / 2], &forged, &huge] {
        let join = JoinRequest {
            secret: token.secret.clone(),
            name: "n1".into(),
            request: bad.to_owned(),
        };
        let body = serde_json::to_string(&join).unwrap();
        let (status, answer) = grid.ask(None, "POST", "/v1/join", &body).await;
        assert_eq!(status, 400, "{answer}");
    }
    Client::join(&token.to_string(), "n1").await.unwrap();
}

fn der(pem: &str) -> Vec<u8> {
    use rustls::pki_types::CertificateSigningRequestDer;
    use rustls::pki_types::pem::PemObject;
    CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

fn pem(der: &[u8]) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in der.chunks(3) {
        let bits =
            three.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - three.len()));
        for i in 0..4 {
            let sextet = (bits >> (18 - 6 * i)) & 63;
            text.push(if i <= three.len() { ALPHABET[sextet as usize].into() } else { '=' });
        }
    }
    let lines: Vec<_> =
        text.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).unwrap()).collect();
    format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        lines.join("\n")
    )
}

/// Whether a client believes that these papers are placement's, or a server's.
async fn serves(grid: &Grid, papers: &Papers) -> std::io::Result<()> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(papers.chain().unwrap(), papers.key().unwrap())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let _ = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await;
    });
    let config = placement::tls::client(&grid.admin_papers(), &[], &Clock::system()).unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = papers.member().unwrap().name;
    let name = rustls::pki_types::ServerName::try_from(format!("{name}.forebay.internal")).unwrap();
    let connected = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    server.await.unwrap();
    connected.map(drop)
}

#[tokio::test]
async fn only_servers_can_serve() {
    let grid = Grid::start().await;
    serves(&grid, &grid.member(Role::Server, "cache-1")).await.unwrap();
    for role in [Role::Node, Role::Admin] {
        let e = serves(&grid, &grid.member(role, "n1")).await.unwrap_err();
        assert!(e.to_string().contains("ertificate"), "{e}");
    }
    // Both of what keeps them from it: no name to serve under, and not the usage.
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    for role in [Role::Node, Role::Admin, Role::Server] {
        let der = grid.member(role, "n1").certificate().unwrap();
        let certificate = X509Certificate::from_der(&der).unwrap().1;
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        let names = &certificate.subject_alternative_name().unwrap().unwrap().value.general_names;
        let named = names.iter().any(|n| !matches!(n, GeneralName::URI(_)));
        assert_eq!((usage.server_auth, named), (role == Role::Server, role == Role::Server));
        assert!(usage.client_auth && !usage.any && !certificate.is_ca());
    }
    let own = Papers::load(&grid.dir.path().join("server")).unwrap();
    assert_eq!(own.member().unwrap().role, Role::Server);
    serves(&grid, &own).await.unwrap();
}

#[tokio::test]
async fn papers_are_stored_whole_and_never_overwritten() {
    let grid = Grid::start().await;
    let (one, two) = (grid.member(Role::Node, "n1"), grid.member(Role::Node, "n2"));
    let dir = grid.dir.path().join("deep/er/n1");
    // Made for us beforehand, with a mode that is too wide.
    std::fs::create_dir_all(&dir).unwrap();
    one.store(&dir).unwrap();
    assert_eq!(Papers::load(&dir).unwrap(), one);
    assert_eq!((common::mode(&dir), common::mode(&dir.join("key.pem"))), (0o700, 0o600));
    assert_eq!(two.store(&dir).unwrap_err().kind(), Kind::Conflict);
    assert_eq!(Papers::load(&dir).unwrap(), one);
    let key: String = one.key_pem.lines().nth(1).unwrap().into();
    assert!(!format!("{one:?}").contains(&key));

    std::fs::write(dir.join("key.pem"), &two.key_pem).unwrap();
    let e = Papers::load(&dir).unwrap_err();
    assert_eq!(e.kind(), Kind::Corrupt, "{e}");
    let e = Papers::load(&grid.dir.path().join("nowhere")).unwrap_err();
    assert_eq!(e.kind(), Kind::Gone, "{e}");
    assert!(e.message().contains("join the grid"), "{e}");
}

#[tokio::test]
async fn a_removed_member_is_refused_until_the_name_is_taken_anew() {
    let mut grid = Grid::start().await;
    let names = |list: api::grid::MemberList| -> Vec<String> {
        list.members.into_iter().map(|m| m.name).collect()
    };
    grid.archive.add_image("a");
    let image = grid.archive.add_image("a").to_string();
    let asked = TicketRequest::Pull { image };
    let join = async |grid: &Grid| {
        let token = grid.token(Role::Node, Some("n1")).await;
        Client::join(&token, "n1").await.unwrap()
    };
    // Two certificates of one name: the machine was installed anew.
    let earlier = [join(&grid).await, join(&grid).await];
    let other = Client::join(&grid.token(Role::Node, None).await, "n2").await.unwrap();
    let own = names(grid.admin().members().await.unwrap());
    assert!(own.contains(&"n1".to_owned()) && own.contains(&"n2".to_owned()), "{own:?}");
    for papers in &earlier {
        grid.client(papers).ticket(&asked).await.unwrap();
    }
    let was = grid.admin().remove_member("n1").await.unwrap();
    assert_eq!((was.name.as_str(), was.role), ("n1", Some(Role::Node)));
    assert!(!names(grid.admin().members().await.unwrap()).contains(&"n1".to_owned()));
    // Also after a restart.
    for restarted in [false, true] {
        if restarted {
            grid.restart().await;
        }
        for papers in &earlier {
            denied(grid.client(papers).ticket(&asked).await, "was removed");
            denied(grid.client(papers).images().await, "was removed");
        }
        grid.client(&other).ticket(&asked).await.unwrap();
    }
    // The name is free, and who takes it is heard; who had it is not.
    let token = grid.token(Role::Node, None).await;
    let anew = Client::join(&token, "n1").await.unwrap();
    grid.client(&anew).ticket(&asked).await.unwrap();
    denied(grid.client(&earlier[1]).ticket(&asked).await, "was removed");
    grid.admin().remove_member("n1").await.unwrap();
    denied(grid.client(&anew).ticket(&asked).await, "was removed");

    // Tokens that a removed admin made are good for nobody, nor those that were made for it.
    let boss = Client::join(&grid.token(Role::Admin, None).await, "boss").await.unwrap();
    let asked = |name: Option<&str>| NewToken {
        role: Role::Admin,
        lifetime_secs: 60,
        name: name.map(Into::into),
    };
    let by = grid.client(&boss).new_token(&asked(None)).await.unwrap().token;
    let for_it = grid.admin().new_token(&asked(Some("boss"))).await.unwrap().token;
    let others = grid.token(Role::Node, None).await;
    grid.admin().remove_member("boss").await.unwrap();
    denied(Client::join(&by, "boss-2").await, "not known");
    denied(Client::join(&for_it, "boss").await, "not known");
    Client::join(&others, "n3").await.unwrap();

    // One that the list does not know, because it was lost, is refused as well.
    let lost = grid.member(Role::Server, "c1");
    grid.client(&lost).caches().await.unwrap();
    assert_eq!(grid.admin().remove_member("c1").await.unwrap().role, None);
    denied(grid.client(&lost).caches().await, "was removed");
    // Placement keeps its own names.
    for own in own.iter().filter(|name| !name.starts_with('n')) {
        denied(grid.admin().remove_member(own).await, "own");
    }
    assert_eq!(own.len(), 4, "{own:?}");
}
