//! Which nodes are to hold the images that must be at hand: a pure function of what must be where, and of who holds what.
//!
//! A node counts for a name if it is heard of, does not drain, and is there for the function that the name asks for. Where
//! fewer hold an image, or are about to, than must, others are told to. Where more have all of it, some are let go: those
//! that drain first, then those that have the least room. Of those that only begin, none is needed once enough are done.
//! Who is not heard of is told nothing, and goes on holding: it counts again when it comes back.
//!
//! An image that a name meant before stays where it is until its successor is where it must be.

use std::collections::{BTreeMap, BTreeSet};

use api::keep::{KeptOn, SetKeep};
use image::{Digest, Result};

/// What must be at hand.
#[derive(Clone, Debug)]
pub(crate) struct Want<'a> {
    pub name: &'a str,
    pub set: &'a SetKeep,
    pub image: Digest,
    pub size: u64,
    /// What the name meant before, as long as that is needed.
    pub before: Option<Digest>,
}

/// A node that was told to hold an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holder {
    pub node: String,
    /// The item of its goal.
    pub item: String,
    /// It says that it has all of it.
    pub whole: bool,
    pub away: bool,
    pub leaves: bool,
    /// Bytes of room there.
    pub free: u64,
}

/// By image.
pub(crate) type Holders = BTreeMap<Digest, Vec<Holder>>;

/// How a name stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stands {
    /// Nodes that count, and have all of it.
    pub whole: u32,
    /// Nodes that count, and are to.
    pub coming: u32,
    pub on: Vec<KeptOn>,
    pub why: String,
    /// Nobody else can hold it.
    hopeless: bool,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Nodes that are to hold an image of this size.
    pub hold: Vec<(String, Digest, u64)>,
    /// Nodes and items.
    pub let_go: Vec<(String, String)>,
    /// In the order of what must be at hand.
    pub stands: Vec<Stands>,
}

/// A node for one more, or why there is none.
pub(crate) type Choice = std::result::Result<String, String>;

/// Nodes that one plan tells to hold something, and to let go: each is a decision over all nodes, or a write, and there is
/// a next plan.
const HOLD: usize = 32;
const LET_GO: usize = 256;

/// Plans for all at once. `is_for` tells whether a node is there for what is asked; `choose` takes a node that is none of
/// some, and counts it from then on.
pub(crate) fn plan(
    wants: &[Want<'_>],
    holders: &Holders,
    is_for: impl Fn(&str, &SetKeep) -> bool,
    mut choose: impl FnMut(&Want<'_>, BTreeSet<String>) -> Result<Choice>,
) -> Result<Plan> {
    let mut plan = Plan::default();
    for want in wants {
        let told = holders.get(&want.image).map_or(&[][..], Vec::as_slice);
        let mut stands = count(want, told, &is_for);
        let new = |plan: &Plan| -> Vec<String> {
            let of_it = plan.hold.iter().filter(|(_, image, _)| *image == want.image);
            of_it.map(|(node, _, _)| node.clone()).collect()
        };
        stands.coming += new(&plan).iter().filter(|node| is_for(node, want.set)).count() as u32;
        for lacking in (0..want.set.nodes.saturating_sub(stands.whole + stands.coming)).rev() {
            if plan.hold.len() == HOLD {
                stands.why = format!("{} more nodes are told soon", lacking + 1);
                break;
            }
            let taken = told.iter().map(|holder| holder.node.clone()).chain(new(&plan)).collect();
            match choose(want, taken)? {
                Ok(node) => {
                    plan.hold.push((node, want.image, want.size));
                    stands.coming += 1;
                }
                Err(why) => {
                    stands.hopeless = stands.coming == 0;
                    stands.why =
                        format!("no node can hold it, {} more are needed: {why}", lacking + 1);
                    break;
                }
            }
        }
        if stands.why.is_empty() {
            stands.why = match (stands.whole, stands.coming) {
                (whole, 0) if whole >= want.set.nodes => format!("{whole} nodes have it"),
                (whole, coming) => format!("{whole} nodes have it, {coming} are fetching it"),
            };
        }
        plan.stands.push(stands);
    }
    for (image, told) in holders {
        let succeeded = wants.iter().any(|want| want.before == Some(*image));
        let of = wants.iter().zip(&plan.stands).filter(|(want, _)| want.image == *image);
        let of: Vec<_> = of.collect();
        // Nothing of it is given up before its successor is there.
        if succeeded && of.is_empty() {
            continue;
        }
        let spare = spare(&of, told, &is_for);
        plan.let_go.extend(spare);
    }
    plan.let_go.truncate(LET_GO);
    Ok(plan)
}

fn counts(want: &Want<'_>, holder: &Holder, is_for: &impl Fn(&str, &SetKeep) -> bool) -> bool {
    !holder.away && !holder.leaves && is_for(&holder.node, want.set)
}

fn count(want: &Want<'_>, told: &[Holder], is_for: &impl Fn(&str, &SetKeep) -> bool) -> Stands {
    let mut stands = Stands::default();
    for holder in told {
        if counts(want, holder, is_for) {
            stands.whole += u32::from(holder.whole);
            stands.coming += u32::from(!holder.whole);
        }
        let Holder { node, whole, away, leaves, .. } = holder.clone();
        stands.on.push(KeptOn { node, whole, away, leaves });
    }
    stands
}

/// Who is not needed by any of those who want the image.
fn spare(
    of: &[(&Want<'_>, &Stands)],
    told: &[Holder],
    is_for: &impl Fn(&str, &SetKeep) -> bool,
) -> Vec<(String, String)> {
    let mut order: Vec<&Holder> = told.iter().collect();
    order.sort_by_key(|h| (!h.leaves, h.whole, h.free, &h.node));
    // For each that wants it, how many are left that have all of it, and that are to.
    let mut left: Vec<[u32; 2]> = vec![[0; 2]; of.len()];
    for (at, (want, _)) in of.iter().enumerate() {
        let count = told.iter().filter(|holder| counts(want, holder, is_for));
        count.for_each(|holder| left[at][usize::from(!holder.whole)] += 1);
    }
    let mut gone = Vec::new();
    for holder in order {
        let is_spare = |((want, stands), [whole, coming]): (&(&Want<'_>, &Stands), &[u32; 2])| {
            let must = want.set.nodes;
            match holder {
                _ if !is_for(&holder.node, want.set) => true,
                Holder { away: true, .. } => false,
                Holder { leaves: true, .. } => *whole >= must || stands.hopeless,
                Holder { whole: true, .. } => *whole > must,
                _ => whole + coming > must,
            }
        };
        if of.iter().zip(&left).all(is_spare) {
            for (at, (want, _)) in of.iter().enumerate() {
                if counts(want, holder, is_for) {
                    left[at][usize::from(!holder.whole)] -= 1;
                }
            }
            gone.push((holder.node.clone(), holder.item.clone()));
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(n: u8) -> Digest {
        Digest([n; 32])
    }

    fn set(nodes: u32) -> SetKeep {
        SetKeep { nodes, ..SetKeep::default() }
    }

    fn want(set: &SetKeep, n: u8) -> Want<'_> {
        Want { name: "d:1", set, image: image(n), size: 10, before: None }
    }

    fn on(node: &str, whole: bool) -> Holder {
        let (node, item) = (node.to_owned(), format!("i-{node}"));
        Holder { node, item, whole, free: 100, ..Holder::default() }
    }

    fn planned(wants: &[Want<'_>], holders: &Holders, others: &[&str]) -> Plan {
        let choose = |_: &Want<'_>, not_on: BTreeSet<String>| {
            let other = others.iter().find(|node| !not_on.contains(**node));
            Ok(other.map(|node| (*node).to_owned()).ok_or("there are no others".to_owned()))
        };
        plan(
            wants,
            holders,
            |node, set| set.function.as_deref().is_none_or(|f| node.starts_with(f)),
            choose,
        )
        .unwrap()
    }

    fn names(plan: &Plan) -> (Vec<&str>, Vec<&str>) {
        let told = plan.hold.iter().map(|(node, _, _)| node.as_str());
        (told.collect(), plan.let_go.iter().map(|(node, _)| node.as_str()).collect())
    }

    #[test]
    fn what_lacks_is_told_once_and_what_is_too_much_is_let_go() {
        let three = set(3);
        let holders = Holders::from([(image(1), vec![on("a", true), on("b", false)])]);
        let lacks = planned(&[want(&three, 1)], &holders, &["a", "b", "c", "d"]);
        assert_eq!(names(&lacks), (vec!["c"], vec![]));
        assert_eq!((lacks.stands[0].whole, lacks.stands[0].coming), (1, 2));
        let one = set(1);
        let over = planned(&[want(&one, 1)], &holders, &["c"]);
        assert_eq!(names(&over), (vec![], vec!["b"]), "it is there: who only begins is not needed");
        let both =
            Holders::from([(image(1), vec![Holder { free: 9, ..on("a", true) }, on("b", true)])]);
        assert_eq!(names(&planned(&[want(&one, 1)], &both, &[])), (vec![], vec!["a"]));
        // Two names of one image, one of them for some nodes alone.
        let some = SetKeep { function: Some("b".into()), ..set(1) };
        assert_eq!(names(&planned(&[want(&one, 1), want(&some, 1)], &both, &[])).1, ["a"]);
        assert_eq!(names(&planned(&[], &both, &[])).1, ["a", "b"], "nobody wants it");
    }

    #[test]
    fn many_are_told_and_let_go_of_some_at_a_time() {
        let names: Vec<String> = (0..1000).map(|n| format!("n{n:04}")).collect();
        let others: Vec<&str> = names.iter().map(String::as_str).collect();
        let many = set(1000);
        let first = planned(&[want(&many, 1)], &Holders::new(), &others);
        assert_eq!((first.hold.len(), first.stands[0].coming), (HOLD, HOLD as u32));
        assert_eq!(first.stands[0].why, format!("{} more nodes are told soon", 1000 - HOLD));
        let held = names.iter().map(|name| on(name, true)).collect();
        let gone = planned(&[], &Holders::from([(image(1), held)]), &[]);
        assert_eq!(gone.let_go.len(), LET_GO);
    }

    #[test]
    fn who_is_away_or_drains_does_not_count_and_is_replaced_first() {
        let two = set(2);
        let away = Holder { away: true, ..on("a", true) };
        let leaves = Holder { leaves: true, ..on("b", true) };
        let holders = Holders::from([(image(1), vec![away, leaves, on("c", true)])]);
        let told = planned(&[want(&two, 1)], &holders, &["d"]);
        assert_eq!(names(&told), (vec!["d"], vec![]), "not before it is elsewhere");
        assert_eq!((told.stands[0].whole, told.stands[0].coming), (1, 1));
        // Nobody else can: then who drains is let go all the same.
        let none = planned(&[want(&two, 1)], &holders, &[]);
        assert_eq!(names(&none), (vec![], vec!["b"]));
        assert!(none.stands[0].why.contains("1 more are needed"), "{}", none.stands[0].why);
    }

    #[test]
    fn what_a_name_meant_before_stays_until_its_successor_is_there() {
        let one = set(1);
        let holders =
            Holders::from([(image(1), vec![on("a", true)]), (image(2), vec![on("a", false)])]);
        let moved = Want { before: Some(image(1)), ..want(&one, 2) };
        assert_eq!(names(&planned(&[moved], &holders, &["b"])), (vec![], vec![]));
        assert_eq!(names(&planned(&[want(&one, 2)], &holders, &["b"])), (vec![], vec!["a"]));
    }
}
