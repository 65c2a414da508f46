//! The table of transfers: what was asked, and where it stands. Pure; [`super::run`] drives it.

use std::collections::BTreeMap;

use api::ErrorBody;
use api::node::{Progress, PullRequest, Transfer, TransferState};
use image::{Digest, Error, Kind, Result};
use serde::{Deserialize, Serialize};

/// Finished transfers that are remembered.
const KEEP_FINISHED: usize = 100;
/// Transfers that may be unfinished at a time.
const MAX_OPEN: usize = 1000;

/// All transfers, by number.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Table {
    next: u64,
    transfers: BTreeMap<u64, Transfer>,
}

impl Table {
    /// After a restart: what was running waits for its turn again.
    pub fn restarted(mut self) -> Self {
        for transfer in self.transfers.values_mut() {
            if transfer.state == TransferState::Running {
                transfer.state = TransferState::Queued;
            }
        }
        self
    }

    /// Takes a request: joins the transfer to the same path if it brings the same image; if it
    /// brings another, that is a conflict, and so it is if it runs already and will not be as durable
    /// as is asked. Returns its number and whether it is new.
    pub fn ask(&mut self, request: PullRequest) -> Result<(u64, bool)> {
        let mut open = self.transfers.values_mut().filter(|t| !t.state.is_final());
        if let Some(same) = open.find(|t| t.request.to == request.to) {
            let (to, other) = (request.to.display(), &same.request.image);
            if same.request.image == request.image {
                if same.state == TransferState::Running && request.sync && !same.request.sync {
                    let id = same.id;
                    let message = format!("{to}: transfer {id} will not sync; ask when it is done");
                    return Err(Error::new(Kind::Conflict, message));
                }
                same.request.sync |= request.sync;
                return Ok((same.id, false));
            }
            let message = format!("{to}: transfer {} is bringing {other} there", same.id);
            return Err(Error::new(Kind::Conflict, message));
        }
        if self.open() >= MAX_OPEN {
            let wait = std::time::Duration::from_secs(10);
            return Err(Error::new(Kind::Busy(wait), format!("{MAX_OPEN} transfers are waiting")));
        }
        let id = self.next;
        self.next += 1;
        let state = TransferState::Queued;
        let progress = Progress::default();
        self.transfers
            .insert(id, Transfer { id, request, image: None, state, progress, error: None });
        self.forget_old();
        Ok((id, true))
    }

    fn open(&self) -> usize {
        self.transfers.values().filter(|t| !t.state.is_final()).count()
    }

    fn forget_old(&mut self) {
        let finished: Vec<u64> =
            self.transfers.values().filter(|t| t.state.is_final()).map(|t| t.id).collect();
        let excess = finished.len().saturating_sub(KEEP_FINISHED);
        finished[..excess].iter().for_each(|id| {
            self.transfers.remove(id);
        });
    }

    /// The transfers that wait for their turn, oldest first.
    pub fn queued(&self) -> Vec<u64> {
        let queued = self.transfers.values().filter(|t| t.state == TransferState::Queued);
        queued.map(|t| t.id).collect()
    }

    /// One transfer.
    pub fn get(&self, id: u64) -> Result<&Transfer> {
        let gone = || Error::new(Kind::Gone, format!("there is no transfer {id}"));
        self.transfers.get(&id).ok_or_else(gone)
    }

    /// All transfers, oldest first.
    pub fn all(&self) -> impl Iterator<Item = &Transfer> {
        self.transfers.values()
    }

    /// Notes that a transfer runs, and says what it is to do.
    pub fn running(&mut self, id: u64) -> Result<PullRequest> {
        self.change(id, |t| t.state = TransferState::Running);
        Ok(self.get(id)?.request.clone())
    }

    /// Notes which image a transfer brings, and how many bytes of data it holds.
    pub fn found(&mut self, id: u64, image: Digest, total: u64) {
        self.change(id, |t| {
            t.image = Some(image);
            t.progress.total = total;
        });
    }

    /// Notes how a transfer ended.
    pub fn ended(&mut self, id: u64, progress: Progress, result: &Result<()>) {
        self.change(id, |t| {
            t.progress = progress;
            (t.state, t.error) = match result {
                Ok(()) => (TransferState::Done, None),
                Err(e) if e.kind() == Kind::Cancelled => (TransferState::Cancelled, None),
                Err(e) => (TransferState::Failed, Some(ErrorBody::from(e))),
            };
        });
    }

    fn change(&mut self, id: u64, f: impl FnOnce(&mut Transfer)) {
        if let Some(transfer) = self.transfers.get_mut(&id) {
            f(transfer);
        }
    }

    /// Paths where an image is complete, as far as this table knows, newest first.
    pub fn complete(&self, image: &Digest) -> Vec<std::path::PathBuf> {
        let done = self.transfers.values().rev();
        done.filter(|t| t.state == TransferState::Done && t.image == Some(*image))
            .map(|t| t.request.to.clone())
            .take(2)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(image: &str, to: &str) -> PullRequest {
        PullRequest { image: image.into(), to: to.into(), sync: false }
    }

    #[test]
    fn the_same_path_joins_or_conflicts() {
        let mut table = Table::default();
        let (first, new) = table.ask(request("a:1", "/x")).unwrap();
        assert!(new);
        assert_eq!(table.ask(request("a:1", "/x")).unwrap(), (first, false));
        assert_eq!(table.ask(request("b:1", "/x")).unwrap_err().kind(), Kind::Conflict);
        assert_eq!(table.ask(request("a:1", "/y")).unwrap(), (first + 1, true));
        table.ended(first, Progress::default(), &Ok(()));
        assert_eq!(table.ask(request("b:1", "/x")).unwrap(), (first + 2, true));
    }

    #[test]
    fn who_joins_gets_it_as_durable_as_was_asked() {
        let durable = || PullRequest { sync: true, ..request("a:1", "/x") };
        let mut table = Table::default();
        table.ask(request("a:1", "/x")).unwrap();
        assert_eq!(table.ask(durable()).unwrap(), (0, false));
        assert!(table.running(0).unwrap().sync);
        table.ask(request("a:1", "/y")).unwrap();
        table.running(1).unwrap();
        let late = PullRequest { to: "/y".into(), ..durable() };
        assert_eq!(table.ask(late).unwrap_err().kind(), Kind::Conflict);
        assert_eq!(table.ask(request("a:1", "/y")).unwrap(), (1, false));
    }

    #[test]
    fn what_ran_waits_again_after_a_restart_and_numbers_go_on() {
        let mut table = Table::default();
        for to in ["/1", "/2", "/3"] {
            table.ask(request("a:1", to)).unwrap();
        }
        table.running(0).unwrap();
        table.running(1).unwrap();
        table.ended(1, Progress::default(), &Err(Error::new(Kind::Full, "full")));
        let text = serde_json::to_string(&table).unwrap();
        let mut table = serde_json::from_str::<Table>(&text).unwrap().restarted();
        assert_eq!(table.queued(), [0, 2]);
        assert_eq!(table.get(1).unwrap().error.as_ref().unwrap().kind, "full");
        assert_eq!(table.ask(request("a:1", "/4")).unwrap().0, 3);
    }

    #[test]
    fn old_ends_are_forgotten_and_the_line_is_bounded() {
        let mut table = Table::default();
        for i in 0..300 {
            let (id, _) = table.ask(request("a:1", &format!("/{i}"))).unwrap();
            table.ended(id, Progress::default(), &Ok(()));
        }
        assert!(table.all().count() <= KEEP_FINISHED + 1);
        for i in 0..MAX_OPEN {
            table.ask(request("a:1", &format!("/open/{i}"))).unwrap();
        }
        let e = table.ask(request("a:1", "/one-too-many")).unwrap_err();
        assert!(matches!(e.kind(), Kind::Busy(_)));
    }
}
