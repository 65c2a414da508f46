//! gc's lists in the store: what is condemned, and what is being deleted right now.

use image::{Error, Kind, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::objects::{Listed, Objects};
use crate::sealed;

/// Keys in one condemned list; more make more lists. Bounds what a reader holds at a time.
pub(crate) const LIST_KEYS: usize = 10_000;
/// Longest list in bytes.
const MAX_LIST: usize = 8 << 20;

/// A condemned list, `gc/condemned/<name>`: objects that nothing reached.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Condemned {
    /// When they were condemned, in seconds since 1970.
    pub(crate) at: u64,
    pub(crate) keys: Vec<String>,
}

/// The mark of a run of gc, `gc/deleting/<run>`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Deleting {
    /// When the run began, in seconds since 1970.
    pub(crate) at: u64,
    /// The condemned lists that it may work off.
    pub(crate) lists: Vec<String>,
}

impl Deleting {
    /// Whether the run that left this mark may still delete something. It stops after one life of
    /// a session; its last request ends within another.
    pub(crate) fn counts(&self, now: u64, life: u64) -> bool {
        now <= self.at.saturating_add(2 * life)
    }
}

/// A kind of list.
pub(crate) trait List: Serialize + DeserializeOwned {
    const WHAT: &'static str;
}

impl List for Condemned {
    const WHAT: &'static str = "condemned list";
}

impl List for Deleting {
    const WHAT: &'static str = "mark of a gc run";
}

/// A list as it was found.
pub(crate) enum Found<T> {
    Whole(T),
    /// It is there, but cannot be read: damaged, or never written whole.
    Unreadable,
    /// It went away since it was listed.
    Gone,
}

/// Reads a list.
pub(crate) async fn read<T: List>(objects: &Objects, listed: &Listed) -> Result<Found<T>> {
    match objects.get(&listed.key, MAX_LIST).await {
        Ok(bytes) => match sealed::open(T::WHAT, &bytes) {
            Ok(list) => Ok(Found::Whole(list)),
            Err(e) if e.kind() == Kind::Unsupported => Err(Error::from(e).at(&listed.key)),
            Err(error) => {
                tracing::warn!(key = %listed.key, %error, "an unreadable list of gc");
                Ok(Found::Unreadable)
            }
        },
        Err(e) if e.kind() == Kind::Gone => Ok(Found::Gone),
        Err(e) if e.kind() == Kind::Corrupt => Ok(Found::Unreadable),
        Err(e) => Err(e),
    }
}
