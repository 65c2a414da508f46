//! Who watches what becomes of operations, pools, nodes and leases: see [`api::watch`].
//!
//! Each has a buffer of its own, and room in it for some seconds' changes. Who does not take them fast enough is cut
//! off, and told so as the last thing: nobody's changes are held for long, and nobody misses any without knowing it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::ErrorBody;
use api::watch::{KINDS, WatchAsked, WatchEvent};
use futures::{Stream, StreamExt, stream};
use image::{Error, Kind, Result};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::state::State;
use crate::state::keys::{Change, Watch};

/// Who watches at a time.
const WATCHERS: usize = 64;
/// Bytes of one watcher's buffer. What is longer alone is not buffered beside others.
const BUFFER: usize = 1 << 20;
/// How often a watcher is told that it is still connected.
const ALIVE: Duration = Duration::from_secs(15);

/// See the [module](self).
pub(crate) struct Watches {
    state: State,
    room: Arc<Semaphore>,
    ends: watch::Sender<bool>,
}

/// A line on its way, and its place in the buffer.
struct Line {
    text: String,
    _place: Option<OwnedSemaphorePermit>,
}

/// The lines that one watcher gets.
pub(crate) struct Lines {
    lines: mpsc::UnboundedReceiver<Line>,
    slow: Arc<AtomicBool>,
    done: bool,
    _room: OwnedSemaphorePermit,
}

impl Watches {
    pub(crate) fn new(state: State) -> Arc<Self> {
        let (ends, room) = (watch::Sender::new(false), Arc::new(Semaphore::new(WATCHERS)));
        Arc::new(Self { state, room, ends })
    }

    /// Ends all watching.
    pub(crate) fn close(&self) {
        self.ends.send_replace(true);
    }

    /// Begins to watch.
    ///
    /// # Errors
    ///
    /// [`Kind::Busy`] while too many do.
    pub(crate) async fn begin(&self, asked: &WatchAsked) -> Result<Lines> {
        let kinds = kinds(&asked.of)?;
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(|_| {
            let what = format!("{WATCHERS} watch already");
            Error::new(Kind::Busy(ALIVE), what)
        })?;
        // One stream of changes, so that they are told in the order of their revisions.
        let prefix = match kinds[..] {
            [one] => format!("{one}/"),
            _ => String::new(),
        };
        let (sender, lines) = mpsc::unbounded_channel();
        let slow = Arc::new(AtomicBool::new(false));
        let buffer = Arc::new(Semaphore::new(BUFFER));
        let teller = Teller { kinds, sender, buffer, slow: Arc::clone(&slow) };
        let revision = match asked.after {
            Some(revision) => revision,
            None => self.tell_all(&teller, &prefix).await?,
        };
        let changes = self.state.watch(&prefix, revision);
        tokio::spawn(teller.tell_changes(changes, self.ends.subscribe()));
        Ok(Lines { lines, slow, done: false, _room: room })
    }

    /// What there is, as of one moment; the revision of that.
    async fn tell_all(&self, teller: &Teller, prefix: &str) -> Result<u64> {
        let listing = self.state.listing(prefix).await?;
        for (key, value) in listing.entries {
            let (version, value) = (value.version, Some(value.value));
            if let Some(event) = teller.event(&Change { key, version, value }) {
                // It is no longer than the list that whoever watches could ask for, and is there already.
                let _ = teller.sender.send(Line { text: line(&event), _place: None });
            }
        }
        let now = WatchEvent::Now { revision: listing.revision };
        let _ = teller.sender.send(Line { text: line(&now), _place: None });
        Ok(listing.revision)
    }
}

fn kinds(of: &str) -> Result<Vec<&'static str>> {
    let mut kinds = Vec::new();
    for name in of.split(',').filter(|name| !name.is_empty()) {
        let Some(kind) = KINDS.into_iter().find(|kind| *kind == name) else {
            let shown: String = name.chars().take(40).collect();
            let what = format!("of: `{}` is none of {}", shown.escape_debug(), KINDS.join(", "));
            return Err(Error::new(Kind::Invalid, what));
        };
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    if kinds.is_empty() {
        kinds.extend(KINDS);
    }
    Ok(kinds)
}

fn line(event: &WatchEvent) -> String {
    serde_json::to_string(event).expect("our own types serialise") + "\n"
}

fn end(error: &Error) -> WatchEvent {
    WatchEvent::End { error: ErrorBody::from(error) }
}

/// What tells one watcher.
struct Teller {
    kinds: Vec<&'static str>,
    sender: mpsc::UnboundedSender<Line>,
    buffer: Arc<Semaphore>,
    slow: Arc<AtomicBool>,
}

impl Teller {
    async fn tell_changes(self, mut changes: Watch, mut ends: watch::Receiver<bool>) {
        // Also while much happens that nobody here asked for.
        let mut alive = tokio::time::interval(ALIVE);
        alive.tick().await;
        loop {
            let event = tokio::select! {
                () = self.sender.closed() => return,
                _ = ends.wait_for(|ends| *ends) => {
                    end(&Error::new(Kind::Retry, "placement ends; go on from the last revision"))
                }
                change = changes.next() => match change {
                    Some(Ok(change)) => match self.event(&change) {
                        Some(event) => event,
                        None => continue,
                    },
                    Some(Err(error)) => end(&error),
                    None => end(&Error::new(Kind::Retry, "the state tells no more changes")),
                },
                _ = alive.tick() => WatchEvent::Alive,
            };
            let over = matches!(event, WatchEvent::End { .. });
            if !self.tell(&event) || over {
                return;
            }
        }
    }

    /// Whether there was room for it.
    fn tell(&self, event: &WatchEvent) -> bool {
        let text = line(event);
        let bytes = u32::try_from(text.len().clamp(256, BUFFER)).unwrap_or(u32::MAX);
        let Ok(place) = Arc::clone(&self.buffer).try_acquire_many_owned(bytes) else {
            self.slow.store(true, Ordering::Relaxed);
            return false;
        };
        self.sender.send(Line { text, _place: Some(place) }).is_ok()
    }

    /// A change, as it is told; nothing if nobody asked for it.
    fn event(&self, change: &Change) -> Option<WatchEvent> {
        let (kind, name) = change.key.split_once('/')?;
        let kind = (*self.kinds.iter().find(|k| **k == kind)?).to_owned();
        let (revision, name) = (change.version, name.to_owned());
        let Some(bytes) = &change.value else {
            return Some(WatchEvent::Gone { revision, kind, name });
        };
        let mut value: Value = serde_json::from_slice(bytes).ok()?;
        // How an operation is done is nobody's business.
        if kind == "operations" {
            value = value.get_mut("operation")?.take();
        }
        Some(WatchEvent::Set { revision, kind, name, value })
    }
}

impl Lines {
    /// The lines, until the last one.
    pub(crate) fn stream(self) -> impl Stream<Item = String> + Send {
        stream::unfold(self, |mut lines| async move {
            if lines.done {
                return None;
            }
            if let Some(next) = lines.lines.recv().await {
                return Some((next.text, lines));
            }
            lines.done = true;
            if !lines.slow.load(Ordering::Relaxed) {
                return None;
            }
            let what = "changes come faster than they are taken here: go on from the last revision";
            let cut = line(&end(&Error::new(Kind::Busy(Duration::from_secs(1)), what)));
            Some((cut, lines))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::keys::{Transaction, encode};

    fn asked(of: &str, after: Option<u64>) -> WatchAsked {
        WatchAsked { of: of.into(), after }
    }

    fn event(text: &str) -> WatchEvent {
        serde_json::from_str(text).unwrap()
    }

    async fn put(state: &State, key: &str, value: &str) {
        state.commit(Transaction::default().put(key, encode(&value))).await.unwrap();
    }

    #[tokio::test]
    async fn what_there_is_comes_first_then_what_changes_and_it_goes_on_by_revision() {
        let state = State::in_memory("g").await;
        put(&state, "pools/a", "1").await;
        put(&state, "goals/n", "x").await;
        let watches = Watches::new(state.clone());
        let mut lines =
            Box::pin(watches.begin(&asked("pools,nodes", None)).await.unwrap().stream());
        let WatchEvent::Set { name, revision, .. } = event(&lines.next().await.unwrap()) else {
            panic!("not what there is");
        };
        assert_eq!(name, "a");
        assert!(matches!(event(&lines.next().await.unwrap()), WatchEvent::Now { .. }));
        put(&state, "goals/n", "y").await;
        put(&state, "nodes/n", "2").await;
        state.commit(Transaction::default().delete("pools/a")).await.unwrap();
        let next = event(&lines.next().await.unwrap());
        assert!(matches!(next, WatchEvent::Set { kind, .. } if kind == "nodes"));
        let gone = event(&lines.next().await.unwrap());
        assert!(matches!(gone, WatchEvent::Gone { name, .. } if name == "a"));
        // Another goes on from the first.
        let later = watches.begin(&asked("pools", Some(revision))).await.unwrap();
        assert_eq!(event(&Box::pin(later.stream()).next().await.unwrap()), gone_of(&state).await);
        watches.close();
        let last = event(&lines.next().await.unwrap());
        assert!(matches!(last, WatchEvent::End { .. }) && lines.next().await.is_none());
        assert!(watches.begin(&asked("goals", None)).await.is_err());
    }

    async fn gone_of(state: &State) -> WatchEvent {
        let revision = state.listing("").await.unwrap().revision;
        WatchEvent::Gone { revision, kind: "pools".into(), name: "a".into() }
    }

    #[tokio::test]
    async fn who_takes_nothing_is_cut_off_and_told_and_there_are_not_too_many() {
        let state = State::in_memory("g").await;
        let watches = Watches::new(state.clone());
        let lines = watches.begin(&asked("pools", None)).await.unwrap();
        let long = "x".repeat(BUFFER / 8);
        for _ in 0..20 {
            put(&state, "pools/a", &long).await;
            tokio::task::yield_now().await;
        }
        let told: Vec<String> = lines.stream().collect().await;
        assert!(told.len() < 12 && told.iter().map(String::len).sum::<usize>() < 2 * BUFFER);
        let WatchEvent::End { error } = event(told.last().unwrap()) else { panic!("not cut off") };
        assert_eq!(error.kind, "busy");

        let mut all = Vec::new();
        for _ in 0..WATCHERS {
            all.push(watches.begin(&asked("", None)).await.unwrap());
        }
        let refused = watches.begin(&asked("", None)).await.err().unwrap();
        assert!(matches!(refused.kind(), Kind::Busy(_)));
        drop(all.pop());
        watches.begin(&asked("", None)).await.unwrap();
    }
}
