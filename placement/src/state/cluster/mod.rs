//! The state of several placements: keys in etcd, over its gRPC interface.
//!
//! A key of the state is one of etcd's, behind a prefix; its version is `mod_revision`. Reads are
//! linearizable. What is assumed of etcd: a transaction that was acknowledged stays, and is done whole or
//! not at all; a lease does not end before its time, counted from when etcd was asked for it.

mod calls;
mod hold;
mod place;
#[cfg(test)]
mod real;
#[cfg(test)]
mod real_tests;
mod watch;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use image::{Error, Kind, Result};

pub use place::{ClusterPlace, Papers};

use super::keys::{Keys, Listing, Transaction, Versioned, Watch, conflict};
use super::lead::Reign;
use crate::archive::Answer;
use crate::clock::Uptime;
use calls::{Members, Twice};
use wire::{
    Compare, DeleteRangeRequest, KeyValue, MOD, Op, PutRequest, RangeRequest, RangeResponse,
    RequestOp, Target, TxnRequest, TxnResponse,
};

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";

/// Keys of a listing that are asked for at a time, unless they are too long for a message.
const PAGE: i64 = 500;
/// Times that a listing is begun, when what it was about was compacted meanwhile.
const LISTINGS: usize = 3;

/// Keys in etcd.
pub(super) struct Cluster {
    members: Arc<Members>,
    /// What stands before each key.
    root: String,
    uptime: Uptime,
}

impl Cluster {
    /// The keys at a place. Nobody is asked yet.
    pub(super) fn new(place: &ClusterPlace, grid: Option<&str>, uptime: Uptime) -> Result<Self> {
        let members = Arc::new(Members::new(place.members()?));
        Ok(Self { members, root: place.root(grid)?, uptime })
    }

    fn key(&self, key: &str) -> Vec<u8> {
        format!("{}{key}", self.root).into_bytes()
    }

    /// The range of keys that begin with a prefix.
    fn range(&self, prefix: &str) -> (Vec<u8>, Vec<u8>) {
        let from = self.key(prefix);
        let mut to = from.clone();
        // The root is not empty, and no byte of UTF-8 is the last one that there is.
        *to.last_mut().expect("a root") += 1;
        (from, to)
    }

    async fn ask(&self, range: RangeRequest) -> Result<RangeResponse> {
        self.members.call(RANGE, range, Twice::Yes).await
    }

    /// The keys from `key` to `end`, all as of one revision.
    async fn pages(&self, key: Vec<u8>, end: Vec<u8>) -> Result<Listing> {
        let mut range = RangeRequest { key, range_end: end, limit: PAGE, revision: 0 };
        let mut entries = Vec::new();
        loop {
            let page = match self.ask(range.clone()).await {
                Err(e) if e.message().contains("message length too large") && range.limit > 1 => {
                    range.limit /= 2;
                    continue;
                }
                page => page?,
            };
            let revision = page.header.map_or(0, |header| header.revision);
            if range.revision == 0 {
                range.revision = revision;
            }
            if let (true, Some(last)) = (page.more, page.kvs.last()) {
                range.key = [last.key.as_slice(), &[0]].concat();
            }
            for kv in page.kvs {
                entries.push(entry(&self.root, kv)?);
            }
            if !page.more {
                return Ok(Listing { revision: number(range.revision), entries });
            }
        }
    }

    /// Does a transaction; what it puts hangs on a lease, if one is given. Returns its revision.
    async fn transact(&self, transaction: Transaction, lease: i64) -> Result<u64> {
        transaction.check()?;
        let compare = transaction.compares.iter().map(|(key, version)| {
            let version = version.map_or(0, |v| i64::try_from(v).unwrap_or(i64::MAX));
            Compare { target: MOD, key: self.key(key), with: Some(Target::ModRevision(version)) }
        });
        let compare = compare.collect();
        let success = transaction.changes.into_iter().map(|(key, value)| {
            let key = self.key(&key);
            let op = match value {
                Some(value) => Op::Put(PutRequest { key, value, lease }),
                None => Op::Delete(DeleteRangeRequest { key }),
            };
            RequestOp { op: Some(op) }
        });
        let asked = TxnRequest { compare, success: success.collect() };
        let done: TxnResponse = self.members.call(TXN, asked, Twice::No).await?;
        match done.succeeded {
            true => Ok(number(done.header.map_or(0, |header| header.revision))),
            false => Err(conflict()),
        }
    }
}

/// etcd's numbers are signed, and never negative.
fn number(n: i64) -> u64 {
    n.try_into().unwrap_or(0)
}

fn entry(root: &str, kv: KeyValue) -> Result<(String, Versioned)> {
    let key = name(root, kv.key)?;
    Ok((key, Versioned { version: number(kv.mod_revision), value: kv.value }))
}

/// A key of the state, of one of etcd's.
fn name(root: &str, key: Vec<u8>) -> Result<String> {
    let key = String::from_utf8(key).ok();
    let key = key.as_deref().and_then(|key| key.strip_prefix(root)).map(str::to_owned);
    key.ok_or_else(|| {
        let what = format!("etcd: a key under `{root}` is none of placement's: who wrote it?");
        Error::new(Kind::Corrupt, what)
    })
}

impl Keys for Cluster {
    fn get(&self, key: String) -> Answer<'_, Option<Versioned>> {
        Box::pin(async move {
            let range = RangeRequest { key: self.key(&key), ..Default::default() };
            let found = self.ask(range).await?.kvs.pop();
            Ok(found.map(|kv| entry(&self.root, kv)).transpose()?.map(|(_, value)| value))
        })
    }

    fn list(&self, prefix: String) -> Answer<'_, Listing> {
        Box::pin(async move {
            let mut begun = 1;
            loop {
                let (from, to) = self.range(&prefix);
                match self.pages(from, to).await {
                    Err(e) if e.kind() == Kind::Gone && begun < LISTINGS => begun += 1,
                    done => return done,
                }
            }
        })
    }

    fn commit(&self, transaction: Transaction) -> Answer<'_, ()> {
        Box::pin(async move { self.transact(transaction, 0).await.map(drop) })
    }

    fn watch(&self, prefix: String, after: u64) -> Watch {
        watch::watch(self.members.clone(), self.root.clone(), self.range(&prefix), after)
    }

    fn campaign(&self, key: String, id: Vec<u8>, ttl: Duration) -> Answer<'_, Reign> {
        Box::pin(self.take(key, id, ttl))
    }
}
