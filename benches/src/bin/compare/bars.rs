//! A table of bars.

/// One bar: what was measured against what, the ratio, and the bound.
struct Bar {
    what: String,
    ours: String,
    theirs: String,
    value: f64,
    bound: Bound,
}

/// What a value must be.
#[derive(Clone, Copy)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// Said beside a bar, to judge it by.
    Told,
}

impl Bound {
    fn met(self, value: f64) -> bool {
        match self {
            Bound::AtLeast(b) => value >= b,
            Bound::AtMost(b) => value <= b,
            Bound::Told => true,
        }
    }
}

/// All bars of a run.
#[derive(Default)]
pub struct Bars(Vec<Bar>);

impl Bars {
    /// Adds a bar and prints it at once.
    pub fn add(&mut self, what: &str, ours: String, theirs: String, value: f64, bound: Bound) {
        let bar = Bar { what: what.into(), ours, theirs, value, bound };
        eprintln!("{}", line(&bar));
        self.0.push(bar);
    }

    /// Markdown.
    pub fn table(&self) -> String {
        let head = "| what | Forebay | beside | ratio | bar | |\n|---|---|---|---|---|---|\n";
        head.to_owned() + &self.0.iter().map(|b| line(b) + "\n").collect::<String>()
    }

    pub fn all_met(&self) -> bool {
        self.0.iter().all(|b| b.bound.met(b.value))
    }
}

fn line(bar: &Bar) -> String {
    let bound = match bar.bound {
        Bound::AtLeast(b) => format!("≥ {b}"),
        Bound::AtMost(b) => format!("≤ {b}"),
        Bound::Told => String::new(),
    };
    let met = match bar.bound {
        Bound::Told => "",
        kept if kept.met(bar.value) => "met",
        _ => "**missed**",
    };
    format!("| {} | {} | {} | {:.2} | {bound} | {met} |", bar.what, bar.ours, bar.theirs, bar.value)
}

/// The median.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// `1.23 s`.
pub fn seconds(s: f64) -> String {
    format!("{s:.2} s")
}

/// `123 MiB`.
pub fn mib(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / 1048576.0)
}
