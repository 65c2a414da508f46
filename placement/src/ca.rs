//! The grid's authority: its CA, made on first start, and the key that signs tickets and records.
//!
//! ```text
//! <dir>/ca.pem       the CA's certificate: the root of all trust in the grid (10 years)
//! <dir>/ca.key       its key, PKCS #8 PEM, ECDSA P-256
//! <dir>/signing.key  64 bytes, Ed25519: signs tickets and image records
//! <dir>/grid         the grid's id, 32 hex digits; also in ca.pem
//! ```
//!
//! The directory comes into being whole (see `files`), is never changed, and is refused when
//! anybody but its owner can read it. Whoever has it is the grid: back it up.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use api::grid::Role;
use image::error::At;
use image::signing::{SigningKey, VerifyingKey};
use image::{Digest, Error, Kind, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::GeneralName;

use crate::files::{self, Probe};
use crate::member::{self, Member, PLACEMENT, check_name, dns_name, grid_uri, member_uri};
use crate::papers::{Papers, expiry, one};
use crate::tls;

/// Seconds that a member's certificate is good for, at most.
pub const CERTIFICATE_SECS: u64 = 365 * DAY;
/// Seconds that the CA's certificate is good for.
pub const CA_SECS: u64 = 3652 * DAY;
/// Seconds by which certificates begin earlier: other machines' clocks may be behind.
pub(crate) const EARLY_SECS: u64 = 3600;
/// Longest certificate signing request, in bytes.
const MAX_REQUEST: usize = 16 << 10;
const DAY: u64 = 24 * 3600;

const CA: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const SIGNING_KEY: &str = "signing.key";
const GRID: &str = "grid";

/// The one who says who is a member, and signs tickets and records.
pub struct Authority {
    grid: String,
    ca_pem: String,
    ca: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    signing: SigningKey,
    expires: u64,
    /// Seconds that certificates of members are good for.
    validity: u64,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.grid)
    }
}

impl Authority {
    /// Opens the authority in a directory; makes it if there is none. `now` in seconds since 1970.
    pub fn open(dir: &Path, now: u64) -> Result<Self> {
        Self::open_with(dir, now, &files::no_probe)
    }

    pub(crate) fn open_with(dir: &Path, now: u64, probe: Probe) -> Result<Self> {
        if !files::occupied(dir)? {
            create(dir, now, probe)?;
        }
        let authority = load(dir).at(|| "the grid's CA")?;
        if now >= authority.expires {
            let what = format!("{}: the CA's certificate has expired", dir.display());
            return Err(Error::new(Kind::Denied, what));
        }
        Ok(authority)
    }

    /// Issues certificates that are good for so many seconds from now on, [`CERTIFICATE_SECS`] at most.
    #[must_use]
    pub fn with_validity(self, secs: u64) -> Self {
        Self { validity: secs.min(CERTIFICATE_SECS), ..self }
    }

    /// Seconds that certificates of members are good for.
    pub fn validity(&self) -> u64 {
        self.validity
    }

    /// The id of the grid whose authority is in a directory, if there is one.
    pub fn grid_in(dir: &Path) -> Result<Option<String>> {
        if !files::occupied(dir)? {
            return Ok(None);
        }
        Ok(Some(load(dir).at(|| "the grid's CA")?.grid))
    }

    /// The grid's id.
    pub fn grid(&self) -> &str {
        &self.grid
    }

    /// The CA's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Digest of the CA's certificate: what a join token names.
    pub fn ca_digest(&self) -> Digest {
        api::ticket::holder_of(&self.ca)
    }

    /// The key that signs tickets and records.
    pub fn signing_key(&self) -> &SigningKey {
        &self.signing
    }

    /// The key that verifies tickets and records.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.signing.verifying_key()
    }

    /// Papers with a fresh key for a member.
    pub fn issue(&self, role: Role, name: &str, now: u64) -> Result<Papers> {
        self.issue_with(role, name, member_names(&self.grid, role, name)?, now)
    }

    /// The papers of placement itself, kept in `dir`: those of a server, good also for the name
    /// `placement.forebay.internal`, `localhost` and `ips`. Issued anew when there are none, when less
    /// than a third of their life is left, or when they say something else.
    pub fn server_papers(
        &self,
        dir: &Path,
        name: &str,
        ips: &[IpAddr],
        now: u64,
    ) -> Result<Papers> {
        self.server_papers_with(dir, name, ips, now, &files::no_probe)
    }

    pub(crate) fn server_papers_with(
        &self,
        dir: &Path,
        name: &str,
        ips: &[IpAddr],
        now: u64,
        probe: Probe,
    ) -> Result<Papers> {
        let mut names = member_names(&self.grid, Role::Server, name)?;
        names.extend([dns(PLACEMENT)?, dns("localhost")?]);
        names.extend(ips.iter().map(|ip| SanType::IpAddress(*ip)));
        self.keep(dir, Role::Server, name, names, now, probe)
    }

    /// The papers of the first admin, kept in `dir` likewise.
    pub fn admin_papers(&self, dir: &Path, now: u64) -> Result<Papers> {
        self.admin_papers_with(dir, now, &files::no_probe)
    }

    pub(crate) fn admin_papers_with(&self, dir: &Path, now: u64, probe: Probe) -> Result<Papers> {
        let names = member_names(&self.grid, Role::Admin, FIRST_ADMIN)?;
        self.keep(dir, Role::Admin, FIRST_ADMIN, names, now, probe)
    }

    /// Signs a request (PEM) for a certificate. Only its public key is taken from it, once it has
    /// proved to be the requester's: role and name are for the caller to say.
    pub fn sign_request(&self, request: &str, role: Role, name: &str, now: u64) -> Result<String> {
        let bad = |why: &dyn std::fmt::Display| {
            Error::new(Kind::Invalid, format!("certificate signing request: {why}"))
        };
        if request.len() > MAX_REQUEST {
            return Err(bad(&format!("longer than {MAX_REQUEST} bytes")));
        }
        // Checks the request's own signature.
        let request = CertificateSigningRequestParams::from_pem(request).map_err(|e| bad(&e))?;
        let names = member_names(&self.grid, role, name)?;
        self.sign(&request.public_key, role, names, now).map(|(pem, _)| pem)
    }

    fn issue_with(&self, role: Role, name: &str, names: Vec<SanType>, now: u64) -> Result<Papers> {
        let key = new_key().at(|| format!("{} {name}", role.name()))?;
        let (cert_pem, _) = self.sign(&key, role, names, now)?;
        Ok(Papers { ca_pem: self.ca_pem.clone(), cert_pem, key_pem: key.serialize_pem() })
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        role: Role,
        names: Vec<SanType>,
        now: u64,
    ) -> Result<(String, CertificateDer<'static>)> {
        let mut params = params(&format!("forebay {}", role.name()), names);
        params.not_before = date(now.saturating_sub(EARLY_SECS))?;
        // A certificate that outlives its CA would fail later, and less clearly.
        params.not_after = date((now + self.validity).min(self.expires))?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match role {
            // A server also connects: to placement, and to other servers.
            Role::Server => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            Role::Admin | Role::Node => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        let signed = params.signed_by(key, &self.issuer);
        let signed = signed.map_err(|e| Error::caused(Kind::Io, "signing a certificate", e))?;
        Ok((signed.pem(), signed.der().clone()))
    }

    fn keep(
        &self,
        dir: &Path,
        role: Role,
        name: &str,
        names: Vec<SanType>,
        now: u64,
        probe: Probe,
    ) -> Result<Papers> {
        files::tidy(dir, probe)?;
        if files::exists(dir)? {
            match self.still_good(dir, &names, now) {
                Ok(papers) => return Ok(papers),
                // The key may be in other hands: that is for people to decide.
                Err(e) if e.kind() == Kind::Denied => return Err(e),
                Err(e) => tracing::info!(dir = %dir.display(), reason = %e, "issuing papers anew"),
            }
        }
        let papers = self.issue_with(role, name, names, now)?;
        papers.replace(dir, probe)?;
        Ok(papers)
    }

    /// The papers in `dir`, if they need not be issued anew; else why they must.
    fn still_good(&self, dir: &Path, names: &[SanType], now: u64) -> Result<Papers> {
        let papers = Papers::load(dir)?;
        let stale = |why: &str| Err(Error::new(Kind::Gone, why));
        let certificate = papers.certificate()?;
        if papers.ca()? != self.ca || !self.issued(&certificate, now) {
            return stale("they are of another CA, or not good now");
        }
        if papers.expires()?.saturating_sub(now) < self.validity / 3 {
            return stale("less than a third of their life is left");
        }
        if found_names(&certificate)? != wanted_names(names) {
            return stale("the names or addresses have changed");
        }
        Ok(papers)
    }

    fn issued(&self, certificate: &CertificateDer<'_>, now: u64) -> bool {
        tls::check_issued(self.ca.clone(), certificate, now).is_ok()
            && Member::from_certificate(certificate).is_ok_and(|m| m.grid == self.grid)
    }
}

/// Name of the admin that the first start makes.
pub(crate) const FIRST_ADMIN: &str = "admin";

#[expect(clippy::disallowed_methods, reason = "the founder of a grid draws its keys")]
fn create(dir: &Path, now: u64, probe: Probe) -> Result<()> {
    let mut id = [0; 16];
    tls::random(&mut id)?;
    let grid: String = id.iter().map(|b| format!("{b:02x}")).collect();
    let uri = uri(&grid_uri(&grid))?;
    let mut params = params(&format!("forebay grid {grid}"), vec![uri]);
    params.not_before = date(now.saturating_sub(EARLY_SECS))?;
    params.not_after = date(now + CA_SECS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = new_key()?;
    let ca = params.self_signed(&key);
    let ca = ca.map_err(|e| Error::caused(Kind::Io, "signing the CA's certificate", e))?;
    let signing = SigningKey::generate()?.to_bytes();
    let set = [(CA, ca.pem()), (CA_KEY, key.serialize_pem()), (GRID, grid.clone())];
    let mut files: Vec<(&str, &[u8])> = set.iter().map(|(n, t)| (*n, t.as_bytes())).collect();
    files.push((SIGNING_KEY, &signing));
    // Another process may have been quicker: then its files are the grid's.
    if files::create_set(dir, &files, probe)? {
        tracing::info!(%grid, dir = %dir.display(), "made a new grid");
    }
    Ok(())
}

fn load(dir: &Path) -> Result<Authority> {
    files::check_private_dir(dir)?;
    let missing = |e: Error| match e.kind() {
        Kind::Gone => Error::new(
            Kind::Corrupt,
            format!(
                "{e}: restore {dir} from a backup, or move it away to begin a new grid (members \
                 must then join again)",
                dir = dir.display()
            ),
        ),
        _ => e,
    };
    let text = |name: &str| files::read_private_text(&dir.join(name)).map_err(missing);
    let (ca_pem, key, grid) = (text(CA)?, text(CA_KEY)?, text(GRID)?);
    let signing = files::read_private(&dir.join(SIGNING_KEY)).map_err(missing)?;
    let corrupt =
        |name: &str, e| Error::new(Kind::Corrupt, format!("{}: {e}", dir.join(name).display()));
    let key = KeyPair::from_pem(&key).map_err(|e| corrupt(CA_KEY, e.to_string()))?;
    let ca: CertificateDer<'static> = one(&ca_pem, CA).at(|| dir.display())?;
    belong_together(&ca, &key, &grid).at(|| dir.display())?;
    let expires = expiry(&ca)?;
    let issuer = Issuer::from_ca_cert_der(&ca, key).map_err(|e| corrupt(CA, e.to_string()))?;
    let signing = SigningKey::from_bytes(&signing).map_err(|e| corrupt(SIGNING_KEY, e.to_string()));
    let (signing, validity) = (signing?, CERTIFICATE_SECS);
    Ok(Authority { grid, ca_pem, ca, issuer, signing, expires, validity })
}

fn belong_together(ca: &[u8], key: &KeyPair, grid: &str) -> Result<()> {
    let parsed = member::parse(ca)?;
    let corrupt = |why: &str| Err(Error::new(Kind::Corrupt, why));
    if parsed.public_key().subject_public_key.data != key.public_key_raw() {
        return corrupt("ca.pem and ca.key do not belong together; restore both from one backup");
    }
    if member::only_uri(&parsed)? != grid_uri(grid) {
        return corrupt("ca.pem is not of the grid in `grid`; restore both from one backup");
    }
    Ok(())
}

/// ECDSA P-256.
#[expect(clippy::disallowed_methods, reason = "who founds or joins a grid draws its key")]
pub(crate) fn new_key() -> Result<KeyPair> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256);
    key.map_err(|e| Error::caused(Kind::Io, "generating a key", e))
}

fn params(common_name: &str, names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.subject_alt_names = names;
    params.use_authority_key_identifier_extension = true;
    params
}

/// The names that stand in a member's certificate.
fn member_names(grid: &str, role: Role, name: &str) -> Result<Vec<SanType>> {
    check_name(name)?;
    let mut names = vec![uri(&member_uri(grid, role, name))?];
    if role == Role::Server {
        names.push(dns(&dns_name(name))?);
    }
    Ok(names)
}

fn uri(text: &str) -> Result<SanType> {
    Ok(SanType::URI(text.try_into().map_err(|e| bad_name(text, &e))?))
}

fn dns(text: &str) -> Result<SanType> {
    Ok(SanType::DnsName(text.try_into().map_err(|e| bad_name(text, &e))?))
}

fn bad_name(name: &str, e: &rcgen::Error) -> Error {
    Error::new(Kind::Invalid, format!("name `{name}` in a certificate: {e}"))
}

/// Names that are wanted in a certificate, in a form that compares.
fn wanted_names(names: &[SanType]) -> BTreeSet<String> {
    let text = |name: &SanType| match name {
        SanType::URI(uri) => format!("uri {}", uri.as_str()),
        SanType::DnsName(dns) => format!("dns {}", dns.as_str()),
        SanType::IpAddress(IpAddr::V4(ip)) => format!("ip {:?}", &ip.octets()[..]),
        SanType::IpAddress(IpAddr::V6(ip)) => format!("ip {:?}", &ip.octets()[..]),
        other => format!("{other:?}"),
    };
    names.iter().map(text).collect()
}

/// Names that stand in a certificate (DER), in the same form.
fn found_names(der: &[u8]) -> Result<BTreeSet<String>> {
    let certificate = member::parse(der)?;
    let names = certificate.subject_alternative_name();
    let names = names.map_err(|e| Error::new(Kind::Corrupt, format!("certificate: {e}")))?;
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => format!("uri {uri}"),
        GeneralName::DNSName(dns) => format!("dns {dns}"),
        GeneralName::IPAddress(ip) => format!("ip {ip:?}"),
        other => format!("{other:?}"),
    };
    Ok(names.iter().flat_map(|n| &n.value.general_names).map(text).collect())
}

fn date(seconds: u64) -> Result<OffsetDateTime> {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    let date = OffsetDateTime::from_unix_timestamp(seconds);
    date.map_err(|_| Error::new(Kind::Invalid, "the clock is out of bounds; set it right"))
}
