//! Who the hosts are: certificates, tickets, addresses.
//!
//! Keys are random, but nothing that a run decides depends on them: Ed25519 signatures and the
//! certificates made here always have the same length.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};

use api::ticket::holder_of;
use api::{Grant, Ticket};
use image::signing::{SigningKey, VerifyingKey};
use image::{Digest, Error, Kind, Result};
use quinn::rustls::{ClientConfig, ServerConfig};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ED25519, SerialNumber,
};
use stream::transport::{Papers, client_config, server_config};

/// When every run begins, in seconds since 1970.
pub const START: u64 = 1_800_000_000;
/// Hosts of each kind that have papers.
const HOSTS: usize = 8;

/// A member of the grid.
pub struct Member {
    /// The name in its certificate.
    pub name: String,
    /// What it shows as a client.
    pub client: Arc<ClientConfig>,
    /// What it shows as a server.
    pub server: Arc<ServerConfig>,
    holder: Digest,
}

/// The grid's papers, the same for every run of a process.
pub struct Authority {
    key: SigningKey,
    caches: Vec<Member>,
    nodes: Vec<Member>,
}

/// The papers.
///
/// # Panics
///
/// If the machine has no randomness to make keys of.
pub fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| Authority::new().expect("keys and certificates"))
}

/// The address of a cache.
pub fn cache_ip(number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 1, number as u8 + 1))
}

/// The address of a node.
pub fn node_ip(number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 2, number as u8 + 1))
}

/// The address of somebody who is no member.
pub fn stranger_ip() -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 6, 6, 6))
}

fn failed(e: rcgen::Error) -> Error {
    Error::caused(Kind::Io, format!("making a certificate: {e}"), e)
}

#[expect(clippy::disallowed_methods, reason = "keys may differ from run to run: see above")]
fn new_key() -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ED25519).map_err(failed)
}

impl Authority {
    #[expect(clippy::disallowed_methods, reason = "keys may differ from run to run: see above")]
    fn new() -> Result<Self> {
        let key = new_key()?;
        let mut params = CertificateParams::new(Vec::<String>::new()).map_err(failed)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.serial_number = Some(SerialNumber::from(1));
        params.distinguished_name.push(DnType::CommonName, "grid");
        let ca = params.self_signed(&key).map_err(failed)?.pem();
        let issuer = Issuer::new(params, key);
        let members = |kind: &str| -> Result<Vec<Member>> {
            (0..HOSTS).map(|n| Member::new(&format!("{kind}-{n}"), &ca, &issuer)).collect()
        };
        let (caches, nodes) = (members("cache")?, members("node")?);
        Ok(Self { key: SigningKey::generate()?, caches, nodes })
    }

    /// A cache's papers.
    pub fn cache(&self, number: usize) -> &Member {
        &self.caches[number]
    }

    /// A node's papers.
    pub fn node(&self, number: usize) -> &Member {
        &self.nodes[number]
    }

    /// Verifies tickets.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.key.verifying_key()
    }

    /// A member's right to read an image.
    pub fn ticket(&self, member: &Member, image: Digest) -> String {
        Ticket::new(Grant::Pull { image }, member.holder, START).sign(&self.key)
    }
}

impl Member {
    fn new(name: &str, ca: &str, issuer: &Issuer<'_, KeyPair>) -> Result<Self> {
        let key = new_key()?;
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(failed)?;
        params.serial_number = Some(SerialNumber::from(2));
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, issuer).map_err(failed)?;
        let (pem, key) = (certificate.pem(), key.serialize_pem());
        let papers = Papers { ca: ca.as_bytes(), certificate: pem.as_bytes(), key: key.as_bytes() };
        Ok(Self {
            name: name.to_owned(),
            client: client_config(papers)?,
            server: server_config(papers)?,
            holder: holder_of(certificate.der()),
        })
    }
}
