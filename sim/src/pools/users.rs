//! Those who claim volumes and reserve nodes.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use api::fleet::Resources;
use api::operation::OperationState;
use api::place::{PlaceAsk, PlaceRequest, Reservation};
use api::pool::{Claimed, NewClaim};
use image::Kind;
use placement::testing::Coordinator;
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::node::number;
use super::{AT_FIRST, IN_THE_END, NODES, PATIENCE, POOL, TROUBLED, World, set};
use crate::chance::Chance;
use crate::history::claims::Given;
use crate::history::is_not_done;
use crate::history::reservations::{Answered, Asked};

/// Who reserves, and how many requests each has.
const RESERVERS: u8 = 3;
const EACH: u8 = 6;

/// All of them.
pub(super) async fn all(world: Rc<World>) {
    shall_be(&world, AT_FIRST).await;
    for user in 0..RESERVERS {
        spawn_local(reserves(Rc::clone(&world), user));
    }
    let mut chance = Chance::new(world.seed, "claims");
    let mut n = 0;
    while world.trace.now().as_millis() < u128::from(TROUBLED) {
        // Sometimes many come at once.
        let pause = if chance.one_in(3) { 50 } else { 5000 };
        sleep(Duration::from_millis(chance.within(10..pause))).await;
        n += 1;
        let node = chance.one_in(2).then(|| format!("n{}", chance.within(0..NODES as u64)));
        let request = format!("{n:032x}");
        let asked = NewClaim { request, volume: format!("v{n}"), node, only: false };
        spawn_local(claims(Rc::clone(&world), asked.clone()));
        if chance.one_in(4) {
            spawn_local(claims(Rc::clone(&world), asked));
        }
    }
    shall_be(&world, IN_THE_END).await;
}

/// Says what the pool shall be.
async fn shall_be(world: &World, numbers: [u32; 3]) {
    loop {
        let said =
            async move |placement: Arc<Coordinator>| placement.set_pool(POOL, set(numbers)).await;
        if world.grid.ask(None, PATIENCE, said).await.is_ok() {
            return;
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Claims until it is told what it was given.
async fn claims(world: Rc<World>, asked: NewClaim) {
    loop {
        let claim = asked.clone();
        let work = async move |placement: Arc<Coordinator>| {
            placement.claim(POOL, claim, Duration::from_secs(4)).await
        };
        if let Ok(now) = world.grid.ask(None, PATIENCE, work).await {
            world.seen.borrow_mut().claims.insert(asked.request.clone());
            if now.state.is_final() {
                world.trace.note(format_args!("claim {} is {:?}", asked.request, now.state));
                if let (OperationState::Done, Some(result)) = (now.state, now.result) {
                    let claimed: Claimed = serde_json::from_value(result).expect("our own type");
                    let Claimed { node, id, .. } = claimed;
                    let given = Given { request: asked.request, node, volume: id };
                    world.seen.borrow_mut().answered.push(given);
                }
                return;
            }
        }
        sleep(Duration::from_millis(300)).await;
    }
}

fn on(reservation: &Reservation) -> u8 {
    number(&reservation.node).expect("it is one of the nodes")
}

/// Wants a CPU for a request, gives it back, and looks what all have.
async fn reserves(world: Rc<World>, user: u8) {
    let mut chance = Chance::new(world.seed, &format!("reserves {user}"));
    while world.trace.now().as_millis() < u128::from(TROUBLED) {
        sleep(Duration::from_millis(chance.within(200..4000))).await;
        let id = user * EACH + chance.within(0..EACH.into()) as u8;
        let name = format!("r{id}");
        let (history, grid) = (&world.reservations, &world.grid);
        match chance.within(0..6) {
            0 => {
                let asked = history.called(Asked::Look);
                let work = async |placement: Arc<Coordinator>| placement.reservations().await;
                let Ok(found) = grid.ask(None, PATIENCE, work).await else {
                    asked.not_done();
                    continue;
                };
                let id = |of: &Reservation| of.id[1..].parse().expect("it is one of these");
                let all = found.reservations.iter().map(|of| (id(of), on(of)));
                asked.answered(Answered::All(all.collect()));
            }
            1 => {
                let asked = history.called(Asked::Release(id));
                let work = async move |placement: Arc<Coordinator>| {
                    placement.release_reservation(&name).await
                };
                match grid.ask(None, PATIENCE, work).await {
                    Ok(was) => asked.answered(Answered::On(on(&was))),
                    Err(error) if error.kind() == Kind::Gone => asked.answered(Answered::Gone),
                    Err(error) if is_not_done(&error) => asked.not_done(),
                    Err(_) => drop(asked),
                }
            }
            _ => {
                let needs = Resources { cpu_milli: 1000, ..Resources::default() };
                let requests = vec![PlaceRequest::new(name, needs)];
                let ask = PlaceAsk { requests, explain: false, reserve: true, term_secs: 3600 };
                let asked = history.called(Asked::Reserve(id));
                let work = async move |placement: Arc<Coordinator>| placement.place(&ask).await;
                match grid.ask(None, PATIENCE, work).await {
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
