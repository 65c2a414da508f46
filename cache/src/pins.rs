//! Which chunks must stay on disk: those of pinned images.
//!
//! ```text
//!  begin ──► add, add, … ──► commit        every chunk is kept from the moment it was added
//!               └──► dropped before that: all of it is let go again
//! ```
//! Pure bookkeeping; what makes pins outlive the process is [`crate::disk::pin_file`]. A chunk that
//! several pinned images share is counted once, and kept until the last of them is unpinned. A name
//! is the index's 96 bits of a digest: two chunks that agree in them cannot both be in the index.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use image::{Digest, Domain, Error, Kind, Result};
use tokio::sync::Notify;

use crate::disk::index::Tag;
use crate::human::bytes;
use crate::key::Key;
use crate::sharded::lock;

/// Of the disk budget, less what the log needs to turn over, pins may take four fifths.
const PART: (u64, u64) = (4, 5);
/// Segments that the log needs to turn over: the open one, the one on its way out, and a spare.
const TURNOVER: u64 = 3;

/// A pinned image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Its identity.
    pub image: Digest,
    /// Its chunks that are not zeros, each counted once.
    pub chunks: u64,
    /// Their frames, in bytes, shared ones included.
    pub bytes: u64,
}

/// A chunk of a pinned image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PinnedChunk {
    pub(crate) digest: Digest,
    /// Length of its frame in bytes.
    pub(crate) len: u32,
}

/// All pins of a cache.
pub(crate) struct Pins {
    limit: u64,
    state: Mutex<State>,
    /// Whether there may be anything in `state`: mostly there is not.
    some: AtomicBool,
    /// Told when a pinned chunk may have been lost.
    pub(crate) lost: Notify,
}

#[derive(Default)]
struct State {
    images: BTreeMap<Digest, PinnedImage>,
    chunks: HashMap<Tag, Kept>,
    /// Frames of `chunks`.
    bytes: u64,
    /// Changes whenever `chunks` does.
    generation: u64,
    /// Pins that were begun.
    begun: u64,
}

struct PinnedImage {
    /// Which of all that were begun it is: another of the same image may have been given up before.
    number: u64,
    tags: Vec<Tag>,
    bytes: u64,
    committed: bool,
}

struct Kept {
    pins: u32,
    len: u32,
}

impl Pins {
    /// For a log of `budget` bytes in segments of `segment` bytes.
    pub(crate) fn new(budget: u64, segment: u64) -> Self {
        let limit = budget.saturating_sub(TURNOVER * segment) / PART.1 * PART.0;
        let (state, some) = (Mutex::default(), AtomicBool::new(false));
        Self { limit, state, some, lost: Notify::new() }
    }

    /// Bytes of frames that may be pinned.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes of frames that are.
    pub(crate) fn bytes(&self) -> u64 {
        lock(&self.state).bytes
    }

    /// Changes whenever a chunk is pinned or let go; `None` while there are no pins at all.
    pub(crate) fn generation(&self) -> Option<u64> {
        let some = self.some.load(Ordering::Acquire);
        some.then(|| lock(&self.state).generation)
    }

    /// Whether a chunk must stay.
    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.some.load(Ordering::Acquire) && lock(&self.state).chunks.contains_key(&Tag::of(key))
    }

    /// Whether an image is pinned.
    pub(crate) fn is_pinned(&self, image: &Digest) -> bool {
        lock(&self.state).images.get(image).is_some_and(|image| image.committed)
    }

    /// The pinned images.
    pub(crate) fn list(&self) -> Vec<Pin> {
        let state = lock(&self.state);
        let pinned = state.images.iter().filter(|(_, pinned)| pinned.committed);
        let pins = pinned.map(|(image, pinned)| Pin {
            image: *image,
            chunks: pinned.tags.len() as u64,
            bytes: pinned.bytes,
        });
        pins.collect()
    }

    /// Begins to pin an image.
    pub(crate) fn begin(&self, image: Digest) -> Result<Pinning<'_>> {
        let mut state = lock(&self.state);
        if state.images.contains_key(&image) {
            return Err(Error::new(Kind::Conflict, "it is pinned, or being pinned, already"));
        }
        let number = state.number();
        let pinned = PinnedImage { number, tags: Vec::new(), bytes: 0, committed: false };
        state.images.insert(image, pinned);
        self.some.store(true, Ordering::Release);
        Ok(Pinning { pins: self, image, number, chunks: BTreeMap::new() })
    }

    /// Takes back a pin from before a restart, also one that no longer fits the limit: it was
    /// promised. Returns whether it fits.
    pub(crate) fn restore(&self, image: Digest, domain: Domain, chunks: &[PinnedChunk]) -> bool {
        let mut state = lock(&self.state);
        if state.images.contains_key(&image) {
            return true;
        }
        let number = state.number();
        let mut pinned = PinnedImage { number, tags: Vec::new(), bytes: 0, committed: true };
        for PinnedChunk { digest, len } in chunks {
            let tag = Tag::of(&Key { domain, digest: *digest });
            state.keep(tag, *len);
            pinned.tags.push(tag);
            pinned.bytes += u64::from(*len);
        }
        state.images.insert(image, pinned);
        self.some.store(true, Ordering::Release);
        state.bytes <= self.limit
    }

    /// The pin of this number is made; `false` if it was given up meanwhile.
    pub(crate) fn commit(&self, image: &Digest, number: u64) -> bool {
        let mut state = lock(&self.state);
        let pinned = state.images.get_mut(image).filter(|pinned| pinned.number == number);
        let Some(pinned) = pinned else { return false };
        pinned.committed = true;
        true
    }

    /// Lets a pinned image go; `false` if it was not pinned.
    pub(crate) fn remove(&self, image: &Digest) -> bool {
        self.let_go(image, |pinned| pinned.committed)
    }

    fn let_go(&self, image: &Digest, which: impl FnOnce(&PinnedImage) -> bool) -> bool {
        let mut state = lock(&self.state);
        if !state.images.get(image).is_some_and(which) {
            return false;
        }
        let pinned = state.images.remove(image);
        let tags = pinned.into_iter().flat_map(|pinned| pinned.tags);
        tags.for_each(|tag| state.let_go(tag));
        self.some.store(!state.images.is_empty(), Ordering::Release);
        true
    }

    fn add(&self, image: &Digest, key: &Key, len: u32) -> Result<()> {
        let mut state = lock(&self.state);
        let tag = Tag::of(key);
        let more = if state.chunks.contains_key(&tag) { 0 } else { u64::from(len) };
        if state.bytes + more > self.limit {
            let others = state.bytes - state.alone(image);
            return Err(Error::new(Kind::Full, no_room(self.limit, others)));
        }
        state.keep(tag, len);
        if let Some(pinned) = state.images.get_mut(image) {
            pinned.tags.push(tag);
            pinned.bytes += u64::from(len);
        }
        Ok(())
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.begun += 1;
        self.begun
    }

    /// Bytes that are kept for an image alone.
    fn alone(&self, image: &Digest) -> u64 {
        let tags = self.images.get(image).into_iter().flat_map(|pinned| &pinned.tags);
        let kept = tags.filter_map(|tag| self.chunks.get(tag)).filter(|kept| kept.pins == 1);
        kept.map(|kept| u64::from(kept.len)).sum()
    }

    fn keep(&mut self, tag: Tag, len: u32) {
        self.generation += 1;
        match self.chunks.entry(tag) {
            Entry::Occupied(mut kept) => kept.get_mut().pins += 1,
            Entry::Vacant(place) => {
                place.insert(Kept { pins: 1, len });
                self.bytes += u64::from(len);
            }
        }
    }

    fn let_go(&mut self, tag: Tag) {
        let Entry::Occupied(mut kept) = self.chunks.entry(tag) else { return };
        kept.get_mut().pins -= 1;
        if kept.get().pins == 0 {
            self.bytes -= u64::from(kept.remove().len);
            self.generation += 1;
        }
    }
}

/// Why an image cannot be pinned beside others that take so many bytes.
fn no_room(limit: u64, others: u64) -> String {
    let left = bytes(limit.saturating_sub(others));
    let (limit, others) = (bytes(limit), bytes(others));
    format!(
        "it needs more than the {left} that are left: pins may take {limit} of the disk tier, \
         {others} are pinned already; unpin another image, or give the cache a larger disk budget \
         (cache.disk)"
    )
}

/// A pin that is being made. Dropped before [`Pins::commit`], it lets everything go.
pub(crate) struct Pinning<'a> {
    pins: &'a Pins,
    image: Digest,
    number: u64,
    chunks: BTreeMap<Digest, u32>,
}

impl Pinning<'_> {
    /// By which [`Pins::commit`] knows it.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Keeps a chunk from now on; a chunk of the image that was added before is left out.
    ///
    /// # Errors
    ///
    /// [`Kind::Full`] if pins would take more than they may.
    pub(crate) fn add(&mut self, key: &Key, len: u32) -> Result<()> {
        if !self.chunks.contains_key(&key.digest) {
            self.pins.add(&self.image, key, len)?;
            self.chunks.insert(key.digest, len);
        }
        Ok(())
    }

    /// What was added, by digest.
    pub(crate) fn chunks(&self) -> Vec<PinnedChunk> {
        let chunks = self.chunks.iter();
        chunks.map(|(digest, len)| PinnedChunk { digest: *digest, len: *len }).collect()
    }
}

impl Drop for Pinning<'_> {
    fn drop(&mut self) {
        let number = self.number;
        self.pins.let_go(&self.image, |pinned| pinned.number == number && !pinned.committed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Key {
        Key { domain: Domain::PUBLIC, digest: Digest::of_chunk(&[n]) }
    }

    fn image(n: u8) -> Digest {
        Digest::of_stored(&[n])
    }

    fn pin(pins: &Pins, n: u8, chunks: &[u8]) -> Result<()> {
        let mut pinning = pins.begin(image(n))?;
        chunks.iter().try_for_each(|c| pinning.add(&key(*c), 100))?;
        assert!(pins.commit(&image(n), pinning.number()));
        Ok(())
    }

    #[test]
    fn what_two_images_share_is_counted_once_and_stays_until_the_last_goes() {
        let pins = Pins::new(1300, 100);
        assert_eq!((pins.limit(), pins.generation()), (800, None));
        pin(&pins, 1, &[1, 2, 3, 2]).unwrap();
        pin(&pins, 2, &[3, 4]).unwrap();
        assert_eq!(pins.bytes(), 400);
        assert_eq!(pins.list().iter().map(|p| p.bytes).sum::<u64>(), 500);
        assert!(pins.remove(&image(1)) && !pins.remove(&image(1)));
        assert!(pins.contains(&key(3)) && !pins.contains(&key(1)));
        assert!(pins.remove(&image(2)));
        assert_eq!((pins.bytes(), pins.generation()), (0, None));
    }

    #[test]
    fn a_pin_that_is_too_large_or_given_up_leaves_nothing() {
        let pins = Pins::new(1300, 100);
        pin(&pins, 1, &[1, 2, 3, 4, 5]).unwrap();
        let error = pin(&pins, 2, &[4, 5, 6, 7, 8, 9]).unwrap_err();
        assert_eq!(error.kind(), Kind::Full);
        // What is pinned already is without the two that this one shares, and what it found so far.
        for says in ["more than the 300 B", "may take 800 B", "500 B are pinned already"] {
            assert!(error.message().contains(says), "{error}");
        }
        assert_eq!((pins.bytes(), pins.list().len()), (500, 1));
        assert!(!pins.contains(&key(6)));
        assert_eq!(pin(&pins, 1, &[]).unwrap_err().kind(), Kind::Conflict);
        let given_up = pins.begin(image(3)).unwrap().number();
        assert!(!pins.commit(&image(3), given_up));
        pin(&pins, 3, &[6]).unwrap();
    }

    #[test]
    fn a_pin_that_was_given_up_and_a_new_one_of_the_same_image_do_not_touch_each_other() {
        let pins = Pins::new(1300, 100);
        let given_up = pins.begin(image(1)).unwrap().number();
        let mut anew = pins.begin(image(1)).unwrap();
        anew.add(&key(1), 100).unwrap();
        assert!(!pins.commit(&image(1), given_up) && !pins.is_pinned(&image(1)));
        assert!(pins.commit(&image(1), anew.number()));
        // One that is unpinned before it hears that it was made does not end the next.
        assert!(pins.remove(&image(1)));
        let next = pins.begin(image(1)).unwrap();
        drop(anew);
        assert!(pins.commit(&image(1), next.number()));
    }

    #[test]
    fn the_generation_tells_every_change() {
        let pins = Pins::new(1300, 100);
        pin(&pins, 1, &[1]).unwrap();
        let before = pins.generation();
        let mut pinning = pins.begin(image(2)).unwrap();
        assert_eq!(pins.generation(), before);
        pinning.add(&key(2), 100).unwrap();
        let during = pins.generation();
        assert_ne!(during, before);
        drop(pinning);
        assert_ne!(pins.generation(), during);
    }

    #[test]
    fn a_pin_from_before_is_kept_even_if_it_no_longer_fits() {
        let pins = Pins::new(0, 100);
        let chunks = [PinnedChunk { digest: key(1).digest, len: 100 }];
        assert!(!pins.restore(image(1), Domain::PUBLIC, &chunks));
        assert!(pins.contains(&key(1)) && pins.is_pinned(&image(1)));
        assert_eq!(pins.list(), [Pin { image: image(1), chunks: 1, bytes: 100 }]);
    }
}
