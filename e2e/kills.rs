//! Commands killed at any time, as a power cut or the kernel's out-of-memory killer ends them. What a
//! power cut loses besides (writes that were not synced) the crash tests of each room replay.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Background, Disk, Grid, forebay, path, run, until};

/// The moments at which a command is killed: spread over a little more than it takes, each at a place
/// of its own in its share of that. There are `FOREBAY_KILLS` (5) of them.
pub struct Kills {
    takes: Duration,
    of: u32,
    seed: u64,
}

impl Kills {
    /// For a command that takes so long if it is left alone.
    pub fn over(takes: Duration) -> Self {
        let of =
            std::env::var("FOREBAY_KILLS").map_or(5, |n| n.parse().expect("a number of kills"));
        Self { takes, of, seed: u64::from(of) }
    }

    /// No more tries than this.
    pub fn at_most(self, of: u32) -> Self {
        Self { of: self.of.min(of), ..self }
    }

    pub fn points(mut self) -> impl Iterator<Item = Duration> {
        (0..self.of).map(move |i| {
            self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1);
            let inside = (self.seed >> 40) as f64 / f64::from(1 << 24);
            self.takes.mul_f64(1.1 * (f64::from(i) + inside) / f64::from(self.of))
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "how long a command takes is measured")]
pub fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Starts a command and kills it after some time.
#[expect(clippy::disallowed_methods, reason = "a kill comes at some time")]
fn kill(command: &mut Command, after: Duration) {
    let mut started = Background::start(command.stderr(Stdio::null()));
    std::thread::sleep(after);
    started.kill();
}

/// Whether a command has said that it is done; if it has not by now, its server is gone and it would
/// wait for it for a while.
#[expect(clippy::disallowed_methods, reason = "a command ends when it ends")]
fn has_succeeded(command: &mut Background) -> bool {
    std::thread::sleep(Duration::from_millis(50));
    command.child.try_wait().unwrap().is_some_and(|status| status.success())
}

fn holds(copy: &Path, disk: &Disk) -> bool {
    std::fs::read(copy).is_ok_and(|bytes| bytes == disk.bytes)
}

/// A disk of so many chunks, another for each number.
fn numbered(number: usize, chunks: usize) -> Disk {
    let letter = |c: usize| char::from(b'!' + ((number * 7 + c) % 90) as u8);
    Disk::new(&(0..chunks).map(letter).filter(|c| *c != '.').collect::<String>())
}

#[test]
fn an_import_leaves_no_half_image_and_is_run_again() {
    let grid = Grid::start();
    let file = grid.disk("first.raw", &numbered(1000, 24));
    let takes = time(|| drop(grid.import(&file, "first:1")));
    for (i, after) in Kills::over(takes).points().enumerate() {
        let disk = numbered(i, 24);
        let (file, name) = (grid.disk("d.raw", &disk), format!("d:{i}"));
        kill(&mut grid.command(&["import", path(&file), &name]), after);
        let half = grid.run(&["verify", &name, "--deep"]);
        assert!(half.code == 0 || half.code == 66, "after {after:?}: {}", half.err);
        grid.import(&file, &name);
        grid.run(&["verify", &name, "--deep"]).json();
    }
}

#[test]
fn a_pull_shows_a_whole_image_or_none_and_is_run_again() {
    let grid = Grid::start();
    let (old, new) = (Disk::new("abcdefghijklmnop"), Disk::new("abcXefghYjklmnoZ"));
    grid.import(&grid.disk("old.raw", &old), "d:1");
    grid.import(&grid.disk("new.raw", &new), "d:2");
    let (copy, fresh) = (grid.dir.join("copy"), grid.dir.join("fresh"));
    let takes = time(|| drop(grid.pull("d:1", &copy).json()));
    for after in Kills::over(takes).points() {
        // Over an earlier image, which is changed in place.
        for (name, disk) in [("d:2", &new), ("d:1", &old)] {
            kill(&mut grid.command(&["pull", name, "--to", path(&copy), "--no-daemon"]), after);
            let whole = holds(&copy, &old) || holds(&copy, &new);
            assert!(whole || !copy.exists(), "after {after:?}: half an image has the name");
            grid.pull(name, &copy).json();
            assert!(holds(&copy, disk));
        }
        // Where nothing was.
        kill(&mut grid.command(&["pull", "d:1", "--to", path(&fresh), "--no-daemon"]), after);
        assert!(!fresh.exists() || holds(&fresh, &old), "after {after:?}: half an image");
        grid.pull("d:1", &fresh).json();
        assert!(holds(&fresh, &old));
        std::fs::remove_file(&fresh).unwrap();
    }
}

#[test]
fn a_grid_has_every_image_that_it_acknowledged() {
    let mut grid = Grid::start();
    let file = grid.disk("first.raw", &numbered(1000, 16));
    let takes = time(|| drop(grid.import(&file, "first:1")));
    let mut acknowledged = Vec::new();
    for (i, after) in Kills::over(takes).points().enumerate() {
        let disk = numbered(i, 16);
        let (file, name) = (grid.disk("d.raw", &disk), format!("d:{i}"));
        let mut import = Background::start(&mut grid.command(&["import", path(&file), &name]));
        #[expect(clippy::disallowed_methods, reason = "a kill comes at some time")]
        std::thread::sleep(after);
        grid.kill();
        let done = has_succeeded(&mut import);
        import.kill();
        grid.restart();
        if !done {
            grid.import(&file, &name);
        }
        acknowledged.push((name, disk));
    }
    let copy = grid.dir.join("copy");
    for (name, disk) in &acknowledged {
        grid.pull(name, &copy).json();
        assert!(holds(&copy, disk), "{name}");
    }
}

#[test]
fn the_node_daemon_goes_on_with_what_it_was_asked() {
    let grid = Grid::start();
    let disk = numbered(7, 24);
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let start = || {
        let mut daemon = Background::start(forebay(&grid.data).arg("node"));
        assert!(daemon.line().contains("serves"));
        daemon
    };
    let mut daemon = start();
    let copy = grid.dir.join("copy");
    let ask = ["pull", "d:1", "--to", path(&copy)];
    let takes = time(|| drop(grid.run(&ask).json()));
    let transfers = || grid.run(&["node", "transfers"]).json().as_array().unwrap().clone();
    let newest = |all: &[serde_json::Value]| all.last().unwrap()["id"].as_u64().unwrap();
    for after in Kills::over(takes).points() {
        let before = newest(&transfers());
        std::fs::remove_file(&copy).unwrap();
        let mut asking = Background::start(&mut grid.command(&ask));
        #[expect(clippy::disallowed_methods, reason = "a kill comes at some time")]
        std::thread::sleep(after);
        daemon.kill();
        assert!(!copy.exists() || holds(&copy, &disk), "after {after:?}: half an image");
        asking.child.wait().unwrap();
        daemon = start();
        // What had been asked by then is finished unasked.
        until("all has ended", || transfers().iter().all(|t| t["state"] == "done"));
        let asked = newest(&transfers()) > before;
        assert!(!asked || holds(&copy, &disk), "after {after:?}");
        grid.run(&ask).json();
        assert!(holds(&copy, &disk));
    }
    assert_eq!(daemon.terminate().1, 0);
}

#[test]
fn a_name_is_moved_and_removed_or_not_at_all() {
    let grid = Grid::start();
    for (i, letters) in ["abcd", "efgh"].iter().enumerate() {
        grid.import(&grid.disk("d.raw", &Disk::new(letters)), &format!("d:{i}"));
    }
    let image = |name: &str| grid.run(&["inspect", name]).json()["image"].clone();
    let images = [image("d:0"), image("d:1")];
    let tagging = time(|| drop(grid.run(&["tag", "d:0", "d:t"]).json()));
    let removing = time(|| drop(grid.run(&["rm", "d:t"]).json()));
    grid.run(&["tag", "d:0", "d:t"]).json();
    let points = Kills::over(tagging).points().zip(Kills::over(removing).points());
    for (i, (tag, rm)) in points.enumerate() {
        let to = format!("d:{}", i % 2);
        kill(&mut grid.command(&["tag", &to, "d:t"]), tag);
        assert!(images.contains(&image("d:t")), "after {tag:?}");
        grid.run(&["tag", &to, "d:t"]).json();
        assert_eq!(image("d:t"), images[i % 2]);
        kill(&mut grid.command(&["rm", "d:t"]), rm);
        let left = grid.run(&["inspect", "d:t"]);
        assert!(left.code == 0 || left.code == 66, "after {rm:?}: {}", left.err);
        // What the dead command asked for may be done while we look.
        let again = grid.run(&["rm", "d:t"]);
        assert!(again.code == 0 || again.code == 66, "after {rm:?}: {}", again.err);
        grid.run(&["inspect", "d:t"]).fails(66, &["d:t"]);
        grid.run(&["tag", &to, "d:t"]).json();
    }
}

/// Garbage: an image without a name.
fn litter(grid: &Grid, number: usize) {
    grid.import(&grid.disk("g.raw", &numbered(number, 4)), "g:1");
    grid.run(&["rm", "g:1"]).json();
}

#[test]
fn garbage_goes_and_nothing_else_whenever_its_collection_is_cut_short() {
    const GC: [&str; 3] = ["gc", "--grace", "0s"];
    let mut grid = Grid::start();
    grid.import(&grid.disk("d.raw", &Disk::new("abcd")), "d:1");
    let kept = grid.objects("packs");
    litter(&grid, 1000);
    let condemning = time(|| assert_ne!(grid.run(&GC).json()["condemned"], 0));
    let deleting = time(|| assert_ne!(grid.run(&GC).json()["deleted"], 0));
    for (i, after) in Kills::over(condemning.max(deleting)).points().enumerate() {
        litter(&grid, i);
        if i % 2 == 1 {
            grid.run(&GC).json();
        }
        // The server collects, whoever asked for it; so it is the one that is killed.
        let mut asking = Background::start(grid.command(&GC).stderr(Stdio::null()));
        #[expect(clippy::disallowed_methods, reason = "a kill comes at some time")]
        std::thread::sleep(after);
        grid.kill();
        asking.child.wait().unwrap();
        grid.restart();
        // What the dead run meant to delete is left alone until it cannot be at it any more: as if
        // that time had passed.
        grid.objects("gc/deleting").iter().for_each(|mark| std::fs::remove_file(mark).unwrap());
        grid.run(&["verify", "d:1", "--deep"]).json();
        for _ in 0..2 {
            grid.run(&GC).json();
        }
        assert_eq!(grid.objects("packs"), kept, "after {after:?}");
        assert_eq!(grid.objects("manifests").len(), 1, "after {after:?}");
    }
}

#[test]
fn a_grid_whose_first_start_was_cut_short_starts() {
    let mut grid = Grid::start();
    let first_start = |grid: &mut Grid| {
        grid.kill();
        std::fs::remove_dir_all(&grid.data).unwrap();
    };
    first_start(&mut grid);
    let takes = time(|| grid.restart());
    let disk = Disk::new("abcd");
    for after in Kills::over(takes).points() {
        first_start(&mut grid);
        kill(forebay(&grid.data).args(["up", "--json", "--listen", "127.0.0.1:0"]), after);
        grid.restart();
        grid.import(&grid.disk("d.raw", &disk), "d:1");
        let copy = grid.dir.join("copy");
        grid.pull("d:1", &copy).json();
        assert!(holds(&copy, &disk), "after {after:?}");
        std::fs::remove_file(&copy).unwrap();
    }
}

/// A token for just this name.
fn token_for(grid: &Grid, role: &str, name: &str) -> String {
    let made = grid.run(&["node", "token", "--role", role, "--name", name]).json();
    made["token"].as_str().unwrap().to_owned()
}

#[test]
fn a_machine_has_joined_or_can_join_again() {
    let grid = Grid::start();
    let join = |data: &Path, token: &str, name: &str| {
        let mut command = forebay(data);
        command.args(["node", "join", token, "--name", name]);
        command
    };
    let token = token_for(&grid, "node", "first");
    let takes = time(|| drop(run(&mut join(&grid.dir.join("first"), &token, "first"))));
    for (i, after) in Kills::over(takes).points().enumerate() {
        let name = format!("n{i}");
        let data = grid.dir.join(&name);
        let token = token_for(&grid, "node", &name);
        kill(&mut join(&data, &token, &name), after);
        if run(forebay(&data).arg("images")).code != 0 {
            // The token may have been used up, or be so just now: another one for this name does it.
            let again = run(&mut join(&data, &token, &name));
            assert!([0, 73, 77].contains(&again.code), "after {after:?}: {}", again.err);
            if again.code != 0 {
                let joined = run(&mut join(&data, &token_for(&grid, "node", &name), &name));
                assert_eq!(joined.code, 0, "after {after:?}: {}", joined.err);
            }
        }
        let seen = run(forebay(&data).arg("images"));
        assert_eq!(seen.code, 0, "after {after:?}: {}", seen.err);
        // Once joined, another token is not spent.
        let other = token_for(&grid, "node", &name);
        run(&mut join(&data, &other, &name)).fails(73, &["has joined"]);
        let third = grid.dir.join(format!("third-{i}"));
        assert_eq!(run(&mut join(&third, &other, &name)).code, 0);
    }
}

#[test]
fn a_cache_that_was_killed_serves_again_and_nothing_wrong() {
    const IMAGES: usize = 8;
    let grid = Grid::start();
    let disk = |i: usize| numbered(i, 8);
    for i in 0..IMAGES {
        grid.import(&grid.disk("d.raw", &disk(i)), &format!("d:{i}"));
    }
    let data = grid.dir.join("cache");
    let token = token_for(&grid, "server", "c1");
    assert_eq!(run(forebay(&data).args(["node", "join", &token, "--name", "c1"])).code, 0);
    let store = format!("store.at={}", path(&grid.data.join("store")));
    let command = || {
        let mut command = forebay(&data);
        command.args(["cache", "--json", "--set", &store]).stderr(Stdio::null());
        command
    };
    let start = || {
        let mut cache = Background::start(&mut command());
        assert!(!cache.line().is_empty(), "the cache ended before it served");
        cache
    };
    let copy = grid.dir.join("copy");
    let pull = |i: usize| {
        let _ = std::fs::remove_file(&copy);
        grid.pull(&format!("d:{}", i % IMAGES), &copy).json();
        assert!(holds(&copy, &disk(i % IMAGES)));
    };
    let starting = time(|| drop(start()));
    let mut cache = start();
    let pulling = time(|| pull(0));
    let points = Kills::over(starting).points().zip(Kills::over(pulling).points());
    for (i, (early, late)) in points.enumerate() {
        // While it serves; the pull is done by whoever is left.
        let name = format!("d:{}", i % IMAGES);
        let _ = std::fs::remove_file(&copy);
        let args = ["pull", &name, "--to", path(&copy), "--no-daemon"];
        let mut pulling = Background::start(&mut grid.command(&args));
        #[expect(clippy::disallowed_methods, reason = "a kill comes at some time")]
        std::thread::sleep(late);
        cache.kill();
        assert!(pulling.child.wait().unwrap().success(), "after {late:?}");
        assert!(holds(&copy, &disk(i % IMAGES)), "after {late:?}");
        // While it starts.
        kill(&mut command(), early);
        cache = start();
        pull(i + 1);
    }
    let (said, code) = cache.terminate();
    assert_eq!(code, 0, "{said}");
}
