//! The record of an erasure: what was destroyed, when, how, by whom; signed by who did it.
//!
//! ```text
//! forebay erasure 1
//! {"begun":1700000000,…}      JSON on one line, keys sorted
//! 3045022100…                 signature over the two lines above, their ends included, in hexadecimal
//! ```
//! The kind of the signature is the signer's: a node signs with the key of its certificate. A reader ignores fields that it
//! does not know, and keeps the signed text.

use std::fmt;

use image::{Digest, Error, Kind, Result};
use serde::{Deserialize, Serialize};

use super::{Erasure, Medium, Method, Proof, Tally};
use crate::size::shown;

const HEAD: &str = "forebay erasure 1\n";
const VERSION: u32 = 1;
/// Longest text that is looked at, in bytes.
const MOST: usize = 16 << 10;

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Outcome {
    /// All was done, and what was to be read back was as it should be.
    Erased,
    /// Some of it was not done.
    Failed {
        /// For people.
        why: String,
    },
}

/// What was done to a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this format.
    pub version: u32,
    /// The volume's id, in hexadecimal.
    pub volume: String,
    /// What people called it.
    pub name: String,
    /// What its guest saw, in bytes.
    pub size: u64,
    /// The image that it was made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Digest>,
    /// The node that did it.
    pub node: String,
    /// When it was begun, in seconds since 1970.
    pub begun: u64,
    /// When this was said, in seconds since 1970.
    pub ended: u64,
    /// What the volume lay on.
    pub medium: Medium,
    /// How it was to be done; on what copies on write it was discarded.
    pub method: Method,
    /// How much was to be read back.
    pub proof: Proof,
    /// What was drawn at random, in hexadecimal: the stream of a random method, the places of a sample.
    pub seed: String,
    /// What was done.
    pub tally: Tally,
    /// Bytes of the medium's file or device that it was done to, holes and all.
    pub length: u64,
    /// What became of it.
    pub outcome: Outcome,
}

pub(super) fn of(erasure: &Erasure, node: &str, ended: u64, why: Option<&Error>) -> Record {
    let (identity, state) = (erasure.identity.get(), erasure.journal.now());
    let outcome = match state.done {
        true => Outcome::Erased,
        false => {
            let why = why.map_or("it has not come to its end".to_owned(), |e| e.to_string());
            Outcome::Failed { why }
        }
    };
    Record {
        version: VERSION,
        volume: hex(&identity.id),
        name: identity.name.clone(),
        size: identity.size,
        image: identity.base.map(|base| base.image),
        node: node.to_owned(),
        begun: state.begun,
        ended,
        medium: state.medium,
        method: state.plan.method,
        proof: state.plan.proof,
        seed: hex(&state.plan.seed),
        tally: state.tally,
        length: erasure.size,
        outcome,
    }
}

impl Record {
    /// Bytes that took no space when they were to be erased.
    pub fn holes(&self) -> u64 {
        let Tally { overwritten, discarded, shared, moved, .. } = self.tally;
        let taken = [overwritten, discarded, shared, moved];
        taken.into_iter().fold(self.length, u64::saturating_sub)
    }

    /// The signed text: what is kept.
    ///
    /// # Errors
    ///
    /// What the signer says.
    pub fn sign(&self, sign: impl FnOnce(&[u8]) -> Result<Vec<u8>>) -> Result<String> {
        // By way of a value, whose keys are sorted.
        let value = serde_json::to_value(self).expect("our own types serialise");
        let said = format!("{HEAD}{value}\n");
        let signature = sign(said.as_bytes())?;
        Ok(format!("{said}{}\n", hex(&signature)))
    }

    /// Checks a signed text: `is_good` tells of what was said and a signature whether they belong together.
    ///
    /// # Errors
    ///
    /// [`Kind::Corrupt`] if they do not, or it is no such text; [`Kind::Unsupported`] for one of another version.
    pub fn open(text: &str, is_good: impl FnOnce(&[u8], &[u8]) -> bool) -> Result<Self> {
        let bad = |what: &str| Error::new(Kind::Corrupt, format!("record of an erasure: {what}"));
        let json = text.get(..MOST.min(text.len())).and_then(|t| t.strip_prefix(HEAD));
        let mut lines = json.ok_or_else(|| bad("not one of version 1"))?.split('\n');
        let (Some(json), Some(signature), Some(""), None) =
            (lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(bad("it has not three lines"));
        };
        let said = &text[..HEAD.len() + json.len() + 1];
        let signature = unhex(signature).ok_or_else(|| bad("its signature is none"))?;
        if !is_good(said.as_bytes(), &signature) {
            return Err(bad("the signature is not good"));
        }
        let record: Self = serde_json::from_str(json).map_err(|e| bad(&e.to_string()))?;
        match record.version {
            VERSION => Ok(record),
            other => {
                let what =
                    format!("record of an erasure: version {other}; this program knows {VERSION}");
                Err(Error::new(Kind::Unsupported, what))
            }
        }
    }
}

/// For people, a line each.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { overwritten, discarded, shared, moved, read_back } = self.tally;
        match &self.outcome {
            Outcome::Erased => writeln!(f, "ERASED      {} ({})", self.name, self.volume)?,
            Outcome::Failed { why } => {
                writeln!(f, "NOT ERASED  {} ({}): {why}", self.name, self.volume)?;
            }
        }
        let image = self.image.map_or("none".to_owned(), |image| image.to_string());
        writeln!(f, "size        {}, made of image {image}", shown(self.size))?;
        writeln!(f, "by          {}, begun {}, ended {}", self.node, self.begun, self.ended)?;
        writeln!(f, "medium      {}", self.medium)?;
        writeln!(f, "method      {}", self.method)?;
        let parts = [
            (overwritten, "overwritten"),
            (discarded, "discarded"),
            (shared, "released, as others share them"),
            (moved, "moved by the file system meanwhile: not known to be destroyed"),
            (self.holes(), "holes"),
        ];
        for (bytes, what) in parts.into_iter().filter(|(bytes, _)| *bytes > 0) {
            writeln!(f, "            {} {what}", shown(bytes))?;
        }
        writeln!(f, "read back   {}: {}", self.proof, shown(read_back))?;
        write!(f, "seed        {}", self.seed)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeros { passes: 1 } => write!(f, "zeros"),
            Self::Zeros { passes } => write!(f, "zeros, {passes} times"),
            Self::Random { passes: 1 } => write!(f, "random bytes"),
            Self::Random { passes } => write!(f, "random bytes, {passes} times"),
            Self::Discard => write!(f, "discard"),
        }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => write!(f, "nothing"),
            Self::Sample { places } => write!(f, "{places} places"),
            Self::All => write!(f, "all"),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.bytes().all(|b| b.is_ascii_hexdigit());
    if !digits || text.is_empty() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            version: 1,
            volume: "07".repeat(16),
            name: "web-1".into(),
            size: 1 << 30,
            image: Some(Digest([9; 32])),
            node: "n1".into(),
            begun: 1_700_000_000,
            ended: 1_700_000_060,
            medium: Medium::File,
            method: Method::Random { passes: 3 },
            proof: Proof::Sample { places: 100 },
            seed: "05".repeat(32),
            tally: Tally {
                overwritten: 512 << 20,
                discarded: 0,
                shared: 256 << 20,
                moved: 0,
                read_back: 400 << 10,
            },
            length: 1 << 30,
            outcome: Outcome::Erased,
        }
    }

    /// A signature for tests.
    fn sum(bytes: &[u8]) -> Vec<u8> {
        crc32c::crc32c(bytes).to_le_bytes().to_vec()
    }

    #[test]
    fn golden() {
        let text = record().sign(|said| Ok(sum(said))).unwrap();
        let said = r#"forebay erasure 1
{"begun":1700000000,"ended":1700000060,"image":"IMAGE","length":1073741824,"medium":"file","#
            .to_owned()
            + r#""method":{"by":"random","passes":3},"name":"web-1","node":"n1","outcome":{"is":"erased"},"#
            + r#""proof":{"of":"sample","places":100},"seed":"SEED","size":1073741824,"tally":{"discarded":0,"#
            + r#""moved":0,"overwritten":536870912,"read_back":409600,"shared":268435456},"version":1,"#
            + r#""volume":"07070707070707070707070707070707"}"#
            + "\n349c2b93\n";
        let said = said.replace("IMAGE", &"09".repeat(32)).replace("SEED", &"05".repeat(32));
        assert_eq!(text, said, "version bump required");
        assert_eq!(Record::open(&text, |said, by| sum(said) == by).unwrap(), record());
        let later = text.replace("\"begun\"", "\"also\":1,\"begun\"");
        assert_eq!(Record::open(&later, |_, _| true).unwrap(), record(), "fields of later");
        let other = text.replace("\"version\":1", "\"version\":2");
        assert_eq!(Record::open(&other, |_, _| true).unwrap_err().kind(), Kind::Unsupported);
    }

    #[test]
    fn an_altered_record_is_refused_wherever_it_is_altered() {
        let text = record().sign(|said| Ok(sum(said))).unwrap();
        let is_good = |said: &[u8], by: &[u8]| sum(said) == by;
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
            let altered = String::from_utf8(bytes).unwrap();
            assert!(Record::open(&altered, is_good).is_err(), "at {at}");
            assert!(Record::open(&text[..at], is_good).is_err(), "cut at {at}");
        }
        assert!(Record::open(&format!("{text}\n"), is_good).is_err());
        let refused = record().sign(|_| Err(Error::new(Kind::Denied, "no key")));
        assert_eq!(refused.unwrap_err().kind(), Kind::Denied);
    }

    #[test]
    fn people_read_what_was_done_and_what_was_not() {
        let said = record().to_string();
        for part in [
            "ERASED      web-1",
            "random bytes, 3 times",
            "256.0 MiB released",
            "256.0 MiB holes",
            "100 places: 400",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let failed = Record { outcome: Outcome::Failed { why: "disk died".into() }, ..record() };
        assert!(failed.to_string().starts_with("NOT ERASED  web-1"), "{failed}");
        assert!(failed.to_string().contains("disk died"));
    }
}
