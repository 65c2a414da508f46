//! Reservations: who has reserved on which node, of nodes that take so many each.
//!
//! Which node is chosen is not said here, and who finds no room is no part of the history: what nodes say of themselves
//! moves with who leads. What must be right is that a node has no more on it than it takes, that the same request again
//! finds what it has, and that what is released was there.

use std::collections::BTreeMap;

use super::Model;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A node for this request.
    Reserve(u8),
    /// To have back what this request has.
    Release(u8),
    /// What is reserved?
    Look,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// It is on this node; of a release, it was.
    On(u8),
    /// It is nowhere.
    Gone,
    /// All of them, and where they are.
    All(BTreeMap<u8, u8>),
}

/// Nodes on which nothing is reserved.
#[derive(Clone, Copy, Debug)]
pub struct Nodes {
    /// How many there are.
    pub count: u8,
    /// How many requests each takes.
    pub room: usize,
}

impl Nodes {
    fn has_room(&self, state: &BTreeMap<u8, u8>, node: u8) -> bool {
        state.values().filter(|on| **on == node).count() < self.room
    }
}

fn with(state: &BTreeMap<u8, u8>, id: u8, node: u8) -> BTreeMap<u8, u8> {
    let mut state = state.clone();
    state.insert(id, node);
    state
}

impl Model for Nodes {
    /// Requests, and the node of each.
    type State = BTreeMap<u8, u8>;
    type Input = Asked;
    type Output = Answered;

    fn start(&self) -> Self::State {
        BTreeMap::new()
    }

    fn next(
        &self,
        state: &Self::State,
        input: &Asked,
        output: Option<&Answered>,
    ) -> Vec<Self::State> {
        match (input, output) {
            (Asked::Reserve(id), answer @ (None | Some(Answered::On(_)))) => {
                let told = |node: &u8| answer.is_none_or(|answer| *answer == Answered::On(*node));
                let nodes: Vec<u8> = match state.get(id) {
                    Some(has) => vec![*has],
                    None => (0..self.count).filter(|node| self.has_room(state, *node)).collect(),
                };
                nodes.into_iter().filter(told).map(|node| with(state, *id, node)).collect()
            }
            (Asked::Release(id), answer) => {
                let mut after = state.clone();
                let right = match (after.remove(id), answer) {
                    (_, None) | (None, Some(Answered::Gone)) => true,
                    (Some(was), Some(Answered::On(node))) => was == *node,
                    _ => false,
                };
                right.then_some(after).into_iter().collect()
            }
            (Asked::Look, Some(Answered::All(all))) => {
                (all == state).then(|| state.clone()).into_iter().collect()
            }
            _ => vec![],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Operation, check};
    use super::*;

    fn history(ops: &[(Asked, Answered)]) -> Vec<Operation<Asked, Answered>> {
        let one = |(at, (input, output)): (usize, &(Asked, Answered))| {
            let (input, output, called) = (input.clone(), Some(output.clone()), 2 * at as u64);
            Operation { input, output, called, returned: called + 1 }
        };
        ops.iter().enumerate().map(one).collect()
    }

    #[test]
    fn a_node_takes_what_it_has_room_for_and_a_request_is_in_one_place() {
        use Answered::{All, Gone, On};
        use Asked::{Look, Release, Reserve};
        let nodes = Nodes { count: 2, room: 1 };
        let all = |of: &[(u8, u8)]| All(of.iter().copied().collect());
        let good = [
            (Reserve(1), On(0)),
            (Reserve(1), On(0)),
            (Reserve(2), On(1)),
            (Look, all(&[(1, 0), (2, 1)])),
            (Release(1), On(0)),
            (Release(1), Gone),
            (Reserve(3), On(0)),
        ];
        assert!(check(&nodes, &history(&good), 1000).holds());
        for (at, wrong) in [
            (1, On(1)),
            (2, On(0)),
            (3, all(&[(1, 0)])),
            (4, On(1)),
            (5, On(0)),
            (6, On(1)),
            (6, Gone),
        ] {
            let mut bad = good.clone();
            bad[at].1 = wrong;
            assert!(!check(&nodes, &history(&bad), 1000).holds(), "{at}");
        }
    }
}
