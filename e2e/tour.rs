//! `forebay try`: the newcomer's first command.

use std::path::{Path, PathBuf};

use crate::harness::{Background, Disk, Grid, files, forebay, path, run, until};

/// A directory of files to make disks of, a place for temporary ones, and one that nobody may touch.
struct Place {
    from: PathBuf,
    temporary: PathBuf,
    users: PathBuf,
    _dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (from, temporary, users) = (make("from"), make("temporary"), make("users"));
        for (i, letters) in ["abcdefghijkl", "mnopqrstuvwx", "ABCDEFGHIJKL"].iter().enumerate() {
            std::fs::write(from.join(i.to_string()), Disk::new(&letters.repeat(2)).bytes).unwrap();
        }
        Self { from, temporary, users, _dir: dir }
    }

    /// The tour, with settings that a user has for grids of their own.
    fn tour(&self) -> std::process::Command {
        let mut command = forebay(&self.users.join("data"));
        command.env("TMPDIR", &self.temporary).env("FOREBAY_STORE_AT", self.users.join("store"));
        command.env("FOREBAY_CACHE_DIR", self.users.join("cache"));
        command.args(["try", "--json", "--from", path(&self.from)]);
        command
    }

    fn is_clean(&self) -> bool {
        let empty = |dir: &Path| std::fs::read_dir(dir).unwrap().next().is_none();
        empty(&self.temporary) && empty(&self.users)
    }
}

#[test]
fn a_tour_shows_the_main_job_and_touches_nothing_of_the_users() {
    let place = Place::new();
    let steps = run(&mut place.tour()).json();
    let steps = steps.as_array().unwrap();
    let outcome = |i: usize| steps[i]["outcome"].as_str().unwrap();
    assert_eq!(steps.len(), 7, "{steps:?}");
    assert!(outcome(5).contains("bad frames caught") && !outcome(5).starts_with('0'));
    assert!(outcome(6).contains("no bad frames left"), "{}", outcome(6));
    assert!(steps[4]["travelled"].as_u64() < steps[2]["travelled"].as_u64());
    assert!(place.is_clean());
}

#[test]
fn an_interrupted_tour_leaves_nothing() {
    let place = Place::new();
    for signal in ["-INT", "-TERM"] {
        let mut tour = Background::start(&mut place.tour());
        let mut up = None;
        until("its grid serves", || {
            let mut found = Vec::new();
            files(&place.temporary, &mut found);
            up = found.into_iter().find(|f| f.ends_with("grid/up.json"));
            up.is_some()
        });
        let serving = std::fs::read_to_string(up.unwrap()).unwrap();
        let serving: serde_json::Value = serde_json::from_str(&serving).unwrap();
        let process = PathBuf::from(format!("/proc/{}", serving["pid"]));
        assert!(process.exists());
        assert_eq!(tour.end(signal).1, 130, "{signal}");
        assert!(!process.exists(), "its grid goes on");
        assert!(place.is_clean());
    }
}

#[test]
fn a_grid_of_the_users_is_not_the_tours() {
    let grid = Grid::start();
    let place = Place::new();
    let mut tour = place.tour();
    run(tour.env("FOREBAY_DATA", &grid.data)).json();
    assert_eq!(grid.run(&["images"]).json()["images"], serde_json::json!([]));
}
