//! People: `token`, `login`, `audit`, `watch`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

/// `forebay token`.
#[derive(Args, Debug)]
pub struct PeopleArgs {
    #[command(subcommand)]
    pub command: PeopleCommand,
}

/// Tokens of people.
#[derive(Subcommand, Debug)]
pub enum PeopleCommand {
    /// Make a token for a person; it is shown this once. Machines join with `forebay node token`
    Create(NewPersonArgs),
    /// List the people who have tokens
    #[command(visible_alias = "ls")]
    List,
    /// Refuse a person's token from now on
    #[command(visible_alias = "rm")]
    Revoke(PersonNameArgs),
}

/// `forebay token create`.
#[derive(Args, Debug)]
pub struct NewPersonArgs {
    /// What the person is called
    #[arg(value_name = "NAME")]
    pub name: String,
    /// What the person may do
    #[arg(long, value_enum)]
    pub role: PersonRoleArg,
    /// How long the token is good, e.g. 12h or 90d
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = crate::config::parse_time)]
    pub expires: std::time::Duration,
}

/// What a person may do.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum PersonRoleArg {
    /// Everything but giving rights to others, and what needs a certificate
    Admin,
    /// The daily work: pools, claims, operations, caches
    Operator,
    /// Look
    ReadOnly,
}

/// A person.
#[derive(Args, Debug)]
pub struct PersonNameArgs {
    /// The person
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `forebay login`.
#[derive(Args, Debug)]
pub struct LoginArgs {
    /// The file that the token is in [default: standard input]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub token_file: Option<PathBuf>,
}

/// `forebay audit`.
#[derive(Args, Debug)]
pub struct AuditArgs {
    /// Show what happened in this time, e.g. 24h [default: all that is kept]
    #[arg(long, value_name = "TIME", value_parser = crate::config::parse_time)]
    pub since: Option<std::time::Duration>,
    /// See whether each entry follows from the one before, and print where the log ends
    #[arg(long, conflicts_with = "since")]
    pub verify: bool,
    /// And whether it still has the entry that was its end then: `SEQ:HASH`, as `--verify` has printed it
    #[arg(long, value_name = "SEQ:HASH", requires = "verify", value_parser = known_entry)]
    pub known: Option<(u64, image::Digest)>,
}

fn known_entry(text: &str) -> Result<(u64, image::Digest), String> {
    let parsed =
        text.split_once(':').and_then(|(seq, hash)| Some((seq.parse().ok()?, hash.parse().ok()?)));
    parsed.ok_or_else(|| "must be SEQ:HASH, as `forebay audit --verify` prints it".into())
}

/// `forebay watch`.
#[derive(Args, Debug)]
pub struct WatchArgs {
    /// What to watch [default: all of it]
    #[arg(value_name = "KIND", value_parser = ["operations", "pools", "nodes", "leases"])]
    pub of: Vec<String>,
    /// Go on after this revision, and do not show what there is now
    #[arg(long, value_name = "REVISION")]
    pub after: Option<u64>,
}
