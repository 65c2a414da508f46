//! Two network namespaces joined by a cable, shaped or not.

use std::path::PathBuf;
use std::process::Command;

use crate::process::run;

/// The server's namespace and address; the client's namespace.
pub const SERVER: &str = "fbcmp-a";
pub const SERVER_IP: &str = "10.77.0.1";
pub const CLIENT: &str = "fbcmp-b";

/// The pair, taken down when dropped.
pub struct Pair;

fn netns(args: &[&str]) {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../e2e/guest/netns");
    run(Command::new(script).args(args));
}

impl Pair {
    /// With a rate (`1gbit`), or as fast as it goes.
    pub fn up(rate: Option<&str>) -> Self {
        match rate {
            Some(rate) => netns(&["up", "fbcmp", "--rate", rate]),
            // TCP sends 64 KiB segments over such a cable whatever its MTU; UDP gets jumbo frames, as
            // a data centre has them.
            None => netns(&["up", "fbcmp", "--mtu", "9000"]),
        }
        Pair
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        netns(&["down", "fbcmp"]);
    }
}
