//! Placement's state: refs, join tokens, members, servers.
//!
//! ```text
//! format           1
//! grid             the grid that the state belongs to
//! store            the id of the store that the grid has; not there in the state of earlier versions
//! seq              the last move of a ref that is in the state
//! refs/<ref>       where a ref points
//! tokens/<hash>    a join token that has not been used
//! members/<name>   who holds a name
//! removed/<name>   when a name was taken from its member, in seconds since 1970
//! servers/<name>   a server of chunks, where it listens, and until when it counts
//! traces/<digest>  what guests of an image touch first
//! nodes/<name>     a node that has reported
//! goals/<name>     what it is to do; kept when the node is forgotten: ids of items follow from its versions
//! standing/<name>  that a node is cordoned, drains, or was forgotten; not there of all others
//! reads/<name>     the images from which it reads
//! pools/<name>     what a pool shall be
//! operations/<id>  what was asked for and takes its time
//! reserved/<name>  what is reserved on a node, and until when
//! people/<name>    a person who has a token, which is kept as a hash
//! audit/<seq>      who changed what, or was refused
//! audit_head       where that log begins and ends
//! leaders/<name>   who leads, by the name of what is led
//! generation       how often the state was restored; not there if it never was
//! not_before       since a restore: before when no lease may be handed out, in seconds since 1970
//! restoring        there while a restore is not at its end
//! ```
//!
//! Values are JSON, but for traces (`image::trace`); a reader ignores fields that it does not know.
//!
//! The keys are in a redb file (`disk.rs`) or in etcd (`cluster/`), behind the seam [`keys::Keys`].

mod backup;
mod check;
mod cluster;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod crash_tests;
mod disk;
mod generation;
mod history;
pub mod keys;
mod lead;
mod place;
mod restore;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::catalog::RefInfo;
use api::grid::{CacheInfo, Role};
use api::keep::CachedImage;
use image::{BootTrace, Digest, Error, Kind, Ref, Result};
use serde::{Deserialize, Serialize};

use crate::archive::RefMove;
use crate::fleet::pinned::Cache;
use generation::{Fenced, GENERATION, NOT_BEFORE, RESTORING};
use keys::{Keys, Listing, MAX_OPS, Transaction, Versioned, Watch, decode, encode};

pub use check::{CheckReport, check};
pub use cluster::{ClusterPlace, Papers};
pub use generation::LONGEST_LEASE;
pub use lead::{Deadline, Lead, Reign};
pub use place::StatePlace;
pub use restore::{BackupReport, RestoreReport, backup, restore};

const FORMAT: &str = "format";
const GRID: &str = "grid";
const STORE: &str = "store";
const SEQ: &str = "seq";
const LEADERS: &str = "leaders/";
/// The version of the state's format.
const VERSION: u32 = 1;

/// A ref, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Target {
    image: Digest,
    moved: u64,
}

/// A join token that has not been used. Its secret is not here: the key is the secret's hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    /// What the member may do.
    pub role: Role,
    /// The only name that it may take, if one was named.
    #[serde(default)]
    pub name: Option<String>,
    /// Until when, in seconds since 1970.
    pub expires: u64,
    /// Who made it; not known of those that were made long ago.
    #[serde(default)]
    pub issuer: Option<Issuer>,
}

/// The admin who made a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Issuer {
    pub name: String,
    /// The certificate with which it asked.
    pub certificate: Digest,
}

impl Token {
    /// Whether it could bring a removed member back. If it is not known who made it, it could.
    fn goes_with(&self, removed: &str) -> bool {
        let by = self.issuer.as_ref().is_none_or(|issuer| issuer.name == removed);
        by || self.name.as_deref() == Some(removed)
    }
}

/// Who holds a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// What the member may do.
    pub role: Role,
    /// Until when its certificate is good, in seconds since 1970.
    pub expires: u64,
    /// The certificate with which it took the name; not known of those who did long ago.
    #[serde(default)]
    pub certificate: Option<Digest>,
    /// The one from which that was renewed: it is good until it expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Digest>,
    /// Placement itself goes by this name.
    #[serde(default)]
    pub own: bool,
}

impl Holder {
    /// The certificates that are heard though the name was removed before.
    pub(crate) fn heard(&self) -> Vec<Digest> {
        self.certificate.into_iter().chain(self.before).collect()
    }
}

/// A server of chunks, as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Server {
    #[serde(flatten)]
    info: CacheInfo,
    /// Until when it counts, in seconds since 1970; without it (an earlier version's), as long as it is in the list.
    #[serde(default)]
    until: Option<u64>,
    /// What it says of the images that it was told to keep.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kept: Vec<CachedImage>,
}

impl Server {
    fn counts(&self, now: u64) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// Placement's state. Cheap to clone.
#[derive(Clone)]
pub struct State(Arc<dyn Keys>);

impl State {
    /// Opens the state at a place, for a grid.
    pub async fn open(place: &StatePlace, grid: &str) -> Result<Self> {
        let keys = place.keys(Some(grid)).await?;
        Self::over(keys, grid).await.map_err(|e| e.at(place))
    }

    /// State in memory.
    #[cfg(test)]
    pub(crate) async fn in_memory(grid: &str) -> Self {
        Self::over(Arc::new(disk::Disk::in_memory()), grid).await.expect("memory does not fail")
    }

    /// State in any keys.
    pub async fn over(keys: Arc<dyn Keys>, grid: &str) -> Result<Self> {
        // The generation first: a restore that begins from now on fences us.
        let state = Self(Arc::new(Fenced::new(keys).await?));
        state.claim(grid).await?;
        Ok(state)
    }

    /// Makes fresh state the grid's own; refuses another version's and another grid's.
    async fn claim(&self, grid: &str) -> Result<()> {
        if self.0.get(RESTORING.into()).await?.is_some() {
            return Err(restore::unfinished());
        }
        let (format, owner) = (self.get::<u32>(FORMAT).await?, self.get::<String>(GRID).await?);
        let Some((version, _)) = format else {
            let claim = Transaction::default()
                .unchanged(RESTORING, None)
                .unchanged(FORMAT, None)
                .put(FORMAT, encode(&VERSION))
                .put(GRID, encode(&grid));
            return self.0.commit(claim).await;
        };
        if version != VERSION {
            return Err(check::unknown_version(version));
        }
        let owner = owner.map(|(owner, _)| owner).unwrap_or_default();
        if owner != grid {
            let what = format!(
                "placement's state belongs to grid {owner}, and the CA to grid {grid}: restore the \
                 CA's directory, or move the state away (names are rebuilt from the store)"
            );
            return Err(Error::new(Kind::Conflict, what));
        }
        Ok(())
    }

    /// Waits until nobody leads what has this name, and leads it as `id`, for `ttl` beyond the last sign of
    /// life that the state has of us: whole seconds, 2 at least.
    pub async fn lead(
        &self,
        name: &str,
        id: &(impl Serialize + ?Sized),
        ttl: Duration,
    ) -> Result<Lead> {
        let key = format!("{LEADERS}{name}");
        let reign = self.0.campaign(key.clone(), encode(&id), ttl).await?;
        Ok(Lead::new(self.0.clone(), key, reign))
    }

    /// Who leads what has this name, as it said when it began; also nobody if that says nothing here.
    pub(crate) async fn leader<T: serde::de::DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<T>> {
        let found = self.0.get(format!("{LEADERS}{name}")).await?;
        Ok(found.and_then(|found| serde_json::from_slice(&found.value).ok()))
    }

    /// All keys that begin with a prefix, and the revision of that: [`State::watch`] goes on from there.
    pub async fn listing(&self, prefix: &str) -> Result<Listing> {
        self.0.list(prefix.into()).await
    }

    /// The changes of keys that begin with a prefix, after a revision.
    pub fn watch(&self, prefix: &str, after: u64) -> Watch {
        self.0.watch(prefix.into(), after)
    }

    /// Which generation of the grid it is: each restore begins another.
    pub(crate) async fn generation(&self) -> Result<u64> {
        Ok(self.get(GENERATION).await?.map_or(0, |(number, _)| number))
    }

    /// Before when no lease may be handed out, in seconds since 1970: the state was restored, and does not
    /// know which leases others hold.
    pub async fn not_before(&self) -> Result<Option<u64>> {
        Ok(self.get(NOT_BEFORE).await?.map(|(secs, _)| secs))
    }

    /// The id of the store that the grid has, if it is known.
    pub(crate) async fn store(&self) -> Result<Option<String>> {
        Ok(self.get(STORE).await?.map(|(id, _)| id))
    }

    /// Makes a store the grid's own, if it has none; refuses another one.
    pub(crate) async fn adopt_store(&self, id: &str) -> Result<()> {
        match self.store().await? {
            None => {
                let adopt = Transaction::default().unchanged(STORE, None);
                self.0.commit(adopt.put(STORE, encode(&id))).await
            }
            Some(known) if known == id => Ok(()),
            Some(known) => {
                let what = format!("placement's state: this grid's store is {known}, not {id}");
                Err(Error::new(Kind::Conflict, what))
            }
        }
    }

    /// A key's value and its version.
    pub(crate) async fn get<T: serde::de::DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Option<(T, Versioned)>> {
        let Some(found) = self.0.get(key.into()).await? else { return Ok(None) };
        Ok(Some((decode(key, &found)?, found)))
    }

    /// A key's value as it is kept.
    pub(crate) async fn bytes(&self, key: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get(key.into()).await?.map(|found| found.value))
    }

    async fn list<T: serde::de::DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, T)>> {
        let all = self.list_versioned(prefix).await?;
        Ok(all.into_iter().map(|(name, value, _)| (name, value)).collect())
    }

    /// As [`State::list_versioned`], and the names of what cannot be read: that is said, and keeps nobody from the rest.
    pub(crate) async fn list_readable<T: serde::de::DeserializeOwned>(
        &self,
        prefix: &str,
    ) -> Result<(Vec<(String, T, Versioned)>, Vec<String>)> {
        let (mut read, mut unreadable) = (Vec::new(), Vec::new());
        for (key, value) in self.0.list(prefix.into()).await?.entries {
            let name = key[prefix.len()..].to_owned();
            match decode(&key, &value) {
                Ok(decoded) => read.push((name, decoded, value)),
                Err(error) => {
                    tracing::error!(key, %error, "it is left out");
                    unreadable.push(name);
                }
            }
        }
        Ok((read, unreadable))
    }

    /// What the keys of a prefix hold, by the rest of each key, and their versions.
    pub(crate) async fn list_versioned<T: serde::de::DeserializeOwned>(
        &self,
        prefix: &str,
    ) -> Result<Vec<(String, T, Versioned)>> {
        let found = self.0.list(prefix.into()).await?.entries;
        let line = |(key, value): (String, Versioned)| {
            let decoded = decode(&key, &value)?;
            Ok((key[prefix.len()..].to_owned(), decoded, value))
        };
        found.into_iter().map(line).collect()
    }

    /// See [`Keys::commit`].
    pub(crate) async fn commit(&self, transaction: Transaction) -> Result<()> {
        self.0.commit(transaction).await
    }

    /// Where a ref points.
    pub async fn get_ref(&self, name: &Ref) -> Result<Option<RefInfo>> {
        let found = self.get::<Target>(&ref_key(name)).await?;
        Ok(found.map(|(t, _)| RefInfo { name: name.clone(), image: t.image, moved: t.moved }))
    }

    /// All refs, in the order of their names.
    pub async fn refs(&self) -> Result<Vec<RefInfo>> {
        let mut refs = Vec::new();
        for (name, t) in self.list::<Target>("refs/").await? {
            refs.push(RefInfo { name: name.parse()?, image: t.image, moved: t.moved });
        }
        refs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(refs)
    }

    /// Number of the last move that is in the state.
    pub async fn seq(&self) -> Result<u64> {
        Ok(self.get::<u64>(SEQ).await?.map_or(0, |(seq, _)| seq))
    }

    /// Puts moves (in their order) into the state, in one step and once: what is already in it is
    /// left alone. A conflict means that somebody else changed the state at the same time.
    pub async fn apply(&self, moves: &[RefMove]) -> Result<()> {
        let seen = self.get::<u64>(SEQ).await?;
        let last = seen.as_ref().map_or(0, |(seq, _)| *seq);
        let new: Vec<_> = moves.iter().filter(|m| m.seq > last).collect();
        let Some(newest) = new.last() else { return Ok(()) };
        // The last move of each ref is what counts.
        let outcome: BTreeMap<&Ref, &RefMove> = new.iter().map(|m| (&m.name, *m)).collect();
        let change = Transaction::default()
            .unchanged(SEQ, seen.as_ref().map(|(_, version)| version))
            .put(SEQ, encode(&newest.seq));
        let change = outcome.into_values().fold(change, |change, entry| {
            let key = ref_key(&entry.name);
            match entry.image {
                Some(image) => change.put(&key, encode(&Target { image, moved: entry.at })),
                None => change.delete(&key),
            }
        });
        self.0.commit(change).await
    }

    /// Keeps a token under its secret's hash.
    pub(crate) async fn add_token(&self, hash: &Digest, token: &Token) -> Result<()> {
        let key = token_key(hash);
        let add = Transaction::default().unchanged(&key, None).put(&key, encode(token));
        self.0.commit(add).await
    }

    /// The unused token with this hash.
    pub(crate) async fn token(&self, hash: &Digest) -> Result<Option<Token>> {
        Ok(self.get(&token_key(hash)).await?.map(|(token, _)| token))
    }

    /// Forgets tokens that can no longer be used.
    pub(crate) async fn drop_expired_tokens(&self, now: u64) -> Result<()> {
        let tokens = self.list::<Token>("tokens/").await?;
        let expired = tokens.into_iter().filter(|(_, t)| t.expires <= now);
        self.drop_tokens(&expired.map(|(hash, _)| hash).collect::<Vec<_>>()).await
    }

    /// As many transactions as that takes.
    async fn drop_tokens(&self, hashes: &[String]) -> Result<()> {
        for some in hashes.chunks(MAX_OPS) {
            self.0.commit(some.iter().fold(Transaction::default(), drop_token)).await?;
        }
        Ok(())
    }

    /// Uses a token up and gives a name to who brought it, in one step: of two who bring the same
    /// token, or want the same name, one gets a conflict. `seen` is what was read of the name.
    pub(crate) async fn redeem(
        &self,
        hash: &Digest,
        name: &str,
        seen: Option<&Versioned>,
        holder: &Holder,
    ) -> Result<()> {
        let (token, member) = (token_key(hash), member_key(name));
        let Some(found) = self.0.get(token.clone()).await? else {
            return Err(Error::new(Kind::Conflict, "the token has been used meanwhile"));
        };
        let redeem = Transaction::default()
            .unchanged(&token, Some(&found))
            .unchanged(&member, seen)
            .delete(&token)
            .put(&member, encode(holder));
        self.0.commit(redeem).await
    }

    /// Who holds a name, and the version of that.
    pub(crate) async fn holder(&self, name: &str) -> Result<Option<(Holder, Versioned)>> {
        self.get(&member_key(name)).await
    }

    /// Those who hold a name, in the order of the names.
    pub(crate) async fn holders(&self) -> Result<Vec<(String, Holder)>> {
        let mut holders = self.list::<Holder>("members/").await?;
        holders.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(holders)
    }

    /// Frees a name, notes that it was removed, drops the tokens that were made by or for it, and counts
    /// no server of that name, in one step; of very many tokens some go before. `seen` is what was read of
    /// the name.
    pub(crate) async fn remove_member(
        &self,
        name: &str,
        seen: Option<&Versioned>,
        now: u64,
    ) -> Result<()> {
        let member = member_key(name);
        let remove = Transaction::default()
            .unchanged(&member, seen)
            .delete(&member)
            .delete(&server_key(name))
            .put(&removed_key(name), encode(&now));
        let tokens = self.list::<Token>("tokens/").await?;
        let gone = tokens.into_iter().filter(|(_, token)| token.goes_with(name));
        let gone: Vec<_> = gone.map(|(hash, _)| hash).collect();
        let (before, with) =
            gone.split_at(gone.len().saturating_sub(MAX_OPS - remove.changes.len()));
        self.drop_tokens(before).await?;
        self.0.commit(with.iter().fold(remove, drop_token)).await
    }

    /// Whether who shows this certificate for a name is heard: the name was never taken from a member,
    /// or this is the certificate with which it was taken anew.
    pub(crate) async fn hears(&self, name: &str, certificate: &Digest) -> Result<bool> {
        if self.get::<u64>(&removed_key(name)).await?.is_none() {
            return Ok(true);
        }
        let held = self.holder(name).await?;
        Ok(held.is_some_and(|(holder, _)| holder.heard().contains(certificate)))
    }

    /// The names that were taken from members, and when, in seconds since 1970.
    pub(crate) async fn removed(&self) -> Result<Vec<(String, u64)>> {
        self.list("removed/").await
    }

    /// Notes that a member has a new certificate, as long as it is a member: `seen` is what was read of its name.
    pub(crate) async fn renew(&self, name: &str, seen: &Versioned, holder: &Holder) -> Result<()> {
        let member = member_key(name);
        let renew = Transaction::default().unchanged(&member, Some(seen));
        self.0.commit(renew.put(&member, encode(holder))).await
    }

    /// Gives a name to placement itself, whoever had it.
    pub(crate) async fn reserve(&self, name: &str, role: Role, expires: u64) -> Result<()> {
        let holder = encode(&Holder { role, expires, certificate: None, before: None, own: true });
        self.0.commit(Transaction::default().put(&member_key(name), holder)).await
    }

    /// The servers of chunks at a time, in the order of their names.
    pub async fn servers(&self, now: u64) -> Result<Vec<CacheInfo>> {
        let all = self.list::<Server>("servers/").await?;
        Ok(all.into_iter().filter(|(_, s)| s.counts(now)).map(|(_, s)| s.info).collect())
    }

    /// The same of those that have a lease, with what they say of the images that they were told to keep.
    pub(crate) async fn caches(&self, now: u64) -> Result<Vec<Cache>> {
        let all = self.list::<Server>("servers/").await?.into_iter();
        let leased = all.map(|(_, s)| s).filter(|s| s.until.is_some() && s.counts(now));
        Ok(leased.map(|Server { info, kept, .. }| Cache { info, kept }).collect())
    }

    /// Counts a server until a time. Its name is its own: nobody else has a certificate for it.
    pub async fn lease_server(&self, info: &CacheInfo, until: u64) -> Result<()> {
        self.lease_cache(info, Vec::new(), until).await
    }

    /// The same of a cache, with what it says of the images that it was told to keep.
    pub async fn lease_cache(
        &self,
        info: &CacheInfo,
        kept: Vec<CachedImage>,
        until: u64,
    ) -> Result<()> {
        let server = Server { info: info.clone(), until: Some(until), kept };
        self.0.commit(Transaction::default().put(&server_key(&info.name), encode(&server))).await
    }

    /// Counts a server no longer; returns it as it was, if it had a lease.
    pub async fn drop_server(&self, name: &str) -> Result<Option<CacheInfo>> {
        let key = server_key(name);
        match self.get::<Server>(&key).await? {
            Some((server, seen)) if server.until.is_some() => {
                let drop = Transaction::default().unchanged(&key, Some(&seen)).delete(&key);
                self.0.commit(drop).await?;
                Ok(Some(server.info))
            }
            _ => Ok(None),
        }
    }

    /// An image's trace, if it can be read, and the version of that.
    pub(crate) async fn trace(
        &self,
        image: &Digest,
    ) -> Result<Option<(Result<BootTrace>, Versioned)>> {
        let key = trace_key(image);
        let Some(found) = self.0.get(key.clone()).await? else { return Ok(None) };
        let trace = BootTrace::parse(&found.value).map_err(Error::from);
        let trace = trace.map_err(|e| e.at(format!("placement's state: key `{key}`")));
        Ok(Some((trace, found)))
    }

    /// Keeps an image's trace. `seen` is what was read of it; a conflict if it is no longer so.
    pub(crate) async fn put_trace(
        &self,
        trace: &BootTrace,
        seen: Option<&Versioned>,
    ) -> Result<()> {
        let key = trace_key(trace.image());
        let put = Transaction::default().unchanged(&key, seen);
        self.0.commit(put.put(&key, trace.to_bytes().into())).await
    }

    /// The images that have a trace.
    pub(crate) async fn traced(&self) -> Result<Vec<Digest>> {
        let all = self.0.list("traces/".into()).await?.entries;
        Ok(all.iter().filter_map(|(key, _)| key["traces/".len()..].parse().ok()).collect())
    }

    /// Forgets an image's trace.
    pub(crate) async fn drop_trace(&self, image: &Digest) -> Result<()> {
        self.0.commit(Transaction::default().delete(&trace_key(image))).await
    }
}

fn drop_token(change: Transaction, hash: &String) -> Transaction {
    change.delete(&format!("tokens/{hash}"))
}

fn trace_key(image: &Digest) -> String {
    format!("traces/{image}")
}

fn server_key(name: &str) -> String {
    format!("servers/{name}")
}

fn ref_key(name: &Ref) -> String {
    format!("refs/{name}")
}

fn token_key(hash: &Digest) -> String {
    format!("tokens/{hash}")
}

fn removed_key(name: &str) -> String {
    format!("removed/{name}")
}

fn member_key(name: &str) -> String {
    format!("members/{name}")
}
