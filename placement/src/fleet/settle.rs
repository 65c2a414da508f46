//! What is over is taken out of goals: what nodes say has ended, and what those who are away, drain or were forgotten were
//! to do.

use std::collections::{BTreeMap, BTreeSet};

use api::goal::{Goal, GoalItem, ItemState, ItemStatus};
use api::life::Standing;
use image::{Error, Kind};

use super::control::{CLAIMS, Pass};
use super::memory::Memory;

/// Why an item has failed.
fn why(status: &ItemStatus) -> String {
    status.error.as_ref().map_or_else(String::new, |e| e.message.clone())
}

impl Pass<'_> {
    /// Takes out what nodes say is over. Says of which there is more.
    pub(super) fn settle(
        &mut self,
        news: &BTreeSet<String>,
        memory: &mut Memory,
    ) -> BTreeSet<String> {
        let mut left = BTreeSet::new();
        for node in news {
            let Some(last) = self.heard.get(node) else { continue };
            let status: BTreeMap<&str, &ItemStatus> =
                last.report.items.iter().map(|s| (s.id.as_str(), s)).collect();
            // What is held is done as long as it is to be held.
            let is_over = |item: &GoalItem, s: &ItemStatus| {
                s.state.is_final()
                    && !matches!((&item.goal, s.state), (Goal::Hold { .. }, ItemState::Done))
            };
            let over = |item: &GoalItem| status.get(item.id.as_str()).filter(|s| is_over(item, s));
            let ended: Vec<(GoalItem, ItemStatus)> = self
                .goals
                .items(node)
                .iter()
                .filter_map(|item| Some((item.clone(), (*over(item)?).clone())))
                .take(CLAIMS)
                .collect();
            if ended.len() == CLAIMS {
                left.insert(node.clone());
            }
            for (item, status) in &ended {
                self.ended(node, item, status, memory);
            }
            self.goals.retain(node, |item| ended.iter().all(|(over, _)| over.id != item.id));
        }
        self.settle_standings();
        left
    }

    /// Takes out what those who are away were to build.
    pub(super) fn settle_away(&mut self) {
        for (node, last) in self.heard.iter() {
            if last.is_away(self.ticks) {
                self.goals.retain(node, |item| !matches!(item.goal, Goal::Build { .. }));
            }
        }
    }

    /// On who drains nothing more is built, and what a node that was forgotten had promised nobody keeps.
    fn settle_standings(&mut self) {
        for (node, standing) in self.standings.iter() {
            if standing == Standing::Draining {
                self.goals.retain(node, |item| !matches!(item.goal, Goal::Build { .. }));
            }
        }
        for (at, (kept, _)) in self.open.iter_mut().enumerate() {
            let node = kept.node().filter(|node| self.standings.of(node) == Standing::Forgotten);
            if let Some(node) = node {
                let what = format!(
                    "node {node}, which was told to hand out a volume, was forgotten: ask anew, with another request"
                );
                kept.fail(&Error::new(Kind::Gone, what), self.now);
                self.touched.insert(at);
            }
        }
    }

    fn ended(&mut self, node: &str, item: &GoalItem, status: &ItemStatus, memory: &mut Memory) {
        let failed = status.state == ItemState::Failed;
        match &item.goal {
            Goal::Build { pool, .. } => {
                let key = (pool.clone(), node.to_owned());
                if failed {
                    let failed = memory.failed.entry(key).or_default();
                    failed.again(self.now, why(status));
                    tracing::warn!(node, pool, failed.why, "a build has failed");
                } else {
                    memory.demands.built(pool, status.took_millis);
                    memory.failed.remove(&key);
                }
            }
            Goal::Claim { request, pool, .. } => {
                if !failed {
                    memory.demands.built(pool, status.took_millis);
                }
                self.claim_ended(node, request, item, status);
            }
            Goal::Hold { image, .. } => {
                let failed = memory.unheld.entry((*image, node.to_owned())).or_default();
                failed.again(self.now, why(status));
                tracing::warn!(node, %image, failed.why, "an image is not held");
            }
            Goal::Discard { .. } | Goal::Unknown => {}
        }
    }
}
