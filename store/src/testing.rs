//! An object store for tests: it records what is changed, fails where it is told to, waits where it
//! is told to, runs full, tells the time it is given, and lets the test damage what it holds.
//!
//! ```text
//! TestStore::new(clock) → use it as an object store → log() → at any crash: TestStore::after_crash
//!                       → fail / limit / gate / flip / truncate
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result,
};
use tokio::sync::Notify;

use crate::options::Clock;

/// A clock that stands still until it is moved. Seconds since 1970.
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// A clock that says `now`.
    pub fn at(now: u64) -> Self {
        Self(Arc::new(AtomicU64::new(now)))
    }

    /// What it says.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Moves it forward.
    pub fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }

    /// The clock as a store takes it.
    pub fn clock(&self) -> Clock {
        let this = self.clone();
        Arc::new(move || this.now())
    }
}

/// Ids that count up from a seed: the same in every run.
pub fn counted_ids(seed: u64) -> crate::options::IdSource {
    let next = AtomicU64::new(0);
    Arc::new(move || {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&seed.to_be_bytes());
        id[8..].copy_from_slice(&next.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        id
    })
}

/// What is asked of the object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Create an object.
    Put,
    /// Read an object, or ask for its length.
    Get,
    /// List a folder.
    List,
    /// Remove an object.
    Delete,
}

/// What shall go wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is refused with this error, and nothing happens.
    Refuse(io::ErrorKind),
    /// It is carried out, but its answer is lost: this error comes instead.
    LoseAnswer(io::ErrorKind),
}

/// A change that was made, and when: events are numbered from 0.
#[derive(Clone, Debug)]
pub struct Change {
    /// The object.
    pub key: String,
    /// Its bytes; `None` if it was removed.
    pub bytes: Option<Bytes>,
    /// The event at which it was asked for.
    pub asked: u64,
    /// The event at which it was acknowledged; `None` if it never was.
    pub acknowledged: Option<u64>,
}

/// What becomes of a change that was asked for but not acknowledged when the crash came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unacknowledged {
    /// All of them are lost.
    Lost,
    /// All of them were made.
    Made,
    /// All were made, but the one at this place of the log is lost.
    OneLost(usize),
    /// All were made, but of the one at this place of the log only the first half.
    OneTorn(usize),
    /// All were made, but no removal was, acknowledged or not, save those of manifests: a local
    /// file system makes removals durable only where it is told to.
    RemovalsLost,
}

type FaultRule = Box<dyn Fn(Verb, &str) -> Option<Fault> + Send>;

/// An object store in memory that tests can watch, break and hold up.
#[derive(Clone)]
pub struct TestStore {
    memory: InMemory,
    clock: Clock,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    log: Vec<Change>,
    events: u64,
    times: HashMap<Path, u64>,
    fault: Option<FaultRule>,
    /// Bytes that it may hold.
    limit: Option<u64>,
    sizes: BTreeMap<Path, u64>,
    gates: Vec<Arc<GateState>>,
    /// State of the random numbers that say how long a request lets others go first; 0 for never.
    jitter: u64,
    requests: HashMap<Verb, u64>,
}

struct GateState {
    verb: Verb,
    prefix: String,
    reached: Notify,
    open: tokio::sync::Semaphore,
}

/// Holds requests up until it is opened, or dropped.
pub struct Gate(Arc<GateState>);

impl Gate {
    /// Waits until a request stands before the gate.
    pub async fn reached(&self) {
        self.0.reached.notified().await;
    }

    /// Lets everything pass from now on.
    pub fn open(&self) {
        self.0.open.close();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

impl fmt::Debug for TestStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestStore")
    }
}

impl fmt::Display for TestStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestStore")
    }
}

impl TestStore {
    /// An empty store whose objects are as old as this clock says.
    pub fn new(clock: Clock) -> Self {
        Self { memory: InMemory::new(), clock, state: Arc::default() }
    }

    /// Itself as an object store.
    pub fn objects(&self) -> Arc<dyn ObjectStore> {
        Arc::new(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds this lock")
    }

    /// Every change so far, in the order in which they were made.
    pub fn log(&self) -> Vec<Change> {
        self.state().log.clone()
    }

    /// The number of the next event.
    pub fn events(&self) -> u64 {
        self.state().events
    }

    /// How often this was asked for.
    pub fn requests(&self, verb: Verb) -> u64 {
        self.state().requests.get(&verb).copied().unwrap_or(0)
    }

    /// The store as it would be found if everything had stopped just before `event`.
    pub async fn after_crash(&self, event: u64, fate: Unacknowledged) -> Self {
        let after = Self::new(self.clock.clone());
        let log = self.log();
        for (i, change) in log.iter().enumerate().filter(|(_, c)| c.asked < event) {
            let certain = change.acknowledged.is_some_and(|at| at < event);
            let made = certain || fate != Unacknowledged::Lost;
            if !made || (!certain && fate == Unacknowledged::OneLost(i)) {
                continue;
            }
            let torn = !certain && fate == Unacknowledged::OneTorn(i);
            let key = Path::from(change.key.as_str());
            match &change.bytes {
                Some(bytes) if torn => after.replace(&key, bytes.slice(..bytes.len() / 2)).await,
                Some(bytes) => after.replace(&key, bytes.clone()).await,
                None if fate == Unacknowledged::RemovalsLost
                    && !change.key.starts_with("manifests/") => {}
                None => after.remove(&key).await,
            }
        }
        after
    }

    /// Everything that can become of the changes in flight when everything stops before `event`.
    pub fn fates(&self, event: u64) -> Vec<Unacknowledged> {
        let log = self.log();
        let in_flight = log
            .iter()
            .enumerate()
            .filter(|(_, c)| c.asked < event && c.acknowledged.is_none_or(|at| at >= event));
        let mut fates = vec![Unacknowledged::Lost];
        for (n, (i, change)) in in_flight.enumerate() {
            if n == 0 {
                fates.push(Unacknowledged::Made);
            }
            fates.push(Unacknowledged::OneLost(i));
            if change.bytes.is_some() {
                fates.push(Unacknowledged::OneTorn(i));
            }
        }
        fates
    }

    /// Asks `rule` before each request what shall go wrong with it.
    pub fn fail(&self, rule: impl Fn(Verb, &str) -> Option<Fault> + Send + 'static) {
        self.state().fault = Some(Box::new(rule));
    }

    /// Nothing goes wrong any more, and there is room without end.
    pub fn heal(&self) {
        let mut state = self.state();
        state.fault = None;
        state.limit = None;
    }

    /// Holds at most so many bytes from now on.
    pub fn limit(&self, bytes: u64) {
        self.state().limit = Some(bytes);
    }

    /// From now on each request lets others go first, for as long as the dice say that start at
    /// `seed`: tasks that run at the same time meet in a different order for each seed.
    pub fn jitter(&self, seed: u64) {
        self.state().jitter = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    }

    /// Holds up requests of this kind for objects whose name starts so.
    pub fn gate(&self, verb: Verb, prefix: &str) -> Gate {
        let gate = Arc::new(GateState {
            verb,
            prefix: prefix.to_owned(),
            reached: Notify::new(),
            open: tokio::sync::Semaphore::new(0),
        });
        self.state().gates.push(gate.clone());
        Gate(gate)
    }

    /// The names of all objects, in order.
    pub async fn keys(&self) -> Vec<Path> {
        let mut keys: Vec<Path> =
            self.memory.list(None).map(|m| m.expect("memory lists").location).collect().await;
        keys.sort();
        keys
    }

    /// The names of all objects of a folder.
    pub async fn keys_of(&self, folder: &str) -> Vec<Path> {
        let mut keys = self.keys().await;
        keys.retain(|k| k.as_ref().starts_with(&format!("{folder}/")));
        keys
    }

    /// An object's bytes.
    pub async fn bytes(&self, key: &Path) -> Bytes {
        let got = self.memory.get(key).await.expect("the object is there");
        got.bytes().await.expect("memory reads")
    }

    /// Puts other bytes in an object's place, unrecorded.
    pub async fn replace(&self, key: &Path, bytes: Bytes) {
        self.note(key, Some(bytes.len() as u64));
        self.memory.put(key, bytes.into()).await.expect("memory writes");
    }

    /// Removes an object, unrecorded.
    pub async fn remove(&self, key: &Path) {
        self.note(key, None);
        self.memory.delete(key).await.expect("memory deletes");
    }

    /// Turns one bit of an object over; turning it over again mends it.
    pub async fn flip(&self, key: &Path, byte: usize, bit: u8) {
        let mut bytes = self.bytes(key).await.to_vec();
        bytes[byte] ^= 1 << bit;
        self.replace(key, bytes.into()).await;
    }

    /// Cuts an object short.
    pub async fn truncate(&self, key: &Path, len: usize) {
        let bytes = self.bytes(key).await;
        self.replace(key, bytes.slice(..len)).await;
    }

    fn note(&self, key: &Path, len: Option<u64>) {
        let now = (self.clock)();
        let mut state = self.state();
        match len {
            Some(len) => {
                state.sizes.insert(key.clone(), len);
                state.times.insert(key.clone(), now);
            }
            None => drop(state.sizes.remove(key)),
        }
    }

    /// Counts a request, waits at gates, and says what shall go wrong.
    async fn enter(&self, verb: Verb, key: &str) -> Option<Fault> {
        let gates: Vec<_> = {
            let mut state = self.state();
            *state.requests.entry(verb).or_default() += 1;
            let here = |g: &&Arc<GateState>| g.verb == verb && key.starts_with(&g.prefix);
            state.gates.iter().filter(here).cloned().collect()
        };
        for _ in 0..self.roll() {
            tokio::task::yield_now().await;
        }
        for gate in gates {
            gate.reached.notify_one();
            // Never gives a permit: it ends when the gate is opened.
            let _ = gate.open.acquire().await;
        }
        let state = self.state();
        state.fault.as_ref().and_then(|rule| rule(verb, key))
    }

    /// How often a request lets others go first: mostly a little, sometimes for long.
    fn roll(&self) -> u64 {
        let mut state = self.state();
        if state.jitter == 0 {
            return 0;
        }
        state.jitter ^= state.jitter << 13;
        state.jitter ^= state.jitter >> 7;
        state.jitter ^= state.jitter << 17;
        let dice = state.jitter >> 33;
        if dice.is_multiple_of(8) { dice / 8 % 200 } else { dice / 8 % 6 }
    }

    fn begin(&self) -> u64 {
        let mut state = self.state();
        state.events += 1;
        state.events - 1
    }

    /// Records a change that was made; it is acknowledged by the next event.
    fn record(&self, key: &Path, bytes: Option<Bytes>, asked: u64) -> usize {
        let mut state = self.state();
        state.log.push(Change { key: key.to_string(), bytes, asked, acknowledged: None });
        state.log.len() - 1
    }

    fn acknowledge(&self, at: usize) {
        let mut state = self.state();
        state.events += 1;
        state.log[at].acknowledged = Some(state.events - 1);
    }

    fn check_room(&self, key: &Path, len: u64) -> Result<()> {
        let state = self.state();
        let Some(limit) = state.limit else { return Ok(()) };
        let others = state.sizes.iter().filter(|(k, _)| *k != key);
        if others.map(|(_, len)| len).sum::<u64>() + len > limit {
            return Err(error(io::ErrorKind::StorageFull));
        }
        Ok(())
    }

    fn stamp(&self, mut meta: ObjectMeta) -> ObjectMeta {
        if let Some(at) = self.state().times.get(&meta.location) {
            meta.last_modified = (UNIX_EPOCH + Duration::from_secs(*at)).into();
        }
        meta
    }
}

fn error(kind: io::ErrorKind) -> Error {
    Error::Generic { store: "LocalFileSystem", source: Box::new(io::Error::from(kind)) }
}

fn not_used(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.to_owned(), implementer: "TestStore".to_owned() }
}

#[async_trait]
impl ObjectStore for TestStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        assert_eq!(opts.mode, PutMode::Create, "the store only ever creates ({location})");
        let asked = self.begin();
        let fault = self.enter(Verb::Put, location.as_ref()).await;
        if let Some(Fault::Refuse(kind)) = fault {
            return Err(error(kind));
        }
        let bytes = Bytes::from(payload);
        self.check_room(location, bytes.len() as u64)?;
        let put = self.memory.put_opts(location, bytes.clone().into(), opts).await?;
        self.note(location, Some(bytes.len() as u64));
        let at = self.record(location, Some(bytes), asked);
        // Others may run, and be recorded, before this one is acknowledged.
        tokio::task::yield_now().await;
        if let Some(Fault::LoseAnswer(kind)) = fault {
            return Err(error(kind));
        }
        self.acknowledge(at);
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        _location: &Path,
        _opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(not_used("put_multipart"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if let Some(Fault::Refuse(kind) | Fault::LoseAnswer(kind)) =
            self.enter(Verb::Get, location.as_ref()).await
        {
            return Err(error(kind));
        }
        let mut got = self.memory.get_opts(location, options).await?;
        got.meta = self.stamp(got.meta);
        Ok(got)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        if let Some(Fault::Refuse(kind) | Fault::LoseAnswer(kind)) =
            self.enter(Verb::Get, location.as_ref()).await
        {
            return Err(error(kind));
        }
        self.memory.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let deleted = locations.then(move |location| {
            let this = this.clone();
            async move {
                let location = location?;
                let asked = this.begin();
                let fault = this.enter(Verb::Delete, location.as_ref()).await;
                if let Some(Fault::Refuse(kind)) = fault {
                    return Err(error(kind));
                }
                this.memory.delete(&location).await?;
                this.note(&location, None);
                let at = this.record(&location, None, asked);
                tokio::task::yield_now().await;
                if let Some(Fault::LoseAnswer(kind)) = fault {
                    return Err(error(kind));
                }
                this.acknowledge(at);
                Ok(location)
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let this = self.clone();
        let prefix = prefix.cloned();
        let listing = async move {
            let name = prefix.as_ref().map_or("", |p| p.as_ref());
            if let Some(Fault::Refuse(kind) | Fault::LoseAnswer(kind)) =
                this.enter(Verb::List, name).await
            {
                return futures::stream::once(async move { Err(error(kind)) }).boxed();
            }
            let listed = this.memory.list(prefix.as_ref());
            listed.map(move |meta| meta.map(|m| this.stamp(m))).boxed()
        };
        futures::stream::once(listing).flatten().boxed()
    }

    async fn list_with_delimiter(&self, _prefix: Option<&Path>) -> Result<ListResult> {
        Err(not_used("list_with_delimiter"))
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> Result<()> {
        Err(not_used("copy"))
    }
}
