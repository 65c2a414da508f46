//! Loop devices: a part of a file or device that is a device of its own, for programs that want one.

#![expect(unsafe_code, reason = "two system calls that no library of ours has")]

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::error::locate;

const CONTROL: &str = "/dev/loop-control";
/// `LOOP_CTL_GET_FREE` and `LOOP_CONFIGURE` (Linux 5.8).
const GET_FREE: libc::Ioctl = 0x4c82;
const CONFIGURE: libc::Ioctl = 0x4c0a;
/// `LO_FLAGS_AUTOCLEAR`: it goes with the last who has it open.
const AUTOCLEAR: u32 = 4;

/// As `struct loop_info64` of the kernel.
#[repr(C)]
#[derive(Debug)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// As `struct loop_config`.
#[repr(C)]
#[derive(Debug)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// A loop device. It is gone when this is dropped and no program has it open any more, also if this process is killed.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    /// Keeps it.
    _device: File,
}

impl LoopDevice {
    /// Makes one over the bytes of `range` of a file or device, with sectors of so many bytes. Who opens it past this
    /// has what was written to it when it was synced.
    ///
    /// # Errors
    ///
    /// `NotFound` where the kernel has no loop devices (`modprobe loop`); otherwise what the system says.
    pub fn over(path: impl AsRef<Path>, range: Range<u64>, sector: u32) -> io::Result<LoopDevice> {
        let path = path.as_ref();
        let at = |op, path: &Path, error| locate(op, path, None, error);
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|e| at("open", path, e))?;
        let control = Path::new(CONTROL);
        let free = OpenOptions::new().read(true).write(true).open(control);
        let free = free.map_err(|e| at("open", control, e))?;
        loop {
            let device = next_free(&free).map_err(|e| at("get a loop device", control, e))?;
            match configure(&device, &file, &range, sector) {
                // Somebody else was faster.
                Err(e) if Errno::from_io_error(&e) == Some(Errno::BUSY) => {}
                Err(e) => return Err(at("configure a loop device over", path, e)),
                Ok(device_file) => return Ok(LoopDevice { path: device, _device: device_file }),
            }
        }
    }

    /// What programs are to open.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn next_free(control: &File) -> io::Result<PathBuf> {
    // SAFETY: of this opcode the kernel takes no argument, and answers with a number.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE) };
    match number {
        0.. => Ok(PathBuf::from(format!("/dev/loop{number}"))),
        _ => Err(io::Error::last_os_error()),
    }
}

fn configure(path: &Path, file: &File, range: &Range<u64>, sector: u32) -> io::Result<File> {
    let device = OpenOptions::new().read(true).write(true).open(path)?;
    let info = Info {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: range.start,
        size_limit: range.end - range.start,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: AUTOCLEAR,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let config = Config { fd: file.as_raw_fd() as u32, block_size: sector, info, reserved: [0; 8] };
    // SAFETY: of this opcode the kernel reads a `struct loop_config`, which `Config` is, during the call, and keeps
    // nothing of it but the file, of which it takes a reference of its own.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, &raw const config) };
    if done == 0 { Ok(device) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_asked_as_it_wants_to_be() {
        assert_eq!((size_of::<Info>(), size_of::<Config>()), (232, 304));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = LoopDevice::over("/nowhere/disk", 0..4096, 512).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("/nowhere/disk"), "{error}");
    }
}
