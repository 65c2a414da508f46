//! The search for an order.
//!
//! Of all operations that are left, one of those may come next that were called before any of the others was answered.
//! Each is tried, depth first (Wing and Gong, "Testing and verifying concurrent objects", JPDC 1993). Where the same
//! operations have been put in order and have left the same state, the search has been before, and turns back (Lowe,
//! "Testing for linearizability", CCPE 2017): that makes it fast enough; porcupine does the same.
//!
//! Objects that share nothing are checked one by one ([`check_each`]): a history is linearizable if it is so for each
//! object (Herlihy and Wing).

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Debug};

use super::{Model, Operation};

/// What was found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains all answers.
    Linearizable,
    /// There is none: how far the best one goes, and what cannot follow.
    Not(String),
    /// The search was given up after so many steps: neither is shown.
    Undecided(u64),
}

impl Verdict {
    /// Whether there is an order.
    pub fn holds(&self) -> bool {
        *self == Self::Linearizable
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linearizable => f.write_str("linearizable"),
            Self::Not(why) => write!(f, "not linearizable: {why}"),
            Self::Undecided(steps) => write!(f, "not decided after {steps} steps"),
        }
    }
}

type Operations<M> = [Operation<<M as Model>::Input, <M as Model>::Output>];

/// Checks the operations of each object by itself; `object` says which an operation is of. The worst verdict, a wrong
/// answer before one that is not decided.
pub fn check_each<M: Model, K: Ord + Debug>(
    model: &M,
    operations: &Operations<M>,
    object: impl Fn(&M::Input) -> K,
    most: u64,
) -> Verdict {
    let mut objects: BTreeMap<K, Vec<_>> = BTreeMap::new();
    for operation in operations {
        objects.entry(object(&operation.input)).or_default().push(operation.clone());
    }
    let mut worst = Verdict::Linearizable;
    for (key, operations) in objects {
        match check(model, &operations, most) {
            Verdict::Linearizable => {}
            Verdict::Not(why) => return Verdict::Not(format!("{key:?}: {why}")),
            undecided => worst = undecided,
        }
    }
    worst
}

/// Looks for an order of operations on one object, in `most` steps at most.
pub fn check<M: Model>(model: &M, operations: &Operations<M>, most: u64) -> Verdict {
    let mut operations = operations.to_vec();
    operations.sort_by_key(|operation| operation.called);
    let mut search =
        Search::<M> { model, operations: &operations, been: HashSet::new(), best: None };
    search.run(most)
}

/// Operations by their places in the history.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Set(Box<[u64]>);

impl Set {
    fn empty(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)].into())
    }

    fn has(&self, at: usize) -> bool {
        self.0[at / 64] & (1 << (at % 64)) != 0
    }

    fn with(&self, at: usize) -> Self {
        let mut with = self.clone();
        with.0[at / 64] |= 1 << (at % 64);
        with
    }

    fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}

/// A place in the search: what is in order, what that has made of the object, and what is still to be tried next.
struct Place<S> {
    done: Set,
    state: S,
    next: Vec<usize>,
}

struct Search<'a, M: Model> {
    model: &'a M,
    operations: &'a Operations<M>,
    been: HashSet<(Set, M::State)>,
    /// The place that was furthest on.
    best: Option<(Set, M::State)>,
}

impl<M: Model> Search<'_, M> {
    fn run(&mut self, most: u64) -> Verdict {
        let (done, state) = (Set::empty(self.operations.len()), self.model.start());
        let mut path = vec![self.place(done, state)];
        let mut steps = 0;
        while let Some(place) = path.last_mut() {
            if self.is_all(&place.done) {
                return Verdict::Linearizable;
            }
            let Some(at) = place.next.pop() else {
                path.pop();
                continue;
            };
            steps += 1;
            if steps > most {
                return Verdict::Undecided(steps - 1);
            }
            let operation = &self.operations[at];
            let after = self.model.next(&place.state, &operation.input, operation.output.as_ref());
            let (done, before) = (place.done.with(at), place.state.clone());
            for state in after {
                // What was not answered and changes nothing might as well not be done.
                if operation.output.is_none() && state == before {
                    continue;
                }
                if self.been.insert((done.clone(), state.clone())) {
                    path.push(self.place(done.clone(), state));
                }
            }
        }
        Verdict::Not(self.why())
    }

    /// All that were answered. What was not need not have been done.
    fn is_all(&self, done: &Set) -> bool {
        let answered = |at: &usize| self.operations[*at].output.is_some();
        (0..self.operations.len()).filter(answered).all(|at| done.has(at))
    }

    fn place(&mut self, done: Set, state: M::State) -> Place<M::State> {
        if self.best.as_ref().is_none_or(|(best, _)| best.len() < done.len()) {
            self.best = Some((done.clone(), state.clone()));
        }
        let mut next = self.next(&done);
        // The last is tried first: who was answered first; those that were never answered only if need be.
        next.sort_by_key(|at| std::cmp::Reverse(self.operations[*at].returned));
        Place { done, state, next }
    }

    /// Those that were called before any that is left was answered.
    fn next(&self, done: &Set) -> Vec<usize> {
        let (mut next, mut earliest) = (Vec::new(), super::NEVER);
        for (at, operation) in self.operations.iter().enumerate() {
            if done.has(at) {
                continue;
            }
            if operation.called > earliest {
                break;
            }
            // Of those that were not answered and asked the same, any that is done may be the first.
            let asked = |before: &usize| {
                let before = &self.operations[*before];
                before.output.is_none() && before.input == operation.input
            };
            if operation.output.is_none() && next.iter().any(asked) {
                continue;
            }
            next.push(at);
            earliest = earliest.min(operation.returned);
        }
        next
    }

    fn why(&self) -> String {
        let Some((done, state)) = &self.best else { return String::new() };
        let next = self.next(done);
        let next = next.iter().map(|at| {
            let Operation { input, output, called, .. } = &self.operations[*at];
            format!("{called}: {input:?} → {output:?}")
        });
        let next: Vec<_> = next.collect();
        format!(
            "of {} operations {} can be put in order; then it is {state:?}, and none of these is right next: {}",
            self.operations.len(),
            done.len(),
            next.join("; ")
        )
    }
}
