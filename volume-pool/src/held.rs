//! Images that are held: their bases stay, though no volume leans on them.
//!
//! An empty file in `.held/`, named by the image's digest, says so. It is there before the base is made, and goes before the
//! base does, so that whoever removes idle bases never takes one that is being filled to be held.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::PathBuf;

use image::{Digest, Kind, Result};

use crate::identity::VolumeState;
use crate::shelf::{DISK, Shelf, io};

const HELD: &str = ".held";

/// An image that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which.
    pub image: Digest,
    /// Bytes of its disk; 0 while there is no base.
    pub size: u64,
    /// All of it is there.
    pub whole: bool,
}

impl Shelf {
    fn held_dir(&self) -> PathBuf {
        self.dir.join(HELD)
    }

    /// From now on the base of an image stays. It lasts when this returns.
    ///
    /// # Errors
    ///
    /// Of the disk.
    pub fn hold(&self, image: &Digest) -> Result<()> {
        let dir = self.held_dir();
        self.fs.create_dir_all(&dir).map_err(io)?;
        self.fs.replace(dir.join(image.to_string()), b"").map_err(io)
    }

    /// The base of an image goes when no volume leans on it. What was not held is no error.
    ///
    /// # Errors
    ///
    /// Of the disk.
    pub fn let_go(&self, image: &Digest) -> Result<()> {
        let dir = self.held_dir();
        match self.fs.remove_file(dir.join(image.to_string())) {
            Ok(()) => self.fs.sync_dir(&dir).map_err(io),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(io(e)),
        }
    }

    /// The images that are held. What else lies there is nobody's.
    ///
    /// # Errors
    ///
    /// Of the disk.
    pub(crate) fn held_names(&self) -> Result<BTreeSet<Digest>> {
        match self.fs.list(self.held_dir()) {
            Ok(entries) => {
                let names = entries.iter().filter_map(|name| name.to_str()?.parse().ok());
                Ok(names.collect())
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(e) => Err(io(e)),
        }
    }

    /// The images that are held, and how much of each is there.
    ///
    /// # Errors
    ///
    /// Of the disk.
    pub fn held(&self) -> Result<Vec<Held>> {
        let bases = self.bases()?;
        let one = |image: Digest| match bases.identity(&image.to_string()) {
            Ok(identity) => {
                let whole = identity.plain
                    && identity.state == VolumeState::Ready
                    && self
                        .fs
                        .exists(bases.dir.join(image.to_string()).join(DISK))
                        .unwrap_or(false);
                let size = identity.base.map_or(identity.size, |base| base.size);
                Held { image, size, whole }
            }
            Err(error) => {
                if error.kind() != Kind::Gone {
                    tracing::warn!(%error, %image, "the base of an image that is held");
                }
                Held { image, size: 0, whole: false }
            }
        };
        Ok(self.held_names()?.into_iter().map(one).collect())
    }

    /// Whether an image is held, and all of it is there. What cannot be read is not.
    pub fn holds(&self, image: &Digest) -> bool {
        let held = self.held().unwrap_or_default();
        held.iter().any(|held| held.image == *image && held.whole)
    }
}

#[cfg(test)]
mod tests {
    use blockio::Fs;
    use blockio::fake::{CrashPlan, MemFs};
    use image::{Domain, Geometry, Manifest};

    use super::*;

    fn image() -> Manifest {
        Manifest::new(Domain(0), Geometry::new(5000 * 512, 512, 18).unwrap(), vec![Digest([7; 32])])
    }

    fn shelf(fs: Fs) -> Shelf {
        Shelf::open(fs, "/volumes".into()).unwrap()
    }

    #[test]
    fn a_base_that_is_held_stays_until_it_is_let_go_of() {
        let shelf = shelf(MemFs::new().fs());
        let digest = image().identity();
        assert!(shelf.held().unwrap().is_empty());
        shelf.let_go(&digest).unwrap();
        shelf.hold(&digest).unwrap();
        shelf.hold(&digest).unwrap();
        let nothing = Held { image: digest, size: 0, whole: false };
        assert_eq!(shelf.held().unwrap(), [nothing]);
        drop(shelf.take_base(&image(), 9).unwrap());
        shelf.remove_idle_bases().unwrap();
        assert_eq!(shelf.held().unwrap(), [Held { size: 5000 * 512, ..nothing }]);
        assert!(!shelf.holds(&digest), "nothing of it is there yet");
        shelf.let_go(&digest).unwrap();
        shelf.remove_idle_bases().unwrap();
        assert!(shelf.bases().unwrap().names().unwrap().is_empty());
        assert!(shelf.names().unwrap().is_empty(), "nobody takes it for a volume");
    }

    #[test]
    fn what_is_held_lasts_and_a_power_cut_loses_no_base() {
        let disk = MemFs::new();
        let (first, digest) = (shelf(disk.fs()), image().identity());
        first.hold(&digest).unwrap();
        disk.settle();
        drop(first.take_base(&image(), 1).unwrap());
        disk.settle();
        first.remove_idle_bases().unwrap();
        for cut in disk.crash_images(CrashPlan::default()) {
            let shelf = shelf(cut.fs());
            shelf.tidy().unwrap_or_else(|e| panic!("{cut}: {e}"));
            let held = shelf.held().unwrap();
            assert!(matches!(held[..], [Held { size: 2_560_000, .. }]), "{cut}: {held:?}");
        }
    }
}
