//! A guest: its memory, and a driver of virtio block devices over the front-end of the crate `vhost`.

use std::fs::File;
use std::num::Wrapping;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The guest's memory: rings in the first of these, data in the second.
const REGION: u64 = 4 << 20;
const FAR: u64 = 1 << 32;
/// Bytes for each ring.
const RING: u64 = 64 << 10;
/// Descriptors of each ring, and for each request in it.
pub const SIZE: u16 = 128;
const EACH: u16 = 8;
/// Bytes of data for each request.
const DATA: u64 = 1 << 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const EVENT_IDX: u64 = 1 << 29;

/// What survives the process that serves.
pub struct Guest {
    pub mem: GuestMemoryMmap,
    pub queues: Vec<Queue>,
    pub in_flight: Option<(VhostUserInflight, File)>,
    pub features: u64,
}

/// The driver's side of a ring.
pub struct Queue {
    index: u64,
    next: Wrapping<u16>,
    seen: Wrapping<u16>,
    kicked: Wrapping<u16>,
    kick: EventFd,
    call: EventFd,
    error: EventFd,
    event_idx: bool,
}

/// A request as the driver makes it.
pub struct Ask<'a> {
    pub kind: u32,
    pub sector: u64,
    /// What the device reads after the head.
    pub out: &'a [u8],
    /// How much it may write before the status.
    pub room: u32,
    /// Whether its descriptors lie in a table of their own.
    pub indirect: bool,
}

impl Guest {
    pub fn new(queues: u64) -> Self {
        let file = |_| {
            File::from(rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap())
        };
        let files = [file(0), file(1)];
        files.iter().for_each(|file| file.set_len(REGION).unwrap());
        let [near, far] = files;
        let mem = GuestMemoryMmap::from_ranges_with_files([
            (GuestAddress(0), REGION as usize, Some(FileOffset::new(near, 0))),
            (GuestAddress(FAR), REGION as usize, Some(FileOffset::new(far, 0))),
        ]);
        let queues = (0..queues).map(Queue::new).collect();
        Self { mem: mem.unwrap(), queues, in_flight: None, features: u64::MAX }
    }

    /// Shows a device everything, as a front-end does that connects for the first time or again.
    pub fn connect(&mut self, stream: UnixStream) -> Frontend {
        let mut front = Frontend::from_stream(stream, 256);
        front.set_owner().unwrap();
        let features = front.get_features().unwrap() & self.features;
        let offered = front.get_protocol_features().unwrap();
        front.set_protocol_features(offered).unwrap();
        assert!(
            offered.contains(VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG)
        );
        assert!(front.get_queue_num().unwrap() >= self.queues.len() as u64);
        front.set_features(features).unwrap();
        // From here on each message is acknowledged.
        front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        if self.in_flight.is_none() {
            let wanted = VhostUserInflight::new(0, 0, self.queues.len() as u16, SIZE);
            self.in_flight = Some(front.get_inflight_fd(&wanted).unwrap());
        }
        let (about, file) = self.in_flight.as_ref().unwrap();
        front.set_inflight_fd(about, file.as_raw_fd()).unwrap();
        let regions: Vec<_> = self
            .mem
            .iter()
            .map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap())
            .collect();
        front.set_mem_table(&regions).unwrap();
        for queue in &mut self.queues {
            queue.event_idx = features & EVENT_IDX != 0;
            queue.describe(&mut front, &self.mem);
        }
        front
    }

    pub fn config(front: &mut Frontend) -> Vec<u8> {
        front.get_config(0, 60, VhostUserConfigFlags::empty(), &[0; 60]).unwrap().1
    }
}

impl Queue {
    fn new(index: u64) -> Self {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let (kick, call, error) = (event(), event(), event());
        let (next, seen, kicked) = Default::default();
        Self { index, next, seen, kicked, kick, call, error, event_idx: false }
    }

    pub fn table(&self) -> GuestAddress {
        GuestAddress(self.index * RING)
    }

    fn available(&self) -> GuestAddress {
        self.table().unchecked_add(0x1000)
    }

    fn used(&self) -> GuestAddress {
        self.table().unchecked_add(0x2000)
    }

    /// Where heads, states and tables of requests lie.
    fn small(&self, slot: u16) -> GuestAddress {
        self.table().unchecked_add(0x3000 + u64::from(slot) * 0x100)
    }

    pub fn data(&self, slot: u16) -> GuestAddress {
        GuestAddress(FAR + (self.index * 16 + u64::from(slot)) * DATA)
    }

    fn describe(&self, front: &mut Frontend, mem: &GuestMemoryMmap) {
        let index = self.index as usize;
        let host = |at| GuestMemoryBackend::get_host_address(mem, at).unwrap() as u64;
        front.set_vring_num(index, SIZE).unwrap();
        let config = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: host(self.table()),
            used_ring_addr: host(self.used()),
            avail_ring_addr: host(self.available()),
            log_addr: None,
        };
        front.set_vring_addr(index, &config).unwrap();
        front.set_vring_base(index, self.seen.0).unwrap();
        front.set_vring_call(index, &self.call).unwrap();
        front.set_vring_err(index, &self.error).unwrap();
        front.set_vring_kick(index, &self.kick).unwrap();
        front.set_vring_enable(index, true).unwrap();
    }

    /// Lays a request out and makes it available, without a kick.
    pub fn submit(&mut self, mem: &GuestMemoryMmap, slot: u16, ask: &Ask<'_>) {
        let (small, data) = (self.small(slot), self.data(slot));
        mem.write_obj(ask.kind, small).unwrap();
        mem.write_obj(ask.sector, small.unchecked_add(8)).unwrap();
        mem.write_obj(0xffu8, small.unchecked_add(16)).unwrap();
        mem.write_slice(ask.out, data).unwrap();
        let mut pieces = vec![(small, 16, 0)];
        let (len, flags) = match ask.room {
            0 => (ask.out.len() as u32, 0),
            room => (room, WRITE),
        };
        // In two pieces, of which the second is the longer one, and not aligned to anything.
        let first = len.min(100);
        pieces.push((data, first, flags));
        pieces.push((data.unchecked_add(u64::from(first)), len - first, flags));
        pieces.retain(|(_, len, _)| *len > 0);
        pieces.push((small.unchecked_add(16), 1, WRITE));
        let head = slot * EACH;
        if ask.indirect {
            let table = small.unchecked_add(32);
            self.write_chain(mem, table, 0, &pieces);
            let bytes = pieces.len() as u32 * 16;
            self.write_descriptor(mem, self.table(), head, (table, bytes, INDIRECT), 0);
        } else {
            self.write_chain(mem, self.table(), head, &pieces);
        }
        self.make_available(mem, head);
    }

    fn write_chain(
        &self,
        mem: &GuestMemoryMmap,
        table: GuestAddress,
        head: u16,
        pieces: &[(GuestAddress, u32, u16)],
    ) {
        for (n, piece) in (0u16..).zip(pieces) {
            let last = usize::from(n) + 1 == pieces.len();
            let flags = piece.2 | if last { 0 } else { NEXT };
            self.write_descriptor(mem, table, head + n, (piece.0, piece.1, flags), head + n + 1);
        }
    }

    pub fn write_descriptor(
        &self,
        mem: &GuestMemoryMmap,
        table: GuestAddress,
        index: u16,
        (at, len, flags): (GuestAddress, u32, u16),
        next: u16,
    ) {
        let place = table.unchecked_add(u64::from(index) * 16);
        mem.write_obj(at.0, place).unwrap();
        mem.write_obj(len, place.unchecked_add(8)).unwrap();
        mem.write_obj(flags, place.unchecked_add(12)).unwrap();
        mem.write_obj(next, place.unchecked_add(14)).unwrap();
    }

    pub fn make_available(&mut self, mem: &GuestMemoryMmap, head: u16) {
        let place = 4 + u64::from(self.next.0 % SIZE) * 2;
        mem.write_obj(head, self.available().unchecked_add(place)).unwrap();
        self.next += 1;
        mem.store(self.next.0, self.available().unchecked_add(2), Ordering::Release).unwrap();
    }

    /// Kicks, if the device wants to be.
    pub fn kick(&mut self, mem: &GuestMemoryMmap) {
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.used().unchecked_add(4 + u64::from(SIZE) * 8);
            let event = Wrapping(mem.load::<u16>(event, Ordering::Relaxed).unwrap());
            self.next - event - Wrapping(1) < self.next - self.kicked
        } else {
            mem.load::<u16>(self.used(), Ordering::Relaxed).unwrap() & 1 == 0
        };
        self.kicked = self.next;
        if wanted {
            self.kick.write(1).unwrap();
        }
    }

    /// Waits for an answer by sleeping until the device calls, as a guest does. Gives the slot, the
    /// status, and the bytes that the device says it wrote.
    pub fn answer(&mut self, mem: &GuestMemoryMmap) -> (u16, u8, u32) {
        loop {
            if let Some(answer) = self.look(mem) {
                return answer;
            }
            if self.event_idx {
                let event = self.available().unchecked_add(4 + u64::from(SIZE) * 2);
                mem.store(self.seen.0, event, Ordering::Relaxed).unwrap();
                fence(Ordering::SeqCst);
                if let Some(answer) = self.look(mem) {
                    return answer;
                }
            }
            wait(&self.call);
        }
    }

    /// An answer, if one is there.
    pub fn look(&mut self, mem: &GuestMemoryMmap) -> Option<(u16, u8, u32)> {
        let used = mem.load::<u16>(self.used().unchecked_add(2), Ordering::Acquire).unwrap();
        if used == self.seen.0 {
            return None;
        }
        let place = self.used().unchecked_add(4 + u64::from(self.seen.0 % SIZE) * 8);
        let (head, len): (u32, u32) =
            (mem.read_obj(place).unwrap(), mem.read_obj(place.unchecked_add(4)).unwrap());
        self.seen += 1;
        let slot = head as u16 / EACH;
        let status = mem.read_obj(self.small(slot).unchecked_add(16)).unwrap();
        Some((slot, status, len))
    }

    /// Submits one request, and waits for its answer.
    pub fn ask(&mut self, mem: &GuestMemoryMmap, ask: &Ask<'_>) -> u8 {
        self.submit(mem, 0, ask);
        self.kick(mem);
        let (slot, status, _) = self.answer(mem);
        assert_eq!(slot, 0);
        status
    }

    /// Waits until the device says that the ring is broken.
    pub fn breaks(&self) {
        wait(&self.error);
    }

    /// What a read has put into a slot.
    pub fn read_data(&self, mem: &GuestMemoryMmap, slot: u16, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        mem.read_slice(&mut data, self.data(slot)).unwrap();
        data
    }
}

fn wait(event: &EventFd) {
    for _ in 0..60_000 {
        if event.read().is_ok() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    panic!("the device does not call");
}
