//! Watching etcd. When a member goes away another one is asked from where the last whole answer ended, so
//! that each change is seen once.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::{StreamExt, stream};
use image::{Error, Kind, Result};
use tonic::Streaming;

use super::calls::Members;
use super::wire::{DELETE, Event, WatchCreate, WatchRequest, WatchResponse};
use super::{name, number};
use crate::state::keys::{Change, Watch};

const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// Times that watching is begun anew without having seen anything.
const ATTEMPTS: usize = 5;

struct Watching {
    members: Arc<Members>,
    root: String,
    range: (Vec<u8>, Vec<u8>),
    /// All changes before this revision are `due`, or were told.
    next: u64,
    due: VecDeque<Change>,
    /// What has come of an answer that is not whole.
    part: Vec<Event>,
    stream: Option<Streaming<WatchResponse>>,
    attempts: usize,
}

pub(super) fn watch(
    members: Arc<Members>,
    root: String,
    range: (Vec<u8>, Vec<u8>),
    after: u64,
) -> Watch {
    let (due, part, stream, attempts) = (VecDeque::new(), Vec::new(), None, 0);
    let next = after + 1;
    let watching = Watching { members, root, range, next, due, part, stream, attempts };
    Box::pin(stream::try_unfold(watching, |mut watching| async move {
        while watching.due.is_empty() {
            watching.look().await?;
        }
        Ok(watching.due.pop_front().map(|change| (change, watching)))
    }))
}

impl Watching {
    /// Waits for one answer, or begins anew.
    async fn look(&mut self) -> Result<()> {
        let answer = match &mut self.stream {
            None => return self.begin().await,
            Some(stream) => stream.message().await,
        };
        match answer {
            Ok(Some(answer)) if answer.compact_revision != 0 => {
                let what = format!(
                    "etcd: the changes from revision {} on are compacted; list anew",
                    self.next
                );
                Err(Error::new(Kind::Gone, what))
            }
            Ok(Some(answer)) if !answer.canceled => self.take(answer),
            Ok(answer) => self.end(answer.map_or(String::new(), |a| a.cancel_reason)),
            Err(status) => self.end(status.message().into()),
        }
    }

    async fn begin(&mut self) -> Result<()> {
        let (key, range_end) = self.range.clone();
        let start_revision = i64::try_from(self.next).unwrap_or(i64::MAX);
        let create = WatchCreate { key, range_end, start_revision, fragment: true };
        let asked = || {
            let asked = WatchRequest { create: Some(create.clone()) };
            // The end of what we ask is not the end of what we want to hear.
            stream::iter([asked]).chain(stream::pending())
        };
        self.stream = Some(self.members.stream(WATCH, asked).await?);
        Ok(())
    }

    fn end(&mut self, why: String) -> Result<()> {
        self.stream = None;
        self.part.clear();
        self.members.turn_away();
        self.attempts += 1;
        if self.attempts < ATTEMPTS {
            return Ok(());
        }
        Err(Error::new(Kind::Retry, format!("etcd: watching ended {ATTEMPTS} times: {why}")))
    }

    fn take(&mut self, answer: WatchResponse) -> Result<()> {
        self.part.extend(answer.events);
        if answer.fragment || self.part.is_empty() {
            return Ok(());
        }
        self.attempts = 0;
        for event in std::mem::take(&mut self.part) {
            let Some(kv) = event.kv else { continue };
            let version = number(kv.mod_revision);
            let value = (event.kind != DELETE).then_some(kv.value);
            self.due.push_back(Change { key: name(&self.root, kv.key)?, version, value });
            self.next = self.next.max(version + 1);
        }
        Ok(())
    }
}
