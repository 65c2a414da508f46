//! Caches come, are renewed, and go.

mod common;

use std::sync::atomic::Ordering;

use api::catalog::TicketRequest;
use api::grid::{Role, Serving};
use common::{Grid, a_server};
use image::Kind;
use placement::Client;

fn at(port: u16) -> Serving {
    Serving {
        endpoints: vec![([192, 0, 2, 1], port).into()],
        api: None,
        weight: 1.0,
        draining: false,
        kept: vec![],
    }
}

async fn names(client: &Client) -> Vec<String> {
    client.caches().await.unwrap().caches.into_iter().map(|c| c.name).collect()
}

#[tokio::test]
async fn a_cache_counts_while_its_lease_lasts_and_for_pulls_alone() {
    let mut grid = Grid::start().await;
    let image = grid.archive.add_image("a").to_string();
    let (cache, node) = (grid.member(Role::Server, "c1"), grid.member(Role::Node, "n1"));
    let lease = grid.client(&cache).serving("c1", &at(7)).await.unwrap();
    assert_eq!(names(&grid.client(&node)).await, ["c1", "one"]);

    let servers = async |grid: &Grid, asked: TicketRequest| {
        grid.client(&node).ticket(&asked).await.unwrap().servers
    };
    let pull = || TicketRequest::Pull { image: image.clone() };
    let found = servers(&grid, pull()).await;
    assert_eq!(found[0].endpoints, at(7).endpoints);
    assert_eq!(found[0].server_name, "c1.forebay.internal");
    assert_eq!(found[1], a_server());
    let push = TicketRequest::Push { domain: 0, parent: None };
    assert_eq!(servers(&grid, push).await, [a_server()], "a cache takes no pushes");

    // A restart of placement costs no cache its place; silence does.
    grid.restart().await;
    assert_eq!(servers(&grid, pull()).await.len(), 2);
    grid.ahead.fetch_add(lease.lease_secs + 1, Ordering::Relaxed);
    assert_eq!(servers(&grid, pull()).await, [a_server()]);
    grid.client(&cache).serving("c1", &at(8)).await.unwrap();
    assert_eq!(servers(&grid, pull()).await[0].endpoints, at(8).endpoints);

    let draining = Serving { draining: true, ..at(8) };
    grid.client(&cache).serving("c1", &draining).await.unwrap();
    assert_eq!(servers(&grid, pull()).await, [a_server()], "nodes are sent elsewhere");
    assert_eq!(names(&grid.client(&node)).await, ["c1", "one"], "operators still see it");

    let left = grid.client(&cache).leave("c1").await.unwrap();
    assert_eq!(left.endpoints, at(8).endpoints);
    assert_eq!(names(&grid.client(&node)).await, ["one"]);
    assert_eq!(grid.client(&cache).leave("c1").await.unwrap_err().kind(), Kind::Gone);
}

#[tokio::test]
async fn a_cache_speaks_for_itself_alone() {
    let grid = Grid::start().await;
    let kind = |e: image::Error| e.kind();
    let cache = grid.client(&grid.member(Role::Server, "c1"));
    for name in ["c2", "one"] {
        assert_eq!(cache.serving(name, &at(7)).await.map_err(kind), Err(Kind::Denied), "{name}");
        assert_eq!(cache.leave(name).await.map_err(kind), Err(Kind::Denied), "{name}");
    }
    for role in [Role::Node, Role::Admin] {
        let other = grid.client(&grid.member(role, "c1"));
        assert_eq!(other.serving("c1", &at(7)).await.map_err(kind), Err(Kind::Denied));
    }
    cache.serving("c1", &at(7)).await.unwrap();
    let node = grid.client(&grid.member(Role::Node, "n1"));
    assert_eq!(node.leave("c1").await.map_err(kind), Err(Kind::Denied));
    grid.admin().leave("c1").await.unwrap();
    assert_eq!(grid.admin().leave("one").await.map_err(kind), Err(Kind::Gone), "no lease");
}

#[tokio::test]
async fn addresses_that_nobody_can_reach_are_refused() {
    let grid = Grid::start().await;
    let cache = grid.client(&grid.member(Role::Server, "c1"));
    let any = Serving { endpoints: vec![([0, 0, 0, 0], 7).into()], ..at(7) };
    let api = Serving { api: Some(([0, 0, 0, 0], 7).into()), ..at(7) };
    let many = Serving { endpoints: vec![at(7).endpoints[0]; 1025], ..at(7) };
    let weightless = Serving { weight: 0.0, ..at(7) };
    for bad in [Serving { endpoints: vec![], ..at(7) }, at(0), any, api, many, weightless] {
        let e = cache.serving("c1", &bad).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid, "{e}");
    }
    assert_eq!(names(&cache).await, ["one"]);
}
