//! Tests that look inside: interrupted first starts, and the refs over a state that fails.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::grid::{JoinRequest, NewToken, Role};
use image::{Digest, Error, Kind, Result};

use crate::archive::Archive;
use crate::ca::Authority;
use crate::clock::Clock;
use crate::files::Step;
use crate::http::{App, Limits};
use crate::member::Member;
use crate::papers::Papers;
use crate::state::State;
use crate::tokens::JoinCode;

#[path = "../tests/common/fake.rs"]
#[allow(dead_code, missing_docs)]
pub(crate) mod fake;

const NOW: u64 = 1_700_000_000;

/// What handlers work with, over memory.
pub(crate) async fn app(limits: Limits) -> App {
    let dir = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::open(&dir.path().join("ca"), NOW).unwrap());
    let state = State::in_memory(authority.grid()).await;
    let clock = Clock::new(|| NOW);
    let archive: Arc<dyn Archive> = fake::Fake::new();
    let key = authority.signing_key().clone();
    let catalog = crate::catalog::Catalog::open(state.clone(), archive, key, clock.clone(), vec![]);
    let catalog = Arc::new(catalog.await.unwrap());
    let members = crate::members::Members { state: state.clone(), clock: clock.clone() };
    let fleet = crate::fleet::Fleet::new(
        state.clone(),
        clock.clone(),
        Arc::clone(&catalog),
        crate::fleet::Terms::default(),
    );
    let lead = state.lead("controllers", "t", Duration::from_secs(10)).await.unwrap();
    fleet.begin(Arc::new(lead));
    let people = crate::people::People {
        state: state.clone(),
        clock: clock.clone(),
        authority: Arc::clone(&authority),
        address: "x:1".into(),
    };
    let audit = crate::audit::Audit::new(state.clone(), clock.clone());
    let watches = crate::watches::Watches::new(state.clone());
    let tokens = crate::tokens::Tokens { state, authority, clock, address: "x:1".into() };
    let (tokens, store) = (Arc::new(tokens), "store".into());
    App { catalog, tokens, members, people, audit, watches, fleet, limits, store }
}

#[tokio::test]
async fn a_token_made_while_its_maker_is_removed_is_good_for_nobody() {
    let app = app(Limits::default()).await;
    let (name, holder) = ("boss".to_owned(), Digest::of_stored(b"boss"));
    let boss = Member { grid: "grid".into(), role: Role::Admin, name, holder };
    let asked = NewToken { role: Role::Node, lifetime_secs: 60, name: None };
    app.members.remove("boss").await.unwrap();
    // Its request was let in before that.
    let token = app.tokens.make(&asked, &boss).await.unwrap().token;
    let secret = token.parse::<JoinCode>().unwrap().secret;
    let request = JoinRequest { secret, name: "n1".into(), request: String::new() };
    let refused = app.tokens.join(&request).await.unwrap_err();
    assert!(refused.kind() == Kind::Denied && refused.message().contains("not known"), "{refused}");
}

/// All that the first start makes, interrupted after `steps` operations on the disk.
fn first_start(data: &Path, now: u64, steps: usize) -> Result<(Authority, Papers, Papers)> {
    let left = Cell::new(steps);
    let probe = |_: Step, _: &Path| match left.get() {
        0 => Err(Error::new(Kind::Cancelled, "interrupted")),
        n => {
            left.set(n - 1);
            Ok(())
        }
    };
    let authority = Authority::open_with(&data.join("ca"), now, &probe)?;
    let server = authority.server_papers_with(&data.join("server"), "one", &[], now, &probe)?;
    let admin = authority.admin_papers_with(&data.join("admin"), now, &probe)?;
    Ok((authority, server, admin))
}

/// A start that ends well leaves everything whole and of one grid.
fn check(data: &Path, authority: &Authority, server: &Papers, admin: &Papers) {
    assert_eq!(Papers::load(&data.join("server")).unwrap(), *server);
    assert_eq!(Papers::load(&data.join("admin")).unwrap(), *admin);
    for papers in [server, admin] {
        assert_eq!(papers.member().unwrap().grid, authority.grid());
        let (ca, certificate) = (papers.ca().unwrap(), papers.certificate().unwrap());
        crate::tls::check_issued(ca, &certificate, NOW).unwrap();
        assert_eq!(papers.ca_pem, authority.ca_pem());
    }
    let mut names: Vec<_> =
        std::fs::read_dir(data).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["admin", "ca", "server"], "nothing is left over");
}

#[test]
fn a_first_start_interrupted_anywhere_is_made_good_by_the_next() {
    let mut interrupted = 0;
    for steps in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let done = first_start(dir.path(), NOW, steps);
        // What is in its place is whole, even now.
        let made = dir.path().join("ca").exists();
        let grid = made.then(|| Authority::open(&dir.path().join("ca"), NOW).unwrap());
        for papers in ["server", "admin"] {
            if dir.path().join(papers).exists() {
                Papers::load(&dir.path().join(papers)).unwrap();
            }
        }
        // Interrupted again one step later, then not.
        let _ = first_start(dir.path(), NOW, 1);
        let (authority, server, admin) = first_start(dir.path(), NOW, usize::MAX).unwrap();
        check(dir.path(), &authority, &server, &admin);
        assert!(grid.is_none_or(|g| g.grid() == authority.grid()), "a grid that was made stays");
        if done.is_ok() {
            break;
        }
        interrupted += 1;
    }
    assert!(interrupted > 30, "{interrupted}");
}

#[test]
fn a_renewal_interrupted_anywhere_is_made_good_by_the_next() {
    let later = NOW + 300 * 24 * 3600;
    for steps in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let (authority, ..) = first_start(dir.path(), NOW, usize::MAX).unwrap();
        let done = first_start(dir.path(), later, steps);
        // What they take the place of, or they.
        Papers::load(&dir.path().join("server")).unwrap();
        Papers::load(&dir.path().join("admin")).unwrap();
        let (again, server, admin) = first_start(dir.path(), later, usize::MAX).unwrap();
        assert_eq!(again.grid(), authority.grid());
        assert!(server.expires().unwrap() > later && admin.expires().unwrap() > later);
        assert!(
            !dir.path().join(".server.old").exists() && !dir.path().join(".admin.new").exists()
        );
        if done.is_ok() {
            break;
        }
    }
}

#[test]
fn everything_is_synced_before_it_is_renamed_and_the_rename_after() {
    let dir = tempfile::tempdir().unwrap();
    let steps = RefCell::new(Vec::new());
    let probe = |step: Step, path: &Path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        steps.borrow_mut().push((step, name));
        Ok(())
    };
    Authority::open_with(&dir.path().join("ca"), NOW, &probe).unwrap();
    let parent = dir.path().file_name().unwrap().to_string_lossy().into_owned();
    let mut expected = vec![(Step::MakeDir, ".ca.new".into())];
    for file in ["ca.pem", "ca.key", "grid", "signing.key"] {
        expected.extend([(Step::Write, file.to_owned()), (Step::SyncFile, file.into())]);
    }
    expected.extend([
        (Step::SyncDir, ".ca.new".into()),
        (Step::Rename, ".ca.new".into()),
        (Step::SyncDir, parent),
    ]);
    assert_eq!(steps.into_inner(), expected);
}
