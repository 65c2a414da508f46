//! What a qcow2 header asks for, and whether we do that.
//!
//! ```text
//!  0        4       8                16           20           24      32      36       40
//!  | "QFI·" | ver.  | backing offset | backing len| cluster log| size  | crypt | L1 len | L1 offset | …
//!  72 (version 3)                    104
//!  | incompatible features u64 | …   |
//! ```
//! All numbers are big-endian.

use blockio::BlockFile;
use image::{Error, Kind, Result};

use crate::source::read_error;

const MAGIC: u32 = 0x5146_49fb;
const LEN: usize = 104;
/// Longest name of another file that the format allows, in bytes.
const MAX_NAME: u32 = 1023;
/// Header extension with the name of the external data file.
const DATA_FILE_NAME: u32 = 0x4441_5441;

/// What each incompatible feature means for the user who gave us the file.
const FEATURES: [(&str, &str); 5] = [
    ("was not closed cleanly", "repair a copy with `qemu-img check -r all`"),
    ("is marked corrupt", "repair a copy with `qemu-img check -r all`"),
    ("has an external data file", "flatten it with `qemu-img convert -O qcow2`"),
    ("is compressed with zstd", "convert it with `qemu-img convert -O qcow2`"),
    ("has extended L2 entries", "convert it with `qemu-img convert -O qcow2`"),
];
const EXTERNAL_DATA: u32 = 2;

/// Refuses, by name, what must not be read as if it were plain. Returns the length of a cluster.
pub(super) fn check(file: &BlockFile) -> Result<usize> {
    let size = file.size().map_err(read_error)?;
    let mut bytes = [0; LEN];
    let read = file.read_at(&mut bytes, 0).map_err(read_error)?;
    let header = Header { file, bytes: &bytes, file_size: size };
    if read < 72 || header.u32(0) != MAGIC {
        let what = "this is not a qcow2 file; if it is a raw disk, say --format raw";
        return Err(Error::new(Kind::Invalid, what));
    }
    match header.u32(4) {
        2 => {}
        3 if read >= LEN => header.check_features()?,
        3 => return Err(truncated(size)),
        v => return Err(unsupported(format!("qcow2 version {v} is not known"))),
    }
    header.check_backing()?;
    if header.u32(32) != 0 {
        let hint = "decrypt it with `qemu-img convert`, or import its bytes as they are";
        return Err(unsupported(format!("the qcow2 file is encrypted: {hint} (--format raw)")));
    }
    let cluster_log2 = header.u32(20);
    if !(9..=21).contains(&cluster_log2) {
        let what = format!("qcow2: a cluster size of 2^{cluster_log2} bytes is out of bounds");
        return Err(Error::new(Kind::Corrupt, what));
    }
    header.check_l1(cluster_log2)?;
    Ok(1 << cluster_log2)
}

/// The error of a file that wants another one opened.
pub(super) fn refers(name: &str) -> Error {
    let what = format!(
        "it refers to another file, `{name}`, which is not opened: flatten it first with \
         `qemu-img convert -O qcow2`"
    );
    Error::new(Kind::Unsupported, what)
}

struct Header<'a> {
    file: &'a BlockFile,
    bytes: &'a [u8; LEN],
    file_size: u64,
}

impl Header<'_> {
    fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    fn check_features(&self) -> Result<()> {
        let bits = self.u64(72);
        if bits == 0 {
            return Ok(());
        }
        let bit = bits.trailing_zeros();
        if bit == EXTERNAL_DATA {
            let name = self.data_file_name()?;
            return Err(refers(&name.unwrap_or_else(|| "an external data file".into())));
        }
        Err(match FEATURES.get(bit as usize) {
            Some((what, hint)) => unsupported(format!("the qcow2 file {what}: {hint}")),
            None => unsupported(format!("qcow2: incompatible feature {bit} is not known")),
        })
    }

    /// The name in the header extensions, which begin after the header and end at type 0.
    fn data_file_name(&self) -> Result<Option<String>> {
        let mut at = u64::from(self.u32(100));
        // Extensions lie in the first cluster, of 2 MiB at most; each takes 8 bytes at least.
        while at < (2 << 20) {
            let mut head = [0; 8];
            if self.read(&mut head, at)? < head.len() {
                break;
            }
            let [kind, len] =
                [0, 4].map(|i| u32::from_be_bytes(head[i..i + 4].try_into().expect("four bytes")));
            match kind {
                0 => break,
                DATA_FILE_NAME => return self.text(at + 8, len).map(Some),
                _ => at += 8 + u64::from(len).next_multiple_of(8),
            }
        }
        Ok(None)
    }

    fn check_backing(&self) -> Result<()> {
        match self.u64(8) {
            0 => Ok(()),
            at => Err(refers(&self.text(at, self.u32(16))?)),
        }
    }

    /// Whether the L1 table is there and covers the disk: it is allocated at once.
    fn check_l1(&self, cluster_log2: u32) -> Result<()> {
        let (size, entries, at) = (self.u64(24), u64::from(self.u32(36)), self.u64(40));
        // An L2 table is one cluster of 8-byte entries, each of which maps a cluster.
        let per_entry = 1u64 << (2 * cluster_log2 - 3);
        if entries < size.div_ceil(per_entry) {
            let what = format!("qcow2: an L1 table of {entries} entries is too short for the disk");
            return Err(Error::new(Kind::Corrupt, what));
        }
        match at.checked_add(8 * entries) {
            Some(end) if end <= self.file_size => Ok(()),
            _ => Err(truncated(self.file_size)),
        }
    }

    fn text(&self, at: u64, len: u32) -> Result<String> {
        let mut bytes = vec![0; len.min(MAX_NAME) as usize];
        let read = self.read(&mut bytes, at)?;
        Ok(String::from_utf8_lossy(&bytes[..read]).into_owned())
    }

    fn read(&self, buf: &mut [u8], at: u64) -> Result<usize> {
        if at >= self.file_size {
            return Ok(0);
        }
        self.file.read_at(buf, at).map_err(read_error)
    }
}

fn unsupported(what: String) -> Error {
    Error::new(Kind::Unsupported, what)
}

fn truncated(size: u64) -> Error {
    let what = format!("qcow2: the tables reach past the end of the file ({size} bytes)");
    Error::new(Kind::Corrupt, format!("{what}: is the copy complete?"))
}
