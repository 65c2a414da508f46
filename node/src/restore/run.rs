//! Starts programs that end with us, whatever ends us, and listens to them.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use image::{Error, Kind, Result};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::said::Said;
use super::verdict::Ended;
use crate::tools;

/// What starts a program in `dir` that is killed when its [`Child`](tokio::process::Child) is dropped. If there is a
/// `setpriv`, the kernel kills it also when the thread that starts it has ended, however that came about.
pub(super) fn command(program: impl AsRef<OsStr>, dir: &Path) -> Result<Command> {
    let dirs = tools::path();
    let path = std::env::join_paths(&dirs)
        .map_err(|e| Error::caused(Kind::Invalid, format!("the environment's PATH: {e}"), e))?;
    let mut command = match tools::find("setpriv", &dirs) {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.current_dir(dir).env("PATH", path).env("LC_ALL", "C").env("TMPDIR", dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    Ok(command)
}

/// Runs a program to its end, or to that of the time it has; then nothing is returned, and it is killed.
pub(super) async fn run(
    mut command: Command,
    wanted: &[&str],
    limit: Duration,
) -> Result<Option<Ended>> {
    let failed = |e| Error::io("running a tool of file systems", e);
    let mut child = command.stderr(Stdio::null()).spawn().map_err(failed)?;
    let mut out = child.stdout.take().expect("its output is piped");
    let mut said = Said::wanting(wanted);
    let listening = async {
        let mut buf = [0; 4096];
        loop {
            match out.read(&mut buf).await {
                Ok(0) | Err(_) => return child.wait().await,
                Ok(n) => said.push(&buf[..n]),
            }
        }
    };
    match tokio::time::timeout(limit, listening).await {
        Ok(status) => Ok(Some(Ended { code: status.map_err(failed)?.code(), said })),
        Err(_) => {
            child.kill().await.map_err(failed)?;
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = command("sh", Path::new("/")).unwrap();
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn what_is_said_is_heard_and_what_does_not_end_is_ended() {
        let minute = Duration::from_secs(60);
        let ended = run(shell("echo one; echo two; exit 4"), &["one"], minute).await.unwrap();
        let ended = ended.unwrap();
        assert_eq!((ended.code, ended.said.has(0)), (Some(4), true));
        assert_eq!(ended.said.text(99), "one; two");
        let killed = run(shell("kill -9 $$"), &[], minute).await.unwrap().unwrap();
        assert_eq!(killed.code, None);
        let never = run(shell("exec sleep 600"), &[], Duration::from_millis(20)).await.unwrap();
        assert!(never.is_none());
    }
}
