//! Volumes on whole block devices.
//!
//! ```text
//! device      | bytes of the volume … | of no use | identity: two blocks, in the last 4096 bytes |
//! DIR/NAME/device   "forebay volume on a device 1", then its id and the device's path, a line each
//! ```
//! The identity lies on the device alone, so that it says what it is wherever it is found. What was on the device
//! before is never seen: what lies behind the image is made zeros before the volume is anybody's, and the
//! rest as it arrives.

use std::path::{Path, PathBuf};

use blockio::{BlockFile, FileKind, Fs, OpenMode};
use image::{Error, Kind, Result};

use crate::identity::{Identity, IdentityBlocks};
use crate::shelf::{DEVICE, DISK, IDENTITY, io};
use crate::size::shown;

const HEAD: &str = "forebay volume on a device 1";
/// Longest note that is read, in bytes.
const MOST: usize = 8 << 10;
/// Bytes at the end of a device that its volume has not.
pub const DEVICE_TAIL: u64 = 4096;

/// Where a volume lies that is not in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OnDevice {
    pub(crate) id: [u8; 16],
    pub(crate) path: PathBuf,
}

impl OnDevice {
    fn text(&self) -> Result<String> {
        let path = self.path.to_str().filter(|p| p.starts_with('/') && !p.contains('\n'));
        let what = || format!("{}: a device is named by its whole path", self.path.display());
        let path = path.ok_or_else(|| Error::new(Kind::Invalid, what()))?;
        let id: String = self.id.iter().map(|b| format!("{b:02x}")).collect();
        Ok(format!("{HEAD}\n{id}\n{path}\n"))
    }

    /// Notes it, durably but for its name.
    pub(crate) fn write(&self, fs: &Fs, note: &Path) -> Result<()> {
        let text = self.text()?;
        let file = fs.open(note, OpenMode::create_new()).map_err(io)?;
        file.write_all_at(text.as_bytes(), 0).map_err(io)?;
        file.sync_data().map_err(io)
    }

    /// What was noted; nothing of a volume that lies in a file.
    pub(crate) fn read(fs: &Fs, note: &Path) -> Result<Option<Self>> {
        let bytes = match fs.read(note, MOST) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(io)?,
        };
        let what = || format!("{}: does not say where the volume lies", note.display());
        let parsed = std::str::from_utf8(&bytes).ok().and_then(Self::parse);
        parsed.map(Some).ok_or_else(|| Error::new(Kind::Corrupt, what()))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        let (head, id, path) = (lines.next()?, lines.next()?, lines.next()?);
        let digits = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
        if head != HEAD || !digits || !path.starts_with('/') || lines.next().is_some() {
            return None;
        }
        let id = u128::from_str_radix(id, 16).ok()?.to_be_bytes();
        Some(Self { id, path: path.into() })
    }

    /// What the device says of itself, if that is this volume.
    ///
    /// # Errors
    ///
    /// [`Kind::Corrupt`] if it says something else, or nothing.
    pub(crate) fn identity(&self, device: BlockFile) -> Result<IdentityBlocks> {
        let at = place(&device)?;
        let blocks = IdentityBlocks::open(device, at)?;
        if blocks.get().id == self.id {
            return Ok(blocks);
        }
        let (path, other) = (self.path.display(), &blocks.get().name);
        Err(Error::new(Kind::Corrupt, format!("{path}: holds another volume now, {other}")))
    }
}

/// Where the identity lies on a device.
pub(crate) fn place(device: &BlockFile) -> Result<u64> {
    let size = device.size().map_err(io)?;
    let at = (size - size % DEVICE_TAIL).checked_sub(DEVICE_TAIL);
    let what = || format!("{}: no room for a volume in {}", device.path().display(), shown(size));
    at.ok_or_else(|| Error::new(Kind::Invalid, what()))
}

/// Opens a device for a new volume of so many bytes.
///
/// # Errors
///
/// [`Kind::Invalid`] if it is none, or too small; [`Kind::Conflict`] if there is a volume on it.
pub(crate) fn claim(fs: &Fs, path: &Path, size: u64) -> Result<BlockFile> {
    let device = fs.open(path, OpenMode::write()).map_err(io)?;
    let refuse = |kind, what: String| Err(Error::new(kind, format!("{}: {what}", path.display())));
    if device.kind() != FileKind::Block {
        return refuse(Kind::Invalid, "not a block device".into());
    }
    let room = place(&device)?;
    if size > room {
        let (room, size) = (shown(room), shown(size));
        return refuse(Kind::Invalid, format!("has room for {room}, and the volume needs {size}"));
    }
    if !device.try_lock_exclusive().map_err(io)? {
        return refuse(Kind::Conflict, "this device is in use".into());
    }
    match IdentityBlocks::open(device.clone(), room) {
        Err(error) if error.kind() == Kind::Corrupt => Ok(device),
        Err(error) => Err(error),
        Ok(found) => {
            let Identity { name, id, .. } = found.get();
            let id: String = id.iter().map(|b| format!("{b:02x}")).collect();
            refuse(Kind::Conflict, format!("holds the volume {name} ({id}): remove that first"))
        }
    }
}

/// What a device, or a copy of one, or a volume's directory says of itself.
///
/// # Errors
///
/// [`Kind::Corrupt`] if it is no volume.
pub fn identify(fs: &Fs, path: &Path) -> Result<Identity> {
    let (inside, note) = (path.join(IDENTITY), path.join(DEVICE));
    if fs.exists(&inside).is_ok_and(|it_is| it_is) {
        let file = fs.open(inside, OpenMode::read()).map_err(io)?;
        return Ok(IdentityBlocks::open(file, 0)?.get().clone());
    }
    if fs.exists(&note).is_ok_and(|it_is| it_is)
        && let Some(on) = OnDevice::read(fs, &note)?
    {
        let device = fs.open(&on.path, OpenMode::read()).map_err(io)?;
        return Ok(on.identity(device)?.get().clone());
    }
    // The error names the path.
    let said = |e: std::io::Error| {
        let kind = Error::io("", e.kind().into()).kind();
        Error::caused(kind, e.to_string(), e)
    };
    let file = fs.open(path, OpenMode::read()).map_err(said)?;
    let blocks = place(&file).and_then(|at| IdentityBlocks::open(file, at));
    let found = blocks.map_err(|e| match e.kind() {
        Kind::Corrupt | Kind::Invalid => {
            let what = format!("{e}: identify a volume's directory, or the device that it lies on");
            Error::caused(Kind::Corrupt, what, e)
        }
        _ => e,
    });
    Ok(found?.get().clone())
}

/// Where the bytes are of what was found by [`identify`] at `path`.
pub fn disk_at(fs: &Fs, path: &Path) -> PathBuf {
    let is_there = |path: &Path| fs.exists(path).is_ok_and(|it_is| it_is);
    match OnDevice::read(fs, &path.join(DEVICE)) {
        Ok(Some(on)) => on.path,
        _ if is_there(&path.join(IDENTITY)) => path.join(DISK),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use blockio::fake::{CrashPlan, MemFs};
    use image::{Digest, Domain, Geometry, Manifest};

    use super::*;
    use crate::{NewVolume, Shelf, VolumeState};

    const SIZE: u64 = 1 << 20;

    fn disk() -> MemFs {
        let disk = MemFs::new();
        disk.add_device("/device", SIZE + 8000).unwrap();
        let device = disk.fs().open("/device", OpenMode::write()).unwrap();
        device.write_all_at(&[0xee; SIZE as usize + 8000], 0).unwrap();
        disk.settle();
        disk
    }

    fn shelf(fs: Fs) -> Shelf {
        Shelf::open(fs, "/volumes".into()).unwrap()
    }

    fn new(name: &str, id: u8) -> NewVolume {
        let geometry = Geometry::new(300 << 10, 512, 16).unwrap();
        let image = Manifest::new(Domain(0), geometry, vec![Digest([7; 32])]);
        NewVolume {
            name: name.into(),
            id: [id; 16],
            geometry: Geometry::new(SIZE, 512, 16).unwrap(),
            image: Some(image.into()),
            shares: true,
            device: Some("/device".into()),
            created: 0,
        }
    }

    #[test]
    fn a_device_says_whose_it_is_and_holds_one_volume() {
        let fs = disk().fs();
        let there = shelf(fs.clone());
        there.create(&new("a", 1)).unwrap();
        assert_eq!(there.disk("a").unwrap(), Path::new("/device"));
        // Also to who knows nothing of the shelf, and from a copy of it in a file.
        let identity = identify(&fs, Path::new("/device")).unwrap();
        assert_eq!((identity.name.as_str(), identity.id, identity.shares), ("a", [1; 16], false));
        assert_eq!(identify(&fs, Path::new("/volumes/a")).unwrap(), identity);
        assert_eq!(there.create(&new("b", 2)).unwrap_err().kind(), Kind::Conflict);
        assert!(there.identity("b").is_err());
        // What was there before is zeros behind the image, and nowhere else yet.
        let taken = there.take("a").unwrap();
        assert_eq!(there.take("a").unwrap_err().kind(), Kind::Conflict);
        let mut bytes = vec![0; SIZE as usize];
        taken.data.read_exact_at(&mut bytes, 0).unwrap();
        let (image, behind) = bytes.split_at(300 << 10);
        assert!(image.iter().all(|b| *b == 0xee) && behind.iter().all(|b| *b == 0));
        drop(taken);
        there.remove("a").unwrap();
        assert_eq!(identify(&fs, Path::new("/device")).unwrap_err().kind(), Kind::Corrupt);
        there.create(&new("b", 2)).unwrap();
        // Another volume on the device is not taken for the one that was there.
        let (_, other) = (there.take("b").unwrap(), shelf_of_another(&fs));
        assert_eq!(other.identity("a").unwrap_err().kind(), Kind::Corrupt);
    }

    /// A shelf that still believes that the device is its volume's.
    fn shelf_of_another(fs: &Fs) -> Shelf {
        fs.create_dir_all("/other/a").unwrap();
        let on = OnDevice { id: [1; 16], path: "/device".into() };
        on.write(fs, Path::new("/other/a/device")).unwrap();
        Shelf::open(fs.clone(), "/other".into()).unwrap()
    }

    #[test]
    fn what_is_no_device_or_too_small_is_refused() {
        let fs = disk().fs();
        let shelf = shelf(fs.clone());
        let mut large = new("a", 1);
        large.geometry = Geometry::new(SIZE + 4096, 512, 16).unwrap();
        assert_eq!(shelf.create(&large).unwrap_err().kind(), Kind::Invalid);
        fs.open("/file", OpenMode::create_new()).unwrap().set_len(2 * SIZE).unwrap();
        let file = NewVolume { device: Some("/file".into()), ..new("a", 1) };
        assert_eq!(shelf.create(&file).unwrap_err().kind(), Kind::Invalid);
        assert!(shelf.names().unwrap().is_empty(), "nothing is left");
    }

    #[test]
    fn a_device_that_is_away_takes_no_volume_with_it() {
        let fs = MemFs::new().fs();
        let shelf = shelf_of_another(&fs);
        fs.open("/other/a/maps", OpenMode::create_new()).unwrap();
        assert_eq!(shelf.tidy().unwrap().len(), 1);
        assert!(fs.exists("/other/a/maps").unwrap());
    }

    #[test]
    fn a_power_cut_leaves_a_volume_or_none() {
        let disk = disk();
        let first = shelf(disk.fs());
        first.create(&new("a", 1)).unwrap();
        disk.mark("made");
        first.remove("a").unwrap();
        disk.mark("removed");
        for cut in disk.crash_images(CrashPlan::default()) {
            let shelf = shelf(cut.fs());
            let left = shelf.tidy().unwrap_or_else(|e| panic!("{cut}: {e}"));
            assert!(left.is_empty(), "{cut}: {left:?}");
            let on_device = identify(&cut.fs(), Path::new("/device"));
            match shelf.identity("a") {
                Ok(identity) => {
                    use VolumeState::{Allocated, Ready};
                    let made = [Ready, Allocated].contains(&identity.state);
                    assert!(made, "{cut}: {:?}", identity.state);
                    assert_eq!(on_device.unwrap(), identity, "{cut}");
                    assert!(!cut.reached("removed"), "{cut}");
                }
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Gone, "{cut}");
                    assert!(on_device.is_err(), "{cut}: it says that it is a volume");
                    shelf.create(&new("b", 2)).unwrap_or_else(|e| panic!("{cut}: {e}"));
                }
            }
        }
    }

    #[test]
    fn golden() {
        let on = OnDevice { id: [0xab; 16], path: "/dev/vg/a b".into() };
        let text = format!("forebay volume on a device 1\n{}\n/dev/vg/a b\n", "ab".repeat(16));
        assert_eq!(on.text().unwrap(), text, "version bump required");
        assert_eq!(OnDevice::parse(&text), Some(on));
        for bad in
            ["", &text[..text.len() - 1], &text.replace("device 1", "device 2"), &text.repeat(2)]
        {
            assert_eq!(OnDevice::parse(bad), None, "{bad:?}");
        }
    }
}
