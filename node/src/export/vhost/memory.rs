//! The guest's memory, as far as the front-end has shown it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use image::{Error, Kind, Result};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestMemoryResult, GuestRegionMmap, MmapRegion, Permissions,
};

use super::message::Region;

/// The most regions at a time.
pub const MAX_REGIONS: usize = 256;

/// What requests see: it stays mapped while anybody holds it.
pub type Mapped = Arc<GuestMemoryMmap>;

/// The regions that are mapped now, and where the front-end sees them.
#[derive(Default)]
pub struct Memory {
    regions: Vec<(Region, Arc<GuestRegionMmap>)>,
    mapped: Mapped,
}

impl Memory {
    /// What is mapped now.
    pub fn mapped(&self) -> &Mapped {
        &self.mapped
    }

    /// Puts these regions in place of all that were there.
    pub fn replace(&mut self, table: Vec<(Region, OwnedFd)>) -> Result<()> {
        let regions = table.into_iter().map(|(region, fd)| Ok((region, map(&region, fd)?)));
        self.take(regions.collect::<Result<_>>()?)
    }

    /// Adds a region.
    pub fn add(&mut self, region: Region, fd: OwnedFd) -> Result<()> {
        if self.regions.len() == MAX_REGIONS {
            return Err(Error::new(Kind::Full, "more regions of guest memory than are taken"));
        }
        let mut regions = self.regions.clone();
        regions.push((region, map(&region, fd)?));
        self.take(regions)
    }

    /// Takes a region away. Requests that are under way keep it mapped until they end.
    pub fn remove(&mut self, region: &Region) -> Result<()> {
        let same =
            |r: &Region| (r.guest, r.size, r.user) == (region.guest, region.size, region.user);
        let mut regions = self.regions.clone();
        let place = regions.iter().position(|(r, _)| same(r));
        let place = place.ok_or_else(|| Error::new(Kind::Invalid, "no such region of memory"))?;
        regions.remove(place);
        self.take(regions)
    }

    /// Where the guest sees what the front-end sees at `user`.
    pub fn guest_address(&self, user: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|(region, _)| {
            let inside = user.checked_sub(region.user).filter(|inside| *inside < region.size)?;
            region.guest.checked_add(inside).map(GuestAddress)
        })
    }

    fn take(&mut self, mut regions: Vec<(Region, Arc<GuestRegionMmap>)>) -> Result<()> {
        regions.sort_by_key(|(region, _)| region.guest);
        let all: Vec<_> = regions.iter().map(|(_, mapped)| Arc::clone(mapped)).collect();
        let mapped = match all.is_empty() {
            true => GuestMemoryMmap::new(),
            false => GuestMemoryMmap::from_arc_regions(all)
                .map_err(|e| Error::caused(Kind::Invalid, format!("guest memory: {e}"), e))?,
        };
        self.mapped = Arc::new(mapped);
        self.regions = regions;
        Ok(())
    }
}

fn map(region: &Region, fd: OwnedFd) -> Result<Arc<GuestRegionMmap>> {
    let mapping = shared(fd, region.offset, region.size)?;
    let mapped = GuestRegionMmap::new(mapping, GuestAddress(region.guest));
    let mapped = mapped.filter(|m| m.start_addr().0.checked_add(m.len()).is_some());
    let wraps = || Error::new(Kind::Invalid, "a region of guest memory ends beyond all addresses");
    mapped.map(Arc::new).ok_or_else(wraps)
}

/// Copies guest memory. Nearly always it is one piece, which is found faster than the pieces that the
/// library would put together.
pub fn read(mem: &GuestMemoryMmap, at: GuestAddress, buf: &mut [u8]) -> GuestMemoryResult<()> {
    match GuestMemoryBackend::get_slice(mem, at, buf.len()) {
        Ok(piece) => {
            piece.copy_to(buf);
            Ok(())
        }
        Err(_) => mem.read_slice(buf, at),
    }
}

/// Copies into guest memory; see [`read`].
pub fn write(mem: &GuestMemoryMmap, at: GuestAddress, buf: &[u8]) -> GuestMemoryResult<()> {
    match GuestMemoryBackend::get_slice(mem, at, buf.len()) {
        Ok(piece) => {
            piece.copy_from(buf);
            Ok(())
        }
        Err(_) => mem.write_slice(buf, at),
    }
}

/// Whether the guest has all of this memory.
pub fn exists(mem: &GuestMemoryMmap, at: GuestAddress, len: u32) -> bool {
    let len = len as usize;
    GuestMemoryBackend::get_slice(mem, at, len).is_ok()
        || GuestMemory::check_range(mem, at, len, Permissions::ReadWrite)
}

/// Maps a piece of a file for reading and writing, shared with whoever else has.
///
/// The file must be long enough: touching what lies beyond its end would kill us. Whoever cut it short
/// later could still do that, which is why the front-end is trusted not to.
pub fn shared(fd: OwnedFd, offset: u64, size: u64) -> Result<MmapRegion> {
    let file = File::from(fd);
    let about = file.metadata().map_err(|e| Error::io("shared memory", e))?;
    let end = offset.checked_add(size);
    if !about.is_file() || size == 0 || end.is_none_or(|end| end > about.len()) {
        let message = format!("shared memory: no {size} bytes at {offset} in what came for it");
        return Err(Error::new(Kind::Invalid, message));
    }
    let size = usize::try_from(size).map_err(|e| Error::caused(Kind::Invalid, "memory", e))?;
    MmapRegion::from_file(FileOffset::new(file, offset), size)
        .map_err(|e| Error::caused(Kind::Io, format!("shared memory: {e}"), e))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    fn file(size: u64) -> OwnedFd {
        let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, size).unwrap();
        fd
    }

    fn region(guest: u64, user: u64, size: u64) -> Region {
        Region { guest, size, user, offset: 0 }
    }

    #[test]
    fn addresses_of_the_front_end_are_found_in_the_guest() {
        let mut memory = Memory::default();
        let table = [(0x10_0000, 0x7000_0000), (0, 0x9000_0000)];
        let table = table.map(|(guest, user)| (region(guest, user, 0x1_0000), file(0x1_0000)));
        memory.replace(table.into()).unwrap();
        assert_eq!(memory.guest_address(0x7000_0010), Some(GuestAddress(0x10_0010)));
        assert_eq!(memory.guest_address(0x9000_ffff), Some(GuestAddress(0xffff)));
        assert_eq!(memory.guest_address(0x9001_0000), None);
        assert_eq!(memory.guest_address(0), None);
    }

    #[test]
    fn regions_come_and_go_one_by_one() {
        let mut memory = Memory::default();
        let (low, high) = (region(0, 0x1000, 0x1000), region(0x1000, 0x8000, 0x1000));
        memory.add(high, file(0x1000)).unwrap();
        memory.add(low, file(0x1000)).unwrap();
        let held = Arc::clone(memory.mapped());
        memory.remove(&high).unwrap();
        assert_eq!((held.num_regions_for_test(), memory.mapped().num_regions_for_test()), (2, 1));
        assert!(memory.remove(&high).is_err());
        assert!(memory.add(low, file(0x1000)).is_err(), "it overlaps");
        memory.remove(&low).unwrap();
        assert_eq!(memory.guest_address(0x1000), None);
    }

    #[test]
    fn what_cannot_be_mapped_whole_is_refused() {
        let mut memory = Memory::default();
        let mut add = |region, fd| memory.add(region, fd).is_err();
        assert!(add(region(0, 0, 0x2000), file(0x1000)), "the file is too short");
        assert!(add(region(0, 0, 0), file(0x1000)), "nothing");
        assert!(add(region(u64::MAX - 0xfff, 0, 0x1000), file(0x1000)), "ends beyond all");
        let past = Region { offset: u64::MAX, ..region(0, 0, 0x1000) };
        assert!(add(past, file(0x1000)), "begins beyond all");
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        assert!(add(region(0, 0, 0x1000), event), "no file");
    }

    trait Count {
        fn num_regions_for_test(&self) -> usize;
    }

    impl Count for Mapped {
        fn num_regions_for_test(&self) -> usize {
            self.as_ref().num_regions()
        }
    }
}
