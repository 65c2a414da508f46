//! Disks for the tour: real files laid out on a sparse raw disk, changed, corrupted, compared.
//!
//! All of it is plain blocking I/O, which lets others run after each piece: an interrupt ends it there.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tokio::task::yield_now;

/// Where each file starts on the disk: a multiple of this.
const ALIGN: u64 = 4096;
/// A hole after so many bytes of files, as file systems leave them.
const HOLE_EVERY: u64 = 8 << 20;
const HOLE: u64 = 3 << 20;
const CHUNK: u64 = 256 << 10;

/// What was laid out.
pub struct Made {
    pub files: u64,
    pub bytes: u64,
}

/// A directory of real files: the Rust toolchain's, if there is one.
pub fn real_files() -> anyhow::Result<PathBuf> {
    let rustc = std::process::Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot = rustc.ok().and_then(|o| String::from_utf8(o.stdout).ok());
    let candidates = sysroot.into_iter().map(|s| PathBuf::from(s.trim())).chain(["/usr".into()]);
    candidates
        .into_iter()
        .find(|p| p.is_dir())
        .context("no directory of files found; name one with --from")
}

/// Lays files under `from` out on a sparse raw disk, at most `limit` bytes of them.
pub async fn make(from: &Path, disk: &Path, limit: u64) -> anyhow::Result<Made> {
    let out = File::create_new(disk)?;
    let mut made = Made { files: 0, bytes: 0 };
    let (mut at, mut since_hole) = (0, 0);
    let mut files = Vec::new();
    list(from, &mut files)?;
    for path in files {
        if made.bytes >= limit {
            break;
        }
        // A file that may not be read, or has just gone, is left out.
        let Ok(file) = File::open(&path) else { continue };
        let copied = copy(&file, &out, at, limit - made.bytes).await?;
        made.files += 1;
        made.bytes += copied;
        at = (at + copied).next_multiple_of(ALIGN);
        since_hole += copied;
        if since_hole > HOLE_EVERY {
            (at, since_hole) = (at + HOLE, 0);
        }
    }
    if made.bytes == 0 {
        bail!("{}: no readable files there; name another directory with --from", from.display());
    }
    out.set_len((at + HOLE).next_multiple_of(ALIGN))?;
    Ok(made)
}

fn list(dir: &Path, into: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let mut entries: Vec<_> = entries.filter_map(Result::ok).collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        match entry.file_type() {
            Ok(t) if t.is_dir() => list(&entry.path(), into).unwrap_or_default(),
            Ok(t) if t.is_file() => into.push(entry.path()),
            _ => {}
        }
    }
    Ok(())
}

async fn copy(mut from: &File, to: &File, mut at: u64, mut limit: u64) -> anyhow::Result<u64> {
    let mut buf = vec![0; 1 << 20];
    let mut copied = 0;
    while limit > 0 {
        yield_now().await;
        let want = limit.min(buf.len() as u64) as usize;
        let n = from.read(&mut buf[..want])?;
        if n == 0 {
            break;
        }
        to.write_all_at(&buf[..n], at)?;
        (at, copied, limit) = (at + n as u64, copied + n as u64, limit - n as u64);
    }
    Ok(copied)
}

/// Copies a disk and changes some bytes in one chunk of fifty.
pub async fn change(first: &Path, second: &Path) -> anyhow::Result<()> {
    let (from, to) = (File::open(first)?, File::create_new(second)?);
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut chunk = vec![0; CHUNK as usize];
    for (i, at) in (0..size).step_by(CHUNK as usize).enumerate() {
        yield_now().await;
        let len = (size - at).min(CHUNK) as usize;
        from.read_exact_at(&mut chunk[..len], at)?;
        if i % 50 == 7 && len > 4096 {
            chunk[1024..1040].copy_from_slice(b"something new \0\0");
        }
        if chunk[..len].iter().any(|b| *b != 0) {
            to.write_all_at(&chunk[..len], at)?;
        }
    }
    Ok(())
}

/// Flips a bit in every 4 MiB of the files in a directory; returns how many.
pub fn flip_bits(dir: &Path) -> anyhow::Result<u64> {
    let mut flipped = 0;
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if !path.is_file() {
            continue;
        }
        let file = File::options().read(true).write(true).open(&path)?;
        let len = file.metadata()?.len();
        for at in (100_000..len).step_by(4 << 20) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at)?;
            file.write_all_at(&[byte[0] ^ 0x10], at)?;
            flipped += 1;
        }
    }
    if flipped == 0 {
        bail!("{}: nothing is cached there", dir.display());
    }
    Ok(flipped)
}

/// Fails unless two files hold the same bytes.
pub async fn compare(a: &Path, b: &Path) -> anyhow::Result<()> {
    let (left, right) = (File::open(a)?, File::open(b)?);
    let size = left.metadata()?.len();
    if size != right.metadata()?.len() {
        bail!("{} and {} differ in size", a.display(), b.display());
    }
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in (0..size).step_by(1 << 20) {
        yield_now().await;
        let len = (size - at).min(1 << 20) as usize;
        left.read_exact_at(&mut x[..len], at)?;
        right.read_exact_at(&mut y[..len], at)?;
        if x[..len] != y[..len] {
            bail!("{} and {} differ in the MiB at {at}", a.display(), b.display());
        }
    }
    Ok(())
}
