//! Volumes that nodes have erased after somebody gave them back: counted once each, and remembered for a while.
//!
//! Of each node the last are one value of the state. Who repeats what it has said, since the answer was lost or a report came
//! late, finds it there. What is repeated is never among those that make room: a node says no more at a time than stay.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use api::goal::StatusReport;
use api::released::{MOST, Released, ReleasedList, ReleasedOn};
use image::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use super::{Fleet, TRIES};
use crate::state::keys::{Transaction, encode};

const PREFIX: &str = "released/";
/// Volumes of one node that are remembered.
const KEPT: usize = 32;
/// Longest text of what a node says of one, in bytes.
const LONGEST: usize = 256;

/// What a node has given back, as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GivenBack {
    volumes: u64,
    bytes: u64,
    /// The newest last.
    last: Vec<Released>,
}

impl GivenBack {
    /// Counts those that are new; returns them.
    fn take(&mut self, said: &[Released]) -> Vec<Released> {
        let mut known: BTreeSet<&str> = self.last.iter().map(|old| old.volume.as_str()).collect();
        let new = said.iter().filter(|one| known.insert(&one.volume));
        let new: Vec<Released> = new.cloned().collect();
        self.volumes += new.len() as u64;
        self.bytes = new.iter().fold(self.bytes, |sum, one| sum.saturating_add(one.freed));
        self.last.extend(new.iter().cloned());
        // What the node may repeat stays: it says no more at a time than there is room for.
        let is_said = |old: &Released| said.iter().any(|one| one.volume == old.volume);
        while self.last.len() > KEPT {
            let Some(oldest) = self.last.iter().position(|old| !is_said(old)) else { break };
            self.last.remove(oldest);
        }
        new
    }
}

/// That a node can have erased these.
pub(super) fn check(said: &[Released]) -> Result<()> {
    let bad = |what: &str| Err(Error::new(Kind::Invalid, format!("erased: {what}")));
    if said.len() > MOST {
        return bad("a report says of too many volumes that they were erased");
    }
    for Released { volume, called, pool, method, .. } in said {
        let texts = [Some(called), pool.as_ref(), Some(method)];
        if volume.len() != 32 || texts.into_iter().flatten().any(|text| text.len() > LONGEST) {
            return bad("a volume has an id of 32 digits, and texts of at most 256 bytes");
        }
    }
    Ok(())
}

impl Fleet {
    /// Remembers what a node says that it has erased; returns what is new of it. It lasts when this returns.
    pub(crate) async fn note_released(
        &self,
        node: &str,
        report: &StatusReport,
    ) -> Result<Vec<Released>> {
        if report.erased.is_empty() {
            return Ok(Vec::new());
        }
        if !self.admit(node, report).await? {
            return Ok(Vec::new());
        }
        let key = format!("{PREFIX}{node}");
        for _ in 0..TRIES {
            let (before, seen) = self.state.get::<GivenBack>(&key).await?.unzip();
            let mut book = before.unwrap_or_default();
            let new = book.take(&report.erased);
            if new.is_empty() {
                return Ok(new);
            }
            let write = Transaction::default().unchanged(&key, seen.as_ref());
            match self.hearing.lead()?.commit(write.put(&key, encode(&book))).await {
                Err(error) if error.kind() == Kind::Conflict => {}
                done => {
                    done?;
                    let bytes = new.iter().map(|one| one.freed).fold(0, u64::saturating_add);
                    self.released.0.fetch_add(new.len() as u64, Ordering::Relaxed);
                    self.released.1.fetch_add(bytes, Ordering::Relaxed);
                    return Ok(new);
                }
            }
        }
        Err(Error::new(Kind::Retry, format!("node {node}: others change what it has erased")))
    }

    /// What was given back lately, on all nodes, and how much there ever was.
    pub(crate) async fn released(&self) -> Result<ReleasedList> {
        let mut list = ReleasedList::default();
        for (node, book, _) in self.state.list_versioned::<GivenBack>(PREFIX).await? {
            list.volumes += book.volumes;
            list.bytes = list.bytes.saturating_add(book.bytes);
            let on = |released| ReleasedOn { node: node.clone(), released };
            list.released.extend(book.last.into_iter().map(on));
        }
        list.released.sort_by_key(|one| Reverse(one.released.ended));
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn erased(n: usize) -> Released {
        Released {
            volume: format!("{n:032x}"),
            called: "v".into(),
            pool: None,
            size: 10,
            freed: 7,
            method: "zeros".into(),
            passes: 1,
            read_back: 0,
            ended: n as u64,
        }
    }

    #[test]
    fn each_counts_once_however_often_it_is_said_and_the_past_is_bounded() {
        let (mut book, mut counted) = (GivenBack::default(), 0);
        let all: Vec<Released> = (0..200).map(erased).collect();
        // The answers to some reports are lost: the next says the same, and perhaps more.
        for at in 0..all.len() {
            let from = at.saturating_sub(at % MOST);
            counted += book.take(&all[from..=at]).len();
            counted += book.take(&all[from..=at]).len();
        }
        assert_eq!((counted, book.volumes, book.bytes), (200, 200, 1400));
        assert_eq!(book.last.len(), KEPT);
        assert_eq!(book.last.last(), all.last());
        // One report that says the same twice.
        let twice = [erased(300), erased(301), erased(300)];
        assert_eq!(book.take(&twice).len(), 2);
    }
}
