//! A client of QEMU's monitor for tests, and a relay between a daemon and a monitor that can be stopped after any
//! message.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::harness::until;

/// Connects as soon as somebody listens.
fn connect(socket: &Path) -> UnixStream {
    let mut connected = None;
    until(&format!("somebody listens at {}", socket.display()), || {
        connected = UnixStream::connect(socket).ok();
        connected.is_some()
    });
    connected.expect("connected")
}

/// A client, one command after the other.
pub struct Monitor {
    read: BufReader<UnixStream>,
    write: UnixStream,
    /// The names of the events that came.
    pub events: Vec<String>,
}

impl Monitor {
    pub fn connect(socket: &Path) -> Self {
        let write = connect(socket);
        let read = BufReader::new(write.try_clone().expect("a second handle"));
        let mut monitor = Self { read, write, events: Vec::new() };
        assert!(monitor.line()["QMP"].is_object());
        monitor.execute("qmp_capabilities", json!({}));
        monitor
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.read.read_line(&mut line).expect("a monitor that answers");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
    }

    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let command = json!({ "execute": command, "arguments": arguments });
        writeln!(self.write, "{command}").expect("a monitor that listens");
        loop {
            let mut answer = self.line();
            match answer["event"].as_str() {
                Some(event) => self.events.push(event.to_owned()),
                None => {
                    assert!(answer["error"].is_null(), "{command}: {answer}");
                    return answer["return"].take();
                }
            }
        }
    }

    /// One of qemu-io's commands, on the guest's first disk, as its device would do it. QEMU says on its
    /// standard output what came of it.
    pub fn io(&mut self, command: &str) {
        let devices = self.execute("query-block", json!({}));
        let device = devices[0]["qdev"].as_str().expect("a disk of a device").to_owned();
        let line = format!("qemu-io -d {device} \"{command}\"");
        self.execute("human-monitor-command", json!({ "command-line": line }));
    }
}

/// What the relay does with the next message.
struct Plan {
    /// Commands that still pass; all, if nothing.
    left: Option<usize>,
    /// Commands that have passed.
    passed: usize,
    /// The command that is held up until something comes.
    pause: Option<(&'static str, Receiver<()>)>,
}

/// Passes messages on between whoever connects to its socket and QEMU.
pub struct Relay {
    plan: Arc<Mutex<Plan>>,
    open: Sender<()>,
    pub stopped: Receiver<()>,
}

impl Relay {
    /// Listens at `socket`, and passes on to `monitor` when it is opened. After `stop` commands, the last of which QEMU
    /// has carried out, nothing passes any more, neither way.
    pub fn start(socket: &Path, monitor: PathBuf, stop: Option<usize>) -> Self {
        let listener = UnixListener::bind(socket).expect("a place for a socket");
        let plan = Arc::new(Mutex::new(Plan { left: stop, passed: 0, pause: None }));
        let ((open, opened), (tell, stopped)) = (channel(), channel());
        let shared = Arc::clone(&plan);
        std::thread::spawn(move || {
            if opened.recv().is_err() {
                return;
            }
            for client in listener.incoming() {
                let client = client.expect("a client");
                let ended = relay(&client, &connect(&monitor), &shared, &tell);
                if ended == End::Stopped {
                    let _ = tell.send(());
                    // Silent, not gone: the daemon waits until it is killed.
                    let _ = BufReader::new(client).read_until(b'\0', &mut Vec::new());
                }
            }
        });
        Self { plan, open, stopped }
    }

    pub fn open(&self) {
        let _ = self.open.send(());
    }

    /// From now on so many pass.
    pub fn stop_after(&self, commands: usize) {
        self.plan.lock().expect("no panics while locked").left = Some(commands);
    }

    /// From now on all pass.
    pub fn pass_all(&self) {
        self.plan.lock().expect("no panics while locked").left = None;
    }

    /// Holds up the next command of this kind: [`stopped`](Relay::stopped) tells when it comes, and it passes when the
    /// sender is used.
    pub fn hold_up(&self, command: &'static str) -> Sender<()> {
        let (go_on, wait) = channel();
        self.plan.lock().expect("no panics while locked").pause = Some((command, wait));
        go_on
    }

    /// How many commands have passed.
    pub fn passed(&self) -> usize {
        self.plan.lock().expect("no panics while locked").passed
    }
}

#[derive(PartialEq, Eq)]
enum End {
    Stopped,
    /// One of the two is gone.
    Gone,
}

/// A command at a time, as the daemon sends them.
fn relay(client: &UnixStream, monitor: &UnixStream, plan: &Mutex<Plan>, tell: &Sender<()>) -> End {
    let (mut commands, mut answers) = (BufReader::new(client), BufReader::new(monitor));
    // The greeting, and then what each command is answered.
    let mut command = Vec::new();
    loop {
        let mut answer = Vec::new();
        loop {
            let from = answer.len();
            if answers.read_until(b'\n', &mut answer).unwrap_or(0) == 0 {
                return End::Gone;
            }
            let line: Value = serde_json::from_slice(&answer[from..]).unwrap_or_default();
            if line["event"].is_null() {
                break;
            }
        }
        let stop = plan.lock().expect("no panics while locked").left == Some(0);
        if stop {
            return End::Stopped;
        }
        command.clear();
        let mut to = client;
        if to.write_all(&answer).is_err()
            || commands.read_until(b'\n', &mut command).unwrap_or(0) == 0
        {
            return End::Gone;
        }
        let asked: Value = serde_json::from_slice(&command).unwrap_or_default();
        let pause = {
            let mut plan = plan.lock().expect("no panics while locked");
            plan.pause.take_if(|(held, _)| asked["execute"] == *held)
        };
        if let Some((_, go_on)) = pause {
            let _ = tell.send(());
            let _ = go_on.recv();
        }
        let mut to = monitor;
        if to.write_all(&command).is_err() {
            return End::Gone;
        }
        let mut plan = plan.lock().expect("no panics while locked");
        plan.passed += 1;
        plan.left = plan.left.map(|left| left - 1);
    }
}
