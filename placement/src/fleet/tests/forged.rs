//! Reports that nobody can have sent, that come again, or that another daemon of the same name sends: nothing of them
//! counts.

use proptest::prelude::*;

use super::*;
use crate::state::keys::Listing;

/// What a fleet has come to know.
type Seen = (Listing, Vec<(String, u64, StatusReport)>);

impl Grid {
    /// All keys, and what counts of what nodes have said.
    async fn seen(&self) -> Seen {
        let listing = self.fleet.state.listing("").await.unwrap();
        let heard = self.fleet.hearing.with(|reign| {
            let all = reign.reports.iter();
            all.map(|(name, heard)| (name.clone(), heard.ticks, (*heard.report).clone())).collect()
        });
        (listing, heard.unwrap())
    }

    async fn says(&self, node: &str, report: StatusReport) -> image::Result<api::goal::Told> {
        self.fleet.report(node, report, Duration::ZERO).await
    }

    fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.get_mut(name).unwrap()
    }
}

fn lease(volume: &str, epoch: u64) -> HeldLease {
    HeldLease { volume: volume.into(), epoch }
}

fn erased(n: u8) -> Released {
    Released {
        volume: format!("{n:032x}"),
        called: format!("e{n}"),
        pool: None,
        size: SIZE,
        freed: 100,
        method: "zeros".into(),
        passes: 1,
        read_back: 0,
        ended: NOW,
    }
}

/// Something that is wrong with a report.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    /// A number from the end of time: all that follow would be older.
    Number,
    NoRun,
    LongRun,
    /// What is no id, where one should be.
    Ready,
    Volume,
    Item,
    Lease,
    Released,
    /// More than one report says.
    Erased,
    /// From more images than one node reads from.
    Reads,
    /// Of a daemon that another has followed.
    Earlier,
    /// The last one again, or an earlier one.
    Again,
    Before,
}

const ALL: [Wrong; 13] = [
    Wrong::Number,
    Wrong::NoRun,
    Wrong::LongRun,
    Wrong::Ready,
    Wrong::Volume,
    Wrong::Item,
    Wrong::Lease,
    Wrong::Released,
    Wrong::Erased,
    Wrong::Reads,
    Wrong::Earlier,
    Wrong::Again,
    Wrong::Before,
];

/// What a report says when it is wrong in this way: it says all that could do harm, too.
fn forge(wrong: Wrong, last: &StatusReport) -> StatusReport {
    let image = image::Digest([7; 32]);
    let kind = api::pool::VolumeKind { size: SIZE, sector: None, image: None, layout: None };
    let ready = |id: &str| ReadyVolume {
        id: id.into(),
        pool: "p".into(),
        kind: kind.clone(),
        state: "ready".into(),
    };
    let volume = |id: &str| NodeVolume {
        id: id.into(),
        called: "x".into(),
        size: SIZE,
        image: Some(image),
        attached: true,
    };
    let mut report = StatusReport {
        number: last.number + 1,
        ready: (0..9).map(|n| ready(&format!("{n:032x}"))).collect(),
        volumes: vec![volume(&format!("{:032x}", 77))],
        held: vec![HeldImage { image, size: SIZE, whole: true }],
        taken: BTreeMap::from([("p".into(), u64::MAX), ("none".into(), 9)]),
        erased: vec![erased(200)],
        released: vec![lease(VOLUME, 1), lease(VOLUME, 2)],
        ..last.clone()
    };
    match wrong {
        Wrong::Number => report.number = u64::MAX,
        Wrong::NoRun => report.run.clear(),
        Wrong::LongRun => report.run = "r".repeat(1000),
        Wrong::Ready => report.ready.push(ready("../x")),
        Wrong::Volume => report.volumes.push(volume("x")),
        Wrong::Item => {
            let (id, state) = ("..".into(), ItemState::Done);
            let (volume, error) = (None, None);
            let item = ItemStatus { id, state, volume, built: true, took_millis: None, error };
            report.items.push(item);
        }
        Wrong::Lease => report.leases.push(lease("leases/x", 1)),
        Wrong::Released => report.released.push(lease("", 1)),
        Wrong::Erased => report.erased = (0..200).map(erased).collect(),
        Wrong::Reads => {
            let of = |n: u64| image::Digest::of_chunk(&n.to_le_bytes());
            report.held =
                (0..9000).map(|n| HeldImage { image: of(n), size: SIZE, whole: true }).collect();
        }
        Wrong::Earlier => report.run = "0".into(),
        Wrong::Again => report.number = last.number,
        Wrong::Before => report.number = last.number.saturating_sub(3),
    }
    // What comes again has not let go of what it has by now; everything else of it may be as it likes.
    if matches!(wrong, Wrong::Again | Wrong::Before) {
        report.released.clear();
    }
    report
}

/// A fleet in which something goes on: pools are filled, `a` has a lease, and was started anew.
async fn busy() -> Grid {
    let mut grid = Grid::new(&["a", "b"]).await;
    for name in ["a", "b"] {
        grid.node(name).run = 0;
    }
    grid.round(&[]).await;
    for name in ["a", "b"] {
        (grid.node(name).run, grid.node(name).number) = (1, 3);
    }
    grid.fleet.set_pool("p", set(1, 2)).await.unwrap();
    grid.settle().await;
    grid.fleet.take_lease(VOLUME, &take("a")).await.unwrap();
    grid.node("a").leases = vec![lease(VOLUME, 1)];
    grid.round(&[]).await;
    grid
}

#[tokio::test]
async fn what_no_node_can_have_said_changes_nothing_at_all() {
    let mut grid = busy().await;
    let last = grid.node("a").report();
    grid.says("a", last.clone()).await.unwrap();
    let before = grid.seen().await;
    for wrong in ALL {
        grid.later(1);
        let answer = grid.says("a", forge(wrong, &last)).await;
        match wrong {
            Wrong::Again | Wrong::Before => {
                assert!(answer.unwrap().recorded.is_empty(), "{wrong:?}")
            }
            Wrong::Earlier => assert_eq!(answer.unwrap_err().kind(), Kind::Conflict, "{wrong:?}"),
            _ => assert_eq!(answer.unwrap_err().kind(), Kind::Invalid, "{wrong:?}"),
        }
        assert_eq!(grid.seen().await, before, "{wrong:?}");
    }
    // The node itself is heard as ever.
    let next = grid.node("a").report();
    grid.says("a", next).await.unwrap();
    assert_ne!(grid.seen().await.1, before.1);
}

#[tokio::test]
async fn what_was_erased_long_ago_is_not_counted_anew_when_it_is_said_again() {
    let mut grid = busy().await;
    let first = StatusReport { erased: vec![erased(0)], ..grid.node("a").report() };
    grid.says("a", first.clone()).await.unwrap();
    // More than are remembered.
    for n in 1..60 {
        let next = StatusReport { erased: vec![erased(n)], ..grid.node("a").report() };
        grid.says("a", next).await.unwrap();
    }
    assert!(grid.fleet.note_released("a", &first).await.unwrap().is_empty());
    grid.says("a", first).await.unwrap();
    assert_eq!(grid.fleet.released().await.unwrap().volumes, 60);
}

#[tokio::test]
async fn of_two_daemons_of_one_name_one_is_given_leases_and_says_what_is_read() {
    let grid = Grid::new(&["a"]).await;
    let report = |run: &str, number, image: u8| StatusReport {
        run: run.into(),
        held: vec![HeldImage { image: image::Digest([image; 32]), size: SIZE, whole: true }],
        number,
        ..Node::new().report()
    };
    let of = |run: &str| TakeLease { run: Some(run.into()), ..take("a") };
    grid.says("a", report("first", 1, 1)).await.unwrap();
    assert_eq!(grid.fleet.take_lease(VOLUME, &of("first")).await.unwrap().epoch, 1);
    // It is started, and has not reported yet.
    let other = "f".repeat(32);
    assert_eq!(grid.fleet.take_lease(&other, &of("second")).await.unwrap().epoch, 1);
    grid.says("a", report("second", 1, 2)).await.unwrap();
    for number in 2..5 {
        let refused = grid.says("a", report("first", number, 1)).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Conflict);
        assert!(refused.message().contains("end one of them"), "{refused}");
        let refused = grid.fleet.take_lease(VOLUME, &of("first")).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Conflict, "{refused}");
    }
    let leases = grid.fleet.leases().await.unwrap();
    assert_eq!(leases.leases.iter().map(|one| one.epoch).collect::<Vec<_>>(), [1, 1], "none anew");
    assert_eq!(leases.reads.iter().map(|one| one.image.0[0]).collect::<Vec<_>>(), [2]);
    assert_eq!(grid.fleet.nodes().await.unwrap().nodes.len(), 1);
    // The one that is left goes on.
    grid.later(AWAY);
    grid.says("a", report("first", 9, 1)).await.unwrap();
    assert_eq!(grid.fleet.take_lease(VOLUME, &of("first")).await.unwrap().epoch, 2);
}

#[tokio::test]
async fn what_a_node_says_falsely_of_itself_is_its_own_loss() {
    let mut grid = busy().await;
    let theirs = grid.node("b").ready.clone();
    assert!(!theirs.is_empty());
    let of_no_pool = ReadyVolume { id: "e".repeat(32), pool: "none".into(), ..theirs[0].clone() };
    let twice = vec![grid.node("a").ready[0].clone(); 5];
    let ready = [theirs.clone(), vec![of_no_pool], twice].concat();
    // A lease that was never given, one of another, and a goal of a grid that is to come.
    let leases = vec![lease(&"c".repeat(32), 9), lease(VOLUME, 9), lease(VOLUME, 1)];
    let given_back = vec![lease(&"d".repeat(32), 1), lease(VOLUME, 9)];
    let (released, generation) = (given_back, 99);
    let lie = StatusReport { ready, leases, released, generation, ..grid.node("a").report() };
    let told = grid.says("a", lie).await.unwrap();
    assert_eq!(told.lost, ["c".repeat(32), VOLUME.to_owned()]);
    assert_eq!(told.goal.generation, 0);
    let held = grid.fleet.leases().await.unwrap().leases;
    assert_eq!((held.len(), held[0].epoch, held[0].holder.as_deref()), (1, 1, Some("a")));
    grid.fleet.pass(&grid.lead, &mut grid.memory, Look::All).await.unwrap();
    assert_eq!(grid.fleet.pools().await.unwrap().pools.len(), 1);
    let on_a = grid.pool().await.nodes.into_iter().find(|on| on.node == "a").unwrap();
    assert_eq!(on_a.ready, 2, "what is named twice counts once: its own, and one that it has not");
    // Whoever claims there is served by who has one.
    for n in 1..3 {
        grid.fleet.claim("x", "p", claim(n, Some("a")), Duration::ZERO).await.unwrap();
    }
    grid.settle().await;
    let given: Vec<&String> = grid.nodes.values().flat_map(|node| node.given.values()).collect();
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 2, "{given:?}");
    assert!(
        grid.fleet
            .operations()
            .await
            .unwrap()
            .operations
            .iter()
            .all(|one| one.state == OperationState::Done)
    );
}

/// What happens next: a node reports and does what it was told, or something comes that is wrong.
#[derive(Clone, Copy, Debug)]
enum Step {
    Report(bool),
    Claim(u8),
    Pass,
    Forged(bool, Wrong),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => any::<bool>().prop_map(Step::Report),
        1 => (0u8..9).prop_map(Step::Claim),
        2 => Just(Step::Pass),
        4 => (any::<bool>(), prop::sample::select(&ALL[..])).prop_map(|(n, w)| Step::Forged(n, w)),
    ];
    prop::collection::vec(step, 1..60)
}

async fn ends(steps: &[Step], forged: bool) -> Seen {
    let mut grid = busy().await;
    let mut last = BTreeMap::new();
    for name in ["a", "b"] {
        last.insert(name, grid.node(name).report());
        grid.says(name, last[name].clone()).await.unwrap();
    }
    let name = |second: bool| if second { "b" } else { "a" };
    for step in steps {
        match *step {
            Step::Report(n) => {
                let report = grid.node(name(n)).report();
                last.insert(name(n), report.clone());
                let told = grid.says(name(n), report).await.unwrap();
                grid.node(name(n)).take(told.goal);
                grid.node(name(n)).work();
            }
            Step::Claim(n) => {
                grid.fleet.claim("x", "p", claim(n, None), Duration::ZERO).await.unwrap();
            }
            Step::Pass => {
                grid.fleet.pass(&grid.lead, &mut grid.memory, Look::All).await.unwrap();
            }
            Step::Forged(n, wrong) if forged => {
                let _ = grid.says(name(n), forge(wrong, &last[name(n)])).await;
            }
            Step::Forged(..) => {}
        }
    }
    grid.settle().await;
    grid.seen().await
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever comes in between.
    #[test]
    fn all_ends_as_it_would_without_what_was_forged(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (with, without) = runtime.block_on(async { (ends(&steps, true).await, ends(&steps, false).await) });
        prop_assert_eq!(with, without);
    }
}
