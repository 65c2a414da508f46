//! People: tokens, what was done by whom, what is watched and ended, by the shipped program.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::{Background, Ended, Grid, forebay, path, run, until};
use crate::member::Node;
use crate::real::wanted;

/// A person's data directory, and the token that is kept there.
fn person(grid: &Grid, name: &str, role: &str) -> std::path::PathBuf {
    let made = grid.run(&["token", "create", name, "--role", role, "--expires", "12h"]).json();
    let token = grid.file(&format!("{name}.token"), made["token"].as_str().unwrap().as_bytes());
    let data = grid.dir.join(format!("home-{name}"));
    let who = run(forebay(&data).args(["login", "--json", "--token-file", path(&token)])).json();
    assert!(who["name"].as_str().unwrap().ends_with(name), "{who}");
    data
}

#[test]
fn a_person_works_by_a_token_until_it_is_revoked_and_the_log_says_what_it_did() {
    let (grid, nowhere) = (Grid::start(), tempfile::tempdir().unwrap());
    let (op, eye) = (person(&grid, "op", "operator"), person(&grid, "eye", "read-only"));
    let by = |data: &std::path::Path, args: &[&str]| run(forebay(data).args(args));
    let create = ["pool", "create", "web", "--size", "1MiB", "--target", "2", "--json"];
    assert_eq!(by(&op, &create).json()["name"], "web");
    by(&eye, &["pool", "delete", "web"]).fails(77, &["token:eye (read-only)"]);
    assert_eq!(by(&eye, &["pool", "list", "--json"]).json()["pools"][0]["name"], "web");
    by(&op, &["token", "create", "me", "--role", "admin"]).fails(77, &["by its certificate"]);
    let to = nowhere.path().join("d.raw").display().to_string();
    by(&op, &["pull", "d:1", "--to", &to]).fails(77, &["certificate"]);
    // Said for one command alone, and not where a member is.
    let text = std::fs::read_to_string(op.join("token")).unwrap();
    let once =
        run(forebay(nowhere.path()).env("FOREBAY_TOKEN", &text).args(["pool", "show", "web"]));
    assert_eq!(once.code, 0, "{}", once.err);
    let twice = ["login", "--token-file", path(&op.join("token"))].map(str::to_owned);
    run(forebay(&grid.data).args(&twice)).fails(73, &["is a member's"]);
    let mut login = forebay(nowhere.path());
    login.arg("login").stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null());
    let mut login = login.spawn().unwrap();
    login.stdin.take().unwrap().write_all(b"h:1/x/y").unwrap();
    assert_eq!(login.wait().unwrap().code(), Some(65));

    assert_eq!(grid.run(&["token", "list"]).json()["people"].as_array().unwrap().len(), 2);
    assert_eq!(grid.run(&["token", "revoke", "op"]).code, 0);
    by(&op, &["pool", "list"]).fails(77, &["not known, revoked, or expired"]);
    let log = by(&eye, &["audit", "--since", "1h", "--json"]).json();
    let did = |e: &&Value| e["who"] == "token:op (operator)" && e["what"] == "PUT /v1/pools/{name}";
    assert!(log.as_array().unwrap().iter().find(did).is_some(), "{log}");
    let verified = by(&eye, &["audit", "--verify", "--json"]).json();
    let head = &verified["head"];
    let known = format!("{}:{}", head["last"], head["hash"].as_str().unwrap());
    assert_eq!(grid.run(&["token", "revoke", "eye"]).code, 0);
    assert_eq!(grid.run(&["audit", "--verify", "--known", &known]).code, 0);
    let other = known.replace(['a', '0'], "1");
    grid.run(&["audit", "--verify", "--known", &other]).fails(76, &["written anew"]);
}

#[test]
fn what_is_asked_for_is_watched_and_ended() {
    let grid = Grid::start();
    let node = Node::join(&grid, "n1");
    grid.run(&["pool", "create", "web", "--size", "1MiB", "--target", "1", "--low", "0"]).json();
    let mut watch = Background::start(forebay(&grid.data).args(["watch", "operations", "--json"]));
    assert!(watch.line().contains("now"));
    // Nobody of that name will ever serve it.
    let id = "0a".repeat(16);
    let claim =
        ["pool", "claim", "web", "v1", "--node", "n9", "--only", "--request", &id, "--wait", "0s"];
    grid.run(&claim).fails(75, &["waits for node n9"]);
    let told: Value = serde_json::from_str(&watch.line()).unwrap();
    assert_eq!((&told["event"], &told["name"]), (&"set".into(), &id.as_str().into()));
    let ended = |args: &[&str]| -> Ended { grid.run(&[&["operations"], args].concat()) };
    assert_eq!(ended(&["cancel", &id]).json()["state"], "cancelled");
    assert_eq!(ended(&["cancel", &id]).json()["state"], "cancelled", "again");
    assert_eq!(ended(&["watch", &id]).json()["state"], "cancelled");
    until("the end is told", || watch.line().contains("cancelled"));
    grid.run(&["pool", "claim", "web", "v2", "--request", &"0b".repeat(16)]).json();
    ended(&["cancel", &"0b".repeat(16)]).fails(73, &["it was done"]);
    ended(&["cancel", &"0c".repeat(16)]).fails(66, &["there is none"]);
    assert_eq!(node.disk("v2").len(), 1 << 20);
}

/// Every documented route by an admin's token, with what schemathesis makes up. Needs schemathesis (`pip install
/// schemathesis`), in the path or as FOREBAY_SCHEMATHESIS.
#[test]
fn real_schemathesis_finds_no_route_that_fails() {
    let program = std::env::var_os("FOREBAY_SCHEMATHESIS").unwrap_or_else(|| "schemathesis".into());
    let there = Command::new(&program).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !wanted() || !there {
        println!("left out: needs FOREBAY_E2E=1 and schemathesis");
        return;
    }
    let grid = Grid::start();
    let token = grid.run(&["token", "create", "st", "--role", "admin"]).json();
    let token = token["token"].as_str().unwrap().to_owned();
    let up: Value =
        serde_json::from_slice(&std::fs::read(grid.data.join("up.json")).unwrap()).unwrap();
    let url = format!("https://{}/v1/openapi.json", up["placement"].as_str().unwrap());
    // What this version does not do is refused by 501, on purpose.
    let settings =
        "[checks]\nnot_a_server_error.expected-statuses = [\"2xx\", \"3xx\", \"4xx\", \"501\"]\n";
    let settings = grid.file("schemathesis.toml", settings.as_bytes());
    let mut command = Command::new(&program);
    command.args(["--config-file", path(&settings), "run", &url, "--no-color"]);
    command.args(["--checks", "not_a_server_error", "--max-time", "40", "--seed", "1"]);
    command.args(["--phases", "examples,coverage,fuzzing", "--request-timeout", "20"]);
    // Who sends what is not read to its end finds its connection closed.
    command.args(["--request-retries", "3"]);
    // Its answer has no end; and it would take its own token away.
    command.args(["--exclude-path", "/v1/watch", "--exclude-path", "/v1/people/{name}"]);
    command.args(["--tls-verify", path(&grid.data.join("ca/ca.pem"))]);
    command.args(["-H", &format!("Authorization: Bearer {token}")]);
    let ended = run(command.current_dir(&grid.dir));
    assert_eq!(ended.code, 0, "{}{}", ended.out, ended.err);
}
