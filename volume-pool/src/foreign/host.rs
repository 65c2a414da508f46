//! The clusters of a qcow2 file as it grows, and how often each is referred to.
//!
//! Clusters are only ever added at the end. Their counts (16 bits) are written a block at a time, as soon as no
//! count of a block can change any more, so that few are in memory.

use std::ops::Range;

/// The clusters of a file that is being laid out.
#[derive(Debug)]
pub(super) struct Host {
    log2: u8,
    /// Clusters of the file so far.
    end: u64,
    /// The bytes that are left in the cluster that compressed ones were put into last.
    room: Range<u64>,
    /// The first cluster whose count has not been written.
    first: u64,
    /// Counts from `first` on. A cluster of 64 KiB has room for some thousand compressed ones, however well
    /// they compress.
    counts: Vec<u16>,
    /// Where the blocks of counts lie.
    blocks: Vec<u64>,
}

/// The counts at the end of a file.
pub(super) struct Counts {
    /// Where bytes lie that have not been written: blocks, and the table of all blocks.
    pub(super) pieces: Vec<(u64, Vec<u8>)>,
    /// Where the table lies, and how many clusters it takes.
    pub(super) table: u64,
    pub(super) clusters: u32,
    /// Bytes of the file.
    pub(super) len: u64,
}

impl Host {
    /// A file of one cluster, for the header.
    pub(super) fn new(log2: u8) -> Self {
        Self { log2, end: 1, room: 0..0, first: 0, counts: vec![1], blocks: Vec::new() }
    }

    /// Adds clusters that are referred to once each. Returns where they lie, in bytes.
    pub(super) fn clusters(&mut self, n: u64) -> u64 {
        let at = self.end;
        self.end += n;
        self.count(at..self.end);
        at << self.log2
    }

    /// Finds a place for a compressed cluster of `len` bytes, behind the last one if it has room there.
    pub(super) fn compressed(&mut self, len: u64) -> u64 {
        if self.room.end - self.room.start < len {
            let end = self.end << self.log2;
            // It may reach into further clusters, if these follow.
            if self.room.end != end {
                self.room = end..end;
            }
            self.end += (len - (end - self.room.start)).div_ceil(1 << self.log2);
            self.room.end = self.end << self.log2;
        }
        let at = self.room.start;
        self.room.start += len;
        self.count(at >> self.log2..(at + len).div_ceil(1 << self.log2));
        at
    }

    fn count(&mut self, clusters: Range<u64>) {
        let [start, end] = [clusters.start, clusters.end].map(|c| (c - self.first) as usize);
        self.counts.resize(self.counts.len().max(end), 0);
        self.counts[start..end].iter_mut().for_each(|count| *count += 1);
    }

    /// Clusters that a block counts.
    fn per_block(&self) -> u64 {
        1 << (self.log2 - 1)
    }

    /// A block of counts that are final, and where it is to be written. To be asked for until there is
    /// none.
    pub(super) fn settled(&mut self) -> Option<(u64, Vec<u8>)> {
        let end = self.first + self.per_block();
        if self.end < end {
            return None;
        }
        if self.room.start < end << self.log2 {
            self.room = 0..0;
        }
        Some(self.write_block())
    }

    /// Takes the counts of the next block out.
    fn write_block(&mut self) -> (u64, Vec<u8>) {
        let at = self.clusters(1);
        self.blocks.push(at);
        (at, self.take_block())
    }

    fn take_block(&mut self) -> Vec<u8> {
        let per_block = self.per_block() as usize;
        self.counts.resize(self.counts.len().max(per_block), 0);
        let block = self.counts.drain(..per_block).flat_map(u16::to_be_bytes).collect();
        self.first += per_block as u64;
        block
    }

    /// Ends the file with the counts that remain and the table of all blocks, which count themselves.
    pub(super) fn finish(mut self) -> Counts {
        let (cluster, written) = (1u64 << self.log2, self.blocks.len() as u64);
        let (mut blocks, mut table) = (0, 0);
        loop {
            let all = (self.end + blocks + table).div_ceil(self.per_block());
            let needed = (all - written, (8 * all).div_ceil(cluster));
            if needed == (blocks, table) {
                break;
            }
            (blocks, table) = needed;
        }
        let first = self.clusters(blocks);
        self.blocks.extend((0..blocks).map(|block| first + (block << self.log2)));
        let table_at = self.clusters(table);
        let mut pieces: Vec<_> =
            (0..blocks).map(|block| (first + (block << self.log2), self.take_block())).collect();
        debug_assert!(self.counts.is_empty());
        pieces.push((table_at, self.blocks.iter().flat_map(|at| at.to_be_bytes()).collect()));
        Counts { pieces, table: table_at, clusters: table as u32, len: self.end << self.log2 }
    }
}
