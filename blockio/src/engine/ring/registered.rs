//! Arenas whose pages the kernel has pinned once, so that it need not look them up per operation.

#![expect(unsafe_code, reason = "gives the kernel addresses to keep")]

use std::io;

use io_uring::IoUring;

use crate::arena::{Arena, Buf, MAX_SLOT};

/// Which arenas are registered with a ring, and under which numbers.
#[derive(Debug, Default)]
pub(super) struct Registered {
    arenas: Vec<Place>,
}

/// An arena is registered as one long piece, or several if it is longer than the kernel takes; a
/// slot lies whole in one of them.
#[derive(Debug)]
struct Place {
    arena: Arena,
    /// The number of its first piece.
    first: u16,
    slots_per_piece: usize,
}

impl Registered {
    /// Registers the arenas with `ring`, all or none.
    pub(super) fn new(ring: &IoUring, arenas: &[Arena]) -> Registered {
        match Self::try_new(ring, arenas) {
            Ok(registered) => registered,
            Err(error) => {
                tracing::info!(%error, "arenas stay unregistered: is the locked-memory limit low?");
                Registered::default()
            }
        }
    }

    fn try_new(ring: &IoUring, arenas: &[Arena]) -> io::Result<Registered> {
        let mut pieces = Vec::new();
        let mut places = Vec::new();
        for arena in arenas {
            let slots_per_piece = MAX_SLOT / arena.slot_bytes();
            let first = u16::try_from(pieces.len()).map_err(io::Error::other)?;
            let piece = slots_per_piece * arena.slot_bytes();
            for start in (0..arena.budget_bytes()).step_by(piece) {
                let len = piece.min(arena.budget_bytes() - start);
                let base = arena.base().wrapping_add(start).cast();
                pieces.push(libc::iovec { iov_base: base, iov_len: len });
            }
            places.push(Place { arena: arena.clone(), first, slots_per_piece });
        }
        if pieces.is_empty() {
            return Ok(Registered::default());
        }
        // SAFETY: every piece lies within the mapping of an arena, by construction. The arenas are
        // kept in the result, which the ring's owner drops after the ring, so the memory outlives
        // the registration. Registering lets the kernel touch nothing: it accesses the memory only
        // for operations that name it, and each of those owns the `Buf` whose slot it names.
        unsafe { ring.submitter().register_buffers(&pieces)? };
        Ok(Registered { arenas: places })
    }

    /// The number of the registered piece that holds `buf`.
    pub(super) fn index(&self, buf: &Buf) -> Option<u16> {
        let place = self.arenas.iter().find(|place| place.arena.owns(buf))?;
        u16::try_from(usize::from(place.first) + buf.slot() / place.slots_per_piece).ok()
    }
}
