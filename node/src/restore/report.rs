//! What came of a restore, as it is printed and kept.

use image::{Digest, Error, Kind, Result};
use serde::{Deserialize, Serialize};

/// What is known of a part of a disk after its check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Verdict {
    /// It was looked at, and nothing was found.
    Clean,
    /// It was in use when its image was made. What a machine does at its start (replaying a journal) was done on the
    /// scratch copy, and nothing was found after that.
    Recovered {
        /// What was done.
        done: String,
        /// Whether nothing was found before that either.
        clean_before: bool,
    },
    /// Something is wrong with it.
    Damaged {
        /// What.
        said: String,
    },
    /// Nothing is known of it.
    NotChecked {
        /// Why not.
        why: String,
    },
    /// There is nothing that could be checked.
    Nothing {
        /// What there is instead.
        what: String,
    },
}

impl Verdict {
    /// Nothing is known, and why.
    pub fn not_checked(why: impl Into<String>) -> Self {
        Self::NotChecked { why: why.into() }
    }

    /// Something is wrong.
    pub fn damaged(said: impl Into<String>) -> Self {
        Self::Damaged { said: said.into() }
    }

    /// Whether it was found to be good.
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Clean | Self::Recovered { .. })
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Clean => f.write_str("clean"),
            Self::Recovered { done, clean_before: true } => {
                write!(f, "clean; and clean after {done}")
            }
            Self::Recovered { done, clean_before: false } => {
                write!(f, "was in use: not clean before {done}, clean after that")
            }
            Self::Damaged { said } => write!(f, "DAMAGED: {said}"),
            Self::NotChecked { why } => write!(f, "NOT CHECKED: {why}"),
            Self::Nothing { what } => write!(f, "nothing to check: {what}"),
        }
    }
}

/// A part of a disk: its partition table, a partition, or all of a disk without partitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Number of the partition, from 1; none for the table and for the whole disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// Where it begins on the disk, in bytes.
    pub start: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// What it holds.
    pub holds: String,
    /// The program that checked it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// What came of it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// How long that took, in milliseconds.
    pub millis: u64,
}

/// How a machine started on the scratch copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Until the marker stood on the serial console, or until it was given up; in milliseconds.
    pub millis: u64,
    /// What ran it: `kvm` or `tcg`.
    pub accelerator: String,
    /// `bios` or `uefi`.
    pub firmware: String,
    /// Why it does not count as started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// The last lines of the console, of one that failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub console: Vec<String>,
}

/// What came of restoring an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// By what name it was asked for.
    pub name: String,
    /// The image.
    pub image: Digest,
    /// Disk size in bytes.
    pub size: u64,
    /// Bytes of it that are not zeros, each of them verified.
    pub data: u64,
    /// Bytes that came over the network.
    pub received: u64,
    /// How long the pull took until the disk had it durably, in milliseconds.
    pub pull_millis: u64,
    /// What lies on the disk.
    pub parts: Vec<Part>,
    /// How a machine started on it, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
    /// Why none was started on it, though that was asked for: its architecture, what is missing here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_booted: Option<String>,
}

impl Restored {
    /// Bytes that are not zeros, restored in a second.
    pub fn rate(&self) -> u64 {
        self.data.saturating_mul(1000) / self.pull_millis.max(1)
    }

    /// Parts of which something is wrong.
    pub fn damaged(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(|part| matches!(part.verdict, Verdict::Damaged { .. }))
    }

    /// Parts of which nothing is known.
    pub fn not_checked(&self) -> usize {
        let unknown = |part: &&Part| matches!(part.verdict, Verdict::NotChecked { .. });
        self.parts.iter().filter(unknown).count()
    }

    /// Parts that were found to be good.
    pub fn good(&self) -> usize {
        self.parts.iter().filter(|part| part.verdict.is_good()).count()
    }

    /// Nothing if nothing is wrong.
    ///
    /// # Errors
    ///
    /// [`Kind::Corrupt`], naming the first part that is damaged, or why the machine did not start.
    pub fn passed(&self) -> Result<()> {
        if let Some(part) = self.damaged().next() {
            let what = match part.number {
                Some(number) => format!("partition {number} ({})", part.holds),
                None => part.holds.clone(),
            };
            let text = format!("{}: {what}: {}", self.name, part.verdict);
            return Err(Error::new(Kind::Corrupt, text));
        }
        match self.boot.as_ref().and_then(|boot| boot.failed.as_ref()) {
            Some(why) => Err(Error::new(Kind::Corrupt, format!("{}: {why}", self.name))),
            None => Ok(()),
        }
    }
}

/// Why an image was not restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind of the error.
    pub kind: String,
    /// What it says.
    pub message: String,
}

/// A restore that was tried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsal {
    /// When it began, in seconds since 1970.
    pub at: u64,
    /// The name that was drawn.
    pub name: String,
    /// The image that it named.
    pub image: Digest,
    /// What came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
    /// Or why nothing did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

impl Rehearsal {
    /// Whether the image was restored, and nothing is wrong with it.
    pub fn passed(&self) -> bool {
        self.restored.as_ref().is_some_and(|restored| restored.passed().is_ok())
    }
}
