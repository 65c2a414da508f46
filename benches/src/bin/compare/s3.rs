//! A store in a real S3 server, whose bytes are counted where it sends them.

use std::path::Path;

use forebay_benches::s3;

use crate::grid::Servers;
use crate::process::{Answering, beside, inside};

/// The server.
pub struct S3 {
    server: Answering,
    address: String,
}

impl S3 {
    /// Starts one on a directory, which is made.
    pub fn start(dir: &Path, namespace: Option<&str>, ip: &str) -> Self {
        let mut command = inside(namespace, beside("s3-server"));
        let (server, address) = Answering::start(command.arg(dir).arg(ip));
        Self { server, address }
    }

    /// The environment that names it.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        s3::environment(&self.address)
    }

    /// Servers of a grid whose store is here.
    pub fn servers(&self) -> Servers {
        let set = vec![format!("store.at={}", s3::url())];
        Servers { set, environment: self.environment(), ..Servers::default() }
    }

    /// Bytes that it has sent since it began, headers included.
    pub fn sent(&mut self) -> u64 {
        self.server.ask()["sent"].as_u64().unwrap()
    }

    /// Processor time that it has taken.
    pub fn cpu(&mut self) -> f64 {
        self.server.ask()["cpu_seconds"].as_f64().unwrap()
    }
}
