//! Placement's state: in etcd, backed up, restored, checked.

use crate::etcd::Etcd;
use crate::harness::{Disk, Ended, Grid, flip, path, run, until};
use crate::member::Node;
use crate::volumes::connect;

fn names(grid: &Grid) -> Vec<String> {
    let refs = grid.run(&["images"]).json()["images"].clone();
    refs.as_array().unwrap().iter().map(|image| image["ref"].as_str().unwrap().into()).collect()
}

/// `forebay placement …` with the grid's settings.
fn placement(grid: &Grid, settings: &[&str], args: &[&str]) -> Ended {
    run(grid.command(&["placement"]).args(args).args(settings))
}

/// What holds wherever the state is: backed up, it goes on as it was, in a new generation.
fn backs_up_and_restores(grid: &mut Grid, settings: &[&str]) {
    grid.import(&grid.disk("d.raw", &Disk::new("abc")), "d:1");
    grid.stop();
    let file = grid.dir.join("backup");
    let said = placement(grid, settings, &["backup", path(&file)]).json();
    assert_eq!(said["keys"]["refs"], 1);
    // A file that is there is never replaced.
    placement(grid, settings, &["backup", path(&file)]).fails(73, &["backup"]);
    let said = placement(grid, settings, &["check"]).json();
    assert_eq!(said["bad"].as_array().unwrap().len(), 0);

    // State that is there is replaced only if that is said; what is lost is told.
    placement(grid, settings, &["restore", path(&file)]).fails(73, &["refs (1)", "--force"]);
    for generation in [1, 2] {
        let said = placement(grid, settings, &["restore", "--force", path(&file)]).json();
        assert_eq!(said["generation"], generation);
        assert_eq!(said["lost"]["refs"], 1);
        assert!(said["not_before"].as_u64() >= said["made"].as_u64().map(|made| made + 900));
    }
    placement(grid, settings, &["check"]).json();
    grid.restart();
    assert_eq!(names(grid), ["d:1"]);
    grid.import(&grid.disk("d.raw", &Disk::new("abd")), "d:2");
    assert_eq!(names(grid), ["d:1", "d:2"]);

    // A bad file changes nothing.
    grid.stop();
    let bytes = std::fs::read(&file).unwrap();
    flip(&file, bytes.len() as u64 / 2);
    let restore = ["restore", "--force", path(&file)];
    placement(grid, settings, &restore).fails(76, &["backup", "BLAKE3"]);
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    placement(grid, settings, &restore).fails(76, &["backup"]);
    std::fs::write(&file, [&bytes[..4], &[2], &bytes[5..]].concat()).unwrap();
    placement(grid, settings, &restore).fails(69, &["version 2"]);
    grid.restart();
    assert_eq!(names(grid), ["d:1", "d:2"]);
}

#[test]
fn state_in_a_file_is_backed_up_and_restored() {
    let mut grid = Grid::start();
    let file = grid.dir.join("early");
    let busy = placement(&grid, &[], &["backup", path(&file)]);
    busy.fails(73, &["another placement is running"]);
    assert!(!file.exists());
    backs_up_and_restores(&mut grid, &[]);
}

#[test]
fn what_is_wrong_with_the_state_is_said() {
    let mut grid = Grid::start();
    grid.stop();
    let nothing = ["--set", "placement.state=/nothing/there"];
    placement(&grid, &nothing, &["check"]).fails(66, &["/nothing/there", "no state"]);
    placement(&grid, &nothing, &["backup", "x"]).fails(66, &["no state"]);
    let state = grid.data.join("placement.redb");
    let whole = std::fs::read(&state).unwrap();
    std::fs::write(&state, &whole[..whole.len() / 2]).unwrap();
    placement(&grid, &[], &["check"]).fails(76, &["placement.redb", "restore a backup"]);
    for (set, says) in [
        ("placement.state=etcd://10.0.0.1:2379/x", "placement.etcd_ca"),
        ("placement.state=etcd://nowhere", "HOST:PORT"),
        ("placement.etcd_ca=x", ""),
    ] {
        let ended = placement(&grid, &["--set", set], &["check"]);
        assert!(ended.code != 0 && ended.err.contains(says), "{set}: {}", ended.err);
    }
}

#[test]
fn real_a_grid_keeps_its_state_in_etcd() {
    if std::env::var_os("FOREBAY_E2E").is_none() {
        println!("left out: needs FOREBAY_E2E=1 and etcd");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let mut etcd = Etcd::start(temp.path(), 1);
    let port = etcd.ports[0];
    let set = format!("placement.state=etcd://127.0.0.1:1,127.0.0.1:{port}");
    let settings = ["--set", &set];
    let mut grid = Grid::start_with(&settings);
    assert!(!grid.data.join("placement.redb").exists());
    backs_up_and_restores(&mut grid, &settings);
    // Killed, it is what it was; and while etcd is away, that is said, and nothing ends.
    grid.kill();
    grid.restart();
    assert_eq!(names(&grid), ["d:1", "d:2"]);
    etcd.kill(0);
    grid.run(&["rm", "d:1"]).fails(75, &["etcd", &port.to_string()]);
}

#[test]
fn real_a_lost_quorum_is_replaced_by_a_new_cluster_with_a_backup() {
    if std::env::var_os("FOREBAY_E2E").is_none() {
        println!("left out: needs FOREBAY_E2E=1 and etcd");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| temp.path().join(name));
    let mut etcd = Etcd::start(&first, 3);
    let mut grid = Grid::start_with(&["--set", &etcd.state()]);
    grid.import(&grid.disk("d.raw", &Disk::new("abc")), "d:1");
    let node = Node::join(&grid, "n1");
    let attach = |name: &str| {
        assert_eq!(node.run(&["volume", "create", "d:1", "--name", name]).code, 0);
        let info = node.run(&["volume", "attach", name, "--json"]).json();
        connect(info["attached"]["path"].as_str().unwrap().as_ref())
    };
    let mut known = attach("known");
    let file = grid.dir.join("backup");
    placement(&grid, &["--set", &etcd.state()], &["backup", path(&file)]).json();
    // What happens since is in no backup: a name, and a lease.
    grid.import(&grid.disk("d.raw", &Disk::new("abd")), "d:2");
    let mut unknown = attach("unknown");

    etcd.kill(0);
    etcd.kill(1);
    grid.run(&["rm", "d:1"]).fails(75, &["etcd"]);
    for guest in [&mut known, &mut unknown] {
        guest.write(0, &[7; 4096]).unwrap();
        guest.flush().unwrap();
    }
    grid.kill();
    let new = Etcd::start(&second, 1);
    let settings = ["--set", &new.state()];
    let said = placement(&grid, &settings, &["restore", path(&file)]).json();
    assert_eq!(said["generation"], 1);
    grid.set(&settings);
    grid.restart();
    assert_eq!(names(&grid), ["d:1", "d:2"]);
    node.follow(&grid);
    // Who has a lease by the backup has it; another is not known to anybody.
    let attached = |name: &str| {
        let info = node.run(&["volume", "show", name, "--json"]).json();
        info["attached"] != serde_json::Value::Null
    };
    until("its node has heard that it has not the lease", || !attached("unknown"));
    assert!(attached("known"));
    known.write(4096, &[8; 4096]).unwrap();
    known.flush().unwrap();
    assert_eq!(known.read(0, 8192).unwrap(), [[7; 4096], [8; 4096]].concat());
    let again = node.run(&["volume", "attach", "unknown"]);
    again.fails(75, &["was restored from a backup", "are over in"]);
    placement(&grid, &settings, &["check"]).json();
}
