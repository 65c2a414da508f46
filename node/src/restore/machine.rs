//! What QEMU is told of a machine that starts on a scratch copy.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use image::{Error, Kind, Result};

/// What runs the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// This machine's processor.
    Kvm,
    /// QEMU itself, many times slower.
    Tcg,
}

impl Accelerator {
    /// QEMU's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// What starts the boot loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// A PC's.
    Bios,
    /// EDK II.
    Uefi,
}

impl Firmware {
    /// By what a record says of an image; a BIOS if it says nothing.
    ///
    /// # Errors
    ///
    /// [`Kind::Unsupported`] for any other than `bios` and `uefi`.
    pub fn named(name: Option<&str>) -> Result<Self> {
        match name.map(str::to_lowercase).as_deref() {
            None | Some("" | "bios") => Ok(Self::Bios),
            Some("uefi" | "efi") => Ok(Self::Uefi),
            Some(other) => {
                let what =
                    format!("its record names the firmware `{other}`: bios and uefi are known");
                Err(Error::new(Kind::Unsupported, what))
            }
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::Uefi => "uefi",
        }
    }
}

/// Where distributions keep EDK II: the code, and the variables to begin with.
const UEFI: [(&str, &str); 6] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/edk2-ovmf/x64/OVMF_CODE.fd", "/usr/share/edk2-ovmf/x64/OVMF_VARS.fd"),
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
];

/// The first firmware of this machine: its code, and the variables to begin with.
///
/// # Errors
///
/// [`Kind::Unsupported`], naming the package.
pub(super) fn uefi() -> Result<(&'static Path, &'static Path)> {
    let all = UEFI.map(|(code, vars)| (Path::new(code), Path::new(vars)));
    all.into_iter().find(|(code, vars)| code.is_file() && vars.is_file()).ok_or_else(|| {
        let what =
            "the image starts by UEFI, for which QEMU needs EDK II: install the package ovmf";
        Error::new(Kind::Unsupported, what)
    })
}

/// A kernel that is started in place of the disk's boot loader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub append: String,
}

/// What QEMU shows of a processor: all that the accelerator can do.
pub(super) const CPU: &str = "max";

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Logical sector of the disk, in bytes.
    pub sector: u32,
    /// What starts the boot loader.
    pub firmware: Firmware,
    /// In MiB.
    pub memory_mib: u64,
    /// How many.
    pub cpus: u32,
    /// What is started in place of the boot loader.
    pub kernel: Option<Kernel>,
}

/// QEMU's options are parted by commas.
fn escaped(path: &Path) -> OsString {
    let bytes = path.as_os_str().as_bytes().iter();
    let doubled = bytes.flat_map(|b| std::iter::repeat_n(*b, if *b == b',' { 2 } else { 1 }));
    OsString::from_vec(doubled.collect())
}

fn option(text: &str, file: &Path) -> OsString {
    let mut all = OsString::from(text);
    all.push(escaped(file));
    all
}

impl Machine {
    /// QEMU's arguments: a headless machine without a network, whose serial console is standard output. `uefi` are the
    /// firmware's code and this machine's own variables.
    pub(super) fn arguments(
        &self,
        disk: &Path,
        uefi: Option<(&Path, &Path)>,
        accelerator: Accelerator,
    ) -> Vec<OsString> {
        let machine = if uefi.is_some() { "q35" } else { "pc" };
        let (memory, cpus) = (self.memory_mib.to_string(), self.cpus.to_string());
        let sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
        let words = [
            "-no-user-config",
            "-nodefaults",
            "-sandbox",
            sandbox,
            "-machine",
            machine,
            "-accel",
            accelerator.name(),
            "-cpu",
            CPU,
            "-m",
            &memory,
            "-smp",
            &cpus,
            "-display",
            "none",
            "-monitor",
            "none",
            "-nic",
            "none",
            "-no-reboot",
            "-serial",
            "stdio",
            "-device",
            "virtio-rng-pci",
        ];
        let mut all: Vec<OsString> = words.map(OsString::from).into();
        let mut add = |name: &str, value: OsString| all.extend([OsString::from(name), value]);
        if let Some((code, vars)) = uefi {
            add("-drive", option("if=pflash,unit=0,format=raw,readonly=on,file=", code));
            add("-drive", option("if=pflash,unit=1,format=raw,file=", vars));
        }
        let drive = "if=none,id=disk,format=raw,cache=unsafe,discard=unmap,file=";
        add("-drive", option(drive, disk));
        let sector = self.sector;
        let sectors =
            format!("logical_block_size={sector},physical_block_size={}", sector.max(512));
        add("-device", format!("virtio-blk-pci,drive=disk,bootindex=1,{sectors}").into());
        if let Some(Kernel { kernel, initrd, append }) = &self.kernel {
            add("-kernel", kernel.into());
            if let Some(initrd) = initrd {
                add("-initrd", initrd.into());
            }
            add("-append", OsStr::new(append).to_owned());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(machine: &Machine, uefi: Option<(&Path, &Path)>) -> String {
        let all = machine.arguments(Path::new("/a,b/disk"), uefi, Accelerator::Tcg);
        all.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn qemu_is_told_what_the_record_says() {
        let mut machine = Machine {
            sector: 4096,
            firmware: Firmware::Bios,
            memory_mib: 768,
            cpus: 2,
            kernel: None,
        };
        let bios = said(&machine, None);
        for says in [
            "-machine pc",
            "-m 768",
            "-smp 2",
            "-nic none",
            "file=/a,,b/disk",
            "logical_block_size=4096,physical_block_size=4096",
            "-accel tcg",
            "-sandbox on",
        ] {
            assert!(bios.contains(says), "{says}: {bios}");
        }
        assert!(!bios.contains("-kernel") && !bios.contains("pflash"), "{bios}");
        machine.kernel = Some(Kernel {
            kernel: "/k".into(),
            initrd: Some("/i".into()),
            append: "root=/dev/vda console=ttyS0".into(),
        });
        let uefi = said(&machine, Some((Path::new("/code"), Path::new("/vars"))));
        for says in ["q35", "readonly=on,file=/code", "-kernel /k -initrd /i -append root=/dev/vda"]
        {
            assert!(uefi.contains(says), "{says}: {uefi}");
        }
    }

    #[test]
    fn firmware_is_named_by_the_record() {
        assert_eq!(Firmware::named(None).unwrap(), Firmware::Bios);
        assert_eq!(Firmware::named(Some("UEFI")).unwrap(), Firmware::Uefi);
        let error = Firmware::named(Some("openfirmware")).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
    }
}
