//! A volume as an export sees it. A full disk makes the guest wait and not fail: it goes on when there is
//! space again.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use blockio::{BlockFile, Buf, Engine};
use image::{Error, Kind, Result};
use volume_pool::{Piece, Volume};

use super::recorder::Recorder;
use crate::export::{Disk, Stretch};

/// How often a write is tried again while the disk is full.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct VolumeDisk {
    pub(super) volume: Rc<Volume>,
    read_only: bool,
    /// Is told what the guest does, while it starts.
    recorder: Option<Rc<Recorder>>,
    /// Somebody waits for space: it is said once.
    full: Cell<bool>,
}

impl VolumeDisk {
    pub(super) fn new(volume: Rc<Volume>, read_only: bool, recorder: Option<Rc<Recorder>>) -> Self {
        Self { volume, read_only, recorder, full: Cell::new(false) }
    }

    fn may_write(&self) -> Result<()> {
        match self.read_only {
            false => Ok(()),
            true => Err(Error::new(Kind::Denied, "this volume is attached for reading only")),
        }
    }

    /// Does something again and again while there is no space.
    async fn with_space(&self, mut work: impl AsyncFnMut() -> Result<()>) -> Result<()> {
        loop {
            match work().await {
                Err(error) if error.kind() == Kind::Full => {
                    if !self.full.replace(true) {
                        tracing::error!(%error, "a guest waits until there is space on this disk");
                    }
                    tokio::time::sleep(FULL_PAUSE).await;
                }
                done => {
                    if done.is_ok() && self.full.replace(false) {
                        tracing::info!("there is space again");
                    }
                    return done;
                }
            }
        }
    }
}

impl Disk for VolumeDisk {
    fn size(&self) -> u64 {
        self.volume.size()
    }

    fn sector(&self) -> u32 {
        self.volume.sector()
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    async fn read(&self, at: u64, buf: Buf) -> (Result<()>, Buf) {
        if let Some(recorder) = &self.recorder {
            recorder.read(at..at + buf.len() as u64);
        }
        self.volume.read(at, buf).await
    }

    fn read_from(&self, range: &Range<u64>) -> Option<(BlockFile, Engine)> {
        let from = self.volume.read_from(range)?;
        if let Some(recorder) = &self.recorder {
            recorder.read(range.clone());
        }
        Some(from)
    }

    async fn write(&self, at: u64, buf: Buf) -> (Result<()>, Buf) {
        if let Err(error) = self.may_write() {
            return (Err(error), buf);
        }
        if let Some(recorder) = &self.recorder {
            recorder.write(at..at + buf.len() as u64);
        }
        let mut held = Some(buf);
        let written = self.with_space(async || {
            let Some(buf) = held.take() else { unreachable!("it came back from the last try") };
            let (written, back) = self.volume.write(at, buf).await;
            held = Some(back);
            written
        });
        let written = written.await;
        let Some(buf) = held else { unreachable!("it came back from the last try") };
        (written, buf)
    }

    async fn zero(&self, range: Range<u64>, give_back: bool) -> Result<()> {
        self.may_write()?;
        if let Some(recorder) = &self.recorder {
            recorder.write(range.clone());
        }
        self.with_space(async || self.volume.zero(range.clone(), give_back).await).await
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.may_write()?;
        self.with_space(async || self.volume.discard(range.clone()).await).await
    }

    async fn flush(&self) -> Result<()> {
        self.with_space(async || self.volume.flush().await).await
    }

    fn stretches(&self, range: Range<u64>, most: usize) -> Result<Vec<(u64, Stretch)>> {
        let pieces = self.volume.pieces(range, most)?;
        let stretch = |piece| match piece {
            Piece::Data => Stretch::Data,
            Piece::Hole => Stretch::Hole,
            Piece::Absent => Stretch::Absent,
        };
        Ok(pieces.into_iter().map(|(len, piece)| (len, stretch(piece))).collect())
    }
}
