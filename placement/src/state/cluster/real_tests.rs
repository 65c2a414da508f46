//! Keys in real members of etcd, which are killed, stopped, and full.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use image::Kind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::real::{Etcd, keys_at, papers, tls_args, until, wanted};
use super::{Cluster, ClusterPlace, Papers};
use crate::clock::Uptime;
use crate::state::State;
use crate::state::conformance::{TTL, conforms};
use crate::state::keys::{Keys, Transaction};
use crate::state::lead::Lead;

fn put(key: &str, value: &str) -> Transaction {
    Transaction::default().put(key, value.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_one_etcd_conforms() {
    if wanted() {
        conforms(Etcd::start(1).await.keys().await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_three_members_of_etcd_conform() {
    if wanted() {
        conforms(Etcd::start(3).await.keys().await).await;
    }
}

#[tokio::test]
async fn real_dead_members_do_not_hurt() {
    if !wanted() {
        return;
    }
    let mut etcd = Etcd::start(3).await;
    etcd.keys().await;
    // Nobody there, from the beginning.
    let dead = keys_at(&["127.0.0.1:1".into(), etcd.address(1)], None);
    dead.commit(put("a", "1")).await.unwrap();
    // Gone after it was used.
    let keys = keys_at(&etcd.addresses(2), None);
    keys.commit(put("a", "2")).await.unwrap();
    etcd.kill(2);
    until("the connection is seen to be gone", async || {
        // It may be noticed by what is sent on it: then it is not known whether that was done.
        keys.commit(put("a", "3"))
            .await
            .map_err(|e| assert_eq!(e.kind(), Kind::Retry, "{e}"))
            .is_ok()
    })
    .await;
    assert_eq!(keys.get("a".into()).await.unwrap().unwrap().value, b"3");
    // All of them.
    (0..2).for_each(|i| etcd.kill(i));
    let e = keys.commit(put("a", "4")).await.unwrap_err();
    let e =
        if e.message().contains("not known") { keys.get("a".into()).await.unwrap_err() } else { e };
    assert_eq!(e.kind(), Kind::Retry);
    assert!(etcd.addresses(0).iter().all(|address| e.message().contains(address)), "{e}");
}

/// Adds 1 to a number, 400 times, and notes each in a key of its own. Between them, what `fault` does. Nothing
/// that was acknowledged may be lost, nothing be done twice, and who watches sees all of it once.
async fn commits_through(etcd: &mut Etcd, mut fault: impl FnMut(&mut Etcd, u32)) {
    let keys = etcd.keys().await;
    let from = keys.list(String::new()).await.unwrap().revision;
    let mut changes = keys.watch("note/".into(), from);
    let (mut last, mut unsure) = (None, 0);
    for n in 0..400u32 {
        fault(etcd, n);
        loop {
            let next = put("n", &n.to_string()).put(&format!("note/{n:03}"), vec![]);
            let next = next.unchanged("n", last.as_ref());
            let done = keys.commit(next).await;
            let mut now = None;
            until("etcd answers", async || {
                let read = keys.get("n".into()).await;
                now = read.as_ref().ok().cloned().flatten();
                read.is_ok()
            })
            .await;
            let is_there = now.as_ref().is_some_and(|v| v.value == n.to_string().as_bytes());
            assert!(is_there || now == last, "{n}: neither as before nor as after");
            match done {
                Ok(()) => assert!(is_there, "{n} was acknowledged"),
                // Nobody else writes: a conflict would be with ourselves.
                Err(e) => assert_eq!(e.kind(), Kind::Retry, "{n}: {e}"),
            }
            if is_there {
                last = now;
                break;
            }
            unsure += 1;
        }
    }
    println!("{unsure} commits had to be made again");
    for n in 0..400 {
        let change = changes.next().await.unwrap().unwrap();
        assert_eq!(change.key, format!("note/{n:03}"));
    }
}

#[tokio::test]
async fn real_what_is_acknowledged_outlives_the_leader_of_etcd() {
    if !wanted() {
        return;
    }
    let mut etcd = Etcd::start(3).await;
    let mut victim = 0;
    commits_through(&mut etcd, |etcd, n| match n {
        50 | 250 => {
            victim = etcd.leader();
            etcd.kill(victim);
        }
        150 | 350 => etcd.run(victim),
        _ => {}
    })
    .await;
}

#[tokio::test]
async fn real_what_is_acknowledged_outlives_a_leader_that_stands_still() {
    if !wanted() {
        return;
    }
    let mut etcd = Etcd::start(3).await;
    let mut victim = 0;
    commits_through(&mut etcd, |etcd, n| match n {
        50 | 250 => {
            victim = etcd.leader();
            etcd.signal(victim, "-STOP");
        }
        150 | 350 => etcd.signal(victim, "-CONT"),
        _ => {}
    })
    .await;
}

async fn lead(keys: &Arc<dyn Keys>, id: &str) -> Lead {
    let key = "leaders/c".to_owned();
    Lead::new(keys.clone(), key.clone(), keys.campaign(key, id.into(), TTL).await.unwrap())
}

#[tokio::test]
async fn real_a_leader_who_does_not_know_that_it_was_deposed_commits_nothing() {
    if !wanted() {
        return;
    }
    let etcd = Etcd::start(1).await;
    let keys = etcd.keys().await;
    // Its clock stands still, and nobody keeps its lease alive: as a process that was stopped feels.
    let place = ClusterPlace::parse(&format!("etcd://{}", etcd.address(0)), None).unwrap();
    let still: Arc<dyn Keys> = Arc::new(
        Cluster::new(&place, Some("test"), Uptime::new(|| Duration::from_secs(1))).unwrap(),
    );
    let mut reign = still.campaign("leaders/c".into(), b"old".to_vec(), TTL).await.unwrap();
    reign.keep = Box::new(());
    let old = Lead::new(still, "leaders/c".into(), reign);
    old.commit(put("led", "old")).await.unwrap();
    let new = lead(&keys, "new").await;
    new.commit(put("led", "new")).await.unwrap();
    assert!(old.holds(), "as far as it knows");
    assert_eq!(old.commit(put("led", "late")).await.unwrap_err().kind(), Kind::Conflict);
    assert!(!old.holds());
    assert_eq!(keys.get("led".into()).await.unwrap().unwrap().value, b"new");
}

/// Passes on what comes to a port, until it is dropped. While it is mute, answers are lost.
async fn line_to(address: String, mute: Arc<AtomicBool>) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().to_string();
    let mut line = JoinSet::new();
    line.spawn(async move {
        let mut ends = JoinSet::new();
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(&address).await.unwrap();
            let mute = mute.clone();
            ends.spawn(async move {
                let ((mut asks, mut hears), (mut answers, mut asked)) =
                    (near.into_split(), far.into_split());
                let there = tokio::io::copy(&mut asks, &mut asked);
                let back = async {
                    let mut some = vec![0; 64 << 10];
                    while let Ok(n @ 1..) = answers.read(&mut some).await {
                        if !mute.load(Ordering::Relaxed) {
                            hears.write_all(&some[..n]).await.unwrap();
                        }
                    }
                };
                tokio::select! {
                    _ = there => {}
                    () = back => {}
                }
            });
        }
    });
    (port, line)
}

#[tokio::test]
async fn real_a_commit_whose_answer_was_lost_is_not_made_again() {
    if !wanted() {
        return;
    }
    let etcd = Etcd::start(1).await;
    etcd.keys().await;
    let mute = Arc::new(AtomicBool::new(false));
    let (port, _line) = line_to(etcd.address(0), mute.clone()).await;
    let keys = keys_at(&[port, etcd.address(0)], None);
    keys.commit(put("a", "0")).await.unwrap();
    let seen = keys.get("a".into()).await.unwrap().unwrap();
    mute.store(true, Ordering::Relaxed);
    let e = keys.commit(put("a", "1").unchanged("a", Some(&seen))).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Retry, "{e}");
    assert!(e.message().contains("whether it was done is not known"), "{e}");
    // The line is left to itself, and what was done is there.
    let mut now = seen.clone();
    until("it is done", async || {
        now = keys.get("a".into()).await.unwrap().unwrap();
        now.value == b"1"
    })
    .await;
    keys.commit(put("a", "2").unchanged("a", Some(&now))).await.unwrap();
}

#[tokio::test]
async fn real_who_watches_goes_on_at_another_member_where_it_was() {
    if !wanted() {
        return;
    }
    let etcd = Etcd::start(1).await;
    let keys = etcd.keys().await;
    let from = keys.list(String::new()).await.unwrap().revision;
    let (port, line) = line_to(etcd.address(0), Arc::default()).await;
    let mut changes = keys_at(&[port, etcd.address(0)], None).watch("a".into(), from);
    let mut line = Some(line);
    for n in 0..6 {
        keys.commit(put("a", &n.to_string())).await.unwrap();
        let change = changes.next().await.unwrap().unwrap();
        assert_eq!(change.value.unwrap(), n.to_string().as_bytes());
        if n == 2 {
            drop(line.take());
        }
    }
}

#[tokio::test]
async fn real_a_leader_knows_that_it_lost_before_another_leads() {
    if !wanted() {
        return;
    }
    let etcd = Etcd::start(1).await;
    let keys = etcd.keys().await;
    let (port, line) = line_to(etcd.address(0), Arc::default()).await;
    let old = lead(&keys_at(&[port], None), "old").await;
    // Kept alive beyond its first time.
    assert!(tokio::time::timeout(2 * TTL, old.lost()).await.is_err());
    drop(line);
    let new = lead(&keys, "new").await;
    assert!(!old.holds(), "two at a time");
    new.commit(put("led", "new")).await.unwrap();
    // One whose etcd stands still knows it, too.
    etcd.signal(0, "-STOP");
    new.lost().await;
    etcd.signal(0, "-CONT");
}

#[tokio::test]
async fn real_a_full_etcd_says_so_and_can_be_read_and_goes_on_when_there_is_room() {
    if !wanted() {
        return;
    }
    let quota = |_: &Path| vec!["--quota-backend-bytes=8388608".into()];
    let etcd = Etcd::start_with(1, quota).await;
    let keys = etcd.keys().await;
    // What is there is little. What was there before takes the space.
    let long = |n: u8| {
        Transaction::default().put("long", vec![n; 1 << 20]).put("count", n.to_string().into())
    };
    let mut kept = 0;
    let e = loop {
        match keys.commit(long(kept)).await {
            Ok(()) => kept += 1,
            Err(e) => break e,
        }
        assert!(kept < 100, "it is never full");
    };
    assert_eq!(e.kind(), Kind::Full, "{e}");
    assert!(e.message().contains("--quota-backend-bytes"), "{e}");
    // etcd may refuse that one which it has done.
    let all = keys.list(String::new()).await.unwrap();
    let there = all.entries.iter().find(|(key, _)| key == "long").unwrap().1.value[0];
    assert!([kept - 1, kept].contains(&there), "{there} of {kept}");
    let e = keys.commit(long(99)).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Full, "{e}");
    let e = State::over(Arc::clone(&keys), "grid").await.err().unwrap();
    assert_eq!(e.kind(), Kind::Full, "{e}");
    assert_eq!(keys.list(String::new()).await.unwrap().entries, all.entries, "it is full");
    // Room is made as the message says.
    let revision = all.revision;
    let alarms = etcd.http(0, "POST /v3/maintenance/alarm", "{}");
    let (_, alarms) = alarms.split_once("\r\n\r\n").unwrap();
    let alarms: serde_json::Value = serde_json::from_str(alarms).unwrap();
    let member = alarms["alarms"][0]["memberID"].as_str().unwrap();
    let off = serde_json::json!({"action": "DEACTIVATE", "memberID": member, "alarm": "NOSPACE"});
    for (request, body) in [
        ("kv/compaction", format!("{{\"revision\":{revision},\"physical\":true}}")),
        ("maintenance/defragment", "{}".into()),
        ("maintenance/alarm", off.to_string()),
    ] {
        let said = etcd.http(0, &format!("POST /v3/{request}"), &body);
        assert!(said.contains("200 OK"), "{request}: {said}");
    }
    assert_eq!(keys.list(String::new()).await.unwrap().entries, all.entries, "nothing is lost");
    keys.commit(long(100)).await.unwrap();
    State::over(keys, "grid").await.unwrap();
}

#[tokio::test]
async fn real_changes_that_are_compacted_are_said_to_be_gone() {
    if !wanted() {
        return;
    }
    let etcd = Etcd::start(1).await;
    let keys = etcd.keys().await;
    for n in 0..10 {
        keys.commit(put("a", &n.to_string())).await.unwrap();
    }
    let revision = keys.list("a".into()).await.unwrap().revision;
    let said = etcd.http(0, "POST /v3/kv/compaction", &format!("{{\"revision\":{revision}}}"));
    assert!(said.contains("200 OK"), "{said}");
    let mut changes = keys.watch("a".into(), 1);
    assert_eq!(changes.next().await.unwrap().unwrap_err().kind(), Kind::Gone);
    let mut changes = keys.watch("a".into(), revision);
    keys.commit(put("a", "10")).await.unwrap();
    assert_eq!(changes.next().await.unwrap().unwrap().value.unwrap(), b"10");
}

#[tokio::test]
async fn real_etcd_is_reached_by_mutual_tls() {
    if !wanted() {
        return;
    }
    let host = ["127.0.0.1".to_owned()];
    let etcd = Etcd::start_with(1, |dir| tls_args(&papers(dir, "etcd", &host))).await;
    let file = |what: &str| etcd.dir.path().join(format!("etcd-{what}.pem"));
    let ours = Papers { ca: file("ca"), cert: file("cert"), key: file("key") };
    let keys = keys_at(&etcd.addresses(0), Some(ours.clone()));
    until("etcd answers", async || keys.get("a".into()).await.is_ok()).await;
    keys.commit(put("a", "1")).await.unwrap();
    // Neither is heard who has papers of another authority, nor is etcd believed with another's.
    let [ca, cert, key] = papers(etcd.dir.path(), "other", &host);
    let other = Papers { ca, cert, key };
    for papers in [Papers { ca: ours.ca, ..other.clone() }, Papers { ca: other.ca, ..ours }] {
        let e = keys_at(&etcd.addresses(0), Some(papers)).get("a".into()).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Retry, "{e}");
        println!("{e}");
    }
    assert!(keys_at(&etcd.addresses(0), None).get("a".into()).await.is_err());
}
