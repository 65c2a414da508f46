//! Writes of volumes, by true time: of those who have the lease one writes after the other.
//!
//! A lease is held by whoever believes that it may write, and what belief comes to is a write. So this is all that
//! leases are for: no write comes after one of a later epoch, and nobody writes with an epoch that another has.

use std::collections::BTreeMap;

/// A write, or the moment from which on its writer may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// When, in milliseconds of true time.
    pub at: u64,
    /// Which volume.
    pub volume: String,
    /// By which node.
    pub node: String,
    /// With the lease of this epoch.
    pub epoch: u64,
}

/// What is wrong; nothing, if all is right. The first wrong one of each volume.
pub fn check(writes: &[Write]) -> Vec<String> {
    let mut sorted: Vec<&Write> = writes.iter().collect();
    // At one moment, the order is the one that does least harm.
    sorted.sort_by_key(|write| (write.at, write.epoch));
    let mut last: BTreeMap<&str, &Write> = BTreeMap::new();
    let mut wrong: BTreeMap<&str, String> = BTreeMap::new();
    for write in sorted {
        let before = last.entry(&write.volume).or_insert(write);
        let late = write.epoch < before.epoch;
        let shared = write.epoch == before.epoch && write.node != before.node;
        if late || shared {
            let Write { at, volume, node, epoch } = write;
            let what = format!(
                "volume {volume}: at {at} ms {node} writes with epoch {epoch}, after {} with epoch {} at {} ms",
                before.node, before.epoch, before.at
            );
            wrong.entry(volume).or_insert(what);
        } else {
            *before = write;
        }
    }
    wrong.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(at: u64, node: &str, epoch: u64) -> Write {
        Write { at, volume: "v".into(), node: node.into(), epoch }
    }

    #[test]
    fn one_writes_after_the_other() {
        let good = [write(1, "a", 1), write(5, "a", 1), write(5, "b", 2), write(9, "a", 4)];
        assert!(check(&good).is_empty());
        let late = check(&[write(1, "a", 1), write(5, "b", 2), write(6, "a", 1)]);
        assert!(late.len() == 1 && late[0].contains("at 6 ms a writes with epoch 1"), "{late:?}");
        let shared = check(&[write(1, "a", 1), write(2, "b", 1)]);
        assert_eq!(shared.len(), 1, "{shared:?}");
        let apart = [Write { volume: "w".into(), ..write(1, "b", 2) }, write(2, "a", 1)];
        assert!(check(&apart).is_empty());
    }
}
