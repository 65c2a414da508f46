//! The driver of the daemon: runs transfers from the table, so many at a time.

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use api::node::{Progress, PullRequest, Transfer, TransferState};
use blockio::{EngineChoice, Fs};
use image::{Digest, Error, Kind, Result};
use tokio::sync::{Notify, watch};

use super::table::Table;
use crate::pull::{Connect, PullOptions, Watch, pull};
use crate::rate::Rate;

const STATE: &str = "transfers.json";
/// Longest state file that is read, in bytes.
const MAX_STATE: usize = 16 << 20;

/// What the daemon needs of the grid.
pub trait Grid: Send + Sync + 'static {
    /// How a pull's cores get their chunks.
    type Connect: Connect;

    /// Finds an image by ref or digest, and who serves it, with a ticket for it.
    fn locate(&self, name: &str) -> impl Future<Output = Result<(Digest, Self::Connect)>> + Send;
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
    /// Images that a transfer is bringing; the sender is dropped when it has ended.
    bringing: Mutex<HashMap<Digest, watch::Receiver<()>>>,
    slots: Arc<tokio::sync::Semaphore>,
    changed: Notify,
}

/// A transfer whose turn has come; the guards keep others waiting.
struct Prepared<C> {
    request: PullRequest,
    image: Digest,
    connect: C,
    guards: (tokio::sync::OwnedSemaphorePermit, watch::Sender<()>),
}

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
            slots: Arc::new(tokio::sync::Semaphore::new(options.transfers.max(1))),
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
            let result = daemon.run(id, &watch).await;
            if let Err(error) = &result {
                tracing::warn!(id, %error, "transfer ended");
            }
            daemon.note_end(id, watch.progress(), &result);
            daemon.0.watches.lock().expect(UNPOISONED).remove(&id);
            daemon.0.changed.notify_waiters();
        });
    }

    async fn run(&self, id: u64, watch: &Arc<Watch>) -> Result<()> {
        let prepared = tokio::select! {
            prepared = self.prepare(id) => prepared?,
            () = watch.cancelled() => return Err(crate::pull::cancelled()),
        };
        let Prepared { request, image, connect, guards: _guards } = prepared;
        let options = self.options_for(&request, &image);
        pull(connect, image, request.to, options, Arc::clone(watch)).await
    }

    /// Waits for a transfer's turn, finds its image, and waits for whoever is bringing it already.
    async fn prepare(&self, id: u64) -> Result<Prepared<G::Connect>> {
        let turn = Arc::clone(&self.0.slots).acquire_owned().await;
        let turn = turn.map_err(|e| Error::caused(Kind::Cancelled, "the daemon ends", e))?;
        self.change(|t| t.running(id))?;
        let request = self.0.table.lock().expect(UNPOISONED).get(id)?.request.clone();
        let (image, connect) = self.0.grid.locate(&request.image).await?;
        self.change(|t| t.resolved(id, image))?;
        let only = self.one_at_a_time(image).await;
        Ok(Prepared { request, image, connect, guards: (turn, only) })
    }

    /// Waits until no other transfer brings this image; the returned guard keeps the next waiting.
    async fn one_at_a_time(&self, image: Digest) -> watch::Sender<()> {
        loop {
            let mut theirs = {
                let mut bringing = self.0.bringing.lock().expect(UNPOISONED);
                match bringing.get(&image) {
                    // An ended transfer has dropped its sender.
                    Some(theirs) if theirs.has_changed().is_ok() => theirs.clone(),
                    _ => {
                        let (mine, theirs) = watch::channel(());
                        bringing.insert(image, theirs);
                        return mine;
                    }
                }
            };
            // Ends with an error when the sender is dropped: that is the signal.
            let _ = theirs.changed().await;
        }
    }

    fn options_for(&self, request: &PullRequest, image: &Digest) -> PullOptions {
        let options = &self.0.options;
        let seeds = self.0.table.lock().expect(UNPOISONED).complete(image);
        PullOptions {
            cores: options.cores,
            memory: options.memory / options.transfers.max(1),
            rate: options.rate.clone(),
            engine: options.engine,
            sync: request.sync,
            seeds: seeds.into_iter().filter(|seed| *seed != request.to).collect(),
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
