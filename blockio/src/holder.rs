//! Who has the lock of a file, by what the system tells of all locks.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The process that has the [lock](crate::BlockFile::try_lock_exclusive) of the file at a path, if that is known: not
/// where file systems number their files otherwise than they say, nor for a process of another namespace.
pub fn lock_holder(path: &Path) -> Option<u32> {
    let of = std::fs::metadata(path).ok()?;
    let (major, minor) = (rustix::fs::major(of.dev()), rustix::fs::minor(of.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", of.ino());
    holder(&std::fs::read_to_string("/proc/locks").ok()?, &file)
}

/// `1: FLOCK  ADVISORY  WRITE 712 fe:01:131095 0 EOF`; who waits for one has `->` after the number.
fn holder(locks: &str, file: &str) -> Option<u32> {
    let of = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, at, ..] = words[..] else { return None };
        pid.parse().ok().filter(|pid| at == file && *pid > 0)
    };
    locks.lines().find_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockFile, OpenMode};

    #[test]
    fn who_has_a_lock_is_found_by_the_file() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 fe:01:5 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 8 fe:01:5 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 9 fe:01:55 0 EOF\n4: FLOCK  ADVISORY  WRITE 10 fe:01:5 0 EOF\n\
                     5: FLOCK  ADVISORY  WRITE 0 fe:01:6 0 EOF\nrubbish\n";
        assert_eq!(holder(locks, "fe:01:5"), Some(10));
        assert_eq!((holder(locks, "fe:01:6"), holder(locks, "")), (None, None));
    }

    #[test]
    fn a_lock_of_ours_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert_eq!(lock_holder(&path), None);
        let file = BlockFile::open(&path, OpenMode::create()).unwrap();
        assert_eq!(lock_holder(&path), None);
        assert!(file.try_lock_exclusive().unwrap());
        // Not every file system says so.
        assert!(lock_holder(&path).is_none_or(|pid| pid == std::process::id()));
    }
}
