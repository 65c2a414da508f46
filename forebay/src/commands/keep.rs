//! `forebay keep`, `kept` and `unkeep`: images that must be on so many nodes, or in so many caches.

use api::keep::{KeepInfo, KeepList, KeptIn, KeptOn, SetKeep};
use image::Result;

use super::with_grid;
use crate::cli::{KeepArgs, KeptArgs, UnkeepArgs};
use crate::config::Config;
use crate::output::{Output, bytes, table};

/// Runs `forebay keep`.
pub fn run(config: &Config, args: KeepArgs, output: Output) -> Result<()> {
    let KeepArgs { name, nodes, caches, function } = args;
    let set = SetKeep { nodes, caches, function };
    let info = with_grid(config, |grid| async move { grid.placement.set_keep(&name, &set).await })?;
    output.result(&info, human)
}

/// Runs `forebay kept`.
pub fn list(config: &Config, args: KeptArgs, output: Output) -> Result<()> {
    match args.name {
        Some(name) => {
            let info = with_grid(config, |grid| async move { grid.placement.keep(&name).await })?;
            output.result(&info, human)
        }
        None => {
            let all = with_grid(config, |grid| async move { grid.placement.keeps().await })?;
            output.result(&all, rows)
        }
    }
}

/// Runs `forebay unkeep`.
pub fn unkeep(config: &Config, args: UnkeepArgs, output: Output) -> Result<()> {
    let was = with_grid(config, |grid| async move { grid.placement.unkeep(&args.name).await })?;
    output.result(&was, |was| format!("{} need not be anywhere any more\n", was.name))
}

fn rows(list: &KeepList) -> String {
    let head = ["NAME", "IMAGE", "SIZE", "NODES", "CACHES", ""].map(str::to_owned).to_vec();
    let rows = list.keeps.iter().map(|k| {
        let of = |have: u32, must: u32| format!("{have} of {must}");
        let (nodes, caches) = (of(k.nodes, k.set.nodes), of(k.caches, k.set.caches));
        let image = k.image.short().to_string();
        vec![k.name.clone(), image, bytes(k.size), nodes, caches, k.why.clone()]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn human(k: &KeepInfo) -> String {
    let function = k.set.function.as_ref();
    let function = function.map_or_else(String::new, |name| format!(" of those for {name}"));
    let mut lines = vec![
        vec!["kept".to_owned(), k.name.clone()],
        vec!["image".into(), format!("{} ({})", k.image, bytes(k.size))],
        vec!["nodes".into(), format!("{} of {}{function}", k.nodes, k.set.nodes)],
        vec!["caches".into(), format!("{} of {}", k.caches, k.set.caches)],
    ];
    if let Some(before) = &k.before {
        lines.push(vec!["before".into(), format!("{before}, which stays until then")]);
    }
    lines.push(vec!["now".into(), k.why.clone()]);
    lines.extend(k.on.iter().map(|on| vec![format!("on {}", on.node), node(on).to_owned()]));
    lines.extend(k.inside.iter().map(|of| vec![format!("in {}", of.cache), cache(of)]));
    table(&lines)
}

fn node(on: &KeptOn) -> &'static str {
    match on {
        KeptOn { away: true, .. } => "not heard of: does not count",
        KeptOn { leaves: true, .. } => "drains: does not count",
        KeptOn { whole: true, .. } => "has it",
        _ => "is fetching it",
    }
}

fn cache(of: &KeptIn) -> String {
    match &of.said {
        None => "has not said yet".into(),
        Some(said) => {
            let why = said.error.as_ref().map_or_else(String::new, |e| format!(": {}", e.message));
            format!("{} of {} chunks{why}", said.held, said.chunks)
        }
    }
}
