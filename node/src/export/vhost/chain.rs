//! Chains of descriptors, as guests lay them out (virtio 1.2, section 2.7.5).
//!
//! All that stands here was written by the guest, and may be changed by it at any time: every field is
//! read once, and what was read is checked.

use blockio::GuestBuf;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, ByteValued, GuestAddress, GuestMemoryMmap};

use super::memory::{self, Mapped};

/// The longest chain that is followed, in descriptors: twice of what a driver may make.
const MAX_DESCRIPTORS: usize = 256;
const DESCRIPTOR: u32 = size_of::<Descriptor>() as u32;

/// The guest broke the rules of the ring; nothing that it says can be relied on.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A descriptor that does not exist, or a loop.
    #[error("a chain of descriptors that leads nowhere")]
    Chain,
    /// A table that does not hold whole descriptors, or names another table.
    #[error("a table of descriptors that cannot be one")]
    Table,
    /// What the device may only read comes after what it may write.
    #[error("descriptors in the wrong order")]
    Order,
    /// No such guest memory.
    #[error("a descriptor outside of the guest's memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// Not even room for the head of a request and its status.
    #[error("a request without head or status")]
    Short,
    /// A request that is under way already.
    #[error("a request that is under way was made available again")]
    Twice,
    /// The memory that the ring lies in was taken away.
    #[error("the ring's memory is gone")]
    Gone,
    /// The ring itself.
    #[error("the ring: {0}")]
    Ring(#[from] virtio_queue::Error),
}

/// Pieces of guest memory, read or written as if they were one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    /// None of them empty, each inside the guest's memory when it was put here.
    list: Vec<(GuestAddress, u32)>,
    bytes: u64,
}

impl Spans {
    /// Their length together, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn push(&mut self, at: GuestAddress, len: u32) {
        if len > 0 {
            self.list.push((at, len));
            self.bytes += u64::from(len);
        }
    }

    /// Takes the first `N` bytes off and gives them.
    pub fn take_front<const N: usize>(&mut self, mem: &GuestMemoryMmap) -> Result<[u8; N], Broken> {
        let mut front = [0; N];
        if self.bytes < N as u64 {
            return Err(Broken::Short);
        }
        self.copy_out(mem, 0, &mut front)?;
        let mut left = N as u64;
        while left > 0 {
            let (at, len) = &mut self.list[0];
            if u64::from(*len) > left {
                // The span lies in memory whole, so its addresses do not wrap.
                *at = at.unchecked_add(left);
                *len -= left as u32;
                break;
            }
            left -= u64::from(*len);
            self.list.remove(0);
        }
        self.bytes -= N as u64;
        Ok(front)
    }

    /// Takes the last byte off and says where it is.
    pub fn take_last(&mut self) -> Result<GuestAddress, Broken> {
        let (at, len) = self.list.last_mut().ok_or(Broken::Short)?;
        *len -= 1;
        self.bytes -= 1;
        let place = at.unchecked_add(u64::from(*len));
        if *len == 0 {
            self.list.pop();
        }
        Ok(place)
    }

    /// Copies guest memory, from `skip` bytes after the start on, to `buf`. They must be there.
    pub fn copy_out(
        &self,
        mem: &GuestMemoryMmap,
        skip: u64,
        buf: &mut [u8],
    ) -> Result<(), vm_memory::GuestMemoryError> {
        let mut left = buf;
        for (at, len) in self.from(skip) {
            let (now, later) = left.split_at_mut(left.len().min(len));
            memory::read(mem, at, now)?;
            left = later;
            if left.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Copies `buf` to guest memory, from `skip` bytes after the start on. There must be room.
    pub fn copy_in(
        &self,
        mem: &GuestMemoryMmap,
        skip: u64,
        buf: &[u8],
    ) -> Result<(), vm_memory::GuestMemoryError> {
        let mut left = buf;
        for (at, len) in self.from(skip) {
            let (now, later) = left.split_at(left.len().min(len));
            memory::write(mem, at, now)?;
            left = later;
            if left.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// The pieces as they are mapped, for a read without a copy; see [`GuestBuf::new`].
    pub fn mapped(&self, mem: &Mapped) -> Option<GuestBuf> {
        GuestBuf::new(mem, self.from(0))
    }

    /// The pieces that are left after the first `skip` bytes.
    fn from(&self, mut skip: u64) -> impl Iterator<Item = (GuestAddress, usize)> {
        self.list.iter().filter_map(move |(at, len)| {
            let skipped = skip.min(u64::from(*len));
            skip -= skipped;
            let left = u64::from(*len) - skipped;
            (left > 0).then(|| (at.unchecked_add(skipped), left as usize))
        })
    }
}

/// What one entry of the available ring leads to.
#[derive(Debug, PartialEq, Eq)]
pub struct Chain {
    /// What the guest says.
    pub readable: Spans,
    /// Where the answer goes.
    pub writable: Spans,
}

/// Follows the chain that begins with descriptor `head` of a table of `size`.
pub fn walk(
    mem: &GuestMemoryMmap,
    table: GuestAddress,
    size: u16,
    head: u16,
) -> Result<Chain, Broken> {
    let mut chain = Chain { readable: Spans::default(), writable: Spans::default() };
    let mut place = Place { table, size: u32::from(size), next: u32::from(head), indirect: false };
    for _ in 0..=MAX_DESCRIPTORS {
        let descriptor = place.read(mem)?;
        if descriptor.refers_to_indirect_table() {
            place = place.enter(&descriptor)?;
            continue;
        }
        chain.add(mem, &descriptor)?;
        if !descriptor.has_next() {
            return Ok(chain);
        }
        place.next = u32::from(descriptor.next());
    }
    Err(Broken::Chain)
}

impl Chain {
    fn add(&mut self, mem: &GuestMemoryMmap, descriptor: &Descriptor) -> Result<(), Broken> {
        let (at, len) = (descriptor.addr(), descriptor.len());
        let side = match descriptor.is_write_only() {
            true => &mut self.writable,
            false if self.writable.list.is_empty() => &mut self.readable,
            false => return Err(Broken::Order),
        };
        if len > 0 && !memory::exists(mem, at, len) {
            return Err(Broken::Memory(vm_memory::GuestMemoryError::InvalidGuestAddress(at)));
        }
        side.push(at, len);
        Ok(())
    }
}

/// A descriptor in a table.
struct Place {
    table: GuestAddress,
    size: u32,
    next: u32,
    indirect: bool,
}

impl Place {
    fn read(&self, mem: &GuestMemoryMmap) -> Result<Descriptor, Broken> {
        if self.next >= self.size {
            return Err(Broken::Chain);
        }
        let offset = u64::from(self.next) * u64::from(DESCRIPTOR);
        let at = self.table.checked_add(offset).ok_or(Broken::Chain)?;
        let mut descriptor = Descriptor::default();
        memory::read(mem, at, descriptor.as_mut_slice())?;
        Ok(descriptor)
    }

    /// The first descriptor of the table that a descriptor names.
    fn enter(&self, descriptor: &Descriptor) -> Result<Self, Broken> {
        let whole = descriptor.len() > 0 && descriptor.len().is_multiple_of(DESCRIPTOR);
        if self.indirect || descriptor.has_next() || !whole {
            return Err(Broken::Table);
        }
        let size = descriptor.len() / DESCRIPTOR;
        Ok(Self { table: descriptor.addr(), size, next: 0, indirect: true })
    }
}
