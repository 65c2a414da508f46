//! The search against one that tries every order, on small histories.
#![cfg(test)]

use super::keys::{Answered, Asked, Keys};
use super::lease::{self, Lease};
use super::{History, Model, NEVER, Operation, Verdict, check, check_each};
use crate::chance::Chance;

const MOST: u64 = 1 << 20;

type Op<M> = Operation<<M as Model>::Input, <M as Model>::Output>;

fn op<I, O>(called: u64, returned: u64, input: I, output: O) -> Operation<I, O> {
    Operation { input, output: Some(output), called, returned }
}

fn put(key: u8, before: Option<u64>, value: u64) -> Asked {
    Asked::Commit { believed: vec![(key, before)], changes: vec![(key, Some(value))] }
}

#[test]
fn what_is_read_must_have_been_written_by_then() {
    let good = [
        op(1, 4, put(0, None, 7), Answered::Done),
        op(2, 3, Asked::Get(0), Answered::Value(None)),
        op(2, 6, Asked::Get(0), Answered::Value(Some(7))),
        op(5, 8, put(0, None, 8), Answered::Conflict),
    ];
    assert_eq!(check(&Keys, &good, MOST), Verdict::Linearizable);
    let stale =
        [op(1, 2, put(0, None, 7), Answered::Done), op(3, 4, Asked::Get(0), Answered::Value(None))];
    let verdict = check(&Keys, &stale, MOST);
    assert!(verdict.to_string().contains("Value(None)"), "{verdict}");
    // Two who both believed that it was not there.
    let twice =
        [op(1, 3, put(0, None, 7), Answered::Done), op(2, 4, put(0, None, 8), Answered::Done)];
    assert!(matches!(check(&Keys, &twice, MOST), Verdict::Not(_)));
    assert_eq!(check(&Keys, &twice, 1), Verdict::Undecided(1));
}

#[test]
fn what_was_not_answered_may_be_done_later_or_never() {
    let lost = Operation { input: put(0, None, 7), output: None, called: 1, returned: NEVER };
    let read = |called, value| op(called, called + 1, Asked::Get(0), Answered::Value(value));
    for (then, holds) in [
        (vec![read(2, None), read(4, Some(7))], true),
        (vec![read(2, None), read(4, None)], true),
        (vec![read(2, Some(7)), read(4, None)], false),
    ] {
        let history = [vec![lost.clone()], then].concat();
        assert_eq!(check(&Keys, &history, MOST).holds(), holds, "{history:?}");
    }
}

#[test]
fn objects_are_checked_one_by_one() {
    let object = |asked: &Asked| match asked {
        Asked::Get(key) => *key,
        Asked::Commit { changes, .. } => changes[0].0,
    };
    let mut all =
        vec![op(1, 2, put(0, None, 1), Answered::Done), op(1, 2, put(1, None, 2), Answered::Done)];
    assert!(check_each(&Keys, &all, object, MOST).holds());
    all.push(op(3, 4, Asked::Get(1), Answered::Value(None)));
    let verdict = check_each(&Keys, &all, object, MOST);
    assert!(verdict.to_string().starts_with("not linearizable: 1: "), "{verdict}");
}

#[test]
fn epochs_grow_by_one_and_who_is_refused_is_told_by_whom() {
    use lease::{Answered, Asked};
    let take = |node, epoch| Asked::Take { node, epoch };
    let good = [
        op(1, 2, take(1, None), Answered::Granted(1)),
        op(3, 4, take(2, None), Answered::Refused(Some(1))),
        op(5, 6, take(1, Some(1)), Answered::Granted(1)),
        op(7, 8, Asked::Release { node: 1, epoch: 1 }, Answered::Heard),
        op(9, 12, take(2, None), Answered::Granted(2)),
        op(10, 11, Asked::Release { node: 1, epoch: 1 }, Answered::Heard),
        op(13, 14, Asked::Transfer { node: 2, epoch: 2, to: 1 }, Answered::Granted(3)),
        op(15, 16, Asked::Look, Answered::Has(Some((1, 3)))),
    ];
    assert_eq!(check(&Lease, &good, MOST), Verdict::Linearizable);
    for (at, wrong) in [
        (1, Answered::Granted(1)),
        (2, Answered::Granted(3)),
        (4, Answered::Refused(Some(1))),
        (6, Answered::Granted(2)),
        (7, Answered::Has(Some((2, 2)))),
    ] {
        let mut bad = good.to_vec();
        bad[at].output = Some(wrong);
        assert!(matches!(check(&Lease, &bad, MOST), Verdict::Not(_)), "{at}");
    }
}

#[test]
fn a_history_is_as_it_was_recorded() {
    let history = History::default();
    let first = history.called(Asked::Get(0));
    let second = history.called(put(0, None, 1));
    first.answered(Answered::Value(None));
    history.called(Asked::Get(3)).not_done();
    drop(second);
    let all: Vec<Op<Keys>> = history.operations();
    assert_eq!(all.len(), 2);
    assert_eq!((all[0].called, all[0].returned), (1, 3));
    assert_eq!((all[1].called, all[1].returned, &all[1].output), (2, NEVER, &None));
}

/// Whether there is an order, by trying all of them.
fn tries_all<M: Model>(model: &M, state: &M::State, left: &[Op<M>]) -> bool {
    if left.iter().all(|op| op.output.is_none()) {
        return true;
    }
    (0..left.len()).any(|at| {
        let op = &left[at];
        let first = left.iter().all(|other| op.called <= other.returned);
        let mut rest = left.to_vec();
        rest.remove(at);
        let after = model.next(state, &op.input, op.output.as_ref());
        first && after.iter().any(|state| tries_all(model, state, &rest))
    })
}

/// A few clients who do what is drawn, on an object that does it between call and answer; some answers are lost, and
/// some are drawn instead.
fn drawn(chance: &mut Chance, wrong: u64) -> Vec<Op<Keys>> {
    let (mut state, mut all, mut written) = (Keys.start(), Vec::new(), 0);
    for n in 0..chance.within(3..8) {
        let (called, lasts) = (n * 10 + chance.within(0..5), chance.within(1..40));
        let key = chance.within(0..2) as u8;
        let input = if chance.one_in(2) {
            Asked::Get(key)
        } else {
            written += 1;
            let before = state.get(&key).copied().filter(|_| !chance.one_in(4));
            put(key, before, written)
        };
        let answers = [Answered::Done, Answered::Conflict, Answered::Value(None)];
        let mut answers = answers.to_vec();
        answers.extend((1..=written).map(|value| Answered::Value(Some(value))));
        let right = answers.iter().find_map(|answer| {
            Keys.next(&state, &input, Some(answer)).pop().map(|after| (answer.clone(), after))
        });
        let (mut output, after) = right.expect("there is an answer");
        state = after;
        if chance.per_mille(wrong) {
            output = answers[chance.within(0..answers.len() as u64) as usize].clone();
        }
        let lost = chance.one_in(6);
        all.push(Operation {
            input,
            output: (!lost).then_some(output),
            called,
            returned: if lost { NEVER } else { called + lasts },
        });
    }
    all
}

#[test]
fn it_finds_what_one_finds_who_tries_every_order() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..4000 {
        let chance = &mut Chance::new(seed, "history");
        let history = drawn(chance, 100);
        let found = check(&Keys, &history, MOST).holds();
        assert_eq!(found, tries_all(&Keys, &Keys.start(), &history), "{seed}: {history:?}");
        *if found { &mut good } else { &mut bad } += 1;
    }
    assert!(good > 500 && bad > 500, "{good} {bad}");
}

#[test]
fn what_was_done_right_is_found_right() {
    for seed in 0..1000 {
        let history = drawn(&mut Chance::new(seed, "right"), 0);
        // Whoever did them one after the other, in the order of their calls.
        let verdict = check(&Keys, &history, MOST);
        assert!(verdict.holds(), "{seed}: {verdict}");
    }
}
