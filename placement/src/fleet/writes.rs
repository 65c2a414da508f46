//! What a pass has decided is written down: as much together as a transaction takes, since each waits for the disk.

use std::collections::BTreeSet;

use image::{Kind, Result};

use super::Fleet;
use super::board::Board;
use crate::state::Lead;
use crate::state::keys::{MAX_BYTES, MAX_OPS, Transaction};

/// Keys of one transaction: the state and the lead add one comparison each.
const MOST: usize = MAX_OPS - 2;

/// What is to be written at once, or not at all.
pub(super) struct Write {
    /// The node that is told something else, if it is one.
    pub node: Option<String>,
    pub keys: Vec<String>,
    pub write: Transaction,
}

impl Write {
    /// Of one key that is no node's.
    pub(super) fn of_no_node(key: String, write: Transaction) -> Self {
        Self { node: None, keys: vec![key], write }
    }
}

/// What a pass has decided; no key is in two of them.
pub(super) struct Writes {
    pub all: Vec<Write>,
    /// Nodes of which there is more to be looked at.
    pub left: BTreeSet<String>,
}

impl Fleet {
    /// Writes it; of which nodes there is more to be looked at.
    pub(super) async fn write(
        &self,
        lead: &Lead,
        board: &mut Board,
        Writes { all, left: mut again }: Writes,
    ) -> Result<BTreeSet<String>> {
        for some in together(all) {
            if self.commit(lead, board, &some).await? {
                continue;
            }
            // Of one of them somebody else has changed something: the others are written all the same.
            for one in &some {
                if some.len() == 1 || !self.commit(lead, board, std::slice::from_ref(one)).await? {
                    again.extend(one.node.clone());
                }
            }
        }
        Ok(again)
    }

    /// Says whether it is written: not if somebody else has changed any of it.
    async fn commit(&self, lead: &Lead, board: &mut Board, some: &[Write]) -> Result<bool> {
        let all = some.iter().fold(Transaction::default(), |all, one| all.and(one.write.clone()));
        match lead.commit(all).await {
            Err(error) if error.kind() == Kind::Conflict => return Ok(false),
            done => done?,
        }
        for Write { keys, .. } in some {
            board.wrote(keys);
            self.tell(keys.clone());
        }
        Ok(true)
    }
}

/// As few lots as transactions take.
fn together(all: Vec<Write>) -> Vec<Vec<Write>> {
    let mut lots: Vec<Vec<Write>> = Vec::new();
    let (mut ops, mut bytes) = (0, 0);
    for one in all {
        let size = (one.write.ops(), one.write.bytes());
        (ops, bytes) = (ops + size.0, bytes + size.1);
        match lots.last_mut() {
            Some(lot) if ops <= MOST && bytes <= MAX_BYTES => lot.push(one),
            _ => {
                (ops, bytes) = size;
                lots.push(vec![one]);
            }
        }
    }
    lots
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(n: usize, bytes: usize) -> Write {
        let (key, node) = (format!("goals/{n:04}"), Some(n.to_string()));
        let write = Transaction::default().unchanged(&key, None).put(&key, vec![0; bytes]);
        Write { node, keys: vec![key], write }
    }

    #[test]
    fn lots_are_as_large_as_transactions_take_and_lose_nothing() {
        for (writes, bytes, lots) in
            [(0, 1, 0), (1, 2 * MAX_BYTES, 1), (300, 1, 3), (5, 1 << 20, 5)]
        {
            let made = together((0..writes).map(|n| one(n, bytes)).collect());
            assert_eq!(made.len(), lots, "{writes} of {bytes} bytes");
            let all: Vec<_> =
                made.iter().flatten().filter_map(|write| write.node.clone()).collect();
            assert_eq!(all, (0..writes).map(|n| n.to_string()).collect::<Vec<_>>());
            for lot in made.into_iter().filter(|lot| lot.len() > 1) {
                let all =
                    lot.into_iter().fold(Transaction::default(), |all, one| all.and(one.write));
                assert!(all.ops() <= MOST && all.bytes() <= MAX_BYTES);
            }
        }
    }
}
