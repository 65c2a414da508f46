//! The socket of a session: messages with descriptors, whole or not at all.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, send, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::message::{HEADER, Header, MAX_FDS, Message};

/// A front-end's socket.
pub struct Socket {
    stream: UnixStream,
    /// What has come of the next message.
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Socket {
    /// A socket that nothing was read from.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, bytes: Vec::new(), fds: Vec::new() }
    }

    /// Waits for the next message; nothing when the front-end is gone. What has come of it stays here if
    /// the future is dropped.
    pub async fn receive(&mut self) -> io::Result<Option<(Header, Message)>> {
        loop {
            let header = match self.bytes.first_chunk::<HEADER>() {
                Some(bytes) => Some(Header::decode(bytes).map_err(invalid)?),
                None => None,
            };
            let whole = HEADER + header.map_or(0, |header| header.payload);
            if let Some(header) = header
                && self.bytes.len() == whole
            {
                let fds = std::mem::take(&mut self.fds);
                let message = Message::decode(header.request, &self.bytes[HEADER..], fds);
                self.bytes.clear();
                return Ok(Some((header, message.map_err(invalid)?)));
            }
            if !self.more(whole - self.bytes.len()).await? {
                return Ok(None);
            }
        }
    }

    /// Waits for some of the next `want` bytes; false if none will come.
    async fn more(&mut self, want: usize) -> io::Result<bool> {
        let mut bytes = [0; 512];
        let most = want.min(bytes.len());
        let (count, mut fds) = loop {
            self.stream.readable().await?;
            let read = || receive(self.stream.as_fd(), &mut bytes[..most]);
            match self.stream.try_io(Interest::READABLE, read) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => break result?,
            }
        };
        self.fds.append(&mut fds);
        if self.fds.len() > MAX_FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too many descriptors"));
        }
        self.bytes.extend_from_slice(&bytes[..count]);
        Ok(count > 0)
    }

    /// Sends a message.
    pub async fn send(&self, message: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let (mut left, mut fd) = (message, fd);
        while !left.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_io(Interest::WRITABLE, || transmit(&self.stream, left, fd)) {
                Ok(sent) => (left, fd) = (&left[sent..], None),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Sends a short message at once, or not at all.
pub fn send_at_once(to: &OwnedFd, message: &[u8]) -> io::Result<()> {
    send(to, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(from: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(from, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((received.bytes, fds))
}

fn transmit(to: &UnixStream, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_slice();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(sendmsg(to, &[IoSlice::new(bytes)], &mut control, flags)?)
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
