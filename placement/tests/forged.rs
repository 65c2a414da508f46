//! Reports and leases in the name of another: each node speaks for itself alone, as its certificate says.

mod common;

use std::time::Duration;

use api::goal::StatusReport;
use api::grid::Role;
use api::lease::{HeldLease, TakeLease};
use common::Grid;
use image::{Kind, Result};

const VOLUME: &str = "0123456789abcdef0123456789abcdef";

fn report(run: &str, number: u64) -> StatusReport {
    StatusReport { run: run.into(), number, ..StatusReport::default() }
}

fn take(holder: &str) -> TakeLease {
    TakeLease { holder: holder.into(), called: "web".into(), epoch: None, run: Some("1".into()) }
}

fn kind<T>(result: Result<T>) -> Option<Kind> {
    result.err().map(|error| error.kind())
}

#[tokio::test]
async fn no_node_reports_or_takes_a_lease_in_the_name_of_another() {
    let grid = Grid::start().await;
    let papers = ["a", "b"].map(|name| grid.member(Role::Node, name));
    let [a, b] = [&papers[0], &papers[1]].map(|papers| grid.client(papers));
    b.report("b", &report("1", 1), Duration::ZERO).await.unwrap();
    let grant = b.take_lease(VOLUME, &take("b")).await.unwrap();
    let (nodes, leases) =
        (grid.admin().nodes().await.unwrap(), grid.admin().leases().await.unwrap());

    let given_back = vec![HeldLease { volume: VOLUME.into(), epoch: grant.epoch }];
    let forged = StatusReport { released: given_back, ..report("2", 9) };
    assert_eq!(kind(a.report("b", &forged, Duration::ZERO).await), Some(Kind::Denied));
    assert_eq!(kind(a.take_lease(VOLUME, &take("b")).await), Some(Kind::Denied));
    let transfer = format!(r#"{{"epoch":{},"to":"a"}}"#, grant.epoch);
    let path = format!("/v1/leases/{VOLUME}/transfer");
    assert_eq!(grid.ask(Some(&papers[0]), "POST", &path, &transfer).await.0, 409);
    let server = grid.client(&grid.member(Role::Server, "c"));
    assert_eq!(kind(server.report("b", &forged, Duration::ZERO).await), Some(Kind::Denied));

    let now = grid.admin().nodes().await.unwrap();
    let names = |list: &api::goal::NodeList| -> Vec<String> {
        list.nodes.iter().map(|node| node.name.clone()).collect()
    };
    assert_eq!(names(&now), names(&nodes));
    let held = grid.admin().leases().await.unwrap();
    let first =
        |list: &api::lease::LeaseList| (list.leases[0].holder.clone(), list.leases[0].epoch);
    assert_eq!((held.leases.len(), first(&held)), (1, first(&leases)));
    // The run that was forged is none of its: it is heard on.
    b.report("b", &report("1", 2), Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn who_reports_as_itself_what_cannot_be_is_told_so_and_heard_on() {
    let grid = Grid::start().await;
    let node = grid.client(&grid.member(Role::Node, "a"));
    node.report("a", &report("1", 1), Duration::ZERO).await.unwrap();
    let bad = HeldLease { volume: "x".into(), epoch: 1 };
    for forged in [
        StatusReport { number: u64::MAX, ..report("1", 2) },
        StatusReport { leases: vec![bad], ..report("1", 2) },
        report(&"r".repeat(100), 2),
    ] {
        let refused = node.report("a", &forged, Duration::ZERO).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Invalid, "{refused}");
    }
    // More than a report may be: it is not read to its end.
    let volumes = vec![bulky(); 9000];
    let long = StatusReport { volumes, ..report("1", 2) };
    assert!(node.report("a", &long, Duration::ZERO).await.is_err());
    node.report("a", &report("1", 2), Duration::ZERO).await.unwrap();
    assert_eq!(grid.admin().nodes().await.unwrap().nodes.len(), 1);
}

fn bulky() -> api::life::NodeVolume {
    let (id, called) = (VOLUME.into(), "x".repeat(500));
    api::life::NodeVolume { id, called, size: 1, image: None, attached: false }
}
