//! Claims under any schedule: messages that are lost, late or repeated, nodes that stand still, start anew or go away,
//! placements that start anew. Whatever happens, afterwards all is as it should be, and nothing was done twice.

use proptest::prelude::*;

use super::*;

const NAMES: [&str; 3] = ["a", "b", "c"];
/// What is to be left free of a modelled node's disk, by the head-room of the default policy.
const LEFT: u64 = 100 * SIZE;
/// What there is room for, beyond that, on each.
const ROOM: u64 = 12;

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A node reports, and hears the answer.
    Report(usize),
    /// A node reports; the answer is lost.
    Unheard(usize),
    /// A node reports; the answer comes later.
    Late(usize),
    /// The last answer that was late comes.
    Arrives,
    /// The last report that was sent comes again.
    Again,
    /// A node does what it was told.
    Work(usize),
    /// A node's daemon starts anew.
    Restart(usize),
    /// Somebody on the node takes what is ready.
    Here(usize),
    /// Somebody claims: this is the number of the request, which may be an earlier one, and of the node that is wanted.
    Claim(u8, usize),
    Pass(Look),
    /// So many seconds go by.
    Later(u64),
    /// Placement starts anew.
    Anew,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = 0..NAMES.len();
    let step = prop_oneof![
        6 => node.clone().prop_map(Step::Report),
        1 => node.clone().prop_map(Step::Unheard),
        1 => node.clone().prop_map(Step::Late),
        1 => Just(Step::Arrives),
        1 => Just(Step::Again),
        5 => node.clone().prop_map(Step::Work),
        1 => node.clone().prop_map(Step::Restart),
        1 => node.clone().prop_map(Step::Here),
        4 => (0u8..16, node).prop_map(|(n, node)| Step::Claim(n, node)),
        4 => Just(Step::Pass(Look::News)),
        2 => Just(Step::Pass(Look::All)),
        2 => (1u64..40).prop_map(Step::Later),
        1 => Just(Step::Anew),
    ];
    prop::collection::vec(step, 1..120)
}

struct Run {
    grid: Grid,
    late: Option<(String, GoalState)>,
    sent: Option<(String, StatusReport)>,
    /// The requests that were taken.
    claimed: BTreeSet<String>,
    taken: usize,
}

impl Run {
    async fn begin() -> Self {
        let mut grid = Grid::new(&NAMES).await;
        grid.nodes.values_mut().for_each(|node| node.free = LEFT + ROOM * SIZE);
        grid.fleet.set_pool("p", SetPool { max: Some(1000), ..set(2, 4) }).await.unwrap();
        Self { grid, late: None, sent: None, claimed: BTreeSet::new(), taken: 0 }
    }

    fn node(&mut self, at: usize) -> &mut Node {
        self.grid.nodes.get_mut(NAMES[at]).expect("it is there")
    }

    async fn report(&mut self, at: usize) -> GoalState {
        let (name, report) = (NAMES[at].to_owned(), self.node(at).report());
        self.sent = Some((name.clone(), report.clone()));
        self.grid.fleet.report(&name, report, Duration::ZERO).await.unwrap().goal
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Report(at) => {
                let goal = self.report(at).await;
                self.node(at).take(goal);
            }
            Step::Unheard(at) => drop(self.report(at).await),
            Step::Late(at) => self.late = Some((NAMES[at].to_owned(), self.report(at).await)),
            Step::Arrives => {
                if let Some((name, goal)) = self.late.take() {
                    self.grid.nodes.get_mut(&name).expect("it is there").take(goal);
                }
            }
            Step::Again => {
                if let Some((name, report)) = self.sent.clone() {
                    // Of an earlier run it is refused.
                    let _ = self.grid.fleet.report(&name, report, Duration::ZERO).await;
                }
            }
            Step::Work(at) => self.node(at).work(),
            Step::Restart(at) => {
                let node = self.node(at);
                (node.run, node.number) = (node.run + 1, 0);
            }
            Step::Here(at) => {
                self.taken += 1;
                let request = format!("here {}", self.taken);
                let node = self.node(at);
                if let Some(volume) = node.ready.pop() {
                    node.given.insert(request, volume.id);
                }
            }
            Step::Claim(n, at) => {
                let asked = claim(n, Some(NAMES[usize::from(n) % NAMES.len()]));
                let asked = if at == 0 { claim(n, None) } else { asked };
                let request = asked.request.clone();
                match self.grid.fleet.claim("x", "p", asked, Duration::ZERO).await {
                    Ok(_) => drop(self.claimed.insert(request)),
                    // The same request for another node.
                    Err(error) => assert_eq!(error.kind(), Kind::Conflict, "{error}"),
                }
            }
            Step::Pass(look) => {
                self.grid.fleet.pass(&self.grid.lead, &mut self.grid.memory, look).await.unwrap()
            }
            Step::Later(seconds) => self.grid.later(seconds),
            Step::Anew => {
                let Fleet { state, clock, catalog, .. } = &*self.grid.fleet;
                let (state, clock, catalog) = (state.clone(), clock.clone(), Arc::clone(catalog));
                self.grid.fleet = Fleet::new(state, clock, catalog, Terms::default());
                self.grid.fleet.begin(Arc::clone(&self.grid.lead));
                self.grid.memory = Memory::default();
            }
        }
        for (name, node) in &self.grid.nodes {
            assert!(node.free >= LEFT, "{name} was told to build more than it has room for");
        }
    }

    /// When all is quiet again: all that was asked for has ended, once, and nobody waits for anything.
    async fn ends(&mut self) {
        for _ in 0..3 {
            self.grid.settle().await;
        }
        let mut given: BTreeMap<&String, &String> = BTreeMap::new();
        let mut volumes = BTreeSet::new();
        for (request, volume) in self.grid.nodes.values().flat_map(|node| &node.given) {
            assert_eq!(given.insert(request, volume), None, "two volumes of one request");
            assert!(volumes.insert(volume), "one volume of two requests");
        }
        for request in &self.claimed {
            let ended = self.grid.fleet.operation(request, Duration::ZERO).await.unwrap();
            assert_eq!(ended.state, OperationState::Done, "{ended:?}");
            let claimed: Claimed = serde_json::from_value(ended.result.unwrap()).unwrap();
            assert_eq!(given.remove(request), Some(&claimed.id), "as it was answered");
        }
        assert!(
            given.keys().all(|request| request.starts_with("here")),
            "given to nobody: {given:?}"
        );
        let open: usize = self.grid.nodes.values().map(|node| node.goal.items.len()).sum();
        let pool = self.grid.pool().await;
        assert_eq!((open, pool.building), (0, 0), "{}", pool.why);
        let (ready, counted) = (self.grid.ready(), pool.ready as usize);
        assert!(ready == counted && ready >= 2, "{ready} are ready, {counted} by its account");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_nothing_is_lost_or_done_twice(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut run = Run::begin().await;
            for step in steps {
                run.step(step).await;
            }
            run.ends().await;
        });
    }
}
