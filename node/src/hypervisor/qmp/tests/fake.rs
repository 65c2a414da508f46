//! A monitor that keeps to no rules.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use image::Kind;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::super::wire::MAX_LINE;
use super::*;

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 1, "major": 9}, "package": ""}, "capabilities": []}}"#;
/// Only those who must not answer let it pass.
const PATIENCE: Duration = Duration::from_millis(200);

/// Serves one client by `serve`.
fn server<F>(serve: impl FnOnce(UnixStream) -> F + 'static) -> (TempDir, PathBuf)
where
    F: Future<Output = ()> + 'static,
{
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::task::spawn_local(async move { serve(listener.accept().await.unwrap().0).await });
    (dir, path)
}

/// Answers every command by `answer`: what is written, line by line.
fn answering(mut answer: impl FnMut(&str, Value) -> Vec<Value> + 'static) -> (TempDir, PathBuf) {
    server(async move |mut stream| {
        stream.write_all(format!("{GREETING}\r\n").as_bytes()).await.unwrap();
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let command: Value = serde_json::from_str(&line).unwrap();
            let name = command["execute"].as_str().unwrap().to_owned();
            let answers = match name.as_str() {
                "qmp_capabilities" => vec![json!({ "return": {}, "id": command["id"] })],
                name => answer(name, command),
            };
            for answer in answers {
                let answer = format!("{answer}\r\n");
                if write.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

async fn connect(path: &std::path::Path) -> image::Result<Monitor> {
    Monitor::connect(path, PATIENCE).await
}

#[test]
fn events_and_late_answers_are_skipped() {
    run(async {
        let mut seen = 0;
        let (_dir, path) = answering(move |_, command| {
            seen += 1;
            match seen {
                1 => vec![],
                _ => vec![
                    json!({ "event": "STOP" }),
                    json!({ "return": { "late": true }, "id": command["id"].as_u64().unwrap() - 1 }),
                    json!({ "return": { "late": false }, "id": command["id"] }),
                ],
            }
        });
        let mut monitor = connect(&path).await.unwrap();
        assert_eq!(monitor.version().to_string(), "9.1.0");
        let late = monitor.execute("query-status", Value::Null).await.unwrap_err();
        assert_eq!(late.kind(), Kind::Retry);
        assert!(late.message().contains("query-status"), "{late}");
        let answer = monitor.execute("query-status", Value::Null).await.unwrap();
        assert_eq!(answer, json!({ "late": false }));
    });
}

#[test]
fn who_does_not_greet_is_left_and_so_is_who_is_no_monitor() {
    run(async {
        let (_dir, path) = server(|stream| async move {
            std::future::pending::<()>().await;
            drop(stream);
        });
        assert_eq!(connect(&path).await.unwrap_err().kind(), Kind::Retry);

        let (_dir, path) = server(|mut stream| async move {
            stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
            let _ = stream.read(&mut [0; 9]).await;
        });
        assert_eq!(connect(&path).await.unwrap_err().kind(), Kind::Invalid);

        let (_dir, path) = server(|stream| async move { drop(stream) });
        assert_eq!(connect(&path).await.unwrap_err().kind(), Kind::Retry);

        let missing = path.with_file_name("missing");
        assert_eq!(connect(&missing).await.unwrap_err().kind(), Kind::Retry);
    });
}

#[test]
fn a_line_without_end_is_not_kept() {
    run(async {
        let (_dir, path) = server(|mut stream| async move {
            let piece = vec![b'x'; 1 << 20];
            let mut sent = 0;
            // Who reads on without end makes this test fail.
            while sent < 2 * MAX_LINE && stream.write_all(&piece).await.is_ok() {
                sent += piece.len();
            }
            assert!(sent < 2 * MAX_LINE);
        });
        assert_eq!(connect(&path).await.unwrap_err().kind(), Kind::Invalid);
    });
}

#[test]
fn a_connection_that_ends_in_the_middle_of_a_line_is_no_answer() {
    run(async {
        let (_dir, path) = server(|mut stream| async move {
            stream.write_all(GREETING.as_bytes()).await.unwrap();
            stream.write_all(b"\n{\"return\": {}").await.unwrap();
        });
        let error = connect(&path).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Retry);
    });
}

/// A QEMU whose graph is the one of a phase, and which refuses a command.
fn refusing(phase: &'static str, refused: &'static str) -> (TempDir, PathBuf) {
    let answers: Value = serde_json::from_str(include_str!("../recorded/nbd.json")).unwrap();
    let mut phase = phase;
    answering(move |command, line| {
        let id = &line["id"];
        if command == refused {
            let error = json!({ "class": "GenericError", "desc": "Failed to get \"write\" lock" });
            return vec![json!({ "error": error, "id": id })];
        }
        let answer = match command {
            "query-named-block-nodes" => answers[phase]["nodes"].clone(),
            "x-debug-query-block-graph" => answers[phase]["graph"].clone(),
            "query-jobs" => answers[phase]["jobs"].clone(),
            other => {
                phase = match other {
                    "blockdev-add" => "added",
                    "blockdev-mirror" => "ready",
                    "blockdev-del" if phase == "added" => "before",
                    "blockdev-del" => "after",
                    "job-cancel" | "job-dismiss" => "added",
                    other => panic!("{other} in phase {phase}"),
                };
                json!({})
            }
        };
        vec![json!({ "return": answer, "id": id })]
    })
}

#[test]
fn what_qemu_refuses_is_undone() {
    run(async {
        for refused in ["blockdev-add", "blockdev-mirror", "job-complete"] {
            let (_dir, path) = refusing("before", refused);
            let mut monitor = connect(&path).await.unwrap();
            let error = pivot(&mut monitor, &recorded(), PATIENCE * 50).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Conflict);
            assert!(error.message().contains(refused), "{error}");
            assert!(!error.message().contains("unknown"), "{error}");
            let view = view(&mut monitor).await.unwrap();
            assert!(view.node("vol").is_none() && view.jobs.is_empty(), "{refused}: {view:?}");
        }
    });
}

#[test]
fn what_cannot_be_undone_is_said() {
    run(async {
        let (_dir, path) = answering(|_, _| Vec::new());
        let mut monitor = connect(&path).await.unwrap();
        let error = pivot(&mut monitor, &recorded(), PATIENCE * 50).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Retry);
        assert!(error.message().contains("unknown"), "{error}");
    });
}

#[test]
fn a_pivot_of_an_earlier_process_is_ended() {
    run(async {
        let (_dir, path) = refusing("dismissed", "nothing");
        let mut monitor = connect(&path).await.unwrap();
        let outcome = pivot(&mut monitor, &recorded(), PATIENCE * 50).await.unwrap();
        assert_eq!(outcome, Outcome::WasThere);
    });
}
