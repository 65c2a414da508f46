//! `forebay`: the command line, and the only place where the rooms are joined.

mod caching;
mod cli;
mod commands;
mod config;
mod connect;
mod declared;
mod grid;
mod output;
mod report;
mod serve;
mod telemetry;
mod tour;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use image::{Error, Kind, Result};

use cli::{Cli, Command};
use config::Config;
use output::Output;

/// Exit code of a command line that makes no sense.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse().and_then(checked) {
        Ok(cli) => cli,
        Err(e) => {
            let wrong = e.use_stderr();
            // Help and version go to standard output and are no error.
            let _ = e.print();
            return if wrong { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            output::say(told(&e));
            ExitCode::from(exit_code(&e))
        }
    }
}

/// What the command line's grammar cannot say.
fn checked(cli: Cli) -> Result<Cli, clap::Error> {
    if let Command::Save(args) = &cli.command {
        let wrong = |why| Cli::command().error(clap::error::ErrorKind::ArgumentConflict, why);
        args.check().map_err(wrong)?;
    }
    Ok(cli)
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.chain().any(|cause| cause.is::<commands::Misused>()) {
        true => USAGE,
        false => error.chain().find_map(kind).map_or(70, api::exit_code),
    }
}

/// What can be done about an error, if it is one that tells.
fn kind(error: &(dyn std::error::Error + 'static)) -> Option<Kind> {
    if let Some(ours) = error.downcast_ref::<Error>() {
        return Some(ours.kind());
    }
    let system = error.downcast_ref::<std::io::Error>()?;
    Some(Error::io("", system.kind().into()).kind())
}

/// An error and its causes. Most of ours name their cause themselves.
fn told(error: &anyhow::Error) -> String {
    let add = |text: String, cause: String| match text.contains(&cause) {
        true => text,
        false => format!("{text}: {cause}"),
    };
    let said = error.chain().filter(|cause| !cause.is::<commands::Misused>());
    said.map(ToString::to_string).reduce(add).unwrap_or_default()
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let output = Output::new(&cli.common);
    let config = load_config(&cli)?;
    telemetry::start(&config);
    match cli.command {
        Command::Try(args) => tour::run(&args, output),
        Command::Up(_) => Ok(up::run(&config, cli.common.json)?),
        Command::Cache(args) => match args.command {
            None => Ok(caching::run(&config, cli.common.json)?),
            Some(command) => Ok(commands::cache::run(&config, &command, output)?),
        },
        Command::Config => Ok(commands::config::run(&config, output)?),
        Command::Completions(args) => Ok(commands::completions::run(&args)?),
        Command::Import(args) => Ok(commands::import::run(&config, &args, output)?),
        Command::Pull(args) => Ok(commands::pull::run(&config, &args, output)?),
        Command::Export(args) => Ok(commands::export::run(&config, &args, output)?),
        Command::Node(args) => Ok(commands::node::run(&config, args, output)?),
        Command::Volume(args) => Ok(commands::volume::run(&config, args.command, output)?),
        Command::Pool(args) => Ok(commands::pool::run(&config, args.command, output)?),
        Command::Lease(args) => Ok(commands::lease::run(&config, args.command, output)?),
        Command::Operations(args) => Ok(commands::pool::operations(&config, args, output)?),
        Command::Watch(args) => Ok(commands::watch::run(&config, &args, output)?),
        Command::Token(args) => Ok(commands::people::run(&config, args.command, output)?),
        Command::Login(args) => Ok(commands::people::login(&config, &args, output)?),
        Command::Audit(args) => Ok(commands::people::audit(&config, &args, output)?),
        Command::Images(args) => Ok(commands::images::list(&config, &args, output)?),
        Command::Diff(args) => Ok(commands::diff::run(&config, &args, output)?),
        Command::Inspect(args) => Ok(commands::images::inspect(&config, &args, output)?),
        Command::Save(args) => Ok(commands::save::run(&config, *args, output)?),
        Command::Verify(args) if args.restore_test => {
            Ok(commands::restore::run(&config, &args, output)?)
        }
        Command::Verify(args) => Ok(commands::images::verify(&config, &args, output)?),
        Command::Rehearse(args) => Ok(commands::rehearse::run(&config, &args, output)?),
        Command::Tag(args) => Ok(commands::images::tag(&config, &args, output)?),
        Command::Rm(args) => Ok(commands::images::remove(&config, &args, output)?),
        Command::Prune(args) => Ok(commands::prune::run(&config, &args, output)?),
        Command::Keep(args) => Ok(commands::keep::run(&config, args, output)?),
        Command::Kept(args) => Ok(commands::keep::list(&config, args, output)?),
        Command::Unkeep(args) => Ok(commands::keep::unkeep(&config, args, output)?),
        Command::Top(args) => Ok(commands::top::run(&config, &args, output)?),
        Command::Place(args) => Ok(commands::place::run(&config, &args, output)?),
        Command::Store(args) => Ok(commands::store::run(&config, &args.command, output)?),
        Command::Placement(args) => Ok(commands::placement::run(&config, &args.command, output)?),
        Command::Gc(args) => Ok(commands::images::gc(&config, &args, output)?),
    }
}

fn load_config(cli: &Cli) -> Result<Config> {
    // Not by clap, which shows what it finds in the environment as if each command needed it.
    let named = |flag: &Option<PathBuf>, variable| {
        let set = || std::env::var_os(variable).filter(|path| !path.is_empty());
        flag.clone().or_else(|| set().map(PathBuf::from))
    };
    let data = named(&cli.common.data, "FOREBAY_DATA").map_or_else(grid::default_data, Ok)?;
    let file = named(&cli.common.config, "FOREBAY_CONFIG");
    let mut flags = cli.common.set.clone();
    match &cli.command {
        Command::Up(args) => {
            flags.extend(args.listen.iter().map(|l| ("up.listen".to_owned(), l.clone())));
        }
        Command::Pull(args) => {
            flags.extend(args.rate.iter().map(|r| ("node.rate".to_owned(), r.clone())));
        }
        _ => {}
    }
    Config::load(data, file.as_deref(), |name| std::env::var(name).ok(), &flags)
}
