//! The image that a volume's changes count from: the one that it was made of, until it has been captured, and then the
//! one that the last capture made.
//!
//! ```text
//! DIR/NAME/since   "forebay volume captured 1", then the volume's id and the image's digest, a line each
//! ```
//! The note is made before the maps forget what the capture has: after a crash between the two more counts as
//! changed than has.

use std::io::ErrorKind;

use blockio::{BlockFile, OpenMode};
use image::{Digest, Result};

use crate::shelf::{ASIDE, SINCE, io};
use crate::{Identity, Shelf};

const HEAD: &str = "forebay volume captured 1";
/// Longest note that is read, in bytes.
const MOST: usize = 1 << 10;

/// What the changes of a volume count from: what has not changed is as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// A disk of zeros.
    Zeros,
    /// An image.
    Image(Digest),
    /// It was noted, and cannot be told any more.
    Unknown,
}

fn text(id: &[u8; 16], image: &Digest) -> String {
    let id = crate::ready::name_of(id);
    format!("{HEAD}\n{id}\n{image}\n")
}

fn parse(text: &str, id: &[u8; 16]) -> Option<Digest> {
    let image = text.lines().nth(2)?.parse().ok()?;
    (text == self::text(id, &image)).then_some(image)
}

impl Shelf {
    /// What the changes of a volume count from.
    pub fn since(&self, identity: &Identity) -> Result<Since> {
        let path = self.path(&identity.name)?.join(SINCE);
        let bytes = match self.fs.read(&path, MOST) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Ok(identity.base.map_or(Since::Zeros, |base| Since::Image(base.image)));
            }
            read => read.map_err(io)?,
        };
        let found = std::str::from_utf8(&bytes).ok().and_then(|text| parse(text, &identity.id));
        if found.is_none() {
            let path = path.display();
            tracing::error!("{path}: does not say what was captured: the next capture reads all");
        }
        Ok(found.map_or(Since::Unknown, Since::Image))
    }

    /// Notes that a capture has made an image of a volume. Durable when this returns.
    ///
    /// # Errors
    ///
    /// Of the disk; then the note is what it was, or made.
    pub fn note_since(&self, identity: &Identity, image: &Digest) -> Result<()> {
        let path = self.path(&identity.name)?.join(SINCE);
        self.fs.replace(path, text(&identity.id, image).as_bytes()).map_err(io)
    }

    /// A scratch file for what guests overwrite while a volume is captured. It is gone when nobody has it open.
    pub fn scratch(&self, name: &str) -> Result<BlockFile> {
        let path = self.path(name)?.join(ASIDE);
        let file = self.fs.open(&path, OpenMode::create()).map_err(io)?;
        self.fs.remove_file(&path).map_err(io)?;
        file.set_len(0).map_err(io)?;
        Ok(file)
    }
}
