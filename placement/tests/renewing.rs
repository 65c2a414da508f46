//! Certificates: renewed by their members, refused when those are removed.

mod common;

use std::collections::BTreeMap;

use api::grid::Role;
use api::ticket::holder_of;
use common::Grid;
use image::Kind;
use placement::papers::was_signed;
use placement::{Client, Papers};

fn holder(papers: &Papers) -> image::Digest {
    holder_of(&papers.certificate().unwrap())
}

async fn names(grid: &Grid) -> BTreeMap<String, Vec<image::Digest>> {
    grid.admin().revocations("").await.unwrap().names.unwrap()
}

#[tokio::test]
async fn a_member_renews_its_certificate_and_both_are_heard() {
    let grid = Grid::start().await;
    let first = Client::join(&grid.token(Role::Node, None).await, "n1").await.unwrap();
    let second = grid.client(&first).renew(&first).await.unwrap();
    assert!(second.key_pem != first.key_pem && second.member().unwrap().name == "n1");
    // An answer that was lost: it is asked for again with what there is.
    let third = grid.client(&first).renew(&first).await.unwrap();
    for papers in [&first, &second, &third] {
        grid.client(papers).images().await.unwrap();
    }
    // In place of the first, on disk.
    let dir = grid.dir.path().join("member");
    first.store(&dir).unwrap();
    third.renew(&dir).unwrap();
    assert_eq!(Papers::load(&dir).unwrap(), third);
    // What was signed before is signed still.
    for papers in [&first, &third] {
        assert!(was_signed(&dir, b"said", &papers.sign(b"said").unwrap()));
    }
    assert!(!was_signed(&dir, b"said", &second.sign(b"said").unwrap()));
    // Who is known by another role, or is placement itself, has nothing to renew here.
    let admin = grid.admin_papers();
    assert_eq!(grid.client(&admin).renew(&admin).await.unwrap_err().kind(), Kind::Denied);
    let odd = grid.authority.issue(Role::Admin, "n1", grid.clock().now()).unwrap();
    assert_eq!(grid.client(&odd).renew(&odd).await.unwrap_err().kind(), Kind::Denied);
    let unknown = grid.authority.issue(Role::Node, "n9", grid.clock().now()).unwrap();
    assert_eq!(grid.client(&unknown).renew(&unknown).await.unwrap_err().kind(), Kind::Gone);
}

#[tokio::test]
async fn who_was_removed_renews_nothing_and_is_listed_with_what_is_good_again() {
    let grid = Grid::start().await;
    assert!(names(&grid).await.is_empty());
    let first = Client::join(&grid.token(Role::Node, None).await, "n1").await.unwrap();
    grid.admin().remove_member("n1").await.unwrap();
    let refused = grid.client(&first).renew(&first).await.unwrap_err();
    assert!(refused.kind() == Kind::Denied && refused.message().contains("removed"), "{refused}");
    let told = grid.admin().revocations("").await.unwrap();
    assert!(told.refuses("n1", &holder(&first)) && !told.refuses("n2", &holder(&first)));
    let same = grid.admin().revocations(&told.version).await.unwrap();
    assert_eq!((same.version == told.version, same.names), (true, None));

    let again = Client::join(&grid.token(Role::Node, Some("n1")).await, "n1").await.unwrap();
    let newest = grid.client(&again).renew(&again).await.unwrap();
    for papers in [&again, &newest] {
        grid.client(papers).images().await.unwrap();
    }
    assert_eq!(grid.client(&first).images().await.unwrap_err().kind(), Kind::Denied);
    let told = grid.admin().revocations(&told.version).await.unwrap();
    assert_eq!(told.names.as_ref().unwrap()["n1"], [holder(&newest), holder(&again)]);
    assert!(told.refuses("n1", &holder(&first)) && !told.refuses("n1", &holder(&newest)));
}
