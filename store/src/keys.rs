//! The names of the objects in a store: made here, and taken apart here.
//!
//! The layout is drawn in the crate's documentation. Numbers in names are fixed-width lower-case
//! hex, so that the order of names is the order of numbers.

use image::{Digest, PackId};
use object_store::path::Path;

/// The object that says what the store is.
pub(crate) const MARKER: &str = "forebay-store";
/// The folders in which objects lie. A local store makes and syncs them when it is opened.
pub(crate) const FOLDERS: [&str; 12] = [
    "packs",
    "sections",
    "manifests",
    "locators",
    "records",
    "refs",
    "sessions",
    "gc",
    "gc/condemned",
    "gc/deleting",
    "gc/rewrites",
    "gc/log",
];

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// A pack.
    Pack(PackId),
    /// A section table, by the section's digest.
    Section(Digest),
    /// A manifest.
    Manifest(Digest),
    /// One of an image's locators; the highest number counts.
    Locator(Digest, u64),
    /// A signed record of an image.
    Record(Digest),
}

impl Key {
    /// The image that the object belongs to, if it belongs to one.
    pub(crate) fn image(&self) -> Option<&Digest> {
        match self {
            Key::Manifest(image) | Key::Locator(image, _) | Key::Record(image) => Some(image),
            Key::Pack(_) | Key::Section(_) => None,
        }
    }

    /// Takes a name apart; `None` for names that are not ours, or that gc never touches.
    pub(crate) fn parse(path: &Path) -> Option<Self> {
        let mut parts = path.as_ref().split('/');
        let (folder, name, rest) = (parts.next()?, parts.next()?, parts.next());
        let key = match (folder, rest) {
            ("packs", None) => Key::Pack(name.parse().ok()?),
            ("sections", None) => Key::Section(name.parse().ok()?),
            ("manifests", None) => Key::Manifest(name.parse().ok()?),
            ("locators", Some(seq)) => Key::Locator(name.parse().ok()?, parse_hex(seq, 16)?),
            ("records", Some(_)) => Key::Record(name.parse().ok()?),
            _ => return None,
        };
        parts.next().is_none().then_some(key)
    }
}

/// Reads a fixed-width hex number.
pub(crate) fn parse_hex(text: &str, width: usize) -> Option<u64> {
    let digits = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (digits && text.len() == width).then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// The last part of a name.
pub(crate) fn last_part(path: &Path) -> &str {
    path.as_ref().rsplit('/').next().unwrap_or_default()
}

pub(crate) fn marker() -> Path {
    Path::from(MARKER)
}

pub(crate) fn pack(id: &PackId) -> Path {
    Path::from(format!("packs/{id}"))
}

pub(crate) fn section(digest: &Digest) -> Path {
    Path::from(format!("sections/{digest}"))
}

pub(crate) fn manifest(image: &Digest) -> Path {
    Path::from(format!("manifests/{image}"))
}

pub(crate) fn locators(image: &Digest) -> Path {
    Path::from(format!("locators/{image}"))
}

pub(crate) fn locator(image: &Digest, seq: u64) -> Path {
    Path::from(format!("locators/{image}/{seq:016x}"))
}

pub(crate) fn records(image: &Digest) -> Path {
    Path::from(format!("records/{image}"))
}

pub(crate) fn record(image: &Digest, created: u64, token: &str) -> Path {
    let digest = blake3::hash(token.as_bytes()).to_hex();
    Path::from(format!("records/{image}/{created:016x}-{}", &digest[..16]))
}

pub(crate) fn ref_move(seq: u64) -> Path {
    Path::from(format!("refs/{seq:016x}"))
}

pub(crate) fn session(id: &str, n: u32) -> Path {
    Path::from(format!("sessions/{id}/{n:08x}"))
}

pub(crate) fn condemned(list: &str) -> Path {
    Path::from(format!("gc/condemned/{list}"))
}

pub(crate) fn deleting(run: &str) -> Path {
    Path::from(format!("gc/deleting/{run}"))
}

pub(crate) fn rewrite(name: &str) -> Path {
    Path::from(format!("gc/rewrites/{name}"))
}

pub(crate) fn gc_log(run: &str) -> Path {
    Path::from(format!("gc/log/{run}"))
}

/// A folder, for listing.
pub(crate) fn folder(name: &str) -> Path {
    Path::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let d = Digest::of_chunk(b"x");
        let id = PackId([7; 16]);
        for (path, key) in [
            (pack(&id), Key::Pack(id)),
            (section(&d), Key::Section(d)),
            (manifest(&d), Key::Manifest(d)),
            (locator(&d, 300), Key::Locator(d, 300)),
            (record(&d, 5, "token"), Key::Record(d)),
        ] {
            assert_eq!(Key::parse(&path), Some(key), "{path}");
        }
    }

    #[test]
    fn names_that_are_not_ours_are_left_alone() {
        let d = Digest::of_chunk(b"x");
        for foreign in [
            "readme".to_owned(),
            "packs/readme".to_owned(),
            format!("packs/{}", "A".repeat(32)),
            format!("packs/{}/more", PackId([7; 16])),
            format!("locators/{d}"),
            format!("locators/{d}/1"),
            format!("locators/{d}/{:016x}/x", 1),
            format!("refs/{:016x}", 1),
            "sessions/x/00000000".to_owned(),
        ] {
            assert_eq!(Key::parse(&Path::from(foreign.as_str())), None, "{foreign}");
        }
    }
}
