//! Pins that outlive the process: written and read by the one who holds the directory.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use image::error::At;
use image::{Digest, Error, Kind, Result};

use crate::disk::DiskState;
use crate::disk::pin_file::{MAX_LEN, PinFile, file_name, is_foreign, parse_name};
use crate::disk::queue::NewPin;
use crate::disk::writer::LogWriter;
use crate::human::bytes;

impl LogWriter {
    /// Takes up the pins that are there. A damaged one is said and ignored: its image is then not
    /// pinned; one of a newer version is left alone.
    pub(super) fn load_pins(&mut self, names: &[OsString]) {
        for name in names.iter().filter_map(|name| name.to_str()) {
            if name.strip_suffix(".new").is_some_and(|name| parse_name(name).is_some()) {
                // Of a pin that was not made. If it stays it does no harm.
                let _ = self.outside.fs.remove_file(self.limits.dir.join(name));
            }
            if let Some(image) = parse_name(name) {
                self.load_pin(&image);
            }
        }
    }

    fn load_pin(&self, image: &Digest) {
        let path = self.pin_path(image);
        let pin = match self.outside.fs.read(&path, MAX_LEN) {
            Ok(bytes) => PinFile::parse(&bytes, image).map_err(Error::from),
            Err(error) => Err(Error::io("pin", error)),
        };
        match pin {
            Ok(pin) => {
                if !self.disk.pins().restore(*image, pin.domain, &pin.chunks) {
                    let limit = bytes(self.disk.pins().limit());
                    self.disk.health().warn(format!(
                        "pinned images take more than the {limit} that they may: unpin one, \
                         or give the cache a larger disk budget"
                    ));
                }
            }
            Err(error) => {
                let path = path.display();
                tracing::error!(%path, %error, "cache: a pin cannot be read: pin the image again");
            }
        }
    }

    /// Makes a pin last, and with that makes it; nothing is left of it if it was given up.
    pub(super) fn save_pin(&mut self, pin: &NewPin) -> Result<()> {
        let NewPin { number, file } = pin;
        self.check_on()?;
        self.check_ours(&file.image)?;
        let path = self.pin_path(&file.image);
        let saved = self.outside.fs.replace(&path, &file.to_bytes());
        saved.map_err(|error| Error::io("pin", error))?;
        if !self.disk.pins().commit(&file.image, *number) {
            self.remove_pin(&file.image)?;
        }
        Ok(())
    }

    /// Takes back a pin when its file cannot come back any more.
    pub(super) fn remove_pin(&mut self, image: &Digest) -> Result<()> {
        self.check_on()?;
        self.check_ours(image)?;
        let removed = match self.outside.fs.remove_file(self.pin_path(image)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        let removed = removed.and_then(|()| self.outside.fs.sync_dir(&self.limits.dir));
        removed.map_err(|error| Error::io("unpin", error))?;
        self.disk.pins().remove(image);
        Ok(())
    }

    fn check_on(&self) -> Result<()> {
        match self.disk.state() {
            DiskState::Off(why) => {
                Err(Error::new(Kind::Io, format!("the disk tier is off: {why}")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses to touch a file that another program, or a newer version of this one, made.
    fn check_ours(&self, image: &Digest) -> Result<()> {
        let path = self.pin_path(image);
        let Ok(bytes) = self.outside.fs.read(&path, MAX_LEN) else { return Ok(()) };
        match PinFile::parse(&bytes, image) {
            Err(error) if is_foreign(&error) => {
                Err(error).at(|| format!("{} is not ours: move it away", path.display()))
            }
            _ => Ok(()),
        }
    }

    fn pin_path(&self, image: &Digest) -> PathBuf {
        self.limits.dir.join(file_name(image))
    }
}
