//! Requests of a block device, out of chains (virtio 1.2, section 5.2.6).

use std::ops::Range;

use virtio_bindings::virtio_blk as blk;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::chain::{Broken, Chain, Spans};
use super::config::{RANGES, Shape, UNIT};

/// Length of one range of a discard or write-zeroes, in bytes.
const RANGE: u64 = 16;
/// Length of a serial number, in bytes.
pub const SERIAL: usize = blk::VIRTIO_BLK_ID_BYTES as usize;

/// What the guest is told of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// Not done.
    Failed,
    /// Nothing that this device does.
    Unsupported,
}

impl Status {
    /// The byte that says so.
    pub fn byte(self) -> u8 {
        let byte = match self {
            Self::Ok => blk::VIRTIO_BLK_S_OK,
            Self::Failed => blk::VIRTIO_BLK_S_IOERR,
            Self::Unsupported => blk::VIRTIO_BLK_S_UNSUPP,
        };
        byte as u8
    }
}

/// What is to be done. Places and lengths are in bytes, within the disk and multiples of its sector.
#[derive(Debug, PartialEq, Eq)]
pub enum Work {
    /// Fill the data from here.
    Read(u64),
    /// Write the data here.
    Write(u64),
    /// Make writes last.
    Flush,
    /// Tell the serial number.
    Serial,
    /// These are not needed any more.
    Discard(Vec<Range<u64>>),
    /// Make these zeros; with `true` their space may be given back.
    Zero(Vec<(Range<u64>, bool)>),
    /// Only say this.
    Answer(Status),
}

/// A request, checked.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub work: Work,
    /// The data to read or write.
    pub data: Spans,
    /// Where the status goes.
    pub status: GuestAddress,
}

impl Request {
    /// Reads the request that a chain makes. An error is one for which there is nowhere to answer.
    pub fn parse(mem: &GuestMemoryMmap, chain: Chain, shape: Shape) -> Result<Self, Broken> {
        let Chain { mut readable, mut writable } = chain;
        let head: [u8; 16] = readable.take_front(mem)?;
        let status = writable.take_last()?;
        let kind = u32::from_le_bytes(head[..4].try_into().expect("four bytes"));
        let unit = u64::from_le_bytes(head[8..].try_into().expect("eight bytes"));
        let (work, data) = match kind {
            blk::VIRTIO_BLK_T_IN => {
                (place(unit, writable.bytes(), shape).map(Work::Read), writable)
            }
            blk::VIRTIO_BLK_T_OUT => {
                let at = place(unit, readable.bytes(), shape).and_then(|at| writes(at, shape));
                (at.map(Work::Write), readable)
            }
            blk::VIRTIO_BLK_T_FLUSH => (Ok(Work::Flush), Spans::default()),
            blk::VIRTIO_BLK_T_GET_ID => (Ok(Work::Serial), writable),
            blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES => {
                let discard = kind == blk::VIRTIO_BLK_T_DISCARD;
                (ranges(mem, readable, discard, shape)?, Spans::default())
            }
            _ => (Err(Status::Unsupported), Spans::default()),
        };
        Ok(Self { work: work.unwrap_or_else(Work::Answer), data, status })
    }
}

/// Where a read or write of so many bytes begins, if it is one of this disk.
fn place(unit: u64, bytes: u64, shape: Shape) -> Result<u64, Status> {
    let at = unit.checked_mul(UNIT).ok_or(Status::Failed)?;
    let end = at.checked_add(bytes).ok_or(Status::Failed)?;
    let sector = u64::from(shape.sector);
    match end <= shape.size && at.is_multiple_of(sector) && bytes.is_multiple_of(sector) {
        true => Ok(at),
        false => Err(Status::Failed),
    }
}

fn writes<T>(what: T, shape: Shape) -> Result<T, Status> {
    if shape.read_only { Err(Status::Failed) } else { Ok(what) }
}

/// The ranges that a discard or write-zeroes names.
fn ranges(
    mem: &GuestMemoryMmap,
    mut list: Spans,
    discard: bool,
    shape: Shape,
) -> Result<Result<Work, Status>, Broken> {
    let count = list.bytes() / RANGE;
    if !list.bytes().is_multiple_of(RANGE) || count == 0 || count > u64::from(RANGES) {
        return Ok(Err(Status::Failed));
    }
    let mut all = Vec::with_capacity(count as usize);
    for _ in 0..count {
        match range(list.take_front(mem)?, discard, shape) {
            Ok(range) => all.push(range),
            Err(status) => return Ok(Err(status)),
        }
    }
    Ok(Ok(match discard {
        true => Work::Discard(all.into_iter().map(|(range, _)| range).collect()),
        false => Work::Zero(all),
    }))
}

/// One range, and whether its space may be given back.
fn range(
    bytes: [u8; RANGE as usize],
    discard: bool,
    shape: Shape,
) -> Result<(Range<u64>, bool), Status> {
    let field = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let unit = u64::from(field(0)) | u64::from(field(4)) << 32;
    let (units, flags) = (u64::from(field(8)), field(12));
    let unmap = flags & blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    if flags & !blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || (discard && unmap) {
        return Err(Status::Unsupported);
    }
    let at = place(unit, units * UNIT, shape).and_then(|at| writes(at, shape))?;
    Ok((at..at + units * UNIT, unmap))
}
