//! Guests whose file systems hold still while they are saved, by an agent that is good, slow, or not there.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::harness::{path, until};
use crate::volumes::{Rig, connect};

/// What an agent does when it is told to freeze.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Freezes {
    Well,
    /// It does not say that it has, until it is told to thaw by somebody else.
    Silently,
    /// It says that it cannot.
    Not,
}

/// The state of a guest, and of its agent.
#[derive(Default)]
struct Guest {
    frozen: AtomicBool,
    freezes: AtomicUsize,
    thaws: AtomicUsize,
}

/// An agent as QEMU shows it: one client at a time.
struct Agent {
    socket: PathBuf,
    guest: Arc<Guest>,
}

impl Agent {
    fn start(dir: &Path, how: Freezes) -> Self {
        let socket = dir.join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let guest = Arc::new(Guest::default());
        let shared = Arc::clone(&guest);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                // It ends with its client.
                let _ = serve(client.unwrap(), how, &shared);
            }
        });
        Self { socket, guest }
    }
}

fn serve(client: UnixStream, how: Freezes, guest: &Guest) -> std::io::Result<()> {
    let mut answer = client.try_clone()?;
    for line in BufReader::new(client).split(b'\n') {
        let line = line?;
        let line = line.strip_prefix(&[0xff]).unwrap_or(&line);
        let command: Value = serde_json::from_slice(line)?;
        let said = match command["execute"].as_str().unwrap() {
            "guest-sync-delimited" => {
                answer.write_all(b"what an earlier client has not read\n\xff")?;
                json!({ "return": command["arguments"]["id"] })
            }
            "guest-fsfreeze-freeze" if how == Freezes::Not => {
                json!({ "error": { "class": "GenericError", "desc": "no file system can be frozen" } })
            }
            "guest-fsfreeze-freeze" => {
                guest.frozen.store(true, Ordering::SeqCst);
                guest.freezes.fetch_add(1, Ordering::SeqCst);
                if how == Freezes::Silently {
                    continue;
                }
                json!({ "return": 1 })
            }
            "guest-fsfreeze-thaw" => {
                guest.frozen.store(false, Ordering::SeqCst);
                guest.thaws.fetch_add(1, Ordering::SeqCst);
                json!({ "return": 1 })
            }
            other => panic!("{other}"),
        };
        answer.write_all(format!("{said}\n").as_bytes())?;
    }
    Ok(())
}

fn save(rig: &Rig, name: &str, agent: &Path) -> Value {
    let saved = rig.grid.run(&["save", "v", name, "--agent", path(agent)]).json();
    assert_eq!(saved["state"], "done");
    saved
}

#[test]
fn file_systems_hold_still_while_the_instant_is_fixed_and_go_on_whatever_the_agent_does() {
    let rig = Rig::start("abcd");
    let socket = rig.attached("v", &["--no-fill"]);
    connect(&socket).write(0, &[7; 4096]).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let agent = Agent::start(temp.path(), Freezes::Well);
    let saved = save(&rig, "saved:1", &agent.socket);
    assert!(saved["frozen_ms"].is_u64() && saved["not_frozen"].is_null(), "{saved}");
    let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
    assert_eq!((count(&agent.guest.freezes), count(&agent.guest.thaws)), (1, 1));

    let temp = tempfile::tempdir().unwrap();
    let agent = Agent::start(temp.path(), Freezes::Not);
    let saved = save(&rig, "saved:2", &agent.socket);
    let why = saved["not_frozen"].as_str().unwrap();
    assert!(why.contains("no file system can be frozen") && saved["frozen_ms"].is_null(), "{why}");
    // Nobody is there; somebody is there and says nothing.
    let temp = tempfile::tempdir().unwrap();
    let gone = temp.path().join("gone.sock");
    assert!(save(&rig, "saved:3", &gone)["not_frozen"].as_str().unwrap().contains("gone.sock"));
    let _mute = UnixListener::bind(&gone).unwrap();
    let saved = save(&rig, "saved:4", &gone);
    assert!(saved["not_frozen"].as_str().unwrap().contains("does not answer"), "{saved}");
}

#[test]
fn a_guest_goes_on_when_the_daemon_dies_while_it_holds_still() {
    let mut rig = Rig::start("abcd");
    let socket = rig.attached("v", &["--no-fill"]);
    connect(&socket).write(0, &[7; 4096]).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let agent = Agent::start(temp.path(), Freezes::Silently);
    let asked = ["save", "v", "saved:1", "--no-wait", "--agent", path(&agent.socket)];
    rig.grid.run(&asked).json();
    until("it holds still", || agent.guest.frozen.load(Ordering::SeqCst));
    rig.kill_node();
    until("it goes on", || !agent.guest.frozen.load(Ordering::SeqCst));
    rig.start_node();
    rig.grid.run(&["save", "v", "saved:1"]).json();
}
