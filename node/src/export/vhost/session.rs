//! One front-end, from its first message to its last.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use blockio::watch;
use futures::FutureExt;
use futures::future::{LocalBoxFuture, Shared, join_all};
use image::{Error, Kind, Result};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_local};
use vm_memory::MmapRegion;

use super::config::{self, EVENT_IDX, FLUSH, OFFERED_PROTOCOL, PROTOCOL_FEATURES};
use super::inflight::{self, ring_bytes};
use super::memory::{MAX_REGIONS, Memory, shared};
use super::message::{self, Header, Inflight, Message, RingAddress, protocol};
use super::perform::Device;
use super::ring::{Description, MAX_SIZE, Ring, Signals};
use super::socket::{Socket, send_at_once};
use crate::export::Disk;

/// Ends when all that an earlier front-end had asked for has ended.
pub type Settled = Shared<LocalBoxFuture<'static, ()>>;

/// A session with one front-end.
pub struct Session<D> {
    device: Rc<Device<D>>,
    changed: Rc<Notify>,
    socket: Socket,
    memory: Memory,
    features: u64,
    protocol: u64,
    rings: Vec<Slot<D>>,
    in_flight: Option<(Inflight, Arc<MmapRegion>)>,
    backend: Option<OwnedFd>,
    settled: Settled,
}

/// What is known of one ring.
struct Slot<D> {
    size: u16,
    address: Option<RingAddress>,
    base: u16,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    error: Option<OwnedFd>,
    enabled: bool,
    running: Option<(Rc<Ring<D>>, JoinHandle<u16>)>,
}

impl<D> Default for Slot<D> {
    fn default() -> Self {
        Self {
            size: 0,
            address: None,
            base: 0,
            kick: None,
            call: None,
            error: None,
            enabled: false,
            running: None,
        }
    }
}

/// What a request is answered with.
enum Answer {
    /// An acknowledgement, if the front-end wants one.
    Done,
    Payload(Vec<u8>),
    WithFd(Vec<u8>, OwnedFd),
}

impl From<u64> for Answer {
    fn from(number: u64) -> Self {
        Self::Payload(number.to_ne_bytes().into())
    }
}

impl<D: Disk> Session<D> {
    /// A session that has heard nothing yet. Its rings begin when `settled` says so.
    pub fn new(
        device: Rc<Device<D>>,
        changed: Rc<Notify>,
        socket: Socket,
        settled: Settled,
    ) -> Self {
        let rings = (0..device.queues).map(|_| Slot::default()).collect();
        Self {
            device,
            changed,
            socket,
            memory: Memory::default(),
            features: 0,
            protocol: 0,
            rings,
            in_flight: None,
            backend: None,
            settled,
        }
    }

    /// Answers the front-end until it is gone.
    pub async fn run(&mut self) -> Result<()> {
        loop {
            let changed = Rc::clone(&self.changed);
            let next = tokio::select! {
                next = self.socket.receive() => next,
                () = changed.notified() => {
                    self.tell_of_change();
                    continue;
                }
            };
            let next = next.map_err(|e| Error::io("the front-end's socket", e))?;
            let Some((header, message)) = next else { return Ok(()) };
            self.answer(header, message).await?;
        }
    }

    /// Lets go of the guest: what is under way ends, but nothing is answered any more.
    pub fn leave(mut self) -> Settled {
        let ends = self.abandon();
        let earlier = self.settled.clone();
        async move {
            join_all(ends).await;
            earlier.await;
        }
        .boxed_local()
        .shared()
    }

    fn tell_of_change(&self) {
        let Some(backend) = &self.backend else { return };
        if let Err(error) = send_at_once(backend, &message::config_changed()) {
            tracing::warn!(%error, "a guest could not be told that its disk has changed");
        }
    }

    async fn answer(&mut self, header: Header, message: Message) -> Result<()> {
        let acknowledged = self.protocol & protocol::REPLY_ACK != 0 && header.needs_reply();
        tracing::trace!(?message, "a front-end asks");
        let (payload, fd) = match self.handle(message).await {
            Ok(Answer::Payload(payload)) => (payload, None),
            Ok(Answer::WithFd(payload, fd)) => (payload, Some(fd)),
            Ok(Answer::Done) if acknowledged => (0u64.to_ne_bytes().into(), None),
            Ok(Answer::Done) => return Ok(()),
            Err(error) if acknowledged => {
                tracing::warn!(%error, "a front-end's request is refused");
                (1u64.to_ne_bytes().into(), None)
            }
            Err(error) => return Err(error),
        };
        let reply = message::reply(header.request, &payload);
        let sent = self.socket.send(&reply, fd.as_ref().map(AsFd::as_fd)).await;
        sent.map_err(|e| Error::io("the front-end's socket", e))
    }

    async fn handle(&mut self, message: Message) -> Result<Answer> {
        match message {
            Message::GetFeatures => return Ok(config::features(self.device.shape()).into()),
            Message::SetFeatures(features) => self.set_features(features)?,
            Message::GetProtocolFeatures => return Ok(OFFERED_PROTOCOL.into()),
            Message::SetProtocolFeatures(features) => self.protocol = features & OFFERED_PROTOCOL,
            Message::SetOwner | Message::ResetOwner => {}
            Message::GetQueueNum => return Ok(u64::from(self.device.queues).into()),
            Message::GetMaxMemSlots => return Ok((MAX_REGIONS as u64).into()),
            Message::SetMemTable(table) => self.memory_changes(|m| m.replace(table))?,
            Message::AddMemReg(region, fd) => self.memory_changes(|m| m.add(region, fd))?,
            Message::RemMemReg(region) => self.memory_changes(|m| m.remove(&region))?,
            Message::SetVringNum { ring, num } => self.slot(ring)?.size = size(num)?,
            Message::SetVringAddr { ring, address } => self.slot(ring)?.address = Some(address),
            Message::SetVringBase { ring, base } => self.slot(ring)?.base = base as u16,
            Message::GetVringBase { ring } => {
                let base = self.slot(ring)?.stop().await;
                return Ok(Answer::Payload(message::base_payload(ring, base)));
            }
            Message::SetVringKick { ring, fd } => self.set_kick(ring, fd)?,
            Message::SetVringCall { ring, fd } => self.slot(ring)?.set_call(fd)?,
            Message::SetVringErr { ring, fd } => self.slot(ring)?.set_error(fd)?,
            Message::SetVringEnable { ring, on } => self.enable(ring, on)?,
            Message::SetBackendReqFd(fd) => self.backend = Some(fd),
            Message::GetConfig { offset, size, flags } => {
                let (shape, queues) = (self.device.shape(), self.device.queues);
                // An empty answer says that there is none.
                let bytes = config::space(shape, queues, offset, size).unwrap_or_default();
                return Ok(Answer::Payload(message::config_payload(offset, flags, &bytes)));
            }
            Message::GetInflightFd(wanted) => return self.make_in_flight(wanted),
            Message::SetInflightFd(given, fd) => self.set_in_flight(given, fd)?,
            Message::SetConfig => return Err(unsupported("a change of the configuration")),
            Message::Other(request) => return Err(unsupported(format!("request {request}"))),
        }
        Ok(Answer::Done)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !config::features(self.device.shape());
        if unknown != 0 {
            return Err(unsupported(format!("features {unknown:#x}, which were not offered,")));
        }
        self.features = features;
        // Who knows nothing of protocol features cannot enable rings.
        if features & PROTOCOL_FEATURES == 0 {
            self.rings.iter_mut().for_each(|slot| slot.enabled = true);
        }
        Ok(())
    }

    fn memory_changes(&mut self, change: impl FnOnce(&mut Memory) -> Result<()>) -> Result<()> {
        change(&mut self.memory)?;
        let running = self.rings.iter().filter_map(|slot| slot.running.as_ref());
        running.for_each(|(ring, _)| ring.set_memory(self.memory.mapped()));
        Ok(())
    }

    fn slot(&mut self, ring: u32) -> Result<&mut Slot<D>> {
        let slot = self.rings.get_mut(ring as usize);
        slot.ok_or_else(|| Error::new(Kind::Invalid, format!("there is no ring {ring}")))
    }

    fn set_kick(&mut self, ring: u32, fd: Option<OwnedFd>) -> Result<()> {
        let fd = fd.ok_or_else(|| unsupported("a ring without a kick"))?;
        let slot = self.slot(ring)?;
        match &slot.running {
            Some((running, _)) => running.set_kick(watched(fd)?),
            None => slot.kick = Some(fd),
        }
        self.start(ring)
    }

    fn enable(&mut self, ring: u32, on: bool) -> Result<()> {
        let slot = self.slot(ring)?;
        slot.enabled = on;
        if let Some((running, _)) = &slot.running {
            running.enable(on);
        }
        self.start(ring)
    }

    /// Starts a ring that can be and is not.
    fn start(&mut self, ring: u32) -> Result<()> {
        let slot = self.slot(ring)?;
        if slot.running.is_some() || !slot.enabled || slot.kick.is_none() {
            return Ok(());
        }
        let description = self.describe(ring)?;
        let shared = self.in_flight_of(ring, description.size)?;
        let (device, mem) = (Rc::clone(&self.device), Arc::clone(self.memory.mapped()));
        let settled = self.settled.clone();
        let slot = self.slot(ring)?;
        let signals = Signals {
            kick: slot.kick.take().map(watched).transpose()?,
            call: slot.call.as_ref().map(OwnedFd::try_clone).transpose().map_err(event)?,
            error: slot.error.as_ref().map(OwnedFd::try_clone).transpose().map_err(event)?,
        };
        let started = Rc::new(Ring::new(device, mem, &description, shared, signals)?);
        tracing::debug!(ring, size = description.size, "a ring starts");
        let running = Rc::clone(&started);
        let task = spawn_local(async move {
            settled.await;
            running.run().await
        });
        slot.running = Some((started, task));
        Ok(())
    }

    fn describe(&mut self, ring: u32) -> Result<Description> {
        let slot = self.slot(ring)?;
        let (size, base) = (slot.size, slot.base);
        let missing = || Error::new(Kind::Invalid, "a ring is started before it is described");
        let address = slot.address.filter(|_| size > 0).ok_or_else(missing)?;
        let guest = |user| {
            let outside = || Error::new(Kind::Invalid, "a ring lies in no region of memory");
            self.memory.guest_address(user).ok_or_else(outside)
        };
        Ok(Description {
            size,
            table: guest(address.descriptors)?,
            available: guest(address.available)?,
            used: guest(address.used)?,
            base,
            event_idx: self.features & EVENT_IDX != 0,
            write_through: self.features & FLUSH == 0,
        })
    }

    /// The part of a ring in the memory for what is in flight, and for how many entries it is.
    fn in_flight_of(&self, ring: u32, size: u16) -> Result<Option<(inflight::Shared, u16)>> {
        let Some((about, mapping)) = &self.in_flight else { return Ok(None) };
        let entries = about.queue_size;
        let part = inflight::Shared::new(Arc::clone(mapping), ring as usize, entries);
        let part = part.filter(|_| ring < u32::from(about.queues) && size <= entries);
        let small = || Error::new(Kind::Invalid, "no room for what this ring has in flight");
        part.map(|part| Some((part, entries))).ok_or_else(small)
    }

    fn make_in_flight(&self, wanted: Inflight) -> Result<Answer> {
        let Inflight { queues, queue_size, .. } = wanted;
        if queues > self.device.queues || queue_size > MAX_SIZE {
            return Err(Error::new(Kind::Invalid, "more rings in flight than there are"));
        }
        let size = (usize::from(queues) * ring_bytes(queue_size)) as u64;
        let fd = memory_of(size).map_err(|e| Error::io("memory for requests in flight", e))?;
        let made = Inflight { size, offset: 0, queues, queue_size };
        Ok(Answer::WithFd(message::inflight_payload(&made), fd))
    }

    fn set_in_flight(&mut self, given: Inflight, fd: OwnedFd) -> Result<()> {
        let mapping = shared(fd, given.offset, given.size)?;
        self.in_flight = Some((given, Arc::new(mapping)));
        Ok(())
    }
}

impl<D> Session<D> {
    fn abandon(&mut self) -> Vec<JoinHandle<u16>> {
        let mut ends = Vec::new();
        for (ring, task) in self.rings.iter_mut().filter_map(|slot| slot.running.take()) {
            ring.abandon();
            ends.push(task);
        }
        ends
    }
}

impl<D> Drop for Session<D> {
    fn drop(&mut self) {
        // The tasks of rings outlive us; the guest's memory must not be theirs any more.
        drop(self.abandon());
    }
}

impl<D: Disk> Slot<D> {
    /// Stops the ring, if it runs, when all that it took has been answered. Gives its next entry.
    async fn stop(&mut self) -> u16 {
        self.kick = None;
        if let Some((ring, task)) = self.running.take() {
            ring.stop();
            match task.await {
                Ok(base) => self.base = base,
                Err(error) => tracing::error!(%error, "a ring's task died"),
            }
        }
        self.base
    }

    fn set_call(&mut self, fd: Option<OwnedFd>) -> Result<()> {
        if let Some((running, _)) = &self.running {
            running.set_call(fd.as_ref().map(OwnedFd::try_clone).transpose().map_err(event)?);
        }
        self.call = fd;
        Ok(())
    }

    fn set_error(&mut self, fd: Option<OwnedFd>) -> Result<()> {
        if let Some((running, _)) = &self.running {
            running.set_error(fd.as_ref().map(OwnedFd::try_clone).transpose().map_err(event)?);
        }
        self.error = fd;
        Ok(())
    }
}

fn size(num: u32) -> Result<u16> {
    let size = u16::try_from(num).ok().filter(|n| n.is_power_of_two() && *n <= MAX_SIZE);
    let wrong = || Error::new(Kind::Invalid, format!("a ring of {num} descriptors"));
    size.ok_or_else(wrong)
}

fn watched(fd: OwnedFd) -> Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    watch(fd).map_err(event)
}

fn event(error: std::io::Error) -> Error {
    Error::io("a ring's event", error)
}

/// Shared memory of so many bytes, zeros, that nobody can cut short.
fn memory_of(size: u64) -> std::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("forebay-inflight", flags)?;
    rustix::fs::ftruncate(&fd, size)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

fn unsupported(what: impl std::fmt::Display) -> Error {
    Error::new(Kind::Unsupported, format!("{what} is not supported"))
}
