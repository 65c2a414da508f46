//! A member's papers: its certificate, its key, and the certificate of its grid's CA.

use std::fmt;
use std::path::Path;

use image::error::At;
use image::{Digest, Error, Kind, Result};
use rustls::SignatureScheme;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::ca::EARLY_SECS;
use crate::files::{self, Probe};
use crate::member::{Member, parse};
use crate::tls;

const CA: &str = "ca.pem";
const CERTIFICATE: &str = "cert.pem";
/// By which members sign.
const SIGNATURE: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;
const KEY: &str = "key.pem";
/// Certificates that were renewed since, the newest first.
const BEFORE: &str = "before.pem";
/// So many of them.
const MOST_BEFORE: usize = 1000;
/// What ends one.
const END: &str = "-----END CERTIFICATE-----\n";

/// What a member needs to speak to its grid, as PEM texts. On disk a directory of three files,
/// readable by their owner alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Papers {
    /// The CA's certificate (`ca.pem`).
    pub ca_pem: String,
    /// The member's certificate (`cert.pem`).
    pub cert_pem: String,
    /// The member's key (`key.pem`).
    pub key_pem: String,
}

/// Without the key.
impl fmt::Debug for Papers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.member() {
            Ok(member) => write!(f, "Papers({member})"),
            Err(e) => write!(f, "Papers({e})"),
        }
    }
}

impl Papers {
    /// Reads papers. Refuses a key that others can read, and one that is not the certificate's.
    pub fn load(dir: &Path) -> Result<Self> {
        // Renewed meanwhile, what was read is of two of them, or was gone in between: the next time it is not.
        Self::load_once(dir).or_else(|_| Self::load_once(dir))
    }

    fn load_once(dir: &Path) -> Result<Self> {
        let missing = |e: Error| match e.kind() {
            Kind::Gone => {
                let why = "no papers of a member there; join the grid, or name another directory";
                Error::new(Kind::Gone, format!("{e}: {why}"))
            }
            _ => e,
        };
        let papers = Self {
            ca_pem: files::read_text(&dir.join(CA)).map_err(missing)?,
            cert_pem: files::read_text(&dir.join(CERTIFICATE)).map_err(missing)?,
            key_pem: files::read_private_text(&dir.join(KEY)).map_err(missing)?,
        };
        papers.check().at(|| dir.display())?;
        Ok(papers)
    }

    /// Makes a directory of these papers: whole or not at all. Papers that are there already are
    /// not touched: that is a conflict.
    pub fn store(&self, dir: &Path) -> Result<()> {
        if files::create_set(dir, &self.files(), &files::no_probe)? {
            return Ok(());
        }
        let dir = dir.display();
        let what = format!("{dir}: papers are there already; remove the directory to join anew");
        Err(Error::new(Kind::Conflict, what))
    }

    /// Stores renewed papers in place of those in a directory.
    pub fn renew(&self, dir: &Path) -> Result<()> {
        self.check()?;
        self.replace(dir, &files::no_probe)
    }

    /// As [`Papers::store`], in place of what is there. The certificates of those stay, for what they have signed.
    pub(crate) fn replace(&self, dir: &Path, probe: Probe) -> Result<()> {
        let before = earlier(dir);
        let [ca, certificate, key] = self.files();
        files::replace_set(dir, &[ca, certificate, key, (BEFORE, before.as_bytes())], probe)
    }

    fn files(&self) -> [(&'static str, &[u8]); 3] {
        [
            (CA, self.ca_pem.as_bytes()),
            (CERTIFICATE, self.cert_pem.as_bytes()),
            (KEY, self.key_pem.as_bytes()),
        ]
    }

    /// Who the papers are for.
    pub fn member(&self) -> Result<Member> {
        Member::from_certificate(&self.certificate()?)
    }

    /// Digest of the CA's certificate: what a join token names.
    pub fn ca_digest(&self) -> Result<Digest> {
        Ok(api::ticket::holder_of(&self.ca()?))
    }

    /// Until when the certificate is good, in seconds since 1970.
    pub fn expires(&self) -> Result<u64> {
        expiry(&self.certificate()?)
    }

    /// Seconds from `now` (seconds since 1970) until the certificate is to be renewed: when a third of its life is
    /// left.
    pub fn renewed_in(&self, now: u64) -> Result<u64> {
        let certificate = self.certificate()?;
        let begins = parse(&certificate)?.validity().not_before.timestamp();
        let issued = u64::try_from(begins).unwrap_or(0) + EARLY_SECS;
        let expires = expiry(&certificate)?;
        let due = expires - expires.saturating_sub(issued) / 3;
        Ok(due.saturating_sub(now))
    }

    /// The certificate (DER).
    pub fn certificate(&self) -> Result<CertificateDer<'static>> {
        one(&self.cert_pem, CERTIFICATE)
    }

    /// The CA's certificate (DER).
    pub fn ca(&self) -> Result<CertificateDer<'static>> {
        one(&self.ca_pem, CA)
    }

    /// What a connection presents: the certificate, then the CA's, by which a joining machine knows
    /// its grid.
    pub fn chain(&self) -> Result<Vec<CertificateDer<'static>>> {
        Ok(vec![self.certificate()?, self.ca()?])
    }

    /// The key.
    pub fn key(&self) -> Result<PrivateKeyDer<'static>> {
        one(&self.key_pem, KEY)
    }

    /// A signature over some bytes by the key of the certificate: ECDSA with SHA-256, in DER.
    pub fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let failed = |e| Error::caused(Kind::Corrupt, format!("{KEY}: {e}"), e);
        let key = tls::provider().key_provider.load_private_key(self.key()?).map_err(failed)?;
        let signer = key.choose_scheme(&[SIGNATURE]);
        let signer = signer
            .ok_or_else(|| Error::new(Kind::Unsupported, format!("{KEY}: of another kind")))?;
        signer.sign(bytes).map_err(failed)
    }

    /// Whether the parts belong together.
    pub(crate) fn check(&self) -> Result<()> {
        self.member()?;
        let pair = CertifiedKey::from_der(self.chain()?, self.key()?, &tls::provider());
        let why = |e| format!("{KEY} and {CERTIFICATE} do not belong together: {e}");
        pair.map(drop).map_err(|e| Error::new(Kind::Corrupt, why(e)))
    }
}

/// The certificates that papers in a directory have had, the newest first.
fn earlier(dir: &Path) -> String {
    let read = |name| files::read_text(&dir.join(name)).unwrap_or_default();
    let all = read(CERTIFICATE) + &read(BEFORE);
    let ends = all.match_indices(END).map(|(at, _)| at + END.len()).take(MOST_BEFORE);
    all[..ends.last().unwrap_or(0)].to_owned()
}

/// Whether a signature over some bytes is by the key of papers in a directory, or of some that these took the place of.
pub fn was_signed(dir: &Path, bytes: &[u8], signature: &[u8]) -> bool {
    let all = earlier(dir);
    CertificateDer::pem_slice_iter(all.as_bytes())
        .flatten()
        .any(|certificate| is_signed(&certificate, bytes, signature))
}

/// Whether a signature over some bytes is by the key of a certificate (DER). Whether that is good is not looked at.
pub fn is_signed(certificate: &[u8], bytes: &[u8], signature: &[u8]) -> bool {
    let Ok(certificate) = parse(certificate) else { return false };
    let key = &certificate.public_key().subject_public_key.data;
    let kinds = tls::provider().signature_verification_algorithms.mapping;
    let kind = kinds.iter().find(|(scheme, _)| *scheme == SIGNATURE);
    let checks = kind.iter().flat_map(|(_, checks)| checks.iter());
    checks.into_iter().any(|check| check.verify_signature(key, bytes, signature).is_ok())
}

/// Until when a certificate (DER) is good, in seconds since 1970.
pub(crate) fn expiry(der: &[u8]) -> Result<u64> {
    Ok(parse(der)?.validity().not_after.timestamp().try_into().unwrap_or(0))
}

/// The first item of a PEM text.
pub(crate) fn one<T: PemObject>(pem: &str, what: &str) -> Result<T> {
    let bad = |e| Error::new(Kind::Corrupt, format!("{what}: {e}"));
    T::from_pem_slice(pem.as_bytes()).map_err(bad)
}
