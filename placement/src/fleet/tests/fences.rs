//! What was captured under a lease that is over moves no ref.

use api::catalog::{Expect, MoveRef};

use super::*;

#[tokio::test]
async fn a_capture_begun_before_the_lease_went_elsewhere_moves_no_ref() {
    let grid = Grid::new(&[]).await;
    let (before, after) = (grid.archive.add_image("before"), grid.archive.add_image("after"));
    let under = |image, epoch| {
        let fence = Some(HeldLease { volume: VOLUME.into(), epoch });
        MoveRef { image, expect: Expect::Anything, fence }
    };
    let catalog = &grid.fleet.catalog;
    // Nobody has ever had it: there is nothing to be behind of.
    catalog.move_ref("web:1", &under(before, 1)).await.unwrap();
    let first = grid.fleet.take_lease(VOLUME, &take("a")).await.unwrap().epoch;
    // The same node, which has stopped writing and begun again.
    let again = grid.fleet.take_lease(VOLUME, &take("a")).await.unwrap().epoch;
    assert!(again > first);
    catalog.move_ref("web:1", &under(before, first)).await.unwrap();

    let broken = BreakLease { why: "a test".into(), at_once: true };
    grid.fleet.break_lease(VOLUME, "admin", &broken).await.unwrap();
    let other = grid.fleet.take_lease(VOLUME, &take("b")).await.unwrap().epoch;
    for epoch in [first, again] {
        let refused = catalog.move_ref("web:1", &under(after, epoch)).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Denied, "{refused}");
        assert!(refused.message().contains("node b has had that"), "{refused}");
    }
    assert_eq!(catalog.info("web:1").await.unwrap().image, before);
    catalog.move_ref("web:1", &under(after, other)).await.unwrap();
    // Back at the first node: what it captured before that is as late as ever.
    grid.fleet.break_lease(VOLUME, "admin", &broken).await.unwrap();
    grid.fleet.take_lease(VOLUME, &take("a")).await.unwrap();
    assert!(catalog.move_ref("web:1", &under(before, again)).await.is_err());
    assert!(catalog.move_ref("web:1", &under(before, other)).await.is_err());
    let bad =
        MoveRef { fence: Some(HeldLease { volume: "../x".into(), epoch: 9 }), ..under(after, 9) };
    assert_eq!(catalog.move_ref("web:1", &bad).await.unwrap_err().kind(), Kind::Invalid);
}
