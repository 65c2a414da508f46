//! Reading packs back: their footers for the index, and whole packs after they were written.

use bytes::Bytes;
use image::error::At;
use image::pack::{Entry, PACK_HEADER_LEN, TRAILER_LEN, Trailer, check_pack_header};
use image::{Digest, Error, Footer, FormatError, Frame, Kind, PackId, Result};

use crate::keys;
use crate::objects::Objects;

/// Read at the end of a pack in the hope that the whole footer is in it: 800 entries.
const TAIL: u64 = 64 << 10;
/// Bytes of a pack that are held at a time while it is read back. Owner: [`check_pack`].
const PIECE: u32 = 4 << 20;

/// Reads and checks the footer of a pack of `len` bytes.
pub(crate) async fn read_footer(objects: &Objects, id: &PackId, len: u64) -> Result<Footer> {
    let key = keys::pack(id);
    let place = || format!("pack {id}: footer");
    if len < (PACK_HEADER_LEN + TRAILER_LEN) as u64 {
        let need = PACK_HEADER_LEN + TRAILER_LEN;
        return Err(FormatError::Truncated { what: "pack", need, have: len as usize }).at(place);
    }
    let tail_at = len.saturating_sub(TAIL);
    let tail = objects.range(&key, tail_at..len).await.at(place)?;
    let trailer = Trailer::parse(&tail[tail.len() - TRAILER_LEN..], len).at(place)?;
    let entries_at = u64::from(trailer.entries_at);
    if entries_at >= tail_at {
        return Footer::parse(&tail[(entries_at - tail_at) as usize..], len).at(place);
    }
    let all = objects.range(&key, entries_at..len).await.at(place)?;
    Footer::parse(&all, len).at(place)
}

/// Reads a whole pack back and checks that it is what was written: header, footer, and each frame
/// by its header, CRC32C and the BLAKE3 of its stored payload.
pub(crate) async fn check_pack(
    objects: &Objects,
    id: &PackId,
    len: u64,
    written: &Footer,
) -> Result<()> {
    let place = || format!("pack {id}: reading back");
    let key = keys::pack(id);
    let there = objects.head(&key).await.at(place)?.len;
    if there != len {
        let message = format!("{len} bytes were written, {there} are there");
        return Err(Error::new(Kind::Corrupt, message)).at(place);
    }
    let header = objects.range(&key, 0..PACK_HEADER_LEN as u64).await.at(place)?;
    check_pack_header(&header).at(place)?;
    if read_footer(objects, id, len).await? != *written {
        return Err(Error::new(Kind::Corrupt, "the footer is not the one written")).at(place);
    }
    for piece in pieces(&written.entries) {
        let (start, last) = (piece[0].offset, piece[piece.len() - 1]);
        let range = u64::from(start)..u64::from(last.offset + last.frame_len);
        let bytes = objects.range(&key, range).await.at(place)?;
        for entry in piece {
            let at = (entry.offset - start) as usize;
            let frame = bytes.slice(at..at + entry.frame_len as usize);
            check_entry(frame, entry).at(|| format!("pack {id}: offset {}", entry.offset))?;
        }
        // Hashing a piece takes milliseconds: let others run between two.
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// The entries of a pack, in pieces that are read at a time: 4 MiB at most, or one frame.
pub(crate) fn pieces(mut rest: &[Entry]) -> impl Iterator<Item = &[Entry]> {
    std::iter::from_fn(move || {
        let start = rest.first()?.offset;
        let n = rest.partition_point(|e| e.offset + e.frame_len - start <= PIECE).max(1);
        let (piece, after) = rest.split_at(n);
        rest = after;
        Some(piece)
    })
}

/// Takes a frame and checks it against its entry: digest, CRC32C, BLAKE3 of the stored payload.
pub(crate) fn check_entry(bytes: Bytes, entry: &Entry) -> Result<Frame, FormatError> {
    let frame = Frame::parse(bytes)?;
    if frame.header().digest != entry.digest {
        return Err(FormatError::Mismatch { what: "frame", which: "digest of the footer" });
    }
    frame.check_payload()?;
    if Digest::of_stored(frame.payload()) != entry.stored {
        return Err(FormatError::Mismatch { what: "frame", which: "BLAKE3 of the payload" });
    }
    Ok(frame)
}
