//! Pulls from a source that serves altered, swapped, stale, doubled or missing chunks: each is asked for
//! again until it comes right, and nothing wrong is ever written as good.

mod common;

use std::sync::Arc;
use std::time::Duration;

use blockio::EngineChoice;
use common::{Disk, Lie, Source, Until, options, run};
use forebay_node::pull::Watch;
use forebay_node::pull::ordered::pull_stream;
use image::Kind;
use tokio::task::LocalSet;

/// Lies that a second look mends: who holds the copy is told that it is bad.
const WRONG: [Lie; 5] = [Lie::Swapped, Lie::Stale, Lie::Forged, Lie::Altered, Lie::Short];

fn disk() -> Disk {
    Disk::new("abcdefghijklmnop..qrstuvw").cut(512)
}

#[tokio::test]
async fn what_comes_wrong_is_asked_for_again_as_a_repair() {
    for lie in WRONG {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        let source = Source::lying(&disk(), lie.clone(), Until::Repair);
        let done = run(&source, &path).await.unwrap_or_else(|e| panic!("{lie:?}: {e}"));
        disk().is_at(&path);
        assert!(done.repaired > 0, "{lie:?}");
        assert!(source.said.repairs() > 0, "{lie:?}");
    }
}

#[tokio::test]
async fn doubled_and_missing_chunks_cost_another_request_at_most() {
    for lie in [Lie::Twice, Lie::Unasked, Lie::LeftOut, Lie::Fails(Kind::Retry)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        let source = Source::lying(&disk(), lie.clone(), Until::Requests(1));
        run(&source, &path).await.unwrap_or_else(|e| panic!("{lie:?}: {e}"));
        disk().is_at(&path);
    }
}

#[tokio::test]
async fn a_source_that_lies_for_ever_is_named_and_nothing_gets_a_name() {
    let all = WRONG.into_iter().chain([Lie::LeftOut, Lie::Fails(Kind::Retry)]);
    let pulls = all.map(|lie| async move {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        // One chunk: nothing of it can come right.
        let disk = match lie {
            Lie::LeftOut | Lie::Fails(_) => disk(),
            _ => Disk::new("ab"),
        };
        let source = Source::lying(&disk, lie.clone(), Until::Ever);
        match run(&source, &path).await {
            // Half of what is left comes each time: it ends.
            Ok(_) if matches!(lie, Lie::LeftOut | Lie::Fails(_)) => disk.is_at(&path),
            Ok(_) => panic!("{lie:?}: taken for good"),
            Err(error) => {
                assert!(matches!(error.kind(), Kind::Corrupt | Kind::Retry), "{lie:?}: {error}");
                assert!(error.to_string().contains("section 0"), "{lie:?}: {error}");
                assert!(!path.exists(), "{lie:?}");
                assert!(source.said.requests() <= 6, "{lie:?}: it is not asked for ever");
            }
        }
    });
    futures::future::join_all(pulls).await;
}

#[tokio::test]
async fn a_busy_source_is_left_alone_for_as_long_as_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let busy = Lie::Fails(Kind::Busy(Duration::from_millis(120)));
    let source = Source::lying(&Disk::new("ab"), busy, Until::Requests(1));
    let early = tokio::time::timeout(Duration::from_millis(119), run(&source, &path));
    assert!(early.await.is_err(), "it came back early");
    assert_eq!(source.said.requests(), 1);
    // Its cores end with it, and let go of the target.
    while let Err(e) = run(&source, &path).await {
        assert_eq!(e.kind(), Kind::Conflict, "{e}");
        tokio::task::yield_now().await;
    }
    Disk::new("ab").is_at(&path);
}

#[tokio::test]
async fn what_no_retry_mends_ends_the_pull_at_once() {
    for kind in [Kind::Denied, Kind::Gone, Kind::Unsupported] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        let source = Source::lying(&Disk::new("ab"), Lie::Fails(kind), Until::Ever);
        let error = run(&source, &path).await.unwrap_err();
        assert_eq!(error.kind(), kind);
        assert_eq!(source.said.requests(), 1);
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn a_stream_never_carries_a_wrong_byte() {
    for lie in WRONG.into_iter().chain([Lie::LeftOut, Lie::Twice]) {
        let source = Source::lying(&disk(), lie.clone(), Until::Repair);
        let source = match lie {
            Lie::LeftOut | Lie::Twice => Source { lie: Some((lie, Until::Requests(1))), ..source },
            _ => source,
        };
        let (mut out, watch) = (Vec::new(), Arc::new(Watch::default()));
        let options = options(EngineChoice::Auto);
        let image = source.disk.image();
        let streamed = pull_stream(source, image, &mut out, &options, &watch);
        LocalSet::new().run_until(streamed).await.unwrap();
        assert!(out == disk().bytes);
    }
}
