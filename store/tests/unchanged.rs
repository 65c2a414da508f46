//! What of an image is the same in another, without reading a chunk.

mod common;

use common::*;
use image::{Digest, Kind};

#[tokio::test]
async fn chunks_are_compared_by_their_digests_and_places() {
    let bench = Bench::new().await;
    // Sections: 0 differs, 1 is the same, 2 became zeros, 3 is new.
    let size = 4 * 64 * MIB;
    let chunks = [(0, 0, 1), (0, 1, 3), (0, 5, 5), (1, 9, 7), (2, 0, 9)];
    let old = Disk::new(size - 64 * MIB, &chunks);
    let new = Disk::new(size, &[(0, 0, 1), (0, 1, 11), (0, 6, 5), (1, 9, 7), (3, 0, 9)]);
    for disk in [&old, &new] {
        disk.push(&bench.receiver(), None).await.unwrap();
    }
    let (first, second, third) = (4096, 2 * 4096, 3 * 4096);
    let asked = vec![third, second, first + 9, 6, 5, 4, 1, 0, first + 9000, u64::MAX];
    let same = bench.store.unchanged(&new.image(), &old.image(), asked.clone()).await.unwrap();
    assert_eq!(same, [0, first + 9]);
    let all = bench.store.unchanged(&new.image(), &new.image(), asked).await.unwrap();
    assert_eq!(
        all,
        [0, 1, 4, 5, 6, first + 9, third, first + 9000],
        "sections that are the same are not read"
    );
    let nobody = Digest::of_chunk(b"no image");
    let gone = bench.store.unchanged(&new.image(), &nobody, vec![0]).await.unwrap_err();
    assert_eq!(gone.kind(), Kind::Gone);
}
