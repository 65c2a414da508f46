//! What nodes measure, and who may say it, see it, and reserve by it.

mod common;

use std::time::Duration;

use api::fleet::Resources;
use api::goal::StatusReport;
use api::grid::Role;
use api::place::{PlaceAsk, PlaceRequest};
use api::stats::{CpuStats, NodeStats, SCHEMA, VmStats};
use common::Grid;
use image::{Kind, Result};
use placement::Client;

fn kind<T: std::fmt::Debug>(result: Result<T>) -> Option<Kind> {
    result.err().map(|e| e.kind())
}

fn measured(number: u64) -> NodeStats {
    let cpu = Some(CpuStats { cores: 4, ..CpuStats::default() });
    NodeStats { schema: SCHEMA, number, at: 1000 + number, cpu, ..NodeStats::default() }
}

async fn report(client: &Client, node: &str, stats: NodeStats) -> Result<Option<u32>> {
    let report = StatusReport {
        run: "run".into(),
        number: stats.number,
        disk: Default::default(),
        stats: Some(Box::new(stats)),
        ..StatusReport::default()
    };
    Ok(client.report(node, &report, Duration::ZERO).await?.stats_secs)
}

fn ask(id: &str, reserve: bool) -> PlaceAsk {
    let needs = Resources { cpu_milli: 3000, ..Resources::default() };
    PlaceAsk { requests: vec![PlaceRequest::new(id, needs)], explain: true, reserve, term_secs: 60 }
}

#[tokio::test]
async fn a_node_says_what_it_measures_itself_and_all_members_see_it() {
    let grid = Grid::start().await;
    let node = grid.client(&grid.member(Role::Node, "n1"));
    let server = grid.client(&grid.member(Role::Server, "s1"));
    assert_eq!(report(&node, "n1", measured(1)).await.unwrap(), None);
    assert_eq!(kind(report(&node, "n2", measured(1)).await), Some(Kind::Denied), "another");
    // What is too much is not taken, and the report counts all the same.
    let many = NodeStats { vms: vec![VmStats::default(); 1000], ..measured(2) };
    report(&node, "n1", many).await.unwrap();
    let list = server.stats(0).await.unwrap();
    assert_eq!((list.nodes.len(), list.nodes[0].last.at), (1, 1001));
    assert_eq!(kind(server.node_stats("n2", 0, 0).await), Some(Kind::Gone));
    // Somebody looks: at all nodes, and at one.
    server.stats(5).await.unwrap();
    assert_eq!(report(&node, "n1", measured(3)).await.unwrap(), Some(5));
    let history = server.node_stats("n1", 1001, 2).await.unwrap();
    assert_eq!((history.samples.len(), history.stats.number), (1, 3));
    assert_eq!(report(&node, "n1", measured(4)).await.unwrap(), Some(2));
}

#[tokio::test]
async fn any_member_may_ask_for_a_node_and_writers_reserve_and_give_back_what_is_theirs() {
    let grid = Grid::start().await;
    let node = grid.client(&grid.member(Role::Node, "n1"));
    let other = grid.client(&grid.member(Role::Node, "n2"));
    let server = grid.client(&grid.member(Role::Server, "s1"));
    report(&node, "n1", measured(1)).await.unwrap();
    let answer = server.place(&ask("a", false)).await.unwrap();
    assert_eq!(answer.placed[0].decision.chosen.as_ref().unwrap().node, "n1");
    assert_eq!(kind(server.place(&ask("a", true)).await), Some(Kind::Denied));
    let reserved = node.place(&ask("a", true)).await.unwrap();
    assert_eq!(reserved.placed[0].reservation.as_ref().unwrap().owner, "n1");
    assert!(other.place(&ask("b", true)).await.unwrap().placed[0].reservation.is_none());
    assert_eq!(server.reservations().await.unwrap().reservations.len(), 1);
    assert_eq!(kind(server.release_reservation("a").await), Some(Kind::Denied));
    assert_eq!(kind(other.release_reservation("a").await), Some(Kind::Denied));
    node.release_reservation("a").await.unwrap();
    assert_eq!(kind(grid.admin().release_reservation("a").await), Some(Kind::Gone));
    assert!(other.place(&ask("b", true)).await.unwrap().placed[0].reservation.is_some());
    grid.admin().release_reservation("b").await.unwrap();
}
