//! What holds of any keys: one suite, over each database that there is.

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt, future};
use image::Kind;

use super::disk::Disk;
use super::keys::{Change, Keys, MAX_BYTES, MAX_OPS, Transaction, Versioned};
use super::lead::Lead;

/// How long a leader leads beyond its last sign of life; the least that etcd gives.
pub(super) const TTL: Duration = Duration::from_secs(2);

fn put(key: &str, value: &str) -> Transaction {
    Transaction::default().put(key, value.into())
}

/// All of it. The keys must be empty.
pub(super) async fn conforms(keys: Arc<dyn Keys>) {
    let keys = &keys;
    transactions_compare_and_set(&**keys).await;
    transactions_are_whole_or_refused(&**keys).await;
    versions_are_never_used_again(&**keys).await;
    lists_hold_what_begins_with_the_prefix(&**keys).await;
    counters_lose_nothing(keys).await;
    lists_are_of_one_moment(keys).await;
    long_values_are_kept(&**keys).await;
    many_keys_are_listed(&**keys).await;
    watchers_see_each_change_once(keys).await;
    one_leads(keys).await;
}

async fn get(keys: &dyn Keys, key: &str) -> Option<Versioned> {
    keys.get(key.into()).await.unwrap()
}

async fn transactions_compare_and_set(keys: &dyn Keys) {
    keys.commit(put("cas/a", "1").unchanged("cas/a", None)).await.unwrap();
    let seen = get(keys, "cas/a").await.unwrap();
    let e = keys.commit(put("cas/a", "2").unchanged("cas/a", None)).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict, "it exists");
    keys.commit(put("cas/a", "1").unchanged("cas/a", Some(&seen))).await.unwrap();
    // The same value, but a later version: somebody was there.
    let late = put("cas/a", "3").put("cas/b", vec![]).unchanged("cas/a", Some(&seen));
    assert_eq!(keys.commit(late).await.unwrap_err().kind(), Kind::Conflict);
    assert_eq!(get(keys, "cas/b").await, None, "all or nothing");
    assert_eq!(get(keys, "cas/a").await.unwrap().value, b"1");
    // What is compared need not be what is changed; to delete what is not there is no error.
    let there = get(keys, "cas/a").await.unwrap();
    let both = put("cas/b", "").delete("cas/none").unchanged("cas/a", Some(&there));
    keys.commit(both.unchanged("cas/none", None)).await.unwrap();
    assert_eq!(get(keys, "cas/b").await.unwrap().value, b"");
}

async fn transactions_are_whole_or_refused(keys: &dyn Keys) {
    let of = |n: usize| {
        (0..n).fold(Transaction::default(), |t, i| t.put(&format!("all/{i:03}"), vec![7]))
    };
    keys.commit(of(MAX_OPS)).await.unwrap();
    let all = keys.list("all/".into()).await.unwrap().entries;
    assert_eq!(all.len(), MAX_OPS);
    assert!(all.iter().all(|(_, v)| v.version == all[0].1.version), "one revision");
    let compared = |n| (0..n).fold(put("all/x", ""), |t, i| t.unchanged(&format!("no/{i}"), None));
    keys.commit(compared(MAX_OPS)).await.unwrap();
    let long = put("all/y", "").put("all/z", vec![0; MAX_BYTES]);
    let twice = put("all/y", "1").delete("all/y");
    for refused in [of(MAX_OPS + 1), compared(MAX_OPS + 1), long, twice] {
        assert_eq!(keys.commit(refused).await.unwrap_err().kind(), Kind::Invalid);
    }
    assert_eq!(get(keys, "all/y").await, None);
    let gone = all.iter().fold(Transaction::default(), |t, (key, _)| t.delete(key));
    keys.commit(gone).await.unwrap();
    let left = keys.list("all/".into()).await.unwrap().entries;
    assert_eq!(left.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["all/x"]);
}

async fn versions_are_never_used_again(keys: &dyn Keys) {
    let mut last = 0;
    for round in 0..3 {
        keys.commit(put("ver/a", "same")).await.unwrap();
        let seen = get(keys, "ver/a").await.unwrap();
        assert!(seen.version > last, "round {round}");
        last = seen.version;
        keys.commit(Transaction::default().delete("ver/a")).await.unwrap();
        let stale = put("ver/a", "stale").unchanged("ver/a", Some(&seen));
        assert_eq!(keys.commit(stale).await.unwrap_err().kind(), Kind::Conflict);
    }
}

async fn lists_hold_what_begins_with_the_prefix(keys: &dyn Keys) {
    for key in ["li", "li/b", "li/a", "li/ä", "li0", "l/x", "lj"] {
        keys.commit(put(key, key)).await.unwrap();
    }
    let listing = keys.list("li/".into()).await.unwrap();
    let names: Vec<_> =
        listing.entries.iter().map(|(k, v)| (k.as_str(), v.value.as_slice())).collect();
    assert_eq!(names, [("li/a", &b"li/a"[..]), ("li/b", b"li/b"), ("li/ä", "li/ä".as_bytes())]);
    let latest = get(keys, "lj").await.unwrap().version;
    assert!(listing.revision >= latest, "{} of {latest}", listing.revision);
    assert!(keys.list("nothing/".into()).await.unwrap().entries.is_empty());
}

/// Adds 1 to a number until that was not a conflict.
async fn add(keys: &dyn Keys, key: &str) {
    loop {
        let seen = get(keys, key).await;
        let was = seen.as_ref().map_or(0, |v| String::from_utf8_lossy(&v.value).parse().unwrap());
        let next = put(key, &(was + 1u64).to_string()).unchanged(key, seen.as_ref());
        match keys.commit(next).await {
            Ok(()) => return,
            Err(e) => assert_eq!(e.kind(), Kind::Conflict, "{e}"),
        }
    }
}

async fn counters_lose_nothing(keys: &Arc<dyn Keys>) {
    let adders = (0..8).map(|_| {
        let keys = keys.clone();
        tokio::spawn(async move {
            for _ in 0..10 {
                add(&*keys, "count").await;
            }
        })
    });
    for done in future::join_all(adders).await {
        done.unwrap();
    }
    assert_eq!(get(&**keys, "count").await.unwrap().value, b"80");
}

/// Two keys that always change together are never seen apart.
async fn lists_are_of_one_moment(keys: &Arc<dyn Keys>) {
    let writer = {
        let keys = keys.clone();
        tokio::spawn(async move {
            for n in 0..50 {
                let n = n.to_string();
                keys.commit(put("one/a", &n).put("one/z", n.clone().into())).await.unwrap();
            }
        })
    };
    while !writer.is_finished() {
        let seen = keys.list("one/".into()).await.unwrap().entries;
        assert!(seen.windows(2).all(|w| w[0].1 == w[1].1), "{seen:?}");
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
}

async fn long_values_are_kept(keys: &dyn Keys) {
    let value = |i: u8| -> Vec<u8> { (0..1 << 20).map(|at: u32| (at >> 8) as u8 ^ i).collect() };
    for i in 0..10 {
        keys.commit(Transaction::default().put(&format!("long/{i}"), value(i))).await.unwrap();
    }
    // More than goes into one message.
    let all = keys.list("long/".into()).await.unwrap().entries;
    assert!(all.len() == 10 && all.iter().zip(0..).all(|((_, v), i)| v.value == value(i)));
}

async fn many_keys_are_listed(keys: &dyn Keys) {
    let name = |i: usize| format!("many/{i:05}");
    for from in (0..10_000).step_by(MAX_OPS) {
        let some = from..(from + MAX_OPS).min(10_000);
        let some = some.fold(Transaction::default(), |t, i| t.put(&name(i), vec![]));
        keys.commit(some).await.unwrap();
    }
    let all = keys.list("many/".into()).await.unwrap().entries;
    assert_eq!(all.len(), 10_000);
    assert!(all.iter().zip(0..).all(|((key, _), i)| *key == name(i)));
}

async fn watchers_see_each_change_once(keys: &Arc<dyn Keys>) {
    keys.commit(put("seen/before", "")).await.unwrap();
    let from = keys.list("seen/".into()).await.unwrap().revision;
    // Some before anybody watches, some meanwhile.
    let write = async |range: std::ops::Range<u32>| {
        for n in range {
            let n = n.to_string();
            let both = put("seen/a", &n).put("seen/b", n.clone().into()).put("unseen", vec![]);
            keys.commit(both).await.unwrap();
            keys.commit(Transaction::default().delete("seen/b")).await.unwrap();
        }
    };
    write(0..20).await;
    let mut changes = keys.watch("seen/".into(), from);
    let watch = async {
        let mut seen: Vec<Change> = Vec::new();
        while seen.len() < 120 {
            seen.push(changes.next().await.expect("watching does not end").unwrap());
        }
        seen
    };
    let (mut seen, ()) = tokio::join!(watch, write(20..40));
    assert!(seen.windows(2).all(|w| w[0].version <= w[1].version), "in order");
    seen.sort_by(|a, b| (a.version, &a.key).cmp(&(b.version, &b.key)));
    for (n, of) in seen.chunks(3).enumerate() {
        let value = Some(n.to_string().into_bytes());
        let keys: Vec<_> = of.iter().map(|c| (c.key.as_str(), c.value.clone())).collect();
        assert_eq!(keys, [("seen/a", value.clone()), ("seen/b", value), ("seen/b", None)]);
        assert!(of[0].version == of[1].version && of[1].version < of[2].version);
    }
    assert!(changes.next().now_or_never().is_none(), "nothing twice");
}

async fn one_leads(keys: &Arc<dyn Keys>) {
    let lead = async |id: &str| {
        let key = "leaders/test".to_owned();
        Lead::new(keys.clone(), key.clone(), keys.campaign(key, id.into(), TTL).await.unwrap())
    };
    let first = lead("first").await;
    assert!(first.holds());
    first.commit(put("led", "first")).await.unwrap();
    let next = lead("second");
    tokio::pin!(next);
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut next).await.is_err());
    // A leader learns of it when somebody takes its key away, and changes nothing from then on.
    keys.commit(Transaction::default().delete("leaders/test")).await.unwrap();
    let e = first.commit(put("led", "late")).await.unwrap_err();
    assert_eq!((e.kind(), first.holds()), (Kind::Conflict, false), "{e}");
    first.lost().await;
    first.resign().await.unwrap();
    let second = next.await;
    second.commit(put("led", "second")).await.unwrap();
    second.resign().await.unwrap();
    assert_eq!(get(&**keys, "leaders/test").await, None);
    assert_eq!(get(&**keys, "led").await.unwrap().value, b"second");
    let others = keys.campaign("leaders/tests".into(), b"x".to_vec(), TTL).await.unwrap();
    let third = lead("third").await;
    assert!(third.holds() && !others.deadline.passed(), "each name has its own leader");
}

#[tokio::test]
async fn redb_in_memory_conforms() {
    conforms(Arc::new(Disk::in_memory())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redb_in_a_file_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Disk::open(&dir.path().join("state.redb")).unwrap();
    conforms(Arc::new(open())).await;
    // Opened anew, it does not know what was changed before, and says so.
    let keys = open();
    let revision = keys.list("count".into()).await.unwrap().revision;
    let mut before = keys.watch(String::new(), revision - 1);
    assert_eq!(before.next().await.unwrap().unwrap_err().kind(), Kind::Gone);
    let mut after = keys.watch(String::new(), revision);
    keys.commit(put("count", "81")).await.unwrap();
    assert_eq!(after.next().await.unwrap().unwrap().version, revision + 1);
}

#[tokio::test]
async fn who_watches_too_slowly_is_told_so() {
    let keys = Disk::in_memory();
    let mut slow = keys.watch("a".into(), 0);
    for _ in 0..8 {
        keys.commit(Transaction::default().put("b", vec![0; 1 << 20])).await.unwrap();
    }
    keys.commit(put("a", "1")).await.unwrap();
    assert_eq!(slow.next().await.unwrap().unwrap_err().kind(), Kind::Gone);
}
