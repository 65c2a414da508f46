//! What placement needs of the permanent storage: implemented over the store by who joins the two.

use std::future::Future;
use std::pin::Pin;

use api::catalog::{GcReport, GcRequest, StoreReport, VerifyReport, VerifyStoreRequest};
use image::record::Verified;
use image::{Digest, Ref, Result};
use serde::{Deserialize, Serialize};

/// An answer that is on its way.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// What a collection of garbage calls when it has deleted what it will delete.
pub type Swept = Box<dyn FnOnce() + Send>;

/// What the store knows of an image. Does not change as long as the image exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFacts {
    /// Disk size in bytes.
    pub size: u64,
    /// Logical sector size in bytes.
    pub sector: u32,
    /// Chunk length in bytes.
    pub chunk: u32,
    /// Sections of the disk.
    pub sections: u32,
    /// Sections that are not zeros.
    pub sections_present: u32,
    /// Chunks that are not zeros.
    pub chunks_present: u64,
    /// Bytes of the frames that the image leans on.
    pub stored: u64,
}

/// One move of a ref, as it is appended to the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefMove {
    /// Its place among all moves: 1, 2, 3, …
    pub seq: u64,
    /// The ref.
    #[serde(rename = "ref")]
    pub name: Ref,
    /// Where it points from now on; nothing: it is deleted.
    pub image: Option<Digest>,
    /// When, in seconds since 1970.
    pub at: u64,
}

/// The store, as placement uses it. Any call may be cancelled by dropping its future, except
/// [`Archive::gc`], which is always awaited.
pub trait Archive: Send + Sync + 'static {
    /// What the store knows of an image; `Gone` if it does not exist.
    fn facts(&self, image: Digest) -> Answer<'_, ImageFacts>;

    /// What was verified of an image that came lately, by who received it.
    fn verified(&self, image: Digest) -> Option<Verified>;

    /// Keeps a signed record of an image beside the ones it has, durably.
    fn put_record(&self, image: Digest, token: String) -> Answer<'_, ()>;

    /// The signed records of an image, in any order.
    fn records(&self, image: Digest) -> Answer<'_, Vec<String>>;

    /// Appends a move to the log, durably, and create-only: if another move with this `seq` is there
    /// already, that is a conflict and nothing changes.
    fn append_ref_move(&self, entry: RefMove) -> Answer<'_, ()>;

    /// All moves of the log, in any order.
    fn ref_log(&self) -> Answer<'_, Vec<RefMove>>;

    /// Collects garbage: what none of `roots` reaches. `now` in seconds since 1970. No ref moves,
    /// unless it is a dry run, until `swept` is called or dropped: then nothing more is deleted by
    /// these roots. What it does after that (rewriting packs) is right whatever refs move meanwhile.
    fn gc(
        &self,
        roots: Vec<Digest>,
        request: GcRequest,
        now: u64,
        swept: Swept,
    ) -> Answer<'_, GcReport>;

    /// Which of these chunks (numbers on the disk) of an image are the same in another; those that are zeros
    /// may be left out. None are if their chunks are not equally long. `Gone` if one of the images does not exist.
    fn unchanged(&self, image: Digest, before: Digest, chunks: Vec<u64>) -> Answer<'_, Vec<u64>>;

    /// Verifies an image; `deep` decodes every chunk.
    fn verify(&self, image: Digest, deep: bool) -> Answer<'_, VerifyReport>;

    /// Verifies the whole store, or a sample of it.
    fn verify_store(&self, request: VerifyStoreRequest) -> Answer<'_, StoreReport>;
}
