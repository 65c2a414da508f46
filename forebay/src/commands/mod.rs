//! The commands, a file each or a few small ones together.

pub mod cache;
pub mod completions;
pub mod config;
pub mod diff;
pub mod export;
pub mod images;
pub mod import;
pub mod keep;
pub mod lease;
pub mod life;
pub mod lineage;
pub mod mend;
pub mod node;
pub mod people;
pub mod place;
pub mod placement;
pub mod pool;
pub mod prune;
pub mod pull;
pub mod rehearse;
pub mod release;
pub mod restore;
pub mod save;
pub mod store;
pub mod top;
pub mod volume;
pub mod watch;

use std::future::Future;
use std::time::Duration;

use image::{Error, Kind, Result};

use crate::config::Config;
use crate::grid::Grid;

/// The cause of errors of those who combine what cannot be combined.
#[derive(Debug)]
pub struct Misused;

impl std::fmt::Display for Misused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("wrong usage")
    }
}

impl std::error::Error for Misused {}

/// An error of a command line that makes no sense, whatever there is. Seen by `main`, which ends with 64.
pub fn usage(what: impl Into<String>) -> Error {
    Error::caused(Kind::Invalid, what, Misused)
}

/// Runs a future to its end on a runtime of its own; Ctrl-C and SIGTERM end it early.
pub fn block_on<T, E: From<Error>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    run_to_end(async {
        tokio::select! {
            result = work => result,
            () = interrupted() => Err(Error::new(Kind::Cancelled, "interrupted").into()),
        }
    })
}

/// Runs a future to its end on a runtime of its own, and that of this thread.
pub fn run_to_end<T, E: From<Error>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|e| Error::io("starting a runtime", e))?;
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

/// Ends when the process is asked to end. From the call on, not only while it is waited for, signals do
/// not end the process by themselves: a service calls it before it says that it serves.
pub fn interrupted() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async {
        // Without handlers they end it all the same.
        let (Ok(mut term), Ok(mut int)) = signals else { return std::future::pending().await };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    }
}

/// In seconds since 1970.
pub fn unix_now() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "people and other machines tell time by this")]
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// What nobody else draws.
pub fn drawn() -> Result<[u8; 16]> {
    let mut drawn = [0; 16];
    let failed = |e| Error::io("drawing at random", std::io::Error::from(e));
    #[expect(clippy::disallowed_methods, reason = "what is drawn is told apart by chance alone")]
    rustix::rand::getrandom(&mut drawn, rustix::rand::GetRandomFlags::empty()).map_err(failed)?;
    Ok(drawn)
}

/// For how long a command asks placement again what may be asked again, if the one that led has died: another leads within
/// 3 s, or within 10 where nothing is well.
const ANOTHER_LEADS: Duration = Duration::from_secs(15);

/// Runs a command that needs the grid.
pub fn with_grid<T, F: Future<Output = Result<T>>>(
    config: &Config,
    work: impl FnOnce(Grid) -> F,
) -> Result<T> {
    let grid = Grid::find(&config.data)?.asking_again(ANOTHER_LEADS);
    block_on(work(grid))
}
