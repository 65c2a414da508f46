//! Image records and the log of ref moves: what people say of images and how they name them. Both
//! are only ever added to.

use bytes::Bytes;
use image::error::At;
use image::signing::MAX_TOKEN;
use image::{Digest, Error, Kind, Ref, Result};
use serde::{Deserialize, Serialize};

use crate::keys::{self, folder, last_part, parse_hex};
use crate::locate::is_lost;
use crate::objects::Listed;
use crate::sealed;
use crate::store::{Shared, Store};

pub(crate) const REF_MOVE: &str = "ref move";
/// Longest ref move in bytes.
const MAX_MOVE: usize = 8 << 10;

/// One move of a ref, as it is kept in the store: names can be rebuilt from these alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefMove {
    /// Its place in the log.
    pub seq: u64,
    /// The name.
    #[serde(rename = "ref")]
    pub name: Ref,
    /// Where it points from then on; nowhere if it was deleted.
    pub image: Option<Digest>,
    /// When, in seconds since 1970.
    pub at: u64,
}

/// The log of ref moves as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefLog {
    /// The moves, in order.
    pub moves: Vec<RefMove>,
    /// Entries that cannot be read, by name and with the reason.
    pub bad: Vec<String>,
}

impl Store {
    /// Keeps a signed image record, made at `created` (seconds since 1970). The same one twice is
    /// fine.
    pub async fn put_record(&self, image: &Digest, created: u64, token: &str) -> Result<()> {
        if token.is_empty() || token.len() > MAX_TOKEN {
            let message = format!("image record: 1 to {MAX_TOKEN} bytes, not {}", token.len());
            return Err(Error::new(Kind::Invalid, message));
        }
        let key = keys::record(image, created, token);
        let (shared, token) = (self.shared.clone(), Bytes::copy_from_slice(token.as_bytes()));
        self.run(async move {
            shared.is_here().await?;
            shared.objects.create_same(&key, &token).await.map(drop)
        })
        .await
    }

    /// The signed records of an image, oldest first. Whoever reads them checks the signatures.
    pub async fn records(&self, image: &Digest) -> Result<Vec<String>> {
        let (shared, image) = (self.shared.clone(), *image);
        self.run(async move {
            let mut records = Vec::new();
            for listed in shared.objects.list_sorted(&keys::records(&image)).await? {
                match shared.read_record(&listed).await {
                    Ok(token) => records.push(token),
                    Err(error) if is_lost(&error) => {
                        tracing::warn!(%error, "an image record is unreadable");
                    }
                    Err(e) => return Err(e),
                }
            }
            if records.is_empty() {
                // Who is told that there are none believes it for long.
                shared.is_here().await?;
            }
            Ok(records)
        })
        .await
    }

    /// Appends a ref move. A conflict if another move has this number; the same one twice is fine.
    pub async fn append_ref_move(&self, ref_move: &RefMove) -> Result<()> {
        let key = keys::ref_move(ref_move.seq);
        let bytes = sealed::seal(REF_MOVE, ref_move);
        let (shared, ref_move) = (self.shared.clone(), ref_move.clone());
        self.run(async move {
            shared.is_here().await?;
            match shared.objects.create(&key, bytes.clone()).await {
                Err(e) if e.kind() == Kind::Conflict => {}
                other => return other,
            }
            match shared.read_ref_move(&key).await {
                Ok(there) if there == ref_move => Ok(()),
                Ok(there) => {
                    let message = format!("{key}: already taken by a move of {}", there.name);
                    Err(Error::new(Kind::Conflict, message))
                }
                // It was never written whole, so it was never acknowledged.
                Err(e) if e.kind() == Kind::Corrupt => {
                    shared.objects.create_same(&key, &bytes).await.map(drop)
                }
                Err(e) => Err(e),
            }
        })
        .await
    }

    /// The whole log of ref moves.
    pub async fn ref_log(&self) -> Result<RefLog> {
        let shared = self.shared.clone();
        self.run(async move { shared.read_ref_log().await }).await
    }
}

impl Shared {
    pub(crate) async fn read_ref_log(&self) -> Result<RefLog> {
        let mut log = RefLog::default();
        for listed in self.objects.list_sorted(&folder("refs")).await? {
            match self.read_ref_move(&listed.key).await {
                Ok(ref_move) => log.moves.push(ref_move),
                Err(e) if is_lost(&e) => log.bad.push(e.to_string()),
                Err(e) => return Err(e),
            }
        }
        Ok(log)
    }

    async fn read_record(&self, listed: &Listed) -> Result<String> {
        let key = &listed.key;
        let bytes = self.objects.get(key, MAX_TOKEN).await?;
        let corrupt = |why| Err(Error::new(Kind::Corrupt, why)).at(|| key);
        let Ok(token) = String::from_utf8(bytes.into()) else { return corrupt("not text") };
        // The name holds a digest of the text.
        let promised = last_part(key).rsplit('-').next().unwrap_or_default();
        if blake3::hash(token.as_bytes()).to_hex()[..16] != *promised {
            return corrupt("the text is not the one that was stored");
        }
        Ok(token)
    }

    async fn read_ref_move(&self, key: &object_store::path::Path) -> Result<RefMove> {
        let bytes = self.objects.get(key, MAX_MOVE).await?;
        let ref_move: RefMove = sealed::open(REF_MOVE, &bytes).at(|| key)?;
        if parse_hex(last_part(key), 16) != Some(ref_move.seq) {
            return Err(Error::new(Kind::Corrupt, "the name and the content differ")).at(|| key);
        }
        Ok(ref_move)
    }

    /// Images that were named by the ref moves for whose times `is_young` holds: newest first, to
    /// the first that is old.
    pub(crate) async fn recently_named(
        &self,
        is_young: impl Fn(u64) -> bool + Send + Sync,
    ) -> Result<Vec<Digest>> {
        let mut named = Vec::new();
        for listed in self.objects.list_sorted(&folder("refs")).await?.iter().rev() {
            match self.read_ref_move(&listed.key).await {
                Ok(ref_move) if !is_young(ref_move.at) => break,
                Ok(ref_move) => named.extend(ref_move.image),
                Err(e) if is_lost(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(named)
    }
}
