//! The image record: what people say of an image. Signed, and outside the image's identity.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::FormatError;
use crate::signing::{Purpose, SigningKey, VerifyingKey};

/// What kind of image it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageKind {
    /// An operating system to install from.
    #[default]
    Os,
    /// An operating system with an application.
    Application,
    /// A disk as it was before its first start.
    AsDeployed,
    /// A disk as it was at some time.
    Snapshot,
}

/// A stretch of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// The first.
    pub start: u64,
    /// How many.
    pub len: u64,
}

/// What could not be read of the disk that an image was made of: zeros stand for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// How many bytes.
    pub bytes: u64,
    /// In how many stretches.
    pub stretches: u64,
    /// The first of them, in the order of the disk; at most [`MOST`](Unread::MOST).
    pub first: Vec<Stretch>,
}

impl Unread {
    /// Stretches that are told one by one.
    pub const MOST: usize = 256;

    /// Of all stretches, in the order of the disk and apart; `None` if there are none.
    pub fn of(all: impl IntoIterator<Item = Stretch>) -> Option<Self> {
        let mut unread = Self::default();
        for stretch in all {
            unread.bytes += stretch.len;
            unread.stretches += 1;
            if unread.first.len() < Self::MOST {
                unread.first.push(stretch);
            }
        }
        (unread.stretches > 0).then_some(unread)
    }
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = if self.stretches == 1 { "place" } else { "places" };
        write!(f, "{} bytes in {} {places}:", self.bytes, self.stretches)?;
        for (nth, Stretch { start, len }) in self.first.iter().enumerate() {
            let comma = if nth > 0 { "," } else { "" };
            write!(f, "{comma} {len} at {start}")?;
        }
        let more = self.stretches.saturating_sub(self.first.len() as u64);
        if more > 0 { write!(f, ", and {more} more") } else { Ok(()) }
    }
}

/// What was verified of an image when it came into the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Who did it: `receiver`.
    pub by: String,
    /// When, in seconds since 1970.
    pub at: u64,
    /// Sections that are not zeros: each with all of its chunks.
    pub sections: u64,
    /// Chunks that came: their bytes were compared with their digests, and read back from the store.
    pub chunks: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Chunks that the store had: taken over from the parent, an earlier push or another image, where the same was
    /// done when they came.
    pub taken_over: u64,
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { by, sections, chunks, bytes, taken_over, .. } = self;
        write!(
            f,
            "by the {by}: {sections} sections; {chunks} chunks ({bytes} bytes stored) compared and read back, \
             {taken_over} taken over"
        )
    }
}

/// What people say of an image. Version 1; a reader ignores fields it does not know, and keeps the
/// signed text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Version of this record's format.
    pub version: u32,
    /// The image.
    pub image: Digest,
    /// The image it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Digest>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When this was said of it, in seconds since 1970, if that was later. Of several records the
    /// last one said counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revised: Option<u64>,
    /// What kind of image it is.
    #[serde(default)]
    pub kind: ImageKind,
    /// Operating system, e.g. `debian 12`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// CPU architecture, e.g. `x86_64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// `bios` or `uefi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    /// CPUs that it wants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory that it wants, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Network interfaces that it wants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<u32>,
    /// Hypervisor that it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<String>,
    /// Anything else.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What could not be read of the disk that it was made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<Unread>,
    /// What was verified when it came. Not said by people: placement asks the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
}

impl ImageRecord {
    /// The version that this program writes.
    pub const VERSION: u32 = 1;

    /// A record that says nothing but which image, and when.
    pub fn new(image: Digest, created: u64) -> Self {
        Self {
            version: Self::VERSION,
            image,
            parent: None,
            created,
            revised: None,
            kind: ImageKind::default(),
            os: None,
            architecture: None,
            firmware: None,
            cpus: None,
            memory_mib: None,
            nics: None,
            hypervisor: None,
            labels: BTreeMap::new(),
            unread: None,
            verified: None,
        }
    }

    /// When this was said, in seconds since 1970.
    pub fn said(&self) -> u64 {
        self.revised.unwrap_or(self.created)
    }

    /// The signed text: what is stored.
    pub fn sign(&self, key: &SigningKey) -> String {
        key.sign(Purpose::Record, self)
    }

    /// Checks a signed record, and that it is about `image`.
    pub fn open(token: &str, key: &VerifyingKey, image: &Digest) -> Result<Self, FormatError> {
        const WHAT: &str = "image record";
        let record: Self = key.open(Purpose::Record, token)?;
        if record.version != Self::VERSION {
            let found = u16::try_from(record.version).unwrap_or(u16::MAX);
            return Err(FormatError::Version { what: WHAT, found, known: Self::VERSION as u16 });
        }
        if record.image != *image {
            return Err(FormatError::Mismatch { what: WHAT, which: "image" });
        }
        Ok(record)
    }
}
