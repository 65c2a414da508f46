//! The boot trace: which chunks of an image its guests touch when they start, in which order.
//!
//! ```text
//!  0        4        6            8        40      44
//!  | "FBBT" | ver 1  | recordings | image  | count | count × touch … | CRC32C |
//!  |        | u16    | u16        | digest | u32   |                 | u32    |
//!
//!  touch: milliseconds since the touch before · chunks from behind the chunk before (zigzag) · recordings without it
//! ```
//! The three numbers of a touch are LEB128 varints of the fewest bytes, so a guest that reads on costs three
//! bytes a chunk. The CRC32C covers all before it. One trace has one encoding.

use bytes::{BufMut, Bytes, BytesMut};

use crate::digest::Digest;
use crate::error::FormatError;
use crate::geometry::{CHUNK_LOG2, MAX_DISK};
use crate::reader::Reader;

/// Touches of a trace at most: 4 GiB of disk in chunks of the usual size, many times what a system reads to start.
pub const MAX_TOUCHES: usize = 16 << 10;
/// Recordings that one trace may speak for.
pub const MAX_RECORDINGS: u16 = 16;
/// Longest boot trace in bytes.
pub const MAX_TRACE: usize = HEADER + MAX_TOUCHES * MAX_TOUCH + 4;

const WHAT: &str = "boot trace";
const MAGIC: [u8; 4] = *b"FBBT";
const VERSION: u16 = 1;
const HEADER: usize = 44;
/// Shortest and longest touch in bytes.
const MIN_TOUCH: usize = 3;
const MAX_TOUCH: usize = 5 + 5 + 1;
/// One more than the highest number of a chunk.
const CHUNKS: u64 = MAX_DISK >> *CHUNK_LOG2.start();

/// A chunk that guests touch when they start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Its number on the disk.
    pub chunk: u64,
    /// When, in milliseconds since the guest's first I/O: the mean over those recordings that have it.
    pub at: u32,
    /// Recordings that have it.
    pub seen: u16,
}

/// See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootTrace {
    image: Digest,
    recordings: u16,
    touches: Vec<Touch>,
}

impl BootTrace {
    /// A trace that speaks for so many recordings. The touches are in the order of their times.
    ///
    /// # Errors
    ///
    /// [`FormatError::Field`] for what has no encoding: too many touches or recordings, a chunk twice or past
    /// every disk, times that go back, a touch in no recording or in more than there are.
    pub fn new(image: Digest, recordings: u16, touches: Vec<Touch>) -> Result<Self, FormatError> {
        let bad = |field, value| Err(FormatError::Field { what: WHAT, field, value });
        if !(1..=MAX_RECORDINGS).contains(&recordings) {
            return bad("number of recordings", u64::from(recordings));
        }
        if touches.len() > MAX_TOUCHES {
            return bad("number of touches", touches.len() as u64);
        }
        if let Some(t) = touches.iter().find(|t| t.seen == 0 || t.seen > recordings) {
            return bad("recordings of a touch", u64::from(t.seen));
        }
        if let Some(pair) = touches.windows(2).find(|pair| pair[0].at > pair[1].at) {
            return bad("time of a touch", u64::from(pair[1].at));
        }
        let mut chunks: Vec<u64> = touches.iter().map(|t| t.chunk).collect();
        chunks.sort_unstable();
        if let Some(last) = chunks.last().filter(|last| **last >= CHUNKS) {
            return bad("chunk", *last);
        }
        if let Some(pair) = chunks.windows(2).find(|pair| pair[0] == pair[1]) {
            return bad("chunk that is there twice", pair[0]);
        }
        Ok(Self { image, recordings, touches })
    }

    /// The image.
    pub fn image(&self) -> &Digest {
        &self.image
    }

    /// Recordings that it speaks for.
    pub fn recordings(&self) -> u16 {
        self.recordings
    }

    /// The chunks, in the order in which they are touched.
    pub fn touches(&self) -> &[Touch] {
        &self.touches
    }

    /// From the guest's first I/O to the last touch, in milliseconds.
    pub fn millis(&self) -> u32 {
        self.touches.last().map_or(0, |t| t.at)
    }

    /// The stored and sent form.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER + 4 * self.touches.len() + 4);
        out.put_slice(&MAGIC);
        out.put_u16_le(VERSION);
        out.put_u16_le(self.recordings);
        out.put_slice(&self.image.0);
        out.put_u32_le(self.touches.len() as u32);
        let (mut at, mut next) = (0, 0);
        for touch in &self.touches {
            put(&mut out, u64::from(touch.at - at));
            put(&mut out, zigzag(touch.chunk as i64 - next));
            put(&mut out, u64::from(self.recordings - touch.seen));
            (at, next) = (touch.at, touch.chunk as i64 + 1);
        }
        let crc = crc32c::crc32c(&out);
        out.put_u32_le(crc);
        out.freeze()
    }

    /// Parses a trace; only its one encoding is taken.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(WHAT, bytes);
        r.magic(MAGIC, VERSION)?;
        let (recordings, image, count) = (r.u16()?, r.digest()?, r.u32()? as usize);
        if count > MAX_TOUCHES {
            return Err(r.field("number of touches", count as u64));
        }
        let Some(rest) = r.remaining().checked_sub(4).filter(|rest| *rest >= count * MIN_TOUCH)
        else {
            let (need, have) = (count * MIN_TOUCH + 4, r.remaining());
            return Err(FormatError::Truncated { what: WHAT, need, have });
        };
        let mut body = Reader::new(WHAT, r.take(rest)?);
        if r.u32()? != crc32c::crc32c(&bytes[..HEADER + rest]) {
            return Err(FormatError::Mismatch { what: WHAT, which: "CRC32C" });
        }
        let mut touches = Vec::with_capacity(count);
        let (mut at, mut next) = (0u32, 0i64);
        for _ in 0..count {
            let touch = take_touch(&mut body, recordings, at, next)?;
            (at, next) = (touch.at, touch.chunk as i64 + 1);
            touches.push(touch);
        }
        body.end()?;
        Self::new(image, recordings, touches)
    }
}

fn take_touch(
    r: &mut Reader<'_>,
    recordings: u16,
    at: u32,
    next: i64,
) -> Result<Touch, FormatError> {
    let (later, distance, without) = (take(r)?, take(r)?, take(r)?);
    let time = u32::try_from(later).ok().and_then(|later| at.checked_add(later));
    let chunk = next.checked_add(unzigzag(distance)).and_then(|c| u64::try_from(c).ok());
    let seen = u16::try_from(without).ok().and_then(|without| recordings.checked_sub(without));
    Ok(Touch {
        at: time.ok_or_else(|| r.field("time of a touch", later))?,
        chunk: chunk.ok_or_else(|| r.field("chunk", distance))?,
        seen: seen.ok_or_else(|| r.field("recordings of a touch", without))?,
    })
}

fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}

fn unzigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}

fn put(out: &mut BytesMut, mut n: u64) {
    while n >= 0x80 {
        out.put_u8(n as u8 | 0x80);
        n >>= 7;
    }
    out.put_u8(n as u8);
}

/// A varint of at most 35 bits, which is more than any field needs, in its fewest bytes.
fn take(r: &mut Reader<'_>) -> Result<u64, FormatError> {
    let mut n = 0;
    for shift in (0..35).step_by(7) {
        let byte = r.u8()?;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return match byte == 0 && shift > 0 {
                true => Err(r.field("number longer than need be", n)),
                false => Ok(n),
            };
        }
    }
    Err(r.field("number", n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image() -> Digest {
        Digest::of_chunk(b"image")
    }

    fn touch(chunk: u64, at: u32, seen: u16) -> Touch {
        Touch { chunk, at, seen }
    }

    #[test]
    fn who_reads_on_costs_three_bytes_a_chunk() {
        let touches = (0..1000).map(|n| touch(n, n as u32 * 100, 1)).collect();
        let trace = BootTrace::new(image(), 1, touches).unwrap();
        assert_eq!(trace.to_bytes().len(), HEADER + 3 * 1000 + 4);
        assert_eq!(trace.millis(), 99_900);
    }

    #[test]
    fn what_has_no_encoding_is_not_made() {
        let new =
            |recordings, touches: &[Touch]| BootTrace::new(image(), recordings, touches.to_vec());
        assert!(new(2, &[touch(CHUNKS - 1, 0, 1), touch(0, u32::MAX, 2)]).is_ok());
        assert!(new(1, &[]).is_ok());
        for (recordings, touches) in [
            (0, vec![]),
            (MAX_RECORDINGS + 1, vec![]),
            (1, vec![touch(3, 0, 0)]),
            (1, vec![touch(3, 0, 2)]),
            (1, vec![touch(3, 0, 1), touch(3, 1, 1)]),
            (1, vec![touch(3, 2, 1), touch(4, 1, 1)]),
            (1, vec![touch(CHUNKS, 0, 1)]),
            (1, (0..=MAX_TOUCHES as u64).map(|n| touch(n, 0, 1)).collect()),
        ] {
            assert!(new(recordings, &touches).is_err(), "{recordings} {}", touches.len());
        }
    }

    #[test]
    fn a_count_that_cannot_be_is_refused_before_room_is_made_for_it() {
        let mut bytes = BootTrace::new(image(), 1, vec![]).unwrap().to_bytes().to_vec();
        bytes[40..44].copy_from_slice(&(MAX_TOUCHES as u32).to_le_bytes());
        assert!(matches!(BootTrace::parse(&bytes), Err(FormatError::Truncated { .. })));
        bytes[40..44].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(BootTrace::parse(&bytes), Err(FormatError::Field { .. })));
    }

    /// Seals bytes as if they were a trace's: so that what is wrong in them is found by more than the sum.
    fn sealed(count: u32, recordings: u16, body: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        out.put_slice(&MAGIC);
        out.put_u16_le(VERSION);
        out.put_u16_le(recordings);
        out.put_slice(&image().0);
        out.put_u32_le(count);
        out.put_slice(body);
        let crc = crc32c::crc32c(&out);
        out.put_u32_le(crc);
        out.to_vec()
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            touches in prop::collection::vec((0..CHUNKS, 0u32..90_000, 1u16..=16), 0..80),
        ) {
            let mut touches: Vec<_> = touches.into_iter().map(|(c, at, s)| touch(c, at, s)).collect();
            touches.sort_by_key(|t| t.chunk);
            touches.dedup_by_key(|t| t.chunk);
            touches.sort_by_key(|t| t.at);
            let trace = BootTrace::new(image(), 16, touches).unwrap();
            let bytes = trace.to_bytes();
            prop_assert!(bytes.len() <= MAX_TRACE);
            prop_assert_eq!(BootTrace::parse(&bytes).unwrap(), trace);
            for len in 0..bytes.len() {
                prop_assert!(BootTrace::parse(&bytes[..len]).is_err());
            }
        }

        #[test]
        fn any_bytes_are_refused_or_are_the_one_encoding(
            count in 0u32..6,
            recordings in 0u16..18,
            body in prop::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..40),
        ) {
            let bytes = sealed(count, recordings, &body);
            if let Ok(trace) = BootTrace::parse(&bytes) {
                prop_assert_eq!(&trace.to_bytes()[..], &bytes[..]);
            }
            prop_assert!(BootTrace::parse(&body).is_err());
        }
    }
}
