//! The sizes that a volume may have, and how sizes are told to people.

use image::geometry::MAX_DISK;
use image::{Error, Geometry, Kind, Result};

/// How a volume of `size` bytes is cut; `sector` in bytes.
///
/// # Errors
///
/// [`Kind::Invalid`], with what a size must be.
pub fn geometry(size: u64, sector: u32, chunk_log2: u8) -> Result<Geometry> {
    let refuse = |what: String| Err(Error::new(Kind::Invalid, what));
    if size == 0 {
        return refuse("a size of 0: a volume has at least one sector".into());
    }
    if size > MAX_DISK {
        let (asked, most) = (shown(size), shown(MAX_DISK));
        return refuse(format!("a size of {asked}: the largest volume has {most}"));
    }
    if !size.is_multiple_of(u64::from(sector)) {
        let what = format!("a size of {size} bytes: must be a multiple of {sector} (the sector)");
        return refuse(what);
    }
    let other = |e| Error::caused(Kind::Invalid, format!("a size of {}: {e}", shown(size)), e);
    Geometry::new(size, sector, chunk_log2).map_err(other)
}

/// Bytes for people: `1.2 GiB`.
pub fn shown(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_cannot_be_says_what_can() {
        for (size, sector, says) in [
            (0, 512, "at least one sector"),
            (6_442_450_945, 512, "6442450945 bytes: must be a multiple of 512 (the sector)"),
            (512, 4096, "multiple of 4096"),
            (1 << 50, 512, "1.0 PiB: the largest volume has 64.0 TiB"),
            (u64::MAX, 512, "64.0 TiB"),
            (513, 513, "sector size"),
        ] {
            let error = geometry(size, sector, 18).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{error}");
            assert!(error.message().contains(says), "{error}");
        }
        assert_eq!(geometry(MAX_DISK, 4096, 18).unwrap().size(), MAX_DISK);
    }
}
