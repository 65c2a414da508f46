//! Looks at what a reused target holds of a section. Old bytes count as ours only after they have
//! been hashed again: there is no map that could lie.

use blockio::{BlockFile, FileKind};
use image::{ChunkSet, Digest, Error, Geometry, Result, SectionTable, is_zero};

/// What a scan found.
pub(crate) struct Found {
    /// Chunks that hold data by the table and do not match here.
    pub(crate) missing: ChunkSet,
    /// Chunks that must be zeros and are not.
    pub(crate) to_zero: Vec<u32>,
}

/// Compares a section of a file with its table. Holes are not read.
pub(crate) fn scan(
    file: &BlockFile,
    geometry: &Geometry,
    section: u32,
    table: &SectionTable,
) -> Result<Found> {
    let data = chunks_with_data(file, geometry, section)?;
    let mut found = Found { missing: ChunkSet::empty(table.chunks()), to_zero: Vec::new() };
    let mut buf = vec![0; geometry.chunk_len()];
    for (chunk, digest) in table.digests().iter().enumerate() {
        let chunk = chunk as u32;
        let plain = &mut buf[..geometry.chunk_len_at(section, chunk)];
        let at = geometry.chunk_start(section, chunk);
        match (data.contains(chunk), digest.is_zero()) {
            (false, true) => {}
            (false, false) => found.missing.insert(chunk),
            // A device says "data" of everything, so it is read; in a file a hole costs nothing.
            (true, true) if file.kind() == FileKind::Block => {
                read(file, plain, at)?;
                if !is_zero(plain) {
                    found.to_zero.push(chunk);
                }
            }
            (true, true) => found.to_zero.push(chunk),
            (true, false) => {
                read(file, plain, at)?;
                if Digest::of_chunk(plain) != *digest {
                    found.missing.insert(chunk);
                }
            }
        }
    }
    Ok(found)
}

/// An earlier image may end before this one does; what will be added to it is zeros.
fn read(file: &BlockFile, plain: &mut [u8], at: u64) -> Result<()> {
    let there = file.read_at(plain, at).map_err(|e| Error::io("target", e))?;
    plain[there..].fill(0);
    Ok(())
}

/// The chunks of a section in which the file has anything but holes.
fn chunks_with_data(file: &BlockFile, geometry: &Geometry, section: u32) -> Result<ChunkSet> {
    let start = geometry.section_start(section);
    let mut data = ChunkSet::empty(geometry.chunks_in(section));
    for extent in file.data_extents(start..start + geometry.section_len(section)) {
        let extent = extent.map_err(|e| Error::io("target", e))?;
        let chunk_at = |at: u64| ((at - start) >> geometry.chunk_log2()) as u32;
        for chunk in chunk_at(extent.start)..=chunk_at(extent.end - 1) {
            data.insert(chunk);
        }
    }
    Ok(data)
}
