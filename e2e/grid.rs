//! The whole of it: pools that are claimed from and filled again, a guest whose volume is had once, is erased and leaves
//! nothing behind, and what becomes of it all when nodes and the leader are lost.
//!
//! Needs what [`crate::real`] needs, etcd, openssl and mkfs.xfs; runs with `FOREBAY_E2E=1`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use crate::graduation::Machine as Writer;
use crate::ground::{Ground, LEASE};
use crate::guests::Machine;
use crate::harness::{Ended, path, until};
use crate::real::{guest, wanted};

/// What a guest leaves on its disk, and nobody else has.
const SECRET: &str = "what-a-guest-wrote-5c1e07";
/// How the guest says that it has.
const WRITTEN: &str = "  /root/secret";
/// Ready volumes of each of the small pools.
const TARGET: u64 = 3;

fn request(n: u8) -> String {
    format!("{n:032x}")
}

fn create_pools(ground: &Ground) {
    let target = TARGET.to_string();
    let small = ["--size", "256MiB", "--target", &target, "--low", "2"];
    ground.pool(&[&["create", "blank"], &small[..]].concat());
    ground.pool(&[&["create", "data", "--format", "ext4"], &small[..]].concat());
    ground.pool(&["create", "os", "--image", "debian:12", "--target", "1", "--low", "1"]);
    ["blank", "data"].iter().for_each(|pool| ground.until_ready(pool, TARGET));
    ground.until_ready("os", 1);
}

/// Two of each are claimed: that crosses the threshold, and more are built.
fn claims_are_made_good(ground: &Ground) {
    for pool in ["blank", "data"] {
        for n in 1..=2 {
            let claimed = ground.pool(&["claim", pool, &format!("{pool}{n}")]);
            assert_eq!(claimed["served"], "ready", "{claimed}");
        }
        ground.until_ready(pool, TARGET);
    }
}

/// A guest starts from a pool's volume, nobody else does meanwhile, and nothing of it is left in the end.
fn a_guest_leaves_nothing_behind(ground: &Ground, guest: &Path, dir: &Path) {
    let claimed = ground.pool(&["claim", "os", "vm"]);
    assert_eq!(claimed["served"], "ready");
    let at = ground.node(&claimed["node"]);
    let (node, other) = (&ground.nodes[at], (at + 1) % 3);
    ground.copy("vm", [at, other]);
    let info = node.volume(&["attach", "vm"]);
    let disk = format!(
        "driver=nbd,node-name=d,export=vm,server.type=unix,server.path={}",
        info["attached"]["path"].as_str().unwrap()
    );
    let work = format!(
        "yes {SECRET} | head -c 262144 >/root/secret; sync; sha256sum /root/secret >/dev/ttyS0"
    );
    let disk = ["-blockdev", &disk, "-device", "virtio-blk-pci,drive=d"];
    step("its volume is attached");
    let mut machine = Machine::working(guest, dir, "vm", &disk, &work);
    let refused = ground.nodes[other].run(&["volume", "attach", "vm"]);
    refused.fails(73, &["vm", &format!("node {} has the lease", node.host.name)]);
    node.run(&["volume", "attach", "vm", "--export", "vhost-user"]).fails(73, &["attached"]);
    machine.says(WRITTEN);
    step("a guest has started and written");
    drop(machine);
    assert!(ground.disks[at].has(SECRET), "what the guest wrote is found");
    step("what it wrote is found");
    node.run(&["volume", "release", "vm"]).fails(73, &["detach it first"]);
    node.volume(&["detach", "vm"]);
    let record = node.volume(&["release", "vm", "--verify", "all"]);
    assert_eq!((&record["outcome"]["is"], &record["name"]), (&"erased".into(), &"vm".into()));
    step("its volume is erased");
    let records = node.volume(&["erasures", "--records"]);
    assert!(records.as_array().unwrap().contains(&record), "{records}");
    ground.disks.iter().for_each(|disk| assert!(!disk.has(SECRET), "something of it is left"));
    // The copy of it was never written to.
    ground.nodes[other].volume(&["rm", "vm"]);
}

/// A volume that a program writes past the daemon.
fn written_past_the_daemon(ground: &Ground, at: usize, dir: &Path) -> Writer {
    let node = &ground.nodes[at];
    ground.pool(&["claim", "blank", "shared", "--node", node.host.name, "--only"]);
    let [qmp, own, said]: [PathBuf; 3] = ["qmp", "own", "said"].map(|name| dir.join(name));
    let info = node.volume(&["attach", "shared", "--qmp", path(&qmp)]);
    let nbd = PathBuf::from(info["attached"]["path"].as_str().unwrap());
    let writer = Writer::start(&nbd, "shared", [&qmp, &own], &said);
    until("it is moved to the plain file", || {
        node.volume(&["show", "shared"])["attached"]["moved"] == true
    });
    writer
}

/// Kills the leader, and says how long it takes until another answers, and until it has had a node do something.
#[expect(clippy::disallowed_methods, reason = "the times are told")]
fn another_leads(ground: &mut Ground, stays: usize) {
    let leader = ground.leader();
    ground.ups[leader].kill();
    let since = Instant::now();
    until("the fleet is answered for", || ground.run(&["lease", "list"]).code == 0);
    let api = since.elapsed();
    let near = ["--node", ground.nodes[stays].host.name, "--only"];
    let claim = ["pool", "claim", "data", "soon", "--request", &request(1)];
    until("a claim is served", || ground.run(&[&claim[..], &near].concat()).code == 0);
    let controllers = since.elapsed();
    println!(
        "the leader is killed: API away {api:.1?}, a node did what the next one told it after {controllers:.1?}"
    );
    assert!(api.as_secs() < 20 && controllers.as_secs() < 40);
    ground.ups[leader].start();
}

/// Claims a volume of a node that may not answer: whoever does not wait asks again by the same request.
fn claim(ground: &Ground, at: usize, n: u8) -> Ended {
    let (name, request) = (format!("late{n}"), request(n));
    let near = ["--node", ground.nodes[at].host.name, "--only"];
    let asked = ["pool", "claim", "data", &name, "--request", &request, "--wait", "1s"];
    ground.run(&[&asked[..], &near].concat())
}

fn held(ground: &Ground) -> Option<(Value, Value)> {
    let listed = ground.run(&["lease", "list"]).json();
    let mut all = listed["leases"].as_array().unwrap().iter();
    all.find(|l| l["called"] == "shared").map(|l| (l["holder"].clone(), l["epoch"].clone()))
}

/// One node is cut off and one is lost for good, and with them the leader.
#[expect(clippy::disallowed_methods, reason = "the times are told")]
fn what_is_lost_is_made_good(ground: &mut Ground, dir: &Path) {
    let [stays, cut, lost] = [0, 1, 2];
    let names = [stays, cut, lost].map(|n| ground.nodes[n].host.name);
    let mut writer = written_past_the_daemon(ground, cut, dir);
    ground.copy("shared", [cut, stays]);
    let attach = |ground: &Ground| ground.nodes[stays].run(&["volume", "attach", "shared"]);
    let holder = format!("node {} has the lease", names[1]);
    attach(ground).fails(73, &[&holder]);
    let before = held(ground).expect("somebody has it");

    for name in [names[1], names[2]] {
        ground.network.cut(name, true);
    }
    let since = Instant::now();
    ground.nodes[lost].kill();
    for (at, n) in [(cut, 2), (lost, 3)] {
        claim(ground, at, n).fails(75, &[]);
        let told = ground.run(&["operations", &request(n)]).json()["step"].clone();
        assert!(told.as_str().unwrap().starts_with(&format!("node {} ", names[at])), "{told}");
    }
    another_leads(ground, stays);
    // Its time is not over for those who ask before its writer was stopped.
    let mut refused = 0;
    until("another has the lease", || {
        let attached = attach(ground).code == 0;
        let over = writer.0.try_wait().unwrap().is_some();
        refused += usize::from(!attached);
        assert!(over || !attached, "two write");
        attached
    });
    assert!(refused > 0);
    println!("refused {refused} times; another has it after {:.0?}, of {LEASE} s", since.elapsed());
    let after = held(ground).expect("somebody has it");
    assert_eq!(after.0, names[0]);
    assert!(after.1.as_u64() > before.1.as_u64(), "{before:?} {after:?}");

    ["blank", "data"].iter().for_each(|pool| ground.until_ready(pool, TARGET));
    ground.until_ready("os", 1);
    println!("pools are whole {:.0?} after two of three nodes were lost", since.elapsed());

    // Who waits for a node that is gone for good is told to ask anew, and has one elsewhere then.
    ground.run(&["node", "forget", names[2]]).json();
    let never = claim(ground, lost, 3);
    assert!(never.code != 0 && never.err.contains("forgotten"), "{never:?}");
    let anew = ground.pool(&["claim", "data", "late4", "--node", names[2]]);
    assert_eq!(anew["node"], names[0]);

    // Who was cut off is back: it counts once, serves who waited for it, and has lost what it had.
    ground.network.cut(names[1], false);
    until("a claim is served by the node that was told", || claim(ground, cut, 2).code == 0);
    assert_eq!(claim(ground, cut, 2).json()["node"], names[1]);
    let node = &ground.nodes[cut];
    until("it has let go of its volume", || {
        node.volume(&["show", "shared"])["attached"] == Value::Null
    });
    let holder = format!("node {} has the lease", names[0]);
    node.run(&["volume", "attach", "shared"]).fails(73, &[&holder]);
    for pool in ["blank", "data"] {
        until("each ready volume counts once", || {
            let has = |n: usize| {
                let ready = ground.nodes[n].run(&["pool", "ready"]).json();
                ready
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter(|v| v["pool"] == pool && v["state"] == "ready")
                    .count() as u64
            };
            let info = ground.pool(&["show", pool]);
            let all = has(stays) + has(cut);
            info["ready"] == all && info["building"] == 0 && (2..=2 * TARGET).contains(&all)
        });
    }
    let status = ground.run(&["node", "status"]).json();
    let nodes = status["nodes"].as_array().unwrap();
    assert!(nodes.len() == 2 && nodes.iter().all(|n| n["away"] == false), "{status}");
}

#[test]
fn real_a_whole_grid_keeps_its_word_whatever_is_lost() {
    if !wanted() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let guest = guest(temp.path());
    step("begun");
    let mut ground = Ground::start(temp.path());
    step("the grid stands");
    ground.run(&["import", path(&guest), "debian:12"]).json();
    step("the image is there");
    create_pools(&ground);
    step("the pools are filled");
    claims_are_made_good(&ground);
    step("the pools are filled again");
    a_guest_leaves_nothing_behind(&ground, &guest, temp.path());
    step("a guest has come and gone");
    what_is_lost_is_made_good(&mut ground, temp.path());
    step("what was lost is made good");
    ground.run(&["placement", "check"]).json();
    ground.run(&["audit", "--verify"]).json();
    ground.nodes[0].volume(&["detach", "shared"]);
    ground.stop();
    for disk in &ground.disks {
        disk.mount.come_back();
        assert!(!disk.has(SECRET), "something of the guest is left");
    }
}

/// Says how far it is.
#[expect(clippy::disallowed_methods, reason = "the time is told")]
fn step(what: &str) {
    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    println!("{:.0?}: {what}", BEGUN.get_or_init(Instant::now).elapsed());
}
