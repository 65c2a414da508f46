//! People: tokens, what of it is kept, the audit log, pages, and watching, over the network.

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use api::audit::{AuditEntry, Chain};
use api::grid::Role;
use api::people::{NewPerson, PersonRole};
use api::pool::SetPool;
use api::watch::WatchEvent;
use common::Grid;
use image::Kind;
use placement::{Client, PersonCode};

fn client(token: &str) -> Client {
    Client::with_token(&token.parse::<PersonCode>().unwrap()).unwrap()
}

fn pool(target: u32) -> SetPool {
    let text = format!(r#"{{"size":1048576,"low":1,"target":{target}}}"#);
    serde_json::from_str(&text).unwrap()
}

fn secret(token: &str) -> &str {
    token.rsplit('.').next().unwrap()
}

#[tokio::test]
async fn a_token_is_all_that_a_person_needs_and_is_refused_once_it_is_revoked_or_over() {
    let mut grid = Grid::start().await;
    let token = grid.person("alice", PersonRole::Operator).await;
    let alice = client(&token);
    let who = alice.whoami().await.unwrap();
    assert_eq!((&*who.name, &*who.role), ("token:alice", "operator"));
    alice.set_pool("web", &pool(2)).await.unwrap();
    let denied = alice.remove_member("n1").await.unwrap_err();
    assert!(
        denied.kind() == Kind::Denied && denied.message().contains("only an admin"),
        "{denied}"
    );
    // One of a name at a time.
    let again = NewPerson { name: "alice".into(), role: PersonRole::Admin, lifetime_secs: 60 };
    assert_eq!(grid.admin().new_person(&again).await.unwrap_err().kind(), Kind::Conflict);

    // What is kept gives nothing away.
    grid.stop().await.unwrap();
    let kept = std::fs::read(grid.state_file()).unwrap();
    let there = |text: &str| kept.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(there("token:alice") || there("people/alice"));
    assert!(!there(secret(&token)));
    grid.run().await.unwrap();
    let address = grid.address.to_string();
    let moved = |token: &str| {
        let code: PersonCode = token.parse().unwrap();
        Client::with_token(&PersonCode { address: address.clone(), ..code }).unwrap()
    };
    let alice = moved(&token);
    alice.pools().await.unwrap();
    // Another secret, another name, another grid's CA.
    let digit = if token.ends_with('0') { '1' } else { '0' };
    let other = token[..token.len() - 1].to_owned() + &digit.to_string();
    for wrong in [other, token.replace("alice", "bob")] {
        let refused = moved(&wrong).pools().await.unwrap_err();
        assert!(refused.message().contains("not known, revoked, or expired"), "{refused}");
    }
    let stranger = Grid::start().await.person("alice", PersonRole::Admin).await;
    assert_eq!(moved(&stranger).pools().await.unwrap_err().kind(), Kind::Denied);
    let (status, _) = grid.ask_with(secret(&token), "GET", "/v1/pools", "").await;
    assert_eq!(status, 403);

    grid.admin().revoke("alice").await.unwrap();
    assert_eq!(alice.pools().await.unwrap_err().kind(), Kind::Denied);
    assert_eq!(grid.admin().revoke("alice").await.unwrap_err().kind(), Kind::Gone);
    let token = grid.person("alice", PersonRole::ReadOnly).await;
    let alice = moved(&token);
    assert_eq!(alice.people().await.unwrap().people[0].role, PersonRole::ReadOnly);
    grid.ahead.store(3601, Ordering::Relaxed);
    assert_eq!(alice.pools().await.unwrap_err().kind(), Kind::Denied);
    assert!(grid.admin().people().await.unwrap().people.is_empty());
}

async fn log(grid: &Grid) -> Vec<AuditEntry> {
    let page = grid.admin().audit(0).await.unwrap();
    let mut chain = Chain::begin(&page.head);
    let entries = page.entries.iter().map(|text| chain.take(text).unwrap()).collect();
    chain.end(&page.head).unwrap();
    entries
}

#[tokio::test]
async fn what_was_changed_and_who_was_refused_is_in_the_log_and_reports_are_not() {
    let mut grid = Grid::start().await;
    let token = grid.person("alice", PersonRole::ReadOnly).await;
    grid.admin().set_pool("web", &pool(2)).await.unwrap();
    assert!(grid.admin().set_pool("web", &pool(2_000_000_000)).await.is_err());
    for _ in 0..3 {
        client(&token).delete_pool("web").await.unwrap_err();
    }
    let node = grid.member(Role::Node, "n1");
    let report = r#"{"run":"a","number":1,"goal":0}"#;
    assert_eq!(grid.ask(Some(&node), "POST", "/v1/nodes/n1/report", report).await.0, 200);
    for n in 0..5 {
        grid.ask(None, "DELETE", &format!("/v1/pools/p{n}"), "").await;
    }
    // What is counted is written at the latest when placement ends.
    grid.restart().await;
    let log = log(&grid).await;
    let lines: Vec<_> = log.iter().map(|e| (&*e.who, &*e.what, &*e.outcome, e.times)).collect();
    assert_eq!(lines[0], ("admin admin", "POST /v1/people", "done", 1));
    assert_eq!(log[0].said, "read-only for alice");
    assert_eq!(lines[1], ("admin admin", "PUT /v1/pools/{name}", "done", 1));
    assert_eq!(log[1].object, "/v1/pools/web");
    assert!(lines.contains(&("admin admin", "PUT /v1/pools/{name}", "invalid", 1)), "{lines:?}");
    let alice = ("token:alice (read-only)", "DELETE /v1/pools/{name}", "denied", 3);
    assert!(lines.contains(&alice), "{lines:?}");
    assert!(lines.iter().any(|(who, _, _, times)| (*who, *times) == ("nobody", 5)), "{lines:?}");
    assert_eq!(lines.len(), 5, "{lines:?}");
}

#[tokio::test]
async fn whoever_hangs_up_is_in_the_log_all_the_same() {
    use tokio::io::AsyncWriteExt;
    let grid = Grid::start().await;
    let gate = grid.archive.hold_next("gc");
    let mut stream = grid.connect(Some(&grid.admin_papers())).await.unwrap();
    let asked = b"POST /v1/gc HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    stream.write_all(asked).await.unwrap();
    gate.entered(1).await;
    drop(stream);
    gate.open(1);
    let is_gc = |e: &AuditEntry| e.what == "POST /v1/gc";
    let there = async {
        while !log(&grid).await.iter().any(is_gc) {
            tokio::task::yield_now().await;
        }
    };
    // Else it waited for ever.
    tokio::time::timeout(Duration::from_secs(30), there).await.expect("it is in the log");
}

#[tokio::test]
async fn long_lists_come_in_pages_and_earlier_clients_get_all() {
    let grid = Grid::start().await;
    for n in 0..7 {
        grid.admin().set_pool(&format!("p{n}"), &pool(1)).await.unwrap();
    }
    let admin = grid.admin_papers();
    let mut after = String::new();
    let mut names = Vec::new();
    loop {
        let path = format!("/v1/pools?limit=3{after}");
        let (status, text) = grid.ask(Some(&admin), "GET", &path, "").await;
        assert_eq!(status, 200, "{text}");
        let page: serde_json::Value = serde_json::from_str(&text).unwrap();
        let some = page["pools"].as_array().unwrap().iter();
        names.extend(some.map(|p| p["name"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(names, (0..7).map(|n| format!("p{n}")).collect::<Vec<_>>());
    let (_, all) = grid.ask(Some(&admin), "GET", "/v1/pools", "").await;
    assert_eq!(serde_json::from_str::<api::pool::PoolList>(&all).unwrap().pools.len(), 7);
    for bad in ["limit=0", "limit=10001", "limit=x", "after=zz", "limit=1&limit=2"] {
        let (status, _) = grid.ask(Some(&admin), "GET", &format!("/v1/pools?{bad}"), "").await;
        assert_eq!(status, 400, "{bad}");
    }
    assert_eq!(grid.admin().images().await.unwrap().images.len(), 0);
}

#[tokio::test]
async fn who_watches_is_told_and_placement_ends_all_the_same() {
    let mut grid = Grid::start().await;
    grid.admin().set_pool("a", &pool(1)).await.unwrap();
    let watcher = client(&grid.person("eye", PersonRole::ReadOnly).await);
    let admin = grid.admin();
    let (now, told) = tokio::sync::oneshot::channel();
    let mut now = Some(now);
    let watching = tokio::spawn(async move {
        let mut names = Vec::new();
        let last = watcher
            .watch("pools", None, |event| {
                match event {
                    WatchEvent::Now { .. } => drop(now.take().unwrap().send(())),
                    WatchEvent::Set { name, .. } | WatchEvent::Gone { name, .. } => {
                        names.push(name.clone());
                    }
                    _ => {}
                }
                Ok(true)
            })
            .await;
        (names, last)
    });
    told.await.unwrap();
    admin.set_pool("b", &pool(1)).await.unwrap();
    admin.delete_pool("a").await.unwrap();
    grid.stop().await.unwrap();
    let (names, last) = watching.await.unwrap();
    assert_eq!(names, ["a", "b", "a"]);
    assert!(matches!(last.unwrap(), WatchEvent::End { error } if error.kind == "retry"));
}
