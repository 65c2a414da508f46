//! Memory for what is on its way between clients and the disk: two arenas, and each connection's share of
//! them.
//!
//! A request holds one buffer at a time for each of its pieces, and no piece waits for a second one, so
//! that waiting for a buffer always ends. A connection that does not take its replies holds its share and
//! no more.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use blockio::{Arena, Buf};

/// Small buffers, in bytes: what guests mostly read and write at a time.
const SMALL: usize = 16 << 10;
/// Large buffers, in bytes; what is longer goes in pieces.
const LARGE: usize = 256 << 10;
/// What the specification wants read in one chunk, in bytes.
const WHOLE: usize = 64 << 10;

/// The buffers of a server.
#[derive(Clone, Debug)]
pub struct Memory {
    small: Arena,
    large: Arena,
}

impl Memory {
    /// These arenas: one for requests that fit its buffers, and one for longer ones, which go in pieces of
    /// its buffers' size.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if neither has buffers of 64 KiB: reads of that length are answered in one chunk to
    /// who asks for it.
    pub fn new(small: Arena, large: Arena) -> io::Result<Memory> {
        if small.slot_bytes().max(large.slot_bytes()) < WHOLE {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "buffers of less than 64 KiB"));
        }
        Ok(Memory { small, large })
    }

    /// Arenas that take `budget` bytes together: a quarter in buffers of 16 KiB, the rest in those of
    /// 256 KiB.
    ///
    /// # Errors
    ///
    /// As [`Arena::new`]: less than one buffer of each.
    pub fn with_budget(budget: usize) -> io::Result<Memory> {
        let small = Arena::new("nbd small", SMALL, budget / 4)?;
        let large = Arena::new("nbd large", LARGE, budget - budget / 4)?;
        Memory::new(small, large)
    }

    /// Bytes that are lent out.
    pub fn used_bytes(&self) -> usize {
        self.small.used_bytes() + self.large.used_bytes()
    }

    /// How many connections it is enough for: each needs a buffer of both sizes.
    pub(super) fn connections(&self) -> usize {
        self.small.slots().min(self.large.slots())
    }

    /// The share of one of `connections`.
    pub(super) fn share(&self, connections: usize) -> Share {
        let part = |arena: &Arena| Part {
            arena: arena.clone(),
            left: Rc::new(Cell::new(arena.slots() / connections)),
        };
        Share { small: part(&self.small), large: part(&self.large) }
    }
}

/// What one connection may hold.
pub(super) struct Share {
    small: Part,
    large: Part,
}

struct Part {
    arena: Arena,
    /// Buffers that the connection may still take.
    left: Rc<Cell<usize>>,
}

impl Share {
    /// The largest piece, in bytes; a multiple of 4096.
    pub fn piece(&self) -> usize {
        self.small.arena.slot_bytes().max(self.large.arena.slot_bytes())
    }

    /// The right to a buffer of `len` bytes, at most a [piece](Self::piece), unless the share is used up.
    pub fn claim(&self, len: usize) -> Option<Claim> {
        let small = len <= self.small.arena.slot_bytes();
        let part = if small { &self.small } else { &self.large };
        let left = part.left.get().checked_sub(1)?;
        part.left.set(left);
        Some(Claim { arena: part.arena.clone(), len, held: Held(Rc::clone(&part.left)) })
    }
}

/// The right to a buffer.
pub(super) struct Claim {
    arena: Arena,
    len: usize,
    held: Held,
}

impl Claim {
    /// Waits for the buffer. There is one, but for those of connections that are gone, which come back
    /// when the disk is done with them.
    pub async fn buffer(self) -> Lent {
        match self.try_buffer() {
            Ok(lent) => lent,
            Err(claim) => {
                let buf = claim.arena.acquire().await;
                claim.lend(buf)
            }
        }
    }

    /// The buffer, if there is one now.
    pub fn try_buffer(self) -> Result<Lent, Claim> {
        match self.arena.try_acquire() {
            Some(buf) => Ok(self.lend(buf)),
            None => Err(self),
        }
    }

    fn lend(self, mut buf: Buf) -> Lent {
        buf.set_len(self.len);
        Lent { buf, held: self.held }
    }
}

/// A place in a share, given back when dropped.
pub(super) struct Held(Rc<Cell<usize>>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

/// A buffer, and the place it takes in its connection's share.
pub(super) struct Lent {
    pub buf: Buf,
    pub held: Held,
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_share_is_all_that_a_connection_gets() {
        let memory = Memory::with_budget(4 << 20).unwrap();
        let share = memory.share(4);
        let large: Vec<_> = std::iter::from_fn(|| share.claim(LARGE)).collect();
        assert_eq!(large.len(), 3);
        let small: Vec<_> = std::iter::from_fn(|| share.claim(512)).collect();
        assert_eq!(small.len(), 16);
        let lent = small.into_iter().next().unwrap().buffer().now_or_never().unwrap();
        assert_eq!((lent.buf.len(), memory.used_bytes()), (512, SMALL));
        drop((lent, large));
        assert_eq!(memory.used_bytes(), 0);
        assert!(share.claim(LARGE).is_some() && share.claim(1).is_some());
    }
}
