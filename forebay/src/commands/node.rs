//! `forebay node`: the daemon, joining a grid, tokens, transfers.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::catalog::{MoveRef, NewRecord};
use api::goal::{StatusReport, Told};
use api::grid::{MemberInfo, MemberList, NewToken, Role};
use api::lease::{LeaseGrant, TakeLease};
use api::life::Standing;
use api::node::Transfer;
use blockio::{BlockFile, OpenMode};
use image::{BootTrace, Digest, Error, ImageRecord, Kind, Ref, Result};
use node::captures::{CaptureOptions, Captures, Saves};
use node::daemon::{Daemon, DaemonClient, DaemonOptions, Grid as DaemonGrid, http};
use node::leases::watchdog::{Watchdog, watch};
use node::leases::{Leases, boottime};
use node::pools::{Agent, AgentOptions, Ready, Reports};
use node::rate::{Rate, RealTime};
use node::stats::{Knows, Roots, Sampler, SamplerOptions, known};
use node::volumes::{CoreOptions, Holder, Signs, VolumeOptions, Volumes};
use placement::Papers;

use super::{block_on, interrupted, life, with_grid};
use crate::cli::{CancelArgs, JoinArgs, NodeArgs, NodeCommand, RemoveArgs, RoleArg, TokenArgs};
use crate::config::Config;
use crate::connect::{self, Connector, Known};
use crate::grid::{self, Finder, Grid, Joined, MEMBER};
use crate::output::{Output, bytes, line, table, time};
use crate::report::NodeServing;
use crate::serve::{alone, lock, trust};

/// Runs the command.
pub fn run(config: &Config, args: NodeArgs, output: Output) -> Result<()> {
    match args.command {
        None => serve(config, output),
        Some(NodeCommand::Token(args)) => token(config, &args, output),
        Some(NodeCommand::Join(args)) => join(config, &args, output),
        Some(NodeCommand::List) => {
            let list = with_grid(config, |grid| async move { grid.placement.members().await })?;
            output.result(&list, human_members)
        }
        Some(NodeCommand::Status) => super::top::status(config, output),
        Some(NodeCommand::Cordon(args)) => life::stand(config, args, Standing::Cordoned, output),
        Some(NodeCommand::Uncordon(args)) => life::stand(config, args, Standing::Open, output),
        Some(NodeCommand::Drain(args)) => life::drain(config, args, output),
        Some(NodeCommand::Forget(args)) => life::forget(config, args, output),
        Some(NodeCommand::Remove(RemoveArgs { name })) => {
            let removed = async |grid: Grid| grid.placement.remove_member(&name).await;
            output.result(&with_grid(config, removed)?, human_removed)
        }
        Some(NodeCommand::Transfers) => {
            let all = block_on(async { daemon_client(config).transfers().await })?;
            output.result(&all, |all| human(all))
        }
        Some(NodeCommand::Captures) => {
            let all = block_on(async { daemon_client(config).captures().await })?;
            output.result(&all, |all| super::save::rows(all))
        }
        Some(NodeCommand::CancelCapture(CancelArgs { id })) => {
            let ended = block_on(async { daemon_client(config).cancel_capture(id).await })?;
            output.result(&ended, |capture| super::save::rows(std::slice::from_ref(capture)))
        }
        Some(NodeCommand::Metrics) => {
            let text = block_on(async { daemon_client(config).metrics().await })?;
            crate::output::print(text.as_bytes())
        }
        Some(NodeCommand::Hold(args)) => hold(&args.socket),
        Some(NodeCommand::Watch(args)) => watch(&args.socket),
        Some(NodeCommand::Thaw(args)) => {
            block_on(node::hypervisor::agent::guard(&args.socket, std::io::stdin()))
        }
        Some(NodeCommand::Cancel(CancelArgs { id })) => {
            let ended = block_on(async { daemon_client(config).cancel(id).await })?;
            output.result(&ended, |t| human(std::slice::from_ref(t)))
        }
    }
}

/// The daemon of this machine.
pub fn daemon_client(config: &Config) -> DaemonClient {
    DaemonClient::new(config.path("node.socket", "node/node.sock"))
}

fn human_members(list: &MemberList) -> String {
    let head = ["NAME", "ROLE", "CERTIFICATE UNTIL"].map(str::to_owned).to_vec();
    let rows = list.members.iter().map(|m| {
        let role = m.role.map(|r| r.name().to_owned()).unwrap_or_default();
        vec![m.name.clone(), role, m.expires.map(time).unwrap_or_default()]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn human_removed(was: &MemberInfo) -> String {
    match was.role {
        Some(role) => format!("removed {} {}", role.name(), was.name),
        None => format!(
            "nobody of the name {} was known; whoever has a certificate of that name is refused now",
            was.name
        ),
    }
}

fn human(transfers: &[Transfer]) -> String {
    let head = ["ID", "STATE", "IMAGE", "TO", "DONE", ""].map(str::to_owned).to_vec();
    let rows = transfers.iter().map(|t| {
        let p = &t.progress;
        let state = serde_json::to_value(t.state).ok().and_then(|s| Some(s.as_str()?.to_owned()));
        let done = format!("{} of {}", bytes(p.reused + p.written), bytes(p.total.max(p.data)));
        let error = t.error.as_ref().map(|e| e.message.clone()).unwrap_or_default();
        let to = t.request.to.display().to_string();
        vec![t.id.to_string(), state.unwrap_or_default(), t.request.image.clone(), to, done, error]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// The daemon finds images through the grid of its data directory.
#[derive(Clone)]
struct Located {
    grid: Finder,
    known: Known,
    /// Of this daemon: placement knows it by its reports.
    run: [u8; 16],
}

impl DaemonGrid for Located {
    type Connect = Connector;

    async fn find(&self, name: &str) -> Result<(Digest, u64)> {
        let grid = self.grid.find()?;
        match grid.placement.image(name).await {
            Ok(info) => Ok((info.image, info.data())),
            // What describes it may be damaged: nothing that a pull needs. A ticket names it too.
            Err(_) => Ok((Connector::to_pull(&grid, name, &self.known).await?.0, 0)),
        }
    }

    async fn locate(&self, name: &str) -> Result<(Digest, Connector)> {
        let grid = self.grid.find()?;
        Connector::to_pull(&grid, name, &self.known).await
    }

    async fn trace(&self, image: &Digest) -> Result<Option<BootTrace>> {
        self.grid.find()?.placement.trace(&image.to_string()).await
    }

    async fn lease(
        &self,
        volume: &str,
        called: &str,
        epoch: Option<u64>,
    ) -> Result<Option<LeaseGrant>> {
        let grid = match self.grid.find() {
            Err(error) if error.kind() == Kind::Gone => return Ok(None),
            found => found?,
        };
        let (holder, called) = (node_name(&grid)?, called.to_owned());
        let run = Some(volume_pool::ready::name_of(&self.run));
        let asked = TakeLease { holder, called, epoch, run };
        grid.placement.take_lease(volume, &asked).await.map(Some)
    }

    async fn add_trace(&self, recording: &BootTrace) -> Result<()> {
        self.grid.find()?.placement.add_trace(recording).await.map(drop)
    }
}

impl Saves for Located {
    type Sink = stream::Client;

    async fn current(&self, name: &Ref) -> Result<Option<Digest>> {
        match self.grid.find()?.placement.image(&name.to_string()).await {
            Ok(info) => Ok(Some(info.image)),
            Err(error) if error.kind() == Kind::Gone => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn push(&self, parent: Option<&str>) -> Result<(Option<Digest>, stream::Client)> {
        connect::to_push(&self.grid.find()?, parent).await
    }

    async fn close(&self, sink: stream::Client) {
        sink.close().await;
    }

    async fn record(&self, image: &Digest) -> Result<Option<ImageRecord>> {
        Ok(self.grid.find()?.placement.image(&image.to_string()).await?.record)
    }

    async fn describe(&self, image: &Digest, said: &NewRecord) -> Result<()> {
        self.grid.find()?.placement.record(image, said).await.map(drop)
    }

    async fn name(&self, name: &Ref, to: &MoveRef) -> Result<()> {
        self.grid.find()?.move_ref(name, to).await.map(drop)
    }
}

/// What this node is called in its grid.
fn node_name(grid: &Grid) -> Result<String> {
    let member = grid.member()?;
    match member.role {
        // On the machine of `forebay up` the daemon has the admin's papers.
        Role::Admin => host_name(),
        _ => Ok(member.name),
    }
}

impl Signs for Located {
    fn name(&self) -> Result<String> {
        node_name(&self.grid.find()?)
    }

    fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        self.grid.find()?.sign(bytes)
    }
}

impl Reports for Located {
    async fn report(&self, report: &StatusReport, wait: Duration) -> Result<Told> {
        let grid = self.grid.find()?;
        grid.placement.report(&node_name(&grid)?, report, wait).await
    }
}

/// How long a holder stays that has nothing to keep.
const HOLDER_IDLE: Duration = Duration::from_secs(60);

/// How often one that is about to end is waited for, and how long each time.
const HOLDER_TRIES: u32 = 20;
const HOLDER_PAUSE: Duration = Duration::from_millis(50);

/// Keeps mounts as long as there are any. There is one holder at a time: of two that are started together the second
/// would take the first one's socket, and with it the way to what that keeps.
fn hold(socket: &Path) -> Result<()> {
    let place = |e| Error::io(socket.display(), e);
    let lock = BlockFile::open(socket.with_extension("lock"), OpenMode::create()).map_err(place)?;
    let mut tries = 0;
    while !lock.try_lock_exclusive().map_err(place)? {
        tries += 1;
        if tries == HOLDER_TRIES {
            return Ok(());
        }
        std::thread::park_timeout(HOLDER_PAUSE);
    }
    // Of a holder that is gone; the daemon asks for one only where none answers.
    let _ = std::fs::remove_file(socket);
    let listener = std::os::unix::net::UnixListener::bind(socket).map_err(place)?;
    node::export::fuse::holder::hold(&listener, HOLDER_IDLE).map_err(place)
}

/// What thaws guests if the daemon dies.
fn thaw() -> Result<Arc<[OsString]>> {
    let program = std::env::current_exe().map_err(|e| Error::io("finding this program", e))?;
    Ok([program.into(), "node".into(), "thaw".into()].into())
}

/// What starts a holder of mounts.
fn holder(config: &Config) -> Result<Holder> {
    let socket = config.data.join("node/holder.sock");
    let program = std::env::current_exe().map_err(|e| Error::io("finding this program", e))?;
    let words = [program.into(), "node".into(), "hold".into(), socket.clone().into()];
    Ok(Holder { socket, command: words.into() })
}

/// What starts a watchdog over the leases in a directory.
fn watchdog(dir: &Path) -> Result<Watchdog> {
    let program = std::env::current_exe().map_err(|e| Error::io("finding this program", e))?;
    Ok(Watchdog::new(vec![program.into(), "node".into(), "watch".into(), dir.into()]))
}

fn serve(config: &Config, output: Output) -> Result<()> {
    let data = config.data.display();
    std::fs::create_dir_all(&config.data)
        .map_err(|e| Error::io(format!("the data directory {data} cannot be made"), e))?;
    let socket = config.path("node.socket", "node/node.sock");
    let pull = super::pull::options(config, true)?;
    let options = DaemonOptions {
        dir: config.data.join("node"),
        transfers: config.number("node.transfers").max(1) as usize,
        cores: pull.cores,
        memory: pull.memory,
        rate: pull.rate,
        engine: pull.engine,
    };
    // Before anything there is read: what one daemon writes another must not have read before.
    let _alone = alone(&config.data.join("node"), "another `forebay node`")?;
    let leases = Arc::new(Leases::load(config.data.join("node"), boottime)?);
    let run = super::drawn()?;
    let located = Located { grid: Finder::new(config.data.clone()), known: Known::new(), run };
    let volume_options = VolumeOptions {
        dir: config.path("volumes.dir", "volumes"),
        state: config.data.join("node"),
        cores: CoreOptions {
            cores: pull.cores,
            memory: config.size("volumes.memory") as usize,
            engine: pull.engine,
        },
        holder: holder(config)?,
        signer: Arc::new(located.clone()),
        leases: Arc::clone(&leases),
        watchdog: Arc::new(watchdog(&config.data.join("node"))?),
        share: config.text("volumes.share").parse()?,
        rate: limit(config, "volumes.rate"),
        build_rate: limit(config, "node.build_rate"),
    };
    let capture_options = CaptureOptions {
        at_once: config.number("node.captures").max(1) as usize,
        workers: NonZeroUsize::new(config.threads("import.workers")).unwrap_or(NonZeroUsize::MIN),
        memory: config.size("import.memory") as usize,
        thaw: thaw()?,
        background_rate: background_rate(config),
    };
    let sampler = sampler(config)?;
    let agent_options = AgentOptions {
        sampler: sampler.clone(),
        dir: config.data.join("node"),
        builds: config.number("node.builds").max(1) as usize,
        run,
        now: super::unix_now,
    };
    let runtime = tokio::runtime::Runtime::new().map_err(|e| Error::io("starting a runtime", e))?;
    runtime.block_on(async {
        let interrupted = interrupted();
        // Bound before the daemon starts, so that of two daemons the second ends at once.
        let listener = http::bind(&socket).await?;
        let daemon = Daemon::start(located.clone(), options)?;
        let volumes = Volumes::start(located.clone(), volume_options).await?;
        let captures = Captures::new(located.clone(), volumes.clone(), capture_options);
        let ready = Ready::open(volumes.clone()).await?;
        let agent = Agent::new(ready.clone(), volumes.clone(), leases, agent_options)?;
        let knows = Arc::new(Knows {
            daemon: daemon.clone(),
            volumes: volumes.clone(),
            ready: ready.clone(),
            captures: captures.clone(),
            agent: agent.clone(),
        });
        let measured = sampler.clone();
        let measuring = tokio::spawn(sampler.clone().run(move || {
            let (knows, measured) = (Arc::clone(&knows), measured.clone());
            async move { known(&knows, measured.tallies()).await }
        }));
        let agent = tokio::spawn(agent.run(located));
        let renewed = trust::renew(config.data.clone(), None, placement::Clock::system());
        let renewed = tokio::spawn(renewed);
        let metrics = crate::serve::volumes::metrics(config, captures.clone(), sampler)?;
        let serving = NodeServing { socket: socket.clone() };
        let said = |s: &NodeServing| format!("forebay node serves at {}", s.socket.display());
        line(output.is_json(), &serving, said)?;
        crate::serve::tell_systemd();
        let all = (daemon, volumes.clone(), captures.clone(), ready);
        let served = http::serve(all, metrics, listener, interrupted).await;
        agent.abort();
        measuring.abort();
        renewed.abort();
        captures.stop().await;
        volumes.stop().await;
        served
    })?;
    // Transfers under way are gone on with at the next start.
    runtime.shutdown_background();
    let _ = std::fs::remove_file(&socket);
    Ok(())
}

/// A limit that is configured; none if it is 0.
fn limit(config: &Config, key: &'static str) -> Option<Arc<Rate>> {
    match config.size(key) {
        0 => None,
        rate => Some(Arc::new(Rate::new(rate, RealTime::start()))),
    }
}

/// What measures this node.
fn sampler(config: &Config) -> Result<Sampler> {
    let spaces = vec![
        ("volumes".to_owned(), config.path("volumes.dir", "volumes")),
        ("data".to_owned(), config.data.clone()),
    ];
    Ok(Sampler::new(SamplerOptions {
        roots: Roots::of_the_system(spaces),
        every: config.time("node.stats"),
        declared: crate::declared::declared(config)?,
        now: super::unix_now,
        millis: boottime,
    }))
}

/// Bytes a second that captures read at most for which nobody waits, if there is a limit.
pub fn background_rate(config: &Config) -> Option<u64> {
    Some(config.size("node.capture_rate")).filter(|rate| *rate > 0)
}

fn token(config: &Config, args: &TokenArgs, output: Output) -> Result<()> {
    let role = match args.role {
        RoleArg::Node => Role::Node,
        RoleArg::Server => Role::Server,
        RoleArg::Admin => Role::Admin,
    };
    let name = args.name.clone();
    let asked = NewToken { role, lifetime_secs: args.lifetime.as_secs(), name };
    let made = with_grid(config, |grid| async move { grid.placement.new_token(&asked).await })?;
    output.result(&made, |made| made.token.clone())
}

fn join(config: &Config, args: &JoinArgs, output: Output) -> Result<()> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    let code: placement::JoinCode = args.token.parse()?;
    let joined = Joined { placement: code.address.clone() };
    let _alone = lock(&config.data)?;
    refuse_twice(&config.data)?;
    let papers = block_on(async { placement::Client::join(&args.token, &name).await })?;
    keep(&config.data, &papers, &joined)?;
    output.result(&joined, |j| format!("joined the grid at {} as {name}", j.placement))
}

/// Found before the token is used up.
fn refuse_twice(data: &Path) -> Result<()> {
    let member = data.join(MEMBER);
    if !member.exists() {
        return Ok(());
    }
    let what = "this machine has joined a grid; remove the directory to join anew";
    Err(Error::new(Kind::Conflict, format!("{}: {what}", member.display())))
}

/// The papers come last: with them the machine has joined, and before them it can join again.
fn keep(data: &Path, papers: &Papers, joined: &Joined) -> Result<()> {
    grid::note_joined(data, joined)?;
    papers.store(&data.join(MEMBER))
}

fn host_name() -> Result<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    match name.is_empty() {
        false => Ok(name),
        true => Err(Error::new(Kind::Invalid, "this host has no name; give one with --name")),
    }
}
