//! A page of a map on disk: one 512-byte sector.
//!
//! ```text
//!  0         1           2       4          8                      512
//!  | kind u8 | version 1 | zeros | CRC32C   | 63 words, u64 each   |
//! ```
//! The CRC32C is over the volume's id, the kind, the page's number and the words, so a page of another
//! volume or from another place is not taken for this one. A sector of zeros is a page that was never
//! written: all its bits are clear.

use super::bits::{WORDS, Words};

/// Bytes of a page: what a disk writes whole or not at all.
pub(crate) const PAGE_LEN: usize = 512;
const VERSION: u8 = 1;

/// What a map says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum MapKind {
    /// Per section: writes may have begun since `changed` was last written down.
    Intent = 1,
    /// Per chunk: it is here.
    Present = 2,
    /// Per block of a chunk that is not: the guest wrote it.
    Written = 3,
    /// Per block: written since the last capture.
    Changed = 4,
}

impl MapKind {
    pub(crate) const ALL: [Self; 4] = [Self::Intent, Self::Present, Self::Written, Self::Changed];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Present => "present",
            Self::Written => "written",
            Self::Changed => "changed",
        }
    }
}

/// Which page of which map of which volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageOf<'a> {
    pub(crate) volume: &'a [u8; 16],
    pub(crate) kind: MapKind,
    pub(crate) number: u32,
}

impl PageOf<'_> {
    fn checksum(&self, words: &[u8]) -> u32 {
        let crc = crc32c::crc32c(self.volume);
        let crc = crc32c::crc32c_append(crc, &[self.kind as u8]);
        let crc = crc32c::crc32c_append(crc, &self.number.to_le_bytes());
        crc32c::crc32c_append(crc, words)
    }

    pub(crate) fn encode(&self, words: &Words) -> [u8; PAGE_LEN] {
        let mut page = [0; PAGE_LEN];
        for (to, word) in page[8..].chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        (page[0], page[1]) = (self.kind as u8, VERSION);
        let crc = self.checksum(&page[8..]);
        page[4..8].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// The words of a page, or why there are none.
    pub(crate) fn decode(&self, page: &[u8; PAGE_LEN]) -> Result<Words, PageError> {
        if page.iter().all(|b| *b == 0) {
            return Ok([0; WORDS]);
        }
        if page[0] != self.kind as u8 || page[2..4] != [0, 0] {
            return Err(PageError::Damaged);
        }
        let crc = u32::from_le_bytes(page[4..8].try_into().expect("four bytes"));
        if crc != self.checksum(&page[8..]) {
            return Err(PageError::Damaged);
        }
        if page[1] != VERSION {
            return Err(PageError::Version(page[1]));
        }
        let mut words = [0; WORDS];
        for (word, from) in words.iter_mut().zip(page[8..].chunks_exact(8)) {
            *word = u64::from_le_bytes(from.try_into().expect("eight bytes"));
        }
        Ok(words)
    }
}

/// Why a page cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PageError {
    #[error("does not match its checksum")]
    Damaged,
    #[error("has version {0}, which this program does not know")]
    Version(u8),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: PageOf<'_> = PageOf { volume: &[7; 16], kind: MapKind::Written, number: 3 };

    #[test]
    fn golden() {
        let mut words = [0; WORDS];
        (words[0], words[62]) = (1, 1 << 63);
        let page = PAGE.encode(&words);
        let head: Vec<String> = page[..24].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            head.concat(),
            "030100000dcbe04001000000000000000000000000000000",
            "version bump required"
        );
        assert_eq!(page[511], 0x80, "version bump required");
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_seen(words in prop::collection::vec(any::<u64>(), WORDS), bit in 0..PAGE_LEN * 8) {
            let words: Words = words.try_into().unwrap();
            let mut page = PAGE.encode(&words);
            prop_assert_eq!(PAGE.decode(&page).unwrap(), words);
            page[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(PAGE.decode(&page).is_err());
        }

        #[test]
        fn a_page_from_elsewhere_is_not_taken(number in 0..5u32, kind in 0..4usize, volume in 6..8u8) {
            let page = PAGE.encode(&[1; WORDS]);
            let other = PageOf { volume: &[volume; 16], kind: MapKind::ALL[kind], number };
            prop_assert_eq!(other.decode(&page).is_ok(), other == PAGE);
        }
    }

    #[test]
    fn zeros_are_a_page_that_was_never_written() {
        assert_eq!(PAGE.decode(&[0; PAGE_LEN]).unwrap(), [0; WORDS]);
        // But a page that says so is told apart from damage.
        assert_ne!(PAGE.encode(&[0; WORDS]), [0; PAGE_LEN]);
    }
}
