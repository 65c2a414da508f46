//! qcow2 disks, read through `imago`, which is only ever given the one file.
//!
//! Before `imago` sees the file its header is [looked at](header): what this program must not
//! silently misread (encrypted data, references to other files, tables that cannot be there) is
//! refused by name. And `imago` reads through [`strict::Exact`], for which the end of the file is an
//! error: its own files read as zeros there, and half a download would become a disk with zeros
//! where data belong.

mod header;
mod strict;

use std::io::ErrorKind;
use std::ops::Range;

use blockio::BlockFile;
use image::{Error, Kind, Result};
use imago::qcow2::Qcow2;
use imago::{FormatAccess, Mapping};

use super::Disk;
use super::fingerprint::Fingerprint;
use strict::Exact;

/// A qcow2 file without references to others. Clusters that are not allocated are not read.
pub(super) struct Qcow2Disk {
    access: FormatAccess<Exact>,
    cluster: usize,
    fingerprint: Fingerprint,
}

impl Qcow2Disk {
    pub(super) fn open(file: BlockFile) -> Result<Self> {
        let fingerprint = Fingerprint::take(&file)?;
        let cluster = header::check(&file)?;
        let mut qcow2 = Qcow2::<Exact>::open_image(Exact::new(file), false).map_err(bad)?;
        // The header's own parser and imago's must agree that there is nothing else to open.
        let others = [qcow2.implicit_backing_file(), qcow2.implicit_external_data_file()];
        if let Some(other) = others.into_iter().flatten().next() {
            return Err(header::refers(other));
        }
        if qcow2.requires_external_data_file() {
            return Err(header::refers("an external data file without a name"));
        }
        qcow2.set_backing(None);
        qcow2.set_data_file(None);
        Ok(Self { access: FormatAccess::new(qcow2), cluster, fingerprint })
    }
}

impl Disk for Qcow2Disk {
    fn size(&self) -> u64 {
        self.access.size()
    }

    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>> {
        let mut at = from;
        while at < self.size() {
            let (mapping, len) = self.access.get_mapping(at, self.size() - at).map_err(bad)?;
            let end = match mapping {
                Mapping::Eof { .. } => break,
                Mapping::Zero { .. } => None,
                _ => Some(at + len),
            };
            if len == 0 {
                let what = format!("at byte {at} of the disk: the cluster tables make no progress");
                return Err(Error::new(Kind::Corrupt, what));
            }
            if let Some(end) = end {
                return Ok(Some(at..end));
            }
            at += len;
        }
        Ok(None)
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let place = || format!("at byte {offset} of the disk");
        self.access.read(buf, offset).map_err(|e| bad(e).at(place()))
    }

    fn granule(&self) -> usize {
        self.cluster
    }

    fn check_unchanged(&self) -> Result<()> {
        self.fingerprint.check()
    }
}

/// An error of the format's reader: the file is bad, unless the system says otherwise.
fn bad(e: std::io::Error) -> Error {
    if blockio::errno(&e).is_some() {
        return Error::io("qcow2", e);
    }
    let hint = match e.kind() {
        ErrorKind::UnexpectedEof => ": is the copy complete?",
        _ => "",
    };
    Error::caused(Kind::Corrupt, format!("qcow2: {e}{hint}"), e)
}
