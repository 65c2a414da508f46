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

    /// Takes packets from a device, for ever.
    pub fn fill(&self, device: &SyncDevice, mut line: Line) -> std::io::Result<()> {
        let mut buf = vec![0; LONGEST];
        for number in 0.. {
            let len = device.recv(&mut buf)?;
            match line.take(self.start.elapsed(), len) {
                Some(due) if self.put(due, number, &buf[..len]) => {}
                _ => drop(self.counts.lost.fetch_add(1, Ordering::Relaxed)),
            }
        }
        unreachable!("the loop has no end of its own")
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

    /// Gives packets to a device when they are due, for ever.
    pub fn drain(&self, device: &SyncDevice) -> std::io::Result<()> {
        loop {
            let packet = self.next();
            // A device without a reader at its other side is full: lost, as on any network.
            match device.send(&packet) {
                Ok(_) => {
                    self.counts.packets.fetch_add(1, Ordering::Relaxed);
                    self.counts.bytes.fetch_add(packet.len() as u64, Ordering::Relaxed);
                }
                Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => return Err(e),
                Err(_) => drop(self.counts.lost.fetch_add(1, Ordering::Relaxed)),
            }
        }
    }

    /// The next packet, once it is due.
    fn next(&self) -> Vec<u8> {
        let mut queue = self.queue.lock().unwrap();
        loop {
            let now = self.start.elapsed();
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
