//! What a command prints: JSON for programs, tables and progress for people.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
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

    /// Prints a result: as one JSON value, or as `human` writes it.
    pub fn result<T: Serialize>(&self, value: &T, human: impl FnOnce(&T) -> String) {
        let text = if self.json {
            serde_json::to_string_pretty(value).expect("our own types serialise")
        } else {
            human(value)
        };
        // A reader that has gone (`| head`) is no error of ours.
        let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
    }

    /// Starts showing the progress of `what` over `total` bytes, on standard error. 0 means that
    /// nobody knows the total yet.
    pub fn progress(&self, what: &str, total: u64) -> Progress {
        let bar = match self.progress {
            ProgressWhen::Never => Bar::None,
            _ if self.json => Bar::None,
            ProgressWhen::Auto if std::io::stderr().is_terminal() => Bar::Drawn(draw(what, total)),
            _ => Bar::Lines { what: what.to_owned(), step: 0 },
        };
        Progress { bar }
    }
}

fn draw(what: &str, total: u64) -> ProgressBar {
    let bar = if total == 0 { ProgressBar::no_length() } else { ProgressBar::new(total) };
    let style = match total {
        0 => "{msg} {spinner} {bytes} {bytes_per_sec} for {elapsed}",
        _ => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}",
    };
    bar.set_style(ProgressStyle::with_template(style).expect("a valid template"));
    bar.set_message(what.to_owned());
    bar
}

/// Progress on its way.
pub struct Progress {
    bar: Bar,
}

enum Bar {
    None,
    Drawn(ProgressBar),
    /// `step` is the last that was said: of ten, or of one each GiB.
    Lines {
        what: String,
        step: u64,
    },
}

impl Progress {
    /// Shows that `done` of now `total` bytes are done; 0 means that nobody knows the total yet.
    pub fn at(&mut self, done: u64, total: u64) {
        match &mut self.bar {
            Bar::None => {}
            Bar::Drawn(bar) if total == 0 => bar.set_position(done),
            Bar::Drawn(bar) => {
                bar.set_length(total);
                bar.set_position(done.min(total));
            }
            Bar::Lines { what, step } => {
                let now = (done * 10).checked_div(total).unwrap_or(done >> 30);
                if now > *step {
                    *step = now;
                    match total {
                        0 => eprintln!("{what}: {}", bytes(done)),
                        _ => eprintln!("{what}: {now}0 % of {}", bytes(total)),
                    }
                }
            }
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
mod tests {
    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["NAME".into(), "SIZE".into()], vec!["debian:12".into(), "4 GiB".into()]];
        assert_eq!(super::table(&rows), "NAME       SIZE\ndebian:12  4 GiB\n");
    }
}
