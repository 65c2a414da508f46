//! Which chunks of an offered section need not be sent.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use image::{Digest, Domain, Kind, Manifest, PackId, Result, SectionTable};
use tokio::sync::OnceCell;

use crate::index::Lookup;
use crate::locate::is_lost;
use crate::receiver::Incoming;
use crate::store::Shared;

/// Most digests of a parent that a session keeps, 32 bytes each: 64 GiB of disk in 256 KiB chunks.
/// Beyond it only chunks in the same section as in the parent are recognised.
const PARENT_DIGESTS: usize = 1 << 18;

/// The image that a pushed one was made from; the writer may read it.
pub(crate) struct Parent {
    image: Digest,
    manifest: Arc<Manifest>,
    /// All of its chunks, up to a limit; read when a chunk is not in the same section.
    all: OnceCell<HashSet<Digest>>,
}

impl Parent {
    /// The parent, if it is here and of the same domain: else everything is sent.
    pub(crate) async fn find(
        shared: &Shared,
        image: &Digest,
        domain: Domain,
    ) -> Result<Option<Self>> {
        match shared.manifest(image).await {
            Ok(manifest) if manifest.domain() == domain => {
                Ok(Some(Self { image: *image, manifest, all: OnceCell::new() }))
            }
            Ok(_) => Ok(None),
            Err(error) if is_lost(&error) => {
                tracing::info!(%error, "the parent of a push is not here: all of it is sent");
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Chunks of the section with the same number.
    async fn section(&self, shared: &Shared, section: u32) -> Result<HashSet<Digest>> {
        match shared.table_of(&self.image, section).await {
            Ok(table) => Ok(table.digests().iter().copied().collect()),
            Err(e) if is_lost(&e) || e.kind() == Kind::Invalid => Ok(HashSet::new()),
            Err(e) => Err(e),
        }
    }

    async fn all(&self, shared: &Shared) -> Result<&HashSet<Digest>> {
        let reading = self.all.get_or_try_init(|| async {
            let mut all = HashSet::new();
            for (_, digest) in self.manifest.present() {
                match shared.table(&digest).await {
                    Ok(table) => all.extend(table.digests().iter().filter(|d| !d.is_zero())),
                    Err(e) if is_lost(&e) => {}
                    Err(e) => return Err(e),
                }
                if all.len() >= PARENT_DIGESTS {
                    break;
                }
            }
            Ok(all)
        });
        reading.await
    }
}

/// Packs that hold a chunk that the writer need not send.
type Copies = HashMap<Digest, Vec<PackId>>;

impl Incoming {
    /// The chunks of an offered section that need not be sent, each of them in a pack that exists.
    pub(crate) async fn known(
        &self,
        section: u32,
        table: &Arc<SectionTable>,
    ) -> Result<HashSet<Digest>> {
        let mut known = self.copies_of(table, HashSet::new()).await?;
        if let Some(parent) = &self.parent {
            let mine = |known: &Copies| -> HashSet<Digest> {
                let others =
                    table.digests().iter().filter(|d| !d.is_zero() && !known.contains_key(d));
                others.copied().collect()
            };
            let same_place = parent.section(&self.shared, section).await?;
            let readable = mine(&known).intersection(&same_place).copied().collect();
            known.extend(self.copies_of(table, readable).await?);
            if !mine(&known).is_empty() {
                let all = parent.all(&self.shared).await?;
                let readable = mine(&known).intersection(all).copied().collect();
                known.extend(self.copies_of(table, readable).await?);
            }
        }
        let there = self.confirm(known.values().flatten().copied().collect()).await?;
        known.retain(|_, packs| packs.iter().any(|p| there.contains(p)));
        Ok(known.into_keys().collect())
    }

    /// Where the chunks lie that the writer may read, or has sent itself.
    async fn copies_of(
        &self,
        table: &Arc<SectionTable>,
        readable: HashSet<Digest>,
    ) -> Result<Copies> {
        let (owner, table) = (self.owner, table.clone());
        self.shared
            .indexed(move |index| {
                index.look(|lookup| {
                    let mut known = Copies::new();
                    for digest in table.digests().iter().filter(|d| !d.is_zero()) {
                        let packs = allowed(
                            lookup,
                            table.domain(),
                            digest,
                            &owner,
                            readable.contains(digest),
                        )?;
                        if !packs.is_empty() {
                            known.insert(*digest, packs);
                        }
                    }
                    Ok(known)
                })
            })
            .await
    }
}

/// The packs that hold a chunk, if the writer may lean on it without sending it.
fn allowed(
    lookup: &Lookup,
    domain: Domain,
    digest: &Digest,
    owner: &Digest,
    readable: bool,
) -> Result<Vec<PackId>> {
    let copies = lookup.copies(domain, digest)?;
    let mut may = readable;
    for copy in &copies {
        may = may || lookup.has_sent(owner, copy)?;
    }
    Ok(if may { copies.iter().map(|c| c.pack).collect() } else { Vec::new() })
}
