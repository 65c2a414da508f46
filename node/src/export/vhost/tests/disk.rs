//! A disk in memory that can be made to wait.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blockio::Buf;
use image::{Error, Kind, Result};

use crate::export::{Disk, Stretch};

/// What both sides of a test see.
#[derive(Default)]
pub struct Shared {
    pub data: Mutex<Vec<u8>>,
    /// Operations wait while this is set.
    pub hold: AtomicBool,
    /// But not those at this place.
    pub free: AtomicU64,
    /// Operations fail while this is set.
    pub fail: AtomicBool,
    pub flushes: AtomicU64,
    /// What was begun, as a letter and a place.
    pub log: Mutex<Vec<(char, u64)>>,
}

impl Shared {
    pub fn new(size: usize) -> Arc<Self> {
        let shared = Self::default();
        shared.data.lock().unwrap().resize(size, 0);
        shared.free.store(u64::MAX, Ordering::SeqCst);
        Arc::new(shared)
    }

    /// Waits until so many operations were begun.
    pub fn begun(&self, count: usize) {
        for _ in 0..60_000 {
            if self.log.lock().unwrap().len() >= count {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        panic!("the device does not begin");
    }
}

pub struct MemDisk {
    pub shared: Arc<Shared>,
    pub sector: u32,
    pub read_only: bool,
}

impl MemDisk {
    pub fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), sector: 512, read_only: false }
    }

    async fn begin(&self, what: char, at: u64) -> Result<()> {
        self.shared.log.lock().unwrap().push((what, at));
        // Some end at once, some later, so that answers come out of order.
        for _ in 0..at / 4096 % 3 {
            tokio::task::yield_now().await;
        }
        let free = self.shared.free.load(Ordering::SeqCst) == at;
        while !free && self.shared.hold.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        match self.shared.fail.load(Ordering::SeqCst) {
            true => Err(Error::new(Kind::Io, "told to fail")),
            false => Ok(()),
        }
    }

    fn fill(&self, range: Range<u64>) {
        let mut data = self.shared.data.lock().unwrap();
        data[range.start as usize..range.end as usize].fill(0);
    }
}

impl Disk for MemDisk {
    fn size(&self) -> u64 {
        self.shared.data.lock().unwrap().len() as u64
    }

    fn sector(&self) -> u32 {
        self.sector
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    async fn read(&self, at: u64, mut buf: Buf) -> (Result<()>, Buf) {
        let begun = self.begin('r', at).await;
        let len = buf.len();
        buf.copy_from_slice(&self.shared.data.lock().unwrap()[at as usize..][..len]);
        (begun, buf)
    }

    async fn write(&self, at: u64, buf: Buf) -> (Result<()>, Buf) {
        let begun = self.begin('w', at).await;
        if begun.is_ok() {
            self.shared.data.lock().unwrap()[at as usize..][..buf.len()].copy_from_slice(&buf);
        }
        (begun, buf)
    }

    async fn zero(&self, range: Range<u64>, give_back: bool) -> Result<()> {
        self.begin(if give_back { 'Z' } else { 'z' }, range.start).await?;
        self.fill(range);
        Ok(())
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.begin('d', range.start).await?;
        self.fill(range);
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        self.begin('f', 0).await?;
        self.shared.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn stretches(&self, range: Range<u64>, _: usize) -> Result<Vec<(u64, Stretch)>> {
        Ok(vec![(range.end - range.start, Stretch::Data)])
    }
}
