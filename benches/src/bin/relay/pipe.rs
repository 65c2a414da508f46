//! Packets on their way along one direction: a reader puts them in, a writer takes each out when it is
//! due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use tun_rs::SyncDevice;

use crate::line::Line;

/// The longest packet that a device gives: 64 KiB, and the header that says how to cut it.
const LONGEST: usize = (64 << 10) + tun_rs::VIRTIO_NET_HDR_LEN;
/// Bytes that may be under way. At 10 ms they are 6 GB/s.
const ROOM: usize = 64 << 20;

/// What went through one direction.
#[derive(Debug, Default)]
pub struct Counts {
    pub packets: AtomicU64,
    pub bytes: AtomicU64,
    /// Packets that were lost on purpose, or found the line full.
    pub lost: AtomicU64,
}

/// By when it is due, then by its number.
type Due = Reverse<(Duration, u64, Vec<u8>)>;

#[derive(Default)]
struct Queue {
    packets: BinaryHeap<Due>,
    bytes: usize,
}

/// One direction between two devices.
pub struct Pipe {
    queue: Mutex<Queue>,
    /// There is a packet that is due earlier than any before it.
    earlier: Condvar,
    start: Instant,
    pub counts: Counts,
}

#[expect(clippy::disallowed_methods, reason = "packets are delayed in real time")]
fn now() -> Instant {
    Instant::now()
}

impl Pipe {
    pub fn new() -> Self {
        let (queue, earlier) = (Mutex::default(), Condvar::new());
        Self { queue, earlier, start: now(), counts: Counts::default() }
    }

    /// Takes packets from a device until it is gone.
    pub fn fill(&self, device: &SyncDevice, mut line: Line) -> std::io::Error {
        let (mut buf, mut number) = (vec![0; LONGEST], 0);
        loop {
            let len = match device.recv(&mut buf) {
                Ok(len) => len,
                Err(e) => return e,
            };
            let due = line.take(now() - self.start, len);
            if !due.is_some_and(|due| self.put(due, number, &buf[..len])) {
                self.counts.lost.fetch_add(1, Ordering::Relaxed);
            }
            number += 1;
        }
    }

    /// Whether there was room.
    fn put(&self, due: Duration, number: u64, packet: &[u8]) -> bool {
        let mut queue = self.queue.lock().unwrap();
        if queue.bytes + packet.len() > ROOM {
            return false;
        }
        let first = queue.packets.peek().is_none_or(|Reverse((next, ..))| due < *next);
        queue.bytes += packet.len();
        queue.packets.push(Reverse((due, number, packet.to_vec())));
        drop(queue);
        if first {
            self.earlier.notify_one();
        }
        true
    }

    /// Gives packets to a device when they are due, for ever. One that the device does not take is lost:
    /// a network promises no more.
    pub fn drain(&self, device: &SyncDevice) -> ! {
        loop {
            let packet = self.next();
            if device.send(&packet).is_ok() {
                self.counts.packets.fetch_add(1, Ordering::Relaxed);
                self.counts.bytes.fetch_add(packet.len() as u64, Ordering::Relaxed);
            } else {
                self.counts.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The next packet, once it is due.
    fn next(&self) -> Vec<u8> {
        let mut queue = self.queue.lock().unwrap();
        loop {
            let now = now() - self.start;
            let due = queue.packets.peek().map(|Reverse((due, ..))| *due);
            queue = match due {
                None => self.earlier.wait(queue).unwrap(),
                Some(due) if due > now => self.earlier.wait_timeout(queue, due - now).unwrap().0,
                Some(_) => {
                    let Reverse((_, _, packet)) = queue.packets.pop().expect("it was seen");
                    queue.bytes -= packet.len();
                    return packet;
                }
            };
        }
    }
}
