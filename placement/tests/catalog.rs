//! Refs, images, records, tickets, garbage: what an admin and a node do all day.

mod common;

use std::sync::atomic::Ordering;

use api::Ticket;
use api::catalog::{Expect, GcRequest, MoveRef, NewRecord, TicketRequest, VerifyRequest};
use api::grid::Role;
use api::ticket::{Grant, holder_of};
use common::fake::Append;
use common::{Grid, a_server};
use image::record::{ImageKind, Stretch, Unread, Verified};
use image::signing::SigningKey;
use image::{Digest, ImageRecord, Kind, Ref};
use placement::Client;

fn name(text: &str) -> Ref {
    text.parse().unwrap()
}

async fn set(client: &Client, text: &str, image: Digest, expect: Expect) -> image::Result<Digest> {
    client.move_ref(&name(text), &MoveRef { image, expect, fence: None }).await.map(|r| r.image)
}

#[tokio::test]
async fn an_image_is_named_described_listed_and_forgotten() {
    let grid = Grid::start().await;
    let (admin, node) = (grid.admin(), grid.client(&grid.member(Role::Node, "n1")));
    let image = grid.archive.add_image("a");
    let nowhere = Digest::of_chunk(b"not there");
    assert_eq!(set(&node, "x:1", nowhere, Expect::Anything).await.unwrap_err().kind(), Kind::Gone);
    let e = node.record(&nowhere, &NewRecord::default()).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Gone, "{e}");

    let said =
        NewRecord { os: Some("debian 12".into()), parent: Some(nowhere), ..Default::default() };
    let before = grid.clock().now();
    let info = node.record(&image, &said).await.unwrap();
    let record = info.record.unwrap();
    assert!(record.created >= before && record.image == image && record.parent == Some(nowhere));
    let moved = node
        .move_ref(&name("acme/web"), &MoveRef { image, expect: Expect::Absent, fence: None })
        .await
        .unwrap();
    assert_eq!((moved.name, moved.image), (name("acme/web:latest"), image));
    set(&node, "debian:12", image, Expect::Anything).await.unwrap();

    let list = admin.images().await.unwrap().images;
    assert_eq!(list.len(), 2);
    let line = &list[1];
    assert!(line.size == 1 << 30 && line.stored == 77_000 && line.problem.is_none());
    assert_eq!((line.created, line.os.as_deref()), (Some(record.created), Some("debian 12")));
    assert_eq!(line.kind, Some(ImageKind::Os));
    for by in ["acme/web:latest", "acme/web", &image.to_string()] {
        let info = admin.image(by).await.unwrap();
        assert_eq!(info.refs.len(), 2);
        assert_eq!((info.sector, info.chunk, info.sections), (512, 256 << 10, 16));
        assert_eq!((info.sections_present, info.chunks_present), (3, 500));
        let report = admin.verify(by, &VerifyRequest { deep: true }).await.unwrap();
        assert_eq!((report.sections, report.chunks), (3, 500));
    }
    let was = admin.delete_ref(&name("debian:12")).await.unwrap();
    assert_eq!(was.image, image);
    assert_eq!(admin.delete_ref(&name("debian:12")).await.unwrap_err().kind(), Kind::Gone);
    assert_eq!(admin.image("debian:12").await.unwrap_err().kind(), Kind::Gone);
    assert_eq!(admin.images().await.unwrap().images.len(), 1);
}

#[tokio::test]
async fn a_move_that_expects_something_else_is_a_conflict() {
    let grid = Grid::start().await;
    let node = grid.client(&grid.member(Role::Node, "n1"));
    let (a, b) = (grid.archive.add_image("a"), grid.archive.add_image("b"));
    let conflict = |r: image::Result<Digest>| {
        let e = r.unwrap_err();
        assert_eq!(e.kind(), Kind::Conflict, "{e}");
        e.message().to_owned()
    };
    let why = conflict(set(&node, "x:1", a, Expect::At(a)).await);
    assert!(why.contains("does not exist"), "{why}");
    set(&node, "x:1", a, Expect::Absent).await.unwrap();
    let why = conflict(set(&node, "x:1", b, Expect::Absent).await);
    assert!(why.contains(&a.to_string()), "{why}");
    conflict(set(&node, "x:1", b, Expect::At(b)).await);
    set(&node, "x:1", b, Expect::At(a)).await.unwrap();
    set(&node, "x:1", a, Expect::Anything).await.unwrap();
    assert_eq!(grid.archive.shelf().log.len(), 3, "what was refused is not in the log");
}

#[tokio::test]
async fn a_ref_that_has_moved_is_not_deleted_by_who_does_not_know() {
    let grid = Grid::start().await;
    let admin = grid.admin();
    let (a, b) = (grid.archive.add_image("a"), grid.archive.add_image("b"));
    set(&admin, "x:1", a, Expect::Absent).await.unwrap();
    set(&admin, "x:1", b, Expect::At(a)).await.unwrap();
    let moved = admin.delete_ref_at(&name("x:1"), &a).await.unwrap_err();
    assert!(moved.kind() == Kind::Conflict && moved.message().contains(&b.to_string()), "{moved}");
    assert_eq!(admin.image("x:1").await.unwrap().image, b);
    assert_eq!(admin.delete_ref_at(&name("x:1"), &b).await.unwrap().image, b);
    let gone = admin.delete_ref_at(&name("x:1"), &b).await.unwrap_err();
    assert_eq!(gone.kind(), Kind::Gone, "{gone}");
    assert_eq!(grid.archive.shelf().log.len(), 3, "what was refused is not in the log");
}

#[tokio::test]
async fn a_list_tells_what_images_were_made_from_named_or_not_and_circles_end() {
    let grid = Grid::start().await;
    let admin = grid.admin();
    let images: Vec<_> = (0..5).map(|i| grid.archive.add_image(&i.to_string())).collect();
    let gone = Digest::of_chunk(b"not there");
    // 0 ← 1 ← 2 (named) and gone ← 3 (named); 4 and 1 are made a circle of later.
    for (image, parent) in [(1, images[0]), (2, images[1]), (3, gone), (4, images[1])] {
        let labels = [("n".to_owned(), image.to_string())].into();
        let said = NewRecord { parent: Some(parent), labels, ..Default::default() };
        admin.record(&images[image], &said).await.unwrap();
    }
    set(&admin, "x:2", images[2], Expect::Absent).await.unwrap();
    set(&admin, "x:3", images[3], Expect::Absent).await.unwrap();
    assert_eq!(admin.images().await.unwrap().ancestors, None);
    let list = admin.lineage().await.unwrap();
    assert_eq!(list.images[0].parent, Some(images[1]));
    assert_eq!(list.images[0].labels["n"], "2");
    let found: Vec<_> = list.ancestors.unwrap().iter().map(|a| (a.image, a.gone)).collect();
    assert_eq!(found, [(images[1], false), (gone, true), (images[0], false)]);

    let circle = NewRecord { parent: Some(images[4]), ..Default::default() };
    admin.record(&images[1], &circle).await.unwrap();
    let list = admin.lineage().await.unwrap();
    let found: Vec<_> = list.ancestors.unwrap().iter().map(|a| (a.image, a.parent)).collect();
    let circle = [(images[1], Some(images[4])), (gone, None), (images[4], Some(images[1]))];
    assert_eq!(found, circle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_movers_at_once_exactly_one_wins() {
    let grid = Grid::start().await;
    let node = grid.client(&grid.member(Role::Node, "n1"));
    let start = grid.archive.add_image("start");
    for round in 0..5 {
        let text = format!("x:{round}");
        let images: Vec<_> =
            (0..6).map(|i| grid.archive.add_image(&format!("{round}.{i}"))).collect();
        for first in [true, false] {
            let expect = if first { Expect::Absent } else { Expect::At(start) };
            let moves = images.iter().map(|image| set(&node, &text, *image, expect));
            let done = futures::future::join_all(moves).await;
            let won: Vec<_> = done.iter().filter_map(|d| d.as_ref().ok()).collect();
            assert_eq!(won.len(), 1, "{done:?}");
            assert_eq!(node.image(&text).await.unwrap().image, *won[0]);
            let lost = done.iter().filter_map(|d| d.as_ref().err());
            assert!(lost.into_iter().all(|e| e.kind() == Kind::Conflict), "{done:?}");
            set(&node, &text, start, Expect::At(*won[0])).await.unwrap();
        }
    }
    let seqs: Vec<_> = grid.archive.shelf().log.keys().copied().collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn names_are_rebuilt_from_the_stores_log() {
    let mut grid = Grid::start().await;
    let (a, b) = (grid.archive.add_image("a"), grid.archive.add_image("b"));
    let admin = grid.admin();
    for i in 0..150 {
        set(&admin, &format!("x:{}", i % 7), if i % 2 == 0 { a } else { b }, Expect::Anything)
            .await
            .unwrap();
    }
    admin.delete_ref(&name("x:3")).await.unwrap();
    let before = admin.images().await.unwrap();
    assert_eq!(before.images.len(), 6);
    grid.stop().await.unwrap();
    std::fs::remove_file(grid.state_file()).unwrap();
    grid.run().await.unwrap();
    let admin = grid.admin();
    assert_eq!(admin.images().await.unwrap(), before);
    // And it goes on from there.
    set(&admin, "x:3", b, Expect::Absent).await.unwrap();
    assert_eq!(*grid.archive.shelf().log.keys().last().unwrap(), 152);
}

#[tokio::test]
async fn a_move_whose_answer_was_lost_is_found_in_the_log() {
    let mut grid = Grid::start().await;
    let (a, b) = (grid.archive.add_image("a"), grid.archive.add_image("b"));
    let admin = grid.admin();
    grid.archive.shelf().next_append = Some(Append::FailsBefore);
    assert_eq!(set(&admin, "x:1", a, Expect::Absent).await.unwrap_err().kind(), Kind::Retry);
    set(&admin, "x:1", a, Expect::Absent).await.unwrap();

    grid.archive.shelf().next_append = Some(Append::FailsAfter);
    assert_eq!(set(&admin, "x:1", b, Expect::At(a)).await.unwrap_err().kind(), Kind::Retry);
    // It is decided: the next mover sees it, and its number is not used twice.
    let e = set(&admin, "x:1", b, Expect::At(a)).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict, "{e}");
    set(&admin, "x:1", a, Expect::At(b)).await.unwrap();

    // The caller hangs up half way.
    grid.archive.shelf().next_append = Some(Append::HangsAfter);
    let wait = std::time::Duration::from_millis(300);
    let hung = tokio::time::timeout(wait, set(&admin, "x:2", b, Expect::Absent)).await;
    assert!(hung.is_err());
    set(&admin, "x:2", a, Expect::At(b)).await.unwrap();

    // The whole program stops half way.
    grid.archive.shelf().next_append = Some(Append::FailsAfter);
    assert!(set(&admin, "x:3", b, Expect::Absent).await.is_err());
    grid.restart().await;
    assert_eq!(grid.admin().image("x:3").await.unwrap().image, b);
    assert_eq!(grid.archive.shelf().log.len(), 6);
}

#[tokio::test]
async fn a_log_that_lost_its_tail_does_not_turn_names_back() {
    let mut grid = Grid::start().await;
    let (a, b) = (grid.archive.add_image("a"), grid.archive.add_image("b"));
    set(&grid.admin(), "x:1", a, Expect::Anything).await.unwrap();
    set(&grid.admin(), "x:1", b, Expect::Anything).await.unwrap();
    grid.archive.shelf().log.remove(&2);
    grid.restart().await;
    assert_eq!(grid.admin().image("x:1").await.unwrap().image, b);
    set(&grid.admin(), "x:1", a, Expect::At(b)).await.unwrap();
    assert_eq!(grid.archive.shelf().log.keys().copied().collect::<Vec<_>>(), [1, 3]);
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "keys of a test: any will do")]
async fn the_newest_record_of_this_grid_counts() {
    let grid = Grid::start().await;
    let admin = grid.admin();
    let (image, other) = (grid.archive.add_image("a"), grid.archive.add_image("b"));
    let says = |os: &str| NewRecord { os: Some(os.into()), ..Default::default() };
    grid.ahead.store(1000, Ordering::Relaxed);
    admin.record(&image, &says("one")).await.unwrap();
    // Even if the clock goes back, or stands still.
    grid.ahead.store(0, Ordering::Relaxed);
    admin.record(&image, &says("two")).await.unwrap();
    let last = admin.record(&image, &says("three")).await.unwrap().record.unwrap();
    assert_eq!(last.os.as_deref(), Some("three"));

    let alien = SigningKey::generate().unwrap();
    let mut forged = ImageRecord::new(image, u64::MAX);
    forged.os = Some("evil".into());
    let misplaced = ImageRecord::new(other, u64::MAX).sign(grid.authority.signing_key());
    for bad in [forged.sign(&alien), misplaced, "rubbish".into(), String::new()] {
        grid.archive.shelf().records.get_mut(&image).unwrap().insert(0, bad);
    }
    let again = grid.client(&grid.member(Role::Node, "n1"));
    assert_eq!(again.image(&image.to_string()).await.unwrap().record, Some(last.clone()));
    // Also for who never saw them before.
    let mut grid = grid;
    grid.restart().await;
    let info = grid.admin().image(&image.to_string()).await.unwrap();
    assert_eq!(info.record, Some(last));
}

#[tokio::test]
async fn what_is_said_of_an_image_adds_to_what_was_said_before() {
    let grid = Grid::start().await;
    let admin = grid.admin();
    let (image, parent) = (grid.archive.add_image("a"), grid.archive.add_image("p"));
    let label = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    let first = NewRecord {
        parent: Some(parent),
        kind: Some(ImageKind::Snapshot),
        os: Some("debian 12".into()),
        labels: [label("team", "red"), label("site", "one")].into(),
        ..Default::default()
    };
    let first = admin.record(&image, &first).await.unwrap().record.unwrap();
    // An import of the same bytes under another name says nothing.
    grid.ahead.store(1000, Ordering::Relaxed);
    let nothing = NewRecord { parent: Some(image), ..Default::default() };
    let same = admin.record(&image, &nothing).await.unwrap().record.unwrap();
    assert_eq!(same, first);
    assert_eq!(grid.archive.shelf().records[&image].len(), 1, "and nothing new is kept");

    let more = NewRecord {
        os: Some("debian 13".into()),
        cpus: Some(2),
        labels: [label("team", "blue")].into(),
        ..Default::default()
    };
    let now = admin.record(&image, &more).await.unwrap().record.unwrap();
    assert!(now.revised.is_some_and(|revised| revised >= first.created + 1000));
    let expected = ImageRecord {
        os: Some("debian 13".into()),
        cpus: Some(2),
        labels: [label("team", "blue"), label("site", "one")].into(),
        revised: now.revised,
        ..first
    };
    assert_eq!(now, expected);
}

#[tokio::test]
async fn a_record_is_signed_with_what_was_verified_and_what_was_not_read() {
    let grid = Grid::start().await;
    let admin = grid.admin();
    let image = grid.archive.add_image("a");
    let verified = |chunks| Verified {
        by: "receiver".into(),
        at: 1_700_000_000,
        sections: 3,
        chunks,
        bytes: 77_000,
        taken_over: 500 - chunks,
    };
    grid.archive.shelf().verified.insert(image, verified(500));
    let unread = Unread::of([Stretch { start: 4096, len: 8192 }]);
    let said = NewRecord { unread: unread.clone(), ..Default::default() };
    let record = admin.record(&image, &said).await.unwrap().record.unwrap();
    assert_eq!((&record.verified, &record.unread), (&Some(verified(500)), &unread));
    let token = grid.archive.shelf().records[&image][0].clone();
    let key = grid.authority.signing_key().verifying_key();
    assert_eq!(ImageRecord::open(&token, &key, &image).unwrap(), record);
    // The same image comes again: that says nothing new of it.
    grid.archive.shelf().verified.insert(image, verified(0));
    let again = admin.record(&image, &NewRecord::default()).await.unwrap().record.unwrap();
    assert_eq!(again, record);

    let first = vec![Stretch { start: 0, len: 1 }; Unread::MOST + 1];
    let unread = Some(Unread { bytes: 0, stretches: 0, first });
    let endless = NewRecord { unread, ..Default::default() };
    assert_eq!(admin.record(&image, &endless).await.unwrap_err().kind(), Kind::Invalid);
}

#[tokio::test]
async fn a_name_that_can_be_taken_for_a_digest_is_not_made() {
    let grid = Grid::start().await;
    let admin = grid.admin();
    let image = grid.archive.add_image("a");
    let e = set(&admin, &format!("{image}:latest"), image, Expect::Anything).await.unwrap_err();
    assert!(e.kind() == Kind::Invalid && e.message().contains("choose another name"), "{e}");
    set(&admin, &format!("t/{image}:latest"), image, Expect::Anything).await.unwrap();
}

#[tokio::test]
async fn a_list_asks_the_store_once_per_image() {
    let grid = Grid::start().await;
    let admin = grid.admin();
    for i in 0..20 {
        let image = grid.archive.add_image(&format!("{i}"));
        set(&admin, &format!("x:{i}"), image, Expect::Anything).await.unwrap();
        set(&admin, &format!("y:{i}"), image, Expect::Anything).await.unwrap();
    }
    admin.images().await.unwrap();
    grid.archive.shelf().look_ups = 0;
    let list = admin.images().await.unwrap().images;
    assert_eq!((list.len(), grid.archive.shelf().look_ups), (40, 0));
    // A new record is seen at once.
    let says = NewRecord { os: Some("new".into()), ..Default::default() };
    admin.record(&list[0].image, &says).await.unwrap();
    let line = admin.images().await.unwrap().images.remove(0);
    assert_eq!(line.os.as_deref(), Some("new"));
}

#[tokio::test]
async fn who_read_the_store_before_a_record_was_made_does_not_bring_the_old_one_back() {
    let grid = Grid::start().await;
    let admin = grid.admin();
    let image = grid.archive.add_image("a");
    let gate = grid.archive.hold_next("records");
    let slow = tokio::spawn({
        let admin = admin.clone();
        async move { admin.image(&image.to_string()).await }
    });
    // It has read that there is no record, and does not go on.
    gate.entered(1).await;
    let says = NewRecord { os: Some("new".into()), ..Default::default() };
    admin.record(&image, &says).await.unwrap();
    gate.open(1);
    assert_eq!(slow.await.unwrap().unwrap().record, None);
    let record = admin.image(&image.to_string()).await.unwrap().record.unwrap();
    assert_eq!(record.os.as_deref(), Some("new"));
}

#[tokio::test]
async fn a_ref_to_a_lost_image_stays_in_the_list_and_says_so() {
    let grid = Grid::start().await;
    let admin = grid.admin();
    let (a, b) = (grid.archive.add_image("a"), grid.archive.add_image("b"));
    set(&admin, "x:1", a, Expect::Anything).await.unwrap();
    set(&admin, "y:1", b, Expect::Anything).await.unwrap();
    grid.archive.shelf().images.remove(&a);
    let list = admin.images().await.unwrap().images;
    assert_eq!(list.len(), 2);
    assert!(list[0].problem.as_ref().unwrap().contains("not in the store"), "{list:?}");
    assert!(list[1].problem.is_none());
}

#[tokio::test]
async fn tickets_are_for_who_asked_and_what_was_asked() {
    let grid = Grid::start().await;
    let image = grid.archive.add_image("a");
    let papers = grid.member(Role::Node, "n1");
    let node = grid.client(&papers);
    set(&node, "debian:12", image, Expect::Anything).await.unwrap();
    let me = holder_of(&papers.certificate().unwrap());
    let other = holder_of(&grid.admin_papers().certificate().unwrap());
    let key = grid.authority.verifying_key();
    let now = grid.clock().now();
    for by in ["debian:12".to_owned(), image.to_string()] {
        let answer = node.ticket(&TicketRequest::Pull { image: by }).await.unwrap();
        assert_eq!((answer.image, &answer.servers[..]), (Some(image), &[a_server()][..]));
        let ticket = Ticket::open(&answer.ticket, &key, &me, now).unwrap();
        assert_eq!(ticket.grant, Grant::Pull { image });
        assert_eq!(ticket.expires, answer.expires);
        assert_eq!(
            Ticket::open(&answer.ticket, &key, &other, now).unwrap_err().kind(),
            Kind::Denied
        );
    }
    let push = |domain, parent: Option<&str>| {
        let (node, parent) = (node.clone(), parent.map(str::to_owned));
        async move { node.ticket(&TicketRequest::Push { domain, parent }).await }
    };
    let answer = push(0, Some("debian:12")).await.unwrap();
    let ticket = Ticket::open(&answer.ticket, &key, &me, now).unwrap();
    assert_eq!(ticket.grant, Grant::Push { domain: 0, parent: Some(image) });
    let answer = push(0, None).await.unwrap();
    assert_eq!(answer.image, None);

    let gone = Digest::of_chunk(b"gone").to_string();
    assert_eq!(push(1, None).await.unwrap_err().kind(), Kind::Unsupported);
    assert_eq!(push(0, Some("nothing:1")).await.unwrap_err().kind(), Kind::Gone);
    assert_eq!(push(0, Some(&gone)).await.unwrap_err().kind(), Kind::Gone);
    for (by, kind) in [
        (&*image.short(), Kind::Invalid),
        ("nothing:1", Kind::Gone),
        ("../x", Kind::Invalid),
        ("", Kind::Invalid),
    ] {
        let e = node.ticket(&TicketRequest::Pull { image: by.into() }).await.unwrap_err();
        assert_eq!(e.kind(), kind, "{by}: {e}");
    }
}

#[tokio::test]
async fn garbage_is_what_no_ref_reaches_and_no_ref_moves_meanwhile() {
    let grid = Grid::start().await;
    let admin = grid.admin();
    let (a, b) = (grid.archive.add_image("a"), grid.archive.add_image("b"));
    for text in ["x:1", "x:2"] {
        set(&admin, text, a, Expect::Anything).await.unwrap();
    }
    // Decided, though its mover heard nothing: it counts.
    grid.archive.shelf().next_append = Some(Append::FailsAfter);
    set(&admin, "y:1", b, Expect::Anything).await.unwrap_err();
    let dry = GcRequest { dry_run: true, grace_secs: None };
    assert_eq!(admin.gc(&dry).await.unwrap().images, 2);

    // Its caller hangs up; it goes on all the same.
    let gate = grid.archive.hold("gc");
    let caller = admin.clone();
    let running = tokio::spawn(async move { caller.gc(&GcRequest::default()).await });
    gate.entered(1).await;
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    let mover = admin.clone();
    let mut moving = tokio::spawn(async move { set(&mover, "z:1", b, Expect::Absent).await });
    // Passes whatever the machine's speed: a ref does not move while garbage is collected.
    let wait = std::time::Duration::from_millis(300);
    assert!(tokio::time::timeout(wait, &mut moving).await.is_err());
    assert_eq!(admin.image("x:1").await.unwrap().image, a, "the rest goes on");
    gate.open(1);
    moving.await.unwrap().unwrap();
    let mut both = vec![a, b];
    both.sort_unstable();
    assert_eq!(grid.archive.shelf().gc_roots, [both.clone(), both]);
}

#[tokio::test]
async fn refs_move_while_packs_are_rewritten_and_the_next_collection_waits_its_turn() {
    let grid = Grid::start().await;
    let (a, b) = (grid.archive.add_image("a"), grid.archive.add_image("b"));
    set(&grid.admin(), "x:1", a, Expect::Anything).await.unwrap();
    let gate = grid.archive.hold("rewriting");
    let collect = || {
        let admin = grid.admin();
        tokio::spawn(async move { admin.gc(&GcRequest::default()).await })
    };
    let first = collect();
    gate.entered(1).await;
    set(&grid.admin(), "y:1", b, Expect::Absent).await.unwrap();
    let mut next = collect();
    // Passes whatever the machine's speed: it does not begin before the first one has ended.
    let wait = std::time::Duration::from_millis(300);
    assert!(tokio::time::timeout(wait, &mut next).await.is_err());
    assert_eq!(grid.archive.shelf().gc_roots, [[a]]);
    set(&grid.admin(), "z:1", b, Expect::Absent).await.unwrap();
    gate.open(2);
    first.await.unwrap().unwrap();
    assert_eq!(next.await.unwrap().unwrap().images, 2, "it sees the refs that moved meanwhile");
}

#[tokio::test]
async fn tickets_to_pull_name_the_root_of_the_lineage() {
    let grid = Grid::start().await;
    let (a, b, c) = ("a", "b", "c");
    let [a, b, c] = [a, b, c].map(|name| grid.archive.add_image(name));
    let admin = grid.admin();
    let root = async |image: Digest| {
        let asked = TicketRequest::Pull { image: image.to_string() };
        admin.ticket(&asked).await.unwrap().root
    };
    assert_eq!(root(c).await, Some(c));
    let child_of = |parent| NewRecord { parent: Some(parent), ..NewRecord::default() };
    admin.record(&c, &child_of(b)).await.unwrap();
    admin.record(&b, &child_of(a)).await.unwrap();
    for image in [a, b, c] {
        assert_eq!(root(image).await, Some(a));
    }
    // An ancestor that is gone is still the same root for all who come from it.
    let gone = Digest::of_chunk(b"gone");
    admin.record(&a, &child_of(gone)).await.unwrap();
    assert_eq!((root(a).await, root(c).await), (Some(gone), Some(gone)));
    // A circle is no reason not to answer.
    admin.record(&a, &child_of(c)).await.unwrap();
    assert!([a, b, c].map(Some).contains(&root(c).await));
    let push = TicketRequest::Push { domain: 0, parent: Some(c.to_string()) };
    assert_eq!(admin.ticket(&push).await.unwrap().root, None);
}
