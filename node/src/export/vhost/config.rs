//! What the device offers: features, and its configuration space (virtio 1.2, section 5.2.4).

use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::message::protocol;

/// The unit of places and lengths in requests, whatever the disk's sector is, in bytes.
pub const UNIT: u64 = 512;
/// The block that a volume keeps track of, in bytes: a smaller write may have to read first.
const BLOCK: u32 = 4096;
/// Pieces of guest memory in one request. QEMU gives queues of 128 descriptors unless told otherwise,
/// and a guest without indirect descriptors has to fit head and status in as well.
pub const SEGMENTS: u32 = 126;
/// Ranges in one discard or write-zeroes.
pub const RANGES: u32 = 32;
/// The longest of such ranges, in units: 2 GiB.
const MAX_RANGE: u32 = 4 << 20;
/// Length of the configuration space, in bytes, and as much of it as a front-end may ask for.
const SPACE: usize = 60;
const MAX_SPACE: usize = 256;

/// The bit that says that there are protocol features.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// The bit of used and available events.
pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// The bit of flushes; without it a driver takes every write to be durable when it is answered.
pub const FLUSH: u64 = 1 << blk::VIRTIO_BLK_F_FLUSH;

/// The protocol features that are offered.
pub const OFFERED_PROTOCOL: u64 = protocol::MQ
    | protocol::REPLY_ACK
    | protocol::BACKEND_REQ
    | protocol::CONFIG
    | protocol::INFLIGHT_SHMFD
    | protocol::CONFIGURE_MEM_SLOTS;

/// A disk as the device shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Size in bytes.
    pub size: u64,
    /// Logical sector in bytes: 512 or 4096.
    pub sector: u32,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// The features that are offered for a disk.
pub fn features(shape: Shape) -> u64 {
    let bits = [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
        blk::VIRTIO_BLK_F_SEG_MAX,
        blk::VIRTIO_BLK_F_BLK_SIZE,
        blk::VIRTIO_BLK_F_TOPOLOGY,
        blk::VIRTIO_BLK_F_FLUSH,
        blk::VIRTIO_BLK_F_MQ,
    ];
    let writing: &[u32] = match shape.read_only {
        true => &[blk::VIRTIO_BLK_F_RO],
        false => &[blk::VIRTIO_BLK_F_DISCARD, blk::VIRTIO_BLK_F_WRITE_ZEROES],
    };
    bits.iter().chain(writing).fold(PROTOCOL_FEATURES, |all, bit| all | 1 << bit)
}

/// The bytes of the configuration space from `offset` on, or nothing if that is not in it. What lies
/// beyond the fields that are known here is zeros.
pub fn space(shape: Shape, queues: u16, offset: u32, size: u32) -> Option<Vec<u8>> {
    let (start, end) = (offset as usize, (offset as usize).checked_add(size as usize)?);
    if end > MAX_SPACE {
        return None;
    }
    let mut all = fields(shape, queues);
    all.resize(MAX_SPACE, 0);
    Some(all[start..end].to_vec())
}

/// `struct virtio_blk_config`, to the end of its fields on write-zeroes.
fn fields(shape: Shape, queues: u16) -> Vec<u8> {
    let mut space = Vec::with_capacity(MAX_SPACE);
    space.extend((shape.size / UNIT).to_le_bytes());
    space.extend(0u32.to_le_bytes()); // no largest segment
    space.extend(SEGMENTS.to_le_bytes());
    space.extend([0; 4]); // no geometry of cylinders
    space.extend(shape.sector.to_le_bytes());
    let physical = shape.sector.max(BLOCK);
    space.push((physical / shape.sector).ilog2() as u8);
    space.push(0); // the first sector is aligned
    space.extend(((physical / shape.sector) as u16).to_le_bytes());
    space.extend(0u32.to_le_bytes()); // no best length
    space.extend([0; 2]); // the write cache cannot be switched
    space.extend(queues.to_le_bytes());
    let alignment = (u64::from(shape.sector) / UNIT) as u32;
    for field in [MAX_RANGE, RANGES, alignment, MAX_RANGE, RANGES] {
        space.extend(field.to_le_bytes());
    }
    space.extend([1, 0, 0, 0]); // write-zeroes may give space back
    debug_assert_eq!(space.len(), SPACE);
    space
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { size: 1 << 30, sector: 512, read_only: false };

    #[test]
    fn the_space_is_that_of_the_specification() {
        #[rustfmt::skip]
        let golden = [
            0, 0, 0x20, 0, 0, 0, 0, 0, // capacity
            0, 0, 0, 0, // size_max
            126, 0, 0, 0, // seg_max
            0, 0, 0, 0, // geometry
            0, 2, 0, 0, // blk_size
            3, 0, 8, 0, 0, 0, 0, 0, // topology
            0, 0, // writeback, unused
            4, 0, // num_queues
            0, 0, 0x40, 0, 32, 0, 0, 0, 1, 0, 0, 0, // discard
            0, 0, 0x40, 0, 32, 0, 0, 0, 1, 0, 0, 0, // write zeroes
        ];
        assert_eq!(space(SHAPE, 4, 0, 60).unwrap(), golden);
        let big = Shape { sector: 4096, ..SHAPE };
        let whole = space(big, 4, 0, 60).unwrap();
        assert_eq!((&whole[20..28], whole[44]), (&[0, 16, 0, 0, 0, 0, 1, 0][..], 8));
    }

    #[test]
    fn any_piece_of_it_can_be_asked_for_but_none_beyond() {
        assert_eq!(space(SHAPE, 4, 34, 2).unwrap(), [4, 0]);
        assert_eq!(space(SHAPE, 4, 60, 8).unwrap(), [0; 8]);
        assert_eq!(space(SHAPE, 4, 255, 2), None);
        assert_eq!(space(SHAPE, 4, u32::MAX, u32::MAX), None);
    }

    #[test]
    fn a_read_only_disk_offers_no_way_to_change_it() {
        let offered = features(Shape { read_only: true, ..SHAPE });
        assert_ne!(offered & 1 << blk::VIRTIO_BLK_F_RO, 0);
        assert_eq!(offered & 1 << blk::VIRTIO_BLK_F_DISCARD, 0);
        assert_eq!(features(SHAPE) & 1 << blk::VIRTIO_BLK_F_RO, 0);
    }
}
