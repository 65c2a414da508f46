//! The text that says what a vmdk is made of; looked at only for references to other files.

use image::{Error, Kind, Result};

use super::{refers, unsupported};

/// Longest descriptor that is looked at, in bytes. They are mostly below 1 KiB.
pub(super) const MAX: u64 = 1 << 20;

/// Refuses a descriptor embedded in a sparse file unless that file is all there is.
pub(super) fn check_embedded(text: &str) -> Result<()> {
    let descriptor = Descriptor::parse(text);
    descriptor.check_parent()?;
    match descriptor.create_type.as_deref() {
        // Their one extent is this file, whatever it was called when it was made.
        Some("monolithicSparse" | "streamOptimized") if descriptor.extents.len() == 1 => Ok(()),
        _ => Err(descriptor.refuse()),
    }
}

/// The error of a file that is nothing but a descriptor: its extents always lie elsewhere.
pub(super) fn refuse_alone(text: &str) -> Error {
    let descriptor = Descriptor::parse(text);
    descriptor.check_parent().err().unwrap_or_else(|| descriptor.refuse())
}

/// Whether a text that stands where a header was expected is a descriptor.
pub(super) fn is_one(text: &str) -> bool {
    let descriptor = Descriptor::parse(text);
    descriptor.create_type.is_some() || !descriptor.extents.is_empty()
}

#[derive(Default)]
struct Descriptor {
    create_type: Option<String>,
    parent: Option<String>,
    has_parent: bool,
    /// The file name in each extent line, if it has one.
    extents: Vec<Option<String>>,
}

impl Descriptor {
    fn parse(text: &str) -> Self {
        let mut out = Self::default();
        for line in text.lines().map(str::trim) {
            let access = line.split_whitespace().next().unwrap_or_default();
            if matches!(access, "RW" | "RDONLY" | "NOACCESS") {
                out.extents.push(line.split('"').nth(1).map(str::to_owned));
            } else if let Some((key, value)) = line.split_once('=') {
                let value = value.trim().trim_matches('"');
                match key.trim() {
                    "createType" => out.create_type = Some(value.into()),
                    "parentFileNameHint" => out.parent = Some(value.into()),
                    "parentCID" => out.has_parent = !value.eq_ignore_ascii_case("ffffffff"),
                    _ => {}
                }
            }
        }
        out
    }

    fn check_parent(&self) -> Result<()> {
        match &self.parent {
            Some(name) => Err(refers(name)),
            None if self.has_parent => Err(refers("its parent disk")),
            None => Ok(()),
        }
    }

    fn refuse(&self) -> Error {
        if let Some(name) = self.extents.iter().flatten().next() {
            return refers(name);
        }
        let kind = self.create_type.as_deref().unwrap_or("none");
        let error = unsupported(format!("disk type `{kind}` cannot be read"));
        error_with_hint(error)
    }
}

fn error_with_hint(error: Error) -> Error {
    let hint = "convert it with `qemu-img convert -O vmdk`";
    Error::new(Kind::Unsupported, format!("{}: {hint}", error.message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\n\
        createType=\"monolithicSparse\"\nRW 8 SPARSE \"was called this.vmdk\"\n";

    #[test]
    fn one_file_is_taken_whatever_it_was_called() {
        check_embedded(ONE).unwrap();
        check_embedded(&ONE.replace("monolithicSparse", "streamOptimized")).unwrap();
    }

    #[test]
    fn references_are_refused_by_name() {
        let child = ONE.replace("ffffffff", "12345678");
        let named = format!("{child}parentFileNameHint=\"/etc/shadow\"\n");
        let two = format!("{ONE}RW 8 SPARSE \"second.vmdk\"\n");
        let flat = ONE.replace("monolithicSparse", "monolithicFlat");
        for (text, name) in [
            (named.as_str(), "/etc/shadow"),
            (child.as_str(), "parent disk"),
            (two.as_str(), "was called this.vmdk"),
            (flat.as_str(), "was called this.vmdk"),
        ] {
            let e = check_embedded(text).unwrap_err();
            assert_eq!(e.kind(), Kind::Unsupported);
            assert!(e.message().contains(name), "{e}");
            let e = refuse_alone(text);
            assert!(e.message().contains(name), "{e}");
        }
        let raw_device = "createType=\"fullDevice\"\nRW 8 FLAT \"/dev/sda\" 0\n";
        assert!(refuse_alone(raw_device).message().contains("/dev/sda"));
        assert!(refuse_alone("createType=\"custom\"\n").message().contains("custom"));
        assert!(is_one(raw_device) && !is_one("just=text\n"));
    }
}
