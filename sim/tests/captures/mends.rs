//! What rots in the store after it was read back, and who gives it back.

use image::Kind;
use store::testing::TestStore;

use crate::content::Content;
use crate::machines::{Machines, images, on_one_core, open_store, receiver, store_options};

/// Turns over one bit of the first frame of the first pack.
async fn rot(objects: &TestStore) {
    objects.flip(&objects.keys_of("packs").await[0], 90, 3).await;
}

#[test]
fn it_is_named_and_taken_from_who_has_it_and_from_nobody_who_has_it_wrong() {
    on_one_core(async {
        let image = Content::original().image();
        let Machines { objects, .. } = Machines::new().await;
        let copy =
            objects.after_crash(objects.events(), store::testing::Unacknowledged::Lost).await;
        let store = open_store(&objects, store_options(2)).await;
        rot(&objects).await;
        let found = store.verify(&image, true).await.unwrap();
        assert_eq!(found.bad.len(), 1);
        assert!(found.bad[0].contains("section ") && found.bad[0].contains(" chunk "), "{found:?}");
        // Another who has the same wrong.
        rot(&copy).await;
        let other = open_store(&copy, store_options(3)).await;
        let mended = capture::mend(&image, &other, &receiver(&store)).await.unwrap();
        assert_eq!((mended.chunks, mended.failed.len()), (0, 1));
        assert_eq!(mended.failed[0].kind(), Kind::Corrupt);
        assert_eq!(store.verify(&image, true).await.unwrap().bad, found.bad);
        // One who has it.
        rot(&copy).await;
        let other = open_store(&copy, store_options(4)).await;
        let mended = capture::mend(&image, &other, &receiver(&store)).await.unwrap();
        assert_eq!((mended.chunks, mended.failed.len()), (1, 0));
        for seed in [5, 6] {
            let fresh = open_store(&objects, store_options(seed)).await;
            let report = fresh.verify(&image, true).await.unwrap();
            assert_eq!((report.bad, report.repaired), (Vec::new(), Vec::new()));
            assert_eq!(images(&fresh).await, [image].into());
        }
        // All that is lost of it, too.
        let manifest = &objects.keys_of("manifests").await[0];
        objects.truncate(manifest, 9).await;
        let store = open_store(&objects, store_options(7)).await;
        capture::mend(&image, &other, &receiver(&store)).await.unwrap();
        assert_eq!(images(&store).await, [image].into());
    });
}
