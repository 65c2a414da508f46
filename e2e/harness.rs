//! A grid of real processes in a temporary directory, and disks made from a seed.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

pub const CHUNK: usize = 256 << 10;

/// The shipped program, without anything of the tester's environment that it would heed.
pub fn forebay(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FOREBAY_")) {
        command.env_remove(name);
    }
    command.env("FOREBAY_DATA", data).arg("--progress=never");
    command
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        Self { code, out: text(output.stdout), err: text(output.stderr) }
    }

    /// Its JSON, of a command that must have succeeded.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.err);
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }

    /// That it failed with this code and says these things.
    #[track_caller]
    pub fn fails(&self, code: i32, says: &[&str]) {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        says.iter().for_each(|s| assert!(self.err.contains(s), "`{s}` is not in: {}", self.err));
    }
}

/// No command takes longer; one that does is killed, and fails.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Ended {
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = piped.spawn().expect("a program that can be started");
    let (pid, (done, waiting)) = (child.id().to_string(), mpsc::channel::<()>());
    let guard = std::thread::spawn(move || {
        if waiting.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = Command::new("kill").args(["-9", &pid]).status();
        }
    });
    let output = child.wait_with_output().expect("a child can be waited for");
    drop(done);
    guard.join().expect("the guard only waits");
    Ended::from(output)
}

/// A background process, killed when dropped.
pub struct Background {
    pub child: Child,
    lines: BufReader<ChildStdout>,
}

impl Background {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("a program that can start");
        let lines = BufReader::new(child.stdout.take().expect("a piped stdout"));
        Self { child, lines }
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("UTF-8 on a pipe");
        line
    }

    /// As a power cut ends a process.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a killed child ends");
    }

    /// As systemd ends it; its last line and exit code.
    pub fn terminate(&mut self) -> (String, i32) {
        self.end("-TERM")
    }

    /// As a signal ends it; its last line and exit code.
    pub fn end(&mut self, signal: &str) -> (String, i32) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("kill").success());
        let line = self.line();
        let status = self.child.wait().expect("a child ends");
        (line, status.code().unwrap_or(-1))
    }
}

impl Background {
    /// Waits until it ends by itself; its last line and exit code.
    pub fn ended(&mut self, patience: Duration) -> (String, i32) {
        for _ in 0..patience.as_millis() / 100 {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return (self.line(), status.code().unwrap_or(-1));
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
        panic!("it has not ended within {patience:?}");
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `up` says on standard error.
const LOG: &str = "up.log";

/// A grid and the directory it lives in.
pub struct Grid {
    pub dir: PathBuf,
    pub data: PathBuf,
    pub up: Option<Background>,
    args: Vec<String>,
    _temp: tempfile::TempDir,
}

impl Grid {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more arguments for `up`.
    pub fn start_with(args: &[&str]) -> Self {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let dir = temp.path().to_owned();
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        let mut grid = Self { data: dir.join("grid"), dir, up: None, args, _temp: temp };
        grid.restart();
        grid
    }

    /// Starts `up`, which must not be running.
    pub fn restart(&mut self) {
        let mut command = forebay(&self.data);
        command.args(["up", "--json", "--listen", "127.0.0.1:0"]).args(&self.args);
        let log = File::options().create(true).append(true).open(self.dir.join(LOG));
        command.stderr(log.expect("a log in a temporary directory"));
        let mut up = Background::start(&mut command);
        assert!(!up.line().is_empty(), "forebay up ended before it served");
        self.up = Some(up);
    }

    /// From its next start on `up` has these arguments, and not those that it had.
    pub fn set(&mut self, args: &[&str]) {
        self.args = args.iter().map(|a| (*a).to_owned()).collect();
    }

    /// Waits until `up` has logged a line that says all of this.
    #[track_caller]
    pub fn has_logged(&self, says: &[&str]) {
        let has = |line: &str| says.iter().all(|s| line.contains(s));
        until(&format!("{says:?} in the log"), || self.log().lines().any(has));
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join(LOG)).unwrap_or_default()
    }

    /// Stops `up` in good order; what it says of its run.
    pub fn stop(&mut self) -> Value {
        let (line, code) = self.up.take().expect("up runs").terminate();
        assert_eq!(code, 0, "forebay up");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
    }

    pub fn kill(&mut self) {
        self.up.take().expect("up runs").kill();
    }

    /// A command against this grid, with `--json`.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = forebay(&self.data);
        command.arg("--json").args(args);
        command
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        run(&mut self.command(args))
    }

    pub fn import(&self, disk: &Path, name: &str) -> Value {
        self.run(&["import", path(disk), name]).json()
    }

    /// Pulls in the command's own process.
    pub fn pull(&self, name: &str, to: &Path) -> Ended {
        self.run(&["pull", name, "--to", path(to), "--no-daemon"])
    }

    /// A file of `bytes` in the grid's directory.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.join(name);
        std::fs::write(&path, bytes).expect("a file in a temporary directory");
        path
    }

    /// A sparse disk in the grid's directory.
    pub fn disk(&self, name: &str, disk: &Disk) -> PathBuf {
        let path = self.dir.join(name);
        let file = File::create(&path).expect("a file in a temporary directory");
        file.set_len(disk.bytes.len() as u64).expect("a size");
        for (i, chunk) in disk.bytes.chunks(CHUNK).enumerate() {
            if chunk.iter().any(|b| *b != 0) {
                file.write_all_at(chunk, (i * CHUNK) as u64).expect("a write");
            }
        }
        path
    }

    /// The objects of a folder of the store.
    pub fn objects(&self, folder: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        files(&self.data.join("store").join(folder), &mut found);
        found
    }
}

impl Drop for Grid {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("what `up` logged:\n{}", self.log());
        }
    }
}

/// Looks again and again until something is so, for as long as a command may take.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "polls what another process does")]
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Every file below a directory.
pub fn files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            files(&path, into);
        } else {
            into.push(path);
        }
    }
}

pub fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8 paths")
}

/// Flips one bit of a file.
pub fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte inside the file");
    file.write_all_at(&[byte[0] ^ 4], at).expect("a write");
}

/// A disk: letters for chunks, the same letter the same bytes, `.` for zeros.
#[derive(Clone)]
pub struct Disk {
    pub bytes: Vec<u8>,
}

impl Disk {
    pub fn new(chunks: &str) -> Self {
        Self { bytes: chunks.bytes().flat_map(chunk).collect() }
    }

    pub fn cut(mut self, bytes: usize) -> Self {
        self.bytes.truncate(self.bytes.len() - bytes);
        self
    }
}

/// Half noise, half text, so that it compresses like a real disk.
fn chunk(letter: u8) -> Vec<u8> {
    let mut bytes = vec![0; CHUNK];
    if letter == b'.' {
        return bytes;
    }
    let mut x = u64::from(letter) << 32 | 1;
    for (i, line) in bytes.chunks_mut(64).enumerate() {
        if i % 2 == 0 {
            let _ = write!(&mut line[..], "line {i} of chunk {}", letter as char);
        } else {
            for byte in line {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                *byte = (x >> 56) as u8;
            }
        }
    }
    bytes
}
