//! Keys in real members of etcd, for tests.

use std::sync::Arc;

use super::{Cluster, ClusterPlace, Papers};
use crate::clock::Uptime;
use crate::state::keys::Keys;

#[path = "../../../tests/common/etcd.rs"]
#[allow(dead_code, missing_docs)]
mod etcd;

pub(super) use etcd::{Etcd, papers, tls_args, until, wanted};

impl Etcd {
    /// Keys in all of it; waits until it answers.
    pub(super) async fn keys(&self) -> Arc<dyn Keys> {
        let keys = keys_at(&self.addresses(0), None);
        until("etcd answers", async || keys.get("x".into()).await.is_ok()).await;
        keys
    }
}

/// Keys at these members, of a grid called `test`.
pub(super) fn keys_at(addresses: &[String], papers: Option<Papers>) -> Arc<dyn Keys> {
    let place = format!("etcd://{}", addresses.join(","));
    let place = ClusterPlace::parse(&place, papers).unwrap();
    Arc::new(Cluster::new(&place, Some("test"), Uptime::system()).unwrap())
}
