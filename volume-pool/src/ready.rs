//! Ready volumes: made ahead, nobody's, known by their ids alone.
//!
//! They are volumes like any other, in a directory of their own beside those of people, so that no name leads to
//! one. Handing one out is a rename; what it is renamed to is written down first, in its identity:
//!
//! ```text
//!                 sync                  sync                  sync
//!  .ready/ID  Ready ─▶ Allocated, NAME, claim ─▶ rename ─▶ NAME      from the first sync on it is NAME's
//!  .ready/ID  Erasing ◀─ rename ◀─ journal, Erasing ◀─ NAME          from the last sync but one on nobody's
//! ```
//! What is being made does not last until it is ready: who fills it syncs its bytes, and [`made`](Shelf::made) all the
//! rest, and then its identity. What a power cut leaves of it before is removed, whatever is there.
//!
//! Of either of these a power cut leaves what was before, or what [`tidy`](Shelf::tidy) completes: never both, and never
//! a volume that two have. A volume that was given back is not handed out before what was in it is destroyed.

use std::io::ErrorKind;

use blockio::OpenMode;
use image::{Error, Kind, Result};

use crate::erase::Plan;
use crate::identity::{LEN, VolumeState};
use crate::shelf::{DISK, ERASING, IDENTITY, MANIFEST, NewVolume, ORIGIN, Shelf, io};

const READY: &str = ".ready";
/// Longest note of where a volume comes from, in bytes.
const MAX_ORIGIN: usize = 16 << 10;

/// A volume's id as its name among the ready ones.
pub fn name_of(id: &[u8; 16]) -> String {
    id.iter().map(|b| format!("{b:02x}")).collect()
}

impl Shelf {
    /// The volumes that are nobody's: being made, ready, or given back.
    ///
    /// # Errors
    ///
    /// Of the disk.
    pub fn ready(&self) -> Result<Self> {
        Self::open(self.fs.clone(), self.dir.join(READY))
    }

    /// Begins to make one of them; its name is to be that of its id. It is of no use, and nothing of it lasts, before
    /// [`made`](Self::made). `origin` says what it was made for, and stays with it.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub fn make(&self, new: &NewVolume, origin: &[u8]) -> Result<()> {
        self.create_as(VolumeState::Building, new)?;
        let path = self.dir.join(&new.name).join(ORIGIN);
        let file = self.fs.open(path, OpenMode::create_new()).map_err(io)?;
        file.write_all_at(origin, 0).map_err(io)
    }

    /// Counts one that was being made as ready. All of it lasts before that does: the bytes of its image by
    /// [`become_plain`](crate::Volume::become_plain), everything else by this.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] while it is in use, or is not being made, or not all of its image is
    /// here; of the disk: it is being made still.
    pub fn made(&self, id: &[u8; 16]) -> Result<()> {
        let name = name_of(id);
        let mut identity = self.take_identity(&name)?;
        let dir = self.path(&name)?;
        let of_image = identity.get().base.is_some();
        if of_image && !identity.get().plain {
            let what = format!("{name}: chunks of its image are still missing");
            return Err(Error::new(Kind::Conflict, what));
        }
        let bytes_or_image = if of_image { MANIFEST } else { DISK };
        // Its maps are empty: their name is enough.
        for file in [bytes_or_image, ORIGIN] {
            let file = self.fs.open(dir.join(file), OpenMode::write());
            file.and_then(|file| file.sync_data()).map_err(io)?;
        }
        self.fs.sync_dir(&dir).map_err(io)?;
        self.fs.sync_dir(&self.dir).map_err(io)?;
        identity.become_state(VolumeState::Ready)
    }

    /// Notes that a volume is written past its maps from now on. Of one that is being made that lasts when it is
    /// [made](Self::made), of any other when this returns.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] while it is in use.
    pub fn note_untracked(&self, name: &str) -> Result<()> {
        self.take_identity(name)?.change(|identity| identity.untracked = true)
    }

    /// What a volume was made for; nothing is known of one that was not made ahead.
    ///
    /// # Errors
    ///
    /// Of the disk.
    pub fn origin(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self.fs.read(self.path(name)?.join(ORIGIN), MAX_ORIGIN) {
            Ok(origin) => Ok(Some(origin)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io(e)),
        }
    }

    /// Hands out a ready volume under a name, by a request that nobody else makes. When this returns it lasts.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if there is a volume of this name; [`Kind::Gone`] if there is no such ready volume;
    /// [`Kind::Conflict`] too if it is not ready, or in use.
    pub fn hand_out(&self, id: &[u8; 16], name: &str, claim: [u8; 16]) -> Result<()> {
        let to = self.path(name)?;
        if self.fs.exists(&to).map_err(io)? {
            let what = format!("{name}: there is a volume of this name");
            return Err(Error::new(Kind::Conflict, what));
        }
        let ready = self.ready()?;
        let mut identity = ready.take_identity(&name_of(id))?;
        if !identity.get().state.may_become(VolumeState::Allocated) {
            let state = identity.get().state.name();
            let what = format!("{}: {state}, and not ready", name_of(id));
            return Err(Error::new(Kind::Conflict, what));
        }
        identity.change(|identity| {
            identity.state = VolumeState::Allocated;
            name.clone_into(&mut identity.name);
            identity.claim = Some(claim);
        })?;
        self.fs.rename_new_durable(ready.path(&name_of(id))?, to).map_err(io)
    }

    /// Takes a volume back from whoever had it: from now on it is nobody's, and what is in it is to be erased by
    /// this plan. Returns its id. `now` is in seconds since 1970.
    ///
    /// # Errors
    ///
    /// [`Kind::Gone`] if there is none; [`Kind::Conflict`] if somebody uses it; [`Kind::Invalid`] for a plan that is
    /// none.
    pub fn take_back(&self, name: &str, plan: &Plan, now: u64) -> Result<[u8; 16]> {
        let id = self.identity(name)?.id;
        // What says that it goes back: from here on no name leads to it, whatever happens.
        drop(self.erase(name, plan, now)?);
        self.give_back(name, &id)?;
        Ok(id)
    }

    fn give_back(&self, name: &str, id: &[u8; 16]) -> Result<()> {
        let (from, to) = (self.path(name)?, self.ready()?.path(&name_of(id))?);
        self.fs.rename_new_durable(from, to).map_err(io)
    }

    /// Completes what a power cut interrupted: moves what is being erased to where nobody finds it by a name.
    pub(crate) fn tidy_returned(&self) -> Result<Vec<(String, Error)>> {
        let mut left = Vec::new();
        for name in self.names()? {
            // What cannot be read was told of already.
            let Ok(identity) = self.identity(&name) else { continue };
            if identity.state == VolumeState::Erasing
                && self.is_erased_by_steps(&name)?
                && let Err(error) = self.give_back(&name, &identity.id)
            {
                left.push((name, error));
            }
        }
        Ok(left)
    }

    /// Completes what a power cut interrupted: hands out what was promised, removes what was being made. What
    /// cannot be read is left, and its name returned with the reason.
    pub(crate) fn tidy_ready(&self) -> Result<Vec<(String, Error)>> {
        let (ready, mut left) = (self.ready()?, Vec::new());
        for name in ready.names()? {
            if let Err(error) = self.tidy_ready_one(&ready, &name) {
                left.push((name, error));
            }
        }
        Ok(left)
    }

    /// Whether the identity of a volume that is nobody's was never made to last: that comes before it is anything but one
    /// that is being made. Nobody has written to those but who makes them.
    fn was_being_made(&self, name: &str) -> Result<bool> {
        let dir = self.path(name)?;
        let identity = self.fs.read(dir.join(IDENTITY), 2 * LEN).map_err(io)?;
        let blank = identity.iter().all(|byte| *byte == 0);
        // Who lost it while it was erased keeps what is to be erased.
        Ok(blank && !self.fs.exists(dir.join(ERASING)).map_err(io)?)
    }

    fn tidy_ready_one(&self, ready: &Self, name: &str) -> Result<()> {
        let promised = match ready.identity(name) {
            Ok(identity) => match identity.state {
                VolumeState::Allocated => identity.name,
                // Whoever erases goes on.
                VolumeState::Ready | VolumeState::Erasing => return Ok(()),
                VolumeState::Building | VolumeState::Gone => return ready.remove(name),
            },
            Err(error) if error.kind() == Kind::Corrupt && ready.was_being_made(name)? => {
                return ready.remove_files(&ready.path(name)?, None);
            }
            Err(_) => return ready.tidy_one(name),
        };
        self.fs.rename_new_durable(ready.path(name)?, self.path(&promised)?).map_err(io)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use blockio::Fs;
    use blockio::fake::{CrashPlan, MemFs, Op};
    use image::{Digest, Domain, Geometry, Manifest};

    use super::*;
    use crate::erase::{Method, Proof};

    const ID: [u8; 16] = [7; 16];
    const CLAIM: [u8; 16] = [9; 16];
    const PLAN: Plan =
        Plan { method: Method::Zeros { passes: 1 }, proof: Proof::None, seed: [3; 32] };

    fn shelf(fs: Fs) -> Shelf {
        Shelf::open(fs, "/volumes".into()).unwrap()
    }

    fn begin(shelf: &Shelf) {
        let geometry = Geometry::new(1 << 20, 512, 18).unwrap();
        let name = name_of(&ID);
        let new = NewVolume {
            name,
            id: ID,
            geometry,
            image: None,
            shares: false,
            device: None,
            created: 5,
        };
        shelf.ready().unwrap().make(&new, b"of a pool").unwrap();
    }

    fn make(shelf: &Shelf) {
        begin(shelf);
        shelf.ready().unwrap().made(&ID).unwrap();
    }

    #[test]
    fn what_is_handed_out_has_its_name_and_is_known_by_its_request() {
        let shelf = shelf(MemFs::new().fs());
        begin(&shelf);
        let early = shelf.hand_out(&ID, "web", CLAIM).unwrap_err();
        assert!(early.kind() == Kind::Conflict && early.message().contains("building"), "{early}");
        shelf.ready().unwrap().made(&ID).unwrap();
        assert!(shelf.names().unwrap().is_empty(), "nobody's");
        shelf.hand_out(&ID, "web", CLAIM).unwrap();
        let identity = shelf.identity("web").unwrap();
        assert_eq!((identity.name.as_str(), identity.claim), ("web", Some(CLAIM)));
        assert_eq!(identity.state, VolumeState::Allocated);
        assert_eq!(shelf.origin("web").unwrap().unwrap(), b"of a pool");
        assert!(shelf.ready().unwrap().names().unwrap().is_empty());
        // Once.
        assert_eq!(shelf.hand_out(&ID, "db", CLAIM).unwrap_err().kind(), Kind::Gone);
        let files = shelf.take("web").unwrap();
        assert_eq!(shelf.take_back("web", &PLAN, 9).unwrap_err().kind(), Kind::Conflict, "in use");
        drop(files);
        assert_eq!(shelf.take_back("web", &PLAN, 9).unwrap(), ID);
        let back = shelf.ready().unwrap().identity(&name_of(&ID)).unwrap();
        assert_eq!(
            (back.state, back.name.as_str()),
            (VolumeState::Erasing, "web"),
            "for the record"
        );
        assert_eq!(shelf.hand_out(&ID, "web", CLAIM).unwrap_err().kind(), Kind::Conflict);
    }

    #[test]
    fn handing_out_takes_three_syncs() {
        let disk = MemFs::new();
        let shelf = shelf(disk.fs());
        make(&shelf);
        let syncs = || {
            let log = disk.log();
            log.iter().filter(|op| matches!(op, Op::Sync { .. } | Op::SyncDir { .. })).count()
        };
        let before = syncs();
        shelf.hand_out(&ID, "web", CLAIM).unwrap();
        assert_eq!(syncs() - before, 3, "of the identity, and of the two directories of a rename");
    }

    #[test]
    fn a_name_that_is_taken_costs_nobody_a_volume() {
        let shelf = shelf(MemFs::new().fs());
        make(&shelf);
        shelf.hand_out(&ID, "web", CLAIM).unwrap();
        let geometry = Geometry::new(1 << 20, 512, 18).unwrap();
        let name = name_of(&[8; 16]);
        let (image, device) = (None, None);
        let new =
            NewVolume { name, id: [8; 16], geometry, image, shares: false, device, created: 5 };
        shelf.ready().unwrap().make(&new, b"").unwrap();
        shelf.ready().unwrap().made(&[8; 16]).unwrap();
        assert_eq!(shelf.hand_out(&[8; 16], "web", CLAIM).unwrap_err().kind(), Kind::Conflict);
        assert_eq!(shelf.hand_out(&[8; 16], "../web", CLAIM).unwrap_err().kind(), Kind::Invalid);
        let still = shelf.ready().unwrap().identity(&name_of(&[8; 16])).unwrap();
        assert_eq!(still.state, VolumeState::Ready);
    }

    #[test]
    fn a_power_cut_leaves_it_ready_or_handed_out() {
        let disk = MemFs::new();
        let first = shelf(disk.fs());
        make(&first);
        disk.settle();
        first.hand_out(&ID, "web", CLAIM).unwrap();
        disk.mark("given");
        for cut in disk.crash_images(CrashPlan::default()) {
            let shelf = shelf(cut.fs());
            assert!(shelf.tidy().unwrap().is_empty(), "{cut}");
            let given = shelf.names().unwrap();
            let ready = shelf.ready().unwrap().names().unwrap();
            assert_eq!(given.len() + ready.len(), 1, "{cut}: {given:?} {ready:?}");
            match given.is_empty() {
                true => {
                    assert!(cut.marks().next().is_none(), "{cut}: an answer that was taken back");
                    shelf.hand_out(&ID, "db", CLAIM).unwrap();
                }
                false => assert_eq!(shelf.identity("web").unwrap().claim, Some(CLAIM)),
            }
        }
    }

    #[test]
    fn a_power_cut_leaves_it_somebodys_or_to_be_erased() {
        let disk = MemFs::new();
        let first = shelf(disk.fs());
        make(&first);
        first.hand_out(&ID, "web", CLAIM).unwrap();
        disk.settle();
        first.take_back("web", &PLAN, 9).unwrap();
        disk.mark("back");
        for cut in disk.crash_images(CrashPlan::default()) {
            let shelf = shelf(cut.fs());
            assert!(shelf.tidy().unwrap().is_empty(), "{cut}");
            match shelf.identity("web") {
                Ok(identity) => {
                    assert_eq!(identity.state, VolumeState::Allocated, "{cut}");
                    assert!(cut.marks().next().is_none(), "{cut}");
                }
                Err(_) => {
                    let back = shelf.ready().unwrap().identity(&name_of(&ID)).unwrap();
                    assert_eq!(back.state, VolumeState::Erasing, "{cut}");
                }
            }
        }
    }

    /// What is in the image of the volume that is filled.
    const BYTES: [u8; 8192] = [5; 8192];

    /// Makes one that holds an image, as whoever fills it does.
    fn fill(shelf: &Shelf) {
        let geometry = Geometry::new(1 << 20, 512, 18).unwrap();
        let image = Manifest::new(Domain(0), geometry, vec![Digest([7; 32])]);
        let new = NewVolume {
            name: name_of(&ID),
            id: ID,
            geometry,
            image: Some(Arc::new(image)),
            shares: true,
            device: None,
            created: 5,
        };
        let ready = shelf.ready().unwrap();
        ready.make(&new, b"of a pool").unwrap();
        let mut files = ready.take(&new.name).unwrap();
        for at in [0, BYTES.len() as u64] {
            files.data.write_all_at(&BYTES, at).unwrap();
        }
        files.data.sync_data().unwrap();
        files.identity.change(|identity| identity.plain = true).unwrap();
        drop(files);
        ready.made(&ID).unwrap();
    }

    #[test]
    fn what_was_being_made_is_gone_after_a_power_cut_or_ready_and_whole() {
        let disk = MemFs::new();
        let first = shelf(disk.fs());
        first.ready().unwrap();
        disk.settle();
        fill(&first);
        disk.mark("made");
        for cut in disk.crash_images(CrashPlan::default()) {
            let shelf = shelf(cut.fs());
            assert!(shelf.tidy().unwrap().is_empty(), "{cut}");
            let ready = shelf.ready().unwrap();
            match ready.names().unwrap().as_slice() {
                [] => assert!(cut.marks().next().is_none(), "{cut}"),
                [name] => {
                    assert_eq!(ready.origin(name).unwrap().unwrap(), b"of a pool", "{cut}");
                    let files = ready.take(name).unwrap();
                    assert!(files.image.is_some() && files.identity.get().plain, "{cut}");
                    assert_eq!(files.identity.get().state, VolumeState::Ready, "{cut}");
                    let mut found = [0; 2 * BYTES.len()];
                    files.data.read_exact_at(&mut found, 0).unwrap();
                    assert_eq!(found, [5; 2 * BYTES.len()], "{cut}");
                }
                more => panic!("{cut}: {more:?}"),
            }
        }
    }

    #[test]
    fn what_lost_its_identity_while_it_was_erased_is_not_removed_unerased() {
        let disk = MemFs::new();
        let shelf = shelf(disk.fs());
        make(&shelf);
        shelf.hand_out(&ID, "web", CLAIM).unwrap();
        shelf.take_back("web", &PLAN, 9).unwrap();
        let (ready, name) = (shelf.ready().unwrap(), name_of(&ID));
        let identity = disk.fs().open(ready.path(&name).unwrap().join(IDENTITY), OpenMode::write());
        identity.unwrap().write_all_at(&[0; 2 * LEN], 0).unwrap();
        shelf.tidy().unwrap();
        assert_eq!(ready.names().unwrap(), [name]);
    }
}
