//! Chains and requests, as the worst of guests would make them.

use proptest::prelude::*;
use virtio_bindings::virtio_blk as blk;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::chain::{Broken, walk};
use super::super::config::Shape;
use super::super::request::{Request, Status, Work};

const MEMORY: u64 = 0x10000;
const TABLE: GuestAddress = GuestAddress(0x1000);
const SIZE: u16 = 16;
const SHAPE: Shape = Shape { size: 1 << 20, sector: 4096, read_only: false };

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

type Descriptor = (u64, u32, u16, u16);

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[
        (GuestAddress(0), MEMORY as usize),
        (GuestAddress(0x10_0000), MEMORY as usize),
    ])
    .unwrap()
}

fn lay_out(mem: &GuestMemoryMmap, table: GuestAddress, descriptors: &[Descriptor]) {
    for (n, (at, len, flags, next)) in (0u64..).zip(descriptors) {
        let place = table.0 + n * 16;
        mem.write_obj(*at, GuestAddress(place)).unwrap();
        mem.write_obj(*len, GuestAddress(place + 8)).unwrap();
        mem.write_obj(*flags, GuestAddress(place + 12)).unwrap();
        mem.write_obj(*next, GuestAddress(place + 14)).unwrap();
    }
}

fn parse(mem: &GuestMemoryMmap, shape: Shape) -> Result<Request, Broken> {
    Request::parse(mem, walk(mem, TABLE, SIZE, 0)?, shape)
}

fn broken(descriptors: &[Descriptor]) -> Broken {
    let mem = memory();
    lay_out(&mem, TABLE, descriptors);
    parse(&mem, SHAPE).unwrap_err()
}

#[test]
fn chains_that_lead_nowhere_are_broken() {
    let head = |next| (0x4000, 16, NEXT, next);
    assert!(matches!(broken(&[head(0)]), Broken::Chain), "a loop");
    assert!(matches!(broken(&[head(16)]), Broken::Chain), "no such descriptor");
    assert!(matches!(broken(&[head(1), (0x5000, 1, WRITE | NEXT, 0)]), Broken::Order));
}

#[test]
fn memory_that_is_not_there_breaks_a_chain() {
    for (at, len) in [(MEMORY - 8, 16), (u64::MAX - 7, 16), (0x9_0000, 1), (0, u32::MAX)] {
        assert!(matches!(broken(&[(at, len, NEXT, 1)]), Broken::Memory(_)), "{at:#x} {len}");
    }
}

#[test]
fn tables_must_hold_whole_descriptors_and_no_tables() {
    for len in [0, 8, 17, u32::MAX] {
        assert!(matches!(broken(&[(0x2000, len, INDIRECT, 0)]), Broken::Table), "{len}");
    }
    assert!(matches!(broken(&[(0x2000, 16, INDIRECT | NEXT, 1)]), Broken::Table));
    let mem = memory();
    lay_out(&mem, TABLE, &[(0x2000, 16, INDIRECT, 0)]);
    lay_out(&mem, GuestAddress(0x2000), &[(0x2000, 16, INDIRECT, 0)]);
    assert!(matches!(parse(&mem, SHAPE).unwrap_err(), Broken::Table));
    // Longer than any chain: a loop in a table of its own.
    lay_out(&mem, TABLE, &[(0x2000, 0xe000, INDIRECT, 0)]);
    lay_out(&mem, GuestAddress(0x2000), &[(0x4000, 1, NEXT, 0)]);
    assert!(matches!(parse(&mem, SHAPE).unwrap_err(), Broken::Chain));
}

#[test]
fn a_request_without_room_for_head_or_status_is_broken() {
    assert!(matches!(broken(&[(0x4000, 15, NEXT, 1), (0x5000, 1, WRITE, 0)]), Broken::Short));
    assert!(matches!(broken(&[(0x4000, 16, 0, 0)]), Broken::Short));
    assert!(matches!(broken(&[(0x4000, 16, NEXT, 1), (0x5000, 0, WRITE, 0)]), Broken::Short));
}

#[test]
fn heads_and_data_may_be_cut_anywhere() {
    let mem = memory();
    let pieces = [
        (0x4000, 5, NEXT, 1),
        (0x5000, 0, NEXT, 2),
        (0x6000, 11 + 96, NEXT, 3),
        // Across the end of nothing: into the second region.
        (0x10_0000, 4000, NEXT, 4),
        (0x7000, 1, WRITE, 0),
    ];
    lay_out(&mem, TABLE, &pieces);
    let head: Vec<u8> = [1u32.to_le_bytes(), [0; 4], 16u32.to_le_bytes(), [0; 4]].concat();
    mem.write_slice(&head[..5], GuestAddress(0x4000)).unwrap();
    mem.write_slice(&head[5..], GuestAddress(0x6000)).unwrap();
    mem.write_slice(&[7; 96], GuestAddress(0x6000 + 11)).unwrap();
    mem.write_slice(&[9; 4000], GuestAddress(0x10_0000)).unwrap();
    let request = parse(&mem, SHAPE).unwrap();
    assert_eq!((&request.work, request.status), (&Work::Write(8192), GuestAddress(0x7000)));
    let mut data = vec![0; 4096 - 90];
    request.data.copy_out(&mem, 90, &mut data).unwrap();
    assert_eq!((&data[..7], data[4005]), (&[7, 7, 7, 7, 7, 7, 9][..], 9));
}

/// What a request of this kind comes to, with `out` after its head and `room` before its status.
fn ask(kind: u32, sector: u64, out: &[u8], room: u32, shape: Shape) -> Work {
    let mem = memory();
    mem.write_obj(kind, GuestAddress(0x4000)).unwrap();
    mem.write_obj(sector, GuestAddress(0x4008)).unwrap();
    mem.write_slice(out, GuestAddress(0x4010)).unwrap();
    lay_out(&mem, TABLE, &[(0x4000, 16 + out.len() as u32, NEXT, 1), (0x6000, room + 1, WRITE, 0)]);
    parse(&mem, shape).unwrap().work
}

#[test]
fn places_beyond_the_disk_or_between_sectors_fail() {
    const FAILED: Work = Work::Answer(Status::Failed);
    let read = |sector, room| ask(blk::VIRTIO_BLK_T_IN, sector, &[], room, SHAPE);
    assert_eq!(read(2040, 4096), Work::Read(2040 * 512));
    assert_eq!(read(2048, 0), Work::Read(1 << 20));
    for (sector, room) in [(2040, 8192), (1, 4096), (0, 512), (u64::MAX, 4096), (1 << 55, 4096)] {
        assert_eq!(read(sector, room), FAILED, "{sector} {room}");
    }
    let read_only = Shape { read_only: true, ..SHAPE };
    assert_eq!(ask(blk::VIRTIO_BLK_T_OUT, 0, &[0; 4096], 0, read_only), FAILED);
    assert_eq!(ask(blk::VIRTIO_BLK_T_FLUSH, 0, &[], 0, read_only), Work::Flush);
    assert_eq!(ask(77, 0, &[], 0, SHAPE), Work::Answer(Status::Unsupported));
}

#[test]
fn ranges_are_checked_one_by_one() {
    let range = |sector: u64, count: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    let zero = |list: &[u8]| ask(blk::VIRTIO_BLK_T_WRITE_ZEROES, 0, list, 0, SHAPE);
    let discard = |list: &[u8]| ask(blk::VIRTIO_BLK_T_DISCARD, 0, list, 0, SHAPE);
    let (failed, unsupported) = (Work::Answer(Status::Failed), Work::Answer(Status::Unsupported));
    let two = [range(8, 16, 1), range(0, 8, 0)].concat();
    assert_eq!(zero(&two), Work::Zero(vec![(4096..12288, true), (0..4096, false)]));
    let both = [range(8, 8, 0), range(0, 8, 0)].concat();
    assert_eq!(discard(&both), Work::Discard(vec![4096..8192, 0..4096]));
    assert_eq!(discard(&range(8, 8, 1)), unsupported);
    assert_eq!(zero(&range(8, 8, 2)), unsupported);
    for list in [range(2048, 8, 0), range(1, 8, 0), range(u64::MAX, u32::MAX, 0)] {
        assert_eq!(zero(&list), failed);
    }
    assert_eq!(zero(&two[..31]), failed);
    assert_eq!(zero(&[]), failed);
    assert_eq!(zero(&range(0, 8, 0).repeat(33)), failed);
}

fn descriptors() -> impl Strategy<Value = Vec<Descriptor>> {
    let at = prop_oneof![0u64..0x12_0000, Just(u64::MAX - 5), any::<u64>()];
    let len = prop_oneof![0u32..64, 0u32..0x2_0000, any::<u32>()];
    prop::collection::vec((at, len, 0u16..8, 0u16..20), 16)
}

proptest! {
    /// Whatever is parsed lies where it can be read and written, whole.
    #[test]
    fn no_guest_makes_it_panic_or_reach_beyond_its_memory(
        direct in descriptors(),
        indirect in descriptors(),
        kind in 0u32..16,
        sector in any::<u64>(),
    ) {
        let mem = memory();
        lay_out(&mem, TABLE, &direct);
        lay_out(&mem, GuestAddress(0x2000), &indirect);
        mem.write_obj(kind, GuestAddress(0)).unwrap();
        mem.write_obj(sector, GuestAddress(8)).unwrap();
        if let Ok(request) = parse(&mem, SHAPE) {
            mem.write_obj(0u8, request.status).unwrap();
            let len = request.data.bytes().min(0x20_0000) as usize;
            let mut data = vec![0; len];
            request.data.copy_out(&mem, 0, &mut data).unwrap();
            request.data.copy_in(&mem, 0, &data).unwrap();
            if let Work::Read(at) | Work::Write(at) = request.work {
                prop_assert!(at + request.data.bytes() <= SHAPE.size);
            }
        }
    }
}
