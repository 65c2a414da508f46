//! First start, restart, and what is refused at start.

mod common;

use std::sync::atomic::Ordering;

use api::catalog::{Expect, MoveRef};
use common::{Grid, a_server, chmod, mode};
use image::Kind;
use placement::{Authority, Clock, Papers};

const DAY: u64 = 24 * 3600;

fn now() -> u64 {
    Clock::system().now()
}

#[tokio::test]
async fn the_first_start_makes_everything_and_a_restart_keeps_it() {
    let mut grid = Grid::start().await;
    let data = grid.dir.path().to_owned();
    for dir in ["ca", "server", "admin"] {
        assert_eq!(mode(&data.join(dir)), 0o700, "{dir}");
        for file in std::fs::read_dir(data.join(dir)).unwrap() {
            let path = file.unwrap().path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }
    let image = grid.archive.add_image("a");
    let to = MoveRef { image, expect: Expect::Absent, fence: None };
    grid.admin().move_ref(&"debian:12".parse().unwrap(), &to).await.unwrap();
    assert_eq!(mode(&grid.state_file()), 0o600);
    let (id, admin) = (grid.authority.grid().to_owned(), grid.admin_papers());

    grid.restart().await;
    assert_eq!(grid.authority.grid(), id);
    assert_eq!(grid.admin_papers(), admin);
    let health = grid.client(&admin).health().await.unwrap();
    assert_eq!(health.grid, id);
    assert_eq!(health.verifying_key.len(), 64);
    assert_eq!(grid.client(&admin).images().await.unwrap().images[0].image, image);
    assert_eq!(grid.client(&admin).caches().await.unwrap().caches, [a_server()]);
}

#[test]
fn keys_that_others_can_read_are_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    let authority = Authority::open(&ca, now()).unwrap();
    for (path, bad, good) in [
        (ca.join("ca.key"), 0o644, 0o600),
        (ca.join("signing.key"), 0o640, 0o600),
        (ca.join("ca.pem"), 0o602, 0o600),
        (ca.clone(), 0o755, 0o700),
    ] {
        chmod(&path, bad);
        let e = Authority::open(&ca, now()).unwrap_err();
        assert_eq!(e.kind(), Kind::Denied, "{e}");
        let remedy = format!("chmod {good:o} {}", path.display());
        assert!(e.message().contains(&remedy), "{e}");
        chmod(&path, good);
    }
    Authority::open(&ca, now()).unwrap();

    let papers = dir.path().join("server");
    authority.server_papers(&papers, "one", &[], now()).unwrap();
    chmod(&papers.join("key.pem"), 0o604);
    assert_eq!(Papers::load(&papers).unwrap_err().kind(), Kind::Denied);
    let e = authority.server_papers(&papers, "one", &[], now()).unwrap_err();
    assert!(e.message().contains("chmod 600"), "{e}");
}

#[test]
fn a_ca_that_is_not_whole_is_refused_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (dir.path().join("ca"), dir.path().join("other"));
    Authority::open(&ours, now()).unwrap();
    Authority::open(&other, now()).unwrap();
    for file in ["ca.pem", "ca.key", "signing.key", "grid"] {
        let kept = std::fs::read(ours.join(file)).unwrap();
        std::fs::remove_file(ours.join(file)).unwrap();
        let e = Authority::open(&ours, now()).unwrap_err();
        assert_eq!(e.kind(), Kind::Corrupt, "{file}: {e}");
        assert!(e.message().contains(file) && e.message().contains("backup"), "{e}");
        // Another grid's file does not fit, nor does rubbish.
        if file != "signing.key" {
            std::fs::copy(other.join(file), ours.join(file)).unwrap();
            assert_eq!(Authority::open(&ours, now()).unwrap_err().kind(), Kind::Corrupt, "{file}");
        }
        std::fs::write(ours.join(file), "rubbish").unwrap();
        chmod(&ours.join(file), 0o600);
        assert!(Authority::open(&ours, now()).is_err(), "{file}");
        std::fs::write(ours.join(file), kept).unwrap();
    }
    Authority::open(&ours, now()).unwrap();
}

#[test]
fn own_papers_are_issued_anew_when_they_must_be() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(&dir.path().join("ca"), now()).unwrap();
    let at = dir.path().join("server");
    let keep = |name: &str, ips: &[std::net::IpAddr], later: u64| {
        authority.server_papers(&at, name, ips, now() + later).unwrap()
    };
    let first = keep("one", &[], 0);
    assert_eq!(keep("one", &[], 0), first);
    assert_eq!(keep("one", &[], 200 * DAY), first, "more than a third is left");
    let second = keep("one", &[], 250 * DAY);
    assert_ne!(second, first, "less than a third is left");
    assert_eq!(Papers::load(&at).unwrap(), second);
    // Two thirds of a year ago those were not valid: again.
    let third = keep("one", &[], 0);
    assert_ne!(third, second, "not valid yet");
    let ip = [[127, 0, 0, 1].into(), "::1".parse().unwrap()];
    let fourth = keep("one", &ip, 0);
    assert_ne!(fourth, third, "addresses were added");
    assert_eq!(keep("one", &ip, 0), fourth);
    assert_ne!(keep("two", &ip, 0), fourth, "the name has changed");
    std::fs::write(at.join("cert.pem"), "rubbish").unwrap();
    let fifth = keep("two", &ip, 0);
    assert_eq!(fifth.member().unwrap().name, "two");

    let other = Authority::open(&dir.path().join("other"), now()).unwrap();
    let sixth = other.server_papers(&at, "two", &ip, now()).unwrap();
    assert_eq!(sixth.member().unwrap().grid, other.grid());
    assert!(!dir.path().join(".server.old").exists());
}

#[test]
fn an_expired_ca_is_refused_and_no_certificate_outlives_it() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    let authority = Authority::open(&ca, now()).unwrap();
    let late = authority.issue(api::grid::Role::Node, "n", now() + 3600 * DAY).unwrap();
    assert!(late.expires().unwrap() <= now() + 3652 * DAY);
    assert!(late.expires().unwrap() > now() + 3600 * DAY);
    let e = Authority::open(&ca, now() + 3653 * DAY).unwrap_err();
    assert_eq!(e.kind(), Kind::Denied, "{e}");
}

#[test]
fn two_first_starts_at_once_make_one_grid() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    let grids: Vec<String> = std::thread::scope(|scope| {
        let open = || Authority::open(&ca, now()).unwrap().grid().to_owned();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(grids.iter().all(|g| *g == grids[0]), "{grids:?}");
}

#[tokio::test]
async fn state_of_another_grid_or_in_use_is_refused() {
    let mut grid = Grid::start().await;
    grid.admin().health().await.unwrap();
    // A second placement over the same state.
    let mut second = Grid::start().await;
    second.stop().await.unwrap();
    let own = second.state_file();
    std::fs::remove_file(&own).unwrap();
    std::os::unix::fs::symlink(grid.state_file(), &own).unwrap();
    second.run().await.unwrap();
    let e = second.stop().await.unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict, "{e}");
    assert!(e.message().contains("another placement is running"), "{e}");
    // The first one is gone: but the state is not this grid's.
    grid.stop().await.unwrap();
    second.run().await.unwrap();
    let e = second.stop().await.unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict, "{e}");
    assert!(e.message().contains(grid.authority.grid()), "{e}");
}

#[tokio::test]
async fn the_first_store_of_a_grid_is_remembered_and_told() {
    let mut grid = Grid::start().await;
    assert_eq!(grid.admin().health().await.unwrap().store.as_deref(), Some("the first"));
    grid.stop().await.unwrap();
    let (state, id) = (grid.state_file(), grid.authority.grid().to_owned());
    let known = async || placement::known_store(&state.clone().into(), &id).await.unwrap();
    assert_eq!(known().await.as_deref(), Some("the first"));
    // Another one in its place.
    grid.store = "another".into();
    grid.run().await.unwrap();
    let e = grid.stop().await.unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict, "{e}");
    assert!(e.message().contains("the first") && e.message().contains("another"), "{e}");
    // To ask makes nothing; who moves the state away begins with what is there.
    std::fs::remove_file(&state).unwrap();
    assert_eq!(known().await, None);
    assert!(!state.exists());
    grid.run().await.unwrap();
    grid.admin().health().await.unwrap();
    grid.stop().await.unwrap();
    assert_eq!(known().await.as_deref(), Some("another"));
}

#[tokio::test]
async fn rubbish_for_state_is_refused_and_says_what_to_do() {
    let mut grid = Grid::start().await;
    grid.stop().await.unwrap();
    std::fs::write(grid.state_file(), vec![7; 9000]).unwrap();
    grid.run().await.unwrap();
    let e = grid.stop().await.unwrap_err();
    assert_eq!(e.kind(), Kind::Corrupt, "{e}");
    assert!(e.message().contains("move it away"), "{e}");
    // A file whose making was interrupted is no obstacle.
    std::fs::remove_file(grid.state_file()).unwrap();
    std::fs::write(grid.dir.path().join("state.redb.new"), vec![0; 5000]).unwrap();
    grid.run().await.unwrap();
    grid.admin().health().await.unwrap();
    grid.stop().await.unwrap();
}

#[tokio::test]
async fn an_expired_member_is_refused() {
    let grid = Grid::start().await;
    let node = grid.member(api::grid::Role::Node, "n1");
    grid.client(&node).images().await.unwrap();
    grid.ahead.store(366 * DAY, Ordering::Relaxed);
    let e = grid.client(&node).images().await.unwrap_err();
    assert_eq!(e.kind(), Kind::Denied, "{e}");
}
