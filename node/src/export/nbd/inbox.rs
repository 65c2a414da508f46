//! What has arrived and is not used yet: one read of the socket brings many requests.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// A fixed piece of memory between the socket and the parser.
pub(super) struct Inbox {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Inbox {
    /// Holds `capacity` bytes.
    pub fn new(capacity: usize) -> Inbox {
        Inbox { bytes: vec![0; capacity].into(), from: 0, to: 0 }
    }

    /// What is there.
    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.from..self.to]
    }

    /// Whether nothing more can be read before something was used.
    pub fn is_full(&self) -> bool {
        self.to - self.from == self.bytes.len()
    }

    /// Marks bytes as used.
    pub fn use_up(&mut self, len: usize) {
        self.from += len;
        debug_assert!(self.from <= self.to);
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
        }
    }

    /// Moves as much as is there into `out`; returns how much.
    pub fn take(&mut self, out: &mut [u8]) -> usize {
        let len = out.len().min(self.to - self.from);
        out[..len].copy_from_slice(&self.unread()[..len]);
        self.use_up(len);
        len
    }

    /// Reads once. Returns how many bytes came: none when the client has ended its side.
    ///
    /// It must not be [full](Self::is_full).
    pub fn poll_fill<S: AsyncRead>(
        &mut self,
        cx: &mut Context<'_>,
        socket: Pin<&mut S>,
    ) -> Poll<io::Result<usize>> {
        if self.from > 0 {
            self.bytes.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        debug_assert!(self.to < self.bytes.len());
        let mut room = ReadBuf::new(&mut self.bytes[self.to..]);
        ready!(socket.poll_read(cx, &mut room))?;
        let came = room.filled().len();
        self.to += came;
        Poll::Ready(Ok(came))
    }
}
