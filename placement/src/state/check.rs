//! Checking the state: every key is known, and every value is what its key says.

use std::collections::BTreeSet;
use std::str::FromStr;

use api::goal::GoalState;
use api::pool::SetPool;
use image::{BootTrace, Digest, Error, Kind, Ref, Result};
use serde::de::DeserializeOwned;

use super::generation::{GENERATION, NOT_BEFORE, RESTORING};
use super::keys::{Versioned, decode};
use super::place::StatePlace;
use super::{FORMAT, GRID, Holder, LEADERS, SEQ, STORE, Server, Target, Token, VERSION};
use crate::fleet::{Book, Demand, GivenBack, Keep, Kept, Lease, NodeEntry, Stood};

/// Looks at one value; `name` is what follows the family in its key.
type Look = fn(key: &str, name: &str, value: &Versioned) -> Result<()>;

/// The keys that there may be: whole ones, and beginnings of those that end in `/`.
const FAMILIES: &[(&str, Look)] = &[
    (FORMAT, |key, _, value| match decode::<u32>(key, value)? {
        VERSION => Ok(()),
        version => Err(unknown_version(version)),
    }),
    (GRID, json::<String>),
    (STORE, json::<String>),
    (SEQ, json::<u64>),
    (GENERATION, json::<u64>),
    (NOT_BEFORE, json::<u64>),
    (RESTORING, |_, _, _| Err(wrong("a restore did not come to its end; restore again"))),
    ("audit/", audit_entry),
    (crate::audit::HEAD, json::<api::audit::AuditHead>),
    ("demand/", json::<Demand>),
    ("goals/", json::<GoalState>),
    ("keeps/", json::<Keep>),
    // Who reads it takes what other versions say of themselves for nobody.
    (LEADERS, json::<serde::de::IgnoredAny>),
    ("leases/", json::<Lease>),
    ("members/", json::<Holder>),
    ("nodes/", json::<NodeEntry>),
    ("operations/", json::<Kept>),
    ("people/", json::<crate::people::Kept>),
    ("pools/", json::<SetPool>),
    ("reads/", json::<BTreeSet<Digest>>),
    ("refs/", |key, name, value| named::<Ref>(name).and(json::<Target>(key, name, value))),
    ("released/", json::<GivenBack>),
    ("removed/", json::<u64>),
    ("reserved/", json::<Book>),
    ("servers/", |key, name, value| match decode::<Server>(key, value)?.info.name {
        own if own == name => Ok(()),
        own => Err(wrong(&format!("the server goes by another name, `{own}`"))),
    }),
    ("standing/", json::<Stood>),
    ("tokens/", |key, name, value| named::<Digest>(name).and(json::<Token>(key, name, value))),
    ("traces/", |_, name, value| match *BootTrace::parse(&value.value)?.image() {
        image if name == image.to_string() => Ok(()),
        image => Err(wrong(&format!("it is of another image, {image}"))),
    }),
];

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CheckReport {
    /// Keys that were looked at.
    pub keys: u64,
    /// The revision of the state.
    pub revision: u64,
    /// What was repaired on the way.
    pub repaired: Vec<String>,
    /// What is wrong, by key.
    pub bad: Vec<String>,
}

/// Looks at every key of the state at a place. `grid` may be nothing if the place names a prefix.
pub async fn check(place: &StatePlace, grid: Option<&str>) -> Result<CheckReport> {
    if !place.exists()? {
        return Err(absent(place));
    }
    let repaired = place.verify().await?.into_iter().collect();
    let listing = place.keys(grid).await?.list(String::new()).await.map_err(|e| e.at(place))?;
    let mut bad = Vec::new();
    for (key, value) in &listing.entries {
        if let Err(e) = look(key, value) {
            // Some say it themselves.
            let said = format!("key `{key}`");
            bad.push(if e.message().contains(&said) { e } else { e.at(said) }.to_string());
        }
    }
    for needed in [FORMAT, GRID] {
        if !listing.entries.iter().any(|(key, _)| key == needed) {
            bad.push(format!("key `{needed}`: it is not there"));
        }
    }
    let (keys, revision) = (listing.entries.len() as u64, listing.revision);
    Ok(CheckReport { keys, revision, repaired, bad })
}

pub(super) fn absent(place: &StatePlace) -> Error {
    Error::new(Kind::Gone, format!("{place}: there is no state of placement"))
}

pub(super) fn unknown_version(version: u32) -> Error {
    let what = format!("placement's state: version {version}; this program reads {VERSION}");
    Error::new(Kind::Unsupported, what)
}

/// The family of a key: what is before its first `/`, or all of it.
pub(super) fn family(key: &str) -> &str {
    key.split('/').next().unwrap_or(key)
}

fn look(key: &str, value: &Versioned) -> Result<()> {
    let known = FAMILIES.iter().find_map(|(family, look)| {
        let name = key.strip_prefix(family)?;
        (name.is_empty() != family.ends_with('/')).then_some((name, look))
    });
    match known {
        Some((name, look)) => look(key, name, value),
        None => Err(wrong("no key of this version: was it written by a later one?")),
    }
}

fn json<T: DeserializeOwned>(key: &str, _: &str, value: &Versioned) -> Result<()> {
    decode::<T>(key, value).map(drop)
}

/// Whether the chain holds is looked at by who reads the log.
fn audit_entry(key: &str, name: &str, value: &Versioned) -> Result<()> {
    match decode::<api::audit::AuditEntry>(key, value)?.seq {
        seq if format!("{seq:020}") == name => Ok(()),
        seq => Err(wrong(&format!("the entry has another number, {seq}"))),
    }
}

fn named<T: FromStr<Err: Into<Error>>>(name: &str) -> Result<()> {
    name.parse::<T>().map(drop).map_err(Into::into)
}

fn wrong(why: &str) -> Error {
    Error::new(Kind::Corrupt, why)
}
