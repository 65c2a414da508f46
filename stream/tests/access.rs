//! Who gets in, and to what: certificates, tickets, holders, times.

mod common;

use std::sync::atomic::Ordering;

use api::ticket::{GRACE_SECS, LIFETIME_SECS, SKEW_SECS};
use api::{Grant, Ticket};
use common::{Ca, Grid, MemImage, Member, START, World, pull_and_check};
use forebay_stream::Client;
use forebay_stream::client::ClientOptions;
use forebay_stream::transport::ALPN;
use image::signing::SigningKey;
use image::{ChunkSource, Digest, Error, Kind, ReadContext};

fn world() -> World {
    World::new(MemImage::small())
}

async fn refused(options: ClientOptions) -> Error {
    Client::connect(options).await.map(|_| ()).unwrap_err()
}

/// The error of a client that shows this ticket only.
async fn refused_ticket(grid: &Grid, member: &Member, ticket: String) -> Error {
    refused(grid.options(member, vec![ticket])).await
}

#[test]
fn without_a_client_certificate_nobody_gets_in() {
    world().run(async |grid| {
        let member = grid.world.ca.member("node-1");
        let mut options = grid.options(&member, vec![grid.ticket(grid.pull_grant(), &member)]);
        let mut roots = rustls::RootCertStore::empty();
        use rustls::pki_types::pem::PemObject;
        let ca = rustls::pki_types::CertificateDer::from_pem_slice(member.papers().ca).unwrap();
        roots.add(ca).unwrap();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let mut tls = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        options.config = grid.world.tuning.client(tls.into()).unwrap();
        assert_eq!(refused(options).await.kind(), Kind::Denied);
    });
}

#[test]
fn certificates_of_another_authority_are_refused_on_both_sides() {
    world().run(async |grid| {
        // One that the server does not know, though it trusts the server's.
        let stranger = Ca::new().member("node-1").trusting(&grid.world.ca);
        let ticket = grid.ticket(grid.pull_grant(), &stranger);
        assert_eq!(refused_ticket(grid, &stranger, ticket).await.kind(), Kind::Denied);
        // One that the server knows, but that does not know the server.
        let distrustful = grid.world.ca.member("node-2").trusting(&Ca::new());
        let ticket = grid.ticket(grid.pull_grant(), &distrustful);
        assert_eq!(refused_ticket(grid, &distrustful, ticket).await.kind(), Kind::Denied);
        // A server under another name than the one that was asked for.
        let member = grid.world.ca.member("node-3");
        let ticket = grid.ticket(grid.pull_grant(), &member);
        let mut options = grid.options(&member, vec![ticket]);
        options.server_name = "cache-2.grid".into();
        assert_eq!(refused(options).await.kind(), Kind::Denied);
    });
}

#[test]
fn another_protocol_is_not_spoken() {
    world().run(async |grid| {
        let member = grid.world.ca.member("node-1");
        let mut options = grid.options(&member, vec![grid.ticket(grid.pull_grant(), &member)]);
        let tls = forebay_stream::transport::client_config(member.papers()).unwrap();
        let mut tls = (*tls).clone();
        tls.alpn_protocols = vec![b"forebay/9".to_vec()];
        options.config = grid.world.tuning.client(tls.into()).unwrap();
        assert_eq!(refused(options).await.kind(), Kind::Denied);
    });
}

#[test]
#[expect(clippy::disallowed_methods, reason = "keys of a test: any will do")]
fn tickets_that_are_not_good_are_refused() {
    world().run(async |grid| {
        let member = grid.world.ca.member("node-1");
        let (pull, key) = (grid.pull_grant(), &grid.world.key);
        let good = Ticket::new(pull.clone(), member.holder, START).sign(key);
        let expired = START - LIFETIME_SECS - SKEW_SECS - 1;
        let early = START + SKEW_SECS + 1;
        let thief = grid.world.ca.member("node-2");
        // One digit in the middle of what is signed.
        let mut altered = good.clone();
        let digit = if &good[40..41] == "A" { "B" } else { "A" };
        altered.replace_range(40..41, digit);
        // So much that what is left is no base64: its length is one more than a multiple of four.
        let cut = ((good.len() - "v4.public.".len()) % 4 + 3) % 4;
        let cases = [
            ("expired", Ticket::new(pull.clone(), member.holder, expired).sign(key)),
            ("not valid yet", Ticket::new(pull.clone(), member.holder, early).sign(key)),
            ("another certificate", Ticket::new(pull.clone(), thief.holder, START).sign(key)),
            ("signature", altered),
            ("v4.public", good[..good.len() - cut].to_owned()),
            ("signature", {
                let other = SigningKey::generate().unwrap();
                Ticket::new(pull.clone(), member.holder, START).sign(&other)
            }),
            ("v4.public", "a guess".into()),
        ];
        for (text, ticket) in cases {
            let e = refused_ticket(grid, &member, ticket).await;
            assert_eq!(e.kind(), Kind::Denied, "{e}");
            assert!(e.message().contains(text), "{text}: {e}");
        }
        // A certificate of the grid does not help a thief to another's good ticket.
        let e = refused_ticket(grid, &thief, good.clone()).await;
        assert!(e.message().contains("another certificate"), "{e}");
        Client::connect(grid.options(&member, vec![good])).await.unwrap();
    });
}

#[test]
fn a_ticket_is_for_one_image_and_for_reading() {
    world().run(async |grid| {
        let member = grid.world.ca.member("node-1");
        let ctx = ReadContext::default();
        let (image, other) = (grid.image().id, Digest::of_chunk(b"other"));
        let ticket = grid.ticket(Grant::Pull { image: other }, &member);
        let client = Client::connect(grid.options(&member, vec![ticket])).await.unwrap();
        let place = grid.image().place(0);
        let denied = |e: Error| assert_eq!(e.kind(), Kind::Denied, "{e}");
        denied(client.manifest(&ctx, &image).await.unwrap_err());
        denied(client.section_table(&ctx, &image, 0).await.unwrap_err());
        denied(client.chunks(&ctx, &place, &mut Vec::new()).await.unwrap_err());
        let plan = image::seam::ImagePlan {
            domain: image::Domain::PUBLIC,
            geometry: *grid.image().manifest.geometry(),
            parent: None,
        };
        denied(image::ImageSink::open(&client, &ctx, &plan).await.map(|_| ()).unwrap_err());
        assert!(grid.world.sink.received.borrow().opened.is_empty());
        assert_eq!(grid.world.source.0.started.get(), 0);
        // The right ticket on the same connection opens it.
        client.add_ticket(&grid.ticket(grid.pull_grant(), &member)).await.unwrap();
        pull_and_check(&client, grid.image()).await;
    });
}

#[test]
fn the_right_to_push_is_none_to_read() {
    world().run(async |grid| {
        let (client, _) = grid.pusher().await;
        let e = client.manifest(&ReadContext::default(), &grid.image().id).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Denied);
    });
}

#[test]
fn an_open_session_outlives_its_ticket_by_the_grace_and_can_be_renewed() {
    world().run(async |grid| {
        let member = grid.world.ca.member("node-1");
        let ticket = grid.ticket(grid.pull_grant(), &member);
        let client = Client::connect(grid.options(&member, vec![ticket.clone()])).await.unwrap();
        let end = START + LIFETIME_SECS + GRACE_SECS;
        grid.world.now.store(end, Ordering::Relaxed);
        pull_and_check(&client, grid.image()).await;
        // The ticket opens nothing new any more.
        assert_eq!(refused_ticket(grid, &member, ticket).await.kind(), Kind::Denied);
        grid.world.now.store(end + 1, Ordering::Relaxed);
        let place = grid.image().place(0);
        let e = client.chunks(&ReadContext::default(), &place, &mut Vec::new()).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Denied);
        assert!(e.message().contains("grace"), "{e}");
        let right = client.add_ticket(&grid.ticket(grid.pull_grant(), &member)).await.unwrap();
        let right = right.expect("it is connected");
        assert_eq!((right.grant, right.grace), (grid.pull_grant(), GRACE_SECS as u32));
        pull_and_check(&client, grid.image()).await;
        let e = client.add_ticket("a guess").await.unwrap_err();
        assert_eq!(e.kind(), Kind::Denied);
        pull_and_check(&client, grid.image()).await;
    });
}

#[test]
fn one_refused_ticket_among_good_ones_costs_only_its_own_image() {
    world().run(async |grid| {
        let member = grid.world.ca.member("node-1");
        let good = grid.ticket(grid.pull_grant(), &member);
        let options = grid.options(&member, vec!["a guess".into(), good]);
        let client = Client::connect(options).await.unwrap();
        pull_and_check(&client, grid.image()).await;
    });
}
