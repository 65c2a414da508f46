//! Volumes that were given back count once, whatever becomes of reports and answers.

use super::*;

fn erased(n: u64) -> Released {
    Released {
        volume: format!("{n:032x}"),
        called: format!("v{n}"),
        pool: Some("web".into()),
        size: SIZE,
        freed: 100,
        method: "zeros".into(),
        passes: 1,
        read_back: 10,
        ended: NOW + n,
    }
}

#[tokio::test]
async fn lost_repeated_and_late_reports_count_once() {
    let mut grid = Grid::new(&["a", "b"]).await;
    let node = grid.nodes.get_mut("a").unwrap();
    node.erased = vec![erased(1)];
    let first = node.report();
    node.erased.push(erased(2));
    let second = node.report();
    let say = |report: &StatusReport| grid.fleet.report("a", report.clone(), Duration::ZERO);
    let said: Vec<_> = second.erased.iter().map(|one| one.volume.clone()).collect();
    // In another order, one of them twice. Who says it in a report that is old says it again in the next.
    for (report, recorded) in [(&second, said), (&first, vec![]), (&second, vec![])] {
        assert_eq!(say(report).await.unwrap().recorded, recorded);
    }
    // Its daemon was started anew before it read an answer.
    let node = grid.nodes.get_mut("a").unwrap();
    node.run += 1;
    node.erased.push(erased(3));
    let third = node.report();
    grid.fleet.report("a", third, Duration::ZERO).await.unwrap();
    let all = grid.fleet.released().await.unwrap();
    assert_eq!((all.volumes, all.bytes), (3, 300));
    let named: Vec<_> = all.released.iter().map(|one| one.released.called.as_str()).collect();
    assert_eq!(named, ["v3", "v2", "v1"], "the newest first");
    assert!(all.released.iter().all(|one| one.node == "a"));
    let stats = grid.fleet.stats(0);
    assert_eq!((stats.released_volumes, stats.released_bytes), (3, 300));
    // Another node's is another.
    let other =
        StatusReport { erased: vec![erased(1)], ..grid.nodes.get_mut("b").unwrap().report() };
    assert_eq!(grid.fleet.note_released("b", &other).await.unwrap(), [erased(1)]);
    assert!(grid.fleet.note_released("b", &other).await.unwrap().is_empty());
    assert_eq!(grid.fleet.released().await.unwrap().volumes, 4);
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_counts_nothing() {
    let mut grid = Grid::new(&["a"]).await;
    let bad = Released { volume: "x".into(), ..erased(1) };
    let long = Released { called: "x".repeat(300), ..erased(1) };
    let many: Vec<Released> = (0..17).map(erased).collect();
    for erased in [vec![bad], vec![long], many] {
        let report = StatusReport { erased, ..grid.nodes.get_mut("a").unwrap().report() };
        let refused = grid.fleet.report("a", report, Duration::ZERO).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Invalid);
    }
    assert_eq!(grid.fleet.released().await.unwrap().volumes, 0);
}
