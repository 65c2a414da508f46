//! `forebay token`, `forebay login`, `forebay audit`: people, and what was done by whom.

use std::io::Read;

use api::audit::{AuditEntry, AuditHead, Chain};
use api::people::{NewPerson, PersonInfo, PersonList, PersonRole, Whoami};
use image::{Digest, Error, Kind, Result};
use placement::{Client, PersonCode};
use serde::Serialize;

use super::{block_on, unix_now, with_grid};
use crate::cli::{AuditArgs, LoginArgs, PeopleCommand, PersonNameArgs, PersonRoleArg};
use crate::config::Config;
use crate::grid::{self, Grid};
use crate::output::{Output, table, time};
use crate::serve::lock;

/// Longest text of a token, in bytes.
const MAX_TOKEN: u64 = 4096;

/// Runs `forebay token`.
pub fn run(config: &Config, command: PeopleCommand, output: Output) -> Result<()> {
    match command {
        PeopleCommand::Create(args) => {
            let role = match args.role {
                PersonRoleArg::Admin => PersonRole::Admin,
                PersonRoleArg::Operator => PersonRole::Operator,
                PersonRoleArg::ReadOnly => PersonRole::ReadOnly,
            };
            let asked = NewPerson { name: args.name, role, lifetime_secs: args.expires.as_secs() };
            let made = async |grid: Grid| grid.placement.new_person(&asked).await;
            output.result(&with_grid(config, made)?, |made| made.token.clone())
        }
        PeopleCommand::List => {
            let all = with_grid(config, |grid| async move { grid.placement.people().await })?;
            output.result(&all, rows)
        }
        PeopleCommand::Revoke(PersonNameArgs { name }) => {
            let revoked = async |grid: Grid| grid.placement.revoke(&name).await;
            let said = |was: &PersonInfo| format!("the token of {} is refused now", was.name);
            output.result(&with_grid(config, revoked)?, said)
        }
    }
}

fn rows(list: &PersonList) -> String {
    let head = ["NAME", "ROLE", "SINCE", "UNTIL", "MADE BY"].map(str::to_owned).to_vec();
    let rows = list.people.iter().map(|p| {
        let (since, until) = (time(p.created), time(p.expires));
        vec![p.name.clone(), p.role.name().to_owned(), since, until, p.by.clone()]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// Runs `forebay login`: what placement does not take is not kept.
pub fn login(config: &Config, args: &LoginArgs, output: Output) -> Result<()> {
    let mut text = String::new();
    let read = match &args.token_file {
        Some(path) => std::fs::File::open(path)
            .and_then(|file| file.take(MAX_TOKEN).read_to_string(&mut text))
            .map_err(|e| Error::io(path.display(), e)),
        None => std::io::stdin()
            .take(MAX_TOKEN)
            .read_to_string(&mut text)
            .map_err(|e| Error::io("standard input", e)),
    };
    read?;
    let code: PersonCode = text.parse()?;
    grid::refuse_login(&config.data)?;
    let _alone = lock(&config.data)?;
    let who = block_on(async { Client::with_token(&code)?.whoami().await })?;
    grid::note_token(&config.data, text.trim())?;
    output.result(&who, |who: &Whoami| {
        format!("you are {} ({}) in grid {}", who.name, who.role, who.grid)
    })
}

/// The state of the log, as `--verify` has found it.
#[derive(Serialize)]
struct Verified {
    entries: u64,
    head: AuditHead,
}

/// Runs `forebay audit`.
pub fn audit(config: &Config, args: &AuditArgs, output: Output) -> Result<()> {
    let from = args.since.map_or(0, |since| unix_now().saturating_sub(since.as_secs()));
    let known = args.known;
    let read = with_grid(config, |grid| async move { read(&grid.placement, from, known).await })?;
    if !args.verify {
        return output.result(&read.entries, |entries| entry_rows(entries));
    }
    let entries = (read.head.last + 1).saturating_sub(read.head.first);
    let found = Verified { entries, head: read.head };
    output.result(&found, |v| {
        let AuditHead { first, last, hash, .. } = v.head;
        format!(
            "{} entries, {first} to {last}: each follows from the one before\n{last}:{hash}",
            v.entries
        )
    })
}

struct Log {
    entries: Vec<AuditEntry>,
    head: AuditHead,
}

/// The log from a time on; all of it is verified on the way.
async fn read(placement: &Client, from: u64, known: Option<(u64, Digest)>) -> Result<Log> {
    let mut page = placement.audit(0).await?;
    // What comes while it is read is not waited for.
    let head = page.head;
    let mut chain = Chain::begin(&head);
    let mut entries = Vec::new();
    let mut seen = known.is_none_or(|known| known == (head.first - 1, head.before));
    loop {
        for text in &page.entries {
            if chain.at().0 == head.last {
                break;
            }
            let entry = chain.take(text)?;
            seen |= known == Some(chain.at());
            if entry.at >= from {
                entries.push(entry);
            }
        }
        match page.next {
            Some(next) if next < head.last => page = placement.audit(next).await?,
            _ => break,
        }
    }
    chain.end(&head)?;
    if !seen {
        let what = "audit log: it has not the entry that was its end then: it was written anew, or let go of since";
        return Err(Error::new(Kind::Corrupt, what));
    }
    Ok(Log { entries, head })
}

fn entry_rows(entries: &[AuditEntry]) -> String {
    let head = ["SEQ", "AT", "WHO", "WHAT", "OBJECT", "OUTCOME", ""].map(str::to_owned).to_vec();
    let rows = entries.iter().map(|e| {
        let times = if e.times > 1 { format!(" ({} times)", e.times) } else { String::new() };
        let (who, what) = (e.who.clone(), e.what.clone());
        let (outcome, said) = (e.outcome.clone() + &times, e.said.clone());
        vec![e.seq.to_string(), time(e.at), who, what, e.object.clone(), outcome, said]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}
