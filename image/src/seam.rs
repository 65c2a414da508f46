//! The seams along which chunks move. A pull, a lazy read, a pool build and a migration all read
//! from a [`ChunkSource`]; an import, a capture and a push all write to an [`ImageSink`].
//!
//! Futures need not be `Send`: the chunk path runs one single-threaded runtime per core.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::chunk_set::ChunkSet;
use crate::digest::{Digest, Domain};
use crate::error::{Error, Kind, Result};
use crate::frame::Frame;
use crate::geometry::Geometry;
use crate::manifest::Manifest;
use crate::section::SectionTable;

/// How urgent a read is; a lower value overtakes a higher one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Priority {
    /// A guest is waiting.
    Guest = 0,
    /// A guest will soon ask for it (boot trace, readahead).
    Trace = 1,
    /// Nobody waits.
    #[default]
    Background = 2,
}

/// What travels with a read besides its place.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadContext {
    /// How urgent it is.
    pub priority: Priority,
    /// How long the answer is of use, from now.
    pub deadline: Option<Duration>,
    /// One id from node to store.
    pub trace: u128,
    /// The reader got bytes for these chunks that were wrong: whoever holds a copy checks it to the
    /// plain bytes, and fetches it anew if it is bad.
    pub repair: bool,
}

/// Which chunks of which section of which image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The image.
    pub image: Digest,
    /// Its section.
    pub section: u32,
    /// The section's chunks; none of them zeros.
    pub chunks: ChunkSet,
}

/// Gives chunks: the store, a cache, a peer across the network.
pub trait ChunkSource {
    /// The image's manifest, checked against its identity.
    fn manifest(
        &self,
        ctx: &ReadContext,
        image: &Digest,
    ) -> impl Future<Output = Result<Arc<Manifest>>>;

    /// A section's table, checked against the image's manifest. A section of zeros has a table of
    /// zeros, made on the spot.
    fn section_table(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> impl Future<Output = Result<Arc<SectionTable>>>;

    /// Gives each chunk of `place` to `sink` once, in any order, as it arrives, then returns. Every
    /// frame's CRC32C has been checked and its digest is the one in the section table; that the
    /// payload decodes to that digest is for the end that uses it to check. If some chunks cannot
    /// be had, the others are given all the same, and the error names the first. Dropping the
    /// future cancels the read.
    fn chunks<S: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> impl Future<Output = Result<()>>;
}

/// Takes chunks.
pub trait ChunkSink {
    /// Takes one frame; does not return while its owner has no room (back-pressure).
    fn chunk(&mut self, chunk: u32, frame: Frame) -> impl Future<Output = Result<()>>;
}

/// Collects chunks in memory: for small reads and tests.
impl ChunkSink for Vec<(u32, Frame)> {
    async fn chunk(&mut self, chunk: u32, frame: Frame) -> Result<()> {
        self.push((chunk, frame));
        Ok(())
    }
}

/// What a new image will be: said before its first section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePlan {
    /// Whose chunks it may share.
    pub domain: Domain,
    /// Its disk. The size is an upper bound: that of a stream is known at its end, when the manifest
    /// says it. Sector and chunk size are the image's.
    pub geometry: Geometry,
    /// The image it was made from, if the writer may read it: its chunks need not be sent again.
    pub parent: Option<Digest>,
}

impl ImagePlan {
    /// Whether a section can have this table. One with fewer chunks than its section could have ends
    /// the disk; that it does is seen at the end ([`ImagePlan::admits`]).
    pub fn check_table(&self, section: u32, table: &SectionTable) -> Result<()> {
        let invalid =
            |why: String| Err(Error::new(Kind::Invalid, why).at(format!("section {section}")));
        if table.domain() != self.domain {
            return invalid(format!("trust domain {} in the table", table.domain().0));
        }
        let (has, most) = (table.chunks(), self.geometry.chunks_in(section));
        if has == 0 || has > most {
            return invalid(format!("{has} chunks in the table, {most} in the section at most"));
        }
        if table.is_zero() {
            return invalid("a section of zeros is not offered".into());
        }
        Ok(())
    }

    /// Whether a chunk of a section with this table can be so long, in bytes. Only the last may be
    /// short, for the disk may end in it.
    pub fn chunk_fits(&self, section: u32, table: &SectionTable, chunk: u32, len: usize) -> bool {
        let full = self.geometry.chunk_len_at(section, chunk);
        let last = chunk + 1 == table.chunks();
        len == full || (last && (1..full).contains(&len))
    }

    /// Whether the image that was planned can have this manifest.
    pub fn admits(&self, manifest: &Manifest) -> Result<()> {
        let (plan, found) = (&self.geometry, manifest.geometry());
        let same = manifest.domain() == self.domain
            && found.sector() == plan.sector()
            && found.chunk_log2() == plan.chunk_log2();
        if same && found.size() <= plan.size() {
            return Ok(());
        }
        let why = "manifest: its trust domain or geometry is not what the push began with";
        Err(Error::new(Kind::Invalid, why))
    }
}

/// Takes a new image, section by section: the receiver, or a push across the network.
///
/// ```text
/// open → for each section that is not zeros: offer → chunk, chunk, … → seal
///      → commit (after every seal)
/// ```
pub trait ImageSink {
    /// One image on its way in.
    type Session: ImageSession;

    /// Starts an image.
    fn open(
        &self,
        ctx: &ReadContext,
        plan: &ImagePlan,
    ) -> impl Future<Output = Result<Self::Session>>;
}

/// One image on its way in. Sections may be offered and sent several at a time.
pub trait ImageSession {
    /// One section on its way in.
    type Section: SectionSink;

    /// Offers a section by its table. The answer names the chunks whose bytes must be sent; the
    /// others are already stored and the writer may lean on them.
    fn offer(
        &self,
        section: u32,
        table: &SectionTable,
    ) -> impl Future<Output = Result<(ChunkSet, Self::Section)>>;

    /// Makes the image: every section of the manifest that is not zeros must have been sealed in
    /// this session. Returns the image's identity when everything is durable.
    fn commit(&self, manifest: &Manifest) -> impl Future<Output = Result<Digest>>;
}

/// One section on its way in.
pub trait SectionSink {
    /// Sends one of the wanted chunks; does not return while the receiver has no room.
    fn chunk(&mut self, chunk: u32, frame: Frame) -> impl Future<Output = Result<()>>;

    /// Returns when every chunk of the section has been verified to the plain bytes, is durable,
    /// and was read back from the store.
    fn seal(self) -> impl Future<Output = Result<()>>;
}

/// Shared sources are sources.
impl<T: ChunkSource> ChunkSource for Rc<T> {
    async fn manifest(&self, ctx: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        T::manifest(self, ctx, image).await
    }

    async fn section_table(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        T::section_table(self, ctx, image, section).await
    }

    async fn chunks<S: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> Result<()> {
        T::chunks(self, ctx, place, sink).await
    }
}

/// Shared sources are sources.
impl<T: ChunkSource> ChunkSource for Arc<T> {
    async fn manifest(&self, ctx: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        T::manifest(self, ctx, image).await
    }

    async fn section_table(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        T::section_table(self, ctx, image, section).await
    }

    async fn chunks<S: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> Result<()> {
        T::chunks(self, ctx, place, sink).await
    }
}
