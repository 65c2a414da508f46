//! Any reads of two images that share chunks, with room for few of them.

use std::cell::Cell;

use image::{ChunkSink, Domain, Encoder, Place, ReadContext};
use proptest::prelude::*;

use super::*;

const LOG2: u8 = 14;
const CHUNK: usize = 1 << LOG2;

/// An image in memory, by its chunks: equal numbers are equal bytes, 0 is zeros.
struct Disk {
    bytes: Vec<u8>,
    table: Arc<SectionTable>,
    manifest: Arc<Manifest>,
    sent: Rc<Cell<u32>>,
}

impl Disk {
    fn new(chunks: &[u8], cut: usize, sent: &Rc<Cell<u32>>) -> Self {
        let mut bytes: Vec<u8> = chunks.iter().flat_map(|n| [*n; CHUNK]).collect();
        bytes.truncate(bytes.len() - cut);
        let digest = |plain: &[u8]| match plain[0] {
            0 => Digest::ZERO,
            _ => Digest::of_chunk(plain),
        };
        let digests = bytes.chunks(CHUNK).map(digest).collect();
        let table = SectionTable::new(Domain::PUBLIC, digests);
        let geometry = Geometry::new(bytes.len() as u64, 512, LOG2).unwrap();
        let manifest = Manifest::new(Domain::PUBLIC, geometry, vec![table.digest()]);
        let (table, manifest) = (Arc::new(table), Arc::new(manifest));
        Self { bytes, table, manifest, sent: Rc::clone(sent) }
    }
}

impl ChunkSource for Disk {
    async fn manifest(&self, _: &ReadContext, _: &Digest) -> Result<Arc<Manifest>> {
        Ok(Arc::clone(&self.manifest))
    }

    async fn section_table(
        &self,
        _: &ReadContext,
        _: &Digest,
        _: u32,
    ) -> Result<Arc<SectionTable>> {
        Ok(Arc::clone(&self.table))
    }

    async fn chunks<S: ChunkSink>(&self, _: &ReadContext, at: &Place, sink: &mut S) -> Result<()> {
        for chunk in at.chunks.iter() {
            let plain = self.bytes.chunks(CHUNK).nth(chunk as usize).expect("a chunk of the disk");
            let digest = Digest::of_chunk(plain);
            self.sent.set(self.sent.get() + 1);
            sink.chunk(chunk, Encoder::new()?.encode(Domain::PUBLIC, digest, plain)).await?;
        }
        Ok(())
    }
}

/// Both on one desk with room for so many chunks.
fn views(disks: [Disk; 2], slots: usize) -> [View<Disk>; 2] {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let desk = Rc::new(Desk::new(Arc::default(), runtime).unwrap());
    desk.make_room(CHUNK, slots * CHUNK).unwrap();
    disks.map(|disk| {
        let image = disk.manifest.identity();
        View::open(Rc::clone(&desk), disk, image, 0).unwrap()
    })
}

#[test]
fn what_is_there_is_not_fetched_again_whichever_image_has_it() {
    let sent = Rc::default();
    let disks = [Disk::new(&[1, 0, 2], 512, &sent), Disk::new(&[3, 1, 0], 0, &sent)];
    let [one, two] = views(disks, 8);
    let mut all = vec![0; one.size() as usize];
    one.read_at(0, &mut all).unwrap();
    assert!(all == one.source.bytes && sent.get() == 2);
    two.read_at(CHUNK as u64, &mut all[..2 * CHUNK]).unwrap();
    assert_eq!(sent.get(), 2, "zeros, and what the other has");
    let behind = one.read_at(one.size() - 1, &mut [0; 2]).unwrap_err();
    assert_eq!((behind.kind(), one.sector()), (Kind::Corrupt, 512));
    one.read_at(one.size(), &mut []).unwrap();
    one.desk.pace.end();
    assert_eq!(one.read_at(0, &mut [0]).unwrap_err().kind(), Kind::Cancelled);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn any_reads_are_right_however_little_is_kept(
        chunks in proptest::array::uniform2(proptest::collection::vec(0u8..6, 1..12)),
        cut in 0usize..CHUNK / 512,
        reads in proptest::collection::vec((any::<bool>(), 0usize..12 * CHUNK, 0usize..3 * CHUNK), 1..40),
        slots in 3usize..6,
    ) {
        let sent = Rc::default();
        let disks = [Disk::new(&chunks[0], cut * 512, &sent), Disk::new(&chunks[1], 0, &sent)];
        let views = views(disks, slots);
        for (which, at, len) in reads {
            let view = &views[usize::from(which)];
            let bytes = &view.source.bytes;
            let at = at.min(bytes.len());
            let mut into = vec![9; len.min(bytes.len() - at)];
            view.read_at(at as u64, &mut into).unwrap();
            prop_assert!(into == bytes[at..at + into.len()]);
            prop_assert!(view.desk.kept.borrow().chunks.len() < slots);
        }
    }
}
