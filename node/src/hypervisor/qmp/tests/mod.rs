//! Pivots over recorded answers, a monitor that is none, and a real QEMU.

mod fake;
mod planned;
mod real;

use super::*;

/// The pivot that the answers were recorded in.
fn recorded() -> Pivot {
    Pivot {
        export: NbdExport { socket: "/run/forebay/nbd.sock".to_owned(), name: "vol1".to_owned() },
        raw: "/volumes/d.raw".to_owned(),
        device: false,
        name: "vol".to_owned(),
        direct: None,
        locking: Locking::Auto,
        bitmap: None,
    }
}
