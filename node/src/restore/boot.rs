//! Starts a machine on a scratch copy, and listens to its serial console until it says what is waited for.

use std::io::Write;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use image::{Error, Kind, Result};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::machine::{Accelerator, CPU, Firmware, Machine, uefi};
use super::report::Boot;
use super::run::{command, run};
use super::said::Said;
use super::scratch::Scratch;
use crate::tools;

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

/// Starts a machine on the copy in a scratch directory, which it may write to: with KVM, if QEMU can use that; and
/// emulated, if it cannot, or if it does not start with KVM, which is not always the disk's fault. Either has all of the
/// time. QEMU is gone when this returns, when it is dropped, and when the thread that called it has ended.
///
/// # Errors
///
/// [`Kind::Unsupported`] without QEMU or the firmware that is needed; that the machine does not start is no error.
pub async fn boot(scratch: &Scratch, test: &BootTest) -> Result<Boot> {
    if tools::find(QEMU, &tools::path()).is_none() {
        let what = format!("`{QEMU}` is not here: install the package qemu-system-x86");
        return Err(Error::new(Kind::Unsupported, what));
    }
    let mut with_kvm = None;
    if has_kvm(scratch.dir()).await? {
        match attempt(scratch, test, Accelerator::Kvm).await? {
            Boot { failed: Some(why), .. } => with_kvm = Some(why),
            started => return Ok(started),
        }
    }
    let mut boot = attempt(scratch, test, Accelerator::Tcg).await?;
    if let (Some(failed), Some(why)) = (&mut boot.failed, with_kvm) {
        *failed = format!("{failed}; and before, with KVM: {why}");
    }
    Ok(boot)
}

async fn attempt(scratch: &Scratch, test: &BootTest, accelerator: Accelerator) -> Result<Boot> {
    let vars = scratch.dir().join("vars");
    let firmware = match test.machine.firmware {
        Firmware::Bios => None,
        Firmware::Uefi => {
            let (code, initial) = uefi()?;
            std::fs::copy(initial, &vars).map_err(|e| Error::io(initial.display(), e))?;
            Some((code, &*vars))
        }
    };
    let mut qemu = command(QEMU, scratch.dir())?;
    qemu.args(test.machine.arguments(&scratch.disk(), firmware, accelerator));
    let began = now();
    let mut child = spawn(qemu)?;
    let mut console = Said::wanting(&[&test.marker]);
    let mut told = Said::wanting(&[]);
    let status = watch(&mut child, &mut console, &mut told, test.timeout).await;
    let took = now() - began;
    if status.is_none() {
        child.kill().await.map_err(|e| Error::io("ending QEMU", e))?;
    }
    let marker = &test.marker;
    let failed = match status {
        _ if console.has(0) => None,
        Some(status) => {
            let said = told.text(TOLD);
            Some(format!("the machine ended ({status}) before its console said `{marker}`: {said}"))
        }
        None => {
            let seconds = test.timeout.as_secs_f64();
            Some(format!("its console did not say `{marker}` within {seconds} s"))
        }
    };
    Ok(Boot {
        millis: took.as_millis() as u64,
        accelerator: accelerator.name().to_owned(),
        firmware: test.machine.firmware.name().to_owned(),
        console: if failed.is_some() { console.lines(LINES) } else { Vec::new() },
        failed,
    })
}

/// Listens until the console has said what is waited for, or the time is over; if QEMU ends before, how it did.
async fn watch(
    child: &mut Child,
    console: &mut Said,
    told: &mut Said,
    timeout: Duration,
) -> Option<ExitStatus> {
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let listening = async {
        let beside = async {
            listen(&mut err, told).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = listen(&mut out, console) => {}
            () = beside => {}
        }
        if console.has(0) {
            return None;
        }
        listen(&mut err, told).await;
        child.wait().await.ok()
    };
    tokio::time::timeout(timeout, listening).await.ok().flatten()
}

fn spawn(mut qemu: Command) -> Result<Child> {
    qemu.stderr(Stdio::piped()).spawn().map_err(|e| Error::io(QEMU, e))
}

/// Hears what is said, until that ends or what is wanted was said.
async fn listen(from: &mut Option<impl AsyncRead + Unpin>, said: &mut Said) {
    let Some(from) = from else { return };
    let mut buf = [0; 4096];
    while !said.has(0) {
        match from.read(&mut buf).await {
            Ok(0) | Err(_) => return,
            Ok(n) => said.push(&buf[..n]),
        }
    }
}

/// Whether QEMU can set up a machine with KVM: there may be a device that is good for nothing.
async fn has_kvm(dir: &Path) -> Result<bool> {
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(false);
    }
    // Its monitor is told to quit when all has been set up.
    let asked = || -> std::io::Result<std::io::PipeReader> {
        let (reader, mut writer) = std::io::pipe()?;
        writer.write_all(b"quit\n")?;
        Ok(reader)
    };
    let mut qemu = command(QEMU, dir)?;
    qemu.args(["-no-user-config", "-nodefaults", "-S", "-m", "16", "-accel", "kvm", "-cpu", CPU]);
    qemu.args(["-display", "none", "-monitor", "stdio"]);
    qemu.stdin(asked().map_err(|e| Error::io("asking QEMU", e))?);
    let ended = run(qemu, &[], PROBE).await?;
    Ok(ended.is_some_and(|ended| ended.code == Some(0)))
}
