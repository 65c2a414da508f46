//! Members that each have a network of their own, and what parts them: nothing comes through to one of them, it and the
//! others do not hear each other, or one side alone is not heard. Needs root and iproute2.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use forebay_sim::chance::Chance;
use tokio::time::sleep;

use crate::etcd::{Etcd, Place, leads, papers, tls_args, until};
use crate::{Over, TROUBLES};

/// What the test finds its network by, inside.
const INSIDE: &str = "FOREBAY_TEST_NETWORK";
const MEMBERS: usize = 3;
const PORTS: [u16; 2] = [2379, 2380];
/// Where a member shows what it measures.
const MEASURED: u16 = 2381;
/// Who has this address is not there.
const NOBODY: &str = "02:00:00:00:00:01";

fn ip(args: &str) -> bool {
    let args: Vec<&str> = args.split(' ').collect();
    Command::new("ip").args(&args).status().expect("iproute2 is there").success()
}

fn must(args: &str) {
    assert!(ip(args), "ip {args}");
}

fn host(member: usize) -> String {
    format!("10.78.0.{}", 10 + member)
}

/// A network for each member, and one for who asks them, joined by a bridge.
pub struct Network {
    name: String,
}

impl Network {
    /// The one in which this process runs, if it does.
    pub fn inside() -> Option<Self> {
        Some(Self { name: std::env::var(INSIDE).ok()? })
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.name)
    }

    fn of(&self, member: usize) -> String {
        format!("{}-{member}", self.name)
    }

    /// Makes one, runs a test of this program in it, and removes it.
    pub fn runs(test: &str) {
        let network = Outer(Self { name: format!("fbsim{}", std::process::id()) });
        network.0.up();
        let program = std::env::current_exe().expect("it runs");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &network.0.hub()]).arg(program);
        command.args([test, "--exact", "--nocapture"]).env(INSIDE, &network.0.name);
        assert!(command.status().expect("iproute2 is there").success(), "see above");
    }

    fn up(&self) {
        let hub = self.hub();
        must(&format!("netns add {hub}"));
        must(&format!("-n {hub} link set lo up"));
        must(&format!("-n {hub} link add name hub type bridge"));
        must(&format!("-n {hub} address add 10.78.0.1/24 dev hub"));
        must(&format!("-n {hub} link set hub up"));
        for member in 0..MEMBERS {
            let of = self.of(member);
            must(&format!("netns add {of}"));
            must(&format!("-n {of} link set lo up"));
            must(&format!("-n {hub} link add name arm{member} type veth peer name arm netns {of}"));
            must(&format!("-n {hub} link set arm{member} master hub up"));
            must(&format!("-n {of} address add {}/24 dev arm", host(member)));
            must(&format!("-n {of} link set arm up"));
        }
    }

    /// Its members. What crosses a network is encrypted; what they measure is no secret.
    pub async fn etcd(&self) -> Etcd {
        let place =
            |member| Place { namespace: Some(self.of(member)), host: host(member), ports: PORTS };
        let hosts: Vec<String> = (0..MEMBERS).map(host).collect();
        let args = |dir: &Path| {
            let measured = format!("--listen-metrics-urls=http://0.0.0.0:{MEASURED}");
            [tls_args(&papers(dir, "etcd", &hosts)), vec![measured]].concat()
        };
        Etcd::start_at((0..MEMBERS).map(place).collect(), args).await
    }

    /// One member at a time is parted from the others, half of the time who leads them.
    pub async fn suffer(&self, over: &Over) {
        let mut chance = Chance::new(11, "network");
        for part in [Part::Away, Part::Alone, Part::Deaf, Part::Mute].iter().cycle().take(TROUBLES)
        {
            let mut victim = chance.within(0..MEMBERS as u64) as usize;
            if chance.one_in(2) {
                until("somebody leads", async || {
                    let leader = (0..MEMBERS).find(|n| leads(&format!("{}:{MEASURED}", host(*n))));
                    leader.inspect(|leader| victim = *leader).is_some()
                })
                .await;
            }
            let lasts = Duration::from_millis(chance.within(500..4000));
            println!("{part:?}: {victim} for {lasts:?}");
            part.begin(self, victim);
            sleep(lasts).await;
            part.end(self, victim);
            sleep(Duration::from_millis(chance.within(500..1500))).await;
        }
        over.set();
    }

    /// What one member sends to another is lost.
    fn lose(&self, from: usize, to: usize) {
        let lost = format!("neigh replace {} lladdr {NOBODY} nud permanent dev arm", host(to));
        must(&format!("-n {} {lost}", self.of(from)));
    }

    fn find(&self, from: usize, to: usize) {
        must(&format!("-n {} neigh delete {} dev arm", self.of(from), host(to)));
    }
}

/// What parts a member from the others.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// Nobody reaches it, and it reaches nobody.
    Away,
    /// It and the other members; clients reach all.
    Alone,
    /// What the others send to it is lost.
    Deaf,
    /// What it sends to the others is lost.
    Mute,
}

impl Part {
    /// From whom to whom nothing comes, if some of it does.
    fn lost(self, victim: usize) -> Vec<(usize, usize)> {
        let others = (0..MEMBERS).filter(|other| *other != victim);
        let ways = others.flat_map(|other| [(other, victim), (victim, other)]);
        ways.filter(|(from, _)| match self {
            Self::Away => false,
            Self::Alone => true,
            Self::Deaf => *from != victim,
            Self::Mute => *from == victim,
        })
        .collect()
    }

    fn begin(self, network: &Network, victim: usize) {
        if let Self::Away = self {
            must(&format!("-n {} link set arm{victim} down", network.hub()));
        }
        self.lost(victim).into_iter().for_each(|(from, to)| network.lose(from, to));
    }

    fn end(self, network: &Network, victim: usize) {
        if let Self::Away = self {
            must(&format!("-n {} link set arm{victim} up", network.hub()));
        }
        self.lost(victim).into_iter().for_each(|(from, to)| network.find(from, to));
    }
}

/// Removed when dropped.
struct Outer(Network);

impl Drop for Outer {
    fn drop(&mut self) {
        for member in 0..MEMBERS {
            ip(&format!("netns delete {}", self.0.of(member)));
        }
        ip(&format!("netns delete {}", self.0.hub()));
    }
}
