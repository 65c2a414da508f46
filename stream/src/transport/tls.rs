//! TLS 1.3, both ways: no connection without a certificate of the grid's CA on either side.

use std::sync::Arc;

use image::{Error, Kind, Result};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite};

/// The name of the protocol in the TLS handshake.
pub const ALPN: &[u8] = b"forebay/1";

/// The papers of one member of the grid, PEM.
#[derive(Clone, Copy)]
pub struct Papers<'a> {
    /// The CA's certificate (or several, while one replaces another).
    pub ca: &'a [u8],
    /// The member's certificate, followed by intermediate ones if there are any.
    pub certificate: &'a [u8],
    /// The key of the member's certificate.
    pub key: &'a [u8],
}

/// The client's TLS: shows its certificate, trusts the grid's CA alone.
pub fn client_config(papers: Papers<'_>) -> Result<Arc<ClientConfig>> {
    let (chain, key) = own(papers)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| bad("TLS 1.3", e))?
        .with_root_certificates(roots(papers.ca)?)
        .with_client_auth_cert(chain, key)
        .map_err(|e| bad("certificate and key", e))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_early_data = false;
    // A resumed session would carry an old check of certificates into a new connection.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The server's TLS: shows its certificate, lets nobody in without one of the grid's CA.
pub fn server_config(papers: Papers<'_>) -> Result<Arc<ServerConfig>> {
    let (chain, key) = own(papers)?;
    let pair = CertifiedKey::from_der(chain, key, &provider());
    let pair = pair.map_err(|e| bad("certificate and key", e))?;
    server_config_showing(papers.ca, Arc::new(SingleCertAndKey::from(pair)))
}

/// The same, with what is shown chosen for each connection: papers may be renewed while it serves. `ca` is PEM.
pub fn server_config_showing(
    ca: &[u8],
    shown: Arc<dyn ResolvesServerCert>,
) -> Result<Arc<ServerConfig>> {
    let roots = Arc::new(roots(ca)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|e| bad("CA certificate", e))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| bad("TLS 1.3", e))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn bad(what: &str, e: impl std::fmt::Display) -> Error {
    Error::new(Kind::Invalid, format!("{what}: {e}"))
}

fn roots(pem: &[u8]) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("CA certificate", pem)? {
        roots.add(certificate).map_err(|e| bad("CA certificate", e))?;
    }
    Ok(roots)
}

fn own(papers: Papers<'_>) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = certificates("certificate", papers.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(papers.key).map_err(|e| bad("private key", e))?;
    Ok((chain, key))
}

fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let all: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all.map_err(|e| bad(what, e))? {
        none if none.is_empty() => Err(bad(what, "no certificate in the PEM text")),
        some => Ok(some),
    }
}

/// The TLS 1.3 suites, the fastest on this CPU first. (QUIC always needs AES-128-GCM for its first
/// packets, so all three are there on every CPU.)
fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let mut suites: Vec<SupportedCipherSuite> =
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    if !cpu_has_aes() {
        suites.rotate_right(1);
    }
    Arc::new(CryptoProvider { cipher_suites: suites, ..aws_lc_rs::default_provider() })
}

fn cpu_has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}
