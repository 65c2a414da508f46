//! Which format a disk is in: what the user says, else what the file's name says, never what the
//! bytes look like.
//!
//! A guest chooses the first bytes of its raw disk. If they decided the format, it could write a
//! qcow2 header there and have its host open whatever file that header names.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use image::{Error, Kind, Result};

/// How the bytes of a disk lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// One to one.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
    /// VMware's sparse format in one file (`monolithicSparse`, `streamOptimized`).
    Vmdk,
}

/// What is wound around that file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Nothing.
    None,
    /// zstd frames.
    Zstd,
    /// gzip members.
    Gzip,
    /// xz streams.
    Xz,
}

/// Extensions of formats that are known by name only.
const FOREIGN: &[&str] = &["vhdx", "vhd", "vpc", "vdi", "qed", "parallels"];

/// What the first bytes of other formats are, and what to do with such a file.
const MAGICS: &[(&[u8], &str, &str)] = &[
    (b"QFI\xfb", "qcow2", "say --format qcow2 if it is (of a file, not a stream)"),
    (b"KDMV", "vmdk", "say --format vmdk if it is (of a file, not a stream)"),
    (b"vhdxfile", "vhdx", "`qemu-img convert -O raw` it first if it is"),
    (b"conectix", "vhd", "`qemu-img convert -O raw` it first if it is"),
    (b"<<< ", "vdi", "`qemu-img convert -O raw` it first if it is"),
];

/// What to tell of a disk that is taken as raw and begins so; nothing for most. Only told, never acted
/// on: a raw disk may begin with whatever its guest wrote.
pub(crate) fn doubt(first: &[u8]) -> Option<String> {
    let (_, name, next) = MAGICS.iter().find(|(magic, ..)| first.starts_with(magic))?;
    Some(format!("this looks like {name}, and is taken as the raw bytes of a disk: {next}"))
}

impl Format {
    const ALL: [Format; 3] = [Format::Raw, Format::Qcow2, Format::Vmdk];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Vmdk => "vmdk",
        }
    }

    fn of_extension(extension: &str) -> Option<Self> {
        match extension {
            "raw" | "img" | "iso" => Some(Format::Raw),
            "qcow2" => Some(Format::Qcow2),
            "vmdk" => Some(Format::Vmdk),
            _ => None,
        }
    }
}

impl Compression {
    const ALL: [Compression; 4] =
        [Compression::None, Compression::Zstd, Compression::Gzip, Compression::Xz];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Zstd => "zstd",
            Compression::Gzip => "gzip",
            Compression::Xz => "xz",
        }
    }

    fn of_extension(extension: &str) -> Option<Self> {
        match extension {
            "zst" => Some(Compression::Zstd),
            "gz" => Some(Compression::Gzip),
            "xz" => Some(Compression::Xz),
            _ => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|f| f.name() == s);
        found.ok_or_else(|| {
            Error::new(Kind::Invalid, format!("disk format `{s}`: give raw, qcow2 or vmdk"))
        })
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|c| c.name() == s);
        found.ok_or_else(|| {
            Error::new(Kind::Invalid, format!("compression `{s}`: give none, zstd, gzip or xz"))
        })
    }
}

/// Decides format and compression of the file `path` from its name and what was said.
///
/// # Errors
///
/// [`Kind::Invalid`] if the name does not tell and nothing was said; [`Kind::Unsupported`] for a
/// format that is not read here, or needs random access inside a compressed stream.
pub fn decide(
    path: &Path,
    format: Option<Format>,
    compression: Option<Compression>,
) -> Result<(Format, Compression)> {
    let (stem, outer) = split_extension(path);
    let named = Compression::of_extension(&outer);
    let chosen = compression.or(named).unwrap_or(Compression::None);
    // `disk.raw.zst`: the extension before the compression's says the format.
    let inner = if named == Some(chosen) { split_extension(&stem).1 } else { outer };
    let format = format.or_else(|| Format::of_extension(&inner)).ok_or_else(|| {
        let name = path.display();
        if FOREIGN.contains(&inner.as_str()) {
            let what =
                format!("{name}: .{inner} is not read here: `qemu-img convert -O raw` it first");
            return Error::new(Kind::Unsupported, what);
        }
        let why = if inner.is_empty() { "no extension".into() } else { format!("`.{inner}`") };
        let what = "does not tell the disk's format; say it with --format raw, qcow2 or vmdk";
        Error::new(Kind::Invalid, format!("{name}: {why} {what}"))
    })?;
    check_pair(format, chosen).map_err(|e| e.at(path.display()))?;
    Ok((format, chosen))
}

/// As [`decide`], for a stream that has no name.
///
/// # Errors
///
/// As there.
pub fn decide_stream(
    format: Option<Format>,
    compression: Option<Compression>,
) -> Result<Compression> {
    let compression = compression.unwrap_or(Compression::None);
    match format.unwrap_or(Format::Raw) {
        Format::Raw => Ok(compression),
        other => Err(Error::new(
            Kind::Unsupported,
            format!("{other} cannot be read from a stream: save it to a file and import that"),
        )),
    }
}

fn check_pair(format: Format, compression: Compression) -> Result<()> {
    if format == Format::Raw || compression == Compression::None {
        return Ok(());
    }
    let how = match compression {
        Compression::Zstd => "zstd -d",
        Compression::Gzip => "gunzip",
        _ => "unxz",
    };
    let what = format!("{format} inside {compression} cannot be read: unpack it first (`{how}`)");
    Err(Error::new(Kind::Unsupported, what))
}

/// The path without its last extension, and that extension in lower case (empty if there is none).
fn split_extension(path: &Path) -> (std::path::PathBuf, String) {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    (path.with_extension(""), extension.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_name(name: &str) -> Result<(Format, Compression)> {
        decide(Path::new(name), None, None)
    }

    #[test]
    fn the_name_tells() {
        use Compression::{Gzip, None as Plain, Xz, Zstd};
        for (name, want) in [
            ("a.raw", (Format::Raw, Plain)),
            ("/x y/ü.IMG", (Format::Raw, Plain)),
            ("a.iso", (Format::Raw, Plain)),
            ("a.qcow2", (Format::Qcow2, Plain)),
            ("a.vmdk", (Format::Vmdk, Plain)),
            ("a.raw.zst", (Format::Raw, Zstd)),
            ("a.img.gz", (Format::Raw, Gzip)),
            ("a.b.raw.xz", (Format::Raw, Xz)),
        ] {
            assert_eq!(by_name(name).unwrap(), want, "{name}");
        }
    }

    #[test]
    fn a_name_that_does_not_tell_asks_for_the_option() {
        for name in ["disk", "/dev/sdb", "disk.bin", "disk.zst", ".raw", "disk.raw.bz2"] {
            let e = by_name(name).unwrap_err();
            assert_eq!(e.kind(), Kind::Invalid);
            assert!(e.message().contains("--format"), "{e}");
            assert!(e.message().starts_with(name), "{e}");
        }
    }

    #[test]
    fn formats_that_are_not_read_are_to_be_converted() {
        for name in ["a.vhdx", "a.VHD", "a.vdi", "a.vdi.gz"] {
            let e = by_name(name).unwrap_err();
            assert_eq!(e.kind(), Kind::Unsupported, "{e}");
            assert!(e.message().contains("qemu-img convert"), "{e}");
        }
        decide(Path::new("a.vhd"), Some(Format::Raw), None).unwrap();
    }

    #[test]
    fn raw_bytes_that_look_like_another_format_are_in_doubt() {
        let says = |first: &[u8]| doubt(first).unwrap_or_default();
        assert!(says(b"QFI\xfb\0\0\0\x03").contains("--format qcow2"));
        assert!(says(b"KDMV\x01\0\0\0").contains("--format vmdk"));
        for first in [&b"vhdxfile"[..], b"conectix", b"<<< Oracle VM VirtualBox Disk Image >>>"] {
            assert!(says(first).contains("qemu-img convert"));
        }
        for first in [&b""[..], b"QFI", &[0; 512], b"\xeb\x63\x90"] {
            assert_eq!(doubt(first), None);
        }
    }

    #[test]
    fn what_is_said_beats_the_name() {
        let p = |name: &'static str| Path::new(name);
        let raw = Some(Format::Raw);
        assert_eq!(decide(p("a.qcow2"), raw, None).unwrap(), (Format::Raw, Compression::None));
        assert_eq!(decide(p("a.zst"), raw, None).unwrap(), (Format::Raw, Compression::Zstd));
        let plain = Some(Compression::None);
        assert_eq!(decide(p("a.zst"), raw, plain).unwrap(), (Format::Raw, Compression::None));
        let zstd = Some(Compression::Zstd);
        assert_eq!(decide(p("a.raw"), None, zstd).unwrap(), (Format::Raw, Compression::Zstd));
    }

    #[test]
    fn random_access_formats_are_not_read_from_streams() {
        let e = by_name("a.qcow2.xz").unwrap_err();
        assert_eq!(e.kind(), Kind::Unsupported);
        assert!(e.message().contains("unxz"), "{e}");
        let zstd = Some(Compression::Zstd);
        assert!(decide(Path::new("a.vmdk"), None, zstd).is_err());
        assert!(decide_stream(Some(Format::Qcow2), None).is_err());
        assert_eq!(decide_stream(None, zstd).unwrap(), Compression::Zstd);
    }

    #[test]
    fn options_read_as_they_print() {
        for f in Format::ALL {
            assert_eq!(f.to_string().parse::<Format>().unwrap(), f);
        }
        for c in Compression::ALL {
            assert_eq!(c.to_string().parse::<Compression>().unwrap(), c);
        }
        assert!("QCOW2".parse::<Format>().is_err() && "".parse::<Compression>().is_err());
    }
}
