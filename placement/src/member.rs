//! Who a certificate says its holder is.
//!
//! The role and the name stand in a certificate's subject alternative name, as the URI
//! `forebay://<grid>/<role>/<name>`. What may serve has DNS names besides, and the extended key usage
//! for servers; nobody else has either.

use api::grid::Role;
use api::ticket::holder_of;
use image::{Digest, Error, Kind, Result};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Ending of the DNS names of what serves in a grid.
pub const DOMAIN: &str = "forebay.internal";
/// The DNS name of placement, at whatever address it is.
pub const PLACEMENT: &str = "placement.forebay.internal";
/// Longest name of a member, in bytes. Keeps the DNS name in its limit.
const MAX_NAME: usize = 128;
const SCHEME: &str = "forebay://";

/// A member of a grid, as its certificate says. Whether the certificate is good is for TLS to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The grid's id.
    pub grid: String,
    /// What it may do.
    pub role: Role,
    /// Its name.
    pub name: String,
    /// By what tickets know its certificate.
    pub holder: Digest,
}

impl Member {
    /// Who a certificate (DER) says its holder is.
    pub fn from_certificate(der: &[u8]) -> Result<Self> {
        let certificate = parse(der)?;
        let uri = only_uri(&certificate)?;
        let denied = || denied(&format!("`{}` names no member", uri.escape_debug()));
        let mut parts = uri.strip_prefix(SCHEME).ok_or_else(denied)?.split('/');
        let (Some(grid), Some(role), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(denied());
        };
        let role = Role::from_name(role).ok_or_else(denied)?;
        check_name(name)?;
        Ok(Self { grid: grid.into(), role, name: name.into(), holder: holder_of(der) })
    }
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.role.name(), self.name)
    }
}

/// The URI that names a member.
pub(crate) fn member_uri(grid: &str, role: Role, name: &str) -> String {
    format!("{SCHEME}{grid}/{}/{name}", role.name())
}

/// The URI that names a grid, in the certificate of its CA.
pub(crate) fn grid_uri(grid: &str) -> String {
    format!("{SCHEME}{grid}")
}

/// The DNS name of a member that serves.
pub(crate) fn dns_name(name: &str) -> String {
    format!("{name}.{DOMAIN}")
}

/// Refuses a member's name that is not a DNS name in lower case.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(inner)
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if name.len() <= MAX_NAME && name.split('.').all(label) {
        return Ok(());
    }
    let shown: String = name.chars().take(MAX_NAME).collect();
    Err(Error::new(
        Kind::Invalid,
        format!(
            "name `{}`: must be like a host name in lower case: letters, digits and `-`, in parts \
             divided by `.`, at most {MAX_NAME} bytes",
            shown.escape_debug()
        ),
    ))
}

/// A certificate, parsed; nothing may follow it.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(Error::new(Kind::Corrupt, "certificate: bytes after its end")),
        Err(e) => Err(Error::new(Kind::Corrupt, format!("certificate: {e}"))),
    }
}

/// The one URI of a certificate. Two could mean two members: refused.
pub(crate) fn only_uri<'a>(certificate: &X509Certificate<'a>) -> Result<&'a str> {
    let names = certificate.subject_alternative_name();
    let names = names.map_err(|e| Error::new(Kind::Corrupt, format!("certificate: {e}")))?;
    let names = names.iter().flat_map(|n| &n.value.general_names);
    let mut uris = names.filter_map(|n| match n {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(uri),
        _ => Err(denied("it must hold exactly one URI")),
    }
}

fn denied(why: &str) -> Error {
    Error::new(Kind::Denied, format!("certificate: not one of a member of a grid: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_host_names() {
        for good in ["a", "node-1", "r2.rack7.example.com", &"x".repeat(63)] {
            check_name(good).unwrap();
        }
        let long = "a.".repeat(64) + "a";
        for bad in
            ["", ".", "a.", ".a", "-a", "a-", "A", "a_b", "a/b", "a b", "é", "a..b", "*", &long]
        {
            assert_eq!(check_name(bad).unwrap_err().kind(), Kind::Invalid, "{bad}");
        }
        assert!(check_name(&"x".repeat(64)).is_err(), "a label of 64");
    }

    #[test]
    fn rubbish_is_no_certificate() {
        for bad in [&b""[..], b"rubbish", &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]] {
            assert_eq!(Member::from_certificate(bad).unwrap_err().kind(), Kind::Corrupt);
        }
    }
}
