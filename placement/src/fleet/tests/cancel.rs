//! Claims that are ended, whatever their nodes have done by then.

use api::operation::Operation;
use proptest::prelude::*;

use super::*;

const ME: Option<&str> = Some("x");

impl Grid {
    async fn cancel(&self, n: u8) -> Operation {
        let id = claim(n, None).request;
        self.fleet.cancel(&id, ME, Duration::ZERO).await.unwrap()
    }

    /// Who has volumes that were handed out for a request.
    fn given(&self, n: u8) -> usize {
        let id = claim(n, None).request;
        self.nodes.values().filter(|node| node.given.contains_key(&id)).count()
    }

    async fn now(&self, n: u8) -> OperationState {
        let id = claim(n, None).request;
        self.fleet.operation(&id, Duration::ZERO).await.unwrap().state
    }
}

#[tokio::test]
async fn a_claim_that_no_node_was_told_of_ends_at_once_and_stays_ended() {
    let mut grid = Grid::new(&["a"]).await;
    grid.fleet.set_pool("p", set(0, 0)).await.unwrap();
    let asked = NewClaim { only: true, ..claim(1, Some("b")) };
    grid.fleet.claim("x", "p", asked.clone(), Duration::ZERO).await.unwrap();
    let id = &asked.request;
    let other = grid.fleet.cancel(id, Some("y"), Duration::ZERO).await.unwrap_err();
    assert_eq!(other.kind(), Kind::Denied);
    assert_eq!(grid.cancel(1).await.state, OperationState::Cancelled);
    assert_eq!(grid.cancel(1).await.state, OperationState::Cancelled);
    grid.settle().await;
    assert_eq!((grid.now(1).await, grid.given(1)), (OperationState::Cancelled, 0));
    let again = grid.fleet.claim("x", "p", asked, Duration::ZERO).await.unwrap();
    assert_eq!(again.state, OperationState::Cancelled, "the same request is the same operation");
    let gone = grid.fleet.cancel(&"0".repeat(32), ME, Duration::ZERO).await.unwrap_err();
    assert_eq!(gone.kind(), Kind::Gone);
}

#[tokio::test]
async fn a_node_that_was_told_says_whether_it_has_done_it() {
    let mut grid = Grid::new(&["a"]).await;
    grid.fleet.set_pool("p", set(2, 2)).await.unwrap();
    grid.settle().await;
    for n in [1, 2] {
        grid.fleet.claim("x", "p", claim(n, None), Duration::ZERO).await.unwrap();
    }
    grid.round(&[]).await;
    // It hands out what it was told to, and nobody has heard that yet.
    grid.work();
    assert_eq!(grid.cancel(1).await.state, OperationState::Running);
    grid.fleet.claim("x", "p", claim(3, None), Duration::ZERO).await.unwrap();
    assert_eq!(grid.cancel(3).await.state, OperationState::Running);
    grid.settle().await;
    let states = [grid.now(1).await, grid.now(2).await, grid.now(3).await];
    use OperationState::{Cancelled, Done};
    assert_eq!(states, [Done, Done, Cancelled]);
    assert_eq!((grid.given(1), grid.given(2), grid.given(3)), (1, 1, 0));
    assert!(grid.nodes["a"].goal.items.is_empty());
    assert_eq!(grid.cancel(1).await.state, Done, "it stays as it was");
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    Claim(u8),
    Cancel(u8),
    /// A node reports and is told, or only reports: the answer is lost.
    Heard(bool, bool),
    Work(bool),
    Pass,
    /// What was ready at a node goes.
    Taken(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u8..6).prop_map(Step::Claim),
        3 => (0u8..6).prop_map(Step::Cancel),
        4 => any::<(bool, bool)>().prop_map(|(which, told)| Step::Heard(which, told)),
        3 => any::<bool>().prop_map(Step::Work),
        3 => Just(Step::Pass),
        1 => any::<bool>().prop_map(Step::Taken),
    ]
}

fn name(which: bool) -> &'static str {
    if which { "a" } else { "b" }
}

impl Grid {
    async fn step(&mut self, step: Step) {
        match step {
            Step::Claim(n) => {
                self.fleet.claim("x", "p", claim(n, None), Duration::ZERO).await.unwrap();
            }
            Step::Cancel(n) => {
                let id = claim(n, None).request;
                let _ = self.fleet.cancel(&id, ME, Duration::ZERO).await;
            }
            Step::Heard(which, told) => {
                let node = self.nodes.get_mut(name(which)).unwrap();
                let answer = self.fleet.report(name(which), node.report(), Duration::ZERO).await;
                if told {
                    node.take(answer.unwrap().goal);
                }
            }
            Step::Work(which) => self.nodes.get_mut(name(which)).unwrap().work(),
            Step::Pass => self.fleet.pass(&self.lead, &mut self.memory, Look::All).await.unwrap(),
            Step::Taken(which) => self.nodes.get_mut(name(which)).unwrap().ready.clear(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    /// Under any schedule: what is cancelled has given nobody a volume, what is done has given one, and nothing of either
    /// is left to be done.
    #[test]
    fn a_claim_is_done_or_cancelled_and_never_both(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut grid = Grid::new(&["a", "b"]).await;
            grid.fleet.set_pool("p", set(1, 3)).await.unwrap();
            grid.settle().await;
            for one in steps {
                grid.step(one).await;
            }
            grid.settle().await;
            // Some wait for a node that has not been tried.
            for n in 0..6 {
                grid.step(Step::Cancel(n)).await;
            }
            grid.settle().await;
            for operation in grid.fleet.operations().await.unwrap().operations {
                let n: u8 = operation.id[30..].parse().unwrap();
                let expected = match operation.state {
                    OperationState::Done => 1,
                    OperationState::Cancelled | OperationState::Failed => 0,
                    state => panic!("{state:?} at the end: {operation:?}"),
                };
                assert_eq!(grid.given(n), expected, "{operation:?}");
            }
            assert!(grid.nodes.values().all(|node| node.goal.items.is_empty()));
        });
    }
}
