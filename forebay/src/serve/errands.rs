//! Work on the cache for which no node waits: a core of its own that has no port, so that what an
//! operator asks for takes no turn from those that serve.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use blockio::{Engine, EngineOptions};
use cache::{Cache, Shared};
use futures::future::LocalBoxFuture;
use image::{Error, Kind, Result};
use store::Store;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::timed::Timed;

/// The cache as a core has it.
pub type CoreCache = Cache<Timed<Store>>;

type Errand = Box<dyn FnOnce(CoreCache) -> LocalBoxFuture<'static, ()> + Send>;

/// Looks at whole images that may go on at a time: any member may ask for them, and each reads every
/// section table of its image.
const LOOKS: usize = 4;
/// When to ask again if there are as many.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Hands errands to their core. The core ends when this goes.
pub struct Errands {
    errands: mpsc::UnboundedSender<Errand>,
    looks: Arc<Semaphore>,
}

impl Errands {
    /// Starts the core.
    pub fn start(store: Store, shared: Arc<Shared>, options: EngineOptions) -> Result<Self> {
        let (errands, mut waiting) = mpsc::unbounded_channel::<Errand>();
        let core = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime.inspect_err(|error| tracing::error!(%error, "errands"))
            else {
                return;
            };
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let Ok(engine) =
                    Engine::start(options).inspect_err(|error| tracing::error!(%error, "errands"))
                else {
                    return;
                };
                let cache = Cache::new(Timed::store(store), shared, engine);
                while let Some(errand) = waiting.recv().await {
                    tokio::task::spawn_local(errand(cache.clone()));
                }
            });
        };
        let thread = std::thread::Builder::new().name("errands".into()).spawn(core);
        thread.map_err(|e| Error::io("starting the errands' thread", e))?;
        Ok(Self { errands, looks: Arc::new(Semaphore::new(LOOKS)) })
    }

    /// Sends an errand for which nobody waits.
    pub fn send<F: Future<Output = ()> + 'static>(
        &self,
        errand: impl FnOnce(CoreCache) -> F + Send + 'static,
    ) -> Result<()> {
        let work = move |cache| -> LocalBoxFuture<'static, ()> { Box::pin(errand(cache)) };
        self.errands.send(Box::new(work)).map_err(|_| ended())
    }

    /// Runs an errand and waits for it. If the wait is dropped the errand goes on.
    pub async fn run<T, F>(&self, errand: impl FnOnce(CoreCache) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + 'static,
    {
        let (done, answer) = oneshot::channel();
        self.send(async move |cache| {
            // Who asked may have hung up.
            let _ = done.send(errand(cache).await);
        })?;
        answer.await.map_err(|_| ended())?
    }

    /// Runs an errand that looks at an image, one of few at a time, and waits for it. If the wait is
    /// dropped the errand ends.
    pub async fn look<T, F>(
        &self,
        errand: impl FnOnce(CoreCache) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + 'static,
    {
        let place = Arc::clone(&self.looks).try_acquire_owned().map_err(|_| busy())?;
        let (mut done, answer) = oneshot::channel();
        self.send(async move |cache| {
            let _place = place;
            tokio::select! {
                result = errand(cache) => drop(done.send(result)),
                () = done.closed() => {}
            }
        })?;
        answer.await.map_err(|_| ended())?
    }
}

fn busy() -> Error {
    let what = format!("{LOOKS} others are looking at images already");
    Error::new(Kind::Busy(LOOK_AGAIN), what)
}

fn ended() -> Error {
    Error::new(Kind::Cancelled, "the server is stopping")
}

#[cfg(test)]
pub(super) mod tests {
    use std::future::pending;

    use blockio::{EngineChoice, EngineKind};

    use super::*;

    /// A core for errands, over an empty store and a cache in memory; with a disk tier, that is for
    /// ever about to be read in.
    pub(in crate::serve) async fn errands(disk: bool) -> (Errands, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        let handle = tokio::runtime::Handle::current();
        let options = store::StoreOptions::system(store::IndexPlace::File(place("index")));
        let store = Store::open_dir(place("store"), handle, options).await.unwrap();
        let disk =
            disk.then(|| cache::DiskBudget { dir: place("cache"), bytes: 1 << 30, reserve: 0 });
        let budget = cache::Budget { memory: 16 << 20, in_flight: 64 << 20, disk };
        let (shared, _writer) = Shared::open(budget, cache::Options::default()).unwrap();
        let choice = EngineChoice::Just(EngineKind::Portable);
        let engine = EngineOptions { choice, ..EngineOptions::default() };
        (Errands::start(store, shared, engine).unwrap(), dir)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_so_many_look_at_once_and_who_hangs_up_looks_no_longer() {
        let (errands, _dir) = errands(false).await;
        let errands = Arc::new(errands);
        let (began, mut begun) = mpsc::unbounded_channel();
        let look = |began: mpsc::UnboundedSender<()>| {
            let errands = Arc::clone(&errands);
            let endless = async move |_| -> Result<()> {
                let mine = began;
                let _ = mine.send(());
                pending().await
            };
            tokio::spawn(async move { errands.look(endless).await })
        };
        let looks: Vec<_> = (0..LOOKS).map(|_| look(began.clone())).collect();
        drop(began);
        for _ in 0..LOOKS {
            begun.recv().await.unwrap();
        }
        let refused = errands.look(async |_| Ok(())).await.unwrap_err();
        assert!(matches!(refused.kind(), Kind::Busy(_)), "{refused}");
        looks.iter().for_each(tokio::task::JoinHandle::abort);
        // None of them goes on.
        assert_eq!(begun.recv().await, None);
        while errands.look(async |_| Ok(())).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
}
