//! TLS 1.3 among members: one place where certificates become rustls configurations.

use std::sync::Arc;
use std::time::Duration;

use api::ticket::holder_of;
use image::{Digest, Error, Kind, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DigitallySignedStruct, PeerMisbehaved, RootCertStore, ServerConfig,
    SignatureScheme,
};

use crate::clock::Clock;
use crate::papers::Papers;
use crate::shown::Shown;

/// Whether who connects must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Without a good one there is no connection.
    Required,
    /// One that is shown must be good; what may be done without one is for the server to say.
    Optional,
}

/// Configuration of a server of the grid. TLS 1.3 alone, no resumption: every connection shows its
/// certificate and has it checked.
pub fn server(
    shown: Arc<Shown>,
    clients: Clients,
    alpn: &[&[u8]],
    clock: &Clock,
) -> Result<ServerConfig> {
    let builder =
        WebPkiClientVerifier::builder_with_provider(roots(shown.papers().ca()?)?, provider());
    let verifier = match clients {
        Clients::Required => builder.build(),
        Clients::Optional => builder.allow_unauthenticated().build(),
    };
    let verifier = verifier.map_err(|e| invalid("CA certificate", e))?;
    let config = ServerConfig::builder_with_details(provider(), Arc::new(clock.clone()));
    let mut config = config
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| invalid("TLS 1.3", e))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(shown);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(config)
}

/// Configuration of a member that connects to a server of its grid.
pub fn client(papers: &Papers, alpn: &[&[u8]], clock: &Clock) -> Result<ClientConfig> {
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| invalid("TLS 1.3", e))?
        .with_root_certificates(roots(papers.ca()?)?)
        .with_client_auth_cert(papers.chain()?, papers.key()?)
        .map_err(|e| invalid("client certificate", e))?;
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(config)
}

/// Configuration of a machine that has nothing but the digest of the CA's certificate.
pub(crate) fn joiner(ca: Digest, alpn: &[&[u8]], clock: &Clock) -> Result<ClientConfig> {
    let verifier = Arc::new(PinnedCa { ca, provider: provider() });
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| invalid("TLS 1.3", e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(config)
}

/// Whether a certificate was issued by this CA, is good at `now` (seconds since 1970), and lets its
/// holder connect.
pub(crate) fn check_issued(
    ca: CertificateDer<'static>,
    certificate: &CertificateDer<'_>,
    now: u64,
) -> Result<()> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider()).build();
    let verifier = verifier.map_err(|e| invalid("CA certificate", e))?;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    let checked = verifier.verify_client_cert(certificate, &[], now);
    checked.map(drop).map_err(|e| Error::new(Kind::Denied, format!("certificate: {e}")))
}

/// Fills `bytes` from the operating system's randomness.
#[expect(clippy::disallowed_methods, reason = "the one place where placement draws chance")]
pub(crate) fn random(bytes: &mut [u8]) -> Result<()> {
    let filled = aws_lc_rs::default_provider().secure_random.fill(bytes);
    filled.map_err(|_| Error::new(Kind::Io, "the operating system gave no randomness"))
}

/// The one set of algorithms.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn roots(ca: CertificateDer<'static>) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(ca).map_err(|e| invalid("CA certificate", e))?;
    Ok(Arc::new(roots))
}

fn invalid(what: &str, e: impl std::fmt::Display) -> Error {
    Error::new(Kind::Invalid, format!("{what}: {e}"))
}

/// Trusts the one CA that has this digest, which the server must present with its certificate; and
/// under it checks everything that is always checked: chain, time, usage, name.
#[derive(Debug)]
struct PinnedCa {
    ca: Digest,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let other = || rustls::Error::General("the server is not of the token's grid".into());
        let ca = intermediates.iter().find(|c| holder_of(c) == self.ca).ok_or_else(other)?;
        let roots = roots(ca.clone().into_owned());
        let roots = roots.map_err(|e| rustls::Error::General(e.to_string()))?;
        WebPkiServerVerifier::builder_with_provider(roots, self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    /// Never asked: the configuration speaks TLS 1.3 alone.
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
