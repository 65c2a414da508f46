//! Messages of the vhost-user protocol, from and to bytes.
//!
//! The layouts are those of QEMU's `docs/interop/vhost-user.rst`, in the byte order of the machine. Only
//! what a block device without migration needs is known here; the rest is [`Message::Other`].

use std::os::fd::OwnedFd;

/// Length of a message's header, in bytes.
pub const HEADER: usize = 12;
/// The longest payload that is taken, in bytes; the longest there is (a table of eight regions, a piece
/// of configuration space) has a few hundred.
pub const MAX_PAYLOAD: usize = 4096;
/// The most descriptors that come with one message.
pub const MAX_FDS: usize = 8;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// In the number of a ring that comes with a descriptor: there is none.
const NO_FD: u64 = 1 << 8;
/// What a back-end sends of its own accord when the configuration space has changed.
const CONFIG_CHANGED: u32 = 2;

/// Bits of the protocol features.
pub mod protocol {
    /// More than one ring.
    pub const MQ: u64 = 1 << 0;
    /// Any message may be acknowledged.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// A channel for messages from the back-end.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// The configuration space is the back-end's.
    pub const CONFIG: u64 = 1 << 9;
    /// Requests in flight are kept in shared memory.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// Regions of memory come and go one by one.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
}

/// The front of every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What is asked for.
    pub request: u32,
    flags: u32,
    /// Length of the payload, in bytes.
    pub payload: usize,
}

impl Header {
    /// Reads the front of a request.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Self, Malformed> {
        let mut fields = Fields::new(bytes);
        let (request, flags, payload) = (fields.u32()?, fields.u32()?, fields.u32()? as usize);
        if flags & VERSION_MASK != VERSION || flags & REPLY != 0 {
            return Err(Malformed("neither a request nor of version 1"));
        }
        if payload > MAX_PAYLOAD {
            return Err(Malformed("longer than any message"));
        }
        Ok(Self { request, flags, payload })
    }

    /// Whether the front-end waits for an acknowledgement, if that was agreed on.
    pub fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }
}

/// A message is not what the protocol says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a vhost-user message is malformed: {0}")]
pub struct Malformed(&'static str);

/// A region of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where the guest sees it.
    pub guest: u64,
    /// Its length in bytes.
    pub size: u64,
    /// Where the front-end sees it: addresses of rings are given so.
    pub user: u64,
    /// Where it begins in the file that comes with it.
    pub offset: u64,
}

/// Where the parts of a ring lie, as the front-end sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddress {
    /// The table of descriptors.
    pub descriptors: u64,
    /// What the device has used.
    pub used: u64,
    /// What the guest makes available.
    pub available: u64,
}

/// The shared memory that keeps what is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inflight {
    /// Its length in bytes.
    pub size: u64,
    /// Where it begins in its file.
    pub offset: u64,
    /// For how many rings it has room.
    pub queues: u16,
    /// How long each of them is at most.
    pub queue_size: u16,
}

/// A request of the front-end.
#[derive(Debug)]
pub enum Message {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<(Region, OwnedFd)>),
    SetVringNum { ring: u32, num: u32 },
    SetVringAddr { ring: u32, address: RingAddress },
    SetVringBase { ring: u32, base: u32 },
    GetVringBase { ring: u32 },
    SetVringKick { ring: u32, fd: Option<OwnedFd> },
    SetVringCall { ring: u32, fd: Option<OwnedFd> },
    SetVringErr { ring: u32, fd: Option<OwnedFd> },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable { ring: u32, on: bool },
    SetBackendReqFd(OwnedFd),
    GetConfig { offset: u32, size: u32, flags: u32 },
    SetConfig,
    GetInflightFd(Inflight),
    SetInflightFd(Inflight, OwnedFd),
    GetMaxMemSlots,
    AddMemReg(Region, OwnedFd),
    RemMemReg(Region),
    Other(u32),
}

impl Message {
    /// Reads a request, with the descriptors that came along.
    pub fn decode(request: u32, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Self, Malformed> {
        let mut f = Fields::new(payload);
        let mut fds = fds.into_iter();
        let message = match request {
            1 => Self::GetFeatures,
            2 => Self::SetFeatures(f.u64()?),
            3 => Self::SetOwner,
            4 => Self::ResetOwner,
            5 => Self::SetMemTable(f.table(&mut fds)?),
            8 => Self::SetVringNum { ring: f.u32()?, num: f.u32()? },
            9 => {
                let (ring, _flags) = (f.u32()?, f.u32()?);
                Self::SetVringAddr { ring, address: f.ring_address()? }
            }
            10 => Self::SetVringBase { ring: f.u32()?, base: f.u32()? },
            11 => {
                let (ring, _) = (f.u32()?, f.u32()?);
                Self::GetVringBase { ring }
            }
            12 => f.ring_fd(&mut fds).map(|(ring, fd)| Self::SetVringKick { ring, fd })?,
            13 => f.ring_fd(&mut fds).map(|(ring, fd)| Self::SetVringCall { ring, fd })?,
            14 => f.ring_fd(&mut fds).map(|(ring, fd)| Self::SetVringErr { ring, fd })?,
            15 => Self::GetProtocolFeatures,
            16 => Self::SetProtocolFeatures(f.u64()?),
            17 => Self::GetQueueNum,
            18 => Self::SetVringEnable { ring: f.u32()?, on: f.u32()? != 0 },
            21 => Self::SetBackendReqFd(fds.next().ok_or(MISSING)?),
            24 => {
                let (offset, size, flags) = (f.u32()?, f.u32()?, f.u32()?);
                f.rest();
                Self::GetConfig { offset, size, flags }
            }
            25 => {
                f.rest();
                Self::SetConfig
            }
            31 => Self::GetInflightFd(f.inflight()?),
            32 => Self::SetInflightFd(f.inflight()?, fds.next().ok_or(MISSING)?),
            36 => Self::GetMaxMemSlots,
            37 => {
                f.u64()?;
                Self::AddMemReg(f.region()?, fds.next().ok_or(MISSING)?)
            }
            38 => {
                f.u64()?;
                // Some front-ends send the file along; it is closed unused.
                fds.next();
                Self::RemMemReg(f.region()?)
            }
            other => {
                f.rest();
                fds.by_ref().for_each(drop);
                Self::Other(other)
            }
        };
        match (f.is_empty(), fds.next()) {
            (true, None) => Ok(message),
            (false, _) => Err(Malformed("longer than its kind")),
            (_, Some(_)) => Err(Malformed("descriptors that nothing asks for")),
        }
    }
}

const MISSING: Malformed = Malformed("its descriptor is missing");

/// The bytes of a reply to `request`.
pub fn reply(request: u32, payload: &[u8]) -> Vec<u8> {
    framed(request, VERSION | REPLY, payload)
}

/// The message that tells the front-end to read the configuration space again.
pub fn config_changed() -> Vec<u8> {
    framed(CONFIG_CHANGED, VERSION, &[])
}

/// The payload of an answer to [`Message::GetInflightFd`].
pub fn inflight_payload(of: &Inflight) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24);
    bytes.extend(of.size.to_ne_bytes());
    bytes.extend(of.offset.to_ne_bytes());
    bytes.extend(of.queues.to_ne_bytes());
    bytes.extend(of.queue_size.to_ne_bytes());
    // The structure's padding.
    bytes.extend([0; 4]);
    bytes
}

/// The payload of an answer to [`Message::GetConfig`].
pub fn config_payload(offset: u32, flags: u32, bytes: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(12 + bytes.len());
    for field in [offset, bytes.len() as u32, flags] {
        payload.extend(field.to_ne_bytes());
    }
    payload.extend(bytes);
    payload
}

/// The payload of an answer to [`Message::GetVringBase`].
pub fn base_payload(ring: u32, base: u16) -> Vec<u8> {
    [ring.to_ne_bytes(), u32::from(base).to_ne_bytes()].concat()
}

fn framed(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    for field in [request, flags, payload.len() as u32] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// Takes fields off the front of a payload.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (field, rest) = self.0.split_first_chunk().ok_or(Malformed("shorter than its kind"))?;
        self.0 = rest;
        Ok(*field)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.take().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_ne_bytes)
    }

    fn region(&mut self) -> Result<Region, Malformed> {
        let (guest, size) = (self.u64()?, self.u64()?);
        Ok(Region { guest, size, user: self.u64()?, offset: self.u64()? })
    }

    fn table(
        &mut self,
        fds: &mut impl Iterator<Item = OwnedFd>,
    ) -> Result<Vec<(Region, OwnedFd)>, Malformed> {
        let (count, _padding) = (self.u32()?, self.u32()?);
        if count as usize > MAX_FDS {
            return Err(Malformed("more regions than a table takes"));
        }
        (0..count).map(|_| Ok((self.region()?, fds.next().ok_or(MISSING)?))).collect()
    }

    fn ring_address(&mut self) -> Result<RingAddress, Malformed> {
        let address =
            RingAddress { descriptors: self.u64()?, used: self.u64()?, available: self.u64()? };
        // Where writes would be logged, for a migration.
        self.u64()?;
        Ok(address)
    }

    fn ring_fd(
        &mut self,
        fds: &mut impl Iterator<Item = OwnedFd>,
    ) -> Result<(u32, Option<OwnedFd>), Malformed> {
        let word = self.u64()?;
        let fd = match word & NO_FD {
            0 => Some(fds.next().ok_or(MISSING)?),
            _ => None,
        };
        Ok(((word & 0xff) as u32, fd))
    }

    fn inflight(&mut self) -> Result<Inflight, Malformed> {
        let (size, offset) = (self.u64()?, self.u64()?);
        let inflight = Inflight { size, offset, queues: self.u16()?, queue_size: self.u16()? };
        // Its padding, which some leave out.
        self.rest();
        Ok(inflight)
    }

    fn rest(&mut self) {
        self.0 = &[];
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fd() -> OwnedFd {
        rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn headers_of_replies_and_other_versions_are_refused() {
        let header = |flags: u32, size: u32| {
            let bytes = [1u32.to_ne_bytes(), flags.to_ne_bytes(), size.to_ne_bytes()].concat();
            Header::decode(bytes.as_slice().try_into().unwrap())
        };
        assert!(header(VERSION | NEED_REPLY, 8).unwrap().needs_reply());
        assert!(!header(VERSION, 8).unwrap().needs_reply());
        for (flags, size) in [(0, 8), (2, 8), (VERSION | REPLY, 8), (VERSION, 4097)] {
            assert!(header(flags, size).is_err(), "{flags} {size}");
        }
    }

    #[test]
    fn a_table_needs_a_file_for_each_region() {
        let mut payload = [2u32.to_ne_bytes(), 0u32.to_ne_bytes()].concat();
        for n in 0u64..8 {
            payload.extend(n.to_ne_bytes());
        }
        let Message::SetMemTable(table) = Message::decode(5, &payload, vec![fd(), fd()]).unwrap()
        else {
            panic!("not a table")
        };
        assert_eq!(table[1].0, Region { guest: 4, size: 5, user: 6, offset: 7 });
        assert!(Message::decode(5, &payload, vec![fd()]).is_err());
        assert!(Message::decode(5, &payload, vec![fd(), fd(), fd()]).is_err());
        payload[0] = 9;
        assert!(Message::decode(5, &payload, vec![fd(), fd()]).is_err());
    }

    #[test]
    fn a_ring_comes_with_a_descriptor_or_says_that_it_has_none() {
        let with = Message::decode(12, &3u64.to_ne_bytes(), vec![fd()]).unwrap();
        assert!(matches!(with, Message::SetVringKick { ring: 3, fd: Some(_) }));
        let without = Message::decode(13, &(3 | NO_FD).to_ne_bytes(), vec![]).unwrap();
        assert!(matches!(without, Message::SetVringCall { ring: 3, fd: None }));
        assert!(Message::decode(14, &3u64.to_ne_bytes(), vec![]).is_err());
        assert!(Message::decode(14, &(3 | NO_FD).to_ne_bytes(), vec![fd()]).is_err());
    }

    #[test]
    fn the_replies_are_laid_out_as_the_protocol_says() {
        assert_eq!(reply(17, &4u64.to_ne_bytes()).len(), HEADER + 8);
        assert_eq!(config_changed(), [2u32, 1, 0].map(u32::to_ne_bytes).concat());
        let inflight = Inflight { size: 1, offset: 2, queues: 3, queue_size: 4 };
        let payload = inflight_payload(&inflight);
        let Message::GetInflightFd(read) = Message::decode(31, &payload, vec![]).unwrap() else {
            panic!("not inflight")
        };
        assert_eq!((payload.len(), read), (24, inflight));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            request in 0u32..48,
            payload in prop::collection::vec(any::<u8>(), 0..400),
            files in 0usize..9,
        ) {
            let fds = (0..files).map(|_| fd()).collect();
            let _ = Message::decode(request, &payload, fds);
        }
    }
}
