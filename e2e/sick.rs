//! File systems of a node that fail under it: one takes no writes any more, one is full. Needs root, loop devices and
//! ext4; runs with `FOREBAY_E2E=1`.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Disk, Ended, Grid, path, run, until};
use crate::member::Node;
use crate::nbd::Nbd;
use crate::real::{Mount, wanted};

/// A grid, and two nodes: the volumes of the first lie on a file system of their own.
struct Rig {
    grid: Grid,
    sick: Node,
    well: Node,
    mount: Mount,
}

impl Rig {
    fn start(mib: u64, config: &str) -> Self {
        let grid = Grid::start();
        let [image, at] = ["disk.img", "disk"].map(|name| grid.dir.join(name));
        let mount = Mount::with("mkfs.ext4", "loop,errors=remount-ro", image, at, mib);
        let [mut sick, well] = ["n1", "n2"].map(|name| Node::join(&grid, name));
        sick.kill();
        let dir = format!("[volumes]\ndir = {:?}\n{config}", path(&mount.at.join("volumes")));
        std::fs::write(sick.data.join("forebay.toml"), dir).unwrap();
        sick.start();
        Self { grid, sick, well, mount }
    }

    fn pool(&self, name: &str, size: &str) {
        let [low, target] = [["--low", "2"], ["--target", "2"]];
        let each = ["--per-node", "1"];
        let set = [&["pool", "create", name, "--size", size][..], &low, &target, &each].concat();
        self.grid.run(&set).json();
    }

    /// What is said of a pool.
    fn said(&self, pool: &str) -> Value {
        self.grid.run(&["pool", "show", pool]).json()
    }

    fn claim(&self, volume: &str, request: &str) -> Ended {
        let claim = ["pool", "claim", "p", volume, "--node", "n1", "--request", request];
        self.grid.run(&claim)
    }

    fn volumes(node: &Node) -> Vec<String> {
        let all = node.run(&["volume", "list", "--json"]).json();
        let name = |volume: &Value| volume["name"].as_str().unwrap().to_owned();
        all.as_array().unwrap().iter().map(name).collect()
    }
}

/// Has the kernel find that something is wrong with a file system, which it then lets nobody write to. That lasts until
/// it is unmounted: with files open for writing none can be made read-only by hand.
fn breaks(mount: &Mount) {
    let found = run(Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(&mount.at)).out;
    let device = Path::new(found.trim()).file_name().expect("a loop device").to_owned();
    let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
    std::fs::write(trigger, "1").unwrap();
}

#[test]
fn real_a_file_system_that_takes_no_more_writes_costs_nothing_but_what_is_on_it_until_it_is_mended()
{
    if !wanted() {
        return;
    }
    let mut rig = Rig::start(256, "");
    rig.pool("p", "1MiB");
    until("both have one", || rig.said("p")["ready"] == 2);
    assert_eq!(rig.sick.run(&["volume", "create", "--blank", "1MiB", "--name", "v"]).code, 0);
    let attached = rig.sick.run(&["volume", "attach", "v", "--json"]).json();
    let mut guest = Nbd::connect(attached["attached"]["path"].as_str().unwrap().as_ref()).unwrap();
    guest.write(0, &[7; 4096]).unwrap();
    guest.flush().unwrap();

    breaks(&rig.mount);
    let refused = guest.write(4096, &[8; 4096]).and_then(|()| guest.flush());
    assert!(refused.is_err(), "the guest is told");
    assert_eq!(guest.read(0, 4096).unwrap(), [7; 4096], "what there is can be read");
    let at = path(&rig.mount.at).to_owned();
    let create = ["volume", "create", "--blank", "1MiB", "--name", "w"];
    rig.sick.run(&create).fails(74, &[&at, "Read-only file system"]);
    // A claim that is wanted there is served elsewhere, once.
    let request = "ab".repeat(16);
    let claimed = rig.claim("c", &request).json();
    assert_eq!((&claimed["node"], &claimed["served"]), (&"n2".into(), &"elsewhere".into()));
    assert_eq!(
        (Rig::volumes(&rig.well), Rig::volumes(&rig.sick)),
        (vec!["c".into()], vec!["v".into()])
    );
    // What is built there fails, and why is said with the pool.
    rig.pool("q", "2MiB");
    until("the build there has failed", || {
        let why = rig.said("q")["why"].as_str().unwrap().to_owned();
        why.contains("n1 could not build one") && why.contains("Read-only") && why.contains(&at)
    });
    until("the other one builds", || rig.said("q")["ready"] == 1);

    // Nothing wedges: the daemon ends, and the next one, with the file system mended, goes on.
    drop(guest);
    rig.sick.kill();
    rig.mount.is_mended();
    rig.sick.start();
    until("both have one again", || rig.said("p")["ready"] == 2 && rig.said("q")["ready"] == 2);
    assert_eq!(rig.claim("c", &request).json(), claimed, "the same request is the same volume");
    assert_eq!(rig.claim("d", &"cd".repeat(16)).json()["node"], "n1");
    let socket =
        rig.sick.run(&["volume", "show", "v", "--json"]).json()["attached"]["path"].clone();
    let mut guest = Nbd::connect(socket.as_str().unwrap().as_ref()).unwrap();
    assert_eq!(guest.read(0, 4096).unwrap(), [7; 4096], "what was flushed is there");
    guest.write(4096, &[9; 4096]).unwrap();
    guest.flush().unwrap();
    assert_eq!(
        (Rig::volumes(&rig.well), Rig::volumes(&rig.sick)),
        (vec!["c".into()], vec!["d".into(), "v".into()])
    );
}

#[test]
fn real_an_image_that_a_disk_has_no_room_for_is_held_elsewhere_and_leaves_nothing_half() {
    if !wanted() {
        return;
    }
    // Slowly, so that somebody else can take the room meanwhile.
    let rig = Rig::start(128, "rate = \"4MiB\"\n");
    let letters: String = (0..128u8).map(|n| char::from(b'0' + n % 75)).collect();
    rig.grid.import(&rig.grid.disk("d.raw", &Disk::new(&letters)), "d:1");
    rig.grid.run(&["node", "cordon", "n2"]).json();
    rig.grid.run(&["keep", "d:1", "--nodes", "1"]).json();
    let bases = rig.mount.at.join("volumes/.images");
    let half = || std::fs::read_dir(&bases).is_ok_and(|mut found| found.next().is_some());
    until("it comes to the first", half);
    let rest = rig.mount.at.join("rest");
    let mut takes = Command::new("dd");
    let [of, bs] = [format!("of={}", path(&rest)), "bs=64k".to_owned()];
    assert_ne!(run(takes.args(["if=/dev/zero", &of, &bs])).code, 0, "until the disk is full");
    let why = || rig.grid.run(&["kept", "d:1"]).json()["why"].as_str().unwrap().to_owned();
    until("that it failed is said, and why", || {
        why().contains("n1 could not hold it") && why().contains("No space left")
    });
    until("nothing half is there", || !half());
    // It is tried where there is room, and again where there was none.
    rig.grid.run(&["node", "uncordon", "n2"]).json();
    let on = || rig.grid.run(&["kept", "d:1"]).json();
    until("the other one has it", || on()["nodes"] == 1 && on()["on"][0]["node"] == "n2");
    std::fs::remove_file(&rest).unwrap();
    rig.grid.run(&["keep", "d:1", "--nodes", "2"]).json();
    until("both have it", || on()["nodes"] == 2);
}
