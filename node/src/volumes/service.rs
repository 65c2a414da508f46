//! What can be asked of a node's volumes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::ErrorBody;
use api::keep::HeldImage;
use api::volume::{AttachVolume, Attachment, CreateVolume, ExportKind, Scrubbed, VolumeInfo};
use blockio::{BlockFile, Fs};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use image::error::At;
use image::geometry::DEFAULT_CHUNK_LOG2;
use image::{ChunkSource, Digest, Error, Geometry, Kind, Manifest, ReadContext, Result};
use tokio::sync::{Mutex, OwnedMutexGuard};
use volume_pool::{Identity, NewVolume, Shelf};

use super::cores::{Core, CoreOptions, Cores};
use super::gate::LetIn;
use super::kept::Kept;
use super::live::{Live, Surroundings};
use super::recorder::Start;
use super::release::{Run, Signs};
use super::serving::{ENDS, Holder};
use super::told::Told;
use super::{extend::Failed, tools};
use crate::daemon::Grid;
use crate::leases::Leases;
use crate::leases::watchdog::Watchdog;
use crate::patience::Patience;
use crate::pull::Connect;
use crate::rate::Rate;

/// How a node keeps its volumes.
#[derive(Clone)]
pub struct VolumeOptions {
    /// Where they lie.
    pub dir: PathBuf,
    /// Where their sockets are, unless told otherwise, and what the daemon keeps of them.
    pub state: PathBuf,
    /// How they are served.
    pub cores: CoreOptions,
    /// What keeps mounts while the daemon is away.
    pub holder: Holder,
    /// Limit on what all volumes together fetch before a guest asks for it.
    pub rate: Option<Arc<Rate>>,
    /// Limit on what all builds of pools that nobody waits for together fetch.
    pub build_rate: Option<Arc<Rate>>,
    /// Which new volumes share the chunks of their images.
    pub share: Share,
    /// Which of them this node may write.
    pub leases: Arc<Leases>,
    /// Signs what this node says of what it has erased.
    pub signer: Arc<dyn Signs>,
    /// Stops whoever writes without.
    pub watchdog: Arc<Watchdog>,
}

/// Which new volumes share the chunks of their images with others on the node. As text: `auto`, `always`,
/// `never`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Share {
    /// Those on a file system that lets files share blocks, so that they become plain all the same; elsewhere those of
    /// an image that the node holds.
    #[default]
    Auto,
    /// All. Where files cannot share blocks they hold only what their guests write, and do not become plain.
    Always,
    /// None.
    Never,
}

impl std::str::FromStr for Share {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            other => {
                let what = format!("{other:?}: volumes share `auto`, `always` or `never`");
                Err(Error::new(Kind::Invalid, what))
            }
        }
    }
}

pub(super) const UNPOISONED: &str = "no panics while locked";

/// How long a volume that is in use is waited for: a daemon that ends needs a moment.
const TAKE_TRIES: u32 = 50;
const TAKE_PAUSE: Duration = Duration::from_millis(100);

/// The volumes of a node. Clones share them.
pub struct Volumes<G>(pub(super) Arc<Inner<G>>);

impl<G> Clone for Volumes<G> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

pub(super) struct Inner<G> {
    pub(super) grid: Arc<G>,
    pub(super) shelf: Shelf,
    /// What keeps other daemons from the shelf.
    _claim: BlockFile,
    pub(super) sockets: PathBuf,
    /// Where volumes are shown to the tools of their file systems.
    pub(super) for_tools: PathBuf,
    cores: Cores,
    pub(super) kept: Arc<Kept>,
    holder: Holder,
    rate: Option<Arc<Rate>>,
    pub(super) build_rate: Option<Arc<Rate>>,
    pub(super) share: Share,
    /// Whether files on the shelf can share blocks.
    pub(super) reflinks: bool,
    /// The cores of attached volumes.
    pub(super) homes: std::sync::Mutex<BTreeMap<String, usize>>,
    /// Volumes that are being captured.
    pub(super) capturing: std::sync::Mutex<BTreeSet<String>>,
    /// The cores of those of them that stand still, since their lease is over.
    pub(super) still: std::sync::Mutex<BTreeMap<String, usize>>,
    /// What is being erased, by id.
    pub(super) erasures: std::sync::Mutex<BTreeMap<String, Arc<Run>>>,
    /// Where records of erasures are kept.
    pub(super) records: PathBuf,
    pub(super) signer: Arc<dyn Signs>,
    pub(super) leases: Arc<Leases>,
    pub(super) watchdog: Arc<Watchdog>,
    /// What placement was told last.
    pub(super) told: Told,
    /// The images that it was told are held.
    pub(super) held: std::sync::Mutex<Vec<HeldImage>>,
    /// One change of a volume at a time.
    changing: std::sync::Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
}

/// Now, and an id that nobody else has: from outside, as everything that is different in each run.
#[derive(Clone, Copy, Debug)]
pub struct Birth {
    /// In seconds since 1970.
    pub now: u64,
    /// Drawn at random.
    pub id: [u8; 16],
}

impl<G: Grid> Volumes<G> {
    /// Opens a node's volumes, and serves again those that were attached. What cannot be served is said and
    /// left. Must be called inside a tokio runtime.
    pub async fn start(grid: G, options: VolumeOptions) -> Result<Self> {
        let shelf = Shelf::open(Fs::os(), options.dir)?;
        let ours = shelf.clone();
        let claim = take_patiently(move || ours.claim()).await?;
        for (name, error) in shelf.tidy()? {
            tracing::error!(%error, name, "a volume that cannot be read");
        }
        let reflinks = shelf.can_reflink().unwrap_or_else(|error| {
            tracing::warn!(%error, "whether files can share blocks here is not known");
            false
        });
        let sockets = options.state.join("volumes");
        let for_tools = options.state.join("tools");
        Fs::os().create_dir_all(&sockets).map_err(|e| Error::io("the node's directory", e))?;
        if let Err(error) = tools::tidy(&for_tools).await {
            tracing::error!(%error, "what tools have left cannot be given back");
        }
        let volumes = Self(Arc::new(Inner {
            grid: Arc::new(grid),
            shelf,
            _claim: claim,
            sockets,
            for_tools,
            cores: Cores::start(options.cores)?,
            kept: Arc::new(Kept::load(options.state.join("attachments.json"))?),
            holder: options.holder,
            rate: options.rate,
            build_rate: options.build_rate,
            share: options.share,
            reflinks,
            homes: std::sync::Mutex::default(),
            capturing: std::sync::Mutex::default(),
            still: std::sync::Mutex::default(),
            erasures: std::sync::Mutex::default(),
            records: options.state.join("erasures"),
            signer: options.signer,
            leases: options.leases,
            watchdog: options.watchdog,
            told: Told::default(),
            held: std::sync::Mutex::default(),
            changing: std::sync::Mutex::default(),
        }));
        if let Err(error) = volumes.resume_erasures().await {
            tracing::error!(%error, "what is to be erased is not gone on with");
        }
        for (name, how) in volumes.0.kept.all() {
            if !matches!(volumes.serve_again(&name, how.clone()).await, Ok(true)) {
                volumes.serve_when_let(name, how);
            }
        }
        Ok(volumes)
    }

    /// Ends all exports when their requests are answered. The volumes stay attached: the next start serves
    /// them again.
    pub async fn stop(&self) {
        self.stop_erasures();
        for name in self.0.kept.all().into_keys() {
            if let Err(error) = self.end_live(&name, true).await {
                tracing::error!(%error, name, "a volume did not end as it should");
            }
        }
    }

    /// Makes a volume; with `extend` what is on it is extended to its end.
    ///
    /// # Errors
    ///
    /// If it cannot be extended there is no volume; if that failed midway, there is, and a
    /// [`resize`](Volumes::resize) goes on.
    pub async fn create(&self, asked: CreateVolume, birth: Birth) -> Result<VolumeInfo> {
        let _only = self.only(&asked.name).await;
        if asked.extend && asked.image.is_none() {
            let what = format!("{}: on a blank volume there is nothing to extend", asked.name);
            return Err(Error::new(Kind::Invalid, what));
        }
        let image = match &asked.image {
            Some(image) => Some(self.manifest(image.clone()).await?),
            None => None,
        };
        let geometry = geometry(&asked, image.as_deref())?;
        let shares = self.shares(image.as_deref()).await?;
        let new = NewVolume {
            name: asked.name.clone(),
            id: birth.id,
            geometry,
            image,
            shares,
            device: asked.device,
            created: birth.now,
        };
        let shelf = self.0.shelf.clone();
        self.blocking(move || shelf.create(&new)).await?;
        self.0.told.changed();
        if asked.extend {
            self.extend_new(&asked.name, geometry.size()).await?;
        }
        self.show(&asked.name).await
    }

    async fn extend_new(&self, name: &str, size: u64) -> Result<()> {
        match self.extend(name, size).await {
            Ok(()) => Ok(()),
            Err(Failed::Midway(error)) => Err(self.midway(name, size, error)),
            Err(Failed::Before(error)) => {
                let (shelf, gone) = (self.0.shelf.clone(), name.to_owned());
                let removed = self.blocking(move || shelf.remove(&gone)).await;
                removed.unwrap_or_else(|error| tracing::error!(%error, name, "a volume is left"));
                Err(error.at(name))
            }
        }
    }

    pub(super) async fn manifest(&self, name: String) -> Result<Arc<Manifest>> {
        let (image, connect) = self.0.grid.locate(&name).await?;
        let ask = move |core: Rc<Core>| {
            async move {
                let connecting = async || connect.connect(core.number).await;
                let source = Patience::with_busy().ask(connecting).await?;
                let ctx = ReadContext::default();
                let asking = async || source.manifest(&ctx, &image).await;
                let manifest = Patience::new().ask(asking).await;
                connect.close(source).await;
                manifest
            }
            .boxed_local()
        };
        self.0.cores.on(0, ask).await
    }

    /// All volumes.
    pub async fn list(&self) -> Result<Vec<VolumeInfo>> {
        let mut all = Vec::new();
        for name in self.0.shelf.names()? {
            match self.show(&name).await {
                Ok(info) => all.push(info),
                Err(error) => tracing::warn!(%error, name, "a volume that cannot be shown"),
            }
        }
        Ok(all)
    }

    /// One volume.
    pub async fn show(&self, name: &str) -> Result<VolumeInfo> {
        let identity = self.0.shelf.identity(name)?;
        let mut info = self.info(identity)?;
        let wanted = name.to_owned();
        let progress = self.on_its_core(name, move |core| {
            async move { Ok(core.live.borrow().get(&wanted).map(|live| live.progress(&core))) }
                .boxed_local()
        });
        if let Some((progress, trouble, plain)) = progress.await? {
            info.hydration = Some(progress);
            info.trouble = trouble.as_ref().map(ErrorBody::from);
            info.plain = plain;
        }
        Ok(info)
    }

    fn info(&self, identity: Identity) -> Result<VolumeInfo> {
        let attached = self.0.kept.get(&identity.name);
        let disk = self.0.shelf.disk(&identity.name)?;
        Ok(VolumeInfo { attached, ..described(identity, disk) })
    }

    /// A volume that nobody uses, as far as this daemon knows.
    pub(super) async fn at_rest(&self, name: &str) -> Result<VolumeInfo> {
        let info = self.show(name).await?;
        self.is_not_captured(name)?;
        if info.attached.is_some() {
            let what = format!("{name}: attached: detach it first");
            return Err(Error::new(Kind::Conflict, what));
        }
        Ok(info)
    }

    /// Removes a volume and what is in it; returns it as it was.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] while it is attached.
    pub async fn remove(&self, name: &str) -> Result<VolumeInfo> {
        let _only = self.only(name).await;
        let was = self.at_rest(name).await?;
        let (shelf, name) = (self.0.shelf.clone(), name.to_owned());
        let remove = move || {
            shelf.remove(&name)?;
            let bases = shelf.remove_idle_bases();
            bases.unwrap_or_else(|error| tracing::error!(%error, "bases of images are left"));
            Ok(())
        };
        self.blocking(remove).await?;
        self.0.told.changed();
        Ok(was)
    }

    /// Shows a volume to its guest. The same again changes nothing.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if it is attached in another way; [`Kind::Gone`] if a directory that it needs is not there.
    pub async fn attach(&self, name: &str, asked: AttachVolume) -> Result<VolumeInfo> {
        let _only = self.only(name).await;
        let record = asked.record;
        let start = match record {
            true => Start::Recorded,
            false if asked.trace => Start::First,
            false => Start::Unseen,
        };
        let how = self.attachment(name, asked)?;
        match self.0.kept.get(name) {
            Some(now) if !record && (Attachment { moved: false, ..now.clone() }) == how => {
                return self.show(name).await;
            }
            Some(now) => return Err(attached_otherwise(name, &now)),
            None => has_directories(&how).at(|| name.to_owned())?,
        }
        self.is_not_captured(name)?;
        // What its guest does to its file system is not the tools' doing.
        self.0.shelf.forget_extending(name)?;
        let writer = match how.read_only {
            true => LetIn::FREELY,
            false => self.enter(name).await?,
        };
        let attached = self.attach_as(name, how.clone(), start, &writer).await;
        if attached.is_err() && !how.read_only {
            let left = self.leave(name);
            left.unwrap_or_else(|error| tracing::error!(%error, name, "its lease is kept"));
        }
        attached
    }

    async fn attach_as(
        &self,
        name: &str,
        how: Attachment,
        start: Start,
        writer: &LetIn,
    ) -> Result<VolumeInfo> {
        if !how.read_only {
            let (shelf, name) = (self.0.shelf.clone(), name.to_owned());
            take_patiently(move || shelf.note_start(&name)).await?;
        }
        self.go_live(name, how.clone(), start, self.holder()).await?;
        let kept = self.0.kept.insert_new(name, how);
        if let Err(error) = kept.and_then(|()| self.is_still_in(name, writer)) {
            let ended = self.end_live(name, false).await;
            ended.unwrap_or_else(|error| tracing::error!(%error, name, "a volume that is stuck"));
            if self.0.kept.get(name).is_some() {
                self.0.kept.remove(name)?;
            }
            return Err(error);
        }
        self.show(name).await
    }

    fn attachment(&self, name: &str, asked: AttachVolume) -> Result<Attachment> {
        let AttachVolume { kind, path, qmp, read_only, fill, terms, trace, record: _ } = asked;
        // A volume that is not there has no socket.
        self.0.shelf.identity(name)?;
        let path = path.unwrap_or_else(|| self.0.sockets.join(format!("{name}.{}", kind.name())));
        for path in qmp.iter().chain([&path]) {
            if !path.is_absolute() {
                let what = format!("{}: the path must be absolute", path.display());
                return Err(Error::new(Kind::Invalid, what));
            }
        }
        if qmp.is_some() && kind != ExportKind::Nbd {
            let what = "a guest is moved to the plain file only from NBD";
            return Err(Error::new(Kind::Invalid, what));
        }
        Ok(Attachment { kind, path, qmp, read_only, fill, terms, trace, moved: false })
    }

    pub(super) fn holder(&self) -> Option<Holder> {
        Some(self.0.holder.clone())
    }

    /// Serves a volume. Without a holder a mount ends with this process.
    pub(super) async fn go_live(
        &self,
        name: &str,
        how: Attachment,
        start: Start,
        holder: Option<Holder>,
    ) -> Result<()> {
        let key = name.to_owned();
        let (shelf, wanted) = (self.0.shelf.clone(), key.clone());
        let files = take_patiently(move || shelf.take(&wanted)).await?;
        let home = self.home(files.identity.get());
        let around = self.around(holder);
        self.0.homes.lock().expect(UNPOISONED).insert(name.to_owned(), home);
        let live = self.on_its_core(name, move |core| {
            async move {
                let live = Live::start(&core, around, files, how, start).await;
                if live.is_err() {
                    core.bases.release().await;
                }
                core.live.borrow_mut().insert(key, live?);
                Ok(())
            }
            .boxed_local()
        });
        live.await.inspect_err(|_| self.leaves_home(name))
    }

    /// What a volume needs of the node.
    pub(super) fn around(&self, holder: Option<Holder>) -> Surroundings<G> {
        Surroundings {
            shelf: self.0.shelf.clone(),
            reflinks: self.0.reflinks,
            grid: Arc::clone(&self.0.grid),
            kept: Arc::clone(&self.0.kept),
            holder,
            limits: self.0.rate.iter().cloned().collect(),
            now: now(),
        }
    }

    /// Takes a volume from its guest.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if it is not attached.
    pub async fn detach(&self, name: &str) -> Result<VolumeInfo> {
        let _only = self.only(name).await;
        if self.0.kept.get(name).is_none() {
            self.0.shelf.identity(name)?;
            return Err(Error::new(Kind::Conflict, format!("{name}: not attached")));
        }
        self.is_not_captured(name)?;
        self.end_live(name, false).await?;
        self.0.kept.remove(name)?;
        self.leave(name)?;
        self.show(name).await
    }

    /// Compares what an attached volume has of its image with the image, and repairs what has rotted.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if it is not attached.
    pub async fn scrub(&self, name: &str) -> Result<Scrubbed> {
        self.0.shelf.identity(name)?;
        let (grid, key) = (Arc::clone(&self.0.grid), name.to_owned());
        self.on_its_core(name, move |core| {
            async move {
                let live = core.live.borrow().get(&key).cloned();
                let idle = || Error::new(Kind::Conflict, format!("{key}: attach it first"));
                live.ok_or_else(idle)?.scrub(&core, grid).await
            }
            .boxed_local()
        })
        .await
    }

    pub(super) async fn end_live(&self, name: &str, leave: bool) -> Result<()> {
        let key = name.to_owned();
        let ended = self.on_its_core(name, move |core| {
            async move {
                let live = core.live.borrow_mut().remove(&key);
                let stopped = match live {
                    Some(live) => live.stop(leave, ENDS).await,
                    None => Ok(()),
                };
                core.bases.release().await;
                stopped
            }
            .boxed_local()
        });
        let ended = ended.await;
        self.leaves_home(name);
        ended
    }

    /// The core that a volume is to live on. Those that lean on a base live together, on its core.
    pub(super) fn home(&self, identity: &Identity) -> usize {
        match identity.base.filter(|_| identity.shares && !identity.plain) {
            Some(base) => self.home_of(&base.image),
            None => number_of(&identity.name) as usize % self.0.cores.count(),
        }
    }

    /// The core that the base of an image lives on.
    pub(super) fn home_of(&self, image: &Digest) -> usize {
        number_of(&image.to_string()) as usize % self.0.cores.count()
    }

    pub(super) fn leaves_home(&self, name: &str) {
        self.0.homes.lock().expect(UNPOISONED).remove(name);
    }

    /// Does something where a volume lives; on any core if it is not attached.
    pub(super) async fn on_its_core<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(Rc<Core>) -> LocalBoxFuture<'static, Result<T>> + Send + 'static,
    ) -> Result<T> {
        let home = self.0.homes.lock().expect(UNPOISONED).get(name).copied();
        let core = home.unwrap_or(number_of(name) as usize % self.0.cores.count());
        self.on(core, work).await
    }

    /// Does something on a core.
    pub(super) async fn on<T: Send + 'static>(
        &self,
        core: usize,
        work: impl FnOnce(Rc<Core>) -> LocalBoxFuture<'static, Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.0.cores.on(core, work).await
    }

    /// Keeps others from changing a volume.
    pub(super) async fn only(&self, name: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut changing = self.0.changing.lock().expect(UNPOISONED);
            changing.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(changing.entry(name.to_owned()).or_default())
        };
        lock.lock_owned().await
    }

    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        blocking(work).await
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = Fs::os().unblock(work).await;
    done.map_err(|e| Error::caused(Kind::Io, format!("working on a volume: {e}"), e))?
}

/// Takes something for us alone. A daemon that was killed keeps its locks until its last write is over.
pub(super) async fn take_patiently<T: Send + 'static>(
    take: impl Fn() -> Result<T> + Clone + Send + 'static,
) -> Result<T> {
    for _ in 0..TAKE_TRIES {
        match blocking(take.clone()).await {
            Err(error) if error.kind() == Kind::Conflict => tokio::time::sleep(TAKE_PAUSE).await,
            taken => return taken,
        }
    }
    blocking(take).await
}

/// What a device, a copy of one or a volume's directory says of itself, wherever it was found.
///
/// # Errors
///
/// [`Kind::Corrupt`] if it is no volume.
pub fn identify(path: &Path) -> Result<VolumeInfo> {
    let fs = Fs::os();
    Ok(described(volume_pool::identify(&fs, path)?, volume_pool::disk_at(&fs, path)))
}

fn described(identity: Identity, disk: PathBuf) -> VolumeInfo {
    let Identity { name, id, state, plain, shares, size, sector, base, created, .. } = identity;
    VolumeInfo {
        name,
        id: id.iter().map(|b| format!("{b:02x}")).collect(),
        state: state.name().to_owned(),
        size,
        sector,
        image: base.map(|base| base.image),
        created,
        plain,
        shares,
        disk,
        attached: None,
        hydration: None,
        trouble: None,
    }
}

/// Size and sectors of a new volume.
fn geometry(asked: &CreateVolume, image: Option<&Manifest>) -> Result<Geometry> {
    let of_image = image.map(|image| *image.geometry());
    let size = asked.size.or(of_image.map(|g| g.size()));
    let size = size.ok_or_else(|| Error::new(Kind::Invalid, "a blank volume needs a size"))?;
    let sector = asked.sector.or(of_image.map(|g| g.sector())).unwrap_or(512);
    let chunk_log2 = of_image.map_or(DEFAULT_CHUNK_LOG2, |g| g.chunk_log2());
    volume_pool::size::geometry(size, sector, chunk_log2).at(|| asked.name.clone())
}

/// Says how a volume is attached, to who wants it otherwise.
fn attached_otherwise(name: &str, now: &Attachment) -> Error {
    let read_only = if now.read_only { ", read-only" } else { "" };
    let what = format!(
        "{name}: attached already, in another way: {} at {}{read_only}: detach it first, which takes the disk from a \
         running guest",
        now.kind.name(),
        now.path.display()
    );
    Error::new(Kind::Conflict, what)
}

/// Sockets are made by us and by QEMU, the directories that they lie in by neither.
fn has_directories(how: &Attachment) -> Result<()> {
    for path in how.qmp.iter().chain([&how.path]) {
        let missing = path.parent().filter(|dir| !dir.is_dir());
        if let Some(dir) = missing {
            let (path, dir) = (path.display(), dir.display());
            let what = format!("{path}: there is no directory {dir}: make it first");
            return Err(Error::new(Kind::Gone, what));
        }
    }
    Ok(())
}

/// In seconds since 1970.
pub(super) fn now() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "deadlines are told in the world's time")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// Spreads names over cores, the same way in every run.
fn number_of(name: &str) -> u32 {
    name.bytes().fold(0, |hash: u32, byte| hash.wrapping_mul(31).wrapping_add(byte.into()))
}
