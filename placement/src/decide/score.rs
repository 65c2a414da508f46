//! Which of the nodes that can be chosen is best: terms of 0 to 1, each times its weight.
//!
//! A term is of the node and what is placed beside it alone: that another node is there or not changes nothing. Sums,
//! products, quotients and roots are exact to the bit by IEEE 754, so replicas agree.

use api::place::{Points, Term, Weights};

use super::asked::Asked;
use super::index::At;
use super::view::Slot;

/// A term, its weight, and what it gives a node: nothing where it does not concern the request.
type Entry = (Term, fn(&Weights) -> f64, fn(&Asked<'_>, At, &Slot) -> Option<f64>);

const TERMS: [Entry; 8] = [
    (Term::Fit, |weights| weights.fit, fit),
    (Term::Image, |weights| weights.image, image),
    (Term::Pool, |weights| weights.pool, pool),
    (Term::Near, |weights| weights.near, near),
    (Term::Behaviour, |weights| weights.behaviour, behaviour),
    (Term::Licence, |weights| weights.licence, licence),
    (Term::Idle, |weights| weights.idle, idle),
    (Term::Spread, |weights| weights.spread, spread),
];

/// What each term gives a node that can be chosen.
pub(super) fn points(asked: &Asked<'_>, at: At, slot: &Slot) -> impl Iterator<Item = Points> {
    TERMS.iter().filter_map(move |(term, weight, value)| {
        let (weight, value) = (weight(&asked.policy.weights), value(asked, at, slot)?);
        Some(Points { term: *term, value, weight, points: value * weight })
    })
}

/// Their sum, in the order of the terms.
pub(super) fn score(asked: &Asked<'_>, at: At, slot: &Slot) -> f64 {
    points(asked, at, slot).fold(0.0, |score, points| score + points.points)
}

/// What is left of the resources that are asked for, as shares of what the node has: the less, the better.
fn fit(asked: &Asked<'_>, _: At, slot: &Slot) -> Option<f64> {
    let (mut squares, mut kinds) = (0.0, 0.0);
    for (n, needs) in asked.needs.into_iter().enumerate().filter(|(_, needs)| *needs > 0) {
        // It can be chosen: it has as much.
        let left = (slot.capacity[n] - slot.taken[n] - needs) as f64 / slot.capacity[n] as f64;
        squares += left * left;
        kinds += 1.0;
    }
    (kinds > 0.0).then(|| 1.0 - f64::sqrt(squares / kinds))
}

fn image(asked: &Asked<'_>, at: At, _: &Slot) -> Option<f64> {
    Some(asked.image.as_ref()?.get(at).unwrap_or(0.0))
}

fn pool(asked: &Asked<'_>, at: At, _: &Slot) -> Option<f64> {
    let ready = asked.pool.as_ref()?.get(at).unwrap_or(0);
    Some(if ready > 0 { 1.0 } else { 0.0 })
}

fn near(asked: &Asked<'_>, at: At, _: &Slot) -> Option<f64> {
    Some(asked.near.as_ref()?.get(at).unwrap_or(0.0))
}

fn behaviour(asked: &Asked<'_>, at: At, _: &Slot) -> Option<f64> {
    let needs = asked.request.behaviour;
    let asks = needs.cpu + needs.disk + needs.network > 0.0;
    asks.then(|| asked.hypervisor.as_ref()?.get(at).map(|best| best.strength)).flatten()
}

fn licence(asked: &Asked<'_>, at: At, _: &Slot) -> Option<f64> {
    let costs = asked.licences.iter().filter_map(|(_, of)| of.get(at)).map(|left| left.cost);
    (!asked.licences.is_empty()).then(|| 1.0 / (1.0 + costs.sum::<f64>()))
}

fn idle(_: &Asked<'_>, _: At, slot: &Slot) -> Option<f64> {
    Some(1.0 - slot.load)
}

fn spread(asked: &Asked<'_>, at: At, _: &Slot) -> Option<f64> {
    let there = asked.spread.as_ref()?.get(at).unwrap_or(0);
    Some(1.0 / (1.0 + there as f64))
}
