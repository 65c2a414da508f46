//! A store that runs full in the middle of a capture.

use image::Kind;

use crate::content::{Content, SECTORS, chunks};
use crate::machines::{Machines, Node, images, on_one_core, open_store, receiver, store_options};

#[test]
fn nothing_is_lost_and_when_there_is_room_only_the_rest_is_sent() {
    on_one_core(async {
        let (mut failed, mut spared) = (0, 0);
        for room in (100..120_000).step_by(9000) {
            let machines = Machines::new().await;
            let store = open_store(&machines.objects, store_options(5)).await;
            let node = Node::open(&machines.disk.fs()).unwrap();
            let mut wanted = Content::original();
            for (tag, sector) in (1..).zip((0..SECTORS).step_by(64)) {
                node.write(sector..sector + 1, tag).await.unwrap();
                wanted.0[sector] = tag;
            }
            let mut used = 0;
            for key in machines.objects.keys().await {
                used += machines.objects.bytes(&key).await.len() as u64;
            }
            machines.objects.limit(used + room);
            let captured = node.capture(&store, receiver(&store), async || {}).await;
            machines.objects.heal();
            let Err(error) = captured else { continue };
            assert_eq!(error.kind(), Kind::Full, "{error}");
            assert!(error.message().contains("the store is full"), "{error}");
            failed += 1;
            let old = Content::original().image();
            assert_eq!((images(&store).await, node.since()), ([old].into(), old));
            let again = node.capture(&store, receiver(&store), async || {}).await.unwrap();
            assert_eq!(again.image, wanted.image(), "something has changed unnoticed");
            spared += u64::from(again.stats.sent_chunks < chunks().count() as u64);
        }
        assert!(failed > 3 && spared > 0, "{failed}, {spared}");
    });
}
