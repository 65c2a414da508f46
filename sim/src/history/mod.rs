//! Histories: what clients asked, what they were answered, and whether one order explains all of it.
//!
//! A history is *linearizable* if each operation can be given a moment between its call and its answer so that,
//! in the order of these moments, every answer is right (Herlihy and Wing, "Linearizability: a correctness
//! condition for concurrent objects", TOPLAS 1990). [`check()`] looks for such an order, [`Model`] says which answers
//! are right.
//!
//! ```text
//! History::default ─▶ called ─▶ answered   (an answer, known)
//!                            └▶ dropped    (none came: it may be done at any later time, or never)
//!                  ─▶ operations ─▶ check(model, …) ─▶ Verdict
//! ```
//! An operation of which it is certain that it was not done ([`Pending::not_done`]) is no part of the history.
//!
//! What is about time, or holds in any order, needs no search: [`writes`] and [`claims`] look at that directly.

mod check;
pub mod claims;
pub mod keys;
pub mod lease;
mod oracle;
pub mod reservations;
pub mod writes;

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

pub use check::{Verdict, check, check_each};

/// When an operation returned whose answer never came.
pub const NEVER: u64 = u64::MAX;

/// Whether a placement's answer says that nothing was done, and never will be: it has found out before that it does not
/// lead. Else an error leaves that open.
pub fn is_not_done(error: &image::Error) -> bool {
    error.message().starts_with("another placement leads")
}

/// Which answers are right.
pub trait Model {
    /// What there is to know of the object between two operations.
    type State: Clone + Eq + Hash + Debug;
    /// What is asked.
    type Input: Clone + PartialEq + Debug;
    /// What is answered.
    type Output: Clone + Debug;

    /// Before the first operation.
    fn start(&self) -> Self::State;

    /// The states that there can be after an operation with this answer; none: the answer is wrong. Without an answer:
    /// the states in which it may leave the object if it is done.
    fn next(
        &self,
        state: &Self::State,
        input: &Self::Input,
        output: Option<&Self::Output>,
    ) -> Vec<Self::State>;
}

/// One operation of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<I, O> {
    /// What was asked.
    pub input: I,
    /// What was answered; nothing: it is not known whether it was done.
    pub output: Option<O>,
    /// When it was asked: a number that grows with each event of the history.
    pub called: u64,
    /// When it was answered; [`NEVER`] without an answer.
    pub returned: u64,
}

/// Records operations as they happen. Clones share it.
#[derive(Debug)]
pub struct History<I, O>(Arc<Mutex<Events<I, O>>>);

#[derive(Debug)]
struct Events<I, O> {
    count: u64,
    operations: Vec<Option<Operation<I, O>>>,
}

impl<I, O> Clone for History<I, O> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<I, O> Default for History<I, O> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Events { count: 0, operations: Vec::new() })))
    }
}

impl<I: Clone, O: Clone> History<I, O> {
    /// Something is asked, from now on. Dropped, its answer is not known.
    pub fn called(&self, input: I) -> Pending<I, O> {
        self.with(|events| {
            events.count += 1;
            let called = events.count;
            events.operations.push(Some(Operation {
                input,
                output: None,
                called,
                returned: NEVER,
            }));
            Pending { history: self.clone(), at: events.operations.len() - 1 }
        })
    }

    /// Everything so far, in the order in which it was called.
    pub fn operations(&self) -> Vec<Operation<I, O>> {
        self.with(|events| events.operations.iter().flatten().cloned().collect())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Events<I, O>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An operation that was called.
#[derive(Debug)]
#[must_use = "dropped at once, its answer is not known"]
pub struct Pending<I, O> {
    history: History<I, O>,
    at: usize,
}

impl<I: Clone, O: Clone> Pending<I, O> {
    /// Its answer has come.
    pub fn answered(self, output: O) {
        self.history.with(|events| {
            events.count += 1;
            let returned = events.count;
            if let Some(operation) = &mut events.operations[self.at] {
                (operation.output, operation.returned) = (Some(output), returned);
            }
        });
    }

    /// It is certain that it was not done, and never will be.
    pub fn not_done(self) {
        self.history.with(|events| events.operations[self.at] = None);
    }
}
