//! Choosing a node for an instance, or for a ready volume of a pool. The only place where that is decided.
//!
//! Pure: what is known of the fleet ([`View`]), a request and a policy in, a [`Decision`] out. First the nodes are
//! filtered by rules (`filter`), then those that are left are scored (`score`); the highest score wins. Among
//! equals a lot wins that is drawn by the names of request and node alone, so that replicas agree and equals are spread.
//! If no node can be chosen, the nearest miss is said: the node that lacks least, all its reasons counted.
//!
//! - A choice is good for the view that it was made of. [`place`] takes what was asked for at once, so that the next
//!   decision counts it; the state does the same with a compare-and-set.
//! - [`explain`] judges every node by the same functions: it cannot tell another story than [`decide`].
//!
//! ```text
//! View::of(fleet) ─▶ set_node, remove_node, add, release     as reports come
//!                 ─▶ decide(view, request, policy) ─▶ Decision ─▶ reserve(request, node)
//! ```

mod asked;
mod filter;
mod index;
mod known;
mod score;
mod view;
mod words;

use std::cmp::Ordering;

use api::place::{Chosen, Decision, Explanation, Miss, PlaceRequest, Policy, Scored};
use image::Result;

use asked::Asked;
use view::Slot;

pub(crate) use index::At;
pub use view::View;
pub(crate) use view::instance;

/// Chooses a node. That none can be is no error: the decision says why.
///
/// # Errors
///
/// Invalid: the request or the policy cannot be meant, by themselves or in this fleet.
pub fn decide(view: &View, request: &PlaceRequest, policy: &Policy) -> Result<Decision> {
    Ok(decided(view, &asked(view, request, policy)?))
}

/// Chooses a node, and takes from it what is asked for.
///
/// # Errors
///
/// As of [`decide`]. Conflict: something of this name is placed already.
pub fn place(view: &mut View, request: &PlaceRequest, policy: &Policy) -> Result<Decision> {
    place_but(view, request, policy, [])
}

/// As [`place`], and on none of these nodes, by their numbers in the view.
///
/// # Errors
///
/// As of [`place`].
pub(crate) fn place_but(
    view: &mut View,
    request: &PlaceRequest,
    policy: &Policy,
    not_on: impl IntoIterator<Item = At>,
) -> Result<Decision> {
    let mut asked = asked(view, request, policy)?;
    asked.bar(not_on);
    let decision = decided(view, &asked);
    if let Some(chosen) = &decision.chosen {
        view.reserve(request, &chosen.node)?;
    }
    Ok(decision)
}

/// Places several of a kind, one after the other, so that each counts those before: `name/0`, `name/1` and so on. The last
/// decision is the first that found no node, if there was one.
///
/// # Errors
///
/// As of [`place`]; what was placed before stays so.
pub fn place_many(
    view: &mut View,
    request: &PlaceRequest,
    count: usize,
    policy: &Policy,
) -> Result<Vec<Decision>> {
    let mut decisions = Vec::new();
    for nth in 0..count {
        let one = PlaceRequest { id: format!("{}/{nth}", request.id), ..request.clone() };
        decisions.push(place(view, &one, policy)?);
        if decisions.last().is_some_and(|decision| decision.chosen.is_none()) {
            break;
        }
    }
    Ok(decisions)
}

/// Chooses a node, and says of every other why it was not.
///
/// # Errors
///
/// As of [`decide`].
pub fn explain(view: &View, request: &PlaceRequest, policy: &Policy) -> Result<Explanation> {
    let asked = asked(view, request, policy)?;
    let (mut scored, mut misses) = (Vec::new(), Vec::new());
    for (at, slot) in view.slots() {
        let rank = Rank::of(&asked, at, slot);
        match rank.fits {
            true => scored.push((scored_of(view, &asked, &rank, slot), rank)),
            false => misses.push((miss_of(view, &asked, &rank, slot), rank)),
        }
    }
    scored.sort_by(|(_, a), (_, b)| b.compare(a, view));
    misses.sort_by(|(_, a), (_, b)| b.compare(a, view));
    Ok(Explanation {
        decision: decided(view, &asked),
        scored: scored.into_iter().map(|(scored, _)| scored).collect(),
        misses: misses.into_iter().map(|(miss, _)| miss).collect(),
    })
}

fn asked<'a>(view: &'a View, request: &'a PlaceRequest, policy: &'a Policy) -> Result<Asked<'a>> {
    request.check()?;
    policy.check()?;
    Asked::new(view, request, policy)
}

/// Where a node stands among the others.
struct Rank {
    at: At,
    fits: bool,
    /// The score; or, of a node that does not fit, what it lacks, below 0.
    worth: f64,
    lot: u64,
}

impl Rank {
    fn of(asked: &Asked<'_>, at: At, slot: &Slot) -> Self {
        Self::fitting(asked, at, slot).unwrap_or_else(|| {
            let lack = filter::lacks(asked, at, slot).fold(0.0, |sum, lack| sum + lack.much());
            Self { at, fits: false, worth: -lack, lot: draw(asked.lot, slot.lot) }
        })
    }

    /// `None` as soon as one rule rules it out.
    fn fitting(asked: &Asked<'_>, at: At, slot: &Slot) -> Option<Self> {
        filter::lacks(asked, at, slot).next().is_none().then(|| {
            let (worth, lot) = (score::score(asked, at, slot), draw(asked.lot, slot.lot));
            Self { at, fits: true, worth, lot }
        })
    }

    fn compare(&self, other: &Self, view: &View) -> Ordering {
        let worth = self.fits.cmp(&other.fits).then(self.worth.total_cmp(&other.worth));
        // Names are looked at if even the lots are the same.
        let names = || view.facts(self.at).name.cmp(&view.facts(other.at).name);
        worth.then(self.lot.cmp(&other.lot)).then_with(names)
    }
}

fn decided(view: &View, asked: &Asked<'_>) -> Decision {
    let mut best: Option<(Rank, &Slot)> = None;
    let (mut fit, mut impossible) = (0, true);
    for (at, slot) in view.slots() {
        let rank = match fit {
            0 => Rank::of(asked, at, slot),
            // There is a node that fits: what others lack does not matter.
            _ => match Rank::fitting(asked, at, slot) {
                Some(rank) => rank,
                None => continue,
            },
        };
        fit += u64::from(rank.fits);
        impossible &= !rank.fits && filter::lacks(asked, at, slot).any(|lack| lack.lasts());
        if best.as_ref().is_none_or(|(best, _)| rank.compare(best, view).is_gt()) {
            best = Some((rank, slot));
        }
    }
    let chosen = best.as_ref().filter(|(rank, _)| rank.fits);
    let nearest = best.as_ref().filter(|(rank, _)| !rank.fits);
    Decision {
        request: asked.request.id.clone(),
        chosen: chosen.map(|(rank, _)| Chosen {
            node: view.facts(rank.at).name.clone(),
            hypervisor: hypervisor(asked, rank.at),
            score: rank.worth,
        }),
        fit,
        nodes: view.nodes() as u64,
        nearest: nearest.map(|(rank, slot)| miss_of(view, asked, rank, slot)),
        impossible,
    }
}

fn scored_of(view: &View, asked: &Asked<'_>, rank: &Rank, slot: &Slot) -> Scored {
    Scored {
        node: view.facts(rank.at).name.clone(),
        hypervisor: hypervisor(asked, rank.at),
        score: rank.worth,
        points: score::points(asked, rank.at, slot).collect(),
    }
}

fn miss_of(view: &View, asked: &Asked<'_>, rank: &Rank, slot: &Slot) -> Miss {
    let facts = view.facts(rank.at);
    let lacks = filter::lacks(asked, rank.at, slot);
    let reasons = lacks.map(|lack| lack.reason(asked.request, facts)).collect();
    Miss { node: facts.name.clone(), lack: -rank.worth, reasons }
}

fn hypervisor(asked: &Asked<'_>, at: At) -> Option<String> {
    let best = asked.hypervisor.as_ref()?.get(at)?.software;
    Some(format!("{} {}", best.kind, best.version).trim_end().to_owned())
}

/// What a request and a node draw together (the last steps of SplitMix64: Steele, Lea, Flood, 2014).
fn draw(request: u64, node: u64) -> u64 {
    let mut z = request ^ node;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
