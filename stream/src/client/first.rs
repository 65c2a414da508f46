//! Which endpoint of a server is connected to, when none is: the first in the client's order that answers.
//!
//! ```text
//! first ──────────────┬─ answers: the others are not asked
//! next        after ──┘  an error, or HEAD_START without an answer: both are under way, and who answers
//! …                      first has won; the others are given up
//! ```

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use image::{Error, Kind, Result};
use tokio::time::timeout;

use super::link::Link;
use super::session::Session;

/// How long an endpoint is waited for before the next is asked too: a first packet that was lost was
/// sent again by then ([`crate::transport::Tuning::initial_rtt`]).
const HEAD_START: Duration = Duration::from_millis(250);

/// Connects to one of them.
pub(super) async fn connect(links: Vec<Arc<Link>>) -> Result<Arc<Session>> {
    let mut under_way = FuturesUnordered::new();
    let mut links = links.iter();
    let mut failed = Error::new(Kind::Invalid, "the server has no endpoints");
    loop {
        let patience = match links.next() {
            Some(link) => {
                under_way.push(link.session());
                HEAD_START
            }
            None => Duration::MAX,
        };
        match timeout(patience, under_way.next()).await {
            Ok(Some(Ok(session))) => return Ok(session),
            Ok(Some(Err(e))) => failed = e,
            Ok(None) => return Err(failed),
            Err(_) => {}
        }
    }
}
