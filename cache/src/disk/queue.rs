//! What waits to be written to the disk log.
//!
//! Bounded in bytes and never waited for: when the disk cannot keep up, frames are left out of it.
//! A slow disk then costs hits later, not latency now.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use image::{Digest, Frame};
use tokio::sync::{Notify, oneshot};

use crate::disk::pin_file::PinFile;
use crate::key::Key;
use crate::sharded::lock;

/// Something for the writer to do.
pub(crate) enum Command {
    /// Write a frame.
    Append(Key, Frame),
    /// Drop every segment.
    Clear,
    /// Forget these frames, unless they are pinned.
    Forget(Vec<Key>),
    /// Say so when everything before this has been done.
    Tell(oneshot::Sender<image::Result<()>>),
    /// Drop those of these segments that hold nothing any more.
    Sweep(BTreeSet<u32>),
    /// Make a pin outlive us.
    SavePin(NewPin, oneshot::Sender<image::Result<()>>),
    /// Forget a pin.
    RemovePin(Digest, oneshot::Sender<image::Result<()>>),
}

/// A pin to be made.
pub(crate) struct NewPin {
    /// By which [`Pins::commit`](crate::pins::Pins::commit) knows it.
    pub(crate) number: u64,
    pub(crate) file: PinFile,
}

/// The way from all cores to the one writer.
pub(crate) struct Queue {
    limit: u64,
    state: Mutex<State>,
    wake: Condvar,
    /// Told when half of `limit` is free.
    room: Notify,
}

#[derive(Default)]
struct State {
    commands: VecDeque<Command>,
    bytes: u64,
    closed: bool,
    nudged: bool,
}

impl Queue {
    /// Holds frames of at most `limit` bytes together.
    pub(crate) fn new(limit: u64) -> Self {
        let (wake, room) = (Condvar::new(), Notify::new());
        Self { limit, state: Mutex::default(), wake, room }
    }

    /// Bytes that may wait.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Hands a frame to the writer; `false` if there is no room.
    pub(crate) fn offer(&self, key: Key, frame: Frame) -> bool {
        let mut state = lock(&self.state);
        let bytes = state.bytes + frame.bytes().len() as u64;
        if state.closed || bytes > self.limit {
            return false;
        }
        state.bytes = bytes;
        state.commands.push_back(Command::Append(key, frame));
        drop(state);
        self.wake.notify_one();
        true
    }

    /// Makes the writer drop every segment, and with them the frames that wait now.
    pub(crate) fn clear(&self) {
        let mut state = lock(&self.state);
        state.commands.retain(|command| !matches!(command, Command::Append(..)));
        state.bytes = 0;
        if !state.closed {
            state.commands.push_back(Command::Clear);
        }
        drop(state);
        self.wake.notify_one();
        self.room.notify_waiters();
    }

    /// Hands the writer something else than a frame, which takes no room.
    pub(crate) fn order(&self, command: Command) {
        let mut state = lock(&self.state);
        if !state.closed {
            state.commands.push_back(command);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Wakes the writer: something that it looks at has changed.
    pub(crate) fn nudge(&self) {
        // Under the lock, or the writer may just have looked and not be waiting yet.
        lock(&self.state).nudged = true;
        self.wake.notify_one();
    }

    /// Takes no more; what waits is still written.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.wake.notify_one();
        self.room.notify_waiters();
    }

    /// Returns when there is room for half of what may wait, or nothing is taken any more.
    pub(crate) async fn half_empty(&self) {
        loop {
            let told = self.room.notified();
            if self.is_closed() || self.bytes() <= self.limit / 2 {
                return;
            }
            told.await;
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.state).closed
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> u64 {
        lock(&self.state).bytes
    }

    pub(super) fn pop(&self) -> Option<Command> {
        let mut state = lock(&self.state);
        let command = state.commands.pop_front()?;
        if let Command::Append(_, frame) = &command {
            state.bytes -= frame.bytes().len() as u64;
            if state.bytes <= self.limit / 2 {
                self.room.notify_waiters();
            }
        }
        Some(command)
    }

    /// Blocks the writer's thread until there is something to do, or for this long.
    pub(super) fn wait(&self, at_most: Duration) {
        let state = lock(&self.state);
        let idle = |state: &mut State| state.commands.is_empty() && !state.closed && !state.nudged;
        let waited = self.wake.wait_timeout_while(state, at_most, idle);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.nudged = false;
    }
}
