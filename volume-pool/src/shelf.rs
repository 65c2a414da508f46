//! The directory in which a node keeps its volumes.
//!
//! ```text
//! DIR/NAME/identity    what the volume is (two blocks); locked by whoever uses it
//! DIR/NAME/manifest    the image that it is made of: geometry and section digests; not of a blank one
//! DIR/NAME/maps        what of it is here
//! DIR/NAME/disk.raw    its bytes
//! DIR/NAME/since       the image that its changes count from, once it was [captured](crate::since)
//! DIR/NAME/extending   the file system on it is being [extended](Shelf::note_extending)
//! DIR/NAME/origin      what it was made for, of one that was [made ahead](crate::ready)
//! DIR/NAME/erasing     how far its [erasure](crate::erase) is
//! DIR/NAME/device      instead of the identity and the bytes, of a volume on a [device](crate::device)
//! DIR/.images/DIGEST/  the same of a [base](crate::bases)
//! DIR/.held/DIGEST     the base of this image [stays](Shelf::hold), whoever leans on it
//! DIR/.ready/ID/       the same of a volume that is [nobody's](crate::ready)
//! ```

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockio::{BlockFile, FileKind, Fs, OpenMode};
use image::manifest::MAX_MANIFEST;
use image::{Error, Geometry, Kind, Manifest, Result};

use crate::device::{self, OnDevice};
use crate::identity::{Base, Identity, IdentityBlocks, MAX_NAME, VolumeState};
use crate::size::shown;
use crate::volume::Files;

pub(crate) const IDENTITY: &str = "identity";
pub(crate) const MANIFEST: &str = "manifest";
const MAPS: &str = "maps";
pub(crate) const DISK: &str = "disk.raw";
pub(crate) const DEVICE: &str = "device";
pub(crate) const SINCE: &str = "since";
/// On its way there.
const SINCE_NEW: &str = "since.new";
pub(crate) const LEFT: &str = "left";
/// On its way there.
const LEFT_NEW: &str = "left.new";
/// Where what guests overwrite during a capture is kept; nobody finds it by this name for long.
pub(crate) const ASIDE: &str = "aside";
/// The same of a guest that uses the plain file.
const ASIDE_OF_QEMU: &str = "aside.raw";
pub(crate) const EXTENDING: &str = "extending";
/// What a volume was made for, of one that was made ahead.
pub(crate) const ORIGIN: &str = "origin";
/// On its way there.
const ORIGIN_NEW: &str = "origin.new";
/// The journal of its erasure.
pub(crate) const ERASING: &str = "erasing";
/// What a volume's directory may have, in the order in which it is removed.
const FILES: [&str; 15] = [
    // Who removes a volume wants no erasure to go on.
    ERASING,
    DISK,
    MAPS,
    MANIFEST,
    EXTENDING,
    SINCE,
    SINCE_NEW,
    LEFT,
    LEFT_NEW,
    ASIDE,
    ASIDE_OF_QEMU,
    ORIGIN,
    ORIGIN_NEW,
    DEVICE,
    IDENTITY,
];

/// A directory of volumes.
#[derive(Clone, Debug)]
pub struct Shelf {
    pub(crate) fs: Fs,
    pub(crate) dir: PathBuf,
}

/// What a new volume is to be.
#[derive(Clone, Debug)]
pub struct NewVolume {
    /// What people will call it: letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// Drawn at random.
    pub id: [u8; 16],
    /// Size, sector and chunks.
    pub geometry: Geometry,
    /// The image that it is made of, which must not be larger and have chunks of the same size.
    pub image: Option<Arc<Manifest>>,
    /// Leave the image's chunks with a base that volumes share: see [`Shelf::take_base`].
    pub shares: bool,
    /// The block device that it is to lie on; in a file by default.
    pub device: Option<PathBuf>,
    /// Now, in seconds since 1970.
    pub created: u64,
}

fn base(manifest: &Manifest) -> Base {
    let (image, size) = (manifest.identity(), manifest.geometry().size());
    Base { image, size, domain: manifest.domain() }
}

/// Whether a volume may have this name: it is a directory's, too.
fn check_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && name.len() <= MAX_NAME && name.chars().all(fits) {
        return Ok(());
    }
    let what = format!(
        "{name:?}: a volume's name has at most {MAX_NAME} letters, digits, `.`, `_` and `-`, and \
         begins with a letter or digit"
    );
    Err(Error::new(Kind::Invalid, what))
}

/// The error names the path already.
pub(crate) fn io(error: std::io::Error) -> Error {
    Error::io("volume", error)
}

impl Shelf {
    /// The volumes in `dir`, which is made if need be.
    pub fn open(fs: Fs, dir: PathBuf) -> Result<Self> {
        fs.create_dir_all(&dir).map_err(io)?;
        Ok(Self { fs, dir })
    }

    pub(crate) fn path(&self, name: &str) -> Result<PathBuf> {
        check_name(name)?;
        Ok(self.dir.join(name))
    }

    /// Where they lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file or device that holds a volume's bytes.
    pub fn disk(&self, name: &str) -> Result<PathBuf> {
        let in_file = || Ok(self.path(name)?.join(DISK));
        self.device(name)?.map_or_else(in_file, |device| Ok(device.path))
    }

    /// Where a volume lies, if not in a file.
    fn device(&self, name: &str) -> Result<Option<OnDevice>> {
        OnDevice::read(&self.fs, &self.path(name)?.join(DEVICE))
    }

    /// Makes a volume. It is allocated when this returns, or not there: what a crash leaves half made is
    /// removed by [`tidy`](Shelf::tidy).
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if there is one of this name, or one on its device.
    pub fn create(&self, new: &NewVolume) -> Result<()> {
        self.create_as(VolumeState::Allocated, new)
    }

    /// The same of one that is left in another state. Nothing of one that is [being made](VolumeState::Building) lasts yet.
    pub(crate) fn create_as(&self, state: VolumeState, new: &NewVolume) -> Result<()> {
        let dir = self.path(&new.name)?;
        if let Some(image) = new.image.as_ref().map(|i| i.geometry()) {
            let (size, least) = (new.geometry.size(), image.size());
            let refuse = |what: String| Err(Error::new(Kind::Invalid, what).at(&new.name));
            if size < least {
                return refuse(format!(
                    "a volume is at least as large as its image, {}: leave --size out or give a larger one",
                    shown(least)
                ));
            }
            if new.geometry.chunk_log2() != image.chunk_log2() {
                return refuse("its chunks are not of the image's size".into());
            }
        }
        if self.fs.exists(&dir).map_err(io)? {
            let what = format!("{}: there is a volume of this name", new.name);
            return Err(Error::new(Kind::Conflict, what));
        }
        match state {
            VolumeState::Building => self.fs.create_dir(&dir),
            _ => self.fs.create_dir_all(&dir),
        }
        .map_err(io)?;
        self.build(&dir, state, new).inspect_err(|_| {
            let identity = self.take_identity(&new.name).ok();
            if let Err(error) = self.remove_files(&dir, identity) {
                tracing::warn!(%error, "a volume that could not be made is left");
            }
        })
    }

    fn build(&self, dir: &Path, state: VolumeState, new: &NewVolume) -> Result<()> {
        let create = |name: &str| self.fs.open(dir.join(name), OpenMode::create_new()).map_err(io);
        let lasts = state != VolumeState::Building;
        let sync = |file: &BlockFile| if lasts { file.sync_data().map_err(io) } else { Ok(()) };
        let identity = Identity {
            id: new.id,
            name: new.name.clone(),
            state: VolumeState::Building,
            plain: new.image.is_none(),
            shares: new.shares && new.image.is_some() && new.device.is_none(),
            untracked: false,
            fresh: true,
            size: new.geometry.size(),
            sector: new.geometry.sector(),
            chunk_log2: new.geometry.chunk_log2(),
            base: new.image.as_deref().map(base),
            created: new.created,
            claim: None,
        };
        let mut blocks = match &new.device {
            Some(path) => self.build_on(dir, path, identity)?,
            None => {
                let file = create(IDENTITY)?;
                lock(&file, &new.name)?;
                let blocks = IdentityBlocks::create(file, 0, identity)?;
                sync(blocks.file())?;
                let disk = create(DISK)?;
                disk.set_len(new.geometry.size()).map_err(io)?;
                sync(&disk)?;
                blocks
            }
        };
        sync(&create(MAPS)?)?;
        if let Some(manifest) = &new.image {
            let file = create(MANIFEST)?;
            file.write_all_at(&manifest.to_bytes(), 0).map_err(io)?;
            sync(&file)?;
        }
        if !lasts {
            return Ok(());
        }
        self.fs.sync_dir(dir).map_err(io)?;
        blocks.become_state(VolumeState::Ready)?;
        match state {
            VolumeState::Ready => Ok(()),
            state => blocks.become_state(state),
        }
    }

    /// The same on a device: what lies behind the image becomes zeros, which takes its time.
    fn build_on(&self, dir: &Path, path: &Path, identity: Identity) -> Result<IdentityBlocks> {
        let device = device::claim(&self.fs, path, identity.size)?;
        OnDevice { id: identity.id, path: path.into() }.write(&self.fs, &dir.join(DEVICE))?;
        // A device that says what it is must be found from here.
        self.fs.sync_dir(dir).map_err(io)?;
        let behind = identity.base.map_or(0, |base| base.size)..identity.size;
        let blocks = IdentityBlocks::create(device.clone(), device::place(&device)?, identity)?;
        device.sync_data().map_err(io)?;
        device.zero_range(behind).map_err(io)?;
        device.sync_data().map_err(io)?;
        Ok(blocks)
    }

    /// The names of all volumes, also of those that are being made.
    pub fn names(&self) -> Result<Vec<String>> {
        let names = self.fs.list(&self.dir).map_err(io)?;
        Ok(names
            .into_iter()
            .filter_map(|n| n.into_string().ok())
            .filter(|n| check_name(n).is_ok())
            .collect())
    }

    /// Claims all volumes here for one daemon, as long as the file is kept.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] while another has them.
    pub fn claim(&self) -> Result<BlockFile> {
        let lock = self.dir.join(".lock");
        let file = self.fs.open(lock.clone(), OpenMode::create()).map_err(io)?;
        match file.try_lock_exclusive().map_err(io)? {
            true => Ok(file),
            false => {
                let dir = self.dir.display();
                let who = blockio::lock_holder(&lock);
                let who = who.map_or_else(String::new, |pid| format!(" (process {pid})"));
                let what = format!(
                    "{dir}: another node daemon{who} has its volumes there: end it first, or give this one a directory \
                     of its own (`volumes.dir`)"
                );
                Err(Error::new(Kind::Conflict, what))
            }
        }
    }

    /// What a volume says of itself.
    ///
    /// # Errors
    ///
    /// [`Kind::Gone`] if there is none of this name.
    pub fn identity(&self, name: &str) -> Result<Identity> {
        Ok(self.open_identity(name, OpenMode::read(), |_| Ok(()))?.get().clone())
    }

    fn open_identity(
        &self,
        name: &str,
        mode: OpenMode,
        check: impl FnOnce(&BlockFile) -> Result<()>,
    ) -> Result<IdentityBlocks> {
        match self.device(name)? {
            Some(on) => {
                let device = self.fs.open(&on.path, mode).map_err(|e| match e.kind() {
                    // The volume is not gone with it.
                    ErrorKind::NotFound => Error::caused(Kind::Io, format!("{name}: {e}"), e),
                    _ => io(e),
                })?;
                check(&device)?;
                on.identity(device)
            }
            None => {
                let file = self.identity_file(name, mode)?;
                check(&file)?;
                IdentityBlocks::open(file, 0)
            }
        }
    }

    fn identity_file(&self, name: &str, mode: OpenMode) -> Result<BlockFile> {
        let file = self.fs.open(self.path(name)?.join(IDENTITY), mode);
        file.map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                Error::new(Kind::Gone, format!("{name}: there is no such volume"))
            }
            _ => io(e),
        })
    }

    /// Opens a volume to use it; nobody else can until its files are dropped.
    ///
    /// # Errors
    ///
    /// [`Kind::Gone`] if there is none; [`Kind::Conflict`] if somebody uses it.
    pub fn take(&self, name: &str) -> Result<Files> {
        let identity = self.take_identity(name)?;
        let open = |file: &str| self.fs.open(self.dir.join(name).join(file), OpenMode::write());
        let data = match self.device(name)? {
            Some(_) => identity.file().clone(),
            None => open(DISK).map_err(io)?,
        };
        let maps = open(MAPS).map_err(io)?;
        let image = identity.get().base.map(|base| self.manifest(name, &base)).transpose()?;
        let since = self.since(identity.get())?;
        Ok(Files { identity, data, maps, image, since })
    }

    /// Notes that a guest may write to a volume from now on: it is not [fresh](Identity::fresh) any more. Durable when
    /// this returns.
    ///
    /// # Errors
    ///
    /// As [`take`](Self::take).
    pub fn note_start(&self, name: &str) -> Result<()> {
        if !self.identity(name)?.fresh {
            return Ok(());
        }
        self.take_identity(name)?.change(|identity| identity.fresh = false)
    }

    /// The manifest of a volume's image, checked against the image's identity.
    fn manifest(&self, name: &str, base: &Base) -> Result<Manifest> {
        let path = self.dir.join(name).join(MANIFEST);
        let bytes = self.fs.read(&path, MAX_MANIFEST).map_err(io)?;
        Manifest::parse(&bytes, &base.image).map_err(|e| Error::from(e).at(path.display()))
    }

    pub(crate) fn take_identity(&self, name: &str) -> Result<IdentityBlocks> {
        self.open_identity(name, OpenMode::write(), |file| lock(file, name))
    }

    /// Removes a volume. After a crash in the middle [`tidy`](Shelf::tidy) goes on.
    ///
    /// # Errors
    ///
    /// [`Kind::Gone`] if there is none; [`Kind::Conflict`] if somebody uses it.
    pub fn remove(&self, name: &str) -> Result<()> {
        let mut identity = self.take_identity(name)?;
        self.refuse_used(name, &identity)?;
        if identity.get().state != VolumeState::Erasing {
            identity.become_state(VolumeState::Erasing)?;
        }
        self.remove_files(&self.path(name)?, Some(identity))
    }

    /// Refuses a volume whose file or device a virtual machine or a loop device uses, past us.
    pub(crate) fn refuse_used(&self, name: &str, identity: &IdentityBlocks) -> Result<()> {
        // A device is claimed already, and cannot be opened twice.
        let disk = match identity.file().kind() {
            FileKind::Block => identity.file().clone(),
            FileKind::Regular => match self.fs.open(self.disk(name)?, OpenMode::write()) {
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
                opened => opened.map_err(io)?,
            },
        };
        match disk.other_user().map_err(io)? {
            None => Ok(()),
            Some(who) => Err(Error::new(Kind::Conflict, format!("{name}: in use: {who}"))),
        }
    }

    /// The identity goes last: until then it says that the rest is to go. What is on a device stays there, but is
    /// no volume any more.
    pub(crate) fn remove_files(
        &self,
        dir: &Path,
        mut identity: Option<IdentityBlocks>,
    ) -> Result<()> {
        for file in FILES {
            if file == DEVICE
                && let Some(on_device) =
                    identity.take_if(|identity| identity.file().kind() == FileKind::Block)
            {
                on_device.wipe()?;
            }
            match self.fs.remove_file(dir.join(file)) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(io(e)),
                _ => self.fs.sync_dir(dir).map_err(io)?,
            }
        }
        self.fs.remove_dir(dir).map_err(io)?;
        self.fs.sync_dir(&self.dir).map_err(io)
    }

    /// Removes what was being made or removed when the power went, also of bases, and bases that nobody shares any
    /// more. What is being [erased](Self::erase) stays, to be gone on with. What cannot be read is left, and its name returned with the reason. Nobody may make a volume
    /// meanwhile.
    pub fn tidy(&self) -> Result<Vec<(String, Error)>> {
        let mut left = self.tidy_volumes()?;
        left.extend(self.tidy_returned()?);
        left.extend(self.tidy_ready()?);
        left.extend(self.tidy_bases()?);
        Ok(left)
    }

    pub(crate) fn tidy_volumes(&self) -> Result<Vec<(String, Error)>> {
        let mut left = Vec::new();
        for name in self.names()? {
            if let Err(error) = self.tidy_one(&name) {
                left.push((name, error));
            }
        }
        Ok(left)
    }

    pub(crate) fn tidy_one(&self, name: &str) -> Result<()> {
        let dir = self.path(name)?;
        let taken = self.take_identity(name);
        let half_made = match &taken {
            Ok(identity) => match identity.get().state {
                VolumeState::Building => true,
                VolumeState::Erasing => !self.is_erased_by_steps(name)?,
                _ => false,
            },
            // It is the first file to be made and the last to go: without it, or before its first block was
            // durable, there is nothing of a volume.
            Err(e) if e.kind() == Kind::Gone => true,
            Err(e) if e.kind() == Kind::Corrupt => !self.fs.exists(dir.join(MAPS)).map_err(io)?,
            Err(e) if e.kind() == Kind::Conflict => false,
            Err(e) => return Err(e.clone()),
        };
        match half_made {
            true => self.remove_files(&dir, taken.ok()),
            false => Ok(()),
        }
    }
}

fn lock(file: &BlockFile, name: &str) -> Result<()> {
    match file.try_lock_exclusive().map_err(io)? {
        true => Ok(()),
        false => Err(Error::new(Kind::Conflict, format!("{name}: this volume is in use"))),
    }
}
