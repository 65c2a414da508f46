//! The audit log: who changed what, and who was refused; each entry follows from the one before.
//!
//! | method and path | body → answer | who |
//! |---|---|---|
//! | `GET /v1/audit?after=SEQ&limit=N` | → [`AuditPage`] | admin; any person |
//!
//! An entry is a JSON text. It names the BLAKE3 of the text before it, and [`AuditHead`] that of the last one: an entry
//! that was changed, taken out or put elsewhere breaks the chain there. Who could write all of placement's state could
//! write another chain, whole: whoever must rule that out keeps a [`AuditHead`] elsewhere, and looks for it in the log.

use image::{Digest, Error, Kind, Result};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Longest page, and the usual one.
pub const MOST: u32 = 1000;

/// Which part of the log is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditAsked {
    /// What follows the entry of this number.
    #[serde(default)]
    pub after: u64,
    /// At most so many entries: 1000 at most.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// Its number; the first is 1.
    pub seq: u64,
    /// When, in seconds since 1970.
    pub at: u64,
    /// By whom: `admin boss` (a certificate), `token:alice (operator)`, `nobody`.
    pub who: String,
    /// Method and route.
    pub what: String,
    /// The path that was asked for.
    pub object: String,
    /// `done`, or the kind of the error.
    pub outcome: String,
    /// More of it: the error, or what was given to whom.
    #[serde(default)]
    pub said: String,
    /// How often: refusals that follow each other are one entry.
    #[serde(default = "once")]
    pub times: u64,
    /// BLAKE3 of the text of the entry before.
    #[schema(value_type = String)]
    pub previous: Digest,
}

fn once() -> u64 {
    1
}

/// Where the log begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditHead {
    /// The oldest entry that is kept.
    pub first: u64,
    /// BLAKE3 of the text of the one before it; of the first of all: of nothing.
    #[schema(value_type = String)]
    pub before: Digest,
    /// The latest entry; 0 if there has been none.
    pub last: u64,
    /// BLAKE3 of its text.
    #[schema(value_type = String)]
    pub hash: Digest,
}

impl Default for AuditHead {
    fn default() -> Self {
        let nothing = Digest::of_stored(b"");
        Self { first: 1, before: nothing, last: 0, hash: nothing }
    }
}

/// Some of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    /// The texts of [`AuditEntry`], as they are kept and hashed.
    pub entries: Vec<String>,
    /// Where the log begins and ends.
    pub head: AuditHead,
    /// There is more: what to ask `after` for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// Goes along the log and sees that each entry follows from the one before.
#[derive(Clone, Debug)]
pub struct Chain {
    next: u64,
    hash: Digest,
}

impl Chain {
    /// Before the oldest entry that is kept.
    pub fn begin(head: &AuditHead) -> Self {
        Self { next: head.first, hash: head.before }
    }

    /// Takes the next entry.
    ///
    /// # Errors
    ///
    /// [`Kind::Corrupt`] if it does not follow.
    pub fn take(&mut self, text: &str) -> Result<AuditEntry> {
        let next = self.next;
        let bad = |what: String| Error::new(Kind::Corrupt, format!("audit log: {what}"));
        let entry: AuditEntry =
            serde_json::from_str(text).map_err(|e| bad(format!("entry {next}: {e}")))?;
        if entry.seq != next {
            let there = entry.seq;
            return Err(bad(format!("entry {next} is missing: {there} is in its place")));
        }
        if entry.previous != self.hash {
            let before = next - 1;
            let what = format!("entry {next} does not follow from {before}: one was changed");
            return Err(bad(what));
        }
        (self.next, self.hash) = (next + 1, Digest::of_stored(text.as_bytes()));
        Ok(entry)
    }

    /// The number of the entry that was taken last, and BLAKE3 of its text.
    pub fn at(&self) -> (u64, Digest) {
        (self.next - 1, self.hash)
    }

    /// Sees that the entry that was taken last is the one that a head says.
    ///
    /// # Errors
    ///
    /// [`Kind::Corrupt`] if it is not.
    pub fn end(&self, head: &AuditHead) -> Result<()> {
        let what = match self.at() {
            at if at == (head.last, head.hash) => return Ok(()),
            (last, _) if last != head.last => {
                format!("it ends with entry {last}, and should with {}", head.last)
            }
            (last, _) => format!("entry {last} was changed"),
        };
        Err(Error::new(Kind::Corrupt, format!("audit log: {what}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u64, previous: Digest) -> String {
        let entry = AuditEntry {
            seq,
            at: 1_700_000_000 + seq,
            who: "admin boss".into(),
            what: "PUT /v1/pools/{name}".into(),
            object: "/v1/pools/web".into(),
            outcome: "done".into(),
            said: String::new(),
            times: 1,
            previous,
        };
        serde_json::to_string(&entry).unwrap()
    }

    fn log(many: u64) -> (Vec<String>, AuditHead) {
        let mut head = AuditHead::default();
        let mut texts = Vec::new();
        for seq in 1..=many {
            let text = entry(seq, head.hash);
            (head.last, head.hash) = (seq, Digest::of_stored(text.as_bytes()));
            texts.push(text);
        }
        (texts, head)
    }

    fn verify(texts: &[String], head: &AuditHead) -> Result<()> {
        let mut chain = Chain::begin(head);
        texts.iter().try_for_each(|text| chain.take(text).map(drop))?;
        chain.end(head)
    }

    #[test]
    fn an_entry_that_is_changed_missing_or_elsewhere_is_found() {
        let (good, head) = log(5);
        verify(&good, &head).unwrap();
        verify(&[], &AuditHead::default()).unwrap();
        for at in 0..good.len() {
            let mut changed = good.clone();
            changed[at] = changed[at].replace("web", "wob");
            assert!(verify(&changed, &head).is_err(), "changed: {at}");
            let mut missing = good.clone();
            missing.remove(at);
            let said = verify(&missing, &head).unwrap_err();
            assert!(said.message().contains("missing") || at == 4, "{said}");
            for other in at + 1..good.len() {
                let mut swapped = good.clone();
                swapped.swap(at, other);
                assert!(verify(&swapped, &head).is_err(), "swapped: {at} and {other}");
            }
        }
        let longer = [good.clone(), vec![entry(6, head.hash)]].concat();
        assert!(verify(&longer, &head).is_err());
        // Of what was let go of, the head keeps the end.
        let later = AuditHead { first: 3, before: Digest::of_stored(good[1].as_bytes()), ..head };
        verify(&good[2..], &later).unwrap();
        assert!(verify(&good[3..], &later).is_err());
    }
}
