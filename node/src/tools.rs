//! Programs of the system: found, started, and ended with all that they have started.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use image::{Error, Kind, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::process::Command;

/// Where administrators' tools are, whatever the daemon was started with.
const SYSTEM: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Characters of what a tool says that are told.
const SAID: usize = 2000;
/// Last bytes of what it says that are kept, of its output and of its errors.
const KEPT: usize = 64 << 10;
/// How long a tool may take. The check of a large disk takes hours, and may say nothing all the while; one that hangs
/// shall not have its volume for ever.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The directories of programs: the environment's, and those of administrators.
pub(crate) fn path() -> Vec<PathBuf> {
    let own = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&own).chain(SYSTEM.map(PathBuf::from)).collect()
}

/// A program, if it is in one of these directories.
pub(crate) fn find(program: &str, dirs: &[PathBuf]) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        path.metadata().is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 > 0)
    };
    dirs.iter().map(|dir| dir.join(program)).find(is_program)
}

/// Sees that programs are there, each named with the Debian package that it is in. `what` says what they are for, as in
/// "XFS is extended by".
///
/// # Errors
///
/// [`Kind::Unsupported`], naming the program and its package.
pub(crate) fn check(what: &str, needed: &[(&str, &str)], dirs: &[PathBuf]) -> Result<()> {
    for (tool, package) in needed {
        if find(tool, dirs).is_none() {
            let what = format!("{what} `{tool}`, which is not here: install the package {package}");
            return Err(Error::new(Kind::Unsupported, what));
        }
    }
    Ok(())
}

/// Runs a program to its end, without input, and with the programs of the system at hand.
///
/// # Errors
///
/// [`Kind::Io`] with what it said, or that it has not come to an end and was killed.
pub(crate) async fn run(command: Command) -> Result<()> {
    run_on(command, "").await
}

/// The same, with this for its input.
pub(crate) async fn run_on(mut command: Command, input: &str) -> Result<()> {
    let path: OsString = std::env::join_paths(path())
        .map_err(|e| Error::caused(Kind::Invalid, format!("the environment's PATH: {e}"), e))?;
    command.env("PATH", path).env("LC_ALL", "C");
    let (status, said) = ended(command, input, LONGEST).await?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::new(Kind::Io, told(&said))),
    }
}

/// Runs a program to its end, or kills it and all that it has started; the last of what it said.
async fn ended(
    mut command: Command,
    input: &str,
    longest: Duration,
) -> Result<(ExitStatus, Vec<u8>)> {
    let failed = |e| Error::io("running the tools of file systems", e);
    let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
    let piped = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = piped.spawn().map_err(failed)?;
    let group = child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let stdin = child.stdin.take();
    let all =
        async { tokio::try_join!(feed(stdin, input), last_of(out), last_of(err), child.wait()) };
    match tokio::time::timeout(longest, all).await {
        Ok(all) => {
            let ((), out, err, status) = all.map_err(failed)?;
            Ok((status, [out, err].concat()))
        }
        Err(_) => {
            if let Some(group) = group {
                // If it has just ended there is nobody to be killed.
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            child.wait().await.map_err(failed)?;
            let what =
                format!("it did not come to an end within {} s, and was killed", longest.as_secs());
            Err(Error::new(Kind::Io, what))
        }
    }
}

/// Gives a program its input. One that does not want it says why by how it ends.
async fn feed(pipe: Option<impl AsyncWrite + Unpin>, input: &str) -> std::io::Result<()> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    match pipe.write_all(input.as_bytes()).await {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e),
        _ => Ok(()),
    }
}

/// The last bytes of what comes out of a pipe.
async fn last_of(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let (mut kept, mut buf) = (Vec::new(), [0; 4096]);
    let Some(mut pipe) = pipe else { return Ok(kept) };
    loop {
        let read = pipe.read(&mut buf).await?;
        if read == 0 {
            kept.drain(..kept.len().saturating_sub(KEPT));
            return Ok(kept);
        }
        kept.extend_from_slice(&buf[..read]);
        if kept.len() >= 2 * KEPT {
            kept.drain(..kept.len() - KEPT);
        }
    }
}

/// What a tool said, for people.
fn told(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let said = lines.join("; ");
    let from = said.char_indices().rev().nth(SAID).map_or(0, |(at, _)| at);
    said[from..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn of_what_a_tool_says_the_end_is_kept() {
        let script = "yes | head -c 3000000; yes no | head -c 3000000 >&2; echo last >&2; exit 3";
        let (status, said) = ended(shell(script), "", LONGEST).await.unwrap();
        assert_eq!((status.code(), said.len()), (Some(3), 2 * KEPT));
        assert!(told(&said).ends_with("no; no; last"));
    }

    #[tokio::test]
    async fn a_tool_reads_its_input_or_does_not() {
        let input = "a\n".repeat(100_000);
        let (status, said) = ended(shell("wc -c"), &input, LONGEST).await.unwrap();
        assert!(status.success());
        assert_eq!(told(&said), "200000");
        let (status, _) = ended(shell("exit 4"), &input, LONGEST).await.unwrap();
        assert_eq!(status.code(), Some(4));
    }

    #[tokio::test]
    async fn a_tool_that_hangs_is_killed_with_all_that_it_has_started() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        // What it has started has its output, too.
        let script = format!("sleep 1000 & echo $! > {}; sleep 1000; wait", pid.display());
        let error = ended(shell(&script), "", Duration::from_secs(1)).await.unwrap_err();
        assert!(error.kind() == Kind::Io && error.message().contains("was killed"), "{error}");
        let pid = std::fs::read_to_string(pid).unwrap();
        let is_dead = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        while !is_dead() {
            tokio::task::yield_now().await;
        }
    }
}
