//! Running commands, timed, and watched for memory.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use forebay_benches::cpu_seconds_of as cpu_seconds;

#[expect(clippy::disallowed_methods, reason = "a measurement reads the real clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// Runs a command to its end; panics with its error output unless it succeeds.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{error}", output.status);
    output
}

/// Runs a command to its end and says how many seconds it took.
pub fn timed(command: &mut Command) -> f64 {
    let start = now();
    run(command);
    (now() - start).as_secs_f64()
}

/// `program` inside a network namespace, if one is named.
pub fn inside(namespace: Option<&str>, program: impl AsRef<OsStr>) -> Command {
    match namespace {
        None => Command::new(program),
        Some(namespace) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", namespace]).arg(program);
            command
        }
    }
}

/// A program that lies beside this one.
pub fn beside(name: &str) -> PathBuf {
    std::env::current_exe().unwrap().with_file_name(name)
}

/// The same command, kept to one core.
pub fn on_core(core: usize, command: &Command) -> Command {
    let mut kept = Command::new("taskset");
    kept.args(["-c", &core.to_string()]).arg(command.get_program()).args(command.get_args());
    let variables = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    kept.envs(variables);
    kept
}

/// The command, inside a cgroup (its `cgroup.procs`) from its first instruction.
pub fn within(procs: &Path, command: &Command) -> Command {
    let enter = format!("echo $$ > {}; exec \"$@\"", procs.display());
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(enter).arg("sh").arg(command.get_program()).args(command.get_args());
    let variables = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    shell.envs(variables);
    shell
}

/// Runs a command that prints a line of JSON.
pub fn json(command: &mut Command) -> serde_json::Value {
    let output = run(command);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// Writes everything out, so that one measurement does not pay for the one before.
pub fn settle() {
    run(&mut Command::new("sync"));
}

/// Anonymous and shared memory of a process now, in bytes.
fn anonymous(pid: u32) -> u64 {
    status(pid, "RssAnon:") + status(pid, "RssShmem:")
}

/// Memory of a process now, in bytes, the pages of files with it.
pub fn resident(pid: u32) -> u64 {
    status(pid, "VmRSS:")
}

fn status(pid: u32, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with(key));
    let kib = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Watches the peak of RssAnon + RssShmem of a process.
pub struct MemoryWatch {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl MemoryWatch {
    pub fn start(pid: u32) -> Self {
        let (peak, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (p, s) = (Arc::clone(&peak), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !s.load(Ordering::Relaxed) {
                p.fetch_max(anonymous(pid), Ordering::Relaxed);
                pause(Duration::from_millis(2));
            }
        });
        Self { peak, stop, thread: Some(thread) }
    }

    /// Ends the watching; the peak in bytes.
    pub fn peak(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.peak.load(Ordering::Relaxed)
    }
}

#[expect(clippy::disallowed_methods, reason = "samples are taken in real time")]
pub fn pause(t: Duration) {
    std::thread::sleep(t);
}

/// A child that is killed when it is dropped.
pub struct Background(pub Child);

impl Background {
    pub fn start(command: &mut Command) -> Self {
        let child = command.stdout(Stdio::piped()).spawn();
        Self(child.unwrap_or_else(|e| panic!("{command:?}: {e}")))
    }
}

impl Background {
    /// The first line that it prints.
    pub fn first_line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Ends it as systemd does; the last line that it prints.
    pub fn terminate(mut self) -> serde_json::Value {
        run(Command::new("kill").arg(self.0.id().to_string()));
        let mut said = String::new();
        self.0.stdout.as_mut().unwrap().read_to_string(&mut said).unwrap();
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}: {said}");
        let last = said.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {said}"))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A child that answers each line with one of JSON, and ends with its input, and so with us.
pub struct Answering {
    _child: Background,
    answers: BufReader<ChildStdout>,
    questions: ChildStdin,
}

impl Answering {
    /// Starts it; the first line that it prints.
    pub fn start(command: &mut Command) -> (Self, String) {
        let mut child = Background::start(command.stdin(Stdio::piped()));
        let mut answers = BufReader::new(child.0.stdout.take().unwrap());
        let questions = child.0.stdin.take().unwrap();
        let mut first = String::new();
        answers.read_line(&mut first).unwrap();
        assert!(!first.is_empty(), "{command:?} ended at once");
        (Self { _child: child, answers, questions }, first.trim().to_owned())
    }

    pub fn ask(&mut self) -> serde_json::Value {
        self.questions.write_all(b"\n").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
    }
}
