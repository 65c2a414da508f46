//! Of several placements over one state one leads: it alone hears the nodes, and so it alone says whose leases go on
//! and what is to be built. The others send who asks to it.
//!
//! What nodes said to the one before is lost, and they say it again. Until then every holder of a lease counts as heard
//! of when the lead began: the one before heard nobody later than that, since it looked whether it still led whenever it
//! took a report.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::grid::{PlacementInfo, PlacementStatus};
use image::{Error, Kind, Result};
use tokio::sync::watch;

use super::heard::Reports;
use super::{Fleet, UNPOISONED};
use crate::state::Lead;

/// What is led.
pub(super) const LED: &str = "controllers";
/// How long somebody who asks waits while nobody leads.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often one looks meanwhile whether another leads.
const GLANCE: Duration = Duration::from_millis(200);
/// When to ask again.
const COME_BACK: Duration = Duration::from_secs(1);

/// Who answers for the fleet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answers {
    /// This placement.
    Here,
    There(PlacementInfo),
}

/// What was heard since this placement leads.
pub(super) struct Reign {
    pub lead: Arc<Lead>,
    /// When it began, by [`Clock::ticks`](crate::clock::Clock::ticks).
    pub since: u64,
    pub reports: Reports,
    /// Nodes of which something was heard that nobody has looked at yet.
    pub news: BTreeSet<String>,
    /// How long the last look at all nodes took.
    pub look_micros: Option<u64>,
}

/// See the [module](self).
#[derive(Default)]
pub(super) struct Hearing {
    reign: Mutex<Option<Reign>>,
    begun: watch::Sender<()>,
}

impl Hearing {
    /// Begins to hear.
    pub(super) fn begin(&self, lead: Arc<Lead>, since: u64) {
        let reign = Reign {
            lead,
            since,
            reports: Reports::default(),
            news: BTreeSet::new(),
            look_micros: None,
        };
        *self.reign.lock().expect(UNPOISONED) = Some(reign);
        self.begun.send_replace(());
    }

    /// Forgets all that was heard.
    pub(super) fn end(&self) {
        *self.reign.lock().expect(UNPOISONED) = None;
    }

    /// Does something with what was heard, while this placement leads for sure.
    ///
    /// # Errors
    ///
    /// [`Kind::Retry`] if it does not.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Reign) -> T) -> Result<T> {
        let mut reign = self.reign.lock().expect(UNPOISONED);
        match reign.as_mut().filter(|reign| reign.lead.holds()) {
            Some(reign) => Ok(work(reign)),
            None => Err(Error::new(Kind::Retry, "another placement leads, or none does yet")),
        }
    }

    /// What lets commits through only while this placement leads.
    pub(super) fn lead(&self) -> Result<Arc<Lead>> {
        self.with(|reign| Arc::clone(&reign.lead))
    }
}

impl Fleet {
    /// What lets work go on only while this placement leads.
    pub(crate) fn lead(&self) -> Result<Arc<Lead>> {
        self.hearing.lead()
    }

    /// Which placement this is, and which leads.
    pub(crate) async fn placements(&self) -> Result<PlacementStatus> {
        let leader = match self.hearing.lead() {
            Ok(_) => Some(self.me.clone()),
            Err(_) => self.state.leader(LED).await?,
        };
        let (asked, generation) = (self.me.clone(), self.state.generation().await?);
        let look_micros = self.hearing.with(|reign| reign.look_micros).ok().flatten();
        Ok(PlacementStatus { asked, leader, generation, look_micros })
    }

    /// Who answers for the fleet. While nobody does, it is waited for a little.
    ///
    /// # Errors
    ///
    /// [`Kind::Busy`] if nobody leads by then.
    pub(crate) async fn who_answers(&self) -> Result<Answers> {
        let look = async {
            let mut begun = self.hearing.begun.subscribe();
            loop {
                if self.hearing.lead().is_ok() {
                    return Ok(Answers::Here);
                }
                let leader = self.state.leader::<PlacementInfo>(LED).await?;
                if let Some(leader) = leader.filter(|leader| leader.name != self.me.name) {
                    return Ok(Answers::There(leader));
                }
                let _ = tokio::time::timeout(GLANCE, begun.changed()).await;
            }
        };
        tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| {
            Err(Error::new(Kind::Busy(COME_BACK), "no placement leads just now"))
        })
    }
}
