//! What real kernels and programs say, a machine made of files, and whatever else texts may hold.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::stats::{Cause, Declared, Event, MAX_EVENTS, NodeStats, What};
use proptest::prelude::*;

use super::host::{Roots, look};
use super::sample::{Known, Seen, When, also, sample};
use super::sampler::{Sampler, SamplerOptions};
use super::{disks, guests, links, processor, programs, raids};

const STAT: &str = "cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 50 0 50 350 50 0 0 0 0 0\ncpu1 50 0 50 350 50 0 0 0 0 0\nintr 1 2\n";
const STAT_LATER: &str = "cpu  150 0 150 790 100 0 0 10 0 0\ncpu0 100 0 100 350 50 0 0 0 0 0\ncpu1 50 0 50 440 50 0 0 10 0 0\nintr 1 2\n";
const MEMINFO: &str = "MemTotal:       24684092 kB\nMemFree:        21966112 kB\nMemAvailable:   23726068 kB\nBuffers:           12356 kB\nSwapTotal:             0 kB\nSwapFree:              0 kB\n";
const PRESSURE: &str = "some avg10=10.03 avg60=9.82 avg300=6.00 total=11553902055\nfull avg10=0.00 avg60=0.40 avg300=0.00 total=0\n";
const DISKSTATS: &str = " 254       0 vda 1000 653052 2000 3000 500 968928 4000 1000 0 2000 37938659 1641331 1118 1188900648 333730 1314479 175160\n 254       1 vda1 900 0 1 1 1 1 1 1 0 1 1\n   7       0 loop0 723770 12418 62874003 549380 502279 1233011 77467886 728467 0 240636 1372943\n";
const MDSTAT: &str = "Personalities : [raid1] [raid6] [raid5] [raid4]\nmd1 : active raid5 sdd1[3] sdc1[1](F) sda1[0]\n      2095104 blocks super 1.2 level 5, 512k chunk, algorithm 2 [3/2] [U_U]\n      [==>..................]  recovery = 12.6% (132096/1047552) finish=0.1min speed=132096K/sec\n\nmd0 : active (auto-read-only) raid1 sdb1[1] sda2[0]\n      1046528 blocks super 1.2 [2/2] [UU]\n\nunused devices: <none>\n";
const VLANS: &str = "VLAN Dev name    | VLAN ID\nName-Type: VLAN_NAME_TYPE_RAW_PLUS_VID_NO_PAD\neth0.100       | 100  | eth0\n";

fn words(line: &str) -> Vec<u8> {
    line.split(' ').flat_map(|word| word.bytes().chain([0])).collect()
}

#[test]
fn processors_memory_and_pressure_are_as_the_kernel_says() {
    let (before, now) =
        (processor::processors(STAT).unwrap(), processor::processors(STAT_LATER).unwrap());
    let cpu = processor::cpu(Some(&before), &now);
    assert_eq!((cpu.cores, cpu.busy_per_mille, cpu.stolen_per_mille), (2, Some(550), Some(50)));
    assert_eq!(cpu.cores_busy_per_mille, [1000, 100]);
    assert_eq!(processor::cpu(None, &now).busy_per_mille, None, "nothing is known of before");
    let memory = processor::memory(MEMINFO).unwrap();
    assert_eq!(memory.available_bytes, 23_726_068 << 10);
    assert_eq!(memory.swap_total_bytes, Some(0));
    let stall = processor::stall(PRESSURE).unwrap();
    assert_eq!((stall.some10_per_mille, stall.full60_per_mille), (100, Some(4)));
}

#[test]
fn disks_did_what_their_counters_say_between_two_looks() {
    let before = disks::done(DISKSTATS);
    let later = DISKSTATS.replace("1000 653052 2000 3000 500", "1200 653052 42000 3400 500");
    let now = disks::done(&later.replace("0 2000 37938659", "0 3000 37938659"));
    assert_eq!((now.len(), now[0].name.as_str()), (3, "vda"));
    let about = disks::About {
        size: Some("4096\n".into()),
        rotational: Some("0\n".into()),
        errors: Some("0x1f\n".into()),
    };
    let disk = disks::disk(Some(&before[0]), &now[0], &about, 2000);
    assert_eq!(
        (disk.size_bytes, disk.rotational, disk.errors),
        (Some(2 << 20), Some(false), Some(31))
    );
    let work = disk.work.unwrap();
    assert_eq!((work.reads_per_sec, work.read_bytes_per_sec), (100, 20_000 * 512));
    assert_eq!((work.read_micros, work.write_micros, work.busy_per_mille), (Some(2000), None, 500));
    for (name, is) in
        [("vda", true), ("loop0", false), ("zram1", false), ("nvme0n1", true), ("srv", true)]
    {
        assert_eq!(disks::is_disk(name), is, "{name}");
    }
}

#[test]
fn arrays_tell_what_they_lack() {
    let arrays = raids::arrays(MDSTAT);
    let told: Vec<_> = arrays
        .iter()
        .map(|a| (a.name.as_str(), a.level.as_str(), a.devices, a.degraded, a.sync_per_mille))
        .collect();
    assert_eq!(told, [("md1", "raid5", 3, 1, Some(126)), ("md0", "raid1", 2, 0, None)]);
    let about = raids::About {
        array_state: Some("clean\n".into()),
        degraded: Some("1\n".into()),
        mismatch_cnt: Some("128\n".into()),
        errors: vec!["2\n".into(), "3\n".into()],
    };
    let array = raids::with(arrays[1].clone(), &about);
    assert_eq!((array.state.as_str(), array.degraded), ("clean", 1));
    assert_eq!((array.errors, array.mismatches), (Some(5), Some(128)));
}

#[test]
fn guests_have_the_shapes_that_their_hypervisors_were_told() {
    let vm = |line: &str| guests::guest(7, &words(line)).map(|guest| guest.vm);
    let shape = |line: &str| {
        let vm = vm(line).unwrap_or_else(|| panic!("{line}"));
        (vm.name, vm.cpus, vm.memory_bytes.map(|bytes| bytes >> 20))
    };
    let name = |name: &str| name.to_owned();
    for (line, is) in [
        (
            "/usr/bin/qemu-system-x86_64 -name guest=web1,debug-threads=on -m size=4G,slots=2 -smp 4,sockets=1",
            (name("web1"), Some(4), Some(4096)),
        ),
        (
            "qemu-system-aarch64 -name db -m 2048 -smp cores=2,threads=2",
            (name("db"), Some(4), Some(2048)),
        ),
        ("/usr/libexec/qemu-kvm -nographic", (name("7"), Some(1), Some(128))),
        (
            "cloud-hypervisor --api-socket path=/run/ch/vm3.sock --cpus boot=2,max=8 --memory size=1G",
            (name("vm3"), Some(2), Some(1024)),
        ),
        ("firecracker --id fc-1 --api-sock /run/fc.sock", (name("fc-1"), None, None)),
    ] {
        assert_eq!(shape(line), is, "{line}");
    }
    for line in
        ["qemu-img create a 1G", "qemu-system-x86_64 --version", "/bin/bash -c qemu-system-x86_64"]
    {
        assert_eq!(vm(line), None, "{line}");
    }
    let guest = guests::guest(
        7,
        &words("qemu-system-x86_64 -drive file=/v/a/disk.raw,if=virtio -drive x=/v/ab"),
    )
    .unwrap();
    assert!(guest.names("/v/a/disk.raw") && guest.names("/v/ab") && !guest.names("/v/a/disk"));
}

#[test]
fn versions_are_the_first_numbers_with_dots() {
    for (said, version) in [
        (
            "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003-2022",
            Some("7.2.22"),
        ),
        ("cloud-hypervisor v41.0.0\n", Some("41.0.0")),
        ("Firecracker v1.7.0\n\nSupported snapshot data format versions: v2.0.0", Some("1.7.0")),
        ("libvirtd (libvirt) 9.0.0", Some("9.0.0")),
        ("QEMU emulator version 9.1.0-rc2", Some("9.1.0")),
        ("none", None),
        ("", None),
    ] {
        assert_eq!(programs::version(said).as_deref(), version, "{said}");
    }
}

/// A machine made of files.
fn machine(dir: &Path, later: bool) -> Roots {
    let put = |name: &str, text: &[u8]| {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("proc/stat", if later { STAT_LATER } else { STAT }.as_bytes());
    put("proc/meminfo", MEMINFO.as_bytes());
    put("proc/pressure/io", PRESSURE.as_bytes());
    put("proc/diskstats", DISKSTATS.as_bytes());
    put("proc/mdstat", MDSTAT.as_bytes());
    put("proc/net/vlan/config", VLANS.as_bytes());
    put("sys/block/vda/size", b"4096\n");
    put("sys/block/loop0/size", b"4096\n");
    put("sys/block/md0/md/degraded", b"0\n");
    put("sys/block/md0/md/dev-sda2/errors", b"4\n");
    for (name, speed) in [("eth0", "10000"), ("eth0.100", "10000"), ("lo", "-1"), ("tap0", "-1")] {
        put(&format!("sys/class/net/{name}/operstate"), b"up\n");
        put(&format!("sys/class/net/{name}/speed"), speed.as_bytes());
        let received = if later { "5000" } else { "1000" };
        put(&format!("sys/class/net/{name}/statistics/rx_bytes"), received.as_bytes());
        put(&format!("sys/class/net/{name}/statistics/rx_dropped"), b"3\n");
    }
    put("sys/class/net/eth0/device/vendor", b"0x1af4\n");
    let vm = if later { "new" } else { "old" };
    put(
        "proc/41/cmdline",
        &words(&format!("qemu-system-x86_64 -name {vm} -m 512 -drive file=/v/a")),
    );
    put("proc/self/cmdline", &words("qemu-system-x86_64 -name self"));
    let spaces = vec![("volumes".into(), dir.to_owned()), ("data".into(), dir.join("gone"))];
    Roots { proc: dir.join("proc"), sys: dir.join("sys"), dev: dir.join("dev"), spaces }
}

fn sampled(dir: &Path) -> NodeStats {
    let seen = |later, millis| Seen {
        counts: look(&machine(dir, later), millis),
        hypervisors: Vec::new(),
    };
    let (before, now) = (seen(false, 1000), seen(true, 3000));
    let known = Known { places: vec!["/v/a".into(), "/v/b".into()], ..Known::default() };
    let when = When { number: 2, at: 77, cause: Cause::Interval };
    sample(Some(&before), &now, known, Declared::default(), when)
}

#[test]
fn a_machine_is_sampled_and_what_it_lacks_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let stats = sampled(dir.path());
    stats.check().unwrap();
    assert_eq!((stats.span_millis, stats.cpu.as_ref().unwrap().busy_per_mille), (2000, Some(550)));
    assert_eq!(stats.pressure.load_per_mille(), Some(98));
    assert!(stats.pressure.cpu.is_none());
    let names: Vec<_> = stats.disks.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["vda"]);
    assert_eq!((stats.raids.len(), stats.raids[1].errors), (2, Some(4)));
    let links: Vec<_> = stats
        .interfaces
        .iter()
        .map(|of| (of.name.as_str(), of.vlan, of.physical, of.speed_bits_per_sec))
        .collect();
    let ten = Some(10_000_000_000);
    assert_eq!(
        links,
        [
            ("eth0", None, true, ten),
            ("eth0.100", Some(100), false, ten),
            ("tap0", None, false, None)
        ]
    );
    assert_eq!(stats.interfaces[0].received_bytes_per_sec, Some(2000));
    assert_eq!(
        (stats.guests.vms, stats.vms[0].volumes, stats.guests.memory_bytes),
        (1, 1, 512 << 20)
    );
    let events: Vec<_> = stats.events.iter().map(|of| (of.what, of.name.as_str())).collect();
    assert_eq!(events, [(What::VmStopped, "old"), (What::VmStarted, "new")]);
    assert_eq!(stats.spaces.len(), 1, "of what is not there nothing is said");
    // A machine of which nothing is known.
    let empty = tempfile::tempdir().unwrap();
    let none = empty.path().to_owned();
    let roots = Roots { proc: none.clone(), sys: none.clone(), dev: none, spaces: Vec::new() };
    let seen = Seen { counts: look(&roots, 0), hypervisors: Vec::new() };
    let stats = sample(None, &seen, Known::default(), Declared::default(), When::default());
    stats.check().unwrap();
    assert!(stats.cpu.is_none() && stats.memory.is_none() && stats.disks.is_empty());
}

#[test]
fn of_more_than_placement_takes_a_part_is_said_and_how_much_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let roots = machine(dir.path(), false);
    for pid in 100..400 {
        let path = roots.proc.join(pid.to_string());
        fs::create_dir_all(&path).unwrap();
        let long = format!("{pid}{}\u{7}", "ä".repeat(100));
        fs::write(path.join("cmdline"), words(&format!("qemu-system-x86_64 -name {long} -m 1G")))
            .unwrap();
    }
    let seen = Seen { counts: look(&roots, 0), hypervisors: Vec::new() };
    let stats = sample(None, &seen, Known::default(), Declared::default(), When::default());
    stats.check().unwrap();
    assert_eq!((stats.vms.len(), stats.left_out, stats.guests.vms), (256, 45, 301));
    assert_eq!(stats.guests.memory_bytes, (300 << 30) + (512 << 20));
}

#[tokio::test(start_paused = true)]
async fn samples_come_at_intervals_when_something_happens_and_more_often_while_somebody_looks() {
    let dir = tempfile::tempdir().unwrap();
    let options = SamplerOptions {
        roots: machine(dir.path(), false),
        every: Duration::from_secs(10),
        declared: Declared::default(),
        now: || 77,
        millis: || 0,
    };
    let sampler = Sampler::new(options);
    assert!(sampler.untold().is_none());
    let running = tokio::spawn(sampler.clone().run(|| std::future::ready(Known::default())));
    let next = async |number| loop {
        match sampler.untold() {
            Some(last) if last.number == number => return Arc::clone(&last).cause,
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    assert_eq!(next(1).await, Cause::Interval);
    sampler.told(Some(1), None);
    assert!(sampler.untold().is_none(), "once");
    assert_eq!(next(2).await, Cause::Interval);
    // However much happens, it is one sample.
    (0..5).for_each(|_| sampler.touch());
    sampler.news().await;
    assert_eq!(next(3).await, Cause::Trigger);
    assert_eq!(next(4).await, Cause::Interval);
    sampler.told(Some(4), Some(1));
    assert_eq!(sampler.every(), Duration::from_secs(1));
    assert_eq!(next(5).await, Cause::Asked);
    sampler.told(Some(5), Some(30));
    assert_eq!(sampler.every(), Duration::from_secs(10), "never less often than configured");
    running.abort();
}

/// Placement is away, and samples go on; the sample that saw a guest come is not the one that is told.
#[tokio::test(start_paused = true)]
async fn what_has_happened_is_told_though_placement_was_away_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let roots = machine(dir.path(), false);
    let guest = roots.proc.join("77");
    let options = SamplerOptions {
        roots,
        every: Duration::from_secs(1),
        declared: Declared::default(),
        now: || 77,
        millis: || 0,
    };
    let sampler = Sampler::new(options);
    let running = tokio::spawn(sampler.clone().run(|| std::future::ready(Known::default())));
    let told = async |number| loop {
        match sampler.untold().filter(|last| last.number >= number) {
            Some(last) => return last.events.iter().map(|event| event.what).collect::<Vec<_>>(),
            None => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    told(1).await;
    fs::create_dir_all(&guest).unwrap();
    fs::write(guest.join("cmdline"), words("qemu-system-x86_64 -name short")).unwrap();
    assert_eq!(told(3).await, [What::VmStarted]);
    fs::remove_dir_all(&guest).unwrap();
    assert_eq!(told(5).await, [What::VmStarted, What::VmStopped]);
    sampler.told(Some(5), None);
    assert_eq!(told(6).await, [], "once");
    running.abort();
}

#[test]
fn of_too_many_events_the_oldest_are_left_out() {
    let event = |n: usize| Event { at: n as u64, ..Event::default() };
    let mut stats = NodeStats { events: vec![event(9000)], ..NodeStats::default() };
    also(&mut stats, &(0..MAX_EVENTS).map(event).collect::<Vec<_>>());
    let ats: Vec<u64> = stats.events.iter().map(|event| event.at).collect();
    assert_eq!((ats.len(), ats[0], ats[MAX_EVENTS - 1], stats.left_out), (MAX_EVENTS, 1, 9000, 1));
}

proptest! {
    #[test]
    fn whatever_texts_hold_is_read_or_left_out(
        a in ".{0,200}",
        b in "[ -~\n]{0,300}",
        n in any::<[u64; 12]>(),
        millis in any::<u64>(),
    ) {
        let numbers = n.map(|n| n.to_string()).join(" ");
        let stat = format!("cpu  {numbers}\ncpu0 {numbers}\n");
        let disk = format!("8 0 sda {numbers}\n");
        for text in [&a, &b, &stat, &disk, &format!("md0 : active {b}\n {a}"), &format!("{a}|{b}|{a}")] {
            if let Some(found) = processor::processors(text) {
                let other = processor::processors(STAT).unwrap();
                processor::cpu(Some(&other), &found);
                processor::cpu(Some(&found), &other);
            }
            let _ = (processor::memory(text), processor::stall(text), links::vlans(text));
            let _ = (programs::version(text), guests::guest(1, text.as_bytes()));
            let _ = guests::guest(1, &words(&format!("qemu-system-x86_64 {text}")));
            let _ = guests::guest(1, &words(&format!("cloud-hypervisor --cpus {text} --memory {text}")));
            let (done, known) = (disks::done(text), disks::done(DISKSTATS));
            for now in &done {
                let about = disks::About { size: Some(text.clone()), errors: Some(text.clone()), rotational: None };
                let _ = disks::disk(known.first(), now, &about, millis);
                let _ = disks::disk(Some(now), &known[0], &about, millis);
            }
            let about = raids::About { degraded: Some(text.clone()), errors: vec![text.clone()], ..Default::default() };
            for array in raids::arrays(text) {
                raids::with(array, &about);
            }
            let link = links::About { speed: Some(text.clone()), rx_bytes: Some(text.clone()), ..Default::default() };
            links::interface(Some(&link), &link, &[], millis);
        }
    }
}
