//! A disk as a vhost-user-blk device: what QEMU and cloud-hypervisor drive as a virtio block device in
//! memory that they share with us, past their own block layers.
//!
//! The way of a request: `ring` takes it off the available ring, `chain` follows its descriptors and
//! `request` checks what they say; `perform` carries it out on the [`Disk`] through a buffer, and
//! `ring` answers. Beside that, `session` talks with the front-end (`message`, `socket`), which
//! shows us the guest's `memory`. What was taken and not answered is kept `inflight`, in memory of the
//! front-end, so that a process that follows a killed one does it again before the guest notices.
//!
//! The guest is not trusted: it can break its own rings, and nothing else. The front-end is trusted as
//! far as one is with whom memory is shared: it could cut its file short under us.
//!
//! Not done: packed rings, migration (a log of writes), rings without kicks.

mod chain;
mod config;
mod inflight;
mod memory;
mod message;
mod perform;
mod request;
mod ring;
mod session;
mod socket;
#[cfg(test)]
mod tests;

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use blockio::Arena;
use futures::FutureExt;
use image::{Error, Kind, Result};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

use super::Disk;
use perform::Device;
use request::SERIAL;
use session::{Session, Settled};
use socket::Socket;

/// How long nobody is let in after that failed, as when there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// How a disk is served.
#[derive(Clone, Debug)]
pub struct Options {
    /// What guests see as the disk's serial number, of which they get the first 20 bytes.
    pub serial: String,
    /// The most queues that a guest may have: 1 to 256. All of them are served by this one core.
    pub queues: u16,
}

impl Default for Options {
    fn default() -> Self {
        Self { serial: String::new(), queues: 16 }
    }
}

/// A disk that is served to one guest at a time.
pub struct Export<D> {
    device: Rc<Device<D>>,
    changed: Rc<Notify>,
}

impl<D: Disk> Export<D> {
    /// A disk that can be served, one session after the other.
    ///
    /// All data goes through `buffers`, which others may use as well: a request waits for one in line, and
    /// if it is longer than that, goes in pieces. Measured (`vhost load`, reads of 128 KiB and 1 MiB, eight
    /// at a time): with buffers of 256 KiB a quarter faster than with 64 KiB.
    ///
    /// # Errors
    ///
    /// `Invalid` for options out of their bounds, or a disk with sectors that no guest knows.
    pub fn new(disk: Rc<D>, buffers: Arena, options: &Options) -> Result<Self> {
        if !(1..=256).contains(&options.queues) {
            return Err(Error::new(Kind::Invalid, "a device has 1 to 256 queues"));
        }
        if ![512, 4096].contains(&disk.sector()) {
            return Err(Error::new(Kind::Invalid, "sectors have 512 or 4096 bytes"));
        }
        let mut serial = [0; SERIAL];
        let given = &options.serial.as_bytes()[..options.serial.len().min(SERIAL)];
        serial[..given.len()].copy_from_slice(given);
        let device = Device { disk, buffers, serial, queues: options.queues };
        Ok(Self { device: Rc::new(device), changed: Rc::default() })
    }

    /// Has the guest look at the disk's size again, if there is one.
    pub fn resized(&self) {
        self.changed.notify_one();
    }

    /// Serves whoever connects, one at a time; another is turned away meanwhile. Does not end; dropping
    /// the future ends the session. Must be called inside a `LocalSet`.
    pub async fn serve(&self, listener: UnixListener) {
        let mut settled = nothing();
        loop {
            let stream = accept(&listener).await;
            let mut session = self.session(stream, settled);
            tokio::select! {
                biased;
                result = session.run() => match result {
                    Ok(()) => tracing::info!("the guest's front-end is gone"),
                    Err(error) => tracing::warn!(%error, "a front-end is sent away"),
                },
                () = turn_away(&listener) => {}
            }
            settled = session.leave();
        }
    }

    /// Serves one front-end, until it is gone and all that it asked for has ended. Must be called inside
    /// a `LocalSet`.
    ///
    /// # Errors
    ///
    /// Why the front-end was sent away.
    pub async fn serve_one(&self, stream: UnixStream) -> Result<()> {
        let mut session = self.session(stream, nothing());
        let result = session.run().await;
        session.leave().await;
        result
    }

    fn session(&self, stream: UnixStream, settled: Settled) -> Session<D> {
        let (device, changed) = (Rc::clone(&self.device), Rc::clone(&self.changed));
        Session::new(device, changed, Socket::new(stream), settled)
    }
}

fn nothing() -> Settled {
    std::future::ready(()).boxed_local().shared()
}

async fn accept(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "a front-end could not be let in");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn turn_away(listener: &UnixListener) {
    loop {
        drop(accept(listener).await);
        tracing::warn!("a second front-end is turned away: the disk is in use");
    }
}

/// Listens at `path`, for front-ends of the same user. What a dead process left there is replaced.
///
/// # Errors
///
/// `Conflict` if a living process listens there; otherwise what the system says.
pub async fn listen(path: &Path) -> Result<UnixListener> {
    let place = |e| Error::io(path.display(), e);
    if UnixStream::connect(path).await.is_ok() {
        let message = format!("{}: a disk is served there already", path.display());
        return Err(Error::new(Kind::Conflict, message));
    }
    // Made where nobody else comes, so that there is no moment at which it is open to others.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let closed = path.with_file_name(name);
    // A dead process may have had our number.
    match std::fs::remove_dir_all(&closed) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(place(error)),
        _ => {}
    }
    std::fs::DirBuilder::new().mode(0o700).create(&closed).map_err(place)?;
    let made = || {
        let inside = closed.join("s");
        let listener = UnixListener::bind(&inside)?;
        std::fs::set_permissions(&inside, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&inside, path)?;
        Ok(listener)
    };
    let listener = made().map_err(place);
    std::fs::remove_dir_all(&closed).map_err(place)?;
    listener
}
