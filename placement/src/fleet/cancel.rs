//! Ending what was asked for.
//!
//! A claim that no node was told of ends at once. One that a node was told of may be done already, or be done while this
//! is decided: it stays in the node's goal, marked, until the node says which of both it was. So an operation that is
//! cancelled has given nobody a volume, and one that has is done.

use std::time::Duration;

use api::operation::{Operation, OperationState};
use image::{Error, Kind, Result};

use super::goals::{self, Goals};
use super::operations::{self, Work};
use super::{Fleet, TRIES};
use crate::state::keys::Transaction;

impl Fleet {
    /// Ends an operation if that can be; the answer is the operation when it has ended, or after `wait`. One that has
    /// ended stays as it is. `by` is who asks, unless it may end what others asked for.
    pub(crate) async fn cancel(
        &self,
        id: &str,
        by: Option<&str>,
        wait: Duration,
    ) -> Result<Operation> {
        for _ in 0..TRIES {
            let found = operations::get(&self.state, id).await?;
            let gone = || Error::new(Kind::Gone, format!("operation {id}: there is none"));
            let (mut kept, seen) = found.ok_or_else(gone)?;
            let owner = &kept.operation.owner;
            if by.is_some_and(|by| by != owner) {
                let what = format!("operation {id}: it is {owner}'s");
                return Err(Error::new(Kind::Denied, what));
            }
            if kept.operation.state.is_final() {
                return Ok(kept.operation);
            }
            let Work::Claim { told, .. } = &kept.work;
            let told = told.clone();
            let mut goals = Goals::default();
            if let Some((node, item)) = &told {
                goals = Goals::load_one(&self.state, node).await?;
                if !goals.withdraw(node, item) {
                    // Somebody has asked for it before, or its end is being written down just now.
                    return self.operation(id, wait).await;
                }
                kept.operation.step =
                    format!("node {node} is told that nobody waits for it any more");
            } else {
                kept.end(OperationState::Cancelled, self.clock.now());
            }
            let write = kept.write(Some(&seen), Transaction::default());
            let node = told.as_ref().map(|(node, _)| node);
            let write = node.iter().fold(write, |write, node| goals.write(node, write));
            match self.hearing.lead()?.commit(write).await {
                Err(error) if error.kind() == Kind::Conflict => continue,
                done => done?,
            }
            self.tell(node.map(|node| goals::key(node)).into_iter().chain([operations::key(id)]));
            return self.operation(id, wait).await;
        }
        Err(Error::new(Kind::Retry, format!("operation {id}: others are changing it")))
    }
}
