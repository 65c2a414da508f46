//! The layout of a `streamOptimized` vmdk, front to back.
//!
//! ```text
//! | header | descriptor … | grain | … | marker | grain table | grain | … | marker | grain table |
//! | marker | grain directory | marker | header again: where the directory is | end-of-stream marker |
//! ```
//! All of it is whole sectors, and all numbers are little-endian. A grain table is written when the disk has
//! passed what it maps (32 MiB, with grains of 64 KiB).

use bytes::Bytes;
use image::{Digest, Error, Kind, Result};

use super::pack::Packed;
use super::{End, Piece};

const SECTOR: u64 = 512;
const MAGIC: &[u8; 4] = b"KDMV";
/// What VMware's own tools and QEMU write: compressed, with markers, to be read only.
const VERSION: u32 = 3;
/// Line ends can be tested; grains are compressed; there are markers.
const FLAGS: u32 = 1 | 1 << 16 | 1 << 17;
const DEFLATE: u16 = 1;
/// Where the directory is, of a header that stands before it: see the end.
const AT_END: u64 = u64::MAX;
const DESCRIPTOR_AT: u64 = 1;
const DESCRIPTOR_SECTORS: u64 = 20;
/// Where the first grain lies.
const OVERHEAD: u64 = 128;
const ENTRIES: usize = 512;
const TABLE_SECTORS: u64 = 4;

const TABLE: u32 = 1;
const DIRECTORY: u32 = 2;
const FOOTER: u32 = 3;
const END_OF_STREAM: u32 = 0;

/// A vmdk file that is being laid out.
#[derive(Debug)]
pub(super) struct Vmdk {
    log2: u8,
    size: u64,
    /// The header and the descriptor, until they are written.
    begin: Option<Bytes>,
    /// Sectors of the file so far.
    end: u64,
    directory: Vec<u32>,
    /// Which grain table is being filled, and its entries.
    table: Option<(usize, Vec<u32>)>,
}

impl Vmdk {
    pub(super) fn new(size: u64, log2: u8, image: &Digest, name: &str) -> Self {
        let mut begin = header(size, log2, AT_END);
        begin.resize((OVERHEAD * SECTOR) as usize, 0);
        let text = descriptor(size / SECTOR, image, name);
        let at = (DESCRIPTOR_AT * SECTOR) as usize;
        begin[at..at + text.len()].copy_from_slice(text.as_bytes());
        let tables = size.div_ceil((ENTRIES as u64) << log2) as usize;
        let (begin, directory) = (Some(begin.into()), vec![0; tables]);
        Self { log2, size, begin, end: 0, directory, table: None }
    }

    pub(super) fn place(&mut self, packed: &Packed) -> Result<Vec<Piece>> {
        let mut pieces = Vec::with_capacity(packed.cells.len() + 1);
        self.begin(&mut pieces);
        for cell in &packed.cells {
            let grain = cell.at >> self.log2;
            let (table, entry) = ((grain / ENTRIES as u64) as usize, grain % ENTRIES as u64);
            if self.table.as_ref().is_none_or(|(index, _)| *index != table) {
                self.flush(&mut pieces)?;
            }
            let at = self.sector()?;
            let (_, entries) = self.table.get_or_insert_with(|| (table, vec![0; ENTRIES]));
            entries[entry as usize] = at;
            self.push(&mut pieces, packed.bytes.slice(cell.range.clone()));
        }
        Ok(pieces)
    }

    fn begin(&mut self, pieces: &mut Vec<Piece>) {
        if let Some(begin) = self.begin.take() {
            self.push(pieces, begin);
        }
    }

    /// Adds whole sectors.
    fn push(&mut self, pieces: &mut Vec<Piece>, bytes: Bytes) {
        debug_assert!((bytes.len() as u64).is_multiple_of(SECTOR));
        let at = self.end * SECTOR;
        self.end += bytes.len() as u64 / SECTOR;
        pieces.push(Piece { at, bytes });
    }

    /// The sector at which the file ends, as tables name it.
    fn sector(&self) -> Result<u32> {
        u32::try_from(self.end).map_err(|e| {
            let what = "a vmdk file has 2 TiB at most: export to qcow2 or raw";
            Error::caused(Kind::Unsupported, what, e)
        })
    }

    /// Writes the table at hand.
    fn flush(&mut self, pieces: &mut Vec<Piece>) -> Result<()> {
        if let Some((index, entries)) = self.table.take() {
            self.push(pieces, marker(TABLE_SECTORS, TABLE));
            self.directory[index] = self.sector()?;
            self.push(pieces, numbers(&entries));
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<End> {
        let mut pieces = Vec::new();
        self.begin(&mut pieces);
        self.flush(&mut pieces)?;
        let directory = numbers(&self.directory);
        self.push(&mut pieces, marker(directory.len() as u64 / SECTOR, DIRECTORY));
        let at = u64::from(self.sector()?);
        self.push(&mut pieces, directory);
        self.push(&mut pieces, marker(1, FOOTER));
        let footer = header(self.size, self.log2, at);
        self.push(&mut pieces, footer.into());
        self.push(&mut pieces, marker(0, END_OF_STREAM));
        Ok(End { pieces, len: self.end * SECTOR })
    }
}

/// Says what follows, and how many sectors of it.
fn marker(sectors: u64, kind: u32) -> Bytes {
    let mut bytes = vec![0; SECTOR as usize];
    bytes[..8].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..16].copy_from_slice(&kind.to_le_bytes());
    bytes.into()
}

/// Numbers in whole sectors, one at least.
fn numbers(numbers: &[u32]) -> Bytes {
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    bytes.resize(bytes.len().max(1).next_multiple_of(SECTOR as usize), 0);
    bytes.into()
}

fn header(size: u64, log2: u8, directory: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SECTOR as usize);
    let mut put = |field: &[u8]| bytes.extend_from_slice(field);
    put(MAGIC);
    put(&VERSION.to_le_bytes());
    put(&FLAGS.to_le_bytes());
    put(&(size / SECTOR).to_le_bytes());
    put(&((1 << log2) / SECTOR).to_le_bytes());
    put(&DESCRIPTOR_AT.to_le_bytes());
    put(&DESCRIPTOR_SECTORS.to_le_bytes());
    put(&(ENTRIES as u32).to_le_bytes());
    // No second directory.
    put(&0u64.to_le_bytes());
    put(&directory.to_le_bytes());
    put(&OVERHEAD.to_le_bytes());
    // Closed cleanly; and what a transfer that takes it for text would break.
    put(b"\0\n \r\n");
    put(&DEFLATE.to_le_bytes());
    bytes.resize(SECTOR as usize, 0);
    bytes
}

/// The text that says what the disk is made of. Its identifier, by which VMware notices that a disk has changed, is
/// of the image's; the adapter is what every guest of the last twenty years has a driver for.
fn descriptor(sectors: u64, image: &Digest, name: &str) -> String {
    let id = content_id(image);
    let name: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let cylinders = sectors.div_ceil(255 * 63).min(65535);
    let text = format!(
        "# Disk DescriptorFile\n\
         version=1\n\
         encoding=\"UTF-8\"\n\
         CID={id:08x}\n\
         parentCID=ffffffff\n\
         createType=\"streamOptimized\"\n\
         \n\
         # Extent description\n\
         RW {sectors} SPARSE \"{name}\"\n\
         \n\
         # The Disk Data Base\n\
         #DDB\n\
         \n\
         ddb.virtualHWVersion = \"4\"\n\
         ddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"255\"\n\
         ddb.geometry.sectors = \"63\"\n\
         ddb.adapterType = \"lsilogic\"\n"
    );
    debug_assert!(text.len() as u64 <= DESCRIPTOR_SECTORS * SECTOR);
    text
}

/// What cannot end the quoted name, or its line.
fn is_plain(c: char) -> bool {
    !c.is_control() && c != '"'
}

/// The first bytes of the image's digest, unless these mean "none" or "all zeros" to some.
fn content_id(image: &Digest) -> u32 {
    let bytes = &image.0;
    let id = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    if id >= 0xffff_fffe { 0x7fff_ffff } else { id }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::foreign::pack::{How, Packer};

    #[test]
    fn what_its_tables_cannot_name_is_refused() {
        let mut vmdk = Vmdk::new(1 << 20, 16, &Digest::ZERO, "disk");
        let packed = || Packer::new(16, How::Grains).pack_bytes(0, vec![1; 65536].into()).unwrap();
        vmdk.place(&packed()).unwrap();
        vmdk.end = u64::from(u32::MAX);
        vmdk.place(&packed()).unwrap();
        let refused = vmdk.place(&packed()).unwrap_err();
        assert_eq!(refused.kind(), Kind::Unsupported);
        assert!(refused.message().contains("2 TiB") && refused.message().contains("qcow2"));
        assert_eq!(vmdk.finish().unwrap_err().kind(), Kind::Unsupported);
    }
}
