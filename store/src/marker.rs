//! The marker: the one object that says that a place is a Forebay store, and which.

use image::{Error, Kind, PackId, Result};
use serde::{Deserialize, Serialize};

use crate::keys;
use crate::locate::is_lost;
use crate::objects::Objects;
use crate::options::{IndexPlace, StoreOptions};
use crate::sealed;
use crate::store::Shared;

pub(crate) const MARKER: &str = "forebay store";
/// Longest marker in bytes.
const MAX_MARKER: usize = 4096;

/// What the marker says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Marker {
    /// The store's id.
    pub(crate) store: String,
}

/// The store's id. A marker is made where there is nothing at all, unless the store is only to be
/// read, or is known; any other place without one is left alone, and so is a store that is not the
/// expected one.
pub(crate) async fn adopt(objects: &Objects, options: &StoreOptions) -> Result<String> {
    let id = match read(objects).await? {
        Some(id) => id,
        None => {
            refuse_foreign(objects).await?;
            if !options.may_make() {
                return Err(nothing_here(options));
            }
            make(objects, options).await?
        }
    };
    match &options.expect {
        Some(expected) if *expected != id => {
            let next = mount_it(expected, options);
            let message = format!("this is store {id}, perhaps another grid's; {next}");
            Err(Error::new(Kind::Invalid, message))
        }
        _ => Ok(id),
    }
}

/// The error where a store should be and nothing is.
pub(crate) fn nothing_here(options: &StoreOptions) -> Error {
    let next = match &options.expect {
        Some(expected) => mount_it(expected, options),
        None => "mount it, or name the store that `forebay up` of this grid uses (store.at)".into(),
    };
    Error::new(Kind::Gone, format!("there is no store here; {next}"))
}

fn mount_it(expected: &str, options: &StoreOptions) -> String {
    let next = format!(
        "this grid's store is {expected}, which is not here: mount it, or name it with store.at"
    );
    if options.index == IndexPlace::Nowhere {
        return next;
    }
    next + "; if it is lost for good, move placement's state (placement.redb) away: the grid then goes \
            on with the store that is here, and the names in its log"
}

impl Shared {
    /// That the store is still where it was opened. A directory whose file system was unmounted looks
    /// like an empty store: nothing may be written there, and what is not found there is not lost.
    pub(crate) async fn is_here(&self) -> Result<()> {
        let why = match read(&self.objects).await? {
            Some(id) if id == self.id => return Ok(()),
            Some(id) => format!("the marker there is that of store {id}, not of {}", self.id),
            None => "its marker is not there".to_owned(),
        };
        let message = format!(
            "the store is away: {}: {why}; mount it again, or start again with the place where it is \
             now (store.at)",
            self.objects.place()
        );
        Err(Error::new(Kind::Retry, message))
    }

    /// What is told to who did not find something, or found it lost: that the store is away, if it is.
    /// The marker is looked at once a second at most, however much is missing.
    pub(crate) async fn unless_away(&self, error: Error) -> Error {
        if !is_lost(&error) {
            return error;
        }
        // Held while the marker is read: who comes meanwhile takes the same answer.
        let mut looked = self.looked.lock().await;
        let now = self.now();
        let away = match looked.take().filter(|(at, _)| *at == now) {
            Some((_, away)) => away,
            None => self.is_here().await.err().filter(|e| e.kind() == Kind::Retry),
        };
        *looked = Some((now, away.clone()));
        away.unwrap_or(error)
    }
}

async fn read(objects: &Objects) -> Result<Option<String>> {
    match objects.get(&keys::marker(), MAX_MARKER).await {
        Ok(bytes) => parse(&bytes).map(Some),
        Err(e) if e.kind() == Kind::Gone => Ok(None),
        Err(e) => Err(e),
    }
}

async fn refuse_foreign(objects: &Objects) -> Result<()> {
    let Some(other) = objects.anything().await? else { return Ok(()) };
    let message = format!(
        "there is no marker `{}`, but there is `{other}`: this is not a Forebay store, and is left \
         alone; name an empty place, or bring the marker back",
        keys::marker()
    );
    Err(Error::new(Kind::Invalid, message))
}

async fn make(objects: &Objects, options: &StoreOptions) -> Result<String> {
    let store = hex(&(options.ids)());
    let marker = sealed::seal(MARKER, &Marker { store: store.clone() });
    match objects.create(&keys::marker(), marker).await {
        Ok(()) => Ok(store),
        // Another process made it at the same time, or an answer was lost and the creation retried.
        Err(e) if e.kind() == Kind::Conflict => read(objects).await?.ok_or(e),
        Err(e) => Err(e),
    }
}

/// An id in hex digits, as it stands in names.
pub(crate) fn hex(id: &[u8; 16]) -> String {
    PackId(*id).to_string()
}

fn parse(bytes: &[u8]) -> Result<String> {
    match sealed::open::<Marker>(MARKER, bytes) {
        Ok(marker) => Ok(marker.store),
        Err(e) => {
            let kind = match e.kind() {
                Kind::Unsupported => Kind::Unsupported,
                _ => Kind::Invalid,
            };
            let message = format!("marker `{}`: {e}; the store is left alone", keys::MARKER);
            Err(Error::caused(kind, message, e))
        }
    }
}
