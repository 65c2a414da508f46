//! The chunk index: from the digest of a chunk to every place where it lies.
//!
//! Derived from the footers of the packs and made anew if it is lost, so its writes need not be
//! durable at once. An entry is believed only as far as the pack exists; who finds a pack gone, or
//! a copy damaged, takes it out here.
//!
//! It also remembers which chunks each writer has sent (`owned`): an interrupted push that starts
//! again must not send them twice, but a writer must not learn what others have stored. A pack
//! holds chunks of many writers, so this is kept per entry of a pack: one bit each.

use std::collections::HashMap;
use std::path::Path as FsPath;
use std::sync::atomic::{AtomicU32, Ordering};

use image::{Digest, Domain, Error, Footer, Kind, PackId, Result};
use redb::backends::InMemoryBackend;
use redb::{
    Builder, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition,
};

use crate::errors::from_index;
use crate::options::IndexPlace;

/// The layout of the tables below; another one is thrown away and made anew.
const LAYOUT: u64 = 1;
/// Every so many writes one is made durable, which also lets the file reuse its pages.
const DURABLE_EVERY: u32 = 16;

/// `layout`, then the store's id: an index of another store is thrown away.
const META: TableDefinition<&str, &str> = TableDefinition::new("meta");
/// Pack → its length.
const PACKS: TableDefinition<&[u8; 16], u64> = TableDefinition::new("packs");
/// Pack → domain and the digests of its chunks, so that its entries can be found when it is gone.
const FOOTERS: TableDefinition<&[u8; 16], &[u8]> = TableDefinition::new("footers");
/// Domain, digest, pack → where in the pack.
const CHUNKS: TableDefinition<&[u8; 52], &[u8; 44]> = TableDefinition::new("chunks");
/// Writer, pack → when (seconds), and which entries of the pack the writer has sent.
const OWNED: TableDefinition<&[u8; 48], &[u8]> = TableDefinition::new("owned");

/// One copy of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) pack: PackId,
    /// Which entry of the pack.
    pub(crate) number: u32,
    pub(crate) offset: u32,
    pub(crate) frame_len: u32,
    pub(crate) stored: Digest,
}

impl Copy {
    pub(crate) fn spot(&self) -> image::Spot {
        let Copy { pack, offset, frame_len, stored, .. } = *self;
        image::Spot { pack, offset, frame_len, stored }
    }
}

/// Entries of a pack that a writer has sent.
pub(crate) type Sent = (Digest, PackId, u32);

/// The chunk index of one store.
pub(crate) struct Index {
    db: Database,
    writes: AtomicU32,
}

impl Index {
    /// Opens the index of the store with this id, or starts an empty one; none if it lies nowhere.
    pub(crate) fn open(place: &IndexPlace, cache: usize, store: &str) -> Result<Option<Self>> {
        let mut builder = Builder::new();
        builder.set_cache_size(cache);
        let path = match place {
            IndexPlace::Nowhere => return Ok(None),
            IndexPlace::Memory => {
                let db = builder.create_with_backend(InMemoryBackend::new());
                let db = db.map_err(|e| from_index("opening in memory", e))?;
                return Self::adopted(db, store).map(Some);
            }
            IndexPlace::File(path) => path,
        };
        let opened = match Self::adopted(open_file(&builder, path)?, store) {
            Err(error) if error.kind() == Kind::Io => {
                tracing::warn!(path = %path.display(), %error, "making the chunk index anew");
                Self::adopted(remake(&builder, path)?, store)
            }
            other => other,
        };
        opened.map(Some)
    }

    fn adopted(db: Database, store: &str) -> Result<Self> {
        let index = Self { db, writes: AtomicU32::new(0) };
        index.adopt(store)?;
        Ok(index)
    }

    /// Empties the tables unless they are of this layout and this store.
    fn adopt(&self, store: &str) -> Result<()> {
        let layout = format!("{LAYOUT} {store}");
        self.write("opening", |txn| {
            let known = {
                let meta = txn.open_table(META)?;
                meta.get("layout")?.is_some_and(|v| v.value() == layout)
            };
            if !known {
                txn.delete_table(PACKS)?;
                txn.delete_table(FOOTERS)?;
                txn.delete_table(CHUNKS)?;
                txn.delete_table(OWNED)?;
                txn.open_table(META)?.insert("layout", layout.as_str())?;
            }
            txn.open_table(PACKS)?;
            txn.open_table(FOOTERS)?;
            txn.open_table(CHUNKS)?;
            txn.open_table(OWNED)?;
            Ok(())
        })
    }

    /// The packs that are indexed, with their lengths.
    pub(crate) fn packs(&self) -> Result<HashMap<PackId, u64>> {
        self.read("listing packs", |txn| {
            let table = txn.open_table(PACKS)?;
            let rows = table.iter()?;
            rows.map(|row| {
                let (id, len) = row?;
                Ok((PackId(*id.value()), len.value()))
            })
            .collect()
        })
    }

    /// Adds a pack that exists, and the entries of it that writers have sent.
    pub(crate) fn add_pack(
        &self,
        id: &PackId,
        len: u64,
        footer: &Footer,
        sent: &[Sent],
        now: u64,
    ) -> Result<()> {
        self.write("adding a pack", |txn| {
            txn.open_table(PACKS)?.insert(&id.0, len)?;
            let mut blob = footer.domain.0.to_be_bytes().to_vec();
            footer.entries.iter().for_each(|e| blob.extend_from_slice(&e.digest.0));
            txn.open_table(FOOTERS)?.insert(&id.0, &blob[..])?;
            let mut chunks = txn.open_table(CHUNKS)?;
            for (number, e) in (0u32..).zip(&footer.entries) {
                let copy = Copy {
                    pack: *id,
                    number,
                    offset: e.offset,
                    frame_len: e.frame_len,
                    stored: e.stored,
                };
                chunks.insert(&chunk_key(footer.domain, &e.digest, id), &copy_value(&copy))?;
            }
            drop(chunks);
            add_sent(txn, sent, now)
        })
    }

    /// Adds entries of packs that are indexed to what writers have sent.
    pub(crate) fn add_sent(&self, sent: &[Sent], now: u64) -> Result<()> {
        if sent.is_empty() {
            return Ok(());
        }
        self.write("remembering what was sent", |txn| add_sent(txn, sent, now))
    }

    /// Forgets packs that no longer exist.
    pub(crate) fn drop_packs(&self, packs: &[PackId]) -> Result<()> {
        if packs.is_empty() {
            return Ok(());
        }
        self.write("dropping packs", |txn| {
            let mut chunks = txn.open_table(CHUNKS)?;
            let mut footers = txn.open_table(FOOTERS)?;
            let mut table = txn.open_table(PACKS)?;
            for id in packs {
                table.remove(&id.0)?;
                let Some(blob) = footers.remove(&id.0)?.map(|b| b.value().to_vec()) else {
                    continue;
                };
                let (domain, digests) = blob.split_at(4);
                let domain = Domain(u32::from_be_bytes(domain.try_into().expect("4 bytes")));
                for digest in digests.chunks_exact(32) {
                    let digest = Digest(digest.try_into().expect("chunks of 32"));
                    chunks.remove(&chunk_key(domain, &digest, id))?;
                }
            }
            let mut owned = txn.open_table(OWNED)?;
            let gone: std::collections::HashSet<_> = packs.iter().map(|p| p.0).collect();
            owned.retain(|key, _| !gone.contains(&key[32..]))?;
            Ok(())
        })
    }

    /// Forgets one copy of a chunk, which was found damaged.
    pub(crate) fn forget_copy(&self, domain: Domain, digest: &Digest, pack: &PackId) -> Result<()> {
        self.write("forgetting a damaged copy", |txn| {
            txn.open_table(CHUNKS)?.remove(&chunk_key(domain, digest, pack))?;
            Ok(())
        })
    }

    /// Forgets what writers sent before `before` (seconds).
    pub(crate) fn forget_sent(&self, before: u64) -> Result<()> {
        self.write("forgetting writers", |txn| {
            txn.open_table(OWNED)?.retain(|_, value| sent_at(value) >= before)?;
            Ok(())
        })
    }

    /// Looks chunks up, several in one go.
    pub(crate) fn look<T>(&self, f: impl FnOnce(&Lookup) -> Result<T>) -> Result<T> {
        let lookup = self.read("looking up", |txn| {
            Ok(Lookup { chunks: txn.open_table(CHUNKS)?, owned: txn.open_table(OWNED)? })
        })?;
        f(&lookup)
    }

    /// Every copy of a chunk.
    pub(crate) fn copies(&self, domain: Domain, digest: &Digest) -> Result<Vec<Copy>> {
        self.look(|l| l.copies(domain, digest))
    }

    fn read<T>(
        &self,
        what: &str,
        f: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T> {
        let txn = self.db.begin_read().map_err(|e| from_index(what, e))?;
        f(&txn).map_err(|e| from_index(what, e))
    }

    fn write<T>(
        &self,
        what: &str,
        f: impl FnOnce(&redb::WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T> {
        let run = || -> Result<T, redb::Error> {
            let mut txn = self.db.begin_write()?;
            let n = self.writes.fetch_add(1, Ordering::Relaxed);
            if n.is_multiple_of(DURABLE_EVERY) {
                // So that a restart after a crash need not walk the whole file.
                txn.set_quick_repair(true);
            } else {
                txn.set_durability(Durability::None)?;
            }
            let out = f(&txn)?;
            txn.commit()?;
            Ok(out)
        };
        run().map_err(|e| from_index(what, e))
    }
}

impl Drop for Index {
    /// Makes durable what is not yet, so that an orderly restart finds it.
    fn drop(&mut self) {
        let saved = self.db.begin_write().map(redb::WriteTransaction::commit);
        if !matches!(saved, Ok(Ok(()))) {
            tracing::debug!("the chunk index was not saved; the next start reads footers instead");
        }
    }
}

/// A view of the index for many look-ups.
pub(crate) struct Lookup {
    chunks: redb::ReadOnlyTable<&'static [u8; 52], &'static [u8; 44]>,
    owned: redb::ReadOnlyTable<&'static [u8; 48], &'static [u8]>,
}

impl Lookup {
    /// Every copy of a chunk, in the order of the packs' ids.
    pub(crate) fn copies(&self, domain: Domain, digest: &Digest) -> Result<Vec<Copy>> {
        let what = "looking up a chunk";
        let first = chunk_key(domain, digest, &PackId([0; 16]));
        let last = chunk_key(domain, digest, &PackId([255; 16]));
        let rows =
            self.chunks.range::<&[u8; 52]>(&first..=&last).map_err(|e| from_index(what, e))?;
        rows.map(|row| {
            let (key, value) = row.map_err(|e| from_index(what, e))?;
            Ok(parse_copy(key.value(), value.value()))
        })
        .collect()
    }

    /// Whether this writer has sent this entry of a pack.
    pub(crate) fn has_sent(&self, owner: &Digest, copy: &Copy) -> Result<bool> {
        let row = self.owned.get(&owned_key(owner, &copy.pack));
        let row = row.map_err(|e| from_index("looking up a writer", e))?;
        Ok(row.is_some_and(|v| {
            let byte = v.value().get(8 + copy.number as usize / 8).copied().unwrap_or(0);
            byte >> (copy.number % 8) & 1 == 1
        }))
    }
}

/// Opens the index file; one that is damaged or of another version is made anew.
fn open_file(builder: &Builder, path: &FsPath) -> Result<Database> {
    if let Some(parent) = path.parent() {
        let what = |e| Error::io(format!("chunk index directory {}", parent.display()), e);
        std::fs::create_dir_all(parent).map_err(what)?;
    }
    let place = || path.display();
    match builder.create(path) {
        Ok(db) => return Ok(db),
        Err(DatabaseError::DatabaseAlreadyOpen) => {
            let message = format!(
                "chunk index {}: another process has it open; give each process an index file of \
                 its own",
                place()
            );
            return Err(Error::new(Kind::Conflict, message));
        }
        // The disk, not the file's content: making it anew would not help.
        Err(DatabaseError::Storage(redb::StorageError::Io(e)))
            if e.kind() != std::io::ErrorKind::InvalidData =>
        {
            return Err(Error::io(format!("chunk index {}", place()), e));
        }
        Err(error) => {
            tracing::warn!(path = %place(), %error, "the chunk index is unreadable: making it anew");
        }
    }
    remake(builder, path)
}

fn remake(builder: &Builder, path: &FsPath) -> Result<Database> {
    let place = path.display();
    std::fs::remove_file(path).map_err(|e| Error::io(format!("chunk index {place}"), e))?;
    builder.create(path).map_err(|e| from_index(place, e))
}

fn add_sent(txn: &redb::WriteTransaction, sent: &[Sent], now: u64) -> Result<(), redb::Error> {
    let mut by_row: HashMap<(Digest, PackId), Vec<u32>> = HashMap::new();
    for (owner, pack, number) in sent {
        by_row.entry((*owner, *pack)).or_default().push(*number);
    }
    let packs = txn.open_table(PACKS)?;
    let mut owned = txn.open_table(OWNED)?;
    for ((owner, pack), numbers) in by_row {
        // A pack that went away meanwhile must not leave a row behind.
        if packs.get(&pack.0)?.is_none() {
            continue;
        }
        let key = owned_key(&owner, &pack);
        let mut row = owned.get(&key)?.map_or_else(Vec::new, |v| v.value().to_vec());
        let longest = numbers.iter().max().map_or(0, |n| 9 + *n as usize / 8);
        row.resize(row.len().max(longest).max(8), 0);
        row[..8].copy_from_slice(&now.to_le_bytes());
        numbers.iter().for_each(|n| row[8 + *n as usize / 8] |= 1 << (n % 8));
        owned.insert(&key, &row[..])?;
    }
    Ok(())
}

fn sent_at(row: &[u8]) -> u64 {
    row.first_chunk::<8>().map_or(0, |t| u64::from_le_bytes(*t))
}

fn chunk_key(domain: Domain, digest: &Digest, pack: &PackId) -> [u8; 52] {
    let mut key = [0; 52];
    key[..4].copy_from_slice(&domain.0.to_be_bytes());
    key[4..36].copy_from_slice(&digest.0);
    key[36..].copy_from_slice(&pack.0);
    key
}

fn owned_key(owner: &Digest, pack: &PackId) -> [u8; 48] {
    let mut key = [0; 48];
    key[..32].copy_from_slice(&owner.0);
    key[32..].copy_from_slice(&pack.0);
    key
}

fn copy_value(copy: &Copy) -> [u8; 44] {
    let mut value = [0; 44];
    value[..4].copy_from_slice(&copy.number.to_le_bytes());
    value[4..8].copy_from_slice(&copy.offset.to_le_bytes());
    value[8..12].copy_from_slice(&copy.frame_len.to_le_bytes());
    value[12..].copy_from_slice(&copy.stored.0);
    value
}

fn parse_copy(key: &[u8; 52], value: &[u8; 44]) -> Copy {
    let word = |at: usize| u32::from_le_bytes(value[at..at + 4].try_into().expect("4 bytes"));
    Copy {
        pack: PackId(key[36..].try_into().expect("16 bytes")),
        number: word(0),
        offset: word(4),
        frame_len: word(8),
        stored: Digest(value[12..].try_into().expect("32 bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Codec;
    use image::pack::Entry;

    fn footer(names: &[&str]) -> Footer {
        let entry = |name: &&str| Entry {
            digest: Digest::of_chunk(name.as_bytes()),
            stored: Digest::of_stored(name.as_bytes()),
            offset: 16,
            frame_len: 100,
            plain_len: 4096,
            codec: Codec::Zstd,
        };
        Footer { domain: Domain::PUBLIC, entries: names.iter().map(entry).collect() }
    }

    fn copies(index: &Index, name: &str) -> Vec<PackId> {
        let copies = index.copies(Domain::PUBLIC, &Digest::of_chunk(name.as_bytes())).unwrap();
        copies.iter().map(|c| c.pack).collect()
    }

    #[test]
    fn finds_every_copy_and_forgets_packs() {
        let index = Index::open(&IndexPlace::Memory, 1 << 20, "s").unwrap().unwrap();
        let (a, b) = (PackId([1; 16]), PackId([2; 16]));
        index.add_pack(&a, 1000, &footer(&["x", "y"]), &[], 0).unwrap();
        index.add_pack(&b, 2000, &footer(&["y"]), &[], 0).unwrap();
        assert_eq!(copies(&index, "x"), [a]);
        assert_eq!(copies(&index, "y"), [a, b]);
        assert_eq!(index.packs().unwrap(), HashMap::from([(a, 1000), (b, 2000)]));
        index.forget_copy(Domain::PUBLIC, &Digest::of_chunk(b"y"), &b).unwrap();
        assert_eq!(copies(&index, "y"), [a]);
        index.drop_packs(&[a]).unwrap();
        assert_eq!((copies(&index, "x"), copies(&index, "y")), (vec![], vec![]));
        assert_eq!(index.packs().unwrap(), HashMap::from([(b, 2000)]));
    }

    #[test]
    fn remembers_who_sent_what_until_it_is_old_or_gone() {
        let index = Index::open(&IndexPlace::Memory, 1 << 20, "s").unwrap().unwrap();
        let (a, b) = (PackId([1; 16]), PackId([2; 16]));
        let (me, you) = (Digest([1; 32]), Digest([2; 32]));
        let names: Vec<String> = (0..20).map(|i| i.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        index.add_pack(&a, 1, &footer(&names), &[(me, a, 0), (me, a, 17)], 5).unwrap();
        index.add_pack(&b, 1, &footer(&["z"]), &[(you, b, 0)], 9).unwrap();
        let sent = |who: &Digest| -> Vec<u32> {
            let has = |name: &&str| {
                let copy = index.copies(Domain::PUBLIC, &Digest::of_chunk(name.as_bytes()));
                let copy = copy.unwrap()[0];
                index.look(|l| l.has_sent(who, &copy)).unwrap().then_some(copy.number)
            };
            names.iter().filter_map(has).collect()
        };
        assert_eq!((sent(&me), sent(&you)), (vec![0, 17], vec![]));
        index.add_sent(&[(me, a, 3)], 6).unwrap();
        assert_eq!(sent(&me), [0, 3, 17]);
        index.forget_sent(6).unwrap();
        assert_eq!(sent(&me), [0, 3, 17]);
        index.forget_sent(7).unwrap();
        assert_eq!(sent(&me), [] as [u32; 0]);
        // What is said of a pack that is gone leaves nothing behind.
        index.drop_packs(&[b]).unwrap();
        index.add_sent(&[(you, b, 0)], 9).unwrap();
        index.add_pack(&b, 1, &footer(&["z"]), &[], 9).unwrap();
        let z = index.copies(Domain::PUBLIC, &Digest::of_chunk(b"z")).unwrap()[0];
        assert!(!index.look(|l| l.has_sent(&you, &z)).unwrap());
    }

    #[test]
    fn what_was_written_last_is_there_after_an_orderly_end() {
        let dir = tempfile::tempdir().unwrap();
        let place = IndexPlace::File(dir.path().join("chunks.redb"));
        for n in 1..5u8 {
            let index = Index::open(&place, 1 << 20, "one").unwrap().unwrap();
            assert_eq!(index.packs().unwrap().len(), usize::from(n) - 1);
            index.add_pack(&PackId([n; 16]), 1, &footer(&["x"]), &[], 0).unwrap();
        }
    }

    #[test]
    fn a_file_is_kept_unless_it_is_of_another_store_or_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/chunks.redb");
        let place = IndexPlace::File(path.clone());
        let a = PackId([1; 16]);
        let open = |store| Index::open(&place, 1 << 20, store).unwrap().unwrap();
        open("one").add_pack(&a, 1, &footer(&["x"]), &[], 0).unwrap();
        let one = open("one");
        assert_eq!(copies(&one, "x"), [a]);
        let e = Index::open(&place, 1 << 20, "one").err().unwrap();
        assert_eq!(e.kind(), Kind::Conflict);
        drop(one);
        assert_eq!(copies(&open("two"), "x"), []);
        std::fs::write(&path, vec![7; 10_000]).unwrap();
        assert_eq!(copies(&open("two"), "x"), []);
    }
}
