//! fio as a client of NBD.

use std::process::Command;

use serde_json::Value;

use crate::Setup;
use crate::process::{on_core, run};

/// What its one job says of itself. It runs on this core, if one is named.
pub fn nbd(setup: &Setup, core: Option<usize>, uri: &str, args: &[&str]) -> Value {
    let mut fio = Command::new("fio");
    fio.args(["--name=job", "--ioengine=nbd", "--output-format=json"]);
    fio.args([&format!("--uri={uri}")]).args(args);
    if let Some(core) = core {
        fio = on_core(core, &fio);
    }
    // It leaves files where it is.
    let said = run(fio.current_dir(&setup.dir)).stdout;
    let said = String::from_utf8_lossy(&said);
    // Before the JSON the engine says that it is connected.
    let json = said.find('{').map(|start| serde_json::from_str::<Value>(&said[start..]));
    match json {
        Some(Ok(mut said)) => said["jobs"][0].take(),
        _ => panic!("{fio:?}: {said}"),
    }
}
