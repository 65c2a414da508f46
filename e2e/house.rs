//! Rules of the house that a machine can check: who may know whom, and where `unsafe` may stand.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Who may depend on whom, by the rooms of ARCHITECTURE.md.
const ARROWS: &[(&str, &[&str])] = &[
    ("image", &[]),
    ("blockio", &[]),
    ("api", &["image"]),
    ("store", &["image"]),
    ("cache", &["image", "blockio"]),
    ("stream", &["image", "api"]),
    ("volume-pool", &["image", "blockio"]),
    ("capture", &["image", "blockio"]),
    ("placement", &["image", "api"]),
    ("node", &["stream", "volume-pool", "capture", "blockio", "image", "api"]),
];
/// Rooms that may depend on anything, and on which nothing may depend.
const TOPS: &[&str] = &["forebay", "benches", "sim", "fuzz"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn dependencies(room: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join(room).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = toml::from_str(&text).unwrap();
    let sections = ["dependencies", "dev-dependencies", "build-dependencies"];
    let tables = sections.iter().filter_map(|s| manifest.get(*s)?.as_table());
    tables.flat_map(|t| t.keys().cloned()).collect()
}

#[test]
fn the_arrows_between_rooms_hold() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    for (room, may) in &allowed {
        for dependency in dependencies(room) {
            let ours = allowed.contains_key(dependency.as_str());
            assert!(!ours || may.contains(&dependency.as_str()), "{room} → {dependency}");
            let top = dependency.trim_start_matches("forebay-");
            assert!(!TOPS.contains(&top), "{room} → {dependency}");
        }
    }
}

fn rust_files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn unsafe_stands_in_blockio_alone_and_each_with_its_proof() {
    let mut files = Vec::new();
    rust_files(&root(), &mut files);
    let keyword = concat!("un", "safe");
    for path in files {
        let inside = path.starts_with(root().join("blockio"));
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap();
            // Implementing a foreign trait can force the word on a function (imago's `Storage`);
            // what stands inside is looked at like everything else.
            let found = [" {", " impl"].iter().any(|k| code.contains(&format!("{keyword}{k}")));
            if !found {
                continue;
            }
            let place = format!("{}:{}", path.display(), i + 1);
            assert!(inside, "{place}");
            let above = lines[..i].iter().rev().take(12);
            let proof = above.chain([line]).any(|l| l.contains("SAFETY"));
            assert!(proof, "{place}: no SAFETY comment above");
        }
    }
}
