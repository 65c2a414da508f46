//! The seam under placement's state: keys with versions, changed by compare-and-set transactions, and
//! watched. It asks no more than etcd gives, so that a cluster can take the embedded database's place.
//!
//! A revision is a number of the whole state that grows with each transaction. What holds of both
//! databases is in `conformance.rs`, which runs on both.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use image::{Error, Kind, Result};

use super::lead::Reign;
use crate::archive::Answer;

/// Most comparisons, and most changes, of one transaction: what etcd takes unless it is told otherwise.
/// The state adds one comparison to each, and a leader another.
pub const MAX_OPS: usize = 128;
/// Most bytes of keys and values that one transaction changes. etcd takes requests of 1.5 MiB unless it is
/// told otherwise.
pub const MAX_BYTES: usize = 1280 << 10;

/// A value and the version of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The revision in which the key was last changed; never used twice.
    pub version: u64,
    /// The value.
    pub value: Vec<u8>,
}

/// Keys as of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The revision of that moment, or of a later one up to which none of these keys was changed.
    pub revision: u64,
    /// The keys in their order.
    pub entries: Vec<(String, Versioned)>,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// The revision in which it was changed.
    pub version: u64,
    /// Its value from then on; nothing: it was deleted.
    pub value: Option<Vec<u8>>,
}

/// Changes, each once, in the order of their revisions; of one revision in any order. Ends with its first
/// error. It is `Gone` if changes that are due are no longer known: then list anew, and watch from there.
pub type Watch = Pin<Box<dyn Stream<Item = Result<Change>> + Send>>;

/// What one transaction believes, and what it changes if all of that is so.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// Keys and the versions they must have; nothing: they must not exist. [`MAX_OPS`] at most.
    pub compares: Vec<(String, Option<u64>)>,
    /// Keys and their new values; nothing: deleted. Each key at most once, [`MAX_OPS`] and [`MAX_BYTES`]
    /// at most.
    pub changes: Vec<(String, Option<Vec<u8>>)>,
}

impl Transaction {
    /// Believes that a key is as it was read.
    #[must_use]
    pub fn unchanged(mut self, key: &str, seen: Option<&Versioned>) -> Self {
        self.compares.push((key.into(), seen.map(|v| v.version)));
        self
    }

    /// Sets a key.
    #[must_use]
    pub fn put(mut self, key: &str, value: Vec<u8>) -> Self {
        self.changes.push((key.into(), Some(value)));
        self
    }

    /// Deletes a key, if it is there.
    #[must_use]
    pub fn delete(mut self, key: &str) -> Self {
        self.changes.push((key.into(), None));
        self
    }

    /// Both, or neither. They change different keys.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.compares.extend(other.compares);
        self.changes.extend(other.changes);
        self
    }

    /// What counts as [`MAX_OPS`].
    pub(crate) fn ops(&self) -> usize {
        self.compares.len().max(self.changes.len())
    }

    /// Bytes that it changes.
    pub(crate) fn bytes(&self) -> usize {
        self.changes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum()
    }

    /// Refuses what one of the databases would not take, so that both take the same.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |what| Err(Error::new(Kind::Invalid, format!("placement's state: {what}")));
        let ops = self.ops();
        if ops > MAX_OPS {
            return refuse(format!("a transaction of {ops} keys, of {MAX_OPS} at most"));
        }
        let bytes = self.bytes();
        if bytes > MAX_BYTES {
            return refuse(format!("a transaction of {bytes} bytes, of {MAX_BYTES} at most"));
        }
        let mut keys = BTreeSet::new();
        match self.changes.iter().find(|(key, _)| !keys.insert(key)) {
            Some((key, _)) => refuse(format!("a transaction that changes key `{key}` twice")),
            None => Ok(()),
        }
    }
}

/// Keys with versions.
pub trait Keys: Send + Sync + 'static {
    /// A key's value, if it exists. As new as any transaction that was done before this was asked.
    fn get(&self, key: String) -> Answer<'_, Option<Versioned>>;

    /// All keys that begin with `prefix`, in their order, as of one moment. As new as [`Keys::get`].
    fn list(&self, prefix: String) -> Answer<'_, Listing>;

    /// Does all of a transaction, durably, or nothing. It is a conflict if a comparison fails: nothing was
    /// done then, nor if it is `Invalid` or `Denied`. Any other error leaves open whether it was done, `Full`
    /// too: nothing is tried twice in here.
    fn commit(&self, transaction: Transaction) -> Answer<'_, ()>;

    /// The changes of keys that begin with `prefix`, after a revision.
    fn watch(&self, prefix: String, after: u64) -> Watch;

    /// Waits until nobody else has the key, and takes it, to keep it for `ttl` beyond the last sign of life.
    /// Dropping the future gives it up; what it may have taken lapses after `ttl`.
    fn campaign(&self, key: String, id: Vec<u8>, ttl: Duration) -> Answer<'_, Reign>;
}

/// Decodes a value; what does not decode names its key.
pub(crate) fn decode<T: serde::de::DeserializeOwned>(key: &str, value: &Versioned) -> Result<T> {
    serde_json::from_slice(&value.value).map_err(|e| {
        let what =
            format!("placement's state: key `{key}`: {e}; was it written by a later version?");
        Error::new(Kind::Corrupt, what)
    })
}

/// Encodes a value.
pub(crate) fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own types serialise")
}

/// That a transaction's belief was wrong.
pub(super) fn conflict() -> Error {
    Error::new(Kind::Conflict, "placement's state was changed meanwhile")
}
