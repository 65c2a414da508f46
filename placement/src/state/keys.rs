//! The seam under placement's state: keys with versions, changed by compare-and-set transactions.
//! It asks no more than etcd gives, so that a cluster can take the embedded database's place.

use image::Result;

use crate::archive::Answer;

/// A value and the version of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The revision in which the key was last changed; never used twice.
    pub version: u64,
    /// The value.
    pub value: Vec<u8>,
}

/// What one transaction believes, and what it changes if all of that is so.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// Keys and the versions they must have; nothing: they must not exist.
    pub compares: Vec<(String, Option<u64>)>,
    /// Keys and their new values; nothing: deleted. Each key at most once.
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
}

/// Keys with versions.
pub trait Keys: Send + Sync + 'static {
    /// A key's value, if it exists.
    fn get(&self, key: String) -> Answer<'_, Option<Versioned>>;

    /// All keys that begin with `prefix`, in their order, as of one moment.
    fn list(&self, prefix: String) -> Answer<'_, Vec<(String, Versioned)>>;

    /// Does all of a transaction, durably, or nothing. It is a conflict if a comparison fails. Any
    /// other error leaves open whether it was done.
    fn commit(&self, transaction: Transaction) -> Answer<'_, ()>;
}

/// Decodes a value; what does not decode names its key.
pub(crate) fn decode<T: serde::de::DeserializeOwned>(key: &str, value: &Versioned) -> Result<T> {
    serde_json::from_slice(&value.value).map_err(|e| {
        let what =
            format!("placement's state: key `{key}`: {e}; was it written by a later version?");
        image::Error::new(image::Kind::Corrupt, what)
    })
}

/// Encodes a value.
pub(crate) fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own types serialise")
}
