//! Boot traces: recordings of many nodes become one trace of an image, and the next version of the image begins
//! with what of it has not changed.
//!
//! What is kept of an image is one [`BootTrace`]: of every chunk the mean of its times, and in how many of the
//! recordings it was. When there are [`MAX_RECORDINGS`] all counts are halved, so that a trace follows its image's
//! guests, and what one of them touched once is forgotten. What is given to nodes is what many have in common.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use image::error::At;
use image::trace::{MAX_RECORDINGS, MAX_TOUCHES};
use image::{BootTrace, Digest, Error, Kind, Result, Touch};

use crate::archive::Archive;
use crate::known::Images;
use crate::state::State;

/// A chunk is given to nodes if one in so many recordings has it.
const SHARE: u16 = 4;
/// Ancestors that are asked for a trace.
const MAX_LINEAGE: usize = 16;
/// Times that a recording is put beside others while others are, too.
const ATTEMPTS: usize = 5;

/// A trace that also knows of one more recording. Both are of one image.
fn merge(known: &BootTrace, recording: &BootTrace) -> BootTrace {
    let by = if known.recordings() == MAX_RECORDINGS { 2 } else { 1 };
    let halved = known.touches().iter().map(|t| Touch { seen: t.seen / by, ..*t });
    let mut all: Vec<Touch> = halved.filter(|t| t.seen > 0).collect();
    let places: HashMap<u64, usize> = all.iter().enumerate().map(|(i, t)| (t.chunk, i)).collect();
    for new in recording.touches() {
        match places.get(&new.chunk) {
            Some(place) => again(&mut all[*place], new.at),
            None => all.push(Touch { seen: 1, ..*new }),
        }
    }
    if all.len() > MAX_TOUCHES {
        all.sort_by_key(|t| (Reverse(t.seen), t.at));
        all.truncate(MAX_TOUCHES);
    }
    // What is equal stays in the order in which it was recorded.
    all.sort_by_key(|t| t.at);
    made(*known.image(), known.recordings() / by + 1, all)
}

fn again(touch: &mut Touch, at: u32) {
    let (mean, seen) = (u64::from(touch.at), u64::from(touch.seen));
    touch.at = ((mean * seen + u64::from(at)) / (seen + 1)) as u32;
    touch.seen += 1;
}

/// What nodes are given: chunks that few recordings have drop out.
fn common(trace: &BootTrace) -> BootTrace {
    let often = trace.touches().iter().filter(|t| t.seen * SHARE >= trace.recordings());
    made(*trace.image(), trace.recordings(), often.copied().collect())
}

/// What an ancestor's trace says of `image`, where these chunks are the same: as much as one recording.
fn carried(image: Digest, ancestor: &BootTrace, same: &HashSet<u64>) -> BootTrace {
    let touches = ancestor.touches().iter().filter(|t| same.contains(&t.chunk));
    made(image, 1, touches.map(|t| Touch { seen: 1, ..*t }).collect())
}

fn made(image: Digest, recordings: u16, touches: Vec<Touch>) -> BootTrace {
    let trace = BootTrace::new(image, recordings, touches);
    trace.expect("in order, each chunk once, and no more than there were recordings")
}

/// The traces of a grid's images.
pub(crate) struct Traces {
    state: State,
    archive: Arc<dyn Archive>,
}

impl Traces {
    pub(crate) fn new(state: State, archive: Arc<dyn Archive>) -> Self {
        Self { state, archive }
    }

    /// What a node is to fetch ahead of an image's guests; nothing if nobody has recorded any yet.
    pub(crate) async fn get(&self, image: Digest, images: &Images) -> Result<Option<BootTrace>> {
        match self.state.trace(&image).await? {
            Some((own, _)) => Ok(Some(common(&own?))),
            None => self.inherited(image, images).await,
        }
    }

    /// The image's own trace, all of it.
    pub(crate) async fn own(&self, image: Digest) -> Result<Option<BootTrace>> {
        self.state.trace(&image).await?.map(|(own, _)| own).transpose()
    }

    /// The trace of the nearest ancestor that has one, for the chunks that are still the same.
    async fn inherited(&self, image: Digest, images: &Images) -> Result<Option<BootTrace>> {
        let mut young = image;
        for _ in 0..MAX_LINEAGE {
            let Ok(known) = images.get(young).await else { break };
            let Some(parent) = known.record.as_ref().and_then(|r| r.parent) else { break };
            if let Some((trace, _)) = self.state.trace(&parent).await? {
                let trace = common(&trace?);
                let chunks = trace.touches().iter().map(|t| t.chunk).collect();
                return match self.archive.unchanged(image, parent, chunks).await {
                    Ok(same) => Ok(Some(carried(image, &trace, &same.into_iter().collect()))),
                    // It cannot be compared any more.
                    Err(e) if e.kind() == Kind::Gone => Ok(None),
                    Err(e) => Err(e.at(format!("image {image}: its parent's boot trace"))),
                };
            }
            young = parent;
        }
        Ok(None)
    }

    /// Puts one recording beside the others; returns what is known then.
    pub(crate) async fn add(&self, recording: BootTrace, images: &Images) -> Result<BootTrace> {
        let image = *recording.image();
        let at = || format!("image {image}: a boot trace");
        let facts = self.archive.facts(image).await.at(at)?;
        let chunks = facts.size.div_ceil(u64::from(facts.chunk.max(1)));
        check(&recording, chunks).at(at)?;
        for _ in 0..ATTEMPTS {
            let seen = self.state.trace(&image).await?;
            let known = match &seen {
                Some((Err(e), _)) if e.kind() != Kind::Corrupt => return Err(e.clone()).at(at),
                // What is damaged is of no use to anybody.
                Some((known, _)) => known.clone().ok(),
                None => self.inherited(image, images).await.unwrap_or_default(),
            };
            let merged = known.map_or_else(|| recording.clone(), |k| merge(&k, &recording));
            match self.state.put_trace(&merged, seen.as_ref().map(|(_, seen)| seen)).await {
                Err(e) if e.kind() == Kind::Conflict => {}
                done => return done.map(|()| merged),
            }
        }
        Err(Error::new(Kind::Retry, "others record it all the time; try again")).at(at)
    }

    /// Drops the traces of images that do not exist any more; `kept` do.
    pub(crate) async fn tidy(&self, kept: &[Digest]) -> Result<()> {
        let kept: HashSet<_> = kept.iter().collect();
        for image in self.state.traced().await? {
            if kept.contains(&image) {
                continue;
            }
            match self.archive.facts(image).await {
                Err(e) if e.kind() == Kind::Gone => self.state.drop_trace(&image).await?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn check(recording: &BootTrace, chunks: u64) -> Result<()> {
    let bad = |what: String| Err(Error::new(Kind::Invalid, what));
    if recording.recordings() != 1 {
        return bad(format!("{} recordings, where one is added", recording.recordings()));
    }
    match recording.touches().iter().find(|t| t.chunk >= chunks) {
        Some(touch) => bad(format!("chunk {}, of {chunks}", touch.chunk)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(recordings: u16, touches: &[(u64, u32, u16)]) -> BootTrace {
        let touches = touches.iter().map(|&(chunk, at, seen)| Touch { chunk, at, seen });
        made(Digest::of_chunk(b"image"), recordings, touches.collect())
    }

    fn chunks(trace: &BootTrace) -> Vec<u64> {
        trace.touches().iter().map(|t| t.chunk).collect()
    }

    #[test]
    fn recordings_meet_in_the_mean_of_their_times() {
        let one = trace(1, &[(7, 0, 1), (3, 100, 1), (9, 400, 1)]);
        let two = merge(&one, &trace(1, &[(7, 0, 1), (9, 100, 1), (4, 120, 1), (3, 700, 1)]));
        assert_eq!(two, trace(2, &[(7, 0, 2), (4, 120, 1), (9, 250, 2), (3, 400, 2)]));
        let three = merge(&two, &trace(1, &[(3, 100, 1)]));
        assert_eq!(three.touches()[3], Touch { chunk: 3, at: 300, seen: 3 });
        assert_eq!(chunks(&common(&three)), [7, 4, 9, 3], "one in three is not few");
    }

    #[test]
    fn what_few_touch_drops_out_and_is_forgotten_in_the_end() {
        let usual = trace(1, &[(1, 0, 1), (2, 10, 1)]);
        let mut known = merge(&usual, &trace(1, &[(1, 0, 1), (50, 5, 1), (2, 10, 1)]));
        for round in 3..=40 {
            known = merge(&known, &usual);
            assert!(known.recordings() <= MAX_RECORDINGS);
            let expected: &[u64] = if round <= 4 { &[1, 50, 2] } else { &[1, 2] };
            assert_eq!(chunks(&common(&known)), expected, "{round} recordings");
        }
        assert_eq!(chunks(&known), [1, 2]);
        // And what everybody touches from now on comes in.
        for _ in 0..5 {
            known = merge(&known, &trace(1, &[(1, 0, 1), (2, 10, 1), (60, 20, 1)]));
        }
        assert_eq!(chunks(&common(&known)), [1, 2, 60]);
    }

    #[test]
    fn a_trace_is_bounded_and_keeps_what_most_have() {
        let most = MAX_TOUCHES as u64;
        let all: Vec<_> = (0..most).map(|n| (n, n as u32, 1)).collect();
        let known = merge(&trace(1, &all), &trace(1, &[(most - 1, 0, 1), (most, 1, 1)]));
        assert_eq!(known.touches().len(), MAX_TOUCHES);
        assert!(chunks(&known).contains(&(most - 1)) && chunks(&known).contains(&most));
        assert!(!chunks(&known).contains(&(most - 2)), "the last that one recording has");
    }

    #[test]
    fn the_next_version_begins_with_what_has_not_changed() {
        let parent = trace(5, &[(4, 0, 5), (8, 3, 2), (6, 9, 4)]);
        let image = Digest::of_chunk(b"next");
        let child = carried(image, &parent, &[6, 4].into());
        assert_eq!((child.image(), child.recordings()), (&image, 1));
        assert_eq!(chunks(&child), [4, 6]);
        assert_eq!(child.touches()[1], Touch { chunk: 6, at: 9, seen: 1 });
    }
}
