//! What a store is opened with: the outside (clock, randomness), where its index lies, its limits.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use image::{PackId, pack::MAX_PACK};

/// Tells the time, in seconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;
/// Gives 16 bytes that were never given before, here or anywhere.
pub type IdSource = Arc<dyn Fn() -> [u8; 16] + Send + Sync>;
/// Makes the system forget its cached copy of a pack, so that the next read comes from the medium.
pub type DropCache = Arc<dyn Fn(&PackId) + Send + Sync>;

/// Where the chunk index lies. It is derived from the packs, and made again if it is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexPlace {
    /// In memory: made anew at each start.
    Memory,
    /// In this file, which belongs to one process at a time.
    File(PathBuf),
    /// Nowhere: the store is opened for reading only, as a cache does. Nothing is written, opening
    /// reads the marker and nothing else, and chunks are found by the locators of their images alone.
    Nowhere,
}

/// Limits of a store, in bytes unless it says otherwise. Each names the owner of that memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Pieces of packs on their way to readers ([`image::ChunkSource::chunks`]).
    pub reading: usize,
    /// Reads of packs in flight for one request.
    pub reads: usize,
    /// Reads of objects in flight in all, whoever asks; a number.
    pub requests: usize,
    /// Frames in packs that are not yet durable: the packer. At least twice `pack`.
    pub writing: usize,
    /// Longest pack that is written; at most [`MAX_PACK`].
    pub pack: usize,
    /// Manifests, section tables and locators that are kept: the store.
    pub cached: usize,
    /// Pages of the chunk index that are kept: the index.
    pub index: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            reading: 128 << 20,
            reads: 4,
            requests: 64,
            writing: 128 << 20,
            pack: MAX_PACK,
            cached: 64 << 20,
            index: 64 << 20,
        }
    }
}

/// What a store is opened with.
#[derive(Clone)]
pub struct StoreOptions {
    /// Tells the time.
    pub clock: Clock,
    /// Makes the ids of packs and sessions.
    pub ids: IdSource,
    /// Where the chunk index lies.
    pub index: IndexPlace,
    /// Limits of memory and size.
    pub limits: Limits,
    /// How long a writer's session lives without being renewed. The clocks of all who write to or
    /// collect one store must agree within this time, and no single request may take longer.
    pub session_life: Duration,
    /// How long it is remembered which chunks a writer has sent, so that it need not send them
    /// again.
    pub remember_writers: Duration,
    /// Called before a pack is read back.
    pub drop_cache: Option<DropCache>,
    /// The id of the store that is meant ([`crate::Store::id`]): another one is refused, and none is
    /// made.
    pub expect: Option<String>,
}

impl StoreOptions {
    /// Options of who only reads, as a cache does: see [`IndexPlace::Nowhere`].
    pub fn reading() -> Self {
        Self::system(IndexPlace::Nowhere)
    }

    /// Options with the system's clock and randomness, and default limits.
    pub fn system(index: IndexPlace) -> Self {
        Self {
            clock: Arc::new(system_clock),
            ids: Arc::new(system_id),
            index,
            limits: Limits::default(),
            session_life: Duration::from_secs(600),
            remember_writers: Duration::from_secs(7 * 24 * 3600),
            drop_cache: None,
            expect: None,
        }
    }
}

impl StoreOptions {
    /// Whether a store is made where there is nothing.
    pub(crate) fn may_make(&self) -> bool {
        self.index != IndexPlace::Nowhere && self.expect.is_none()
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreOptions")
            .field("index", &self.index)
            .field("limits", &self.limits)
            .field("session_life", &self.session_life)
            .finish_non_exhaustive()
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock of a store that is given none")]
fn system_clock() -> u64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[expect(clippy::disallowed_methods, reason = "the chance of a store that is given none")]
fn system_id() -> [u8; 16] {
    let mut id = [0; 16];
    let mut filled = 0;
    while filled < id.len() {
        let got = rustix::rand::getrandom(&mut id[filled..], rustix::rand::GetRandomFlags::empty());
        // It fails only when interrupted: the kernel has had randomness since it started us.
        filled += got.unwrap_or(0);
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ() {
        assert_ne!(system_id(), system_id());
    }
}
