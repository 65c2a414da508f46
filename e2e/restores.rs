//! Proof that images can be restored: copies in scratch space, checked and started. The tests named `real_…` need
//! what [`crate::real`] needs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Background, Disk, Ended, Grid, flip, path, run, until};
use crate::real::{guest, must, script, wanted};

/// A disk with an MBR, and in it a partition from sector 8 that has so many.
fn partitioned(disk: Disk, sectors: u32) -> Disk {
    let mut bytes = disk.bytes;
    bytes[..4096].fill(0);
    bytes[450] = 0x83;
    bytes[454..458].copy_from_slice(&8_u32.to_le_bytes());
    bytes[458..462].copy_from_slice(&sectors.to_le_bytes());
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    Disk { bytes }
}

/// The verdicts on a disk's parts.
fn verdicts(restored: &Value) -> Vec<&str> {
    let parts = restored["parts"].as_array().expect("parts");
    parts.iter().map(|part| part["verdict"].as_str().expect("a verdict")).collect()
}

fn restore(grid: &Grid, name: &str, more: &[&str]) -> Ended {
    grid.run(&[&["verify", name, "--restore-test"], more].concat())
}

/// No copy is left in scratch space.
#[track_caller]
fn nothing_left(dir: &Path) {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["lock"], "{}", dir.display());
}

#[test]
fn what_cannot_be_checked_is_restored_and_never_called_good() {
    let grid = Grid::start();
    let noise = Disk::new("ab.c");
    let half = partitioned(noise.clone(), 2040);
    for (name, disk, expected) in [
        ("empty:1", Disk::new(""), vec!["nothing"]),
        ("zeros:1", Disk::new("..").cut(512), vec!["nothing"]),
        ("noise:1", noise, vec!["not-checked"]),
        ("half:1", half, vec!["clean", "not-checked"]),
    ] {
        let data = disk.bytes.iter().any(|byte| *byte != 0);
        grid.import(&grid.disk("d.raw", &disk), name);
        let restored = restore(&grid, name, &[]).json();
        assert_eq!(verdicts(&restored), expected, "{name}: {restored}");
        assert_eq!(restored["size"], disk.bytes.len());
        assert_eq!(restored["received"].as_u64().unwrap() > 0, data);
    }
    nothing_left(&grid.data.join("restore"));
    let human =
        run(crate::harness::forebay(&grid.data).args(["verify", "noise:1", "--restore-test"]));
    assert!(human.out.contains("no file system was checked; NOT CHECKED: 1"), "{}", human.out);
    grid.run(&["verify", "noise:1", "--boot"]).fails(64, &["--restore-test"]);
}

#[test]
fn a_disk_that_was_cut_off_is_damaged() {
    let grid = Grid::start();
    let disk = partitioned(Disk::new("ab"), 5000);
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    restore(&grid, "d:1", &[]).fails(76, &["d:1", "partition 1", "cut off"]);
    // What the store has of it is what was imported.
    grid.run(&["verify", "d:1", "--deep"]).json();
}

#[test]
fn scratch_space_is_where_it_is_said_and_what_was_left_there_goes() {
    let grid = Grid::start();
    grid.import(&grid.disk("d.raw", &Disk::new("ab")), "d:1");
    let scratch = grid.dir.join("scratch");
    let base = scratch.join("forebay-restore");
    std::fs::create_dir_all(base.join("0")).unwrap();
    std::fs::write(base.join("0/disk"), "of one that was killed").unwrap();
    restore(&grid, "d:1", &["--scratch", path(&scratch)]).json();
    nothing_left(&base);
    assert!(!grid.data.join("restore").exists());
    restore(&grid, "no:1", &["--scratch", path(&scratch)]).fails(66, &["no:1"]);
    nothing_left(&base);
    let nowhere = scratch.join("nowhere");
    let says = [path(&nowhere), "no such directory"];
    restore(&grid, "d:1", &["--scratch", path(&nowhere)]).fails(66, &says);
    assert!(!nowhere.exists());
}

/// A program that stands for QEMU, and what it left.
struct FakeQemu {
    dir: PathBuf,
}

impl FakeQemu {
    /// Does `then` when it is started with a machine; it knows no KVM.
    fn new(grid: &Grid, then: &str) -> Self {
        let dir = grid.dir.join("bin");
        std::fs::create_dir_all(&dir).unwrap();
        let qemu = dir.join("qemu-system-x86_64");
        let (pid, args) = (dir.join("pid"), dir.join("args"));
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *'-machine none'*) exit 1;; esac\necho \"$*\" >'{}'\necho $$ >'{}.new'\n\
             mv '{}.new' '{}'\n{then}\n",
            args.display(),
            pid.display(),
            pid.display(),
            pid.display()
        );
        std::fs::write(&qemu, script).unwrap();
        std::fs::set_permissions(&qemu, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    fn restore(&self, grid: &Grid, more: &[&str]) -> Command {
        let mut command = grid.command(&["verify", "d:1", "--restore-test", "--boot"]);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.dir.display())).args(more);
        command
    }

    fn is_gone(&self) -> bool {
        let pid = std::fs::read_to_string(self.dir.join("pid")).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        // Of a killed parent's child it may take init a while to hear of its end.
        stat.map_or(true, |stat| stat.contains(") Z "))
    }
}

#[test]
fn a_machine_that_says_its_marker_has_started_and_is_ended() {
    let grid = Grid::start();
    let disk = grid.disk("d.raw", &Disk::new("ab"));
    let record = ["--memory-mib", "333", "--cpus", "1"];
    grid.run(&[&["import", path(&disk), "d:1"], &record[..]].concat()).json();
    let qemu = FakeQemu::new(&grid, r"printf 'x\033[0mdebian lo'; printf 'gin: '; exec sleep 1000");
    let restored = run(&mut qemu.restore(&grid, &[])).json();
    let boot = &restored["boot"];
    assert_eq!((&boot["accelerator"], &boot["firmware"]), (&json!("tcg"), &json!("bios")));
    assert_eq!(boot["failed"], Value::Null);
    assert!(qemu.is_gone());
    let args = std::fs::read_to_string(qemu.dir.join("args")).unwrap();
    for says in ["-m 333 -smp 1", "-nic none", "restore/0/disk"] {
        assert!(args.contains(says), "{says}: {args}");
    }
    nothing_left(&grid.data.join("restore"));

    let silent = FakeQemu::new(&grid, "echo starting; exec sleep 1000");
    let ended = run(&mut silent.restore(&grid, &["--timeout", "1s", "--marker", "up and well"]));
    ended.fails(76, &["did not say `up and well` within 1 s"]);
    assert!(ended.out.contains("starting") && silent.is_gone(), "{}", ended.out);

    let short = FakeQemu::new(&grid, "echo Kernel panic; echo qemu: oops >&2; exit 3");
    let ended = run(&mut short.restore(&grid, &[]));
    ended.fails(76, &["exit status: 3", "qemu: oops"]);
    assert!(ended.out.contains("Kernel panic"), "{}", ended.out);

    grid.run(&["import", path(&disk), "d:1", "--arch", "aarch64"]).json();
    run(&mut short.restore(&grid, &[])).fails(69, &["aarch64"]);
    nothing_left(&grid.data.join("restore"));
}

#[test]
fn rehearsals_are_drawn_and_kept() {
    let grid = Grid::start();
    for (name, disk) in [("a:1", "a"), ("a:2", "bc"), ("b:1", "d")] {
        grid.import(&grid.disk("d.raw", &Disk::new(disk)), name);
    }
    grid.run(&["tag", "a:1", "a:same"]).json();
    let one = grid.run(&["rehearse"]).json();
    assert_eq!((&one["images"], one["rehearsals"].as_array().unwrap().len()), (&json!(3), 1));
    let all = grid.run(&["rehearse", "--count", "9"]).json();
    assert_eq!(all["rehearsals"].as_array().unwrap().len(), 3, "each image once");
    let few = grid.run(&["rehearse", "--budget", "300KiB", "a:"]).json();
    assert_eq!((&few["images"], &few["too_large"]), (&json!(2), &json!(0)));
    let none = grid.run(&["rehearse", "--budget", "1KiB"]).json();
    assert_eq!((&none["too_large"], &none["rehearsals"]), (&json!(3), &json!([])));
    let seeds = [1, 1].map(|seed| {
        let run = grid.run(&["rehearse", "a:", "--count", "2", "--seed", &seed.to_string()]);
        run.json()["seed"].clone()
    });
    assert_eq!(seeds, [json!(1), json!(1)]);
    let record = grid.run(&["rehearse", "--report"]).json();
    let kept = record["rehearsals"].as_array().unwrap().len();
    assert!((8..=10).contains(&kept), "{record}");
    assert_eq!(record["rehearsals"][0], one["rehearsals"][0]);
    let metrics = grid.run(&["rehearse", "--metrics"]).out;
    assert!(metrics.contains(r#"forebay_rehearsal_passed{image="a:2"} 1"#), "{metrics}");
    assert!(metrics.contains("# TYPE forebay_rehearsal_pull_seconds gauge"), "{metrics}");
    let mut node = Background::start(&mut grid.command(&["node"]));
    assert!(node.line().contains("socket"));
    let metrics = grid.run(&["node", "metrics"]).out;
    assert!(metrics.contains(r#"forebay_rehearsal_passed{image="a:2"} 1"#), "{metrics}");
    // What has no name any more is nobody's concern.
    grid.run(&["rm", "a:2"]).json();
    grid.run(&["rehearse"]).json();
    assert!(!grid.run(&["rehearse", "--metrics"]).out.contains("a:2"));
    nothing_left(&grid.data.join("restore"));
}

#[test]
fn a_rehearsal_that_fails_is_told_and_recorded() {
    let mut grid = Grid::start_with(&["--set", "cache.disk=0"]);
    grid.import(&grid.disk("d.raw", &Disk::new("abcd")), "rotten:1");
    grid.stop();
    grid.objects("packs").iter().for_each(|pack| flip(pack, 5000));
    grid.restart();
    let cut = partitioned(Disk::new("xy"), 5000);
    grid.import(&grid.disk("c.raw", &cut), "cut:1");
    let ended = grid.run(&["rehearse", "--count", "2"]);
    ended.fails(76, &[]);
    let report: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(report["rehearsals"].as_array().unwrap().len(), 2, "one does not keep the other");
    let shown = run(crate::harness::forebay(&grid.data).args(["rehearse", "--report"]));
    assert!(
        shown.out.contains("NOT RESTORED") && shown.out.contains("DAMAGED: 1"),
        "{}",
        shown.out
    );
    let metrics = grid.run(&["rehearse", "--metrics"]).out;
    for says in [r#"passed{image="rotten:1"} 0"#, r#"damaged_parts{image="cut:1"} 1"#] {
        assert!(metrics.contains(says), "{says}: {metrics}");
    }
    restore(&grid, "rotten:1", &[]).fails(76, &[]);
}

#[test]
fn rehearsals_go_on_until_they_are_stopped_one_process_at_a_time() {
    let grid = Grid::start();
    grid.import(&grid.disk("d.raw", &Disk::new("ab")), "d:1");
    let mut service = Background::start(&mut grid.command(&["rehearse", "--every", "1h"]));
    assert_eq!(service.line().trim(), r#"{"every":3600}"#);
    let first: Value = serde_json::from_str(&service.line()).unwrap();
    assert_eq!(
        (&first["name"], verdicts(&first["restored"])),
        (&json!("d:1"), vec!["not-checked"])
    );
    grid.run(&["rehearse"]).fails(73, &["another"]);
    assert_eq!(grid.run(&["rehearse", "--report"]).json()["rehearsals"][0], first);
    assert_eq!(service.terminate().1, 0);
    grid.run(&["rehearse"]).json();
}

/// Mounts a disk where nobody else sees it, has `$1` changed in it, and takes the power away.
const POWER_CUT: &str = r#"set -e
mount -o loop,offset=$2 "$1" "$3"
mkdir "$3/new"; for i in $(seq 200); do echo $i >"$3/new/$i"; done; sync
for i in $(seq 200); do echo $i >"$3/new/b$i"; done
exec 8<"$3/files/2"; rm "$3/files/2"
xfs_io -c fsync "$3/new/b1"
xfs_io -x -r -c 'shutdown -f' "$3"
exec 8<&-
umount "$3"
"#;

fn made(dir: &Path, fs: &str, table: &str) -> PathBuf {
    let raw = dir.join(format!("{fs}-{table}.raw"));
    let mib = if fs == "xfs" { "400" } else { "200" };
    must(script("filesystem").args(["make", path(&raw), mib, fs, table]));
    raw
}

fn lose_power(raw: &Path, table: &str, dir: &Path) {
    let mount = dir.join("mount");
    std::fs::create_dir_all(&mount).unwrap();
    let start = if table == "bare" { "0" } else { "9437184" };
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", POWER_CUT, "sh"]);
    must(unshare.args([path(raw), start, path(&mount)]));
}

#[test]
fn real_file_systems_that_are_whole_are_clean_and_others_are_not() {
    if !wanted() {
        return;
    }
    let grid = Grid::start();
    for (fs, table) in [
        ("ext4", "gpt"),
        ("ext4", "bare"),
        ("xfs", "gpt"),
        ("xfs", "bare"),
        ("btrfs", "mbr"),
        ("btrfs", "bare"),
        ("ntfs", "gpt"),
    ] {
        let (raw, name) = (made(&grid.dir, fs, table), format!("{fs}-{table}:1"));
        grid.import(&raw, &name);
        let restored = restore(&grid, &name, &[]).json();
        let expected =
            if table == "bare" { vec!["clean"] } else { vec!["clean", "nothing", "clean"] };
        assert_eq!(verdicts(&restored), expected, "{name}: {restored}");
        println!(
            "{name}: {} ms of checks",
            restored["parts"].as_array().unwrap().last().unwrap()["millis"]
        );
        wreck(&raw, if table == "bare" { 0 } else { 9 << 20 });
        grid.import(&raw, &format!("{fs}-{table}:bad"));
        let ended = restore(&grid, &format!("{fs}-{table}:bad"), &[]);
        assert_eq!(ended.code, 76, "{name}: {}{}", ended.out, ended.err);
        println!("{}", ended.err);
    }
    nothing_left(&grid.data.join("restore"));
}

/// Noise on what follows the first superblocks: trees, tables and bitmaps are among it.
fn wreck(raw: &Path, start: u64) {
    use std::os::unix::fs::FileExt;
    let noise = Disk::new("abcd").bytes;
    let file = std::fs::File::options().write(true).open(raw).unwrap();
    for mib in 0..60 {
        file.write_all_at(&noise, start + (72 << 10) + (mib << 20)).unwrap();
    }
}

#[test]
fn real_journals_that_have_to_be_replayed_are_no_damage_and_hide_none() {
    if !wanted() {
        return;
    }
    let grid = Grid::start();
    for table in ["bare", "gpt"] {
        let raw = made(&grid.dir, "ext4", table);
        lose_power(&raw, table, &grid.dir);
        grid.import(&raw, "ext4:1");
        let restored = restore(&grid, "ext4:1", &[]).json();
        let part = restored["parts"].as_array().unwrap().last().unwrap();
        assert_eq!(part["verdict"], "recovered", "{restored}");
        assert_eq!(part["clean_before"], false, "{restored}");
        let start = part["start"].as_u64().unwrap();
        let fs = format!("{}?offset={start}", raw.display());
        // Nothing that the journal would write over.
        let zap = "zap_block -f /lost+found -p 165 0";
        must(Command::new("debugfs").args(["-w", "-R", zap, &fs]));
        grid.import(&raw, "ext4:2");
        restore(&grid, "ext4:2", &[]).fails(76, &["e2fsck"]);
    }
    let raw = made(&grid.dir, "xfs", "gpt");
    lose_power(&raw, "gpt", &grid.dir);
    grid.import(&raw, "xfs:1");
    let restored = restore(&grid, "xfs:1", &[]).json();
    assert_eq!(verdicts(&restored), ["clean", "nothing", "not-checked"], "{restored}");
    let restored = restore(&grid, "xfs:1", &["--mount"]).json();
    assert_eq!(verdicts(&restored), ["clean", "nothing", "recovered"], "{restored}");
    nothing_left(&grid.data.join("restore"));
}

#[test]
fn real_killed_restores_leave_nothing_for_long() {
    if !wanted() {
        return;
    }
    let grid = Grid::start();
    grid.import(&grid.disk("d.raw", &Disk::new("ab")), "d:1");
    let qemu = FakeQemu::new(&grid, "exec sleep 1000");
    for signal in ["-KILL", "-TERM"] {
        let _ = std::fs::remove_file(qemu.dir.join("pid"));
        let mut verify = Background::start(&mut qemu.restore(&grid, &[]));
        until("QEMU runs", || qemu.dir.join("pid").exists());
        let (_, code) = verify.end(signal);
        assert_eq!(code, if signal == "-TERM" { 130 } else { -1 });
        until("QEMU is gone", || qemu.is_gone());
        let left = grid.data.join("restore/0").exists();
        assert_eq!(left, signal == "-KILL");
    }
    restore(&grid, "d:1", &[]).json();
    nothing_left(&grid.data.join("restore"));
}

/// A disk whose boot sector says this on the serial port, and no more. A BIOS counts in cylinders: of half a MiB.
fn talking(text: &str) -> Disk {
    let mut disk = Disk::new("................");
    let code = [
        0xfa, // cli
        0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov ds, ax
        0xbe, 0x16, 0x7c, // mov si, what follows the code
        0xba, 0xf8, 0x03, // mov dx, the first serial port
        0xac, // next: lodsb
        0x84, 0xc0, 0x74, 0x03, // test al, al; jz end
        0xee, // out dx, al
        0xeb, 0xf8, // jmp next
        0xf4, 0xeb, 0xfd, // end: hlt; jmp end
    ];
    let boot = [&code, text.as_bytes(), &[0]].concat();
    disk.bytes[..boot.len()].copy_from_slice(&boot);
    disk.bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

#[test]
fn real_disks_start_by_their_own_boot_sector() {
    if !wanted() {
        return;
    }
    let grid = Grid::start();
    grid.import(&grid.disk("d.raw", &talking("some host login: ")), "d:1");
    let restored = restore(&grid, "d:1", &["--boot"]).json();
    assert_eq!(restored["boot"]["failed"], Value::Null, "{restored}");
    let ended = restore(&grid, "d:1", &["--boot", "--marker", "# ", "--timeout", "3s"]);
    ended.fails(76, &["did not say `# ` within 3 s"]);
    assert!(ended.out.contains("some host login:"), "{}", ended.out);
    nothing_left(&grid.data.join("restore"));
}

#[test]
fn real_debian_guests_start_from_a_restored_copy() {
    if !wanted() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let raw = guest(temp.path());
    let grid = Grid::start();
    grid.import(&raw, "debian:12");
    let beside = |suffix: &str| format!("{}.{suffix}", raw.display());
    let (kernel, initrd) = (beside("vmlinuz"), beside("initrd"));
    let boot = [
        "--boot",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--append",
        "root=/dev/vda rw console=ttyS0 panic=-1",
        "--marker",
        "FOREBAY-GUEST-READY nginx=ok postgres=ok",
    ];
    let restored = restore(&grid, "debian:12", &boot).json();
    assert_eq!(verdicts(&restored), ["clean"], "{restored}");
    println!("{restored}");
    let ran = grid.run(&[&["rehearse"], &boot[..]].concat()).json();
    assert_eq!(ran["rehearsals"][0]["restored"]["boot"]["failed"], Value::Null, "{ran}");
    // It has no boot loader of its own.
    let alone = ["--boot", "--timeout", "20s"];
    restore(&grid, "debian:12", &alone).fails(76, &["login:"]);
}
