//! Reservations on the nodes that hand out volumes, of more than there is room for.

use std::time::Duration;

use api::fleet::Resources;
use api::place::{PlaceAsk, PlaceRequest, Reservation};
use forebay_sim::chance::Chance;
use forebay_sim::history::reservations::{Answered, Asked, Nodes};
use forebay_sim::history::{History, Verdict, check, is_not_done};
use image::Kind;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::claims::{CPUS, NODES};
use crate::{Over, Placements, STEPS};

/// Each has requests of its own, and all together want more than there is.
const CLIENTS: u8 = 4;
const EACH: u8 = 3;

type OfNodes = History<Asked, Answered>;

fn on(reservation: &Reservation) -> u8 {
    NODES.iter().position(|name| *name == reservation.node).expect("it is there") as u8
}

/// Wants a CPU for a request, gives it back, and looks what all have.
async fn reserves(placements: Placements, history: OfNodes, client: u8, over: Over) {
    let mut chance = Chance::new(client.into(), "reservations");
    while !over.is() {
        sleep(Duration::from_millis(chance.within(5..100))).await;
        let id = client * EACH + chance.within(0..EACH.into()) as u8;
        let (name, fleet) = (format!("r{id}"), placements.leading().await);
        match chance.within(0..5) {
            0 => {
                let asked = history.called(Asked::Look);
                let Ok(found) = fleet.reservations().await else {
                    asked.not_done();
                    continue;
                };
                let id = |of: &Reservation| of.id[1..].parse().expect("it is one of these");
                let all = found.reservations.iter().map(|of| (id(of), on(of)));
                asked.answered(Answered::All(all.collect()));
            }
            1 | 2 => {
                let asked = history.called(Asked::Release(id));
                match fleet.release_reservation(&name).await {
                    Ok(was) => asked.answered(Answered::On(on(&was))),
                    Err(error) if error.kind() == Kind::Gone => asked.answered(Answered::Gone),
                    Err(error) if is_not_done(&error) => asked.not_done(),
                    Err(_) => drop(asked),
                }
            }
            _ => {
                let needs = Resources { cpu_milli: 1000, ..Resources::default() };
                let requests = vec![PlaceRequest::new(name, needs)];
                let asked = history.called(Asked::Reserve(id));
                let ask = PlaceAsk { requests, explain: false, reserve: true, term_secs: 3600 };
                match fleet.place(&ask).await {
                    Ok(answer) => match &answer.placed[0].reservation {
                        Some(reservation) => asked.answered(Answered::On(on(reservation))),
                        // There is no room, or nobody has been heard of.
                        None => asked.not_done(),
                    },
                    Err(error) if is_not_done(&error) => asked.not_done(),
                    Err(_) => drop(asked),
                }
            }
        }
    }
}

/// What is going on.
pub struct Run(OfNodes, JoinSet<()>);

pub fn begin(placements: &Placements, over: &Over) -> Run {
    let (history, mut clients) = (OfNodes::default(), JoinSet::new());
    for client in 0..CLIENTS {
        clients.spawn(reserves(placements.clone(), history.clone(), client, over.clone()));
    }
    Run(history, clients)
}

impl Run {
    pub async fn ends(self) -> Verdict {
        self.1.join_all().await;
        let all = self.0.operations();
        let placed = |op: &&forebay_sim::history::Operation<Asked, Answered>| {
            matches!(op.input, Asked::Reserve(_)) && op.output.is_some()
        };
        let (placed, unknown) = (
            all.iter().filter(placed).count(),
            all.iter().filter(|op| op.output.is_none()).count(),
        );
        println!("reservations: {} operations, {placed} placed, {unknown} not answered", all.len());
        assert!(placed > 30);
        check(&Nodes { count: NODES.len() as u8, room: CPUS }, &all, STEPS)
    }
}
