//! Captures of volumes to which their guests write all the while, when one of those who take part is killed at any
//! time: the node's daemon, the receiver, the command. What a power cut loses besides the simulation shows.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Background, flip, until};
use crate::kills::{Kills, time};
use crate::nbd::Nbd;
use crate::volumes::{Rig, connect};

const CHUNK: usize = 256 << 10;
const SECTOR: usize = 512;
/// Tries with those whose death is noticed at once.
const TRIES: u32 = 80;
/// Captures that the one death of a receiver hits, each at a place of its own: half a minute passes before all that
/// lean on it have noticed.
const TOGETHER: u32 = 40;

fn rig() -> Rig {
    Rig::start_with(&"abcdefgh".repeat(3), &["--set", &format!("node.captures={TOGETHER}")])
}

/// A volume's guest: each of its writes puts its own number at the beginning of some chunk, so that what a disk holds
/// tells of which instant it is.
struct Guest {
    volume: String,
    name: String,
    socket: PathBuf,
    nbd: Nbd,
    original: Vec<u8>,
    /// Writes that have returned.
    writes: u32,
}

impl Guest {
    /// Of a volume that was saved once.
    fn of(rig: &Rig, volume: &str) -> Self {
        let (volume, name) = (volume.to_owned(), format!("{volume}:1"));
        let socket = rig.attached(&volume, &[]);
        until("all of it is here", || rig.is_plain(&volume));
        rig.save(&[&volume, &name]);
        let (nbd, original) = (connect(&socket), rig.disk.bytes.clone());
        Self { volume, name, socket, nbd, original, writes: 0 }
    }

    /// Where the write of this number goes.
    fn place(&self, number: u32) -> usize {
        let hash = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        hash as usize % (self.original.len() / CHUNK) * CHUNK
    }

    /// One more write; one that fails is repeated by the next.
    fn write(&mut self) {
        let number = self.writes + 1;
        let bytes = number.to_le_bytes().repeat(SECTOR / 4);
        if self.nbd.write(self.place(number) as u64, &bytes).is_ok() {
            self.writes = number;
        }
    }

    /// Checks that a disk is as the volume was at one instant.
    fn was_once(&self, disk: &[u8]) {
        let mut then = self.original.clone();
        let number = |at: usize| u32::from_le_bytes(disk[at..at + 4].try_into().expect("four"));
        let written = |at: &usize| disk[*at..*at + 4] != then[*at..*at + 4];
        let all = (0..disk.len()).step_by(CHUNK).filter(written).map(number);
        // The last write may have been done without its answer.
        let last = all.max().unwrap_or(0);
        assert!(last <= self.writes + 1, "write {last} of {}", self.writes);
        for number in 1..=last {
            let at = self.place(number);
            then[at..at + SECTOR].copy_from_slice(&number.to_le_bytes().repeat(SECTOR / 4));
        }
        assert!(disk == then, "it is not as {} was at write {last}", self.volume);
    }

    fn named(&self, rig: &Rig) -> Value {
        rig.grid.run(&["inspect", &self.name]).json()["image"].clone()
    }

    fn save<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["save", &self.volume, &self.name], more].concat()
    }

    /// What holds after whatever has happened to a capture that began when the name meant `before`.
    fn check(&mut self, rig: &Rig, before: &Value) {
        if self.named(rig) != *before {
            self.was_once(&rig.pulled(&self.name));
        }
        let mut again = rig.grid.run(&self.save(&[]));
        if again.code == 73 {
            // What a daemon that is dead has asked for was done while this was saved.
            again.fails(73, &["was moved while"]);
            again = rig.grid.run(&self.save(&[]));
        }
        let again = again.json();
        assert_eq!(again["truth"], "changed-map", "{again}");
        let saved = rig.pulled(&self.name);
        assert!(saved == self.nbd.read(0, saved.len()).unwrap(), "it is not as the volume is");
        self.was_once(&saved);
        let all = rig.save(&[&self.volume, "all:1", "--all"]);
        assert_eq!(all["image"], again["image"], "something has changed unnoticed");
    }
}

#[expect(clippy::disallowed_methods, reason = "a kill comes at some time")]
fn write_for(guests: &mut [Guest], long: Duration) {
    let start = Instant::now();
    while start.elapsed() < long {
        guests.iter_mut().for_each(Guest::write);
    }
}

/// Has guests write and a capture begin, each time until `kill` does what it does to those who take part.
fn tries(kill: impl Fn(&mut Rig, &mut Guest, Background)) {
    let mut rig = rig();
    let mut guests = [Guest::of(&rig, "v")];
    write_for(&mut guests, Duration::from_millis(20));
    let takes = time(|| drop(rig.save(&["v", "v:1"])));
    for after in Kills::over(takes).at_most(TRIES).points() {
        let before = guests[0].named(&rig);
        (0..10).for_each(|_| guests[0].write());
        let mut save = rig.grid.command(&guests[0].save(&[]));
        let save = Background::start(save.stderr(Stdio::null()));
        write_for(&mut guests, after);
        kill(&mut rig, &mut guests[0], save);
        guests[0].check(&rig, &before);
    }
}

#[test]
fn a_node_daemon_that_is_killed_knows_what_has_changed_and_the_name_stays() {
    tries(|rig, guest, mut save| {
        rig.kill_node();
        assert!(save.child.wait().is_ok());
        rig.start_node();
        guest.nbd = connect(&guest.socket);
    });
}

#[test]
fn a_capture_whose_command_is_killed_goes_on_and_the_next_one_follows_it() {
    tries(|_, _, mut save| save.kill());
}

#[test]
fn a_receiver_that_is_killed_is_waited_for_and_the_instant_stays() {
    let mut rig = rig();
    let tries = Kills::over(Duration::from_millis(200)).at_most(TOGETHER).points().count();
    let mut guests: Vec<_> = (0..tries).map(|n| Guest::of(&rig, &format!("v{n}"))).collect();
    (0..10).for_each(|_| guests.iter_mut().for_each(Guest::write));
    let mut begun = Vec::new();
    for n in 0..tries {
        let before = guests[n].named(&rig);
        // Slow enough for the first to be at it when the last one begins.
        let id = rig.begin_save(&guests[n].save(&["--rate", "1MiB"])[1..]);
        begun.push((before, id));
        guests.iter_mut().for_each(Guest::write);
    }
    rig.grid.kill();
    rig.grid.restart();
    for ((before, id), guest) in begun.iter().zip(&mut guests) {
        let ended = rig.ended(*id);
        // Who had only begun to ask what is there is told at once.
        assert!(ended["state"] == "done" || ended["taken"].is_null(), "{ended}");
        guest.check(&rig, before);
    }
}

#[test]
fn what_rots_in_the_store_is_given_back_by_a_volume_that_has_it() {
    let rig = Rig::start("abcdefgh");
    let mut guest = Guest::of(&rig, "v");
    rig.grid.objects("packs").iter().for_each(|pack| flip(pack, 5000));
    let verify = ["verify", "d:1", "--deep"];
    let found = rig.grid.run(&verify);
    found.fails(76, &["section 0 chunk ", "save a volume"]);
    let rotten = found.err.split("section 0 chunk ").nth(1).and_then(|n| n[..1].parse().ok());
    let other = (rotten.unwrap_or(0) + 1) % 8 * CHUNK;
    guest.nbd.write(other as u64, &[7; 4096]).unwrap();
    rig.save(&["v", "saved:1"]);
    let report = rig.grid.run(&verify).json();
    assert_eq!(report["bad"], serde_json::json!([]), "{report}");
    assert!(rig.pulled("d:1") == rig.disk.bytes);
}
