//! The file of a volume's maps: sparse, each kind in a region of its own, and all of it twice.
//!
//! ```text
//!  0          4 GiB       8 GiB       12 GiB      16 GiB      20 GiB …      32 GiB
//!  | intent   | present   | written   | changed   | intent    | present …   |
//!  |◀────────────── first copy ─────────────────▶|◀────── second copy ─────▶|
//! ```
//! Page `n` of a kind is the sector at `512 n` of its region. A volume of the largest size needs 2.2 GB of a
//! region; only pages that were written take space.

use std::collections::BTreeMap;
use std::io;

use blockio::{BlockFile, Engine};
use bytes::{Bytes, BytesMut};
use image::{Error, Kind, Result};

use super::page::{MapKind, PAGE_LEN, PageError, PageOf};
use super::{DirtyPage, Maps, bits};

const REGION: u64 = 4 << 30;
const COPY: u64 = REGION * MapKind::ALL.len() as u64;
const COPIES: u64 = 2;
/// Pages read at a time.
const READ: usize = 2048;

/// The maps of a volume on disk.
#[derive(Debug)]
pub(crate) struct MapFile {
    file: BlockFile,
    volume: [u8; 16],
}

fn place(copy: u64, kind: MapKind, number: u32) -> u64 {
    copy * COPY + (kind as u64 - 1) * REGION + u64::from(number) * PAGE_LEN as u64
}

/// The error names the path already.
fn io(error: io::Error) -> Error {
    Error::io("volume", error)
}

impl MapFile {
    /// The maps of the volume with this id, in `file`.
    pub(crate) fn new(file: BlockFile, volume: [u8; 16]) -> Self {
        Self { file, volume }
    }

    fn page(&self, kind: MapKind, number: u32) -> PageOf<'_> {
        PageOf { volume: &self.volume, kind, number }
    }

    /// Reads what was written down into `maps`. A page of which one copy is damaged is written anew with the
    /// next flush.
    ///
    /// # Errors
    ///
    /// [`Kind::Corrupt`] where both copies of a page are damaged: then nobody knows what of the volume is here.
    pub(crate) fn load(&self, maps: &mut Maps) -> Result<()> {
        for kind in MapKind::ALL {
            let pages = maps.of(kind).len().div_ceil(bits::PAGE_BITS) as u32;
            let mut damaged: BTreeMap<u32, (u64, PageError)> = BTreeMap::new();
            for copy in 0..COPIES {
                self.load_copy(copy, kind, pages, |number, words| match words {
                    Ok(words) => {
                        maps.load(kind, number, &words);
                        Ok(())
                    }
                    Err(PageError::Version(version)) => Err(self.version(version)),
                    Err(error) if damaged.contains_key(&number) => {
                        Err(self.damaged(kind, number, copy, &error))
                    }
                    Err(error) => {
                        damaged.insert(number, (copy, error));
                        Ok(())
                    }
                })?;
            }
            for (number, (copy, _)) in &damaged {
                let (path, kind_name) = (self.file.path().display(), kind.name());
                tracing::warn!("{path}: page {number} of {kind_name}, copy {copy}, was damaged");
                maps.mark_dirty(kind, *number);
            }
        }
        Ok(())
    }

    fn version(&self, version: u8) -> Error {
        let path = self.file.path().display();
        Error::new(Kind::Unsupported, format!("{path}: maps of version {version}"))
    }

    fn damaged(&self, kind: MapKind, number: u32, copy: u64, error: &PageError) -> Error {
        let (path, name, at) = (self.file.path().display(), kind.name(), place(copy, kind, number));
        let what = format!(
            "{path}: offset {at}: page {number} of the map `{name}` {error}, and so does its other \
             copy: what of this volume is here cannot be told"
        );
        Error::new(Kind::Corrupt, what)
    }

    /// Reads the pages of a copy that take space.
    fn load_copy(
        &self,
        copy: u64,
        kind: MapKind,
        pages: u32,
        mut found: impl FnMut(u32, Result<bits::Words, PageError>) -> Result<()>,
    ) -> Result<()> {
        let start = place(copy, kind, 0);
        let end = place(copy, kind, pages);
        let mut buf = vec![0; READ * PAGE_LEN];
        for extent in self.file.data_extents(start..end) {
            let extent = extent.map_err(io)?;
            let mut number = ((extent.start - start) / PAGE_LEN as u64) as u32;
            let last = (extent.end - start).div_ceil(PAGE_LEN as u64).min(u64::from(pages)) as u32;
            while number < last {
                let count = ((last - number) as usize).min(READ);
                let part = &mut buf[..count * PAGE_LEN];
                let read = self.file.read_at(part, place(copy, kind, number)).map_err(io)?;
                part[read..].fill(0);
                for page in part.chunks_exact(PAGE_LEN) {
                    let page: &[u8; PAGE_LEN] = page.try_into().expect("a page");
                    found(number, self.page(kind, number).decode(page))?;
                    number += 1;
                }
            }
        }
        Ok(())
    }

    /// Writes pages, both copies of each. They last after [`sync`](Self::sync).
    pub(crate) async fn write(&self, engine: &Engine, pages: &[DirtyPage]) -> Result<()> {
        for (kind, first, bytes) in self.runs(pages) {
            for copy in 0..COPIES {
                let at = place(copy, kind, first);
                engine.write_bytes_at(&self.file, bytes.clone(), at).await.map_err(io)?;
            }
        }
        Ok(())
    }

    /// Pages that follow each other, together.
    fn runs(&self, pages: &[DirtyPage]) -> Vec<(MapKind, u32, Bytes)> {
        let mut runs: Vec<(MapKind, u32, BytesMut)> = Vec::new();
        for DirtyPage { kind, number, words } in pages {
            let page = self.page(*kind, *number).encode(words);
            match runs.last_mut() {
                Some((of, first, bytes))
                    if of == kind && *first + (bytes.len() / PAGE_LEN) as u32 == *number =>
                {
                    bytes.extend_from_slice(&page);
                }
                _ => runs.push((*kind, *number, BytesMut::from(&page[..]))),
            }
        }
        runs.into_iter().map(|(kind, first, bytes)| (kind, first, bytes.freeze())).collect()
    }

    /// Makes what was written last.
    pub(crate) async fn sync(&self, engine: &Engine) -> Result<()> {
        engine.sync_data(&self.file).await.map_err(io)
    }
}
