//! The power goes at any instant of captures, on either machine or both: each loses what was not made to last, and the
//! one does not know what the other has lost.
//!
//! The two logs are brought together by marks: whenever the node goes on, it notes how far the store's log is. So of
//! each instant of the node's disk it is known which the instants of the store are at which it may have come.

use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};
use std::pin::pin;

use blockio::fake::{CrashImage, CrashPlan, MemFs, Op};
use forebay_sim::chance::Chance;
use image::Digest;
use store::testing::{TestStore, Unacknowledged};

use crate::content::{Content, SECTORS, Tag};
use crate::machines::{Machines, Node, images, on_one_core, open_store, receiver, store_options};

/// Of the disks that cuts may leave one in so many is tried.
const ONE_IN: u64 = 36;
const SEEDS: u64 = 6;
const CAPTURES: usize = 3;

/// A guest: its writes bear their numbers.
struct Guest {
    disk: MemFs,
    chance: Chance,
    now: Content,
    written: Vec<Range<usize>>,
}

impl Guest {
    async fn write(&mut self, node: &Node) {
        let tag = self.written.len() as Tag + 1;
        let len = [1, 3, 8, 32][self.chance.within(0..4) as usize];
        let start = self.chance.within(0..(SECTORS / len) as u64) as usize * len;
        // Not over the end of a window.
        let sectors = start..(start + len).min(start.next_multiple_of(SECTORS / 3).max(start + 1));
        self.written.push(sectors.clone());
        self.disk.mark(format!("writes {tag}"));
        node.write(sectors.clone(), tag).await.unwrap();
        self.now.0[sectors].fill(tag);
        if self.chance.one_in(6) {
            node.volume.flush().await.unwrap();
            self.disk.mark(format!("flushed {tag}"));
        }
    }
}

/// What has happened, for those who look at what is left of it.
struct Story {
    disk: MemFs,
    objects: TestStore,
    /// By point of the disk's log: the events of the store before which it may have come.
    meanwhile: Vec<RangeInclusive<u64>>,
    written: Vec<Range<usize>>,
    images: BTreeSet<Digest>,
}

/// Does `work`, and notes on the disk how far the store is whenever it goes on.
async fn noting<T>(disk: &MemFs, objects: &TestStore, work: impl Future<Output = T>) -> T {
    let (mut work, mut last) = (pin!(work), None);
    std::future::poll_fn(|cx| {
        let events = objects.events();
        if last.replace(events) != Some(events) {
            disk.mark(format!("store {events}"));
        }
        work.as_mut().poll(cx)
    })
    .await
}

fn number(op: &Op) -> Option<u64> {
    let Op::Mark(mark) = op else { return None };
    mark.strip_prefix("store ")?.parse().ok()
}

/// Captures, and a guest that writes before them, and perhaps meanwhile.
async fn happen(seed: u64) -> Story {
    let Machines { disk, objects } = Machines::new().await;
    let began = objects.events();
    let store = open_store(&objects, store_options(2)).await;
    let mut node = Node::open(&disk.fs()).unwrap();
    let mut guest = Guest {
        disk: disk.clone(),
        chance: Chance::new(seed, "guest"),
        now: Content::original(),
        written: Vec::new(),
    };
    let mut made = BTreeSet::from([Content::original().image()]);
    noting(&disk, &objects, async {
        for _ in 0..CAPTURES {
            for _ in 0..6 {
                guest.write(&node).await;
            }
            if guest.chance.one_in(2) {
                // From here on it is known to the block what has changed.
                node.volume.close().await.unwrap();
                drop(node);
                node = Node::open(&disk.fs()).unwrap();
            }
            let then = guest.now.clone();
            let busy = guest.chance.one_in(2);
            let meanwhile = async || {
                if busy {
                    guest.write(&node).await;
                }
            };
            let imported = node.capture(&store, receiver(&store), meanwhile).await.unwrap();
            assert_eq!(imported.image, then.image(), "not as it was when the capture began");
            made.insert(imported.image);
        }
        guest.write(&node).await;
        node.volume.close().await.unwrap();
    })
    .await;
    let written = guest.written;
    let log = disk.log();
    let (mut meanwhile, mut last) = (Vec::new(), began);
    for at in 0..=log.len() {
        last = at.checked_sub(1).and_then(|before| number(&log[before])).unwrap_or(last);
        meanwhile.push(last..=log.get(at).and_then(number).unwrap_or(last));
    }
    Story { disk, objects, meanwhile, written, images: made }
}

impl Story {
    /// Whether a disk on which these marks are may hold this.
    fn allows(&self, left: &CrashImage, found: &Content) -> bool {
        let last = |what: &str| {
            left.marks().filter_map(|m| m.strip_prefix(what)?.parse::<usize>().ok()).last()
        };
        let (flushed, begun) = (last("flushed ").unwrap_or(0), last("writes ").unwrap_or(0));
        let mut base = Content::original();
        for (tag, sectors) in (1..).zip(&self.written[..flushed]) {
            base.0[sectors.clone()].fill(tag);
        }
        let later = |sector: usize, tag: Tag| {
            let number = tag as usize;
            (flushed + 1..=begun).contains(&number) && self.written[number - 1].contains(&sector)
        };
        let mut all = found.0.iter().zip(&base.0).enumerate();
        all.all(|(sector, (tag, base))| tag == base || later(sector, *tag))
    }

    async fn check(&self, left: &CrashImage, event: u64, fate: Unacknowledged) {
        let place = format!("{left}; the store before event {event}, {fate:?}");
        let objects = self.objects.after_crash(event, fate).await;
        let store = open_store(&objects, store_options(77)).await;
        let node = Node::open(&left.fs()).unwrap_or_else(|e| panic!("{place}: {e}"));
        let found = node.content().await;
        assert!(self.allows(left, &found), "{place}: the guest's writes are lost");
        let seen = images(&store).await;
        assert!(seen.is_subset(&self.images), "{place}: an image of no instant");
        assert!(seen.contains(&Content::original().image()), "{place}: the old image is gone");
        assert!(seen.contains(&node.since()), "{place}: what changes count from is gone");
        // What is known to have changed, and the image from which that counts, make the volume.
        let wanted = found.image();
        for again in [false, true] {
            let saved = node.capture(&store, receiver(&store), async || {}).await;
            let saved = saved.unwrap_or_else(|e| panic!("{place}: {e}"));
            assert_eq!(saved.image, wanted, "{place}: it has changed unnoticed");
            assert!(!again || saved.stats.data == 0, "{place}: nothing has changed since");
        }
        assert!(images(&store).await.contains(&wanted), "{place}");
    }
}

#[test]
fn after_a_power_cut_on_both_sides_a_capture_makes_the_volume_as_it_is() {
    let mut cuts = 0;
    for seed in 0..SEEDS {
        on_one_core(async {
            let story = happen(seed).await;
            let mut chance = Chance::new(seed, "cuts");
            let plan = CrashPlan { seed, per_point: 6, torn: true };
            for left in story.disk.crash_images(plan) {
                if !chance.one_in(ONE_IN) {
                    continue;
                }
                let events = story.meanwhile[left.point()].clone();
                let event = chance.within(*events.start()..events.end() + 1);
                let fates = story.objects.fates(event);
                let fate = fates[chance.within(0..fates.len() as u64) as usize];
                story.check(&left, event, fate).await;
                cuts += 1;
            }
        });
    }
    assert!(cuts >= 200, "{cuts}");
}
