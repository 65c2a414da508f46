//! The embedded state: one redb file.
//!
//! Assumptions: redb commits with two-slot headers and a sync, so a transaction is there whole after
//! a crash, or not at all; the file is locked while it is open, so there is one placement per file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use image::{Error, Kind, Result};
use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition};

use super::history::History;
use super::keys::{Keys, Listing, Transaction, Versioned, Watch, conflict};
use super::lead::{Deadline, Reign};
use crate::archive::Answer;
use crate::files;

/// Key → version, value.
const KEYS: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("keys");
/// `revision` → the number of the last transaction.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
/// Memory that redb may use for pages, in bytes.
const CACHE: usize = 16 << 20;

/// Keys in a redb file.
pub(crate) struct Disk {
    database: Arc<Database>,
    history: History,
    /// Each key that somebody in this process holds, or wants.
    held: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Disk {
    /// Opens the file; makes it, readable by its owner alone, if there is none.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if !files::exists(path)? {
            create(path)?;
        }
        Self::with(open(path)?).map_err(|e| refused(e).at(path.display()))
    }

    /// Compares all checksums of the file; says what was repaired.
    pub(crate) fn verify(path: &Path) -> Result<Option<String>> {
        let intact = open(path)?.check_integrity();
        let intact = intact.map_err(|e| damaged(path, &e.into()))?;
        Ok((!intact).then(|| format!("{}: it was damaged, and is repaired", path.display())))
    }

    fn with(database: Database) -> Result<Self, redb::Error> {
        let revision = revision(&database.begin_read()?.open_table(META)?)?;
        let (database, held) = (Arc::new(database), Mutex::default());
        Ok(Self { database, history: History::new(revision), held })
    }

    /// In memory: for tests.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        Self::over(redb::backends::InMemoryBackend::new()).expect("memory does not fail")
    }

    /// In anything that keeps bytes: for tests.
    #[cfg(test)]
    pub(crate) fn over(backend: impl redb::StorageBackend) -> Result<Self, redb::Error> {
        let database = builder().create_with_backend(backend)?;
        make_tables(&database)?;
        Self::with(database)
    }

    /// Runs on a thread that may block.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, Failure> + Send + 'static,
    ) -> Answer<'_, T> {
        let database = self.database.clone();
        Box::pin(async move {
            let done = tokio::task::spawn_blocking(move || work(&database)).await;
            match done {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(Failure::Conflict)) => Err(conflict()),
                Ok(Err(Failure::Database(e))) => Err(refused(e)),
                Err(e) => Err(Error::new(Kind::Io, format!("placement's state: {e}"))),
            }
        })
    }
}

/// Makes the file under another name and renames it: a database whose making was interrupted would
/// look like a damaged one.
fn create(path: &Path) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    if files::exists(&new)? {
        std::fs::remove_file(&new).map_err(|e| Error::io(new.display(), e))?;
    }
    drop(open(&new)?);
    files::rename(&new, path)
}

fn open(path: &Path) -> Result<Database> {
    let failed = |e: redb::Error| match e {
        redb::Error::DatabaseAlreadyOpen => Error::new(
            Kind::Conflict,
            format!("{}: another placement is running with this state", path.display()),
        ),
        redb::Error::UpgradeRequired(version) => Error::new(
            Kind::Unsupported,
            format!("{}: version {version} of redb's file format", path.display()),
        ),
        e => damaged(path, &e),
    };
    let file = files::open_private(path)?;
    let database = builder().create_file(file).map_err(|e| failed(e.into()))?;
    make_tables(&database).map_err(failed)?;
    Ok(database)
}

fn damaged(path: &Path, e: &redb::Error) -> Error {
    let what = format!(
        "{path}: {e}; if it cannot be repaired, move it away, and restore a backup if there is one: names \
         are rebuilt from the store, members stay members, unused join tokens are lost",
        path = path.display()
    );
    Error::new(Kind::Corrupt, what)
}

fn builder() -> redb::Builder {
    let mut builder = redb::Builder::new();
    builder.set_cache_size(CACHE);
    builder
}

/// So that no reader finds a table missing.
fn make_tables(database: &Database) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    write.open_table(KEYS)?;
    write.open_table(META)?;
    write.commit()?;
    Ok(())
}

impl Keys for Disk {
    fn get(&self, key: String) -> Answer<'_, Option<Versioned>> {
        self.run(move |database| {
            let table = database.begin_read()?.open_table(KEYS)?;
            Ok(table.get(key.as_str())?.map(|v| versioned(v.value())))
        })
    }

    fn list(&self, prefix: String) -> Answer<'_, Listing> {
        self.run(move |database| {
            let read = database.begin_read()?;
            let revision = revision(&read.open_table(META)?)?;
            let (table, mut entries) = (read.open_table(KEYS)?, Vec::new());
            for entry in table.range(prefix.as_str()..)? {
                let (key, value) = entry?;
                if !key.value().starts_with(&prefix) {
                    break;
                }
                entries.push((key.value().to_owned(), versioned(value.value())));
            }
            Ok(Listing { revision, entries })
        })
    }

    fn commit(&self, transaction: Transaction) -> Answer<'_, ()> {
        if let Err(e) = transaction.check() {
            return Box::pin(async { Err(e) });
        }
        let history = self.history.clone();
        self.run(move |database| {
            let turn = history.turn();
            // Dropped without a commit, it changes nothing. Durable when `commit` returns (redb's
            // default durability).
            let write = database.begin_write()?;
            let revision = {
                let mut keys = write.open_table(KEYS)?;
                compare(&keys, &transaction.compares)?;
                let mut meta = write.open_table(META)?;
                let revision = revision(&meta)? + 1;
                meta.insert(REVISION, revision)?;
                change(&mut keys, &transaction.changes, revision)?;
                revision
            };
            if let Err(e) = write.commit() {
                turn.unknown(revision);
                return Err(e.into());
            }
            turn.committed(revision, transaction.changes);
            Ok(())
        })
    }

    fn watch(&self, prefix: String, after: u64) -> Watch {
        self.history.watch(prefix, after)
    }

    /// The file is locked, so nobody but this process can want the key.
    fn campaign(&self, key: String, id: Vec<u8>, _: Duration) -> Answer<'_, Reign> {
        Box::pin(async move {
            let lock = {
                let mut held = self.held.lock().expect("nothing panics that holds it");
                held.entry(key.clone()).or_default().clone()
            };
            let keep = Box::new(lock.lock_owned().await);
            self.commit(Transaction::default().put(&key, id)).await?;
            match self.get(key).await? {
                Some(Versioned { version, .. }) => {
                    Ok(Reign { version, deadline: Deadline::never(), keep })
                }
                None => Err(conflict()),
            }
        })
    }
}

/// The number of the last transaction.
fn revision(meta: &impl ReadableTable<&'static str, u64>) -> Result<u64, redb::StorageError> {
    Ok(meta.get(REVISION)?.map_or(0, |r| r.value()))
}

type KeyTable<'t> = Table<'t, &'static str, (u64, &'static [u8])>;

fn compare(keys: &KeyTable<'_>, compares: &[(String, Option<u64>)]) -> Result<(), Failure> {
    for (key, version) in compares {
        if keys.get(key.as_str())?.map(|v| v.value().0) != *version {
            return Err(Failure::Conflict);
        }
    }
    Ok(())
}

fn change(
    keys: &mut KeyTable<'_>,
    changes: &[(String, Option<Vec<u8>>)],
    revision: u64,
) -> Result<(), Failure> {
    for (key, value) in changes {
        match value {
            Some(value) => drop(keys.insert(key.as_str(), (revision, value.as_slice()))?),
            None => drop(keys.remove(key.as_str())?),
        }
    }
    Ok(())
}

fn versioned((version, value): (u64, &[u8])) -> Versioned {
    Versioned { version, value: value.to_vec() }
}

/// Why a transaction was not done.
enum Failure {
    Conflict,
    Database(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(e: E) -> Self {
        Failure::Database(e.into())
    }
}

fn refused(e: redb::Error) -> Error {
    match e {
        redb::Error::Io(e) => Error::io("placement's state", e),
        e @ redb::Error::Corrupted(_) => {
            Error::new(Kind::Corrupt, format!("placement's state: {e}"))
        }
        e => Error::new(Kind::Io, format!("placement's state: {e}; restart placement")),
    }
}
