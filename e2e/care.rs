//! Care of caches, as an operator does it: whole processes, the shipped commands.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::caches::{cache, egress, is_wide, join, wide_disk};
use crate::harness::{Grid, forebay, run};

/// What a command says of the cache of this name.
#[track_caller]
fn of(answers: &Value, name: &str) -> Value {
    let all = answers.as_array().expect("one answer per cache");
    all.iter().find(|a| a["cache"] == name).unwrap_or_else(|| panic!("{name}: {answers}")).clone()
}

#[test]
fn what_was_warmed_is_served_without_the_store_and_what_was_pinned_stays() {
    let mut grid = Grid::start();
    let disk = wide_disk(&grid);
    grid.import(&disk, "wide:1");
    let mut c1 = cache(&grid, &join(&grid, "server", "c1"));
    let before = of(&grid.run(&["cache", "status", "wide:1"]).json(), "c1");
    assert_eq!(before["held"], 0, "{before}");
    let chunks = before["chunks"].as_u64().unwrap();
    assert!(chunks >= 12);

    let warmed = of(&grid.run(&["cache", "warm", "wide:1", "--on", "c1"]).json(), "c1");
    assert_eq!((&warmed["state"], warmed["fetched"].as_u64()), (&"done".into(), Some(chunks)));
    assert_eq!((warmed["held"].as_u64(), &warmed["warning"]), (Some(chunks), &Value::Null));
    let again = of(&grid.run(&["cache", "warm", "wide:1", "--on", "c1"]).json(), "c1");
    assert_eq!(again["fetched"], 0, "{again}");
    let held = grid.run(&["cache", "status", "wide:1"]).json();
    assert_eq!(of(&held, "c1")["held"].as_u64(), Some(chunks));
    assert_eq!(of(&held, "up")["held"], 0, "only the one that was asked");

    let pinned = grid.run(&["cache", "pin", "wide:1", "--on", "c1"]);
    assert_eq!(of(&pinned.json(), "c1")["pins"], true);
    let pinned = of(&grid.run(&["cache", "status"]).json(), "c1")["pinned"][0].clone();
    grid.run(&["cache", "evict", "wide:1", "--on", "c1"]).fails(73, &["unpin it first"]);
    let filled = egress(c1.terminate());

    // Also after a restart; then it is let go.
    let mut c1 = cache(&grid, &grid.dir.join("c1"));
    let status = of(&grid.run(&["cache", "status"]).json(), "c1");
    assert_eq!(status["pinned"].as_array().map(Vec::len), Some(1), "{status}");
    // Of those that do not have it pinned nothing is let go.
    let unpinned = grid.run(&["cache", "unpin", "wide:1"]).json();
    assert_eq!(of(&unpinned, "c1")["chunks"], pinned["chunks"], "{unpinned}");
    assert_eq!(of(&unpinned, "up")["chunks"], 0, "{unpinned}");
    let evicted = of(&grid.run(&["cache", "evict", "wide:1", "--on", "c1"]).json(), "c1");
    assert_eq!(evicted["kept"], 0, "{evicted}");
    assert_eq!(of(&grid.run(&["cache", "status", "wide:1"]).json(), "c1")["held"], 0);
    assert_eq!(egress(c1.terminate()), 0);
    assert!(filled > 0);
    grid.stop();
}

/// A segment of four KiB holds no frame of these, and a memory of next to nothing hardly one.
#[test]
fn what_was_warmed_and_did_not_stay_is_said() {
    let grid = Grid::start_with(&["--set", "cache.disk=16KiB", "--set", "cache.memory=1KiB"]);
    let disk = wide_disk(&grid);
    grid.import(&disk, "wide:1");
    let warmed = of(&grid.run(&["cache", "warm", "wide:1"]).json(), "up");
    let number = |key: &str| warmed[key].as_u64().unwrap();
    assert!(number("held") < number("chunks"), "{warmed}");
    assert_eq!(number("size"), disk.metadata().unwrap().len());
    let warning = warmed["warning"].as_str().expect("a warning");
    assert!(warning.contains("cache.disk is too small"), "{warning}");
    let shown = run(forebay(&grid.data).args(["cache", "warm", "wide:1"]));
    assert!(shown.code == 0 && shown.err.contains("cache up: only "), "{}", shown.err);
}

/// Its directory was removed under it: it says so, also to who wants something of it, and serves on.
#[test]
fn a_cache_whose_directory_was_removed_says_so() {
    let grid = Grid::start();
    grid.import(&grid.disk("d.raw", &crate::harness::Disk::new("abc")), "d:1");
    grid.run(&["cache", "pin", "d:1"]).json();
    std::fs::remove_dir_all(grid.data.join("cache")).unwrap();
    grid.run(&["cache", "unpin", "d:1"]).fails(74, &["the directory is gone", "restart the cache"]);
    let status = of(&grid.run(&["cache", "status"]).json(), "up");
    assert!(status["disk_state"].as_str().unwrap().starts_with("off: "), "{status}");
    grid.run(&["cache", "scrub"]).fails(74, &["cache up", "the directory is gone"]);
    grid.pull("d:1", &grid.dir.join("copy")).json();
}

#[test]
fn a_drained_cache_is_asked_no_more_and_ends() {
    let grid = Grid::start();
    let disk = wide_disk(&grid);
    grid.import(&disk, "wide:1");
    let mut c1 = cache(&grid, &join(&grid, "server", "c1"));
    grid.run(&["cache", "drain", "up"]).fails(69, &["cannot drain"]);
    grid.run(&["cache", "drain", "nobody"]).fails(66, &["no cache nobody", "c1, up"]);
    let said = of(&grid.run(&["cache", "drain", "c1"]).json(), "c1");
    assert_eq!(said["draining"], true);
    let copy = grid.dir.join("copy.raw");
    grid.pull("wide:1", &copy).json();
    is_wide(&copy);
    // It ends by itself, in good order, having served nobody.
    let ended = c1.ended(Duration::from_secs(60));
    assert_eq!(egress(ended), 0);
    let caches = grid.run(&["cache", "status"]).json();
    assert_eq!(caches.as_array().map(Vec::len), Some(1), "{caches}");
}

#[test]
fn orders_are_for_admins_and_a_cache_that_is_away_is_named() {
    let grid = Grid::start();
    grid.import(&grid.disk("d.raw", &crate::harness::Disk::new("abc")), "d:1");
    let mut c1 = cache(&grid, &join(&grid, "server", "c1"));
    let node = join(&grid, "node", "n1");
    let as_node = |args: &[&str]| run(forebay(&node).args(args));
    assert_eq!(as_node(&["cache", "status"]).code, 0);
    as_node(&["cache", "evict", "d:1"]).fails(77, &["only an admin"]);
    as_node(&["cache", "warm", "d:1"]).fails(77, &["cache c1", "only an admin"]);
    c1.kill();
    let partly = grid.run(&["cache", "status", "--json"]);
    partly.fails(75, &["cache c1", "is `forebay cache` running there?"]);
    let up: Value = serde_json::from_str(&partly.out).expect("what answered is printed");
    assert_eq!(of(&up, "up")["disk_state"], "on");
    let missing = "0".repeat(64);
    let failed = run(forebay(&grid.data).args(["cache", "warm", &missing, "--on", "up"]));
    failed.fails(66, &["image 000000000000"]);
    assert_eq!(failed.out, "", "no table of nothing");
}

/// What a server lends to a client, it has back as soon as that has ended.
#[test]
fn commands_take_leave_of_the_servers() {
    let grid = Grid::start();
    for round in 0..10 {
        grid.import(&grid.disk("d.raw", &crate::harness::Disk::new("abc")), &format!("d:{round}"));
        grid.pull(&format!("d:{round}"), &grid.dir.join(format!("copy-{round}"))).json();
    }
    let metrics = grid.run(&["cache", "metrics"]).out;
    let value = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.expect("the metric is there").parse::<f64>().unwrap()
    };
    assert!(value("forebay_serve_connections") < 10.0, "{metrics}");
    assert_eq!(value("forebay_serve_refused_total"), 0.0);
}

/// Every metric that the dashboard and the alerts ask for is there.
#[test]
fn dashboard_and_alerts_ask_for_metrics_that_exist() {
    let grid = Grid::start();
    grid.import(&grid.disk("d.raw", &crate::harness::Disk::new("abc")), "d:1");
    grid.pull("d:1", &grid.dir.join("copy")).json();
    let metrics = grid.run(&["cache", "metrics"]).out;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/monitoring");
    let mut asked = 0;
    for file in ["dashboard.json", "alerts.yml"] {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|w| w.starts_with("forebay_")) {
            let described = metrics.contains(&format!("# TYPE {} ", base(word)));
            assert!(described, "{file}: {word}");
            asked += 1;
        }
    }
    assert!(asked > 20, "{asked}");
}

/// The metric behind the names that a histogram has.
fn base(name: &str) -> &str {
    ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

#[test]
fn a_store_is_verified_whole_or_by_samples_that_go_on() {
    let grid = Grid::start();
    grid.import(&grid.disk("d.raw", &crate::harness::Disk::new("abc")), "d:1");
    grid.import(&grid.disk("e.raw", &crate::harness::Disk::new("xyz")), "e:1");
    let whole = grid.run(&["store", "verify", "--deep"]).json();
    let all = whole["in_all"].as_u64().unwrap();
    assert!(all >= 3, "two images, and a pack or more: {whole}");
    assert_eq!(whole["images"].as_u64().unwrap() + whole["packs"].as_u64().unwrap(), all);
    assert_eq!(whole["bad_places"], 0, "{whole}");
    assert!(whole["next"].is_null());

    // Samples that go on look at everything once.
    let mut part = grid.run(&["store", "verify", "--bytes", "1"]).json();
    let mut looked = 0;
    loop {
        looked += part["images"].as_u64().unwrap() + part["packs"].as_u64().unwrap();
        let Some(next) = part["next"].as_str() else { break };
        let (seed, next) = (part["seed"].to_string(), next.to_owned());
        let args = ["store", "verify", "--bytes", "1", "--seed", &seed, "--after", &next];
        part = grid.run(&args).json();
    }
    assert_eq!(looked, all);

    let pack = std::fs::read_dir(grid.data.join("store/packs")).unwrap().next().unwrap().unwrap();
    let pack = a_file(&pack.path());
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    grid.run(&["store", "verify"]).fails(76, &["import the disks again"]);
}

/// A pack, wherever under this path it lies.
fn a_file(path: &Path) -> std::path::PathBuf {
    if path.is_file() {
        return path.to_owned();
    }
    a_file(&std::fs::read_dir(path).unwrap().next().unwrap().unwrap().path())
}
