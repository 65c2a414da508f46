//! Whole sessions: the front-end of the crate `vhost` on one thread, the export on another.

use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use blockio::{Arena, BlockFile, Engine, OpenMode};
use proptest::prelude::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vhost::VhostBackend;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use virtio_bindings::virtio_blk as blk;
use vm_memory::GuestAddress;

use super::super::{Export, Options, listen};
use super::disk::{MemDisk, Shared};
use super::driver::{Ask, Guest};
use crate::export::raw::RawDisk;

const OK: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;
const DISK: usize = 4 << 20;

/// Runs `f` on a thread with a runtime such as an export needs.
fn on_a_core<F: Future<Output = ()>>(f: impl FnOnce() -> F + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, f());
    })
}

fn options() -> Options {
    Options { serial: "volume-7".into(), queues: 4 }
}

/// As many buffers as it takes.
fn buffers(count: usize) -> Arena {
    const LEN: usize = 256 << 10;
    Arena::new("test", LEN, count * LEN).unwrap()
}

/// Serves one front-end, as one process would.
fn process(
    shared: &Arc<Shared>,
    count: usize,
    edit: impl FnOnce(&mut MemDisk) + Send + 'static,
) -> (UnixStream, JoinHandle<()>) {
    let (front, back) = UnixStream::pair().unwrap();
    let shared = Arc::clone(shared);
    let served = on_a_core(move || async move {
        let mut disk = MemDisk::new(&shared);
        edit(&mut disk);
        back.set_nonblocking(true).unwrap();
        let back = tokio::net::UnixStream::from_std(back).unwrap();
        let export = Export::new(Rc::new(disk), buffers(count), &options()).unwrap();
        let _ = export.serve_one(back).await;
    });
    (front, served)
}

fn write(sector: u64, out: &[u8]) -> Ask<'_> {
    Ask { kind: blk::VIRTIO_BLK_T_OUT, sector, out, room: 0, indirect: false }
}

fn read(sector: u64, room: u32) -> Ask<'static> {
    Ask { kind: blk::VIRTIO_BLK_T_IN, sector, out: &[], room, indirect: true }
}

fn plain(kind: u32) -> Ask<'static> {
    Ask { kind, sector: 0, out: &[], room: 0, indirect: false }
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Connects a guest to a process of its own, and takes both down after `f`.
fn session(guest: &mut Guest, shared: &Arc<Shared>, f: impl FnOnce(&mut Guest, &mut Frontend)) {
    // One buffer is enough for everything, if more slowly.
    let (stream, served) = process(shared, 1, |_| {});
    let mut front = guest.connect(stream);
    f(guest, &mut front);
    drop(front);
    served.join().unwrap();
}

#[test]
fn what_is_written_is_read_and_the_rest_is_told() {
    let shared = Shared::new(DISK);
    session(&mut Guest::new(2), &shared, |guest, front| {
        let (mem, queue) = (&guest.mem, &mut guest.queues[1]);
        assert_eq!(queue.ask(mem, &write(8, &[7; 8192])), OK);
        assert_eq!(shared.data.lock().unwrap()[4096..12288], [7; 8192]);
        assert_eq!(queue.ask(mem, &read(7, 1024)), OK);
        assert_eq!(queue.read_data(mem, 0, 1024), [[0; 512], [7; 512]].concat());
        assert_eq!(queue.ask(mem, &plain(blk::VIRTIO_BLK_T_FLUSH)), OK);
        assert_eq!(shared.flushes.load(Ordering::SeqCst), 1);
        let serial = Ask { room: 20, ..plain(blk::VIRTIO_BLK_T_GET_ID) };
        assert_eq!(queue.ask(mem, &serial), OK);
        assert_eq!(&queue.read_data(mem, 0, 20)[..10], b"volume-7\0\0");
        assert_eq!(queue.ask(mem, &plain(99)), UNSUPPORTED);
        assert_eq!(queue.ask(mem, &read(DISK as u64 / 512, 512)), FAILED);
        for (kind, flags) in [(blk::VIRTIO_BLK_T_WRITE_ZEROES, 1), (blk::VIRTIO_BLK_T_DISCARD, 0)] {
            assert_eq!(queue.ask(mem, &write(8, &[7; 8192])), OK);
            let out = range(9, 2, flags);
            assert_eq!(queue.ask(mem, &Ask { out: &out, ..plain(kind) }), OK);
            assert_eq!(queue.ask(mem, &read(8, 2048)), OK);
            let expected = [vec![7; 512], vec![0; 1024], vec![7; 512]].concat();
            assert_eq!(queue.read_data(mem, 0, 2048), expected);
        }
        let config = Guest::config(front);
        assert_eq!(config[..8], (DISK as u64 / 512).to_le_bytes());
    });
    let log: String = shared.log.lock().unwrap().iter().map(|(what, _)| what).collect();
    assert_eq!(log, "wrfwZrwdr");
}

#[test]
fn a_request_longer_than_a_buffer_goes_in_pieces() {
    // Longer than the slots of this driver, whose data areas lie side by side.
    let shared = Shared::new(DISK);
    let data: Vec<u8> = (0..900_096u32).map(|n| (n % 251) as u8).collect();
    session(&mut Guest::new(1), &shared, |guest, _| {
        let (mem, queue) = (&guest.mem, &mut guest.queues[0]);
        assert_eq!(queue.ask(mem, &write(3, &data)), OK);
        assert_eq!(queue.ask(mem, &read(3, data.len() as u32)), OK);
        assert_eq!(queue.read_data(mem, 0, data.len()), data);
    });
    assert_eq!(shared.data.lock().unwrap()[3 * 512..][..data.len()], data);
    assert_eq!(shared.log.lock().unwrap().len(), 8);
}

/// Reads of what lies in a file fill the guest's memory without a buffer of ours.
#[test]
fn a_file_is_read_straight_into_the_guest() {
    let data: Vec<u8> = (0..900_096u32).map(|n| (n % 251) as u8).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &data).unwrap();
    let path = file.path().to_owned();
    let (front, back) = UnixStream::pair().unwrap();
    let served = on_a_core(move || async move {
        let file = BlockFile::open(&path, OpenMode::write()).unwrap();
        let disk = RawDisk::new(file, Engine::detect().unwrap(), 512, false).unwrap();
        back.set_nonblocking(true).unwrap();
        let back = tokio::net::UnixStream::from_std(back).unwrap();
        // The one buffer is somebody else's.
        let buffers = buffers(1);
        let _taken = buffers.acquire().await;
        let export = Export::new(Rc::new(disk), buffers.clone(), &options()).unwrap();
        let _ = export.serve_one(back).await;
    });
    let mut guest = Guest::new(1);
    let front = guest.connect(front);
    let (mem, queue) = (&guest.mem, &mut guest.queues[0]);
    for indirect in [true, false] {
        let all = Ask { indirect, ..read(0, data.len() as u32) };
        assert_eq!(queue.ask(mem, &all), OK);
        assert!(queue.read_data(mem, 0, data.len()) == data);
        assert_eq!(queue.ask(mem, &Ask { indirect, ..read(3, 1024) }), OK);
        assert!(queue.read_data(mem, 0, 1024) == data[1536..2560]);
    }
    assert_eq!(queue.ask(mem, &read(0, 0)), OK);
    drop(front);
    served.join().unwrap();
}

#[test]
fn a_disk_that_fails_is_an_error_of_the_request_only() {
    let shared = Shared::new(DISK);
    session(&mut Guest::new(1), &shared, |guest, _| {
        let (mem, queue) = (&guest.mem, &mut guest.queues[0]);
        shared.fail.store(true, Ordering::SeqCst);
        assert_eq!(queue.ask(mem, &write(0, &[1; 512])), FAILED);
        assert_eq!(queue.ask(mem, &plain(blk::VIRTIO_BLK_T_FLUSH)), FAILED);
        shared.fail.store(false, Ordering::SeqCst);
        assert_eq!(queue.ask(mem, &write(0, &[1; 512])), OK);
    });
}

#[test]
fn a_read_only_disk_is_not_written() {
    let shared = Shared::new(DISK);
    let (stream, served) = process(&shared, 1, |disk| disk.read_only = true);
    let mut guest = Guest::new(1);
    let front = guest.connect(stream);
    let (mem, queue) = (&guest.mem, &mut guest.queues[0]);
    assert_eq!(queue.ask(mem, &write(0, &[1; 512])), FAILED);
    assert_eq!(queue.ask(mem, &read(0, 512)), OK);
    drop(front);
    served.join().unwrap();
    assert_eq!(shared.log.lock().unwrap().len(), 1);
}

#[test]
fn without_a_flush_every_write_is_made_to_last() {
    let shared = Shared::new(DISK);
    let mut guest = Guest::new(1);
    guest.features = !(1 << blk::VIRTIO_BLK_F_FLUSH | 1 << 29);
    session(&mut guest, &shared, |guest, _| {
        let (mem, queue) = (&guest.mem, &mut guest.queues[0]);
        assert_eq!(queue.ask(mem, &write(0, &[1; 512])), OK);
        assert_eq!(queue.ask(mem, &read(0, 512)), OK);
        let zeros = Ask { out: &range(0, 1, 0), ..plain(blk::VIRTIO_BLK_T_WRITE_ZEROES) };
        assert_eq!(queue.ask(mem, &zeros), OK);
    });
    assert_eq!(shared.flushes.load(Ordering::SeqCst), 2);
}

#[test]
fn a_broken_ring_says_so_and_the_others_go_on() {
    let shared = Shared::new(DISK);
    session(&mut Guest::new(2), &shared, |guest, front| {
        let mem = &guest.mem;
        let (bad, good) = guest.queues.split_at_mut(1);
        let at = (GuestAddress(0x3000), 16, 1);
        bad[0].write_descriptor(mem, bad[0].table(), 0, at, 0);
        bad[0].make_available(mem, 0);
        bad[0].kick(mem);
        bad[0].breaks();
        assert_eq!(good[0].ask(mem, &read(0, 512)), OK);
        // A ring that is set up anew works.
        assert_eq!(front.get_vring_base(0).unwrap(), 1);
    });
}

#[test]
fn what_is_under_way_when_a_ring_stops_is_answered_first() {
    let shared = Shared::new(DISK);
    session(&mut Guest::new(1), &shared, |guest, front| {
        let (mem, queue) = (&guest.mem, &mut guest.queues[0]);
        shared.hold.store(true, Ordering::SeqCst);
        (0..4).for_each(|slot| queue.submit(mem, slot, &read(u64::from(slot) * 8, 4096)));
        queue.kick(mem);
        // The others wait for its buffer.
        shared.begun(1);
        let released = Arc::clone(&shared);
        let release = std::thread::spawn(move || {
            std::thread::park_timeout(std::time::Duration::from_millis(20));
            released.hold.store(false, Ordering::SeqCst);
        });
        let taken = front.get_vring_base(0).unwrap();
        assert!((1..=4).contains(&taken));
        for _ in 0..taken {
            assert_eq!(queue.look(mem).unwrap().1, OK);
        }
        assert!(queue.look(mem).is_none());
        release.join().unwrap();
    });
}

#[test]
fn a_process_that_follows_does_what_was_in_flight_and_nothing_twice() {
    let shared = Shared::new(DISK);
    let mut guest = Guest::new(2);
    // Some are answered, so that the rings have moved on.
    session(&mut guest, &shared, |guest, _| {
        for queue in &mut guest.queues {
            assert_eq!(queue.ask(&guest.mem, &write(0, &[1; 512])), OK);
        }
    });
    // The first process takes eight and answers the last of each ring; then it dies, as far as the guest
    // can tell.
    shared.hold.store(true, Ordering::SeqCst);
    shared.free.store(32 * 512, Ordering::SeqCst);
    shared.log.lock().unwrap().clear();
    let (stream, first) = process(&shared, 8, |_| {});
    let front = guest.connect(stream);
    let mem = &guest.mem;
    for queue in &mut guest.queues {
        (1..5).for_each(|slot| {
            queue.submit(mem, slot, &write(u64::from(slot) * 8, &[slot as u8; 4096]));
        });
        queue.kick(mem);
        assert_eq!(queue.answer(mem), (4, OK, 1));
    }
    shared.begun(8);
    // One more that nobody has taken yet when the second process comes.
    guest.queues[0].submit(mem, 5, &write(40, &[5; 4096]));
    drop(front);
    let other = Shared::new(DISK);
    session(&mut guest, &other, |guest, _| {
        let mut answers: Vec<_> = (0..4).map(|_| guest.queues[0].answer(&guest.mem)).collect();
        answers.sort_unstable();
        assert_eq!(answers, [1, 2, 3, 5].map(|slot| (slot, OK, 1)));
        let mut answers: Vec<_> = (0..3).map(|_| guest.queues[1].answer(&guest.mem)).collect();
        answers.sort_unstable();
        assert_eq!(answers, [1, 2, 3].map(|slot| (slot, OK, 1)));
        assert!(guest.queues.iter_mut().all(|queue| queue.look(&guest.mem).is_none()));
        assert_eq!(other.log.lock().unwrap().len(), 7);
        assert_eq!(guest.queues[0].ask(&guest.mem, &read(40, 512)), OK);
        assert_eq!(guest.queues[0].read_data(&guest.mem, 0, 512), [5; 512]);
    });
    shared.hold.store(false, Ordering::SeqCst);
    first.join().unwrap();
}

#[test]
fn a_front_end_that_comes_back_waits_for_what_its_last_session_began() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.sock");
    let shared = Shared::new(DISK);
    let (served, at) = (Arc::clone(&shared), path.clone());
    let (ready, listening) = std::sync::mpsc::channel();
    on_a_core(move || async move {
        let export = Export::new(Rc::new(MemDisk::new(&served)), buffers(8), &options()).unwrap();
        let listener = listen(&at).await.unwrap();
        assert_eq!(listen(&at).await.unwrap_err().kind(), image::Kind::Conflict);
        ready.send(()).unwrap();
        export.serve(listener).await;
    });
    listening.recv().unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

    let mut guest = Guest::new(1);
    shared.hold.store(true, Ordering::SeqCst);
    let front = guest.connect(UnixStream::connect(&path).unwrap());
    guest.queues[0].submit(&guest.mem, 1, &write(0, &[1; 512]));
    guest.queues[0].kick(&guest.mem);
    shared.begun(1);
    // A second guest is turned away meanwhile.
    let second = Frontend::from_stream(UnixStream::connect(&path).unwrap(), 1);
    assert!(second.get_features().is_err());
    drop(front);
    let front = again(&path, &mut guest);
    guest.queues[0].submit(&guest.mem, 2, &write(8, &[2; 512]));
    guest.queues[0].kick(&guest.mem);
    // Neither is done again nor begun, as the first write is still on its way.
    assert_eq!(shared.log.lock().unwrap().len(), 1);
    assert!(guest.queues[0].look(&guest.mem).is_none());
    shared.hold.store(false, Ordering::SeqCst);
    let mut slots = [0; 2].map(|_| guest.queues[0].answer(&guest.mem).0);
    slots.sort_unstable();
    assert_eq!(slots, [1, 2]);
    assert_eq!(*shared.log.lock().unwrap(), [('w', 0), ('w', 0), ('w', 4096)]);
    drop(front);
}

/// Connects again, which is refused until the last session is seen to have ended.
fn again(path: &std::path::Path, guest: &mut Guest) -> Frontend {
    loop {
        let stream = UnixStream::connect(path).unwrap();
        let probe = Frontend::from_stream(stream.try_clone().unwrap(), 1);
        if probe.get_features().is_ok() {
            return guest.connect(stream);
        }
    }
}

#[test]
fn an_export_that_is_dropped_leaves_the_guest_alone() {
    let shared = Shared::new(DISK);
    let (front, back) = UnixStream::pair().unwrap();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let (gone, is_gone) = std::sync::mpsc::channel();
    let (ready, go_on) = tokio::sync::oneshot::channel::<()>();
    let disk = Arc::clone(&shared);
    let served = on_a_core(move || async move {
        back.set_nonblocking(true).unwrap();
        let back = tokio::net::UnixStream::from_std(back).unwrap();
        let export = Export::new(Rc::new(MemDisk::new(&disk)), buffers(8), &options()).unwrap();
        tokio::select! {
            result = export.serve_one(back) => result.unwrap(),
            _ = ended => {}
        }
        gone.send(()).unwrap();
        // Its tasks could run on here, as the core does.
        go_on.await.unwrap();
    });
    let mut guest = Guest::new(1);
    let _front = guest.connect(front);
    assert_eq!(guest.queues[0].ask(&guest.mem, &read(0, 512)), OK);
    end.send(()).unwrap();
    is_gone.recv().unwrap();
    guest.queues[0].submit(&guest.mem, 1, &write(0, &[1; 512]));
    guest.queues[0].kick(&guest.mem);
    std::thread::park_timeout(std::time::Duration::from_millis(20));
    assert_eq!(shared.log.lock().unwrap().len(), 1);
    ready.send(()).unwrap();
    served.join().unwrap();
}

#[test]
fn a_disk_that_grows_is_told() {
    let shared = Shared::new(DISK);
    let (front, back) = UnixStream::pair().unwrap();
    let (grow, grown) = tokio::sync::oneshot::channel();
    let disk = Arc::clone(&shared);
    let served = on_a_core(move || async move {
        back.set_nonblocking(true).unwrap();
        let back = tokio::net::UnixStream::from_std(back).unwrap();
        let export = Export::new(Rc::new(MemDisk::new(&disk)), buffers(8), &options()).unwrap();
        let grows = async {
            grown.await.unwrap();
            disk.data.lock().unwrap().resize(2 * DISK, 0);
            export.resized();
        };
        let (result, ()) = tokio::join!(export.serve_one(back), grows);
        result.unwrap();
    });
    let mut guest = Guest::new(1);
    let mut front = guest.connect(front);
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    front.set_backend_request_fd(&theirs).unwrap();
    grow.send(()).unwrap();
    let mut message = [0; 12];
    rustix::io::read(&ours, &mut message).unwrap();
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(Guest::config(&mut front)[..8], (2 * DISK as u64 / 512).to_le_bytes());
    drop(front);
    served.join().unwrap();
}

/// One step of a guest: what it asks of which queue.
#[derive(Clone, Debug)]
enum Step {
    Write { sector: u64, sectors: u64, byte: u8 },
    Read { sector: u64, sectors: u64 },
    Zero { sector: u64, sectors: u64 },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0u64..2000, 1u64..128);
    prop_oneof![
        (place(), any::<u8>()).prop_map(|((sector, sectors), byte)| Step::Write {
            sector,
            sectors,
            byte
        }),
        place().prop_map(|(sector, sectors)| Step::Read { sector, sectors }),
        place().prop_map(|(sector, sectors)| Step::Zero { sector, sectors }),
        Just(Step::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Batches of requests, and processes that come and go between them, are as one array of bytes.
    #[test]
    fn a_guest_sees_a_disk(
        batches in prop::collection::vec(prop::collection::vec(step(), 1..60), 1..8),
        event_idx in any::<bool>(),
    ) {
        let shared = Shared::new(DISK);
        let mut model = vec![0u8; DISK];
        let mut guest = Guest::new(3);
        if !event_idx {
            guest.features &= !(1 << 29);
        }
        for batch in batches {
            session(&mut guest, &shared, |guest, _| {
                for steps in batch.chunks(14) {
                    drive(guest, steps, &mut model);
                }
            });
        }
        assert!(*shared.data.lock().unwrap() == model);
    }
}

/// Carries out steps: those that follow one another in different places at the same time.
fn drive(guest: &mut Guest, steps: &[Step], model: &mut [u8]) {
    let mut under_way: Vec<(u64, u64, usize, u16, Vec<u8>)> = Vec::new();
    let mem = &guest.mem;
    let settle = |guest: &mut [super::driver::Queue],
                  all: &mut Vec<(u64, u64, usize, u16, Vec<u8>)>| {
        guest.iter_mut().for_each(|queue| queue.kick(mem));
        for n in 0..all.len() {
            let queue = &mut guest[all[n].2];
            let (slot, status, _) = queue.answer(mem);
            assert_eq!(status, OK);
            let asked = all.iter().find(|a| (a.2, a.3) == (all[n].2, slot)).unwrap();
            assert!(queue.read_data(mem, slot, asked.4.len()) == asked.4);
        }
        all.clear();
    };
    for (n, step) in steps.iter().enumerate() {
        let (sector, sectors) = match step {
            Step::Write { sector, sectors, .. }
            | Step::Read { sector, sectors }
            | Step::Zero { sector, sectors } => (*sector, *sectors),
            Step::Flush => (0, 0),
        };
        if under_way.iter().any(|(at, len, ..)| sector < at + len && *at < sector + sectors) {
            settle(&mut guest.queues, &mut under_way);
        }
        let (bytes, slot, queue) = (sectors as usize * 512, n as u16, n % 3);
        let place = sector as usize * 512..sector as usize * 512 + bytes;
        let (data, zeros, mut expected);
        let ask = match step {
            Step::Write { byte, .. } => {
                model[place].fill(*byte);
                data = vec![*byte; bytes];
                expected = data.clone();
                write(sector, &data)
            }
            Step::Read { .. } => {
                expected = model[place].to_vec();
                read(sector, bytes as u32)
            }
            Step::Zero { .. } => {
                model[place].fill(0);
                zeros = range(sector, sectors as u32, 1);
                expected = zeros.clone();
                Ask { out: &zeros, ..plain(blk::VIRTIO_BLK_T_WRITE_ZEROES) }
            }
            Step::Flush => {
                expected = Vec::new();
                plain(blk::VIRTIO_BLK_T_FLUSH)
            }
        };
        expected.shrink_to_fit();
        guest.queues[queue].submit(mem, slot, &ask);
        under_way.push((sector, sectors, queue, slot, expected));
    }
    settle(&mut guest.queues, &mut under_way);
}
