//! `forebay pool` and `forebay operations`: ready volumes of the grid, by placement, and of this node, by its daemon.

use std::time::Duration;

use api::ErrorBody;
use api::goal::ReadyVolume;
use api::layout::Layout;
use api::operation::{Operation, OperationList, OperationState};
use api::pool::{
    Claimed, Follow, LocalClaim, NewClaim, PoolDemand, PoolInfo, PoolList, SetPool, VolumeKind,
};
use image::{Error, Kind, Result};
use placement::Client;

use super::node::daemon_client;
use super::{block_on, drawn, with_grid};
use crate::cli::{
    ClaimArgs, OperationIdArgs, OperationsArgs, OperationsCommand, PoolCommand, PoolNameArgs,
    SetPoolArgs,
};
use crate::config::Config;
use crate::grid::Grid;
use crate::output::{Output, bytes, table, time};

/// How long one question waits for its answer; it is asked again.
const WAIT: Duration = Duration::from_secs(30);
/// Target of a pool of which nothing was said.
const TARGET: u32 = 2;

/// Runs `forebay pool`.
pub fn run(config: &Config, command: PoolCommand, output: Output) -> Result<()> {
    let info = match command {
        PoolCommand::List => {
            let pools = with_grid(config, |grid| async move { grid.placement.pools().await })?;
            return output.result(&pools, rows);
        }
        PoolCommand::Ready => {
            let ready = block_on(async { daemon_client(config).ready_volumes().await })?;
            return output.result(&ready, |all| ready_rows(all));
        }
        PoolCommand::Claim(args) => return claim(config, args, output),
        PoolCommand::Create(args) => {
            let layout = layout(&args)?;
            with_grid(config, |grid| async move { create(&grid.placement, &args, layout).await })?
        }
        PoolCommand::Set(args) => {
            let layout = layout(&args)?;
            with_grid(config, |grid| async move { set(&grid.placement, &args, layout).await })?
        }
        PoolCommand::Show(PoolNameArgs { name }) => {
            with_grid(config, |grid| async move { grid.placement.pool(&name).await })?
        }
        PoolCommand::Drain(PoolNameArgs { name }) => {
            with_grid(config, |grid| async move { drain(&grid.placement, &name).await })?
        }
        PoolCommand::Delete(PoolNameArgs { name }) => {
            let deleted = async |grid: Grid| grid.placement.delete_pool(&name).await;
            let was = with_grid(config, deleted)?;
            return output.result(&was, |was| format!("deleted pool {}\n", was.name));
        }
    };
    output.result(&info, human)
}

/// How its volumes are to be partitioned and formatted, if something is said of that.
fn layout(args: &SetPoolArgs) -> Result<Option<Layout>> {
    let text = match (&args.format, &args.layout) {
        (Some(fs), _) => format!(r#"{{"partitions":[{{"fs":"{fs}"}}]}}"#),
        (None, Some(path)) => {
            std::fs::read_to_string(path).map_err(|e| Error::io(path.display(), e))?
        }
        (None, None) => return Ok(None),
    };
    let place = args.layout.as_ref().map_or("--format".to_owned(), |p| p.display().to_string());
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| Error::new(Kind::Invalid, format!("{place}: no layout: {e}")))
}

async fn create(
    placement: &Client,
    args: &SetPoolArgs,
    layout: Option<Layout>,
) -> Result<PoolInfo> {
    match placement.pool(&args.name).await {
        Err(error) if error.kind() == Kind::Gone => {}
        Err(error) => return Err(error),
        Ok(_) => {
            let name = &args.name;
            let what = format!("pool {name}: there is one already: `forebay pool set {name}`");
            return Err(Error::new(Kind::Conflict, what));
        }
    }
    let target = args.target.unwrap_or(TARGET);
    let blank = SetPool { layout, low: target.div_ceil(2), target, ..SetPool::default() };
    placement.set_pool(&args.name, &changed(blank, args)?).await
}

async fn set(placement: &Client, args: &SetPoolArgs, layout: Option<Layout>) -> Result<PoolInfo> {
    let now = placement.pool(&args.name).await?.set;
    let layout = layout.or(now.layout.clone());
    let asked = changed(SetPool { draining: false, layout, ..now }, args)?;
    placement.set_pool(&args.name, &asked).await
}

fn changed(now: SetPool, args: &SetPoolArgs) -> Result<SetPool> {
    let target = args.target.unwrap_or(now.target);
    // With the target goes what is half of it.
    let low = if args.target.is_some() { target.div_ceil(2) } else { now.low };
    let budget = |asked: Option<u64>, now| asked.or(now).filter(|bytes| *bytes > 0);
    Ok(SetPool {
        image: args.image.clone().or(now.image),
        size: args.size.or(now.size),
        sector: args.sector_size.as_deref().and_then(|s| s.parse().ok()).or(now.sector),
        layout: now.layout,
        low: args.low.unwrap_or(low),
        target,
        max: args.max.or(now.max),
        per_node: args.per_node.or(now.per_node),
        builds: args.builds.or(now.builds),
        follow: follow(now.follow, args)?,
        disk_budget: budget(args.disk_budget, now.disk_budget),
        build_rate: budget(args.build_rate, now.build_rate),
        draining: now.draining,
    })
}

/// How it follows demand, if it does.
fn follow(now: Option<Follow>, args: &SetPoolArgs) -> Result<Option<Follow>> {
    let now = match args.follow {
        _ if args.no_follow => return Ok(None),
        Some((floor, ceiling)) => {
            Some(Follow { floor, ceiling, ..now.unwrap_or(Follow::between(floor, ceiling)) })
        }
        None => now,
    };
    let secs = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    match now {
        Some(now) => Ok(Some(Follow {
            ahead_secs: args.ahead.map_or(now.ahead_secs, secs),
            hold_secs: args.hold.map_or(now.hold_secs, secs),
            ..now
        })),
        None if args.ahead.is_some() || args.hold.is_some() => {
            let what = format!(
                "pool {}: it does not follow demand: add --follow FLOOR..CEILING",
                args.name
            );
            Err(Error::new(Kind::Invalid, what))
        }
        None => Ok(None),
    }
}

async fn drain(placement: &Client, name: &str) -> Result<PoolInfo> {
    let now = placement.pool(name).await?.set;
    placement.set_pool(name, &SetPool { draining: true, ..now }).await
}

fn claim(config: &Config, args: ClaimArgs, output: Output) -> Result<()> {
    let request = match args.request {
        Some(request) => request,
        None => drawn()?.iter().map(|b| format!("{b:02x}")).collect(),
    };
    if args.here {
        let asked = LocalClaim { request, volume: args.volume };
        let info = block_on(async { daemon_client(config).claim(&args.pool, &asked).await })?;
        return output.result(&info, |info| {
            format!("{} ({}) is yours: {}\n", info.name, bytes(info.size), info.disk.display())
        });
    }
    let asked = NewClaim { request, volume: args.volume, node: args.node, only: args.only };
    let claimed = with_grid(config, |grid| async move {
        let placement = grid.placement;
        let mut now = placement.claim(&args.pool, &asked, WAIT.min(args.wait)).await?;
        let mut left = args.wait;
        while !now.state.is_final() && !left.is_zero() {
            now = placement.operation(&asked.request, WAIT.min(left)).await?;
            left = left.saturating_sub(WAIT);
        }
        outcome(&now)
    })?;
    output.result(&claimed, |c| {
        let how = match c.served {
            api::pool::Served::Ready => "was ready",
            api::pool::Served::Elsewhere => "was ready there, not where it was wanted",
            api::pool::Served::Built => "was built for you",
        };
        format!("{} on {} is yours: it {how}\n", c.volume, c.node)
    })
}

/// What a claim has come to.
fn outcome(now: &Operation) -> Result<Claimed> {
    let unknown = |e| Error::caused(Kind::Unsupported, "an answer not known here", e);
    match (&now.result, &now.error) {
        (Some(result), _) => serde_json::from_value(result.clone()).map_err(unknown),
        (None, Some(error)) => Err(Error::from(ErrorBody::clone(error))),
        (None, None) => {
            let what = format!(
                "{} {}: {} still; it goes on: `forebay operations {} --wait 10m`",
                now.state.name(),
                now.kind,
                now.step,
                now.id
            );
            Err(Error::new(Kind::Retry, what))
        }
    }
}

fn rows(list: &PoolList) -> String {
    let head = ["POOL", "VOLUMES", "READY", "BUILDING", "LOW", "TARGET", ""];
    let head = head.map(str::to_owned).to_vec();
    let rows = list.pools.iter().map(|p| {
        let (low, target) = wanted(p);
        let numbers = [p.ready, p.building, low, target].map(|n| n.to_string());
        [vec![p.name.clone(), volumes_of(p)], numbers.to_vec(), vec![p.why.clone()]].concat()
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// What its volumes are, in a few words.
fn volumes_of(p: &PoolInfo) -> String {
    let size = p.kind.as_ref().map(|kind| kind.size).or(p.set.size);
    let size = size.map_or_else(|| "?".to_owned(), bytes);
    let formatted = |layout: &Layout| {
        layout.partitions.iter().map(|p| p.fs.name()).collect::<Vec<_>>().join(", ")
    };
    let blank = p.set.layout.as_ref().map_or_else(|| "blank".to_owned(), formatted);
    format!("{size} {}", p.set.image.clone().unwrap_or(blank))
}

fn human(p: &PoolInfo) -> String {
    let mut lines = vec![
        vec!["pool".to_owned(), p.name.clone()],
        vec!["volumes".into(), volumes_of(p)],
        vec!["image".into(), image_of(p.kind.as_ref())],
        vec!["ready".into(), format!("{} and {} building", p.ready, p.building)],
        vec!["wanted".into(), wanted_of(p)],
        vec!["now".into(), p.why.clone()],
    ];
    lines.extend(p.demand.iter().flat_map(|demand| demand_of(p, demand)));
    lines.extend(budgets_of(p));
    lines.extend(p.nodes.iter().map(|n| {
        let away = if n.away { " (not heard of: does not count)" } else { "" };
        vec![format!("on {}", n.node), format!("{} ready, {} building{away}", n.ready, n.building)]
    }));
    table(&lines)
}

/// Low threshold and target, as they are now.
fn wanted(p: &PoolInfo) -> (u32, u32) {
    match (&p.set.follow, &p.demand) {
        (Some(_), Some(demand)) => (demand.target, demand.target),
        (Some(follow), None) => (follow.floor, follow.floor),
        (None, _) => (p.set.low, p.set.target),
    }
}

fn wanted_of(p: &PoolInfo) -> String {
    let (low, target) = wanted(p);
    match p.set.follow {
        Some(follow) => {
            format!("{target}, by demand, from {} to {}", follow.floor, follow.ceiling)
        }
        None => format!("{target}, filled below {low}, removed above {}", p.set.most()),
    }
}

/// What its demand is, and asks for.
fn demand_of(p: &PoolInfo, demand: &PoolDemand) -> Vec<Vec<String>> {
    let line = |what: &str, value: String| vec![what.to_owned(), value];
    let built = demand.build_secs.map_or("not measured yet".to_owned(), |s| format!("{s:.1} s"));
    let mut lines = vec![
        line("claims", format!("{:.1} an hour", demand.claims_per_hour)),
        line("a build", built),
    ];
    if let Some(follow) = p.set.follow {
        let (ahead, saved) = (follow.ahead_secs, demand.saved_secs);
        let expected = demand.forecast;
        lines.push(line(
            "expected",
            format!(
                "{expected:.1} claims during a build and {ahead} s: {saved:.1} s that nobody waits"
            ),
        ));
        let bound = demand.bound.map(|by| format!(", bound by {}: {}", by.name(), demand.target));
        let bound = bound.unwrap_or_default();
        lines.push(line("demand asks for", format!("{}{bound}", demand.wanted)));
        lines.extend(demand.holds_until.map(|until| line("holds until", time(until))));
    }
    lines
}

fn budgets_of(p: &PoolInfo) -> Vec<Vec<String>> {
    let disk = p.set.disk_budget.map(|most| vec!["disk budget".to_owned(), bytes(most)]);
    let rate = p.set.build_rate.map(|most| vec!["build rate".into(), format!("{}/s", bytes(most))]);
    disk.into_iter().chain(rate).collect()
}

fn image_of(kind: Option<&VolumeKind>) -> String {
    kind.and_then(|kind| kind.image).map_or_else(|| "-".to_owned(), |image| image.to_string())
}

fn ready_rows(all: &[ReadyVolume]) -> String {
    let head = ["ID", "POOL", "SIZE", "STATE", "IMAGE"].map(str::to_owned).to_vec();
    let rows = all.iter().map(|v| {
        let image = image_of(Some(&v.kind)).chars().take(12).collect();
        vec![v.id.clone(), v.pool.clone(), bytes(v.kind.size), v.state.clone(), image]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// Runs `forebay operations`.
pub fn operations(config: &Config, args: OperationsArgs, output: Output) -> Result<()> {
    match args.command {
        Some(OperationsCommand::Watch(OperationIdArgs { id })) => {
            return output.result(&super::watch::operation(config, &id, output)?, operation_row);
        }
        Some(OperationsCommand::Cancel(OperationIdArgs { id })) => {
            return cancel(config, &id, output);
        }
        None => {}
    }
    let Some(id) = args.id else {
        let all = with_grid(config, |grid| async move { grid.placement.operations().await })?;
        return output.result(&all, operation_rows);
    };
    let shown = with_grid(config, |grid| async move {
        let mut left = args.wait.unwrap_or_default();
        loop {
            let now = grid.placement.operation(&id, WAIT.min(left)).await?;
            left = left.saturating_sub(WAIT);
            if now.state.is_final() || left.is_zero() {
                return Ok(now);
            }
        }
    })?;
    output.result(&shown, operation_row)
}

/// Ends an operation. That it was done before that is an error: whoever asked has what it gave.
fn cancel(config: &Config, id: &str, output: Output) -> Result<()> {
    let ended =
        with_grid(config, |grid| async move { grid.placement.cancel_operation(id, WAIT).await })?;
    output.result(&ended, operation_row)?;
    let what = match ended.state {
        OperationState::Cancelled => return Ok(()),
        OperationState::Done => "it was done before it could be ended",
        OperationState::Failed => "it had failed already",
        OperationState::Queued | OperationState::Running => {
            let what = format!(
                "operation {id}: its node has not said yet whether it has done it: `forebay operations {id} --wait 10m`"
            );
            return Err(Error::new(Kind::Retry, what));
        }
    };
    Err(Error::new(Kind::Conflict, format!("operation {id}: {what}")))
}

fn operation_row(operation: &Operation) -> String {
    operation_rows(&OperationList { operations: vec![operation.clone()] })
}

fn operation_rows(list: &OperationList) -> String {
    let head = ["ID", "WHAT", "OF", "BY", "SINCE", "STATE", ""].map(str::to_owned).to_vec();
    let rows = list.operations.iter().map(|o| {
        let said = o.error.as_ref().map_or(o.step.clone(), |e| e.message.clone());
        let state = o.state.name().to_owned();
        let since = time(o.created);
        vec![o.id.clone(), o.kind.clone(), o.object.clone(), o.owner.clone(), since, state, said]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}
