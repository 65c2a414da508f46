//! Starts a machine on a scratch copy, and listens to its serial console until it says what is waited for.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use image::{Error, Kind, Result};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::machine::{Accelerator, Firmware, Machine, uefi};
use super::report::Boot;
use super::run::{command, run};
use super::said::Said;
use super::scratch::Scratch;
use crate::volumes::tools;

const QEMU: &str = "qemu-system-x86_64";
/// Lines of the console that are told of a machine that did not start.
const LINES: usize = 25;
/// Characters of what QEMU says of itself that are told.
const TOLD: usize = 600;
/// What QEMU may take to say whether it can use KVM.
const PROBE: Duration = Duration::from_secs(20);

/// A start that is tried out.
#[derive(Clone, Debug)]
pub struct BootTest {
    /// What starts.
    pub machine: Machine,
    /// What its serial console says when it has started; at most [`MAX_WANTED`](super::MAX_WANTED) bytes.
    pub marker: String,
    /// How long that may take.
    pub timeout: Duration,
}

#[expect(clippy::disallowed_methods, reason = "measures how long a real machine takes")]
fn now() -> Instant {
    Instant::now()
}

/// Starts a machine on the copy in a scratch directory, which it may write to. QEMU is gone when this returns, when it
/// is dropped, and when the thread that called it has ended.
///
/// # Errors
///
/// [`Kind::Unsupported`] without QEMU or the firmware that is needed; that the machine does not start is no error.
pub async fn boot(scratch: &Scratch, test: &BootTest) -> Result<Boot> {
    if tools::find(QEMU, &tools::path()).is_none() {
        let what = format!("`{QEMU}` is not here: install the package qemu-system-x86");
        return Err(Error::new(Kind::Unsupported, what));
    }
    let vars = scratch.dir().join("vars");
    let firmware = match test.machine.firmware {
        Firmware::Bios => None,
        Firmware::Uefi => {
            let (code, initial) = uefi()?;
            std::fs::copy(initial, &vars).map_err(|e| Error::io(initial.display(), e))?;
            Some((code, &*vars))
        }
    };
    let accelerator = accelerator(scratch.dir()).await?;
    let mut qemu = command(QEMU, scratch.dir())?;
    qemu.args(test.machine.arguments(&scratch.disk(), firmware, accelerator));
    let began = now();
    let mut child = spawn(qemu)?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let mut console = Said::wanting(&[&test.marker]);
    let mut told = Said::wanting(&[]);
    let listening = async {
        tokio::join!(listen(out, &mut console), listen(err, &mut told));
    };
    let ended = tokio::time::timeout(test.timeout, listening).await.is_ok();
    let took = now() - began;
    let status = if ended && !console.has(0) { child.wait().await.ok() } else { None };
    child.kill().await.map_err(|e| Error::io("ending QEMU", e))?;
    let marker = &test.marker;
    let failed = match status {
        _ if console.has(0) => None,
        Some(status) => Some(format!(
            "the machine ended ({status}) before its console said `{marker}`: {}",
            told.text(TOLD)
        )),
        None => {
            let seconds = test.timeout.as_secs_f64();
            Some(format!("its console did not say `{marker}` within {seconds} s"))
        }
    };
    let console = if failed.is_some() { console.lines(LINES) } else { Vec::new() };
    let (accelerator, firmware) = (accelerator.name().to_owned(), test.machine.firmware.name());
    let (millis, firmware) = (took.as_millis() as u64, firmware.to_owned());
    Ok(Boot { millis, accelerator, firmware, failed, console })
}

fn spawn(mut qemu: Command) -> Result<Child> {
    qemu.stderr(Stdio::piped()).spawn().map_err(|e| Error::io(QEMU, e))
}

/// Hears what is said, until that ends or what is wanted was said.
async fn listen(from: Option<impl AsyncRead + Unpin>, said: &mut Said) {
    let Some(mut from) = from else { return };
    let mut buf = [0; 4096];
    while !said.has(0) {
        match from.read(&mut buf).await {
            Ok(0) | Err(_) => return,
            Ok(n) => said.push(&buf[..n]),
        }
    }
}

/// KVM, if QEMU can use it.
async fn accelerator(dir: &Path) -> Result<Accelerator> {
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accelerator::Tcg);
    }
    // Its monitor is told to quit when all has been set up.
    let asked = || -> std::io::Result<std::io::PipeReader> {
        let (reader, mut writer) = std::io::pipe()?;
        writer.write_all(b"quit\n")?;
        Ok(reader)
    };
    let mut qemu = command(QEMU, dir)?;
    qemu.args(["-no-user-config", "-nodefaults", "-machine", "none", "-accel", "kvm"]);
    qemu.args(["-display", "none", "-monitor", "stdio"]);
    qemu.stdin(asked().map_err(|e| Error::io("asking QEMU", e))?);
    Ok(match run(qemu, &[], PROBE).await? {
        Some(ended) if ended.code == Some(0) => Accelerator::Kvm,
        _ => Accelerator::Tcg,
    })
}
