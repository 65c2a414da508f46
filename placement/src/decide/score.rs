//! Which of the nodes that can be chosen is best: terms of 0 to 1, each times its weight.
//!
//! A term is of the node and what is placed beside it alone: that another node is there or not changes nothing. Sums,
//! products and quotients are exact to the bit by IEEE 754, so replicas agree.

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

/// How much of an image that is at hand it is worth that there is room for [`OTHERS`] more of the same shape. (Measured,
/// `sim/tests/placing.rs`: of the bytes that move if nobody looks at images, 0.16 move with this, 0.4 with eight others, and
/// 0.7 if room does not count. If all room counts, none is left for requests as large as a node.)
const ROOM: f64 = 0.25;
const OTHERS: f64 = 16.0;

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

/// What would be left of each resource that is asked for, as a share of what the node has.
fn left(asked: &Asked<'_>, slot: &Slot) -> impl Iterator<Item = f64> {
    let needs = asked.needs.into_iter().enumerate().filter(|(_, needs)| *needs > 0);
    // It can be chosen: it has as much.
    needs.map(|(n, needs)| {
        (slot.capacity[n] - slot.taken[n] - needs) as f64 / slot.capacity[n] as f64
    })
}

/// The less is left the better, and the more evenly: of memory without CPUs nobody has any use. On streams of unlike
/// shapes this places more than the sum or the norm of what is left (`sim/tests/placing.rs`).
fn fit(asked: &Asked<'_>, _: At, slot: &Slot) -> Option<f64> {
    let (mut sum, mut kinds, mut least, mut most) = (0.0, 0.0, 1.0, 0.0);
    for left in left(asked, slot) {
        (sum, kinds, least, most) = (sum + left, kinds + 1.0, left.min(least), left.max(most));
    }
    (kinds > 0.0).then(|| 1.0 - (sum / kinds + (most - least)) / 2.0)
}

/// What is not at hand has to be brought, and is then of use to others of the image, if there is room for them: so that
/// room counts for a part. Else what is new would go where it is fullest, and each of its kin to another node.
fn image(asked: &Asked<'_>, at: At, slot: &Slot) -> Option<f64> {
    let held = asked.image.as_ref()?.get(at).unwrap_or(0.0);
    let needs = asked.needs.into_iter().enumerate().filter(|(_, needs)| *needs > 0);
    let others = needs
        .map(|(n, needs)| (slot.capacity[n] - slot.taken[n] - needs) as f64 / needs as f64)
        .fold(OTHERS, f64::min);
    Some(held + (1.0 - held) * ROOM * others / OTHERS)
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
