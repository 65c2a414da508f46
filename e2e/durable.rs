//! What `up` says is done is on the disk: its system calls, as strace sees them, hold the order in which
//! things must be synced. What a power cut can do between them, the crash tests of each room replay over
//! fakes; this shows that the shipped program makes the calls that they assume. Needs strace; runs with
//! `FOREBAY_E2E=1`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Background, Disk, Grid, forebay, path};

/// A system call that succeeded.
#[derive(Debug)]
struct Call {
    thread: String,
    what: What,
}

#[derive(Debug)]
enum What {
    Sync(PathBuf),
    /// From one name to another, by linking or renaming.
    Name(PathBuf, PathBuf),
    MakeDir(PathBuf),
    Remove(PathBuf),
}

impl Call {
    fn syncs(&self, path: &Path) -> bool {
        matches!(&self.what, What::Sync(synced) if synced == path)
    }
}

/// Reads strace's log, in the order in which the calls ended.
fn calls(log: &str) -> Vec<Call> {
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let (thread, text) = line.split_once(' ').expect("a thread and what it did");
        let text = text.trim_start();
        if let Some(begins) = text.strip_suffix("<unfinished ...>") {
            begun.insert(thread, begins.trim_end());
            continue;
        }
        let whole = match text.strip_prefix("<... ") {
            Some(ends) => {
                let begins = begun.remove(thread).unwrap_or_default();
                format!("{begins}{}", ends.split_once("resumed>").map_or("", |(_, end)| end))
            }
            None => text.to_owned(),
        };
        if let Some(what) = understood(&whole) {
            calls.push(Call { thread: thread.to_owned(), what });
        }
    }
    calls
}

fn understood(call: &str) -> Option<What> {
    let (name, arguments) = call.split_once('(')?;
    if !call.trim_end().ends_with("= 0") {
        return None;
    }
    let mut quoted = arguments.split('"').skip(1).step_by(2).map(PathBuf::from);
    match name {
        "fsync" | "fdatasync" => {
            let name = arguments.split_once('<')?.1.split_once(">)")?.0;
            Some(What::Sync(name.into()))
        }
        "mkdir" | "mkdirat" => Some(What::MakeDir(quoted.next()?)),
        "unlink" | "unlinkat" => Some(What::Remove(quoted.next()?)),
        _ => Some(What::Name(quoted.next()?, quoted.next()?)),
    }
}

/// That each file was synced before it got its name, and its directory at once after. How many names.
fn check_names(calls: &[Call]) -> Result<usize, String> {
    let mut names = 0;
    for (i, call) in calls.iter().enumerate() {
        let What::Name(from, to) = &call.what else { continue };
        let files = std::fs::read_dir(to).into_iter().flatten();
        let files = files.map(|entry| from.join(entry.unwrap().file_name()));
        for file in files.chain([from.clone()]) {
            if !calls[..i].iter().any(|c| c.syncs(&file)) {
                return Err(format!("{} was not synced before it was named", file.display()));
            }
        }
        let next = calls[i + 1..].iter().find(|c| c.thread == call.thread);
        if !next.is_some_and(|c| c.syncs(to.parent().unwrap())) {
            return Err(format!("the name {} was not synced at once: {next:?}", to.display()));
        }
        names += 1;
    }
    Ok(names)
}

/// That the name of each directory was synced, before anything was named in it.
fn check_directories(calls: &[Call]) -> Result<(), String> {
    for (i, call) in calls.iter().enumerate() {
        let What::MakeDir(dir) = &call.what else { continue };
        let after = &calls[i + 1..];
        let synced = after.iter().position(|c| c.syncs(dir.parent().unwrap()));
        let used = after
            .iter()
            .position(|c| matches!(&c.what, What::Name(_, to) if to.parent() == Some(dir)));
        if synced.is_none_or(|synced| used.is_some_and(|used| used < synced)) {
            return Err(format!("the name {} was not synced, or too late", dir.display()));
        }
    }
    Ok(())
}

/// That what an image leans on was removed only when it was sure that the image is gone. How many
/// images went.
fn check_removals(calls: &[Call], store: &Path) -> Result<usize, String> {
    let manifests = store.join("manifests");
    let leaned_on = ["packs", "sections", "locators"].map(|folder| store.join(folder));
    let (mut images, mut unsure) = (0, false);
    for call in calls {
        let What::Remove(name) = &call.what else {
            unsure &= !call.syncs(&manifests);
            continue;
        };
        if is_partial(name) {
            continue;
        }
        if name.starts_with(&manifests) {
            (images, unsure) = (images + 1, true);
        } else if unsure && leaned_on.iter().any(|folder| name.starts_with(folder)) {
            return Err(format!("{} before manifests/ was synced", name.display()));
        }
    }
    Ok(images)
}

/// Whether it is the name under which an object was written.
fn is_partial(name: &Path) -> bool {
    name.to_string_lossy().contains('#')
}

#[test]
fn real_what_is_acknowledged_was_synced_in_the_right_order() {
    if std::env::var_os("FOREBAY_E2E").is_none() {
        println!("left out: needs FOREBAY_E2E=1 and strace");
        return;
    }
    let mut grid = Grid::start();
    grid.kill();
    std::fs::remove_dir_all(&grid.data).unwrap();
    let (log, store) = (grid.dir.join("calls"), grid.dir.join("deep/down/store"));
    let program = forebay(&grid.data);
    let mut traced = Command::new("strace");
    traced.args(["-f", "-y", "-qq", "-o", path(&log), "-e"]);
    traced.arg(
        "trace=fsync,fdatasync,link,linkat,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat",
    );
    traced.arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => traced.env(name, value),
            None => traced.env_remove(name),
        };
    }
    let at = format!("store.at={}", path(&store));
    traced.args(["up", "--json", "--listen", "127.0.0.1:0", "--set", &at]);
    let mut up = Background::start(&mut traced);
    let said: serde_json::Value = serde_json::from_str(&up.line()).unwrap();

    for (letters, name) in [("abc", "d:1"), ("cde", "d:2")] {
        grid.import(&grid.disk("d.raw", &Disk::new(letters)), name);
    }
    grid.run(&["rm", "d:2"]).json();
    for done in ["condemned", "deleted"] {
        assert_ne!(grid.run(&["gc", "--grace", "0s"]).json()[done], 0);
    }
    // strace itself does not heed signals while it runs a program.
    let pid = said["pid"].to_string();
    assert!(Command::new("kill").arg(pid).status().unwrap().success());
    assert!(up.child.wait().unwrap().success());

    let calls = calls(&std::fs::read_to_string(&log).unwrap());
    let names = check_names(&calls).unwrap();
    assert!(names > 20, "{names}: papers, state, notes, and the objects of two images");
    check_directories(&calls).unwrap();
    assert_eq!(check_removals(&calls, &store), Ok(1));
}

#[test]
fn a_sync_that_is_missing_is_found() {
    let log = [
        "7 mkdir(\"/d/store\", 0777) = 0",
        "7 fsync(3</d>) = 0",
        "8 mkdir(\"/d/store\", 0777) = -1 EEXIST (File exists)",
        "7 fsync(3</d/store/x#1> <unfinished ...>",
        "8 rename(\"/elsewhere\", \"/d/never\") = -1 ENOENT (No such file or directory)",
        "7 <... fsync resumed>) = 0",
        "7 linkat(AT_FDCWD</>, \"/d/store/x#1\", AT_FDCWD</>, \"/d/store/x\", 0) = 0",
        "7 fsync(3</d/store>) = 0",
        "7 unlink(\"/d/store/x#1\") = 0",
        "7 unlink(\"/d/store/manifests/m\") = 0",
        "7 fdatasync(3</d/store/manifests>) = 0",
        "8 unlink(\"/d/store/packs/p\") = 0",
    ];
    let check = |lines: &[&str]| {
        let calls = calls(&lines.join("\n"));
        check_directories(&calls)?;
        Ok::<_, String>((check_names(&calls)?, check_removals(&calls, Path::new("/d/store"))?))
    };
    assert_eq!(check(&log), Ok((1, 1)));
    for sync in (0..log.len()).filter(|i| log[*i].contains("sync")) {
        let mut without = log.to_vec();
        without.remove(sync);
        assert!(check(&without).is_err(), "without line {sync}");
    }
}
