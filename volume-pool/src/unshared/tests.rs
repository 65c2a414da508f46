use blockio::fake::MemFs;
use image::{Digest, Domain, Geometry, Manifest};
use proptest::prelude::*;

use super::*;
use crate::{IdentityBlocks, NewVolume};

/// Of a model's files, in bytes.
const BLOCK: u64 = 4096;

/// Where one block of a model's file lies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Block {
    Hole,
    /// Here, and whether the file system says that others have it, too.
    At(u64, bool),
    Odd,
}

/// As a file system tells of a file, cut where `cuts` says: neighbours may be told together or apart.
fn told(file: &[Block], cuts: &[bool]) -> Vec<Placed> {
    let mut all: Vec<Placed> = Vec::new();
    for ((number, block), cut) in (0..).zip(file).zip(cuts) {
        let bytes = number * BLOCK..(number + 1) * BLOCK;
        let (place, shared) = match *block {
            Block::Hole => continue,
            Block::At(place, shared) => (Some(place * BLOCK), shared),
            Block::Odd => (None, true),
        };
        match all.last_mut() {
            Some(last)
                if !cut
                    && last.bytes.end == bytes.start
                    && last.shared == shared
                    && last.place.map(|at| at + (bytes.start - last.bytes.start)) == place =>
            {
                last.bytes.end = bytes.end;
            }
            _ => all.push(Placed { bytes, place, shared }),
        }
    }
    all
}

fn runs_of(placed: Vec<Placed>, is_base: bool) -> Vec<Run> {
    runs(placed.into_iter().map(Ok), is_base).unwrap()
}

fn block() -> impl Strategy<Value = Block> {
    prop_oneof![
        2 => Just(Block::Hole),
        1 => Just(Block::Odd),
        6 => (0u64..4, any::<bool>()).prop_map(|(place, shared)| Block::At(place, shared)),
    ]
}

/// Files that have much in common, and how they are told.
fn files() -> impl Strategy<Value = Vec<([Block; 2], [bool; 3])>> {
    let pair = (block(), block(), 0..3).prop_map(|(base, other, alike)| match (alike, base) {
        (0, _) => [base, other],
        (_, Block::At(place, _)) => [base, Block::At(place, true)],
        _ => [base, base],
    });
    prop::collection::vec((pair, any::<[bool; 3]>()), 1..48)
}

proptest! {
    #[test]
    fn only_what_lies_at_the_same_place_or_nowhere_in_both_is_the_same(files in files(), moved in any::<prop::sample::Index>()) {
        // Places rise with the blocks, so that they can be told together.
        let of = |which: usize| -> Vec<Block> {
            let of = |(at, (pair, _)): (usize, &([Block; 2], _))| match pair[which] {
                Block::At(place, shared) => Block::At(place * 100 + at as u64, shared),
                other => other,
            };
            files.iter().enumerate().map(of).collect()
        };
        let cuts = |which: usize| files.iter().map(|(_, cuts)| cuts[which]).collect::<Vec<_>>();
        let (base, ours) = (of(0), of(1));
        let section = 0..files.len() as u64 * BLOCK;
        let before = runs_of(told(&base, &cuts(0)), true);
        let after = runs_of(told(&base, &cuts(1)), true);
        let volume = runs_of(told(&ours, &cuts(2)), false);
        let changed = apart(&section, [&before, &after], &volume);
        for (number, (base, ours)) in (0..).zip(base.iter().zip(&ours)) {
            let is_same = match (base, ours) {
                (Block::Hole, Block::Hole) => true,
                (Block::At(this, _), Block::At(that, true)) => this == that,
                _ => false,
            };
            let told = changed.iter().any(|range| range.contains(&(number * BLOCK)));
            prop_assert_eq!(told, !is_same, "block {} of {:?}", number, changed);
        }
        prop_assert!(changed.windows(2).all(|pair| pair[0].end < pair[1].start));

        // The base was moved meanwhile.
        let mut elsewhere = base.clone();
        let moved = moved.index(base.len());
        elsewhere[moved] = Block::At(77_777, true);
        let after = runs_of(told(&elsewhere, &cuts(1)), true);
        prop_assert_eq!(apart(&section, [&before, &after], &volume), vec![section]);
    }
}

#[test]
fn a_part_of_an_extent_is_compared_by_where_it_lies() {
    let run = |bytes: Range<u64>, place| Run { bytes, place };
    let base = [run(0..40, Some(1000)), run(50..60, Some(2000))];
    // Cut out of it, beyond it, shifted, and where the base has a hole.
    let ours = [run(10..20, Some(1010)), run(20..30, Some(1021)), run(30..45, Some(1030))];
    let changed = apart(&(5..70), [&base, &base], &ours);
    assert_eq!(changed, [5..10, 20..30, 40..45, 50..60]);
}

#[test]
fn a_base_counts_once_it_is_whole_and_while_it_is_there() {
    let shelf = Shelf::open(MemFs::new().fs(), "/volumes".into()).unwrap();
    let geometry = Geometry::new(5000 * 512, 512, 18).unwrap();
    let image = Manifest::new(Domain(0), geometry, vec![Digest([7; 32])]);
    for (name, shares) in [("a", true), ("b", false)] {
        let image = Some(image.clone().into());
        let name = name.to_owned();
        shelf
            .create(&NewVolume {
                name,
                id: [1; 16],
                geometry,
                image,
                shares,
                device: None,
                created: 0,
            })
            .unwrap();
    }
    let base = |name: &str| shelf.whole_base(&shelf.identity(name).unwrap()).unwrap();
    assert!(base("a").is_none(), "there is none");
    let files = shelf.take_base(&image, 1).unwrap();
    assert!(base("a").is_none(), "chunks are missing");
    let become_plain = |mut of: IdentityBlocks| of.change(|identity| identity.plain = true);
    become_plain(files.identity).unwrap();
    assert_eq!(base("a").unwrap().size().unwrap(), 10 << 18);
    assert!(base("b").is_none(), "it shares nothing");
    // Of an image that is another one's.
    let of = image.identity().to_string();
    let mut identity = shelf.identity("a").unwrap();
    identity.base.as_mut().unwrap().image = Digest([9; 32]);
    assert!(shelf.whole_base(&identity).unwrap().is_none());
    shelf.bases().unwrap().remove(&of).unwrap();
    assert!(base("a").is_none(), "it is gone");
}

#[test]
fn where_places_tell_nothing_nothing_is_told() {
    let fs = MemFs::new().fs();
    let shelf = Shelf::open(fs.clone(), "/volumes".into()).unwrap();
    let geometry = Geometry::new(1 << 20, 512, 18).unwrap();
    let name = "a".to_owned();
    let new = NewVolume {
        name,
        id: [1; 16],
        geometry,
        image: None,
        shares: true,
        device: None,
        created: 0,
    };
    shelf.create(&new).unwrap();
    let file = fs.open(shelf.disk("a").unwrap(), OpenMode::read()).unwrap();
    assert!(unshared(&shelf.identity("a").unwrap(), &file, &file).unwrap().is_none());
}
