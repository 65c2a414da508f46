//! What a command prints: JSON for programs, tables and progress for people.

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use image::{Error, Kind, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::cli::{Common, ProgressWhen};

/// How to print.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
    progress: ProgressWhen,
}

impl Output {
    /// As the command line says.
    pub fn new(common: &Common) -> Self {
        Self { json: common.json, progress: common.progress }
    }

    /// Whether a program reads it.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a result: as one JSON value, or as `human` writes it.
    pub fn result<T: Serialize>(&self, value: &T, human: impl FnOnce(&T) -> String) -> Result<()> {
        print_as(self.json.then_some(serde_json::to_string_pretty), value, human)
    }

    /// Fails if a result could not name `path`: JSON knows no text but UTF-8.
    pub fn must_name(&self, path: &Path) -> Result<()> {
        match self.json && path.to_str().is_none() {
            false => Ok(()),
            true => {
                let what = format!("{}: --json cannot name it: it is not UTF-8", path.display());
                Err(Error::new(Kind::Invalid, what))
            }
        }
    }

    /// Starts showing the progress of `what` over `total` bytes, on standard error. 0 means that
    /// nobody knows the total yet.
    pub fn progress(&self, what: &str, total: u64) -> Progress {
        let bar = match self.progress {
            ProgressWhen::Never => Bar::None,
            _ if self.json => Bar::None,
            ProgressWhen::Auto if std::io::stderr().is_terminal() => {
                Bar::Drawn(draw(what, ProgressDrawTarget::stderr()))
            }
            _ => Bar::Lines(Lines::new(what, std::io::stderr())),
        };
        let mut progress = Progress { bar, total: 0 };
        progress.learn(total);
        progress
    }
}

/// Prints a line, of a program that goes on: as JSON, or as `human` writes it.
pub fn line<T: Serialize>(json: bool, value: &T, human: impl FnOnce(&T) -> String) -> Result<()> {
    print_as(json.then_some(serde_json::to_string), value, human)
}

fn print_as<T: Serialize>(
    json: Option<impl FnOnce(&T) -> serde_json::Result<String>>,
    value: &T,
    human: impl FnOnce(&T) -> String,
) -> Result<()> {
    let text = match json {
        Some(json) => json(value).map_err(|e| {
            Error::caused(Kind::Invalid, format!("{e}: it cannot be shown with --json"), e)
        })?,
        None => human(value),
    };
    print(format!("{}\n", text.trim_end()).as_bytes())
}

/// Writes to standard output, at once. A reader that has gone (`| head`) is no error of ours; a result
/// that could not be written is one.
pub fn print(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::io("standard output", e)),
        _ => Ok(()),
    }
}

/// Tells people something, on standard error. That nobody reads it is no error.
pub fn say(what: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "forebay: {what}");
}

fn draw(what: &str, target: ProgressDrawTarget) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, target);
    bar.set_style(style("{msg} {spinner} {bytes} {bytes_per_sec} for {elapsed}"));
    bar.set_message(what.to_owned());
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a valid template")
}

/// Progress on its way.
pub struct Progress {
    bar: Bar,
    /// 0 while nobody knows it; then it stays, so that shares of it only rise.
    total: u64,
}

enum Bar {
    None,
    Drawn(ProgressBar),
    Lines(Lines),
}

/// A line for each tenth, or for each GiB while nobody knows the total.
struct Lines {
    what: String,
    to: Box<dyn Write>,
    tenths: u64,
    gibs: u64,
}

impl Lines {
    fn new(what: &str, to: impl Write + 'static) -> Self {
        Self { what: what.to_owned(), to: Box::new(to), tenths: 0, gibs: 0 }
    }

    fn at(&mut self, done: u64, total: u64) {
        let (said, now) = match total {
            0 => (&mut self.gibs, done >> 30),
            _ => (&mut self.tenths, (u128::from(done) * 10 / u128::from(total)) as u64),
        };
        if now <= *said {
            return;
        }
        *said = now;
        // That nobody reads it is no error of the job's.
        let _ = match total {
            0 => writeln!(self.to, "{}: {}", self.what, bytes(done)),
            _ => writeln!(self.to, "{}: {now}0 % of {}", self.what, bytes(total)),
        };
    }
}

impl Progress {
    /// Shows that `done` of `total` bytes are done; 0 means that nobody knows the total yet. The first
    /// total that is known counts.
    pub fn at(&mut self, done: u64, total: u64) {
        self.learn(total);
        let done = if self.total > 0 { done.min(self.total) } else { done };
        match &mut self.bar {
            Bar::None => {}
            Bar::Drawn(bar) => bar.set_position(done),
            Bar::Lines(lines) => lines.at(done, self.total),
        }
    }

    fn learn(&mut self, total: u64) {
        if self.total > 0 || total == 0 {
            return;
        }
        self.total = total;
        if let Bar::Drawn(bar) = &self.bar {
            bar.set_length(total);
            bar.set_style(style(
                "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}",
            ));
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let Bar::Drawn(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Bytes for people: `1.2 GiB`.
pub fn bytes(n: u64) -> String {
    bytesize::ByteSize(n).display().iec().to_string()
}

/// A number of chunks for people: `1 chunk`.
pub fn chunks(n: u64) -> String {
    match n {
        0 => "no chunks".to_owned(),
        1 => "1 chunk".to_owned(),
        n => format!("{n} chunks"),
    }
}

/// A point in time, in seconds since 1970, for people and programs.
pub fn time(at: u64) -> String {
    let time = std::time::UNIX_EPOCH + Duration::from_secs(at);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// A time for people: `3.2 s`.
pub fn seconds(t: Duration) -> String {
    format!("{:.2} s", t.as_secs_f64())
}

/// A table with aligned columns, the first row its head.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, w)| format!("{cell:w$}", w = *w));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
