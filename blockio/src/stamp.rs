//! What tells whether a file was written to meanwhile, without reading it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use crate::{BlockFile, FileKind};

/// File systems of which this is relied on, by their numbers: ext4, XFS, btrfs, tmpfs, and overlays of these. Others are
/// somebody else's too (NFS), or keep times that are too coarse.
const RELIABLE: [u64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630];

/// Which file it is, how long, and when it was changed last. Each write sets that time when it begins; no program can set
/// it to what it was, and one that writes through a mapping sets it with its first write to a page after a sync. What lasts
/// of it when the power goes is another matter: stamps of different boots say nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Whether the file was changed last longer than this before `now`, which was read before the stamp was taken. Times
    /// of files are no finer than the ticks of a clock (10 ms at most): of one that was changed just now a write in the
    /// same tick would not be seen.
    pub fn is_older(&self, than: Duration, now: SystemTime) -> bool {
        let (seconds, nanoseconds) = self.changed;
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::new(seconds.max(0) as u64, nanoseconds.max(0) as u32);
        changed + than < now
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, inode, size, modified, changed } = self;
        write!(f, "{device} {inode} {size} {}.{:09}", modified.0, modified.1)?;
        write!(f, " {}.{:09}", changed.0, changed.1)
    }
}

impl BlockFile {
    /// Its stamp; nothing for a device, and where none is to be relied on.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn stamp(&self) -> io::Result<Option<Stamp>> {
        let regular = self.descriptor().filter(|_| self.kind() == FileKind::Regular);
        let Some(descriptor) = regular else { return Ok(None) };
        let of = rustix::fs::fstatfs(descriptor)?.f_type as u64 & 0xffff_ffff;
        let meta = File::from(descriptor.try_clone_to_owned()?).metadata()?;
        let stamp = Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        };
        // Whole seconds: old ext4 knows nothing finer.
        let is_fine = stamp.changed.1 != 0;
        Ok((RELIABLE.contains(&of) && is_fine).then_some(stamp))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_that_was_changed_in_the_last_tick_is_not_old() {
        let stamp =
            Stamp { device: 1, inode: 2, size: 3, modified: (9, 5), changed: (10, 900_000_000) };
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        let tick = Duration::from_millis(50);
        assert!(!stamp.is_older(tick, at(10_900)) && !stamp.is_older(tick, at(10_950)));
        assert!(stamp.is_older(tick, at(10_951)));
        // The clock was set back.
        assert!(!stamp.is_older(tick, at(10_000)));
        assert_eq!(stamp.to_string(), "1 2 3 9.000000005 10.900000000");
    }
}
