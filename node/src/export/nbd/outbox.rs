//! Replies on their way to the socket, gathered: one write takes the headers and the data of many.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::memory::Lent;
use super::proto::reply::Head;

/// Most pieces that one write takes.
const GATHERED: usize = 128;

/// What follows a header.
pub(super) enum Body {
    None,
    Data(Lent),
    Bytes(Vec<u8>),
}

impl Body {
    fn bytes(&self) -> &[u8] {
        match self {
            Body::None => &[],
            Body::Data(lent) => &lent.buf,
            Body::Bytes(bytes) => bytes,
        }
    }
}

/// A reply, or a chunk of one.
pub(super) struct Message {
    pub head: Head,
    pub body: Body,
}

impl Message {
    fn len(&self) -> usize {
        self.head.bytes().len() + self.body.bytes().len()
    }
}

/// Messages in the order in which they go out.
#[derive(Default)]
pub(super) struct Outbox {
    messages: VecDeque<Message>,
    /// Bytes of the first one that are out.
    sent: usize,
    /// Bytes of headers and of bodies that no share accounts for.
    unshared: usize,
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Bytes it holds beside lent buffers.
    pub fn unshared(&self) -> usize {
        self.unshared
    }

    pub fn push(&mut self, message: Message) {
        self.unshared += unshared(&message);
        self.messages.push_back(message);
    }

    /// Adds all of `later`, of which nothing is out.
    pub fn append(&mut self, later: &mut Outbox) {
        self.unshared += std::mem::take(&mut later.unshared);
        self.messages.append(&mut later.messages);
    }

    /// Writes once; buffers that are out are given back.
    pub fn poll_send<S: AsyncWrite>(
        &mut self,
        cx: &mut Context<'_>,
        socket: Pin<&mut S>,
    ) -> Poll<io::Result<()>> {
        let mut pieces = [IoSlice::new(&[]); GATHERED];
        let mut count = 0;
        let mut skip = self.sent;
        let parts = self.messages.iter().flat_map(|m| [m.head.bytes(), m.body.bytes()]);
        for part in parts {
            if count == GATHERED {
                break;
            }
            let skipped = skip.min(part.len());
            skip -= skipped;
            if skipped < part.len() {
                pieces[count] = IoSlice::new(&part[skipped..]);
                count += 1;
            }
        }
        let sent = ready!(socket.poll_write_vectored(cx, &pieces[..count]))?;
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.sent += sent;
        while let Some(first) = self.messages.front()
            && first.len() <= self.sent
        {
            self.sent -= first.len();
            self.unshared -= unshared(first);
            self.messages.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

fn unshared(message: &Message) -> usize {
    let body = match &message.body {
        Body::Bytes(bytes) => bytes.len(),
        Body::None | Body::Data(_) => 0,
    };
    size_of::<Message>() + body
}
