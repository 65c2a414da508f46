//! Who else uses a file without having taken our lock: virtual machines, loop devices, and for devices
//! whatever mounts them or is made of them.
//!
//! QEMU and its tools hold open-file-description locks on single bytes of a disk image: one for each
//! right that they have or deny (from byte 100 and 200 on: `RAW_LOCK_PERM_BASE` and
//! `RAW_LOCK_SHARED_BASE` in its block/file-posix.c). Whole-file locks (`flock`) and these do not see
//! each other. Who holds a write lock of all bytes knows that no such program has the file open, and
//! keeps it from starting.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Takes the write lock of every byte, for the open file description of `fd`, which must be open for
/// writing. False if a program has locked any of them. A file system without such locks has no
/// program that holds one.
pub(crate) fn lock_bytes(fd: BorrowedFd<'_>) -> io::Result<bool> {
    set_lock(fd, libc::F_WRLCK, 0, 0)
}

/// The bytes that such a program locks (shared) while it has the right to write, and to change the
/// size; and the one while others may not write.
const WRITES: i64 = 101;
const RESIZES: i64 = 103;
const OTHERS_MAY_NOT_WRITE: i64 = 201;

/// Keeps programs that lock like QEMU from writing to what `fd` reads, as one of them that only reads
/// does. False if one writes to it already.
pub(crate) fn deny_writers(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // First the lock, then the look, like they do it: of two at once at least one sees the other.
    Ok(set_lock(fd, libc::F_RDLCK, OTHERS_MAY_NOT_WRITE, 1)?
        && is_free(fd, WRITES)?
        && is_free(fd, RESIZES)?)
}

/// Gives up every lock on bytes that the open file description of `fd` has.
pub(crate) fn unlock_bytes(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_lock(fd, libc::F_UNLCK, 0, 0).map(drop)
}

fn set_lock(fd: BorrowedFd<'_>, kind: i32, start: i64, len: i64) -> io::Result<bool> {
    match lock_command(fd, libc::F_OFD_SETLK, kind, start, len) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::PermissionDenied) => {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// Whether nobody else has a lock on this byte.
fn is_free(fd: BorrowedFd<'_>, byte: i64) -> io::Result<bool> {
    let found = lock_command(fd, libc::F_OFD_GETLK, libc::F_WRLCK, byte, 1)?;
    Ok(found == libc::F_UNLCK)
}

/// Carries out a command about a lock, and returns the kind of lock that the kernel answers with: none
/// where a file system has no such locks.
#[expect(unsafe_code, reason = "rustix has no open-file-description locks")]
fn lock_command(
    fd: BorrowedFd<'_>,
    command: i32,
    kind: i32,
    start: i64,
    len: i64,
) -> io::Result<i32> {
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel only reads and
    // writes `lock`, which outlives the call.
    let failed = unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut lock) } != 0;
    if !failed {
        return Ok(i32::from(lock.l_type));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => Ok(libc::F_UNLCK),
        _ => Err(error),
    }
}

/// The loop device whose bytes lie in a file, by what `sys` (`/sys/block`) tells: `loop3`.
/// `is_this` says whether a path leads to the file.
pub(crate) fn loop_device(sys: &Path, is_this: impl Fn(&Path) -> bool) -> Option<String> {
    for entry in std::fs::read_dir(sys).ok()?.flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        if !name.starts_with("loop") {
            continue;
        }
        // There is none while nothing is attached.
        let Ok(file) = std::fs::read(entry.path().join("loop/backing_file")) else { continue };
        let file = file.strip_suffix(b"\n").unwrap_or(&file);
        if is_this(Path::new(OsStr::from_bytes(file))) {
            return Some(name);
        }
    }
    None
}

/// The directories in sysfs of a device and its partitions, by the device's.
pub(crate) fn with_partitions(device: PathBuf) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(&device).into_iter().flatten().flatten();
    let parts = entries.map(|e| e.path()).filter(|path| path.join("partition").exists());
    let mut all: Vec<PathBuf> = parts.collect();
    all.insert(0, device);
    all
}

/// Whether something is made of a device, by its directory in sysfs: LVM, RAID, encryption, … If in
/// doubt it is.
pub(crate) fn has_holders(device: &Path) -> bool {
    !std::fs::read_dir(device.join("holders")).is_ok_and(|mut holders| holders.next().is_none())
}

/// Whether memory is swapped to a device. `swaps` is what `/proc/swaps` tells (proc_swaps(5)); `is_this`
/// says whether a path leads to it.
pub(crate) fn swapped_to(swaps: &str, is_this: impl Fn(&Path) -> bool) -> bool {
    let lines = swaps.lines().skip(1);
    lines.filter_map(|l| l.split_ascii_whitespace().next()).any(|path| is_this(Path::new(path)))
}

/// Whether a device that cannot be claimed is mounted, and only for reading: nothing changes it. `mounts`
/// is what `/proc/self/mountinfo` tells (proc_pid_mountinfo(5)); `is_this` says whether a device's
/// number (`8:1`), or else the path that was mounted, is the device's.
pub(crate) fn mounted_to_read(mounts: &str, is_this: impl Fn(&str, &str) -> bool) -> bool {
    let mut ours = mounts.lines().filter_map(|line| {
        // Optional fields stand before the dash.
        let (mount, system) = line.split_once(" - ")?;
        let mut system = system.split(' ').skip(1);
        let (source, options) = (system.next()?, system.next()?);
        // The file system's own options: a mount of it may be read-only while another is not.
        is_this(mount.split(' ').nth(2)?, source).then(|| options.split(',').any(|o| o == "ro"))
    });
    // None at all: something else has claimed it.
    ours.next().is_some_and(|first| first && ours.all(|ro| ro))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_byte_that_a_virtual_machine_locked_is_seen_and_ours_keep_it_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let (ours, machine) = (open(), open());
        // Shared, on one byte: what QEMU holds.
        assert!(set_lock(machine.as_fd(), libc::F_RDLCK, 201, 1).unwrap());
        assert!(!lock_bytes(ours.as_fd()).unwrap());
        drop(machine);
        assert!(lock_bytes(ours.as_fd()).unwrap());
        assert!(lock_bytes(ours.as_fd()).unwrap(), "twice is once");
        assert!(!set_lock(open().as_fd(), libc::F_RDLCK, 100, 1).unwrap());
        unlock_bytes(ours.as_fd()).unwrap();
        assert!(set_lock(open().as_fd(), libc::F_RDLCK, 100, 1).unwrap());
    }

    #[test]
    fn who_reads_a_disk_sees_who_writes_to_it_and_keeps_others_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap();
        let read = || File::open(&path).unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        for right in [WRITES, RESIZES] {
            let machine = open();
            assert!(set_lock(machine.as_fd(), libc::F_RDLCK, right, 1).unwrap());
            assert!(!deny_writers(read().as_fd()).unwrap());
        }
        // A pull.
        let pull = open();
        assert!(lock_bytes(pull.as_fd()).unwrap());
        assert!(!deny_writers(read().as_fd()).unwrap());
        drop(pull);
        // Others that only read, and let nobody write either.
        let reader = read();
        for byte in [100, OTHERS_MAY_NOT_WRITE] {
            assert!(set_lock(reader.as_fd(), libc::F_RDLCK, byte, 1).unwrap());
        }
        let ours = read();
        assert!(deny_writers(ours.as_fd()).unwrap());
        drop(reader);
        // How a machine asks whether it may write.
        assert!(!is_free(open().as_fd(), OTHERS_MAY_NOT_WRITE).unwrap());
        drop(ours);
        assert!(is_free(open().as_fd(), OTHERS_MAY_NOT_WRITE).unwrap());
    }

    #[test]
    fn what_is_made_of_a_device_or_its_partitions_is_seen() {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("8:0");
        for dir in ["holders", "sda1/holders", "sda2/holders", "queue"] {
            std::fs::create_dir_all(disk.join(dir)).unwrap();
        }
        for part in ["sda1", "sda2"] {
            std::fs::write(disk.join(part).join("partition"), "1\n").unwrap();
        }
        let mut all = with_partitions(disk.clone());
        all[1..].sort();
        assert_eq!(all, [disk.clone(), disk.join("sda1"), disk.join("sda2")]);
        assert!(!all.iter().any(|dir| has_holders(dir)));
        std::fs::create_dir(disk.join("sda2/holders/dm-0")).unwrap();
        assert!(has_holders(&all[2]) && !has_holders(&all[1]));
        assert!(has_holders(&sys.path().join("9:9")), "who cannot tell says yes");
    }

    #[test]
    fn memory_that_is_swapped_to_a_device_is_seen() {
        let swaps =
            "Filename\t\t\tType\t\tSize\n/dev/sda2    partition\t9\t0\t-2\n/swap file 8 0 -3\n";
        assert!(swapped_to(swaps, |p| p == Path::new("/dev/sda2")));
        assert!(!swapped_to(swaps, |p| p == Path::new("/dev/sda1") || p == Path::new("Filename")));
        assert!(!swapped_to("", |_| true));
    }

    #[test]
    fn only_a_device_that_no_mount_writes_to_is_left_alone() {
        let mounts = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                      30 22 8:17 / /a ro shared:2 master:1 - ext4 /dev/sdb1 rw,errors=remount-ro\n\
                      31 22 8:33 / /b ro,nosuid - ext4 /dev/sdc1 ro,data=ordered\n\
                      32 22 8:33 /x /b\\040c rw - ext4 /dev/sdc1 ro\n\
                      33 22 0:40 / /c rw - btrfs /dev/sdd rw\n\
                      34 22 8:64 / /e ro - xfs /dev/sde ro\n\
                      35 22 8:65 / /f rw - xfs /dev/sde1 rw\n\
                      short line\n";
        let number = |n: &'static str| mounted_to_read(mounts, |found, _| found == n);
        assert!(!number("8:1"));
        assert!(!number("8:17"), "written to through another mount");
        assert!(number("8:33"));
        assert!(!number("9:9"), "claimed, and not by a mount");
        assert!(!mounted_to_read(mounts, |_, source| source == "/dev/sdd"));
        assert!(!mounted_to_read(mounts, |_, source| source.starts_with("/dev/sde")));
    }

    #[test]
    fn a_loop_device_is_found_by_its_file() {
        let sys = tempfile::tempdir().unwrap();
        for (device, file) in [("loop0", None), ("loop7", Some("/d/disk\n")), ("sda", None)] {
            let dir = sys.path().join(device).join("loop");
            std::fs::create_dir_all(&dir).unwrap();
            if let Some(file) = file {
                std::fs::write(dir.join("backing_file"), file).unwrap();
            }
        }
        let of = |path: &str| loop_device(sys.path(), |p| p == Path::new(path));
        assert_eq!(of("/d/disk").as_deref(), Some("loop7"));
        assert_eq!(of("/d/other"), None);
        assert_eq!(loop_device(Path::new("/no/such/place"), |_| true), None);
    }
}
