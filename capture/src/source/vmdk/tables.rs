//! Where a vmdk's grains lie: a directory of tables of grains.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use blockio::BlockFile;
use image::Result;

use super::header::{Header, SECTOR};
use super::{corrupt, read_exact};
use crate::source::read_error;

/// Tables kept in memory: each is at most 2 KiB, and covers 32 MiB of disk with the usual grains.
const CACHED: usize = 32;

/// A grain, by its table entry.
pub(super) enum Grain {
    /// Not allocated, or zeros.
    Zeros,
    /// Stored from this sector on.
    At(u64),
}

/// The directory, and the tables used last.
pub(super) struct Tables {
    directory: Vec<u32>,
    entries: u32,
    grains: u64,
    zero_grains: bool,
    /// The table used last is the last one.
    cache: Mutex<Vec<(usize, Arc<[u32]>)>>,
}

impl Tables {
    /// Reads the directory, of 4 bytes per 32 MiB of disk, mostly.
    pub(super) fn open(file: &BlockFile, header: &Header) -> Result<Self> {
        let grains = header.size.div_ceil(header.grain);
        let tables = grains.div_ceil(u64::from(header.entries));
        let at = header.directory.checked_mul(SECTOR);
        let size = file.size().map_err(read_error)?;
        // Before anything is allocated for it.
        let Some(at) = at.filter(|at| at.checked_add(4 * tables).is_some_and(|e| e <= size)) else {
            let what = format!("the grain directory reaches past the end ({size} bytes)");
            return Err(corrupt(format!("{what}: is the copy complete?")));
        };
        let directory = read_numbers(file, at, tables as usize)?;
        let (entries, zero_grains) = (header.entries, header.zero_grains);
        Ok(Self { directory, entries, grains, zero_grains, cache: Mutex::default() })
    }

    /// Where one grain is.
    pub(super) fn grain(&self, file: &BlockFile, grain: u64) -> Result<Grain> {
        let (index, entry) = self.split(grain);
        Ok(match self.table(file, index)? {
            Some(table) => self.meaning(table[entry]),
            None => Grain::Zeros,
        })
    }

    /// The first run of stored grains at or after `from`, within one table.
    pub(super) fn next_data(&self, file: &BlockFile, from: u64) -> Result<Option<Range<u64>>> {
        let mut grain = from;
        while grain < self.grains {
            let (index, entry) = self.split(grain);
            let end = ((index as u64 + 1) * u64::from(self.entries)).min(self.grains);
            if let Some(table) = self.table(file, index)? {
                let stored = |g: &u64| {
                    let entry = (g % u64::from(self.entries)) as usize;
                    matches!(self.meaning(table[entry]), Grain::At(_))
                };
                debug_assert!(entry < table.len());
                if let Some(first) = (grain..end).find(stored) {
                    let past = (first..end).find(|g| !stored(g)).unwrap_or(end);
                    return Ok(Some(first..past));
                }
            }
            grain = end;
        }
        Ok(None)
    }

    fn split(&self, grain: u64) -> (usize, usize) {
        let entries = u64::from(self.entries);
        ((grain / entries) as usize, (grain % entries) as usize)
    }

    fn meaning(&self, entry: u32) -> Grain {
        match entry {
            0 => Grain::Zeros,
            1 if self.zero_grains => Grain::Zeros,
            sector => Grain::At(u64::from(sector)),
        }
    }

    /// A grain table; `None` if none of its grains is stored.
    fn table(&self, file: &BlockFile, index: usize) -> Result<Option<Arc<[u32]>>> {
        let sector = self.directory[index];
        if sector == 0 {
            return Ok(None);
        }
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = cache.iter().position(|(i, _)| *i == index) {
            let used = cache.remove(found);
            cache.push(used.clone());
            return Ok(Some(used.1));
        }
        let numbers = read_numbers(file, u64::from(sector) * SECTOR, self.entries as usize)?;
        let table: Arc<[u32]> = numbers.into();
        if cache.len() == CACHED {
            cache.remove(0);
        }
        cache.push((index, Arc::clone(&table)));
        Ok(Some(table))
    }
}

fn read_numbers(file: &BlockFile, at: u64, count: usize) -> Result<Vec<u32>> {
    let mut bytes = vec![0; 4 * count];
    read_exact(file, &mut bytes, at)?;
    let numbers = bytes.chunks_exact(4);
    Ok(numbers.map(|b| u32::from_le_bytes(b.try_into().expect("chunks of four"))).collect())
}
