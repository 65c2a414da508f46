//! How a volume is shown to its guest: one of the exports, from its start to its end.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use api::volume::{Attachment, ExportKind};
use image::{Error, Kind, Result};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use volume_pool::Volume;

use super::cores::Core;
use super::disk::VolumeDisk;
use super::recorder::Recorder;
use crate::export::{fuse, nbd, vhost};

/// How long a holder may take to start.
const HOLDER_STARTS: Duration = Duration::from_secs(5);

/// How long requests in work have to end at most.
pub(super) const ENDS: Duration = Duration::from_secs(12);

/// The process that keeps FUSE mounts while this daemon is away: it is started when it is first needed, and
/// outlives us.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Its socket.
    pub socket: PathBuf,
    /// Program and arguments that start it.
    pub command: Arc<[OsString]>,
}

impl Holder {
    async fn start(&self) -> Result<()> {
        let failed = |e| Error::io("starting the holder of mounts", e);
        let answers = || UnixStream::connect(&self.socket).is_ok();
        if answers() {
            return Ok(());
        }
        let [program, arguments @ ..] = &*self.command else {
            return Err(Error::new(Kind::Unsupported, "no holder of mounts is configured"));
        };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // What ends the daemon's group must not end it.
        command.process_group(0).spawn().map_err(failed)?;
        let started = async {
            while !answers() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let late = || Error::new(Kind::Retry, "the holder of mounts does not start");
        tokio::time::timeout(HOLDER_STARTS, started).await.map_err(|_| late())
    }
}

/// See the [module](self).
pub(super) struct Serving {
    task: JoinHandle<()>,
    kind: Served,
}

enum Served {
    Nbd { end: watch::Sender<bool> },
    Vhost { end: watch::Sender<bool>, export: Rc<vhost::Export<VolumeDisk>>, path: PathBuf },
    Fuse { handle: fuse::Handle, holder: Option<Holder>, path: PathBuf },
}

impl Serving {
    /// Shows a volume.
    pub(super) async fn start(
        core: &Core,
        volume: &Rc<Volume>,
        how: &Attachment,
        holder: Option<&Holder>,
        recorder: Option<&Rc<Recorder>>,
    ) -> Result<Self> {
        let disk = VolumeDisk::new(Rc::clone(volume), how.read_only, recorder.cloned());
        let disk = Rc::new(disk);
        match how.kind {
            ExportKind::Nbd => Self::nbd(core, disk, how).await,
            ExportKind::VhostUser => Self::vhost(core, disk, how).await,
            ExportKind::Fuse => Self::fuse(disk, how, holder).await,
        }
    }

    async fn nbd(core: &Core, disk: Rc<VolumeDisk>, how: &Attachment) -> Result<Self> {
        let name = disk.volume.identity().name;
        let description = format!("Forebay volume {name}");
        let export = nbd::Export { name, description, disk };
        let server = nbd::Server::new(vec![export], core.nbd.clone(), nbd::Limits::default())?;
        let socket = nbd::Socket::bind(&how.path).await?;
        let (end, ended) = watch::channel(false);
        let serve = async move { server.serve(socket, told(ended)).await };
        Ok(Self { task: tokio::task::spawn_local(serve), kind: Served::Nbd { end } })
    }

    async fn vhost(core: &Core, disk: Rc<VolumeDisk>, how: &Attachment) -> Result<Self> {
        let options = vhost::Options { serial: disk.volume.identity().name, ..Default::default() };
        let export = Rc::new(vhost::Export::new(disk, core.vhost.clone(), &options)?);
        let listener = vhost::listen(&how.path).await?;
        let (end, ended) = watch::channel(false);
        let serving = Rc::clone(&export);
        let serve = async move {
            tokio::select! {
                () = serving.serve(listener) => {}
                () = told(ended) => {}
            }
        };
        let task = tokio::task::spawn_local(serve);
        Ok(Self { task, kind: Served::Vhost { end, export, path: how.path.clone() } })
    }

    async fn fuse(disk: Rc<VolumeDisk>, how: &Attachment, holder: Option<&Holder>) -> Result<Self> {
        let connection = match holder {
            Some(holder) => kept(&how.path, holder).await?,
            None => fuse::mount(&how.path)?,
        };
        let export = fuse::Export::start(connection, disk, fuse::Options::default())?;
        let handle = export.handle();
        let serve = async move {
            if let Err(error) = export.run().await {
                tracing::error!(%error, "a FUSE mount ended");
            }
        };
        let task = tokio::task::spawn_local(serve);
        let kind = Served::Fuse { handle, holder: holder.cloned(), path: how.path.clone() };
        Ok(Self { task, kind })
    }

    /// The volume has become larger. NBD has no words for that: who connects next sees it.
    pub(super) fn resized(&self) {
        if let Served::Vhost { export, .. } = &self.kind {
            export.resized();
        }
    }

    /// All of the volume is here: whoever opens a FUSE file from now on is with the plain file itself.
    pub(super) fn graduated(&self, raw: &Path) -> Result<()> {
        let Served::Fuse { handle, .. } = &self.kind else { return Ok(()) };
        let file = std::fs::File::options().read(true).write(true).open(raw);
        handle.graduate(file.map_err(|e| Error::io(raw.display(), e))?)
    }

    /// Ends when what was asked for is answered, or after `within`. With `leave` the guest is left waiting for the next
    /// process; else it is told that its disk is gone.
    pub(super) async fn stop(self, leave: bool, within: Duration) -> Result<()> {
        let mut result = Ok(());
        match &self.kind {
            Served::Nbd { end } => drop(end.send(true)),
            Served::Vhost { end, path, .. } => {
                let _ = end.send(true);
                // A front-end that comes back must not find a socket at which nobody listens.
                let _ = std::fs::remove_file(path);
            }
            Served::Fuse { handle, .. } if leave => handle.leave(),
            Served::Fuse { path, holder, .. } => {
                result = fuse::unmount(path).and_then(|()| {
                    let Some(holder) = holder else { return Ok(()) };
                    let name = path.display().to_string();
                    let forgotten = fuse::holder::forget(&holder.socket, &name);
                    forgotten.map(drop).map_err(|e| Error::io("the holder of mounts", e))
                });
            }
        }
        // What is in work may wait for chunks that do not come: the next process is asked for it again.
        // A FUSE session that is dropped would answer it with an error; this process ends soon, and it with it.
        let abort = (!matches!(self.kind, Served::Fuse { .. })).then(|| self.task.abort_handle());
        if result.is_ok() && tokio::time::timeout(within, self.task).await.is_err() {
            tracing::warn!("requests that are not answered are left");
            abort.iter().for_each(AbortHandle::abort);
        }
        result
    }
}

async fn told(mut end: watch::Receiver<bool>) {
    let _ = end.wait_for(|end| *end).await;
}

/// The connection of a mount that an earlier daemon left.
fn left_by_another(path: &Path, holder: &Holder) -> Result<Option<fuse::Connection>> {
    let device = fuse::holder::give(&holder.socket, &path.display().to_string());
    let device = device.map_err(|e| Error::io("the holder of mounts", e))?;
    Ok(device.map(fuse::Connection::Left))
}

/// The connection of a mount that is kept, an old one or a new.
async fn kept(path: &Path, holder: &Holder) -> Result<fuse::Connection> {
    holder.start().await?;
    let left = match left_by_another(path, holder) {
        // One that had nothing to keep may have gone since.
        Err(_) => {
            holder.start().await?;
            left_by_another(path, holder)?
        }
        left => left?,
    };
    if let Some(left) = left {
        return Ok(left);
    }
    let connection = fuse::mount(path)?;
    let kept = fuse::holder::keep(&holder.socket, &path.display().to_string(), connection.as_fd());
    kept.map_err(|e| Error::io("the holder of mounts", e))?;
    Ok(connection)
}
