//! The arena's promises, from outside.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use blockio::{Arena, arena::ALIGN};
use bytes::Bytes;
use tokio::sync::mpsc;

const SLOT: usize = 64 << 10;

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn slots_are_aligned_disjoint_and_zeroed() {
    let arena = Arena::new("test", SLOT, 5 * SLOT + 1).unwrap();
    assert_eq!(arena.slots(), 5);
    let mut bufs: Vec<_> = std::iter::from_fn(|| arena.try_acquire()).collect();
    assert_eq!((bufs.len(), arena.used_bytes()), (5, 5 * SLOT));
    for (i, buf) in bufs.iter_mut().enumerate() {
        assert_eq!((buf.len(), buf.as_ptr().addr() % ALIGN), (SLOT, 0));
        assert!(buf.iter().all(|byte| *byte == 0));
        buf.fill(i as u8 + 1);
    }
    for (i, buf) in bufs.iter().enumerate() {
        assert!(buf.iter().all(|byte| *byte == i as u8 + 1), "slot {i} was overwritten");
    }
    drop(bufs);
    assert_eq!(arena.available(), 5);
}

#[test]
fn bad_sizes_are_refused() {
    for (slot, budget) in [(0, SLOT), (4097, SLOT), (SLOT, SLOT - 1), (2 << 30, 4 << 30)] {
        let error = Arena::new("test", slot, budget).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    }
}

#[test]
fn the_line_is_first_come_first_served() {
    let arena = Arena::new("test", SLOT, SLOT).unwrap();
    let held = arena.try_acquire().unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    let mut first = pin!(arena.acquire());
    let mut third = pin!(arena.acquire());
    assert!(first.as_mut().poll(&mut cx).is_pending());
    {
        let mut second = pin!(arena.acquire());
        assert!(second.as_mut().poll(&mut cx).is_pending());
        assert!(third.as_mut().poll(&mut cx).is_pending());
        // The second gives up its place.
    }
    drop(held);
    assert!(arena.try_acquire().is_none(), "the slot is promised to the first in line");
    assert!(third.as_mut().poll(&mut cx).is_pending());
    let Poll::Ready(buf) = first.as_mut().poll(&mut cx) else { panic!("the first waits on") };
    drop(buf);
    assert!(third.as_mut().poll(&mut cx).is_ready());
}

#[test]
fn a_promise_not_taken_goes_to_the_next() {
    let arena = Arena::new("test", SLOT, SLOT).unwrap();
    let held = arena.try_acquire().unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    {
        let mut waiting = pin!(arena.acquire());
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        drop(held);
    }
    assert!(arena.try_acquire().is_some());
}

#[test]
fn bytes_give_the_slot_back_at_the_last_clone() {
    let arena = Arena::new("test", SLOT, SLOT).unwrap();
    let mut buf = arena.try_acquire().unwrap();
    buf.copy_from(b"frame");
    let bytes = Bytes::from(buf);
    let slice = bytes.slice(1..3);
    drop(bytes);
    assert_eq!((&slice[..], arena.available()), (&b"ra"[..], 0));
    drop(slice);
    assert_eq!(arena.available(), 1);
}

#[test]
fn a_buffer_outlives_its_arena() {
    let arena = Arena::new("test", SLOT, SLOT).unwrap();
    let mut buf = arena.try_acquire().unwrap();
    drop(arena);
    buf.fill(7);
    assert_eq!(buf[SLOT - 1], 7);
}

#[test]
fn length_is_bounded_by_the_slot() {
    let arena = Arena::new("test", SLOT, SLOT).unwrap();
    let mut buf = arena.try_acquire().unwrap();
    buf.set_len(0);
    assert!(buf.is_empty());
    buf.set_len(SLOT);
    let grown = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| buf.set_len(SLOT + 1)));
    assert!(grown.is_err());
}

#[test]
fn threads_share_it_without_sharing_slots() {
    let arena = Arena::new("test", SLOT, 3 * SLOT).unwrap();
    let held = Arc::new(AtomicUsize::new(0));
    let work = |id: u8| {
        let (arena, held) = (arena.clone(), Arc::clone(&held));
        std::thread::spawn(move || {
            for _ in 0..500 {
                let mut buf = block_on(arena.acquire());
                assert!(held.fetch_add(1, Ordering::SeqCst) < 3);
                buf.fill(id);
                std::thread::yield_now();
                assert!(buf.iter().all(|byte| *byte == id));
                held.fetch_sub(1, Ordering::SeqCst);
            }
        })
    };
    let threads: Vec<_> = (0..6).map(work).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(arena.available(), 3);
}

#[test]
fn waiting_for_a_slot_holds_the_sender_back() {
    block_on(async {
        let arena = Arena::new("test", SLOT, 2 * SLOT).unwrap();
        let (send, mut receive) = mpsc::unbounded_channel();
        let producer = async {
            for i in 0..10_u8 {
                let mut buf = arena.acquire().await;
                buf.copy_from(&[i]);
                send.send(buf).unwrap();
            }
            drop(send);
        };
        let consumer = async {
            let mut seen = 0;
            while let Some(buf) = receive.recv().await {
                assert!(receive.len() < 2);
                assert_eq!(buf[0], seen);
                seen += 1;
                tokio::task::yield_now().await;
            }
            seen
        };
        assert_eq!(tokio::join!(producer, consumer).1, 10);
    });
}
