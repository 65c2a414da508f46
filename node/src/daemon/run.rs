//! The driver of the daemon: runs transfers from the table, so many at a time.

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use api::lease::LeaseGrant;
use api::node::{Progress, PullRequest, Transfer, TransferState};
use blockio::{EngineChoice, Fs};
use image::{BootTrace, Digest, Error, Kind, Result};
use tokio::sync::{Notify, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use super::table::Table;
use crate::patience::Patience;
use crate::pull::{Connect, PullOptions, Watch, pull};
use crate::rate::Rate;

const STATE: &str = "transfers.json";
/// Longest state file that is read, in bytes.
const MAX_STATE: usize = 16 << 20;
/// Images that are looked for at a time, however many were asked for.
const LOOKUPS: usize = 4;

/// What the daemon needs of the grid.
pub trait Grid: Send + Sync + 'static {
    /// How a pull's cores get their chunks.
    type Connect: Connect;

    /// Finds an image by ref or digest, and how many bytes of data it holds (0: not known).
    fn find(&self, name: &str) -> impl Future<Output = Result<(Digest, u64)>> + Send;

    /// The same, and who serves it, with a fresh ticket for it.
    fn locate(&self, name: &str) -> impl Future<Output = Result<(Digest, Self::Connect)>> + Send;

    /// What guests of an image touch when they start, if that is known.
    fn trace(&self, image: &Digest) -> impl Future<Output = Result<Option<BootTrace>>> + Send {
        let _ = image;
        std::future::ready(Ok(None))
    }

    /// The lease to write a volume, for this node; `None` if it belongs to no grid. `called` is the volume's name,
    /// `epoch` that of the lease that it has.
    fn lease(
        &self,
        volume: &str,
        called: &str,
        epoch: Option<u64>,
    ) -> impl Future<Output = Result<Option<LeaseGrant>>> + Send {
        let _ = (volume, called, epoch);
        std::future::ready(Ok(None))
    }

    /// Tells how a guest of this node started.
    fn add_trace(&self, recording: &BootTrace) -> impl Future<Output = Result<()>> + Send {
        let _ = recording;
        std::future::ready(Ok(()))
    }
}

/// How the daemon works.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// Where it keeps its state.
    pub dir: PathBuf,
    /// Transfers at a time.
    pub transfers: usize,
    /// Threads of each.
    pub cores: usize,
    /// Bytes for plain chunks, over all transfers.
    pub memory: usize,
    /// Limit on what comes over the network, over all transfers.
    pub rate: Option<Arc<Rate>>,
    /// How files are written.
    pub engine: EngineChoice,
}

impl DaemonOptions {
    /// What one transfer may take of the memory, so that as many as run at a time stay within it.
    fn share(&self) -> usize {
        self.memory / self.transfers.max(1)
    }
}

/// The daemon. Clones share it.
pub struct Daemon<G>(Arc<Inner<G>>);

impl<G> Clone for Daemon<G> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<G> {
    grid: G,
    options: DaemonOptions,
    table: Mutex<Table>,
    watches: Mutex<HashMap<u64, Arc<Watch>>>,
    lookups: Semaphore,
    /// The locks of images that transfers bring, or wait for.
    bringing: Mutex<HashMap<Digest, Weak<ImageLock>>>,
    slots: Arc<Semaphore>,
    changed: Notify,
}

/// Held by the one transfer that brings an image; the others get it in the order they asked.
type ImageLock = tokio::sync::Mutex<()>;

/// A transfer whose turn has come; the guards keep others waiting.
struct Prepared<C> {
    request: PullRequest,
    image: Digest,
    connect: C,
    held: Held,
}

/// What a transfer holds while it runs: its image, and one of the places.
type Held = (OwnedMutexGuard<()>, OwnedSemaphorePermit);

impl<G: Grid> Daemon<G> {
    /// Starts the daemon, which goes on with what an earlier one had not finished. Must be called
    /// inside a multi-threaded tokio runtime.
    pub fn start(grid: G, options: DaemonOptions) -> Result<Self> {
        let fs = Fs::os();
        fs.create_dir_all(&options.dir).map_err(|e| Error::io("the node's directory", e))?;
        let table = load(&fs, &options.dir)?.restarted();
        let waiting = table.queued();
        let daemon = Self(Arc::new(Inner {
            grid,
            lookups: Semaphore::new(LOOKUPS),
            slots: Arc::new(Semaphore::new(options.transfers.max(1))),
            options,
            table: Mutex::new(table),
            watches: Mutex::default(),
            bringing: Mutex::default(),
            changed: Notify::new(),
        }));
        waiting.into_iter().for_each(|id| daemon.spawn(id));
        Ok(daemon)
    }

    /// Takes a request; see [`Table::ask`].
    pub fn ask(&self, request: PullRequest) -> Result<Transfer> {
        if !request.to.is_absolute() {
            let message = format!("{}: the path must be absolute", request.to.display());
            return Err(Error::new(Kind::Invalid, message));
        }
        if request.to.to_str().is_none() {
            let message = format!("{}: the path is not UTF-8", request.to.display());
            return Err(Error::new(Kind::Invalid, message));
        }
        volume_pool::check_path(&request.to)?;
        let (id, new) = self.change(|table| table.ask(request))??;
        if new {
            self.spawn(id);
        }
        self.transfer(id)
    }

    /// One transfer as it stands.
    pub fn transfer(&self, id: u64) -> Result<Transfer> {
        let transfer = self.0.table.lock().expect(UNPOISONED).get(id)?.clone();
        Ok(self.with_progress(transfer))
    }

    /// All transfers as they stand.
    pub fn transfers(&self) -> Vec<Transfer> {
        let all: Vec<_> = self.0.table.lock().expect(UNPOISONED).all().cloned().collect();
        all.into_iter().map(|t| self.with_progress(t)).collect()
    }

    /// Ends a transfer.
    pub fn cancel(&self, id: u64) -> Result<Transfer> {
        let transfer = self.transfer(id)?;
        if let Some(watch) = self.0.watches.lock().expect(UNPOISONED).get(&id) {
            watch.cancel();
        }
        Ok(transfer)
    }

    /// Waits until a transfer has ended, or `changed` says something has.
    pub async fn ended(&self, id: u64) -> Result<Transfer> {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let transfer = self.transfer(id)?;
            if transfer.state.is_final() {
                return Ok(transfer);
            }
            changed.await;
        }
    }

    fn with_progress(&self, mut transfer: Transfer) -> Transfer {
        if transfer.state == TransferState::Running
            && let Some(watch) = self.0.watches.lock().expect(UNPOISONED).get(&transfer.id)
        {
            transfer.progress = watch.progress();
        }
        transfer
    }

    fn spawn(&self, id: u64) {
        let watch = Arc::new(Watch::default());
        self.0.watches.lock().expect(UNPOISONED).insert(id, Arc::clone(&watch));
        let daemon = self.clone();
        tokio::spawn(async move {
            daemon.run(id, &watch).await;
            daemon.0.watches.lock().expect(UNPOISONED).remove(&id);
            daemon.0.changed.notify_waiters();
        });
    }

    /// A transfer's whole run, to the note of its end.
    async fn run(&self, id: u64, watch: &Arc<Watch>) {
        let prepared = tokio::select! {
            prepared = self.prepare(id, watch) => prepared,
            () = watch.cancelled() => Err(crate::pull::cancelled()),
        };
        let (result, _held) = match prepared {
            Ok(Prepared { request, image, connect, held }) => {
                let options = self.options_for(&request, &image);
                let watch = Arc::clone(watch);
                (pull(connect, image, request.to, options, watch).await, Some(held))
            }
            Err(error) => (Err(error), None),
        };
        if let Err(error) = &result {
            tracing::warn!(id, %error, "transfer ended");
        }
        // Noted while the image is held: who has it next takes its chunks from here.
        self.note_end(id, watch.progress(), &result);
    }

    /// Waits for a transfer's turn. Who waits for another to bring the image keeps no slot from a third
    /// meanwhile; and the ticket comes last, because the waiting may take longer than it is good for.
    async fn prepare(&self, id: u64, watch: &Watch) -> Result<Prepared<G::Connect>> {
        // Who asks hears soon that placement is away. Once the image was found nobody would ask again, as
        // after a restart: placement is waited for.
        let (mut asked, mut accepted) = (Patience::with_busy(), Patience::endless());
        loop {
            let error = match self.turn(id, watch).await {
                Ok(Some(prepared)) => return Ok(prepared),
                Ok(None) => continue,
                Err(error) => error,
            };
            let found = self.transfer(id)?.image.is_some();
            let patience = if found { &mut accepted } else { &mut asked };
            let Some(pause) = patience.again(&error) else { return Err(error) };
            tracing::warn!(id, %error, "asking again in {:.1} s", pause.as_secs_f32());
            tokio::time::sleep(pause).await;
        }
    }

    /// Waits for a transfer's turn once. Nothing if the ref has moved meanwhile: then another image is to
    /// be waited for.
    async fn turn(&self, id: u64, watch: &Watch) -> Result<Option<Prepared<G::Connect>>> {
        let name = self.transfer(id)?.request.image;
        let image = self.find(id, &name, watch).await?;
        let only = self.lock(image).await;
        let slot = Arc::clone(&self.0.slots).acquire_owned().await.expect("never closed");
        let (now, connect) = self.0.grid.locate(&name).await?;
        if now != image {
            return Ok(None);
        }
        let request = self.change(|t| t.running(id))??;
        Ok(Some(Prepared { request, image, connect, held: (only, slot) }))
    }

    async fn find(&self, id: u64, name: &str, watch: &Watch) -> Result<Digest> {
        let _lookup = self.0.lookups.acquire().await.expect("never closed");
        let (image, total) = self.0.grid.find(name).await?;
        watch.expect(total);
        self.change(|t| t.found(id, image, total))?;
        Ok(image)
    }

    /// Waits until no other transfer brings this image.
    async fn lock(&self, image: Digest) -> OwnedMutexGuard<()> {
        let lock = {
            let mut bringing = self.0.bringing.lock().expect(UNPOISONED);
            bringing.retain(|_, lock| lock.strong_count() > 0);
            let lock = bringing.get(&image).and_then(Weak::upgrade).unwrap_or_default();
            bringing.insert(image, Arc::downgrade(&lock));
            lock
        };
        lock.lock_owned().await
    }

    fn options_for(&self, request: &PullRequest, image: &Digest) -> PullOptions {
        let options = &self.0.options;
        let seeds = self.0.table.lock().expect(UNPOISONED).complete(image);
        PullOptions {
            cores: options.cores,
            memory: options.share(),
            rate: options.rate.clone(),
            engine: options.engine,
            sync: request.sync,
            seeds: seeds.into_iter().filter(|seed| *seed != request.to).collect(),
            ..PullOptions::default()
        }
    }

    /// Changes the table, durably, or not at all.
    fn change<T>(&self, f: impl FnOnce(&mut Table) -> T) -> Result<T> {
        let mut table = self.0.table.lock().expect(UNPOISONED);
        let mut changed = table.clone();
        let result = f(&mut changed);
        self.keep(&changed)?;
        *table = changed;
        Ok(result)
    }

    /// Notes how a transfer ended. It has ended even if that cannot be kept: whoever waits for it must
    /// learn of it. Then it is gone on with after a restart, and finds that nothing is missing.
    fn note_end(&self, id: u64, progress: Progress, result: &Result<()>) {
        let mut table = self.0.table.lock().expect(UNPOISONED);
        table.ended(id, progress, result);
        if let Err(error) = self.keep(&table) {
            tracing::error!(id, %error, "the end of a transfer could not be kept");
        }
    }

    fn keep(&self, table: &Table) -> Result<()> {
        let text = serde_json::to_vec(table).expect("our own types serialise");
        let path = self.0.options.dir.join(STATE);
        Fs::os().replace(path, &text).map_err(|e| Error::io("the node's state", e))
    }
}

const UNPOISONED: &str = "no panics while locked";

fn load(fs: &Fs, dir: &Path) -> Result<Table> {
    let path = dir.join(STATE);
    match fs.read(&path, MAX_STATE) {
        Ok(text) => serde_json::from_slice(&text).map_err(|e| {
            let message = format!("{}: {e}; move the file away to start anew", path.display());
            Error::caused(Kind::Corrupt, message, e)
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Table::default()),
        Err(e) => Err(Error::io("the node's state", e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_run_at_a_time_stay_within_the_memory() {
        for (transfers, memory) in [(1, 32 << 20), (2, 32 << 20), (3, 1 << 20), (0, 4096), (7, 5)] {
            let options = DaemonOptions {
                dir: PathBuf::new(),
                transfers,
                cores: 1,
                memory,
                rate: None,
                engine: EngineChoice::Auto,
            };
            let all = options.share() * transfers.max(1);
            assert!(all <= memory && memory - all < transfers.max(1), "{options:?}: {all}");
        }
    }
}
