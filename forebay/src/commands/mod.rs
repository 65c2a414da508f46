//! The commands, a file each or a few small ones together.

pub mod cache;
pub mod completions;
pub mod config;
pub mod images;
pub mod import;
pub mod node;
pub mod pull;

use std::future::Future;

use image::{Error, Kind, Result};

use crate::config::Config;
use crate::grid::Grid;

/// Runs a future to its end on a runtime of its own; Ctrl-C and SIGTERM end it early.
pub fn block_on<T, E: From<Error>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|e| Error::io("starting a runtime", e))?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        tokio::select! {
            result = work => result,
            () = interrupted() => Err(Error::new(Kind::Cancelled, "interrupted").into()),
        }
    })
}

/// Returns when the process is asked to end.
pub async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers the signals end the process by themselves.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// Runs a command that needs the grid.
pub fn with_grid<T, F: Future<Output = Result<T>>>(
    config: &Config,
    work: impl FnOnce(Grid) -> F,
) -> Result<T> {
    let grid = Grid::find(&config.data)?;
    block_on(work(grid))
}
