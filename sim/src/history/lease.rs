//! A lease: who has it, and its epoch.
//!
//! The model knows no time: a lease may be over at any moment, if its holder is silent. So whoever asks for it may be
//! given it; what must be right is that epochs grow by one with each grant, that who is refused is told who has it, and
//! that nothing ends a lease of another epoch. That nobody is given it while another still writes is a matter of time:
//! [`writes`](super::writes).

use super::Model;

/// A node, by its number.
pub type Node = u8;

/// What is asked of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To be given it; with an epoch, to go on with that.
    Take {
        /// By whom.
        node: Node,
        /// Of the lease that it has.
        epoch: Option<u64>,
    },
    /// Its holder does not need it any more.
    Release {
        /// Who says so.
        node: Node,
        /// Of the lease that it had.
        epoch: u64,
    },
    /// Its holder gives it to another.
    Transfer {
        /// Who says so.
        node: Node,
        /// Of the lease that it has.
        epoch: u64,
        /// Who is to have it.
        to: Node,
    },
    /// Who has it?
    Look,
}

/// What a lease answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// It is given, of this epoch.
    Granted(u64),
    /// Another has it, or nobody.
    Refused(Option<Node>),
    /// It was heard.
    Heard,
    /// Who has it, of which epoch.
    Has(Option<(Node, u64)>),
}

/// A lease that nobody has had.
#[derive(Clone, Copy, Debug)]
pub struct Lease;

/// Its last epoch, and who has it.
pub type State = (u64, Option<Node>);

impl Model for Lease {
    type State = State;
    type Input = Asked;
    type Output = Answered;

    fn start(&self) -> State {
        (0, None)
    }

    fn next(&self, state: &State, input: &Asked, output: Option<&Answered>) -> Vec<State> {
        let (last, holder) = *state;
        let next = match (input, output) {
            (Asked::Take { node, epoch }, None | Some(Answered::Granted(_))) => {
                let goes_on = holder == Some(*node) && *epoch == Some(last);
                let next = if goes_on { *state } else { (last + 1, Some(*node)) };
                let right = output.is_none_or(|answer| *answer == Answered::Granted(next.0));
                right.then_some(next)
            }
            (Asked::Take { node, .. }, Some(Answered::Refused(by))) => {
                (holder == *by && *by != Some(*node)).then_some(*state)
            }
            (Asked::Release { node, epoch }, None | Some(Answered::Heard)) => {
                let theirs = (last, holder) == (*epoch, Some(*node));
                Some(if theirs { (last, None) } else { *state })
            }
            (Asked::Transfer { node, epoch, to }, answer) => {
                let theirs = (last, holder) == (*epoch, Some(*node));
                match answer {
                    None => theirs.then_some((last + 1, Some(*to))),
                    Some(Answered::Granted(given)) => {
                        (theirs && *given == last + 1).then_some((last + 1, Some(*to)))
                    }
                    Some(Answered::Refused(by)) => (!theirs && holder == *by).then_some(*state),
                    Some(_) => None,
                }
            }
            (Asked::Look, Some(Answered::Has(has))) => {
                (holder.map(|node| (node, last)) == *has).then_some(*state)
            }
            _ => None,
        };
        next.into_iter().collect()
    }
}
