//! A bit that flips after the checksums were made: on the way to the receiver, and between it and the disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use image::seam::{ImagePlan, ImageSession};
use image::{
    ChunkSet, Digest, Frame, ImageSink, Kind, Manifest, ReadContext, Result, SectionSink,
    SectionTable,
};
use object_store::path::Path;
use store::testing::TestStore;
use store::{Receiver, Store};
use tokio::runtime::Handle;

use crate::content::{Content, SECTORS};
use crate::machines::{Machines, Node, images, on_one_core, open_store, receiver, store_options};

/// So many flips are still to come.
#[derive(Clone)]
struct Flips(Arc<AtomicUsize>);

impl Flips {
    fn of(times: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(times)))
    }

    fn next(&self) -> bool {
        self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }

    /// A store on a medium that changes a bit of a pack before that is read back.
    async fn store(&self, objects: &TestStore) -> Store {
        let (flips, objects_there, handle) = (self.clone(), objects.clone(), Handle::current());
        let mut options = store_options(5);
        options.drop_cache = Some(Arc::new(move |id| {
            if flips.next() {
                let key = Path::from(format!("packs/{id}"));
                handle.block_on(objects_there.flip(&key, 90, 3));
            }
        }));
        open_store(objects, options).await
    }
}

/// Between a capture and its receiver.
struct Wire<T>(T, Flips);

impl<T: ImageSink> ImageSink for Wire<T> {
    type Session = Wire<T::Session>;

    async fn open(&self, ctx: &ReadContext, plan: &ImagePlan) -> Result<Self::Session> {
        Ok(Wire(self.0.open(ctx, plan).await?, self.1.clone()))
    }
}

impl<T: ImageSession> ImageSession for Wire<T> {
    type Section = Wire<T::Section>;

    async fn offer(&self, section: u32, table: &SectionTable) -> Result<(ChunkSet, Self::Section)> {
        let (wanted, sink) = self.0.offer(section, table).await?;
        Ok((wanted, Wire(sink, self.1.clone())))
    }

    async fn commit(&self, manifest: &Manifest) -> Result<Digest> {
        self.0.commit(manifest).await
    }
}

impl<T: SectionSink> SectionSink for Wire<T> {
    async fn chunk(&mut self, chunk: u32, frame: Frame) -> Result<()> {
        let mut bytes = frame.bytes().to_vec();
        if self.1.next() {
            *bytes.last_mut().unwrap() ^= 16;
        }
        self.0.chunk(chunk, Frame::parse(bytes.into())?).await
    }

    async fn seal(self) -> Result<()> {
        self.0.seal().await
    }
}

/// So many that a capture comes to nothing.
const ALL: usize = 1000;

/// Captures a volume that has changed all over while some bits flip.
fn flipping(sink: impl AsyncFn(&Machines, Flips) -> (Store, Wire<Receiver>)) {
    for times in [1, 2, ALL] {
        on_one_core(async {
            let machines = Machines::new().await;
            let node = Node::open(&machines.disk.fs()).unwrap();
            let mut wanted = Content::original();
            for (tag, sector) in (1..).zip((0..SECTORS).step_by(100)) {
                node.write(sector..sector + 1, tag).await.unwrap();
                wanted.0[sector] = tag;
            }
            let flips = Flips::of(times);
            let (store, wire) = sink(&machines, flips.clone()).await;
            let captured = node.capture(&store, wire, async || {}).await;
            let old = Content::original().image();
            if times == ALL {
                let error = captured.unwrap_err();
                assert_eq!(error.kind(), Kind::Corrupt, "{error}");
                assert!(error.message().contains("section"), "{error}");
                assert_eq!((images(&store).await, node.since()), ([old].into(), old));
                flips.0.store(0, Ordering::SeqCst);
                let again = node.capture(&store, receiver(&store), async || {}).await;
                assert_eq!(again.unwrap().image, wanted.image());
            } else {
                assert_eq!(captured.unwrap().image, wanted.image());
            }
            let fresh = open_store(&machines.objects, store_options(6)).await;
            assert_eq!(images(&fresh).await, [old, wanted.image()].into());
            let report = fresh.verify(&wanted.image(), true).await.unwrap();
            assert_eq!((report.bad, report.repaired), (Vec::new(), Vec::new()));
        });
    }
}

#[test]
fn on_the_way_it_is_found_and_the_section_is_sent_again() {
    flipping(async |machines, flips| {
        let store = open_store(&machines.objects, store_options(5)).await;
        let wire = Wire(receiver(&store), flips);
        (store, wire)
    });
}

#[test]
fn in_what_the_receiver_writes_it_is_found_and_the_section_is_sent_again() {
    flipping(async |machines, flips| {
        let store = flips.store(&machines.objects).await;
        let wire = Wire(receiver(&store), Flips::of(0));
        (store, wire)
    });
}
