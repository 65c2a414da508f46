//! A lease, and nodes that want it.

use std::time::Duration;

use api::goal::StatusReport;
use api::lease::{HeldLease, TakeLease, TransferLease};
use forebay_sim::chance::Chance;
use forebay_sim::history::{History, Verdict, check, is_not_done, lease};
use image::Kind;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::{Over, Placements, STEPS};

type OfLease = History<lease::Asked, lease::Answered>;

const VOLUME: &str = "0123456789abcdef0123456789abcdef";

fn number(word: &str) -> Option<u8> {
    word.strip_prefix('n')?.parse().ok()
}

/// A node takes a lease, gives it back, hands it on, and looks who has it. It writes nothing: who may when is looked at
/// in the simulation.
async fn uses_leases(placements: Placements, history: OfLease, node: u8, over: Over) {
    use lease::{Answered, Asked};
    let (mut chance, name) = (Chance::new(node.into(), "leases"), format!("n{node}"));
    let (mut has, mut reports): (Option<u64>, u64) = (None, 0);
    while !over.is() {
        sleep(Duration::from_millis(chance.within(5..120))).await;
        let fleet = placements.leading().await;
        match (chance.within(0..5), has) {
            (0, Some(epoch)) => {
                reports += 1;
                let asked = history.called(Asked::Release { node, epoch });
                let released = vec![HeldLease { volume: VOLUME.into(), epoch }];
                let report = StatusReport {
                    run: "1".into(),
                    number: reports,
                    released,
                    ..StatusReport::default()
                };
                match fleet.report(&name, report, Duration::ZERO).await {
                    Ok(_) => asked.answered(Answered::Heard),
                    Err(error) if is_not_done(&error) => asked.not_done(),
                    Err(_) => drop(asked),
                }
                has = None;
            }
            (1, Some(epoch)) => {
                let to = (node + 1) % 3;
                let asked = history.called(Asked::Transfer { node, epoch, to });
                let transfer = TransferLease { epoch, to: format!("n{to}") };
                match fleet.transfer_lease(VOLUME, &name, &transfer).await {
                    Ok(grant) => asked.answered(Answered::Granted(grant.epoch)),
                    Err(e) if e.kind() == Kind::Conflict => {
                        let by = e.message().split([' ', ';']).filter_map(number).next();
                        asked.answered(Answered::Refused(by));
                    }
                    Err(error) if is_not_done(&error) => asked.not_done(),
                    Err(_) => drop(asked),
                }
                has = None;
            }
            (2, _) => {
                let asked = history.called(Asked::Look);
                match fleet.leases().await {
                    Ok(all) => {
                        let found = all.leases.iter().find(|lease| lease.volume == VOLUME);
                        let of = found.and_then(|l| Some((number(l.holder.as_deref()?)?, l.epoch)));
                        asked.answered(Answered::Has(of));
                    }
                    Err(_) => asked.not_done(),
                }
            }
            _ => {
                let epoch = has.filter(|_| chance.one_in(2));
                let asked = history.called(Asked::Take { node, epoch });
                let take = TakeLease { holder: name.clone(), called: "v".into(), epoch, run: None };
                match fleet.take_lease(VOLUME, &take).await {
                    Ok(grant) => {
                        has = Some(grant.epoch);
                        asked.answered(Answered::Granted(grant.epoch));
                    }
                    Err(e) if e.kind() == Kind::Conflict => {
                        let by = e.message().split([' ', ';']).filter_map(number).next();
                        asked.answered(Answered::Refused(by));
                    }
                    Err(error) if is_not_done(&error) => asked.not_done(),
                    Err(_) => drop(asked),
                }
            }
        }
    }
}

/// What is going on.
pub struct Run(OfLease, JoinSet<()>);

pub fn begin(placements: &Placements, over: &Over) -> Run {
    let (history, mut nodes) = (OfLease::default(), JoinSet::new());
    for node in 0..3 {
        // Each asks several things at a time.
        for _ in 0..2 {
            nodes.spawn(uses_leases(placements.clone(), history.clone(), node, over.clone()));
        }
    }
    Run(history, nodes)
}

impl Run {
    pub async fn ends(self) -> Verdict {
        self.1.join_all().await;
        let all = self.0.operations();
        let of = |what: fn(&lease::Answered) -> bool| {
            all.iter().filter(|op| op.output.as_ref().is_some_and(what)).count()
        };
        let granted = of(|answer| matches!(answer, lease::Answered::Granted(_)));
        let unknown = all.iter().filter(|op| op.output.is_none()).count();
        println!("leases: {} operations, {granted} granted, {unknown} not answered", all.len());
        assert!(granted > 30);
        check(&lease::Lease, &all, STEPS)
    }
}
