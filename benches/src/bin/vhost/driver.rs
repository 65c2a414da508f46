//! A driver for virtio block devices in user space: one split ring with events, in memory that it
//! shares over a vhost-user socket. It sleeps until it is called, as a guest does.

use std::fs::File;
use std::num::Wrapping;
use std::os::fd::AsRawFd;
use std::sync::atomic::{Ordering, fence};

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const SIZE: u16 = 512;
const TABLE: u64 = 0;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x5000;
/// Heads and states, 32 bytes for each request.
const HEADS: u64 = 0x8000;
const DATA: u64 = 0x10_0000;
/// Descriptors of a request: head, data, status.
const EACH: u16 = 3;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | 1 << 9;

pub struct Driver {
    mem: GuestMemoryMmap,
    front: Frontend,
    kick: EventFd,
    call: EventFd,
    calls: Epoll,
    next: Wrapping<u16>,
    kicked: Wrapping<u16>,
    seen: Wrapping<u16>,
    block: u32,
    /// Of the disk, in bytes.
    pub capacity: u64,
}

impl Driver {
    pub fn connect(path: &str, depth: u16, block: u32) -> Self {
        assert!(depth * EACH <= SIZE, "at most {} requests at a time", SIZE / EACH);
        let bytes = DATA + u64::from(depth) * u64::from(block);
        let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        file.set_len(bytes).unwrap();
        let range = (GuestAddress(0), bytes as usize, Some(FileOffset::new(file, 0)));
        let mem = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let mut front = Frontend::connect(path, 1).unwrap();
        front.set_owner().unwrap();
        let features = front.get_features().unwrap() & FEATURES;
        let wanted = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ;
        let offered = front.get_protocol_features().unwrap();
        front.set_protocol_features(offered & wanted).unwrap();
        front.set_features(features).unwrap();
        let none = VhostUserConfigFlags::empty();
        let config = front.get_config(0, 60, none, &[0; 60]).unwrap().1;
        let capacity = u64::from_le_bytes(config[..8].try_into().unwrap()) * 512;
        let [kick, call] = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
        let calls = Epoll::new().unwrap();
        let readable = EpollEvent::new(EventSet::IN, 0);
        calls.ctl(ControlOperation::Add, call.as_raw_fd(), readable).unwrap();
        let (next, kicked, seen) = Default::default();
        let driver = Self { mem, front, kick, call, calls, next, kicked, seen, block, capacity };
        driver.describe();
        driver
    }

    fn describe(&self) {
        let front = &self.front;
        let region = self.mem.iter().next().unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        front.set_mem_table(&[region]).unwrap();
        front.set_vring_num(0, SIZE).unwrap();
        let host = |at| self.mem.get_host_address(GuestAddress(at)).unwrap() as u64;
        let config = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: host(TABLE),
            used_ring_addr: host(USED),
            avail_ring_addr: host(AVAILABLE),
            log_addr: None,
        };
        front.set_vring_addr(0, &config).unwrap();
        front.set_vring_base(0, 0).unwrap();
        front.set_vring_call(0, &self.call).unwrap();
        front.set_vring_kick(0, &self.kick).unwrap();
        front.clone().set_vring_enable(0, true).unwrap();
    }

    fn put<T: vm_memory::ByteValued>(&self, value: T, at: u64) {
        self.mem.write_obj(value, GuestAddress(at)).unwrap();
    }

    /// Makes a request available, without a kick.
    pub fn submit(&mut self, slot: u16, kind: u32, sector: u64) {
        let head = HEADS + u64::from(slot) * 32;
        self.put(u64::from(kind), head);
        self.put(sector, head + 8);
        let data = DATA + u64::from(slot) * u64::from(self.block);
        let flags = if kind == 0 { WRITE } else { 0 };
        let pieces = [(head, 16, NEXT), (data, self.block, flags | NEXT), (head + 16, 1, WRITE)];
        let first = slot * EACH;
        for (n, (at, len, flags)) in (first..).zip(pieces) {
            let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(n + 1) << 48;
            self.put(u128::from(at) | u128::from(rest) << 64, TABLE + u64::from(n) * 16);
        }
        self.put(first, AVAILABLE + 4 + u64::from(self.next.0 % SIZE) * 2);
        self.next += 1;
        self.mem.store(self.next.0, GuestAddress(AVAILABLE + 2), Ordering::Release).unwrap();
    }

    /// Kicks, if the device wants to be.
    pub fn kick(&mut self) {
        fence(Ordering::SeqCst);
        let event = GuestAddress(USED + 4 + u64::from(SIZE) * 8);
        let event = Wrapping(self.mem.load::<u16>(event, Ordering::Relaxed).unwrap());
        if self.next - event - Wrapping(1) < self.next - self.kicked {
            self.kick.write(1).unwrap();
        }
        self.kicked = self.next;
    }

    /// Sleeps until something is answered, and gives what was.
    pub fn wait(&mut self, answered: &mut Vec<u16>) {
        loop {
            self.look(answered);
            if !answered.is_empty() {
                return;
            }
            let event = GuestAddress(AVAILABLE + 4 + u64::from(SIZE) * 2);
            self.mem.store(self.seen.0, event, Ordering::Relaxed).unwrap();
            fence(Ordering::SeqCst);
            self.look(answered);
            if answered.is_empty() {
                self.calls.wait(-1, &mut [EpollEvent::default()]).unwrap();
                self.call.read().unwrap();
            }
        }
    }

    fn look(&mut self, answered: &mut Vec<u16>) {
        let used: u16 = self.mem.load(GuestAddress(USED + 2), Ordering::Acquire).unwrap();
        while self.seen.0 != used {
            let place = USED + 4 + u64::from(self.seen.0 % SIZE) * 8;
            let head: u32 = self.mem.read_obj(GuestAddress(place)).unwrap();
            let slot = head as u16 / EACH;
            let status = HEADS + u64::from(slot) * 32 + 16;
            let status: u8 = self.mem.read_obj(GuestAddress(status)).unwrap();
            assert_eq!(status, 0, "the device failed");
            self.seen += 1;
            answered.push(slot);
        }
    }
}
