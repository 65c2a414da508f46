use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex};

use indicatif::TermLike;

use super::*;

/// Takes what is written.
#[derive(Clone, Debug, Default)]
struct Paper(Arc<Mutex<String>>);

impl Paper {
    fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }
}

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().push_str(std::str::from_utf8(bytes).unwrap());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A terminal that keeps the last that was drawn.
impl TermLike for Paper {
    fn width(&self) -> u16 {
        100
    }

    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, s: &str) -> io::Result<()> {
        TermLike::write_str(self, s)
    }

    fn write_str(&self, s: &str) -> io::Result<()> {
        self.0.lock().unwrap().push_str(s);
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.0.lock().unwrap().clear();
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What plain lines say of these steps.
fn lines(steps: &[(u64, u64)]) -> String {
    let paper = Paper::default();
    let bar = Bar::Lines(Lines::new("d:1", paper.clone()));
    let mut progress = Progress { bar, total: 0 };
    steps.iter().for_each(|(done, total)| progress.at(*done, *total));
    paper.text()
}

/// What a terminal shows after these steps.
fn drawn(steps: &[(u64, u64)]) -> String {
    let paper = Paper::default();
    let bar = draw("d:1", ProgressDrawTarget::term_like(Box::new(paper.clone())));
    let mut progress = Progress { bar: Bar::Drawn(bar.clone()), total: 0 };
    steps.iter().for_each(|(done, total)| progress.at(*done, *total));
    // Drawn for sure, and left there.
    bar.abandon();
    paper.text()
}

#[test]
fn plain_lines_name_each_tenth_once_and_only_rise() {
    let said =
        lines(&[(5, 100), (10, 100), (11, 100), (35, 100), (30, 100), (100, 100), (100, 100)]);
    assert_eq!(said, "d:1: 10 % of 100 B\nd:1: 30 % of 100 B\nd:1: 100 % of 100 B\n");
    // The first total counts, whatever is said of it later.
    let said = lines(&[(50, 100), (60, 1000), (100, 1000), (500, 1000)]);
    assert_eq!(said, "d:1: 50 % of 100 B\nd:1: 60 % of 100 B\nd:1: 100 % of 100 B\n");
}

#[test]
fn plain_lines_name_each_gibibyte_until_the_total_is_known() {
    const GIB: u64 = 1 << 30;
    let said = lines(&[(GIB - 1, 0), (5 * GIB, 0), (5 * GIB, 20 * GIB), (6 * GIB, 20 * GIB)]);
    assert_eq!(said, "d:1: 5.0 GiB\nd:1: 20 % of 20.0 GiB\nd:1: 30 % of 20.0 GiB\n");
}

#[test]
fn a_bar_takes_its_shape_when_the_total_becomes_known() {
    let unknown = drawn(&[(2048, 0)]);
    assert!(unknown.contains("2.00 KiB") && !unknown.contains("ETA"), "{unknown}");
    for steps in [&[(2048, 4096)][..], &[(1024, 0), (2048, 4096)], &[(1, 4096), (2048, 1 << 40)]] {
        let known = drawn(steps);
        assert!(known.contains("2.00 KiB/4.00 KiB") && known.contains("ETA"), "{known}");
    }
    assert!(drawn(&[(5000, 4096)]).contains("4.00 KiB/4.00 KiB"));
}

#[test]
fn what_json_cannot_name_is_refused() {
    let odd = Path::new(std::ffi::OsStr::from_bytes(b"/tmp/\xff"));
    let output = |json| Output { json, progress: ProgressWhen::Never };
    for (path, json, good) in [(odd, true, false), (odd, false, true), (Path::new("é"), true, true)]
    {
        assert_eq!(output(json).must_name(path).is_ok(), good);
        assert_eq!(output(json).result(&path, |_| String::new()).is_ok(), good);
    }
    let error = output(true).must_name(odd).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.message().contains("UTF-8"), "{error}");
}

#[test]
fn columns_are_aligned() {
    let rows = [vec!["NAME".into(), "SIZE".into()], vec!["debian:12".into(), "4 GiB".into()]];
    assert_eq!(table(&rows), "NAME       SIZE\ndebian:12  4 GiB\n");
}
