//! The embedded keys, and what refs do over keys that fail or are changed by others.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use api::catalog::{Expect, RefInfo};
use api::grid::{CacheInfo, Role};
use image::{Digest, Error, Kind, Ref, Result};
use tokio::sync::Semaphore;

use super::disk::Disk;
use super::keys::{Keys, Listing, Transaction, Versioned, Watch};
use super::lead::Reign;
use super::{Issuer, State, Token, VERSION};
use crate::archive::{Answer, RefMove};
use crate::clock::Clock;
use crate::refs::Refs;
use crate::tests::fake::Fake;

fn put(key: &str, value: &str) -> Transaction {
    Transaction::default().put(key, value.into())
}

#[tokio::test]
async fn state_of_an_earlier_version_knows_no_store_and_takes_the_first() {
    let keys = Arc::new(Disk::in_memory());
    let state = State::over(keys.clone(), "grid").await.unwrap();
    assert_eq!(state.store().await.unwrap(), None);
    state.adopt_store("a").await.unwrap();
    state.adopt_store("a").await.unwrap();
    assert_eq!(state.adopt_store("b").await.unwrap_err().kind(), Kind::Conflict);
    assert_eq!(keys.get("store".into()).await.unwrap().unwrap().value, b"\"a\"");
    let again = State::over(keys, "grid").await.unwrap();
    assert_eq!(again.store().await.unwrap().as_deref(), Some("a"));
}

#[tokio::test]
async fn state_of_a_later_version_or_in_disorder_is_refused() {
    let keys = Arc::new(Disk::in_memory());
    State::over(keys.clone(), "grid").await.unwrap();
    keys.commit(put("format", &(VERSION + 1).to_string())).await.unwrap();
    let e = State::over(keys.clone(), "grid").await.err().unwrap();
    assert_eq!(e.kind(), Kind::Unsupported, "{e}");
    keys.commit(put("format", "{")).await.unwrap();
    let e = State::over(keys, "grid").await.err().unwrap();
    assert_eq!(e.kind(), Kind::Corrupt, "{e}");
    assert!(e.message().contains("`format`"), "{e}");
}

fn entry(seq: u64, name: &str, image: Option<&str>) -> RefMove {
    let image = image.map(|i| Digest::of_chunk(i.as_bytes()));
    RefMove { seq, name: name.parse().unwrap(), image, at: seq }
}

#[tokio::test]
async fn moves_are_applied_once_and_the_last_one_counts() {
    let state = State::in_memory("grid").await;
    let moves = [
        entry(1, "a:1", Some("x")),
        entry(2, "b:1", Some("x")),
        entry(3, "a:1", Some("y")),
        entry(4, "b:1", None),
    ];
    state.apply(&moves).await.unwrap();
    state.apply(&moves).await.unwrap();
    state.apply(&[entry(3, "b:1", Some("late"))]).await.unwrap();
    let refs = state.refs().await.unwrap();
    assert_eq!(refs.len(), 1);
    assert_eq!((refs[0].image, refs[0].moved), (Digest::of_chunk(b"y"), 3));
    assert_eq!(state.seq().await.unwrap(), 4);
}

#[tokio::test]
async fn tokens_that_expired_are_dropped_and_servers_replaced() {
    let state = State::in_memory("grid").await;
    let token = |expires| Token { role: Role::Node, name: None, expires, issuer: None };
    let (old, new) = (Digest::of_stored(b"old"), Digest::of_stored(b"new"));
    state.add_token(&old, &token(10)).await.unwrap();
    state.add_token(&new, &token(11)).await.unwrap();
    assert_eq!(state.add_token(&new, &token(99)).await.unwrap_err().kind(), Kind::Conflict);
    state.drop_expired_tokens(10).await.unwrap();
    assert_eq!(state.token(&old).await.unwrap(), None);
    assert_eq!(state.token(&new).await.unwrap(), Some(token(11)));

    let server = |name: &str| CacheInfo {
        name: name.into(),
        server_name: format!("{name}.forebay.internal"),
        endpoints: vec![],
        receives: true,
        api: None,
        weight: 1.0,
        draining: false,
    };
    for name in ["b", "a", "b"] {
        state.lease_server(&server(name), 9).await.unwrap();
    }
    assert_eq!(state.servers(0).await.unwrap(), [server("a"), server("b")]);
}

#[tokio::test]
async fn a_removal_drops_the_tokens_by_and_for_the_name_and_those_of_unknown_making() {
    let disk = Arc::new(Disk::in_memory());
    let state = State::over(disk.clone(), "grid").await.unwrap();
    let token = |by: &str, only: Option<&str>| {
        let issuer = Some(Issuer { name: by.into(), certificate: Digest::of_stored(b"c") });
        Token { role: Role::Node, name: only.map(Into::into), expires: 9, issuer }
    };
    let tokens = [token("ann", None), token("bob", Some("ann")), token("bob", None)];
    let hashes = [0, 1, 2].map(|n: u8| Digest::of_stored(&[n]));
    for (hash, token) in hashes.iter().zip(&tokens) {
        state.add_token(hash, token).await.unwrap();
    }
    // As it was kept when nobody wrote down who made it.
    let old = Digest::of_stored(b"old");
    let kept = br#"{"role":"node","name":null,"expires":9}"#;
    let put = Transaction::default().put(&format!("tokens/{old}"), kept.to_vec());
    disk.commit(put).await.unwrap();
    assert_eq!(state.token(&old).await.unwrap().unwrap().issuer, None);
    state.remove_member("ann", None, 5).await.unwrap();
    for gone in [hashes[0], hashes[1], old] {
        assert_eq!(state.token(&gone).await.unwrap(), None);
    }
    assert_eq!(state.token(&hashes[2]).await.unwrap().as_ref(), Some(&tokens[2]));
}

#[tokio::test]
async fn more_tokens_than_one_transaction_takes_are_dropped_all_the_same() {
    let state = State::in_memory("grid").await;
    let token =
        |expires| Token { role: Role::Node, name: Some("ann".into()), expires, issuer: None };
    let hash = |n: u32| Digest::of_stored(&n.to_le_bytes());
    for n in 0..400 {
        state.add_token(&hash(n), &token(if n < 200 { 1 } else { 9 })).await.unwrap();
    }
    state.drop_expired_tokens(5).await.unwrap();
    assert_eq!(state.listing("tokens/").await.unwrap().entries.len(), 200);
    state.remove_member("ann", None, 5).await.unwrap();
    assert!(state.listing("tokens/").await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn a_leased_server_counts_until_its_lease_ends_and_outlives_a_restart() {
    let state = State::in_memory("grid").await;
    let server = |name: &str| CacheInfo {
        name: name.into(),
        server_name: format!("{name}.forebay.internal"),
        endpoints: vec![],
        receives: false,
        api: None,
        weight: 1.0,
        draining: false,
    };
    // As an earlier version kept placement's own.
    let own = super::Server { info: server("up"), until: None, kept: vec![] };
    let put = Transaction::default().put("servers/up", super::encode(&own));
    state.commit(put).await.unwrap();
    state.lease_server(&server("c1"), 10).await.unwrap();
    state.lease_server(&server("c2"), 20).await.unwrap();
    assert_eq!(state.servers(9).await.unwrap(), [server("c1"), server("c2"), server("up")]);
    assert_eq!(state.servers(10).await.unwrap(), [server("c2"), server("up")]);
    state.lease_server(&server("c1"), 30).await.unwrap();
    assert_eq!(state.servers(20).await.unwrap(), [server("c1"), server("up")]);
    assert_eq!(state.drop_server("c1").await.unwrap(), Some(server("c1")));
    assert_eq!(state.drop_server("c1").await.unwrap(), None);
    assert_eq!(state.drop_server("up").await.unwrap(), None, "it has no lease");
    assert_eq!(state.servers(0).await.unwrap(), [server("c2"), server("up")]);
}

/// Keys whose next commit fails, before or after it is done.
struct Failing {
    keys: Disk,
    next: Mutex<Option<bool>>,
}

impl Keys for Failing {
    fn get(&self, key: String) -> Answer<'_, Option<Versioned>> {
        self.keys.get(key)
    }

    fn list(&self, prefix: String) -> Answer<'_, Listing> {
        self.keys.list(prefix)
    }

    fn commit(&self, transaction: Transaction) -> Answer<'_, ()> {
        Box::pin(async move {
            let next = self.next.lock().unwrap().take();
            if next != Some(false) {
                self.keys.commit(transaction).await?;
            }
            match next {
                Some(_) => Err(Error::new(Kind::Io, "the disk is ill")),
                None => Ok(()),
            }
        })
    }

    fn watch(&self, prefix: String, after: u64) -> Watch {
        self.keys.watch(prefix, after)
    }

    fn campaign(&self, key: String, id: Vec<u8>, ttl: Duration) -> Answer<'_, Reign> {
        self.keys.campaign(key, id, ttl)
    }
}

fn image(fake: &Fake, seed: &str) -> Digest {
    fake.add_image(seed)
}

#[tokio::test]
async fn a_state_that_fails_catches_up_with_the_log() {
    let keys = Arc::new(Failing { keys: Disk::in_memory(), next: Mutex::new(None) });
    let state = State::over(keys.clone(), "grid").await.unwrap();
    let fake = Fake::new();
    let refs = Refs::open(state, fake.clone(), Clock::new(|| 7)).await.unwrap();
    let name: Ref = "a:1".parse().unwrap();
    let (a, b) = (image(&fake, "a"), image(&fake, "b"));
    let mut before = Expect::Absent;
    for done in [false, true] {
        *keys.next.lock().unwrap() = Some(done);
        assert_eq!(refs.set(&name, a, before, None).await.unwrap_err().kind(), Kind::Io);
        // In the log, so decided, whatever the state said.
        assert_eq!(refs.all().await.unwrap()[0].image, a);
        refs.set(&name, b, Expect::At(a), None).await.unwrap();
        before = Expect::At(b);
    }
    assert_eq!(fake.shelf().log.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
}

#[tokio::test]
async fn two_placements_over_one_state_and_store_agree() {
    let state = State::in_memory("grid").await;
    let fake = Fake::new();
    let images: Vec<_> = (0..8).map(|i| image(&fake, &i.to_string())).collect();
    let open = || Refs::open(state.clone(), fake.clone(), Clock::new(|| 7));
    let (one, two) = (open().await.unwrap(), open().await.unwrap());
    let name: Ref = "a:1".parse().unwrap();
    for round in 0..4 {
        let expect = match round {
            0 => Expect::Absent,
            _ => Expect::At(state.get_ref(&name).await.unwrap().unwrap().image),
        };
        let (a, b) = (images[2 * round], images[2 * round + 1]);
        let (won, lost) =
            tokio::join!(one.set(&name, a, expect, None), two.set(&name, b, expect, None));
        let (won, lost) = if won.is_ok() { (won, lost) } else { (lost, won) };
        assert_eq!(state.get_ref(&name).await.unwrap().unwrap().image, won.unwrap().image);
        assert_eq!(lost.unwrap_err().kind(), Kind::Conflict);
    }
    // One that moves blindly after the other moved, without having seen it.
    one.set(&name, images[0], Expect::Anything, None).await.unwrap();
    two.set(&name, images[1], Expect::Anything, None).await.unwrap();
    one.delete(&name, None).await.unwrap();
    assert!(two.all().await.unwrap().is_empty());
    let log: Vec<_> = fake.shelf().log.keys().copied().collect();
    assert_eq!(log, (1..=7).collect::<Vec<_>>());
}

/// Keys that wait before one call: the second read of a pair, or a commit.
struct Slow {
    keys: Arc<Disk>,
    hold: Hold,
    calls: AtomicUsize,
    arrived: Semaphore,
    leave: Semaphore,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    SecondGet,
    Commit,
}

impl Slow {
    async fn pass(&self, call: Hold) {
        let nth =
            if call == self.hold { self.calls.fetch_add(1, Ordering::Relaxed) + 1 } else { 0 };
        if nth == (if call == Hold::SecondGet { 2 } else { 1 }) {
            self.arrived.add_permits(1);
            self.leave.acquire().await.unwrap().forget();
        }
    }
}

impl Keys for Slow {
    fn get(&self, key: String) -> Answer<'_, Option<Versioned>> {
        Box::pin(async move {
            self.pass(Hold::SecondGet).await;
            self.keys.get(key).await
        })
    }

    fn list(&self, prefix: String) -> Answer<'_, Listing> {
        self.keys.list(prefix)
    }

    fn commit(&self, transaction: Transaction) -> Answer<'_, ()> {
        Box::pin(async move {
            self.pass(Hold::Commit).await;
            self.keys.commit(transaction).await
        })
    }

    fn watch(&self, prefix: String, after: u64) -> Watch {
        self.keys.watch(prefix, after)
    }

    fn campaign(&self, key: String, id: Vec<u8>, ttl: Duration) -> Answer<'_, Reign> {
        self.keys.campaign(key, id, ttl)
    }
}

/// One placement is held in the middle of moving `a:1` from image 0 to 1, while another moves it to
/// 2. Returns what the first was told, what the second was told, and where the ref points.
async fn overtaken(hold: Hold) -> (Result<RefInfo>, Result<RefInfo>, Digest) {
    let disk = Arc::new(Disk::in_memory());
    let fake = Fake::new();
    let images: Vec<_> = (0..3).map(|i| image(&fake, &i.to_string())).collect();
    let quick = State::over(disk.clone(), "grid").await.unwrap();
    let two = Refs::open(quick.clone(), fake.clone(), Clock::new(|| 7)).await.unwrap();
    let name: Ref = "a:1".parse().unwrap();
    two.set(&name, images[0], Expect::Absent, None).await.unwrap();
    let (arrived, leave) = (Semaphore::new(0), Semaphore::new(0));
    let slow = Arc::new(Slow { keys: disk, hold, calls: AtomicUsize::new(99), arrived, leave });
    let state = State::over(slow.clone(), "grid").await.unwrap();
    let one = Refs::open(state, fake, Clock::new(|| 7)).await.unwrap();
    slow.calls.store(0, Ordering::Relaxed);
    let (first, second) =
        tokio::join!(one.set(&name, images[1], Expect::At(images[0]), None), async {
            slow.arrived.acquire().await.unwrap().forget();
            let done = two.set(&name, images[2], Expect::Anything, None).await;
            slow.leave.add_permits(1);
            done
        });
    (first, second, quick.get_ref(&name).await.unwrap().unwrap().image)
}

#[tokio::test]
async fn a_mover_that_is_overtaken_while_it_looks_is_told_so() {
    let (first, second, now) = overtaken(Hold::SecondGet).await;
    assert_eq!(first.unwrap_err().kind(), Kind::Conflict);
    assert_eq!(now, second.unwrap().image);
}

#[tokio::test]
async fn a_move_that_is_decided_but_late_does_not_undo_a_later_one() {
    let (first, second, now) = overtaken(Hold::Commit).await;
    // Both were decided, one after the other.
    first.unwrap();
    assert_eq!(now, second.unwrap().image);
}

#[tokio::test]
async fn what_is_led_ends_with_the_lead_and_begins_nothing_after() {
    let state = State::in_memory("grid").await;
    let lead = Arc::new(state.lead("x", "a", Duration::from_secs(2)).await.unwrap());
    assert_eq!(lead.during(async { Ok(7) }).await.unwrap(), 7);
    let endless = tokio::spawn({
        let lead = Arc::clone(&lead);
        async move { lead.during(std::future::pending::<Result<()>>()).await }
    });
    lead.resign().await.unwrap();
    assert_eq!(endless.await.unwrap().unwrap_err().kind(), Kind::Retry);
    let begun =
        lead.during(std::future::poll_fn::<Result<()>, _>(|_| panic!("it was begun"))).await;
    assert_eq!(begun.unwrap_err().kind(), Kind::Retry);
}
