//! Which hypervisors a machine has: programs are asked for their versions. Seldom, for each is a process.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use api::stats::HypervisorStats;
use tokio::process::Command;

use super::host::Roots;
use crate::tools;

/// Programs, and which hypervisor each is.
const PROGRAMS: [(&str, &str); 8] = [
    ("qemu", "qemu-system-x86_64"),
    ("qemu", "qemu-system-aarch64"),
    ("qemu", "qemu-system-riscv64"),
    ("qemu", "qemu-kvm"),
    ("cloud-hypervisor", "cloud-hypervisor"),
    ("firecracker", "firecracker"),
    ("libvirt", "libvirtd"),
    ("libvirt", "virtqemud"),
];
/// Where some distributions put what nobody is to call by hand.
const HIDDEN: [&str; 2] = ["/usr/libexec", "/usr/local/bin"];
/// How long one may think about its version.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is on this machine, each kind once.
pub(super) async fn installed(roots: &Roots) -> Vec<HypervisorStats> {
    let mut dirs = tools::path();
    dirs.extend(HIDDEN.map(PathBuf::from));
    let kvm = roots.dev.join("kvm").exists();
    let mut found: Vec<HypervisorStats> = xen(&roots.sys).into_iter().collect();
    for (kind, program) in PROGRAMS {
        if found.iter().any(|there| there.kind == kind) {
            continue;
        }
        let Some(path) = tools::find(program, &dirs) else { continue };
        if let Some(version) = asked(&path).await {
            found.push(HypervisorStats {
                kind: kind.to_owned(),
                version,
                features: features(kind, kvm),
            });
        }
    }
    found
}

fn features(kind: &str, kvm: bool) -> BTreeSet<String> {
    let exports: &[&str] = match kind {
        "qemu" => &["nbd", "vhost-user"],
        "cloud-hypervisor" => &["vhost-user"],
        _ => &[],
    };
    exports.iter().copied().chain(kvm.then_some("kvm")).map(str::to_owned).collect()
}

async fn asked(program: &Path) -> Option<String> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let said = tokio::time::timeout(PATIENCE, command.output()).await.ok()?.ok()?;
    said.status.success().then(|| version(&String::from_utf8_lossy(&said.stdout)))?
}

/// The first word of numbers with dots, e.g. of `QEMU emulator version 7.2.22 (Debian …)` or `Firecracker v1.7.0`.
pub(super) fn version(said: &str) -> Option<String> {
    said.split(|c: char| c.is_whitespace() || "(),".contains(c)).find_map(|word| {
        let word = word.strip_prefix('v').unwrap_or(word);
        let end = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
        let number = word[..end].trim_end_matches('.');
        let is = number.contains('.') && number.split('.').all(|part| !part.is_empty());
        (is && number.len() <= 32).then(|| number.to_owned())
    })
}

/// Xen says itself what it is.
fn xen(sys: &Path) -> Option<HypervisorStats> {
    let read = |name: &str| std::fs::read_to_string(sys.join("hypervisor").join(name)).ok();
    (read("type")?.trim() == "xen").then_some(())?;
    let (major, minor) = (read("version/major")?, read("version/minor")?);
    let version = format!("{}.{}", major.trim(), minor.trim());
    Some(HypervisorStats { kind: "xen".into(), version, features: BTreeSet::new() })
}
