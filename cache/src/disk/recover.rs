//! Reading the log in at start, the newest segment first, while the cache already serves.
//!
//! A sealed segment is believed by its footer. Any other is walked from frame header to frame
//! header, cut after the last whole frame and sealed there; payloads are not read now, as every
//! read checks them. Walking stops at the first broken header: looking for the next one behind it
//! would take whatever a disk image holds that looks like a frame for one.

use std::ffi::OsString;
use std::io;

use blockio::{BlockFile, OpenMode};
use image::FrameHeader;
use image::frame::HEADER_LEN as FRAME_HEADER;

use crate::disk::Segment;
use crate::disk::evict::read_footer;
use crate::disk::format::{
    Entry, HEADER_LEN, Header, MAX_ENTRIES, check_header, file_name, footer, parse_name,
};
use crate::disk::index::Spot;
use crate::disk::writer::{LogWriter, Phase};
use crate::key::Key;

impl LogWriter {
    /// Finds out which segments there are. Ids of all of them, also of those that are not ours, are
    /// never used again.
    pub(super) fn look_through(&mut self, names: &[OsString]) {
        let ids = names.iter().filter_map(|name| parse_name(name.to_str()?));
        let mut ids: Vec<u32> = ids.collect();
        ids.sort_unstable();
        self.next_id = ids.last().map_or(1, |last| last.saturating_add(1));
        self.load_pins(names);
        self.load_scrub();
        self.phase = Phase::Recovering(ids);
    }

    /// Reads one segment in.
    pub(super) fn recover_next(&mut self) {
        let Phase::Recovering(left) = &mut self.phase else { return };
        let Some(id) = left.pop() else {
            self.phase = Phase::Running;
            self.trim();
            self.go_on();
            self.warn_of_budget();
            return;
        };
        if let Err(error) = self.recover(id) {
            let segment = file_name(id);
            tracing::warn!(segment, %error, "cache: a segment could not be read and is left out");
        }
    }

    fn recover(&mut self, id: u32) -> io::Result<()> {
        let path = self.limits.dir.join(file_name(id));
        let file = self.outside.fs.open(&path, OpenMode::write())?;
        let mut start = [0; HEADER_LEN];
        let len = file.read_at(&mut start, 0)?;
        match check_header(&start[..len], id) {
            Header::Good => {}
            Header::Foreign(error) => {
                let path = path.display();
                tracing::error!(%path, %error, "cache: not a segment of this version: left alone");
                return Ok(());
            }
            Header::Damaged => return self.outside.fs.remove_file(&path),
        }
        let size = file.size()?;
        let (entries, bytes) = match read_footer(&file, id, size) {
            Ok(entries) => (entries, size),
            Err(_) => reseal(&file, id, size)?,
        };
        if entries.is_empty() {
            return self.outside.fs.remove_file(&path);
        }
        self.add_segment(id, Segment::new(self.for_readers(file), bytes));
        // The newest first here as well: a repaired frame lies behind the one it replaces.
        for entry in entries.iter().rev() {
            let spot = Spot::new(id, entry.offset, entry.len);
            self.disk.index().insert_older(&entry.key, spot);
        }
        Ok(())
    }
}

/// Finds the frames of a segment without a footer, and gives it one. If that cannot be written, the
/// frames are used all the same.
fn reseal(file: &BlockFile, id: u32, size: u64) -> io::Result<(Vec<Entry>, u64)> {
    let entries = walk(file, size)?;
    let end = entries.last().map_or(HEADER_LEN as u32, |last| last.offset + last.len);
    let bytes = footer(id, &entries, end);
    let sealed = u64::from(end) + bytes.len() as u64;
    let written = file.write_all_at(&bytes, u64::from(end)).and_then(|()| file.set_len(sealed));
    if let Err(error) = written {
        tracing::warn!(%error, "cache: a recovered segment could not be sealed");
        return Ok((entries, size));
    }
    Ok((entries, sealed))
}

/// The frames of a segment of `size` bytes, up to the first broken header or the torn tail.
fn walk(file: &BlockFile, size: u64) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut at = HEADER_LEN as u64;
    let mut bytes = [0; FRAME_HEADER];
    while entries.len() < MAX_ENTRIES && at + FRAME_HEADER as u64 <= size {
        file.read_exact_at(&mut bytes, at)?;
        let Ok(header) = FrameHeader::parse(&bytes) else { break };
        let len = header.frame_len() as u64;
        let Ok(offset) = u32::try_from(at) else { break };
        if at + len > size || u32::try_from(at + len).is_err() {
            break;
        }
        let key = Key { domain: header.domain, digest: header.digest };
        entries.push(Entry { key, offset, len: len as u32 });
        at += len;
    }
    Ok(entries)
}
