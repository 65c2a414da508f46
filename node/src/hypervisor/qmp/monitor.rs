//! One connection to a monitor.

use std::path::Path;
use std::time::Duration;

use image::Result;
use image::error::At;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::wire::{self, Greeting, MAX_LINE, QmpError, Version};

/// A client of the monitor behind a Unix socket (`-qmp unix:PATH,server=on,wait=off`).
///
/// One command at a time. A future of [`execute`](Monitor::execute) may be dropped: the answer is
/// skipped when it comes.
#[derive(Debug)]
pub struct Monitor {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    /// What has arrived of the next line; it stays when who reads it goes away.
    line: Vec<u8>,
    /// A command may have been sent in part.
    broken: bool,
    last_id: u64,
    patience: Duration,
    place: String,
    version: Version,
    package: String,
}

impl Monitor {
    /// Connects, and waits for the greeting. `patience` is how long an answer may take, this one and
    /// those to come.
    ///
    /// # Errors
    ///
    /// [`Kind::Retry`](image::Kind::Retry) if nobody answers (a monitor serves one client, and lets
    /// others wait), [`Kind::Invalid`](image::Kind::Invalid) if it is no QEMU that does.
    pub async fn connect(socket: &Path, patience: Duration) -> Result<Monitor> {
        let place = format!("the monitor at {}", socket.display());
        let connected = timeout(patience, UnixStream::connect(socket)).await;
        let late = || QmpError::Late { what: "a connection".to_owned(), patience };
        let stream = connected.map_err(|_| late()).and_then(|c| Ok(c?)).at(|| &place)?;
        let (read, write) = stream.into_split();
        let mut monitor = Monitor {
            read: BufReader::new(read),
            write,
            line: Vec::new(),
            broken: false,
            last_id: 0,
            patience,
            place,
            version: Version { major: 0, minor: 0, micro: 0 },
            package: String::new(),
        };
        let greeting = timeout(patience, monitor.next_line()).await;
        let late = || QmpError::Late { what: "hello".to_owned(), patience };
        let greeting = greeting.map_err(|_| late()).and_then(|line| Greeting::parse(&line?));
        (monitor.version, monitor.package) = greeting.at(|| &monitor.place)?.version();
        monitor.execute("qmp_capabilities", json!({})).await?;
        Ok(monitor)
    }

    /// QEMU's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// What QEMU's packager calls it; may be empty.
    pub fn package(&self) -> &str {
        &self.package
    }

    /// Has a command done, and returns its result. `arguments` is an object, or null for none.
    ///
    /// # Errors
    ///
    /// What QEMU says, by [`Kind::Conflict`](image::Kind::Conflict) mostly: a command it does not know
    /// is [`Kind::Unsupported`](image::Kind::Unsupported). [`Kind::Retry`](image::Kind::Retry) if no answer came.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let answered = timeout(self.patience, self.exchange(command, &arguments)).await;
        let late = || QmpError::Late { what: command.to_owned(), patience: self.patience };
        answered.unwrap_or_else(|_| Err(late())).at(|| &self.place)
    }

    async fn exchange(&mut self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        if self.broken {
            return Err(QmpError::Broken);
        }
        self.last_id += 1;
        self.broken = true;
        self.write.write_all(&wire::command(command, arguments, self.last_id)).await?;
        self.broken = false;
        loop {
            let line = self.next_line().await?;
            if let Some(value) = wire::answer(&line, command, self.last_id)? {
                return Ok(value);
            }
        }
    }

    async fn next_line(&mut self) -> Result<Vec<u8>, QmpError> {
        // One byte more than allowed, to tell a line that just fits.
        let room = (MAX_LINE + 1 - self.line.len()) as u64;
        (&mut self.read).take(room).read_until(b'\n', &mut self.line).await?;
        match self.line.last() {
            Some(b'\n') => Ok(std::mem::take(&mut self.line)),
            _ if self.line.len() > MAX_LINE => {
                self.broken = true;
                self.line = Vec::new();
                Err(QmpError::LongLine)
            }
            _ => Err(QmpError::Closed),
        }
    }
}
