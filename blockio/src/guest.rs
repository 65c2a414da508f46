//! Memory of a guest, read into without a copy of ours in between.
//!
//! It is no [`Buf`](crate::Buf): the guest may read and change it at any time, so that no reference to its bytes may
//! exist here. Only its addresses are kept, for the kernel.

#![expect(unsafe_code, reason = "carries addresses of memory that others use to another thread")]

use std::fmt;
use std::sync::Arc;

use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryResult, VolatileSlice,
};

/// Pieces of guest memory in the order in which they are filled. The memory stays mapped as long as this exists.
pub struct GuestBuf {
    /// Where the pieces are mapped; as long as `pieces`, and within the mappings of `mem`.
    vectors: Box<[libc::iovec]>,
    pieces: Box<[(GuestAddress, usize)]>,
    len: u64,
    mem: Arc<GuestMemoryMmap>,
}

// SAFETY: the addresses lie in mappings that `mem`, which is `Send`, keeps for as long as they are here, whichever
// thread that is on. Nothing here reads or writes through them.
unsafe impl Send for GuestBuf {}

impl GuestBuf {
    /// The most pieces that the kernel takes at a time (`UIO_MAXIOV`).
    pub const MAX_PIECES: usize = 1024;

    /// The most bytes that are read in one go: it is the guest that says how many it wants, and one that wants all its
    /// memory filled many times over must not have a core, or as much of our memory, for itself.
    pub const MAX_LEN: u64 = 4 << 20;

    /// These pieces of `mem`, each of a start and a length in bytes; nothing if they are too many or too long, or one
    /// of them does not lie within one mapping.
    pub fn new(
        mem: &Arc<GuestMemoryMmap>,
        pieces: impl Iterator<Item = (GuestAddress, usize)>,
    ) -> Option<GuestBuf> {
        let pieces: Box<[_]> = pieces.collect();
        let len = pieces.iter().map(|(_, len)| *len as u64).sum();
        if pieces.len() > Self::MAX_PIECES || len > Self::MAX_LEN {
            return None;
        }
        let vector = |&(at, len): &(GuestAddress, usize)| {
            Some(vector(&GuestMemoryBackend::get_slice(mem.as_ref(), at, len).ok()?))
        };
        let vectors = pieces.iter().map(vector).collect::<Option<_>>()?;
        Some(GuestBuf { vectors, pieces, len, mem: Arc::clone(mem) })
    }

    /// Length of all pieces together, in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no room at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the kernel finds the pieces: writable memory that stays mapped as long as `self` exists. Moving `self`
    /// moves neither it nor the vectors.
    pub(crate) fn vectors(&self) -> &[libc::iovec] {
        &self.vectors
    }

    /// Copies `bytes`, which are not more than there is room for, to the start.
    pub(crate) fn copy_in(&self, mut bytes: &[u8]) -> GuestMemoryResult<()> {
        for &(at, len) in &self.pieces {
            let (now, later) = bytes.split_at(bytes.len().min(len));
            self.mem.write_slice(now, at)?;
            bytes = later;
        }
        Ok(())
    }
}

fn vector<B: vm_memory::bitmap::BitmapSlice>(piece: &VolatileSlice<'_, B>) -> libc::iovec {
    libc::iovec { iov_base: piece.ptr_guard_mut().as_ptr().cast(), iov_len: piece.len() }
}

impl fmt::Debug for GuestBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestBuf").field("pieces", &self.pieces).finish_non_exhaustive()
    }
}
