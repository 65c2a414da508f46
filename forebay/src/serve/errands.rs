//! Work on the cache for which no node waits: a core of its own that has no port, so that what an
//! operator asks for takes no turn from those that serve.

use std::future::Future;
use std::sync::Arc;

use blockio::{Engine, EngineOptions};
use cache::{Cache, Shared};
use futures::future::LocalBoxFuture;
use image::{Error, Kind, Result};
use store::Store;
use tokio::sync::{mpsc, oneshot};

use super::timed::Timed;

/// The cache as a core has it.
pub type CoreCache = Cache<Timed<Store>>;

type Errand = Box<dyn FnOnce(CoreCache) -> LocalBoxFuture<'static, ()> + Send>;

/// Hands errands to their core. The core ends when this goes.
pub struct Errands {
    errands: mpsc::UnboundedSender<Errand>,
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
        Ok(Self { errands })
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
}

fn ended() -> Error {
    Error::new(Kind::Cancelled, "the server is stopping")
}
