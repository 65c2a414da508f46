//! The maps of a volume: what of it is here, what the guest wrote, what has changed.
//!
//! | map | a bit for each | says | lags or leads |
//! |---|---|---|---|
//! | `present` | chunk | it is here, all of it | may lag the data, never lead it |
//! | `written` | block | the guest wrote it; asked only while its chunk is not present | the same |
//! | `changed` | block | written since the last capture | never lags: see `intent` |
//! | `intent` | section | writes may have begun since `changed` was last written down | leads |
//!
//! Bits are only ever added, except when a capture has all that `changed` says. So a page that was written down
//! before another is never wrong, only behind; and whichever pages a power cut leaves, old or new, together they
//! make a map that was allowed. Each page is kept twice: what either copy says counts.

mod bits;
mod file;
mod page;

pub(crate) use bits::Bits;
pub(crate) use file::MapFile;
use image::Manifest;
use page::MapKind;

use crate::layout::Layout;
use bits::Words;

/// A page to be written down.
#[derive(Clone, Debug)]
pub(crate) struct DirtyPage {
    kind: MapKind,
    number: u32,
    words: Words,
}

/// What is known of a volume's bytes.
#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) present: Bits,
    pub(crate) written: Bits,
    pub(crate) changed: Bits,
    /// What had changed when a capture under way began.
    pub(crate) captured: Option<Bits>,
    pub(crate) intent: Bits,
}

impl Maps {
    /// Of a volume of which nothing is here but what lies behind its image.
    pub(crate) fn new(layout: &Layout) -> Self {
        let mut maps = Self {
            present: Bits::new(layout.chunks()),
            written: Bits::new(layout.blocks()),
            changed: Bits::new(layout.blocks()),
            captured: None,
            intent: Bits::new(u64::from(layout.volume.sections())),
        };
        maps.beyond_the_image(layout);
        maps
    }

    /// Grows with the volume.
    pub(crate) fn grow(&mut self, layout: &Layout) {
        self.present.grow(layout.chunks());
        self.written.grow(layout.blocks());
        self.changed.grow(layout.blocks());
        self.intent.grow(u64::from(layout.volume.sections()));
        self.beyond_the_image(layout);
    }

    /// Behind the image all is zeros, and here.
    fn beyond_the_image(&mut self, layout: &Layout) {
        self.present.set(layout.image_chunks()..layout.chunks());
    }

    /// All is here, as the identity says: that need not be written down again.
    pub(crate) fn all_is_here(&mut self) {
        self.present.set(0..self.present.len());
        self.present.forget_dirty();
    }

    /// Sections of which the image has only zeros are here.
    pub(crate) fn zero_sections(&mut self, layout: &Layout, image: &Manifest) {
        let per = u64::from(layout.volume.chunks_per_section());
        let zeros = image.sections().iter().enumerate().filter(|(_, digest)| digest.is_zero());
        for (section, _) in zeros {
            let start = section as u64 * per;
            self.present.set(start..(start + per).min(layout.chunks()));
        }
    }

    fn of(&mut self, kind: MapKind) -> &mut Bits {
        match kind {
            MapKind::Intent => &mut self.intent,
            MapKind::Present => &mut self.present,
            MapKind::Written => &mut self.written,
            MapKind::Changed => &mut self.changed,
        }
    }

    /// Adds a page as it was written down.
    fn load(&mut self, kind: MapKind, number: u32, words: &Words) {
        self.of(kind).load(number, words);
    }

    /// A page has to be written down again.
    fn mark_dirty(&mut self, kind: MapKind, number: u32) {
        self.of(kind).mark_dirty(number);
    }

    /// Pages of `present` and `written` that have changed: what a flush must make last.
    pub(crate) fn take_guarding(&mut self) -> Vec<DirtyPage> {
        self.take([MapKind::Present, MapKind::Written])
    }

    /// Pages of `changed`.
    pub(crate) fn take_changed(&mut self) -> Vec<DirtyPage> {
        self.take([MapKind::Changed])
    }

    /// Pages of `intent`.
    pub(crate) fn take_intent(&mut self) -> Vec<DirtyPage> {
        self.take([MapKind::Intent])
    }

    fn take<const N: usize>(&mut self, kinds: [MapKind; N]) -> Vec<DirtyPage> {
        let mut all = Vec::new();
        for kind in kinds {
            let pages = self.of(kind).take_dirty().into_iter();
            all.extend(pages.map(|(number, words)| DirtyPage { kind, number, words }));
        }
        all
    }

    /// Pages that could not be written down stay to be.
    pub(crate) fn give_back(&mut self, pages: &[DirtyPage]) {
        pages.iter().for_each(|page| self.mark_dirty(page.kind, page.number));
    }

    /// Bytes of memory that they take.
    pub(crate) fn memory(&self) -> usize {
        let captured = self.captured.as_ref().map_or(0, Bits::memory);
        let all = [&self.present, &self.written, &self.changed, &self.intent];
        captured + all.map(Bits::memory).iter().sum::<usize>()
    }
}
