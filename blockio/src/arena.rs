//! One mapping, cut into equal slots, lent out as owned buffers.
//!
//! An [`Arena`] is a budget: its memory is mapped once and never grows, and who wants a [`Buf`]
//! while all are out waits in line. That wait is the back-pressure of everything above: a sender is
//! not asked for more bytes than there are slots to hold them.

#![expect(unsafe_code, reason = "hands out disjoint pieces of one mapping as owned buffers")]

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use memmap2::{Advice, MmapOptions, MmapRaw};
use tokio::sync::Semaphore;

/// Every slot starts on a multiple of this and is a multiple of it long, in bytes: enough for
/// direct I/O on every device there is, and a page.
pub const ALIGN: usize = 4096;

/// The largest slot, in bytes: what a kernel takes as one registered buffer.
pub const MAX_SLOT: usize = 1 << 30;

/// Below this a huge page cannot be used at all, in bytes.
const HUGE_PAGE: usize = 2 << 20;

/// A fixed number of equal, page-aligned buffers in one anonymous mapping.
///
/// Cheap to clone; clones share the memory. It works across threads and with any runtime. The
/// mapping lives until the arena and the last [`Buf`] out of it are gone.
#[derive(Clone)]
pub struct Arena {
    inner: Arc<Inner>,
}

struct Inner {
    owner: &'static str,
    slot_bytes: usize,
    slots: u32,
    map: MmapRaw,
    /// One permit per entry of `free`; hands them out in the order they were asked for.
    permits: Semaphore,
    /// Indices of the slots nobody holds. A stack: the slot used last is the one still in cache.
    free: Mutex<Vec<u32>>,
}

impl Arena {
    /// Maps an arena of as many `slot_bytes` slots as fit in `budget_bytes`.
    ///
    /// `owner` names who the memory belongs to, for metrics and debugging. Pages are taken from the
    /// system when they are first touched, zeroed; huge pages are asked for, not insisted on.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `slot_bytes` is zero, not a multiple of [`ALIGN`] or above [`MAX_SLOT`],
    /// or if not one slot fits in the budget; otherwise what `mmap` says.
    pub fn new(owner: &'static str, slot_bytes: usize, budget_bytes: usize) -> io::Result<Arena> {
        if slot_bytes == 0 || !slot_bytes.is_multiple_of(ALIGN) || slot_bytes > MAX_SLOT {
            return Err(invalid("slot size must be a multiple of 4096, at most 1 GiB"));
        }
        let slots = u32::try_from(budget_bytes / slot_bytes)
            .ok()
            .filter(|slots| *slots > 0)
            .ok_or_else(|| invalid("budget must hold between 1 and 2^32 - 1 slots"))?;
        let bytes = slots as usize * slot_bytes;
        let map = MmapOptions::new().len(bytes).map_anon()?;
        if bytes >= HUGE_PAGE
            && let Err(error) = map.advise(Advice::HugePage)
        {
            tracing::debug!(owner, %error, "no huge pages for this arena");
        }
        Ok(Arena {
            inner: Arc::new(Inner {
                owner,
                slot_bytes,
                slots,
                map: map.into(),
                permits: Semaphore::new(slots as usize),
                free: Mutex::new((0..slots).rev().collect()),
            }),
        })
    }

    /// Waits for a free slot, first come, first served. Dropping the future leaves the line.
    ///
    /// The buffer is as long as its capacity. Its bytes are initialised, but not cleared: a slot
    /// that was used before shows what it last held.
    pub async fn acquire(&self) -> Buf {
        let permit = self.inner.permits.acquire().await.expect("an arena's line is never closed");
        permit.forget();
        self.take()
    }

    /// Takes a slot if one is free and nobody waits in line for it.
    pub fn try_acquire(&self) -> Option<Buf> {
        self.inner.permits.try_acquire().ok()?.forget();
        Some(self.take())
    }

    /// Takes a slot that a forgotten permit stands for.
    fn take(&self) -> Buf {
        let slot = self.inner.free().pop().expect("a permit stands for a free slot");
        let offset = slot as usize * self.inner.slot_bytes;
        // SAFETY: `slot < slots`, because `free` only ever holds the indices it was built with, so
        // `offset + slot_bytes <= slots * slot_bytes`, the length of the mapping: the result points
        // into it. A mapping's address is not null.
        let ptr = unsafe { NonNull::new_unchecked(self.inner.map.as_mut_ptr().add(offset)) };
        Buf { inner: Arc::clone(&self.inner), ptr, slot, len: self.inner.slot_bytes }
    }

    /// The size of one buffer, in bytes.
    pub fn slot_bytes(&self) -> usize {
        self.inner.slot_bytes
    }

    /// How many buffers there are.
    pub fn slots(&self) -> usize {
        self.inner.slots as usize
    }

    /// How many buffers nobody holds or has been promised.
    pub fn available(&self) -> usize {
        self.inner.permits.available_permits()
    }

    /// The memory this arena may take, in bytes.
    pub fn budget_bytes(&self) -> usize {
        self.slots() * self.slot_bytes()
    }

    /// The memory lent out or promised, in bytes.
    pub fn used_bytes(&self) -> usize {
        (self.slots() - self.available()) * self.slot_bytes()
    }

    /// Whose memory it is.
    pub fn owner(&self) -> &'static str {
        self.inner.owner
    }

    /// Whether `buf` came out of this arena.
    pub fn owns(&self, buf: &Buf) -> bool {
        Arc::ptr_eq(&self.inner, &buf.inner)
    }

    /// Where the mapping starts; it is `budget_bytes` long.
    pub(crate) fn base(&self) -> *mut u8 {
        self.inner.map.as_mut_ptr()
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("owner", &self.inner.owner)
            .field("slot_bytes", &self.inner.slot_bytes)
            .field("slots", &self.inner.slots)
            .field("available", &self.available())
            .finish()
    }
}

impl Inner {
    fn free(&self) -> MutexGuard<'_, Vec<u32>> {
        // A push or a pop that panicked changed nothing.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One slot of an [`Arena`], owned until dropped.
///
/// It dereferences to its first `len` bytes. `len` starts at the capacity and may be set anywhere
/// up to it. The address never changes and is a multiple of [`ALIGN`]; an engine that is given the
/// buffer may therefore pass the address to the kernel.
pub struct Buf {
    inner: Arc<Inner>,
    ptr: NonNull<u8>,
    slot: u32,
    len: usize,
}

// SAFETY: a `Buf` is the only holder of its slot (the index was popped from `free` and is pushed
// back only by `drop`), the slot's bytes are plain memory tied to no thread, and `inner` is
// `Send + Sync` by its fields. Sending it sends exclusive access, as with a `Box<[u8]>`.
unsafe impl Send for Buf {}
// SAFETY: a shared `Buf` only lets its bytes be read; writing takes `&mut`.
unsafe impl Sync for Buf {}

impl Buf {
    /// The size of the slot, in bytes.
    pub fn capacity(&self) -> usize {
        self.inner.slot_bytes
    }

    /// Sets how many of the slot's bytes count. What comes into view by growing is what the slot
    /// last held.
    ///
    /// # Panics
    ///
    /// If `len` is above the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "length {len} above capacity {}", self.capacity());
        self.len = len;
    }

    /// Makes the buffer a copy of `bytes`.
    ///
    /// # Panics
    ///
    /// If `bytes` are longer than the capacity.
    pub fn copy_from(&mut self, bytes: &[u8]) {
        self.set_len(bytes.len());
        self.copy_from_slice(bytes);
    }

    /// The index of the slot in its arena: the same memory has the same index for ever.
    pub fn slot(&self) -> usize {
        self.slot as usize
    }

    /// The start of the slot, valid for `capacity` bytes.
    pub(crate) fn start(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `ptr` is valid for `capacity` bytes as long as `inner` holds the mapping, which
        // `self` keeps alive, and `len <= capacity`. The bytes are initialised: an anonymous
        // mapping starts as zeros and only bytes are ever written to it. Nobody else has access to
        // the slot while `self` exists: the allocator gave it to `self` alone, and the kernel
        // writes to it only while an operation owns the `Buf`, when no `&self` can be had. The
        // borrow of `self` rules out `&mut` for as long as the slice lives.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the exclusive borrow of `self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Buf {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl From<Buf> for Bytes {
    /// Shares the buffer without a copy; the slot goes back when the last clone is dropped.
    fn from(buf: Buf) -> Bytes {
        Bytes::from_owner(buf)
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        self.inner.free().push(self.slot);
        // After the push: who gets the permit finds the slot.
        self.inner.permits.add_permits(1);
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buf")
            .field("owner", &self.inner.owner)
            .field("slot", &self.slot)
            .field("len", &self.len)
            .finish()
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}
