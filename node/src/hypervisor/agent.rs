//! A guest's agent ([QEMU's], over a Unix socket): it has file systems inside write down what they have, and hold still.
//!
//! A guest whose file systems are left frozen is lost. So before they are, a process is started that does nothing but wait
//! for this one: if the connection between the two ends without a word, because this process was killed or gave up, it
//! thaws them.
//!
//! ```text
//! freeze:  guard started ─▶ guest-fsfreeze-freeze ─▶ … ─▶ guest-fsfreeze-thaw ─▶ "done" to the guard, which ends
//!                                                    ╳  ─────────────────────▶ guard: guest-fsfreeze-thaw, until it is answered
//! ```
//! [QEMU's]: https://qemu-project.gitlab.io/qemu/interop/qemu-ga-ref.html

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use image::error::At;
use image::{Error, Kind, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::rate::{RealTime, Time};

/// How long an agent may take to answer when it is greeted: one that is not there, or hangs, holds nobody up.
const HELLO: Duration = Duration::from_secs(3);
/// How long file systems may take to write down what they have.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest answer that is read, in bytes.
const MOST: u64 = 64 << 10;
/// What a guard is told when there is nothing left to do.
const DONE: u8 = b'd';
/// How often a guard tries, and how long it rests in between: ten minutes in all.
const TRIES: u32 = 300;
const REST: Duration = Duration::from_secs(2);

/// A connection to an agent, one command at a time.
struct Agent {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

fn lost(error: std::io::Error) -> Error {
    Error::caused(Kind::Retry, format!("the connection was lost: {error}"), error)
}

impl Agent {
    /// Connects. What an earlier client has left unread is skipped: the agent puts a byte that is in no text before
    /// its answer.
    async fn connect(socket: &Path) -> Result<Self> {
        let hello = async {
            let stream = UnixStream::connect(socket).await;
            let stream = stream.map_err(|e| Error::caused(Kind::Retry, e.to_string(), e))?;
            let (read, write) = stream.into_split();
            let mut agent = Self { read: BufReader::new(read), write };
            let sync = json!({ "execute": "guest-sync-delimited", "arguments": { "id": 1 } });
            // The first byte has the agent forget what a client before us has left half said.
            let hello = [&[0xff], sync.to_string().as_bytes(), b"\n"].concat();
            agent.write.write_all(&hello).await.map_err(lost)?;
            let mut skipped = Vec::new();
            (&mut agent.read).take(MOST).read_until(0xff, &mut skipped).await.map_err(lost)?;
            match agent.answer().await? {
                Value::Number(_) => Ok(agent),
                _ => Err(Error::new(Kind::Invalid, "not what a guest's agent says")),
            }
        };
        let late = |_| Error::new(Kind::Retry, "the guest's agent does not answer");
        timeout(HELLO, hello).await.map_err(late)?
    }

    async fn execute(&mut self, command: &str) -> Result<Value> {
        let line = format!("{}\n", json!({ "execute": command }));
        self.write.write_all(line.as_bytes()).await.map_err(lost)?;
        let late =
            |_| Error::new(Kind::Retry, format!("{command}: the guest's agent does not answer"));
        timeout(PATIENCE, self.answer()).await.map_err(late)?.at(|| command.to_owned())
    }

    async fn answer(&mut self) -> Result<Value> {
        let mut line = Vec::new();
        (&mut self.read).take(MOST).read_until(b'\n', &mut line).await.map_err(lost)?;
        let garbage = |e| Error::caused(Kind::Invalid, "not what a guest's agent says", e);
        let mut answer: Value = serde_json::from_slice(&line).map_err(garbage)?;
        if let Some(error) = answer.get("error") {
            let desc = error.get("desc").and_then(Value::as_str).unwrap_or("it failed");
            return Err(Error::new(Kind::Conflict, desc.to_owned()));
        }
        Ok(answer.get_mut("return").map(Value::take).unwrap_or_default())
    }
}

/// What thaws a guest if this process does not.
struct Guard(Option<Child>);

impl Guard {
    /// Starts `command`, a program that calls [`guard`] with this socket.
    fn start(command: &[OsString], socket: &Path) -> Result<Self> {
        let (program, words) = command.split_first().ok_or_else(|| {
            Error::new(Kind::Unsupported, "nothing is there to thaw guests if we die")
        })?;
        let child = Command::new(program)
            .args(words)
            .arg(socket)
            // What ends us by our terminal or our group does not end it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        child
            .map(|child| Self(Some(child)))
            .map_err(|e| Error::io("starting what thaws the guest", e))
    }

    fn dismiss(mut self) {
        if let Some(stdin) = self.0.as_mut().and_then(|child| child.stdin.as_mut()) {
            // If it does not hear, it thaws what is thawed already.
            let _ = stdin.write_all(&[DONE]);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            drop(child.stdin.take());
            // It may have work to do: nobody waits for it but the table of processes.
            std::thread::spawn(move || child.wait());
        }
    }
}

/// A guest whose file systems hold still, until this is dropped.
pub(crate) struct Frozen {
    agent: Agent,
    guard: Guard,
    clock: Arc<RealTime>,
    since: Duration,
}

impl Frozen {
    /// Has the file systems of a guest hold still. If that fails, or this future is dropped, they do not.
    ///
    /// # Errors
    ///
    /// [`Kind::Retry`] if the agent does not answer; what it says.
    pub(crate) async fn freeze(socket: &Path, thaw: &[OsString]) -> Result<Self> {
        let place = || format!("the guest's agent at {}", socket.display());
        let mut agent = Agent::connect(socket).await.at(place)?;
        let guard = Guard::start(thaw, socket)?;
        agent.execute("guest-fsfreeze-freeze").await.at(place)?;
        let clock = Arc::new(RealTime::start());
        let since = clock.now();
        Ok(Self { agent, guard, clock, since })
    }

    /// Lets them go on; returns for how long they did not.
    ///
    /// # Errors
    ///
    /// If the agent does not say so; then it is told again, for ten minutes.
    pub(crate) async fn thaw(mut self) -> Result<Duration> {
        self.agent.execute("guest-fsfreeze-thaw").await?;
        self.guard.dismiss();
        Ok(self.clock.now() - self.since)
    }
}

/// What the guard does: waits until whoever started it says that all is done, and thaws the guest if it goes away without
/// a word. `input` is its standard input.
pub async fn guard(socket: &Path, mut input: impl Read + Send + 'static) -> Result<()> {
    let mut word = [0; 1];
    // Until then there is nothing else to do.
    if input.read(&mut word).is_ok_and(|read| read == 1 && word[0] == DONE) {
        return Ok(());
    }
    let mut failed = Ok(());
    for _ in 0..TRIES {
        let thawed = async { Agent::connect(socket).await?.execute("guest-fsfreeze-thaw").await };
        match thawed.await {
            Ok(_) => return Ok(()),
            Err(error) => failed = Err(error),
        }
        tokio::time::sleep(REST).await;
    }
    failed
}
