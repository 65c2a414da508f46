//! What a disk holds in these tests: in three windows a tag in each sector, and zeros between them.

use std::ops::Range;

use image::geometry::SECTION_LEN;
use image::{Digest, Domain, Geometry, Manifest, SectionTable};

/// Smaller than what a capture reads in one go.
pub const CHUNK_LOG2: u8 = 16;
pub const CHUNK: u64 = 1 << CHUNK_LOG2;
pub const SECTOR: u64 = 512;
pub const WINDOW: u64 = 256 << 10;
/// Two in one section, one of them of zeros at first; one in the next.
pub const WINDOWS: [u64; 3] = [0, 32 << 20, SECTION_LEN];
pub const SIZE: u64 = SECTION_LEN + WINDOW;
/// Sectors of a window.
const EACH: usize = (WINDOW / SECTOR) as usize;
/// Sectors of all windows.
pub const SECTORS: usize = WINDOWS.len() * EACH;

/// What a sector holds: the number of the write that put it there, below [`OF_IMAGE`].
pub type Tag = u32;
const OF_IMAGE: Tag = 1 << 24;

/// A tag for each sector of the windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content(pub Vec<Tag>);

pub fn geometry() -> Geometry {
    Geometry::new(SIZE, SECTOR as u32, CHUNK_LOG2).unwrap()
}

/// Where a sector of the windows lies, in bytes.
pub fn place(sector: usize) -> u64 {
    WINDOWS[sector / EACH] + (sector % EACH) as u64 * SECTOR
}

/// Where the chunks of the windows lie, and which sectors they have.
pub fn chunks() -> impl Iterator<Item = (u64, Range<usize>)> {
    const OF_CHUNK: usize = (CHUNK / SECTOR) as usize;
    (0..SECTORS).step_by(OF_CHUNK).map(|sector| (place(sector), sector..sector + OF_CHUNK))
}

pub fn bytes_of(tags: &[Tag]) -> Vec<u8> {
    tags.iter().flat_map(|tag| tag.to_le_bytes().repeat(SECTOR as usize / 4)).collect()
}

impl Content {
    /// Of the image that the volume is made of.
    pub fn original() -> Self {
        let tag = |sector: usize| if sector / EACH == 1 { 0 } else { OF_IMAGE + sector as Tag };
        Self((0..SECTORS).map(tag).collect())
    }

    /// The bytes of the chunk that lies here, of one that has any.
    pub fn chunk(&self, at: u64) -> Option<Vec<u8>> {
        let (_, sectors) = chunks().find(|(place, _)| *place == at)?;
        Some(bytes_of(&self.0[sectors]))
    }

    pub fn tables(&self) -> Vec<SectionTable> {
        let geometry = geometry();
        let mut digests: Vec<Vec<Digest>> = (0..geometry.sections())
            .map(|section| vec![Digest::ZERO; geometry.chunks_in(section) as usize])
            .collect();
        for (at, sectors) in chunks() {
            let tags = &self.0[sectors];
            if tags.iter().any(|tag| *tag != 0) {
                let (section, chunk) = (at / SECTION_LEN, at % SECTION_LEN / CHUNK);
                digests[section as usize][chunk as usize] = Digest::of_chunk(&bytes_of(tags));
            }
        }
        digests.into_iter().map(|digests| SectionTable::new(Domain::PUBLIC, digests)).collect()
    }

    pub fn manifest(&self) -> Manifest {
        let sections = self.tables().iter().map(SectionTable::digest).collect();
        Manifest::new(Domain::PUBLIC, geometry(), sections)
    }

    /// The image that is made of a disk that holds this.
    pub fn image(&self) -> Digest {
        self.manifest().identity()
    }
}
