//! `forebay config`.

use image::Result;
use serde::Serialize;

use crate::config::{Config, Origin, variable};
use crate::output::Output;

#[derive(Serialize)]
struct Entry<'a> {
    key: &'static str,
    value: &'a str,
    origin: &'a Origin,
    variable: String,
    meaning: &'static str,
}

/// Prints what is in force and from where, as a file that could be used as it is.
pub fn run(config: &Config, output: Output) -> Result<()> {
    let entries: Vec<_> = config
        .entries()
        .map(|(key, value, origin)| Entry {
            key: key.name,
            value,
            origin,
            variable: variable(key.name),
            meaning: key.doc,
        })
        .collect();
    output.result(&entries, |entries| human(config, entries))
}

fn human(config: &Config, entries: &[Entry<'_>]) -> String {
    let mut text = format!("# data directory: {}\n", config.data.display());
    let mut table = "";
    for entry in entries {
        let (name, key) = entry.key.split_once('.').expect("every key has a table");
        if name != table {
            text += &format!("\n[{name}]\n");
            table = name;
        }
        let from = format!("({}; {})", entry.origin, entry.variable);
        text += &format!("# {} {from}\n", entry.meaning);
        let unset = if entry.value.is_empty() { "# " } else { "" };
        text += &format!("{unset}{key} = {:?}\n", entry.value);
    }
    text
}
