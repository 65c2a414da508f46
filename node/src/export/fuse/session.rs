//! A session of `fuser` over a connection, new or left by another process.
//!
//! `fuser` begins every session with the kernel's hello, which comes once in the life of a mount. A session
//! over a connection that an earlier process served begins over a socket, on which we say hello
//! in the kernel's stead; then the connection is put in the socket's place, under the same number.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use fuser::{BackingId, InitFlags, Session, SessionACL};
use image::{Error, Kind, Result};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use tokio::sync::Notify;

use super::front::{Front, WANTED};

/// The kernel's side of a mount: an open `/dev/fuse`.
#[derive(Debug)]
pub enum Connection {
    /// Of a mount that nobody has served yet.
    New(OwnedFd),
    /// Of one that a process served that has ended. It must have: what it took and has not answered comes
    /// again now, and what it takes later would never. The exclusive lock on the volume's file, which is
    /// held until the last I/O of a killed process is over, is the proof.
    Left(OwnedFd),
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let (Connection::New(device) | Connection::Left(device)) = self;
        device.as_fd()
    }
}

/// Tells an export, from any thread, what has become of its disk.
#[derive(Clone, Debug, Default)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    /// The disk as a file, once it has graduated.
    pub raw: OnceLock<File>,
    /// The kernel's name for it. One for all opens, and kept: two would be a conflict.
    pub backing: Mutex<Option<Arc<BackingId>>>,
    left: AtomicBool,
    leave: Notify,
}

impl Handle {
    /// The volume has graduated: who opens the path from now on reads and writes `raw` directly, on Linux
    /// 6.9 or later, and if `raw` does not lie on two stacked file systems. Files that are open already stay as
    /// they are: a hypervisor has to open its disk again.
    ///
    /// The disk is still asked for size, holes, discards, and flushes: those of others must cover what
    /// was written to `raw` directly (they do, as they sync that file).
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] the second time.
    pub fn graduate(&self, raw: File) -> Result<()> {
        let twice = |_| Error::new(Kind::Conflict, "the volume has graduated before");
        self.shared.raw.set(raw).map_err(twice)
    }

    /// Leaves the connection to the next process: [`Export::run`](super::Export::run) ends what is in work and
    /// returns. What comes until this process ends, which it must soon, is not answered: the next one is
    /// asked again. Whoever keeps the connection (a [`holder`](super::holder)) must have it before.
    pub fn leave(&self) {
        self.shared.left.store(true, Ordering::SeqCst);
        self.shared.leave.notify_one();
    }
}

impl Shared {
    /// Whether nothing is to be answered any more.
    pub(super) fn has_left(&self) -> bool {
        self.left.load(Ordering::SeqCst)
    }

    /// Waits for [`Handle::leave`].
    pub(super) async fn leaving(&self) {
        self.leave.notified().await;
    }

    /// The kernel's name for the raw file, if there is one that can be passed through. `register` asks the
    /// kernel for it.
    pub(super) fn backing(
        &self,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        let raw = self.raw.get()?;
        let mut backing = self.backing.lock().unwrap_or_else(PoisonError::into_inner);
        if backing.is_none() {
            match register(raw) {
                Ok(id) => *backing = Some(Arc::new(id)),
                Err(error) => tracing::warn!(%error, "the raw file cannot be passed through"),
            }
        }
        backing.clone()
    }
}

/// Begins a session; requests come when it is run.
pub(super) fn begin(connection: Connection, front: Front) -> io::Result<Session<Front>> {
    let mut config = fuser::Config::default();
    config.acl = SessionACL::All;
    match connection {
        Connection::New(device) => Session::from_fd(front, device, SessionACL::All, config),
        Connection::Left(device) => {
            let flags = SocketFlags::CLOEXEC;
            let (kernel, server) =
                rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            rustix::net::send(&kernel, &hello(), SendFlags::empty())?;
            let session = Session::from_fd(front, server, SessionACL::All, config)?;
            blockio::descriptor::replace(session.as_fd(), device.as_fd())?;
            let mut device = File::from(device);
            match device.write_all(&resend()) {
                Ok(()) => Ok(session),
                Err(error) => {
                    let message = format!("asking for unanswered requests again: {error}");
                    Err(io::Error::new(error.kind(), message))
                }
            }
        }
    }
}

/// The kernel's hello (`FUSE_INIT` of protocol 7.40), which offers what we want.
fn hello() -> Vec<u8> {
    const INIT: u32 = 26;
    const LENGTH: u32 = 40 + 64;
    let offers = (WANTED | InitFlags::FUSE_INIT_EXT).bits();
    let mut bytes = Vec::new();
    let mut put = |words: &[u32]| words.iter().for_each(|w| bytes.extend(w.to_ne_bytes()));
    // Length, operation; unique id, node; user, group, process; nothing.
    put(&[LENGTH, INIT]);
    put(&[2, 0, 0, 0]);
    put(&[0, 0, 0, 0]);
    // Version, read-ahead, flags and more flags, nothing.
    put(&[7, 40, 128 << 10, offers as u32, (offers >> 32) as u32]);
    put(&[0; 11]);
    bytes
}

/// The notification that has the kernel send again what was read and not answered (Linux 6.9).
fn resend() -> [u8; 16] {
    const RESEND: i32 = 7;
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&16u32.to_ne_bytes());
    // A notification is an answer to no request, with its code for an error.
    bytes[4..8].copy_from_slice(&RESEND.to_ne_bytes());
    bytes
}
