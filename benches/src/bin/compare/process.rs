//! Running commands, timed, and watched for memory.

use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

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
pub fn inside(namespace: Option<&str>, program: impl AsRef<std::ffi::OsStr>) -> Command {
    match namespace {
        None => Command::new(program),
        Some(namespace) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", namespace]).arg(program);
            command
        }
    }
}

/// Writes everything out, so that one measurement does not pay for the one before.
pub fn settle() {
    run(&mut Command::new("sync"));
}

/// Anonymous and shared memory of a process now, in bytes.
fn anonymous(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let of = |key: &str| -> u64 {
        let line = status.lines().find(|l| l.starts_with(key));
        line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
    };
    (of("RssAnon:") + of("RssShmem:")) * 1024
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

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
