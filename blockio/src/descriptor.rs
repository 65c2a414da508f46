//! Exchanging what is behind a descriptor that somebody else owns.

#![expect(unsafe_code, reason = "rustix wants to own the descriptor that is replaced")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes `of` refer to what `by` refers to; what it was before is closed, if nothing else refers to it.
///
/// For a library that owns a descriptor and must be given another one: the number, and who closes it,
/// stay the same. Calls that are under way in other threads end on what was there before.
///
/// # Errors
///
/// What the system says; `of` is then as it was.
pub fn replace(of: BorrowedFd<'_>, by: BorrowedFd<'_>) -> io::Result<()> {
    if of.as_raw_fd() == by.as_raw_fd() {
        return Ok(());
    }
    loop {
        // SAFETY: both numbers are open descriptors, and stay so, for as long as they are borrowed.
        // The call leaves `of` open and owned by whoever owned it: it creates and closes no
        // descriptor, and touches no memory of ours.
        if unsafe { libc::dup3(by.as_raw_fd(), of.as_raw_fd(), libc::O_CLOEXEC) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        // Busy: another thread is opening a file at this moment.
        let again = [io::ErrorKind::Interrupted, io::ErrorKind::ResourceBusy];
        if !again.contains(&error.kind()) {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_descriptor_shows_another_file_and_still_closes_once() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            std::fs::write(dir.path().join(name), name).unwrap();
            File::open(dir.path().join(name)).unwrap()
        };
        let (mut first, second) = (open("first"), open("second"));
        replace(first.as_fd(), first.as_fd()).unwrap();
        replace(first.as_fd(), second.as_fd()).unwrap();
        drop(second);
        let mut text = String::new();
        first.read_to_string(&mut text).unwrap();
        assert_eq!(text, "second");
    }
}
