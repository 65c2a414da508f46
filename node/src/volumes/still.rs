//! A volume that stands still: its lease is over while it is captured. Its guest waits, nothing can write to its file, and
//! the capture reads on, as what was there at its point in time stays there.
//!
//! ```text
//! served ── the lease is over ──▶ still ── the lease is renewed ──▶ served: it is the same volume, its point in time stays
//!                                   └───── the capture ends ─────▶ closed, and opened anew when the lease is renewed
//! ```

use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt;
use image::{Error, Kind, Result};

use super::service::{UNPOISONED, Volumes};
use crate::daemon::Grid;

impl<G: Grid> Volumes<G> {
    /// Takes a volume from its guest, which waits, and ends all that writes to it. One that is captured stands still from
    /// here on; any other is closed.
    pub(super) async fn stop_writing(&self, name: &str, within: Duration) -> Result<()> {
        let (key, still) = (name.to_owned(), self.clone());
        let stopped = self.on_its_core(name, move |core| {
            async move {
                let Some(live) = core.live.borrow_mut().remove(&key) else { return Ok(()) };
                let captured = core.taken.borrow().contains_key(&key);
                let stopped = match captured {
                    true => {
                        still.0.still.lock().expect(UNPOISONED).insert(key, core.number);
                        live.stand_still(within).await
                    }
                    false => live.stop(true, within).await,
                };
                drop(live);
                core.bases.release().await;
                stopped
            }
            .boxed_local()
        });
        let stopped = stopped.await;
        self.leaves_home(name);
        stopped
    }

    /// Serves a volume again that stood still; whether it did. After an error it stands still as before.
    pub(super) async fn go_on(&self, name: &str) -> Result<bool> {
        let Some(core) = self.0.still.lock().expect(UNPOISONED).remove(name) else {
            return Ok(false);
        };
        let (key, around) = (name.to_owned(), self.around(self.holder()));
        self.0.homes.lock().expect(UNPOISONED).insert(name.to_owned(), core);
        let gone_on = self.on(core, move |core| {
            async move {
                // Not if its capture has ended since.
                let live = core.taken.borrow().get(&key).map(|on| Rc::clone(&on.live));
                let Some(live) = live else { return Ok(false) };
                live.go_on(&core, around).await?;
                core.live.borrow_mut().insert(key, live);
                Ok(true)
            }
            .boxed_local()
        });
        let gone_on = gone_on.await;
        if !matches!(gone_on, Ok(true)) {
            self.leaves_home(name);
        }
        if gone_on.is_err() {
            self.0.still.lock().expect(UNPOISONED).insert(name.to_owned(), core);
        }
        gone_on
    }

    /// Ends a capture whose volume others may write from here on.
    pub(super) async fn lose_capture(&self, name: &str) {
        let Some(core) = self.0.still.lock().expect(UNPOISONED).get(name).copied() else { return };
        let key = name.to_owned();
        let lost = self.on(core, move |core| {
            async move {
                let live = core.taken.borrow().get(&key).map(|on| Rc::clone(&on.live));
                let what = "its lease was taken from this node while it was captured: capture it where it is written now";
                let error = Error::new(Kind::Denied, what);
                if let Some(live) = live {
                    live.volume.fail_all(&error);
                    live.volume.fail_point(error);
                }
                Ok(())
            }
            .boxed_local()
        });
        lost.await.unwrap_or_else(|error| tracing::error!(%error, name, "a capture goes on"));
    }
}
