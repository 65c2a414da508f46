//! Backing the state up, and restoring it.
//!
//! A restore is many transactions, so it says first that it has begun, and nobody takes the state for whole
//! until it says that it is at its end:
//!
//! ```text
//! restoring is put, the generation moves on, format goes     from here on, who had the state open changes nothing
//! all other keys are deleted, those of the backup are put
//! format and not_before are put, restoring goes              from here on, the state can be opened
//! ```
//!
//! Interrupted, it is begun anew by the next restore, which also fences one that still runs.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use image::{Error, Kind, Result};

use super::backup::Backup;
use super::check::{absent, family, unknown_version};
use super::generation::{GENERATION, LONGEST_LEASE, NOT_BEFORE, RESTORING};
use super::keys::{Keys, Listing, MAX_BYTES, MAX_OPS, Transaction, Versioned, decode, encode};
use super::place::StatePlace;
use super::{FORMAT, GRID, LEADERS, VERSION};
use crate::files;

/// What is never taken from a backup: what a restore says itself, and who led.
const OWN: &[&str] = &[FORMAT, GENERATION, NOT_BEFORE, RESTORING];

/// What a backup has.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct BackupReport {
    /// The grid.
    pub grid: String,
    /// How many keys of each kind.
    pub keys: BTreeMap<String, u64>,
    /// The revision of the state.
    pub revision: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RestoreReport {
    /// The grid.
    pub grid: String,
    /// How many keys of each kind were restored.
    pub keys: BTreeMap<String, u64>,
    /// How many keys of each kind were there before, and are lost.
    pub lost: BTreeMap<String, u64>,
    /// When the backup was made, in seconds since 1970.
    pub made: u64,
    /// The generation that has begun.
    pub generation: u64,
    /// No lease is handed out before, in seconds since 1970.
    pub not_before: u64,
}

/// Writes all keys of a state, as of one moment, to a file that is not there yet. `now` in seconds since
/// 1970; `grid` may be nothing if the place names a prefix.
pub async fn backup(
    place: &StatePlace,
    grid: Option<&str>,
    file: &Path,
    now: u64,
) -> Result<BackupReport> {
    if !place.exists()? {
        return Err(absent(place));
    }
    let listing = place.keys(grid).await?.list(String::new()).await.map_err(|e| e.at(place))?;
    if has(&listing, RESTORING) {
        return Err(unfinished().at(place));
    }
    if !has(&listing, FORMAT) {
        return Err(absent(place));
    }
    let backup = Backup { at: now, listing };
    let grid = grid_of(&backup.listing).map_err(|e| e.at(place))?;
    let bytes = backup.to_bytes();
    write_new(file, &bytes)?;
    let (keys, revision) = (kinds(&backup.listing), backup.listing.revision);
    Ok(BackupReport { grid, keys, revision, bytes: bytes.len() as u64 })
}

/// Puts a state from a file where none is; or, if `replace`, in place of what is there. Placement must not be
/// running. `now` in seconds since 1970; of another `grid` than this, if one is given, it is refused. `lease` is
/// the longest that may have been handed out, if that is more than [`LONGEST_LEASE`].
pub async fn restore(
    place: &StatePlace,
    grid: Option<&str>,
    file: &Path,
    replace: bool,
    lease: Duration,
    now: u64,
) -> Result<RestoreReport> {
    let bytes = std::fs::read(file).map_err(|e| Error::io(file.display(), e))?;
    let backup = Backup::parse(&bytes).map_err(|e| e.at(file.display()))?;
    let of = grid_of(&backup.listing).map_err(|e| e.at(file.display()))?;
    if let Some(grid) = grid.filter(|grid| *grid != of) {
        let what = format!("{}: it is of grid {of}, and the CA of grid {grid}", file.display());
        return Err(Error::new(Kind::Conflict, what));
    }
    let keys = place.keys(grid.or(Some(&of))).await?;
    let before = keys.list(String::new()).await.map_err(|e| e.at(place))?;
    may_go(place, &before, replace)?;
    let restoring = Restoring::begin(&*keys, &before, &backup.listing).await;
    let restoring = restoring.map_err(|e| e.at(place))?;
    let not_before = now + lease.max(LONGEST_LEASE).as_secs();
    restoring.run(&backup.listing, not_before).await.map_err(|e| e.at(place))?;
    let (keys, lost) = (kinds(&backup.listing), kinds(&before));
    let generation = restoring.generation;
    Ok(RestoreReport { grid: of, keys, lost, made: backup.at, generation, not_before })
}

/// Whether what is there may be replaced.
fn may_go(place: &StatePlace, there: &Listing, replace: bool) -> Result<()> {
    let conflict = |what| Err(Error::new(Kind::Conflict, format!("{place}: {what}")));
    let leads = there.entries.iter().find(|(key, _)| key.starts_with(LEADERS));
    if let (true, Some((key, _))) = (place.is_shared(), leads) {
        return conflict(format!("`{key}` is held: stop every placement first"));
    }
    if replace || there.entries.is_empty() || has(there, RESTORING) {
        return Ok(());
    }
    let kinds: Vec<_> = kinds(there).iter().map(|(kind, n)| format!("{kind} ({n})")).collect();
    conflict(format!("there is state already: {}; --force replaces it", kinds.join(", ")))
}

/// A restore that has begun.
struct Restoring<'k> {
    keys: &'k dyn Keys,
    generation: u64,
    /// The version of the generation's key: whoever begins another restore fences this one.
    fence: Versioned,
}

impl<'k> Restoring<'k> {
    async fn begin(keys: &'k dyn Keys, before: &Listing, backup: &Listing) -> Result<Self> {
        let known = [before, backup].map(|listing| find(listing, GENERATION));
        let known = known.into_iter().flatten().map(|there| decode::<u64>(GENERATION, there));
        let generation = known.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0) + 1;
        let begin = [GENERATION, RESTORING, FORMAT]
            .iter()
            .fold(Transaction::default(), |b, key| b.unchanged(key, find(before, key)));
        let begin =
            begin.put(RESTORING, encode(&true)).put(GENERATION, encode(&generation)).delete(FORMAT);
        keys.commit(begin).await?;
        match keys.get(GENERATION.into()).await? {
            Some(fence) if decode::<u64>(GENERATION, &fence)? == generation => {
                Ok(Self { keys, generation, fence })
            }
            _ => Err(Error::new(Kind::Conflict, "another restore has begun")),
        }
    }

    async fn run(&self, backup: &Listing, not_before: u64) -> Result<()> {
        // As it is now: who had it open may have changed it until we began.
        let there = self.keys.list(String::new()).await?;
        let own = |key: &str| OWN.contains(&key);
        let old = there.entries.iter().filter(|(key, _)| !own(key));
        self.commit(old.map(|(key, _)| (key.clone(), None))).await?;
        let new = backup.entries.iter().filter(|(key, _)| !own(key) && !key.starts_with(LEADERS));
        self.commit(new.map(|(key, there)| (key.clone(), Some(there.value.clone())))).await?;
        let end = self.fenced().put(FORMAT, encode(&VERSION)).put(NOT_BEFORE, encode(&not_before));
        self.keys.commit(end.delete(RESTORING)).await
    }

    /// In as many transactions as that takes.
    async fn commit(&self, changes: impl Iterator<Item = (String, Option<Vec<u8>>)>) -> Result<()> {
        let mut next = self.fenced();
        for (key, value) in changes {
            let more = key.len() + value.as_ref().map_or(0, Vec::len);
            if next.changes.len() == MAX_OPS || next.bytes() + more > MAX_BYTES {
                self.keys.commit(std::mem::replace(&mut next, self.fenced())).await?;
            }
            next.changes.push((key, value));
        }
        if next.changes.is_empty() {
            return Ok(());
        }
        self.keys.commit(next).await
    }

    fn fenced(&self) -> Transaction {
        Transaction::default().unchanged(GENERATION, Some(&self.fence))
    }
}

fn find<'l>(listing: &'l Listing, key: &str) -> Option<&'l Versioned> {
    listing.entries.iter().find(|(there, _)| there == key).map(|(_, value)| value)
}

fn has(listing: &Listing, key: &str) -> bool {
    find(listing, key).is_some()
}

/// The grid of a state whose version is known.
fn grid_of(listing: &Listing) -> Result<String> {
    let needed = |key: &'static str| {
        find(listing, key)
            .ok_or_else(|| Error::new(Kind::Corrupt, format!("key `{key}` is missing")))
    };
    match decode::<u32>(FORMAT, needed(FORMAT)?)? {
        VERSION => decode(GRID, needed(GRID)?),
        version => Err(unknown_version(version)),
    }
}

pub(super) fn unfinished() -> Error {
    let what = "placement's state: a restore did not come to its end; restore again";
    Error::new(Kind::Conflict, what)
}

fn kinds(listing: &Listing) -> BTreeMap<String, u64> {
    let mut kinds = BTreeMap::new();
    for (key, _) in &listing.entries {
        *kinds.entry(family(key).to_owned()).or_default() += 1;
    }
    kinds
}

/// Makes a file, readable by its owner alone, whole or not at all.
fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let wrong = |e| Error::io(path.display(), e);
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}.new", std::process::id()));
    let new = PathBuf::from(new);
    let written = files::open_private(&new).and_then(|mut file| {
        file.set_len(0).and_then(|()| file.write_all(bytes)).map_err(wrong)?;
        file.sync_all().map_err(wrong)?;
        // A link, not a renaming: it replaces nothing.
        std::fs::hard_link(&new, path).map_err(wrong)
    });
    let removed = std::fs::remove_file(&new).map_err(|e| Error::io(new.display(), e));
    written?;
    removed?;
    files::sync_parent(path)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use super::super::disk::Disk;
    use super::super::keys::Watch;
    use super::super::lead::Reign;
    use super::super::{State, check};
    use super::*;
    use crate::archive::{Answer, RefMove};

    fn moved(seq: u64) -> RefMove {
        let name = format!("a:{seq}").parse().unwrap();
        RefMove { seq, name, image: Some(image::Digest::of_chunk(b"x")), at: 1 }
    }

    /// A state of many refs, and the file of its backup.
    async fn backed_up(dir: &Path) -> (StatePlace, PathBuf) {
        let (place, file) = (StatePlace::from(dir.join("a.redb")), dir.join("backup"));
        let state = State::open(&place, "g").await.unwrap();
        for batch in (1..=300).collect::<Vec<_>>().chunks(100) {
            state.apply(&batch.iter().map(|seq| moved(*seq)).collect::<Vec<_>>()).await.unwrap();
        }
        drop(state);
        backup(&place, None, &file, 1000).await.unwrap();
        (place, file)
    }

    #[tokio::test]
    async fn a_restore_begins_a_generation_and_waits_for_leases() {
        let dir = tempfile::tempdir().unwrap();
        let (old, file) = backed_up(dir.path()).await;
        let new = StatePlace::from(dir.path().join("b.redb"));
        let e = restore(&new, Some("other"), &file, true, Duration::ZERO, 2000).await.unwrap_err();
        assert_eq!((e.kind(), new.exists().unwrap()), (Kind::Conflict, false), "{e}");
        let said = restore(&new, Some("g"), &file, false, Duration::ZERO, 2000).await.unwrap();
        assert_eq!((said.keys["refs"], said.generation, said.not_before), (300, 1, 2900));
        assert!(said.lost.is_empty());
        assert_eq!(check(&new, None).await.unwrap().bad, [""; 0]);
        let state = State::open(&new, "g").await.unwrap();
        assert_eq!(state.not_before().await.unwrap(), Some(2900));
        assert_eq!(state.refs().await.unwrap().len(), 300);
        assert_eq!(State::open(&old, "g").await.unwrap().not_before().await.unwrap(), None);
    }

    /// Keys that can do so many commits more, and then none.
    struct Mortal {
        keys: Disk,
        left: AtomicUsize,
        changed: Mutex<Vec<usize>>,
    }

    impl Keys for Mortal {
        fn get(&self, key: String) -> Answer<'_, Option<Versioned>> {
            self.keys.get(key)
        }

        fn list(&self, prefix: String) -> Answer<'_, Listing> {
            self.keys.list(prefix)
        }

        fn commit(&self, transaction: Transaction) -> Answer<'_, ()> {
            let relaxed = Ordering::Relaxed;
            match self.left.fetch_update(relaxed, relaxed, |left| left.checked_sub(1)) {
                Ok(_) => {
                    self.changed.lock().unwrap().push(transaction.changes.len());
                    self.keys.commit(transaction)
                }
                Err(_) => Box::pin(async { Err(Error::new(Kind::Io, "killed")) }),
            }
        }

        fn watch(&self, prefix: String, after: u64) -> Watch {
            self.keys.watch(prefix, after)
        }

        fn campaign(&self, key: String, id: Vec<u8>, ttl: Duration) -> Answer<'_, Reign> {
            self.keys.campaign(key, id, ttl)
        }
    }

    async fn put_back(keys: &dyn Keys, backup: &Listing) -> Result<()> {
        let before = keys.list(String::new()).await?;
        Restoring::begin(keys, &before, backup).await?.run(backup, 9).await
    }

    #[tokio::test]
    async fn an_interrupted_restore_is_no_state_until_it_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let file = backed_up(dir.path()).await.1;
        let backup = Backup::parse(&std::fs::read(file).unwrap()).unwrap().listing;
        for survives in 0.. {
            let (left, changed) = (AtomicUsize::new(9), Mutex::default());
            let keys = Arc::new(Mortal { keys: Disk::in_memory(), left, changed });
            // Somebody has it open meanwhile.
            let open = State::over(keys.clone(), "g").await.unwrap();
            open.apply(&[moved(999)]).await.unwrap();
            keys.left.store(survives, Ordering::Relaxed);
            let done = put_back(&*keys, &backup).await;
            keys.left.store(usize::MAX, Ordering::Relaxed);
            let late = open.apply(&[moved(1000)]).await;
            let again = State::over(keys.clone(), "g").await;
            if survives == 0 {
                // Nothing was begun.
                late.unwrap();
                again.unwrap();
                continue;
            }
            assert_eq!(late.unwrap_err().kind(), Kind::Conflict, "{survives}");
            if done.is_err() {
                let e = again.err().unwrap();
                assert_eq!(e.kind(), Kind::Conflict, "{survives}");
                assert!(e.message().contains("restore again"), "{e}");
                put_back(&*keys, &backup).await.unwrap();
            }
            let state = State::over(keys.clone(), "g").await.unwrap();
            assert_eq!(state.refs().await.unwrap().len(), 300, "{survives}");
            assert_eq!(state.seq().await.unwrap(), 300);
            if done.is_ok() {
                let changed = keys.changed.lock().unwrap();
                assert!(survives > 4 && changed.iter().all(|n| *n <= MAX_OPS), "{changed:?}");
                break;
            }
        }
    }

    #[tokio::test]
    async fn a_check_names_what_is_wrong_by_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let (place, file) = backed_up(dir.path()).await;
        let keys = place.keys(None).await.unwrap();
        let bad = [
            ("goals/n", "1"),
            ("later/x", "1"),
            ("members/m", "{"),
            ("refs/a:1", "7"),
            ("refs/NOT A REF", "{}"),
            ("removed/r", "\"soon\""),
            ("servers/s", "{}"),
            ("store", "1"),
            ("tokens/short", "{}"),
            ("traces/0", "x"),
        ];
        for (key, value) in bad {
            keys.commit(Transaction::default().put(key, value.into())).await.unwrap();
        }
        drop(keys);
        let mut found = check(&place, None).await.unwrap().bad;
        found.sort();
        assert_eq!(found.len(), bad.len(), "{found:#?}");
        for (key, _) in bad {
            assert!(
                found.iter().any(|said| said.contains(&format!("`{key}`"))),
                "{key}: {found:#?}"
            );
        }
        // Bad values are restored as they are; a state of another version is not.
        let keys = place.keys(None).await.unwrap();
        keys.commit(Transaction::default().put(FORMAT, b"2".to_vec())).await.unwrap();
        drop(keys);
        let e = backup(&place, None, &file.with_extension("2"), 1).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Unsupported, "{e}");
        assert_eq!(check(&place, None).await.unwrap().bad.len(), bad.len() + 1);
    }
}
