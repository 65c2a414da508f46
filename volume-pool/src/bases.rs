//! Bases: what the volumes of one image share on a node.
//!
//! A base is a volume like any other, in a directory of its own beside the volumes, named by its image's digest.
//! It stays [`Ready`](VolumeState::Ready), so that no guest can write to it; whoever serves volumes fills it
//! once for all of them. See [`Volume::lean_on`](crate::Volume::lean_on) for how a volume uses it. Nothing that a
//! volume writes down leans on a base: one that is lost is made and filled anew.

use std::collections::BTreeSet;
use std::sync::Arc;

use blockio::OpenMode;
use image::{Error, Geometry, Kind, Manifest, Result};

use crate::identity::VolumeState;
use crate::shelf::{NewVolume, Shelf, io};
use crate::volume::Files;

const IMAGES: &str = ".images";
/// Scratch files: neither is the name of a volume.
const PROBES: [&str; 2] = [".probe", ".probe-of-it"];

impl Shelf {
    /// The bases, as volumes of their own.
    pub(crate) fn bases(&self) -> Result<Self> {
        Self::open(self.fs.clone(), self.dir.join(IMAGES))
    }

    /// Opens the base of an image to use it, and makes it if there is none; nobody else can until its files are
    /// dropped. `now` is in seconds since 1970.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if somebody uses it.
    pub fn take_base(&self, image: &Manifest, now: u64) -> Result<Files> {
        let (bases, name) = (self.bases()?, image.identity().to_string());
        match bases.take(&name) {
            Ok(files) if files.identity.get().state == VolumeState::Ready => return Ok(files),
            // It was on its way out.
            Ok(files) => {
                drop(files);
                bases.remove(&name)?;
            }
            Err(error) if error.kind() == Kind::Gone => {}
            // All that was in it can be had again.
            Err(error) if error.kind() == Kind::Corrupt => {
                tracing::warn!(%error, name, "the base of an image is made anew");
                bases.remove_files(&bases.path(&name)?, None)?;
            }
            Err(error) => return Err(error),
        }
        let geometry = image.geometry();
        // Every chunk is whole, so that a volume finds in it whatever chunk it has not got.
        let size = geometry.size().next_multiple_of(1 << geometry.chunk_log2());
        let new = NewVolume {
            id: name.as_bytes()[..16].try_into().expect("a digest has 64 digits"),
            geometry: Geometry::new(size, 512, geometry.chunk_log2())?,
            image: Some(Arc::new(image.clone())),
            shares: false,
            device: None,
            created: now,
            name,
        };
        bases.create_as(VolumeState::Ready, &new)?;
        bases.take(&new.name)
    }

    /// Removes the bases of which no volume, nor a ready one, is left that shares them, and that are not
    /// [held](Self::hold). One that is in use stays.
    pub fn remove_idle_bases(&self) -> Result<()> {
        let bases = self.bases()?;
        let mut named: BTreeSet<String> =
            self.held_names()?.iter().map(ToString::to_string).collect();
        let ready = self.ready()?;
        let people = self.names()?.into_iter().map(|name| (self, name));
        let nobody = ready.names()?.into_iter().map(|name| (&ready, name));
        for (shelf, name) in people.chain(nobody) {
            match shelf.identity(&name) {
                Ok(identity) if !identity.shares => {}
                Ok(identity) => named.extend(identity.base.map(|base| base.image.to_string())),
                Err(error) if error.kind() == Kind::Gone => {}
                Err(error) => {
                    tracing::warn!(%error, name, "all bases stay: who knows which it shares");
                    return Ok(());
                }
            }
        }
        for name in bases.names()?.into_iter().filter(|name| !named.contains(name)) {
            match bases.remove(&name) {
                Err(error) if !matches!(error.kind(), Kind::Conflict | Kind::Gone) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The same of what a crash has left half made or half gone. Only while nobody makes one.
    pub(crate) fn tidy_bases(&self) -> Result<Vec<(String, Error)>> {
        let left = self.bases()?.tidy_volumes()?;
        self.remove_idle_bases()?;
        Ok(left)
    }

    /// Whether files in this directory can share their blocks; then a volume takes over what its base has at the
    /// cost of metadata.
    ///
    /// # Errors
    ///
    /// Of the disk.
    pub fn can_reflink(&self) -> Result<bool> {
        let paths = PROBES.map(|name| self.dir.join(name));
        let probe = || {
            let [file, copy] = &paths;
            let file = self.fs.open(file, OpenMode::create())?;
            file.write_all_at(&[1; 4096], 0)?;
            self.fs.open(copy, OpenMode::create())?.reflink_from(&file)
        };
        let cloned = probe();
        for path in &paths {
            // Of no use to anybody if it stays.
            let _ = self.fs.remove_file(path);
        }
        match cloned {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(false),
            Err(error) => Err(io(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use blockio::Fs;
    use blockio::fake::{CrashPlan, MemFs};
    use image::{Digest, Domain};

    use super::*;

    fn image() -> Manifest {
        Manifest::new(Domain(0), Geometry::new(5000 * 512, 512, 18).unwrap(), vec![Digest([7; 32])])
    }

    fn shelf(fs: Fs) -> Shelf {
        Shelf::open(fs, "/volumes".into()).unwrap()
    }

    fn create(shelf: &Shelf, name: &str, shares: bool) {
        let image = Arc::new(image());
        let (id, geometry) = ([1; 16], *image.geometry());
        let (name, image) = (name.into(), Some(image));
        let new = NewVolume { name, id, geometry, image, shares, device: None, created: 0 };
        shelf.create(&new).unwrap();
    }

    #[test]
    fn a_base_is_made_once_and_stays_while_somebody_may_need_it() {
        let shelf = shelf(MemFs::new().fs());
        create(&shelf, "a", true);
        create(&shelf, "b", true);
        create(&shelf, "c", false);
        let files = shelf.take_base(&image(), 9).unwrap();
        let identity = files.identity.get().clone();
        assert_eq!((identity.state, identity.size), (VolumeState::Ready, 10 << 18));
        assert_eq!(identity.base.unwrap().image, image().identity());
        assert_eq!(shelf.take_base(&image(), 9).unwrap_err().kind(), Kind::Conflict);
        assert_eq!(shelf.names().unwrap(), ["a", "b", "c"]);
        let there = || shelf.bases().unwrap().names().unwrap().len();
        // Of a volume that is gone while another uses it.
        shelf.remove("a").unwrap();
        shelf.remove_idle_bases().unwrap();
        assert_eq!(there(), 1);
        shelf.remove("b").unwrap();
        shelf.remove_idle_bases().unwrap();
        assert_eq!(there(), 1, "it is in use");
        drop(files);
        shelf.remove_idle_bases().unwrap();
        assert_eq!(there(), 0);
        assert_eq!(shelf.take_base(&image(), 10).unwrap().identity.get().created, 10);
    }

    #[test]
    fn a_base_that_a_power_cut_left_half_made_or_half_gone_is_made_anew() {
        let disk = MemFs::new();
        let first = shelf(disk.fs());
        create(&first, "a", true);
        disk.settle();
        drop(first.take_base(&image(), 1).unwrap());
        first.bases().unwrap().remove(&image().identity().to_string()).unwrap();
        for cut in disk.crash_images(CrashPlan::default()) {
            let shelf = shelf(cut.fs());
            shelf.tidy().unwrap_or_else(|e| panic!("{cut}: {e}"));
            let files = shelf.take_base(&image(), 2).unwrap_or_else(|e| panic!("{cut}: {e}"));
            assert_eq!(files.data.size().unwrap(), 10 << 18, "{cut}");
        }
    }

    #[test]
    fn a_base_that_cannot_be_read_is_made_anew() {
        let fs = MemFs::new().fs();
        let shelf = shelf(fs.clone());
        create(&shelf, "a", true);
        for file in ["identity", "manifest"] {
            drop(shelf.take_base(&image(), 1).unwrap());
            let dir = shelf.dir.join(IMAGES).join(image().identity().to_string());
            let file = fs.open(dir.join(file), OpenMode::write()).unwrap();
            file.write_all_at(&[0xff; 1024], 0).unwrap();
            drop(file);
            let files = shelf.take_base(&image(), 2).unwrap();
            assert_eq!(files.identity.get().created, 2);
            drop(files);
            let bases = shelf.bases().unwrap();
            bases.remove(&image().identity().to_string()).unwrap();
        }
    }

    #[test]
    fn whether_blocks_can_be_shared_is_found_out_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for shelf in [shelf(MemFs::new().fs()), Shelf::open(Fs::os(), dir.path().into()).unwrap()] {
            shelf.can_reflink().unwrap();
            assert!(shelf.fs.list(&shelf.dir).unwrap().is_empty());
        }
    }
}
