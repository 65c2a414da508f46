//! A note that a file system on a volume was whole, and that its own tool has begun to extend it since. What the tool
//! leaves when it is ended midway is then mended by rules that are not for a file system that was found damaged.

use std::io::ErrorKind;

use blockio::OpenMode;
use image::Result;

use crate::Shelf;
use crate::shelf::{EXTENDING, io};

impl Shelf {
    /// Whether there is such a note.
    pub fn is_extending(&self, name: &str) -> Result<bool> {
        self.fs.exists(self.path(name)?.join(EXTENDING)).map_err(io)
    }

    /// Makes the note; it is durable when this returns.
    pub fn note_extending(&self, name: &str) -> Result<()> {
        let dir = self.path(name)?;
        match self.fs.open(dir.join(EXTENDING), OpenMode::create_new()) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(io(e)),
            _ => {}
        }
        self.fs.sync_dir(&dir).map_err(io)
    }

    /// Takes the note away: the tool has ended well, or somebody else may have written since.
    pub fn forget_extending(&self, name: &str) -> Result<()> {
        let dir = self.path(name)?;
        match self.fs.remove_file(dir.join(EXTENDING)) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| self.fs.sync_dir(&dir)).map_err(io),
        }
    }
}

#[cfg(test)]
mod tests {
    use blockio::fake::{CrashPlan, MemFs};
    use image::Geometry;

    use super::*;
    use crate::NewVolume;

    #[test]
    fn the_note_lasts_and_goes_with_its_volume() {
        let disk = MemFs::new();
        let shelf = |disk: &MemFs| Shelf::open(disk.fs(), "/v".into()).unwrap();
        let geometry = Geometry::new(1 << 20, 512, 14).unwrap();
        let (image, device) = (None, None);
        let (name, id) = ("a".to_owned(), [3; 16]);
        let new = NewVolume { name, id, geometry, image, shares: false, device, created: 0 };
        shelf(&disk).create(&new).unwrap();
        disk.settle();
        for _ in 0..2 {
            shelf(&disk).note_extending("a").unwrap();
        }
        disk.mark("noted");
        for image in disk.crash_images(CrashPlan::default()) {
            let noted = shelf(image.disk()).is_extending("a").unwrap();
            assert!(noted || !image.reached("noted"), "{image}");
        }
        for _ in 0..2 {
            shelf(&disk).forget_extending("a").unwrap();
        }
        assert!(!shelf(&disk).is_extending("a").unwrap());
        shelf(&disk).note_extending("a").unwrap();
        shelf(&disk).remove("a").unwrap();
        assert!(shelf(&disk).names().unwrap().is_empty());
    }
}
