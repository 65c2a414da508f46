//! The identity block: what a volume says of itself, wherever it is found.
//!
//! ```text
//!  0        4       6         7         8         16      32         40           44
//!  | "FBVI" | ver 1 | state   | flags   | seq u64 | id    | size u64 | sector u32 | log2 chunk, 3 zeros |
//!  48           52            60             68              100       101            240     256     508      512
//!  | domain u32 | created u64 | image size   | image digest  | len u8  | name … zeros | claim | zeros | CRC32C u32 |
//! ```
//! It fills one 512-byte sector, which a disk writes whole or not at all, and there are two of them: a
//! change goes into the one that holds the older, and counts once it is durable. Of two that can be read the
//! one with the higher `seq` says how it is; a power cut leaves the one before, or both. Flag 1: the volume is
//! [plain](Identity::plain). Flag 2: it [shares](Identity::shares). Flag 4: it is
//! [untracked](Identity::untracked). Flag 8: it is [fresh](Identity::fresh). Flag 16: it has a
//! [claim](Identity::claim). A digest of zeros: there is no image.

use std::io;

use blockio::BlockFile;
use image::{Digest, Domain, Error, Kind, Result};

const MAGIC: &[u8; 4] = b"FBVI";
const VERSION: u16 = 1;
pub(crate) const LEN: usize = 512;
const PLAIN: u8 = 1;
const SHARES: u8 = 2;
const UNTRACKED: u8 = 4;
const FRESH: u8 = 8;
const CLAIMED: u8 = 16;
/// Longest name of a volume, in bytes.
pub const MAX_NAME: usize = 128;

/// Where a volume stands.
///
/// ```text
/// Building ─▶ Ready ─▶ Allocated ─▶ Erasing ─▶ Gone
///     │          ▲  └──────────────▶ │  │
///     └──────────┼──────────────────▶┘  │
///                └──────────────────────┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VolumeState {
    /// Being made; of no use yet.
    Building = 1,
    /// Made, and nobody's.
    Ready = 2,
    /// Somebody's.
    Allocated = 3,
    /// Given back; what is in it is being destroyed.
    Erasing = 4,
    /// No more.
    Gone = 5,
}

impl VolumeState {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Ready => "ready",
            Self::Allocated => "allocated",
            Self::Erasing => "erasing",
            Self::Gone => "gone",
        }
    }

    fn of(byte: u8) -> Option<Self> {
        [Self::Building, Self::Ready, Self::Allocated, Self::Erasing, Self::Gone]
            .into_iter()
            .find(|state| *state as u8 == byte)
    }

    /// Whether a volume may go from here to `next`.
    pub fn may_become(self, next: Self) -> bool {
        use VolumeState::*;
        matches!(
            (self, next),
            (Building, Ready | Erasing)
                | (Ready, Allocated | Erasing)
                | (Allocated, Erasing)
                | (Erasing, Ready | Gone)
        )
    }
}

/// The image that a volume was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its identity.
    pub image: Digest,
    /// Its disk's size in bytes.
    pub size: u64,
    /// Its trust domain.
    pub domain: Domain,
}

/// What a volume says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Drawn when it was made; its maps bear it too.
    pub id: [u8; 16],
    /// What people call it.
    pub name: String,
    /// Where it stands.
    pub state: VolumeState,
    /// Everything is here: the data are a plain raw disk, and the maps are not needed any more.
    pub plain: bool,
    /// It leaves the chunks of its image with the base that all such volumes of a node share, until it is
    /// plain.
    pub shares: bool,
    /// Others may have written to the plain data without our knowing: that a block is not in `changed` says
    /// nothing any more.
    pub untracked: bool,
    /// It was never shown to a guest that could write to it. Of volumes that were made before this was noted it is
    /// not known, and not said.
    pub fresh: bool,
    /// What the guest sees, in bytes.
    pub size: u64,
    /// Logical sector in bytes: 512 or 4096.
    pub sector: u32,
    /// Log2 of the chunk length.
    pub chunk_log2: u8,
    /// What it was made of; nothing of a blank one.
    pub base: Option<Base>,
    /// When, in seconds since 1970.
    pub created: u64,
    /// By which request it was taken from the [ready](crate::ready) ones, if it was.
    pub claim: Option<[u8; 16]>,
}

impl Identity {
    /// Whether all of its bytes last whatever happens: they did before it was plain, and nobody writes to what is
    /// nobody's. Repairs of it are flushed by who makes them.
    pub(crate) fn is_settled(&self) -> bool {
        self.plain && self.state == VolumeState::Ready
    }

    fn encode(&self, seq: u64) -> [u8; LEN] {
        let mut b = [0; LEN];
        let base = self.base.unwrap_or(Base { image: Digest::ZERO, size: 0, domain: Domain(0) });
        b[..4].copy_from_slice(MAGIC);
        b[4..6].copy_from_slice(&VERSION.to_le_bytes());
        let flags = [
            (self.plain, PLAIN),
            (self.shares, SHARES),
            (self.untracked, UNTRACKED),
            (self.fresh, FRESH),
            (self.claim.is_some(), CLAIMED),
        ];
        let flags = flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).sum();
        (b[6], b[7]) = (self.state as u8, flags);
        b[8..16].copy_from_slice(&seq.to_le_bytes());
        b[16..32].copy_from_slice(&self.id);
        b[32..40].copy_from_slice(&self.size.to_le_bytes());
        b[40..44].copy_from_slice(&self.sector.to_le_bytes());
        b[44] = self.chunk_log2;
        b[48..52].copy_from_slice(&base.domain.0.to_le_bytes());
        b[52..60].copy_from_slice(&self.created.to_le_bytes());
        b[60..68].copy_from_slice(&base.size.to_le_bytes());
        b[68..100].copy_from_slice(&base.image.0);
        b[100] = self.name.len() as u8;
        b[101..101 + self.name.len()].copy_from_slice(self.name.as_bytes());
        b[240..256].copy_from_slice(&self.claim.unwrap_or_default());
        let crc = crc32c::crc32c(&b[..508]);
        b[508..].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Reads a block; nothing if it is none, or damaged.
    fn decode(b: &[u8; LEN]) -> Result<Option<(u64, Self)>> {
        let le64 = |at: usize| u64::from_le_bytes(b[at..at + 8].try_into().expect("eight bytes"));
        let le32 = |at: usize| u32::from_le_bytes(b[at..at + 4].try_into().expect("four bytes"));
        if &b[..4] != MAGIC || crc32c::crc32c(&b[..508]) != le32(508) {
            return Ok(None);
        }
        let version = u16::from_le_bytes([b[4], b[5]]);
        if version != VERSION {
            let what = format!("identity block of version {version}; this program knows {VERSION}");
            return Err(Error::new(Kind::Unsupported, what));
        }
        let bad = |what: &str| Error::new(Kind::Corrupt, format!("identity block: {what}"));
        let state = VolumeState::of(b[6]).ok_or_else(|| bad("unknown state"))?;
        if b[7] & !(PLAIN | SHARES | UNTRACKED | FRESH | CLAIMED) != 0 {
            return Err(Error::new(Kind::Unsupported, "identity block: unknown flags"));
        }
        let name = b.get(101..101 + usize::from(b[100])).filter(|n| n.len() <= MAX_NAME);
        let name = name.and_then(|n| std::str::from_utf8(n).ok()).ok_or_else(|| bad("name"))?;
        let image = Digest(b[68..100].try_into().expect("32 bytes"));
        let base = Base { image, size: le64(60), domain: Domain(le32(48)) };
        let identity = Self {
            id: b[16..32].try_into().expect("16 bytes"),
            name: name.to_owned(),
            state,
            plain: b[7] & PLAIN != 0,
            shares: b[7] & SHARES != 0,
            untracked: b[7] & UNTRACKED != 0,
            fresh: b[7] & FRESH != 0,
            size: le64(32),
            sector: le32(40),
            chunk_log2: b[44],
            base: (!image.is_zero()).then_some(base),
            created: le64(52),
            claim: (b[7] & CLAIMED != 0).then(|| b[240..256].try_into().expect("16 bytes")),
        };
        // Whoever takes it may count on what a geometry promises.
        image::Geometry::new(identity.size, identity.sector, identity.chunk_log2)?;
        if base.size > identity.size {
            return Err(bad("an image larger than its volume"));
        }
        Ok(Some((le64(8), identity)))
    }
}

/// The two blocks of a volume, in a file of their own or at the end of a device.
#[derive(Debug)]
pub struct IdentityBlocks {
    file: BlockFile,
    at: u64,
    seq: u64,
    now: Identity,
}

impl IdentityBlocks {
    /// Writes the first block. What was there before is overwritten.
    pub fn create(file: BlockFile, at: u64, identity: Identity) -> Result<Self> {
        if identity.name.is_empty() || identity.name.len() > MAX_NAME {
            let what = format!("a volume's name has 1 to {MAX_NAME} bytes");
            return Err(Error::new(Kind::Invalid, what));
        }
        file.write_all_at(&[0; 2 * LEN], at).map_err(io)?;
        let mut blocks = Self { file, at, seq: 0, now: identity };
        blocks.write()?;
        Ok(blocks)
    }

    /// Reads what a volume says of itself.
    ///
    /// # Errors
    ///
    /// [`Kind::Corrupt`] if there is no block that can be read; [`Kind::Unsupported`] for one of a later
    /// version.
    pub fn open(file: BlockFile, at: u64) -> Result<Self> {
        let mut newest: Option<(u64, Identity)> = None;
        for slot in 0..2 {
            let mut block = [0; LEN];
            let read = file.read_at(&mut block, at + slot * LEN as u64).map_err(io)?;
            if read < LEN {
                continue;
            }
            let found = Identity::decode(&block).map_err(|e| e.at(file.path().display()))?;
            newest = newest.into_iter().chain(found).max_by_key(|(seq, _)| *seq);
        }
        let Some((seq, now)) = newest else {
            let what = format!("{}: no identity block of a volume", file.path().display());
            return Err(Error::new(Kind::Corrupt, what));
        };
        Ok(Self { file, at, seq, now })
    }

    /// What it says.
    pub fn get(&self) -> &Identity {
        &self.now
    }

    /// The file that it lies in.
    pub fn file(&self) -> &BlockFile {
        &self.file
    }

    /// Goes to another state, durably.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] for a move that there is not.
    pub fn become_state(&mut self, next: VolumeState) -> Result<()> {
        let (from, name) = (self.now.state, &self.now.name);
        if !from.may_become(next) {
            let what =
                format!("{name}: a volume that is {} cannot be {}", from.name(), next.name());
            return Err(Error::new(Kind::Conflict, what));
        }
        self.change(|identity| identity.state = next)
    }

    /// Changes what it says, durably or, with an error, perhaps. What is [being made](VolumeState::Building) need not last:
    /// of that a power cut leaves what is removed, whatever it says.
    pub fn change(&mut self, change: impl FnOnce(&mut Identity)) -> Result<()> {
        let before = self.now.clone();
        change(&mut self.now);
        self.write().inspect_err(|_| self.now = before)
    }

    /// Makes it say nothing any more, durably. For devices, of which no file is removed.
    pub(crate) fn wipe(self) -> Result<()> {
        self.file.write_all_at(&[0; 2 * LEN], self.at).map_err(io)?;
        self.file.sync_data().map_err(io)
    }

    fn write(&mut self) -> Result<()> {
        let seq = self.seq + 1;
        let block = self.now.encode(seq);
        self.file.write_all_at(&block, self.at + seq % 2 * LEN as u64).map_err(io)?;
        if self.now.state != VolumeState::Building {
            self.file.sync_data().map_err(io)?;
        }
        self.seq = seq;
        Ok(())
    }
}

/// The error names the path already.
fn io(error: io::Error) -> Error {
    Error::io("volume", error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockio::OpenMode;
    use blockio::fake::{CrashPlan, MemFs};
    use proptest::prelude::*;

    fn identity() -> Identity {
        Identity {
            id: [7; 16],
            name: "web-1".into(),
            state: VolumeState::Building,
            plain: false,
            shares: false,
            untracked: false,
            fresh: false,
            size: 4 << 30,
            sector: 512,
            chunk_log2: 18,
            base: Some(Base { image: Digest([9; 32]), size: 1 << 30, domain: Domain(0) }),
            created: 1_700_000_000,
            claim: None,
        }
    }

    #[test]
    fn golden() {
        let block = identity().encode(5);
        let hex = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let head = "46425649010001000500000000000000\
                    07070707070707070707070707070707\
                    00000000010000000002000012000000\
                    0000000000f1536500000000000000400000000009090909";
        assert_eq!(hex(&block[..72]), head, "version bump required");
        assert_eq!(hex(&block[508..]), "18dd32b9", "version bump required");
        assert_eq!(Identity::decode(&block).unwrap().unwrap(), (5, identity()));
    }

    #[test]
    fn flags() {
        let all = Identity { plain: true, shares: true, untracked: true, ..identity() };
        assert_eq!(all.encode(5)[7], 7, "version bump required");
        let all = Identity { fresh: true, ..all };
        assert_eq!(all.encode(5)[7], 15, "version bump required");
        assert_eq!(Identity::decode(&all.encode(5)).unwrap().unwrap().1, all);
        let claimed = Identity { claim: Some([5; 16]), ..identity() };
        let block = claimed.encode(5);
        assert_eq!((block[7], &block[240..256]), (16, &[5; 16][..]), "version bump required");
        assert_eq!(Identity::decode(&block).unwrap().unwrap().1, claimed);
        let mut later = identity().encode(5);
        later[7] = 32;
        let crc = crc32c::crc32c(&later[..508]);
        later[508..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Identity::decode(&later).unwrap_err().kind(), Kind::Unsupported);
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_seen(bit in 0..LEN * 8) {
            let mut block = identity().encode(5);
            block[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Identity::decode(&block).unwrap().is_none());
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), LEN)) {
            bytes[..6].copy_from_slice(b"FBVI\x01\x00");
            let crc = crc32c::crc32c(&bytes[..508]);
            bytes[508..].copy_from_slice(&crc.to_le_bytes());
            let _ = Identity::decode(&bytes.try_into().unwrap());
        }
    }

    #[test]
    fn a_power_cut_leaves_the_state_before_or_after() {
        use VolumeState::*;
        let disk = MemFs::new();
        let fs = disk.fs();
        let file = fs.open("/identity", OpenMode::create_new()).unwrap();
        fs.sync_dir("/").unwrap();
        let mut blocks = IdentityBlocks::create(file, 0, identity()).unwrap();
        blocks.file().sync_data().unwrap();
        disk.mark("Building");
        for state in [Ready, Allocated, Erasing, Gone] {
            blocks.become_state(state).unwrap();
            disk.mark(format!("{state:?}"));
        }
        for image in disk.crash_images(CrashPlan::default()) {
            let found = image.fs().open("/identity", OpenMode::write());
            let found = found.ok().and_then(|file| IdentityBlocks::open(file, 0).ok());
            let state = found.as_ref().map(|f| f.get().state);
            match image.marks().last() {
                None => assert!(matches!(state, None | Some(Building)), "{image}"),
                Some(mark) => {
                    let order = [Building, Ready, Allocated, Erasing, Gone];
                    let at = order.iter().position(|s| format!("{s:?}") == mark).unwrap();
                    let may = &order[at..order.len().min(at + 2)];
                    assert!(state.is_some_and(|s| may.contains(&s)), "{image}: {state:?}");
                }
            }
            // And it can be gone on with.
            if let Some(mut found) = found {
                found.change(|i| i.plain = true).unwrap();
            }
        }
    }

    #[test]
    fn moves_that_there_are_not_change_nothing() {
        use VolumeState::*;
        let disk = MemFs::new();
        let file = disk.fs().open("/identity", OpenMode::create_new()).unwrap();
        let mut blocks = IdentityBlocks::create(file.clone(), 0, identity()).unwrap();
        for to in [Building, Allocated, Gone] {
            assert_eq!(blocks.become_state(to).unwrap_err().kind(), Kind::Conflict);
        }
        assert_eq!(IdentityBlocks::open(file, 0).unwrap().get().state, Building);
        assert!(Erasing.may_become(Ready) && !Gone.may_become(Ready));
    }
}
